//! Interim answers (1xx) of upstream on their way to the client, which a proxy passes on (RFC 9110, section 15.2).
//!
//! In HTTP/1.1 hyper tells of them as a client and cannot send them as a server. They are written beside it, onto the same stream, where nothing
//! of hyper's can be cut by them: only when hyper flushes the stream, which it does once it has written all that it had to, and only for a
//! request whose final answer it has not been given. One of which a part is written is written to its end before hyper writes more. In HTTP/2
//! whoever answers a stream sends them on it.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use http::{HeaderMap, Request, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tracing::debug;

use crate::alarm::Alarm;

/// So many interim answers to one request are passed on, and so many bytes of them: they are hints, of which a few come where any do.
const ANSWERS_MAX: usize = 16;
const BYTES_MAX: usize = 32 * 1024;
/// What a line has besides name and value.
const LINE_BYTES: usize = ": \r\n".len();

/// The interim answers on one connection of the bottle, or one stream of it, to the one request that is being answered there.
pub(crate) struct Interim {
    came: Mutex<Came>,
    /// Whether something came that was not looked at yet.
    has_come: AtomicBool,
    /// Touched by the connection's task alone.
    out: Mutex<Out>,
    /// Whether something is to be written.
    is_waiting: AtomicBool,
    /// Wakes that task: upstream may be read by another.
    alarm: Arc<Alarm>,
}

/// What came from upstream.
#[derive(Default)]
struct Came {
    /// Which request of the connection it is for: what is left of an earlier one may still say something.
    request: u64,
    answers: Vec<(StatusCode, HeaderMap)>,
    answers_left: usize,
    bytes_left: usize,
}

/// What goes to the bottle.
#[derive(Default)]
struct Out {
    answers: VecDeque<(StatusCode, HeaderMap)>,
    /// What is being written in HTTP/1.1, and how much of it is.
    head: Vec<u8>,
    written: usize,
}

/// Where interim answers to one request come in.
#[derive(Clone)]
pub(crate) struct Tap {
    interim: Arc<Interim>,
    request: u64,
}

impl Interim {
    pub(crate) fn new(alarm: Arc<Alarm>) -> Arc<Interim> {
        Arc::new(Interim {
            came: Mutex::default(),
            has_come: AtomicBool::new(false),
            out: Mutex::default(),
            is_waiting: AtomicBool::new(false),
            alarm,
        })
    }

    /// For the next request. What is still said to an earlier one is not heard any more.
    pub(crate) fn tap(self: &Arc<Interim>) -> Tap {
        let mut came = self.came();
        came.request += 1;
        came.answers.clear();
        (came.answers_left, came.bytes_left) = (ANSWERS_MAX, BYTES_MAX);
        self.has_come.store(false, Ordering::Release);
        Tap { interim: Arc::clone(self), request: came.request }
    }

    /// Has what came be written, as `clean` leaves it.
    pub(crate) fn pass_on(&self, clean: impl Fn(StatusCode, &mut HeaderMap)) {
        // Most requests have none.
        if !self.has_come.load(Ordering::Acquire) {
            return;
        }
        let answers = {
            let mut came = self.came();
            self.has_come.store(false, Ordering::Release);
            mem::take(&mut came.answers)
        };
        let mut out = self.out();
        for (status, mut headers) in answers {
            clean(status, &mut headers);
            out.answers.push_back((status, headers));
            self.is_waiting.store(true, Ordering::Release);
        }
    }

    /// Has a client of HTTP/2 told that it may send its body; to one of HTTP/1.1 hyper says it.
    pub(crate) fn give_leave(&self) {
        let mut out = self.out();
        out.answers.push_back((StatusCode::CONTINUE, HeaderMap::new()));
        self.is_waiting.store(true, Ordering::Release);
        drop(out);
        self.alarm.ring();
    }

    /// What goes out next on a stream of HTTP/2.
    pub(crate) fn next(&self, context: &Context<'_>) -> Option<(StatusCode, HeaderMap)> {
        if self.is_through() {
            return None;
        }
        let mut out = self.out();
        let next = out.answers.pop_front();
        if next.is_none() {
            self.all_is_through(context);
        }
        next
    }

    fn all_is_through(&self, context: &Context<'_>) {
        self.is_waiting.store(false, Ordering::Release);
        // Whoever waits for this is polled by the same task.
        context.waker().wake_by_ref();
    }

    /// Whether all that was passed on is written.
    pub(crate) fn is_through(&self) -> bool {
        !self.is_waiting.load(Ordering::Acquire)
    }

    /// Nothing more begins to be written: the final answer comes next.
    pub(crate) fn close(&self) {
        if self.is_through() {
            return;
        }
        let mut out = self.out();
        if !out.answers.is_empty() {
            debug!("interim answers were not passed on: the bottle does not read");
        }
        out.answers.clear();
        self.is_waiting.store(!out.head.is_empty(), Ordering::Release);
    }

