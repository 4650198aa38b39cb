//! `bottlecap requests`: what agents ask for, and a person's answer.
//!
//! The daemon only keeps the questions. What a yes means is worked out here, from the proposal itself and from the routes
//! as this host has them; what was shown is what is written, and it counts when egress has acknowledged it.

pub(crate) mod apply;
mod approve;
pub(crate) mod client;
pub(crate) mod ledger;
pub(crate) mod refusals;
mod show;
mod tail;

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use policy::{AppendError, remove_grant};
use proposal::show::{list, one};
use proposal::wire::{Request, Requests, Status, View};
use proposal::{Id, Proposal, Review, State, review};
use serde_json::json;

use crate::fault::{Attempted, Fault, chain};
use crate::manifest::Name;
use crate::state::{Directories, Home};

use approve::Offer;
use ledger::Entry;

pub use apply::Reload;
pub use approve::{Approval, Narrowing};
pub use tail::Notify;

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
        Ok(Desk { run_dir, routes, home, reload })
    }

    pub(crate) fn keep(&self, entry: &Entry) -> Result<(), Fault> {
        let path = self.home.as_ref().map(ledger::path);
        ledger::keep(path.as_deref(), entry)
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
        let offer = (is_open(view.state) && view.proposal.route().is_some())
            .then(|| self.offer(view.clone(), narrowing))
            .transpose()?;
        if form == Form::Json {
            let mut value = serde_json::to_value(&view).failing(|| "cannot print".to_owned())?;
            if let Some(offer) = &offer {
                value["review"] = self.reviewed(offer);
            }
            return json(out, &value);
        }
        print(out, &one(&view))?;
        match &offer {
            Some(offer) => print(out, &format!("{}token    {}\n", self.shown(offer), offer.review.token)),
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
        if is_open(view.state) && view.proposal.route().is_some() {
            let offer = self.offer(view, narrowing)?;
            text.push_str(&self.shown(&offer));
            look.host = offer.scope.host().as_str().to_owned();
            look.type_host = offer.review.needs_typing;
            look.token = Some(offer.review.token);
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
        let would = offer.review.would_pass(&self.refusals());
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
        let would = offer.review.would_pass(&self.refusals());
        format!("{leftover}{}", show::change(&offer.base.without, &offer.review, &would))
    }

    fn reviewed(&self, offer: &Offer) -> serde_json::Value {
        let Review { difference, breadth, flags, needs_typing, token, .. } = &offer.review;
        json!({
            "token": token, "difference": difference, "words": difference.to_string(), "breadth": breadth, "flags": flags,
            "type_host": needs_typing, "scope": offer.scope, "would_pass": offer.review.would_pass(&self.refusals()),
        })
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
        let (without, holds) = match remove_grant(&present, &id.to_grant_id()) {
            Ok(text) => (text, true),
            Err(AppendError::Absent(_)) => (present.clone(), false),
            Err(error) => {
                return Err(Fault::refused(format!(
                    "the routes cannot take the request {id}: {}",
                    chain(&error)
                )));
            }
        };
        let without = ledger::without_ended(&without, Timestamp::now());
        Ok(Base { present, without, holds })
    }

    pub(crate) fn apply(&self, change: &apply::Change<'_>) -> Result<u64, Fault> {
        apply::apply(&self.routes, change, &self.reload, &self.run_dir)
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

    /// Takes a grant out of the routes, and waits until egress has them without. It is done whether or not the daemon answers.
    pub fn revoke(&self, id: &str, reason: &str, form: Form, out: &mut impl Write) -> Result<(), Fault> {
        let id = parse_id(id)?;
        let base = self.base(&id)?;
        // First, so that a restart does not bring it back.
        self.keep(&Entry::Revoked { id: id.clone(), by: ledger::by() })?;
        let generation = if base.has_leftover() {
            let change = apply::Change { from: &base.present, to: &base.without, fallback: &base.without };
            Some(self.apply(&change)?)
        } else {
            None
        };
        let told: Result<View, Fault> =
            self.ask(&Request::Revoke { id: id.clone(), reason: reason.to_owned() });
        let done = match generation {
            Some(generation) => {
                format!("revoked {id}; egress serves without it as generation {generation}\n")
            }
            None => format!("revoked {id}; no route had it\n"),
        };
        match (form, told) {
            (Form::Json, Ok(view)) => json(out, &view),
            (Form::Text, Ok(_)) => print(out, &done),
            (_, Err(fault)) if generation.is_some() => {
                Err(Fault::failed(format!("{}, but the agent could not be told: {fault}", done.trim())))
            }
            (_, Err(fault)) => Err(fault),
        }
    }

    /// Takes no more requests, or takes them again.
    pub fn pause(&self, request: &Request, form: Form, out: &mut impl Write) -> Result<(), Fault> {
        let status: Status = self.ask(request)?;
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

/// The routes as they are, and as they are without this grant and those that have ended: an attempt that was interrupted between
/// writing and recording leaves the grant there.
struct Base {
    present: String,
    without: String,
    holds: bool,
}

impl Base {
    /// Whether the grant stands in the file.
    fn has_leftover(&self) -> bool {
        self.holds
    }

    fn review(&self, id: &Id, scope: &Proposal, in_force: &str) -> Result<Review, Fault> {
        review(&self.without, id, scope, in_force, Timestamp::now())
            .refusing(|| format!("the request {id} cannot be granted"))
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

/// Where the routes of a directory are.
fn routes_file(directory: &Path) -> PathBuf {
    directory.join("routes.yaml")
}
