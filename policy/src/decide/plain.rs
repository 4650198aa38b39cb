//! The rules as a walk over all routes, each asked by itself: what the index and its kinds must not change.

use proptest::prelude::*;

use super::*;
use crate::route::RouteId;

/// The route that allows it, or the code of the refusal.
type Answer = Result<RouteId, Code>;

/// One of them often. Some are passed through, which a host is on all its ports or on none.
const PATTERNS: [(&str, Tls); 8] = [
    ("h.example.com", Tls::Intercept),
    ("h.example.com", Tls::Intercept),
    ("h.example.com", Tls::Intercept),
    ("'*.example.com'", Tls::Intercept),
    ("'**.h.example.com'", Tls::Intercept),
    ("p.h.example.com", Tls::Passthrough),
    ("'**.example.com'", Tls::Passthrough),
    ("other.example.net", Tls::Intercept),
];
const HOSTS: [&str; 8] = [
    "h.example.com",
    "h.example.com",
    "h.example.com",
    "x.h.example.com",
    "p.h.example.com",
    "y.z.example.com",
    "other.example.net",
    "example.com",
];
const NOW: &str = "2026-11-21T12:00:00Z";

fn host_fits<'p>(policy: &'p Policy, host: &Host) -> Vec<&'p Route> {
    policy.routes().iter().filter(|route| route.host.matches(host)).collect()
}

/// Whether one of the routes may allow something that no deny of the whole host refuses, of all of them.
fn named(fits: &[&Route], now: Timestamp) -> bool {
    let in_force = || fits.iter().filter(|route| !route.expired(now));
    in_force().filter(|route| route.verdict == Verdict::Allow).any(|allow| {
        allow.ports.iter().any(|port| {
            in_force()
                .filter(|deny| deny.verdict == Verdict::Deny && deny.matches.is_empty())
                .filter(|deny| deny.ports.contains(port))
                .all(|deny| !deny.takes_back(allow, *port))
        })
    })
}

/// What a request is told, by what the rules say of each route alone.
fn decided(
    policy: &Policy,
    head: &RequestHead<'_>,
    now: Timestamp,
    spent: &dyn Fn(&Route) -> bool,
) -> Answer {
    let service = git::service(head);
    let mut own = host_fits(policy, head.host);
    own.retain(|route| {
        route.scheme == head.scheme && route.ports.contains(&head.port) && route.tls == Tls::Intercept
    });
    let fits: Vec<(&Route, Fit)> = own.into_iter().map(|route| (route, route.fit(head))).collect();
    let used_up = |route: &Route| route.max_uses.is_some() && spent(route);
    let in_force = |route: &Route| !route.expired(now) && !used_up(route);
    // Those that fit as a whole, with how narrow they are.
    let whole = || {
        fits.iter().filter_map(|(route, fit)| match fit {
            Fit::Full(entry) => Some((*route, Rank { host: route.host.rank(), entry: *entry })),
            _ => None,
        })
    };
    let passes = |route: &Route| match service {
        None => true,
        Some(GitService::UploadPack) => route.git_fetch,
        Some(GitService::ReceivePack) => false,
    };
    let is_allow = |route: &Route| route.verdict == Verdict::Allow;
    let escaped_slash = head.path.as_str().contains("%2F");
    let mut for_such_a_path = false;
    for grants in [false, true] {
        for_such_a_path |= whole().any(|(route, _)| route.grant.is_some() == grants && is_allow(route));
        let of_pass = || whole().filter(|(route, _)| route.grant.is_some() == grants && in_force(route));
        let denies: Vec<Rank> =
            of_pass().filter(|(route, _)| !is_allow(route)).map(|(_, rank)| rank).collect();
        let allows = of_pass().filter(|(route, _)| is_allow(route) && passes(route));
        let stands = |rank: &Rank| denies.iter().all(|deny| rank.overrides(deny));
        let mut standing: Vec<_> = allows.filter(|(_, rank)| stands(rank)).collect();
        standing.sort_by(|(one, narrow), (other, wide)| wide.cmp(narrow).then(one.id.cmp(&other.id)));
        match standing.first() {
            Some((route, _)) => return Ok(route.id),
            None if !denies.is_empty() && escaped_slash && !for_such_a_path => {
                return Err(Code::AmbiguousPath);
            }
            None if !denies.is_empty() => return Err(Code::DeniedByRule),
            None => {}
        }
    }
    let withheld = |wanted| {
        service == Some(wanted)
            && whole().any(|(route, _)| is_allow(route) && in_force(route) && !passes(route))
    };
    let nearest = fits
        .iter()
        .filter(|(route, fit)| is_allow(route) && !route.expired(now) && !matches!(fit, Fit::Full(_)));
    Err(match nearest.map(|(_, fit)| *fit).max() {
        _ if withheld(GitService::ReceivePack) => Code::GitPushRefused,
        _ if withheld(GitService::UploadPack) => Code::GitFetchRefused,
        _ if whole().any(|(route, _)| is_allow(route) && route.expired(now)) => Code::GrantExpired,
        _ if whole().any(|(route, _)| !route.expired(now) && used_up(route)) => Code::GrantUsedUp,
        _ if escaped_slash => Code::AmbiguousPath,
        Some(Fit::PathMiss) => Code::PathNotAllowed,
        Some(Fit::MethodMiss) => Code::MethodNotAllowed,
        Some(Fit::RequestMiss | Fit::Full(_)) => Code::RequestNotAllowed,
        None => Code::HostNotAllowed,
    })
}

