//! Sockets from the parent and words to it: sd_listen_fds(3) and sd_notify(3).

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Seek as _};
use std::net::TcpListener;
use std::os::fd::{OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use crate::door::Secret;
use crate::sys;

const FIRST_FD: RawFd = 3;
const FDS_MAX: RawFd = 256;

/// The name under which the socket to supervise is handed over.
const PEER: &str = "peer.supervise";

/// What the name of a handed-over secret begins with.
const SECRET_PREFIX: &str = "secret.";

/// What the parent passed.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Listening sockets.
    pub listeners: Vec<TcpListener>,
    /// The socket to supervise.
    pub peer: Option<OwnedFd>,
    /// Secrets by name.
    pub(crate) secrets: HashMap<String, Secret>,
}

/// Takes the listening sockets with one of these names, the socket to supervise, and secrets; other descriptors of the list are closed.
///
/// Call once, before any thread exists.
pub fn inherited(wanted: &[&str]) -> io::Result<Inherited> {
    let variables = sys::take_listen_variables();
    let ours = variables.pid.as_deref() == Some(std::process::id().to_string().as_str());
    let count =
        variables.fds.and_then(|n| n.parse::<RawFd>().ok()).filter(|n| ours && (0..=FDS_MAX).contains(n));
    let names = variables.names.unwrap_or_default();
    let mut names = names.split(':');
    let mut found = Inherited::default();
    for number in (FIRST_FD..).take(count.unwrap_or(0).unsigned_abs() as usize) {
        let fd: OwnedFd = sys::adopt(number)?;
        match names.next() {
            Some(name) if wanted.contains(&name) => found.listeners.push(TcpListener::from(fd)),
            Some(PEER) => found.peer = Some(fd),
            Some(name) => {
                if let Some(secret) = name.strip_prefix(SECRET_PREFIX) {
                    let mut file = File::from(fd);
                    file.rewind()?;
                    found.secrets.insert(secret.to_owned(), Secret::read(file)?);
                }
            }
            None => {}
        }
    }
    Ok(found)
}

/// The parent that waits for our words, if there is one.
pub struct Notifier {
    address: Option<OsString>,
}

impl Notifier {
    /// From `NOTIFY_SOCKET`.
    pub fn from_environment() -> Self {
        Self { address: std::env::var_os("NOTIFY_SOCKET").filter(|a| !a.is_empty()) }
    }

    /// The configuration of this generation is in force.
    pub fn ready(&self, generation: u64, digest: &str) -> io::Result<()> {
        self.send(&format!("READY=1\nX_GENERATION={generation}\nX_DIGEST={digest}\n"))
    }

    /// A new configuration is being read.
    pub fn reloading(&self) -> io::Result<()> {
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}\n", sys::monotonic_usec()))
    }

    /// The new configuration was refused; the old generation stays.
    pub fn reload_failed(&self, generation: u64, digest: &str, error: &str) -> io::Result<()> {
        let error = error.lines().next().unwrap_or_default();
        self.send(&format!("READY=1\nX_GENERATION={generation}\nX_DIGEST={digest}\nX_RELOAD_ERROR={error}\n"))
    }

    /// A sign of life, where `WATCHDOG_USEC` asks for some. The first goes out before `READY=1`, so that who serves is watched.
    pub fn alive(&self) -> io::Result<()> {
        match silence_allowed() {
            Some(_) => self.send("WATCHDOG=1"),
            None => Ok(()),
        }
    }

    /// Gives signs of life, three in the time that `WATCHDOG_USEC` allows; until whoever listens is gone. Belongs on the runtime that
    /// serves: they end when it does nothing any more.
    pub async fn keep_alive(self) {
        let Some(allowed) = silence_allowed() else { return };
        let mut ticks = tokio::time::interval(allowed / 3);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while self.alive().is_ok() {
            ticks.tick().await;
        }
    }

    fn send(&self, message: &str) -> io::Result<()> {
        let Some(address) = &self.address else {
            return Ok(());
        };
        let address = match address.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(address)?,
        };
        UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address).map(drop)
    }
}

/// How long we may be silent; nobody watches without the variable (sd_watchdog_enabled(3)).
fn silence_allowed() -> Option<Duration> {
    let micros = std::env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    (micros >= 3).then(|| Duration::from_micros(micros))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_is_told_to_a_path_and_to_an_abstract_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("notify");
        let by_path = UnixDatagram::bind(&path).expect("a socket");
        let name = format!("git-gate-test-{}", std::process::id());
        let abstract_name = SocketAddr::from_abstract_name(&name).expect("a name");
        let by_name = UnixDatagram::bind_addr(&abstract_name).expect("a socket");
        for (socket, address) in [(by_path, path.into_os_string()), (by_name, format!("@{name}").into())] {
            Notifier { address: Some(address) }.ready(7, "sha256:ab").expect("sent");
            let mut buffer = [0; 64];
            let n = socket.recv(&mut buffer).expect("received");
            assert_eq!(&buffer[..n], b"READY=1\nX_GENERATION=7\nX_DIGEST=sha256:ab\n");
        }
    }
}
