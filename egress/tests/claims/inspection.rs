//! A secret in what the agent sends does not leave.

use std::io::Write as _;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, StatusCode};
use hudsucker::Body;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::support::{Bench, HOST, Transport, get, request};

const BLOCK: &str = "dlp: {outbound_detectors: [token_patterns, known_secrets], outbound_on_match: block}";
const REDACT: &str = "dlp: {outbound_detectors: [token_patterns], outbound_on_match: redact}";

/// A secret, made at run time so that no scanner trips over this file.
fn token() -> String {
    format!("glpat{}q8Zr2LkT0vWcN5mYx1Jd", "-")
}

fn post(headers: &[(&str, &str)], body: impl Into<Body>) -> Request<Body> {
    let mut request = request(Method::POST, "/v1/upload", headers);
    *request.body_mut() = body.into();
    request
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn grpc(flag: u8, message: &[u8]) -> Vec<u8> {
    [&[flag][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
}

#[tokio::test]
async fn a_secret_in_any_part_of_a_request_is_refused_and_upstream_has_no_answer_to_give() {
    let (inspected, open) = (Bench::allowing(BLOCK).await, Bench::allowing("deny: false").await);
    let token = token();
    let json = format!("{{\"k\": \"{token}\"}}");
    let packed = gzip(format!("{}{json}", "filler ".repeat(50)).as_bytes());
    let plain_grpc = [grpc(0, b"hello"), grpc(0, json.as_bytes())].concat();
    let split_grpc = [grpc(0, &json.as_bytes()[..15]), grpc(0, &json.as_bytes()[15..])].concat();
    let rpc = [("content-type", "application/grpc"), ("grpc-encoding", "gzip")];
    type Make = Box<dyn Fn() -> Request<Body>>;
    let cases: Vec<(&str, Make)> = vec![
        (
            "path",
            Box::new({
                let t = token.clone();
                move || get(&format!("/v1/{t}"))
            }),
        ),
        (
            "method",
            Box::new({
                let t = token.clone();
                move || request(Method::from_bytes(t.as_bytes()).unwrap(), "/v1/x", &[])
            }),
        ),
        (
            "query",
            Box::new({
                let t = token.clone();
                move || get(&format!("/v1/x?a={t}"))
            }),
        ),
        (
            "query in base64",
            Box::new({
                let t = token.clone();
                move || get(&format!("/v1/x?a={}", BASE64_STANDARD.encode(format!("say {t} to them"))))
            }),
        ),
        (
            "header",
            Box::new({
                let t = token.clone();
                move || request(Method::GET, "/v1/x", &[("x-note", &t)])
            }),
        ),
        (
            "cookie",
            Box::new({
                let t = token.clone();
                move || request(Method::GET, "/v1/x", &[("cookie", &format!("a=1; b={t}"))])
            }),
        ),
        (
            "body",
            Box::new({
                let j = json.clone();
                move || post(&[], j.clone())
            }),
        ),
        (
            "body byte by byte",
            Box::new({
                let j = json.clone();
                move || {
                    let bytes: Vec<_> =
                        j.bytes().map(|b| Ok::<_, hudsucker::Error>(Bytes::from(vec![b]))).collect();
                    post(&[], Body::from_stream(stream::iter(bytes)))
                }
            }),
        ),
        (
            "body in gzip",
            Box::new({
                let p = packed.clone();
                move || post(&[("content-encoding", "gzip")], Bytes::from(p.clone()))
            }),
        ),
        (
            "name in gzip",
            Box::new({
                let t = token.clone();
                move || post(&[("content-encoding", "gzip")], Bytes::from(gzip_named(&t, b"harmless")))
            }),
        ),
        (
            "frame that zstd skips",
            Box::new({
                let t = token.clone();
                move || post(&[("content-encoding", "zstd")], Bytes::from(zstd_skipping(&t)))
            }),
        ),
        (
            "metadata of brotli",
            Box::new({
                let t = token.clone();
                move || post(&[("content-encoding", "br")], Bytes::from(brotli_with_metadata(&t)))
            }),
        ),
        (
            "gzip as a file",
            Box::new({
                let p = packed.clone();
                move || post(&[], Bytes::from(p.clone()))
            }),
        ),
        ("message", Box::new(move || post(&rpc, Bytes::from(plain_grpc.clone())))),
        ("two messages", Box::new(move || post(&rpc, Bytes::from(split_grpc.clone())))),
        (
            "compressed message",
            Box::new({
                let p = packed.clone();
                move || post(&rpc, Bytes::from(grpc(1, &p)))
            }),
        ),
    ];
    for transport in Transport::ALL {
        for (place, make) in &cases {
            let answer = inspected.agent().send(transport, make()).await;
            let code = answer.headers.get("x-bottlecap-denied").map(|code| code.to_str().unwrap());
            assert_eq!(code, Some("secret-detected"), "{place}: {answer:?}");
            assert!(!format!("{answer:?}").contains(&token[8..]), "{place}");
            // The control: the same request where nothing is searched.
            assert_eq!(open.agent().send(transport, make()).await.status, StatusCode::OK, "{place}");
        }
    }
    let journal = std::fs::read_to_string(&inspected.journal).unwrap();
    assert!(journal.contains("secret-detected") || !inspected.events().await.is_empty());
}

const OURS: &str = "auth_scheme: bearer\ntoken_file: OURS";

/// A gzip member with `name` in its header, in the clear.
fn gzip_named(name: &str, bytes: &[u8]) -> Vec<u8> {
    let builder = flate2::GzBuilder::new().filename(name);
    let mut encoder = builder.write(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A Zstandard frame behind one that decoders skip (RFC 8878, section 3.1.2), which holds `text` in the clear.
fn zstd_skipping(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).unwrap().to_le_bytes();
    [
        &[0x50, 0x2a, 0x4d, 0x18][..],
        &length,
        text.as_bytes(),
        &zstd::stream::encode_all(&b"harmless"[..], 3).unwrap(),
    ]
    .concat()
}

/// An empty Brotli stream behind metadata (RFC 7932, section 9.2), which are `text` in the clear.
fn brotli_with_metadata(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len() - 1).unwrap();
    [&(0b10_1100 | length << 7).to_le_bytes()[..], text.as_bytes(), &[3]].concat()
}

/// Bodies in which there is `token`, each with the headers that go with it.
fn bodies_with(token: &str) -> Vec<(Vec<(&'static str, &'static str)>, Bytes)> {
    let json = format!("{{\"messages\": [{{\"content\": \"it says {token}\"}}]}}");
    let (packed, rpc) = (gzip(json.as_bytes()), ("content-type", "application/grpc"));
    vec![
        (vec![], Bytes::from(json.clone())),
        (vec![], Bytes::from(BASE64_STANDARD.encode(&json))),
        (vec![("content-encoding", "gzip")], Bytes::from(packed.clone())),
        (vec![("content-encoding", "gzip")], Bytes::from(gzip_named(token, b"harmless"))),
        (vec![rpc], Bytes::from(grpc(0, json.as_bytes()))),
        (vec![rpc, ("grpc-encoding", "gzip")], Bytes::from(grpc(1, &packed))),
    ]
}

#[tokio::test]
async fn a_body_with_a_foreign_credential_does_not_go_out_beside_ours() {
    let known = "\ndlp: {outbound_detectors: [known_secrets], outbound_on_match: ";
    for (rules, refused) in [
        (OURS.to_owned(), true),
        ("own_credential_only: true".to_owned(), true),
        (format!("{OURS}\ndlp: {{outbound_detectors: []}}"), true),
        (format!("{OURS}{known}redact}}"), true),
        (format!("{OURS}{known}supervise}}"), true),
        (format!("{OURS}\nown_credential_only: false"), false),
        ("deny: false".to_owned(), false),
    ] {
        let bench = Bench::allowing(&rules).await;
        std::fs::write(bench.secrets.join("OURS"), "kV9xQ2mZ7pL4wR8tY1uN6").unwrap();
        let agent = bench.agent();
        for (headers, body) in bodies_with(&token()) {
            for transport in Transport::ALL {
                let answer = agent.send(transport, post(&headers, body.clone())).await;
                let code = answer.headers.get("x-bottlecap-denied").map(|code| code.to_str().unwrap());
                assert_eq!(code, refused.then_some("secret-detected"), "{rules} {headers:?} {answer:?}");
                assert!(!format!("{answer:?}").contains(&token()[8..]));
            }
        }
        // Of the head the lists take out what they name, and nothing is looked for in it.
        let answer = agent.send(Transport::Plain, get(&format!("/v1/{}", token()))).await;
        assert_eq!(answer.text(), "hello", "{rules}");
    }
}

#[tokio::test]
async fn a_type_that_promises_frames_hides_nothing_that_is_in_none() {
    let (token, rpc) = (token(), ("content-type", "application/grpc"));
    let json = format!("{{\"key\": \"{token}\"}}");
    let frame = BASE64_STANDARD.encode(grpc(0, json.as_bytes()));
    let bodies = [
        // The token stands where the head of a frame would.
        (rpc, format!("\0{token}")),
        (rpc, token.clone()),
        (rpc, BASE64_STANDARD.encode(&json)),
        (("content-type", "application/grpcfoo"), format!("\0{token}")),
        (("content-type", "application/grpc-web-text"), frame),
    ];
    for (rules, refused) in [(OURS, true), (BLOCK, true), ("deny: false", false)] {
        let bench = Bench::allowing(rules).await;
        std::fs::write(bench.secrets.join("OURS"), "kV9xQ2mZ7pL4wR8tY1uN6").unwrap();
        for (kind, body) in &bodies {
            for transport in Transport::ALL {
                let answer = bench.agent().send(transport, post(&[*kind], body.clone())).await;
                let code = answer.headers.get("x-bottlecap-denied").map(|code| code.to_str().unwrap());
                // What stops at the first head that is none has not come to the secret.
                let is_refused = matches!(code, Some("secret-detected" | "content-uninspectable"));
                assert_eq!(is_refused, refused, "{rules} {kind:?} {answer:?}");
                assert!(is_refused || answer.text() == body.len().to_string(), "{answer:?}");
            }
        }
    }
}

#[tokio::test]
async fn beside_our_credential_what_is_no_credential_format_goes_out() {
    let bench = Bench::allowing(OURS).await;
    let ours = token().replace("q8Zr", "kV9x");
    std::fs::write(bench.secrets.join("OURS"), &ours).unwrap();
    let packed = gzip(b"whole");
    for (headers, body) in [
        (
            vec![],
            Bytes::from_static(b"password = \"kV9xQ2mZ7pL4wR8tY1uN6\"\napi_key: q8Zr2LkT0vWcN5mYx1Jd8s\n"),
        ),
        (vec![], Bytes::from(format!("{{\"key\": \"{ours}\"}}"))),
        (vec![], Bytes::from_static(b"PK\x03\x04\x14\x00\x01\x00\x08\x00................................")),
        (vec![("content-encoding", "compress")], Bytes::from_static(b"x")),
        (vec![("content-encoding", "gzip")], Bytes::from(packed[..packed.len() / 2].to_vec())),
        (vec![("content-type", "application/grpc")], Bytes::from(grpc(1, b"x"))),
    ] {
        let length = body.len().to_string();
        let answer = bench.agent().send(Transport::TunnelHttp2, post(&headers, body)).await;
        assert_eq!(answer.text(), length, "{headers:?}");
    }
    // The control: another of the same form.
    let foreign = format!("{{\"key\": \"{}\"}}", token());
    assert_eq!(bench.agent().send(Transport::Plain, post(&[], foreign)).await.refusal(), "secret-detected");
}

#[tokio::test]
async fn requests_without_a_secret_pass_unchanged() {
    let bench = Bench::allowing(BLOCK).await;
    let agent = bench.agent();
    let text = "{\"token_count\": 12, \"id\": \"3f2504e0-4f89-11d3-9a0c-0305e82c3301\"}\n".repeat(2000);
    for body in [Bytes::from(text.clone()), Bytes::from(vec![7; 300_000]), Bytes::new()] {
        let length = body.len().to_string();
        for transport in Transport::ALL {
            assert_eq!(agent.send(transport, post(&[], body.clone())).await.text(), length);
        }
    }
    let packed = gzip(text.as_bytes());
    let length = packed.len().to_string();
    assert_eq!(
        agent.send(Transport::Plain, post(&[("content-encoding", "gzip")], Bytes::from(packed))).await.text(),
        length
    );
}

#[tokio::test]
async fn what_cannot_be_searched_is_refused_unless_the_route_lets_it_pass() {
    let bench = Bench::allowing(BLOCK).await;
    let passing = Bench::allowing(&BLOCK.replace('}', ", outbound_uninspectable: pass}")).await;
    let rpc = ("content-type", "application/grpc");
    for (headers, body) in [
        (vec![("content-encoding", "compress")], Bytes::from_static(b"x")),
        (vec![("content-encoding", "gzip, br")], Bytes::from_static(b"x")),
        (vec![("content-encoding", "gzip")], Bytes::from_static(b"this is no gzip")),
        (vec![rpc, ("grpc-encoding", "snappy")], Bytes::from(grpc(1, b"x"))),
        (vec![rpc], Bytes::from(grpc(1, b"x"))),
        (vec![rpc], Bytes::from_static(b"no frame")),
        (vec![rpc], Bytes::from(grpc(0, b"whole")[..8].to_vec())),
        (vec![], Bytes::from_static(b"PK\x03\x04\x14\x00\x01\x00\x08\x00................................")),
    ] {
        let answer = bench.agent().send(Transport::TunnelHttp2, post(&headers, body.clone())).await;
        let code = answer.headers.get("x-bottlecap-denied").map(|code| code.to_str().unwrap());
        assert_eq!(code, Some("content-uninspectable"), "{headers:?} {answer:?}");
        let length = body.len().to_string();
        let answer = passing.agent().send(Transport::TunnelHttp2, post(&headers, body)).await;
        assert_eq!(answer.text(), length, "{headers:?}");
        // What can be searched is searched all the same.
        let answer = passing.agent().send(Transport::Plain, post(&headers, format!("{} ", token()))).await;
        let code = answer.headers.get("x-bottlecap-denied").map(|code| code.to_str().unwrap());
        assert_eq!(code, Some("secret-detected"), "{headers:?} {answer:?}");
    }
}

#[tokio::test]
async fn an_upload_starts_at_once_and_ends_before_the_secret_does() {
    let bench = Bench::allowing(BLOCK).await;
    let (send, receive) = mpsc::channel::<Bytes>(1);
    let body = stream::unfold(receive, |mut receive| async move {
        receive.recv().await.map(|part| (Ok::<_, hudsucker::Error>(part), receive))
    });
    let agent = bench.agent();
    let answer =
        tokio::spawn(
            async move { agent.send(Transport::TunnelHttp1, post(&[], Body::from_stream(body))).await },
        );
    let start = Bytes::from("harmless text. ".repeat(1000));
    send.send(start.clone()).await.unwrap();
    while bench.upstream.memory.received.get() < start.len() {
        tokio::task::yield_now().await;
    }
    send.send(Bytes::from(token()[..15].to_owned())).await.unwrap();
    send.send(Bytes::from(format!("{}\n", &token()[15..]))).await.unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.refusal(), "secret-detected");
    assert!(bench.upstream.memory.received.get() <= start.len() + "glpat-".len());
}

#[tokio::test]
async fn a_secret_is_masked_where_the_route_says_so() {
    let bench = Bench::allowing(REDACT).await;
    let agent = bench.agent();
    let token = token();
    let asked =
        request(Method::GET, &format!("/v1/x?a={token}&b=2"), &[("x-note", &format!("is {token} it"))]);
    assert_eq!(agent.send(Transport::Plain, asked).await.text(), "hello");
    let seen = bench.upstream.last();
    assert_eq!(seen.target, format!("/v1/x?a={}&b=2", "*".repeat(token.len())));
    assert_eq!(seen.headers["x-note"], format!("is {} it", "*".repeat(token.len())));
    let body = format!("{{\"k\": \"{token}\"}}");
    assert_eq!(agent.send(Transport::Plain, post(&[], body.clone())).await.text(), body.len().to_string());
    // In a name there is no place to mask it in, and what is told does not repeat it.
    let name = token.to_lowercase();
    let named = agent.send(Transport::Plain, request(Method::GET, "/v1/x", &[(&name, "1")])).await;
    assert_eq!(named.refusal(), "secret-detected");
    assert!(!String::from_utf8_lossy(&named.body).contains(&name));
    // Hidden in something, it cannot be masked.
    let hidden = BASE64_STANDARD.encode(format!("say {token} to them"));
    assert_eq!(agent.send(Transport::Plain, post(&[], hidden)).await.refusal(), "secret-detected");
}

#[tokio::test]
async fn a_websocket_ends_at_a_secret_in_a_message_or_across_messages() {
    let bench = Bench::allowing(BLOCK).await;
    let frame = |first: u8, text: &str| {
        let key = [1, 2, 3, 4_u8];
        let content = text.bytes().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key);
        [first, 0x80 | u8::try_from(text.len()).unwrap()]
            .into_iter()
            .chain(key)
            .chain(content)
            .collect::<Vec<u8>>()
    };
    let token = token();
    for (frames, passes) in [
        (vec![frame(0x81, "hello")], true),
        (vec![frame(0x81, &format!("it is {token} "))], false),
        (vec![frame(0x01, &token[..12]), frame(0x80, &format!("{} ", &token[12..]))], false),
        (vec![frame(0x81, &token[..12]), frame(0x81, &format!("{} ", &token[12..]))], false),
        (vec![frame(0x89, &format!("{token} "))], false),
        (vec![frame(0xc1, "compressed?")], false),
    ] {
        let headers = [("connection", "Upgrade"), ("upgrade", "websocket")];
        let asked = request(Method::GET, "/v1/socket", &headers);
        let response = bench.agent().open(Transport::TunnelHttp1, HOST, asked).await;
        let mut socket = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        let total = frames.len();
        for (number, frame) in frames.into_iter().enumerate() {
            // Each frame's first four bytes make the other side answer.
            socket.write_all(&frame).await.unwrap();
            if number + 1 < total && passes {
                socket.flush().await.unwrap();
            }
        }
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer).await;
        if passes {
            assert_eq!(answer, [2, 1, 0x85, 0x81]);
        }
    }
    assert!(
        bench.events().await.iter().any(|event| event["event"]["code"] == "secret-detected"
            || event.to_string().contains("secret-detected"))
    );
}
