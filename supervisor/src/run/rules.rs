//! What an init does about a signal and about an exit code, as functions from values to values.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use nix::sys::signal::Signal;

/// A signal number that exists: 1 to 31, or a real-time one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Number(i32);

/// First and last real-time signal that programs may use.
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;

impl Number {
    /// The number itself.
    pub(crate) const fn get(self) -> i32 {
        self.0
    }
}

/// A word that names no signal.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is no signal: expected a name such as TERM or SIGTERM, or a number")]
pub(crate) struct NoSignal(String);

impl FromStr for Number {
    type Err = NoSignal;

    fn from_str(text: &str) -> Result<Self, NoSignal> {
        if let Ok(number) = text.parse() {
            let exists = (1..=31).contains(&number) || REAL_TIME.contains(&number);
            return exists.then_some(Self(number)).ok_or_else(|| NoSignal(text.to_owned()));
        }
        let name = if text.starts_with("SIG") { text.to_owned() } else { format!("SIG{text}") };
        Signal::from_str(&name).map(|signal| Self(signal as i32)).map_err(|_| NoSignal(text.to_owned()))
    }
}

/// One signal sent on as another, or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rewrite {
    from: Number,
    to: Option<Number>,
}

/// Why a rewrite is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum RewriteError {
    #[error("expected FROM:TO, such as TERM:INT, or FROM:0 to keep the signal from the command")]
    Form,
    #[error(transparent)]
    Signal(#[from] NoSignal),
    #[error("{0} never reaches us and cannot be rewritten")]
    Unseen(&'static str),
}

impl FromStr for Rewrite {
    type Err = RewriteError;

    fn from_str(text: &str) -> Result<Self, RewriteError> {
        let (from, to) = text.split_once(':').ok_or(RewriteError::Form)?;
        let from: Number = from.parse()?;
        match from.get() {
            libc::SIGKILL => return Err(RewriteError::Unseen("SIGKILL")),
            libc::SIGSTOP => return Err(RewriteError::Unseen("SIGSTOP")),
            libc::SIGCHLD => return Err(RewriteError::Unseen("SIGCHLD")),
            _ => {}
        }
        let to = if to == "0" { None } else { Some(to.parse()?) };
        Ok(Self { from, to })
    }
}

/// The rules of one run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rules {
    rewrites: BTreeMap<i32, Option<i32>>,
    forgiven: BTreeSet<u8>,
}

/// Something to do about a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    /// Give the terminal back to the command, if we were brought to its foreground.
    ReturnTerminal,
    /// Send this signal on.
    Send(i32),
    /// Stop ourselves, as whoever stopped us expects.
    Suspend,
}

impl Rules {
    /// The rules; a later rewrite of the same signal counts.
    pub(crate) fn new(
        rewrites: impl IntoIterator<Item = Rewrite>,
        forgiven: impl IntoIterator<Item = u8>,
    ) -> Self {
        let rewrites = rewrites.into_iter().map(|rewrite| (rewrite.from.get(), rewrite.to.map(Number::get)));
        Self { rewrites: rewrites.collect(), forgiven: forgiven.into_iter().collect() }
    }

    /// What to do about these signals, which came in this order.
    pub(crate) fn on(&self, signals: &[i32]) -> Vec<Deed> {
        let mut deeds = Vec::new();
        for (at, signal) in signals.iter().copied().enumerate() {
            match signal {
                libc::SIGCHLD => continue,
                libc::SIGCONT => deeds.push(Deed::ReturnTerminal),
                _ => {}
            }
            let sent = self.rewrites.get(&signal).copied().unwrap_or(Some(signal));
            deeds.extend(sent.map(Deed::Send));
            // Continued before we came to stop: then the stop is over already.
            let over = || signals[at + 1..].contains(&libc::SIGCONT);
            if matches!(signal, libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU) && !over() {
                deeds.push(Deed::Suspend);
            }
        }
        deeds
    }

    /// The code that we exit with when the command exited with this one, or was ended by a signal as shells count it.
    pub(crate) fn exit_code(&self, code: u8) -> u8 {
        if self.forgiven.contains(&code) { 0 } else { code }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rewrites(texts: &[&str]) -> Rules {
        Rules::new(texts.iter().map(|text| text.parse().unwrap()), [])
    }

    #[test]
    fn a_signal_has_a_name_with_or_without_its_prefix_or_a_number() {
        for text in ["TERM", "SIGTERM", "15"] {
            assert_eq!(text.parse::<Number>().unwrap().get(), 15);
        }
        assert_eq!("64".parse::<Number>().unwrap().get(), 64);
        for text in ["", "0", "-15", "32", "65", "SIGSIGTERM", "term", "TERM "] {
            assert!(text.parse::<Number>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_rewrite_of_what_nobody_can_catch_is_refused() {
        for text in ["KILL:TERM", "9:15", "STOP:TERM", "CHLD:HUP"] {
            assert!(matches!(text.parse::<Rewrite>(), Err(RewriteError::Unseen(_))), "{text}");
        }
        for text in ["TERM", "TERM:", ":TERM", "TERM:INT:HUP", "0:15", "TERM=INT"] {
            assert!(text.parse::<Rewrite>().is_err(), "{text}");
        }
    }

    #[test]
    fn rewrites_change_and_withhold() {
        let rules = rewrites(&["TERM:INT", "INT:TERM", "WINCH:0"]);
        let signals = [libc::SIGTERM, libc::SIGWINCH, libc::SIGINT, libc::SIGHUP];
        assert_eq!(
            rules.on(&signals),
            [Deed::Send(libc::SIGINT), Deed::Send(libc::SIGTERM), Deed::Send(libc::SIGHUP)]
        );
    }

    #[test]
    fn a_stop_of_the_terminal_stops_us_too_unless_it_is_over() {
        let rules = rewrites(&["TTIN:TERM"]);
        assert_eq!(rules.on(&[libc::SIGTSTP]), [Deed::Send(libc::SIGTSTP), Deed::Suspend]);
        assert_eq!(rules.on(&[libc::SIGTTIN]), [Deed::Send(libc::SIGTERM), Deed::Suspend]);
        assert_eq!(
            rules.on(&[libc::SIGTSTP, libc::SIGCONT]),
            [Deed::Send(libc::SIGTSTP), Deed::ReturnTerminal, Deed::Send(libc::SIGCONT)]
        );
    }

    #[test]
    fn forgiven_codes_become_zero_and_no_other() {
        let rules = Rules::new([], [143, 3]);
        for code in 0..=255 {
            assert_eq!(rules.exit_code(code), if [143, 3].contains(&code) { 0 } else { code });
        }
    }

    proptest! {
        #[test]
        fn without_rewrites_every_signal_is_sent_on_in_order_and_children_are_not(
            signals in prop::collection::vec(1..=64_i32, 0..40)
        ) {
            let deeds = Rules::default().on(&signals);
            let sent: Vec<i32> = deeds
                .into_iter()
                .filter_map(|deed| match deed {
                    Deed::Send(number) => Some(number),
                    Deed::ReturnTerminal | Deed::Suspend => None,
                })
                .collect();
            let expected: Vec<i32> = signals.into_iter().filter(|number| *number != libc::SIGCHLD).collect();
            prop_assert_eq!(sent, expected);
        }
    }
}
