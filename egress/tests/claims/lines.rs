//! Connections to upstream: kept, shared, and closed when they are of no more use.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use hudsucker::Body;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::frames::{END_STREAM_AND_HEADERS, GOAWAY, HEADERS, SETTINGS, fields, frame};
use crate::support::{Bench, CHUNK, HOST, Origin, PATIENCE, Transport, get, read_head, request};

async fn closes(stream: &mut TcpStream) -> bool {
    matches!(timeout(PATIENCE, stream.read(&mut [0; 64])).await, Ok(Ok(0) | Err(_)))
}

#[tokio::test]
async fn requests_in_turn_share_a_connection_whatever_their_bodies_are() {
    let bench = Bench::allowing("deny: false").await;
    let post = |body: Body| Request::post("/v1/echo").body(body).unwrap();
    let chunks = || stream::iter(["a", "b"].map(|chunk| Ok::<_, hudsucker::Error>(Bytes::from(chunk))));
    for transport in [Transport::Plain, Transport::TunnelHttp1, Transport::TunnelHttp2] {
        let before = bench.upstream.memory.connections.get();
        for _ in 0..3 {
            assert_eq!(bench.agent().send(transport, get("/v1/models")).await.text(), "hello");
            assert_eq!(bench.agent().send(transport, post(Body::from("whole"))).await.text(), "whole");
            assert_eq!(bench.agent().send(transport, post(Body::from_stream(chunks()))).await.text(), "ab");
            assert_eq!(bench.agent().send(transport, get("/v1/status/204")).await.status, 204);
        }
        let more = bench.upstream.memory.connections.get() - before;
        // Both kinds of tunnels lead to the same place.
        assert_eq!(more, usize::from(transport != Transport::TunnelHttp2), "{transport:?}");
    }
}

#[tokio::test]
async fn a_connection_that_upstream_closed_meanwhile_is_not_used() {
    let origin = Origin::new().await;
    let mut agent = origin.bench.agent().dial().await;
    for body in ["one", "two", "six"] {
        // The request goes out on a fresh connection each time, whether it has a body or not.
        let more = if body == "two" { "content-length: 2\r\n\r\nhi" } else { "" };
        let method = if body == "two" { "POST" } else { "GET" };
        origin.ask(&mut agent, method, more).await;
        let mut line = origin.accept().await;
        read_head(&mut line).await;
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n{body}");
        line.write_all(answer.as_bytes()).await.unwrap();
        // Before the agent has its answer, so that the next request finds it closed.
        line.shutdown().await.unwrap();
        drop(line);
        let head = read_head(&mut agent).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let mut got = [0; 3];
        agent.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, body.as_bytes());
    }
}

#[tokio::test]
async fn a_request_that_changes_nothing_is_sent_once_more_when_its_connection_ends_without_an_answer() {
    for (method, more, is_sent_again) in
        [("GET", "", true), ("HEAD", "", true), ("DELETE", "", false), ("GET", "content-length: 0\r\n", true)]
    {
        let origin = Origin::new().await;
        let mut agent = origin.bench.agent().dial().await;
        let mut line = origin.answered(&mut agent, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        origin.ask(&mut agent, method, more).await;
        assert!(read_head(&mut line).await.starts_with(method), "on the connection that was kept");
        drop(line);
        if is_sent_again {
            let mut other = origin.accept().await;
            assert!(read_head(&mut other).await.starts_with(method));
            drop(other);
        }
        // Not a third time.
        let head = timeout(PATIENCE, read_head(&mut agent)).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 502"), "{method}: {head}");
    }
}

#[tokio::test]
async fn a_request_that_upstream_says_it_did_not_look_at_is_sent_once_more() {
    let bench = Bench::allowing("deny: false").await;
    let refuse = |count| bench.upstream.memory.refuses.store(count, Ordering::SeqCst);
    let post = |body: Body| Request::post("/v1/echo").body(body).unwrap();
    for _ in 0..2 {
        refuse(1);
        assert_eq!(bench.agent().send(Transport::TunnelHttp2, post(Body::empty())).await.status, 200);
    }
    // A short body is kept so long.
    refuse(1);
    let answer = bench.agent().send(Transport::TunnelHttp2, post(Body::from("body"))).await;
    assert_eq!((answer.status, answer.text()), (StatusCode::OK, "body"));
    refuse(2);
    assert_eq!(bench.agent().send(Transport::TunnelHttp2, get("/v1/models")).await.status, 502);
    assert_eq!(bench.agent().send(Transport::TunnelHttp2, get("/v1/models")).await.status, 200);
}

#[tokio::test]
async fn a_request_that_upstream_does_not_look_at_as_it_leaves_is_sent_once_more() {
    for method in [Method::GET, Method::POST, Method::DELETE] {
        let bench = Bench::allowing("deny: false").await;
        let answer = frame(HEADERS, END_STREAM_AND_HEADERS, 1, &fields(&[(":status", "200")]));
        // The first request is the last that was looked at.
        let leave = frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]);
        *bench.upstream.memory.frames_told.lock().unwrap() = vec![answer, leave];
        for connections in [1, 2] {
            let asked = request(method.clone(), "/v1/models", &[]);
            assert_eq!(bench.agent().send(Transport::TunnelHttp2, asked).await.status, 200, "{method}");
            assert_eq!(bench.upstream.memory.connections.get(), connections);
        }
    }
}

