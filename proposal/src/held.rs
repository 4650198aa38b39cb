//! What a daemon holds until a person has decided on it, as something that is asked for.

use std::fmt;

use jiff::SignedDuration;

use crate::escaped;
use crate::peer::{Found, HELD_MAX, HOLD_ID_CHARS, Held, HeldRef, Hold};

/// For how long what is held may pass once it is approved, in seconds: long enough for whoever gave up to come again.
pub const RELEASE_SECONDS: u32 = 10 * 60;

const TEXT_MAX_CHARS: usize = 512;
const PATH_MAX_CHARS: usize = 4096;

/// Why nothing can be asked about something that is held.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotHeld {
    /// The name is none.
    #[error("`id` has {HOLD_ID_CHARS} hexadecimal digits")]
    Id,
    /// The digest is none.
    #[error("`digest` is `sha256:` and 64 hexadecimal digits")]
    Digest,
    /// Nothing was found in it, or more than is told.
    #[error("there are from 1 to {HELD_MAX} findings")]
    Findings,
    /// It changes nothing, or more than is told.
    #[error("there are from 1 to {HELD_MAX} refs")]
    Refs,
    /// A text that is empty or too long to be shown.
    #[error("`{0}` is empty or too long")]
    Text(&'static str),
}

impl Hold {
    /// Whether a person can be shown it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), NotHeld> {
        let hex = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if self.id.len() != HOLD_ID_CHARS || !hex(&self.id) {
            return Err(NotHeld::Id);
        }
        if !self.digest.strip_prefix("sha256:").is_some_and(|digits| digits.len() == 64 && hex(digits)) {
            return Err(NotHeld::Digest);
        }
        if !(1..=HELD_MAX).contains(&self.findings.len()) {
            return Err(NotHeld::Findings);
        }
        for Found { rule, position, commit, line: _, excerpt } in &self.findings {
            fits("rule", rule)?;
            fits("position", position)?;
            commit.as_ref().map_or(Ok(()), |commit| fits("commit", commit))?;
            if excerpt.chars().count() > TEXT_MAX_CHARS {
                return Err(NotHeld::Text("excerpt"));
            }
        }
        match &self.what {
            Held::Request { scheme, host, port: _, method, path, body: _ } => {
                fits("scheme", scheme)?;
                fits("host", host)?;
                fits("method", method)?;
                if path.is_empty() || path.chars().count() > PATH_MAX_CHARS {
                    return Err(NotHeld::Text("path"));
                }
                Ok(())
            }
            Held::Push { repo, upstream, refs, changes: _, objects: _ } => {
                fits("repo", repo)?;
                fits("upstream", upstream)?;
                if !(1..=HELD_MAX).contains(&refs.len()) {
                    return Err(NotHeld::Refs);
                }
                refs.iter().try_for_each(|HeldRef { name, old, new }| {
                    fits("name", name)?;
                    fits("old", old)?;
                    fits("new", new)
                })
            }
        }
    }

    /// For how long a yes lasts, in seconds.
    #[must_use]
    pub fn ttl_seconds(&self) -> u32 {
        RELEASE_SECONDS
    }

    /// Whether both are the same content, going to the same place.
    #[must_use]
    pub fn is_same_as(&self, other: &Hold) -> bool {
        self.digest == other.digest && self.what == other.what
    }

    /// How long it waits at the most.
    #[must_use]
    pub fn patience(&self) -> SignedDuration {
        self.until.duration_since(self.at)
    }

    /// A line for each finding, for a person.
    #[must_use]
    pub fn places(&self) -> Vec<String> {
        let place = |found: &Found| {
            let Found { rule, excerpt, .. } = found;
            let mut text = format!("`{}` in {}", escaped(rule), found.place());
            if !excerpt.is_empty() {
                text.push_str(&format!(": {}", escaped(excerpt)));
            }
            text
        };
        let mut lines: Vec<String> = self.findings.iter().map(place).collect();
        let told = u64::try_from(lines.len()).unwrap_or(u64::MAX);
        if self.found > told {
            lines.push(format!("and {} more", self.found - told));
        }
        lines
    }
}

fn fits(name: &'static str, text: &str) -> Result<(), NotHeld> {
    if text.is_empty() || text.chars().count() > TEXT_MAX_CHARS { Err(NotHeld::Text(name)) } else { Ok(()) }
}

/// In words, on one line.
impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            Held::Request { scheme, host, port, method, path, body } => {
                let is_default = matches!((scheme.as_str(), port), ("https", 443) | ("http", 80));
                let port = if is_default { String::new() } else { format!(":{port}") };
                let (method, host, path) = (escaped(method), escaped(host), escaped(path));
                write!(f, "let this {method} {}://{host}{port}{path} ({body} bytes)", escaped(scheme))?;
            }
            Held::Push { repo, refs, changes, .. } => {
                let names: Vec<String> = refs.iter().map(|one| escaped(&one.name)).collect();
                write!(f, "let this push to {} of {}", names.join(", "), escaped(repo))?;
                let told = u64::try_from(names.len()).unwrap_or(u64::MAX);
                if *changes > told {
                    write!(f, " (and {} refs more)", changes - told)?;
                }
            }
        }
        let rules: Vec<String> = self.findings.iter().map(|found| escaped(&found.rule)).collect();
        let rule = rules.first().map_or("", String::as_str);
        write!(f, " pass once, with what looks like a secret in it (`{rule}`)")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn hold() -> Hold {
        Hold {
            id: "0a".repeat(16),
            digest: format!("sha256:{}", "0".repeat(64)),
            at: Timestamp::UNIX_EPOCH,
            until: Timestamp::UNIX_EPOCH,
            what: Held::Request {
                scheme: "https".to_owned(),
                host: "api.example.com".to_owned(),
                port: 443,
                method: "POST".to_owned(),
                path: "/v1".to_owned(),
                body: 120,
            },
            findings: vec![Found {
                rule: "github-pat".to_owned(),
                position: "body".to_owned(),
                commit: None,
                line: 3,
                excerpt: "key=\u{1b}****".to_owned(),
            }],
            found: 3,
        }
    }

    #[test]
    fn what_is_held_is_told_in_words_without_what_could_move_the_cursor() {
        insta::assert_snapshot!(hold(), @"let this POST https://api.example.com/v1 (120 bytes) pass once, with what looks like a secret in it (`github-pat`)");
        insta::assert_snapshot!(hold().places().join("\n"), @r"
        `github-pat` in body, line 3: key=\u{1b}****
        and 2 more
        ");
    }

    #[test]
    fn what_cannot_be_shown_is_not_asked_about() {
        assert_eq!(hold().check(), Ok(()));
        assert_eq!(Hold { id: "x".to_owned(), ..hold() }.check(), Err(NotHeld::Id));
        assert_eq!(Hold { digest: "sha256:0".to_owned(), ..hold() }.check(), Err(NotHeld::Digest));
        assert_eq!(Hold { findings: Vec::new(), ..hold() }.check(), Err(NotHeld::Findings));
        let mut long = hold();
        long.findings[0].excerpt = "x".repeat(TEXT_MAX_CHARS + 1);
        assert_eq!(long.check(), Err(NotHeld::Text("excerpt")));
    }
}
