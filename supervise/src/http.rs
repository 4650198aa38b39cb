//! The bottle-facing listener: bounded connections, bounded waits, and rmcp behind them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rmcp::ServerHandler;
use rmcp::transport::StreamableHttpServerConfig;
use rmcp::transport::streamable_http_server::StreamableHttpService;
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

const BODY_LIMIT: usize = 64 << 10;
const CONNECTIONS_MAX: usize = 64;
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A client that sends its body by the drop must not keep its place.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Above the 5 s between the progress notifications of a waiting call, so that those are what keeps it alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// After a failed accept (no descriptors left), before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What a stop waits for calls in flight.
const DRAIN: Duration = Duration::from_secs(2);

/// Serves MCP at `/` and `/mcp` until `stop`. `addresses` are those of every listener of this daemon: with their ports they are, besides
/// the names of the service and of loopback, what a `Host` header may say.
pub async fn serve<S: ServerHandler + Clone>(
    listener: TcpListener,
    addresses: &[SocketAddr],
    server: S,
    stop: CancellationToken,
) {
    let router = router(addresses, server, &stop);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener, &places) => accepted,
        };
        let Some((stream, place)) = accepted else { continue };
        let router = router.clone();
        let stop = stop.clone();
        connections.spawn(async move {
            converse(stream, router, stop).await;
            drop(place);
        });
    }
    if tokio::time::timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await.is_err()
    {
        debug!(connections = connections.len(), "calls in flight are cut off");
    }
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, place)),
        Err(error) => {
            warn!(%error, "cannot accept");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn converse(stream: TcpStream, router: Router, stop: CancellationToken) {
    // Without it each small answer waits for the peer's delayed acknowledgement; with it failing, it is slow but right.
    let _ = stream.set_nodelay(true);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        debug!(%error, "connection ended");
    }
}

fn router<S: ServerHandler + Clone>(addresses: &[SocketAddr], server: S, stop: &CancellationToken) -> Router {
    let config = StreamableHttpServerConfig::default()
        .with_legacy_session_mode(false)
        .with_sse_keep_alive(Some(KEEP_ALIVE))
        .with_allowed_hosts(allowed_hosts(addresses))
        .enforce_origin_validation()
        .with_max_request_body_bytes(BODY_LIMIT)
        .with_cancellation_token(stop.clone());
    let service = StreamableHttpService::new(
        move || Ok(server.clone()),
        Arc::new(NeverSessionManager::default()),
        config,
    );
    Router::new()
        .route_service("/", service.clone())
        .route_service("/mcp", service)
        .layer(from_fn(with_whole_body))
}

async fn with_whole_body(request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    match whole(body, BODY_TIMEOUT).await {
        Ok(bytes) => next.run(Request::from_parts(head, Body::from(bytes))).await,
        Err(status) => status.into_response(),
    }
}

async fn whole(body: Body, patience: Duration) -> Result<Bytes, StatusCode> {
    match tokio::time::timeout(patience, axum::body::to_bytes(body, BODY_LIMIT)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => Err(StatusCode::PAYLOAD_TOO_LARGE),
        Err(_) => Err(StatusCode::REQUEST_TIMEOUT),
    }
}

fn allowed_hosts(addresses: &[SocketAddr]) -> Vec<String> {
    let mut hosts = Vec::new();
    for address in addresses {
        let port = address.port();
        hosts.extend(["supervise", "localhost", "127.0.0.1", "[::1]"].map(|name| format!("{name}:{port}")));
        hosts.push(address.to_string());
    }
    hosts
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use hyper::body::Frame;

    use super::*;

    /// A body that never comes.
    struct Silence;

    impl hyper::body::Body for Silence {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn a_body_that_does_not_come_is_given_up() {
        let whole = whole(Body::new(Silence), Duration::from_millis(1)).await;
        assert_eq!(whole, Err(StatusCode::REQUEST_TIMEOUT));
    }
}
