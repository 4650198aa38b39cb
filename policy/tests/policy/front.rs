use policy::{Front, Policy};

use super::{host, now, policy};

fn front(policy: &Policy, name: &str, port: u16) -> String {
    match policy.front(&host(name), port, now()) {
        Front::Intercept => "intercept".to_owned(),
        Front::Passthrough(route) => format!("passthrough {}", route.id()),
        Front::Refuse(denial) => format!("refuse {}", denial.code),
    }
}

#[test]
fn a_refused_host_on_an_intercepted_port_is_told_inside_the_tunnel() {
    let policy = policy("  - {host: a.example.com, ports: [443, 8443]}\n");
    assert_eq!(front(&policy, "a.example.com", 8443), "intercept");
    assert_eq!(front(&policy, "b.example.com", 443), "intercept");
    assert_eq!(front(&policy, "b.example.com", 8443), "intercept");
    assert_eq!(front(&policy, "b.example.com", 22), "refuse host-not-allowed");
    assert_eq!(front(&policy, "a.example.com", 22), "refuse host-not-allowed");
}

#[test]
fn a_plain_text_route_opens_no_tunnel() {
    let policy = policy("  - {host: a.example.com, scheme: http}\n");
    assert_eq!(front(&policy, "a.example.com", 80), "refuse host-not-allowed");
}

#[test]
fn the_narrowest_host_says_whether_a_tunnel_is_opened() {
    let policy = policy(
        "  - {host: '**.example.com', tls: passthrough}
  - host: a.example.com
  - host: '*.example.org'
  - {host: a.example.org, tls: passthrough}
",
    );
    assert_eq!(front(&policy, "a.example.com", 443), "intercept");
    assert_eq!(front(&policy, "b.example.com", 443), "passthrough routes[0]");
    assert_eq!(front(&policy, "a.example.org", 443), "passthrough routes[3]");
    assert_eq!(front(&policy, "b.example.org", 443), "intercept");
}

#[test]
fn a_passthrough_host_is_refused_at_connect_when_it_cannot_be_passed_on() {
    let policy = policy(
        "  - {host: a.example.com, tls: passthrough, expires_at: 2026-11-21T11:00:00Z}\n  - host: b.example.com\n",
    );
    assert_eq!(front(&policy, "a.example.com", 443), "refuse grant-expired");
}

#[test]
fn a_deny_that_could_fit_inside_refuses_the_tunnel() {
    let policy = policy(
        "  - {host: a.example.com, tls: passthrough}
  - {host: a.example.com, deny: true, path_allowlist: [/admin]}
  - {host: '*.example.com', deny: true}
  - {host: b.example.com, tls: passthrough}
",
    );
    assert_eq!(front(&policy, "a.example.com", 443), "refuse denied-by-rule");
    assert_eq!(front(&policy, "b.example.com", 443), "passthrough routes[3]");
}

#[test]
fn a_grant_does_not_open_a_tunnel_that_is_passed_on() {
    let policy = policy(
        "  - {host: '*.example.com', tls: passthrough}
  - {host: a.example.com, expires_at: 2027-01-01T00:00:00Z, grant: g1}
",
    );
    assert_eq!(front(&policy, "a.example.com", 443), "passthrough routes[0]");
}

#[test]
fn a_base_route_behind_a_grant_like_it_is_asked_before_wider_ones() {
    let policy = policy(
        "  - {host: a.example.com, grant: g1}
  - {host: a.example.com}
  - {host: '*.example.com', tls: passthrough}
",
    );
    assert_eq!(front(&policy, "a.example.com", 443), "intercept");
}

#[test]
fn a_host_that_a_deny_refuses_as_a_whole_is_not_named() {
    let names = |routes: &str, name: &str| policy(routes).names(&host(name), now());
    let both = "  - {host: '*.example.com'}
  - {host: a.example.com, deny: true}
";
    assert!(!names(both, "a.example.com") && names(both, "b.example.com"));
    let narrower = "  - {host: '*.example.com', deny: true}
  - {host: a.example.com}
  - {host: b.example.com, grant: g1}
  - {host: c.example.com, tls: passthrough}
  - {host: '*.example.com', matches: [{methods: [GET]}]}
";
    assert!(names(narrower, "a.example.com") && names(narrower, "c.example.com"));
    assert!(names(narrower, "x.example.com"), "an allow for something is narrower than a deny of all");
    let grants = "  - {host: '*.example.com', deny: true}
  - {host: b.example.com, grant: g1}
";
    assert!(!names(grants, "b.example.com"), "no grant passes a deny");
    // What it leaves, and what it is no longer there for.
    for (allow, deny, is_named) in [
        ("ports: [443, 8443]", "ports: [443]", true),
        ("ports: [443]", "ports: [443, 8443]", false),
        ("scheme: http", "ports: [443]", true),
        ("ports: [443]", "matches: [{paths: [{type: prefix, value: /}]}]", true),
        ("ports: [443]", "expires_at: 2020-01-01T00:00:00Z", true),
        ("expires_at: 2020-01-01T00:00:00Z", "ports: [8443]", false),
    ] {
        let routes = format!(
            "  - {{host: a.example.com, {allow}}}\n  - {{host: a.example.com, deny: true, {deny}}}\n"
        );
        assert_eq!(names(&routes, "a.example.com"), is_named, "{allow}; {deny}");
    }
}

#[test]
fn a_name_above_an_allowed_one_is_known_as_that() {
    let policy = policy(
        "  - {host: '*.wild.example.com'}
  - {host: api.example.org}
  - {host: gone.example.net, expires_at: 2020-01-01T00:00:00Z}
  - {host: denied.example.net, deny: true}
  - {host: 192.0.2.1}
",
    );
    for name in ["wild.example.com", "example.com", "com", "example.org", "org"] {
        assert!(policy.is_above_allowed(&host(name), now()), "{name}");
    }
    for name in ["a.wild.example.com", "api.example.org", "ample.org", "example.net", "other.example.com"] {
        assert!(!policy.is_above_allowed(&host(name), now()), "{name}");
    }
}
