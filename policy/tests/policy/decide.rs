use policy::{AgentCredentials, CanonicalPath, Decision, Host, Policy, RequestHead, Scheme};
use proptest::prelude::*;

use super::{Ask, denial, in_short, outcome, policy};

#[test]
fn without_routes_everything_is_refused() {
    let policy = Policy::parse("routes.yaml", "routes: []\n").unwrap();
    assert_eq!(outcome(&policy, "GET", "https://example.com/"), "host-not-allowed");
}

#[test]
fn a_route_without_matches_allows_its_host_scheme_and_port_alone() {
    let policy = policy("  - host: api.example.com\n");
    assert_eq!(outcome(&policy, "DELETE", "https://api.example.com/any?q=1"), "allow routes[0]");
    for url in [
        "http://api.example.com/",
        "https://api.example.com:8443/",
        "https://example.com/",
        "https://evilapi.example.com/",
        "https://api.example.com.evil.com/",
        "https://93.184.216.34/",
    ] {
        assert_eq!(outcome(&policy, "GET", url), "host-not-allowed", "{url}");
    }
}

#[test]
fn scheme_http_means_port_80_unless_ports_are_listed() {
    let policy = policy(
        "  - {host: a.example.com, scheme: http}\n  - {host: b.example.com, scheme: http, ports: [8080, 8081]}\n",
    );
    assert_eq!(outcome(&policy, "GET", "http://a.example.com/"), "allow routes[0]");
    assert_eq!(outcome(&policy, "GET", "http://b.example.com:8081/"), "allow routes[1]");
    assert_eq!(outcome(&policy, "GET", "http://b.example.com/"), "host-not-allowed");
    assert_eq!(outcome(&policy, "GET", "https://a.example.com:80/"), "host-not-allowed");
}

#[test]
fn a_prefix_matches_whole_path_elements() {
    let policy = policy("  - {host: a.example.com, path_allowlist: [/v1, /repos/acme/]}\n");
    for path in ["/v1", "/v1/", "/v1/x", "/%76%31/x", "/repos/acme", "/repos/acme/web"] {
        assert_eq!(
            outcome(&policy, "GET", &format!("https://a.example.com{path}")),
            "allow routes[0]",
            "{path}"
        );
    }
    for path in ["/", "/v1beta", "/v", "/V1", "/repos", "/repos/acme-evil", "/v1;x", "/v1%20"] {
        assert_eq!(
            outcome(&policy, "GET", &format!("https://a.example.com{path}")),
            "path-not-allowed",
            "{path}"
        );
    }
}

#[test]
fn the_root_prefix_matches_every_path() {
    let policy = policy("  - {host: a.example.com, path_allowlist: [/]}\n");
    assert_eq!(outcome(&policy, "GET", "https://a.example.com/"), "allow routes[0]");
    assert_eq!(outcome(&policy, "GET", "https://a.example.com/x/y"), "allow routes[0]");
}

#[test]
fn a_regex_is_anchored_at_both_ends() {
    let policy =
        policy("  - host: a.example.com\n    matches: [{paths: [{type: regex, value: '/v[0-9]+|/x'}]}]\n");
    for path in ["/v1", "/v22", "/x"] {
        assert_eq!(
            outcome(&policy, "GET", &format!("https://a.example.com{path}")),
            "allow routes[0]",
            "{path}"
        );
    }
    for path in ["/v1/secret", "/a/v1", "/x/y", "/xx"] {
        assert_eq!(
            outcome(&policy, "GET", &format!("https://a.example.com{path}")),
            "path-not-allowed",
            "{path}"
        );
    }
}

#[test]
fn the_code_names_the_nearest_miss() {
    let policy = policy(
        "  - host: a.example.com
    matches:
      - {paths: [{type: prefix, value: /v1}], methods: [GET], headers: [{name: Accept, value: application/json}]}
      - {paths: [{type: exact, value: /v2}], methods: [POST]}
",
    );
    assert_eq!(outcome(&policy, "GET", "https://b.example.com/"), "host-not-allowed");
    assert_eq!(outcome(&policy, "GET", "https://a.example.com/v3"), "path-not-allowed");
    assert_eq!(outcome(&policy, "GET", "https://a.example.com/v2"), "method-not-allowed");
    assert_eq!(outcome(&policy, "GET", "https://a.example.com/v1"), "request-not-allowed");
    let ask = Ask::new("GET", "https://a.example.com/v1").header("accept", "application/json");
    assert_eq!(in_short(&ask.of(&policy)), "allow routes[0]");
}

