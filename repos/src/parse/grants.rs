//! What approvals add beside the repositories: refs that may be pushed for a while, and pushes that may pass once.

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::{RawRepo, Reader, Repo};
use crate::grant::{Exception, Release};
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

/// The longest name of a rule.
const RULE_MAX_BYTES: usize = 64;
const FINGERPRINT_DIGITS: usize = 32;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawException {
    repo: Spanned<String>,
    rule: Spanned<String>,
    fingerprint: Spanned<String>,
    expires_at: Spanned<String>,
    max_uses: Option<Spanned<u64>>,
    grant: Spanned<String>,
}

impl Reader<'_> {
    /// Without `max_uses` it is for one push.
    pub(super) fn exception(&mut self, raw: &RawException, written: &[RawRepo]) -> Option<Exception> {
        let repo = self.take(&raw.repo, RepoName::parse(&raw.repo.value));
        let mut grant = self.grant(Some(&raw.expires_at), raw.max_uses.as_ref(), Some(&raw.grant));
        grant.max_uses = grant.max_uses.or(Some(1));
        let RawException { rule, fingerprint, .. } = raw;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if !(1..=RULE_MAX_BYTES).contains(&rule.value.len()) || !rule.value.bytes().all(plain) {
            return self.fault(rule.referenced, "`rule` is the name of a rule".into());
        }
        if fingerprint.value.len() != FINGERPRINT_DIGITS || !fingerprint.value.bytes().all(is_digit) {
            return self.fault(
                fingerprint.referenced,
                "`fingerprint` is 32 hexadecimal digits, as the refused push has it".into(),
            );
        }
        if !written.iter().any(|repo| repo.name.value == raw.repo.value) {
            self.note(
                raw.repo.referenced,
                format!("there is no repository `{}`", raw.repo.value.escape_debug()),
            );
        }
        let (rule, fingerprint) = (rule.value.clone(), fingerprint.value.clone());
        Some(Exception { repo: repo?, rule, fingerprint, grant })
    }

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
        let digits = raw.digest.value.strip_prefix("sha256:").unwrap_or_default();
        if digits.len() != 64 || !digits.bytes().all(is_digit) {
            return self.fault(
                raw.digest.referenced,
                "`digest` is `sha256:` and 64 hexadecimal digits, as the held push has it".into(),
            );
        }
        Some(Release { digest: raw.digest.value.clone(), grant })
    }
}

fn is_digit(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}
