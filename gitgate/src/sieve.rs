//! The commands of protocol v2, looked at before git gets them.
//!
//! Git lets a client of this version ask for any object by its name. Where the mirror may hold
//! objects that no ref reaches, what is asked for is looked up first. A conversation that goes on
//! for long is refreshed again, and data that is older than it should be says so.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use git2::{Oid, Repository};
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::time::timeout;

use crate::git::{GateDir, Objects};
use crate::mirror::{Freshness, Mirror, Tools};
use crate::pktline;

/// How much one command may hold.
const COMMAND_MAX_BYTES: usize = 64 << 20;
/// How long a refresh counts for objects within one conversation.
const FRESH: Duration = Duration::from_secs(60);
/// How long a refresh counts for what shows refs: as long as a client takes to ask after the first answer.
const SHOWN: Duration = Duration::from_secs(2);
/// How long looking up may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(120);
const PACKET_MAX: usize = 65520;
const FLUSH: usize = 0;
const END: usize = 2;

/// What a conversation is judged by.
pub(crate) struct Sieve<'a> {
    pub(crate) repo: &'a repos::Repo,
    pub(crate) mirror: &'a Mirror,
    pub(crate) tools: Tools<'a>,
    pub(crate) freshness: Freshness,
    /// When the conversation was refreshed; none where it is said to continue one that was.
    pub(crate) refreshed: Option<Instant>,
}

/// One command, as it came and as it is understood.
#[derive(Debug, Default, PartialEq, Eq)]
struct Command {
    bytes: Vec<u8>,
    fetches: bool,
    /// Whether the whole answer is in bands, so that words can come before it.
    banded: bool,
    wants: BTreeSet<String>,
}

impl Sieve<'_> {
    /// Passes commands on until the client has no more; what to tell it where one is refused.
    pub(crate) async fn pass(
        &mut self,
        client: impl AsyncRead + Unpin,
        mut git: impl AsyncWrite + Unpin,
        mut answer: impl AsyncWrite + Unpin,
    ) -> Result<(), String> {
        let mut client = BufReader::new(client);
        loop {
            let command = match read(&mut client).await {
                Ok(Some(command)) => command,
                Ok(None) => return Ok(()),
                Err(Malformed) => return Err("this is not a command of protocol version 2".to_owned()),
            };
            // What shows refs shows those of now: nobody can tell which conversation a request continues.
            let bound = if command.fetches { FRESH } else { SHOWN };
            if self.refreshed.map_or(!command.fetches, |refreshed| refreshed.elapsed() > bound) {
                let fresh = self.mirror.refresh_or_stale(self.repo, self.tools).await;
                self.freshness = fresh.map_err(|error| format!("cannot refresh: {error}"))?;
                self.refreshed = Some(Instant::now());
            }
            if command.fetches {
                self.reachable(&command.wants).await?;
                if let (true, Freshness::Stale { age, reason }) = (command.banded, &self.freshness) {
                    let words = format!(
                        "git-gate: upstream does not answer ({reason}); this is what it had {} s ago\n",
                        age.as_secs()
                    );
                    let line = pktline::line(&[b"\x02", words.as_bytes()].concat());
                    let _ = answer.write_all(&line).await;
                }
            }
            if git.write_all(&command.bytes).await.is_err() {
                return Ok(());
            }
        }
    }

    /// Refuses what no ref reaches, where there may be such a thing.
    async fn reachable(&self, wants: &BTreeSet<String>) -> Result<(), String> {
        if !self.mirror.record().leftovers {
            return Ok(());
        }
        let (path, asked) = (self.mirror.path().to_owned(), wants.clone());
        let rest = tokio::task::spawn_blocking(move || without_tips(&path, asked)).await;
        let mut rest = rest.unwrap_or_else(|_| wants.clone());
        if rest.is_empty() {
            return Ok(());
        }
        let looked = timeout(LOOKUP_TIMEOUT, strike(&mut rest, self.tools.gate, self.mirror)).await;
        match (looked, rest.first()) {
            (Ok(Ok(())), None) => Ok(()),
            (Ok(Ok(())), Some(want)) => Err(format!("upload-pack: not our ref {want}")),
            (Ok(Err(_)) | Err(_), _) => {
                Err("the objects asked for cannot be looked up; try again".to_owned())
            }
        }
    }
}

/// These objects without those that a ref points to.
fn without_tips(path: &std::path::Path, mut asked: BTreeSet<String>) -> BTreeSet<String> {
    let strike = || -> Result<BTreeSet<String>, git2::Error> {
        let repo = Repository::open_bare(path)?;
        for reference in repo.references()? {
            if let Some(oid) = reference?.target() {
                asked.remove(&oid.to_string());
            }
        }
        Ok(asked)
    };
    strike().unwrap_or_default()
}

