//! What a person should look at twice: how much a proposal asks for, and names that are easily taken for others.

use std::fmt;

use policy::{HostPattern, Policy, Scheme};
use serde::Serialize;

use crate::{PathRule, Proposal};

/// How much is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Breadth {
    /// From 0 (one resource, read once) to 100 (everything on the host, for long).
    pub score: u8,
    /// What makes it broad.
    pub because: Vec<&'static str>,
}

/// Something about the host to look at twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "flag", rename_all = "snake_case")]
pub enum Flag {
    /// The routes have nothing about this host yet.
    NewHost,
    /// The name is easily taken for another one.
    Lookalike {
        /// For which.
        of: String,
    },
    /// The name is written in punycode: what a browser would show for it is not what stands here.
    Punycode,
    /// The traffic is not encrypted.
    Plain,
}

/// Names that others imitate, besides those of the routes.
const IMITATED: [&str; 12] = [
    "github.com",
    "api.github.com",
    "gitlab.com",
    "bitbucket.org",
    "pypi.org",
    "npmjs.com",
    "registry.npmjs.org",
    "crates.io",
    "docker.io",
    "google.com",
    "googleapis.com",
    "amazonaws.com",
];
/// Shorter names are a letter apart by chance.
const NAME_MIN: usize = 6;

/// Scores the proposal.
pub(crate) fn breadth(proposal: &Proposal) -> Breadth {
    let everywhere =
        proposal.paths().iter().any(|path| matches!(path, PathRule::Prefix(prefix) if prefix == "/"));
    let below = proposal.paths().iter().any(|path| matches!(path, PathRule::Prefix(_)));
    let deletes = proposal.methods().iter().any(|method| method == "DELETE");
    let parts = [
        (proposal.writes(), 30, "it can change things there"),
        (deletes, 10, "it can delete things there"),
        (everywhere, 25, "every path of the host"),
        (below && !everywhere, 10, "whatever lies below a path"),
        (proposal.ttl_seconds() > 4 * 60 * 60, 10, "longer than 4 hours"),
        (proposal.max_uses().is_none(), 5, "as often as it likes"),
        (proposal.ports().len() > 1, 10, "several ports"),
        (proposal.scheme() == Scheme::Http, 10, "not encrypted"),
    ];
    let hits = parts.iter().filter(|(holds, _, _)| *holds);
    Breadth {
        score: hits.clone().map(|(_, weight, _)| weight).sum(),
        because: hits.map(|(_, _, why)| *why).collect(),
    }
}

/// What to look at twice, given the routes as they are.
pub(crate) fn flags(proposal: &Proposal, routes: &Policy) -> Vec<Flag> {
    let name = proposal.host().as_str();
    let mut flags = Vec::new();
    if !is_known(proposal, routes) {
        flags.push(Flag::NewHost);
        let known: Vec<String> = routes.routes().iter().map(|route| plain(route.host())).collect();
        let imitated = known.iter().map(String::as_str).chain(IMITATED);
        flags.extend(
            imitated.filter(|of| imitates(name, of)).map(|of| Flag::Lookalike { of: of.to_owned() }).next(),
        );
    }
    if name.split('.').any(|label| label.starts_with("xn--")) {
        flags.push(Flag::Punycode);
    }
    if proposal.scheme() == Scheme::Http {
        flags.push(Flag::Plain);
    }
    flags
}

/// Whether a yes gives write access to a host that nothing led to before: what a person has to type the host for.
pub(crate) fn needs_typing(proposal: &Proposal, routes: &Policy) -> bool {
    proposal.writes() && !is_known(proposal, routes)
}

fn is_known(proposal: &Proposal, routes: &Policy) -> bool {
    let base = routes.routes().iter().filter(|route| !route.deny() && route.grant().is_none());
    base.into_iter().any(|route| route.host().matches(proposal.host()))
}

fn plain(pattern: &HostPattern) -> String {
    pattern.to_string().trim_start_matches('*').trim_start_matches('.').to_owned()
}

