//! `bottlecap audit`: the journals of a bottle, checked against themselves and against each other, and printed.
//!
//! The daemons wrote them, and one of those may not be what it was: nothing is followed, and everything is escaped.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Write};
use std::iter::Peekable;
use std::path::{Path, PathBuf};

use audit::{Replay, Replayed};
use jiff::Timestamp;
use proposal::{Entry, Note, Noted};
use serde_json::{Value, json};

use crate::fault::{Attempted, Fault};
use crate::manifest::Name;
use crate::requests::ledger::{self, Tip};
use crate::requests::refusals::{DAEMONS, journal};
use crate::requests::{Form, json as print_json, print};
use crate::state::Directories;

/// The name of the host's own journal.
const HOST: &str = "host";

/// The journals of one bottle, by who writes them.
#[derive(Debug)]
pub struct Journals(BTreeMap<String, PathBuf>);

/// Where somebody saw a journal end.
struct Anchor {
    of: String,
    by: &'static str,
    at: Timestamp,
    tip: Tip,
}

impl Journals {
    /// Those of the bottle of that name, or of the only one.
    pub fn of_bottle(name: Option<&Name>, directories: &Directories) -> Result<Journals, Fault> {
        let bottles = directories.list().failing(|| "cannot list the bottles".to_owned())?;
        let mut candidates =
            bottles.iter().filter(|(record, _)| name.is_none_or(|name| name.as_str() == record.name));
        let (Some((record, _)), None) = (candidates.next(), candidates.next()) else {
            return Err(Fault::refused("that is not one bottle")
                .with_hint("`bottlecap list` shows the bottles; --bottle NAME chooses one"));
        };
        let name: Name = record.name.parse().refusing(|| "a bottle's record is damaged".to_owned())?;
        let home = directories.home(&name);
        let mut found: BTreeMap<String, PathBuf> =
            DAEMONS.iter().map(|daemon| ((*daemon).to_owned(), journal(&home, daemon))).collect();
        found.insert(HOST.to_owned(), ledger::path(&home));
        Ok(Journals(found))
    }

    /// Those of a bundle that bottlecap did not start: a directory with one for each daemon.
    #[must_use]
    pub fn of_directory(directory: &Path) -> Journals {
        let path = |daemon: &&str| ((*daemon).to_owned(), directory.join(daemon).join("journal.jsonl"));
        Journals(DAEMONS.iter().map(path).collect())
    }

    /// Checks each chain, and that each end which somebody saw is still there.
    pub fn verify(&self, form: Form, out: &mut impl Write) -> Result<(), Fault> {
        let anchors = self.anchors()?;
        let mut reports = Vec::new();
        let mut broken = Vec::new();
        for (name, path) in &self.0 {
            let head = match audit::verify(path) {
                Ok(head) => head,
                Err(audit::Error::Open { source, .. }) if source.kind() == ErrorKind::NotFound => {
                    broken.extend(
                        anchors
                            .iter()
                            .filter(|anchor| anchor.of == *name && anchor.tip.records > 0)
                            .take(1)
                            .map(|anchor| {
                                format!("{name}: it is gone; {} saw it at {}", anchor.by, anchor.at)
                            }),
                    );
                    continue;
                }
                Err(error) => {
                    broken.push(format!("{name}: {}", proposal::escaped(&crate::fault::chain(&error))));
                    continue;
                }
            };
            let own: Vec<&Anchor> = anchors
                .iter()
                .filter(|anchor| anchor.of == *name && anchor.tip.records > head.dropped)
                .collect();
            let wanted: BTreeSet<u64> = own.iter().map(|anchor| anchor.tip.records).collect();
            let found = audit::hashes(path, &wanted).failing(|| format!("cannot read {}", path.display()))?;
            let holds = |anchor: &&&Anchor| {
                found.get(&anchor.tip.records).is_some_and(|hash| hash.to_string() == anchor.tip.hash)
            };
            broken.extend(own.iter().find(|anchor| !holds(anchor)).map(|anchor| {
                format!(
                    "{name}: record {} is not the one that {} saw at {}: the end was cut off, or written anew",
                    anchor.tip.records, anchor.by, anchor.at
                )
            }));
            reports.push((name, head, own.len()));
        }
        match form {
            Form::Json => {
                let journals: Vec<Value> = reports
                    .iter()
                    .map(|(name, head, anchors)| {
                        json!({
                            "journal": name, "records": head.seq, "head": head.hash.to_string(), "dropped": head.dropped,
                            "unfinished_bytes": head.unfinished_bytes, "anchors": anchors,
                        })
                    })
                    .collect();
                print_json(out, &json!({"journals": journals, "broken": broken}))?;
            }
            Form::Text => {
                for (name, head, anchors) in &reports {
                    let dropped = match head.dropped {
                        0 => String::new(),
                        through => format!(", the first {through} dropped"),
                    };
                    print(
                        out,
                        &format!(
                            "{name:<10} {} records{dropped}, the chain holds, seen elsewhere {anchors} times\n",
                            head.seq
                        ),
                    )?;
                }
            }
        }
        if broken.is_empty() { Ok(()) } else { Err(Fault::failed(broken.join("\n"))) }
    }

