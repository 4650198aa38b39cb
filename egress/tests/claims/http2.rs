//! HTTP/2 from the bottle: to the proxy itself, tunnels in it, WebSockets over it, and what RFC 9113 forbids.

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, StatusCode, Version};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, StreamBody};
use hudsucker::Body;
use hyper::ext::Protocol;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::support::frames::{
    ACK, DATA, END_HEADERS, END_STREAM, END_STREAM_AND_HEADERS, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM,
    SETTINGS, fields, frame, next_frame,
};
use crate::support::{
    Answer, Bench, HOST, Origin, PATIENCE, Transport, Upstream, get, http1_on, http2_on, read_head, request,
};

const RULES: &str = "path_allowlist: [/v1/]";

#[tokio::test]
async fn http2_to_the_proxy_itself_is_judged_as_http1_is() {
    let bench = Bench::allowing(RULES).await;
    let mut proxy = http2_on(bench.agent().dial().await).await;
    let plain = bench.upstream.plain.port();
    let mut ask = async |target: String| Answer::of(proxy.send_request(get(&target)).await.unwrap()).await;
    let allowed = ask(format!("http://{HOST}:{plain}/v1/x")).await;
    assert_eq!((allowed.status, allowed.text()), (StatusCode::OK, "hello"));
    assert_eq!(ask(format!("http://{HOST}:{plain}/v2/x")).await.refusal(), "path-not-allowed");
    assert_eq!(ask("http://evil.test/v1/x".to_owned()).await.refusal(), "host-not-allowed");
    assert_eq!(ask(format!("https://{HOST}:{plain}/v1/x")).await.refusal(), "malformed-target");
    assert!(ask("http://_egress.local/ca.pem".to_owned()).await.text().contains("BEGIN CERTIFICATE"));
    assert_eq!(bench.upstream.requests().len(), 1);
}

#[tokio::test]
async fn a_preface_that_comes_byte_by_byte_is_http2_and_one_that_turns_away_is_not() {
    let bench = Bench::allowing(RULES).await;
    let mut stream = bench.agent().dial().await;
    for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0" {
        stream.write_all(&[*byte]).await.unwrap();
    }
    let mut settings = [0; 9];
    stream.read_exact(&mut settings).await.unwrap();
    assert_eq!(settings[3], 4, "a SETTINGS frame");
    let mut stream = bench.agent().dial().await;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"), "{answer:?}");
}

