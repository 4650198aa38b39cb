//! Bodies on their way through: counted, bounded in silence, ended when what allowed them ends. Never collected.

mod parting;
mod progress;
mod upload;
mod watched;
mod whole;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use http_body_util::combinators::BoxBody;
use hudsucker::{Body, Error};
use policy::Denial;
use tokio::task::coop::poll_proceed;
use tokio::time::{Instant, Sleep, sleep_until};
use tracing::{debug, warn};

use crate::credential::rewrite::Rewriter;
use crate::headers;
use crate::journal::Entry;
use crate::lease::Lease;
use crate::refusal::{Code, Refusal};
use crate::upstream::Lent;
pub(crate) use parting::Parting;
pub(crate) use progress::Progress;
pub(crate) use upload::Upload;
use watched::Watched;
pub(crate) use whole::Whole;

/// How long a body that is to be read whole may take.
const GATHER_TIMEOUT: Duration = Duration::from_secs(10);
/// After so many frames in a row it is asked whether more may follow.
const ASKED_EVERY: u32 = 16;
/// So much of a body is one step of the 128 that a task has before others have their turn, half a MiB: without TLS a single read may bring a
/// hundred times as much as with it, and others would wait for all of them.
const STEP_BYTES: usize = 4 * 1024;
/// A body up to this is read whole when something in it is to be replaced.
const WHOLE_LIMIT: u64 = 256 * 1024;

/// Who is told what went through.
enum Meter {
    /// Towards upstream.
    Up(Arc<Progress>),
    /// Towards the agent; the entry is written when the body ends or is dropped. With the connection that it comes on.
    Down(Box<Entry>, Option<Lent>),
}

impl Meter {
    /// Notes that the sender of the body did not send it as it said.
    fn broke_off(&mut self, error: &Error) {
        match self {
            Meter::Up(progress) => progress.broke_off.store(true, Ordering::Relaxed),
            Meter::Down(entry, _) => {
                // Where the request ended early, so did its answer, and upstream had no part in it.
                let code = match &entry.up {
                    Some(up) if up.is_too_large() => Code::BodyTooLarge,
                    Some(up) if up.is_broken_off() => Code::MalformedBody,
                    Some(up) if up.is_ended() => return,
                    Some(_) | None => Code::UpstreamFailed,
                };
                debug!(%error, %code, "an answer broke off");
                entry.event.code = Some(code.as_str().to_owned());
            }
        }
    }
}

/// How long a body may live.
#[derive(Clone)]
pub(crate) struct Limits {
    /// The longest silence.
    pub(crate) idle: Duration,
    /// The most bytes that a request may have.
    pub(crate) request_body: Option<u64>,
    /// What allows it.
    pub(crate) lease: Arc<Lease>,
}

struct Metered<B> {
    inner: B,
    meter: Meter,
    idle: Duration,
    request_body: Option<u64>,
    lease: Arc<Lease>,
    /// How many frames have passed since it was last asked whether they may.
    unasked: u32,
    /// From the first time that there is nothing to pass on.
    waiting: Option<Waiting>,
}

struct Waiting {
    since: Option<Instant>,
    silence: Pin<Box<Sleep>>,
    end: Pin<Box<dyn Future<Output = Denial> + Send + Sync>>,
}

/// What the agent sends, within its limits, with `progress` told of it.
pub(crate) fn sent(upload: Upload, progress: &Arc<Progress>, limits: &Limits) -> Body {
    if upload.is_end_stream() {
        return Body::empty();
    }
    // What nobody takes of it is looked after by who waits for the answer.
    Body::from(BoxBody::new(Metered::new(upload, Meter::Up(Arc::clone(progress)), limits)))
}

/// What upstream answers, within its limits, with its record and the connection that it comes on.
pub(crate) fn answered(answer: Whole, entry: Box<Entry>, lent: Option<Lent>, limits: &Limits) -> Body {
    if answer.is_end_stream() {
        if let Some(lent) = lent {
            lent.give_back(&limits.lease);
        }
        return Body::empty();
    }
    Body::from(BoxBody::new(Watched::new(Metered::new(answer, Meter::Down(entry, lent), limits))))
}

/// `body` with the placeholder replaced. A short body is read whole, so that its length can be said; a longer one, or one that
/// does not say its length, streams without one.
pub(crate) async fn rewritten(
    body: Body,
    mut rewriter: Rewriter,
    headers: &mut HeaderMap,
) -> Result<Body, Error> {
    if body.is_end_stream() {
        return Ok(body);
    }
    let length = body.size_hint().exact();
    headers.remove(CONTENT_LENGTH);
    if length.is_none_or(|length| length > WHOLE_LIMIT) {
        return Ok(Body::from(BoxBody::new(Rewritten { inner: body, rewriter: Some(rewriter) })));
    }
    let whole = body.collect().await?.to_bytes();
    let mut out = rewriter.feed(&whole);
    out.append(&mut rewriter.finish());
    headers.insert(CONTENT_LENGTH, HeaderValue::from(out.len()));
    Ok(Body::from(Bytes::from(out)))
}

