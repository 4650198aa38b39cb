//! The other end of a connection, which has to be who is expected, and opens nothing here.
//!
//! That is asked when the connection begins. Keys that are exchanged anew later are exchanged within it, with who holds the
//! keys that there were; which host key is shown then is not asked again, for russh has no place to ask it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use repos::HostKey;
use russh::Channel;
use russh::client::{ChannelOpenHandle, DisconnectReason, Handler, Msg, Session};
use russh::keys::PublicKeyOrCertificate;

type Answer = Result<(), russh::Error>;

/// Who the other end has to be.
pub(super) struct Pinned {
    key: String,
    dismissed: Arc<AtomicBool>,
}

impl Pinned {
    /// The flag is set once the other end takes its leave, in words.
    pub(super) fn new(key: &HostKey, dismissed: Arc<AtomicBool>) -> Self {
        Self { key: key.to_string(), dismissed }
    }
}

/// A channel that the other end wants is refused with the handle that would accept it.
impl Handler for Pinned {
    type Error = russh::Error;

    async fn disconnected(&mut self, reason: DisconnectReason<russh::Error>) -> Answer {
        match reason {
            DisconnectReason::ReceivedDisconnect(_) => {
                self.dismissed.store(true, Ordering::Relaxed);
                Ok(())
            }
            DisconnectReason::Error(error) => Err(error),
        }
    }

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } => {
                key.to_openssh().is_ok_and(|key| key == self.key)
            }
            PublicKeyOrCertificate::Certificate(_) => false,
        })
    }

    async fn server_channel_open_session(
        &mut self,
        _: Channel<Msg>,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Answer {
        Ok(())
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        _: Channel<Msg>,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Answer {
        Ok(())
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Answer {
        Ok(())
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Answer {
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Answer {
        Ok(())
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Answer {
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Answer {
        Ok(())
    }
}
