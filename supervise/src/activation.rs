//! The two protocols of a supervised service: sockets by descriptor (sd_listen_fds(3)) and readiness (sd_notify(3)).

use std::convert::Infallible;
use std::env;
use std::future::pending;
use std::io;
use std::net::TcpListener;
use std::os::fd::{OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;
use std::time::Duration;

use tracing::debug;

use crate::sys;

const FIRST_FD: RawFd = 3;
/// What the name of a socket to a peer begins with.
const PEER: &str = "peer.";
const VARIABLES: [&str; 3] = ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// Why the sockets that were passed cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The variables make no sense.
    #[error("LISTEN_FDS and LISTEN_FDNAMES do not describe descriptors: {0}")]
    Variables(String),
    /// A descriptor is not what it should be.
    #[error("descriptor {fd} ({name}) was passed but cannot be used")]
    Descriptor {
        /// Its number.
        fd: RawFd,
        /// Its name.
        name: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// What the parent passed to this process.
#[derive(Debug, Default)]
pub struct Passed {
    /// Sockets to serve the bottle on.
    pub listeners: Vec<TcpListener>,
    /// Sockets to the daemons beside this one, by their names.
    pub peers: Vec<(String, OwnedFd)>,
}

/// Takes the listening sockets of that name and the sockets to the peers which the parent passed to this process, and closes every other
/// descriptor it passed. Without the variables there are none. To be called once, before there is another thread.
///
/// # Errors
/// When what was passed cannot be used.
pub fn take(name: &str) -> Result<Passed, Error> {
    let [count, pid, names] = VARIABLES.map(|variable| env::var(variable).ok());
    sys::forget(&VARIABLES);
    let Some(count) = count.filter(|_| pid == Some(std::process::id().to_string())) else {
        return Ok(Passed::default());
    };
    let fds = plan(&count, names.as_deref().unwrap_or_default())?;
    let mut passed = Passed::default();
    for (fd, given) in fds {
        let owned = sys::adopt(fd).map_err(|errno| Error::Descriptor {
            fd,
            name: given.clone(),
            source: errno.into(),
        })?;
        if given == name {
            let listener = TcpListener::from(owned);
            listener
                .set_nonblocking(true)
                .and_then(|()| listener.local_addr())
                .map_err(|source| Error::Descriptor { fd, name: given, source })?;
            passed.listeners.push(listener);
        } else if let Some(peer) = given.strip_prefix(PEER) {
            passed.peers.push((peer.to_owned(), owned));
        }
    }
    Ok(passed)
}

/// Number and name of each descriptor.
fn plan(count: &str, names: &str) -> Result<Vec<(RawFd, String)>, Error> {
    let count: RawFd = count
        .parse()
        .ok()
        .filter(|count| (0..=1024).contains(count))
        .ok_or_else(|| Error::Variables(format!("LISTEN_FDS={count}")))?;
    let mut names = names.split(':');
    Ok((FIRST_FD..FIRST_FD + count).map(|fd| (fd, names.next().unwrap_or_default().to_owned())).collect())
}

/// Where to report readiness, if anywhere.
#[derive(Debug, Clone, Default)]
pub struct Notify(Option<PathBuf>);

impl Notify {
    /// As NOTIFY_SOCKET says.
    #[must_use]
    pub fn from_env() -> Notify {
        Notify(env::var_os("NOTIFY_SOCKET").map(PathBuf::from))
    }

    /// Sends one report.
    ///
    /// # Errors
    /// When the receiver is gone.
    pub fn send(&self, report: &str) -> io::Result<()> {
        let Some(path) = &self.0 else { return Ok(()) };
        let address = match path.to_str().and_then(|text| text.strip_prefix('@')) {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(path)?,
        };
        UnixDatagram::unbound()?.send_to_addr(report.as_bytes(), &address).map(drop)
    }

    /// A sign of life, where `WATCHDOG_USEC` asks for some. The first goes out before `READY=1`, so that who serves is watched.
    pub fn alive(&self) {
        if silence_allowed().is_some()
            && let Err(error) = self.send("WATCHDOG=1")
        {
            debug!(%error, "cannot give a sign of life");
        }
    }

    /// Gives signs of life, three in the time that `WATCHDOG_USEC` allows. Belongs on the runtime that serves: they end when it does
    /// nothing any more.
    pub async fn keep_alive(&self) -> Infallible {
        let Some(allowed) = silence_allowed() else { return pending().await };
        let mut ticks = tokio::time::interval(allowed / 3);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.alive();
        }
    }
}

/// How long we may be silent; nobody watches without the variable (sd_watchdog_enabled(3)).
fn silence_allowed() -> Option<Duration> {
    let micros = env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    (micros >= 3).then(|| Duration::from_micros(micros))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_counted_from_three_and_named_in_order() {
        let named = |fd, name: &str| (fd, name.to_owned());
        assert_eq!(plan("2", "supervise:other").unwrap(), [named(3, "supervise"), named(4, "other")]);
        assert_eq!(plan("2", "supervise").unwrap(), [named(3, "supervise"), named(4, "")]);
        assert!(matches!(plan("-1", ""), Err(Error::Variables(_))));
        assert!(matches!(plan("many", ""), Err(Error::Variables(_))));
    }

    #[test]
    fn readiness_reaches_a_path_and_an_abstract_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let receiver = UnixDatagram::bind(&path).unwrap();
        Notify(Some(path)).send("READY=1").unwrap();
        let mut buffer = [0; 64];
        let length = receiver.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1");

        let name = format!("supervise-test-{}", std::process::id());
        let receiver = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        Notify(Some(PathBuf::from(format!("@{name}")))).send("READY=1").unwrap();
        let length = receiver.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1");
    }
}
