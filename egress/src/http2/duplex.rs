//! A stream that carries bytes both ways (RFC 9113, section 8.5; RFC 8441, section 5).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{FRAME_BYTES, broken};

/// Ends with what was written to it: with a reset h2 would discard what is still on its way.
pub(crate) struct Duplex {
    send: SendStream<Bytes>,
    content: RecvStream,
    /// What came and was not read yet.
    unread: Bytes,
    is_shut: bool,
}

impl Duplex {
    pub(super) fn new(send: SendStream<Bytes>, content: RecvStream) -> Duplex {
        Duplex { send, content, unread: Bytes::new(), is_shut: false }
    }

    fn shut(&mut self) -> io::Result<()> {
        if !self.is_shut {
            self.is_shut = true;
            self.send.send_data(Bytes::new(), true).map_err(broken)?;
        }
        Ok(())
    }
}

impl Drop for Duplex {
    fn drop(&mut self) {
        // One that was reset has no end.
        let _ = self.shut();
    }
}

impl AsyncRead for Duplex {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(self.content.poll_data(context)) {
                Some(bytes) => self.unread = bytes.map_err(broken)?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.unread[..length]);
        self.unread.advance(length);
        // Who sends may send as much again; for a stream that has ended there is no window.
        let _ = self.content.flow_control().release_capacity(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Duplex {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(reason) = self.send.poll_reset(context) {
            return Poll::Ready(Err(broken(reason.map_or_else(|error| error, h2::Error::from))));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.send.reserve_capacity(bytes.len().min(FRAME_BYTES as usize));
        while self.send.capacity() == 0 {
            match ready!(self.send.poll_capacity(context)) {
                Some(capacity) => _ = capacity.map_err(broken)?,
                None => return Poll::Ready(Err(broken(Reason::STREAM_CLOSED.into()))),
            }
        }
        let length = bytes.len().min(self.send.capacity());
        self.send.send_data(Bytes::copy_from_slice(&bytes[..length]), false).map_err(broken)?;
        Poll::Ready(Ok(length))
    }

    /// What is written goes out with the connection.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.shut())
    }
}