    /// Prints the newest records of each journal, or of one.
    pub fn tail(&self, of: Option<&str>, lines: usize, out: &mut impl Write) -> Result<(), Fault> {
        let mut kept = std::collections::VecDeque::new();
        self.merged(of, |line| {
            if kept.len() == lines {
                kept.pop_front();
            }
            kept.push_back(line);
            Ok(())
        })?;
        kept.iter().try_for_each(|line| print(out, line))
    }

    /// Prints all records in the order of time, as JSON lines.
    pub fn export(&self, of: Option<&str>, out: &mut impl Write) -> Result<(), Fault> {
        self.merged(of, |line| print(out, &line))
    }

    fn merged(
        &self,
        of: Option<&str>,
        mut each: impl FnMut(String) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let chosen = self.0.iter().filter(|(name, _)| of.is_none_or(|of| of == name.as_str()));
        let mut sources: Vec<(&str, Peekable<Replay<Value>>)> = Vec::new();
        for (name, path) in chosen {
            match audit::replay(path) {
                Ok(records) => sources.push((name, records.peekable())),
                Err(audit::Error::Open { source, .. }) if source.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(Fault::failed(crate::fault::chain(&error))),
            }
        }
        loop {
            let oldest = sources
                .iter_mut()
                .enumerate()
                .filter_map(|(index, (_, records))| {
                    let time = match records.peek()? {
                        Ok(record) => record.time,
                        // What is broken is told at once.
                        Err(_) => Timestamp::MIN,
                    };
                    Some((time, index))
                })
                .min();
            let Some((_, index)) = oldest else { return Ok(()) };
            let (name, records) = &mut sources[index];
            let Some(record) = records.next() else { continue };
            let Replayed { seq, time, event, .. } = record.failing(|| format!("the journal of {name}"))?;
            let value = json!({"journal": name, "seq": seq, "time": time, "event": event});
            each(ascii(&value.to_string()) + "\n")?;
        }
    }

    fn anchors(&self) -> Result<Vec<Anchor>, Fault> {
        let mut anchors = Vec::new();
        if let Some(path) = self.0.get("supervise") {
            for entry in readable::<Entry>(path) {
                if let Entry::Desk(Note { at, what: Noted::Anchor { daemon, records, hash } }) = entry {
                    anchors.push(Anchor { of: daemon, by: "supervise", at, tip: Tip { records, hash } });
                }
            }
        }
        if let Some(path) = self.0.get(HOST) {
            let Ok(records) = audit::replay::<ledger::Entry>(path) else { return Ok(anchors) };
            for record in records.map_while(Result::ok) {
                let at = record.time;
                anchors.extend(record.event.heads().into_iter().map(|(of, tip)| Anchor {
                    of,
                    by: "the host",
                    at,
                    tip,
                }));
            }
        }
        Ok(anchors)
    }
}

