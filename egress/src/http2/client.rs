//! HTTP/2 with upstream.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::Reason;
use h2::client::SendRequest;
use http::header::CONTENT_LENGTH;
use http::{Method, Request, Response};
use http_body::Body as HttpBody;
use hudsucker::Error;
use hyper::rt::Executor as _;
use tracing::debug;

use super::pulse::{Heard, Pulse};
use super::received::Received;
use super::sent::Sending;
use super::{FRAME_BYTES, leave_out_connection};
use crate::body::Whole;
use crate::interim::Tap;
use crate::splice::Stream;
use crate::tasks::Tasks;

/// What a head from upstream may take.
pub(crate) const HEAD_LIMIT: u32 = 256 * 1024;
/// What is kept of a request that upstream does not read.
const SEND_BUFFER: usize = 1024 * 1024;

/// Where requests go out on a connection, which ends with the last of these.
#[derive(Clone)]
pub(crate) struct Sender {
    requests: SendRequest<Bytes>,
    tasks: Tasks,
}

/// Why a request has no answer.
pub(crate) struct Failed<B> {
    pub(crate) error: h2::Error,
    pub(crate) left: Left<B>,
}

/// What is left of a request that has no answer.
pub(crate) enum Left<B> {
    /// All of it: nothing was sent.
    Whole(Request<B>),
    /// Its body, of which some may have been sent.
    Body(B),
}

/// Opens a connection on `stream`, with windows of so many bytes for each stream and for all. While `uses` is held by others too, upstream
/// is asked whether it is still there.
pub(crate) async fn open(
    stream: impl Stream,
    (stream_window, window): (u32, u32),
    uses: &Arc<()>,
    tasks: &Tasks,
) -> Result<Sender, h2::Error> {
    let stream = Heard::new(stream);
    let has_heard = stream.has_heard();
    let (requests, mut connection) = h2::client::Builder::new()
        .enable_push(false)
        .max_frame_size(FRAME_BYTES)
        .initial_window_size(stream_window)
        .initial_connection_window_size(window)
        .max_header_list_size(HEAD_LIMIT)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake::<_, Bytes>(stream)
        .await?;
    let mut pulse = Pulse::new(has_heard, connection.ping_pong());
    let uses = Arc::downgrade(uses);
    tasks.execute(async move {
        let ended = tokio::select! {
            ended = connection => ended.map_err(io::Error::other),
            () = pulse.lost(|| uses.strong_count() > 1) => Err(io::ErrorKind::TimedOut.into()),
        };
        if let Err(error) = ended {
            debug!(%error, "a connection to upstream ended early");
        }
    });
    Ok(Sender { requests, tasks: tasks.clone() })
}

impl Sender {
    /// Whether requests can go out on it.
    pub(crate) fn is_open(&mut self) -> bool {
        self.poll_open(&mut Context::from_waker(Waker::noop())).is_ok()
    }

    fn poll_open(&mut self, context: &mut Context<'_>) -> Result<(), h2::Error> {
        match self.requests.poll_ready(context) {
            Poll::Ready(open) => open,
            Poll::Pending => Ok(()),
        }
    }

    /// Sends `request`, whose target is absolute, and returns the head of its answer. What comes before that goes to `tap`. What is left of
    /// the request by then goes on in a task of its own: who is slow to read an answer may still be sending.
    pub(crate) async fn send<B>(
        &mut self,
        request: Request<B>,
        tap: Option<&Tap>,
    ) -> Result<Response<Whole>, Failed<B>>
    where
        B: HttpBody<Data = Bytes, Error = Error> + Unpin + Send + 'static,
    {
        if let Err(error) = self.poll_open(&mut Context::from_waker(Waker::noop())) {
            return Err(Failed { error, left: Left::Whole(request) });
        }
        let (head, body) = request.into_parts();
        let mut head = Request::from_parts(head, ());
        leave_out_connection(head.headers_mut());
        let is_empty = body.is_end_stream();
        // As hyper does in HTTP/1.1: these have a body at most as an exception.
        let says_length = !is_empty
            || !matches!(*head.method(), Method::GET | Method::HEAD | Method::DELETE | Method::CONNECT);
        if let Some(length) = body.size_hint().exact().filter(|_| says_length) {
            head.headers_mut().entry(CONTENT_LENGTH).or_insert_with(|| length.into());
        }
        let (mut answer, stream) = match self.requests.send_request(head, is_empty) {
            Ok(sent) => sent,
            Err(error) => return Err(Failed { error, left: Left::Body(body) }),
        };
        let mut sending = Sending::new(body, stream, Reason::CANCEL);
        let mut is_sending = !is_empty;
        let answered = poll_fn(|context| {
            if is_sending && let Poll::Ready(sent) = Pin::new(&mut sending).poll(context) {
                is_sending = false;
                if let Err(error) = sent {
                    debug!(%error, "a request ended early");
                }
            }
            while let Poll::Ready(Some(Ok(interim))) = answer.poll_informational(context) {
                if let Some(tap) = tap {
                    tap.take(interim.status(), interim.headers());
                }
            }
            Pin::new(&mut answer).poll(context)
        });
        let (head, content) = match answered.await {
            Ok(answer) => answer.into_parts(),
            Err(error) => return Err(Failed { error, left: Left::Body(sending.into_body()) }),
        };
        if is_sending {
            self.tasks.execute(sending);
        }
        let body = Received::new(content, &head.headers);
        Ok(Response::from_parts(head, Whole::from(body)))
    }
}
