//! HTTP/2 with upstream.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::Reason;
use h2::client::SendRequest;
use http::header::CONTENT_LENGTH;
use http::{Method, Request, Response};
use http_body::Body as HttpBody;
use hudsucker::Error;
use hyper::rt::Executor as _;
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

use super::pulse::{Heard, Pulse};
use super::received::Received;
use super::sent::Sending;
use super::{FRAME_BYTES, broken, leave_out_connection};
use crate::body::Whole;
use crate::interim::Tap;
use crate::splice::Stream;
use crate::tasks::Tasks;

/// What a head from upstream may take.
const HEAD_LIMIT: u32 = 256 * 1024;
/// What is kept of a request that upstream does not read.
const SEND_BUFFER: usize = 1024 * 1024;
/// So many requests may go out before upstream has said how many it takes: the least that is recommended (RFC 9113, section 6.5.2).
const FIRST_STREAMS: usize = 100;

/// Where requests go out on a connection, which ends with the last of these.
#[derive(Clone)]
pub(crate) struct Sender {
    requests: SendRequest<Bytes>,
    uses: Arc<AtomicUsize>,
    tasks: Tasks,
}

/// Shows that a request is on a connection.
pub(crate) struct Use(Arc<AtomicUsize>);

impl Use {
    fn of(uses: &Arc<AtomicUsize>) -> Use {
        uses.fetch_add(1, Ordering::AcqRel);
        Use(Arc::clone(uses))
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What is left of a request whose answer has begun: it goes on until this is dropped.
pub(crate) struct Rest {
    is_out: oneshot::Receiver<()>,
    _end: DropGuard,
}

impl Rest {
    /// Waits until nothing is left.
    pub(crate) async fn is_out(&mut self) {
        // Who does not say so has ended otherwise.
        let _ = (&mut self.is_out).await;
    }
}

/// Why a request has no answer.
pub(crate) struct Failed<B> {
    pub(crate) error: h2::Error,
    pub(crate) left: Left<B>,
}

/// What is left of a request that has no answer.
pub(crate) enum Left<B> {
    /// All of it: nothing was sent.
    Whole(Box<Request<B>>),
    /// Its body, of which some may have been sent.
    Body(B),
}

/// Opens a connection on `stream`, with windows of so many bytes for each stream and for all.
pub(crate) async fn open(
    stream: impl Stream,
    (stream_window, window): (u32, u32),
    tasks: &Tasks,
) -> Result<Sender, h2::Error> {
    let stream = Heard::new(stream);
    let signs = stream.signs();
    let (requests, mut connection) = h2::client::Builder::new()
        .enable_push(false)
        .max_frame_size(FRAME_BYTES)
        .initial_window_size(stream_window)
        .initial_connection_window_size(window)
        .initial_max_send_streams(FIRST_STREAMS)
        .max_header_list_size(HEAD_LIMIT)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake::<_, Bytes>(stream)
        .await?;
    let mut pulse = Pulse::new(signs, connection.ping_pong());
    let uses = Arc::<AtomicUsize>::default();
    let waiting = Arc::clone(&uses);
    tasks.execute(async move {
        let ended = tokio::select! {
            ended = connection => ended.map_err(broken),
            // Some servers take pings for an attack while nothing is asked of them.
            () = pulse.lost(|| waiting.load(Ordering::Acquire) > 0) => Err(io::ErrorKind::TimedOut.into()),
        };
        if let Err(error) = ended {
            debug!(%error, "a connection to upstream ended early");
        }
    });
    Ok(Sender { requests, uses, tasks: tasks.clone() })
}

impl Sender {
    /// Whether requests can go out on it.
    pub(crate) fn is_open(&mut self) -> bool {
        self.poll_open(&mut Context::from_waker(Waker::noop())).is_ok()
    }

    /// How many requests are on it.
    pub(crate) fn requests(&self) -> usize {
        self.uses.load(Ordering::Acquire)
    }

    /// How many upstream takes at a time. One more would wait within h2, and go out though nobody wants it any more.
    pub(crate) fn most(&self) -> usize {
        self.requests.current_max_send_streams()
    }

    /// Counts one request more.
    pub(crate) fn begin(&self) -> Use {
        Use::of(&self.uses)
    }

    /// Whether both send on the same connection.
    pub(crate) fn is_same(&self, other: &Sender) -> bool {
        Arc::ptr_eq(&self.uses, &other.uses)
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
    ) -> Result<(Response<Whole>, Option<Rest>), Failed<B>>
    where
        B: HttpBody<Data = Bytes, Error = Error> + Unpin + Send + 'static,
    {
        if let Err(error) = self.poll_open(&mut Context::from_waker(Waker::noop())) {
            return Err(Failed { error, left: Left::Whole(Box::new(request)) });
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
            // Only when these are through, because what waits for the answer passes over them.
            while let Some(Ok(interim)) = ready!(answer.poll_informational(context)) {
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
        let rest = is_sending.then(|| self.go_on(sending));
        let body = Received::new(content, &head.headers);
        Ok((Response::from_parts(head, Whole::from(body)), rest))
    }

    fn go_on(&self, sending: impl Future<Output = Result<(), Error>> + Send + 'static) -> Rest {
        let (end, (say, is_out), using) = (CancellationToken::new(), oneshot::channel(), self.begin());
        let sending = end.clone().run_until_cancelled_owned(sending);
        self.tasks.execute(async move {
            if let Some(Err(error)) = sending.await {
                debug!(%error, "a request ended early");
            }
            drop(using);
            // Where nobody waits for it, nobody has to know.
            let _ = say.send(());
        });
        Rest { is_out, _end: end.drop_guard() }
    }
}
