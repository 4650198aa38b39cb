//! What the supervisor is told, by sd_notify(3).

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tracing::warn;

/// The way to the supervisor; without one, nothing is reported.
#[derive(Debug, Default)]
pub(crate) struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
}

/// A time in microseconds, as the supervisor compares them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment(i128);

impl Moment {
    pub(crate) fn now() -> Moment {
        let micros = clock_gettime(ClockId::CLOCK_MONOTONIC)
            .map_or(0, |now| i128::from(now.tv_sec()) * 1_000_000 + i128::from(now.tv_nsec()) / 1_000);
        Moment(micros)
    }
}

impl Notifier {
    /// The socket that `NOTIFY_SOCKET` names: a path, or `@` and an abstract name.
    pub(crate) fn from_env() -> Notifier {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET").and_then(|name| name.into_string().ok()) else {
            return Notifier::default();
        };
        let address = match name.strip_prefix('@') {
            Some(abstract_name) => SocketAddr::from_abstract_name(abstract_name),
            None => SocketAddr::from_pathname(&name),
        };
        match address.and_then(|address| Ok((UnixDatagram::unbound()?, address))) {
            Ok(socket) => Notifier { socket: Some(socket) },
            Err(error) => {
                warn!(%error, "cannot report readiness");
                Notifier::default()
            }
        }
    }

    /// The routes are in force and we serve.
    pub(crate) fn ready(&self, generation: u64, digest: &str) {
        self.send(&format!("READY=1\nX_GENERATION={generation}\nX_DIGEST={digest}"));
    }

    /// The routes are read again, since `began`.
    pub(crate) fn reloading(&self, Moment(began): Moment) {
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={began}"));
    }

    /// The new routes are no good; the old ones stay.
    pub(crate) fn reload_failed(&self, generation: u64, digest: &str, error: &str) {
        let error = error.replace(['\n', '\r'], "; ");
        self.send(&format!("READY=1\nX_GENERATION={generation}\nX_DIGEST={digest}\nX_RELOAD_ERROR={error}"));
    }

    /// A sign of life, where `WATCHDOG_USEC` asks for some. The first goes out before `READY=1`, so that who serves is watched.
    pub(crate) fn alive(&self) {
        if silence_allowed().is_some() {
            self.send("WATCHDOG=1");
        }
    }

    /// Gives signs of life, three in the time that `WATCHDOG_USEC` allows. Belongs on the runtime that serves: they end when it does
    /// nothing any more.
    pub(crate) async fn keep_alive(self) {
        let Some(allowed) = silence_allowed() else { return };
        let mut ticks = tokio::time::interval(allowed / 3);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.alive();
        }
    }

    /// We are on our way out.
    pub(crate) fn stopping(&self) {
        self.send("STOPPING=1");
    }

    fn send(&self, message: &str) {
        if let Some((socket, address)) = &self.socket
            && let Err(error) = socket.send_to_addr(message.as_bytes(), address)
        {
            warn!(%error, "cannot report to the supervisor");
        }
    }
}

/// How long we may be silent; nobody watches without the variable (sd_watchdog_enabled(3)).
fn silence_allowed() -> Option<Duration> {
    let micros = std::env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    (micros >= 3).then(|| Duration::from_micros(micros))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn received(tell: impl Fn(&Notifier)) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let receiver = UnixDatagram::bind(&path).unwrap();
        let address = SocketAddr::from_pathname(&path).unwrap();
        let notifier = Notifier { socket: Some((UnixDatagram::unbound().unwrap(), address)) };
        tell(&notifier);
        let mut buffer = [0; 512];
        let length = receiver.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn readiness_carries_generation_and_digest() {
        assert_eq!(
            received(|notifier| notifier.ready(1, "sha256:ab")),
            "READY=1\nX_GENERATION=1\nX_DIGEST=sha256:ab"
        );
    }

    #[test]
    fn a_reload_error_stays_on_one_line() {
        assert_eq!(
            received(|notifier| notifier.reload_failed(
                3,
                "sha256:ab",
                "routes.yaml:1:1: a\nroutes.yaml:2:1: b"
            )),
            "READY=1\nX_GENERATION=3\nX_DIGEST=sha256:ab\nX_RELOAD_ERROR=routes.yaml:1:1: a; routes.yaml:2:1: b"
        );
    }
}
