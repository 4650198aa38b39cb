//! The words of `run` and `start`.

use std::env;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{Outcome, form, shelf};
use crate::backend::Kind;
use crate::clone::Copy;
use crate::fault::{Attempted, Fault};
use crate::manifest::Name;
use crate::provision::Report;
use crate::run::{self, Request};
use crate::{life, requests};

#[derive(Debug, Args)]
pub(super) struct Run {
    /// The manifest, or the name of a bottle that `init` wrote; without it the bottle may reach nothing
    #[arg(long, value_name = "FILE|NAME", env = "BOTTLECAP_BOTTLE")]
    bottle: Option<PathBuf>,
    /// The bottle's name, over that of the manifest; a bottle without a name leaves no state behind
    #[arg(long, value_name = "NAME")]
    name: Option<Name>,
    /// Work in a clone of this git working copy, kept in the bottle's state; what is not committed stays behind
    #[arg(long, value_name = "DIR", conflicts_with = "mount")]
    cwd: Option<PathBuf>,
    /// Work in this directory itself, which the command may write [default, without --cwd: the one you are in]
    #[arg(long, value_name = "DIR")]
    mount: Option<PathBuf>,
    /// What walls are made of
    #[arg(long, value_name = "KIND", default_value = "sandbox", env = "BOTTLECAP_BACKEND")]
    backend: Kind,
    /// The image of the agent's container [default: bottlecap-agent:latest]
    #[arg(long, value_name = "IMAGE", env = "BOTTLECAP_IMAGE")]
    image: Option<String>,
    /// Say what the bottle was provided with
    #[arg(long)]
    report: bool,
    /// Serve clients that ignore proxy variables too: DNS inside knows allowed names, and they lead to egress
    #[arg(long)]
    transparent: bool,
    /// Say what would be made, and make nothing
    #[arg(long)]
    dry_run: bool,
    /// How --dry-run says it
    #[arg(long, value_name = "FORMAT", default_value = "text", requires = "dry_run")]
    format: Format,
    /// The agent: `agents/NAME.yaml` of yours, or `.bottlecap/agents/NAME.yaml` of the working directory
    #[arg(long, value_name = "NAME")]
    agent: Option<Name>,
    /// The command [default: that of the manifest, or of its preset]
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For a person
    Text,
    /// For a program
    Json,
}

impl Run {
    pub(super) fn run(self, out: &mut impl Write) -> Result<Outcome, Fault> {
        let (dry_run, format) = (self.dry_run, self.format);
        let request = self.request()?;
        if dry_run {
            return run::describe(&request, form(format == Format::Json), out).map(|()| Outcome::Done);
        }
        run::run(&request).map(Outcome::Command)
    }

    pub(super) fn start(self, out: &mut impl Write) -> Result<Outcome, Fault> {
        if self.dry_run {
            return self.run(out);
        }
        let name = life::start(&self.request()?)?;
        told_started(&name, out).map(|()| Outcome::Done)
    }

    /// What is asked for, with whole paths: it may be asked for again from elsewhere.
    fn request(self) -> Result<Request, Fault> {
        let here = env::current_dir().failing(|| "cannot find the working directory".to_owned())?;
        let manifest = self.bottle.map(|word| shelf()?.written(&word)).transpose()?;
        let copy = if self.cwd.is_some() { Copy::Clone } else { Copy::Live };
        let workdir = self.cwd.or(self.mount);
        Ok(Request {
            transparent: self.transparent,
            copy,
            manifest: manifest.map(|path| if path.is_absolute() { path } else { here.join(path) }),
            name: self.name,
            agent: self.agent,
            workdir: workdir.map_or_else(|| here.clone(), |path| here.join(path)),
            command: self.command,
            backend: self.backend,
            image: self.image,
            report: if self.report { Report::Printed } else { Report::Kept },
        })
    }
}

pub(super) fn told_started(name: &str, out: &mut impl Write) -> Result<(), Fault> {
    requests::print(
        out,
        &format!(
            "{name} runs; bottlecap attach {name} | operator {name} | logs {name} --console | stop {name}\n"
        ),
    )
}
