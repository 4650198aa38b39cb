//! What is no error and yet is hardly meant.

use serde_saphyr::Location;

use crate::diagnostic::Diagnostic;
use crate::matches::{Match, PathMatch};
use crate::pattern::HostPattern;
use crate::route::{Route, Tls, Verdict};

/// Domains under which anyone can have a host of their own: a wildcard over one allows strangers. The common ones; the
/// whole of the public suffix list is larger and changes.
const SHARED_DOMAINS: [&str; 40] = [
    "amazonaws.com",
    "appspot.com",
    "azureedge.net",
    "azurewebsites.net",
    "blob.core.windows.net",
    "cloudapp.net",
    "cloudfront.net",
    "co.in",
    "co.jp",
    "co.kr",
    "co.nz",
    "co.uk",
    "co.za",
    "com.au",
    "com.br",
    "com.cn",
    "com.mx",
    "com.tr",
    "deno.dev",
    "firebaseapp.com",
    "fly.dev",
    "github.io",
    "gitlab.io",
    "herokuapp.com",
    "hf.space",
    "myshopify.com",
    "netlify.app",
    "ngrok-free.app",
    "ngrok.io",
    "onrender.com",
    "org.uk",
    "pages.dev",
    "r2.dev",
    "run.app",
    "s3.amazonaws.com",
    "storage.googleapis.com",
    "trycloudflare.com",
    "vercel.app",
    "web.app",
    "workers.dev",
];
/// Paths that have nothing in common: what matches all of them matches everything that an operator could mean.
const UNLIKE_PATHS: [&str; 6] =
    ["/", "/a", "/Zz_9/~q/-", "/0/1/2/3/4/5/6/7/8/9", "/x.y;z=1", "/%C3%A9/%F0%9F"];

/// The warnings of one file, in its order. `places` are those of the routes.
pub(crate) fn warnings(file: &str, routes: &[Route], places: &[Location]) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for (index, (route, place)) in routes.iter().zip(places).enumerate() {
        let reach = unreachable(&routes[..index], route).or_else(|| overruled(routes, index));
        for message in reach.into_iter().chain(idle_slashes(route)).chain(breadth(route)) {
            found.push(Diagnostic {
                file: file.to_owned(),
                line: place.line(),
                column: place.column(),
                message,
            });
        }
    }
    found
}

/// An earlier route that takes every request of this one.
fn unreachable(earlier: &[Route], route: &Route) -> Option<String> {
    let takes = |other: &&Route| {
        other.verdict == route.verdict
            && other.tls == route.tls
            && (other.is_for_escaped_slashes() || !route.is_for_escaped_slashes())
            && (other.git_fetch || !route.git_fetch)
            && lasts_as_long(other, route)
            && match (&other.grant, &route.grant) {
                // What a base route allows is never left to a grant.
                (None, Some(_)) => covers(other, route),
                (None, None) | (Some(_), Some(_)) => stands_in_for(other, route),
                (Some(_), None) => false,
            }
    };
    let other = earlier.iter().find(takes)?;
    let tail = if other.credential == route.credential { "" } else { ", with another credential" };
    Some(format!("nothing reaches this route: {} is for the same requests and comes first{tail}", other.id))
}

/// A deny that takes every request of this allow.
fn overruled(routes: &[Route], index: usize) -> Option<String> {
    let route = &routes[index];
    if route.verdict == Verdict::Deny || route.tls == Tls::Passthrough {
        return None;
    }
    let takes = |deny: &&Route| {
        deny.verdict == Verdict::Deny
            && lasts_as_long(deny, route)
            && (stands_in_for(deny, route) || route.grant.is_some() && covers(deny, route))
    };
    let deny = routes.iter().find(takes)?;
    Some(format!(
        "this route never allows anything: the deny of {} is for the same requests and wins",
        deny.id
    ))
}

/// `allow_encoded_slashes` where no path that fits has `%2F`.
fn idle_slashes(route: &Route) -> Option<String> {
    let takes_some = |path: &PathMatch| match path {
        PathMatch::Exact(exact) => exact.contains("%2F"),
        PathMatch::Prefix(_) | PathMatch::Regex { .. } => true,
    };
    let is_open = |entry: &Match| entry.paths.is_empty() || entry.paths.iter().any(takes_some);
    let is_idle = route.verdict == Verdict::Allow
        && route.is_for_escaped_slashes()
        && !route.matches.is_empty()
        && !route.matches.iter().any(is_open);
    is_idle.then(|| "`allow_encoded_slashes` changes nothing here: no path that fits has `%2F`".to_owned())
}

