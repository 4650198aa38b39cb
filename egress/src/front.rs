//! The bottle-facing side: accepts, bounds, and serves HTTP/1.1; what follows an upgrade stays in the connection's own task.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Method, Request, Response};
use hudsucker::Body;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::exchange::{self, Via};
use crate::proxy::Proxy;
use crate::tunnel;

/// How many connections the bottle may have open.
const CONNECTIONS: usize = 1024;
/// How long a head may take, and how long a connection may be idle between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// What a head may take.
const HEAD_LIMIT: usize = 64 * 1024;
/// The pause after the system would not give us a connection, so that we do not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What is in flight may take this long once we are asked to stop.
const GRACE: Duration = Duration::from_secs(5);
const HTTP2_STREAMS: u32 = 128;
const HTTP2_STREAM_WINDOW: u32 = 256 * 1024;
const HTTP2_CONNECTION_WINDOW: u32 = 1024 * 1024;
/// What is kept of an answer that the bottle does not read, for each stream.
const HTTP2_SEND_BUFFER: usize = 64 * 1024;
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(30);
const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(20);
const HTTP2_RESETS: usize = 32;

/// Serves on `listeners` until `stop`, then lets what is in flight finish within a grace of five seconds.
pub async fn serve(proxy: Arc<Proxy>, listeners: Vec<TcpListener>, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut accepting = JoinSet::new();
    for listener in listeners {
        accepting.spawn(accept(Arc::clone(&proxy), listener, Arc::clone(&places), stop.clone()));
    }
    while accepting.join_next().await.is_some() {}
    // No one of the bottle is left to wait for: what still runs are idle connections to upstream.
    proxy.open.tasks.end().await;
}

async fn accept(proxy: Arc<Proxy>, listener: TcpListener, places: Arc<Semaphore>, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = stop.cancelled() => break,
            next = next => next,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                let connection =
                    Connection { proxy: Arc::clone(&proxy), stop: stop.clone(), after: After::default() };
                connections.spawn(async move {
                    connection.serve_plain(stream).await;
                    drop(place);
                });
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let _ = timeout(GRACE, async { while connections.join_next().await.is_some() {} }).await;
    connections.shutdown().await;
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

type Next = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a connection does once its HTTP is over: a tunnel, or an upgraded protocol.
#[derive(Clone, Default)]
pub(crate) struct After(Arc<Mutex<Option<Next>>>);

impl After {
    pub(crate) fn set(&self, next: impl Future<Output = ()> + Send + 'static) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::pin(next));
    }

    async fn run(&self) {
        let next = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(next) = next {
            next.await;
        }
    }
}

/// One connection of the bottle, at whichever depth.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) stop: CancellationToken,
    pub(crate) after: After,
}

impl Connection {
    async fn serve_plain(self, stream: TcpStream) {
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "cannot set TCP_NODELAY");
        }
        self.serve_http1(stream, Arc::new(Via::Plain)).await;
    }

    /// Serves HTTP/1.1 on `stream`, and then what it was upgraded to.
    pub(crate) async fn serve_http1<S>(&self, stream: S, via: Arc<Via>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(|request| self.clone().answer(Arc::clone(&via), request));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_LIMIT)
            .half_close(false)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let served = tokio::select! {
            served = connection.as_mut() => served,
            () = self.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = served {
            debug!(%error, "a connection ended early");
        }
        self.after.run().await;
    }

    /// Serves HTTP/2 on `stream`.
    pub(crate) async fn serve_http2<S>(&self, stream: S, via: Arc<Via>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(|request| self.clone().answer(Arc::clone(&via), request));
        let connection = http2::Builder::new(self.proxy.open.tasks.clone())
            .timer(TokioTimer::new())
            .max_concurrent_streams(HTTP2_STREAMS)
            .initial_stream_window_size(HTTP2_STREAM_WINDOW)
            .initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
            .max_send_buf_size(HTTP2_SEND_BUFFER)
            .max_header_list_size(u32::try_from(HEAD_LIMIT).unwrap_or(u32::MAX))
            .max_pending_accept_reset_streams(HTTP2_RESETS)
            .keep_alive_interval(HTTP2_PING_INTERVAL)
            .keep_alive_timeout(HTTP2_PING_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let served = tokio::select! {
            served = connection.as_mut() => served,
            () = self.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = served {
            debug!(%error, "a connection ended early");
        }
    }

    async fn answer(self, via: Arc<Via>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let opens_tunnel = matches!(*via, Via::Plain) && request.method() == Method::CONNECT;
        Ok(if opens_tunnel {
            tunnel::open(self, request).await
        } else {
            exchange::serve(self, &via, request).await
        })
    }
}
