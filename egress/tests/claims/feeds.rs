//! What went out after a stream began, or by a route that is no more, does not come back either.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Response};
use http_body_util::BodyExt;
use hudsucker::Body;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::support::{Answer, Bench, HOST, Transport, Upstream, farewell, get, request};

const FIRST: &str = "q8Zr2LkT0vWcN5mYx1Jd";
const SECOND: &str = "Xr5TqLw9vBn2KcPd7sHf";
const MASKED: &str = "Bearer ********************";
const INJECTED: &str = "auth_scheme: bearer\ntoken_file: LONG";
const GIVING: &str = "path_allowlist: [/v1/x]\nauth_scheme: bearer\ntoken_file: LONG";
const OPEN: &str = "path_allowlist: [/v1/feed, /v1/feed-socket, /v1/poll]";
const PATIENCE: Duration = Duration::from_secs(20);

/// Routes one after the other.
fn routes(upstream: &Upstream, all: &[&str]) -> String {
    let routes = all.iter().map(|rules| upstream.routes(rules).trim_start_matches("routes:\n").to_owned());
    format!("routes:\n{}", routes.collect::<String>())
}

async fn bench(all: &[&str], secret: Option<&str>) -> Bench {
    let bench = Bench::with(|upstream| routes(upstream, all)).await;
    if let Some(secret) = secret {
        std::fs::write(bench.secrets.join("LONG"), secret).unwrap();
    }
    bench
}

impl Bench {
    async fn feed(&self, transport: Transport) -> Response<Incoming> {
        let mut answer = self.agent().open(transport, HOST, get("/v1/feed")).await;
        assert_eq!(answer.body_mut().frame().await.unwrap().unwrap().into_data().unwrap(), "data: one\n\n");
        answer
    }

    async fn socket(&self, path: &str) -> impl AsyncRead + Unpin {
        let headers = [("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-key", "x")];
        let asked = request(Method::GET, path, &headers);
        let answer = self.agent().open(Transport::TunnelHttp1, HOST, asked).await;
        TokioIo::new(hyper::upgrade::on(answer).await.unwrap())
    }

    /// Has the secret go out, to be told of by the feeds.
    async fn gives(&self, transport: Transport) {
        assert_eq!(self.agent().send(transport, get("/v1/x")).await.status, 200);
    }

    /// What a feed tells next; nothing when it was cut.
    async fn next(&self, feed: &mut Response<Incoming>) -> Option<String> {
        self.upstream.memory.go_on.notify_one();
        let frame = timeout(PATIENCE, feed.body_mut().frame()).await.expect("it tells or ends")?.ok()?;
        Some(String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap())
    }
}

