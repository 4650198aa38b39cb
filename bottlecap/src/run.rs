//! `bottlecap run`: from a manifest to a command inside a bottle, and back to nothing.

mod prepare;
mod start;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::fault::{Attempted, Fault};
use crate::manifest::Name;
use crate::state::Directories;

pub use prepare::{Checked, check};

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// The manifest's file.
    pub manifest: Option<PathBuf>,
    /// The bottle's name, over that of the manifest.
    pub name: Option<Name>,
    /// The agent, over that of the manifest.
    pub agent: Option<Name>,
    /// The working directory.
    pub workdir: PathBuf,
    /// The command; empty for that of the manifest.
    pub command: Vec<OsString>,
}

/// Runs the command in a bottle; its exit code.
///
/// # Errors
/// When the bottle cannot be built. The command was not started then.
pub fn run(request: &Request) -> Result<i32, Fault> {
    nix::sys::prctl::set_dumpable(false).failing(|| "cannot hide from other processes".to_owned())?;
    // Before anything is checked: what does not exist yet cannot be told to lie in the working directory.
    Directories::of_process().create()?;
    let checked = check(request)?;
    start::start(checked)
}

/// Says what `run` would make.
pub fn describe(request: &Request, out: &mut impl Write) -> Result<(), Fault> {
    let checked = check(request)?;
    checked.print(out).failing(|| "cannot print".to_owned())
}

/// Checks a manifest and the files it names, and says what it allows.
pub fn check_manifest(file: &Path, out: &mut impl Write) -> Result<(), Fault> {
    prepare::check_manifest(file, out)
}
