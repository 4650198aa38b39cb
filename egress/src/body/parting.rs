//! What ends a body early is told a moment after it was met.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use hudsucker::Error;
use tokio::time::{Sleep, sleep};

/// How long what came before may take to be written.
const MOMENT: Duration = Duration::from_millis(20);

type Polled = Poll<Option<Result<Frame<Bytes>, Error>>>;

/// The error of a body. Whoever serves it drops what is not written yet once it is told, in HTTP/2 also what the connection has still to
/// write: the head, and what came of the body before the error.
#[derive(Default)]
pub(crate) struct Parting(Option<(Error, Pin<Box<Sleep>>)>);

impl Parting {
    /// What `poll` gives; an error a moment later.
    pub(crate) fn poll(
        &mut self,
        context: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Polled,
    ) -> Polled {
        if self.0.is_none() {
            match poll(context) {
                Poll::Ready(Some(Err(error))) => self.0 = Some((error, Box::pin(sleep(MOMENT)))),
                other => return other,
            }
        }
        if let Some((_, moment)) = &mut self.0 {
            ready!(moment.as_mut().poll(context));
        }
        Poll::Ready(self.0.take().map(|(error, _)| Err(error)))
    }
}