#[test]
fn an_allow_needs_every_occurrence_of_a_header_and_a_query_key() {
    let policy = policy(
        "  - host: a.example.com
    matches:
      - {headers: [{name: x-mode, value: read}], query: [{name: scope, value: a b}]}
",
    );
    let ask = |url| Ask::new("GET", url).header("x-mode", "read");
    assert_eq!(in_short(&ask("https://a.example.com/?scope=a%20b").of(&policy)), "allow routes[0]");
    assert_eq!(in_short(&ask("https://a.example.com/?scope=a+b&x=1").of(&policy)), "allow routes[0]");
    assert_eq!(in_short(&ask("https://a.example.com/?s%63ope=a+b").of(&policy)), "allow routes[0]");
    assert_eq!(in_short(&ask("https://a.example.com/").of(&policy)), "request-not-allowed");
    assert_eq!(
        in_short(&ask("https://a.example.com/?scope=a+b&scope=all").of(&policy)),
        "request-not-allowed"
    );
    let twice = ask("https://a.example.com/?scope=a+b").header("x-mode", "write");
    assert_eq!(in_short(&twice.of(&policy)), "request-not-allowed");
}

#[test]
fn a_deny_needs_one_occurrence() {
    let policy = policy(
        "  - host: a.example.com
  - {host: a.example.com, deny: true, matches: [{query: [{name: admin, value: '1'}]}]}
",
    );
    assert_eq!(outcome(&policy, "GET", "https://a.example.com/?admin=0"), "allow routes[0]");
    assert_eq!(outcome(&policy, "GET", "https://a.example.com/?admin=0&admin=1"), "denied-by-rule");
    assert_eq!(outcome(&policy, "GET", "https://a.example.com/?%61dmin=%31"), "denied-by-rule");
    assert_eq!(outcome(&policy, "GET", "https://a.example.com/?x=1;admin=1"), "denied-by-rule");
}

#[test]
fn a_deny_wins_over_an_allow_that_is_not_more_specific() {
    let policy = policy(
        "  - {host: a.example.com, path_allowlist: [/v1]}
  - {host: a.example.com, path_allowlist: [/v1/admin], deny: true}
  - {host: a.example.com, matches: [{paths: [{type: exact, value: /v1/admin/health}]}]}
  - {host: a.example.com, deny: true, matches: [{methods: [DELETE]}]}
",
    );
    assert_eq!(outcome(&policy, "GET", "https://a.example.com/v1/x"), "allow routes[0]");
    assert_eq!(outcome(&policy, "GET", "https://a.example.com/v1/admin"), "denied-by-rule");
    assert_eq!(outcome(&policy, "GET", "https://a.example.com/v1/admin/users"), "denied-by-rule");
    assert_eq!(outcome(&policy, "GET", "https://a.example.com/v1/admin/health"), "allow routes[2]");
    // Neither is more specific in every respect, so the deny holds.
    assert_eq!(outcome(&policy, "DELETE", "https://a.example.com/v1/x"), "denied-by-rule");
    assert_eq!(outcome(&policy, "DELETE", "https://a.example.com/v1/admin/health"), "denied-by-rule");
}

#[test]
fn of_equals_the_deny_wins_wherever_it_stands() {
    for routes in [
        "  - {host: a.example.com, deny: true}\n  - host: a.example.com\n",
        "  - host: a.example.com\n  - {host: a.example.com, deny: true}\n",
    ] {
        assert_eq!(outcome(&policy(routes), "GET", "https://a.example.com/"), "denied-by-rule");
    }
}

