//! The pre-receive hook: this program, run by `git receive-pack` under the hook's name.
//!
//! It finds everything it needs in two places: the environment that git gives a hook (the
//! repository and the quarantine), and a socket to the daemon whose number stands in
//! `GIT_GATE_HOOK_FD`. It reads no configuration file.

use std::collections::BTreeSet;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use git2::{Oid, Repository};
use proposal::peer::HELD_MAX;
use scan::{Mark, MarkKey, Marks};
use sha2::{Digest as _, Sha256};

use crate::door::Door;
use crate::git::{GateDir, Objects, printable};
use crate::inspect::{self, Asked, Judgement};
use crate::leftovers::{self, Unreached};
use crate::wire::{
    Bounds, Change, End, Excepted, FromHook, HOOK_FD, LINE_MAX_BYTES, Marking, OnSecret, Options, ToHook,
    Update, Way,
};
use crate::{configuring, report, sys};

mod words;

/// How long the daemon may take for an answer: the lock may be held by another push.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(360);
const STDIN_MAX_BYTES: u64 = 8 << 20;
const OPTIONS_MAX: usize = 64;
/// How much is packed here; more is left to a git of its own.
const BUILT_MAX_OBJECTS: usize = 5000;
const BUILT_MAX_BYTES: usize = 8 << 20;
const FRAME_BYTES: usize = 64 << 10;
/// A pack without objects: its head, and the digest of that.
const EMPTY_PACK: &[u8] =
    b"PACK\0\0\0\x02\0\0\0\0\x02\x9d\x08\x82\x3b\xd8\xa8\xea\xb5\x10\xad\x6a\xc7\x5c\x82\x3c\xfd\x3e\xd3\x1e";
const REMOVED: &str =
    "upstream removed something meanwhile; fetch, rebase onto what it has now, then push again";
const UNREAD: &str = "may not be fetched through this gate, and this push rests on objects that nothing else reaches; push to another name, \
                      or ask the operator for `fetch.allow`";

/// Runs the hook: exit 0 lets git take the push into the mirror, anything else refuses it.
pub fn run() -> ExitCode {
    match judge() {
        Ok(Verdict::Take) => ExitCode::SUCCESS,
        Ok(Verdict::Refuse(words)) => {
            say(&words);
            ExitCode::FAILURE
        }
        Err(error) => {
            say(&format!("git-gate: push refused: {error:#}\n"));
            ExitCode::FAILURE
        }
    }
}

enum Verdict {
    Take,
    Refuse(String),
}

fn judge() -> anyhow::Result<Verdict> {
    let mut daemon = Daemon::connect()?;
    let scene = Scene::open()?;
    let push = Push { updates: scene.updates()?, options: options()? };
    let Push { updates, options } = push.clone();
    daemon.say(&FromHook::Updates { updates, options })?;
    let mut next = daemon.hear()?;
    loop {
        next = match next {
            ToHook::Inspect { bounds, marking, unread, gate_dir } => {
                let terms = Terms { bounds, marking, unread, gate: GateDir::new(gate_dir) };
                match scene.look(&push, &terms, &mut daemon)? {
                    Looked::Refused(words) => return Ok(Verdict::Refuse(words)),
                    Looked::At(judgement, known) => {
                        match daemon.hear_waiting()? {
                            // Upstream has something else by now.
                            again @ ToHook::Inspect { .. } => again,
                            answer => return scene.conclude(&push, &judgement, &known, answer, &mut daemon),
                        }
                    }
                }
            }
            ToHook::Deny { reasons } => return Ok(Verdict::Refuse(report::denied(&reasons))),
            ToHook::Forward { .. } | ToHook::Wait { .. } | ToHook::Sent { .. } => {
                bail!("the daemon answered out of turn")
            }
        }
    }
}

/// What is asked for.
#[derive(Clone)]
struct Push {
    updates: Vec<Update>,
    options: Vec<String>,
}

/// What the daemon asks of the objects.
struct Terms {
    bounds: Bounds,
    marking: Marking,
    /// A ref that could not be fetched if it were there.
    unread: Option<String>,
    gate: GateDir,
}

/// What came of looking at the objects.
enum Looked {
    /// They do not go on.
    Refused(String),
    /// They may; what counted as known is said too.
    At(Judgement, Vec<Oid>),
}

