//! Asking another daemon of the bundle, and hearing what it says, over the socket that the supervisor made for the two.
//!
//! What comes is only told or recorded: nothing is decided on it.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram as Socket;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proposal::peer::{
    Answer, DATAGRAM_MAX, Hold, Located, Question, Refusal, Verdict, Word, datagram, message,
};
use tokio::net::UnixDatagram;
use tokio::sync::{mpsc, oneshot};

/// What a call may wait for another daemon.
const TIMEOUT: Duration = Duration::from_secs(2);
/// More than calls can be in flight.
const OPEN_MAX: usize = 32;

/// The way to one daemon. Cheap to clone.
#[derive(Clone)]
pub struct Peer(Arc<Link>);

struct Link {
    name: String,
    /// A `SOCK_SEQPACKET`, which is spoken to as a datagram socket that is connected.
    socket: UnixDatagram,
    next: AtomicU64,
    open: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Silence {
    /// It did not answer in time, or cannot be reached.
    #[error("{name} does not answer")]
    Timeout {
        /// The daemon.
        name: String,
    },
    /// Too much is asked at once.
    #[error("too many questions to {name} are open")]
    Busy {
        /// The daemon.
        name: String,
    },
}

impl Peer {
    /// Takes over the socket to the daemon of that name. [`Peer::listen`] has to run for answers to arrive.
    ///
    /// # Errors
    /// When the descriptor is no socket that can be waited for.
    pub fn new(name: &str, socket: OwnedFd) -> io::Result<Peer> {
        let socket = Socket::from(socket);
        socket.set_nonblocking(true)?;
        let mut start = [0; 8];
        getrandom::fill(&mut start).map_err(|_| io::Error::other("no random bytes"))?;
        // Answers to an earlier process of ours carry other numbers.
        let next = AtomicU64::new(u64::from_be_bytes(start) >> 12);
        let socket = UnixDatagram::from_std(socket)?;
        Ok(Peer(Arc::new(Link { name: name.to_owned(), socket, next, open: Mutex::default() })))
    }

    /// The daemon's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Hands answers to those who asked, and words on, until the socket ends. A word for which there is no room is dropped: what it was
    /// about is asked for now and then.
    pub async fn listen(&self, words: mpsc::Sender<Word>) {
        let mut buffer = vec![0; DATAGRAM_MAX + 1];
        loop {
            match self.0.socket.recv(&mut buffer).await {
                Ok(0) => return,
                Ok(length) => {
                    if let Some(answer) = message::<Answer>(&buffer[..length])
                        && let Some(asker) = self.open().remove(&answer.seq())
                    {
                        // Whoever asked may have given up.
                        let _ = asker.send(answer);
                    } else if let Some(word) = message::<Word>(&buffer[..length]) {
                        let _ = words.try_send(word);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    /// What was refused under `block_id`; nothing when the daemon does not know it any more.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn refusal(&self, block_id: &str) -> Result<Option<Refusal>, Silence> {
        let block_id = block_id.to_owned();
        match self.ask(|seq| Question::Refusal { seq, block_id }).await? {
            Answer::Refusal { refusal, .. } => Ok(refusal),
            Answer::Head { .. } | Answer::Holds { .. } | Answer::Finding { .. } | Answer::Decided { .. } => {
                Err(self.silent())
            }
        }
    }

    /// How many records its journal has, and the hash of the last.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn head(&self) -> Result<(u64, String), Silence> {
        match self.ask(|seq| Question::Head { seq }).await? {
            Answer::Head { records, hash, .. } => Ok((records, hash)),
            Answer::Refusal { .. }
            | Answer::Holds { .. }
            | Answer::Finding { .. }
            | Answer::Decided { .. } => Err(self.silent()),
        }
    }

    /// The names of what it holds; words about each of them follow.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn holds(&self) -> Result<Vec<String>, Silence> {
        match self.ask(|seq| Question::Holds { seq }).await? {
            Answer::Holds { ids, .. } => Ok(ids),
            Answer::Refusal { .. }
            | Answer::Head { .. }
            | Answer::Finding { .. }
            | Answer::Decided { .. } => Err(self.silent()),
        }
    }

    /// What was found under that name, and where; nothing when the daemon does not know it any more.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn finding(&self, fingerprint: &str) -> Result<Option<Located>, Silence> {
        let fingerprint = fingerprint.to_owned();
        match self.ask(|seq| Question::Finding { seq, fingerprint }).await? {
            Answer::Finding { finding, .. } => Ok(finding),
            Answer::Refusal { .. } | Answer::Head { .. } | Answer::Holds { .. } | Answer::Decided { .. } => {
                Err(self.silent())
            }
        }
    }

    /// Tells what was decided about something that it holds; whether it still waited.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn decide(&self, hold: &Hold, verdict: Verdict, reason: &str) -> Result<bool, Silence> {
        let (id, digest, reason) = (hold.id.clone(), hold.digest.clone(), reason.to_owned());
        match self.ask(|seq| Question::Decide { seq, id, digest, verdict, reason }).await? {
            Answer::Decided { waited, .. } => Ok(waited),
            Answer::Refusal { .. } | Answer::Head { .. } | Answer::Holds { .. } | Answer::Finding { .. } => {
                Err(self.silent())
            }
        }
    }

    async fn ask(&self, question: impl FnOnce(u64) -> Question) -> Result<Answer, Silence> {
        let seq = self.0.next.fetch_add(1, Ordering::Relaxed);
        let datagram = datagram(&question(seq)).ok_or_else(|| self.silent())?;
        let (asker, answer) = oneshot::channel();
        {
            let mut open = self.open();
            open.retain(|_, asker| !asker.is_closed());
            if open.len() >= OPEN_MAX {
                return Err(Silence::Busy { name: self.0.name.clone() });
            }
            open.insert(seq, asker);
        }
        let answer = match self.0.socket.try_send(&datagram) {
            Ok(_) => tokio::time::timeout(TIMEOUT, answer).await.ok().and_then(Result::ok),
            // A full socket, as a rule: the other side does not read.
            Err(_) => None,
        };
        self.open().remove(&seq);
        answer.ok_or_else(|| self.silent())
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Answer>>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn silent(&self) -> Silence {
        Silence::Timeout { name: self.0.name.clone() }
    }
}
