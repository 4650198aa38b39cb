//! `bottlecap run`: from a manifest to a command inside a bottle, and back to nothing.

mod mirrors;
mod prepare;
mod start;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::backend::Kind;
use crate::clone::{self, Copy};
use crate::fault::{Attempted, Fault};
use crate::life::{ATTACH, Door};
use crate::manifest::Name;
use crate::provision::Report;
use crate::requests::{Form, json};
use crate::state::Directories;
use crate::terminal::{self, Away};

pub use prepare::{Checked, Look, check};

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The manifest's file.
    pub manifest: Option<PathBuf>,
    /// The bottle's name, over that of the manifest.
    pub name: Option<Name>,
    /// The agent, over that of the manifest.
    pub agent: Option<Name>,
    /// The working directory.
    pub workdir: PathBuf,
    /// Whether the command works in it, or in a clone.
    #[serde(default)]
    pub copy: Copy,
    /// Whether clients that ignore proxy variables are served too, whatever the manifest says.
    #[serde(default)]
    pub transparent: bool,
    /// The command; empty for that of the manifest.
    pub command: Vec<OsString>,
    /// What walls are made of.
    #[serde(default)]
    pub backend: Kind,
    /// The image that containers are made from.
    #[serde(default)]
    pub image: Option<String>,
    /// Whether it is told what the bottle was provided with.
    #[serde(default)]
    pub report: Report,
}

/// Runs the command in a bottle; its exit code.
///
/// # Errors
/// When the bottle cannot be built. The command was not started then.
pub fn run(request: &Request) -> Result<i32, Fault> {
    start::start(checked(request)?)
}

/// The same, with a terminal that nobody sits at; `door` is closed when the command runs.
pub(crate) fn run_apart(request: &Request, door: Door) -> Result<i32, Fault> {
    let checked = checked(request)?;
    let name = checked.name.clone().ok_or_else(|| nameless("goes on by itself"))?;
    let home = checked.directories.home(&name).path().to_path_buf();
    let socket = checked.directories.run_dir(&name)?.with_extension(ATTACH);
    terminal::go_away(Away { door, name: name.to_string(), home, socket });
    start::start(checked)
}

fn checked(request: &Request) -> Result<Checked, Fault> {
    nix::sys::prctl::set_dumpable(false).failing(|| "cannot hide from other processes".to_owned())?;
    // Before anything is checked: what does not exist yet cannot be told to lie in the working directory.
    let directories = Directories::of_process();
    directories.create()?;
    match request.copy {
        Copy::Live => check(request, Look::Whole),
        Copy::Clone => {
            // All that can be refused is refused before anything is copied.
            let looked = check(request, Look::Only)?;
            let name = looked.name.clone().ok_or_else(|| nameless("keeps a clone"))?;
            let held = directories.home(&name).hold()?;
            held.home().readable()?;
            let origin = match clone::make(held.home(), &looked.workdir.path) {
                Ok(origin) => origin,
                Err(fault) => {
                    held.leave();
                    return Err(fault);
                }
            };
            drop(held);
            check(request, Look::Clone(&origin))
        }
    }
}

fn nameless(what: &str) -> Fault {
    Fault::refused(format!("a bottle that {what} has a name"))
        .with_hint("give one with --name, or in the manifest")
}

/// Says what `run` would make. Nothing is touched, and no secret is read.
pub fn describe(request: &Request, form: Form, out: &mut impl Write) -> Result<(), Fault> {
    let planned = check(request, Look::Only)?.plan()?;
    match form {
        Form::Json => json(out, &planned),
        Form::Text => planned.print(out).failing(|| "cannot print".to_owned()),
    }
}

/// Checks a manifest and the files it names, and says what it allows.
pub fn check_manifest(file: &Path, out: &mut impl Write) -> Result<(), Fault> {
    prepare::check_manifest(file, out)
}
