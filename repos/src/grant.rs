//! Permissions that end.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::name::RepoName;

/// When and how often a permission holds. The default holds always.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grant {
    pub(crate) id: Option<String>,
    pub(crate) expires_at: Option<Timestamp>,
    pub(crate) max_uses: Option<u64>,
}

/// That a push which is held may pass, as exactly that push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Of the refs and the objects that they become, `sha256:…`.
    pub digest: String,
    /// Until when and how often; once, unless it says otherwise.
    pub grant: Grant,
}

/// That one thing the scanner finds may be pushed to one repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exception {
    /// The repository.
    pub repo: RepoName,
    /// The rule that finds it.
    pub rule: String,
    /// Which of what the rule finds: the name that git-gate gives it, 32 hexadecimal digits.
    pub fingerprint: String,
    /// Until when and in how many pushes; one, unless it says otherwise.
    pub grant: Grant,
}

/// Why a permission no longer holds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantEnd {
    /// Its time is over.
    #[error("this permission ended at {0}; ask for a new one")]
    Expired(Timestamp),
    /// It was used as often as it may be.
    #[error("this permission was for {0} pushes and they are used up; ask for a new one")]
    UsedUp(u64),
}

/// What a decision about grants depends on beside the rules.
#[derive(Debug, Clone)]
pub struct Moment<'a> {
    /// The time.
    pub now: Timestamp,
    /// How often each grant was used.
    pub used: &'a BTreeMap<String, u64>,
}

impl Grant {
    /// Whether it holds at this moment; not any more from the instant of `expires_at` on.
    pub fn holds(&self, moment: &Moment<'_>) -> Result<(), GrantEnd> {
        if let Some(end) = self.expires_at.filter(|end| moment.now >= *end) {
            return Err(GrantEnd::Expired(end));
        }
        let used = self.id.as_ref().and_then(|id| moment.used.get(id)).copied().unwrap_or(0);
        match self.max_uses {
            Some(most) if used >= most => Err(GrantEnd::UsedUp(most)),
            Some(_) | None => Ok(()),
        }
    }

    /// When it ends, if it does.
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.expires_at
    }

    /// The proposal that made it.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The name under which its uses are counted, if they are.
    pub fn counted(&self) -> Option<&str> {
        self.max_uses.and(self.id.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_ends_at_its_instant_and_after_its_last_use() {
        let used = BTreeMap::from([("g".to_owned(), 2)]);
        let at = |text: &str| Moment { now: text.parse().expect("a time"), used: &used };
        let end = "2026-12-01T12:00:00Z";
        let timed = Grant { expires_at: end.parse().ok(), ..Grant::default() };
        assert_eq!(timed.holds(&at("2026-12-01T11:59:59Z")), Ok(()));
        assert_eq!(timed.holds(&at(end)), Err(GrantEnd::Expired(end.parse().expect("a time"))));
        let counted = |max_uses| Grant { id: Some("g".into()), max_uses: Some(max_uses), expires_at: None };
        assert_eq!(counted(3).holds(&at(end)), Ok(()));
        assert_eq!(counted(2).holds(&at(end)), Err(GrantEnd::UsedUp(2)));
        assert_eq!(Grant::default().holds(&at(end)), Ok(()));
    }
}
