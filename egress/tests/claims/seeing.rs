use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request};
use hudsucker::Body;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use proposal::peer::{Answer, Question, datagram, message};
use serde_json::json;

use crate::support::{Bench, HOST, Transport, get, request};

#[tokio::test]
async fn supervise_learns_what_was_refused_and_where_the_journal_ends() {
    let bench = Bench::allowing("path_allowlist: [/v1]").await;
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
    let answering = tokio::spawn(egress::peer::serve(theirs, std::sync::Arc::clone(&bench.proxy)));
    let ours = tokio::net::UnixDatagram::from_std(datagrams(ours)).unwrap();

    let answer = bench.agent().send(Transport::TunnelHttp2, get("/v2?key=hidden")).await;
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let block_id = body["error"]["block_id"].as_str().unwrap().to_owned();
    let ask = async |question: Question| {
        ours.send(&datagram(&question).unwrap()).await.unwrap();
        let mut buffer = vec![0; proposal::peer::DATAGRAM_MAX];
        let length = ours.recv(&mut buffer).await.unwrap();
        message::<Answer>(&buffer[..length]).unwrap()
    };
    let Answer::Refusal { seq: 7, refusal: Some(refusal) } =
        ask(Question::Refusal { seq: 7, block_id: block_id.clone() }).await
    else {
        panic!("the refusal is known");
    };
    assert_eq!((refusal.code.as_str(), refusal.path.as_str()), ("path-not-allowed", "/v2"));
    assert_eq!((refusal.method.as_str(), refusal.block_id), ("GET", block_id));
    let unknown = ask(Question::Refusal { seq: 8, block_id: "none".to_owned() }).await;
    assert_eq!(unknown, Answer::Refusal { seq: 8, refusal: None });

    ours.send(b"nonsense").await.unwrap();
    bench.proxy.flush().await;
    let journal = std::fs::read_to_string(&bench.journal).unwrap();
    let last: serde_json::Value = serde_json::from_str(journal.lines().last().unwrap()).unwrap();
    let head = ask(Question::Head { seq: 9 }).await;
    let hash = last["hash"].as_str().unwrap().to_owned();
    assert_eq!(head, Answer::Head { seq: 9, records: last["seq"].as_u64().unwrap(), hash });
    answering.abort();
}

#[tokio::test]
async fn what_may_have_left_is_recorded_each_time_and_told_from_what_did_not() {
    let bench = Bench::allowing("limits: {request_body: 4B}").await;
    let chunks =
        || stream::iter(["more", "than four"].map(|chunk| Ok::<_, hudsucker::Error>(Bytes::from(chunk))));
    let upload = || Request::post("/v1/upload").body(Body::from_stream(chunks())).unwrap();
    for _ in 0..30 {
        assert_eq!(bench.agent().send(Transport::Plain, upload()).await.status, 413);
    }
    // The second is the answer to what is sent once more.
    for _ in 0..2 {
        bench.upstream.memory.refuses.store(2, Ordering::SeqCst);
        assert_eq!(bench.agent().send(Transport::TunnelHttp2, get("/v1/models")).await.status, 502);
    }
    let events = bench.events().await;
    assert_eq!(events.len(), 32, "none of them is only counted");
    for event in &events[..30] {
        assert_eq!((&event["decision"], &event["sent"]), (&json!("deny"), &json!(true)));
    }
    for event in &events[30..] {
        assert_eq!((&event["decision"], &event["code"]), (&json!("allow"), &json!("upstream-failed")));
    }
}

#[tokio::test]
async fn what_a_client_takes_nothing_of_is_recorded_once_it_is_whole() {
    let bench = Bench::allowing("deny: false").await;
    let stream = bench.agent().tunnel(&bench.target(), HOST, &["h2"]).await.unwrap();
    let mut takes_nothing = http2::Builder::new(TokioExecutor::new());
    takes_nothing.initial_stream_window_size(0);
    let (mut sender, connection) = takes_nothing.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = get(&format!("https://{}/v1/models", bench.target()));
    let _unread = sender.send_request(request).await.unwrap();
    let recorded = async { while bench.events().await.is_empty() {} };
    tokio::time::timeout(Duration::from_secs(20), recorded).await.expect("it is recorded");
}

#[tokio::test]
async fn a_record_is_short_however_long_what_was_asked_for_is() {
    let bench = Bench::allowing("deny: false").await;
    let long = "/v1/".to_owned() + &"x".repeat(5_000);
    assert_eq!(bench.agent().send(Transport::TunnelHttp1, get(&long)).await.status, 200);
    let method = Method::from_bytes(&[b'M'; 65]).unwrap();
    let answer = bench.agent().send(Transport::TunnelHttp1, request(method, "/v1/x", &[])).await;
    assert_eq!(answer.refusal(), "malformed-target");
    let events = bench.events().await;
    let path = events[0]["path"].as_str().unwrap();
    assert!(path.starts_with("/v1/xxx") && path.contains("… (5004 bytes, sha256:"), "{path}");
    assert!(path.len() < 2200, "{}", path.len());
}

/// A connected datagram socket keeps the borders of messages, as a seqpacket socket does.
fn datagrams(socket: OwnedFd) -> UnixDatagram {
    UnixDatagram::from(socket)
}
