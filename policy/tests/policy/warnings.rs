use policy::Policy;

use super::policy;

fn warnings(routes: &str) -> String {
    let policy = policy(routes);
    policy.warnings().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_route_that_nothing_reaches_is_told_with_its_place() {
    insta::assert_snapshot!(warnings("
  - {host: a.example.com, matches: [{paths: [{type: prefix, value: /v1}], methods: [GET, POST]}]}
  - {host: a.example.com, matches: [{paths: [{type: prefix, value: /v1}], methods: [GET]}], token_env: A}
  - {host: b.example.com}
  - {host: b.example.com, ports: [443]}
  - {host: '**.c.example.com'}
  - {host: x.c.example.com, path_allowlist: [/v1], expires_at: 2027-01-01T00:00:00Z, grant: g}
"), @r"
    routes.yaml:4:12: nothing reaches this route: routes[0] is for the same requests and comes first, with another credential
    routes.yaml:6:12: nothing reaches this route: routes[2] is for the same requests and comes first
    routes.yaml:8:12: nothing reaches this route: routes[4] is for the same requests and comes first
    ");
}

#[test]
fn a_route_for_escaped_slashes_is_not_stood_in_for_by_one_without() {
    insta::assert_snapshot!(warnings("
  - {host: a.example.com}
  - {host: a.example.com, allow_encoded_slashes: true}
  - {host: a.example.com}
  - {host: a.example.com, allow_encoded_slashes: true, token_env: A}
  - {host: b.example.com, deny: true, path_allowlist: [/a]}
  - {host: b.example.com, deny: true, path_allowlist: [/a], allow_encoded_slashes: true}
"), @r"
    routes.yaml:5:12: nothing reaches this route: routes[0] is for the same requests and comes first
    routes.yaml:6:12: nothing reaches this route: routes[1] is for the same requests and comes first, with another credential
    routes.yaml:8:12: nothing reaches this route: routes[4] is for the same requests and comes first
    ");
}

#[test]
fn a_setting_for_escaped_slashes_that_changes_nothing_is_told() {
    insta::assert_snapshot!(warnings("
  - {host: a.example.com, allow_encoded_slashes: true, matches: [{paths: [{type: exact, value: /a}, {type: exact, value: /b}]}]}
  - {host: b.example.com, allow_encoded_slashes: true, matches: [{paths: [{type: exact, value: /a}]}, {paths: [{type: exact, value: /a%2Fb}]}]}
  - {host: c.example.com, allow_encoded_slashes: true, matches: [{paths: [{type: exact, value: /a}]}, {methods: [GET]}]}
  - {host: d.example.com, allow_encoded_slashes: true}
  - {host: e.example.com, allow_encoded_slashes: true, path_allowlist: [/a]}
"), @"routes.yaml:3:12: `allow_encoded_slashes` changes nothing here: no path that fits has `%2F`");
}

#[test]
fn an_allow_that_a_deny_always_beats_is_told() {
    insta::assert_snapshot!(warnings("
  - {host: a.example.com, path_allowlist: [/v1]}
  - {host: a.example.com, path_allowlist: [/v1], deny: true}
  - {host: b.example.com, deny: true}
  - {host: b.example.com, path_allowlist: [/v1], expires_at: 2027-01-01T00:00:00Z, grant: g}
"), @r"
    routes.yaml:3:12: this route never allows anything: the deny of routes[1] is for the same requests and wins
    routes.yaml:6:12: this route never allows anything: the deny of routes[2] is for the same requests and wins
    ");
}

#[test]
fn dangerous_breadth_is_told() {
    insta::assert_snapshot!(warnings("
  - {host: '*.github.io'}
  - {host: '**.example.com', token_env: A}
  - {host: a.example.com, matches: [{paths: [{type: regex, value: '.*'}]}]}
  - {host: b.example.com, matches: [{paths: [{type: regex, value: '/?.*'}, {type: prefix, value: /}]}]}
"), @r"
    routes.yaml:3:12: dangerous breadth: anyone can have a host under `github.io`, and `*.github.io` allows them all
    routes.yaml:4:12: dangerous breadth: every host of `**.example.com` gets the credential
    routes.yaml:5:12: dangerous breadth: the regex `.*` matches every path: leave `paths` out if that is meant
    routes.yaml:6:12: dangerous breadth: the regex `/?.*` matches every path: leave `paths` out if that is meant
    routes.yaml:6:12: dangerous breadth: the prefix `/` matches every path: leave `paths` out if that is meant
    ");
}

#[test]
fn what_is_meant_is_not_warned_of() {
    assert_eq!(
        warnings(
            "
  - {host: a.example.com, path_allowlist: [/v1]}
  - {host: a.example.com, path_allowlist: [/v1/admin], deny: true}
  - {host: a.example.com, path_allowlist: [/v1/admin/me]}
  - {host: a.example.com}
  - {host: '*.example.com', matches: [{paths: [{type: regex, value: '/v[0-9]+/.*'}]}]}
  - {host: b.example.com, expires_at: 2027-01-01T00:00:00Z, grant: g}
  - {host: b.example.com}
  - {host: c.example.com, deny: true}
  - {host: c.example.com, path_allowlist: [/v1]}
"
        ),
        ""
    );
    assert!(Policy::parse("routes.yaml", "routes: []\n").unwrap().warnings().is_empty());
}

proptest::proptest! {
    /// Taking out a route that is said to be never reached changes no answer.
    #[test]
    fn a_route_that_is_said_to_be_unreachable_decides_nothing(
        routes in proptest::collection::vec((0..3usize, 0..5usize, 0..3usize, proptest::bool::weighted(0.3), proptest::bool::ANY), 1..6),
        request in (0..3usize, 0..7usize, proptest::bool::ANY),
    ) {
        const HOSTS: [&str; 3] = ["a.example.com", "'*.example.com'", "'**.example.com'"];
        const PATHS: [&str; 5] = ["{type: prefix, value: /v1}, {type: exact, value: /v1/a}", "{type: prefix, value: /}", "{type: prefix, value: /v1}", "{type: exact, value: /v1}", "{type: regex, value: '/v1.*'}"];
        const METHODS: [&str; 3] = ["", ", methods: [GET]", ", methods: [GET, POST]"];
        let line = |(host, path, methods, deny, kept): &(usize, usize, usize, bool, bool)| format!(
            "  - {{host: {}, matches: [{{paths: [{}]{}}}], deny: {deny}, allow_encoded_slashes: {kept}}}\n", HOSTS[*host], PATHS[*path], METHODS[*methods]
        );
        let lines: Vec<String> = routes.iter().map(line).collect();
        let whole = policy(&lines.concat());
        let idle: Vec<u64> = whole.warnings().iter().filter(|found| found.message.contains("this route")).map(|found| found.line).collect();
        let kept: String = lines.iter().enumerate().filter(|(index, _)| !idle.contains(&(*index as u64 + 2))).map(|(_, line)| line.as_str()).collect();
        let kept = if kept.is_empty() { Policy::parse("routes.yaml", "routes: []\n").unwrap() } else { policy(&kept) };
        let url = format!("https://{}{}", ["a.example.com", "b.example.com", "b.c.example.com"][request.0], ["/", "/v1", "/v1/x", "/v2", "/v1x", "/v1/a%2Fb", "/v1%2Fa"][request.1]);
        let method = if request.2 { "GET" } else { "DELETE" };
        let allowed = |policy: &Policy| matches!(super::Ask::new(method, &url).of(policy), policy::Decision::Allow(_));
        proptest::prop_assert_eq!(allowed(&whole), allowed(&kept), "{}", url);
    }
}
