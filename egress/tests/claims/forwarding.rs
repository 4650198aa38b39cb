use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Method, Request};
use http_body_util::BodyExt;
use hudsucker::Body;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Bench, CHUNK, CHUNKS, HOST, Transport, Upstream, get, http1_on, read_head, request};

const EVERYTHING: &str = "deny: false";
/// What the proxy itself, the windows of HTTP/2 and the sockets of the test may hold of a body.
const HELD: usize = 12 * 1024 * 1024;

/// What may be under way at once: that, and what the kernel lets a buffer of the proxy's connection to upstream grow to. `setting` is the
/// kernel's, for what is received or sent.
fn under_way(setting: &str) -> usize {
    let text = std::fs::read_to_string(format!("/proc/sys/net/ipv4/{setting}")).unwrap();
    let largest: usize = text.split_whitespace().last().unwrap().parse().unwrap();
    let under_way = HELD + largest;
    assert!(
        under_way < CHUNKS * CHUNK,
        "{setting} is so large here that the whole body fits into the kernel"
    );
    under_way
}

#[tokio::test]
async fn a_large_download_is_streamed_with_back_pressure() {
    let bench = Bench::allowing(EVERYTHING).await;
    let bound = under_way("tcp_rmem");
    for transport in Transport::ALL {
        let before = bench.upstream.memory.sent.get();
        let mut body = bench.agent().open(transport, HOST, get("/v1/download")).await.into_body();
        let mut received = 0;
        while let Some(frame) = body.frame().await {
            received += frame.unwrap().data_ref().map_or(0, Bytes::len);
            let sent = bench.upstream.memory.sent.get() - before;
            assert!(sent - received < bound, "{transport:?}: {sent} sent, {received} received");
        }
        assert_eq!(received, CHUNKS * CHUNK, "{transport:?}");
    }
}

#[tokio::test]
async fn a_large_upload_is_streamed_with_back_pressure() {
    let bench = Bench::allowing(EVERYTHING).await;
    let bound = under_way("tcp_wmem");
    for transport in Transport::ALL {
        let memory = std::sync::Arc::clone(&bench.upstream.memory);
        let before = memory.received.get();
        let chunks = stream::iter(1..=CHUNKS).map(move |number| {
            let under_way = number * CHUNK - (memory.received.get() - before);
            assert!(under_way < bound, "{under_way} under way");
            Ok::<_, hudsucker::Error>(Bytes::from_static(&[7; CHUNK]))
        });
        let request = Request::post("/v1/upload").body(Body::from_stream(chunks)).unwrap();
        let answer = bench.agent().send(transport, request).await;
        assert_eq!(answer.text(), (CHUNKS * CHUNK).to_string(), "{transport:?}");
    }
}

#[tokio::test]
async fn an_event_arrives_before_the_stream_ends() {
    let bench = Bench::allowing(EVERYTHING).await;
    for transport in Transport::ALL {
        let mut body = bench.agent().open(transport, HOST, get("/v1/stream")).await.into_body();
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(first, "data: one\n\n", "{transport:?}");
        bench.upstream.memory.go_on.notify_one();
        let second = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(second, "data: two\n\n", "{transport:?}");
    }
}

#[tokio::test]
async fn headers_of_one_hop_stay_on_it() {
    let bench = Bench::allowing(EVERYTHING).await;
    for transport in [Transport::Plain, Transport::TunnelHttp1] {
        let headers = [
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic x"),
            ("x-stays", "1"),
        ];
        let answer = bench.agent().send(transport, request(Method::GET, "/v1/models", &headers)).await;
        assert!(!answer.headers.contains_key("alt-svc"), "{transport:?}");
        let seen = bench.upstream.last().headers;
        assert!(seen.contains_key("x-stays"));
        for name in ["x-hop", "proxy-connection", "proxy-authorization", "connection"] {
            assert!(!seen.contains_key(name), "{transport:?} {name}");
        }
    }
}

#[tokio::test]
async fn upstream_speaks_http2_where_it_can() {
    let bench = Bench::allowing(EVERYTHING).await;
    bench.agent().send(Transport::TunnelHttp1, get("/v1/models")).await;
    assert_eq!(bench.upstream.last().version, http::Version::HTTP_2);
    bench.agent().send(Transport::Plain, get("/v1/models")).await;
    let seen = bench.upstream.last();
    assert_eq!(seen.version, http::Version::HTTP_11);
    assert_eq!(seen.headers["host"], format!("{HOST}:{}", bench.upstream.plain.port()));
}

