//! All decoders of a bottle share one memory: what finds none is not passed on unsearched.

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Method, Request};
use http_body_util::BodyExt;
use hudsucker::Body;
use hyper::body::Incoming;

use super::support::{Bench, HOST, Transport, http2_on, request};

const BLOCK: &str = "dlp: {outbound_detectors: [token_patterns]}";
/// Of two windows as large as they may be, and some more.
const MEMORY: usize = 20 << 20;

/// The beginning of a Zstandard frame with a window of 8 MiB, and the end of it.
const BEGUN: &[u8] = b"\x28\xb5\x2f\xfd\x00\x68\x20\x00\x00text";
const REST: &[u8] = b"\x01\x00\x00";

/// A body that begins so, and goes no further.
fn endless(begun: &'static [u8]) -> Body {
    let first = stream::once(async move { Ok::<_, hudsucker::Error>(Bytes::from_static(begun)) });
    Body::from_stream(first.chain(stream::pending()))
}

fn upload(body: Body) -> Request<Body> {
    let mut request = request(Method::POST, "/v1/upload", &[]);
    *request.body_mut() = body;
    request
}

async fn until(mut holds: impl FnMut() -> bool) {
    while !holds() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_large_windows_at_once_are_refused_and_take_no_more_than_there_is() {
    const STREAMS: usize = 100;
    {
        let bench = Bench::with_memory(MEMORY, |upstream| upstream.routes(BLOCK)).await;
        let agent = bench.agent();
        let authority = format!("{HOST}:{}", bench.upstream.tls.port());
        let stream = agent.tunnel(&authority, HOST, &["h2"]).await.unwrap();
        let sender = http2_on(stream).await;
        let mut streams = tokio::task::JoinSet::new();
        for _ in 0..STREAMS {
            let (mut sender, mut asked) = (sender.clone(), upload(endless(BEGUN)));
            *asked.uri_mut() = format!("https://{authority}/v1/upload").parse().unwrap();
            streams.spawn(async move { sender.send_request(asked).await });
        }
        for _ in 0..STREAMS - 2 {
            let answer = streams.join_next().await.unwrap().unwrap().unwrap();
            assert_eq!(answer.headers()["x-bottlecap-denied"], "content-uninspectable");
        }
        let held = bench.decoding.held();
        assert!((16 << 20..=MEMORY).contains(&held), "{held}");
        // Others are served, also with what takes little.
        let text = "words ".repeat(100);
        let small = zstd::stream::encode_all(text.as_bytes(), 1).unwrap();
        let small = agent.send(Transport::TunnelHttp2, upload(Body::from(small))).await;
        assert_eq!(small.status, 200, "{}", small.text());
        drop((streams, sender));
        until(|| bench.decoding.held() == 0).await;
        let whole = Body::from([BEGUN, REST].concat());
        assert_eq!(agent.send(Transport::TunnelHttp2, upload(whole)).await.status, 200);
        assert_eq!(bench.decoding.held(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_encoded_is_refused_where_there_is_no_memory_to_read_it_as_it_stands() {
    // One window for what the encoding hides, and none for what stands there.
    let bench = Bench::with_memory(MEMORY / 2, |upstream| upstream.routes(BLOCK)).await;
    for (encoding, body) in [("identity", [BEGUN, REST].concat()), ("zstd", [BEGUN, REST].concat())] {
        let mut asked = request(Method::POST, "/v1/upload", &[("content-encoding", encoding)]);
        *asked.body_mut() = Body::from(body);
        let answer = bench.agent().send(Transport::Plain, asked).await;
        let refused = answer.headers.contains_key("x-bottlecap-denied");
        assert_eq!(refused, encoding == "zstd", "{}", answer.text());
    }
}

/// An answer with these headers and this beginning of a body.
async fn echoed(bench: &Bench, begun: &'static [u8], encoding: &'static str) -> hyper::Response<Incoming> {
    let headers = [("x-echo-encoding", encoding)];
    let mut asked = request(Method::POST, "/v1/echo", &headers[..encoding.len().min(1)]);
    *asked.body_mut() = endless(begun);
    bench.agent().open(Transport::Plain, HOST, asked).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_for_which_there_is_no_memory_is_cut_and_its_record_says_so() {
    let rules = "auth_scheme: bearer\ntoken_file: LONG\nown_credential_only: false";
    let bench = Bench::with_memory(MEMORY, |upstream| upstream.routes(rules)).await;
    std::fs::write(bench.secrets.join("LONG"), "kV9/xQ+2mZ=7pL4&wR8\"tY1%uN6").unwrap();
    for encoding in ["", "zstd"] {
        let mut open = Vec::new();
        for number in 0..3 {
            let mut body = echoed(&bench, BEGUN, encoding).await.into_body();
            let first = body.frame().await.unwrap();
            assert_eq!(first.is_err(), number == 2, "{encoding} {number}: {first:?}");
            open.push(body);
        }
        assert!(bench.decoding.held() <= MEMORY);
        drop(open);
        until(|| bench.decoding.held() == 0).await;
    }
    let events = bench.events().await;
    let cut: Vec<_> = events.iter().filter(|event| event["code"] == "content-uninspectable").collect();
    assert_eq!(cut.len(), 2, "{events:?}");
    for event in cut {
        assert_eq!((&event["status"], event["sent"].as_bool()), (&200.into(), Some(true)), "{event}");
        assert!(event["block_id"].is_string(), "{event}");
    }
}
