//! What upstream showed at some moment, and whom it may still be shown to.

use std::sync::Arc;
use std::time::{Duration, Instant};

use repos::{RefPattern, Repo, Upstream};

use crate::listing::Listing;

/// How long what a client was shown counts for what it asks for next in the same conversation.
const CONTINUES: Duration = Duration::from_secs(30);

/// What upstream showed once.
#[derive(Debug)]
pub(crate) struct Listed {
    /// Counts up with each question.
    pub(super) number: u64,
    /// When the question was asked, and answered.
    pub(crate) began: Instant,
    pub(super) ended: Instant,
    /// How many pushes had changed something by then.
    pub(super) pushed: u64,
    pub(super) scope: Scope,
    pub(crate) listing: Arc<Listing>,
    /// Whether it is what the mirror had after upstream had moved on: refs may be in it that upstream had no more.
    pub(super) gathered: bool,
}

impl Listed {
    /// Whether who has to be shown `wanted`, or what came later, may be shown this.
    pub(super) fn serves(&self, wanted: &Listed) -> bool {
        let same = Arc::ptr_eq(&self.listing, &wanted.listing) || self.listing == wanted.listing;
        let is_known = |name: &str| wanted.listing.find(name).is_some();
        let is_later = || {
            self.number >= wanted.number
                && !(self.gathered && self.listing.iter().any(|shown| !is_known(shown.name)))
        };
        self.scope == wanted.scope && (same || is_later())
    }

    /// Whether a request for this repository may still rest on it.
    pub(crate) fn counts(&self, repo: &Repo) -> bool {
        self.ended.elapsed() <= CONTINUES && self.scope == Scope::of(repo)
    }
}

/// What was asked for: after a reload that is something else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scope {
    upstream: Upstream,
    allow: Vec<RefPattern>,
}

impl Scope {
    pub(super) fn of(repo: &Repo) -> Self {
        Self { upstream: repo.upstream.clone(), allow: repo.fetch.allow.clone() }
    }
}

#[cfg(test)]
mod tests {
    use git2::Oid;
    use repos::{FetchRules, Stale};

    use super::*;
    use crate::listing::Gathering;

    fn listed(number: u64, gathered: bool, refs: &[(&str, u8)]) -> Listed {
        let allow: Vec<RefPattern> = RefPattern::parse("refs/heads/*").into_iter().collect();
        let rules = FetchRules { allow: allow.clone(), stale: Stale::Refuse };
        let mut gathering = Gathering::new(&rules);
        for (name, byte) in refs {
            gathering.add(name, Oid::from_bytes(&[*byte; 20]).unwrap(), None).unwrap();
        }
        let listing = Arc::new(gathering.end().unwrap());
        let scope = Scope { upstream: Upstream::File("/upstream.git".into()), allow };
        let (began, ended) = (Instant::now(), Instant::now());
        Listed { number, began, ended, pushed: 0, scope, listing, gathered }
    }

    #[test]
    fn what_was_removed_before_somebody_asked_is_not_shown_to_them() {
        let wanted = listed(2, false, &[("refs/heads/main", 1)]);
        let with_removed = [("refs/heads/leaked", 9), ("refs/heads/main", 2)];
        assert!(!listed(2, true, &with_removed).serves(&wanted));
        assert!(listed(2, true, &[("refs/heads/main", 2)]).serves(&wanted));
        assert!(listed(1, true, &[("refs/heads/main", 1)]).serves(&wanted));
        // Upstream itself was asked later: then the ref is there again.
        assert!(listed(3, false, &with_removed).serves(&wanted));
        assert!(!listed(1, false, &with_removed).serves(&wanted));
    }
}
