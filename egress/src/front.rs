//! One connection of the bottle: HTTP/1.1 or HTTP/2, and what follows an upgrade, which stays owned by it.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::CONTENT_LENGTH;
use http::{Method, Request, Response};
use http_body::Body as _;
use hudsucker::Body;
use hyper::body::Incoming;
use hyper::rt::Executor as _;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::alarm::{Alarm, Timer};
use crate::body::{Upload, Whole};
use crate::exchange::{self, Seat, Via, unread};
use crate::http2::server::{self, Reply, Taken};
use crate::interim::{Interim, Interposed};
use crate::limits;
use crate::proxy::Proxy;
use crate::refusal::{Code, Refusal};
use crate::relay::Relay;
use crate::splice::{Prefixed, Stream};
use crate::upgraded::AgentSide;
use crate::{tunnel, websocket};

/// How long a head may take, and how long a connection may be idle between requests.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// What a head may take.
pub(crate) const HEAD_LIMIT: usize = 64 * 1024;
/// What is read at once of a connection whose protocol is not known yet.
pub(crate) const FIRST_READ: usize = 1024;
/// What an HTTP/2 connection begins with.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What goes on after something, and says what goes on after itself: nothing of it is kept, or polled through, for as long as that lasts.
pub(crate) struct Next(Pin<Box<dyn Future<Output = Option<Next>> + Send>>);

impl Next {
    pub(crate) fn new(next: impl Future<Output = Option<Next>> + Send + 'static) -> Next {
        Next(Box::pin(next))
    }

    /// After it there is nothing.
    pub(crate) fn last(next: impl Future<Output = ()> + Send + 'static) -> Next {
        Next::new(async {
            next.await;
            None
        })
    }

    /// Goes on to the end.
    pub(crate) async fn run(self) {
        let mut next = Some(self);
        while let Some(Next(running)) = next {
            next = running.await;
        }
    }

    /// The same, with `place` taken until the end.
    pub(crate) fn holding(self, place: OwnedSemaphorePermit) -> Next {
        Next::last(async move {
            self.run().await;
            drop(place);
        })
    }
}

/// What becomes of a request.
type Answering = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// One connection of the bottle, at whichever depth, or one stream of it.
pub(crate) struct Connection {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) stop: CancellationToken,
    /// Those of all connections, of which it has one, or stands in one that has.
    places: Arc<Semaphore>,
    /// What it does once its HTTP is over: a tunnel, or an upgraded protocol.
    after: Mutex<Option<Next>>,
}

impl Connection {
    pub(crate) fn new(proxy: Arc<Proxy>, stop: CancellationToken, places: Arc<Semaphore>) -> Connection {
        Connection { proxy, stop, places, after: Mutex::default() }
    }

    /// Another, inside of this one.
    pub(crate) fn inner(&self) -> Connection {
        Connection::new(Arc::clone(&self.proxy), self.stop.clone(), Arc::clone(&self.places))
    }

