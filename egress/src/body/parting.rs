//! What ends a body early is told one poll after it was met.

use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::Frame;
use hudsucker::Error;

type Polled = Poll<Option<Result<Frame<Bytes>, Error>>>;

/// The error of a body. Whoever serves it drops what is not written yet once it is told, and writes that whenever it has to wait: the head
/// and what came of the body before the error.
#[derive(Default)]
pub(crate) struct Parting(Option<Error>);

impl Parting {
    /// What `poll` gives; an error the next time.
    pub(crate) fn poll(
        &mut self,
        context: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Polled,
    ) -> Polled {
        if let Some(error) = self.0.take() {
            return Poll::Ready(Some(Err(error)));
        }
        match poll(context) {
            Poll::Ready(Some(Err(error))) => {
                self.0 = Some(error);
                context.waker().wake_by_ref();
                Poll::Pending
            }
            other => other,
        }
    }
}
