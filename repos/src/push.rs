//! The decision about one ref of a push.

use crate::refs::{RefPattern, is_full_name};

/// What may be pushed. Everything is refused unless named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushRules {
    pub(crate) allow: Vec<RefPattern>,
    pub(crate) force: bool,
    pub(crate) delete: bool,
    pub(crate) tags: bool,
    pub(crate) max_pack: u64,
}

/// What a push does to a ref.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The ref is new.
    Create,
    /// The new value contains the old one.
    FastForward,
    /// The new value does not contain the old one.
    Rewrite,
    /// The ref goes away.
    Delete,
}

/// Why a ref may not be pushed. The text is meant for the person or agent who pushed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PushDenial {
    /// Not the name of a ref.
    #[error("this is not the name of a ref")]
    Name,
    /// No pattern covers the ref.
    #[error("this ref may not be pushed; allowed: {allowed}")]
    Ref {
        /// The patterns, in words.
        allowed: String,
    },
    /// A rewrite without `force`.
    #[error(
        "this push is not a fast-forward and force is not allowed; fetch, rebase or merge, then push again"
    )]
    Force,
    /// A deletion without `delete`.
    #[error("refs may not be deleted through this gate")]
    Delete,
}

impl PushRules {
    /// Decides one ref.
    pub fn decide(&self, name: &str, change: Change) -> Result<(), PushDenial> {
        if !is_full_name(name) {
            return Err(PushDenial::Name);
        }
        let tag = self.tags && name.starts_with("refs/tags/");
        if !tag && !self.allow.iter().any(|p| p.matches(name)) {
            return Err(PushDenial::Ref { allowed: self.allowed() });
        }
        match change {
            Change::Create | Change::FastForward => Ok(()),
            Change::Rewrite if self.force => Ok(()),
            Change::Rewrite => Err(PushDenial::Force),
            Change::Delete if self.delete => Ok(()),
            Change::Delete => Err(PushDenial::Delete),
        }
    }

    /// Whether anything at all may be pushed.
    pub fn possible(&self) -> bool {
        self.tags || !self.allow.is_empty()
    }

    /// The largest pack that is taken, in bytes.
    pub fn max_pack(&self) -> u64 {
        self.max_pack
    }

    fn allowed(&self) -> String {
        let tags = self.tags.then_some("refs/tags/*");
        let all: Vec<&str> = self.allow.iter().map(RefPattern::as_str).chain(tags).collect();
        if all.is_empty() { "nothing".to_owned() } else { all.join(", ") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(force: bool, delete: bool, tags: bool) -> PushRules {
        let allow = vec![RefPattern::parse("refs/heads/agent/*").expect("a pattern")];
        PushRules { allow, force, delete, tags, max_pack: 1 }
    }

    #[test]
    fn only_named_refs_are_pushed() {
        let rules = rules(false, false, false);
        assert_eq!(rules.decide("refs/heads/agent/x", Change::Create), Ok(()));
        let denial = rules.decide("refs/heads/main", Change::FastForward);
        assert_eq!(denial, Err(PushDenial::Ref { allowed: "refs/heads/agent/*".into() }));
        assert!(rules.decide("refs/tags/v1", Change::Create).is_err());
    }

    #[test]
    fn a_pattern_covers_no_refspec() {
        let denial = rules(true, true, true).decide("refs/heads/agent/x:refs/heads/main", Change::Create);
        assert_eq!(denial, Err(PushDenial::Name));
    }

    #[test]
    fn tags_open_the_tag_names_and_nothing_else() {
        let rules = rules(false, false, true);
        assert_eq!(rules.decide("refs/tags/v1", Change::Create), Ok(()));
        assert_eq!(rules.decide("refs/tags/v1", Change::Rewrite), Err(PushDenial::Force));
        assert!(rules.decide("refs/heads/main", Change::Create).is_err());
    }

    #[test]
    fn rewriting_and_deleting_need_their_own_permission() {
        let name = "refs/heads/agent/x";
        assert_eq!(rules(false, true, false).decide(name, Change::Rewrite), Err(PushDenial::Force));
        assert_eq!(rules(true, false, false).decide(name, Change::Delete), Err(PushDenial::Delete));
        assert_eq!(rules(true, true, false).decide(name, Change::Rewrite), Ok(()));
        assert_eq!(rules(true, true, false).decide(name, Change::Delete), Ok(()));
    }
}