/// Strikes out what some ref reaches.
async fn strike(asked: &mut BTreeSet<String>, gate: &GateDir, mirror: &Mirror) -> std::io::Result<()> {
    let mut command = gate.git(mirror.path(), Objects::Own);
    command.args(["rev-list", "--objects", "--no-object-names", "--all"]);
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn()?;
    let stdout = child.stdout.take().ok_or_else(|| std::io::Error::other("git has no output"))?;
    let mut lines = BufReader::new(stdout).lines();
    while let Some(line) = lines.next_line().await? {
        if asked.remove(line.trim()) && asked.is_empty() {
            return Ok(());
        }
    }
    if child.wait().await?.success() { Ok(()) } else { Err(std::io::Error::other("git failed")) }
}

#[derive(Debug, PartialEq, Eq)]
struct Malformed;

/// Reads one command to its end; none when the client is done.
async fn read(client: &mut (impl AsyncRead + Unpin)) -> Result<Option<Command>, Malformed> {
    let mut command = Command::default();
    loop {
        let mut head = [0; 4];
        match client.read_exact(&mut head).await {
            Ok(_) => {}
            Err(_) if command.bytes.is_empty() => return Ok(None),
            Err(_) => return Err(Malformed),
        }
        let length =
            std::str::from_utf8(&head).ok().filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()));
        let length = length.and_then(|text| usize::from_str_radix(text, 16).ok()).ok_or(Malformed)?;
        command.bytes.extend_from_slice(&head);
        match length {
            FLUSH => return Ok(Some(command)),
            1..=END => continue,
            3 => return Err(Malformed),
            _ => {}
        }
        if length > PACKET_MAX || command.bytes.len() + length > COMMAND_MAX_BYTES {
            return Err(Malformed);
        }
        let start = command.bytes.len();
        command.bytes.resize(start + length - 4, 0);
        client.read_exact(&mut command.bytes[start..]).await.map_err(|_| Malformed)?;
        let line = command.bytes[start..].to_vec();
        command.understand(line.strip_suffix(b"\n").unwrap_or(&line));
    }
}

impl Command {
    fn understand(&mut self, line: &[u8]) {
        match line {
            b"command=fetch" => self.fetches = true,
            b"sideband-all" => self.banded = true,
            _ => {
                if let Some(want) = line.strip_prefix(b"want ") {
                    let want = String::from_utf8_lossy(want).to_ascii_lowercase();
                    // What is no name of an object is for git to refuse.
                    if Oid::from_str(&want).is_ok() {
                        self.wants.insert(want);
                    }
                }
            }
        }
    }
}

/// A writer for two, of whom one at a time has something to say.
pub(crate) struct Shared<W>(Arc<Mutex<W>>);

impl<W> Shared<W> {
    pub(crate) fn new(writer: W) -> Self {
        Self(Arc::new(Mutex::new(writer)))
    }

    pub(crate) fn again(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Shared<W> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OID: &str = "95d09f2b10159347eece71399a7e2e907ea3df4f";

    fn request(lines: &[&str]) -> Vec<u8> {
        let lines = lines.iter().map(|line| match *line {
            "" => b"0001".to_vec(),
            line => pktline::line(line.as_bytes()),
        });
        [lines.collect::<Vec<_>>().concat(), b"0000".to_vec()].concat()
    }

    #[tokio::test]
    async fn commands_are_read_one_by_one_and_as_they_are() {
        let want = format!("want {OID}\n");
        let fetch = request(&["command=fetch", "agent=git/2", "", "sideband-all\n", &want, "done\n"]);
        let bytes = [request(&["command=ls-refs\n", "", "peel\n"]), fetch.clone()].concat();
        let mut client = &bytes[..];
        let first = read(&mut client).await.expect("a command").expect("one");
        assert!(!first.fetches && first.wants.is_empty());
        let second = read(&mut client).await.expect("a command").expect("another");
        let wants = BTreeSet::from([OID.to_owned()]);
        assert_eq!(second, Command { bytes: fetch, fetches: true, banded: true, wants });
        assert_eq!(read(&mut client).await, Ok(None));
    }

    #[tokio::test]
    async fn what_is_no_command_is_refused() {
        for bytes in [&b"0003"[..], b"xyz!", b"00", b"0009ab", b"fff1"] {
            assert!(read(&mut &bytes[..]).await.is_err() || bytes.len() < 4, "{bytes:?}");
        }
        let endless = pktline::line(&vec![b'x'; 60_000]).repeat(1200);
        assert_eq!(read(&mut &endless[..]).await, Err(Malformed));
    }
}