#[test]
fn an_exact_host_is_more_specific_than_a_wildcard_in_allow_and_deny() {
    let policy = policy(
        "  - {host: '**.example.com', deny: true}
  - host: api.example.com
  - host: '*.eu.example.com'
  - {host: '*.eu.example.com', deny: true, path_allowlist: [/admin]}
  - host: a.eu.example.com
",
    );
    assert_eq!(outcome(&policy, "GET", "https://api.example.com/"), "allow routes[1]");
    assert_eq!(outcome(&policy, "GET", "https://other.example.com/"), "denied-by-rule");
    assert_eq!(outcome(&policy, "GET", "https://b.eu.example.com/"), "allow routes[2]");
    assert_eq!(outcome(&policy, "GET", "https://a.eu.example.com/x"), "allow routes[4]");
    assert_eq!(outcome(&policy, "GET", "https://a.eu.example.com/admin"), "denied-by-rule");
    assert_eq!(outcome(&policy, "GET", "https://c.b.eu.example.com/"), "denied-by-rule");
}

#[test]
fn a_deny_sees_what_a_lenient_server_would_see() {
    let policy = policy(
        "  - host: a.example.com
  - {host: a.example.com, deny: true, path_allowlist: [/users/@me, /admin]}
  - {host: a.example.com, deny: true, matches: [{paths: [{type: exact, value: /keys}, {type: exact, value: /tokens/}, {type: regex, value: '/v[0-9]/raw'}]}]}
",
    );
    for path in [
        "/users/@me",
        "/users/%40me/x",
        "/admin",
        "/admin/",
        "/admin;x=1/users",
        "/admin%3Bx/users",
        "/;x/admin/users",
        "/keys",
        "/keys/",
        "/keys;v=1",
        "/tokens",
        "/v1/raw",
        "/v1/raw/",
        "/v1;x/raw",
    ] {
        assert_eq!(
            outcome(&policy, "GET", &format!("https://a.example.com{path}")),
            "denied-by-rule",
            "{path}"
        );
    }
    for path in ["/users/%40you", "/administration", "/keys/1", "/x/admin", "/users;/you"] {
        assert_eq!(
            outcome(&policy, "GET", &format!("https://a.example.com{path}")),
            "allow routes[0]",
            "{path}"
        );
    }
}

#[test]
fn a_deny_by_regex_yields_to_an_exact_path_alone() {
    let policy = policy(
        "  - {host: a.example.com, path_allowlist: [/]}
  - {host: a.example.com, matches: [{paths: [{type: regex, value: '/.*'}], methods: [GET]}]}
  - {host: a.example.com, matches: [{paths: [{type: exact, value: /admin/health}]}]}
  - {host: a.example.com, deny: true, matches: [{paths: [{type: regex, value: '/admin/.*'}]}]}
",
    );
    assert_eq!(outcome(&policy, "GET", "https://a.example.com/admin/users"), "denied-by-rule");
    assert_eq!(outcome(&policy, "GET", "https://a.example.com/admin/health"), "allow routes[2]");
    assert_eq!(outcome(&policy, "GET", "https://a.example.com/users"), "allow routes[0]");
}

#[test]
fn a_header_that_some_servers_read_as_the_listed_one_narrows_an_allow_and_widens_a_deny() {
    let policy = policy(
        "  - {host: a.example.com, matches: [{headers: [{name: x-mode, value: plain}]}]}
  - {host: a.example.com, deny: true, matches: [{headers: [{name: x-kind, value: raw}]}]}
",
    );
    let ask = || Ask::new("GET", "https://a.example.com/");
    let cases = [
        (ask().header("x-mode", "plain"), "allow routes[0]"),
        (ask().header("x_mode", "plain"), "request-not-allowed"),
        (ask().header("x-mode", "plain").header("x_mode", "other"), "request-not-allowed"),
        (ask().header("x-mode", "plain").header("x_kind", "raw"), "denied-by-rule"),
    ];
    for (ask, expected) in cases {
        assert_eq!(in_short(&ask.of(&policy)), expected, "{:?}", ask.headers);
    }
}

