//! What this host decided and did, in its own journal, where the bundle cannot write: from it, and not from what a daemon remembers, the
//! routes of a bottle are made again when it starts.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use proposal::{Ask, Id, Table, Terms};
use serde::{Deserialize, Serialize};

use crate::fault::{Attempted, Fault, chain};
use crate::state::Home;

/// What the host did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Entry {
    /// A person said yes to this. Written before anything else is.
    Decided {
        /// The request.
        id: Id,
        /// Who.
        by: String,
        /// To what.
        scope: Box<Ask>,
        /// How often it can be used, where that is not in the scope itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_uses: Option<NonZeroU32>,
        /// When it ends.
        expires_at: Timestamp,
        /// The file that it was added to.
        base: String,
        /// The file with it.
        digest: String,
        /// What the answer was tied to.
        token: String,
        /// Where the journals of the bundle ended.
        heads: BTreeMap<String, Tip>,
    },
    /// A file with a grant is in force.
    Applied {
        /// The request.
        id: Id,
        /// What was written.
        digest: String,
        /// What egress counts it as.
        generation: u64,
    },
    /// The whole table was replaced by a person.
    Replaced {
        /// What was written.
        digest: String,
        /// What egress counts it as.
        generation: u64,
        /// The grants that stand in it; the others are gone.
        #[serde(default)]
        grants: Vec<Id>,
        /// Where the journals of the bundle ended.
        #[serde(default)]
        heads: BTreeMap<String, Tip>,
    },
    /// They could not be put in force.
    Failed {
        /// The request.
        id: Id,
        /// Why.
        error: String,
    },
    /// A person took it back. Written before the routes are.
    Revoked {
        /// The request.
        id: Id,
        /// Who.
        by: String,
        /// Where the journals of the bundle ended.
        #[serde(default)]
        heads: BTreeMap<String, Tip>,
    },
    /// A person said no.
    Rejected {
        /// To this.
        id: Id,
        /// Who.
        by: String,
        /// Where the journals of the bundle ended.
        #[serde(default)]
        heads: BTreeMap<String, Tip>,
    },
    /// A person takes no more requests, or takes them again.
    Paused {
        /// Which.
        paused: bool,
        /// Who.
        by: String,
        /// Where the journals of the bundle ended.
        #[serde(default)]
        heads: BTreeMap<String, Tip>,
    },
}

impl Entry {
    /// Where the journals of the bundle ended, where that is noted with it.
    pub(crate) fn heads(self) -> BTreeMap<String, Tip> {
        match self {
            Entry::Decided { heads, .. }
            | Entry::Replaced { heads, .. }
            | Entry::Revoked { heads, .. }
            | Entry::Rejected { heads, .. }
            | Entry::Paused { heads, .. } => heads,
            Entry::Applied { .. } | Entry::Failed { .. } => BTreeMap::new(),
        }
    }
}

/// The end of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tip {
    /// How many records.
    pub(crate) records: u64,
    /// The hash of the last.
    pub(crate) hash: String,
}

/// A grant that was put in force and not taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Active {
    pub(crate) id: Id,
    pub(crate) scope: Ask,
    pub(crate) terms: Terms,
}

/// Where the ledger of a bottle is.
pub(crate) fn path(home: &Home) -> PathBuf {
    home.path().join("decisions/journal.jsonl")
}

/// The user of this process, as it is written down.
pub(crate) fn by() -> String {
    format!("uid:{}", nix::unistd::getuid())
}

/// Adds to the ledger, if there is one.
pub(crate) fn keep(ledger: Option<&Path>, entry: &Entry) -> Result<(), Fault> {
    let Some(path) = ledger else { return Ok(()) };
    let told = || format!("cannot write {}", path.display());
    let (journal, _) = audit::Journal::open(path).failing(told)?;
    journal.append(entry, audit::Durability::Synced).failing(told).map(drop)
}

/// The grants that the ledger says are in force at `now`.
pub(crate) fn active(ledger: &Path, now: Timestamp) -> Result<Vec<Active>, Fault> {
    let told = || format!("cannot read {}", ledger.display());
    let records = match audit::replay::<Entry>(ledger) {
        Err(audit::Error::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(Vec::new());
        }
        records => records.failing(told)?,
    };
    let entries = records
        .map(|record| record.map(|record| record.event))
        .collect::<Result<Vec<Entry>, _>>()
        .failing(told)?;
    Ok(in_force(entries, now))
}

fn in_force(entries: Vec<Entry>, now: Timestamp) -> Vec<Active> {
    let mut decided: BTreeMap<Id, Active> = BTreeMap::new();
    let mut applied: Vec<Active> = Vec::new();
    for entry in entries {
        match entry {
            Entry::Decided { id, scope, max_uses, expires_at, .. } => {
                let terms = Terms { expires_at, max_uses };
                decided.insert(id.clone(), Active { id, scope: *scope, terms });
            }
            Entry::Applied { id, .. } => {
                applied.retain(|active| active.id != id);
                applied.extend(decided.remove(&id));
            }
            // The table of routes: it says nothing of repositories.
            Entry::Replaced { grants, .. } => applied
                .retain(|active| active.scope.table() == Some(Table::Repos) || grants.contains(&active.id)),
            Entry::Paused { .. } => {}
            Entry::Failed { id, .. } | Entry::Revoked { id, .. } | Entry::Rejected { id, .. } => {
                decided.remove(&id);
                applied.retain(|active| active.id != id);
            }
        }
    }
    applied.retain(|active| active.terms.expires_at > now);
    applied
}

