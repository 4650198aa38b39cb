//! What supervise asks us over the socket that the supervisor made for the pair.

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

/// Answers until the other end is gone, which the supervisor keeps open. An answer for which there is no room is dropped:
/// whoever asked expects that.
pub async fn serve(socket: OwnedFd, proxy: Arc<Proxy>) -> io::Result<()> {
    let socket = sys::poll(socket)?;
    let mut buffer = vec![0; DATAGRAM_MAX + 1];
    loop {
        let mut ready = socket.readable().await?;
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
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            if let Err(error) = send(socket.as_raw_fd(), &reply, flags) {
                debug!(%error, "an answer to supervise was dropped");
            }
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
        Question::Holds { seq } => Answer::Holds { seq, ids: Vec::new() },
        Question::Decide { seq, .. } => Answer::Decided { seq, waited: false },
    })
}