/// Whether `name` is not `of`, nor under it, but could be read as it.
fn imitates(name: &str, of: &str) -> bool {
    let under = name.strip_suffix(of).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    if under || of.len() < NAME_MIN || of.parse::<std::net::IpAddr>().is_ok() {
        return false;
    }
    let leads = name.strip_prefix(of).is_some_and(|rest| rest.starts_with('.') || rest.starts_with('-'));
    let inside = name.contains(&format!(".{of}.")) || name.contains(&format!("-{of}"));
    let dashed = name.starts_with(&of.replace('.', "-"));
    leads || inside || dashed || skeleton(name) == skeleton(of) || is_a_slip_apart(name, of)
}

/// What is left when signs that look alike are one.
fn skeleton(name: &str) -> String {
    name.replace("rn", "m")
        .replace("vv", "w")
        .chars()
        .filter(|c| *c != '-')
        .map(|c| match c {
            '0' => 'o',
            '1' | 'i' => 'l',
            '5' => 's',
            other => other,
        })
        .collect()
}

/// One letter more, less, other, or two swapped.
fn is_a_slip_apart(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let (long, short) = if one.len() >= other.len() { (one, other) } else { (other, one) };
    let same = long.iter().zip(short).take_while(|(a, b)| a == b).count();
    match long.len() - short.len() {
        0 if same == long.len() => false,
        0 => {
            let swapped =
                same + 1 < long.len() && long[same] == short[same + 1] && long[same + 1] == short[same];
            long[same + 1..] == short[same + 1..] || swapped && long[same + 2..] == short[same + 2..]
        }
        1 => long[same + 1..] == short[same..],
        _ => false,
    }
}

impl fmt::Display for Breadth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of 100", self.score)?;
        if self.because.is_empty() { Ok(()) } else { write!(f, ": {}", self.because.join(", ")) }
    }
}

impl fmt::Display for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Flag::NewHost => f.write_str("no route leads to this host yet"),
            Flag::Lookalike { of } => write!(f, "the name looks like {of}, and is not"),
            Flag::Punycode => f.write_str("the name is written in punycode (xn--)"),
            Flag::Plain => f.write_str("the traffic is not encrypted"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn flagged(host: &str) -> Vec<Flag> {
        let routes =
            Policy::parse("routes.yaml", "routes:\n  - host: api.acme.test\n  - host: '*.acme.dev'\n");
        let proposal = Proposal::parse(&json!({"host": host, "reason": "r"})).unwrap();
        flags(&proposal, &routes.unwrap())
    }

    #[test]
    fn names_that_are_taken_for_others_are_flagged() {
        let of = |of: &str| vec![Flag::NewHost, Flag::Lookalike { of: of.to_owned() }];
        for (host, imitated) in [
            ("githud.com", "github.com"),
            ("g1thub.com", "github.com"),
            ("gihtub.com", "github.com"),
            ("github.com.evil.example", "github.com"),
            ("github-com.example", "github.com"),
            ("api.acrne.test", "api.acme.test"),
            ("api.acme.tes", "api.acme.test"),
            ("acme.dev-login.example", "acme.dev"),
        ] {
            assert_eq!(flagged(host), of(imitated), "{host}");
        }
        assert_eq!(flagged("xn--gthub-zsa.com"), [Flag::NewHost, Flag::Punycode]);
    }

    #[test]
    fn names_that_are_their_own_are_not() {
        for host in ["api.acme.test", "one.acme.dev"] {
            assert_eq!(flagged(host), [], "{host}");
        }
        for host in ["docs.acme.test", "example.org", "uploads.github.com", "10.example.com"] {
            assert_eq!(flagged(host), [Flag::NewHost], "{host}");
        }
    }

    #[test]
    fn the_more_is_asked_for_the_higher_the_score() {
        let score = |more: serde_json::Value| {
            let mut ask = json!({"host": "a.example", "reason": "r"});
            ask.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            breadth(&Proposal::parse(&ask).unwrap()).score
        };
        let one = score(json!({"paths": [{"type": "exact", "value": "/a"}], "max_uses": 1}));
        let below = score(json!({"paths": [{"type": "prefix", "value": "/a"}], "max_uses": 1}));
        let all = score(json!({}));
        let write = score(json!({"methods": ["POST"]}));
        let most =
            score(json!({"methods": ["DELETE"], "ports": [80, 81], "scheme": "http", "ttl_seconds": 86400}));
        assert!(one == 0 && one < below && below < all && all < write && write < most && most <= 100);
    }
}