#[tokio::test]
async fn requests_that_come_at_once_share_the_only_connection_that_there_may_be() {
    let bench = Bench::allowing("limits: {connections: 1}").await;
    let mut asking = JoinSet::new();
    for _ in 0..5 {
        let agent = bench.agent();
        asking.spawn(async move { agent.send(Transport::TunnelHttp2, get("/v1/models")).await.status });
    }
    for status in asking.join_all().await {
        assert_eq!(status, 200);
    }
    assert_eq!(bench.upstream.memory.connections.get(), 1);
}

#[tokio::test]
async fn an_upload_whose_answer_nobody_waits_for_any_more_ends() {
    let bench = Bench::allowing("limits: {concurrency: 1}").await;
    let post = Request::post(format!("https://{}/v1/unread", bench.target())).body(()).unwrap();
    let (answer, mut content) = bench.http2_by_hand().await.send_request(post, false).unwrap();
    let answer = timeout(PATIENCE, answer).await.unwrap().unwrap();
    assert_eq!(answer.status(), 200);
    let other = async || bench.agent().send(Transport::TunnelHttp2, get("/v1/models")).await.status;
    // Until no more fits on the way, for as long as some others take.
    let mut unchanged = 0;
    while unchanged < 20 {
        content.reserve_capacity(CHUNK);
        let taken = content.capacity();
        if taken > 0 {
            content.send_data(vec![0; taken].into(), false).unwrap();
        }
        unchanged = if taken > 0 { 0 } else { unchanged + 1 };
        assert_eq!(other().await, 429);
    }
    drop((answer, content));
    let next = async { while other().await == 429 {} };
    timeout(PATIENCE, next).await.expect("its place is free");
}

#[tokio::test]
async fn what_upstream_does_not_take_at_a_time_goes_out_on_another_connection_or_not_at_all() {
    const MAX_CONCURRENT_STREAMS: u16 = 3;
    for (limits, status) in [("deny: false", 200), ("limits: {connections: 1}", 429)] {
        let bench = Bench::allowing(limits).await;
        let one = frame(SETTINGS, 0, 0, &[&MAX_CONCURRENT_STREAMS.to_be_bytes()[..], &[0, 0, 0, 1]].concat());
        let answer = |stream| frame(HEADERS, END_STREAM_AND_HEADERS, stream, &fields(&[(":status", "200")]));
        // The second stream is not answered.
        let told = vec![[one, answer(1)].concat(), Vec::new(), Vec::new(), Vec::new()];
        *bench.upstream.memory.frames_told.lock().unwrap() = told;
        assert_eq!(bench.agent().send(Transport::TunnelHttp2, get("/v1/models")).await.status, 200);
        bench.upstream.memory.held.notified().await;
        let agent = bench.agent();
        let waiting = tokio::spawn(async move { agent.send(Transport::TunnelHttp2, get("/v1/x")).await });
        bench.upstream.memory.held.notified().await;
        assert_eq!(bench.agent().send(Transport::TunnelHttp2, get("/v1/models")).await.status, status);
        waiting.abort();
    }
}

#[tokio::test]
async fn a_stream_that_fails_alone_leaves_its_connection_to_the_others() {
    let bench = Bench::allowing("limits: {connections: 1}").await;
    let mut long = bench.agent().open(Transport::TunnelHttp2, HOST, get("/v1/stream")).await.into_body();
    assert!(long.frame().await.unwrap().is_ok());
    for refuses in [1, 2, 0] {
        bench.upstream.memory.refuses.store(refuses, Ordering::SeqCst);
        let status = bench.agent().send(Transport::TunnelHttp2, get("/v1/models")).await.status;
        assert_eq!(status, if refuses < 2 { 200 } else { 502 });
    }
    assert_eq!(bench.upstream.memory.connections.get(), 1);
}