/// The push options as git passes them to a hook.
fn options() -> anyhow::Result<Vec<String>> {
    let count = std::env::var("GIT_PUSH_OPTION_COUNT").ok().and_then(|n| n.parse().ok()).unwrap_or(0_usize);
    if count > OPTIONS_MAX {
        bail!("more than {OPTIONS_MAX} push options");
    }
    let options: Vec<String> = (0..count)
        .map(|n| std::env::var(format!("GIT_PUSH_OPTION_{n}")).context("a push option is not text"))
        .collect::<anyhow::Result<_>>()?;
    if options.iter().any(|option| option.contains(char::is_control)) {
        bail!("a push option has a control character in it");
    }
    Ok(options)
}

/// What names the findings of this push.
fn marks(marking: &Marking) -> anyhow::Result<Arc<Marks>> {
    let mark = |one: &Excepted| Some((one.rule.clone(), Mark::parse(&one.fingerprint)?));
    let excepted = marking.excepted.iter().map(mark).collect::<Option<_>>();
    let excepted = excepted.context("the daemon excepts what has no name")?;
    Ok(Arc::new(Marks::new(Arc::new(MarkKey::new(marking.key)), excepted)))
}

/// The socket to the daemon.
struct Daemon {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Daemon {
    fn connect() -> anyhow::Result<Self> {
        let number = std::env::var(HOOK_FD).ok().and_then(|n| n.parse().ok());
        let number = number.context("the hook is started by git-gate, through git receive-pack")?;
        let stream = UnixStream::from(sys::adopt(number).context("the socket to the daemon is gone")?);
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(Self { reader: BufReader::new(stream.try_clone()?), writer: stream })
    }

    fn say(&mut self, message: &FromHook) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.writer.write_all(&line).context("the daemon is gone")
    }

    /// A part of the pack; an empty one is its end.
    fn frame(&mut self, part: &[u8]) -> anyhow::Result<()> {
        let length = u32::try_from(part.len())?.to_be_bytes();
        self.writer
            .write_all(&length)
            .and_then(|()| self.writer.write_all(part))
            .context("the daemon is gone")
    }

    fn hear(&mut self) -> anyhow::Result<ToHook> {
        let mut line = Vec::new();
        let mut bounded = (&mut self.reader).take(LINE_MAX_BYTES);
        bounded.read_until(b'\n', &mut line).context("the daemon did not answer")?;
        serde_json::from_slice(&line).context("the daemon went away")
    }

    /// The next answer that is not a word for who waits; those are passed on.
    fn hear_waiting(&mut self) -> anyhow::Result<ToHook> {
        loop {
            match self.hear()? {
                ToHook::Wait { words } => say(&words),
                answer => return Ok(answer),
            }
        }
    }
}

/// The repository as git shows it to a hook: the mirror's refs, the quarantine's objects.
struct Scene {
    repo: Repository,
    git_dir: PathBuf,
    /// None when the push brings no objects: it only deletes.
    quarantine: Option<PathBuf>,
}

impl Scene {
    fn open() -> anyhow::Result<Self> {
        if std::env::var_os("GIT_PUSH_CERT").is_some() {
            bail!(
                "a signed push cannot be forwarded: its signature is for another host; push without --signed"
            );
        }
        let here = std::env::current_dir()?;
        let path = |name: &str| std::env::var_os(name).map(|value| here.join(value));
        let git_dir = path("GIT_DIR").context("git gave the hook no repository")?.canonicalize()?;
        let quarantine = path("GIT_QUARANTINE_PATH");
        let repo = Repository::open_bare(&git_dir)?;
        if let Some(quarantine) = &quarantine {
            repo.odb()?
                .add_disk_alternate(quarantine.to_str().context("the quarantine's path is not text")?)?;
        }
        Ok(Self { repo, git_dir, quarantine })
    }

