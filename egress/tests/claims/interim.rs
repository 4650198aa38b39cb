//! What upstream says before its answer (1xx), on its way to a client that knows what to do with it.

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use h2::client::ResponseFuture;
use http::Request;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::support::frames::{DATA, END_HEADERS, END_STREAM, HEADERS, fields, frame};
use crate::support::{Bench, HOST, Origin, PATIENCE, read_head};

const SECRET: &str = "kV9/xQ+2mZ=7pL4&wR8\"tY1%uN6";
const FINAL: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n";

/// The heads that come up to the final one, and the status of that.
async fn heads(stream: &mut (impl AsyncRead + Unpin)) -> (Vec<String>, String) {
    let mut interim = Vec::new();
    loop {
        let head = timeout(PATIENCE, read_head(stream)).await.expect("a head comes");
        if !head.starts_with("HTTP/1.1 1") {
            return (interim, head.lines().next().unwrap_or_default().to_owned());
        }
        interim.push(head);
    }
}

async fn body(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut body = [0; 2];
    stream.read_exact(&mut body).await.unwrap();
    String::from_utf8(body.to_vec()).unwrap()
}

/// An agent whose request is upstream, and the connection that it came on.
async fn asked(origin: &Origin, method: &str) -> (TcpStream, TcpStream) {
    let mut agent = origin.bench.agent().dial().await;
    origin.ask(&mut agent, method, "").await;
    let mut line = origin.accept().await;
    assert!(read_head(&mut line).await.starts_with(method));
    (agent, line)
}

#[tokio::test]
async fn what_upstream_says_before_its_answer_comes_before_it_cleaned_and_scrubbed() {
    let bench = Bench::allowing("auth_scheme: bearer\ntoken_file: LONG").await;
    std::fs::write(bench.secrets.join("LONG"), SECRET).unwrap();
    let told = format!(
        "HTTP/1.1 100 Continue\r\n\r\n\
         HTTP/1.1 102 Processing\r\n\r\n\
         HTTP/1.1 103 Soon\r\nlink: <https://cdn.test/{SECRET}>; rel=preload\r\nalt-svc: h3=\":443\"\r\n\
         connection: x-hop\r\nx-hop: 1\r\nx-bottlecap-denied: denied-by-rule\r\ncontent-length: 7\r\n\
         transfer-encoding: chunked\r\nkeep-alive: timeout=5\r\nlink: </a.css>\r\n\r\n\
         HTTP/1.1 104 Resumable\r\nupload-offset: 7\r\n\r\n{FINAL}"
    );
    *bench.upstream.memory.raw.lock().unwrap() = Some(told);
    let plain = format!("{HOST}:{}", bench.upstream.plain.port());
    let target = bench.target();
    let mut direct = bench.agent().dial().await;
    let to_plain = format!("GET http://{plain}/ HTTP/1.1\r\nhost: {plain}\r\n\r\n");
    direct.write_all(to_plain.as_bytes()).await.unwrap();
    let mut tunnel = bench.agent().tunnel(&target, HOST, &["http/1.1"]).await.unwrap();
    tunnel.write_all(format!("GET / HTTP/1.1\r\nhost: {target}\r\n\r\n").as_bytes()).await.unwrap();
    let wanted = [
        "HTTP/1.1 102 Processing\r\n\r\n".to_owned(),
        format!(
            "HTTP/1.1 103 Early Hints\r\nlink: <https://cdn.test/{}>; rel=preload\r\nlink: </a.css>\r\n\r\n",
            "*".repeat(SECRET.len())
        ),
        "HTTP/1.1 104 \r\nupload-offset: 7\r\n\r\n".to_owned(),
    ];
    let wanted = (wanted.to_vec(), "HTTP/1.1 200 OK".to_owned());
    assert_eq!(heads(&mut direct).await, wanted);
    assert_eq!(body(&mut direct).await, "ok");
    assert_eq!(heads(&mut tunnel).await, wanted);
    assert_eq!(body(&mut tunnel).await, "ok");
    let wanted = [
        (102, vec![]),
        (
            103,
            vec![
                ("link", format!("<https://cdn.test/{}>; rel=preload", "*".repeat(SECRET.len()))),
                ("link", "</a.css>".to_owned()),
            ],
        ),
        (104, vec![("upload-offset", "7".to_owned())]),
    ];
    let mut sender = bench.http2_by_hand().await;
    let (answer, _) = sender.send_request(get_of(&target, "/"), true).unwrap();
    assert_eq!(heads_in_http2(answer).await, (wanted.map(owned).to_vec(), 200));
}

