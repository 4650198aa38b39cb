//! The hostile wire cases, played from inside a bottle: the one that runs, or one that is made for it.
//!
//! `bottlecap-corpus` runs twice: in the bottle's network, where it opens connections to egress and hands them out; and outside, beside
//! origins of its own, where it speaks on them and sees what arrives. Egress of a sandbox reaches origins on the host's loopback; that
//! of a container has a loopback of its own, and there they are.

mod made;
mod player;
mod running;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use policy::lines::{List, add_item};
use serde::{Deserialize, Serialize};

use crate::backend::Kind;
use crate::bundle::programs;
use crate::fault::{Attempted, Fault};
use crate::init::Shelf;
use crate::requests::{Form, json, print};
use crate::state::{Directories, Record};

/// The program, beside this one.
pub(crate) const PLAYER: &str = "bottlecap-corpus";
/// The certificate of the authority that it makes for its origins.
pub(crate) const AUTHORITY: &str = "origin-ca.pem";
/// Where origins are on a loopback that has nothing else; as many cases as there are of them are played at once.
const ORIGINS: [u16; 4] = [40_001, 40_002, 40_003, 40_004];

/// What came of it.
#[derive(Debug, Serialize)]
struct Outcome {
    bottle: Seen,
    plays: usize,
    passed: usize,
    /// Plays, and how many passed, by class.
    classes: BTreeMap<String, (usize, usize)>,
    failures: Vec<Play>,
}

/// The bottle that was attacked.
#[derive(Debug, Serialize)]
struct Seen {
    /// Of one that runs.
    #[serde(rename = "running")]
    name: Option<String>,
    backend: Kind,
}

/// One play.
#[derive(Debug, Serialize, Deserialize)]
struct Play {
    id: String,
    class: String,
    over: String,
    passed: bool,
    seen: String,
    reference: String,
}

/// The bottle that is to be attacked.
#[derive(Debug, Clone, Copy)]
pub struct Patient<'a> {
    /// Its name, or the path of its manifest, as it was given.
    pub word: &'a Path,
    /// The manifest that it is made by, where it does not run.
    pub manifest: &'a Path,
    /// Of what it is, if it is to be of that.
    pub backend: Option<Kind>,
    /// From this image, where one of containers is made.
    pub image: Option<&'a str>,
    /// Whether one that runs will do.
    pub choice: Choice,
}

/// Which bottle it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The one that runs, if it does.
    Running,
    /// One that is made for it.
    Made,
}

/// Plays the corpus, or what of it has `only` in its name, from inside a bottle, and prints what came of it.
///
/// # Errors
/// When it cannot be played, or a play failed.
pub fn report(
    patient: Patient<'_>,
    only: Option<&str>,
    form: Form,
    out: &mut impl Write,
) -> Result<(), Fault> {
    let directories = Directories::of_process();
    let outcome = match patient.running(&directories)? {
        Some(record) => running::play(&record, &directories, only)?,
        None => {
            if let Some(shelf) = Shelf::of_process() {
                shelf.written(patient.word)?;
            }
            made::play(patient, only)?
        }
    };
    match form {
        Form::Json => json(out, &outcome)?,
        Form::Text => print(out, &outcome.in_words())?,
    }
    match outcome.failures.len() {
        0 => Ok(()),
        failed => Err(Fault::failed(format!("{failed} of the plays were not withstood"))),
    }
}

impl Patient<'_> {
    /// The bottle that runs and is meant: of that name, or else made by that manifest.
    fn running(&self, directories: &Directories) -> Result<Option<Record>, Fault> {
        if self.choice == Choice::Made {
            return Ok(None);
        }
        let bottles = directories.list().failing(|| "cannot list the bottles".to_owned())?;
        let mut bottles: Vec<Record> = bottles
            .into_iter()
            .filter(|(record, running)| *running && self.backend.is_none_or(|kind| kind == record.backend))
            .map(|(record, _)| record)
            .collect();
        if let Some(place) = bottles.iter().position(|record| Path::new(&record.name) == self.word) {
            return Ok(Some(bottles.swap_remove(place)));
        }
        let manifest = fs::canonicalize(self.manifest).ok();
        bottles.retain(|record| {
            let made_by = record.request.as_ref().and_then(|request| request.manifest.as_deref());
            manifest.is_some() && made_by.and_then(|path| fs::canonicalize(path).ok()) == manifest
        });
        let last = bottles.pop();
        if bottles.is_empty() {
            return Ok(last);
        }
        Err(Fault::refused("more than one bottle of that manifest runs")
            .with_hint("name the one that is meant, or --fresh; `bottlecap list` shows them"))
    }
}

