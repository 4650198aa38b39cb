use std::time::Duration;

use http::{Method, Request};
use http_body_util::BodyExt;
use hudsucker::Body;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::support::{
    Answer, Bench, CHUNK, CHUNKS, HOST, Transport, Upstream, farewell, get, http1_on, http2_on, request,
};

const PATIENCE: Duration = Duration::from_secs(20);

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
async fn a_stream_that_the_new_routes_refuse_ends_and_one_that_they_allow_goes_on() {
    for transport in Transport::ALL {
        let bench = Bench::allowing("deny: false").await;
        let mut body = bench.agent().open(transport, HOST, get("/v1/stream")).await.into_body();
        assert!(body.frame().await.unwrap().is_ok());
        bench.proxy.reload(&bench.upstream.routes("matches: [{methods: [GET]}]")).await.unwrap();
        bench.upstream.memory.go_on.notify_one();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "data: two\n\n");

        let mut body = bench.agent().open(transport, HOST, get("/v1/stream")).await.into_body();
        assert!(body.frame().await.unwrap().is_ok());
        bench.proxy.reload(&bench.upstream.routes("matches: [{methods: [POST]}]")).await.unwrap();
        assert!(body.frame().await.unwrap().is_err(), "{transport:?}");
    }
}

/// Asks for a download, reads none of it, does `what`, and waits until upstream is told that it is over.
async fn ends_unread(transport: Transport, bench: &Bench, what: impl Future) {
    let _unread = bench.agent().open(transport, HOST, get("/v1/download")).await;
    what.await;
    let memory = &bench.upstream.memory;
    let given_up = timeout(PATIENCE, memory.given_up.notified()).await;
    given_up.unwrap_or_else(|_| panic!("{transport:?}: upstream still waits"));
    assert!(memory.sent.get() < CHUNKS * CHUNK, "{transport:?}: all of it was read");
}

#[tokio::test]
async fn a_download_that_nobody_reads_ends_with_what_allowed_it() {
    for transport in Transport::ALL {
        let bench = Bench::allowing("deny: false").await;
        let narrower = bench.upstream.routes("matches: [{methods: [POST]}]");
        ends_unread(transport, &bench, bench.proxy.reload(&narrower)).await;

        let soon = jiff::Timestamp::now() + Duration::from_secs(1);
        let bench = Bench::allowing(&format!("expires_at: {soon}\ngrant: g1")).await;
        ends_unread(transport, &bench, async {}).await;
    }
}

#[tokio::test]
async fn a_download_that_nobody_reads_for_too_long_ends() {
    for transport in Transport::ALL {
        let bench =
            Bench::with(|upstream| upstream.routes("deny: false") + "defaults: {idle_timeout: 1s}\n").await;
        ends_unread(transport, &bench, async {}).await;
    }
}

#[tokio::test]
async fn a_stream_with_an_escaped_slash_lasts_while_its_route_takes_that() {
    for transport in Transport::ALL {
        let bench = Bench::allowing("allow_encoded_slashes: true").await;
        let routes = |rules| bench.upstream.routes(rules);
        let mut body = bench.agent().open(transport, HOST, get("/v1%2fstream")).await.into_body();
        assert!(body.frame().await.unwrap().is_ok());
        bench
            .proxy
            .reload(&routes("allow_encoded_slashes: true\nmatches: [{methods: [GET]}]"))
            .await
            .unwrap();
        bench.upstream.memory.go_on.notify_one();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "data: two\n\n");

        let mut body = bench.agent().open(transport, HOST, get("/v1%2fstream")).await.into_body();
        assert!(body.frame().await.unwrap().is_ok());
        bench.proxy.reload(&routes("deny: false")).await.unwrap();
        assert!(body.frame().await.unwrap().is_err(), "{transport:?}");
    }
}

#[tokio::test]
async fn a_stream_ends_with_the_grant_that_allowed_it() {
    let soon = jiff::Timestamp::now() + Duration::from_secs(1);
    let bench = Bench::allowing(&format!("expires_at: {soon}\ngrant: g1")).await;
    let mut body = bench.agent().open(Transport::TunnelHttp2, HOST, get("/v1/stream")).await.into_body();
    assert!(body.frame().await.unwrap().is_ok());
    assert!(body.frame().await.unwrap().is_err());
    assert!(jiff::Timestamp::now() >= soon);
}