/// The files that a bottle starts with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Files {
    pub(crate) routes: String,
    pub(crate) repos: String,
}

/// `base`, and what is still granted. Also what was granted and does not fit `base` any more.
pub(crate) fn with_grants(
    mut base: Files,
    home: &Home,
    now: Timestamp,
) -> Result<(Files, Vec<String>), Fault> {
    let mut left_out = Vec::new();
    for Active { id, scope, terms } in active(&path(home), now)? {
        let text = match scope.table() {
            Some(Table::Repos) => &mut base.repos,
            Some(Table::Routes) | None => &mut base.routes,
        };
        match proposal::added(text, &id, &scope, terms) {
            Ok(with) => *text = with,
            Err(error) => {
                let error = chain(&error);
                keep(Some(&path(home)), &Entry::Failed { id: id.clone(), error: error.clone() })?;
                left_out.push(format!("the grant {id} does not fit the configuration any more: {error}"));
            }
        }
    }
    Ok((base, left_out))
}

/// The file without the grants that have ended.
pub(crate) fn without_ended(text: &str, table: Table, now: Timestamp) -> String {
    proposal::ended(text, table, now)
        .iter()
        .fold(text.to_owned(), |text, id| proposal::removed(&text, table, id).ok().flatten().unwrap_or(text))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use policy::append_route;
    use proposal::Proposal;
    use serde_json::json;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn id(name: &str) -> Id {
        Id::parse(name).unwrap()
    }

    fn decided(name: &str, until: i64) -> Entry {
        Entry::Decided {
            id: id(name),
            by: "uid:0".to_owned(),
            scope: Box::new(Ask::parse(&json!({"host": format!("{name}.example"), "reason": "r"})).unwrap()),
            max_uses: None,
            expires_at: at(until),
            base: String::new(),
            digest: String::new(),
            token: String::new(),
            heads: BTreeMap::new(),
        }
    }

    fn applied(name: &str) -> Entry {
        Entry::Applied { id: id(name), digest: String::new(), generation: 2 }
    }

    fn failed(name: &str) -> Entry {
        Entry::Failed { id: id(name), error: "no".to_owned() }
    }

    fn revoked(name: &str) -> Entry {
        Entry::Revoked { id: id(name), by: "uid:0".to_owned(), heads: BTreeMap::new() }
    }

    fn names(entries: &[Entry], now: i64) -> Vec<String> {
        in_force(entries.to_vec(), at(now)).iter().map(|active| active.id.to_string()).collect()
    }

    #[test]
    fn what_was_put_in_force_and_not_taken_back_is_granted_until_it_ends() {
        let entries = [decided("a", 100), applied("a"), decided("b", 50), applied("b")];
        assert_eq!(names(&entries, 10), ["a", "b"]);
        assert_eq!(names(&entries, 50), ["a"]);
        assert_eq!(names(&entries, 100), [""; 0]);
    }

    #[test]
    fn nothing_is_granted_on_half_a_decision() {
        assert_eq!(names(&[decided("a", 100)], 10), [""; 0], "not put in force");
        assert_eq!(names(&[applied("a")], 10), [""; 0], "not decided");
        assert_eq!(names(&[decided("a", 100), failed("a"), applied("a")], 10), [""; 0]);
        assert_eq!(names(&[decided("a", 100), applied("a"), revoked("a")], 10), [""; 0]);
        assert_eq!(names(&[decided("a", 100), applied("a"), revoked("a"), applied("a")], 10), [""; 0]);
        let heads = BTreeMap::new();
        let replaced = Entry::Replaced { digest: String::new(), generation: 3, grants: vec![id("b")], heads };
        let both = [decided("a", 100), applied("a"), decided("b", 100), applied("b"), replaced];
        assert_eq!(names(&both, 10), ["b"], "a person took the other out");
        let again = [decided("a", 100), failed("a"), decided("a", 90), applied("a")];
        assert_eq!(names(&again, 10), ["a"]);
    }

    #[test]
    fn grants_that_ended_leave_the_routes_and_nothing_else_does() {
        let base = "routes:\n  - host: a.example   # ours\n    expires_at: 2020-01-01T00:00:00Z\n";
        let grant = |name: &str, until: i64| {
            Proposal::parse(&json!({"host": "b.example", "reason": "r"}))
                .unwrap()
                .to_grant(&id(name), at(until))
        };
        let with = append_route(&append_route(base, &grant("x", 100)).unwrap(), &grant("y", 200)).unwrap();
        assert_eq!(without_ended(&with, Table::Routes, at(50)), with);
        assert_eq!(
            without_ended(&with, Table::Routes, at(150)),
            append_route(base, &grant("y", 200)).unwrap()
        );
        assert_eq!(without_ended(&with, Table::Routes, at(2_000_000_000)), base);
    }
}
