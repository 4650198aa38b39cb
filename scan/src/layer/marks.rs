//! Which position of a text a position of the text inside it came from.

use std::collections::VecDeque;

/// Positions inside in order, each with where it stood and how far apart those after it stood.
#[derive(Debug, Default)]
pub(super) struct Marks(VecDeque<Mark>);

#[derive(Debug, Clone, Copy)]
struct Mark {
    inner: u64,
    outer: u64,
    step: Option<u64>,
}

impl Mark {
    fn outer_of(&self, inner: u64) -> u64 {
        self.outer + (inner - self.inner) * self.step.unwrap_or(1)
    }
}

impl Marks {
    /// The byte at `inner`, which comes after all before, stood at `outer`.
    pub(super) fn push(&mut self, inner: u64, outer: u64) {
        if let Some(last) = self.0.back_mut() {
            if last.step.is_none() && inner == last.inner + 1 {
                last.step = Some(outer - last.outer);
                return;
            }
            if last.outer_of(inner) == outer {
                return;
            }
        }
        self.0.push_back(Mark { inner, outer, step: None });
    }

    /// Where the byte at `inner` stood.
    pub(super) fn outer(&self, inner: u64) -> u64 {
        let after = self.0.partition_point(|mark| mark.inner <= inner);
        after.checked_sub(1).and_then(|at| self.0.get(at)).map_or(0, |mark| mark.outer_of(inner))
    }

    /// How much memory they take.
    pub(super) fn room(&self) -> usize {
        self.0.capacity() * size_of::<Mark>()
    }

    /// Gives back what it takes beyond what is in it.
    pub(super) fn shrink(&mut self) {
        self.0.shrink_to_fit();
    }

    /// Forgets what is not needed for positions from `inner` on.
    pub(super) fn forget_before(&mut self, inner: u64) {
        while self.0.get(1).is_some_and(|next| next.inner <= inner) {
            self.0.pop_front();
        }
    }
}