/// What was read of a body.
pub(crate) enum Gathered {
    /// All of it.
    Whole(Vec<u8>),
    /// Its beginning, with what is still to come: it is too long, or comes too slowly.
    Part(Vec<u8>, Body),
}

/// Reads up to `most` bytes, for a while.
pub(crate) async fn gathered(mut body: Body, most: usize) -> Result<Gathered, Error> {
    let mut begun = Vec::new();
    let end = Instant::now() + GATHER_TIMEOUT;
    while begun.len() <= most {
        let Ok(frame) = tokio::time::timeout_at(end, body.frame()).await else { break };
        match frame {
            None => return Ok(Gathered::Whole(begun)),
            Some(frame) => {
                if let Ok(data) = frame?.into_data() {
                    begun.extend_from_slice(&data);
                }
            }
        }
    }
    Ok(Gathered::Part(begun, body))
}

/// `rest`, with what was read before in front of it.
pub(crate) fn resumed(begun: Bytes, rest: Body) -> Body {
    Body::from(BoxBody::new(Resumed { begun: Some(begun), rest }))
}

struct Resumed {
    begun: Option<Bytes>,
    rest: Body,
}

impl HttpBody for Resumed {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match self.begun.take().filter(|begun| !begun.is_empty()) {
            Some(begun) => Poll::Ready(Some(Ok(Frame::data(begun)))),
            None => Pin::new(&mut self.rest).poll_frame(context),
        }
    }
}

struct Rewritten {
    inner: Body,
    /// Until the end of the body.
    rewriter: Option<Rewriter>,
}

impl HttpBody for Rewritten {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        loop {
            let Some(rewriter) = &mut this.rewriter else { return Poll::Ready(None) };
            let out = match ready!(Pin::new(&mut this.inner).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => rewriter.feed(&data),
                    // Trailers of a request do not go out.
                    Err(_) => continue,
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    let rest = rewriter.finish();
                    this.rewriter = None;
                    rest
                }
            };
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(out.into()))));
            }
        }
    }
}

impl<B: HttpBody<Data = Bytes, Error = Error> + Unpin> Metered<B> {
    fn new(inner: B, meter: Meter, limits: &Limits) -> Metered<B> {
        Metered {
            inner,
            meter,
            idle: limits.idle,
            request_body: limits.request_body,
            lease: Arc::clone(&limits.lease),
            unasked: 0,
            waiting: None,
        }
    }

    /// Counts what goes through; an error where it would be more than may go through, of which then nothing does.
    fn count(&mut self, bytes: usize) -> Result<(), Error> {
        match &mut self.meter {
            Meter::Up(progress) => {
                let most = self.request_body.unwrap_or(u64::MAX);
                if progress.bytes().saturating_add(bytes as u64) > most {
                    progress.too_large.store(true, Ordering::Relaxed);
                    return Err(Error::Io(io::Error::new(
                        io::ErrorKind::FileTooLarge,
                        "the body is too large",
                    )));
                }
                progress.note(bytes);
            }
            Meter::Down(entry, _) => entry.event.bytes_down += bytes as u64,
        }
        Ok(())
    }

    /// An error where what has come of an answer may not go on.
    fn pass(&mut self) -> Result<(), Error> {
        let Meter::Down(entry, _) = &mut self.meter else { return Ok(()) };
        self.lease.unsearched().map_err(|denial| {
            let refusal = Refusal::from(denial);
            warn!(code = %refusal.code, block_id = refusal.block_id, hint = refusal.hint, "an answer was cut");
            entry.cut(&refusal);
            Error::Io(io::Error::other(refusal.hint))
        })
    }

    /// Trailers of a request end here: upstream may take them for headers, and they come too late to be judged.
    fn passes(&self, frame: &Result<Frame<Bytes>, Error>) -> bool {
        let is_trailers = frame.as_ref().is_ok_and(Frame::is_trailers);
        !(is_trailers && matches!(self.meter, Meter::Up(_)))
    }

