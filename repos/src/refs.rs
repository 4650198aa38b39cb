//! Patterns over full ref names, with the meaning they have in a refspec.

use std::fmt;

/// The longest name of a ref that is taken.
const NAME_MAX_BYTES: usize = 1024;

/// `refs/heads/main`, or one `*` standing for any non-empty text, slashes included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefPattern(String);

/// Why a pattern is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Not a full ref name.
    #[error("a ref pattern is a full name: it starts with `refs/`")]
    Root,
    /// More than one `*`.
    #[error("a ref pattern has at most one `*` (it stands for any text, slashes included)")]
    Stars,
    /// Something that cannot occur in a ref name.
    #[error("this cannot occur in a ref name")]
    Character,
}

impl RefPattern {
    /// Parses a pattern.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        if !text.starts_with("refs/") {
            return Err(PatternError::Root);
        }
        if text.bytes().filter(|b| *b == b'*').count() > 1 {
            return Err(PatternError::Stars);
        }
        if is_plain(text) { Ok(Self(text.to_owned())) } else { Err(PatternError::Character) }
    }

    /// Whether the pattern covers a full ref name.
    pub fn matches(&self, name: &str) -> bool {
        match self.0.split_once('*') {
            None => self.0 == name,
            Some((before, after)) => {
                name.len() > before.len() + after.len() && name.starts_with(before) && name.ends_with(after)
            }
        }
    }

    /// The pattern as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether a text is the full name of a ref, by the rules of git-check-ref-format(1).
///
/// What is not could be read as something else further on: a `:` would make a refspec of it.
pub(crate) fn is_full_name(text: &str) -> bool {
    text.len() <= NAME_MAX_BYTES && text.starts_with("refs/") && !text.contains('*') && is_plain(text)
}

fn is_plain(text: &str) -> bool {
    let forbidden = |b: u8| b <= b' ' || b == 0x7f || b"~^:?[\\".contains(&b);
    let bad_element =
        |e: &str| e.is_empty() || e.starts_with('.') || e.ends_with('.') || e.ends_with(".lock");
    !text.bytes().any(forbidden)
        && !text.contains("..")
        && !text.contains("@{")
        && !text.split('/').any(bad_element)
}

impl fmt::Display for RefPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> RefPattern {
        RefPattern::parse(text).expect("the test gives a pattern")
    }

    #[test]
    fn a_star_covers_slashes_but_not_nothing() {
        let agent = pattern("refs/heads/agent/*");
        assert!(agent.matches("refs/heads/agent/x"));
        assert!(agent.matches("refs/heads/agent/x/y"));
        assert!(!agent.matches("refs/heads/agent/"));
        assert!(!agent.matches("refs/heads/agent"));
        assert!(!agent.matches("refs/heads/agents/x"));
        assert!(!agent.matches("refs/tags/agent/x"));
        assert!(pattern("refs/heads/*-wip").matches("refs/heads/a-wip"));
    }

    #[test]
    fn what_git_would_not_take_is_refused() {
        assert_eq!(RefPattern::parse("heads/*"), Err(PatternError::Root));
        assert_eq!(RefPattern::parse("refs/*/*"), Err(PatternError::Stars));
        for text in
            ["refs/a b", "refs/a:b", "refs/^a", "refs//a", "refs/a..b", "refs/.a", "refs/", "refs/a.lock"]
        {
            assert_eq!(RefPattern::parse(text), Err(PatternError::Character), "{text}");
        }
    }

    #[test]
    fn a_full_name_is_one_ref_and_nothing_else() {
        assert!(is_full_name("refs/heads/agent/x") && is_full_name("refs/heads/ä"));
        for name in [
            "refs/heads/a:refs/heads/main",
            "+refs/heads/a",
            "refs/heads/*",
            "refs/heads/a b",
            "refs/heads/a\nb",
            "refs/heads/../main",
            "refs/heads/a~1",
            "refs/heads/a^",
            "refs/heads/a@{1}",
            "refs/heads/",
            "HEAD",
            "",
        ] {
            assert!(!is_full_name(name), "{name:?}");
        }
        assert!(!is_full_name(&format!("refs/heads/{}", "a".repeat(NAME_MAX_BYTES))));
    }

    proptest! {
        #[test]
        fn matching_never_panics_and_exact_patterns_match_themselves_only(text in "refs/[a-z*/]{1,12}", name in "\\PC{0,24}") {
            if let Ok(pattern) = RefPattern::parse(&text) {
                let hit = pattern.matches(&name);
                if !text.contains('*') {
                    prop_assert_eq!(hit, text == name);
                }
            }
        }
    }
}