#[tokio::test]
async fn answers_that_nobody_reads_leave_room_for_others() {
    let bench = Bench::allowing("deny: false").await;
    let agent = bench.agent();
    let mut unread = Vec::new();
    for _ in 0..9 {
        unread.push(agent.open(Transport::TunnelHttp1, HOST, get("/v1/download")).await);
    }
    // Until no more fits on the way, for as long as some others take.
    let (mut sent, mut unchanged) = (0, 0);
    while unchanged < 100 {
        let quick = agent.send(Transport::TunnelHttp2, get("/v1/models"));
        assert_eq!(timeout(PATIENCE, quick).await.expect("it has an answer").text(), "hello");
        let before = std::mem::replace(&mut sent, bench.upstream.memory.sent.get());
        unchanged = if sent == before { unchanged + 1 } else { 0 };
    }
}

#[tokio::test]
async fn requests_share_connections_and_crowd_where_there_may_be_no_more() {
    for (rules, connections) in [("deny: false", 2), ("limits: {connections: 1}", 1)] {
        let bench = Bench::allowing(rules).await;
        assert_eq!(bench.agent().send(Transport::TunnelHttp2, get("/v1/models")).await.status, 200);
        let mut asked = JoinSet::new();
        for _ in 0..8 {
            let agent = bench.agent();
            asked.spawn(async move { agent.send(Transport::TunnelHttp2, get("/v1/gate/kept")).await });
        }
        while bench.upstream.requests().len() < 9 {
            tokio::task::yield_now().await;
        }
        bench.upstream.memory.gate.0.close();
        for answer in asked.join_all().await {
            assert_eq!(answer.text(), "at last");
        }
        assert_eq!(bench.upstream.memory.connections.get(), connections, "{rules}");
    }
}

