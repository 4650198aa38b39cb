//! Why upstream did not do what it was asked, in words for someone who cannot see it.

/// Why upstream did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) kind: FaultKind,
    /// For someone who cannot see upstream.
    pub(crate) words: String,
}

/// Whether upstream said no, or said nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// It answered, or somebody answered in its place.
    Refused,
    /// It is not there.
    Unreachable,
}

impl Fault {
    /// Upstream said no.
    pub(crate) fn refused(words: impl Into<String>) -> Self {
        Self { kind: FaultKind::Refused, words: words.into() }
    }

    /// Whether upstream does not have any more what it showed a moment ago. A ref that goes while it is shown can have no value there.
    pub(crate) fn took_back(&self) -> bool {
        self.kind == FaultKind::Refused && self.words.contains("upload-pack: not our ref")
    }

    /// Upstream is not there; how that showed.
    pub(crate) fn unreachable(how: &str) -> Self {
        Self { kind: FaultKind::Unreachable, words: format!("it cannot be reached ({how})") }
    }

    /// What the words of a git that failed, or of a command at upstream, mean.
    pub(crate) fn of(words: &str) -> Self {
        let has = |part: &str| words.contains(part);
        let (kind, meaning) = if has("Authentication failed for")
            || has("could not read Username")
            || has("could not read Password")
        {
            (FaultKind::Refused, "it does not accept the gate's token")
        } else if has("SSL certificate problem")
            || has("server certificate verification failed")
            || has("SSL: no alternative certificate")
        {
            (FaultKind::Refused, "its certificate is not one that the gate trusts")
        } else if has("unable to update url base from redirection")
            || has("The requested URL returned error: 30")
        {
            (
                FaultKind::Refused,
                "it redirects elsewhere; the operator names the address where it lives in repos.yaml",
            )
        } else if has("Could not resolve host") {
            (FaultKind::Unreachable, "its name cannot be resolved")
        } else if has("Connection refused")
            || has("Failed to connect")
            || has("timed out")
            || has("Operation too slow")
            || has("No route to host")
            || has("Network is unreachable")
            || has("Connection reset by")
        {
            (FaultKind::Unreachable, "it cannot be reached")
        } else {
            return Self::refused(last_lines(words));
        };
        Self { kind, words: format!("{meaning} ({})", telling_line(words)) }
    }
}

fn last_lines(words: &str) -> String {
    let lines: Vec<&str> = words.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    lines[lines.len().saturating_sub(4)..].join("; ")
}

/// The first line that says something definite.
fn telling_line(words: &str) -> &str {
    let lines = || words.lines().map(str::trim).filter(|line| !line.is_empty());
    lines().find(|line| line.contains("fatal: ")).or_else(|| lines().next()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_a_git_are_told_by_their_meaning() {
        let words = "fatal: unable to access 'https://h/p': Could not resolve host: h\n";
        insta::assert_snapshot!(Fault::of(words).words, @"its name cannot be resolved (fatal: unable to access 'https://h/p': Could not resolve host: h)");
        assert_eq!(Fault::of(words).kind, FaultKind::Unreachable);
        insta::assert_snapshot!(Fault::of("fatal: '/x' does not appear to be a git repository\n").words, @"fatal: '/x' does not appear to be a git repository");
    }
}