#[tokio::test]
async fn a_websocket_is_upgraded_when_upstream_agrees() {
    let bench = Bench::allowing(EVERYTHING).await;
    for transport in [Transport::Plain, Transport::TunnelHttp1] {
        let headers =
            [("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-protocol", "chat")];
        let request = request(Method::GET, "/v1/socket", &headers);
        let response = bench.agent().open(transport, HOST, request).await;
        assert_eq!(response.status(), 101, "{transport:?}");
        assert_eq!(response.headers()["sec-websocket-protocol"], "chat");
        let mut socket = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        socket.write_all(b"abcd").await.unwrap();
        let mut word = [0; 4];
        socket.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"dcba");
    }
}

#[tokio::test]
async fn an_upgrade_to_anything_else_is_refused_also_to_http2_in_plain_text() {
    let bench = Bench::allowing(EVERYTHING).await;
    let with = |protocol: &str| {
        let headers =
            [("connection", "Upgrade, HTTP2-Settings"), ("upgrade", protocol), ("http2-settings", "AA")];
        request(Method::GET, "/v1/models", &headers)
    };
    for protocol in ["tls/1.0", "h2c", "H2C", "websocket, h2c"] {
        for transport in [Transport::Plain, Transport::TunnelHttp1] {
            let answer = bench.agent().send(transport, with(protocol)).await;
            assert_eq!(answer.refusal(), "upgrade-not-supported", "{transport:?} {protocol}");
        }
    }
    assert!(bench.upstream.requests().is_empty());
}

#[tokio::test]
async fn an_upstream_that_is_down_or_not_trusted_is_told_apart() {
    let bench = Bench::with(|upstream| {
        let rules = "allow_private: [127.0.0.0/8]";
        format!(
            "routes:\n  - {{host: untrusted.test, ports: [{}], {rules}}}\n  - {{host: down.test, scheme: http, ports: [1], {rules}}}\n",
            upstream.tls.port()
        )
    })
    .await;
    let answer = bench.agent().send_to(Transport::TunnelHttp2, "untrusted.test", get("/")).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.headers["x-bottlecap-failed"]),
        (502, &"upstream-tls".parse().unwrap())
    );
    let mut stream = bench.agent().dial().await;
    let head = "GET http://down.test:1/ HTTP/1.1\r\nhost: down.test:1\r\n\r\n";
    let answer = crate::front::exchange(&mut stream, head).await;
    assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("upstream-unreachable"), "{answer}");
}

#[tokio::test]
async fn a_request_whose_agent_does_not_stay_for_the_answer_is_recorded_with_where_it_went() {
    for transport in Transport::ALL {
        let mut bench = Bench::allowing(EVERYTHING).await;
        let request = Request::post("/v1/hold").body(Body::from("12345")).unwrap();
        let agent = bench.agent();
        tokio::select! {
            _ = agent.open(transport, HOST, request) => panic!("{transport:?}: an answer"),
            () = bench.upstream.memory.held.notified() => {}
        }
        bench.stop().await;
        let event = &bench.events().await[0];
        assert_eq!(
            (&event["decision"], &event["host"], &event["method"], &event["path"]),
            (&"allow".into(), &HOST.into(), &"POST".into(), &"/v1/hold".into()),
            "{transport:?}"
        );
        assert_eq!(event["status"], serde_json::Value::Null);
    }
}

#[tokio::test]
async fn idle_connections_to_upstream_do_not_hold_up_a_stop() {
    let mut bench = Bench::allowing(EVERYTHING).await;
    for transport in Transport::ALL {
        bench.agent().send(transport, get("/v1/models")).await;
    }
    tokio::time::timeout(Duration::from_secs(2), bench.stop()).await.unwrap();
}

#[tokio::test]
async fn a_request_that_panics_takes_nothing_else_down_and_is_recorded() {
    let bench = Bench::with(|upstream| {
        format!("{}  - {{host: panic.test, scheme: http}}\n", upstream.routes(EVERYTHING))
    })
    .await;
    let open = bench.agent().tunnel(&bench.target(), HOST, &["http/1.1"]).await.unwrap();
    let mut stream = bench.agent().dial().await;
    let head = "GET http://panic.test/ HTTP/1.1\r\nhost: panic.test\r\n\r\n";
    assert_eq!(crate::front::exchange(&mut stream, head).await, "");
    let request = Request::get("/v1/models").header("host", bench.target()).body(Body::empty()).unwrap();
    assert_eq!(http1_on(open).await.send_request(request).await.unwrap().status(), 200);
    let events = bench.events().await;
    assert!(events.iter().any(|event| event["host"] == "panic.test"), "{events:?}");
}

