//! The name under which a repository is served.

use std::fmt;

const NAME_MAX: usize = 64;

/// The name of a repository: letters, digits, `.`, `_` and `-`, starting with a letter or digit.
///
/// `.git` never occurs in it. Git's `insteadOf` replaces a prefix, so that a rule for `…/web` also
/// turns `…/website` into `NAME.gitsite`; such a name is nobody's, and the gate refuses it instead
/// of serving another repository.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepoName(String);

/// Why a name is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty or too long.
    #[error("a repository name has 1 to {NAME_MAX} characters")]
    Length,
    /// A character outside the set.
    #[error(
        "a repository name has letters, digits, `.`, `_` and `-` only, and starts with a letter or digit"
    )]
    Character,
    /// A sequence that would be ambiguous as a path.
    #[error("a repository name contains neither `..` nor `.git`; it is served as NAME.git anyway")]
    Reserved,
}

impl RepoName {
    /// Parses a name.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.is_empty() || text.len() > NAME_MAX {
            return Err(NameError::Length);
        }
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if !text.bytes().all(allowed) || !text.as_bytes()[0].is_ascii_alphanumeric() {
            return Err(NameError::Character);
        }
        if text.contains("..") || text.to_ascii_lowercase().contains(".git") {
            return Err(NameError::Reserved);
        }
        Ok(Self(text.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names_are_names() {
        for name in ["a", "acme-web", "acme.web_2", "9lives"] {
            assert_eq!(RepoName::parse(name).map(|n| n.to_string()), Ok(name.to_owned()));
        }
    }

    #[test]
    fn names_that_could_be_paths_or_options_are_refused() {
        assert_eq!(RepoName::parse(""), Err(NameError::Length));
        assert_eq!(RepoName::parse(&"a".repeat(65)), Err(NameError::Length));
        for name in ["-x", ".x", "a/b", "a b", "a%2fb", "ä", "a\0"] {
            assert_eq!(RepoName::parse(name), Err(NameError::Character), "{name:?}");
        }
        for name in ["a..b", "web.git", "web.GITsite"] {
            assert_eq!(RepoName::parse(name), Err(NameError::Reserved), "{name:?}");
        }
    }
}
