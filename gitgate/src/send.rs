//! A push on its way to an upstream behind ssh: what `git send-pack` says, said here.
//!
//! What upstream shows at the beginning is what it has now; whoever sends decides by that whether to go on. What was sent and
//! not answered counts as unknown.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use git2::Oid;
use repos::{Repo, Ssh};
use tokio::io::{AsyncBufRead, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::time::timeout;

use crate::fault::Fault;
use crate::git::printable;
use crate::lister::{self, Broken, NoListing};
use crate::listing::{Gathering, Listing};
use crate::pktline::{self, Packet};
use crate::ssh::{Ask, Remote, Session, Until};
use crate::wire::{Change, End, Update};

/// How long upstream may take to show what it has.
const SHOW_TIMEOUT: Duration = Duration::from_secs(60);
/// How long it may take to end after its last word.
const END_TIMEOUT: Duration = Duration::from_secs(5);
const BUFFER_BYTES: usize = 64 << 10;
const WORDS_MAX_BYTES: usize = 64 << 10;
const REPORT_MAX_BYTES: usize = 8 << 20;
const REPORT_BAND: u8 = 1;
const FRAME_MAX_BYTES: u32 = 1 << 20;
/// Why an update does not go: in a line of its own, and beside the ref.
const MOVED: &str = "moved upstream in the meantime; fetch, then push again";
const MOVED_BRIEF: &str = "moved upstream; fetch first";
const UNREAD: &str = "is there upstream already, but may not be fetched through this gate; push to another name, or ask the operator for \
                      `fetch.allow`";
const UNREAD_BRIEF: &str = "it is there upstream, but may not be fetched";

/// An upstream that waits for commands.
pub(crate) struct Road {
    remote: Remote,
    pub(crate) shown: Shown,
}

/// What it showed.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    /// As far as it may be read. Without HEAD, which is not shown to who pushes.
    pub(crate) listing: Listing,
    /// Where the refs of the push are there.
    olds: BTreeMap<String, Oid>,
    able: BTreeSet<String>,
}

/// What upstream made of a push.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) end: End,
    pub(crate) words: String,
    /// Its word on each ref that it refused.
    pub(crate) refs: Vec<(String, String)>,
}

impl Road {
    /// Asks upstream to receive a push, and reads what it has.
    pub(crate) async fn open(
        session: &Session,
        repo: &Repo,
        ssh: &Ssh,
        updates: &[Update],
    ) -> Result<Self, NoListing> {
        let remote = session.run("git-receive-pack", ssh, Ask::V0).await.map_err(NoListing::Upstream)?;
        let Remote { stdin, stdout, over } = remote;
        let mut from = BufReader::with_capacity(BUFFER_BYTES, stdout);
        let names = updates.iter().map(|update| update.name.as_str()).collect();
        let mut gathering = Gathering::new(&repo.fetch);
        let shown = timeout(SHOW_TIMEOUT, Shown::read(&mut from, &mut gathering, &names)).await;
        // Upstream says no more until it is told something.
        let remote = Remote { stdin, stdout: from.into_inner(), over };
        let mut shown = match shown {
            Ok(Ok(shown)) => shown,
            Ok(Err(Broken::Told(reason))) => return Err(reason),
            Ok(Err(Broken::Off)) => return Err(NoListing::Upstream(remote.fault().await)),
            Err(_) => return Err(NoListing::Upstream(Fault::unreachable("it does not say what it has"))),
        };
        shown.listing = gathering.end()?;
        Ok(Self { remote, shown })
    }

    /// Ends it without a command.
    pub(crate) async fn leave(mut self) {
        let _ = timeout(END_TIMEOUT, self.remote.stdin.write_all(b"0000")).await;
        self.remote.settle();
    }