#[tokio::test]
async fn a_passed_request_is_recorded_with_its_route_and_its_bytes() {
    let bench = Bench::allowing(EVERYTHING).await;
    let request = Request::post("/v1/upload?q=not-recorded").body(Body::from("12345")).unwrap();
    bench.agent().send(Transport::TunnelHttp1, request).await;
    let events = bench.events().await;
    let event = &events[0];
    assert_eq!(event["decision"], "allow");
    assert_eq!(event["route"], "routes[0]");
    assert_eq!(event["path"], "/v1/upload");
    assert_eq!(
        (&event["bytes_up"], &event["bytes_down"], &event["status"]),
        (&5.into(), &1.into(), &200.into())
    );
    assert_eq!(event["digest"], bench.proxy.in_force().digest);
}

#[tokio::test]
async fn upstream_cannot_speak_in_our_name() {
    let bench = Bench::allowing(EVERYTHING).await;
    for transport in Transport::ALL {
        let answer = bench.agent().send(transport, get("/v1/liar")).await;
        assert_eq!(answer.text(), "hello");
        assert!(answer.headers.keys().all(|name| !name.as_str().starts_with("x-bottlecap")), "{transport:?}");
    }
}

#[tokio::test]
async fn an_answer_with_many_headers_passes_and_one_with_too_many_is_told_as_that() {
    let bench = Bench::allowing(EVERYTHING).await;
    let many = bench.agent().send(Transport::Plain, get("/v1/headers/300")).await;
    assert_eq!((many.status.as_u16(), many.headers.get_all("x-number-299").iter().count()), (200, 1));
    let too_many = bench.agent().send(Transport::Plain, get("/v1/headers/600")).await;
    assert_eq!(too_many.status, 502);
    assert!(too_many.text().contains("at most 512 headers"), "{}", too_many.text());
    assert!(too_many.text().contains("\"failed\":\"upstream\""), "{}", too_many.text());
}

#[tokio::test]
async fn an_answer_says_its_length_once_or_not_at_all_to_every_client() {
    let conflict = "200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok!";
    for (answer, status, lengths, body) in [
        ("200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok", 200, &["2"][..], "ok"),
        ("200 OK\r\ncontent-length: 2, 2\r\n\r\nok", 200, &["2"], "ok"),
        ("200 OK\r\ncontent-length: 02\r\n\r\nok", 200, &["2"], "ok"),
        ("204 No Content\r\ncontent-length: 5\r\n\r\n", 204, &[], ""),
        ("304 Not Modified\r\ncontent-length: 5, 6\r\n\r\n", 304, &[], ""),
        (
            "200 OK\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            200,
            &[],
            "ok",
        ),
        (conflict, 502, &[], ""),
    ] {
        for transport in Transport::ALL {
            let bench = Bench::allowing(EVERYTHING).await;
            *bench.upstream.memory.raw.lock().unwrap() = Some(format!("HTTP/1.1 {answer}"));
            let got = bench.agent().send(transport, get("/v1/x")).await;
            assert_eq!(got.status, status, "{transport:?} {answer}");
            if status != 502 {
                let said = got.headers.get_all("content-length").iter();
                let said: Vec<_> = said.map(|length| length.to_str().unwrap()).collect();
                assert_eq!((said, got.text()), (lengths.to_vec(), body), "{transport:?} {answer}");
            }
        }
    }
}

#[tokio::test]
async fn who_sends_everything_before_it_reads_gets_an_answer_that_came_early_and_may_ask_again() {
    // Nothing may be dialled.
    let nowhere = |upstream: &Upstream| upstream.routes("").replace("allow_private: [127.0.0.0/8]", "");
    let bench = Bench::with(nowhere).await;
    let target = format!("{HOST}:{}", bench.upstream.plain.port());
    let mut agent = bench.agent().dial().await;
    let body = vec![7; 8 << 20];
    for _ in 0..2 {
        let head = format!(
            "POST http://{target}/ HTTP/1.1\r\nhost: {target}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        agent.write_all(head.as_bytes()).await.unwrap();
        agent.write_all(&body).await.unwrap();
        let head = read_head(&mut agent).await;
        assert!(head.contains("x-bottlecap-denied: address-not-allowed"), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        agent.read_exact(&mut vec![0; length.parse().unwrap()]).await.unwrap();
    }
    // Who waits for leave to send is not given any.
    let head = format!(
        "POST http://{target}/ HTTP/1.1\r\nhost: {target}\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n"
    );
    agent.write_all(head.as_bytes()).await.unwrap();
    let head = read_head(&mut agent).await;
    assert!(head.starts_with("HTTP/1.1 403"), "{head}");
    let mut rest = Vec::new();
    agent.read_to_end(&mut rest).await.unwrap();
    assert!(!rest.is_empty(), "the answer, and then the end: what follows could be a body or not");
}
