//! What approvals add beside the repositories: refs that may be pushed for a while, and pushes that may pass once.

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::{RawRepo, Reader, Repo};
use crate::grant::Release;
use crate::name::RepoName;
use crate::push::GrantedRef;
use crate::refs::RefPattern;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawGranted {
    repo: Spanned<String>,
    #[serde(rename = "ref")]
    name: Spanned<String>,
    expires_at: Spanned<String>,
    max_uses: Option<Spanned<u64>>,
    grant: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRelease {
    digest: Spanned<String>,
    expires_at: Spanned<String>,
    max_uses: Option<Spanned<u64>>,
    grant: Spanned<String>,
}

impl Reader<'_> {
    /// The same as an entry under `push.granted` of that repository.
    pub(super) fn granted(&mut self, raw: &RawGranted, repos: &mut [Repo], written: &[RawRepo]) {
        let name = self.take(&raw.repo, RepoName::parse(&raw.repo.value));
        let pattern = self.take(&raw.name, RefPattern::parse(&raw.name.value));
        let grant = self.grant(Some(&raw.expires_at), raw.max_uses.as_ref(), Some(&raw.grant));
        let (Some(name), Some(pattern)) = (name, pattern) else { return };
        match repos.iter_mut().find(|repo| repo.name == name) {
            Some(repo) => repo.push.granted.push(GrantedRef { pattern, grant }),
            // An entry of that name that has faults of its own says so itself.
            None if written.iter().any(|repo| repo.name.value == raw.repo.value) => {}
            None => self.note(raw.repo.referenced, format!("there is no repository `{name}`")),
        }
    }

    /// Without `max_uses` it is for one push.
    pub(super) fn release(&mut self, raw: &RawRelease) -> Option<Release> {
        let mut grant = self.grant(Some(&raw.expires_at), raw.max_uses.as_ref(), Some(&raw.grant));
        grant.max_uses = grant.max_uses.or(Some(1));
        let hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let digits = raw.digest.value.strip_prefix("sha256:").unwrap_or_default();
        if digits.len() != 64 || !digits.bytes().all(hex) {
            return self.fault(
                raw.digest.referenced,
                "`digest` is `sha256:` and 64 hexadecimal digits, as the held push has it".into(),
            );
        }
        Some(Release { digest: raw.digest.value.clone(), grant })
    }
}
