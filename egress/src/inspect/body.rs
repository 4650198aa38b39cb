//! A request's body under search: it starts to flow at once, and stops before the end of a secret.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::combinators::BoxBody;
use hudsucker::{Body, Error};
use policy::OnMatch;
use scan::Scanner;

use super::messages::GrpcFrames;
use super::{Format, Inspection, Joint, MASK, Messages, Objection};
use crate::tasks::aside;

/// What may be held back while it could become a secret.
const HELD_MAX: u64 = 256 * 1024;

/// `inner`, searched.
pub(crate) fn examined(inner: Body, inspection: &Inspection, format: Format) -> Body {
    if inner.is_end_stream() {
        return inner;
    }
    let search = match format {
        // Some of what is compressed stands there in the clear, and what is not encoded as it says all of it.
        Format::Encoded(encoding) => {
            Search::Either(Box::new([inspection.body_scanner().encoded(encoding), inspection.body_scanner()]))
        }
        Format::Plain => Search::Stream(Box::new(inspection.body_scanner()), Joint::of(inspection)),
        Format::Grpc(encoding) => {
            let messages = Messages::new(inspection.clone());
            Search::Grpc(Box::new((GrpcFrames::new(encoding), messages, inspection.body_scanner())))
        }
    };
    inspection.begin();
    Body::from(BoxBody::new(Examined {
        inner,
        search,
        masks: format == Format::Plain && inspection.on_match == OnMatch::Redact,
        inspection: inspection.clone(),
        waiting: VecDeque::new(),
        waiting_bytes: 0,
        taken: 0,
        ended: false,
    }))
}