type Told = (u16, Vec<(String, String)>);

fn owned((status, headers): (u16, Vec<(&str, String)>)) -> Told {
    (status, headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

fn get_of(target: &str, path: &str) -> Request<()> {
    Request::get(format!("https://{target}{path}")).body(()).unwrap()
}

/// What comes before the answer, and the status of that.
async fn heads_in_http2(mut answer: ResponseFuture) -> (Vec<Told>, u16) {
    let mut interim = Vec::new();
    while let Some(told) =
        timeout(PATIENCE, poll_fn(|context| answer.poll_informational(context))).await.unwrap()
    {
        let told = told.unwrap();
        let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            (name.to_string(), value.to_str().unwrap().to_owned())
        };
        interim.push((told.status().as_u16(), told.headers().iter().map(header).collect()));
    }
    (interim, timeout(PATIENCE, answer).await.unwrap().unwrap().status().as_u16())
}

#[tokio::test]
async fn what_upstream_says_in_http2_comes_while_the_answer_is_waited_for_in_both_versions() {
    let told = vec![
        [
            frame(HEADERS, END_HEADERS, 1, &fields(&[(":status", "100")])),
            frame(HEADERS, END_HEADERS, 1, &fields(&[(":status", "101")])),
            frame(HEADERS, END_HEADERS, 1, &fields(&[(":status", "102")])),
            frame(
                HEADERS,
                END_HEADERS,
                1,
                &fields(&[(":status", "103"), ("link", "</style.css>; rel=preload")]),
            ),
        ]
        .concat(),
        [
            frame(HEADERS, END_HEADERS, 1, &fields(&[(":status", "200"), ("content-length", "2")])),
            frame(DATA, END_STREAM, 1, b"ok"),
        ]
        .concat(),
    ];
    let bench = Bench::allowing("deny: false").await;
    let target = bench.target();
    *bench.upstream.memory.frames_told.lock().unwrap() = told.clone();
    let mut tunnel = bench.agent().tunnel(&target, HOST, &["http/1.1"]).await.unwrap();
    tunnel
        .write_all(format!("POST / HTTP/1.1\r\nhost: {target}\r\ncontent-length: 3\r\n\r\n").as_bytes())
        .await
        .unwrap();
    assert_eq!(timeout(PATIENCE, read_head(&mut tunnel)).await.unwrap(), "HTTP/1.1 102 Processing\r\n\r\n");
    assert_eq!(timeout(PATIENCE, read_head(&mut tunnel)).await.unwrap(), HINTS);
    tunnel.write_all(b"all").await.unwrap();
    assert_eq!(heads(&mut tunnel).await, (vec![], "HTTP/1.1 200 OK".to_owned()));
    assert_eq!(body(&mut tunnel).await, "ok");

    let bench = Bench::allowing("deny: false").await;
    *bench.upstream.memory.frames_told.lock().unwrap() = told;
    let post = Request::post(format!("https://{}/", bench.target())).body(()).unwrap();
    let (mut answer, mut content) = bench.http2_by_hand().await.send_request(post, false).unwrap();
    for wanted in [102, 103] {
        let told = timeout(PATIENCE, poll_fn(|context| answer.poll_informational(context))).await.unwrap();
        assert_eq!(told.unwrap().unwrap().status(), wanted);
    }
    content.send_data(Bytes::from_static(b"all"), true).unwrap();
    assert_eq!(heads_in_http2(answer).await, (vec![], 200));
}

/// RFC 9110, section 10.1.1.
#[tokio::test]
async fn a_client_of_http2_that_waits_for_leave_to_send_is_given_it_where_its_body_is_wanted() {
    let bench = Bench::allowing("path_allowlist: [/v1/]").await;
    let mut sender = bench.http2_by_hand().await;
    let target = bench.target();
    let mut ask = |path: &str, expects: bool| {
        let mut post = Request::post(format!("https://{target}{path}"));
        if expects {
            post = post.header("expect", "100-continue");
        }
        sender.send_request(post.body(()).unwrap(), false).unwrap()
    };
    let (mut answer, mut content) = ask("/v1/upload", true);
    let leave = timeout(PATIENCE, poll_fn(|context| answer.poll_informational(context))).await.unwrap();
    assert_eq!(leave.unwrap().unwrap().status(), 100);
    content.send_data(Bytes::from_static(b"body"), true).unwrap();
    assert_eq!(heads_in_http2(answer).await, (vec![], 200));
    assert!(bench.upstream.last().headers.get("expect").is_none());

    let (answer, _content) = ask("/v2/upload", true);
    assert_eq!(heads_in_http2(answer).await, (vec![], 403), "nobody wants it");
    let (answer, mut content) = ask("/v1/upload", false);
    content.send_data(Bytes::from_static(b"body"), true).unwrap();
    assert_eq!(heads_in_http2(answer).await, (vec![], 200), "nobody waits for it");
}

#[tokio::test]
async fn it_comes_while_the_answer_is_waited_for() {
    for method in ["GET", "HEAD", "POST"] {
        let origin = Origin::new().await;
        let (mut agent, mut line) = asked(&origin, method).await;
        for _ in 0..3 {
            line.write_all(HINTS.as_bytes()).await.unwrap();
            assert_eq!(timeout(PATIENCE, read_head(&mut agent)).await.unwrap(), HINTS, "{method}");
        }
        line.write_all(if method == "HEAD" { FINAL.trim_end_matches("ok") } else { FINAL }.as_bytes())
            .await
            .unwrap();
        assert_eq!(heads(&mut agent).await, (vec![], "HTTP/1.1 200 OK".to_owned()));
        if method != "HEAD" {
            assert_eq!(body(&mut agent).await, "ok");
        }
        // The connections of both sides are in step.
        origin.ask(&mut agent, "GET", "").await;
        assert!(read_head(&mut line).await.starts_with("GET"));
        line.write_all([HINTS, FINAL].concat().as_bytes()).await.unwrap();
        assert_eq!(heads(&mut agent).await, (vec![HINTS.to_owned()], "HTTP/1.1 200 OK".to_owned()));
        assert_eq!(body(&mut agent).await, "ok");
    }
}

#[tokio::test]
async fn each_of_several_requests_in_a_row_has_its_own() {
    let origin = Origin::new().await;
    let mut agent = origin.bench.agent().dial().await;
    for _ in 0..8 {
        origin.ask(&mut agent, "GET", "").await;
    }
    let mut line = origin.accept().await;
    let mut wanted = Vec::new();
    for number in 0..8 {
        read_head(&mut line).await;
        let told = format!("HTTP/1.1 103 Early Hints\r\nx-number: {number}\r\n\r\n");
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{number}");
        // In one piece, or with the answer later.
        if number % 2 == 0 {
            line.write_all([&*told, &answer].concat().as_bytes()).await.unwrap();
        } else {
            line.write_all(told.as_bytes()).await.unwrap();
            tokio::task::yield_now().await;
            line.write_all(answer.as_bytes()).await.unwrap();
        }
        wanted.push((vec![told], "HTTP/1.1 200 OK".to_owned(), number.to_string()));
    }
    let mut got = Vec::new();
    for _ in 0..8 {
        let (interim, status) = heads(&mut agent).await;
        let body = char::from(agent.read_u8().await.unwrap()).to_string();
        got.push((interim, status, body));
    }
    assert_eq!(got, wanted);
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_the_answer_alone() {
    let origin = Origin::new().await;
    let mut agent = origin.bench.agent().dial().await;
    let port = origin.listener.local_addr().unwrap().port();
    let head = format!("GET http://{HOST}:{port}/ HTTP/1.0\r\nhost: {HOST}:{port}\r\n\r\n");
    agent.write_all(head.as_bytes()).await.unwrap();
    let mut line = origin.accept().await;
    read_head(&mut line).await;
    line.write_all([HINTS, FINAL].concat().as_bytes()).await.unwrap();
    let mut all = String::new();
    timeout(PATIENCE, agent.read_to_string(&mut all)).await.unwrap().unwrap();
    assert!(all.starts_with("HTTP/1.0 200 OK\r\n") && all.ends_with("\r\n\r\nok"), "{all}");
}

#[tokio::test]
async fn no_more_than_some_is_passed_on() {
    let large = |bytes: usize| format!("HTTP/1.1 103 Early Hints\r\nx: {}\r\n\r\n", "x".repeat(bytes));
    for (told, passed) in
        [(HINTS.repeat(1000), 16), (large(12 * 1024).repeat(5), 2), (large(33 * 1024) + HINTS, 1)]
    {
        let origin = Origin::new().await;
        let (mut agent, mut line) = asked(&origin, "GET").await;
        line.write_all((told + FINAL).as_bytes()).await.unwrap();
        let (interim, status) = heads(&mut agent).await;
        assert_eq!((interim.len(), &*status), (passed, "HTTP/1.1 200 OK"));
        assert_eq!(body(&mut agent).await, "ok");
        // The next request has as many.
        origin.ask(&mut agent, "GET", "").await;
        read_head(&mut line).await;
        line.write_all([HINTS, FINAL].concat().as_bytes()).await.unwrap();
        assert_eq!(heads(&mut agent).await.0.len(), 1);
        assert_eq!(body(&mut agent).await, "ok");
    }
}

#[tokio::test]
async fn it_does_not_put_off_the_end_of_a_request_that_has_no_answer() {
    let origin = Origin::with("limits: {requests_per_minute: 100}\ndefaults: {idle_timeout: 1s}").await;
    let (mut agent, mut line) = asked(&origin, "GET").await;
    let telling = tokio::spawn(async move {
        while line.write_all(HINTS.as_bytes()).await.is_ok() {
            sleep(Duration::from_millis(50)).await;
        }
    });
    let (interim, status) = heads(&mut agent).await;
    assert_eq!((interim.len(), &*status), (16, "HTTP/1.1 504 Gateway Timeout"));
    timeout(PATIENCE, telling).await.unwrap().unwrap();
}

#[tokio::test]
async fn it_comes_before_an_upgrade_too() {
    let origin = Origin::new().await;
    let mut agent = origin.bench.agent().dial().await;
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                   sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
    origin.ask(&mut agent, "GET", upgrade).await;
    let mut line = origin.accept().await;
    read_head(&mut line).await;
    line.write_all(HINTS.as_bytes()).await.unwrap();
    assert_eq!(timeout(PATIENCE, read_head(&mut agent)).await.unwrap(), HINTS);
    let agreed = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                  sec-websocket-accept: ICX+Yqv66kxgM0FcWaLWlFLwTAI=\r\n\r\n";
    line.write_all(agreed.as_bytes()).await.unwrap();
    let head = timeout(PATIENCE, read_head(&mut agent)).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    line.write_all(b"\x81\x02hi").await.unwrap();
    let mut frame = [0; 4];
    timeout(PATIENCE, agent.read_exact(&mut frame)).await.unwrap().unwrap();
    assert_eq!(&frame, b"\x81\x02hi");
}
