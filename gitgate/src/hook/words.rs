//! What a `git push` to upstream says, read.

use std::io::{self, Read as _};

use crate::fault::Fault;
use crate::git::printable;
use crate::wire::Update;

const WORDS_MAX_BYTES: u64 = 64 << 10;
/// What git calls it where the lease does not hold, and what that means.
const STALE: &str = "(stale info)";
const STALE_TOLD: &str = "(stale info: upstream has something else there; fetch first)";

/// What a push wrote to its standard error.
#[derive(Default)]
pub(super) struct Words {
    /// Lines of the remote side.
    pub(super) upstream: String,
    /// Lines of git and ssh on this side.
    own: String,
}

pub(super) fn relay(stream: impl io::Read) -> Words {
    let mut words = Words::default();
    let text = bounded_text(&mut { stream });
    for line in text.lines() {
        match line.strip_prefix("remote: ") {
            Some(line) => words.upstream.push_str(&format!("{}\n", line.trim_end())),
            None if line.trim_end() == "remote:" => words.upstream.push('\n'),
            None => words.own.push_str(&format!("{line}\n")),
        }
    }
    words
}

/// Upstream's verdict on each ref, from the output of `git push --porcelain`.
pub(super) fn refused(porcelain: &str) -> Vec<(String, String)> {
    let refused = porcelain.lines().filter_map(|line| line.strip_prefix("!\t"));
    let parts = refused.map(|line| {
        let mut fields = line.splitn(2, '\t');
        let name = fields.next().and_then(|f| f.split_once(':')).map_or("", |(_, name)| name);
        // The name is compared as it is, and made readable only where it is shown.
        (name.to_owned(), printable(fields.next().unwrap_or_default()).replace(STALE, STALE_TOLD))
    });
    parts.collect()
}

/// Whether upstream itself refused each of the refs. Where it ended without a report git says something else.
pub(super) fn said_no_to_all(updates: &[Update], refs: &[(String, String)]) -> bool {
    let no = |verdict: &str| verdict.starts_with("[remote rejected]") || verdict.starts_with("[rejected]");
    updates.iter().all(|update| refs.iter().any(|(name, verdict)| *name == update.name && no(verdict)))
}

/// Upstream's own words, and its verdict on each ref.
pub(super) fn refusal(words: &Words, refs: &[(String, String)]) -> String {
    let mut text = words.upstream.clone();
    for (name, verdict) in refs {
        text.push_str(&format!("git-gate: upstream: {}: {verdict}\n", printable(name)));
    }
    if refs.is_empty() {
        text.push_str(&format!("git-gate: upstream cannot be pushed to: {}\n", Fault::of(&words.own).words));
    }
    text
}

fn bounded_text(stream: &mut impl io::Read) -> String {
    printable(&bounded(stream))
}

/// Text up to a bound; the rest is read and dropped so that the writer does not block.
pub(super) fn bounded(stream: &mut impl io::Read) -> String {
    let mut bytes = Vec::new();
    let _ = stream.take(WORDS_MAX_BYTES).read_to_end(&mut bytes);
    let _ = io::copy(stream, &mut io::sink());
    String::from_utf8_lossy(&bytes).into_owned()
}