#[tokio::test]
async fn what_has_no_answer_yet_is_refused_when_the_new_routes_do() {
    for transport in Transport::ALL {
        let bench = Bench::allowing("deny: false").await;
        let agent = bench.agent();
        let narrowed = async {
            bench.upstream.memory.held.notified().await;
            bench.proxy.reload("routes: []").await.unwrap();
        };
        let (answer, ()) = tokio::join!(agent.send(transport, get("/v1/hold")), narrowed);
        assert_eq!(answer.refusal(), "host-not-allowed", "{transport:?}");
    }
}

#[tokio::test]
async fn a_websocket_or_a_passed_on_tunnel_that_the_new_routes_refuse_ends() {
    let bench = Bench::allowing("deny: false").await;
    let headers = [("connection", "Upgrade"), ("upgrade", "websocket")];
    let request = request(Method::GET, "/v1/socket", &headers);
    let response = bench.agent().open(Transport::TunnelHttp1, HOST, request).await;
    let mut socket = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    bench.proxy.reload("routes: []").await.unwrap();
    let mut frames = Vec::new();
    timeout(PATIENCE, socket.read_to_end(&mut frames)).await.expect("it ends").unwrap();
    let (code, reason) = farewell(&frames).unwrap();
    assert!(code == 1008 && reason.starts_with("no route allows"), "{code} {reason}");

    let passed = bench.upstream.routes("tls: passthrough");
    let passed = passed.split("  - ").take(2).collect::<Vec<_>>().join("  - ");
    bench.proxy.reload(&passed).await.unwrap();
    let mut tunnel = bench.friend_of_upstream().tunnel(&bench.target(), HOST, &[]).await.unwrap();
    bench.proxy.reload("routes: []").await.unwrap();
    assert!(!matches!(tunnel.read(&mut [0; 4]).await, Ok(1..)));

    bench.proxy.reload(&passed).await.unwrap();
    let before = bench.upstream.memory.connections.get();
    let (status, held_open) = bench.agent().connect(&bench.target()).await;
    assert_eq!(status, 200);
    bench.proxy.reload("routes: []").await.unwrap();
    assert!(bench.agent().tls(&[]).connect(HOST.try_into().unwrap(), held_open).await.is_err());
    assert_eq!(bench.upstream.memory.connections.get(), before);
}

