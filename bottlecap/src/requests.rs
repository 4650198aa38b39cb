//! `bottlecap requests`: what agents ask for, and a person's answer.
//!
//! The daemon only keeps the questions. What a yes means is worked out here, from the proposal itself and from the routes
//! as this host has them; what was shown is what is written, and it counts when egress has acknowledged it.

pub(crate) mod apply;
pub(crate) mod client;
mod show;

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use policy::{AppendError, remove_grant};
use proposal::show::{list, one};
use proposal::wire::{Request, Requests, TEXT_MAX_CHARS, View};
use proposal::{Id, Review, State, TTL_MAX, TTL_MIN, review};

use crate::fault::{Attempted, Fault, chain};
use crate::manifest::Name;
use crate::state::Directories;

pub use apply::Reload;

/// Whose requests, and how their routes are changed.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// A bottle of this host.
    pub bottle: Option<Name>,
    /// The directory of routes.yaml, over that of the bottle.
    pub routes: Option<PathBuf>,
    /// The command that makes egress reload, over asking the bottle's supervisor.
    pub hup: Option<String>,
    /// The directory of the sockets, over that of the bottle.
    pub run_dir: Option<PathBuf>,
}

/// How an answer is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirm {
    /// A person is asked.
    Ask,
    /// The yes was in the command.
    Given,
}

/// How it is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// For a person.
    Text,
    /// For a program.
    Json,
}

/// A bundle that is spoken to.
#[derive(Debug)]
pub struct Desk {
    run_dir: PathBuf,
    pub(crate) routes: PathBuf,
    journal: Option<PathBuf>,
    reload: Reload,
}

impl Desk {
    /// Finds the bundle that `selection` means: a named bottle, the only running one, or what the options say.
    pub fn find(selection: &Selection, directories: &Directories) -> Result<Desk, Fault> {
        let by_options = selection.bottle.is_none() && selection.routes.is_some();
        let (run_dir, routes, journal) = match (by_options, &selection.run_dir, &selection.routes) {
            (true, Some(run_dir), Some(routes)) => (run_dir.clone(), routes.clone(), None),
            (true, None, Some(routes)) => (PathBuf::from(DEFAULT_RUN_DIR), routes.clone(), None),
            (true | false, run_dir, routes) => {
                let (name, record) = running(selection.bottle.as_ref(), directories)?;
                let home = directories.home(&name);
                let routes = routes.clone().unwrap_or_else(|| home.routes_directory());
                let journal = home.path().join("decisions/journal.jsonl");
                (run_dir.clone().unwrap_or(record), routes, Some(journal))
            }
        };
        let reload = match &selection.hup {
            None => Reload::Supervisor,
            Some(command) => Reload::command(command)?,
        };
        Ok(Desk { run_dir, routes, journal, reload })
    }

    fn ask<T: serde::de::DeserializeOwned>(&self, request: &Request) -> Result<T, Fault> {
        client::ask(&self.run_dir.join("supervise.sock"), request)
    }

    /// Prints the requests.
    pub fn list(&self, form: Form, out: &mut impl Write) -> Result<(), Fault> {
        let Requests { requests } = self.ask(&Request::List { state: None })?;
        match form {
            Form::Text => print(out, &list(&requests, Timestamp::now())),
            Form::Json => json(out, &Requests { requests }),
        }
    }

    /// Prints one request, and what a yes would change.
    pub fn show(&self, id: &str, form: Form, out: &mut impl Write) -> Result<(), Fault> {
        let view = self.view(id)?;
        if form == Form::Json {
            return json(out, &view);
        }
        print(out, &one(&view))?;
        if is_open(view.state) {
            let base = self.base(&view.id)?;
            let review = base.review(&view, lifetime(&view, None)?)?;
            print(out, &base.shown(&review))?;
        }
        Ok(())
    }

    fn view(&self, id: &str) -> Result<View, Fault> {
        let id = parse_id(id)?;
        let view: View = self.ask(&Request::Show { id: id.clone() })?;
        if view.id == id {
            Ok(view)
        } else {
            Err(Fault::failed(format!("asked about {id}, the daemon answered about {}", view.id)))
        }
    }

