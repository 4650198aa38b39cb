//! An answer's body on its way to the bottle, decoded where it was encoded, with masks in place of secrets.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::{io, mem};

use bytes::{Buf, Bytes};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::combinators::BoxBody;
use hudsucker::{Body, Error};
use scan::{Decoder, Encoding, NotDecoded};

use tracing::warn;

use super::{Cleaner, Cut, Ending, Scrub};
use crate::body::Parting;
use crate::refusal::{Code, Refusal};

/// What is decoded at once.
const OUT_BYTES: usize = 32 * 1024;

/// `inner`, without secrets; where it has to be cut, `ending` says why.
pub(crate) fn scrubbed(inner: Body, scrub: Scrub, encoding: Option<Encoding>, ending: Ending) -> Body {
    if inner.is_end_stream() {
        return inner;
    }
    let decoder = encoding.map(|encoding| Decoder::new(encoding, &scrub.memory));
    Body::from(BoxBody::new(Scrubbed {
        inner,
        cleaner: scrub.cleaner(),
        scrub,
        decoder,
        input: Bytes::new(),
        trailers: None,
        phase: Phase::Flowing,
        parting: Parting::default(),
        ending,
    }))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Flowing,
    /// Upstream has ended; what is left goes on.
    Ending,
    Over,
}

struct Scrubbed {
    inner: Body,
    cleaner: Cleaner,
    scrub: Scrub,
    decoder: Option<Decoder>,
    /// What has come and is not yet decoded.
    input: Bytes,
    trailers: Option<http::HeaderMap>,
    phase: Phase,
    parting: Parting,
    ending: Ending,
}

impl Scrubbed {
    /// Decodes some of what has come; nothing when more is needed.
    fn decode(&mut self) -> Result<Option<Bytes>, Refusal> {
        let Some(decoder) = &mut self.decoder else {
            let data = mem::take(&mut self.input);
            return Ok((!data.is_empty()).then_some(data));
        };
        let mut out = vec![0; OUT_BYTES];
        let (read, written) = decoder.step(&self.input, &mut out).map_err(broken)?;
        self.input.advance(read);
        out.truncate(written);
        Ok((written > 0).then(|| Bytes::from(out)))
    }

    fn end(&mut self) -> Result<(), Refusal> {
        self.phase = Phase::Ending;
        self.decoder.as_ref().map_or(Ok(()), |decoder| decoder.finish().map_err(broken))
    }

    /// The error that ends it.
    fn cut(&self, refusal: Refusal) -> Error {
        warn!(code = %refusal.code, block_id = refusal.block_id, hint = refusal.hint, "an answer was cut");
        let error = Error::Io(io::Error::other(refusal.hint.clone()));
        self.ending.cut(refusal);
        error
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        loop {
            match self.phase {
                Phase::Over => {
                    return Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
                }
                Phase::Ending => {
                    self.phase = Phase::Over;
                    match self.cleaner.finish() {
                        Ok(rest) if rest.is_empty() => continue,
                        Ok(rest) => return Poll::Ready(Some(Ok(Frame::data(rest)))),
                        Err(cut) => return Poll::Ready(Some(Err(self.cut(cut.refusal())))),
                    }
                }
                Phase::Flowing => {}
            }
            match self.decode() {
                Ok(Some(data)) => match self.cleaner.feed(data) {
                    Ok(data) if data.is_empty() => continue,
                    Ok(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                    Err(cut) => return Poll::Ready(Some(Err(self.cut(cut.refusal())))),
                },
                Ok(None) => {}
                Err(refusal) => return Poll::Ready(Some(Err(self.cut(refusal)))),
            }
            match ready!(Pin::new(&mut self.inner).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.input = data,
                    Err(frame) => {
                        if let Ok(mut trailers) = frame.into_trailers() {
                            self.scrub.headers(&mut trailers);
                            self.trailers = Some(trailers);
                        }
                    }
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    if let Err(refusal) = self.end() {
                        return Poll::Ready(Some(Err(self.cut(refusal))));
                    }
                }
            }
        }
    }
}

fn broken(why: NotDecoded) -> Refusal {
    if why.is_for_want_of_memory() {
        return Cut::Crowded.refusal();
    }
    Refusal::new(
        Code::UpstreamFailed,
        "the answer is not encoded as it says, or in a way that is not undone here",
    )
}

impl HttpBody for Scrubbed {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut parting = mem::take(&mut self.parting);
        let polled = parting.poll(context, |context| self.poll_next(context));
        self.parting = parting;
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.phase == Phase::Over && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        if self.decoder.is_some() {
            return SizeHint::default();
        }
        let waiting = (self.cleaner.held() + self.input.len()) as u64;
        let inner = self.inner.size_hint();
        inner.exact().map_or_else(SizeHint::default, |rest| SizeHint::with_exact(rest + waiting))
    }
}
