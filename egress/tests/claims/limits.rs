use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use hudsucker::Body;
use tokio::sync::mpsc;

use crate::support::{Answer, Bench, HOST, Transport, get, request};

/// The code of a refusal that is no 403.
fn limited(answer: &Answer, status: StatusCode) -> String {
    assert_eq!(answer.status, status, "{}", answer.text());
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let code = body["error"]["code"].as_str().unwrap().to_owned();
    assert_eq!(answer.headers["x-bottlecap-denied"], code);
    code
}

fn chunks(count: usize) -> Body {
    let chunk = || Ok::<_, hudsucker::Error>(Bytes::from_static(&[7; 1024]));
    Body::from_stream(stream::iter((0..count).map(move |_| chunk())))
}

#[tokio::test]
async fn requests_over_the_rate_are_refused_with_the_time_to_wait_and_a_reload_gives_none_back() {
    for transport in Transport::ALL {
        let bench = Bench::allowing("limits: {requests_per_minute: 2}").await;
        for _ in 0..2 {
            assert_eq!(bench.agent().send(transport, get("/v1/models")).await.status, 200);
        }
        let wider = bench.upstream.routes("limits: {requests_per_minute: 2, concurrency: 9}");
        bench.proxy.reload(&wider).await.unwrap();
        let answer = bench.agent().send(transport, get("/v1/models")).await;
        assert_eq!(limited(&answer, StatusCode::TOO_MANY_REQUESTS), "rate-limit", "{transport:?}");
        let wait: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=30).contains(&wait), "{wait}");
        assert_eq!(bench.upstream.requests().len(), 2);
        bench.proxy.reload(&bench.upstream.routes("deny: false")).await.unwrap();
        assert_eq!(bench.agent().send(transport, get("/v1/models")).await.status, 200);
    }
}

#[tokio::test]
async fn a_body_over_the_bound_is_cut_there_whether_it_says_its_length_or_not() {
    for transport in Transport::ALL {
        let bench = Bench::allowing("limits: {request_body: 64KiB}").await;
        let upload = |body| Request::post("/v1/upload").body(body).unwrap();
        let whole = bench.agent().send(transport, upload(chunks(64))).await;
        assert_eq!(whole.text(), "65536", "{transport:?}");
        let before = bench.upstream.memory.received.get();

        let said = bench.agent().send(transport, upload(Body::from(vec![7; 65 * 1024]))).await;
        assert_eq!(limited(&said, StatusCode::PAYLOAD_TOO_LARGE), "body-too-large");
        assert_eq!(bench.upstream.requests().len(), 1, "{transport:?}");

        let unsaid = bench.agent().send(transport, upload(chunks(65))).await;
        assert_eq!(limited(&unsaid, StatusCode::PAYLOAD_TOO_LARGE), "body-too-large", "{transport:?}");
        assert!(bench.upstream.memory.received.get() - before <= 64 * 1024);
    }
}

