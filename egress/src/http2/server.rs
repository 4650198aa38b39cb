//! HTTP/2 with the bottle.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Poll, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::header::{CONTENT_LENGTH, DATE, HeaderValue};
use http::{Method, Request, Response};
use http_body::Body as _;
use hudsucker::Body;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::duplex::Duplex;
use super::pulse::{Heard, Pulse};
use super::received::Received;
use super::sent::Sending;
use super::{FRAME_BYTES, broken, leave_out_connection};
use crate::body::Whole;
use crate::front::{HEAD_LIMIT, HEAD_TIMEOUT};
use crate::interim::Interim;
use crate::splice::Stream;

const STREAMS: u32 = 128;
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// What is kept of an answer that the bottle does not read, for each stream.
const SEND_BUFFER: usize = 64 * 1024;
/// So many streams may be reset that nobody has looked at yet.
const RESETS: usize = 32;

/// Serves a connection to its end, or to that of its last stream after `stop`. `each` is called for every stream, and may not block.
/// `takes_protocols` says whether a CONNECT may name a protocol (RFC 8441).
pub(crate) async fn serve(
    stream: impl Stream,
    takes_protocols: bool,
    stop: &CancellationToken,
    each: impl Fn(Request<RecvStream>, SendResponse<Bytes>),
) -> io::Result<()> {
    let mut builder = h2::server::Builder::new();
    builder
        .max_frame_size(FRAME_BYTES)
        .max_concurrent_streams(STREAMS)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(u32::try_from(HEAD_LIMIT).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(RESETS);
    if takes_protocols {
        builder.enable_connect_protocol();
    }
    let stream = Heard::new(stream);
    let signs = stream.signs();
    let opening = timeout(HEAD_TIMEOUT, builder.handshake::<_, Bytes>(stream));
    let Some(opened) = stop.run_until_cancelled(opening).await else { return Ok(()) };
    let mut connection = opened?.map_err(broken)?;
    let mut pulse = Pulse::new(signs, connection.ping_pong());
    let mut lost = pin!(pulse.lost(|| true));
    let mut stopped = pin!(stop.cancelled());
    let mut is_stopping = false;
    poll_fn(|context| {
        if !is_stopping && stopped.as_mut().poll(context).is_ready() {
            is_stopping = true;
            connection.graceful_shutdown();
        }
        if lost.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        loop {
            match ready!(connection.poll_accept(context)) {
                Some(Ok((request, respond))) => each(request, respond),
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
    })
    .await
}

/// How a stream is answered.
pub(crate) struct Reply {
    respond: SendResponse<Bytes>,
    /// Where the answer may make a tunnel of it.
    opening: Option<Opening>,
}

struct Opening {
    content: RecvStream,
    opened: oneshot::Sender<Duplex>,
}

/// A stream, taken apart.
pub(crate) struct Taken {
    /// What follows CONNECT is not its body.
    pub(crate) request: Request<Option<Whole>>,
    pub(crate) reply: Reply,
    /// Comes once a CONNECT was answered with success.
    pub(crate) opened: Option<oneshot::Receiver<Duplex>>,
}

impl Reply {
    /// Takes a stream apart; nothing where its head contradicts itself, of which its client is told.
    pub(crate) fn to(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> Option<Taken> {
        let (head, content) = request.into_parts();
        if head.method != Method::CONNECT {
            let body = Whole::from(Received::new(content, &head.headers));
            let request = Request::from_parts(head, Some(body));
            return Some(Taken { request, reply: Reply { respond, opening: None }, opened: None });
        }
        // h2 would hold what the tunnel carries against it.
        if head.headers.contains_key(CONTENT_LENGTH) {
            respond.send_reset(Reason::PROTOCOL_ERROR);
            return None;
        }
        let (opened, opening) = oneshot::channel();
        let reply = Reply { respond, opening: Some(Opening { content, opened }) };
        Some(Taken { request: Request::from_parts(head, None), reply, opened: Some(opening) })
    }

    /// Waits for `answering`, and sends what comes before it meanwhile; nothing once the client takes its request back.
    pub(crate) async fn while_answering<T>(
        &mut self,
        interim: &Interim,
        mut answering: Pin<&mut impl Future<Output = T>>,
    ) -> Option<T> {
        poll_fn(|context| {
            let polled = answering.as_mut().poll(context);
            if let Poll::Ready(answer) = polled {
                return Poll::Ready(Some(answer));
            }
            if self.respond.poll_reset(context).is_ready() {
                return Poll::Ready(None);
            }
            while let Some((status, headers)) = interim.next(context) {
                let mut head = Response::new(());
                *head.status_mut() = status;
                *head.headers_mut() = headers;
                leave_out_connection(head.headers_mut());
                if let Err(error) = self.respond.send_informational(head) {
                    debug!(%error, "an interim answer was not passed on");
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Sends `answer`, to the end of its body.
    pub(crate) async fn send(mut self, answer: Response<Body>) {
        let (head, body) = answer.into_parts();
        let mut head = Response::from_parts(head, ());
        let headers = head.headers_mut();
        leave_out_connection(headers);
        if !headers.contains_key(DATE)
            && let Ok(date) = DateTimePrinter::new().timestamp_to_rfc9110_string(&Timestamp::now())
            && let Ok(date) = HeaderValue::try_from(date)
        {
            headers.insert(DATE, date);
        }
        let opening = self.opening.filter(|_| head.status().is_success());
        let is_empty = body.is_end_stream();
        if opening.is_some() {
            head.headers_mut().remove(CONTENT_LENGTH);
        } else if let Some(length) = body.size_hint().exact().filter(|_| !is_empty) {
            head.headers_mut().entry(CONTENT_LENGTH).or_insert_with(|| length.into());
        }
        let ends = is_empty && opening.is_none();
        let stream = match self.respond.send_response(head, ends) {
            Ok(stream) => stream,
            Err(error) => {
                debug!(%error, "an answer cannot be sent");
                return self.respond.send_reset(Reason::INTERNAL_ERROR);
            }
        };
        if let Some(Opening { content, opened }) = opening {
            // Who does not wait for it any more has ended it.
            drop(opened.send(Duplex::new(stream, content)));
        } else if !ends && let Err(error) = Sending::new(body, stream, Reason::INTERNAL_ERROR).await {
            debug!(%error, "an answer ended early");
        }
    }
}