    /// Sends these updates, and the pack that comes in frames, if there is one; upstream's answer.
    pub(crate) async fn send(
        self,
        updates: &[Update],
        options: &[String],
        frames: &mut (impl AsyncBufRead + Unpin),
    ) -> Answer {
        let Self { remote, shown } = self;
        let Remote { stdin, stdout, mut over } = remote;
        // An upstream that has answered reads no more.
        let (mut stdin, unanswered) = Until::new(stdin);
        let commands = shown.commands(updates, options);
        let banded = shown.able.contains("side-band-64k");
        // Upstream goes on waiting as long as this end is there: it goes with the last frame, or with who sent them.
        let sent = async move {
            let began = stdin.write_all(&commands).await;
            let sent = forward(frames, &mut stdin).await;
            let ended = stdin.shutdown().await;
            began.and(sent).and(ended)
        };
        let mut from = BufReader::with_capacity(BUFFER_BYTES, stdout);
        let heard = async {
            let heard = Heard::read(&mut from, banded).await;
            drop(unanswered);
            heard
        };
        let (sent, heard) = tokio::join!(sent, heard);
        let mut answer = heard.answer(updates);
        // What came to an end that was not its own is not known to have been whole.
        if sent.is_err() && answer.end == End::Taken {
            answer.end = End::Unknown;
        }
        let own = if answer.end == End::Unknown { over.last_words().await } else { over.words() };
        if answer.end != End::Taken && !own.trim().is_empty() {
            answer.words.push_str(&format!("git-gate: upstream: {}\n", Fault::of(&own).words));
        }
        Remote { stdin: Box::pin(tokio::io::sink()), stdout: from.into_inner(), over }.settle();
        answer
    }
}

impl Shown {
    async fn read(
        from: &mut (impl AsyncBufRead + Unpin),
        gathering: &mut Gathering<'_>,
        names: &BTreeSet<&str>,
    ) -> Result<Self, Broken> {
        let mut shown = Self::default();
        loop {
            let packet = lister::next(from).await?;
            if packet == Packet::Flush {
                return Ok(shown);
            }
            let line = packet.text().ok_or(NoListing::Upstream(lister::strange()))?;
            let mut parts = line.splitn(2, |b| *b == 0);
            let entry = parts.next().unwrap_or_default();
            if let Some(able) = parts.next() {
                let able = String::from_utf8_lossy(able);
                shown.able.extend(able.split(' ').map(str::to_owned));
                let format = shown.able.iter().find_map(|word| word.strip_prefix("object-format="));
                if format.is_some_and(|format| format != "sha1") {
                    return Err(NoListing::ObjectFormat.into());
                }
            }
            // What is no text is no name that is served or pushed.
            let Ok(entry) = std::str::from_utf8(entry) else { continue };
            let (value, name) = entry.split_once(' ').ok_or(NoListing::Upstream(lister::strange()))?;
            if value == "shallow" || name == "capabilities^{}" {
                continue;
            }
            let oid = lister::object(value)?;
            if names.contains(name) {
                shown.olds.insert(name.to_owned(), oid);
            }
            gathering.add(name, oid, None)?;
        }
    }

    /// Why these updates cannot be sent; by refs, and in words.
    pub(crate) fn misfit(&self, updates: &[Update], options: &[String]) -> Option<Answer> {
        let mut refs = Vec::new();
        let mut words = String::new();
        for update in updates {
            let now = self.olds.get(&update.name).copied().unwrap_or(Oid::ZERO_SHA1);
            if now.to_string() == update.old {
                continue;
            }
            // Who pushes may be shown more than is read here.
            let unread = update.change == Change::Create && self.listing.find(&update.name).is_none();
            let (told, brief) = if unread { (UNREAD, UNREAD_BRIEF) } else { (MOVED, MOVED_BRIEF) };
            words.push_str(&format!("git-gate: {} {told}\n", printable(&update.name)));
            refs.push((update.name.clone(), brief.to_owned()));
        }
        let deletes = updates.iter().any(|update| update.change == Change::Delete);
        let needs = [
            (true, "report-status", "reports"),
            (updates.len() > 1, "atomic", "pushes of several refs at once"),
            (deletes, "delete-refs", "deletions"),
            (!options.is_empty(), "push-options", "push options"),
        ];
        for (_, _, what) in needs.iter().filter(|(needed, able, _)| *needed && !self.able.contains(*able)) {
            words.push_str(&format!("git-gate: upstream does not know {what}\n"));
        }
        (!words.is_empty()).then_some(Answer { end: End::Refused, words, refs })
    }

