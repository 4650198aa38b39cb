use http::{Method, Request};
use hudsucker::Body;

use crate::support::{Bench, Transport, get, request};

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
        for (name, value) in [("x-http-method-override", "DELETE"), ("x-forwarded-host", "evil.test")] {
            let request = request(Method::GET, "/v1/models", &[(name, value)]);
            assert_eq!(bench.agent().send(transport, request).await.refusal(), "override-refused");
        }
    }
    assert_eq!(bench.upstream.memory.connections.get(), 0);
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
