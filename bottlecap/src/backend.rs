//! What holds a bottle: one trait, so that a bottle is the same bottle whatever its walls are made of.
//!
//! A backend makes the walls and starts the daemons, lets the command run in them, and takes everything down. What the
//! bottle is made of, whose it is and what is kept of it, is decided before and written down elsewhere.

pub mod docker;
pub mod sandbox;

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use serde::{Deserialize, Serialize};

use crate::addresses::Addresses;
use crate::bundle::Provisions;
use crate::fault::Fault;
use crate::git::Protected;
use crate::manifest::Name;
use crate::provision::Item;
use crate::run::Checked;
use crate::state::{Directories, Held, Home};

/// What a bottle's holder is sent to end the command at once, whatever that says, and to take everything down.
pub const ENOUGH: Signal = Signal::SIGPWR;

/// What walls are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Namespaces of this kernel
    #[default]
    Sandbox,
    /// Containers
    Docker,
}

impl Kind {
    /// A backend that holds nothing yet.
    #[must_use]
    pub fn backend(self) -> Box<dyn Backend> {
        match self {
            Kind::Sandbox => Box::new(sandbox::Sandbox::default()),
            Kind::Docker => Box::new(docker::Docker::default()),
        }
    }

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Sandbox => "sandbox",
            Kind::Docker => "docker",
        }
    }
}

/// A bottle to be made.
#[derive(Debug)]
pub struct Order<'a> {
    /// What was looked at.
    pub checked: &'a Checked,
    /// Its name.
    pub name: &'a Name,
    /// Its state, which this process holds.
    pub held: &'a Held,
    /// Its sockets.
    pub run_dir: &'a Path,
    /// What of git in the working directory is kept from the agent.
    pub git: &'a [Protected],
    /// What the daemons are given.
    pub provisions: Provisions,
}

/// Something of a bottle that was found without anybody holding it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remnant {
    /// Its kind, in a word.
    pub what: &'static str,
    /// The bottle that it belongs to.
    pub bottle: Name,
    /// Its name where it was found.
    pub name: String,
}

/// Walls, and the daemons behind them.
pub trait Backend {
    /// Which one it is.
    fn kind(&self) -> Kind;

    /// Where the daemons are reached from inside; names, or addresses where there are no names.
    fn addresses(&self) -> Addresses;

    /// The root that the daemons see as theirs.
    fn daemons_root(&self, home: &Home, run_dir: &Path) -> PathBuf;

    /// Looks at what it needs of this host. Nothing is made.
    fn check(&mut self, checked: &Checked) -> Result<(), Fault>;

    /// Makes the walls and starts the daemons; returns when they serve, with what the bottle was provided with. The
    /// command does not run yet.
    fn start(&mut self, order: Order<'_>) -> Result<Vec<Item>, Fault>;

    /// Lets the command run and passes `signals` on to it, [`ENOUGH`] as the one that nothing withstands; its exit code.
    fn exec(&mut self, signals: &SignalFd) -> Result<i32, Fault>;

    /// Takes everything down. What cannot be taken down is told in the log, and found by [`Backend::remnants`] later.
    fn stop(&mut self);

    /// What is there of bottles of these directories, by label, whoever started them.
    fn remnants(&self, directories: &Directories) -> Result<Vec<Remnant>, Fault>;

    /// Removes one of them.
    fn remove(&self, remnant: &Remnant) -> Result<(), Fault>;
}
