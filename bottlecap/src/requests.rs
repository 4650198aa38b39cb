//! `bottlecap requests`: what agents ask for, and a person's answer.
//!
//! The daemon only keeps the questions. What a yes means is worked out here, from the proposal itself and from the routes
//! as this host has them; what was shown is what is written, and it counts when egress has acknowledged it.

pub(crate) mod apply;
mod approve;
pub(crate) mod client;
pub(crate) mod ledger;
mod notify;
pub(crate) mod refusals;
mod show;
mod tail;

use std::collections::BTreeMap;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;

use jiff::Timestamp;
use proposal::show::{list, one};
use proposal::wire::{Request, Requests, Status, View};
use proposal::{Id, State, Table};
use serde_json::json;

use crate::fault::{Attempted, Fault};
use crate::manifest::Name;
use crate::state::{Directories, Home};

use apply::Place;
use approve::{Offer, What};
use ledger::{Entry, Tip};

pub use apply::Reload;
pub use approve::{Approval, Narrowing};
pub use notify::Notify;

/// Whose requests, and how their routes are changed.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// A bottle of this host.
    pub bottle: Option<Name>,
    /// The directory of routes.yaml, over that of the bottle.
    pub routes: Option<PathBuf>,
    /// The directory of repos.yaml, over that of the bottle.
    pub repos: Option<PathBuf>,
    /// The command that makes the daemons reload, over asking the bottle's supervisor.
    pub hup: Option<String>,
    /// The directory of the sockets, over that of the bottle.
    pub run_dir: Option<PathBuf>,
}

/// How a change that is not an agent's is confirmed.
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

/// A request as it is shown to a person who may say yes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// Which.
    pub id: String,
    /// What is shown.
    pub text: String,
    /// What stands for it, where a yes can follow.
    pub token: Option<String>,
    /// Whether a yes wants the host typed.
    pub type_host: bool,
    /// The host.
    pub host: String,
}

/// A bundle that is spoken to.
#[derive(Debug)]
pub struct Desk {
    run_dir: PathBuf,
    pub(crate) routes: PathBuf,
    repos: Option<PathBuf>,
    /// Of a bottle of this host.
    home: Option<Home>,
    reload: Reload,
}

impl Desk {
    /// Finds the bundle that `selection` means: a named bottle, the only running one, or what the options say.
    pub fn find(selection: &Selection, directories: &Directories) -> Result<Desk, Fault> {
        let by_options = selection.bottle.is_none() && selection.routes.is_some();
        let (run_dir, routes, home) = match (by_options, &selection.run_dir, &selection.routes) {
            (true, Some(run_dir), Some(routes)) => (run_dir.clone(), routes.clone(), None),
            (true, None, Some(routes)) => (PathBuf::from(DEFAULT_RUN_DIR), routes.clone(), None),
            (true | false, run_dir, routes) => {
                let (name, record) = running(selection.bottle.as_ref(), directories)?;
                let home = directories.home(&name);
                let routes = routes.clone().unwrap_or_else(|| home.routes_directory());
                (run_dir.clone().unwrap_or(record), routes, Some(home))
            }
        };
        let reload = match &selection.hup {
            None => Reload::Supervisor,
            Some(command) => Reload::command(command)?,
        };
        let repos = selection.repos.clone().or_else(|| home.as_ref().map(Home::repos_directory));
        Ok(Desk { run_dir, routes, repos, home, reload })
    }

    pub(crate) fn keep(&self, entry: &Entry) -> Result<(), Fault> {
        let path = self.home.as_ref().map(ledger::path);
        ledger::keep(path.as_deref(), entry)
    }

    /// Where the journals of the bundle end now, to be noted with what a person does.
    pub(crate) fn heads(&self) -> BTreeMap<String, Tip> {
        self.home.as_ref().map(refusals::tips).unwrap_or_default()
    }

    /// The file that grants of that kind stand in.
    pub(crate) fn place(&self, table: Table) -> Result<Place, Fault> {
        let directory = match table {
            Table::Routes => Some(self.routes.clone()),
            Table::Repos => self.repos.clone(),
        };
        let missing = || {
            Fault::refused("nothing is known of the repositories of this bundle")
                .with_hint("name the directory of repos.yaml: --repos DIR")
        };
        Ok(Place { directory: directory.ok_or_else(missing)?, table })
    }

    fn socket(&self) -> PathBuf {
        self.run_dir.join("supervise.sock")
    }

    fn ask<T: serde::de::DeserializeOwned>(&self, request: &Request) -> Result<T, Fault> {
        client::ask(&self.socket(), request)
    }

    /// Prints the requests.
    pub fn list(&self, form: Form, out: &mut impl Write) -> Result<(), Fault> {
        let Requests { requests } = self.ask(&Request::List { state: None })?;
        match form {
            Form::Text => print(out, &list(&requests, Timestamp::now())),
            Form::Json => json(out, &Requests { requests }),
        }
    }

