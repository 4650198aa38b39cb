//! What egress refused lately, from its journal. It is egress' own word: shown to a person, and nothing is decided on it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proposal::peer::Refusal;

use super::ledger::Tip;
use crate::state::Home;

/// How many a grant is held against.
const KEPT: usize = 40;
/// The daemons that keep a journal.
pub(crate) const DAEMONS: [&str; 3] = ["egress", "git-gate", "supervise"];

/// The journal of a daemon of that bottle.
pub(crate) fn journal(home: &Home, daemon: &str) -> PathBuf {
    home.root().join("var/lib/sidecars/audit").join(daemon).join("journal.jsonl")
}

/// The newest refusals, newest last; none when the journal cannot be read.
pub(crate) fn newest(journal: &Path) -> Vec<Refusal> {
    let newest = audit::newest_refusals(journal, KEPT);
    newest.iter().filter_map(|(at, request)| Refusal::recorded(*at, request)).collect()
}

/// Where the journals of the bundle end, by what they say themselves: `audit verify` compares it with the chain.
pub(crate) fn tips(home: &Home) -> BTreeMap<String, Tip> {
    let tip = |daemon: &&str| {
        let (records, hash) = audit::last(journal(home, daemon))?;
        Some(((*daemon).to_owned(), Tip { records, hash: hash.to_string() }))
    };
    DAEMONS.iter().filter_map(tip).collect()
}