async fn message(socket: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = [0; 2];
    timeout(PATIENCE, socket.read_exact(&mut head)).await.expect("it tells").unwrap();
    let mut text = vec![0; usize::from(head[1])];
    socket.read_exact(&mut text).await.unwrap();
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn a_stream_is_freed_of_a_secret_that_was_replaced_after_it_began() {
    for transport in Transport::ALL {
        let bench = bench(&[INJECTED], Some(FIRST)).await;
        let mut feed = bench.feed(transport).await;
        assert_eq!(bench.next(&mut feed).await.unwrap(), MASKED, "{transport:?}");
        std::fs::write(bench.secrets.join("LONG"), SECOND).unwrap();
        // It is read again at once.
        bench.proxy.reload(routes(&bench.upstream, &[INJECTED])).await.unwrap();
        bench.gives(transport).await;
        assert_eq!(bench.next(&mut feed).await.unwrap(), MASKED, "{transport:?}");
    }
}

#[tokio::test]
async fn a_websocket_is_freed_of_a_secret_that_was_replaced_after_it_opened() {
    let bench = bench(&[INJECTED], Some(FIRST)).await;
    let mut socket = bench.socket("/v1/feed-socket").await;
    bench.upstream.memory.go_on.notify_one();
    assert_eq!(message(&mut socket).await, MASKED);
    std::fs::write(bench.secrets.join("LONG"), SECOND).unwrap();
    bench.proxy.reload(routes(&bench.upstream, &[INJECTED])).await.unwrap();
    bench.gives(Transport::TunnelHttp1).await;
    bench.upstream.memory.go_on.notify_one();
    assert_eq!(message(&mut socket).await, MASKED);
}

#[tokio::test]
async fn a_stream_of_a_host_that_is_given_its_first_secret_goes_on_until_then() {
    for after in [[OPEN, GIVING], [GIVING, OPEN]] {
        for transport in Transport::ALL {
            let bench = bench(&[OPEN], Some(FIRST)).await;
            let mut feed = bench.feed(transport).await;
            bench.proxy.reload(routes(&bench.upstream, &after)).await.unwrap();
            assert_eq!(bench.next(&mut feed).await.unwrap(), "none", "{transport:?}");
            bench.gives(transport).await;
            assert_eq!(bench.next(&mut feed).await, None, "{transport:?}");
            let events = bench.events().await;
            let told = events.iter().find(|event| event["path"] == "/v1/feed").unwrap();
            assert_eq!(
                (&told["code"], &told["sent"]),
                (&"request-not-allowed".into(), &true.into()),
                "{told}"
            );
            // The next one is scrubbed.
            let mut feed = bench.feed(transport).await;
            assert_eq!(bench.next(&mut feed).await.unwrap(), MASKED);
        }
    }
}

#[tokio::test]
async fn a_stream_goes_on_until_a_secret_that_was_missing_is_there() {
    for transport in Transport::ALL {
        let bench = bench(&[OPEN, GIVING], None).await;
        let mut feed = bench.feed(transport).await;
        assert_eq!(bench.agent().send(transport, get("/v1/x")).await.refusal(), "credential-unavailable");
        assert_eq!(bench.next(&mut feed).await.unwrap(), "none", "{transport:?}");
        std::fs::write(bench.secrets.join("LONG"), FIRST).unwrap();
        bench.gives(transport).await;
        assert_eq!(bench.next(&mut feed).await, None, "{transport:?}");
    }
}

#[tokio::test]
async fn a_websocket_of_a_host_that_is_given_its_first_secret_ends_and_says_so() {
    // As it comes, and where its frames are read for something else.
    for open in [OPEN, "path_allowlist: [/v1/feed-socket]\nown_credential_only: true"] {
        let bench = bench(&[open], Some(FIRST)).await;
        let mut socket = bench.socket("/v1/feed-socket").await;
        bench.proxy.reload(routes(&bench.upstream, &[open, GIVING])).await.unwrap();
        bench.upstream.memory.go_on.notify_one();
        assert_eq!(message(&mut socket).await, "none");
        bench.gives(Transport::TunnelHttp1).await;
        bench.upstream.memory.go_on.notify_one();
        let mut frames = Vec::new();
        timeout(PATIENCE, socket.read_to_end(&mut frames)).await.expect("it ends").unwrap();
        let (code, reason) = farewell(&frames).unwrap();
        assert!(code == 1008 && reason.contains("since this began there is a secret"), "{code} {reason}");
    }
}

#[tokio::test]
async fn an_answer_that_was_waited_for_while_its_host_was_given_a_secret_is_not_passed_on() {
    for transport in Transport::ALL {
        let bench = bench(&[OPEN], Some(FIRST)).await;
        let agent = bench.agent();
        let meanwhile = async {
            bench.upstream.memory.held.notified().await;
            bench.proxy.reload(routes(&bench.upstream, &[OPEN, GIVING])).await.unwrap();
            bench.gives(transport).await;
            bench.upstream.memory.go_on.notify_one();
        };
        let (answer, ()) = tokio::join!(agent.send(transport, get("/v1/poll")), meanwhile);
        assert_eq!(answer.refusal(), "request-not-allowed", "{transport:?}");
    }
}

#[tokio::test]
async fn what_leaves_is_searched_for_what_became_known_after_it_began() {
    const SEARCHED: &str = "path_allowlist: [/v1/upload]\ndlp: {outbound_detectors: [known_secrets]}";
    // As a type of frames has it, the head of one stands where the secret begins.
    let kinds = [("text/plain", "it begins"), ("application/grpc", "\0\0\0\0\u{1}.\0")];
    for (secret, (kind, begins)) in
        [Some(FIRST), None].into_iter().flat_map(|secret| kinds.map(|kind| (secret, kind)))
    {
        for transport in Transport::ALL {
            let bench = bench(&[SEARCHED, GIVING], secret).await;
            if secret.is_some() {
                bench.gives(transport).await;
            }
            let (feed, chunks) = mpsc::unbounded_channel();
            feed.send(begins).unwrap();
            let body = Body::from_stream(Box::pin(stream::unfold(chunks, |mut chunks| async {
                let chunk: &'static str = chunks.recv().await?;
                Some((Ok::<_, hudsucker::Error>(Bytes::from(chunk)), chunks))
            })));
            let upload = http::Request::post("/v1/upload").header("content-type", kind).body(body).unwrap();
            let meanwhile = async {
                while bench.upstream.memory.received.get() == 0 {
                    tokio::task::yield_now().await;
                }
                std::fs::write(bench.secrets.join("LONG"), SECOND).unwrap();
                bench.proxy.reload(routes(&bench.upstream, &[SEARCHED, GIVING])).await.unwrap();
                bench.gives(transport).await;
                feed.send(SECOND).unwrap();
                drop(feed);
            };
            let agent = bench.agent();
            let (answer, ()) = tokio::join!(agent.send(transport, upload), meanwhile);
            let code = answer.headers.get("x-bottlecap-denied").map(|code| code.to_str().unwrap());
            assert_eq!(code, Some("secret-detected"), "{transport:?}");
        }
    }
}

#[tokio::test]
async fn what_a_route_gave_to_a_host_does_not_come_back_when_the_route_is_no_more() {
    for transport in Transport::ALL {
        let bench = bench(&[GIVING, OPEN], Some(FIRST)).await;
        bench.gives(transport).await;
        let mut feed = bench.feed(transport).await;
        bench.proxy.reload(routes(&bench.upstream, &[OPEN])).await.unwrap();
        assert_eq!(bench.next(&mut feed).await.unwrap(), MASKED, "{transport:?}");

        let bench = self::bench(&[GIVING, OPEN], Some(FIRST)).await;
        bench.gives(transport).await;
        bench.proxy.reload(routes(&bench.upstream, &[OPEN])).await.unwrap();
        bench.upstream.memory.go_on.notify_one();
        let answer: Answer = bench.agent().send(transport, get("/v1/poll")).await;
        assert_eq!((answer.text(), answer.headers["x-got"].to_str().unwrap()), (MASKED, MASKED));
    }
}
