//! The command line.

use std::env;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::fault::{Attempted, Fault};
use crate::manifest::Name;
use crate::requests::{Confirm, Desk, Form, Selection};
use crate::run::{self, Request};
use crate::state::Directories;
use crate::{doctor, state};

const AFTER_HELP: &str = "\
Examples:
  bottlecap run --bottle bottle.yaml -- bash     a shell that reaches what bottle.yaml allows, and nothing else
  bottlecap requests list                        what the agent asks for
  bottlecap requests approve ID                  shows the change, asks, applies it

Exit codes: that of the command for `run`; 0 done; 1 not granted, or not put in force; 64 usage or configuration, nothing was started;
70 failed.";

/// Runs agents in sealed bottles, and lets a person decide what they may reach.
#[derive(Debug, Parser)]
#[command(name = "bottlecap", version, about, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a command in a bottle, and end the bottle with it
    #[command(after_help = "Example:\n  bottlecap run --bottle bottle.yaml --cwd ~/src/web -- bash")]
    Run(Run),
    /// List the bottles of this user
    List {
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Show and decide what agents ask for
    #[command(subcommand)]
    Requests(Requests),
    /// Say what this host lacks for bottles, and which setting is in the way
    Doctor,
    /// Check a manifest and all that it names
    Check {
        /// The manifest
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Run {
    /// The manifest; without it the bottle may reach nothing
    #[arg(long, value_name = "FILE", env = "BOTTLECAP_BOTTLE")]
    bottle: Option<PathBuf>,
    /// The bottle's name, over that of the manifest; a bottle without a name leaves no state behind
    #[arg(long, value_name = "NAME")]
    name: Option<Name>,
    /// The working directory, which the command may write [default: this one]
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// What walls are made of
    #[arg(long, value_name = "KIND", default_value = "sandbox", env = "BOTTLECAP_BACKEND")]
    backend: Backend,
    /// Say what would be made, and make nothing
    #[arg(long)]
    dry_run: bool,
    /// The command
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Backend {
    /// Namespaces of this kernel
    Sandbox,
    /// Containers
    Docker,
}

#[derive(Debug, Subcommand)]
enum Requests {
    /// List the requests
    List {
        #[command(flatten)]
        at: At,
    },
    /// Show a request and what a yes would change
    Show {
        /// The request
        id: String,
        #[command(flatten)]
        at: At,
    },
    /// Show the change, ask, write it, and wait until egress has it
    Approve {
        /// The request
        id: String,
        /// For how long, instead of as long as was asked
        #[arg(long, value_name = "SECONDS")]
        ttl: Option<u32>,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        at: At,
    },
    /// Say no; the agent is told why
    Reject {
        /// The request
        id: String,
        /// What the agent is told
        #[arg(long, value_name = "TEXT", default_value = "not approved")]
        reason: String,
        #[command(flatten)]
        at: At,
    },
}

#[derive(Debug, Args)]
struct At {
    /// The bottle [default: the only one that runs]
    #[arg(long, value_name = "NAME")]
    bottle: Option<Name>,
    /// The directory of routes.yaml, for a bundle that bottlecap did not start
    #[arg(long, value_name = "DIR")]
    routes: Option<PathBuf>,
    /// The command that makes that bundle reload; split at spaces, no shell
    #[arg(long, value_name = "CMD")]
    hup: Option<String>,
    /// The directory of that bundle's sockets [default: /run/sidecars with --routes]
    #[arg(long, value_name = "DIR", env = "BOTTLECAP_RUN_DIR")]
    run_dir: Option<PathBuf>,
    /// For programs
    #[arg(long)]
    json: bool,
}

/// What a command came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// The command in the bottle ended with this code.
    Command(i32),
}

impl Cli {
    /// Does what was asked for.
    ///
    /// # Errors
    /// What could not be done.
    pub fn run(self, out: &mut impl Write) -> Result<Outcome, Fault> {
        match self.command {
            Command::Run(run) => run.run(out),
            Command::List { json } => list(form(json), out).map(|()| Outcome::Done),
            Command::Requests(requests) => requests.run(out).map(|()| Outcome::Done),
            Command::Doctor => doctor::report(out).map(|()| Outcome::Done),
            Command::Check { file } => run::check_manifest(&file, out).map(|()| Outcome::Done),
        }
    }
}

impl Run {
    fn run(self, out: &mut impl Write) -> Result<Outcome, Fault> {
        if self.backend == Backend::Docker {
            return Err(Fault::refused("the docker backend is not supported by this version")
                .with_hint("use --backend sandbox, or the compose example"));
        }
        let here = || env::current_dir().failing(|| "cannot find the working directory".to_owned());
        let request = Request {
            manifest: self.bottle,
            name: self.name,
            workdir: self.cwd.map_or_else(here, Ok)?,
            command: self.command,
        };
        if self.dry_run {
            return run::describe(&request, out).map(|()| Outcome::Done);
        }
        run::run(&request).map(Outcome::Command)
    }
}

impl Requests {
    fn run(self, out: &mut impl Write) -> Result<(), Fault> {
        match self {
            Requests::List { at } => at.desk()?.list(form(at.json), out),
            Requests::Show { id, at } => at.desk()?.show(&id, form(at.json), out),
            Requests::Approve { id, ttl, yes, at } => {
                let confirm = if yes { Confirm::Given } else { Confirm::Ask };
                at.desk()?.approve(&id, ttl, confirm, form(at.json), out)
            }
            Requests::Reject { id, reason, at } => at.desk()?.reject(&id, &reason, form(at.json), out),
        }
    }
}

impl At {
    fn desk(&self) -> Result<Desk, Fault> {
        let selection = Selection {
            bottle: self.bottle.clone(),
            routes: self.routes.clone(),
            hup: self.hup.clone(),
            run_dir: self.run_dir.clone(),
        };
        Desk::find(&selection, &directories())
    }
}

fn form(json: bool) -> Form {
    if json { Form::Json } else { Form::Text }
}

fn directories() -> Directories {
    Directories::of_process()
}

fn list(form: Form, out: &mut impl Write) -> Result<(), Fault> {
    let bottles = directories().list().failing(|| "cannot list the bottles".to_owned())?;
    let told = || "cannot print".to_owned();
    if form == Form::Json {
        let values: Vec<_> =
            bottles.iter().map(|(record, running)| state::listed(record, *running)).collect();
        return writeln!(out, "{}", serde_json::Value::Array(values)).failing(told);
    }
    for (record, running) in bottles {
        let state = if running { "running" } else { "ended" };
        let sockets = record.run_dir.display();
        writeln!(out, "{:<24} {state:<8} {}  {sockets}", record.name, record.started).failing(told)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }
}