#[tokio::test]
async fn no_more_requests_run_at_once_than_the_route_allows() {
    for transport in Transport::ALL {
        let bench = Bench::allowing("limits: {concurrency: 1}").await;
        let mut first = bench.agent().open(transport, HOST, get("/v1/stream")).await.into_body();
        assert!(first.frame().await.unwrap().is_ok());
        let second = bench.agent().send(transport, get("/v1/models")).await;
        assert_eq!(limited(&second, StatusCode::TOO_MANY_REQUESTS), "concurrency-limit", "{transport:?}");
        assert_eq!(second.headers["retry-after"], "1");
        bench.upstream.memory.go_on.notify_one();
        while first.frame().await.is_some() {}
        // The place is given back with the last byte, which the agent may read first.
        while bench.agent().send(transport, get("/v1/models")).await.status != 200 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn an_upload_whose_answer_came_early_keeps_its_place_until_it_ends() {
    for transport in Transport::ALL {
        let bench = Bench::allowing("limits: {concurrency: 1}").await;
        let (feed, chunks) = mpsc::unbounded_channel();
        feed.send("begun").unwrap();
        let body = Body::from_stream(Box::pin(stream::unfold(chunks, |mut chunks| async {
            let chunk: &'static str = chunks.recv().await?;
            Some((Ok::<_, hudsucker::Error>(Bytes::from(chunk)), chunks))
        })));
        // Answered without a look at the body.
        let request = Request::post("/v1/early").body(body).unwrap();
        let first = bench.agent().open(transport, HOST, request).await.into_body().collect().await.unwrap();
        assert_eq!(first.to_bytes(), "hello", "{transport:?}");
        feed.send("and on").unwrap();
        let second = bench.agent().send(transport, get("/v1/models")).await;
        assert_eq!(limited(&second, StatusCode::TOO_MANY_REQUESTS), "concurrency-limit", "{transport:?}");
        drop(feed);
        while bench.agent().send(transport, get("/v1/models")).await.status != 200 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn no_more_connections_to_upstream_are_open_than_the_route_allows() {
    let bench = Bench::allowing("limits: {connections: 1}").await;
    let mut first = bench.agent().open(Transport::Plain, HOST, get("/v1/stream")).await.into_body();
    assert!(first.frame().await.unwrap().is_ok());
    let second = bench.agent().send(Transport::Plain, get("/v1/models")).await;
    assert_eq!(limited(&second, StatusCode::TOO_MANY_REQUESTS), "connection-limit");
    assert_eq!(bench.upstream.memory.connections.get(), 1);
    bench.upstream.memory.go_on.notify_one();
    while first.frame().await.is_some() {}
    while bench.agent().send(Transport::Plain, get("/v1/models")).await.status != 200 {
        tokio::task::yield_now().await;
    }
    assert_eq!(bench.upstream.memory.connections.get(), 1);
}

#[tokio::test]
async fn routes_that_are_refused_leave_the_bounds_as_they_are() {
    let bench = Bench::allowing("limits: {connections: 1}").await;
    std::fs::write(bench.secrets.join("WEAK"), "short").unwrap();
    let wider = bench.upstream.routes("limits: {connections: 9}");
    let weak = "  - {host: weak.test, auth_scheme: bearer, token_file: WEAK, dlp: {inbound_detectors: [known_secrets]}}\n";
    bench.proxy.reload(&format!("{wider}{weak}")).await.unwrap_err();
    let mut first = bench.agent().open(Transport::Plain, HOST, get("/v1/stream")).await.into_body();
    assert!(first.frame().await.unwrap().is_ok());
    let second = bench.agent().send(Transport::Plain, get("/v1/models")).await;
    assert_eq!(limited(&second, StatusCode::TOO_MANY_REQUESTS), "connection-limit");
    bench.proxy.reload(&wider).await.unwrap();
    assert_eq!(bench.agent().send(Transport::Plain, get("/v1/models")).await.status, 200);
}

#[tokio::test]
async fn a_grant_that_is_used_up_refuses_and_a_reload_gives_nothing_back() {
    for transport in Transport::ALL {
        let bench = Bench::allowing("max_uses: 2\ngrant: g1").await;
        assert_eq!(bench.agent().send(transport, get("/v1/models")).await.status, 200);
        assert_eq!(
            bench.agent().send(transport, request(Method::GET, "/v1/%2e%2e/x", &[])).await.refusal(),
            "ambiguous-path"
        );
        assert_eq!(bench.agent().send(transport, get("/v1/models")).await.status, 200);
        assert_eq!(bench.agent().send(transport, get("/v1/models")).await.refusal(), "grant-used-up");
        bench.proxy.reload("routes: []").await.unwrap();
        bench.proxy.reload(&bench.upstream.routes("max_uses: 2\ngrant: g1")).await.unwrap();
        assert_eq!(bench.agent().send(transport, get("/v1/models")).await.refusal(), "grant-used-up");
        assert_eq!(bench.upstream.requests().len(), 2, "{transport:?}");
        bench.proxy.reload(&bench.upstream.routes("max_uses: 3\ngrant: g1")).await.unwrap();
        assert_eq!(bench.agent().send(transport, get("/v1/models")).await.status, 200);
    }
}