#[tokio::test]
async fn many_tunnels_fit_in_one_http2_connection_and_each_is_held_to_its_host() {
    let bench = Bench::allowing(RULES).await;
    let agent = bench.agent();
    let mut proxy = http2_on(agent.dial().await).await;
    let mut open = async |target: &str| {
        let connect = Request::connect(target).body(Body::empty()).unwrap();
        proxy.send_request(connect).await.unwrap()
    };
    let name = || ServerName::try_from(HOST).unwrap();
    let mut senders = Vec::new();
    for _ in 0..3 {
        let answer = open(&bench.target()).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let stream = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
        senders.push(http1_on(agent.tls(&["http/1.1"]).connect(name(), stream).await.unwrap()).await);
    }
    for sender in &mut senders {
        let allowed = sender.send_request(request(Method::GET, "/v1/x", &[("host", &bench.target())])).await;
        assert_eq!(allowed.unwrap().status(), StatusCode::OK);
    }
    let stream = TokioIo::new(hyper::upgrade::on(open(&bench.target()).await).await.unwrap());
    let wrong = ServerName::try_from("evil.test").unwrap();
    assert!(agent.tls(&[]).connect(wrong, stream).await.is_err(), "another server name");
    assert_eq!(Answer::of(open("evil.test:25").await).await.refusal(), "host-not-allowed");
    // What was refused took nothing else with it.
    let again = senders[0].send_request(request(Method::GET, "/v1/x", &[("host", &bench.target())])).await;
    assert_eq!(again.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_tunnel_in_http2_takes_a_place_as_a_connection_does_and_gives_it_back() {
    let bench = Bench::with_room_for(3, |upstream| upstream.routes(RULES)).await;
    let mut proxy = http2_on(bench.agent().dial().await).await;
    let target = bench.target();
    let mut open = async || {
        let connect = Request::connect(&target).body(Body::empty()).unwrap();
        proxy.send_request(connect).await.unwrap()
    };
    let mut tunnels = Vec::new();
    for _ in 0..2 {
        let answer = open().await;
        assert_eq!(answer.status(), StatusCode::OK);
        tunnels.push(hyper::upgrade::on(answer).await.unwrap());
    }
    let refused = Answer::of(open().await).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.headers["x-bottlecap-denied"], "connection-limit");
    assert_eq!(refused.headers["retry-after"], "1");
    // One in which requests are answered is counted for as long.
    let name = ServerName::try_from(HOST).unwrap();
    let stream = TokioIo::new(tunnels.pop().unwrap());
    let mut sender = http1_on(bench.agent().tls(&["http/1.1"]).connect(name, stream).await.unwrap()).await;
    let asked = sender.send_request(request(Method::GET, "/v1/x", &[("host", &bench.target())])).await;
    assert_eq!(Answer::of(asked.unwrap()).await.status, StatusCode::OK);
    assert_eq!(open().await.status(), StatusCode::TOO_MANY_REQUESTS);
    drop(sender);
    while open().await.status() != StatusCode::OK {}
}

fn websocket(target: &str, path: &str) -> Request<Body> {
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .version(Version::HTTP_2)
        .uri(format!("https://{target}{path}"))
        .header("sec-websocket-version", "13")
        .header("sec-websocket-protocol", "chat")
        .body(Body::empty())
        .unwrap();
    request.extensions_mut().insert(Protocol::from_static("websocket"));
    request
}

#[tokio::test]
async fn a_websocket_opens_over_http2_when_upstream_proves_that_it_agrees() {
    let bench = Bench::allowing(RULES).await;
    let target = bench.target();
    let stream = bench.agent().tunnel(&target, HOST, &["h2"]).await.unwrap();
    let mut sender = http2_on(stream).await;
    // By now the proxy has said that it takes extended CONNECT.
    assert_eq!(sender.send_request(get(&format!("https://{target}/v1/x"))).await.unwrap().status(), 200);

    let opened = sender.send_request(websocket(&target, "/v1/socket")).await.unwrap();
    assert_eq!(opened.status(), StatusCode::OK);
    assert_eq!(opened.headers()["sec-websocket-protocol"], "chat");
    for name in ["connection", "upgrade", "sec-websocket-accept", "sec-websocket-key"] {
        assert!(!opened.headers().contains_key(name), "{name}");
    }
    let mut socket = TokioIo::new(hyper::upgrade::on(opened).await.unwrap());
    socket.write_all(b"ping").await.unwrap();
    let mut word = [0; 4];
    socket.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"gnip");
    let seen = bench.upstream.last();
    assert_eq!((seen.version, seen.headers["upgrade"].to_str().unwrap()), (Version::HTTP_11, "websocket"));

    for path in ["/v1/socket-without-proof", "/v1/x"] {
        let answer = sender.send_request(websocket(&target, path)).await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_GATEWAY, "{path}");
    }
    let refused = sender.send_request(websocket(&target, "/v2/socket")).await.unwrap();
    assert_eq!(Answer::of(refused).await.refusal(), "path-not-allowed");
    let refused = sender.send_request(websocket("evil.test", "/v1/socket")).await.unwrap();
    assert_eq!(Answer::of(refused).await.refusal(), "authority-mismatch");
    let mut other = websocket(&target, "/v1/socket");
    other.extensions_mut().insert(Protocol::from_static("connect-udp"));
    let refused = sender.send_request(other).await.unwrap();
    assert_eq!(Answer::of(refused).await.refusal(), "upgrade-not-supported");
}

/// The kinds of the frames that answer `sent`, until the connection or the stream ends.
async fn answered(bench: &Bench, sent: &[u8]) -> Vec<u8> {
    let mut stream = bench.agent().tunnel(&bench.target(), HOST, &["h2"]).await.unwrap();
    stream.write_all(&[PREFACE, sent].concat()).await.unwrap();
    let mut kinds = Vec::new();
    while let Some((kind, flags, _)) = next_frame(&mut stream).await {
        kinds.push(kind);
        if matches!(kind, GOAWAY | RST_STREAM) || (matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0)
        {
            break;
        }
    }
    kinds
}