/// The events of a journal up to where it breaks: that it does is told by its own check.
fn readable<E: serde::de::DeserializeOwned>(path: &Path) -> impl Iterator<Item = E> {
    let records = audit::replay::<E>(path).ok();
    records.into_iter().flatten().map_while(Result::ok).map(|record| record.event)
}

/// JSON in which every sign beyond ASCII is written by its number: nothing in it can move a cursor or hide.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() && c != '\u{7f}' {
            text.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                text.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use audit::{Durability, Journal};

    use super::*;

    fn write(path: &Path, events: &[Value]) -> Tip {
        let (journal, _) = Journal::open(path).unwrap();
        for event in events {
            journal.append(event, Durability::Buffered).unwrap();
        }
        let (records, hash) = journal.head();
        Tip { records, hash: hash.to_string() }
    }

    fn verify(directory: &Path) -> Result<String, String> {
        let mut out = Vec::new();
        Journals::of_directory(directory)
            .verify(Form::Text, &mut out)
            .map(|()| String::from_utf8(out).unwrap())
            .map_err(|fault| fault.to_string())
    }

    #[test]
    fn an_end_that_was_cut_off_shows_by_what_supervise_saw() {
        let directory = tempfile::tempdir().unwrap();
        let egress = directory.path().join("egress/journal.jsonl");
        let tip = write(&egress, &[json!({"n": 1}), json!({"n": 2}), json!({"n": 3})]);
        let anchor = json!({
            "at": "2026-11-21T10:00:00Z", "desk": "anchor", "daemon": "egress", "records": tip.records, "hash": tip.hash,
        });
        write(&directory.path().join("supervise/journal.jsonl"), &[anchor]);
        let said = verify(directory.path()).unwrap();
        assert!(said.contains("egress     3 records, the chain holds, seen elsewhere 1 times"), "{said}");
        let text = std::fs::read_to_string(&egress).unwrap();
        let shorter: String = text.lines().take(2).map(|line| format!("{line}\n")).collect();
        std::fs::write(&egress, shorter).unwrap();
        let error = verify(directory.path()).unwrap_err();
        assert!(
            error.starts_with("egress: record 3 is not the one that supervise saw at 2026-11-21"),
            "{error}"
        );
        std::fs::remove_file(&egress).unwrap();
        assert!(verify(directory.path()).unwrap_err().starts_with("egress: it is gone"));
    }

    #[test]
    fn records_are_exported_in_the_order_of_time_and_nothing_in_them_is_hidden() {
        let directory = tempfile::tempdir().unwrap();
        for (daemon, text) in
            [("egress", "one \u{202e}"), ("supervise", "two"), ("git-gate", "three\u{1b}[2J")]
        {
            write(&directory.path().join(daemon).join("journal.jsonl"), &[json!({"text": text})]);
        }
        let mut out = Vec::new();
        Journals::of_directory(directory.path()).export(None, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.is_ascii() && text.contains("one \\u202e") && text.contains("three\\u001b[2J"),
            "{text}"
        );
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let journals: Vec<_> = lines.iter().map(|line| line["journal"].as_str().unwrap()).collect();
        assert_eq!(journals, ["egress", "supervise", "git-gate"]);
        let tail = |of: Option<&str>, lines| {
            let mut out = Vec::new();
            Journals::of_directory(directory.path()).tail(of, lines, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(tail(None, 2), text.split_inclusive('\n').skip(1).collect::<String>());
        assert_eq!(tail(Some("egress"), 2), text.split_inclusive('\n').take(1).collect::<String>());
    }

    #[test]
    fn a_link_in_place_of_a_journal_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        write(&directory.path().join("other/journal.jsonl"), &[json!({"n": 1})]);
        std::fs::create_dir(directory.path().join("egress")).unwrap();
        let link = directory.path().join("egress/journal.jsonl");
        std::os::unix::fs::symlink(directory.path().join("other/journal.jsonl"), link).unwrap();
        assert!(verify(directory.path()).unwrap_err().contains("cannot open the journal"));
    }
}
