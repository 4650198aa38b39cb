//! Why an answer was cut, told to its record.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::journal::Entry;
use crate::refusal::Refusal;

/// Shared by an answer's body and its record, which is written once both have ended: of a short answer all has come before any of it is
/// searched.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ending(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    refusal: OnceLock<Refusal>,
    record: Mutex<Option<Box<Entry>>>,
}

impl Ending {
    /// Notes why.
    pub(super) fn cut(&self, refusal: Refusal) {
        let _ = self.0.refusal.set(refusal);
    }

    /// Keeps the record until the body has ended too.
    pub(crate) fn settle(self, entry: Box<Entry>) {
        *self.0.record.lock().unwrap_or_else(PoisonError::into_inner) = Some(entry);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let record = self.record.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let (Some(mut entry), Some(refusal)) = (record, self.refusal.get()) {
            entry.cut(refusal);
        }
    }
}