    /// Prints one request, and what a yes to it, or to that part of it, would change.
    pub fn show(
        &self,
        id: &str,
        narrowing: &Narrowing,
        form: Form,
        out: &mut impl Write,
    ) -> Result<(), Fault> {
        let view = self.view(id)?;
        if form == Form::Text {
            print(out, &one(&view))?;
        }
        let offer = (is_open(view.state) && view.is_applied())
            .then(|| self.offer(view.clone(), narrowing))
            .transpose()?;
        if form == Form::Json {
            let mut value = serde_json::to_value(&view).failing(|| "cannot print".to_owned())?;
            if let Some(offer) = &offer {
                value["review"] = self.reviewed(offer);
            }
            return json(out, &value);
        }
        match &offer {
            Some(offer) => print(out, &format!("{}token    {}\n", self.shown(offer), offer.token())),
            None => Ok(()),
        }
    }

    /// One request, and what a yes to it, or to that part of it, would change, as one thing: the token stands for the text.
    pub fn look(&self, id: &str, narrowing: &Narrowing) -> Result<Look, Fault> {
        let view = self.view(id)?;
        let mut text = one(&view);
        let mut look = Look {
            id: view.id.to_string(),
            token: None,
            type_host: false,
            host: String::new(),
            text: String::new(),
        };
        if is_open(view.state) && view.is_applied() {
            let offer = self.offer(view, narrowing)?;
            text.push_str(&self.shown(&offer));
            look.host = offer.typed().unwrap_or_default().to_owned();
            look.type_host = offer.typed().is_some();
            look.token = Some(offer.token().to_owned());
        }
        Ok(Look { text, ..look })
    }

    /// Prints what a yes would change, and nothing else.
    pub fn diff(
        &self,
        id: &str,
        narrowing: &Narrowing,
        form: Form,
        out: &mut impl Write,
    ) -> Result<(), Fault> {
        let offer = self.offer(self.view(id)?, narrowing)?;
        match form {
            Form::Json => json(out, &self.reviewed(&offer)),
            Form::Text => print(out, &self.shown(&offer)),
        }
    }

    /// Prints which of the requests that were refused lately would pass.
    pub fn dry_run(
        &self,
        id: &str,
        narrowing: &Narrowing,
        form: Form,
        out: &mut impl Write,
    ) -> Result<(), Fault> {
        let offer = self.offer(self.view(id)?, narrowing)?;
        let What::Route { review, .. } = &offer.what else {
            return Err(Fault::refused("only a route can be held against what was refused"));
        };
        let would = review.would_pass(&self.refusals());
        if form == Form::Json {
            return json(out, &would);
        }
        let lines: String =
            would.passing.iter().map(|request| format!("  {}\n", proposal::escaped(request))).collect();
        print(out, &format!("{} of the last {} refusals would pass\n{lines}", would.passing.len(), would.of))
    }

    fn refusals(&self) -> Vec<proposal::peer::Refusal> {
        let journal = self.home.as_ref().map(|home| refusals::journal(home, "egress"));
        journal.map(|journal| refusals::newest(&journal)).unwrap_or_default()
    }

    fn shown(&self, offer: &Offer) -> String {
        let leftover = if offer.base.has_leftover() { show::LEFTOVER } else { "" };
        let change = match &offer.what {
            What::Route { review, .. } => {
                show::change(&offer.base.without, review, &review.would_pass(&self.refusals()))
            }
            What::Addition(addition) => show::addition(&offer.base.without, addition),
        };
        format!("{leftover}{change}")
    }