/// Each case begins with the section of RFC 9113 that forbids it.
#[tokio::test]
async fn frames_that_rfc_9113_forbids_end_the_stream_or_the_connection_and_reach_no_one() {
    let bench = Bench::allowing(RULES).await;
    let target = bench.target();
    let good =
        [(":method", "GET"), (":scheme", "https"), (":path", "/v1/x"), (":authority", target.as_str())];
    let with = |more: &[(&str, &str)]| fields(&[&good[..], more].concat());
    let without = |left_out: &str| {
        fields(&good.iter().copied().filter(|(name, _)| *name != left_out).collect::<Vec<_>>())
    };
    let headers = |block: &[u8]| frame(HEADERS, END_STREAM_AND_HEADERS, 1, block);
    let allowed = answered(&bench, &headers(&with(&[]))).await;
    assert!(allowed.contains(&HEADERS), "the control gets an answer: {allowed:?}");
    assert_eq!(bench.upstream.requests().len(), 1);

    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("6.1: DATA on stream 0", frame(DATA, 0, 0, b"x")),
        ("6.2: HEADERS on stream 0", frame(HEADERS, END_STREAM_AND_HEADERS, 0, &with(&[]))),
        ("5.1.1: HEADERS on an even stream", frame(HEADERS, END_STREAM_AND_HEADERS, 2, &with(&[]))),
        ("5.1: DATA on an idle stream", frame(DATA, 0, 1, b"x")),
        ("4.2: a frame that is too large", frame(DATA, 0, 1, &[0; 16_385])),
        ("6.5: SETTINGS of a wrong length", frame(SETTINGS, 0, 0, &[0; 5])),
        (
            "6.5.2: SETTINGS with a window that is too large",
            frame(SETTINGS, 0, 0, &[0, 4, 255, 255, 255, 255]),
        ),
        ("6.5: SETTINGS on a stream", frame(SETTINGS, 0, 1, &[])),
        ("6.7: PING of a wrong length", frame(6, 0, 0, &[0; 7])),
        ("8.4: PUSH_PROMISE from a client", frame(5, 4, 1, &[0, 0, 0, 2])),
        ("6.9: WINDOW_UPDATE of nothing", frame(8, 0, 0, &[0; 4])),
        ("6.4: RST_STREAM on stream 0", frame(RST_STREAM, 0, 0, &[0; 4])),
        ("6.4: RST_STREAM on an idle stream", frame(RST_STREAM, 0, 1, &[0; 4])),
        ("6.10: CONTINUATION without HEADERS", frame(9, 4, 1, &with(&[]))),
        (
            "6.10: another frame between HEADERS and CONTINUATION",
            [frame(HEADERS, 1, 1, &with(&[])), frame(6, 0, 0, &[0; 8])].concat(),
        ),
        ("4.3: an index that HPACK does not have", headers(&[0xff, 0x80, 0x7f])),
        ("6.1: padding longer than the frame", frame(DATA, 8, 1, &[9, 0])),
        ("8.2.1: an upper-case name", headers(&with(&[("X-Upper", "1")]))),
        ("8.2.2: connection", headers(&with(&[("connection", "keep-alive")]))),
        ("8.2.2: transfer-encoding", headers(&with(&[("transfer-encoding", "chunked")]))),
        ("8.2.2: te other than trailers", headers(&with(&[("te", "gzip")]))),
        ("8.3: an unknown pseudo-header", headers(&with(&[(":surprise", "1")]))),
        ("8.3: a pseudo-header after a header", headers(&with(&[("a", "b"), (":method", "GET")]))),
        ("8.3: a pseudo-header of answers", headers(&with(&[(":status", "200")]))),
        ("8.3.1: two paths", headers(&with(&[(":path", "/v1/y")]))),
        ("8.3.1: no method", headers(&without(":method"))),
        ("8.3.1: no path", headers(&without(":path"))),
        ("8.3.1: no scheme", headers(&without(":scheme"))),
        ("8.1.1: less content than its length says", headers(&with(&[("content-length", "3")]))),
        (
            "8.1.1: more content than its length says",
            [frame(HEADERS, 4, 1, &with(&[("content-length", "1")])), frame(DATA, 1, 1, b"xyz")].concat(),
        ),
        ("5.1.1: a stream with a lower number than one before", {
            let later = frame(HEADERS, 4, 3, &with(&[(":surprise", "1")]));
            [later, frame(HEADERS, END_STREAM_AND_HEADERS, 1, &with(&[]))].concat()
        }),
        ("6.9.1: a window that overflows", frame(8, 0, 0, &[0x7f, 0xff, 0xff, 0xff])),
        ("6.5: SETTINGS with ACK and content", frame(SETTINGS, 1, 0, &[0; 6])),
        ("6.5.2: ENABLE_PUSH that is neither", frame(SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 2])),
        ("6.5.2: a frame size that is too small", frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1])),
        ("6.8: GOAWAY on a stream", frame(GOAWAY, 0, 1, &[0; 8])),
        ("8.2.1: a name with a space", headers(&with(&[("a b", "1")]))),
        ("8.2.1: a value with a line end", headers(&with(&[("a", "1\r\nb: 2")]))),
        ("8.3.1: an empty path", headers(&fields(&[good[0], good[1], (":path", ""), good[3]]))),
    ];
    for (name, bytes) in cases {
        let kinds = answered(&bench, &bytes).await;
        let last = kinds.last().copied();
        assert!(
            matches!(last, Some(GOAWAY | RST_STREAM) | None | Some(SETTINGS)) && !kinds.contains(&DATA),
            "{name}: {kinds:?}"
        );
    }
    let reached = bench.upstream.requests().len();
    assert!(reached <= 2, "at most the one whose length is wrong had begun: {reached}");
}