    /// What comes next. The connection that it came on is given back with the last of it.
    fn poll_inner(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let inner = &mut self.inner;
        let Meter::Down(_, lent) = &mut self.meter else { return Pin::new(inner).poll_frame(context) };
        let polled = match lent {
            Some(lent) => lent.poll(context, |context| Pin::new(&mut *inner).poll_frame(context)),
            None => Pin::new(&mut *inner).poll_frame(context),
        };
        let is_whole = match &polled {
            Poll::Ready(None) => true,
            Poll::Ready(Some(Ok(frame))) => frame.is_trailers() || inner.is_end_stream(),
            Poll::Ready(Some(Err(_))) | Poll::Pending => false,
        };
        if is_whole && let Some(lent) = lent.take() {
            lent.give_back(&self.lease);
        }
        polled
    }

    /// Whether it has to end, when `since` nothing came.
    fn poll_limits(&mut self, since: Option<Instant>, context: &mut Context<'_>) -> Poll<Error> {
        let idle = self.idle;
        let waiting = self.waiting.get_or_insert_with(|| Waiting {
            since: None,
            silence: Box::pin(sleep_until(Instant::now() + idle)),
            end: Box::pin(Arc::clone(&self.lease).ended_after_a_moment()),
        });
        self.unasked = 0;
        if waiting.end.as_mut().poll(context).is_ready() {
            return Poll::Ready(timed_out("this is no longer allowed"));
        }
        let Some(now) = since else { return Poll::Pending };
        let since = *waiting.since.get_or_insert(now);
        loop {
            ready!(waiting.silence.as_mut().poll(context));
            if since + idle <= now {
                return Poll::Ready(timed_out("nothing came for too long"));
            }
            waiting.silence.as_mut().reset(since + idle);
        }
    }
}

impl<B: HttpBody<Data = Bytes, Error = Error> + Unpin> HttpBody for Metered<B> {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        // Asked whenever it waits, and now and then where it never has to.
        if this.unasked >= ASKED_EVERY
            && let Poll::Ready(error) = this.poll_limits(None, context)
        {
            return Poll::Ready(Some(Err(error)));
        }
        match this.poll_inner(context) {
            Poll::Ready(frame) => {
                this.unasked += 1;
                if let Some(waiting) = &mut this.waiting {
                    waiting.since = None;
                }
                if let Some(Err(error)) = &frame {
                    this.meter.broke_off(error);
                }
                let mut frame = frame.filter(|frame| this.passes(frame));
                // Trailers towards the agent: those of a request were passed over.
                if let Some(Ok(frame)) = &mut frame
                    && let Some(trailers) = frame.trailers_mut()
                {
                    headers::towards_agent(trailers);
                }
                if let (Some(Ok(_)), Err(error)) = (&frame, this.pass()) {
                    return Poll::Ready(Some(Err(error)));
                }
                if let Some(Ok(frame)) = &frame
                    && let Some(data) = frame.data_ref()
                {
                    take_steps(data.len(), context);
                    if let Err(error) = this.count(data.len()) {
                        return Poll::Ready(Some(Err(error)));
                    }
                }
                Poll::Ready(frame)
            }
            Poll::Pending => {
                let ended = this.poll_limits(Some(Instant::now()), context);
                if let (Poll::Ready(_), Meter::Up(progress)) = (&ended, &this.meter) {
                    progress.ended.store(true, Ordering::Relaxed);
                }
                ended.map(|error| Some(Err(error)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Counts what was read at once as what it is; when a task has had its turn, its next read waits for the others.
fn take_steps(bytes: usize, context: &mut Context<'_>) {
    for _ in 0..bytes / STEP_BYTES {
        match poll_proceed(context) {
            Poll::Ready(step) => step.made_progress(),
            Poll::Pending => break,
        }
    }
}

fn timed_out(reason: &'static str) -> Error {
    Error::Io(io::Error::new(io::ErrorKind::TimedOut, reason))
}

/// Whether a body ended by its limits, and not by who sends it.
pub(crate) fn is_timed_out(error: &Error) -> bool {
    matches!(error, Error::Io(error) if error.kind() == io::ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::task::coop::has_budget_remaining;

    use super::*;

    /// Whether a task may go on after pieces of these sizes.
    async fn goes_on_after(pieces: &'static [usize]) -> bool {
        let task = poll_fn(|context| {
            pieces.iter().for_each(|bytes| take_steps(*bytes, context));
            Poll::Ready(has_budget_remaining())
        });
        tokio::spawn(task).await.expect("it does not panic")
    }

    #[tokio::test]
    async fn a_task_has_its_turn_by_the_bytes_and_not_by_the_pieces() {
        assert!(goes_on_after(&[STEP_BYTES - 1; 1000]).await, "a read is a step by itself");
        assert!(goes_on_after(&[64 * STEP_BYTES]).await);
        assert!(!goes_on_after(&[64 * STEP_BYTES; 2]).await);
    }
}
