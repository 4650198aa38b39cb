//! What egress refused lately, from its journal. It is egress' own word: shown to a person, and nothing is decided on it.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};

use audit::{Decision, Event};
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
    let Ok(records) = audit::replay::<Event>(journal) else { return Vec::new() };
    let mut kept = VecDeque::with_capacity(KEPT);
    for record in records.map_while(Result::ok) {
        let Event::Request(request) = record.event else { continue };
        if request.decision == Decision::Deny && !request.host.is_empty() {
            if kept.len() == KEPT {
                kept.pop_front();
            }
            kept.push_back(Refusal {
                block_id: request.block_id.unwrap_or_default(),
                code: request.code.unwrap_or_default(),
                at: record.time,
                scheme: request.scheme,
                host: request.host,
                port: request.port,
                method: request.method,
                path: request.path,
            });
        }
    }
    kept.into()
}

/// Where the journals of the bundle end; those that hold.
pub(crate) fn tips(home: &Home) -> BTreeMap<String, Tip> {
    let tip = |daemon: &&str| {
        let head = audit::verify(journal(home, daemon)).ok()?;
        Some(((*daemon).to_owned(), Tip { records: head.seq, hash: head.hash.to_string() }))
    };
    DAEMONS.iter().filter_map(tip).collect()
}
