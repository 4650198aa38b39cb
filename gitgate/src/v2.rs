//! Protocol v2 of a reader: each command is read here, refs are shown from what upstream shows now, and only what
//! needs objects goes to git.
//!
//! So refs are shown while a large upstream is still being copied, and the words about that copy reach the client
//! where the protocol has a place for them: in the answer to the command that asks for objects. Git lets a client of
//! this version ask for any object by its name; where the mirror may hold objects that no ref reaches, what is asked
//! for is looked up first.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::process::Command as Process;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use git2::Oid;
use repos::{Repo, RepoName};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::time::timeout;

use crate::fence::Reach;
use crate::git::Objects;
use crate::listing::{Head, Listing, Shown};
use crate::mirror::{Freshness, Listed, RefreshError};
use crate::pktline::{self, Packet};
use crate::reach;
use crate::request::{Protocol, Shape};
use crate::session::{self, Client, Hangup, Moved, SessionError};
use crate::state::{Served, State};
use crate::sys;

pub(crate) mod arguments;

use arguments::Arguments;

/// How much one command may hold.
const COMMAND_MAX_BYTES: usize = 64 << 20;
/// How long a client may take for its first command, and for each one after that.
const FIRST_TIMEOUT: Duration = Duration::from_secs(30);
const COMMAND_TIMEOUT: Duration = Duration::from_secs(300);
/// How long copying may take before refs are shown without waiting for its end.
const SHOWN_EARLY: Duration = Duration::from_secs(4);
/// How long objects may be awaited without a word.
const QUIET: Duration = Duration::from_secs(1);
/// How often there is a word afterwards.
const WORD_EVERY: Duration = Duration::from_secs(2);
/// How many objects are copied that were shown and are no longer.
const COMPLETED_MAX: usize = 1000;
/// How much is gathered before it is sent.
const CHUNK_BYTES: usize = 32 << 10;
/// The capabilities of git that are passed on; other commands than these are not served.
const KNOWN: [&[u8]; 6] =
    [b"version 2", b"agent=", b"ls-refs", b"fetch", b"server-option", b"object-format=sha1"];

/// A conversation with one reader.
pub(crate) struct Conversation<'a> {
    pub(crate) served: &'a Served,
    pub(crate) state: &'a State,
    pub(crate) shape: Shape,
    pub(crate) shown: Memory,
    /// The client's socket, where objects can go straight to it.
    pub(crate) socket: Option<&'a OwnedFd>,
    /// Bytes to the client.
    pub(crate) down: u64,
}

/// What a client was shown in this conversation. Over HTTP a conversation is a connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memory(Arc<Mutex<Option<Seen>>>);

/// What upstream showed of a repository, and whether it was there to say so.
#[derive(Debug, Clone)]
struct Seen {
    repo: RepoName,
    listed: Arc<Listed>,
    freshness: Freshness,
}

impl Memory {
    fn set(&self, seen: Seen) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
    }

    /// How old what was shown last is, where upstream did not answer.
    pub(crate) fn stale(&self) -> Option<Duration> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &seen.as_ref()?.freshness {
            Freshness::Fresh => None,
            Freshness::Stale { age, .. } => Some(*age),
        }
    }

    /// What still counts for this repository.
    fn of(&self, repo: &Repo) -> Option<Seen> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.as_ref().filter(|seen| seen.repo == repo.name && seen.listed.counts(repo)).cloned()
    }
}

/// Why a conversation came to no good end.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The client went away, or took too long.
    Hangup,
    /// It was told why; the word is for the record.
    Refused(&'static str, String),
    /// Git failed.
    Git(SessionError),
}

impl From<std::io::Error> for Ended {
    fn from(_: std::io::Error) -> Self {
        Self::Hangup
    }
}

impl Ended {
    fn refused(reason: impl Into<String>) -> Self {
        Self::Refused("refused", reason.into())
    }
}

/// One command, as it came and as it is understood.
#[derive(Debug, Default, PartialEq, Eq)]
struct Command {
    bytes: Vec<u8>,
    name: Vec<u8>,
    arguments: Arguments,
}

