//! A WebSocket that is ended here: the agent is told so as the protocol has it (RFC 6455, section 7).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;

use super::{FIN, Head, OPCODE};

pub(super) const CLOSE: u8 = 8;
pub(super) const CODE_BYTES: usize = 2;
/// What a control frame may hold beside the code.
const REASON_MAX: usize = 123;
/// How long the agent may take to read the end, and to agree.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);
/// What is read meanwhile, and goes nowhere: unread bytes would have the kernel take back what was said.
const FAREWELL_BYTES: u64 = 1024 * 1024;

/// Why a WebSocket ends (RFC 6455, section 7.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum CloseCode {
    /// Nothing comes any more.
    GoingAway = 1001,
    /// It is not, or no longer, allowed.
    Policy = 1008,
    /// A frame or a message is larger than it may be.
    TooBig = 1009,
}

/// The agent's side of a WebSocket, of which is known whether the frame that was written last is whole.
pub(crate) struct Agent<S> {
    stream: S,
    /// The head of a frame that is not all there.
    head: Vec<u8>,
    /// How much of a frame's content is still to be written.
    left: usize,
    /// Upstream has said that it ends: nothing may follow.
    is_closed: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Agent<S> {
    pub(crate) fn new(stream: S) -> Agent<S> {
        Agent { stream, head: Vec::new(), left: 0, is_closed: false }
    }

    /// Says why it ends, where that can be said, and gives the agent a moment to hear it.
    pub(crate) async fn close(self, code: CloseCode, reason: &str) {
        if self.is_closed || self.left > 0 || !self.head.is_empty() {
            return;
        }
        let mut stream = self.stream;
        let said = async {
            stream.write_all(&close_frame(code, reason)).await?;
            stream.shutdown().await?;
            tokio::io::copy(&mut stream.take(FAREWELL_BYTES), &mut tokio::io::sink()).await
        };
        // Who does not listen is not told.
        let _ = timeout(FAREWELL_TIMEOUT, said).await;
    }

    fn wrote(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.left > 0 {
                let content = self.left.min(bytes.len());
                self.left -= content;
                bytes = &bytes[content..];
                continue;
            }
            self.head.push(*first);
            bytes = rest;
            if let Some(head) = Head::read(&self.head) {
                self.left = head.end - head.content;
                self.is_closed |= head.first & OPCODE == CLOSE;
                self.head.clear();
            }
        }
    }
}

fn close_frame(code: CloseCode, reason: &str) -> Vec<u8> {
    let reason = &reason[..reason.floor_char_boundary(REASON_MAX)];
    let length = u8::try_from(2 + reason.len()).expect("a reason has at most 123 bytes");
    [&[FIN | CLOSE, length], &(code as u16).to_be_bytes()[..], reason.as_bytes()].concat()
}

impl<S: AsyncRead + Unpin> AsyncRead for Agent<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Agent<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.wrote(&bytes[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_closed = true;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// What the agent reads after upstream has sent `before`, in pieces of `size`.
    async fn read(before: &[u8], size: usize, reason: &str) -> Vec<u8> {
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        let mut agent = Agent::new(near);
        for piece in before.chunks(size) {
            agent.write_all(piece).await.unwrap();
        }
        let mut got = Vec::new();
        let reads = async {
            far.read_to_end(&mut got).await.unwrap();
            drop(far);
        };
        tokio::join!(agent.close(CloseCode::Policy, reason), reads);
        got.split_off(before.len())
    }

    #[tokio::test]
    async fn the_end_is_said_between_frames_and_nowhere_else() {
        let short = [0x81, 2, b'h', b'i'];
        let long = [&[0x82, 126, 1, 0][..], &[0; 256]].concat();
        for size in [1, 3, 1000] {
            for whole in [&[][..], &short, &long, &[&short[..], &long].concat()] {
                assert_eq!(read(whole, size, "no").await, [0x88, 4, 3, 0xf0, b'n', b'o'], "{whole:?}");
            }
            for broken in [&short[..1], &short[..3], &long[..2], &long[..259], &[0x88, 0]] {
                assert!(read(broken, size, "no").await.is_empty(), "{broken:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_reason_has_room_in_a_control_frame() {
        let said = read(&[], 1, &"ü".repeat(200)).await;
        assert_eq!((said[0], usize::from(said[1])), (0x88, said.len() - 2));
        assert!(said[1] < 126 && std::str::from_utf8(&said[4..]).is_ok());
    }
}
