//! The terminal of a bottle that nobody sits at: its output is kept, and people come and go.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;

use super::frames::{BYTES_MAX, Frame};
use crate::sys::terminal::set_size;

/// The output of a bottle's command, in its state.
pub(crate) const CONSOLE_LOG: &str = "console.log";
/// What a person who comes is shown of the past.
const PAST_MAX: usize = 64 * 1024;
/// How much of the output is kept in the log.
const LOG_MAX: u64 = 8 << 20;
/// How many frames may wait for a person whose terminal is slow, before it is hung up on.
const QUEUE_MAX: usize = 256;
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
const WATCHERS_MAX: usize = 8;

/// The terminal, held.
#[derive(Debug)]
pub(crate) struct Console {
    shared: Arc<Mutex<Shared>>,
    output: JoinHandle<()>,
    socket: PathBuf,
}

#[derive(Debug)]
struct Shared {
    past: VecDeque<u8>,
    watchers: Vec<Watcher>,
    /// How many have come.
    came: u64,
    log: File,
    logged: u64,
    ended: bool,
}

#[derive(Debug)]
struct Watcher {
    number: u64,
    queue: SyncSender<Frame>,
    stream: UnixStream,
    writer: JoinHandle<()>,
}

impl Console {
    /// Holds the terminal whose master is `master`, for whoever comes to `socket`.
    pub(crate) fn start(master: OwnedFd, socket: &Path, log: &Path) -> io::Result<Console> {
        let listener = listener(socket)?;
        let log = File::options().create(true).write(true).truncate(true).mode(0o600).open(log)?;
        let (past, watchers) = (VecDeque::new(), Vec::new());
        let shared = Shared { past, watchers, came: 0, log, logged: 0, ended: false };
        let shared = Arc::new(Mutex::new(shared));
        let master = Arc::new(File::from(master));
        let (kept, from) = (Arc::clone(&shared), Arc::clone(&master));
        let output = thread::Builder::new().name("output".into()).spawn(move || keep(&from, &kept))?;
        let held = Arc::clone(&shared);
        // The thread is left behind at the end: it waits for people.
        thread::Builder::new().name("visitors".into()).spawn(move || {
            for stream in listener.incoming().flatten() {
                // Who cannot be let in is hung up on.
                let _ = welcome(stream, &held, &master);
            }
        })?;
        Ok(Console { shared, output, socket: socket.to_path_buf() })
    }

    /// Waits for what the command wrote last, and tells everybody that it has ended.
    pub(crate) fn finish(self, code: i32) {
        // It does not panic, and there is nobody to tell.
        let _ = self.output.join();
        let watchers = {
            let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
            shared.ended = true;
            std::mem::take(&mut shared.watchers)
        };
        for Watcher { queue, writer, stream, .. } in watchers {
            // Who does not take it sees the end of the stream.
            let _ = queue.try_send(Frame::End(code));
            drop(queue);
            let _ = writer.join();
            let _ = stream.shutdown(Shutdown::Both);
        }
        // It may have been swept away with the runtime directory.
        let _ = fs::remove_file(&self.socket);
    }
}

fn listener(socket: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(socket)?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Keeps what the command writes, until nothing in the bottle holds its terminal.
fn keep(mut from: &File, shared: &Mutex<Shared>) {
    let mut piece = vec![0; BYTES_MAX];
    loop {
        match from.read(&mut piece) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The other side of a terminal is gone by an error.
            Ok(0) | Err(_) => return,
            Ok(length) => shared.lock().unwrap_or_else(PoisonError::into_inner).add(&piece[..length]),
        }
    }
}

