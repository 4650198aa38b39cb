//! Whether the other side of a connection is still there.

use std::future::pending;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{sleep, timeout};

/// Who says nothing for so long is asked.
const SILENCE: Duration = Duration::from_secs(30);
/// For so long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A stream that notes whether anything goes through it.
pub(super) struct Heard<S> {
    inner: S,
    signs: Arc<Signs>,
}

/// What happened since it was last looked at.
#[derive(Debug, Default)]
pub(super) struct Signs {
    came: AtomicBool,
    went: AtomicBool,
}

/// Asks who says nothing.
pub(super) struct Pulse {
    signs: Arc<Signs>,
    pings: Option<PingPong>,
    silence: Duration,
    patience: Duration,
}

impl<S> Heard<S> {
    pub(super) fn new(inner: S) -> Heard<S> {
        Heard { inner, signs: Arc::default() }
    }

    pub(super) fn signs(&self) -> Arc<Signs> {
        Arc::clone(&self.signs)
    }
}

impl Signs {
    fn any(&self) -> bool {
        let came = self.came.swap(false, Ordering::Relaxed);
        self.went.swap(false, Ordering::Relaxed) || came
    }
}

impl Pulse {
    pub(super) fn new(signs: Arc<Signs>, pings: Option<PingPong>) -> Pulse {
        Pulse { signs, pings, silence: SILENCE, patience: PATIENCE }
    }

    /// Returns when the other side is gone. It is asked only while `matters` says so.
    pub(super) async fn lost(&mut self, matters: impl Fn() -> bool) {
        let Some(pings) = &mut self.pings else { return pending().await };
        loop {
            sleep(self.silence).await;
            if self.signs.came.swap(false, Ordering::Relaxed) || !matters() {
                continue;
            }
            let mut answer = pin!(pings.ping(Ping::opaque()));
            loop {
                match timeout(self.patience, answer.as_mut()).await {
                    Ok(Ok(_)) => break,
                    // A connection that has ended by itself says so to who reads it.
                    Ok(Err(_)) => return pending().await,
                    // The question or the answer may stand behind what goes through slowly.
                    Err(_) if self.signs.any() => {}
                    Err(_) => return,
                }
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        self.signs.came.store(true, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(context, bytes))?;
        self.signs.went.store(true, Ordering::Relaxed);
        Poll::Ready(Ok(written))
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
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write_vectored(context, buffers))?;
        self.signs.went.store(true, Ordering::Relaxed);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    const PING: u8 = 6;
    const ACK: u8 = 1;

    /// A connection that asks soon, and its client.
    async fn served() -> (h2::server::Connection<Heard<DuplexStream>, Bytes>, Pulse, DuplexStream) {
        let (mut client, server) = tokio::io::duplex(1024);
        client.write_all(PREFACE).await.unwrap();
        let server = Heard::new(server);
        let signs = server.signs();
        let mut connection = h2::server::handshake(server).await.unwrap();
        let pings = connection.ping_pong();
        let pulse = Pulse { silence: Duration::from_millis(1), ..Pulse::new(signs, pings) };
        (connection, pulse, client)
    }

    /// The next PING that asks.
    async fn asked(client: &mut DuplexStream) -> [u8; 8] {
        loop {
            let mut head = [0; 9];
            client.read_exact(&mut head).await.unwrap();
            let mut payload = vec![0; usize::from(head[2])];
            client.read_exact(&mut payload).await.unwrap();
            if head[3] == PING && head[4] & ACK == 0 {
                return payload.try_into().unwrap();
            }
        }
    }

    #[tokio::test]
    async fn who_answers_is_asked_again_and_who_does_not_is_lost() {
        let (mut connection, mut pulse, mut client) = served().await;
        pulse.patience = Duration::from_millis(500);
        let lost = tokio::spawn(async move {
            tokio::select! {
                () = pulse.lost(|| true) => true,
                _ = connection.accept() => false,
            }
        });
        for _ in 0..3 {
            let asked = asked(&mut client).await;
            let answer = [&[0, 0, 8, PING, ACK, 0, 0, 0, 0], &asked[..]].concat();
            client.write_all(&answer).await.unwrap();
        }
        assert!(lost.await.unwrap());
    }
}
