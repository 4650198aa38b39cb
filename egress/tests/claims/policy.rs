use http::{Method, Request};
use hudsucker::Body;

use crate::support::{Bench, HOST, Transport, Upstream, get, request};

const READ_ONLY: &str = "matches: [{paths: [{type: prefix, value: /v1/}], methods: [GET]}]";

#[tokio::test]
async fn what_is_allowed_passes_over_every_transport() {
    let bench = Bench::allowing(READ_ONLY).await;
    for transport in Transport::ALL {
        let answer = bench.agent().send(transport, get("/v1/models?page=2")).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, "hello"), "{transport:?}");
        assert_eq!(answer.headers["x-upstream"], "yes");
        assert_eq!(bench.upstream.last().target, "/v1/models?page=2");
    }
}

#[tokio::test]
async fn what_is_not_allowed_is_refused_alike_over_every_transport() {
    let bench = Bench::allowing(READ_ONLY).await;
    let cases = [
        ("api.test", Method::POST, "/v1/models", "method-not-allowed"),
        ("api.test", Method::GET, "/v2/models", "path-not-allowed"),
        ("api.test", Method::GET, "/v1/../v2", "ambiguous-path"),
        ("api.test", Method::GET, "/v1/%2e%2e/v2", "ambiguous-path"),
        ("api.test", Method::GET, "/v1//models", "ambiguous-path"),
        ("api.test", Method::GET, "/v1/a%2Fb", "ambiguous-path"),
        ("evil.test", Method::GET, "/v1/models", "host-not-allowed"),
        ("api.test.evil.test", Method::GET, "/v1/models", "host-not-allowed"),
        ("notapi.test", Method::GET, "/v1/models", "host-not-allowed"),
    ];
    for transport in Transport::ALL {
        for (host, method, path, code) in &cases {
            let answer = bench.agent().send_to(transport, host, request(method.clone(), path, &[])).await;
            assert_eq!(answer.refusal(), *code, "{transport:?} {method} {host}{path}");
        }
    }
    assert_eq!(bench.upstream.memory.connections.get(), 0);
    assert_eq!(bench.names.asked(), [""; 0]);
}

#[tokio::test]
async fn a_refusal_says_what_was_refused_and_is_in_the_journal() {
    let bench = Bench::allowing(READ_ONLY).await;
    let answer = bench.agent().send(Transport::TunnelHttp2, request(Method::DELETE, "/v1/models", &[])).await;
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let error = &body["error"];
    assert_eq!(error["host"], "api.test");
    assert_eq!(error["method"], "DELETE");
    assert_eq!(error["path"], "/v1/models");
    assert_eq!(error["propose"], "mcp tool propose_route");
    let events = bench.events().await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["code"], "method-not-allowed");
    assert_eq!(events[0]["decision"], "deny");
    assert_eq!(events[0]["block_id"], error["block_id"]);
}

#[tokio::test]
async fn a_client_that_sends_a_large_body_first_still_reads_its_refusal() {
    let bench = Bench::allowing(READ_ONLY).await;
    for transport in Transport::ALL {
        let body = Body::from(vec![7; 16 * 1024 * 1024]);
        let answer = bench.agent().send(transport, Request::post("/v1/models").body(body).unwrap()).await;
        assert_eq!(answer.refusal(), "method-not-allowed", "{transport:?}");
    }
}

#[tokio::test]
async fn a_header_that_stands_in_for_method_or_host_is_refused() {
    let bench = Bench::allowing(READ_ONLY).await;
    for transport in Transport::ALL {
        for (name, value) in [
            ("x-http-method-override", "DELETE"),
            ("x-forwarded-host", "evil.test"),
            ("x-http-host-override", "evil.test"),
            ("x-original-uri", "/v2/models"),
        ] {
            let request = request(Method::GET, "/v1/models", &[(name, value)]);
            assert_eq!(bench.agent().send(transport, request).await.refusal(), "override-refused");
        }
    }
    assert_eq!(bench.upstream.memory.connections.get(), 0);
}

