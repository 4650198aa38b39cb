use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use nix::unistd::read;
use tokio::io::unix::AsyncFd;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

use super::Error;
use crate::cli::Settings;
use crate::sys;

/// What changes together is read once.
const SETTLE: Duration = Duration::from_millis(50);
/// How often it is looked whether the directory is still the one that is watched: its path may lead to another without an event.
const LOOK: Duration = Duration::from_secs(1);

/// Room for some events, each of which may carry a file name.
const EVENTS: usize = 4096;
/// What Kubernetes swaps, in the directory of a mounted ConfigMap or Secret.
const DATA: &str = "..data";

/// Tells when something in the directory of the routes changed: a file was written and closed, renamed or removed, Kubernetes
/// swapped `..data`, or another directory took its place.
pub(super) struct Watch(Option<Watching>);

struct Watching {
    directory: PathBuf,
    inotify: Inotify,
    events: AsyncFd<OwnedFd>,
    /// None while there is no directory.
    watched: Option<WatchDescriptor>,
    looks: Interval,
    /// Something changed, and has to stay for a moment.
    is_changed: bool,
}

impl Watch {
    /// As the settings say; where Kubernetes swaps `..data`, always.
    pub(super) fn of(settings: &Settings) -> Result<Watch, Error> {
        let directory = &settings.config;
        let has_data = directory.join(DATA).symlink_metadata().is_ok_and(|data| data.is_symlink());
        if !settings.watch && !has_data {
            return Ok(Watch(None));
        }
        match Watching::start(directory) {
            Ok(watching) => {
                info!(directory = %directory.display(), "the routes are watched");
                Ok(Watch(Some(watching)))
            }
            Err(error) if !settings.watch => {
                warn!(%error, "swaps of `..data` are not noticed: send SIGHUP after a change");
                Ok(Watch(None))
            }
            Err(source) => Err(match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                    Error::ReadRoutes { path: directory.clone(), source }
                }
                _ => Error::Watch { path: directory.clone(), source },
            }),
        }
    }

    /// Returns when something changed and then stayed for a moment.
    pub(super) async fn changed(&mut self) {
        let Some(watching) = &mut self.0 else { return std::future::pending().await };
        if let Err(error) = watching.changed().await {
            warn!(%error, "the routes are no longer watched: send SIGHUP after a change");
            self.0 = None;
            std::future::pending().await
        }
    }
}

impl Watching {
    fn start(directory: &Path) -> io::Result<Watching> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let watched = Some(inotify.add_watch(directory, changes())?);
        let events = sys::poll(inotify.as_fd().try_clone_to_owned()?)?;
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Watching { directory: directory.to_owned(), inotify, events, watched, looks, is_changed: false })
    }

    /// Whoever stops waiting misses nothing.
    async fn changed(&mut self) -> io::Result<()> {
        while !self.is_changed {
            tokio::select! {
                taken = take(&self.events) => {
                    taken?;
                    self.is_changed = true;
                }
                _ = self.looks.tick() => self.is_changed = self.follow(),
            }
        }
        while let Ok(Ok(())) = timeout(SETTLE, take(&self.events)).await {}
        self.follow();
        self.is_changed = false;
        Ok(())
    }

    /// Watches the directory that the path leads to now. Whether it is another than before.
    fn follow(&mut self) -> bool {
        // One that is watched already keeps its descriptor.
        let found = self.inotify.add_watch(&self.directory, changes());
        let before = self.watched;
        self.watched = found.ok();
        if self.watched == before {
            return false;
        }
        match (found, before) {
            (Err(error), _) => {
                warn!(%error, directory = %self.directory.display(), "cannot watch the routes: it is tried again each second");
            }
            (Ok(_), None) => info!(directory = %self.directory.display(), "the routes are watched again"),
            (Ok(_), Some(_)) => {}
        }
        if let Some(before) = before {
            // That of a directory that is gone is gone as well.
            let _ = self.inotify.rm_watch(before);
        }
        true
    }
}

fn changes() -> AddWatchFlags {
    AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_ONLYDIR
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