impl Shared {
    fn add(&mut self, bytes: &[u8]) {
        self.past.extend(bytes);
        let over = self.past.len().saturating_sub(PAST_MAX);
        self.past.drain(..over);
        let room = usize::try_from(LOG_MAX - self.logged).unwrap_or(usize::MAX).min(bytes.len());
        // A full disk costs the log, not the bottle.
        if self.log.write_all(&bytes[..room]).is_ok() {
            self.logged += room as u64;
        }
        self.watchers.retain(|watcher| {
            let taken = watcher.queue.try_send(Frame::Bytes(bytes.to_vec())).is_ok();
            if !taken {
                let _ = watcher.stream.shutdown(Shutdown::Both);
            }
            taken
        });
    }
}

/// Shows a person the past, and then carries both ways. Only the owner of the bottle, and root, are let in.
fn welcome(stream: UnixStream, shared: &Arc<Mutex<Shared>>, master: &Arc<File>) -> io::Result<()> {
    let peer = getsockopt(&stream, PeerCredentials)?.uid();
    if peer != 0 && peer != geteuid().as_raw() {
        return Ok(());
    }
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let (queue, frames) = sync_channel(QUEUE_MAX);
    let to = stream.try_clone()?;
    let writer = thread::Builder::new().name("to a visitor".into()).spawn(move || write(&frames, to))?;
    let from = stream.try_clone()?;
    let number = {
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.ended || shared.watchers.len() == WATCHERS_MAX {
            return Ok(());
        }
        let past: Vec<u8> = shared.past.iter().copied().collect();
        for piece in past.chunks(BYTES_MAX) {
            // The queue is empty and longer than the past.
            let _ = queue.try_send(Frame::Bytes(piece.to_vec()));
        }
        shared.came += 1;
        let number = shared.came;
        shared.watchers.push(Watcher { number, queue, stream, writer });
        number
    };
    let (master, held) = (Arc::clone(master), Arc::clone(shared));
    let hearing = move || {
        hear(from, &master);
        // The place is for somebody else, though nothing more be written.
        forget(&held, number);
    };
    let spawned = thread::Builder::new().name("from a visitor".into()).spawn(hearing);
    if spawned.is_err() {
        forget(shared, number);
    }
    spawned.map(drop)
}

fn forget(shared: &Mutex<Shared>, number: u64) {
    let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
    shared.watchers.retain(|watcher| watcher.number != number);
}

fn write(frames: &Receiver<Frame>, mut to: UnixStream) {
    for frame in frames {
        if frame.write(&mut to).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

fn hear(mut from: UnixStream, mut master: &File) {
    while let Ok(Some(frame)) = Frame::read(&mut from) {
        let done = match frame {
            Frame::Bytes(bytes) => master.write_all(&bytes),
            Frame::Size(columns, rows) => set_size(master, columns, rows),
            Frame::End(_) => Err(io::ErrorKind::InvalidData.into()),
        };
        if done.is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sys::terminal::open_pair;

    #[test]
    fn who_left_takes_no_place() {
        let directory = tempfile::tempdir().unwrap();
        let (socket, log) = (directory.path().join("s"), directory.path().join("log"));
        let (master, mut end) = open_pair(Path::new("/dev")).map(|(a, b)| (a, File::from(b))).unwrap();
        let console = Console::start(master, &socket, &log).unwrap();
        end.write_all(b"hello").unwrap();
        // Whether one that comes is shown the past; who is not let in sees the end.
        let come = || {
            let mut stream = UnixStream::connect(&socket).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            matches!(Frame::read(&mut stream), Ok(Some(Frame::Bytes(_)))).then_some(stream)
        };
        let mut there: Vec<UnixStream> = (0..WATCHERS_MAX).map(|_| come().unwrap()).collect();
        assert!(come().is_none(), "as many as there may be");
        // Nothing is written meanwhile.
        there.pop();
        let places = || {
            (0..500).find_map(|_| {
                let _ = nix::poll::poll(&mut [], nix::poll::PollTimeout::from(10_u16));
                come()
            })
        };
        there.push(places().unwrap());
        assert!(come().is_none(), "one place, not more");
        drop(end);
        console.finish(0);
    }
}
