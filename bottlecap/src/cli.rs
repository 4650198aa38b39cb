//! The command line.

mod audit;
mod requests;
mod run;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::backend::Kind;
use crate::doctor::wire::{Choice, Patient};
use crate::fault::{Attempted, Fault};
use crate::init::{self, Shelf};
use crate::life::{self, Bottle, Extent, Log, Visit};
use crate::manifest::Name;
use crate::preset::Preset;
use crate::requests::{Confirm, Desk, Form, Selection, print};

use crate::state::Directories;
use crate::{doctor, manifest, operator, reference, state};

use audit::Audit;
use requests::Requests;
use run::{Run, told_started};

const AFTER_HELP: &str = "\
Examples:
  bottlecap init web --agent claude-code         a bottle of your own, to be changed by hand
  bottlecap run --bottle web -- claude           the agent, in it
  bottlecap run --bottle bottle.yaml -- bash     a shell that reaches what bottle.yaml allows, and nothing else
  bottlecap requests list                        what the agent asks for
  bottlecap requests approve ID                  shows the change, asks, applies it
  bottlecap operator                             all of it in one screen

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
    /// Run a command in a bottle that goes on by itself
    #[command(
        after_help = "Example:\n  bottlecap start --bottle web -- claude\n  bottlecap attach web\n\nCtrl-] and then d leaves it running."
    )]
    Start(Run),
    /// Go to the terminal of a bottle that was started; Ctrl-] and then d leaves it running
    Attach {
        /// The bottle [default: the only one]
        name: Option<Name>,
    },
    /// Start a bottle that has ended again, as it was started
    #[command(
        after_help = "The routes are those of its manifest now, and what was granted and has not ended. Secrets are read again."
    )]
    Resume {
        /// The bottle [default: the only one]
        name: Option<Name>,
    },
    /// List the bottles of this user
    List {
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Show one bottle and its daemons
    Info {
        /// The bottle [default: the only one]
        name: Option<Name>,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Print the log of a bottle's daemons
    Logs {
        /// The bottle [default: the only one]
        name: Option<Name>,
        /// And what comes, until the bottle ends
        #[arg(long, short)]
        follow: bool,
        /// What the command wrote, of a bottle that `start` started
        #[arg(long)]
        console: bool,
    },
    /// Ask a bottle's command to end, and end the bottle
    Stop {
        /// The bottle [default: the only one]
        name: Option<Name>,
        /// What the command is given before it is ended
        #[arg(long, value_name = "SECONDS", default_value_t = life::GRACE_SECONDS)]
        grace: u16,
    },
    /// Remove what bottles that were killed left behind
    Cleanup {
        /// The logs, journals and decisions of bottles that have ended, too
        #[arg(long)]
        history: bool,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Show and change what a running bottle may reach
    #[command(subcommand)]
    Routes(Routes),
    /// Write the files of a new bottle
    #[command(after_help = "Example:\n  bottlecap init web --agent claude-code")]
    Init {
        /// Its name
        name: Name,
        /// Who is to live in it
        #[arg(long, value_name = "AGENT", default_value = "shell")]
        agent: Preset,
        /// Where [default: bottlecap/bottles/NAME in your configuration, where `run --bottle NAME` finds it]
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Watch bottles and decide what agents ask for, in one screen
    #[command(
        after_help = "Example:\n  bottlecap operator web\n\nKeys: ? shows them. Nothing is decided by leaving."
    )]
    Operator {
        /// The bottle to begin with [default: the first that runs]
        name: Option<Name>,
        /// Print what it shows of all bottles once, for programs
        #[arg(long, conflicts_with = "name")]
        json: bool,
    },
    /// Print what a bottle's egress refused lately, and with --follow everything that passes or not
    #[command(after_help = "Example:\n  bottlecap traffic web --follow")]
    Traffic {
        /// The bottle [default: the only one]
        name: Option<Name>,
        /// And what comes, until the bottle ends
        #[arg(long, short)]
        follow: bool,
        /// For programs: a JSON line for each request
        #[arg(long)]
        json: bool,
    },
    /// Show and decide what agents ask for
    #[command(subcommand)]
    Requests(Requests),
    /// Check and print the journals of a bottle
    #[command(subcommand)]
    Audit(Audit),
    /// Say what this host lacks for bottles, and which setting is in the way; with --bottle, attack one from inside
    #[command(
        after_help = "With --bottle the hostile wire cases are played from inside the bottle: the one of that name or manifest, where it \
                      runs. Its egress is given routes to origins of the doctor's own on the loopback that egress dials, which its \
                      agent can reach too; they are taken out at the end, and end by themselves after a quarter of an hour. Where it \
                      does not run, or with --fresh, one is made as the manifest says, with those routes in place of its own and \
                      without its secrets. The report says which it was.\n\nExit codes: 0 all is well; 64 something is \
                      missing that every bottle needs; 70 the bottle did not withstand a case, or could not be made.\n\nExample:\n  bottlecap \
                      doctor --bottle web"
    )]
    Doctor {
        /// A bottle that runs, or the manifest, or the name of a bottle that `init` wrote
        #[arg(long, value_name = "FILE|NAME")]
        bottle: Option<PathBuf>,
        /// What its walls are made of [default: what those of the one that runs are, or sandbox]
        #[arg(long, value_name = "KIND", env = "BOTTLECAP_BACKEND")]
        backend: Option<Kind>,
        /// The image, where one of containers is made [default: that of the manifest, or bottlecap-agent:latest]
        #[arg(long, value_name = "IMAGE", env = "BOTTLECAP_IMAGE")]
        image: Option<String>,
        /// Make one for it, even where that bottle runs
        #[arg(long, requires = "bottle")]
        fresh: bool,
        /// Only the cases whose id or class contains this
        #[arg(long, value_name = "TEXT", requires = "bottle")]
        only: Option<String>,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages
    Man {
        /// Where
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Print the JSON schema of bottle.yaml, for editors
    Schema,
    /// Print the reference of all commands, as Markdown
    Reference,
    /// Check a manifest and all that it names
    Check {
        /// The manifest
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum Routes {
    /// Print the routes in force
    Show {
        #[command(flatten)]
        at: At,
    },
    /// Say what a file in their place would change
    Diff {
        /// The new routes
        file: PathBuf,
        #[command(flatten)]
        at: At,
    },
    /// Show the change, ask, put a file in their place, and wait until egress has it
    Apply {
        /// The new routes
        file: PathBuf,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        at: At,
    },
    /// Open a copy in your editor, and apply it
    #[command(
        after_help = "In force until the bottle ends: the next start reads the file that the manifest names again; change that for good."
    )]
    Edit {
        /// Do not ask
        #[arg(long)]
        yes: bool,
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
    /// The directory of repos.yaml, for a bundle that bottlecap did not start
    #[arg(long, value_name = "DIR")]
    repos: Option<PathBuf>,
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
            Command::Start(run) => run.start(out),
            Command::Attach { name } => {
                let bottle = Bottle::find(name.as_ref(), &directories())?;
                match bottle.attach()? {
                    Visit::Ended(code) => Ok(Outcome::Command(code)),
                    Visit::Left => {
                        let name = bottle.name();
                        print(out, &format!("\r\n{name} goes on; bottlecap attach {name}\n"))?;
                        Ok(Outcome::Done)
                    }
                }
            }
            Command::Resume { name } => {
                let name = Bottle::find(name.as_ref(), &directories())?.resume()?;
                told_started(&name, out).map(|()| Outcome::Done)
            }
            Command::List { json } => list(form(json), out).map(|()| Outcome::Done),
            Command::Info { name, json } => {
                Bottle::find(name.as_ref(), &directories())?.info(form(json), out).map(|()| Outcome::Done)
            }
            Command::Logs { name, follow, console } => {
                let log = if console { Log::Console } else { Log::Daemons };
                Bottle::find(name.as_ref(), &directories())?.logs(log, follow, out).map(|()| Outcome::Done)
            }
            Command::Stop { name, grace } => {
                let grace = Duration::from_secs(grace.into());
                Bottle::find(name.as_ref(), &directories())?.stop(grace, out).map(|()| Outcome::Done)
            }
            Command::Cleanup { history, yes } => {
                let extent = if history { Extent::History } else { Extent::Leftovers };
                life::cleanup(&directories(), extent, confirm(yes), out).map(|()| Outcome::Done)
            }
            Command::Operator { json: true, .. } => {
                operator::print_once(&directories(), out).map(|()| Outcome::Done)
            }
            Command::Operator { name, json: false } => {
                operator::operate(name, &directories()).map(|()| Outcome::Done)
            }
            Command::Traffic { name, follow, json } => {
                let bottle = Bottle::find(name.as_ref(), &directories())?;
                operator::print_traffic(bottle.name(), follow, form(json), &directories(), out)
                    .map(|()| Outcome::Done)
            }
            Command::Routes(routes) => routes.run(out).map(|()| Outcome::Done),
            Command::Init { name, agent, dir } => {
                let directory = match dir {
                    Some(directory) => directory,
                    None => shelf()?.directory(&name),
                };
                init::init(&directory, &name, agent, out).map(|()| Outcome::Done)
            }
            Command::Completions { shell } => {
                clap_complete::generate(shell, &mut Cli::command(), "bottlecap", out);
                Ok(Outcome::Done)
            }
            Command::Man { directory } => clap_mangen::generate_to(Cli::command(), &directory)
                .failing(|| format!("cannot write to {}", directory.display()))
                .map(|()| Outcome::Done),
            Command::Audit(audit) => audit.run(out).map(|()| Outcome::Done),
            Command::Requests(requests) => requests.run(out).map(|()| Outcome::Done),
            Command::Doctor { bottle: None, json, .. } => {
                doctor::report(form(json), out).map(|()| Outcome::Done)
            }
            Command::Doctor { bottle: Some(bottle), backend, image, fresh, only, json } => {
                let manifest = shelf()?.manifest(&bottle);
                let choice = if fresh { Choice::Made } else { Choice::Running };
                let image = image.as_deref();
                let patient = Patient { word: &bottle, manifest: &manifest, backend, image, choice };
                doctor::wire::report(patient, only.as_deref(), form(json), out).map(|()| Outcome::Done)
            }
            Command::Reference => print(out, &reference::markdown(Cli::command())).map(|()| Outcome::Done),
            Command::Schema => print(out, &format!("{:#}\n", manifest::schema())).map(|()| Outcome::Done),
            Command::Check { file } => crate::run::check_manifest(&file, out).map(|()| Outcome::Done),
        }
    }
}

