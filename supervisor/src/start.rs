//! The start: signals first, then secrets, then everything that can be refused, then the bundle.

use std::io;
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::bundle::Bundle;
use crate::cli::Cli;
use crate::daemon::Daemon;
use crate::plan::Level;
use crate::secrets::{self, Delivery, Secret};
use crate::setup::{Setup, SetupError};
use crate::sys::signals::Signals;
use crate::{EXIT_FAILED, EXIT_USAGE, sys};

/// Variables of this prefix are secrets of egress.
pub(crate) const TOKEN_PREFIX: &str = "EGRESS_TOKEN_";

/// Most bytes of secrets that are read.
const SECRETS_LIMIT: usize = 1024 * 1024;

/// Why the supervisor did not run to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error("cannot read secrets from descriptor {number}")]
    SecretsFd {
        number: i32,
        #[source]
        source: io::Error,
    },
    #[error("descriptor {0} has more than 1 MiB of secrets")]
    TooManySecrets(i32),
    #[error(transparent)]
    Secrets(#[from] secrets::Error),
    #[error("{name} is both in the environment and in the secrets of --secrets-fd")]
    TokenTwice { name: String },
    #[error("stopped by signal {0}")]
    Stopped(i32),
    #[error("the system refuses what a supervisor needs")]
    System(#[from] io::Error),
}

impl StartError {
    /// What the reader can do.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Setup(error) => error.hint(),
            Self::SecretsFd { .. }
            | Self::TooManySecrets(_)
            | Self::Secrets(_)
            | Self::TokenTwice { .. }
            | Self::Stopped(_)
            | Self::System(_) => None,
        }
    }

    /// The exit code by the contract.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Setup(_)
            | Self::SecretsFd { .. }
            | Self::TooManySecrets(_)
            | Self::Secrets(_)
            | Self::TokenTwice { .. } => EXIT_USAGE,
            Self::Stopped(number) => 128 + u8::try_from(*number).unwrap_or(0),
            Self::System(_) => EXIT_FAILED,
        }
    }
}

/// Runs the bundle, or prints its plan with `--check`; returns the exit code.
pub(crate) fn run(cli: &Cli, tokens: Vec<(String, Vec<u8>)>) -> Result<u8, StartError> {
    let tokens: Vec<(String, Secret)> =
        tokens.into_iter().map(|(name, value)| (name, Secret::new(value))).collect();
    let mut signals = Signals::install()?;
    let setup = Setup::new(cli)?;
    if cli.check {
        setup.print(&mut io::stdout().lock())?;
        return Ok(0);
    }
    // What we make is for daemons of other uids too; what is not, says so itself.
    let _mask = sys::Umask::set(0o022);
    if std::process::id() != 1 {
        sys::become_subreaper()?;
    }
    let mut secrets = match cli.secrets_fd {
        Some(number) => secrets::parse(read_secrets(number, &mut signals)?.expose())?,
        None => Vec::new(),
    };
    let mut warnings = Vec::new();
    for (name, value) in tokens {
        if !secrets::is_name(&name) {
            warnings.push(
                "a variable whose name begins with EGRESS_TOKEN_ was wiped: its name cannot be used"
                    .to_owned(),
            );
            continue;
        }
        if secrets.iter().any(|other| other.daemon == Daemon::Egress && other.name == name) {
            return Err(StartError::TokenTwice { name });
        }
        warnings.push(format!(
            "{name} was moved from the environment to egress and wiped here; whoever starts us still holds it: prefer a file below /run/secrets"
        ));
        secrets.push(Delivery { daemon: Daemon::Egress, name, value });
    }
    let mut bundle = Bundle::open(setup, secrets, signals)?;
    for warning in warnings {
        bundle.say(Level::Warn, warning);
    }
    Ok(bundle.run()?)
}

/// Everything that the descriptor has until its end. A stop signal ends the waiting.
fn read_secrets(number: i32, signals: &mut Signals) -> Result<Secret, StartError> {
    let failed = |source| StartError::SecretsFd { number, source };
    // Standard input stays open, so that no other file gets its number.
    let source = if number == 0 { io::stdin().as_fd().try_clone_to_owned() } else { sys::adopt(number) };
    let mut file = std::fs::File::from(source.map_err(failed)?);
    // Room for the largest allowed input and one byte more: growing would leave copies behind.
    let mut text = Secret::with_capacity(SECRETS_LIMIT + 1);
    loop {
        let mut fds =
            [PollFd::new(file.as_fd(), PollFlags::POLLIN), PollFd::new(signals.fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(failed(error.into())),
        }
        let readable = fds[0].any().unwrap_or(true);
        if let Some(number) = signals.take_stop() {
            return Err(StartError::Stopped(number));
        }
        if readable && text.read_more(&mut file).map_err(failed)? == 0 {
            return if text.is_full() { Err(StartError::TooManySecrets(number)) } else { Ok(text) };
        }
    }
}