/// What a CONNECT is told: `None` is a tunnel that is opened here.
fn fronted(policy: &Policy, host: &Host, port: u16, now: Timestamp) -> Option<Answer> {
    let routes = host_fits(policy, host);
    let allows = |route: &&Route| route.scheme == Scheme::Https && route.verdict == Verdict::Allow;
    let allowing: Vec<&Route> = routes.iter().copied().filter(allows).collect();
    let here: Vec<&Route> = allowing.iter().copied().filter(|route| route.ports.contains(&port)).collect();
    for grants in [false, true] {
        let mut lead: Vec<&Route> = here.clone();
        lead.retain(|route| route.grant.is_some() == grants && !route.expired(now));
        lead.sort_by(|one, other| other.host.rank().cmp(&one.host.rank()).then(one.id.cmp(&other.id)));
        let Some(first) = lead.first() else { continue };
        if first.tls == Tls::Intercept {
            return None;
        }
        let refused = routes.iter().any(|deny| {
            let could_fit = !deny.matches.is_empty() || deny.host.rank() >= first.host.rank();
            let same_tunnel = deny.scheme == Scheme::Https && deny.ports.contains(&port);
            deny.verdict == Verdict::Deny && same_tunnel && could_fit && !deny.expired(now)
        });
        return Some(if refused { Err(Code::DeniedByRule) } else { Ok(first.id) });
    }
    let passed_through = |route: &&Route| route.tls == Tls::Passthrough;
    let only_passed_through = !allowing.is_empty() && allowing.iter().all(passed_through);
    if policy.is_intercepted_port(port) && !only_passed_through {
        return None;
    }
    let expired = here.iter().any(|route| route.expired(now));
    Some(Err(if expired { Code::GrantExpired } else { Code::HostNotAllowed }))
}

/// Few, and some of them often, so that they meet.
fn path() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "/",
        "/a",
        "/a",
        "/a/",
        "/a/",
        "/a;x",
        "/a/@",
        "/a/%40/",
        "/%40",
        "/a/git-upload-pack",
        "/a/git-receive-pack",
        "/A",
    ])
}

/// Mostly what a route has that says nothing of it.
fn place() -> impl Strategy<Value = (bool, u16)> {
    (prop::bool::weighted(0.2), prop::sample::select(vec![443, 443, 443, 80, 8443]))
}

fn entry() -> impl Strategy<Value = String> {
    let paths = prop_oneof![
        4 => (prop::sample::select(vec!["exact", "prefix"]), path())
            .prop_map(|(kind, path)| format!("paths: [{{type: {kind}, value: '{path}'}}]")),
        1 => Just("paths: [{type: regex, value: '/a/.*'}]".to_owned()),
    ];
    let methods = Just("methods: [GET]".to_owned());
    let headers = Just("headers: [{name: accept, value: a}]".to_owned());
    let query = Just("query: [{name: q, value: x}]".to_owned());
    let fields = (prop::option::weighted(0.9, paths), prop::option::weighted(0.3, methods));
    let fields = (fields, prop::option::weighted(0.2, headers), prop::option::weighted(0.2, query));
    fields.prop_map(|((paths, methods), headers, query)| {
        let fields: Vec<String> = [paths, methods, headers, query].into_iter().flatten().collect();
        let fields = if fields.is_empty() { "methods: [POST]".to_owned() } else { fields.join(", ") };
        format!("{{{fields}}}")
    })
}