    fn commands(&self, updates: &[Update], options: &[String]) -> Vec<u8> {
        let mut asked = vec!["report-status"];
        let several = updates.len() > 1;
        let wanted =
            [("side-band-64k", true), ("quiet", true), ("object-format=sha1", true), ("atomic", several)];
        asked.extend(
            wanted
                .iter()
                .filter(|(able, use_it)| *use_it && self.able.contains(*able))
                .map(|(able, _)| *able),
        );
        if !options.is_empty() {
            asked.push("push-options");
        }
        let mut bytes = Vec::new();
        for (index, Update { name, old, new, .. }) in updates.iter().enumerate() {
            let able =
                if index == 0 { format!("\0{} agent=git-gate", asked.join(" ")) } else { String::new() };
            bytes.extend(pktline::line(format!("{old} {new} {name}{able}").as_bytes()));
        }
        bytes.extend(Packet::Flush.bytes());
        if !options.is_empty() {
            bytes.extend(options.iter().flat_map(|option| pktline::line(option.as_bytes())));
            bytes.extend(Packet::Flush.bytes());
        }
        bytes
    }
}

/// Copies frames, each with its length before it, to the one that has none.
async fn forward(
    frames: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    let mut failed = None;
    loop {
        let length = frames.read_u32().await?;
        if length > FRAME_MAX_BYTES {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        if length == 0 {
            return failed.map_or(Ok(()), Err);
        }
        buffer.resize(length as usize, 0);
        frames.read_exact(&mut buffer).await?;
        // Who writes the frames waits for their end, also where nobody takes them any more.
        if failed.is_none() {
            failed = to.write_all(&buffer).await.err();
        }
    }
}

/// What upstream said after the commands.
#[derive(Debug, Default)]
struct Heard {
    words: Vec<u8>,
    report: Vec<u8>,
}

impl Heard {
    async fn read(from: &mut (impl AsyncBufRead + Unpin), banded: bool) -> Self {
        let mut heard = Self::default();
        while let Ok(Some(packet)) = pktline::next(from).await {
            match &packet {
                Packet::Data(payload) if banded => match payload.split_first() {
                    Some((&REPORT_BAND, part)) if heard.report.len() < REPORT_MAX_BYTES => {
                        heard.report.extend(part);
                    }
                    Some((_, words)) => {
                        let room = WORDS_MAX_BYTES - heard.words.len().min(WORDS_MAX_BYTES);
                        heard.words.extend(&words[..words.len().min(room)]);
                    }
                    None => {}
                },
                Packet::Data(_) if heard.report.len() < REPORT_MAX_BYTES => {
                    heard.report.extend(packet.bytes())
                }
                Packet::Data(_) => {}
                Packet::Flush if banded => break,
                Packet::Flush => {
                    heard.report.extend(packet.bytes());
                    break;
                }
                Packet::Delimiter | Packet::End => break,
            }
        }
        heard
    }

    fn answer(self, updates: &[Update]) -> Answer {
        let mut words = printable(&String::from_utf8_lossy(&self.words));
        if !words.is_empty() && !words.ends_with('\n') {
            words.push('\n');
        }
        let Report { taken, refused, whole } = Report::of(&self.report);
        let all = |names: &BTreeSet<&str>| updates.iter().all(|update| names.contains(update.name.as_str()));
        let named = refused.iter().map(|(name, _)| name.as_str()).collect();
        let end = match (
            whole,
            all(&taken.iter().map(String::as_str).collect()),
            taken.is_empty() && all(&named),
        ) {
            (true, true, _) if refused.is_empty() => End::Taken,
            (true, false, true) => End::Refused,
            (true, true, _) | (true, false, false) | (false, _, _) => End::Unknown,
        };
        for (name, reason) in &refused {
            words.push_str(&format!(
                "git-gate: upstream: {}: [remote rejected] ({reason})\n",
                printable(name)
            ));
        }
        Answer { end, words, refs: refused }
    }
}

/// Upstream's word on each ref.
#[derive(Debug, Default, PartialEq, Eq)]
struct Report {
    taken: Vec<String>,
    refused: Vec<(String, String)>,
    /// Whether it came to its end.
    whole: bool,
}

impl Report {
    fn of(bytes: &[u8]) -> Self {
        let (mut report, mut rest, mut unpacked) = (Self::default(), bytes, false);
        while let Some((packet, after)) = pktline::split(rest) {
            rest = after;
            let Some(line) = packet.text() else {
                report.whole =
                    packet == Packet::Flush && rest.is_empty() && (unpacked || report.taken.is_empty());
                break;
            };
            // A name is compared as it is, and made readable only where it is shown.
            let line = String::from_utf8_lossy(line);
            match line.trim_end_matches('\n').split_once(' ') {
                Some(("unpack", word)) => unpacked = word == "ok",
                Some(("ok", name)) => report.taken.push(name.to_owned()),
                Some(("ng", refused)) => {
                    let (name, reason) = refused.split_once(' ').unwrap_or((refused, "failed"));
                    let reason = printable(reason).replace(['\n', '\t'], " ");
                    report.refused.push((name.to_owned(), reason));
                }
                Some(_) | None => return Self::default(),
            }
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "1111111111111111111111111111111111111111";
    const B: &str = "2222222222222222222222222222222222222222";
    const NONE: &str = "0000000000000000000000000000000000000000";

    fn update(name: &str, old: &str, new: &str) -> Update {
        let change = if new == NONE { Change::Delete } else { Change::FastForward };
        Update { name: name.into(), old: old.into(), new: new.into(), change }
    }

    fn packets(lines: &[&str]) -> Vec<u8> {
        let bytes =
            |line: &&str| if line.is_empty() { b"0000".to_vec() } else { pktline::line(line.as_bytes()) };
        lines.iter().flat_map(bytes).collect()
    }

    async fn shown(lines: &[&str]) -> Shown {
        let allow = ["refs/heads/*"].iter().filter_map(|p| repos::RefPattern::parse(p).ok()).collect();
        let rules = repos::FetchRules { allow, stale: repos::Stale::Refuse };
        let mut gathering = Gathering::new(&rules);
        let names = BTreeSet::from(["refs/heads/a", "refs/other/x"]);
        let read = Shown::read(&mut &packets(lines)[..], &mut gathering, &names).await;
        let mut shown = read.ok().expect("what it shows");
        shown.listing = gathering.end().expect("a listing");
        shown
    }

    #[tokio::test]
    async fn an_upstream_is_sent_what_it_can_take_and_only_where_it_is_as_was_shown() {
        let first = format!(
            "{A} .have\0report-status delete-refs side-band-64k quiet ofs-delta object-format=sha1 agent=x\n"
        );
        let shown =
            shown(&[&first, &format!("{A} refs/heads/a\n"), &format!("{B} refs/other/x\n"), ""]).await;
        assert_eq!(shown.listing.iter().map(|shown| shown.name).collect::<Vec<_>>(), ["refs/heads/a"]);
        let fits = |updates: &[Update], options: &[String]| {
            shown.misfit(updates, options).map(|answer| answer.words)
        };
        let push = [update("refs/heads/a", A, B)];
        assert_eq!(fits(&push, &[]), None);
        assert_eq!(fits(&[update("refs/other/x", B, NONE)], &[]), None);
        for (moved, name) in
            [(NONE, "refs/heads/a"), (B, "refs/heads/a"), (A, "refs/other/x"), (A, "refs/heads/new")]
        {
            let said = fits(&[update(name, moved, B)], &[]).unwrap_or_default();
            assert!(said.contains("moved upstream"), "{name} {moved}: {said}");
        }
        let unread = Update { change: Change::Create, ..update("refs/other/x", NONE, B) };
        let said = fits(&[unread], &[]).unwrap_or_default();
        assert!(said.contains("may not be fetched") && !said.contains("moved"), "{said}");
        let two = [push[0].clone(), update("refs/heads/b", NONE, B)];
        assert!(
            fits(&two, &[]).is_some_and(|said| said.contains("several refs")),
            "none or all is not to be had"
        );
        assert!(fits(&push, &["ci.skip".to_owned()]).is_some_and(|said| said.contains("push options")));
        let commands = shown.commands(&push, &[]);
        let line = format!(
            "{A} {B} refs/heads/a\0report-status side-band-64k quiet object-format=sha1 agent=git-gate"
        );
        assert_eq!(String::from_utf8_lossy(&commands), String::from_utf8_lossy(&packets(&[&line, ""])));
    }

    async fn heard(lines: &[&str], banded: bool) -> Answer {
        let report = packets(lines);
        let bytes = if banded {
            let (one, two) = report.split_at(report.len() / 2);
            let band = |number: u8, part: &[u8]| pktline::line(&[&[number][..], part].concat());
            [band(2, b"hello\x1b[2J\r\n"), band(1, one), band(2, b"there"), band(1, two), b"0000".to_vec()]
                .concat()
        } else {
            report
        };
        let updates = [update("refs/heads/a", A, B), update("refs/heads/b", A, B)];
        Heard::read(&mut &bytes[..], banded).await.answer(&updates)
    }

    #[tokio::test]
    async fn what_is_not_said_of_every_ref_to_the_end_is_unknown() {
        let (ok_a, ok_b) = ("ok refs/heads/a\n", "ok refs/heads/b\n");
        let (ng_a, ng_b) = ("ng refs/heads/a hook declined\n", "ng refs/heads/b atomic push failure\n");
        for banded in [false, true] {
            for (lines, end) in [
                (&["unpack ok\n", ok_a, ok_b, ""][..], End::Taken),
                (&["unpack ok\n", ng_a, ng_b, ""], End::Refused),
                (&["unpack index-pack abnormal exit\n", ng_a, ng_b, ""], End::Refused),
                (&["unpack ok\n", ok_a, ng_b, ""], End::Unknown),
                (&["unpack ok\n", ok_a, ""], End::Unknown),
                (&["unpack ok\n", ng_a, ""], End::Unknown),
                (&["unpack ok\n", ok_a, ok_b], End::Unknown),
                (&["unpack no\n", ok_a, ok_b, ""], End::Unknown),
                (&["unpack ok\n", ok_a, ok_b, "option x\n", ""], End::Unknown),
                (&[""], End::Unknown),
                (&[], End::Unknown),
            ] {
                assert_eq!(heard(lines, banded).await.end, end, "{lines:?}");
            }
        }
        let answer = heard(&["unpack ok\n", ng_a, ng_b, ""], true).await;
        assert!(answer.words.starts_with("hello[2J\nthere\n"), "{}", answer.words);
        assert_eq!(answer.refs[0], ("refs/heads/a".to_owned(), "hook declined".to_owned()));
    }

    /// A road to a program that stands for upstream.
    fn road(script: &str) -> Road {
        Road { remote: Remote::local(script), shown: Shown::default() }
    }

    #[tokio::test]
    async fn upstream_does_not_wait_for_the_rest_of_a_pack_whose_packer_is_gone() {
        let frames = [&3_u32.to_be_bytes()[..], b"abc"].concat();
        let updates = [update("refs/heads/a", A, B)];
        let send = |script: &str, frames: Vec<u8>| {
            let (road, updates) = (road(script), updates.clone());
            async move { timeout(Duration::from_secs(60), road.send(&updates, &[], &mut &frames[..])).await }
        };
        let reads_all = "cat >/dev/null; echo 'the disk is full' >&2";
        let answer = send(reads_all, frames.clone()).await.expect("an answer at once");
        assert_eq!(answer.end, End::Unknown);
        assert!(answer.words.contains("the disk is full"), "{}", answer.words);

        // The control: with its end the same pack is taken, by an upstream that says so.
        let report = "cat >/dev/null; printf '000eunpack ok\\n0014ok refs/heads/a\\n0000'";
        let whole = [&frames[..], &[0; 4]].concat();
        let answer = send(report, whole).await.expect("an answer");
        assert_eq!((answer.end, answer.words.as_str()), (End::Taken, ""));
        let answer = send(report, frames).await.expect("an answer");
        assert_eq!(answer.end, End::Unknown, "what was cut is not known to have been whole");
    }

    #[tokio::test]
    async fn an_upstream_that_refuses_before_it_has_read_all_is_heard_at_once() {
        let report = "printf '000eunpack no\\n0017ng refs/heads/a no\\n0000'; head -c 200000 /dev/zero; exec sleep 600";
        let length = FRAME_MAX_BYTES;
        let frames = [&length.to_be_bytes()[..], &vec![0; length as usize], &[0; 4]].concat();
        let updates = [update("refs/heads/a", A, B)];
        let mut frames = &frames[..];
        let sent = road(report).send(&updates, &[], &mut frames);
        let answer = timeout(Duration::from_secs(60), sent).await.expect("an answer at once");
        assert_eq!(
            (answer.end, answer.refs),
            (End::Refused, vec![("refs/heads/a".to_owned(), "no".to_owned())])
        );
        assert!(frames.is_empty(), "who writes the frames comes to their end");
    }

    #[tokio::test]
    async fn a_name_is_compared_as_it_is() {
        let name = "refs/heads/agent/a\u{200d}\u{9b}b";
        let heard = |lines: &[&str]| Heard { words: Vec::new(), report: packets(lines) };
        let updates = [update(name, A, B)];
        let taken = heard(&["unpack ok\n", &format!("ok {name}\n"), ""]).answer(&updates);
        assert_eq!(taken.end, End::Taken);
        let refused = heard(&["unpack ok\n", &format!("ng {name} no\x1b[2J\n"), ""]).answer(&updates);
        assert_eq!((refused.end, refused.refs), (End::Refused, vec![(name.to_owned(), "no[2J".to_owned())]));
        assert!(refused.words.contains("refs/heads/agent/ab: [remote rejected]"), "{}", refused.words);
        let both = heard(&["unpack ok\n", &format!("ok {name}\n"), &format!("ng {name} no\n"), ""]);
        assert_eq!(both.answer(&updates).end, End::Unknown);
    }

    #[tokio::test]
    async fn frames_are_copied_up_to_their_end_and_a_cut_is_an_error() {
        let frames =
            [&3_u32.to_be_bytes()[..], b"abc", &1_u32.to_be_bytes(), b"d", &[0; 4], b"rest"].concat();
        let (mut from, mut to) = (&frames[..], Vec::new());
        forward(&mut from, &mut to).await.expect("copied");
        assert_eq!((&to[..], from), (&b"abcd"[..], &b"rest"[..]));
        for cut in 0..15 {
            assert!(forward(&mut &frames[..cut], &mut Vec::new()).await.is_err(), "{cut}");
        }
        let long = (FRAME_MAX_BYTES + 1).to_be_bytes();
        assert!(forward(&mut &long[..], &mut Vec::new()).await.is_err());
    }
}
