//! Bytes passed both ways between two streams, counted and bounded in silence.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use policy::Denial;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};

use crate::body::{Limits, Progress};
use crate::lease::Lease;

/// Bytes both ways.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for S {}

/// What went through, and how.
#[derive(Debug)]
pub(crate) struct Spliced {
    pub(crate) up: Arc<Progress>,
    pub(crate) down: Arc<Progress>,
}

/// Why no more is passed on.
pub(crate) enum Ended {
    /// Both sides have closed, or one has failed.
    ByThem,
    /// Nothing came for too long.
    Silent,
    /// It is no longer allowed.
    Revoked(Denial),
}

/// Passes bytes until both sides have closed, one fails, or a limit is reached.
pub(crate) async fn splice(
    agent: impl AsyncRead + AsyncWrite + Unpin,
    upstream: impl AsyncRead + AsyncWrite + Unpin,
    spliced: &Spliced,
    limits: &Limits,
) -> Ended {
    let mut agent = Counted { inner: agent, progress: Arc::clone(&spliced.up), answers: None };
    let answers = Some(Arc::clone(&limits.lease));
    let mut upstream = Counted { inner: upstream, progress: Arc::clone(&spliced.down), answers };
    tokio::select! {
        _ = copy_bidirectional(&mut agent, &mut upstream) => {
            limits.lease.unsearched().map_or_else(Ended::Revoked, |()| Ended::ByThem)
        }
        ended = spliced.limit(limits) => ended,
    }
}

impl Spliced {
    /// Returns when a limit is reached.
    pub(crate) async fn limit(&self, limits: &Limits) -> Ended {
        let silence = async {
            while !(self.up.is_stalled(limits.idle) && self.down.is_stalled(limits.idle)) {
                self.up.stalled(limits.idle).await;
                self.down.stalled(limits.idle).await;
            }
        };
        tokio::select! {
            () = silence => Ended::Silent,
            denial = Arc::clone(&limits.lease).ended() => Ended::Revoked(denial),
        }
    }
}

/// Counts what is read from it.
struct Counted<S> {
    inner: S,
    progress: Arc<Progress>,
    /// Where it is what comes back: what allows it.
    answers: Option<Arc<Lease>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        if self.answers.as_ref().is_some_and(|lease| lease.unsearched().is_err()) {
            return Poll::Ready(Err(io::Error::other("this may not go on unsearched")));
        }
        self.progress.note(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

/// A stream with bytes that were read from it before.
pub(crate) struct Prefixed<S> {
    prefix: bytes::Bytes,
    inner: S,
}

impl<S> Prefixed<S> {
    pub(crate) fn new(prefix: Vec<u8>, inner: S) -> Prefixed<S> {
        Prefixed { prefix: prefix.into(), inner }
    }

    /// What was read before and not taken yet, and the stream.
    pub(crate) fn into_parts(self) -> (bytes::Bytes, S) {
        (self.prefix, self.inner)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.inner).poll_read(context, buffer);
        }
        let length = self.prefix.len().min(buffer.remaining());
        let taken = self.prefix.split_to(length);
        buffer.put_slice(&taken);
        if self.prefix.is_empty() {
            self.prefix = bytes::Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match buffers {
            // Most times there is one, and send(2) takes less than writev(2).
            [buffer] => Pin::new(&mut self.inner).poll_write(context, buffer),
            _ => Pin::new(&mut self.inner).poll_write_vectored(context, buffers),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
