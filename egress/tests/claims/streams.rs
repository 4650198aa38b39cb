//! What passes through is passed as it comes: no shape of message is collected, changed or held up.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt;
use hudsucker::Body;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use crate::support::{Agent, Bench, HOST, Transport, get, read_head, request};

const EVERYTHING: &str = "deny: false";
/// Far longer than anything here takes, so that only what never comes runs into it.
const PATIENCE: Duration = Duration::from_secs(20);

/// A body whose chunks come when they are sent.
fn fed() -> (mpsc::UnboundedSender<&'static str>, Body) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let chunks = stream::unfold(receiver, |mut receiver: mpsc::UnboundedReceiver<&'static str>| async {
        let chunk = receiver.recv().await?;
        Some((Ok::<_, hudsucker::Error>(Bytes::from(chunk)), receiver))
    });
    (sender, Body::from_stream(Box::pin(chunks)))
}

#[tokio::test]
async fn each_message_of_a_two_way_stream_passes_before_the_next_is_sent() {
    let bench = Bench::allowing(EVERYTHING).await;
    for content_type in ["application/connect+json", "application/grpc", "application/json", "text/plain"] {
        for transport in Transport::ALL {
            let (feed, body) = fed();
            let request = Request::post("/v1/echo").header("content-type", content_type).body(body).unwrap();
            feed.send("one").unwrap();
            let mut answer = bench.agent().open(transport, HOST, request).await;
            assert_eq!(answer.headers()["content-type"], content_type);
            for (chunk, next) in [("one", Some("two")), ("two", Some("three")), ("three", None)] {
                let frame = timeout(PATIENCE, answer.body_mut().frame()).await.unwrap().unwrap().unwrap();
                assert_eq!(frame.into_data().unwrap(), chunk, "{transport:?} {content_type}");
                if let Some(next) = next {
                    feed.send(next).unwrap();
                }
            }
            drop(feed);
            let rest = answer.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(rest, Bytes::new());
        }
    }
}

#[tokio::test]
async fn the_trailers_of_grpc_come_after_its_messages() {
    let bench = Bench::allowing(EVERYTHING).await;
    let call =
        request(Method::POST, "/v1/trailers", &[("te", "trailers"), ("content-type", "application/grpc")]);
    let answer = bench.agent().open(Transport::TunnelHttp2, HOST, call).await;
    let collected = answer.into_body().collect().await.unwrap();
    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
    assert_eq!(collected.trailers(), Some(&trailers));
    assert_eq!(&collected.to_bytes()[..], b"\0\0\0\0\x02hi");
    assert_eq!(bench.upstream.last().headers["te"], "trailers");
}

#[tokio::test]
async fn trailers_are_cleaned_as_heads_are() {
    let bench = Bench::allowing(EVERYTHING).await;
    for transport in Transport::ALL {
        let call = request(Method::GET, "/v1/forged-trailers", &[("te", "trailers")]);
        let answer = bench.agent().open(transport, HOST, call).await;
        let collected = answer.into_body().collect().await.unwrap();
        let names: Vec<_> = collected.trailers().unwrap().keys().map(ToString::to_string).collect();
        assert_eq!(names, ["x-upstream"], "{transport:?}");
    }
}

#[tokio::test]
async fn an_answer_without_a_body_has_none_and_keeps_what_it_says_about_one() {
    let bench = Bench::allowing("path_allowlist: [/v1/]").await;
    for transport in Transport::ALL {
        for status in [204, 304] {
            let answer = bench.agent().send(transport, get(&format!("/v1/status/{status}"))).await;
            assert_eq!((answer.status.as_u16(), answer.body.len()), (status, 0), "{transport:?}");
            assert_eq!(answer.headers["etag"], "\"e\"", "{transport:?}");
        }
        let answer = bench.agent().send(transport, request(Method::HEAD, "/v1/x", &[])).await;
        assert_eq!((answer.status, answer.body.len()), (StatusCode::OK, 0), "{transport:?}");
        assert_eq!(answer.headers["content-length"], "5", "{transport:?}");
        let answer = bench.agent().send(transport, request(Method::HEAD, "/v2/x", &[])).await;
        assert_eq!((answer.status, answer.body.len()), (StatusCode::FORBIDDEN, 0), "{transport:?}");
        assert_eq!(answer.headers["x-bottlecap-denied"], "path-not-allowed", "{transport:?}");
        assert_ne!(answer.headers["content-length"], "0", "{transport:?}");
    }
}

