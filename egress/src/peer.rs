//! What supervise asks us, and what we tell it, over the socket that the supervisor made for the pair.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::{MsgFlags, recv, send};
use proposal::peer::{Answer, BLOCK_ID_MAX, DATAGRAM_MAX, Question, datagram, message};
use tracing::debug;

use crate::proxy::Proxy;
use crate::sys;

/// The name under which the socket is handed over.
pub const SOCKET_NAME: &str = "peer.supervise";

/// Answers and tells until the other end is gone, which the supervisor keeps open. What there is no room for is dropped: supervise expects
/// that.
pub async fn serve(socket: OwnedFd, proxy: Arc<Proxy>) -> io::Result<()> {
    let socket = sys::poll(socket)?;
    let mut buffer = vec![0; DATAGRAM_MAX + 1];
    let mut words = proxy.holds.words();
    let send = |message: &[u8]| {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        if let Err(error) = send(socket.as_raw_fd(), message, flags) {
            debug!(%error, "a message to supervise was dropped");
        }
    };
    loop {
        let word = async {
            match &mut words {
                Some(words) => words.recv().await,
                None => std::future::pending().await,
            }
        };
        let mut ready = tokio::select! {
            ready = socket.readable() => ready?,
            word = word => {
                if let Some(word) = word.as_ref().and_then(datagram) {
                    send(&word);
                }
                continue;
            }
        };
        let received = ready.try_io(|socket| {
            recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).map_err(io::Error::from)
        });
        let length = match received {
            Ok(Ok(0)) => return Ok(()),
            Ok(Ok(length)) => length,
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => continue,
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => continue,
        };
        let Some(question) = message::<Question>(&buffer[..length]) else {
            debug!("a message of supervise was not understood");
            continue;
        };
        if let Some(reply) = answer(&proxy, question).await.as_ref().and_then(datagram) {
            send(&reply);
        }
    }
}

async fn answer(proxy: &Proxy, question: Question) -> Option<Answer> {
    Some(match question {
        Question::Refusal { seq, block_id } if block_id.len() <= BLOCK_ID_MAX => {
            Answer::Refusal { seq, refusal: proxy.recorder.observer().refusal(&block_id) }
        }
        Question::Refusal { seq, .. } => Answer::Refusal { seq, refusal: None },
        Question::Head { seq } => {
            let (records, hash) = proxy.recorder.head().await?;
            Answer::Head { seq, records, hash }
        }
        Question::Finding { seq, fingerprint } => {
            Answer::Finding { seq, finding: proxy.marking.find(&fingerprint) }
        }
        Question::Holds { seq } => Answer::Holds { seq, ids: proxy.holds.ids() },
        Question::Decide { seq, id, digest, verdict, reason } => {
            let reason = reason.chars().filter(|c| !c.is_control()).collect();
            Answer::Decided { seq, waited: proxy.holds.decide(&id, &digest, verdict, reason) }
        }
    })
}
