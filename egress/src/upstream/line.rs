//! One connection of HTTP/1.1 to upstream, driven by the task that waits for its answer: what one task does for another costs both.

use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hudsucker::{Body, Error};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{Connection, SendRequest};
use hyper::rt::Executor as _;
use tokio::sync::{Semaphore, SemaphorePermit};
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

/// So much of a request's body is kept until its answer, to be sent once more where upstream says that it did not look at it.
const KEPT_BYTES: usize = 64 * 1024;
/// Of so many bodies at once.
static KEPT: Semaphore = Semaphore::const_new(256);

/// A request's body, of which it shows when it is out.
pub(super) struct Outgoing {
    body: Body,
    /// None from the beginning for a request without a body.
    out: Option<Arc<AtomicBool>>,
    /// What is sent once more, before what was not sent yet.
    again: Bytes,
    /// What was sent, where it is kept.
    kept: Option<Kept>,
}

/// A copy, because what was sent may hold more than its bytes.
struct Kept {
    bytes: Vec<u8>,
    _place: SemaphorePermit<'static>,
}

impl Kept {
    /// Keeps one more piece, or none at all where that is too much.
    fn and(mut self, piece: &[u8]) -> Option<Kept> {
        if self.bytes.len() + piece.len() > KEPT_BYTES {
            return None;
        }
        self.bytes.extend_from_slice(piece);
        Some(self)
    }
}

impl Outgoing {
    pub(super) fn new(body: Body) -> Outgoing {
        let out = (!body.is_end_stream()).then(Arc::default);
        Outgoing { body, out, again: Bytes::new(), kept: None }
    }

    /// Keeps what is sent from now on, while it is short; whether that can be.
    pub(super) fn keep(&mut self) -> bool {
        let has_body = self.out.is_some();
        if has_body {
            self.kept = KEPT.try_acquire().ok().map(|place| Kept { bytes: Vec::new(), _place: place });
        }
        !has_body || self.kept.is_some()
    }

    /// From its beginning, where that is kept.
    pub(super) fn begun_again(mut self) -> Option<Outgoing> {
        if self.out.is_some() {
            self.again = self.kept.take()?.bytes.into();
        }
        Some(self)
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
        let this = &mut *self;
        if !this.again.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(mem::take(&mut this.again)))));
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        if frame.is_none() || this.body.is_end_stream() {
            // With it goes what it holds, however long the answer takes.
            this.body = Body::empty();
        }
        if let Some(frame) = &frame
            && let Some(kept) = this.kept.take()
        {
            let data = frame.as_ref().ok().and_then(Frame::data_ref);
            this.kept = data.and_then(|data| kept.and(data));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.again.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let again = self.again.len() as u64;
        let body = self.body.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(body.lower() + again);
        if let Some(upper) = body.upper() {
            hint.set_upper(upper + again);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures_util::stream;
    use http_body_util::combinators::BoxBody;
    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    fn body(pieces: Vec<Bytes>) -> Outgoing {
        let frames = pieces.into_iter().map(|piece| Ok::<_, Error>(Frame::data(piece)));
        let mut body = Outgoing::new(Body::from(BoxBody::new(StreamBody::new(stream::iter(frames)))));
        assert!(body.keep());
        body
    }

    #[tokio::test]
    async fn a_body_that_was_begun_is_sent_from_its_beginning_where_that_is_short() {
        for read in 0..=3 {
            let mut begun = body(["one ", "two ", "three"].map(Bytes::from).to_vec());
            for _ in 0..read {
                begun.frame().await.unwrap().unwrap();
            }
            let again = begun.begun_again().unwrap();
            assert_eq!(again.collect().await.unwrap().to_bytes(), "one two three", "{read}");
        }
        let half = Bytes::from(vec![0; KEPT_BYTES / 2]);
        let mut begun = body(vec![half.clone(), half, Bytes::from_static(b"x")]);
        for _ in 0..3 {
            begun.frame().await.unwrap().unwrap();
        }
        assert!(begun.begun_again().is_none());
        assert!(Outgoing::new(Body::empty()).begun_again().is_some());
    }
}