    fn base(&self, id: &Id) -> Result<Base, Fault> {
        let present = apply::read(&self.routes)?;
        let without = match remove_grant(&present, &id.to_grant_id()) {
            Ok(text) => text,
            Err(AppendError::Absent(_)) => present.clone(),
            Err(error) => {
                return Err(Fault::refused(format!(
                    "the routes cannot take the request {id}: {}",
                    chain(&error)
                )));
            }
        };
        Ok(Base { present, without })
    }

    pub(crate) fn apply(&self, change: &apply::Change<'_>) -> Result<u64, Fault> {
        apply::apply(&self.routes, change, &self.reload, &self.run_dir)
    }

    /// Shows the change, asks, records the yes, writes exactly what was shown, and waits until egress has it.
    pub fn approve(
        &self,
        id: &str,
        ttl: Option<u32>,
        confirm: Confirm,
        form: Form,
        out: &mut impl Write,
    ) -> Result<(), Fault> {
        let view = self.view(id)?;
        if !is_open(view.state) {
            return Err(Fault::refused(format!("the request {} is {}", view.id, view.state.as_str())));
        }
        let base = self.base(&view.id)?;
        let ttl = lifetime(&view, ttl)?;
        let review = base.review(&view, ttl)?;
        if form == Form::Text {
            print(out, &one(&view))?;
            print(out, &base.shown(&review))?;
        }
        if confirm == Confirm::Ask && !asked(out, "Approve this? [y/N] ")? {
            return Err(Fault::NotGranted("not approved; the request waits".to_owned()));
        }
        // Also of what was approved before: in between, somebody else may have decided otherwise.
        let _: View = self.ask(&Request::Approve { id: view.id.clone(), ttl_seconds: Some(ttl) })?;
        let change = apply::Change { from: &base.present, to: &review.text, fallback: &base.without };
        match self.apply(&change) {
            Ok(generation) => {
                let until = review.grant.expires_at;
                let applied = self.keep_applied(&view.id, generation, &review).map_err(|fault| {
                    Fault::failed(format!(
                        "egress has the grant until {until}, but that could not be recorded: {fault}"
                    ))
                })?;
                match form {
                    Form::Json => json(out, &applied),
                    Form::Text => print(
                        out,
                        &format!("approved; egress has it as generation {generation}, until {until}\n"),
                    ),
                }
            }
            Err(fault) => Err(match self.keep_failed(&view.id, &fault.to_string()) {
                Ok(()) => fault,
                Err(other) => Fault::failed(format!("{fault}; and that could not be recorded: {other}")),
            }),
        }
    }

    /// Adds to this host's journal of decisions.
    pub(crate) fn keep(&self, entry: &apply::Entry<'_>) -> Result<(), Fault> {
        apply::keep(self.journal.as_deref(), entry)
    }

    fn keep_applied(&self, id: &Id, generation: u64, review: &Review) -> Result<View, Fault> {
        let digest = review.digest();
        apply::keep(self.journal.as_deref(), &apply::Entry::Applied { id, digest: &digest, generation })?;
        let expires_at = Some(review.grant.expires_at);
        self.ask(&Request::Applied { id: id.clone(), generation, digest, expires_at })
    }

    fn keep_failed(&self, id: &Id, error: &str) -> Result<(), Fault> {
        apply::keep(self.journal.as_deref(), &apply::Entry::Failed { id, error })?;
        let error = error.chars().take(TEXT_MAX_CHARS).collect();
        self.ask(&Request::ApplyFailed { id: id.clone(), error }).map(|_: View| ())
    }

    /// Records a no. What an interrupted approval left in the routes is taken out.
    pub fn reject(&self, id: &str, reason: &str, form: Form, out: &mut impl Write) -> Result<(), Fault> {
        let id = parse_id(id)?;
        let view: View = self.ask(&Request::Reject { id: id.clone(), reason: reason.to_owned() })?;
        let base = self.base(&id)?;
        if base.has_leftover() {
            self.apply(&apply::Change { from: &base.present, to: &base.without, fallback: &base.without })?;
        }
        match form {
            Form::Json => json(out, &view),
            Form::Text => print(out, &format!("rejected {id}\n")),
        }
    }
}