#[tokio::test]
async fn what_goes_on_by_terms_that_became_narrower_ends_and_otherwise_stays() {
    const SEARCHED: &str = "dlp: {outbound_detectors: [token_patterns]}";
    const INJECTED: &str = "auth_scheme: bearer\ntoken_env: TOKEN";
    let near = |routes: String| routes.replace("127.0.0.0/8", "127.0.0.1");
    let far = |routes: String| routes.replace("127.0.0.0/8", "127.0.0.0/8, 10.0.0.0/8");
    let same = |routes: String| routes;
    type Change = fn(String) -> String;
    let cases: [(&str, &str, Change, bool); 7] = [
        ("deny: false", SEARCHED, same, false),
        ("deny: false", "limits: {connections: 9}", same, true),
        (INJECTED, "deny: false", same, false),
        (INJECTED, "auth_scheme: token\ntoken_env: TOKEN", same, false),
        ("deny: false", "own_credential_only: true", same, false),
        ("deny: false", "deny: false", near, false),
        ("deny: false", "deny: false", far, true),
    ];
    for (before, after, change, stays) in cases {
        let bench = Bench::allowing(before).await;
        let headers = [("connection", "Upgrade"), ("upgrade", "websocket")];
        let open = request(Method::GET, "/v1/socket", &headers);
        let response = bench.agent().open(Transport::TunnelHttp1, HOST, open).await;
        let mut socket = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        let mut stream =
            bench.agent().open(Transport::TunnelHttp2, HOST, get("/v1/stream")).await.into_body();
        assert!(stream.frame().await.unwrap().is_ok());
        bench.proxy.reload(&change(bench.upstream.routes(after))).await.unwrap();
        if stays {
            socket.write_all(b"ping").await.unwrap();
            bench.upstream.memory.go_on.notify_one();
        }
        let answered = timeout(PATIENCE, socket.read_u8()).await.expect("it ends").unwrap();
        assert_eq!(answered == b'g', stays, "{before} to {after}");
        let next = timeout(PATIENCE, stream.frame()).await.expect("it ends");
        assert_eq!(next.unwrap().is_ok(), stays, "{before} to {after}");
    }
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

#[tokio::test]
async fn connections_to_upstream_outlive_a_reload_that_leaves_the_upstream_as_it_is() {
    for transport in [Transport::Plain, Transport::TunnelHttp1] {
        let bench = Bench::allowing("deny: false").await;
        let connections = || bench.upstream.memory.connections.get();
        assert_eq!(bench.agent().send(transport, get("/v1/models")).await.status, 200);
        let before = connections();
        for methods in ["[GET]", "[GET, POST]", "[GET]"] {
            let routes = bench.upstream.routes(&format!("matches: [{{methods: {methods}}}]"));
            bench.proxy.reload(&format!("{routes}  - host: more.test\n")).await.unwrap();
            assert_eq!(bench.agent().send(transport, get("/v1/models")).await.status, 200);
        }
        assert_eq!(connections(), before, "{transport:?}");
        let elsewhere = bench.upstream.routes("deny: false").replace("127.0.0.0/8", "127.0.0.1");
        bench.proxy.reload(&elsewhere).await.unwrap();
        assert_eq!(bench.agent().send(transport, get("/v1/models")).await.status, 200);
        assert_eq!(connections(), before + 1, "{transport:?}");
    }
}

/// As many requests wait as the journal has places for; half of them lose their route.
#[tokio::test]
async fn four_thousand_requests_that_wait_through_a_reload_are_all_answered_and_recorded() {
    const CONNECTIONS: usize = 32;
    const STREAMS: usize = 128;
    // Everybody here shares one thread, which has much to do before a connection to upstream is open.
    let routes = |upstream: &Upstream, paths: &str| {
        upstream.routes(&format!("path_allowlist: [{paths}]")) + "defaults: {connect_timeout: 2m}\n"
    };
    let bench = Bench::with(|upstream| routes(upstream, "/v1/")).await;
    let target = bench.target();
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let stream = bench.agent().tunnel(&target, HOST, &["h2"]).await.unwrap();
        let sender = http2_on(stream).await;
        for number in 0..STREAMS {
            let (mut sender, kept) = (sender.clone(), number % 2 == 0);
            let path = if kept { "/v1/gate/kept" } else { "/v1/gate/dropped" };
            let request = get(&format!("https://{target}{path}"));
            asking.spawn(async move {
                sender.ready().await.unwrap();
                (kept, Answer::of(sender.send_request(request).await.unwrap()).await)
            });
        }
    }
    // Some are at upstream, some wait for their turn there, some are still on their way.
    while bench.upstream.requests().len() < 100 {
        tokio::task::yield_now().await;
    }
    let narrower = routes(&bench.upstream, "/v1/gate/kept");
    assert_eq!(bench.proxy.reload(&narrower).await.unwrap().generation, 2);
    let (mut kept, mut dropped) = (0, 0);
    while let Some(answered) = asking.join_next().await {
        match answered.unwrap() {
            (true, answer) => {
                assert_eq!((answer.status.as_u16(), answer.text()), (200, "at last"));
                kept += 1;
            }
            (false, answer) => {
                assert_eq!(answer.refusal(), "path-not-allowed");
                dropped += 1;
                if dropped == CONNECTIONS * STREAMS / 2 {
                    bench.upstream.memory.gate.0.close();
                }
            }
        }
    }
    assert_eq!((kept, dropped), (CONNECTIONS * STREAMS / 2, CONNECTIONS * STREAMS / 2));
    let recorded = async || {
        let events = bench.events().await;
        assert!(events.iter().any(|event| event["type"] == "reload" && event["generation"] == 2));
        let count = |event: &serde_json::Value| match event["type"].as_str() {
            Some("request") => 1,
            Some("repeated") => event["count"].as_u64().unwrap(),
            _ => 0,
        };
        usize::try_from(events.iter().map(count).sum::<u64>()).unwrap()
    };
    // A record is written when the last byte has gone, which the agent may have read first.
    while recorded().await < CONNECTIONS * STREAMS {}
    assert_eq!(recorded().await, CONNECTIONS * STREAMS);
}