    fn updates(&self) -> anyhow::Result<Vec<Update>> {
        let mut bytes = Vec::new();
        io::stdin().lock().take(STDIN_MAX_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > STDIN_MAX_BYTES {
            bail!("the push changes too many refs");
        }
        let Ok(text) = String::from_utf8(bytes) else {
            bail!("a ref of this push has a name that is not UTF-8")
        };
        text.lines().map(|line| self.update(line)).collect()
    }

    fn update(&self, line: &str) -> anyhow::Result<Update> {
        let mut words = line.splitn(3, ' ');
        let (Some(old), Some(new), Some(name)) = (words.next(), words.next(), words.next()) else {
            bail!("git gave the hook a line it does not know");
        };
        let (from, to) = (Oid::from_str(old)?, Oid::from_str(new)?);
        let change = match (from.is_zero(), to.is_zero()) {
            (_, true) => Change::Delete,
            (true, false) => Change::Create,
            (false, false) if self.contains(to, from) => Change::FastForward,
            (false, false) => Change::Rewrite,
        };
        Ok(Update { name: name.to_owned(), old: old.to_owned(), new: new.to_owned(), change })
    }

    fn contains(&self, descendant: Oid, ancestor: Oid) -> bool {
        descendant == ancestor || self.repo.graph_descendant_of(descendant, ancestor).unwrap_or(false)
    }

    /// Judges the objects and says what came of it.
    fn look(&self, push: &Push, terms: &Terms, daemon: &mut Daemon) -> anyhow::Result<Looked> {
        let (Push { updates, options }, Terms { bounds, marking, unread, gate }) = (push, terms);
        if !options.is_empty() && bounds.options == Options::Refuse {
            bail!("push options are not passed on to this upstream; push without --push-option");
        }
        let (known, marks) = (self.upstream_tips()?, marks(marking)?);
        let judgement = match self.inspect(push, bounds, &known, &marks) {
            Ok(judgement) => judgement,
            Err(error) => {
                let reason = format!("{error:#}");
                daemon.say(&FromHook::Unjudged { reason: reason.clone() })?;
                return Ok(Looked::Refused(report::unjudged(&reason)));
            }
        };
        let Judgement { places, objections, objects, content, .. } = &judgement;
        // What the operator cannot see all of is not held.
        let held = bounds.on_secret == OnSecret::Supervise
            && objections.is_empty()
            && places.len() <= HELD_MAX
            && updates.len() <= HELD_MAX;
        if !places.is_empty() && !held {
            daemon.say(&FromHook::Found { findings: places.clone() })?;
            return Ok(Looked::Refused(report::secrets(places)));
        }
        if !objections.is_empty() {
            daemon.say(&FromHook::Objected { reasons: objections.clone() })?;
            return Ok(Looked::Refused(report::denied(objections)));
        }
        // What waits for the operator first is looked at when it goes on.
        if places.is_empty()
            && let Err(error) = self.rests_on_upstream(&judgement, gate)
        {
            let reason = match (&error, unread) {
                (Unreached::Gone(_), Some(name)) => format!("{} {UNREAD}", printable(name)),
                _ => error.to_string(),
            };
            daemon.say(&FromHook::Unjudged { reason: reason.clone() })?;
            return Ok(Looked::Refused(report::unjudged(&reason)));
        }
        let excepted = marks.met().into_iter().filter_map(|at| marking.excepted.get(at).cloned()).collect();
        daemon.say(&if places.is_empty() {
            FromHook::Clean { objects: *objects, excepted }
        } else {
            let digest = self.digest(updates, options, content)?;
            FromHook::Held { findings: places.clone(), objects: *objects, digest, excepted }
        })?;
        Ok(Looked::At(judgement, known))
    }

    /// Does what the daemon decided about objects that may go on.
    fn conclude(
        &self,
        push: &Push,
        judgement: &Judgement,
        known: &[Oid],
        answer: ToHook,
        daemon: &mut Daemon,
    ) -> anyhow::Result<Verdict> {
        let (gate, way) = match answer {
            ToHook::Forward { gate_dir, way } => (GateDir::new(gate_dir), way),
            ToHook::Sent { end, words } => return Ok(verdict(end, &words)),
            ToHook::Deny { reasons } if judgement.places.is_empty() => {
                return Ok(Verdict::Refuse(report::denied(&reasons)));
            }
            ToHook::Deny { reasons } => {
                return Ok(Verdict::Refuse(report::unreleased(&judgement.places, &reasons)));
            }
            ToHook::Inspect { .. } | ToHook::Wait { .. } => bail!("the daemon answered out of turn"),
        };
        let Answer { end, words, refs } = match way {
            _ if !self.still_has(known)? => Answer::removed(push),
            _ if !judgement.places.is_empty() && self.rests_on_upstream(judgement, &gate).is_err() => {
                Answer::removed(push)
            }
            Way::Git { url, door } => self.forward(push, &url, &gate, &door)?,
            Way::Pack => {
                self.send(push, judgement, known, &gate, daemon)?;
                return match daemon.hear_waiting()? {
                    ToHook::Sent { end, words } => Ok(verdict(end, &words)),
                    _ => bail!("the daemon answered out of turn"),
                };
            }
        };
        daemon.say(&FromHook::Answered { end, words: words.clone(), refs })?;
        Ok(verdict(end, &words))
    }

    /// Hands the daemon the pack: of exactly the objects that were judged where they are few, and else of what upstream lacks.
    fn send(
        &self,
        push: &Push,
        judgement: &Judgement,
        known: &[Oid],
        gate: &GateDir,
        daemon: &mut Daemon,
    ) -> anyhow::Result<()> {
        let tips = || push.updates.iter().filter(|update| update.change != Change::Delete);
        if tips().next().is_none() {
            daemon.say(&FromHook::Sending)?;
        } else if judgement.content.len() <= BUILT_MAX_OBJECTS && judgement.bytes <= BUILT_MAX_BYTES {
            let pack = self.pack(&judgement.content)?;
            daemon.say(&FromHook::Sending)?;
            pack.chunks(FRAME_BYTES).try_for_each(|part| daemon.frame(part))?;
        } else {
            let objects = self.quarantine.as_deref().map_or(Objects::Own, Objects::Quarantine);
            let mut command = gate.git(&self.git_dir, objects);
            command.args(["pack-objects", "--revs", "--thin", "--stdout", "--quiet"]);
            let mut list: String = tips().map(|update| format!("{}\n", update.new)).collect();
            list.extend(known.iter().map(|oid| format!("^{oid}\n")));
            let mut child =
                command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
            let (Some(mut stdin), Some(mut stdout)) = (child.stdin.take(), child.stdout.take()) else {
                bail!("git has no output");
            };
            let fed = std::thread::spawn(move || stdin.write_all(list.as_bytes()));
            daemon.say(&FromHook::Sending)?;
            let mut buffer = vec![0; FRAME_BYTES];
            loop {
                match stdout.read(&mut buffer)? {
                    0 => break,
                    length => daemon.frame(&buffer[..length])?,
                }
            }
            let _ = fed.join();
            if !child.wait()?.success() {
                bail!("git could not pack the objects");
            }
        }
        daemon.frame(&[])
    }

    fn pack(&self, objects: &BTreeSet<Oid>) -> anyhow::Result<Vec<u8>> {
        if objects.is_empty() {
            return Ok(EMPTY_PACK.to_vec());
        }
        let mut builder = self.repo.packbuilder()?;
        builder.set_threads(1);
        for oid in objects {
            builder.insert_object(*oid, None)?;
        }
        let mut pack = git2::Buf::new();
        builder.write_buf(&mut pack)?;
        Ok(pack.to_vec())
    }

    fn inspect(
        &self,
        Push { updates, options }: &Push,
        bounds: &Bounds,
        known: &[Oid],
        marks: &Arc<Marks>,
    ) -> anyhow::Result<Judgement> {
        let asked = Asked {
            max_file: bounds.max_file,
            author_domains: bounds.author_domains.clone(),
            lfs: bounds.lfs,
            opaque: bounds.opaque,
            rules: scan::Rules::builtin(),
            marks: Some(Arc::clone(marks)),
        };
        let mut tips = Vec::new();
        for update in updates.iter().filter(|u| u.change != Change::Delete) {
            tips.push(Oid::from_str(&update.new)?);
        }
        let mut judgement = match &self.quarantine {
            Some(path) => inspect::quarantined(&self.repo, path, &tips, known, &asked)?,
            None => inspect::new_objects(&self.repo, &tips, known, &asked)?,
        };
        let names = updates.iter().flat_map(|u| inspect::name(&u.name, "(ref name)", &asked));
        judgement.places.extend(names);
        judgement.places.extend(options.iter().flat_map(|o| inspect::name(o, "(push option)", &asked)));
        judgement.objections.extend(configuring::objections(&self.repo, &judgement.configuring, bounds.lfs)?);
        Ok(judgement)
    }

    /// What stands for exactly this push: what happens to which refs, and each byte of each object that it brings.
    fn digest(
        &self,
        updates: &[Update],
        options: &[String],
        content: &BTreeSet<Oid>,
    ) -> anyhow::Result<String> {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        part(self.git_dir.as_os_str().as_encoded_bytes());
        let mut sorted: Vec<&Update> = updates.iter().collect();
        sorted.sort_by(|a, b| a.name.cmp(&b.name));
        part(&(sorted.len() as u64).to_be_bytes());
        for update in sorted {
            for text in [&update.name, &update.old, &update.new] {
                part(text.as_bytes());
            }
        }
        part(&(options.len() as u64).to_be_bytes());
        options.iter().for_each(|option| part(option.as_bytes()));
        let odb = self.repo.odb()?;
        for oid in content {
            let object = odb.read(*oid)?;
            part(object.kind().str().as_bytes());
            part(object.data());
        }
        let digits: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(format!("sha256:{digits}"))
    }

    /// What upstream has, as the mirror's refs show it.
    fn upstream_tips(&self) -> anyhow::Result<Vec<Oid>> {
        let mut tips = Vec::new();
        for reference in self.repo.references()? {
            tips.extend(reference?.target());
        }
        Ok(tips)
    }

    /// Whether what a push does not bring is what upstream has.
    fn rests_on_upstream(&self, judgement: &Judgement, gate: &GateDir) -> Result<(), Unreached> {
        let refuse =
            |quarantine: &PathBuf| leftovers::refuse(gate, &self.git_dir, quarantine, &judgement.taken);
        self.quarantine.as_ref().map_or(Ok(()), refuse)
    }

    /// Whether upstream still reaches what counted as known. The lock is held.
    fn still_has(&self, known: &[Oid]) -> anyhow::Result<bool> {
        let now = self.upstream_tips()?;
        let set: BTreeSet<&Oid> = now.iter().collect();
        let mut walk = self.repo.revwalk()?;
        for old in known.iter().filter(|oid| !set.contains(oid)) {
            if self.repo.find_commit(*old).is_err() {
                return Ok(false);
            }
            walk.push(*old)?;
        }
        for tip in &now {
            if let Ok(commit) = self.repo.find_object(*tip, None).and_then(|o| o.peel_to_commit()) {
                walk.hide(commit.id())?;
            }
        }
        Ok(walk.next().is_none())
    }

    /// Pushes upstream under lease. The lock is held: the mirror's refs are upstream's as last seen.
    fn forward(
        &self,
        Push { updates, options }: &Push,
        url: &str,
        gate: &GateDir,
        door: &Door,
    ) -> anyhow::Result<Answer> {
        for update in updates {
            let now = self.repo.refname_to_id(&update.name).unwrap_or(Oid::ZERO_SHA1);
            if now.to_string() != update.old {
                let words = format!(
                    "git-gate: {} moved upstream in the meantime; fetch, then push again\n",
                    printable(&update.name)
                );
                let refs = vec![(update.name.clone(), "moved upstream; fetch first".to_owned())];
                return Ok(Answer { end: End::Refused, words, refs });
            }
        }
        let objects = self.quarantine.as_deref().map_or(Objects::Own, Objects::Quarantine);
        let mut command = gate.git_through(&self.git_dir, objects, Some(door))?;
        command.args(["push", "--porcelain", "--quiet", "--no-verify", "--no-signed"]);
        if updates.len() > 1 {
            command.arg("--atomic");
        }
        for option in options {
            command.arg(format!("--push-option={option}"));
        }
        for update in updates {
            let expected = if update.change == Change::Create { "" } else { &update.old };
            command.arg(format!("--force-with-lease={}:{expected}", update.name));
        }
        command.arg("--").arg(url);
        for update in updates {
            let source = if update.change == Change::Delete { "" } else { &update.new };
            command.arg(format!("{source}:{}", update.name));
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut stdout = child.stdout.take().ok_or_else(|| anyhow!("git has no output"))?;
        let stderr = child.stderr.take().ok_or_else(|| anyhow!("git has no output"))?;
        let porcelain = std::thread::spawn(move || words::bounded(&mut stdout));
        let words = words::relay(stderr);
        let porcelain = porcelain.join().unwrap_or_default();
        if child.wait()?.success() {
            return Ok(Answer { end: End::Taken, words: words.upstream, refs: Vec::new() });
        }
        let refs = words::refused(&porcelain);
        let end = if words::said_no_to_all(updates, &refs) { End::Refused } else { End::Unknown };
        Ok(Answer { end, words: words::refusal(&words, &refs), refs })
    }
}

fn verdict(end: End, words: &str) -> Verdict {
    match end {
        End::Taken => {
            say(words);
            Verdict::Take
        }
        End::Refused => Verdict::Refuse(report::refused(words)),
        End::Unknown => Verdict::Refuse(report::unanswered(words)),
    }
}

/// What upstream made of a push.
struct Answer {
    end: End,
    words: String,
    /// Its word on each ref that it refused.
    refs: Vec<(String, String)>,
}

impl Answer {
    /// The push rests on what is gone.
    fn removed(push: &Push) -> Self {
        let refs = push.updates.iter().map(|u| (u.name.clone(), REMOVED.to_owned())).collect();
        Self { end: End::Refused, words: format!("git-gate: {REMOVED}\n"), refs }
    }
}

fn say(words: &str) {
    let _ = io::stderr().lock().write_all(words.as_bytes());
}
