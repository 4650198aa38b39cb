//! Memory for what is decoded: one account for all scans that are given it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How much memory decoders may hold at once, over all scans and [`crate::Decoder`]s that share it. There is no bound by default.
///
/// A decoder is counted before it sets memory aside, and until that is given back: its tables and its window, and what is kept of the text
/// that comes out of it. A text in which nothing is encoded is not counted.
#[derive(Debug, Clone, Default)]
pub struct Budget(Option<Arc<Account>>);

#[derive(Debug)]
struct Account {
    most: usize,
    held: AtomicUsize,
}

/// There is no more of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spent;

impl Budget {
    /// Without a bound.
    pub const UNBOUNDED: Budget = Budget(None);

    /// Of so many bytes.
    pub fn of(bytes: usize) -> Budget {
        Budget(Some(Arc::new(Account { most: bytes, held: AtomicUsize::new(0) })))
    }

    /// How many bytes are held now; none where nobody counts.
    pub fn held(&self) -> usize {
        self.0.as_ref().map_or(0, |account| account.held.load(Ordering::Relaxed))
    }

    /// Leave to hold memory, of none as yet.
    pub(crate) fn permit(&self) -> Permit {
        Permit { budget: self.clone(), bytes: 0 }
    }
}

/// Leave to hold some memory, given back when it is dropped: after what it is for.
#[derive(Debug, Default)]
pub(crate) struct Permit {
    budget: Budget,
    bytes: usize,
}

impl Permit {
    pub(crate) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Has it cover so many bytes, more or fewer than before; where there are not so many, it stays as it was.
    pub(crate) fn cover(&mut self, bytes: usize) -> Result<(), Spent> {
        if let Some(account) = self.budget.0.as_ref().filter(|_| bytes != self.bytes) {
            if let Some(more) = bytes.checked_sub(self.bytes) {
                let taken = |held: usize| held.checked_add(more).filter(|held| *held <= account.most);
                account.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).map_err(|_| Spent)?;
            } else {
                account.held.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
            }
        }
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let _ = self.cover(0);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_given_than_there_is_and_all_of_it_comes_back() {
        let budget = Budget::of(100);
        let (mut first, mut second) = (budget.permit(), budget.permit());
        first.cover(60).unwrap();
        assert_eq!(second.cover(41), Err(Spent));
        second.cover(40).unwrap();
        assert_eq!((first.cover(61), budget.held()), (Err(Spent), 100));
        first.cover(10).unwrap();
        second.cover(usize::MAX).unwrap_err();
        second.cover(90).unwrap();
        drop(first);
        assert_eq!(budget.held(), 90);
        drop(second);
        assert_eq!(budget.held(), 0);
        Budget::default().permit().cover(usize::MAX).unwrap();
    }
}
