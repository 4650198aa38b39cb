//! A writer that ends when it is told to, also in the middle of a write that would never come to its end.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;
use tokio::sync::oneshot;

/// A writer to somebody who may be gone without it being seen there: what goes to a channel of ssh waits for its window,
/// and nobody opens the window of a channel that is closed.
pub(crate) struct Until<W> {
    to: W,
    end: oneshot::Receiver<Infallible>,
    ended: bool,
}

impl<W> Until<W> {
    /// Writes until the second value is gone.
    pub(crate) fn new(to: W) -> (Self, oneshot::Sender<Infallible>) {
        let (open, end) = oneshot::channel();
        (Self { to, end, ended: false }, open)
    }

    fn poll_ended(&mut self, context: &mut Context<'_>) -> bool {
        self.ended = self.ended || Pin::new(&mut self.end).poll(context).is_ready();
        self.ended
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Until<W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.poll_ended(context) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut self.to).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = self.poll_ended(context);
        match Pin::new(&mut self.to).poll_flush(context) {
            _ if ended => Poll::Ready(Ok(())),
            flushed => flushed,
        }
    }

    /// Who has read all that it wants may be gone before it is told that this was all.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = self.poll_ended(context);
        match Pin::new(&mut self.to).poll_shutdown(context) {
            _ if ended => Poll::Ready(Ok(())),
            shut => shut,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn a_write_that_nobody_reads_ends_when_it_is_told_to() {
        let (to, _unread) = tokio::io::duplex(4);
        let (mut writer, open) = Until::new(to);
        writer.write_all(b"read").await.expect("there is room");
        let (written, ()) = tokio::join!(writer.write_all(b"more"), async { drop(open) });
        assert_eq!(written.expect_err("there is none").kind(), io::ErrorKind::BrokenPipe);
        writer.shutdown().await.expect("it is over");
    }
}