#[tokio::test]
async fn a_flood_of_resets_or_continuations_ends_the_connection() {
    let bench = Bench::allowing(RULES).await;
    let block = fields(&[
        (":method", "GET"),
        (":scheme", "https"),
        (":path", "/v1/hold"),
        (":authority", &bench.target()),
    ]);
    let mut resets = Vec::new();
    for stream in (1..4001).step_by(2) {
        resets.extend(frame(HEADERS, END_STREAM_AND_HEADERS, stream, &block));
        resets.extend(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
    }
    let mut continuations = frame(HEADERS, 1, 1, &block);
    for _ in 0..4000 {
        continuations.extend(frame(9, 0, 1, &fields(&[("x", "y")])));
    }
    for (name, bytes) in [("resets", resets), ("continuations", continuations)] {
        let stream = bench.agent().tunnel(&bench.target(), HOST, &["h2"]).await.unwrap();
        let (mut read, mut write) = tokio::io::split(stream);
        let sent = Bytes::from([PREFACE, &bytes].concat());
        // The connection may end before everything is sent.
        let sending = tokio::spawn(async move { write.write_all(&sent).await });
        let mut answer = Vec::new();
        let _ = read.read_to_end(&mut answer).await;
        let _ = sending.await;
        assert!(!answer.is_empty(), "{name}");
    }
    let still = bench.agent().send(Transport::TunnelHttp2, get("/v1/x")).await;
    assert_eq!(still.status, StatusCode::OK);
}

#[tokio::test]
async fn an_upload_that_is_answered_early_is_read_on_for_a_while_and_then_ended_without_an_error() {
    let nowhere =
        |upstream: &Upstream| upstream.routes(RULES).replace("    allow_private: [127.0.0.0/8]\n", "");
    // By the route, because nothing may be dialled, and by an upstream that ends the stream.
    let cases = [
        (Bench::allowing(RULES).await, "/v2/x"),
        (Bench::with(nowhere).await, "/v1/x"),
        (Bench::allowing(RULES).await, "/v1/x"),
    ];
    for (bench, path) in cases {
        let block = fields(&[
            (":method", "POST"),
            (":scheme", "https"),
            (":path", path),
            (":authority", &bench.target()),
        ]);
        let mut stream = bench.agent().tunnel(&bench.target(), HOST, &["h2"]).await.unwrap();
        stream.write_all(PREFACE).await.unwrap();
        for number in [1, 3] {
            stream.write_all(&frame(HEADERS, END_HEADERS, number, &block)).await.unwrap();
            loop {
                let (kind, flags, _) = next_frame(&mut stream).await.unwrap();
                assert!(!matches!(kind, RST_STREAM | GOAWAY), "{path}");
                if matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0 {
                    break;
                }
            }
            let ends = if number == 1 { END_STREAM } else { 0 };
            let more = [frame(DATA, ends, number, b"late"), frame(PING, 0, 0, &[0; 8])].concat();
            stream.write_all(&more).await.unwrap();
            loop {
                let (kind, flags, _) = next_frame(&mut stream).await.unwrap();
                // Which curl would take for an error.
                assert!(!matches!(kind, RST_STREAM | GOAWAY), "{path}");
                if kind == PING && flags & ACK != 0 {
                    break;
                }
            }
        }
        let end = async {
            loop {
                let (kind, _, payload) = next_frame(&mut stream).await.unwrap();
                if kind == RST_STREAM {
                    return payload;
                }
            }
        };
        assert_eq!(timeout(PATIENCE, end).await.unwrap(), [0; 4], "{path}: RFC 9113, section 8.1");
    }
}

#[tokio::test]
async fn an_upload_that_its_client_takes_back_is_not_taken_for_a_whole_one_upstream() {
    let no_error = [0; 4];
    let cancel = [0, 0, 0, 8];
    for reason in [no_error, cancel] {
        let origin = Origin::new().await;
        let authority = format!("{HOST}:{}", origin.listener.local_addr().unwrap().port());
        let block = fields(&[
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", authority.as_str()),
        ]);
        let mut agent = origin.bench.agent().dial().await;
        let begun = [PREFACE, &frame(HEADERS, END_HEADERS, 1, &block), &frame(DATA, 0, 1, b"half")].concat();
        agent.write_all(&begun).await.unwrap();
        let mut line = origin.accept().await;
        assert!(read_head(&mut line).await.contains("transfer-encoding: chunked"));
        let mut chunk = [0; b"4\r\nhalf\r\n".len()];
        line.read_exact(&mut chunk).await.unwrap();
        agent.write_all(&frame(RST_STREAM, 0, 1, &reason)).await.unwrap();
        let mut rest = Vec::new();
        let _ = timeout(PATIENCE, line.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&rest), "", "{reason:?}");
    }
}

