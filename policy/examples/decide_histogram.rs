//! How long single decisions take over a thousand routes, as percentiles: `cargo run --release -p policy --example decide_histogram`.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::hint::black_box;
use std::time::Instant;

use policy::{CanonicalPath, Decision, Front, Host, Policy, RequestHead, Scheme};

const ROUTES: usize = 1_000;
const DECISIONS: usize = 20_000;

fn main() {
    // Each on a host of its own; and, the worst case, all on one.
    print("1,000 hosts", |index| format!("host{index}.example.com"));
    print("one host", |_| "host0.example.com".to_owned());
}

fn print(name: &str, host: impl Fn(usize) -> String) {
    let mut text = String::from("routes:\n");
    for index in 0..ROUTES {
        let host = host(index);
        text.push_str(&format!(
            "  - {{host: {host}, matches: [{{paths: [{{type: prefix, value: /v1/items{index}}}], methods: [GET, POST]}}]}}\n"
        ));
    }
    let policy = Policy::parse("routes.yaml", &text).unwrap();
    let now = "2026-11-21T12:00:00Z".parse().unwrap();
    let (headers, method) = (http::HeaderMap::new(), http::Method::GET);
    let asked: Vec<(Host, CanonicalPath, CanonicalPath)> = (0..ROUTES)
        .map(|index| {
            let path = |text: String| CanonicalPath::parse(&text).unwrap();
            let (named, other) = (format!("/v1/items{index}/42"), format!("/v2/items{index}/42"));
            (Host::parse(&host(index)).unwrap(), path(named), path(other))
        })
        .collect();
    let head = |host, path| RequestHead {
        scheme: Scheme::Https,
        host,
        port: 443,
        method: &method,
        path,
        query: None,
        headers: &headers,
    };
    percentiles(&format!("{name}, allowed"), |index| {
        let (host, path, _) = &asked[index];
        matches!(policy.decide(black_box(&head(host, path)), now), Decision::Allow(_))
    });
    percentiles(&format!("{name}, refused"), |index| {
        let (host, _, path) = &asked[index];
        matches!(policy.decide(black_box(&head(host, path)), now), Decision::Deny(_))
    });
    percentiles(&format!("{name}, CONNECT"), |index| {
        policy.front(black_box(&asked[index].0), 443, now) == Front::Intercept
    });
}

fn percentiles(name: &str, decide: impl Fn(usize) -> bool) {
    let mut nanos: Vec<u128> = (0..DECISIONS)
        .map(|number| {
            // Coprime to the number of routes, so that all are met and not in their order.
            let index = number * 7 % ROUTES;
            let start = Instant::now();
            let as_expected = black_box(decide(index));
            let took = start.elapsed().as_nanos();
            assert!(as_expected, "{name}: routes[{index}]");
            took
        })
        .collect();
    nanos.sort_unstable();
    let at = |thousandths: usize| nanos[(nanos.len() - 1) * thousandths / 1_000];
    println!("{name}: p50 {} ns, p90 {} ns, p99 {} ns, p99.9 {} ns", at(500), at(900), at(990), at(999));
}