/// Deny rules for both ports of upstream.
fn denies(upstream: &Upstream, rules: &str) -> String {
    let deny = |scheme: &str, port: u16| {
        format!("  - {{host: {HOST}, scheme: {scheme}, ports: [{port}], deny: true, {rules}}}\n")
    };
    deny("https", upstream.tls.port()) + &deny("http", upstream.plain.port())
}

#[tokio::test]
async fn an_escaped_slash_goes_out_as_it_came_where_the_route_takes_it() {
    let bench = Bench::with(|upstream| {
        let allow = upstream.routes("allow_encoded_slashes: true\nmatches: [{methods: [GET]}]");
        allow + &denies(upstream, "path_allowlist: [/@acme/secret]")
    })
    .await;
    let agent = bench.agent();
    for transport in Transport::ALL {
        for path in ["/@acme%2fcore", "/@acme%2Fcore"] {
            assert_eq!(agent.send(transport, get(path)).await.status.as_u16(), 200, "{transport:?} {path}");
            assert_eq!(bench.upstream.last().target, "/@acme%2Fcore", "{transport:?} {path}");
        }
        let before = bench.upstream.memory.connections.get();
        for (path, code) in [
            ("/@acme%2fsecret", "denied-by-rule"),
            ("/@acme/secret", "denied-by-rule"),
            ("/@acme%2f..%2fcore", "ambiguous-path"),
            ("/@acme%2f%2fcore", "ambiguous-path"),
            ("/@acme%252fcore", "ambiguous-path"),
            ("/@acme%5ccore", "ambiguous-path"),
            ("/a.git%2fgit-receive-pack", "git-push-refused"),
        ] {
            assert_eq!(agent.send(transport, get(path)).await.refusal(), code, "{transport:?} {path}");
        }
        assert_eq!(bench.upstream.memory.connections.get(), before, "{transport:?}");
    }
    let told = bench.events().await;
    assert!(
        told.iter().any(|event| event["path"] == "/@acme%2Fcore" && event["decision"] == "allow"),
        "{told:?}"
    );
}

#[tokio::test]
async fn without_the_setting_an_escaped_slash_is_refused_and_the_hint_names_it() {
    let bench = Bench::allowing("matches: [{methods: [GET]}]").await;
    for transport in Transport::ALL {
        let answer = bench.agent().send(transport, get("/@acme%2fcore")).await;
        assert_eq!(answer.refusal(), "ambiguous-path", "{transport:?}");
        assert!(answer.text().contains("`allow_encoded_slashes: true`"), "{}", answer.text());
        let elsewhere = bench.agent().send_to(transport, "evil.test", get("/@acme%2fcore")).await;
        assert_eq!(elsewhere.refusal(), "ambiguous-path", "{transport:?}");
        assert!(!elsewhere.text().contains("allow_encoded_slashes"), "{}", elsewhere.text());
    }
    assert_eq!(bench.upstream.memory.connections.get(), 0);
}

#[tokio::test]
async fn a_deny_by_method_is_not_passed_in_lower_case() {
    let bench = Bench::with(|upstream| {
        upstream.routes("deny: false") + &denies(upstream, "matches: [{methods: [DELETE]}]")
    })
    .await;
    for transport in Transport::ALL {
        for method in ["DELETE", "delete", "Delete"] {
            let request = request(method.parse().unwrap(), "/v1/models", &[]);
            assert_eq!(
                bench.agent().send(transport, request).await.refusal(),
                "denied-by-rule",
                "{transport:?}"
            );
        }
    }
    assert_eq!(bench.upstream.memory.connections.get(), 0);
}

