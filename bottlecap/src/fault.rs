//! Why a command could not be done, in the words and with the exit code that its caller gets.

use std::error::Error;

use policy::Diagnostics;

/// The exit code for a wrong call or configuration.
pub const USAGE: u8 = 64;
/// The exit code for what failed for good.
pub const FAILURE: u8 = 70;

/// Why a command could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A file is wrong, and where.
    #[error("{0}")]
    Configuration(Diagnostics),
    /// It is refused; nothing was started.
    #[error("{message}")]
    Refused {
        /// Why.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// It was tried.
    #[error("{message}")]
    Failed {
        /// What went wrong.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// A request was not granted, or what was granted could not be put in force.
    #[error("{0}")]
    NotGranted(String),
}

impl Fault {
    /// A refusal.
    pub fn refused(message: impl Into<String>) -> Fault {
        Fault::Refused { message: message.into(), hint: None }
    }

    /// A failure.
    pub fn failed(message: impl Into<String>) -> Fault {
        Fault::Failed { message: message.into(), hint: None }
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn with_hint(self, text: impl Into<String>) -> Fault {
        match self {
            Fault::Refused { message, .. } => Fault::Refused { message, hint: Some(text.into()) },
            Fault::Failed { message, .. } => Fault::Failed { message, hint: Some(text.into()) },
            other @ (Fault::Configuration(_) | Fault::NotGranted(_)) => other,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        match self {
            Fault::Refused { hint, .. } | Fault::Failed { hint, .. } => hint.as_deref(),
            Fault::Configuration(_) | Fault::NotGranted(_) => None,
        }
    }

    /// The exit code.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Fault::Configuration(_) | Fault::Refused { .. } => USAGE,
            Fault::Failed { .. } => FAILURE,
            Fault::NotGranted(_) => 1,
        }
    }
}

impl From<Diagnostics> for Fault {
    fn from(found: Diagnostics) -> Fault {
        Fault::Configuration(found)
    }
}

/// `error` and what caused it, in one line.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Turns an error of the system into a fault that says what was attempted.
pub trait Attempted<T> {
    /// As a failure.
    fn failing(self, attempt: impl FnOnce() -> String) -> Result<T, Fault>;
    /// As a refusal.
    fn refusing(self, attempt: impl FnOnce() -> String) -> Result<T, Fault>;
}

impl<T, E: Error> Attempted<T> for Result<T, E> {
    fn failing(self, attempt: impl FnOnce() -> String) -> Result<T, Fault> {
        self.map_err(|error| Fault::failed(format!("{}: {}", attempt(), chain(&error))))
    }

    fn refusing(self, attempt: impl FnOnce() -> String) -> Result<T, Fault> {
        self.map_err(|error| Fault::refused(format!("{}: {}", attempt(), chain(&error))))
    }
}