impl Conversation<'_> {
    /// Serves commands until the client has no more.
    pub(crate) async fn serve(
        &mut self,
        client: Client<impl AsyncRead + Unpin, impl AsyncWrite + Unpin>,
    ) -> Result<(), Ended> {
        let Client { reader, mut writer } = client;
        let mut reader = BufReader::new(reader);
        if self.shape != Shape::Exchange {
            let hello = self
                .state
                .capabilities(self.served)
                .await
                .map_err(|error| Ended::Refused("failed", format!("git cannot be run: {error}")));
            self.send(&mut writer, &hello?).await?;
        }
        let mut patience = FIRST_TIMEOUT;
        while self.shape != Shape::Advertisement {
            let command = timeout(patience, read(&mut reader)).await.map_err(|_| Ended::Hangup)?;
            let Some(command) = command.map_err(Ended::refused)? else { break };
            patience = COMMAND_TIMEOUT;
            let over = |end| jiff::Timestamp::now() >= end;
            if self.served.repo.grant.expires_at().is_some_and(over) {
                return Err(Ended::Refused("expired", "this permission ended; ask for a new one".to_owned()));
            }
            self.in_force()?;
            match command.name.as_slice() {
                b"ls-refs" => self.show(&command.arguments, &mut writer).await?,
                b"fetch" => self.fetch(&command, &mut reader, &mut writer).await?,
                name => {
                    let name = String::from_utf8_lossy(name).escape_debug().to_string();
                    return Err(Ended::refused(format!("the command `{name}` is not served")));
                }
            }
            if self.shape == Shape::Exchange {
                break;
            }
        }
        writer.shutdown().await?;
        Ok(())
    }

    /// Refuses where the repository is not the one that was connected to: its rules were others then.
    fn in_force(&self) -> Result<(), Ended> {
        let Served { repo, mirror } = self.served;
        let same = |now: &Served| {
            Arc::ptr_eq(&now.mirror, mirror)
                && now.repo.upstream == repo.upstream
                && now.repo.fetch == repo.fetch
        };
        if self.state.find(&repo.name).is_some_and(|now| same(&now)) {
            return Ok(());
        }
        Err(Ended::refused("the operator changed this repository in the meantime; connect again"))
    }

    async fn send(&mut self, writer: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<(), Ended> {
        timeout(COMMAND_TIMEOUT, writer.write_all(bytes)).await.map_err(|_| Ended::Hangup)??;
        self.down += bytes.len() as u64;
        Ok(())
    }

    /// Shows refs: those of now.
    async fn show(&mut self, asked: &Arguments, writer: &mut (impl AsyncWrite + Unpin)) -> Result<(), Ended> {
        let mut seen = self.list().await?;
        let Served { repo, mirror } = self.served;
        let tools = self.state.tools();
        // What is shown is there when it is asked for, unless copying it takes long.
        if let (Freshness::Fresh, Ok(followed)) =
            (&seen.freshness, timeout(SHOWN_EARLY, mirror.follow(seen.listed.clone(), repo, &tools)).await)
        {
            seen.listed = followed.map_err(|error| self.unrefreshed(&error))?;
            self.shown.set(seen.clone());
        }
        let listed = seen.listed;
        let mut chunk = Vec::new();
        for line in lines(&listed.listing, asked) {
            chunk.extend(pktline::line(line.as_bytes()));
            if chunk.len() >= CHUNK_BYTES {
                self.send(writer, &std::mem::take(&mut chunk)).await?;
            }
        }
        chunk.extend(Packet::Flush.bytes());
        self.send(writer, &chunk).await
    }

    async fn list(&mut self) -> Result<Seen, Ended> {
        let Served { repo, mirror } = self.served;
        let listed = mirror.list_or_stale(repo, &self.state.tools()).await;
        let (listed, freshness) = listed.map_err(|error| self.unrefreshed(&error))?;
        let seen = Seen { repo: repo.name.clone(), listed, freshness };
        self.shown.set(seen.clone());
        Ok(seen)
    }

    fn unrefreshed(&self, error: &RefreshError) -> Ended {
        Ended::Refused("refresh-failed", crate::front::unrefreshed(&self.served.repo.upstream, error))
    }

    /// Hands out objects: of what was shown a moment ago, or else of what upstream has now.
    async fn fetch(
        &mut self,
        command: &Command,
        reader: &mut (impl AsyncBufRead + Unpin),
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> Result<(), Ended> {
        let seen = match self.shown.of(&self.served.repo) {
            Some(seen) => seen,
            None => self.list().await?,
        };
        let banded = command.arguments.banded;
        let followed = self.follow(seen.listed.clone(), banded, writer).await?;
        self.complete(&seen.listed.listing, &followed.listing, &command.arguments).await?;
        let shown = seen.listed.listing.iter().map(|shown| shown.oid);
        let sources = command.arguments.sources();
        reach::look(self.served, self.state, sources, shown).await.map_err(Ended::refused)?;
        if let (true, Freshness::Stale { age, reason }) = (banded, &seen.freshness) {
            let words = format!(
                "git-gate: upstream does not answer ({reason}); this is what it had {} s ago\n",
                age.as_secs()
            );
            self.send(writer, &word(&words)).await?;
        }
        let git = self.git().map_err(|error| Ended::Git(SessionError::Spawn(error)))?;
        // Nothing is to come from the client now; what comes is left for the next turn.
        let gone = async {
            match reader.fill_buf().await {
                Ok(_) => std::future::pending().await,
                Err(_) => SessionError::Hangup,
            }
        };
        let input = &command.bytes[..];
        let moved = Moved::default();
        let socket = self.socket;
        let sent = || socket.and_then(|socket| sys::sent_bytes(socket).ok());
        let before = sent();
        let run = async {
            match self.socket {
                Some(socket) => session::run_at(socket, input, git).await,
                None => session::run(Client { reader: input, writer }, git, Hangup::Kills, &moved).await,
            }
        };
        let ran = tokio::select! {
            ran = run => ran,
            gone = gone => Err(gone),
        };
        let past = before.zip(sent()).map_or(0, |(before, now)| now.saturating_sub(before));
        self.down += past + moved.down();
        match ran {
            Ok(()) => Ok(()),
            Err(SessionError::Hangup) => Err(Ended::Hangup),
            Err(error) => Err(Ended::Git(error)),
        }
    }

    /// Gets what was shown before it was copied, where upstream moved on until then.
    async fn complete(&self, shown: &Listing, copied: &Listing, asked: &Arguments) -> Result<(), Ended> {
        if std::ptr::eq(shown, copied) || shown == copied {
            return Ok(());
        }
        let there: BTreeSet<Oid> = copied.iter().map(|shown| shown.oid).collect();
        let wanted = shown.iter().map(|shown| shown.oid);
        let wanted = wanted.filter(|oid| asked.wants.contains(oid) && !there.contains(oid));
        let mut wanted: Vec<Oid> = wanted.collect();
        wanted.truncate(COMPLETED_MAX);
        if wanted.is_empty() {
            return Ok(());
        }
        let Served { repo, mirror } = self.served;
        let completed = mirror.complete(wanted, repo, &self.state.tools()).await;
        completed.map_err(|error| match error {
            RefreshError::Upstream(_) => Ended::refused("upstream moved on while it was copied; fetch again"),
            error => self.unrefreshed(&error),
        })
    }

    /// Waits until the mirror has the objects, and says from time to time what it waits for; what it shows then.
    async fn follow(
        &mut self,
        listed: Arc<Listed>,
        banded: bool,
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> Result<Arc<Listed>, Ended> {
        let Served { repo, mirror } = self.served;
        let tools = self.state.tools();
        let work = mirror.follow(listed, repo, &tools);
        tokio::pin!(work);
        let (began, mut pause) = (Instant::now(), QUIET);
        loop {
            match timeout(pause, &mut work).await {
                Ok(done) => return done.map_err(|error| self.unrefreshed(&error)),
                Err(_) if !banded => {}
                Err(_) => {
                    let progress = mirror.progress().borrow().clone();
                    let words = waiting(repo, began.elapsed(), &progress);
                    self.send(writer, &word(&words)).await?;
                }
            }
            pause = WORD_EVERY;
        }
    }

    /// One git for one command.
    fn git(&self) -> std::io::Result<Process> {
        let path = self.served.mirror.path();
        let mut command = self.state.gate.git(path, Objects::Own);
        command.args(["upload-pack", "--strict"]).args(Shape::Exchange.arguments()).arg(path);
        command.envs(Protocol::V2.variable().map(|value| ("GIT_PROTOCOL", value)));
        self.state.confine(&mut command, self.served, Reach::Mirror)?;
        Ok(command)
    }
}

/// What git says that it can do, as far as it is passed on.
pub(crate) async fn capabilities(advertised: &[u8]) -> std::io::Result<Vec<u8>> {
    let (mut stream, mut passed) = (advertised, Vec::new());
    while let Some(packet) = pktline::next(&mut stream).await? {
        let known = packet.text().is_none_or(|line| KNOWN.iter().any(|known| line.starts_with(known)));
        if known {
            passed.extend(packet.bytes());
        }
        if packet == Packet::Flush {
            return Ok(passed);
        }
    }
    Err(std::io::Error::other("it said nothing of what it can do"))
}

/// A line for the person who waits.
fn word(words: &str) -> Vec<u8> {
    pktline::line(&[b"\x02", words.as_bytes()].concat())
}

fn waiting(repo: &Repo, waited: Duration, progress: &str) -> String {
    let upstream = crate::front::shown(&repo.upstream);
    let progress = if progress.is_empty() { format!("{} s", waited.as_secs()) } else { progress.to_owned() };
    format!("git-gate: copying {} from {upstream}: {progress}\n", repo.name)
}

/// The lines that show these refs.
fn lines<'l>(listing: &'l Listing, asked: &'l Arguments) -> impl Iterator<Item = String> + 'l {
    let wanted =
        |name: &str| asked.prefixes.is_empty() || asked.prefixes.iter().any(|p| name.starts_with(p.as_str()));
    let head = wanted("HEAD").then(|| head(listing, asked)).flatten();
    let refs = listing.iter().filter(move |shown| wanted(shown.name));
    head.into_iter().chain(refs.map(|shown| line(&shown, asked)))
}

fn line(Shown { name, oid, peeled }: &Shown<'_>, asked: &Arguments) -> String {
    match peeled.filter(|_| asked.peel) {
        Some(peeled) => format!("{oid} {name} peeled:{peeled}\n"),
        None => format!("{oid} {name}\n"),
    }
}

fn head(listing: &Listing, asked: &Arguments) -> Option<String> {
    match &listing.head {
        Head::Branch(branch) => match listing.find(branch) {
            Some(Shown { oid, .. }) if asked.symrefs => Some(format!("{oid} HEAD symref-target:{branch}\n")),
            Some(Shown { oid, .. }) => Some(format!("{oid} HEAD\n")),
            None if asked.unborn && asked.symrefs => Some(format!("unborn HEAD symref-target:{branch}\n")),
            None => None,
        },
        // What no ref shows cannot be asked for.
        Head::Commit(commit) => listing.shows(*commit).then(|| format!("{commit} HEAD\n")),
        Head::Hidden => None,
    }
}

const MALFORMED: &str = "this is not a command of protocol version 2";

/// Reads one command to its end; none when the client is done.
async fn read(client: &mut (impl AsyncRead + Unpin)) -> Result<Option<Command>, &'static str> {
    let mut command = Command::default();
    let mut in_arguments = false;
    loop {
        let packet = match pktline::next(client).await {
            Ok(Some(packet)) => packet,
            Ok(None) if command.bytes.is_empty() => return Ok(None),
            Ok(None) | Err(_) => return Err(MALFORMED),
        };
        // A flush packet where a command would begin ends the conversation.
        if packet == Packet::Flush && command.bytes.is_empty() {
            return Ok(None);
        }
        command.bytes.extend(packet.bytes());
        if command.bytes.len() > COMMAND_MAX_BYTES {
            return Err(MALFORMED);
        }
        match &packet {
            Packet::Flush if command.name.is_empty() => return Err(MALFORMED),
            Packet::Flush => return Ok(Some(command)),
            Packet::Delimiter if !in_arguments => in_arguments = true,
            Packet::Delimiter | Packet::End => return Err(MALFORMED),
            Packet::Data(_) => {}
        }
        let Some(line) = packet.text() else { continue };
        if in_arguments {
            command.arguments.understand(line)?;
        } else if let Some(name) = line.strip_prefix(b"command=") {
            if !command.name.is_empty() {
                return Err(MALFORMED);
            }
            command.name = name.to_vec();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listing::Gathering;

    const A: &str = "95d09f2b10159347eece71399a7e2e907ea3df4f";
    const B: &str = "2222222222222222222222222222222222222222";

    fn request(lines: &[&str]) -> Vec<u8> {
        let lines = lines.iter().map(|line| match *line {
            "" => b"0001".to_vec(),
            line => pktline::line(line.as_bytes()),
        });
        [lines.collect::<Vec<_>>().concat(), b"0000".to_vec()].concat()
    }

    #[tokio::test]
    async fn commands_are_read_one_by_one_and_as_they_are() {
        let want = format!("want {A}\n");
        let fetch = request(&["command=fetch", "agent=git/2", "", "sideband-all\n", &want, "done\n"]);
        let bytes =
            [request(&["command=ls-refs\n", "", "peel\n", "ref-prefix refs/heads/\n"]), fetch.clone()]
                .concat();
        let mut client = &bytes[..];
        let first = read(&mut client).await.expect("a command").expect("one");
        let asked = Arguments { peel: true, prefixes: vec!["refs/heads/".into()], ..Arguments::default() };
        assert_eq!((&first.name[..], first.arguments), (&b"ls-refs"[..], asked));
        let second = read(&mut client).await.expect("a command").expect("another");
        let wants = BTreeSet::from([Oid::from_str(A).expect("a name")]);
        let asked = Arguments { banded: true, wants, ..Arguments::default() };
        assert_eq!(second, Command { bytes: fetch, name: b"fetch".to_vec(), arguments: asked });
        assert_eq!(read(&mut client).await, Ok(None));
    }

    #[tokio::test]
    async fn what_is_no_command_is_refused() {
        let twice = request(&["command=ls-refs", "command=fetch"]);
        for bytes in [&b"0003"[..], b"xyz!", b"00", b"0009ab", b"fff1", b"0006a\n0000", &twice] {
            assert!(read(&mut &bytes[..]).await.is_err(), "{bytes:?}");
        }
        let endless = pktline::line(&vec![b'x'; 60_000]).repeat(1200);
        assert_eq!(read(&mut &endless[..]).await, Err(MALFORMED));
    }

    fn listing(lines: &[String]) -> Listing {
        let allow = ["refs/heads/*", "refs/tags/*"].iter().filter_map(|p| repos::RefPattern::parse(p).ok());
        let rules = repos::FetchRules { allow: allow.collect(), stale: repos::Stale::Refuse };
        let mut gathering = Gathering::new(&rules);
        for line in lines {
            gathering.line(line).expect("a line");
        }
        gathering.end().expect("a listing")
    }

    #[test]
    fn refs_are_shown_as_git_shows_them() {
        let listing = listing(&[
            "ref: refs/heads/main\tHEAD".into(),
            format!("{A}\trefs/heads/main"),
            format!("{A}\trefs/tags/v1"),
            format!("{B}\trefs/tags/v1^{{}}"),
        ]);
        let all = Arguments { peel: true, symrefs: true, ..Arguments::default() };
        let shown: String = lines(&listing, &all).collect();
        assert_eq!(
            shown,
            format!(
                "{A} HEAD symref-target:refs/heads/main\n{A} refs/heads/main\n{A} refs/tags/v1 peeled:{B}\n"
            )
        );
        let some = Arguments { prefixes: vec!["refs/tags/".into()], ..Arguments::default() };
        assert_eq!(lines(&listing, &some).collect::<String>(), format!("{A} refs/tags/v1\n"));
    }

    #[test]
    fn a_head_is_shown_unborn_or_by_what_a_ref_shows_only() {
        let all = Arguments { peel: true, symrefs: true, unborn: true, ..Arguments::default() };
        let empty = listing(&["ref: refs/heads/main\tHEAD".into()]);
        assert_eq!(lines(&empty, &all).collect::<String>(), "unborn HEAD symref-target:refs/heads/main\n");
        let hidden = listing(&[format!("{B}\tHEAD"), format!("{A}\trefs/heads/main")]);
        assert_eq!(lines(&hidden, &all).collect::<String>(), format!("{A} refs/heads/main\n"));
    }

    #[tokio::test]
    async fn what_is_not_served_is_not_said_to_be() {
        let said =
            request(&["version 2\n", "agent=git/2\n", "fetch=shallow\n", "object-info\n", "bundle-uri\n"]);
        let passed = capabilities(&said).await.expect("capabilities");
        assert_eq!(passed, request(&["version 2\n", "agent=git/2\n", "fetch=shallow\n"]));
    }
}
