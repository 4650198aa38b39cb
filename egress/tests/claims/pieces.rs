//! A secret in pieces: in one head, in several requests, and after upstream has begun to answer.

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use hudsucker::Body;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::support::{Bench, HOST, Transport, get, request};

const BLOCK: &str = "dlp: {outbound_detectors: [token_patterns], outbound_on_match: block}";

/// The pieces of a token, made at run time so that no scanner trips over this file.
fn pieces() -> [String; 3] {
    [format!("glpat{}q8Zr", "-"), "2LkT0vWc".to_owned(), "N5mYx1Jd".to_owned()]
}

fn post(path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Request<Body> {
    let mut request = request(Method::POST, path, headers);
    *request.body_mut() = body.into();
    request
}

fn grpc(message: &str) -> Bytes {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    Bytes::from([&[0][..], &length, message.as_bytes()].concat())
}

/// A body that is sent part by part.
fn by_parts() -> (mpsc::Sender<&'static str>, Body) {
    let (send, receive) = mpsc::channel::<&'static str>(1);
    let body = stream::unfold(receive, async |mut receive| {
        let part = Bytes::from(receive.recv().await?);
        Some((Ok::<_, hudsucker::Error>(part), receive))
    });
    (send, Body::from_stream(Box::pin(body)))
}

#[tokio::test]
async fn a_secret_in_pieces_over_requests_ends_before_its_last_piece() {
    type Make = fn(&str) -> Request<Body>;
    let makes: [(&str, Make); 6] = [
        ("query", |piece| get(&format!("/v1/x?q={piece}&page=1"))),
        ("path", |piece| get(&format!("/v1/{piece}"))),
        ("header", |piece| request(Method::GET, "/v1/x", &[("x-note", piece), ("accept", "a/b")])),
        ("body", |piece| post("/v1/upload", &[], piece.to_owned())),
        ("message", |piece| post("/v1/upload", &[("content-type", "application/grpc")], grpc(piece))),
        ("query, and then another key", |piece| {
            let key = if piece.starts_with("glpat") { "a" } else { "b" };
            get(&format!("/v1/x?{key}={piece}"))
        }),
    ];
    let open = Bench::allowing("deny: false").await;
    for transport in Transport::ALL {
        for (place, make) in makes {
            let bench = Bench::allowing(BLOCK).await;
            let agent = bench.agent();
            let [first, second, last] = pieces();
            for piece in [&first, &second] {
                let passed = agent.send(transport, make(piece)).await;
                assert!(!passed.headers.contains_key("x-bottlecap-denied"), "{place}: {passed:?}");
            }
            let answer = agent.send(transport, make(&last)).await;
            if place.ends_with("another key") {
                assert!(
                    !answer.headers.contains_key("x-bottlecap-denied"),
                    "docs say what is not put together"
                );
            } else {
                assert_eq!(answer.headers["x-bottlecap-denied"], "secret-detected", "{place}");
                let again = agent.send(transport, make(&last)).await;
                assert_eq!(again.headers["x-bottlecap-denied"], "secret-detected", "{place}");
            }
            // The control: the same where nothing is searched.
            for piece in pieces() {
                assert_eq!(
                    open.agent().send(transport, make(&piece)).await.status,
                    StatusCode::OK,
                    "{place}"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_secret_in_pieces_of_one_head_is_refused() {
    let bench = Bench::allowing(BLOCK).await;
    let agent = bench.agent();
    let [first, second, last] = pieces();
    let (a, b) = (format!("{first}{second}"), last);
    for asked in [
        get(&format!("/v1/x?a={a}&b={b}")),
        get(&format!("/v1/{a}/{b}")),
        get(&format!("/v1/{a}?b={b}")),
        request(Method::GET, "/v1/x", &[("x-a", &a), ("accept", "*/*"), ("x-b", &b)]),
        request(Method::GET, "/v1/x", &[("cookie", &format!("one={a}; two={b}"))]),
    ] {
        let target = asked.uri().to_string();
        assert_eq!(agent.send(Transport::Plain, asked).await.refusal(), "secret-detected", "{target}");
    }
    let slashes = Bench::allowing(&format!("allow_encoded_slashes: true\n{BLOCK}")).await;
    let asked = get(&format!("/v1/{a}%2F{b}"));
    assert_eq!(slashes.agent().send(Transport::Plain, asked).await.refusal(), "secret-detected");
    let harmless = request(Method::GET, "/v1/x?a=1&b=2", &[("x-a", "3"), ("cookie", "one=4; two=5")]);
    assert_eq!(agent.send(Transport::Plain, harmless).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_whole_secret_that_is_masked_does_not_hide_pieces_beside_it() {
    let bench =
        Bench::allowing("dlp: {outbound_detectors: [token_patterns], outbound_on_match: redact}").await;
    let agent = bench.agent();
    let whole = pieces().concat();
    for (number, piece) in pieces().into_iter().enumerate() {
        let asked =
            request(Method::GET, &format!("/v1/x?q={piece}"), &[("x-note", &format!("is {whole} it"))]);
        let answer = agent.send(Transport::Plain, asked).await;
        let refused = answer.headers.contains_key("x-bottlecap-denied");
        assert_eq!(refused, number == 2, "{answer:?}");
    }
}

#[tokio::test]
async fn a_secret_in_pieces_over_websockets_is_cut() {
    let bench = Bench::allowing(BLOCK).await;
    let [first, second, last] = pieces();
    for (piece, passes) in [(first, true), (format!("{second}{last} "), false)] {
        let headers = [("connection", "Upgrade"), ("upgrade", "websocket")];
        let asked = request(Method::GET, "/v1/socket", &headers);
        let response = bench.agent().open(Transport::TunnelHttp1, HOST, asked).await;
        let mut socket = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        let length = 0x80 | u8::try_from(piece.len()).unwrap();
        let frame = [&[0x81, length, 0, 0, 0, 0][..], piece.as_bytes()].concat();
        socket.write_all(&frame).await.unwrap();
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer).await;
        assert_eq!(answer.first() != Some(&0x88), passes, "{answer:?}");
    }
    let events = bench.events().await;
    assert!(
        events.iter().any(|event| event["code"] == "secret-detected" && event["late"] == true),
        "{events:?}"
    );
}

#[tokio::test]
async fn a_secret_after_the_answer_began_ends_both_and_the_record_says_so() {
    for transport in Transport::ALL {
        let bench = Bench::allowing(BLOCK).await;
        let (send, body) = by_parts();
        let response = bench.agent().open(transport, HOST, post("/v1/echo", &[], body)).await;
        assert_eq!(response.status(), StatusCode::OK);
        send.send("harmless text. ").await.unwrap();
        let mut answer = response.into_body();
        assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "harmless text. ");
        let token: &'static str = format!("{} ", pieces().concat()).leak();
        send.send(token).await.unwrap();
        assert!(
            answer.collect().await.is_err(),
            "{transport:?}: the answer does not end as if it were whole"
        );
        let events = bench.events().await;
        let event = events.iter().find(|event| event["code"] == "secret-detected").unwrap();
        assert_eq!((&event["late"], &event["decision"]), (&true.into(), &"deny".into()), "{event}");
        assert!(!event["block_id"].as_str().unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_secret_in_the_first_bytes_is_not_called_late_and_a_clean_upload_has_no_mark() {
    let bench = Bench::allowing(BLOCK).await;
    let agent = bench.agent();
    let answer =
        agent.send(Transport::Plain, post("/v1/upload", &[], format!("{} ", pieces().concat()))).await;
    assert_eq!(answer.refusal(), "secret-detected");
    let answer = agent.send(Transport::Plain, post("/v1/upload", &[], "clean")).await;
    assert_eq!(answer.text(), "5");
    for event in bench.events().await {
        assert_eq!(event.get("late"), None, "{event}");
    }
}