    fn came(&self) -> MutexGuard<'_, Came> {
        self.came.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn out(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what waits; before hyper writes, no more than what is begun.
    fn poll_write(
        &self,
        what: What,
        mut stream: Pin<&mut impl AsyncWrite>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let mut out = self.out();
        let out = &mut *out;
        loop {
            if out.head.is_empty() {
                if what == What::Begun && !out.answers.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                let Some((status, headers)) = out.answers.pop_front() else { break };
                (out.head, out.written) = (head(status, &headers), 0);
            }
            match ready!(stream.as_mut().poll_write(context, &out.head[out.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                length => out.written += length,
            }
            if out.written == out.head.len() {
                out.head = Vec::new();
            }
        }
        *out = Out::default();
        self.all_is_through(context);
        Poll::Ready(Ok(()))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    All,
    Begun,
}

impl Tap {
    /// Hears what upstream says before its final answer to `request`, which goes out over HTTP/1.1.
    pub(crate) fn listen<B>(&self, request: &mut Request<B>) {
        let tap = self.clone();
        hyper::ext::on_informational(request, move |answer| tap.take(answer.status(), answer.headers()));
    }

    /// Takes what upstream says before its final answer.
    pub(crate) fn take(&self, status: StatusCode, headers: &HeaderMap) {
        // Leave to send the body is given here, and there is no other protocol (RFC 9113, section 8.6).
        if matches!(status, StatusCode::CONTINUE | StatusCode::SWITCHING_PROTOCOLS) {
            return;
        }
        let bytes = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + LINE_BYTES);
        let bytes = bytes.sum::<usize>();
        let mut came = self.interim.came();
        if came.request != self.request {
            return;
        }
        let (Some(answers_left), Some(bytes_left)) =
            (came.answers_left.checked_sub(1), came.bytes_left.checked_sub(bytes))
        else {
            debug!(%status, "an interim answer was not passed on: there are too many, or they are too large");
            return;
        };
        (came.answers_left, came.bytes_left) = (answers_left, bytes_left);
        came.answers.push((status, headers.clone()));
        self.interim.has_come.store(true, Ordering::Release);
        drop(came);
        self.interim.alarm.ring();
    }
}

/// As hyper writes a head.
fn head(status: StatusCode, headers: &HeaderMap) -> Vec<u8> {
    let reason = status.canonical_reason().unwrap_or_default();
    let mut head = format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).into_bytes();
    for (name, value) in headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// A stream that hyper serves HTTP/1.1 on, and interim answers are written to beside it.
pub(crate) struct Interposed<S> {
    inner: S,
    interim: Arc<Interim>,
}

impl<S> Interposed<S> {
    pub(crate) fn new(inner: S, interim: Arc<Interim>) -> Interposed<S> {
        Interposed { inner, interim }
    }

    pub(crate) fn into_inner(self) -> S {
        self.inner
    }
}

impl<S: AsyncWrite + Unpin> Interposed<S> {
    fn poll_interim(&mut self, what: What, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.interim.is_through() {
            return Poll::Ready(Ok(()));
        }
        self.interim.poll_write(what, Pin::new(&mut self.inner), context)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Interposed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Interposed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_interim(What::Begun, context))?;
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    /// hyper has written all that it had to.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_interim(What::All, context))?;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_interim(What::Begun, context))?;
        Pin::new(&mut self.inner).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::convert::Infallible;
    use std::future::poll_fn;

    use bytes::Bytes;
    use http::Response;
    use http_body_util::{BodyExt, Full};
    use hyper::body::Incoming;
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex, split};

    use super::*;

    fn hints(number: usize) -> HeaderMap {
        [(http::header::LINK, format!("</{number}.css>").parse().unwrap())].into_iter().collect()
    }

    /// The request with this number is answered before it is read, at length.
    const EARLY: usize = 3;

    /// What an agent gets that sends all of `requests` at once, over a stream that takes `room` bytes at a time. Each is answered with its
    /// number and what it says, after three interim answers.
    async fn answers(requests: String, room: usize, writev: bool) -> String {
        let (near, far) = duplex(room);
        let interim = Interim::new(Arc::new(Alarm::new()));
        let stream = Interposed::new(far, Arc::clone(&interim));
        let service = service_fn(move |request: Request<Incoming>| {
            let interim = Arc::clone(&interim);
            async move {
                let tap = interim.tap();
                let number = usize::try_from(tap.request).unwrap();
                tap.take(StatusCode::EARLY_HINTS, &hints(number));
                interim.pass_on(|_, _| {});
                let reading = request.into_body().collect();
                let said = if number == EARLY {
                    tokio::spawn(reading);
                    Bytes::from(".".repeat(1000))
                } else {
                    reading.await.unwrap().to_bytes()
                };
                tap.take(StatusCode::PROCESSING, &HeaderMap::new());
                tap.take(StatusCode::EARLY_HINTS, &hints(number));
                interim.pass_on(|_, _| {});
                let through =
                    |_: &mut Context<'_>| if interim.is_through() { Poll::Ready(()) } else { Poll::Pending };
                poll_fn(through).await;
                interim.close();
                tap.take(StatusCode::EARLY_HINTS, &HeaderMap::new());
                let answer = [number.to_string().as_bytes(), &said].concat();
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(answer))))
            }
        });
        let serving = http1::Builder::new().writev(writev).serve_connection(TokioIo::new(stream), service);
        let (mut reads, mut writes) = split(near);
        let mut all = String::new();
        let (served, asked, _) = tokio::join!(
            serving,
            async { writes.write_all(requests.as_bytes()).await },
            reads.read_to_string(&mut all)
        );
        served.unwrap();
        asked.unwrap();
        all
    }

    /// Without the date, which hyper sets.
    fn undated(text: &str) -> String {
        text.split_inclusive("\r\n").filter(|line| !line.starts_with("date: ")).collect()
    }

    #[tokio::test]
    async fn heads_and_answers_stand_one_after_the_other_however_little_the_stream_takes() {
        let interim = |number| {
            let hints = format!("HTTP/1.1 103 Early Hints\r\nlink: </{number}.css>\r\n\r\n");
            let leave = if number == 2 { "HTTP/1.1 100 Continue\r\n\r\n" } else { "" };
            [leave, &hints, "HTTP/1.1 102 Processing\r\n\r\n", &hints].concat()
        };
        let closing = ["", "", "", "connection: close\r\n"];
        let (mut requests, mut wanted) = (String::new(), String::new());
        for (number, (closing, said)) in closing.into_iter().zip(["", "hello", "early", "bye"]).enumerate() {
            let number = number + 1;
            let expect = if number == 2 { "expect: 100-continue\r\n" } else { "" };
            let length = said.len();
            requests +=
                &format!("POST / HTTP/1.1\r\ncontent-length: {length}\r\n{expect}{closing}\r\n{said}");
            wanted += &interim(number);
            let said = if number == EARLY { ".".repeat(1000) } else { said.to_owned() };
            let length = said.len() + 1;
            wanted += &format!("HTTP/1.1 200 OK\r\n{closing}content-length: {length}\r\n\r\n{number}{said}");
        }
        let sizes = (1..80).chain([200, 1000, 10_000]);
        for (room, writev) in sizes.flat_map(|room| [(room, true), (room, false)]) {
            let all = undated(&answers(requests.clone(), room, writev).await);
            // Leave is given when the body is wanted, which may be before the first hint or after.
            let leave = "HTTP/1.1 100 Continue\r\n\r\n";
            assert_eq!(all.matches(leave).count(), 1, "{room}");
            assert_eq!(all.replacen(leave, "", 1), wanted.replacen(leave, "", 1), "{room}");
        }
    }

    fn write(stream: &mut Interposed<tokio::io::DuplexStream>, bytes: &[u8]) -> Option<usize> {
        match Pin::new(stream).poll_write(&mut Context::from_waker(std::task::Waker::noop()), bytes) {
            Poll::Ready(written) => Some(written.unwrap()),
            Poll::Pending => None,
        }
    }

    fn flushed(stream: &mut Interposed<tokio::io::DuplexStream>) -> bool {
        Pin::new(stream).poll_flush(&mut Context::from_waker(std::task::Waker::noop())).is_ready()
    }

    #[tokio::test]
    async fn what_is_begun_is_ended_first_and_what_is_not_makes_way() {
        let (mut near, far) = duplex(10);
        let interim = Interim::new(Arc::new(Alarm::new()));
        let mut stream = Interposed::new(far, Arc::clone(&interim));
        let tap = interim.tap();
        let say = |tap: &Tap| {
            tap.take(StatusCode::PROCESSING, &HeaderMap::new());
            interim.pass_on(|_, _| {});
        };
        say(&tap);
        say(&tap);
        // hyper writes before it flushes: what it writes goes first.
        assert_eq!(write(&mut stream, b"an answer"), Some(9));
        assert!(!flushed(&mut stream), "one byte of the first fits");
        interim.close();
        assert!(!interim.is_through(), "it is begun");
        // Of an earlier request, too late.
        let next = interim.tap();
        tap.take(StatusCode::EARLY_HINTS, &HeaderMap::new());
        say(&next);
        let (mut all, mut rest) = (Vec::new(), &b"final"[..]);
        while !rest.is_empty() {
            all.push(near.read_u8().await.unwrap());
            if let Some(length) = write(&mut stream, rest) {
                rest = &rest[length..];
            }
        }
        while !flushed(&mut stream) {
            all.push(near.read_u8().await.unwrap());
        }
        assert!(interim.is_through());
        drop(stream);
        near.read_to_end(&mut all).await.unwrap();
        let processing = "HTTP/1.1 102 Processing\r\n\r\n";
        assert_eq!(String::from_utf8(all).unwrap(), format!("an answer{processing}final{processing}"));

        say(&next);
        interim.close();
        assert!(interim.is_through(), "nothing was begun");
    }
}
