//! How long single decisions take over a thousand routes, as a histogram: `cargo run --release -p policy --example decide_histogram`.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::hint::black_box;
use std::time::Instant;

use policy::{CanonicalPath, Host, Policy, RequestHead, Scheme};

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
    let asked: Vec<(Host, CanonicalPath)> = (0..ROUTES)
        .map(|index| {
            let path = format!("/v1/items{index}/42");
            (Host::parse(&host(index)).unwrap(), CanonicalPath::parse(&path).unwrap())
        })
        .collect();
    let mut nanos: Vec<u128> = (0..DECISIONS)
        .map(|number| {
            // Coprime to the number of routes, so that all are met and not in their order.
            let (host, path) = &asked[number * 7 % ROUTES];
            let scheme = Scheme::Https;
            let head = RequestHead {
                scheme,
                host,
                port: 443,
                method: &method,
                path,
                query: None,
                headers: &headers,
            };
            let start = Instant::now();
            black_box(policy.decide(black_box(&head), now));
            start.elapsed().as_nanos()
        })
        .collect();
    nanos.sort_unstable();
    let at = |thousandths: usize| nanos[(nanos.len() - 1) * thousandths / 1_000];
    println!("{name}: p50 {} ns, p90 {} ns, p99 {} ns, p99.9 {} ns", at(500), at(900), at(990), at(999));
}
