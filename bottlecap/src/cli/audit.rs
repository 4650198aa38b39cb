//! The words of `audit`.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{directories, form};
use crate::fault::Fault;
use crate::journals::Journals;
use crate::manifest::Name;

#[derive(Debug, Subcommand)]
pub(super) enum Audit {
    /// Check each journal, and that what the others saw of it is still there
    Verify {
        #[command(flatten)]
        which: Which,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Print the newest records, as JSON lines
    Tail {
        /// How many
        #[arg(long, value_name = "NUMBER", default_value_t = 20)]
        lines: usize,
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        of: Of,
    },
    /// Print all records in the order of time, as JSON lines
    Export {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        of: Of,
    },
}

/// Whose journals.
#[derive(Debug, Args)]
pub(super) struct Which {
    /// The bottle [default: the only one]
    #[arg(long, value_name = "NAME", conflicts_with = "dir")]
    bottle: Option<Name>,
    /// A directory with a journal for each daemon, for a bundle that bottlecap did not start
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// One journal of them.
#[derive(Debug, Args)]
pub(super) struct Of {
    /// This one alone: egress, git-gate, supervise or host
    #[arg(long = "journal", value_name = "NAME")]
    journal: Option<String>,
}

impl Which {
    fn journals(&self) -> Result<Journals, Fault> {
        match &self.dir {
            Some(directory) => Ok(Journals::of_directory(directory)),
            None => Journals::of_bottle(self.bottle.as_ref(), &directories()),
        }
    }
}

impl Audit {
    pub(super) fn run(self, out: &mut impl Write) -> Result<(), Fault> {
        match self {
            Audit::Verify { which, json } => which.journals()?.verify(form(json), out),
            Audit::Tail { lines, which, of } => which.journals()?.tail(of.journal.as_deref(), lines, out),
            Audit::Export { which, of } => which.journals()?.export(of.journal.as_deref(), out),
        }
    }
}
