//! Any text parses or is refused with positions; what parses can be asked, told and given a grant.

#![no_main]

use libfuzzer_sys::fuzz_target;
use policy::{
    CanonicalPath, Decision, Grant, GrantId, Host, Policy, RequestHead, Scheme, append_route, describe,
    remove_grant,
};

fuzz_target!(|text: &str| {
    let policy = match Policy::parse("routes.yaml", text) {
        Ok(policy) => policy,
        Err(diagnostics) => {
            for finding in &diagnostics {
                assert!(finding.line >= 1 && finding.column >= 1 && !finding.message.is_empty(), "{finding}");
            }
            return;
        }
    };
    let now = jiff::Timestamp::UNIX_EPOCH;
    let grant = Grant {
        id: GrantId::parse("fuzzed-grant").expect("a valid identifier"),
        host: Host::parse("granted.example.com").expect("a valid host"),
        scheme: Scheme::Https,
        ports: vec![443],
        methods: Vec::new(),
        paths: Vec::new(),
        expires_at: jiff::Timestamp::MAX,
        max_uses: None,
    };
    ask(&policy, now);
    for route in policy.routes() {
        assert!(!describe(route).is_empty());
    }
    let Ok(appended) = append_route(text, &grant) else { return };
    let with_grant = Policy::parse("routes.yaml", &appended).expect("append_route proves it");
    assert_eq!(with_grant.routes().len(), policy.routes().len() + 1);
    let removed = remove_grant(&appended, &grant.id).expect("the block was just written");
    let without = Policy::parse("routes.yaml", &removed).expect("remove_grant proves it");
    assert_eq!(without.routes(), policy.routes());
});

/// A deny-by-default table allows only by one of its own routes.
fn ask(policy: &Policy, now: jiff::Timestamp) {
    let headers = http::HeaderMap::new();
    let path = CanonicalPath::parse("/v1/x").expect("a valid path");
    for name in ["api.example.com", "a.b.example.com", "127.0.0.1"] {
        let host = Host::parse(name).expect("a valid host");
        let method = http::Method::GET;
        let head = RequestHead {
            scheme: Scheme::Https,
            host: &host,
            port: 443,
            method: &method,
            path: &path,
            query: Some("a=b"),
            headers: &headers,
        };
        match policy.decide(&head, now) {
            Decision::Allow(route) => {
                assert!(route.host().matches(&host) && !route.deny() && !route.expired(now))
            }
            Decision::Deny(denial) => assert!(!denial.hint.is_empty()),
        }
        let _front = policy.front(&host, 443, now);
    }
}
