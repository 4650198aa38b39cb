//! What a yes would change, worked out from the routes as the bundle has them. The host works it out again before it changes anything.

use std::path::Path;

use anyhow::{Context, bail};
use jiff::Timestamp;
use proposal::peer::Refusal;
use proposal::wire::View;
use proposal::{Ask, Proposal, Table, addition, review};
use serde_json::{Value, json};

use crate::cli::{DaemonArgs, Places};
use crate::daemon;

/// How many refusals a grant is held against.
const REFUSALS: usize = 40;
/// What an answer is tied to is the host's to say.
const NOWHERE: &str = "";

/// Reads what a request is judged by.
pub(super) struct Reviewer<'a> {
    pub(super) places: &'a Places,
    pub(super) args: &'a DaemonArgs,
}

/// What a yes would change.
pub(super) struct Shown {
    pub(super) text: String,
    pub(super) json: Value,
}

impl Reviewer<'_> {
    /// What a yes to the request, or to `scope` in its place, would change.
    pub(super) fn shown(&self, view: &View, scope: Option<&Proposal>, repos: &Path) -> anyhow::Result<Shown> {
        let now = Timestamp::now();
        if let Some(wanted) = scope.or(view.proposal.route()) {
            let review = review(&self.routes()?, &view.id, wanted, NOWHERE, now)?;
            let would = review.would_pass(&self.refusals());
            let json = json!({
                "words": review.difference.to_string(), "difference": review.difference, "breadth": review.breadth,
                "flags": review.flags, "type_host": review.needs_typing, "would_pass": would,
            });
            return Ok(Shown { text: review.told(&would), json });
        }
        let base = match view.proposal.table() {
            None => bail!("request {} is for something that no program can grant", view.id),
            Some(Table::Routes) => self.routes()?,
            Some(table @ Table::Repos) => {
                let path = repos.join(table.file());
                std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?
            }
        };
        let terms = (view.proposal.ttl_seconds(), None);
        let addition = addition(&base, &view.id, &view.proposal, terms, NOWHERE, now)?;
        let json =
            json!({ "words": addition.words, "careful": addition.careful, "file": addition.table.file() });
        Ok(Shown { text: addition.told(), json })
    }

    /// The host that has to be typed for a yes: it gives write access to one that no route leads to.
    pub(super) fn typed(&self, view: &View, scope: Option<&Proposal>) -> anyhow::Result<Option<String>> {
        let asked = match &view.proposal {
            Ask::Route(proposal) => Some(proposal),
            Ask::Capability(_) | Ask::Held(_) => None,
        };
        let Some(wanted) = scope.or(asked) else { return Ok(None) };
        let review = review(&self.routes()?, &view.id, wanted, NOWHERE, Timestamp::now())?;
        Ok(review.needs_typing.then(|| wanted.host().to_string()))
    }

    fn routes(&self) -> anyhow::Result<String> {
        Ok(daemon::sources(self.places, self.args).policy()?.0)
    }

    /// None, when egress' journal cannot be read: it belongs to another user.
    fn refusals(&self) -> Vec<Refusal> {
        let journal = self.places.state_dir.join("audit/egress/journal.jsonl");
        let newest = audit::newest_refusals(journal, REFUSALS);
        newest.iter().filter_map(|(at, request)| Refusal::recorded(*at, request)).collect()
    }
}

/// What a person made of a request.
pub(super) fn edited(file: &Path) -> anyhow::Result<Proposal> {
    let text = if file.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(file)
    };
    let text = text.with_context(|| format!("cannot read {}", file.display()))?;
    let value: Value = serde_json::from_str(&text).context("the edited request is no JSON")?;
    Proposal::parse(&value).context("the edited request cannot be granted")
}

/// Whether the host was named where it has to be.
pub(super) fn check_typed(wanted: Option<&str>, typed: Option<&str>) -> anyhow::Result<()> {
    match wanted {
        Some(host) if typed != Some(host) => {
            bail!(
                "this gives write access to {host}, to which no route leads yet: name it as well, with --host {host}"
            )
        }
        Some(_) | None => Ok(()),
    }
}