fn breadth(route: &Route) -> Vec<String> {
    if route.verdict == Verdict::Deny {
        return Vec::new();
    }
    let mut found = Vec::new();
    let wildcard = match &route.host {
        HostPattern::Exact(_) => None,
        HostPattern::OneLabel(suffix) | HostPattern::AnyDepth(suffix) => Some(suffix.as_str()),
    };
    if let Some(suffix) = wildcard {
        let host = &route.host;
        if SHARED_DOMAINS.contains(&suffix) {
            found.push(format!(
                "dangerous breadth: anyone can have a host under `{suffix}`, and `{host}` allows them all"
            ));
        } else if route.credential.is_some() {
            found.push(format!("dangerous breadth: every host of `{host}` gets the credential"));
        }
    }
    let everything = |path: &&PathMatch| match path {
        PathMatch::Exact(_) => false,
        PathMatch::Prefix(prefix) => prefix == "/",
        PathMatch::Regex { regex, .. } => UNLIKE_PATHS.iter().all(|path| regex.is_match(path)),
    };
    for path in route.matches.iter().flat_map(|entry| &entry.paths).filter(everything) {
        let (kind, value) = (path.kind(), path.value());
        found.push(format!(
            "dangerous breadth: the {kind} `{value}` matches every path: leave `paths` out if that is meant"
        ));
    }
    found
}

/// The other is in force whenever this one is.
fn lasts_as_long(other: &Route, route: &Route) -> bool {
    let ends_first = match (other.expires_at, route.expires_at) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(other), Some(own)) => other < own,
    };
    !ends_first && other.max_uses.is_none()
}

fn same_origins(other: &Route, route: &Route) -> bool {
    other.scheme == route.scheme && route.ports.iter().all(|port| other.ports.contains(port))
}

/// Every request that fits `route` fits `other`, which is exactly as specific.
fn stands_in_for(other: &Route, route: &Route) -> bool {
    let entry = |own: &Match| {
        other.matches.iter().any(|other| {
            other.paths.is_empty() == own.paths.is_empty()
                && own.paths.iter().all(|path| other.paths.contains(path))
                && other.methods.is_empty() == own.methods.is_empty()
                && own.methods.iter().all(|method| other.methods.contains(method))
                && other.headers.len() == own.headers.len()
                && own.headers.iter().all(|header| other.headers.contains(header))
                && other.query.len() == own.query.len()
                && own.query.iter().all(|pair| other.query.contains(pair))
        })
    };
    other.host == route.host
        && same_origins(other, route)
        && other.matches.is_empty() == route.matches.is_empty()
        && route.matches.iter().all(entry)
}

/// Every request that fits `route` fits `other`.
fn covers(other: &Route, route: &Route) -> bool {
    let entry = |own: &Match| {
        other.matches.iter().any(|other| {
            (other.paths.is_empty()
                || !own.paths.is_empty()
                    && own.paths.iter().all(|path| other.paths.iter().any(|other| path_covers(other, path))))
                && (other.methods.is_empty()
                    || !own.methods.is_empty()
                        && own.methods.iter().all(|method| other.methods.contains(method)))
                && other.headers.iter().all(|header| own.headers.contains(header))
                && other.query.iter().all(|pair| own.query.contains(pair))
        })
    };
    let host = match (&other.host, &route.host) {
        (one, another) if one == another => true,
        (pattern, HostPattern::Exact(host)) => pattern.matches(host),
        (HostPattern::AnyDepth(suffix), HostPattern::OneLabel(own) | HostPattern::AnyDepth(own)) => {
            own == suffix || HostPattern::AnyDepth(suffix.clone()).matches(own)
        }
        (HostPattern::Exact(_) | HostPattern::OneLabel(_), _) => false,
    };
    host && same_origins(other, route)
        && (other.matches.is_empty() || !route.matches.is_empty() && route.matches.iter().all(entry))
}

fn path_covers(other: &PathMatch, path: &PathMatch) -> bool {
    other == path
        || match (other, path) {
            (PathMatch::Prefix(_) | PathMatch::Regex { .. }, PathMatch::Exact(path)) => other.fits(path),
            (PathMatch::Prefix(_), PathMatch::Prefix(path)) => other.fits(path),
            (PathMatch::Exact(_), _) | (_, PathMatch::Regex { .. }) | (PathMatch::Regex { .. }, _) => false,
        }
}
