//! A stream on its way to the bottle: secrets that stand there are masked, and one that is hidden in something ends it.

use std::sync::Arc;

use bytes::Bytes;
use scan::{Scanner, Scrubber};

use super::{Scrub, reflected};
use crate::refusal::{Code, Refusal};
use crate::tasks::aside;

/// Takes secrets out of a stream.
pub(crate) struct Cleaner {
    scrub: Scrub,
    scrubber: Scrubber,
    counted: u64,
    /// Searches what goes on, and what is compressed or encoded in it.
    after: Box<Scanner<'static>>,
    /// Search what went between the pieces of the stream, put together: as it stands, and the texts alone.
    beside: Option<Box<[Scanner<'static>; 2]>>,
}

/// Why a stream may not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Cut {
    #[error("answers of this route held a secret too often")]
    TooOften,
    #[error("the answer holds a secret where it cannot be masked, as in something compressed")]
    Hidden,
    #[error(
        "the answer cannot be searched for secrets: so much is being decoded that there is no memory for it now"
    )]
    Crowded,
}

impl Cut {
    /// As it is told, and recorded.
    pub(crate) fn refusal(self) -> Refusal {
        match self {
            Cut::TooOften => reflected(),
            Cut::Hidden => Refusal::new(Code::SecretReflected, self.to_string()),
            Cut::Crowded => Refusal::new(Code::ContentUninspectable, self.to_string()),
        }
    }
}

impl Cleaner {
    pub(super) fn new(scrub: Scrub) -> Cleaner {
        let scrubber = Scrubber::new(Arc::clone(scrub.lookout.known()));
        let after = Box::new(scrub.scanner());
        Cleaner { scrub, scrubber, counted: 0, after, beside: None }
    }

    /// Takes the next piece, and gives what may go on.
    pub(crate) fn feed(&mut self, piece: Bytes) -> Result<Bytes, Cut> {
        self.catch_up();
        let masked = self.scrubber.feed(&piece).map_or(piece, Bytes::from);
        self.search(masked)
    }

    /// A message ends here: what waited goes on.
    pub(crate) fn end_message(&mut self) -> Result<Bytes, Cut> {
        self.catch_up();
        let rest = Bytes::from(self.scrubber.finish());
        self.search(rest)
    }

    /// The stream ends here.
    pub(crate) fn finish(&mut self) -> Result<Bytes, Cut> {
        let rest = self.end_message()?;
        self.after.end();
        self.judge(&self.after)?;
        Ok(rest)
    }

    /// Masks what stands for itself, between the pieces of the stream. It may complete a secret that began there before, also without its first
    /// `code` bytes.
    pub(crate) fn aside(&mut self, mut content: Vec<u8>, code: usize) -> Result<Vec<u8>, Cut> {
        self.catch_up();
        content = self.scrubber.whole(&content).unwrap_or(content);
        let mut hidden = self.scrub.scanner();
        hidden.feed(&content);
        hidden.end();
        self.count()?;
        self.judge(&hidden)?;
        let known = self.scrub.lookout.known();
        let plain = || Scanner::plain(None, Some(Arc::clone(known)));
        let [as_it_stands, texts] = &mut **self.beside.get_or_insert_with(|| Box::new([plain(), plain()]));
        as_it_stands.feed(&content);
        texts.feed(&content[code..]);
        if as_it_stands.found().or(texts.found()).is_some() { Err(self.hidden()) } else { Ok(content) }
    }

    /// How many bytes wait for what follows.
    pub(crate) fn held(&self) -> usize {
        self.scrubber.held()
    }

    /// Looks for what went out since the stream began, too; what of it has gone on already is not to be had back.
    fn catch_up(&mut self) {
        if let Some(known) = self.scrub.lookout.renewed() {
            self.scrubber.look_for(Arc::clone(known));
            self.after.look_for(Arc::clone(known));
            if let Some(beside) = &mut self.beside {
                beside.iter_mut().for_each(|scanner| scanner.look_for(Arc::clone(known)));
            }
        }
    }

    fn search(&mut self, masked: Bytes) -> Result<Bytes, Cut> {
        self.count()?;
        if self.after.may_expand(&masked) {
            aside(|| self.after.feed(&masked));
        } else {
            self.after.feed(&masked);
        }
        self.judge(&self.after)?;
        Ok(masked)
    }

    fn judge(&self, searched: &Scanner<'_>) -> Result<(), Cut> {
        match searched.found() {
            Some(_) => Err(self.hidden()),
            None if searched.missed_for_want_of_memory().is_some() => Err(Cut::Crowded),
            None => Ok(()),
        }
    }

    /// It counts like a mask: whoever sees where a stream ends has seen as much.
    fn hidden(&self) -> Cut {
        self.scrub.hits.add(1);
        Cut::Hidden
    }

    /// An answer that has already begun ends when secrets came back too often: a stream that lives on is as good for guessing as many answers.
    fn count(&mut self) -> Result<(), Cut> {
        let hits = self.scrubber.hits();
        if hits > self.counted {
            self.scrub.hits.add(hits - self.counted);
            self.counted = hits;
        }
        if self.scrub.hits.is_over() { Err(Cut::TooOften) } else { Ok(()) }
    }
}

impl Drop for Cleaner {
    /// Whoever leaves while a beginning is held has seen that it is.
    fn drop(&mut self) {
        self.scrubber.finish();
        let _ = self.count();
    }
}
