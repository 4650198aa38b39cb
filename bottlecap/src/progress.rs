//! What takes a while, and how far it is: a bar on a terminal, lines elsewhere, on standard error either way.

use std::io::{self, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a bar shows that it lives.
const TICK: Duration = Duration::from_millis(100);
/// Without colours: what is meant stands in the words.
const WITHOUT_MEASURE: &str = "{spinner} {msg}";
const WITH_MEASURE: &str = "{spinner} {msg} [{bar:24}] {percent:>3}%";
/// What git says of its progress, and what that is called here. Words of the other side are never shown.
const PHASES: [(&str, &str); 7] = [
    ("Enumerating objects", "counting"),
    ("Counting objects", "counting"),
    ("Compressing objects", "packing"),
    ("Receiving objects", "receiving"),
    ("Unpacking objects", "receiving"),
    ("Resolving deltas", "indexing"),
    ("Updating files", "writing files"),
];

/// Something that takes a while. What a terminal shows of it is gone when this is dropped.
#[derive(Debug)]
pub struct Progress {
    what: String,
    bar: ProgressBar,
    phase: Option<&'static str>,
}

impl Progress {
    /// Begins.
    pub fn start(what: impl Into<String>) -> Progress {
        let progress = Progress::new(what.into());
        if progress.bar.is_hidden() {
            say(&progress.what);
        }
        progress
    }

    /// The same for what says nothing itself and is soon over: nothing is said of it where there is no terminal.
    pub fn quiet(what: impl Into<String>) -> Progress {
        let progress = Progress::new(what.into());
        if !progress.bar.is_hidden() {
            progress.bar.enable_steady_tick(TICK);
        }
        progress
    }

    fn new(what: String) -> Progress {
        let bar = ProgressBar::with_draw_target(Some(100), ProgressDrawTarget::stderr());
        bar.set_style(style(WITHOUT_MEASURE));
        bar.set_message(what.clone());
        Progress { what, bar, phase: None }
    }

    /// Takes a line that git has said, if that is of its progress.
    pub fn git(&mut self, line: &str) -> bool {
        let Some(Step { phase, percent }) = Step::parse(line) else { return false };
        if self.phase != Some(phase) {
            self.phase = Some(phase);
            let message = format!("{}: {phase}", self.what);
            if self.bar.is_hidden() {
                say(&message);
            }
            self.bar.set_style(style(WITHOUT_MEASURE));
            self.bar.set_message(message);
        }
        if let Some(percent) = percent {
            self.bar.set_style(style(WITH_MEASURE));
            self.bar.set_position(percent.into());
        }
        true
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates stand above, and a test reads them.
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
        .tick_chars("|/-\\ ")
}

fn say(words: &str) {
    // Nobody is there to be told that nobody is there.
    let _ = writeln!(io::stderr(), "{words}");
}

/// How far git is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Step {
    phase: &'static str,
    percent: Option<u8>,
}

impl Step {
    fn parse(line: &str) -> Option<Step> {
        let line = line.strip_prefix("remote: ").unwrap_or(line);
        let (words, rest) = line.split_once(':')?;
        let (_, phase) = PHASES.into_iter().find(|(known, _)| *known == words)?;
        let number = rest.trim_start().split_once('%').map(|(number, _)| number);
        let percent = number.and_then(|number| number.parse().ok()).filter(|percent| *percent <= 100);
        Some(Step { phase, percent })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn of_what_git_says_the_phase_and_the_number_are_taken_and_nothing_else() {
        let step = |line| Step::parse(line).map(|step| (step.phase, step.percent));
        assert_eq!(
            step("Receiving objects:  45% (450/1000), 1.2 MiB | 2 MiB/s"),
            Some(("receiving", Some(45)))
        );
        assert_eq!(step("remote: Enumerating objects: 12, done."), Some(("counting", None)));
        assert_eq!(step("remote: Compressing objects: 100% (3/3), done."), Some(("packing", Some(100))));
        assert_eq!(step("Receiving objects: 999% (1/1)"), Some(("receiving", None)));
        assert_eq!(step("Receiving objects: \u{1b}[2J% (1/1)"), Some(("receiving", None)));
        assert_eq!(step("remote: You are looking well: 4% of it"), None);
        assert_eq!(step("fatal: repository not found"), None);
    }

    #[test]
    fn the_templates_are_templates() {
        for template in [WITHOUT_MEASURE, WITH_MEASURE] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