#[test]
fn among_allows_the_narrower_host_then_path_then_the_earlier_wins() {
    let policy = policy(
        "  - host: '**.example.com'
  - host: '*.example.com'
  - {host: a.example.com, matches: [{paths: [{type: regex, value: '/v1/.*'}]}]}
  - {host: a.example.com, path_allowlist: [/v1]}
  - {host: a.example.com, path_allowlist: [/v1/x]}
  - {host: a.example.com, path_allowlist: [/v1/x]}
  - {host: a.example.com, matches: [{paths: [{type: exact, value: /v1/x/y}]}]}
  - {host: a.example.com, matches: [{paths: [{type: prefix, value: /v1/x}], methods: [PUT]}]}
",
    );
    assert_eq!(outcome(&policy, "GET", "https://a.b.example.com/"), "allow routes[0]");
    assert_eq!(outcome(&policy, "GET", "https://b.example.com/"), "allow routes[1]");
    assert_eq!(outcome(&policy, "GET", "https://a.example.com/"), "allow routes[1]");
    assert_eq!(outcome(&policy, "GET", "https://a.example.com/v1/z"), "allow routes[3]");
    assert_eq!(outcome(&policy, "GET", "https://a.example.com/v1/x"), "allow routes[4]");
    assert_eq!(outcome(&policy, "GET", "https://a.example.com/v1/x/y"), "allow routes[6]");
    assert_eq!(outcome(&policy, "PUT", "https://a.example.com/v1/x/z"), "allow routes[7]");
}

#[test]
fn a_grant_ends_at_its_instant() {
    let policy = policy("  - {host: a.example.com, expires_at: 2026-11-21T12:00:01Z, grant: g1}\n");
    let ask = Ask::new("GET", "https://a.example.com/");
    assert_eq!(in_short(&ask.of(&policy)), "allow routes[0]");
    let end = "2026-11-21T12:00:01Z".parse().unwrap();
    assert_eq!(in_short(&ask.at(&policy, end)), "grant-expired");
    let other = Ask::new("GET", "https://b.example.com/");
    assert_eq!(in_short(&other.at(&policy, end)), "host-not-allowed");
}

#[test]
fn an_expired_deny_no_longer_refuses() {
    let policy = policy(
        "  - host: a.example.com\n  - {host: a.example.com, deny: true, expires_at: 2026-11-21T11:00:00Z}\n",
    );
    assert_eq!(outcome(&policy, "GET", "https://a.example.com/"), "allow routes[0]");
}

#[test]
fn a_grant_never_takes_a_request_from_a_base_route_with_a_credential() {
    let policy = policy(
        "  - {host: '*.example.com', path_allowlist: [/v1], auth_scheme: bearer, token_file: API}
  - {host: a.example.com, expires_at: 2027-01-01T00:00:00Z, grant: g1}
",
    );
    // The grant is narrower in host; the base route still serves what it already allowed.
    assert_eq!(outcome(&policy, "GET", "https://a.example.com/v1/x"), "allow routes[0]");
    match Ask::new("GET", "https://a.example.com/v2").of(&policy) {
        Decision::Allow(route) => {
            assert_eq!(route.id().index(), 1);
            assert_eq!(route.credential(), None);
            assert_eq!(route.agent_credentials(), AgentCredentials::AuthorizationTakenOut);
        }
        Decision::Deny(denial) => panic!("{denial}"),
    }
}

#[test]
fn a_deny_beats_a_grant_however_specific() {
    let policy = policy(
        "  - {host: '**.example.com', deny: true}
  - {host: a.example.com, matches: [{paths: [{type: exact, value: /x}], methods: [GET]}], expires_at: 2027-01-01T00:00:00Z, grant: g1}
",
    );
    assert_eq!(outcome(&policy, "GET", "https://a.example.com/x"), "denied-by-rule");
}