/// What is left of the request is not wanted then (RFC 9113, section 8.1); how long the answer is, is not said.
#[tokio::test]
async fn an_answer_that_ends_before_its_stream_is_reset_is_a_whole_one() {
    let answer = [
        frame(HEADERS, END_HEADERS, 1, &fields(&[(":status", "200")])),
        frame(DATA, 0, 1, b"who"),
        frame(DATA, END_STREAM, 1, b"le"),
        frame(RST_STREAM, 0, 1, &[0; 4]),
    ];
    for transport in [Transport::TunnelHttp1, Transport::TunnelHttp2] {
        let bench = Bench::allowing(RULES).await;
        *bench.upstream.memory.frames_told.lock().unwrap() = vec![answer.concat()];
        let endless = StreamBody::new(stream::pending::<Result<Frame<Bytes>, hudsucker::Error>>());
        let asked = Request::post("/v1/x").body(Body::from(BoxBody::new(endless))).unwrap();
        let answer = timeout(PATIENCE, bench.agent().send(transport, asked)).await.unwrap();
        assert_eq!((answer.status, answer.text()), (StatusCode::OK, "whole"), "{transport:?}");
        assert_eq!(bench.events().await.last().unwrap()["code"], serde_json::Value::Null);
    }
}

#[tokio::test]
async fn a_connect_that_says_a_length_ends_alone() {
    let bench = Bench::allowing(RULES).await;
    let target = bench.target();
    let mut stream = bench.agent().dial().await;
    let connect =
        |more: &[(&str, &str)]| fields(&[&[(":method", "CONNECT"), (":authority", &*target)], more].concat());
    let sent = [
        PREFACE.to_vec(),
        frame(HEADERS, END_HEADERS, 1, &connect(&[("content-length", "5")])),
        frame(HEADERS, END_HEADERS, 3, &connect(&[])),
    ];
    stream.write_all(&sent.concat()).await.unwrap();
    let mut kinds = Vec::new();
    while !kinds.contains(&HEADERS) {
        let (kind, ..) = timeout(PATIENCE, next_frame(&mut stream)).await.unwrap().unwrap();
        kinds.push(kind);
    }
    assert!(kinds.contains(&RST_STREAM) && !kinds.contains(&GOAWAY), "{kinds:?}");
}

#[tokio::test]
async fn an_answer_that_upstream_takes_back_is_not_a_whole_one() {
    for transport in [Transport::TunnelHttp1, Transport::TunnelHttp2] {
        let bench = Bench::allowing(RULES).await;
        let mut answer = bench.agent().open(transport, HOST, get("/v1/taken-back")).await.into_body();
        assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "half");
        bench.upstream.memory.go_on.notify_one();
        assert!(timeout(PATIENCE, answer.collect()).await.unwrap().is_err(), "{transport:?}");
        assert_eq!(bench.events().await.last().unwrap()["code"], "upstream-failed");
    }
}
