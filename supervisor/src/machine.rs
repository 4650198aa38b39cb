//! The supervisor as the init of a kernel: it makes a machine of what the kernel started, runs the bundle, and ends the machine.
//!
//! What it is told stands on the kernel's command line. Nothing here returns to the kernel: PID 1 that ends is a panic.

use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::reboot::RebootMode;

use crate::bundle::chain;
use crate::machine::config::{Config, OnFailure};
use crate::sys::machine as kernel;
use crate::{EXIT_FAILED, EXIT_USAGE};

mod config;
mod dhcp;
mod ground;
mod lease;
mod modules;
mod network;

/// Why the machine does not get as far as the bundle.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
    #[error("cannot {what}")]
    Step {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Config(#[from] config::ConfigError),
    #[error("{interface} has no address")]
    Lease {
        interface: String,
        #[source]
        source: lease::LeaseError,
        /// What the command line wants of a failure that may pass.
        then: OnFailure,
    },
    #[error(
        "PID 1 of a namespace without /proc: neither a container as it should be nor the init of a kernel"
    )]
    NotAKernel,
}

/// Names what was attempted.
fn step<T, E: Into<io::Error>>(
    outcome: Result<T, E>,
    what: impl FnOnce() -> String,
) -> Result<T, MachineError> {
    outcome.map_err(|source| MachineError::Step { what: what(), source: source.into() })
}

/// A machine that is ready for the bundle.
#[derive(Debug)]
pub(crate) struct Machine {
    config: Config,
    reboot_asked: Arc<AtomicBool>,
    /// Open for as long as presses of the power button are to reach us.
    _buttons: Vec<std::fs::File>,
}

/// Whether a kernel started us as its init: PID 1, and nobody has mounted anything.
pub(crate) fn is_ours() -> bool {
    std::process::id() == 1 && !Path::new("/proc/self").exists()
}

/// Makes the machine ready; what is tried before the first mount is told on the console that the kernel gave us.
pub(crate) fn prepare() -> Result<Machine, MachineError> {
    ground::mount_kernel_views()?;
    let line = step(std::fs::read_to_string("/proc/cmdline"), || "read /proc/cmdline".to_owned())?;
    let config: Config = line.parse()?;
    ground::start_again_after_a_panic(config.panic);
    let reboot_asked = step(kernel::watch_ctrl_alt_del(), || "take over Ctrl-Alt-Del".to_owned())?;
    ground::load_modules(&config.modules)?;
    let buttons = ground::power_buttons();
    if let Some(name) = &config.hostname {
        step(nix::unistd::sethostname(name), || format!("take the name {name}"))?;
    }
    ground::set_clock();
    network::bring_up(&config)?;
    if let Some(device) = &config.data {
        ground::mount_data(device)?;
    }
    ground::close_the_ground()?;
    if !kernel::await_entropy(ground::ENTROPY_PATIENCE) {
        say("warning: random numbers may be predictable: give the machine a virtio-rng device");
    }
    Ok(Machine { config, reboot_asked, _buttons: buttons })
}

impl Machine {
    /// The command line of the bundle.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["supervisor".to_owned(), "--ca-init".to_owned()];
        if let Some(address) = &self.config.bottle {
            arguments.extend(["--bottle-addr".to_owned(), address.to_string()]);
        }
        arguments
    }

    /// Ends the machine after the bundle ended with this code.
    pub(crate) fn end(self, code: u8) -> ! {
        let mode = match code {
            0 if self.reboot_asked.load(Ordering::SeqCst) => RebootMode::RB_AUTOBOOT,
            0 | EXIT_USAGE => RebootMode::RB_POWER_OFF,
            _ => self.config.on_failure.mode(),
        };
        finish(mode)
    }
}

impl OnFailure {
    fn mode(self) -> RebootMode {
        match self {
            Self::Reboot => RebootMode::RB_AUTOBOOT,
            Self::PowerOff => RebootMode::RB_POWER_OFF,
        }
    }
}

/// Says why there is no bundle, and ends the machine: what is wrong with it now would be wrong with it again, a silent network excepted.
pub(crate) fn give_up(error: &MachineError) -> ! {
    say(&format!("error: {}", chain(error)));
    if matches!(error, MachineError::NotAKernel) {
        say("hint: mount /proc in the container");
        std::process::exit(i32::from(EXIT_USAGE));
    }
    finish(match error {
        MachineError::Lease { then, .. } => then.mode(),
        MachineError::Step { .. } | MachineError::Config(_) | MachineError::NotAKernel => {
            RebootMode::RB_POWER_OFF
        }
    })
}

/// Processes first, then file systems, then the machine.
fn finish(mode: RebootMode) -> ! {
    ground::end_processes();
    ground::unmount_data();
    say(match mode {
        RebootMode::RB_AUTOBOOT => "the machine starts again",
        _ => "the machine is switched off",
    });
    let error = kernel::end_machine(mode);
    say(&format!("error: the kernel does not end the machine: {error}"));
    // The kernel panics at this, and starts again.
    std::process::exit(i32::from(EXIT_FAILED))
}

/// A line on the console.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "[machine] {text}");
}