#[test]
fn a_push_over_https_is_refused_on_every_route() {
    let policy = policy("  - {host: git.example.com, git: {fetch: true}}\n  - host: web.example.com\n");
    for host in ["git.example.com", "web.example.com"] {
        for (method, target) in [
            ("GET", "/a.git/info/refs?service=git-receive-pack"),
            ("GET", "/a.git/info/refs?x=1&service=git%2Dreceive%2Dpack"),
            ("GET", "/a.git/info/refs?service=git-upload-pack&service=git-receive-pack"),
            ("POST", "/a.git/git-receive-pack"),
            ("POST", "/a.git/git-%72eceive-pack"),
            ("POST", "/a.git/Git-Receive-Pack/"),
            ("POST", "/a.git/git-receive-pack;x=1"),
            ("GET", "/a.git/info;x/refs/?service=git-receive-pack"),
        ] {
            assert_eq!(
                outcome(&policy, method, &format!("https://{host}{target}")),
                "git-push-refused",
                "{target}"
            );
        }
    }
    let denial = denial(&policy, "POST", "https://git.example.com/a.git/git-receive-pack");
    insta::assert_snapshot!(denial, @"git-push-refused: push through the git gate: git://git-gate/NAME.git");
}

#[test]
fn a_fetch_over_https_needs_a_route_that_says_so() {
    let policy = policy("  - {host: git.example.com, git: {fetch: true}}\n  - host: web.example.com\n");
    for target in ["/a.git/info/refs?service=git-upload-pack", "/a.git/git-upload-pack"] {
        assert_eq!(outcome(&policy, "POST", &format!("https://git.example.com{target}")), "allow routes[0]");
        assert_eq!(
            outcome(&policy, "POST", &format!("https://web.example.com{target}")),
            "git-fetch-refused"
        );
        assert_eq!(outcome(&policy, "POST", &format!("https://x.example.com{target}")), "host-not-allowed");
    }
}

#[test]
fn a_tunnel_route_allows_no_request() {
    let policy = policy("  - {host: a.example.com, tls: passthrough}\n");
    assert_eq!(outcome(&policy, "GET", "https://a.example.com/"), "host-not-allowed");
}

#[test]
fn an_address_is_allowed_by_its_own_route_in_any_spelling_of_ipv6() {
    let policy = policy("  - host: 203.0.113.7\n  - host: '[2001:db8::7]'\n  - host: '*.113.example.com'\n");
    assert_eq!(outcome(&policy, "GET", "https://203.0.113.7/"), "allow routes[0]");
    assert_eq!(outcome(&policy, "GET", "https://[2001:DB8:0::7]/"), "allow routes[1]");
    assert_eq!(outcome(&policy, "GET", "https://203.0.113.8/"), "host-not-allowed");
}

#[test]
fn the_hint_says_what_is_allowed_and_names_no_secret() {
    let policy = policy(
        "  - {host: a.example.com, token_env: EGRESS_TOKEN_0, matches: [{paths: [{type: prefix, value: /v1}], methods: [GET, HEAD]}]}
  - {host: a.example.com, ports: [8443]}
",
    );
    insta::assert_snapshot!(denial(&policy, "POST", "https://a.example.com/v1"), @"method-not-allowed: allowed on this host: GET, HEAD https://a.example.com/v1/**; any method https://a.example.com:8443/**");
    insta::assert_snapshot!(denial(&policy, "GET", "http://a.example.com/"), @"host-not-allowed: allowed on this host: GET, HEAD https://a.example.com/v1/**; any method https://a.example.com:8443/**");
    insta::assert_snapshot!(denial(&policy, "POST", "https://b.example.com/"), @"host-not-allowed: no route allows b.example.com; http://_egress.local/allowlist lists what is allowed");
}