    /// A place of its own for what is one of many inside of this one.
    pub(crate) fn another_place(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            let hint = "this bottle has as many connections and tunnels open as it may: close some";
            Refusal::new(Code::ConnectionLimit, hint).retry_after(limits::RETRY)
        })
    }

    /// Has `next` go on once the HTTP is over.
    pub(crate) fn go_on_with(&self, next: Next) {
        *self.after.lock().unwrap_or_else(PoisonError::into_inner) = Some(next);
    }

    fn take_next(&self) -> Option<Next> {
        self.after.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Serves the proxy protocol: HTTP/1.1, or HTTP/2 by prior knowledge. `already` was read of `stream` before.
    pub(crate) async fn serve_proxy(self, already: Vec<u8>, mut stream: TcpStream) -> Option<Next> {
        let opening = async {
            let mut bytes = first_bytes(already, &mut stream).await?;
            while !bytes.is_empty() && bytes.len() < HTTP2_PREFACE.len() && HTTP2_PREFACE.starts_with(&bytes)
            {
                if stream.read_buf(&mut bytes).await? == 0 {
                    break;
                }
            }
            io::Result::Ok(bytes)
        };
        let opening = tokio::select! {
            opening = timeout(HEAD_TIMEOUT, opening) => opening,
            () = self.stop.cancelled() => return None,
        };
        let bytes = match opening {
            Ok(Ok(bytes)) if !bytes.is_empty() => bytes,
            Ok(Ok(_) | Err(_)) | Err(_) => return None,
        };
        let http2 = bytes.starts_with(HTTP2_PREFACE);
        let stream = Prefixed::new(bytes, stream);
        Some(if http2 {
            Next::last(async move { self.serve_http2(stream, Arc::new(Via::Plain)).await })
        } else {
            Next::new(self.serve_http1(stream, Arc::new(Via::Plain)))
        })
    }

    /// Serves HTTP/1.1 on `stream`, and says what it was upgraded to. No async function, because what is passed to one is kept for as
    /// long as it runs, beside what is made of it.
    pub(crate) fn serve_http1(
        self,
        stream: impl Stream,
        via: Arc<Via>,
    ) -> impl Future<Output = Option<Next>> + Send {
        let (connection, alarm) = (Arc::new(self), Arc::new(Alarm::new()));
        let interim = Interim::new(Arc::clone(&alarm));
        let stream = Interposed::new(stream, Arc::clone(&interim));
        let service = {
            let (connection, alarm, via) = (Arc::clone(&connection), Arc::clone(&alarm), Arc::clone(&via));
            service_fn(move |mut request: Request<Incoming>| {
                let agent_side = AgentSide::Http1(hyper::upgrade::on(&mut request));
                let request = request.map(|body| Some(Whole::from(body)));
                let saying = (Arc::clone(&alarm), Arc::clone(&interim));
                let answering = Arc::clone(&connection).answer(saying, Arc::clone(&via), request, agent_side);
                async { Ok::<_, Infallible>(answering.await) }
            })
        };
        let http = http1::Builder::new()
            .timer(Timer(Arc::clone(&alarm)))
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_LIMIT)
            .half_close(false)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut http = Box::pin(http);
        let relay = Relay::new();
        async move {
            let served = poll_fn(|context| {
                if alarm.heed(context.waker()) && connection.stop.is_cancelled() {
                    http.as_mut().graceful_shutdown();
                }
                relay.poll(context, |context| http.as_mut().poll(context))
            });
            if let Err(error) = served.await {
                debug!(%error, "a connection ended early");
                // It is closed, however long the record takes.
                drop(http);
                Box::pin(unread::record(&connection, &via, &error)).await;
            }
            connection.take_next()
        }
    }

    /// Serves HTTP/2 on `stream`.
    pub(crate) async fn serve_http2(&self, stream: impl Stream, via: Arc<Via>) {
        let is_tunnel = matches!(*via, Via::Tunnel(..));
        let each = |request, respond| {
            if let Some(taken) = Reply::to(request, respond) {
                self.proxy.open.tasks.execute(self.inner().answer_stream(Arc::clone(&via), taken));
            }
        };
        if let Err(error) = server::serve(stream, is_tunnel, &self.stop, each).await {
            debug!(%error, "a connection ended early");
        }
    }

    /// Boxed, because hyper keeps a request's room for as long as the connection is open.
    fn answer(
        self: Arc<Connection>,
        (alarm, interim): (Arc<Alarm>, Arc<Interim>),
        via: Arc<Via>,
        request: Request<Option<Whole>>,
        agent_side: AgentSide,
    ) -> Answering {
        let request = Upload::of(request, &interim, &self.proxy.open.tasks);
        let opens_tunnel = matches!(*via, Via::Plain) && request.method() == Method::CONNECT;
        if opens_tunnel {
            Box::pin(async move { tunnel::open(&self, request, agent_side).await })
        } else {
            Box::pin(async move {
                let seat = Seat { connection: &self, alarm: &alarm, interim: &interim };
                exchange::serve(seat, &via, request, agent_side).await
            })
        }
    }

    /// As [`Connection::answer`], for one of many streams, which has a task of its own: what it is upgraded to runs beside the others.
    async fn answer_stream(self, via: Arc<Via>, Taken { request, mut reply, opened }: Taken) {
        let (stream, alarm) = (Arc::new(self), Arc::new(Alarm::new()));
        let interim = Interim::new(Arc::clone(&alarm));
        let (request, shape) = websocket::unfold(request);
        let is_head = request.method() == Method::HEAD;
        let saying = (Arc::clone(&alarm), Arc::clone(&interim));
        let mut answering = Arc::clone(&stream).answer(saying, via, request, AgentSide::Http2(opened));
        let answered = poll_fn(|context| {
            alarm.heed(context.waker());
            answering.as_mut().poll(context)
        });
        let Some(mut answer) = reply.while_answering(&interim, pin!(answered)).await else { return };
        if is_head {
            leave_out_body(&mut answer);
        }
        if let Some(next) = stream.take_next() {
            stream.proxy.open.tasks.execute(next.run());
        }
        reply.send(shape.fold(answer)).await;
    }
}

/// For an answer to HEAD: hyper does this in HTTP/1.1 alone.
fn leave_out_body(answer: &mut Response<Body>) {
    if let Some(length) = answer.body().size_hint().exact().filter(|length| *length > 0) {
        answer.headers_mut().entry(CONTENT_LENGTH).or_insert_with(|| length.into());
    }
    *answer.body_mut() = Body::empty();
}

/// What a connection begins with, of which `already` was read; nothing when it ends before.
pub(crate) async fn first_bytes(already: Vec<u8>, stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = already;
    if bytes.is_empty() {
        stream.read_buf(&mut bytes).await?;
    }
    Ok(bytes)
}
