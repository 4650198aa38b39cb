//! The decision about one ref of a push.

use crate::grant::{Grant, GrantEnd, Moment};
use crate::refs::{RefPattern, is_full_name};

/// Where the gate has refs of its own in a mirror.
const OWN: &str = "refs/git-gate/";

/// What may be pushed. Everything is refused unless named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushRules {
    pub(crate) allow: Vec<RefPattern>,
    pub(crate) granted: Vec<GrantedRef>,
    pub(crate) force: bool,
    pub(crate) delete: bool,
    pub(crate) tags: bool,
    pub(crate) push_options: bool,
    pub(crate) lfs: bool,
    pub(crate) opaque: bool,
    pub(crate) max_pack: u64,
    pub(crate) max_file: u64,
    pub(crate) on_secret: OnSecret,
    pub(crate) author_domains: Vec<String>,
    pub(crate) grant: Grant,
}

/// Refs that may be pushed for a while, or a number of times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GrantedRef {
    pub(crate) pattern: RefPattern,
    pub(crate) grant: Grant,
}

/// What happens to a push with a secret in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnSecret {
    /// It is refused.
    Block,
    /// The operator is asked; until pushes can be held it is refused with words that say so.
    Supervise,
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
    /// A name that the gate keeps for itself.
    #[error("names below {OWN} are the gate's own; push to another name")]
    Own,
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
    /// The permission is over.
    #[error(transparent)]
    Ended(#[from] GrantEnd),
}

impl PushRules {
    pub(crate) fn nothing(max_pack: u64, max_file: u64) -> Self {
        Self {
            allow: Vec::new(),
            granted: Vec::new(),
            force: false,
            delete: false,
            tags: false,
            push_options: false,
            lfs: false,
            opaque: false,
            max_pack,
            max_file,
            on_secret: OnSecret::Block,
            author_domains: Vec::new(),
            grant: Grant::default(),
        }
    }

    /// Decides one ref; the grants that a push of it uses up, by name.
    pub fn decide(&self, name: &str, change: Change, moment: &Moment<'_>) -> Result<Vec<&str>, PushDenial> {
        if !is_full_name(name) {
            return Err(PushDenial::Name);
        }
        if name.starts_with(OWN) {
            return Err(PushDenial::Own);
        }
        let ground = self.ground(name, moment)?;
        match change {
            Change::Create | Change::FastForward => {}
            Change::Rewrite if self.force => {}
            Change::Rewrite => return Err(PushDenial::Force),
            Change::Delete if self.delete => {}
            Change::Delete => return Err(PushDenial::Delete),
        }
        self.grant.holds(moment)?;
        Ok(self.grant.counted().into_iter().chain(ground.and_then(Grant::counted)).collect())
    }

    /// What covers a ref: a pattern that always does, or a grant. A grant that ended is told only where nothing else covers it.
    fn ground(&self, name: &str, moment: &Moment<'_>) -> Result<Option<&Grant>, PushDenial> {
        let tag = self.tags && name.starts_with("refs/tags/");
        if tag || self.allow.iter().any(|p| p.matches(name)) {
            return Ok(None);
        }
        let mut denial = PushDenial::Ref { allowed: self.allowed() };
        for granted in self.granted.iter().filter(|g| g.pattern.matches(name)) {
            match granted.grant.holds(moment) {
                Ok(()) => return Ok(Some(&granted.grant)),
                Err(end) => denial = end.into(),
            }
        }
        Err(denial)
    }

    /// The grants under which refs may be pushed, and that of pushing at all.
    pub fn grants(&self) -> impl Iterator<Item = &Grant> {
        self.granted.iter().map(|granted| &granted.grant).chain([&self.grant])
    }

    /// Whether the rules are the same but for refs that are granted.
    pub fn is_same_but_granted(&self, other: &Self) -> bool {
        Self { granted: Vec::new(), ..self.clone() } == Self { granted: Vec::new(), ..other.clone() }
    }

    /// Whether anything at all may be pushed.
    pub fn possible(&self) -> bool {
        self.tags || !self.allow.is_empty() || !self.granted.is_empty()
    }

    /// Whether the permission to push holds at this moment.
    pub fn holds(&self, moment: &Moment<'_>) -> Result<(), GrantEnd> {
        self.grant.holds(moment)
    }

    /// The largest pack that is taken, in bytes.
    pub fn max_pack(&self) -> u64 {
        self.max_pack
    }

    /// The largest file, commit or tag that is taken, in bytes.
    pub fn max_file(&self) -> u64 {
        self.max_file
    }

    /// What happens to a push with a secret in it.
    pub fn on_secret(&self) -> OnSecret {
        self.on_secret
    }

    /// Whether `git push -o` is passed on.
    pub fn push_options(&self) -> bool {
        self.push_options
    }

    /// Whether pointers to files of git-lfs may be pushed.
    pub fn lfs(&self) -> bool {
        self.lfs
    }

    /// Whether files that cannot be looked into may be pushed: encrypted archives, for one.
    pub fn opaque(&self) -> bool {
        self.opaque
    }