#[test]
fn the_hint_tells_each_thing_once_and_whether_there_is_more() {
    let told = |paths: &[&str]| {
        let route = |path: &&str| {
            format!(
                "  - {{host: a.example.com, matches: [{{paths: [{{type: exact, value: {path}}}], methods: [GET]}}]}}\n"
            )
        };
        denial(&policy(&paths.iter().map(route).collect::<String>()), "POST", "https://a.example.com/")
            .to_string()
    };
    insta::assert_snapshot!(told(&["/a", "/b", "/a", "/b", "/a", "/b", "/c"]), @"path-not-allowed: allowed on this host: GET https://a.example.com/a; GET https://a.example.com/b; GET https://a.example.com/c");
    let five = "path-not-allowed: allowed on this host: GET https://a.example.com/a; GET https://a.example.com/b; GET https://a.example.com/c; \
                GET https://a.example.com/d; GET https://a.example.com/e";
    assert_eq!(told(&["/a", "/b", "/c", "/d", "/e", "/a"]), five);
    assert_eq!(told(&["/a", "/b", "/c", "/d", "/e", "/a", "/f"]), format!("{five}; and more"));
    let policy = policy(
        "  - {host: a.example.com, path_allowlist: [/a], ports: [443, 8443]}
  - {host: a.example.com, path_allowlist: [/a]}
  - {host: a.example.com, matches: [{paths: [{type: prefix, value: /a}]}, {methods: [GET]}]}
",
    );
    let hint = denial(&policy, "POST", "https://a.example.com/").to_string();
    insta::assert_snapshot!(hint, @"method-not-allowed: allowed on this host: any method https://a.example.com/a/**; any method https://a.example.com:8443/a/**; GET https://a.example.com/**");
}

proptest! {
    /// What base routes say about a request, a grant can only turn from "nothing allows it" into "allowed".
    #[test]
    fn a_grant_changes_no_answer_but_a_refusal_by_default(
        base in prop::collection::vec((0..4usize, 0..4usize, any::<bool>(), any::<bool>()), 0..6),
        grant in (0..2usize, 0..4usize),
        request in (0..3usize, 0..4usize, any::<bool>()),
    ) {
        const HOSTS: [&str; 4] = ["a.example.com", "b.example.com", "'*.example.com'", "'**.example.com'"];
        const PATHS: [&str; 4] = ["/", "/v1", "/v1/x", "/v2"];
        let line = |(host, path, post, deny): (usize, usize, bool, bool)| {
            let method = if post { "POST" } else { "GET" };
            let matches = format!("[{{paths: [{{type: prefix, value: {}}}], methods: [{method}]}}]", PATHS[path]);
            format!("  - {{host: {}, matches: {matches}, deny: {deny}}}\n", HOSTS[host])
        };
        let lines: String = base.into_iter().map(line).collect();
        let base = Policy::parse("routes.yaml", &if lines.is_empty() { "routes: []\n".to_owned() } else { format!("routes:\n{lines}") }).unwrap();
        let grant = format!("  - {{host: {}, path_allowlist: [{}], expires_at: 2027-01-01T00:00:00Z, grant: g}}\n", HOSTS[grant.0], PATHS[grant.1]);
        let with_grant = policy(&format!("{lines}{grant}"));
        let host = Host::parse(["a.example.com", "b.example.com", "c.d.example.com"][request.0]).unwrap();
        let path = CanonicalPath::parse(PATHS[request.1]).unwrap();
        let method = if request.2 { http::Method::POST } else { http::Method::GET };
        let headers = http::HeaderMap::new();
        let head = RequestHead { scheme: Scheme::Https, host: &host, port: 443, method: &method, path: &path, query: None, headers: &headers };
        let before = in_short(&base.decide(&head, super::now()));
        let after = in_short(&with_grant.decide(&head, super::now()));
        if before.starts_with("allow") || before == "denied-by-rule" {
            prop_assert_eq!(before, after);
        }
    }
}

#[test]
fn a_route_that_is_used_up_allows_nothing_and_leaves_the_request_to_the_next() {
    let policy = policy(
        "  - {host: a.example.com, path_allowlist: [/v1], max_uses: 1, grant: g}
  - {host: a.example.com, path_allowlist: [/v1], max_uses: 1, grant: h}
",
    );
    let ask = Ask::new("GET", "https://a.example.com/v1");
    let head = ask.head();
    let decided = |spent: &[&str]| {
        let is_spent = |route: &policy::Route| spent.contains(&route.grant().unwrap().as_str());
        in_short(&policy.decide_unless(&head, super::now(), &is_spent))
    };
    assert_eq!(decided(&[]), "allow routes[0]");
    assert_eq!(decided(&["g"]), "allow routes[1]");
    assert_eq!(decided(&["g", "h"]), "grant-used-up");
}