/// A route whose fields agree with each other.
fn route() -> impl Strategy<Value = String> {
    let ends = prop::sample::select(vec!["", "2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z", NOW]);
    let kind = (prop::sample::select(PATTERNS.to_vec()), place());
    let matches = prop::option::weighted(0.8, prop::collection::vec(entry(), 1..3));
    let flags =
        (prop::bool::weighted(0.3), prop::bool::weighted(0.3), prop::bool::weighted(0.3), any::<bool>());
    (kind, matches, ends, flags, any::<bool>()).prop_map(
        |(((host, tls), (http, port)), matches, end, (deny, grant, counted, git), kept)| {
            let tls = if deny { Tls::Intercept } else { tls };
            let opened = tls == Tls::Intercept;
            let mut fields = vec![format!("host: {host}, ports: [{port}]")];
            let mut say = |is_so: bool, field: String| fields.extend(is_so.then_some(field));
            say(opened && http, "scheme: http".to_owned());
            say(opened && kept, "allow_encoded_slashes: true".to_owned());
            say(!opened, "tls: passthrough".to_owned());
            say(deny, "deny: true".to_owned());
            say(!end.is_empty(), format!("expires_at: {end}"));
            say(!deny && grant, "grant: g".to_owned());
            say(!deny && opened && counted, "max_uses: 1".to_owned());
            say(!deny && opened && git, "git: {fetch: true}".to_owned());
            say(
                opened && matches.is_some(),
                format!("matches: [{}]", matches.unwrap_or_default().join(", ")),
            );
            format!("  - {{{}}}\n", fields.join(", "))
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8 * ProptestConfig::default().cases, ..ProptestConfig::default() })]

    #[test]
    fn what_is_asked_is_answered_as_by_a_walk_over_all_routes(
        routes in prop::collection::vec(route(), 1..12),
        host in prop::sample::select(HOSTS.to_vec()),
        (http, port) in place(),
        asked in prop_oneof![
            8 => path(),
            1 => Just("/a/info/refs"),
            4 => prop::sample::select(vec!["/a%2Fb", "/a%2F", "/a/@%2Fx", "/b%2Fa", "/a%2Fgit-receive-pack"]),
        ],
        query in prop::sample::select(vec!["", "q=x", "q=y", "service=git-receive-pack", "service=git-upload-pack"]),
        (posted, accepts, spent) in (any::<bool>(), any::<bool>(), any::<u16>()),
    ) {
        let policy = Policy::parse("routes.yaml", &format!("routes:\n{}", routes.concat()));
        let policy = policy.map_err(|error| TestCaseError::reject(error.to_string()))?;
        let host = Host::parse(host).expect("a host");
        let path = CanonicalPath::of_request(asked).expect("a path");
        let mut headers = http::HeaderMap::new();
        if accepts {
            headers.insert("accept", http::HeaderValue::from_static("a"));
        }
        let head = RequestHead {
            scheme: if http { Scheme::Http } else { Scheme::Https },
            host: &host,
            port,
            method: if posted { &http::Method::POST } else { &http::Method::GET },
            path: &path,
            query: Some(query).filter(|query| !query.is_empty()),
            headers: &headers,
        };
        let now = NOW.parse().expect("a time");
        let spent = |route: &Route| spent & (1 << route.id.index()) != 0;
        let answer = match policy.decide_unless(&head, now, &spent) {
            Decision::Allow(route) => Ok(route.id),
            Decision::Deny(denial) => Err(denial.code),
        };
        prop_assert_eq!(&answer, &decided(&policy, &head, now, &spent));
        let front = match policy.front(&host, port, now) {
            Front::Intercept => None,
            Front::Passthrough(route) => Some(Ok(route.id)),
            Front::Refuse(denial) => Some(Err(denial.code)),
        };
        prop_assert_eq!(front, fronted(&policy, &host, port, now));
        let may_pass = answer.is_ok() || matches!(policy.front(&host, port, now), Front::Passthrough(_));
        prop_assert!(!may_pass || policy.names(&host, now));
        let named = named(&host_fits(&policy, &host), now);
        prop_assert_eq!(policy.names(&host, now), named);
        let allows = |route: &Route| route.verdict == Verdict::Allow && !route.expired(now);
        let is_below = |route: &Route| route.host.to_string().ends_with(&format!(".{host}"));
        let above = policy.routes().iter().any(|route| allows(route) && is_below(route));
        prop_assert_eq!(policy.is_above_allowed(&host, now), above);
    }
}
