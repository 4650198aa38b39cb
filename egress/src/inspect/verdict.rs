//! What the search of a body came to, told to those who wait for it: the answer's side, and the record.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::combinators::BoxBody;
use hudsucker::{Body, Error};
use tokio::sync::Notify;

use super::{Inspection, Objection};
use crate::body::Parting;
use crate::journal::Entry;
use crate::refusal::Refusal;

/// What the search came to so far.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    objection: OnceLock<Objection>,
    raised: Notify,
    /// Some of the body has left.
    let_out: AtomicBool,
    record: Mutex<Record>,
}

/// Who writes the record: of the request's body and the answer the one that ends last.
#[derive(Debug, Default)]
enum Record {
    #[default]
    BodyEnded,
    BodyFlows,
    /// The answer has ended.
    Waits(Box<Entry>),
}

impl Inspection {
    /// Why the body was cut.
    pub(crate) fn objection(&self) -> Option<Refusal> {
        self.verdict.objection.get().map(|objection| objection.refusal("body"))
    }

    /// Returns when the body is cut: the client of upstream may not tell while it waits for an answer.
    pub(crate) async fn objected(&self) -> Refusal {
        loop {
            if let Some(refusal) = self.objection() {
                return refusal;
            }
            self.verdict.raised.notified().await;
        }
    }

    pub(super) fn object(&self, objection: Objection) {
        let _ = self.verdict.objection.set(objection);
        self.verdict.raised.notify_one();
    }

    /// The body begins to flow.
    pub(super) fn begin(&self) {
        *self.record() = Record::BodyFlows;
    }

    /// Some of it leaves.
    pub(super) fn let_out(&self) {
        self.verdict.let_out.store(true, Ordering::Relaxed);
    }

    /// Nothing more of it comes.
    pub(super) fn end(&self) {
        let before = std::mem::take(&mut *self.record());
        if let Record::Waits(mut entry) = before {
            self.mark(&mut entry);
        }
    }

    /// Whether the body may still be cut.
    pub(crate) fn is_under_way(&self) -> bool {
        !matches!(*self.record(), Record::BodyEnded)
    }

    /// Takes the record of a request whose answer has ended, until its body has ended too.
    pub(crate) fn settle(&self, mut entry: Box<Entry>) {
        let mut record = self.record();
        if matches!(*record, Record::BodyFlows) {
            *record = Record::Waits(entry);
            return;
        }
        drop(record);
        self.mark(&mut entry);
    }

    fn mark(&self, entry: &mut Entry) {
        let Some(refusal) = self.objection() else { return };
        // What upstream did after its answer had begun says less.
        if entry.event.block_id.is_none() {
            entry.cut(&refusal);
        }
        entry.event.late = self.verdict.let_out.load(Ordering::Relaxed);
    }

    fn record(&self) -> std::sync::MutexGuard<'_, Record> {
        self.verdict.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `inner`, which breaks off when the request that it answers is cut.
pub(crate) fn ended_by(inner: Body, inspection: Inspection) -> Body {
    if !inspection.is_under_way() {
        return inner;
    }
    let objected = Box::pin(async move { inspection.objected().await });
    Body::from(BoxBody::new(EndedBy { inner, objected, parting: Parting::default() }))
}

struct EndedBy {
    inner: Body,
    parting: Parting,
    objected: Pin<Box<dyn Future<Output = Refusal> + Send + Sync>>,
}

impl HttpBody for EndedBy {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let EndedBy { inner, objected, parting } = &mut *self;
        parting.poll(context, |context| {
            if objected.as_mut().poll(context).is_ready() {
                let error = io::Error::new(io::ErrorKind::PermissionDenied, "the request may not leave");
                return Poll::Ready(Some(Err(Error::Io(error))));
            }
            Pin::new(inner).poll_frame(context)
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