#[tokio::test]
async fn an_answer_that_is_not_read_to_its_end_takes_its_connection_with_it() {
    let origin = Origin::new().await;
    let mut agent = origin.bench.agent().dial().await;
    let mut line = origin.answered(&mut agent, b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nbegun").await;
    drop(agent);
    assert!(closes(&mut line).await);

    // What comes late on it is no one's answer: the next request has a connection of its own.
    let mut agent = origin.bench.agent().dial().await;
    let _line = origin.answered(&mut agent, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
}

#[tokio::test]
async fn a_request_goes_on_after_its_answer_began_even_when_no_one_reads_that() {
    let bench = Bench::allowing("deny: false").await;
    let (feed, fed) = mpsc::channel::<Bytes>(1);
    let chunks = stream::unfold(fed, |mut fed| async {
        let chunk = fed.recv().await?;
        Some((Ok::<_, hudsucker::Error>(chunk), fed))
    });
    let request = Request::post("/v1/echo").body(Body::from_stream(Box::pin(chunks))).unwrap();
    feed.send(Bytes::from_static(b"first")).await.unwrap();
    let mut answer = bench.agent().open(Transport::TunnelHttp1, HOST, request).await.into_body();
    assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
    // More than what fits on the way there, which no one reads on the way back, and less than fits both ways.
    let sent = Arc::new(AtomicUsize::new(0));
    let (counted, done) = (Arc::clone(&sent), Arc::new(Notify::new()));
    let told = Arc::clone(&done);
    let feeding = tokio::spawn(async move {
        for _ in 0..64 {
            feed.send(Bytes::from_static(&[7; 16 * 1024])).await.unwrap();
            counted.fetch_add(16 * 1024, Ordering::SeqCst);
        }
        told.notify_one();
    });
    timeout(PATIENCE, done.notified()).await.unwrap();
    feeding.await.unwrap();
    let rest = timeout(PATIENCE, answer.collect()).await.unwrap().unwrap().to_bytes();
    assert_eq!(rest.len(), sent.load(Ordering::SeqCst));
}

#[tokio::test]
async fn an_answer_that_is_slow_in_coming_and_one_that_breaks_off_are_told_apart_from_a_whole_one() {
    let origin = Origin::new().await;
    let mut agent = origin.bench.agent().dial().await;
    origin.ask(&mut agent, "GET", "").await;
    let mut line = origin.accept().await;
    read_head(&mut line).await;
    for part in
        ["HTTP/1.1 200 OK\r\n", "transfer-encoding: chunked\r\n\r\n", "3\r\non", "e\r\n", "3\r\ntwo\r\n"]
    {
        line.write_all(part.as_bytes()).await.unwrap();
        tokio::task::yield_now().await;
    }
    let head = read_head(&mut agent).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    drop(line);
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, agent.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"3\r\none\r\n3\r\ntwo\r\n", "no last chunk: the answer is not whole");
}

#[tokio::test]
async fn a_connection_on_which_nothing_runs_makes_room_for_one_that_is_needed() {
    let origin = Origin::with("limits: {connections: 1}").await;
    let mut agent = origin.bench.agent().dial().await;
    let mut line = origin.answered(&mut agent, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                   sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
    origin.ask(&mut agent, "GET", upgrade).await;
    let mut other = origin.accept().await;
    assert!(read_head(&mut other).await.starts_with("GET / HTTP/1.1"));
    assert!(closes(&mut line).await);
}

#[tokio::test]
async fn an_upload_that_upstream_does_not_read_ends_with_its_route() {
    let origin = Origin::new().await;
    let mut agent = origin.bench.agent().dial().await;
    origin.ask(&mut agent, "POST", "content-length: 1000000000\r\n").await;
    let mut line = origin.accept().await;
    read_head(&mut line).await;
    line.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\nbegun").await.unwrap();
    assert!(read_head(&mut agent).await.starts_with("HTTP/1.1 200"));
    // Until no more fits on the way.
    let more = vec![7; 64 * 1024];
    while timeout(Duration::from_millis(500), agent.write_all(&more)).await.is_ok() {}
    origin.bench.proxy.reload("routes: []").await.unwrap();
    let _ = timeout(PATIENCE, agent.read_to_end(&mut Vec::new())).await.unwrap();
    while timeout(PATIENCE, line.write_all(&more)).await.unwrap().is_ok() {}
}

#[tokio::test]
async fn what_is_left_of_an_upload_goes_out_after_its_whole_answer() {
    // Sizes that are held up in different places: in the kernel, in the proxy, at the agent.
    for size in [256 << 10, 2 << 20, 16 << 20] {
        let origin = Origin::new().await;
        let mut agent = origin.bench.agent().dial().await;
        origin.ask(&mut agent, "POST", &format!("content-length: {size}\r\n")).await;
        let mut line = origin.accept().await;
        read_head(&mut line).await;
        let (mut answer, mut upload) = agent.into_split();
        let sending = tokio::spawn(async move { upload.write_all(&vec![7; size]).await });
        line.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        assert!(read_head(&mut answer).await.starts_with("HTTP/1.1 200"));
        answer.read_exact(&mut [0; 2]).await.unwrap();
        timeout(PATIENCE, line.read_exact(&mut vec![0; size])).await.unwrap().unwrap();
        sending.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_at_once_is_passed_on_as_far_as_it_came() {
    let scrubs = "auth_scheme: bearer\n    token_file: LONG";
    for more in ["", scrubs] {
        for (framing, body) in
            [("content-length: 10", "abc"), ("transfer-encoding: chunked", "3\r\nabc\r\nzz")]
        {
            let origin = Origin::with(more).await;
            std::fs::write(origin.bench.secrets.join("LONG"), "q8Zr2LkT0vWcN5mYx1JdB7sHfG3aPe").unwrap();
            let mut agent = origin.bench.agent().dial().await;
            origin.ask(&mut agent, "GET", "").await;
            let mut line = origin.accept().await;
            read_head(&mut line).await;
            let answer = format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n{body}\r\n");
            line.write_all(answer.trim_end().as_bytes()).await.unwrap();
            drop(line);
            let mut got = Vec::new();
            let _ = timeout(PATIENCE, agent.read_to_end(&mut got)).await.unwrap();
            let got = String::from_utf8(got).unwrap();
            assert!(got.starts_with("HTTP/1.1 200 OK\r\n") && got.contains("ab"), "{framing}: {got:?}");
            let events = origin.bench.events().await;
            let told = |key: &str| events[0][key].clone();
            assert_eq!((told("decision"), told("status")), ("allow".into(), 200.into()), "{events:?}");
            assert_eq!(told("code"), "upstream-failed", "{events:?}");
        }
    }
}
