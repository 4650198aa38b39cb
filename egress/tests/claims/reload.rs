use http::Request;
use hudsucker::Body;

use crate::support::{Answer, Bench, HOST, Transport, get, http1_on};

#[tokio::test]
async fn the_next_request_of_an_open_connection_is_judged_by_the_new_routes() {
    let bench = Bench::allowing("deny: false").await;
    let target = bench.target();
    let mut sender = http1_on(bench.agent().tunnel(&target, HOST, &["http/1.1"]).await.unwrap()).await;
    let request = || Request::get("/v1/models").header("host", &target).body(Body::empty()).unwrap();
    assert_eq!(Answer::of(sender.send_request(request()).await.unwrap()).await.status, 200);
    let narrower = bench.upstream.routes("matches: [{methods: [POST]}]");
    assert_eq!(bench.proxy.reload(&narrower).await.unwrap().generation, 2);
    sender.ready().await.unwrap();
    let answer = Answer::of(sender.send_request(request()).await.unwrap()).await;
    assert_eq!(answer.refusal(), "method-not-allowed");
}

#[tokio::test]
async fn bad_routes_are_refused_with_their_place_and_the_old_ones_stay() {
    let bench = Bench::allowing("deny: false").await;
    let before = bench.proxy.in_force();
    let error = bench.proxy.reload("routes:\n  - host: api.test\n    metods: [GET]\n").await.unwrap_err();
    assert!(error.to_string().starts_with("routes.yaml:3:5: "), "{error}");
    assert_eq!(bench.proxy.in_force(), before);
    assert_eq!(bench.agent().send(Transport::TunnelHttp2, get("/v1/models")).await.status, 200);
    let events = bench.events().await;
    assert_eq!(events[0]["type"], "reload");
    assert!(events[0]["error"].as_str().unwrap().starts_with("routes.yaml:3:5: "));
}

#[tokio::test]
async fn a_widening_lets_the_refused_request_pass() {
    let bench = Bench::allowing("matches: [{methods: [POST]}]").await;
    assert_eq!(
        bench.agent().send(Transport::TunnelHttp1, get("/v1/models")).await.refusal(),
        "method-not-allowed"
    );
    bench.proxy.reload(&bench.upstream.routes("deny: false")).await.unwrap();
    assert_eq!(bench.agent().send(Transport::TunnelHttp1, get("/v1/models")).await.status, 200);
}
