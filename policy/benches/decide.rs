//! How long a decision takes over a table of a thousand routes.

#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use policy::{CanonicalPath, Host, Policy, RequestHead, Scheme};

const ROUTES: usize = 1_000;

fn table() -> String {
    let mut text = String::from("routes:\n");
    for index in 0..ROUTES {
        let host = match index % 4 {
            0 => format!("'*.zone{index}.example.com'"),
            1 => format!("'**.deep{index}.example.com'"),
            _ => format!("host{index}.example.com"),
        };
        text.push_str(&format!(
            "  - host: {host}\n    matches:\n      - {{paths: [{{type: prefix, value: /v1/items}}, {{type: regex, value: '/v2/[a-z]+/[0-9]+'}}], methods: [GET, POST]}}\n"
        ));
    }
    text
}

fn decide(criterion: &mut Criterion) {
    let text = table();
    let policy = Policy::parse("routes.yaml", &text).unwrap();
    let now = "2026-11-21T12:00:00Z".parse().unwrap();
    let headers = http::HeaderMap::new();
    let cases = [
        ("exact host, prefix", "host999.example.com", "/v1/items/42"),
        ("exact host, regex", "host999.example.com", "/v2/items/42"),
        ("wildcard", "a.b.c.deep997.example.com", "/v1/items/42"),
        ("refused host", "nothing.example.org", "/v1/items/42"),
    ];
    for (name, host, path) in cases {
        let host = Host::parse(host).unwrap();
        let path = CanonicalPath::parse(path).unwrap();
        let method = http::Method::GET;
        let head = RequestHead {
            scheme: Scheme::Https,
            host: &host,
            port: 443,
            method: &method,
            path: &path,
            query: None,
            headers: &headers,
        };
        criterion.bench_function(&format!("decide over 1,000 routes: {name}"), |bencher| {
            bencher.iter(|| policy.decide(black_box(&head), now));
        });
    }
    criterion.bench_function("canonical path", |bencher| {
        bencher.iter(|| CanonicalPath::parse(black_box("/repos/acme/web/contents/src%2dmain/caf%c3%a9")));
    });
    criterion.bench_function("parse 1,000 routes", |bencher| {
        bencher.iter(|| Policy::parse("routes.yaml", black_box(&text)).unwrap());
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = decide
}
criterion_main!(benches);