impl Outcome {
    fn of(bottle: Seen) -> Outcome {
        Outcome { bottle, plays: 0, passed: 0, classes: BTreeMap::new(), failures: Vec::new() }
    }

    fn add(&mut self, play: Play) {
        self.plays += 1;
        self.passed += usize::from(play.passed);
        let (plays, passed) = self.classes.entry(play.class.clone()).or_default();
        *plays += 1;
        *passed += usize::from(play.passed);
        if !play.passed {
            self.failures.push(play);
        }
    }

    fn in_words(&self) -> String {
        let mut text = String::new();
        for (class, (plays, passed)) in &self.classes {
            let word = if plays == passed { "ok" } else { "FAILED" };
            text.push_str(&format!("{word:<8} {class:<28} {passed} of {plays}\n"));
            for play in self.failures.iter().filter(|play| play.class == *class) {
                let (id, over) = (proposal::escaped(&play.id), proposal::escaped(&play.over));
                text.push_str(&format!(
                    "         {id} over {over}: {} [{}]\n",
                    proposal::escaped(&play.seen),
                    proposal::escaped(&play.reference)
                ));
            }
        }
        let bottle = match &self.bottle.name {
            Some(name) => format!("the running bottle {name}"),
            None => "a bottle made for it".to_owned(),
        };
        text.push_str(&format!(
            "{} of {} plays from inside {bottle} ({}) were withstood\n",
            self.passed,
            self.plays,
            self.bottle.backend.as_str()
        ));
        text
    }
}

fn cannot_prepare() -> String {
    "cannot prepare the wire corpus".to_owned()
}

fn program() -> Result<PathBuf, Fault> {
    Ok(programs()?.join(PLAYER))
}

/// What the corpus asks of every proxy, for origins on these ports.
fn routes(ports: &[u16]) -> String {
    let both = ["http", "https"].into_iter().flat_map(|scheme| ports.iter().map(move |port| (scheme, *port)));
    both.fold("routes: []\n".to_owned(), |text, (scheme, port)| {
        add_item(&text, List::Needed("routes"), &route(scheme, port, None)).unwrap_or(text)
    })
}

/// One of them, as the lines of an item.
fn route(scheme: &str, port: u16, until: Option<Timestamp>) -> Vec<String> {
    let mut lines = vec![
        "host: localhost".to_owned(),
        format!("scheme: {scheme}"),
        format!("ports: [{port}]"),
        "matches:".to_owned(),
        "  - paths: [{type: prefix, value: /allowed/}]".to_owned(),
        "    methods: [GET, POST]".to_owned(),
        format!("allow_private: [\"127.0.0.1:{port}\", \"[::1]:{port}\"]"),
    ];
    lines.extend(until.map(|until| format!("expires_at: {until}")));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_told_where_it_belongs() {
        let play = |id: &str, class: &str, passed| Play {
            id: id.to_owned(),
            class: class.to_owned(),
            over: "tunnel".to_owned(),
            passed,
            seen: "a request\u{1b} arrived".to_owned(),
            reference: "RFC 9112 6.1".to_owned(),
        };
        let seen = |name: Option<&str>| Seen { name: name.map(str::to_owned), backend: Kind::Sandbox };
        let mut outcome = Outcome::of(seen(None));
        for play in [play("a", "path", true), play("b", "path", false), play("c", "flood", true)] {
            outcome.add(play);
        }
        insta::assert_snapshot!(outcome.in_words(), @r"
        ok       flood                        1 of 1
        FAILED   path                         1 of 2
                 b over tunnel: a request\u{1b} arrived [RFC 9112 6.1]
        2 of 3 plays from inside a bottle made for it (sandbox) were withstood
        ");
        outcome.bottle = seen(Some("web"));
        let last = "2 of 3 plays from inside the running bottle web (sandbox) were withstood\n";
        assert!(outcome.in_words().ends_with(last), "{}", outcome.in_words());
    }

    #[test]
    fn the_routes_are_those_that_the_corpus_asks_for() {
        let policy = policy::Policy::parse("routes.yaml", &routes(&[4711, 4712])).expect("valid");
        assert_eq!(policy.routes().len(), 4);
    }
}
