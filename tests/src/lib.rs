//! The harness of the whole-bundle stories: stand-ins for the outside world, and the bundle itself, as real processes.
//!
//! Nothing here knows the other crates: what it starts and asks is what a user starts and asks.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod asking;
mod binaries;
mod bundle;
mod conversation;
mod docker;
mod echo;
mod git_host;
pub mod leaks;
mod name_server;
mod output;
mod process;
pub mod secret_corpus;
mod temp_root;
mod vm;
mod wire;

pub use binaries::{Binaries, target_directory, workspace_root};
pub use bundle::{Answer, Bundle, BundleBuilder};
pub use conversation::{Conversation, Turns};
pub use docker::{Container, Docker, Network};
pub use echo::{EchoServer, HttpsEcho, Script};
pub use git_host::GitHost;
pub use name_server::NameServer;
pub use output::{Finished, Run};
pub use process::{Lines, Process};
pub use temp_root::TempRoot;
pub use vm::{Kernel, StartImage, VM_ADDRESS, Vm, VmBuilder};
pub use wire::Wire;

use std::io::Write as _;
use std::time::Duration;

/// The longest a story waits for anything before it is called broken.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often a story repeats its subject: `short` in `make test`, `full` in `make soak`, which names a file in
/// `BOTTLECAP_SOAK` to have the number noted.
pub fn rounds(short: u64, full: u64) -> u64 {
    let Some(ledger) = std::env::var_os("BOTTLECAP_SOAK") else { return short };
    // libtest names the thread of a test after it.
    let note = format!("{}\t{full}\n", std::thread::current().name().unwrap_or_default());
    if let Ok(mut file) = std::fs::OpenOptions::new().append(true).open(ledger) {
        // A soak without its ledger is a soak all the same.
        drop(file.write_all(note.as_bytes()));
    }
    full
}