enum Search {
    /// The body, and its beginning put to what went before.
    Stream(Box<Scanner<'static>>, Option<Joint>),
    /// The body decoded, and as it stands.
    Either(Box<[Scanner<'static>; 2]>),
    /// Messages in their frames, and all of it as it stands: whoever gets it may not read frames at all.
    Grpc(Box<(GrpcFrames, Messages, Scanner<'static>)>),
}

struct Examined {
    inner: Body,
    search: Search,
    /// A secret that stands there as it is is masked, and the rest goes on.
    masks: bool,
    inspection: Inspection,
    waiting: VecDeque<Bytes>,
    waiting_bytes: u64,
    /// How many bytes have come.
    taken: u64,
    ended: bool,
}

impl Examined {
    /// Looks for what became known since the body began, too.
    fn catch_up(&mut self) {
        let Some(known) = self.inspection.renewed() else { return };
        match &mut self.search {
            Search::Stream(scanner, joint) => {
                scanner.look_for(Arc::clone(&known));
                if let Some(joint) = joint {
                    joint.look_for(&self.inspection, known);
                }
            }
            Search::Either(both) => both.iter_mut().for_each(|scanner| scanner.look_for(Arc::clone(&known))),
            // Messages look themselves.
            Search::Grpc(grpc) => grpc.2.look_for(known),
        }
    }

    fn take(&mut self, data: Bytes) -> Result<(), Objection> {
        self.catch_up();
        let inspection = &self.inspection;
        match &mut self.search {
            Search::Stream(scanner, joint) => {
                if scanner.may_expand(&data) {
                    aside(|| scanner.feed(&data));
                } else {
                    scanner.feed(&data);
                }
                joint.as_mut().map_or(Ok(()), |joint| joint.feed(&data))?;
            }
            Search::Either(both) => aside(|| both.iter_mut().for_each(|scanner| scanner.feed(&data))),
            Search::Grpc(grpc) => aside(|| {
                let (frames, messages, stream) = &mut **grpc;
                stream.feed(&data);
                in_stream(stream, inspection)?;
                frames.feed(&data, messages)
            })?,
        }
        self.taken += data.len() as u64;
        self.waiting_bytes += data.len() as u64;
        self.waiting.push_back(data);
        self.judge()
    }

    fn end(&mut self) -> Result<(), Objection> {
        self.ended = true;
        self.catch_up();
        match &mut self.search {
            Search::Stream(scanner, joint) => {
                scanner.end();
                joint.as_mut().map_or(Ok(()), Joint::end)?;
            }
            Search::Either(both) => both.iter_mut().for_each(Scanner::end),
            Search::Grpc(grpc) => {
                let (frames, messages, stream) = &mut **grpc;
                stream.end();
                in_stream(stream, &self.inspection)?;
                messages.end_message()?;
                frames.end(&self.inspection)?;
            }
        }
        self.judge()
    }

    fn judge(&mut self) -> Result<(), Objection> {
        match &mut self.search {
            Search::Stream(scanner, _) => {
                let uninspectable = scanner.uninspectable();
                self.inspection.foreign(scanner)?;
                if let Some(rule) = scanner.found() {
                    let mark = scanner.found_mark();
                    let spans = if self.masks { scanner.take_spans() } else { None };
                    self.mask(spans.ok_or(Objection::Secret(rule, mark))?);
                }
                self.inspection.readable(uninspectable)?;
            }
            Search::Either(both) => {
                let found = |scanner: &Scanner<'_>| Some((scanner.found()?, scanner.found_mark()));
                let found = both.iter().find_map(found);
                found.map_or(Ok(()), |(rule, mark)| Err(Objection::Secret(rule, mark)))?;
                let [decoded, as_it_stands] = &**both;
                self.inspection.readable(decoded.uninspectable())?;
                self.inspection.readable(as_it_stands.missed_for_want_of_memory())?;
            }
            // Judged as it comes.
            Search::Grpc(_) => {}
        }
        // Where only what is found is refused, what is held for too long goes on.
        if self.held() > HELD_MAX && self.inspection.looks_at_heads() { Err(Objection::Held) } else { Ok(()) }
    }

    /// Masks what still waits of the secrets; what stood before it is the part that everybody knows.
    fn mask(&mut self, spans: Vec<Range<u64>>) {
        let first = self.taken - self.waiting_bytes;
        let mut text = BytesMut::with_capacity(usize::try_from(self.waiting_bytes).unwrap_or(0));
        self.waiting.drain(..).for_each(|part| text.extend_from_slice(&part));
        for span in spans {
            let index = |position: u64| {
                usize::try_from(position.saturating_sub(first)).unwrap_or(usize::MAX).min(text.len())
            };
            let span = index(span.start)..index(span.end);
            text[span].fill(MASK);
        }
        self.waiting.push_back(text.freeze());
    }

    fn held(&self) -> u64 {
        match &self.search {
            _ if self.ended => 0,
            Search::Stream(scanner, joint) => scanner.held().max(joint.as_ref().map_or(0, Joint::held)),
            Search::Either(both) => both.iter().map(Scanner::held).max().unwrap_or(0),
            Search::Grpc(grpc) => {
                let (frames, messages, stream) = &**grpc;
                // A whole message goes on: what answers it may be waited for before there is more.
                if frames.is_between() { 0 } else { messages.held().max(stream.held()) }
            }
        }
    }

    /// What may go on now.
    fn next(&mut self) -> Option<Bytes> {
        let free = self.waiting_bytes - self.held().min(HELD_MAX).min(self.waiting_bytes);
        let mut first = self.waiting.pop_front()?;
        let length = usize::try_from(free).unwrap_or(usize::MAX).min(first.len());
        let part = first.split_to(length);
        if !first.is_empty() {
            self.waiting.push_front(first);
        }
        self.waiting_bytes -= length as u64;
        if length > 0 {
            self.inspection.let_out();
        }
        (length > 0).then_some(part)
    }

    fn cut(&mut self, objection: Objection) -> Error {
        if let Search::Stream(_, Some(joint)) = &mut self.search {
            joint.forget();
        }
        self.inspection.object(objection);
        self.inspection.end();
        Error::Io(io::Error::new(io::ErrorKind::PermissionDenied, "the body may not leave"))
    }
}

/// An objection to a secret in the stream as it stands; what else there is to say of its messages is said of each.
fn in_stream(stream: &Scanner<'_>, inspection: &Inspection) -> Result<(), Objection> {
    match stream.found() {
        Some(rule) => Err(Objection::Secret(rule, stream.found_mark())),
        None => inspection.readable(stream.missed_for_want_of_memory()),
    }
}

impl Drop for Examined {
    fn drop(&mut self) {
        self.inspection.end();
    }
}

impl HttpBody for Examined {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        if this.inspection.objection().is_some() {
            return Poll::Ready(None);
        }
        loop {
            if let Some(part) = this.next() {
                return Poll::Ready(Some(Ok(Frame::data(part))));
            }
            if this.ended {
                this.inspection.end();
                return Poll::Ready(None);
            }
            let outcome = match ready!(Pin::new(&mut this.inner).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.take(data),
                    // Trailers of a request end at the meter.
                    Err(_) => Ok(()),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => this.end(),
            };
            if let Err(objection) = outcome {
                return Poll::Ready(Some(Err(this.cut(objection))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.waiting.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint().exact().map_or_else(SizeHint::default, |rest| {
            SizeHint::with_exact(rest.saturating_add(self.waiting_bytes))
        })
    }
}
