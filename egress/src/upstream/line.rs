//! One connection of HTTP/1.1 to upstream, driven by the task that waits for its answer: what one task does for another costs both.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hudsucker::{Body, Error};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{Connection, SendRequest};
use hyper::rt::Executor as _;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::connector::UpstreamStream;
use super::pool::ended;
use crate::relay::Relay;
use crate::tasks::Tasks;

/// A connection, and the end of it that requests go in at. It is closed when this is dropped.
pub(super) struct Line {
    sender: SendRequest<Outgoing>,
    /// Until it has ended, or goes on in a task of its own.
    driven: Option<Driven>,
    /// Ends that task.
    detached: Option<DropGuard>,
    /// Whether bytes wait for upstream to read.
    is_stuck: Arc<AtomicBool>,
}

struct Driven {
    connection: Box<Connection<UpstreamStream, Outgoing>>,
    relay: Relay,
}

impl Line {
    pub(super) fn new(
        sender: SendRequest<Outgoing>,
        connection: Connection<UpstreamStream, Outgoing>,
        is_stuck: Arc<AtomicBool>,
    ) -> Line {
        let driven = Driven { connection: Box::new(connection), relay: Relay::new() };
        Line { sender, driven: Some(driven), detached: None, is_stuck }
    }

    /// Sends `request` and returns the head of its answer. When that comes before the request is out, the connection goes on in a
    /// task of its own: who is slow to read an answer may still be sending.
    pub(super) async fn send(
        &mut self,
        request: Request<Outgoing>,
        tasks: &Tasks,
    ) -> Result<Response<Incoming>, Box<TrySendError<Request<Outgoing>>>> {
        let out = request.body().out.clone();
        let mut answering = std::pin::pin!(self.sender.try_send_request(request));
        let driven = &mut self.driven;
        let answered = std::future::poll_fn(|context| {
            drive(driven, context, |context| answering.as_mut().poll(context))
        });
        let response = answered.await.map_err(Box::new)?;
        if !out.is_none_or(|out| out.load(Ordering::Acquire)) || self.is_stuck() {
            self.detach(tasks);
        }
        Ok(response)
    }

    /// Has a task of its own drive the connection from now on.
    pub(super) fn detach(&mut self, tasks: &Tasks) {
        let Some(Driven { connection, .. }) = self.driven.take() else { return };
        let end = CancellationToken::new();
        tasks.execute(end.clone().run_until_cancelled_owned(ended(connection)));
        self.detached = Some(end.drop_guard());
    }

    /// Whether something waits to go out.
    fn is_stuck(&self) -> bool {
        self.is_stuck.load(Ordering::Relaxed)
    }

    /// Polls an answer that comes on this connection, and the connection, for as long as that helps.
    pub(super) fn poll<T>(
        &mut self,
        context: &mut Context<'_>,
        poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        drive(&mut self.driven, context, poll)
    }

    /// Nobody waits for it any more; whether it can be left like that, with nothing to send and nobody to drive it.
    pub(super) fn rest(&mut self) -> bool {
        let Some(driven) = &self.driven else { return self.sender.is_ready() };
        driven.relay.rest();
        !self.is_stuck()
    }

    /// Waits until the request is out, and the answer through, on a connection that a task of its own drives; whether the next can go out.
    pub(super) async fn settled(&mut self) -> bool {
        self.sender.ready().await.is_ok()
    }

    /// Whether the next request can go out on it.
    pub(super) fn is_free(&mut self) -> bool {
        self.is_open() && self.sender.is_ready()
    }

    /// Whether upstream has not closed it.
    pub(super) fn is_open(&mut self) -> bool {
        if let Some(driven) = &mut self.driven
            && Pin::new(&mut *driven.connection).poll(&mut Context::from_waker(Waker::noop())).is_ready()
        {
            return false;
        }
        !self.sender.is_closed()
    }
}

fn drive<T>(
    driven: &mut Option<Driven>,
    context: &mut Context<'_>,
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> Poll<T> {
    let Some(Driven { connection, relay }) = driven else { return poll(context) };
    let polled = relay.poll(context, |context| {
        if let Poll::Ready(value) = poll(context) {
            return Poll::Ready(Some(value));
        }
        relay.goes_on();
        Pin::new(&mut **connection).poll(context).map(|_| None)
    });
    match polled {
        Poll::Ready(Some(value)) => Poll::Ready(value),
        Poll::Ready(None) => {
            // What it had to say is said to the one who waits.
            *driven = None;
            poll(context)
        }
        Poll::Pending => Poll::Pending,
    }
}

/// A request's body, of which it shows when it is out.
pub(super) struct Outgoing {
    body: Body,
    /// None from the beginning for a request without a body.
    out: Option<Arc<AtomicBool>>,
}

impl Outgoing {
    pub(super) fn new(body: Body) -> Outgoing {
        let out = (!body.is_end_stream()).then(Arc::default);
        Outgoing { body, out }
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        if let Some(out) = &self.out {
            out.store(true, Ordering::Release);
        }
    }
}

impl HttpBody for Outgoing {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