    /// What has to follow `@` in the addresses of authors and committers; empty where any may.
    pub fn author_domains(&self) -> &[String] {
        &self.author_domains
    }

    fn allowed(&self) -> String {
        let tags = self.tags.then_some("refs/tags/*");
        let granted = self.granted.iter().map(|g| &g.pattern);
        let all: Vec<&str> = self.allow.iter().chain(granted).map(RefPattern::as_str).chain(tags).collect();
        if all.is_empty() { "nothing".to_owned() } else { all.join(", ") }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn rules(force: bool, delete: bool, tags: bool) -> PushRules {
        let allow = vec![RefPattern::parse("refs/heads/agent/*").expect("a pattern")];
        PushRules { allow, force, delete, tags, ..PushRules::nothing(1, 1) }
    }

    fn decide(rules: &PushRules, name: &str, change: Change) -> Result<(), PushDenial> {
        let moment = Moment { now: "2026-11-21T12:00:00Z".parse().expect("a time"), used: &BTreeMap::new() };
        rules.decide(name, change, &moment).map(drop)
    }

    #[test]
    fn only_named_refs_are_pushed() {
        let rules = rules(false, false, false);
        assert_eq!(decide(&rules, "refs/heads/agent/x", Change::Create), Ok(()));
        let denial = decide(&rules, "refs/heads/main", Change::FastForward);
        assert_eq!(denial, Err(PushDenial::Ref { allowed: "refs/heads/agent/*".into() }));
        assert!(decide(&rules, "refs/tags/v1", Change::Create).is_err());
    }

    #[test]
    fn a_pattern_covers_no_refspec() {
        let denial = decide(&rules(true, true, true), "refs/heads/agent/x:refs/heads/main", Change::Create);
        assert_eq!(denial, Err(PushDenial::Name));
    }

    #[test]
    fn no_pattern_opens_the_names_of_the_gate() {
        let allow = vec![RefPattern::parse("refs/*").expect("a pattern")];
        let rules = PushRules { allow, ..rules(true, true, true) };
        assert_eq!(decide(&rules, "refs/git-gate/nowhere", Change::Create), Err(PushDenial::Own));
        assert_eq!(decide(&rules, "refs/git-gates", Change::Create), Ok(()));
    }

    #[test]
    fn tags_open_the_tag_names_and_nothing_else() {
        let rules = rules(false, false, true);
        assert_eq!(decide(&rules, "refs/tags/v1", Change::Create), Ok(()));
        assert_eq!(decide(&rules, "refs/tags/v1", Change::Rewrite), Err(PushDenial::Force));
        assert!(decide(&rules, "refs/heads/main", Change::Create).is_err());
    }

    #[test]
    fn rewriting_and_deleting_need_their_own_permission() {
        let name = "refs/heads/agent/x";
        assert_eq!(decide(&rules(false, true, false), name, Change::Rewrite), Err(PushDenial::Force));
        assert_eq!(decide(&rules(true, false, false), name, Change::Delete), Err(PushDenial::Delete));
        assert_eq!(decide(&rules(true, true, false), name, Change::Rewrite), Ok(()));
        assert_eq!(decide(&rules(true, true, false), name, Change::Delete), Ok(()));
    }

    #[test]
    fn a_granted_ref_may_be_pushed_as_long_and_as_often_as_granted() {
        let grant = Grant {
            id: Some("7c0e".into()),
            expires_at: "2026-12-01T12:00:00Z".parse().ok(),
            max_uses: Some(2),
        };
        let pattern = RefPattern::parse("refs/heads/release").expect("a pattern");
        let rules = PushRules { granted: vec![GrantedRef { pattern, grant }], ..rules(false, false, false) };
        let decide = |now: &str, used: u64, name: &str| {
            let used = BTreeMap::from([("7c0e".to_owned(), used)]);
            let moment = Moment { now: now.parse().expect("a time"), used: &used };
            let counted = rules.decide(name, Change::FastForward, &moment)?;
            Ok::<_, PushDenial>(counted.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
        };
        let (before, after) = ("2026-12-01T11:59:59Z", "2026-12-01T12:00:00Z");
        assert_eq!(decide(before, 1, "refs/heads/release"), Ok(vec!["7c0e".to_owned()]));
        assert_eq!(decide(before, 2, "refs/heads/release"), Err(GrantEnd::UsedUp(2).into()));
        assert!(matches!(
            decide(after, 0, "refs/heads/release"),
            Err(PushDenial::Ended(GrantEnd::Expired(_)))
        ));
        assert_eq!(decide(after, 9, "refs/heads/agent/x"), Ok(vec![]));
        assert!(matches!(decide(before, 0, "refs/heads/main"), Err(PushDenial::Ref { .. })));
    }

    #[test]
    fn when_the_permission_to_push_ended_no_ref_may_be_pushed() {
        let grant = Grant { expires_at: "2026-11-21T11:00:00Z".parse().ok(), ..Grant::default() };
        let rules = PushRules { grant, ..rules(false, false, false) };
        let denial = decide(&rules, "refs/heads/agent/x", Change::Create);
        assert!(matches!(denial, Err(PushDenial::Ended(GrantEnd::Expired(_)))));
    }
}
