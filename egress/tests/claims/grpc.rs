//! gRPC by a client that others wrote, through a tunnel with HTTP/2.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

use crate::support::{Bench, HOST, Plain};

const RULES: &str = "path_allowlist: [/v1.Echo/]";
const PATIENCE: Duration = Duration::from_secs(20);

/// A client of the upstream, as a program in the bottle has it.
async fn client(bench: &Bench) -> Grpc<Channel> {
    let (agent, target) = (bench.agent(), bench.target());
    let endpoint = Endpoint::from_shared(format!("https://{target}")).unwrap();
    let connector = tower::service_fn(move |_: Uri| {
        let (agent, target) = (agent.clone(), target.clone());
        async move { agent.tunnel(&target, HOST, &["h2"]).await.map(TokioIo::new) }
    });
    let mut client = Grpc::new(endpoint.connect_with_connector(connector).await.unwrap());
    client.ready().await.unwrap();
    client
}

fn path(path: &'static str) -> http::uri::PathAndQuery {
    http::uri::PathAndQuery::from_static(path)
}

async fn unary(
    client: &mut Grpc<Channel>,
    to: &'static str,
    text: &'static str,
) -> Result<Bytes, tonic::Status> {
    client.ready().await.unwrap();
    let reply = client.unary(Request::new(Bytes::from_static(text.as_bytes())), path(to), Plain).await?;
    assert_eq!(reply.metadata().get("x-served-by").unwrap(), "echo");
    Ok(reply.into_inner())
}

#[tokio::test]
async fn calls_of_every_kind_pass_with_their_status_in_trailers() {
    let bench = Bench::allowing(RULES).await;
    let mut client = client(&bench).await;
    assert_eq!(unary(&mut client, "/v1.Echo/Unary", "hello").await.unwrap(), "HELLO");

    client.ready().await.unwrap();
    let asked = Request::new(Bytes::from_static(b"again"));
    let replies = client.server_streaming(asked, path("/v1.Echo/ThreeTimes"), Plain).await.unwrap();
    let replies: Vec<Bytes> = replies.into_inner().map(Result::unwrap).collect().await;
    assert_eq!(replies, ["again"; 3]);

    client.ready().await.unwrap();
    let asked = Request::new(stream::iter(["one, ", "two"].map(|part| Bytes::from_static(part.as_bytes()))));
    let reply = client.client_streaming(asked, path("/v1.Echo/Joined"), Plain).await.unwrap();
    assert_eq!(reply.into_inner(), "one, two");

    client.ready().await.unwrap();
    let (feed, mut fed) = mpsc::unbounded_channel();
    let asked = Request::new(stream::poll_fn(move |context| fed.poll_recv(context)));
    feed.send(Bytes::from_static(b"0")).unwrap();
    let replies = client.streaming(asked, path("/v1.Echo/Converse"), Plain).await.unwrap();
    let mut replies = replies.into_inner();
    for number in 0..20_u8 {
        // The next message is sent once the last came back: nothing may wait for more.
        let reply = timeout(PATIENCE, replies.message()).await.unwrap().unwrap().unwrap();
        assert_eq!(reply, number.to_string());
        feed.send(Bytes::from((number + 1).to_string())).unwrap();
    }
    feed.send(Bytes::from_static(b"stop")).unwrap();
    assert_eq!(replies.message().await.unwrap().unwrap(), "20");
    let status = replies.message().await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Aborted, "stopped"));
}

#[tokio::test]
async fn a_message_that_is_searched_does_not_wait_for_the_next() {
    let bench = Bench::allowing(&format!("{RULES}\ndlp: {{outbound_detectors: [token_patterns]}}")).await;
    let mut client = client(&bench).await;
    let (feed, mut fed) = mpsc::unbounded_channel();
    let asked = Request::new(stream::poll_fn(move |context| fed.poll_recv(context)));
    // Each could be the beginning of a secret.
    let ends = [
        "my-subscription".to_owned(),
        "deadbeef01".to_owned(),
        "q8Zr2LkT".repeat(8),
        "ghp_q8Zr2LkT".to_owned(),
    ];
    feed.send(Bytes::from(ends[0].clone())).unwrap();
    let replies = timeout(PATIENCE, client.streaming(asked, path("/v1.Echo/Converse"), Plain)).await;
    let mut replies = replies.unwrap().unwrap().into_inner();
    for number in 0..ends.len() {
        let reply = timeout(PATIENCE, replies.message()).await.unwrap().unwrap().unwrap();
        assert_eq!(reply, ends[number]);
        feed.send(Bytes::from(ends.get(number + 1).map_or("stop", String::as_str).to_owned())).unwrap();
    }
}

#[tokio::test]
async fn a_status_of_upstream_and_a_refusal_both_arrive_as_statuses() {
    let bench = Bench::allowing(RULES).await;
    let mut client = client(&bench).await;
    let status = unary(&mut client, "/v1.Echo/Unary", "nothing").await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "no such thing"));
    assert_eq!(status.details(), b"looked twice");

    let seen = bench.upstream.requests().len();
    let status = unary(&mut client, "/v2.Admin/Drop", "all").await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("path-not-allowed"), "{status}");
    assert_eq!(status.metadata().get("x-bottlecap-denied").unwrap(), "path-not-allowed");
    assert_eq!(bench.upstream.requests().len(), seen);
    // The connection goes on.
    assert_eq!(unary(&mut client, "/v1.Echo/Unary", "still").await.unwrap(), "STILL");
}

#[tokio::test]
async fn a_call_that_the_client_gives_up_ends_upstream() {
    let bench = Bench::allowing("path_allowlist: [/v1/]").await;
    let mut client = client(&bench).await;
    let asked = client.unary(Request::new(Bytes::new()), path("/v1/never"), Plain);
    // Dropped when the other branch is taken.
    tokio::select! {
        _ = asked => panic!("nothing answers"),
        () = bench.upstream.memory.held.notified() => {}
    }
    timeout(PATIENCE, bench.upstream.memory.given_up.notified()).await.unwrap();
}

#[tokio::test]
async fn the_time_that_a_call_has_is_told_upstream_and_running_out_of_it_is_a_status() {
    let bench = Bench::allowing("path_allowlist: [/v1/, /v1.Echo/]").await;
    let mut client = client(&bench).await;
    let mut asked = Request::new(Bytes::new());
    asked.set_timeout(PATIENCE);
    let status = client.unary(asked, path("/v1.Echo/Late"), Plain).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::DeadlineExceeded, "20000000u"));

    // A client that keeps its own time gives the call up, and so does upstream.
    client.ready().await.unwrap();
    let mut asked = Request::new(Bytes::new());
    asked.set_timeout(Duration::from_millis(50));
    let status = client.unary(asked, path("/v1/never"), Plain).await.unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status}");
    timeout(PATIENCE, bench.upstream.memory.given_up.notified()).await.unwrap();
}
