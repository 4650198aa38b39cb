use policy::{AppendError, Grant, GrantId, PathMatch, Policy, Scheme, append_route, remove_grant};
use proptest::prelude::*;

use super::{host, outcome};

fn grant() -> Grant {
    Grant {
        id: GrantId::parse("7c0e10").unwrap(),
        host: host("api.example.com"),
        scheme: Scheme::Https,
        ports: vec![443],
        methods: vec![http::Method::GET],
        paths: vec![PathMatch::parse("prefix", "/v1").unwrap()],
        expires_at: "2026-12-01T12:00:00Z".parse().unwrap(),
        max_uses: None,
    }
}

#[test]
fn a_grant_is_the_last_route_and_comments_stay() {
    let text = "# the operator's words
log: 2   # every request
routes:
  # first
  - host: a.example.com   # base
    matches:
      - methods: [GET]
  # after the last route

defaults:
  idle_timeout: 1m
";
    let appended = append_route(text, &grant()).unwrap();
    insta::assert_snapshot!(appended, @r#"
    # the operator's words
    log: 2   # every request
    routes:
      # first
      - host: a.example.com   # base
        matches:
          - methods: [GET]
      - host: "api.example.com"
        matches:
          - paths: [{type: prefix, value: "/v1"}]
            methods: [GET]
        expires_at: 2026-12-01T12:00:00Z
        grant: "7c0e10"
      # after the last route

    defaults:
      idle_timeout: 1m
    "#);
    let policy = Policy::parse("routes.yaml", &appended).unwrap();
    assert_eq!(outcome(&policy, "GET", "https://api.example.com/v1/x"), "allow routes[1]");
    assert_eq!(remove_grant(&appended, &grant().id).unwrap(), text);
}

#[test]
fn a_grant_goes_into_an_empty_list_and_out_again() {
    for text in [
        "routes: []\n",
        "routes: []",
        "log: 1\nroutes: [ ]   # none yet\ndefaults: {idle_timeout: 1m}\n",
        "routes: []\r\nlog: 1\r\n",
    ] {
        let appended = append_route(text, &grant()).unwrap();
        let policy = Policy::parse("routes.yaml", &appended).unwrap();
        assert_eq!(policy.routes().len(), 1, "{appended}");
        let removed = remove_grant(&appended, &grant().id).unwrap();
        assert!(Policy::parse("routes.yaml", &removed).unwrap().routes().is_empty(), "{removed}");
    }
}

#[test]
fn any_indentation_and_place_of_the_list_is_kept() {
    for text in [
        "routes:\n- host: a.example.com\n- host: b.example.com",
        "routes:\n- host: a.example.com\nlog: 1\n",
        "routes:\n      -   host: a.example.com\n          matches:\n          - methods:\n            - GET\n",
        "routes: # here\n\n  # and\n  -\n    host: a.example.com\n\n\nlog: 0\n",
        "---\nroutes:\n  - host: a.example.com\n...\n",
        "routes:\n  - &a\n    host: a.example.com\n  - *a\n",
        "routes:\n  - {host: a.example.com,\n     ports: [443]}\n# end",
    ] {
        let appended = append_route(text, &grant()).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let removed = remove_grant(&appended, &grant().id).unwrap();
        assert_eq!(removed.trim_end(), text.trim_end());
    }
}

#[test]
fn a_layout_that_lines_cannot_be_added_to_is_left_alone() {
    for text in [
        "routes: [{host: a.example.com}]\n",
        "{routes: []}\n",
        "\"routes\": []\n",
        "routes:\n  [{host: a.example.com}]\n",
        "routes: &r\n  - host: a.example.com\n",
    ] {
        assert_eq!(append_route(text, &grant()), Err(AppendError::Layout), "{text}");
    }
}

#[test]
fn a_grant_is_added_once_and_never_into_a_broken_file() {
    let once = append_route("routes: []\n", &grant()).unwrap();
    assert_eq!(append_route(&once, &grant()), Err(AppendError::Exists(grant().id)));
    assert!(matches!(append_route("routes: [\n", &grant()), Err(AppendError::Base(_))));
    assert_eq!(remove_grant("routes: []\n", &grant().id), Err(AppendError::Absent(grant().id)));
}

#[test]
fn a_grant_for_a_host_that_is_passed_through_is_refused() {
    let error =
        append_route("routes:\n  - {host: api.example.com, tls: passthrough}\n", &grant()).unwrap_err();
    insta::assert_snapshot!(error, @r"
    the grant contradicts the routes
    routes.yaml:3:11: `api.example.com` has both `tls: intercept` and `tls: passthrough` on port 443: choose one
    ");
}

#[test]
fn several_grants_come_out_in_any_order() {
    let text = "routes:\n  - host: a.example.com\n";
    let other = Grant {
        id: GrantId::parse("second").unwrap(),
        ports: vec![8443, 443],
        scheme: Scheme::Http,
        ..grant()
    };
    let both = append_route(&append_route(text, &grant()).unwrap(), &other).unwrap();
    let first_out = remove_grant(&both, &grant().id).unwrap();
    assert_eq!(first_out, append_route(text, &other).unwrap());
    assert_eq!(remove_grant(&first_out, &other.id).unwrap(), text);
}

proptest! {
    #[test]
    fn what_is_appended_reads_back_as_exactly_the_grant(
        id in "[a-zA-Z0-9_-]{1,20}",
        name in "[a-z]{1,8}(-[a-z]{1,3})?\\.(example|null|true|no)\\.com",
        plain: bool,
        ports in prop::collection::hash_set(1..u16::MAX, 1..4),
        methods in prop::collection::vec(prop::sample::select(vec!["GET", "POST", "DELETE"]), 0..3),
        paths in prop::collection::vec(("(exact|prefix)", "/[a-z0-9._~!$&'()*+,;=:@-]{0,12}"), 0..3),
        regex in prop::option::of("/[a-z\"'#{}\\[\\]: \\\\|]{0,10}"),
        base in prop::sample::select(vec!["routes: []", "routes:\n- host: a.example.org\n", "# x\nroutes:\n    - host: a.example.org\n    # y\nlog: 1\n"]),
    ) {
        let mut matches: Vec<PathMatch> = paths.iter().filter_map(|(kind, value)| PathMatch::parse(kind, value).ok()).collect();
        matches.extend(regex.and_then(|pattern| PathMatch::parse("regex", &pattern).ok()));
        let grant = Grant {
            id: GrantId::parse(&id).unwrap(),
            host: host(&name),
            scheme: if plain { Scheme::Http } else { Scheme::Https },
            ports: ports.into_iter().collect(),
            methods: methods.iter().map(|method| method.parse().unwrap()).collect(),
            paths: matches,
            expires_at: "2026-12-01T12:00:00.5Z".parse().unwrap(),
            max_uses: None,
        };
        let appended = append_route(base, &grant).unwrap();
        let policy = Policy::parse("routes.yaml", &appended).unwrap();
        let last = policy.routes().last().unwrap();
        prop_assert_eq!(last.grant(), Some(&grant.id));
        prop_assert_eq!(last.host().to_string(), grant.host.to_string());
        prop_assert_eq!(last.ports(), grant.ports.as_slice());
        prop_assert_eq!(last.expires_at(), Some(grant.expires_at));
        let paths: Vec<PathMatch> = last.matches().iter().flat_map(|entry| entry.paths.clone()).collect();
        prop_assert_eq!(paths, grant.paths);
        let removed = remove_grant(&appended, &grant.id).unwrap();
        let left = Policy::parse("routes.yaml", &removed).unwrap();
        prop_assert_eq!(left.routes().len() + 1, policy.routes().len());
    }
}