/// A reload is atomic and loses nothing: both sides count.
#[tokio::test]
async fn fifty_reloads_under_load_lose_and_misjudge_no_request() {
    let bench = Bench::allowing("deny: false").await;
    let stop = tokio_util::sync::CancellationToken::new();
    let mut load = tokio::task::JoinSet::new();
    for transport in Transport::ALL {
        for (path, always) in [("/v1/models", true), ("/v2/models", false)] {
            let (agent, stop) = (bench.agent(), stop.clone());
            load.spawn(async move {
                let (mut passed, mut refused, mut cut) = (0, 0, 0);
                while !stop.is_cancelled() {
                    let agent = agent.clone();
                    let asked = tokio::spawn(async move { agent.send(transport, get(path)).await }).await;
                    match asked {
                        Ok(answer) if answer.status == 200 => passed += 1,
                        // What takes longer than a moment on a busy machine is cut; never what is allowed throughout.
                        Err(_) if !always => cut += 1,
                        Ok(answer) if !always => {
                            assert_eq!(answer.refusal(), "path-not-allowed");
                            refused += 1;
                        }
                        other => panic!("{path} is allowed by every generation: {other:?}"),
                    }
                }
                (passed, refused, cut)
            });
        }
    }
    let reloads: u64 = std::env::var("EGRESS_RELOADS").map_or(50, |count| count.parse().unwrap());
    for generation in 2..=reloads + 1 {
        let before = bench.upstream.requests().len();
        let rules = if generation % 2 == 0 { "path_allowlist: [/v1]" } else { "deny: false" };
        assert_eq!(bench.proxy.reload(&bench.upstream.routes(rules)).await.unwrap().generation, generation);
        while bench.upstream.requests().len() == before {
            tokio::task::yield_now().await;
        }
    }
    stop.cancel();
    let (mut passed, mut refused, mut cut) = (0, 0, 0);
    for (some, others, more) in load.join_all().await {
        passed += some;
        refused += others;
        cut += more;
    }
    let (mut allowed, mut denied, mut late) = (0, 0, 0);
    // Refusals that are many of a kind are counted in the journal, not recorded one by one.
    let recorded = async || {
        let (mut events, mut repeated) = (bench.events().await, 0);
        for event in events.iter().filter(|event| event["type"] == "repeated") {
            assert_eq!(event["code"], "path-not-allowed");
            repeated += usize::try_from(event["count"].as_u64().unwrap()).unwrap();
        }
        events.retain(|event| event["type"] == "request");
        (events, repeated)
    };
    let (mut events, mut repeated) = recorded().await;
    // A record is written when the last byte has gone, which the agent may have read first.
    while events.len() + repeated < passed + refused + cut {
        (events, repeated) = recorded().await;
    }
    for event in &events {
        let narrow = event["generation"].as_u64().unwrap() % 2 == 0;
        match (event["path"] == "/v1/models", event["decision"] == "allow") {
            (_, true) => allowed += 1,
            (true, false) => panic!("lost: {event}"),
            (false, false) => {
                denied += 1;
                late += usize::from(!narrow);
            }
        }
        assert!(
            !narrow || event["path"] == "/v1/models" || event["decision"] == "deny",
            "misjudged: {event}"
        );
    }
    assert_eq!(allowed + denied + repeated, passed + refused + cut);
    let seen = bench.upstream.requests().len();
    assert!((passed..=passed + cut + late).contains(&seen), "{seen} at upstream, {passed} {cut} {late}");
}