/// The routes as they are, and as they are without this grant: an attempt that was interrupted between writing and recording leaves
/// it there.
struct Base {
    present: String,
    without: String,
}

impl Base {
    fn has_leftover(&self) -> bool {
        self.present != self.without
    }

    fn review(&self, view: &View, ttl: u32) -> Result<Review, Fault> {
        review(&self.without, &view.id, &view.proposal, ttl, Timestamp::now())
            .refusing(|| format!("the request {} cannot be granted", view.id))
    }

    fn shown(&self, review: &Review) -> String {
        let leftover = if self.has_leftover() { show::LEFTOVER } else { "" };
        format!("{leftover}{}", show::change(&self.without, review))
    }
}

/// Whether a yes can follow.
fn is_open(state: State) -> bool {
    match state {
        State::Pending | State::Approved | State::ApplyFailed => true,
        State::Active | State::Ended | State::Expired | State::Rejected | State::Withdrawn => false,
    }
}

/// For how long: as the person says now, else as was decided before, else as was asked. The daemon's word is no measure for it.
fn lifetime(view: &View, ttl: Option<u32>) -> Result<u32, Fault> {
    let decided = view.decision.as_ref().and_then(|decision| decision.ttl_seconds);
    let ttl = ttl.or(decided).unwrap_or_else(|| view.proposal.ttl_seconds());
    if (TTL_MIN..=TTL_MAX).contains(&ttl) {
        Ok(ttl)
    } else {
        Err(Fault::refused(format!("a grant lasts from {TTL_MIN} to {TTL_MAX} seconds, not {ttl}")))
    }
}

const DEFAULT_RUN_DIR: &str = "/run/sidecars";

fn parse_id(text: &str) -> Result<Id, Fault> {
    Id::parse(text).refusing(|| "not the id of a request".to_owned())
}

/// The bottle of that name, or the only one that runs: its name and sockets.
fn running(name: Option<&Name>, directories: &Directories) -> Result<(Name, PathBuf), Fault> {
    let bottles = directories.list().failing(|| "cannot list the bottles".to_owned())?;
    let mut candidates = bottles
        .into_iter()
        .filter(|(record, running)| *running && name.is_none_or(|name| name.as_str() == record.name));
    let hint = "`bottlecap list` shows the bottles; --bottle NAME chooses one";
    match (candidates.next(), candidates.next()) {
        (Some((record, _)), None) => {
            let name = record.name.parse().refusing(|| "a bottle's record is damaged".to_owned())?;
            Ok((name, record.run_dir))
        }
        (None, _) => Err(Fault::refused(match name {
            Some(name) => format!("no bottle {name} is running"),
            None => "no bottle is running".to_owned(),
        })
        .with_hint(hint)),
        (Some(_), Some(_)) => Err(Fault::refused("more than one bottle is running").with_hint(hint)),
    }
}

/// Asks on the terminal. Silence, and anything but yes, is no.
pub(crate) fn asked(out: &mut impl Write, question: &str) -> Result<bool, Fault> {
    if !io::stdin().is_terminal() {
        return Err(Fault::refused("nobody can be asked: standard input is no terminal")
            .with_hint("look at the change with `bottlecap requests show ID`, then add --yes"));
    }
    print(out, question)?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).failing(|| "cannot read the answer".to_owned())?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}

pub(crate) fn print(out: &mut impl Write, text: &str) -> Result<(), Fault> {
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).failing(|| "cannot print".to_owned())
}

pub(crate) fn json<T: serde::Serialize>(out: &mut impl Write, value: &T) -> Result<(), Fault> {
    let text = serde_json::to_string(value).failing(|| "cannot print".to_owned())?;
    print(out, &format!("{text}\n"))
}

/// Where the routes of a directory are.
fn routes_file(directory: &Path) -> PathBuf {
    directory.join("routes.yaml")
}