#[tokio::test]
async fn a_range_is_asked_for_and_answered_as_such() {
    let bench = Bench::allowing(EVERYTHING).await;
    for transport in Transport::ALL {
        let part = request(Method::GET, "/v1/range", &[("range", "bytes=2-3"), ("if-range", "\"e\"")]);
        let answer = bench.agent().send(transport, part).await;
        assert_eq!((answer.status, answer.text()), (StatusCode::PARTIAL_CONTENT, "ll"), "{transport:?}");
        assert_eq!(answer.headers["content-range"], "bytes 2-3/5");
    }
}

/// Sends a head that waits for leave to send its body, and gives what comes first.
async fn ask_leave(agent: &Agent, authority: &str, path: &str) -> (String, TlsStream<TcpStream>) {
    let mut stream = agent.tunnel(authority, HOST, &["http/1.1"]).await.unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {authority}\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    (read_head(&mut stream).await, stream)
}

#[tokio::test]
async fn who_waits_for_leave_to_send_gets_it_or_the_refusal_at_once() {
    let bench = Bench::allowing("path_allowlist: [/v1/]").await;
    let (leave, mut stream) = ask_leave(&bench.agent(), &bench.target(), "/v1/upload").await;
    assert!(leave.starts_with("HTTP/1.1 100"), "{leave}");
    stream.write_all(b"body").await.unwrap();
    let answer = read_head(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(!bench.upstream.last().headers.contains_key("expect"));

    let (refusal, _) = ask_leave(&bench.agent(), &bench.target(), "/v2/upload").await;
    assert!(refusal.starts_with("HTTP/1.1 403"), "{refusal}");
    assert_eq!(bench.upstream.requests().len(), 1);
}

#[tokio::test]
async fn a_client_that_goes_away_ends_its_request_upstream_at_once() {
    let bench = Bench::allowing(EVERYTHING).await;
    for transport in Transport::ALL {
        let agent = bench.agent();
        let asking = tokio::spawn(async move { agent.open(transport, HOST, get("/v1/never")).await });
        bench.upstream.memory.held.notified().await;
        // The task owns the request and, with it, the connection.
        asking.abort();
        let given_up = timeout(PATIENCE, bench.upstream.memory.given_up.notified()).await;
        assert!(given_up.is_ok(), "{transport:?}");
    }
}

#[tokio::test]
async fn a_client_that_goes_away_in_the_middle_of_an_answer_ends_it_upstream() {
    let bench = Bench::allowing(EVERYTHING).await;
    for transport in Transport::ALL {
        let before = bench.upstream.memory.sent.get();
        let mut answer = bench.agent().open(transport, HOST, get("/v1/download")).await;
        answer.body_mut().frame().await.unwrap().unwrap();
        drop(answer);
        // The same upstream connection may serve the next one; what was dropped stops within the windows.
        let next = bench.agent().send(transport, get("/v1/x")).await;
        assert_eq!(next.status, StatusCode::OK, "{transport:?}");
        let sent = bench.upstream.memory.sent.get() - before;
        assert!(sent < 64 * 1024 * 1024, "{transport:?}: all {sent} bytes were sent to no one");
    }
}

#[tokio::test]
async fn one_side_of_a_websocket_may_fall_silent_before_the_other() {
    let bench = Bench::allowing(EVERYTHING).await;
    let headers = [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-extensions", "permessage-deflate"),
    ];
    let response =
        bench.agent().open(Transport::Plain, HOST, request(Method::GET, "/v1/socket", &headers)).await;
    assert_eq!(response.status(), 101);
    let mut socket = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    socket.write_all(b"abcd").await.unwrap();
    socket.shutdown().await.unwrap();
    let mut rest = Vec::new();
    timeout(PATIENCE, socket.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert_eq!(rest, b"dcba");
}

/// A ClientHello as a client sends it, whole.
async fn client_hello(agent: &Agent, name: &str) -> Vec<u8> {
    let (near, mut far) = tokio::io::duplex(64 * 1024);
    let name = rustls_pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let connecting = tokio::spawn(agent.tls(&["http/1.1"]).connect(name, near));
    let mut hello = vec![0; 5];
    far.read_exact(&mut hello).await.unwrap();
    let mut rest = vec![0; usize::from(u16::from_be_bytes([hello[3], hello[4]]))];
    far.read_exact(&mut rest).await.unwrap();
    hello.append(&mut rest);
    connecting.abort();
    hello
}

#[tokio::test]
async fn either_side_of_a_passed_on_tunnel_may_fall_silent_before_the_other() {
    let origin = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = origin.local_addr().unwrap().port();
    let bench = Bench::with(|_| {
        format!(
            "routes:\n  - {{host: {HOST}, ports: [{port}], tls: passthrough, allow_private: [127.0.0.0/8]}}\n"
        )
    })
    .await;
    let hello = client_hello(&bench.agent(), HOST).await;
    let tunnel = async || {
        let (status, mut agent) = bench.agent().connect(&format!("{HOST}:{port}")).await;
        assert_eq!(status, 200);
        agent.write_all(&hello).await.unwrap();
        let (mut far, _) = timeout(PATIENCE, origin.accept()).await.unwrap().unwrap();
        let mut begun = vec![0; hello.len()];
        far.read_exact(&mut begun).await.unwrap();
        assert_eq!(begun, hello);
        (agent, far)
    };
    let silent_first = async |mut first: TcpStream, mut other: TcpStream| {
        first.write_all(b"last words").await.unwrap();
        first.shutdown().await.unwrap();
        let mut heard = String::new();
        timeout(PATIENCE, other.read_to_string(&mut heard)).await.unwrap().unwrap();
        assert_eq!(heard, "last words");
        // Only now, so that it passes on a tunnel that is half closed.
        other.write_all(b"an answer").await.unwrap();
        other.shutdown().await.unwrap();
        let mut heard = String::new();
        timeout(PATIENCE, first.read_to_string(&mut heard)).await.unwrap().unwrap();
        assert_eq!(heard, "an answer");
    };
    let (agent, far) = tunnel().await;
    silent_first(agent, far).await;
    let (agent, far) = tunnel().await;
    silent_first(far, agent).await;
}

#[tokio::test]
async fn connections_to_upstream_outlive_a_reload_that_leaves_their_route_as_it_is() {
    let bench = Bench::allowing("path_allowlist: [/v1/]").await;
    let connections = async || {
        bench.agent().send(Transport::TunnelHttp1, get("/v1/x")).await;
        bench.upstream.memory.connections.get()
    };
    assert_eq!(connections().await, 1);
    let more = format!("{}  - host: other.test\n", bench.upstream.routes("path_allowlist: [/v1/, /v2/]"));
    bench.proxy.reload(&more).await.unwrap();
    assert_eq!(connections().await, 1, "paths are judged, not dialled");
    bench.proxy.reload(&more.replace("127.0.0.0/8", "127.0.0.1/32")).await.unwrap();
    assert_eq!(connections().await, 2, "what may be dialled is another");
}

#[tokio::test]
async fn a_stop_lets_what_runs_finish_and_tells_http2_that_no_more_is_taken() {
    let mut bench = Bench::allowing(EVERYTHING).await;
    let target = bench.target();
    let stream = bench.agent().tunnel(&target, HOST, &["h2"]).await.unwrap();
    let mut sender = crate::support::http2_on(stream).await;
    let mut body =
        sender.send_request(get(&format!("https://{target}/v1/stream"))).await.unwrap().into_body();
    body.frame().await.unwrap().unwrap();
    let memory = std::sync::Arc::clone(&bench.upstream.memory);
    let rest = async {
        // Until GOAWAY has come; what was begun before it goes on.
        while sender.send_request(get(&format!("https://{target}/v1/x"))).await.is_ok() {}
        memory.go_on.notify_one();
        body.frame().await.unwrap().unwrap().into_data().unwrap()
    };
    let ((), second) = tokio::join!(bench.stop(), async { timeout(PATIENCE, rest).await.unwrap() });
    assert_eq!(second, "data: two\n\n");
}
