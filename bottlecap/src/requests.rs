//! `bottlecap requests`: what agents ask for, and a person's answer.
//!
//! The daemon only keeps the questions. What a yes means is worked out here, from the proposal itself and from the routes
//! as this host has them; what was shown is what is written, and it counts when egress has acknowledged it.

mod apply;
mod client;
mod show;

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use proposal::wire::{Request, Requests, View};
use proposal::{Id, Review, State, review};

use crate::fault::{Attempted, Fault};
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
    routes: PathBuf,
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
            Form::Text => print(out, &show::list(&requests, Timestamp::now())),
            Form::Json => json(out, &Requests { requests }),
        }
    }

    /// Prints one request, and what a yes would change.
    pub fn show(&self, id: &str, form: Form, out: &mut impl Write) -> Result<(), Fault> {
        let view = self.view(id)?;
        if form == Form::Json {
            return json(out, &view);
        }
        print(out, &show::one(&view))?;
        if matches!(view.state, State::Pending | State::Approved | State::ApplyFailed) {
            let base = apply::read(&self.routes)?;
            print(out, &show::change(&base, &self.review(&view, &base, None)?))?;
        }
        Ok(())
    }

    fn view(&self, id: &str) -> Result<View, Fault> {
        self.ask(&Request::Show { id: parse_id(id)? })
    }

    fn review(&self, view: &View, base: &str, ttl: Option<u32>) -> Result<Review, Fault> {
        let decided = view.decision.as_ref().and_then(|decision| decision.ttl_seconds);
        let ttl = ttl.or(decided).unwrap_or_else(|| view.proposal.ttl_seconds());
        review(base, &view.id, &view.proposal, ttl, Timestamp::now())
            .refusing(|| format!("the request {} cannot be granted", view.id))
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
        if !matches!(view.state, State::Pending | State::Approved | State::ApplyFailed) {
            return Err(Fault::refused(format!("the request {} is {}", view.id, view.state.as_str())));
        }
        let base = apply::read(&self.routes)?;
        let review = self.review(&view, &base, ttl)?;
        if form == Form::Text {
            print(out, &show::one(&view))?;
            print(out, &show::change(&base, &review))?;
        }
        if confirm == Confirm::Ask && !asked(out, "Approve this? [y/N] ")? {
            return Err(Fault::NotGranted("not approved; the request waits".to_owned()));
        }
        if view.state == State::Pending {
            let _: View = self.ask(&Request::Approve { id: view.id.clone(), ttl_seconds: ttl })?;
        }
        match apply::apply(&self.routes, &base, &review, &self.reload, &self.run_dir) {
            Ok(generation) => {
                let digest = review.digest();
                apply::keep(
                    self.journal.as_deref(),
                    &apply::Entry::Applied { id: &view.id, digest: &digest, generation },
                )?;
                let request = Request::Applied {
                    id: view.id.clone(),
                    generation,
                    digest,
                    expires_at: Some(review.grant.expires_at),
                };
                let applied: View = self.ask(&request)?;
                match form {
                    Form::Json => json(out, &applied),
                    Form::Text => print(
                        out,
                        &format!(
                            "approved; egress has it as generation {generation}, until {}\n",
                            review.grant.expires_at
                        ),
                    ),
                }
            }
            Err(fault) => {
                let error = fault.to_string();
                apply::keep(self.journal.as_deref(), &apply::Entry::Failed { id: &view.id, error: &error })?;
                let _: View =
                    self.ask(&Request::ApplyFailed { id: view.id.clone(), error: error.clone() })?;
                Err(fault)
            }
        }
    }

    /// Records a no.
    pub fn reject(&self, id: &str, reason: &str, form: Form, out: &mut impl Write) -> Result<(), Fault> {
        let view: View = self.ask(&Request::Reject { id: parse_id(id)?, reason: reason.to_owned() })?;
        match form {
            Form::Json => json(out, &view),
            Form::Text => print(out, &format!("rejected {}\n", view.id)),
        }
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
fn asked(out: &mut impl Write, question: &str) -> Result<bool, Fault> {
    if !io::stdin().is_terminal() {
        return Err(Fault::refused("nobody can be asked: standard input is no terminal")
            .with_hint("look at the change with `bottlecap requests show ID`, then add --yes"));
    }
    print(out, question)?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).failing(|| "cannot read the answer".to_owned())?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}

fn print(out: &mut impl Write, text: &str) -> Result<(), Fault> {
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).failing(|| "cannot print".to_owned())
}

fn json<T: serde::Serialize>(out: &mut impl Write, value: &T) -> Result<(), Fault> {
    let text = serde_json::to_string(value).failing(|| "cannot print".to_owned())?;
    print(out, &format!("{text}\n"))
}

/// Where the routes of a directory are.
fn routes_file(directory: &Path) -> PathBuf {
    directory.join("routes.yaml")
}