#[tokio::test]
async fn an_allow_by_query_is_not_passed_with_a_second_value_hidden() {
    let bench = Bench::allowing("matches: [{query: [{name: q, value: safe}]}]").await;
    for transport in Transport::ALL {
        assert_eq!(bench.agent().send(transport, get("/v1?q=safe&a=1")).await.status.as_u16(), 200);
        let before = bench.upstream.memory.connections.get();
        for query in [
            "a=1;q=evil&q=safe",
            "q=safe&a=1;q=evil",
            "q=safe&q%5B%5D=evil",
            "q=safe&%20q=evil",
            "Q=evil&q=safe",
        ] {
            let answer = bench.agent().send(transport, get(&format!("/v1?{query}"))).await;
            assert_eq!(answer.refusal(), "request-not-allowed", "{transport:?} {query}");
        }
        assert_eq!(bench.upstream.memory.connections.get(), before, "{transport:?}");
    }
}

#[tokio::test]
async fn only_the_canonical_path_goes_out() {
    let bench = Bench::allowing(READ_ONLY).await;
    for transport in Transport::ALL {
        bench.agent().send(transport, get("/v1/%61bc?x=%61")).await;
        assert_eq!(bench.upstream.last().target, "/v1/abc?x=%61", "{transport:?}");
    }
}

#[tokio::test]
async fn a_push_over_https_is_refused_even_where_everything_is_allowed() {
    let bench = Bench::allowing("deny: false").await;
    for transport in Transport::ALL {
        for (method, path, code) in [
            (Method::POST, "/a.git/git-receive-pack", "git-push-refused"),
            (Method::GET, "/a.git/info/refs?service=git-receive-pack", "git-push-refused"),
            (Method::GET, "/a.git/info/refs?service=git-upload-pack", "git-fetch-refused"),
        ] {
            let answer = bench.agent().send(transport, request(method, path, &[])).await;
            assert_eq!(answer.refusal(), code, "{transport:?} {path}");
        }
    }
    assert_eq!(bench.upstream.memory.connections.get(), 0);
}

#[tokio::test]
async fn a_private_address_is_refused_without_leave() {
    let bench = Bench::with(|upstream| {
        upstream.routes("deny: false").replace("allow_private: [127.0.0.0/8]", "allow_private: []")
    })
    .await;
    for transport in Transport::ALL {
        let answer = bench.agent().send(transport, get("/v1/models")).await;
        assert_eq!(answer.refusal(), "address-not-allowed", "{transport:?}");
    }
    assert_eq!(bench.upstream.memory.connections.get(), 0);
}

#[tokio::test]
async fn our_own_listener_is_refused_even_with_leave() {
    let bench = Bench::with(|_| {
        "routes:\n  - {host: self.test, scheme: http, ports: [1], allow_private: [127.0.0.0/8]}\n".to_owned()
    })
    .await;
    let routes = format!(
        "routes:\n  - {{host: self.test, scheme: http, ports: [{}], allow_private: [127.0.0.0/8]}}\n",
        bench.address.port()
    );
    bench.proxy.reload(&routes).await.unwrap();
    let mut stream = bench.agent().dial().await;
    let target = format!("self.test:{}", bench.address.port());
    let text = crate::front::exchange(
        &mut stream,
        &format!("GET http://{target}/ HTTP/1.1\r\nhost: {target}\r\n\r\n"),
    )
    .await;
    assert!(text.contains("x-bottlecap-denied: address-not-allowed"), "{text}");
}

#[tokio::test]
async fn a_grpc_client_is_refused_in_trailers_alone() {
    for transport in Transport::ALL {
        let bench = Bench::allowing("matches: [{methods: [GET]}]").await;
        let call = request(Method::POST, "/pkg.Service/Call", &[("content-type", "application/grpc+proto")]);
        let answer = bench.agent().send(transport, call).await;
        assert_eq!((answer.status.as_u16(), &answer.headers["grpc-status"]), (200, &"7".parse().unwrap()));
        let message = answer.headers["grpc-message"].to_str().unwrap();
        assert!(message.starts_with("method-not-allowed: "), "{message}");
        assert_eq!(answer.headers["x-bottlecap-denied"], "method-not-allowed");
        assert!(answer.body.is_empty());
        assert_eq!(bench.events().await[0]["code"], "method-not-allowed");
    }
}