    fn reviewed(&self, offer: &Offer) -> serde_json::Value {
        match &offer.what {
            What::Route { scope, review } => json!({
                "token": review.token, "difference": review.difference, "words": review.difference.to_string(),
                "breadth": review.breadth, "flags": review.flags, "type_host": review.needs_typing, "scope": scope,
                "would_pass": review.would_pass(&self.refusals()),
            }),
            What::Addition(addition) => json!({
                "token": addition.token, "words": addition.words, "careful": addition.careful, "file": addition.table.file(),
                "expires_at": addition.expires_at, "max_uses": addition.max_uses, "type_host": false,
            }),
        }
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

    fn base(&self, id: &Id, table: Table) -> Result<Base, Fault> {
        let place = self.place(table)?;
        let present = apply::read(&place)?;
        let taken = proposal::removed(&present, table, id);
        let taken = taken.refusing(|| format!("{} cannot take the request {id}", table.file()))?;
        let holds = taken.is_some();
        let without = taken.unwrap_or_else(|| present.clone());
        let without = ledger::without_ended(&without, table, Timestamp::now());
        Ok(Base { place, present, without, holds })
    }

    /// The file that holds the grant of that name, if one does.
    fn base_that_holds(&self, id: &Id) -> Result<Option<Base>, Fault> {
        let routes = self.base(id, Table::Routes)?;
        if routes.holds || self.repos.is_none() {
            return Ok(routes.holds.then_some(routes));
        }
        let repos = self.base(id, Table::Repos)?;
        Ok(repos.holds.then_some(repos))
    }

    pub(crate) fn apply(&self, table: Table, change: &apply::Change<'_>) -> Result<u64, Fault> {
        apply::apply(&self.place(table)?, change, &self.reload, &self.run_dir)
    }

    /// Tells the desk that grants are gone which a person took out of a file; best effort, for the file is what counts.
    pub(crate) fn tell_taken_out(&self, ids: impl Iterator<Item = Id>) {
        for id in ids {
            let reason = "the operator took it out of the routes".to_owned();
            if let Err(fault) = self.ask::<View>(&Request::Revoke { id, reason }) {
                tracing::debug!(%fault, "a grant that is gone could not be told of");
            }
        }
    }

    /// Records a no. What an interrupted approval left in the routes is taken out.
    pub fn reject(&self, id: &str, reason: &str, form: Form, out: &mut impl Write) -> Result<(), Fault> {
        let id = parse_id(id)?;
        let view: View = self.ask(&Request::Reject { id: id.clone(), reason: reason.to_owned() })?;
        self.keep(&Entry::Rejected { id: id.clone(), by: ledger::by(), heads: self.heads() })?;
        if let Some(base) = self.base_that_holds(&id)? {
            let change = apply::Change { from: &base.present, to: &base.without, fallback: &base.without };
            self.apply(base.place.table, &change)?;
        }
        match form {
            Form::Json => json(out, &view),
            Form::Text => print(out, &format!("rejected {id}\n")),
        }
    }

    /// Takes a grant out of the routes, and waits until egress has them without. It is done whether or not the daemon answers.
    pub fn revoke(&self, id: &str, reason: &str, form: Form, out: &mut impl Write) -> Result<(), Fault> {
        let id = parse_id(id)?;
        let base = self.base_that_holds(&id)?;
        // First, so that a restart does not bring it back.
        self.keep(&Entry::Revoked { id: id.clone(), by: ledger::by(), heads: self.heads() })?;
        let done = match &base {
            Some(base) => {
                let change =
                    apply::Change { from: &base.present, to: &base.without, fallback: &base.without };
                let generation = self.apply(base.place.table, &change)?;
                let daemon = base.place.table.daemon();
                format!("revoked {id}; {daemon} serves without it as generation {generation}\n")
            }
            None => format!("revoked {id}; no route had it\n"),
        };
        let told: Result<View, Fault> =
            self.ask(&Request::Revoke { id: id.clone(), reason: reason.to_owned() });
        match (form, told) {
            (Form::Json, Ok(view)) => json(out, &view),
            (Form::Text, Ok(_)) => print(out, &done),
            (_, Err(fault)) => {
                let done = done.trim();
                // What is over by itself cannot be taken back, and need not be: the agent knows.
                match (self.view(id.as_str()).ok().filter(|view| is_over(view.state)), form) {
                    (Some(view), Form::Json) => json(out, &view),
                    (Some(view), Form::Text) => {
                        print(out, &format!("{done}; it was {} already\n", view.state.as_str()))
                    }
                    (None, _) if base.is_some() => {
                        Err(Fault::failed(format!("{done}, but the agent could not be told: {fault}")))
                    }
                    (None, _) => Err(fault),
                }
            }
        }
    }

    /// Takes no more requests, or takes them again.
    pub fn pause(&self, request: &Request, form: Form, out: &mut impl Write) -> Result<(), Fault> {
        let status: Status = self.ask(request)?;
        self.keep(&Entry::Paused { paused: status.paused, by: ledger::by(), heads: self.heads() })?;
        match form {
            Form::Json => json(out, &status),
            Form::Text if status.paused => {
                print(out, "paused: requests are refused until `bottlecap requests resume`\n")
            }
            Form::Text => print(out, &format!("requests are taken; {} wait\n", status.pending)),
        }
    }

    /// Prints what waits, and then each request that changes.
    pub fn tail(&self, form: Form, notify: &Notify, out: &mut impl Write) -> Result<(), Fault> {
        tail::tail(&self.socket(), form, notify, out)
    }
}

/// A file as it is, and as it is without this grant and those that have ended: an attempt that was interrupted between writing and
/// recording leaves the grant there.
struct Base {
    place: Place,
    present: String,
    without: String,
    holds: bool,
}

impl Base {
    /// Whether the grant stands in the file.
    fn has_leftover(&self) -> bool {
        self.holds
    }
}

/// Whether it was granted, and ended.
fn is_over(state: State) -> bool {
    match state {
        State::Ended | State::Exhausted | State::Revoked => true,
        State::Pending
        | State::Approved
        | State::Applying
        | State::ApplyFailed
        | State::Active
        | State::Expired
        | State::Rejected
        | State::Superseded
        | State::Withdrawn => false,
    }
}

/// Whether a yes can follow.
fn is_open(state: State) -> bool {
    match state {
        State::Pending | State::Approved | State::Applying | State::ApplyFailed => true,
        State::Active
        | State::Ended
        | State::Exhausted
        | State::Revoked
        | State::Expired
        | State::Rejected
        | State::Superseded
        | State::Withdrawn => false,
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
            .with_hint("look at what would change, then add --yes"));
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
