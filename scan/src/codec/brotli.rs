//! Brotli, whose decoder asks for its memory here, piece by piece.

use brotli_decompressor::{
    Allocator, BrotliDecompressStream, BrotliResult, BrotliState, SliceWrapper, SliceWrapperMut,
};

use super::{Damaged, Fault, Step};
use crate::budget::{Budget, Permit};

type State = BrotliState<Counting, Counting, Counting>;

/// A stream on its way.
pub(super) struct Brotli(Option<Box<State>>);

impl Brotli {
    pub(super) fn new() -> Brotli {
        Brotli(None)
    }

    pub(super) fn step(
        &mut self,
        permit: &mut Permit,
        input: &[u8],
        output: &mut [u8],
    ) -> Result<Step, Damaged> {
        let state = match &mut self.0 {
            Some(state) => state,
            none => {
                permit.cover(size_of::<State>())?;
                let counting = || Counting { budget: permit.budget().clone(), is_spent: false };
                // As RFC 7932 has it: windows end at 16 MiB, not at the GiB of "large window Brotli".
                none.insert(Box::new(BrotliState::new_strict(counting(), counting(), counting())))
            }
        };
        let (mut available_in, mut read) = (input.len(), 0);
        let (mut available_out, mut written) = (output.len(), 0);
        let mut total = 0;
        if is_spent(state) {
            return Err(Damaged::by(Fault::Spent, 0));
        }
        let result = BrotliDecompressStream(
            &mut available_in,
            &mut read,
            input,
            &mut available_out,
            &mut written,
            output,
            &mut total,
            state,
        );
        match result {
            BrotliResult::ResultFailure if is_spent(state) => Err(Damaged::by(Fault::Spent, written)),
            BrotliResult::ResultFailure => Err(Damaged::by(Fault::Damaged, written)),
            BrotliResult::ResultSuccess => Ok(Step { read, written, ended: true }),
            BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => {
                Ok(Step { read, written, ended: false })
            }
        }
    }
}

fn is_spent(state: &State) -> bool {
    state.alloc_u8.is_spent || state.alloc_u32.is_spent || state.alloc_hc.is_spent
}

/// Gives memory within a budget; none once that is spent, which the decoder takes for a failure.
struct Counting {
    budget: Budget,
    is_spent: bool,
}

/// Memory that is counted. It is given back before its permit is.
struct Cells<T> {
    cells: Box<[T]>,
    _permit: Permit,
}

impl<T> Default for Cells<T> {
    fn default() -> Self {
        Cells { cells: Box::default(), _permit: Permit::default() }
    }
}

impl<T: Clone + Default> Allocator<T> for Counting {
    type AllocatedMemory = Cells<T>;

    fn alloc_cell(&mut self, length: usize) -> Cells<T> {
        let mut permit = self.budget.permit();
        if permit.cover(length.saturating_mul(size_of::<T>())).is_err() {
            self.is_spent = true;
            return Cells::default();
        }
        Cells { cells: vec![T::default(); length].into(), _permit: permit }
    }

    fn free_cell(&mut self, _: Cells<T>) {}
}

impl<T> SliceWrapper<T> for Cells<T> {
    fn slice(&self) -> &[T] {
        &self.cells
    }
}

impl<T> SliceWrapperMut<T> for Cells<T> {
    fn slice_mut(&mut self) -> &mut [T] {
        &mut self.cells
    }
}
