use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::unistd::read;
use tokio::io::unix::AsyncFd;
use tracing::warn;

use crate::sys;

/// What changes together is read once.
const SETTLE: Duration = Duration::from_millis(50);

/// Room for some events, each of which may carry a file name.
const EVENTS: usize = 4096;

/// Tells when something in the directory of the routes changed: a file was written and closed or renamed into place, or
/// Kubernetes swapped `..data`.
pub(super) struct Watch(Option<AsyncFd<OwnedFd>>);

impl Watch {
    /// Never tells anything.
    pub(super) fn off() -> Watch {
        Watch(None)
    }

    pub(super) fn on(directory: &Path) -> io::Result<Watch> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let what = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_ONLYDIR;
        inotify.add_watch(directory, what)?;
        Ok(Watch(Some(sys::poll(inotify.into())?)))
    }

    /// Returns when something changed and then stayed for a moment.
    pub(super) async fn changed(&mut self) {
        let Some(inotify) = &self.0 else { return std::future::pending().await };
        if let Err(error) = take(inotify).await {
            warn!(%error, "the routes are no longer watched: send SIGHUP after a change");
            self.0 = None;
            return std::future::pending().await;
        }
        while let Ok(Ok(())) = tokio::time::timeout(SETTLE, take(inotify)).await {}
    }
}

async fn take(inotify: &AsyncFd<OwnedFd>) -> io::Result<()> {
    loop {
        let mut ready = inotify.readable().await?;
        let mut events = [0; EVENTS];
        // What the events say does not matter: the file is read whole.
        match ready.try_io(|inotify| read(inotify.get_ref(), &mut events).map_err(io::Error::from)) {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => {}
        }
    }
}