impl Routes {
    fn run(self, out: &mut impl Write) -> Result<(), Fault> {
        match self {
            Routes::Show { at } => at.desk()?.show_routes(form(at.json), out),
            Routes::Diff { file, at } => at.desk()?.diff_routes(&file, form(at.json), out),
            Routes::Apply { file, yes, at } => {
                at.desk()?.apply_routes(&file, confirm(yes), form(at.json), out)
            }
            Routes::Edit { yes, at } => at.desk()?.edit_routes(confirm(yes), form(at.json), out),
        }
    }
}

impl At {
    fn desk(&self) -> Result<Desk, Fault> {
        let selection = Selection {
            bottle: self.bottle.clone(),
            routes: self.routes.clone(),
            repos: self.repos.clone(),
            hup: self.hup.clone(),
            run_dir: self.run_dir.clone(),
        };
        Desk::find(&selection, &directories())
    }
}

fn form(json: bool) -> Form {
    if json { Form::Json } else { Form::Text }
}

fn confirm(yes: bool) -> Confirm {
    if yes { Confirm::Given } else { Confirm::Ask }
}

fn shelf() -> Result<Shelf, Fault> {
    Shelf::of_process().ok_or_else(|| {
        Fault::refused("neither HOME nor XDG_CONFIG_HOME is set")
            .with_hint("set one of them, or name a manifest by its path")
    })
}

/// How a bottle is that another version may have written down.
const UNREADABLE: &str = "cannot be read";

fn directories() -> Directories {
    Directories::of_process()
}

fn list(form: Form, out: &mut impl Write) -> Result<(), Fault> {
    let cannot = || "cannot list the bottles".to_owned();
    let (bottles, strange) =
        (directories().list().failing(cannot)?, directories().strange().failing(cannot)?);
    let told = || "cannot print".to_owned();
    if form == Form::Json {
        let known = bottles.iter().map(|(record, running)| state::listed(record, *running));
        let unknown = strange.iter().map(|name| {
            let running = directories().home(name).is_held();
            serde_json::json!({ "name": name.as_str(), "running": running, "state": UNREADABLE })
        });
        let values: Vec<_> = known.chain(unknown).collect();
        return writeln!(out, "{}", serde_json::Value::Array(values)).failing(told);
    }
    for (record, running) in bottles {
        let state = state::in_words(&record, running);
        let sockets = record.run_dir.display();
        writeln!(out, "{:<24} {state:<20} {}  {sockets}", record.name, record.started).failing(told)?;
    }
    for name in strange {
        writeln!(out, "{:<24} {UNREADABLE}", name.as_str()).failing(told)?;
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
