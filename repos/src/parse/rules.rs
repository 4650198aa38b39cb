//! The keys that say what may be pushed and read.

use std::time::Duration;

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::Reader;
use crate::fetch::{FetchRules, Stale};
use crate::grant::Grant;
use crate::push::{GrantedRef, OnSecret, PushRules};
use crate::refs::RefPattern;

pub(super) const MIB: u64 = 1024 * 1024;
const MAX_PACK_BYTES: u64 = 200 * MIB;
const MAX_PACK_BYTES_MOST: u64 = 16 * 1024 * MIB;
const MAX_FILE_BYTES: u64 = 64 * MIB;
/// An object is judged in memory as a whole.
const MAX_FILE_BYTES_MOST: u64 = 512 * MIB;
const FETCH_DEFAULT: [&str; 2] = ["refs/heads/*", "refs/tags/*"];
const STALE_MOST: Duration = Duration::from_secs(24 * 3600);
const GRANT_MAX_BYTES: usize = 128;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPush {
    #[serde(default)]
    allow: Vec<Spanned<String>>,
    #[serde(default)]
    force: bool,
    #[serde(default)]
    delete: bool,
    #[serde(default)]
    tags: bool,
    #[serde(default)]
    push_options: bool,
    #[serde(default)]
    lfs: bool,
    #[serde(default)]
    opaque: bool,
    max_pack: Option<Spanned<String>>,
    max_file: Option<Spanned<String>>,
    on_secret: Option<Spanned<String>>,
    #[serde(default)]
    author_domains: Vec<Spanned<String>>,
    #[serde(default)]
    granted: Vec<RawGranted>,
    expires_at: Option<Spanned<String>>,
    max_uses: Option<Spanned<u64>>,
    grant: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGranted {
    #[serde(rename = "ref")]
    name: Spanned<String>,
    expires_at: Option<Spanned<String>>,
    max_uses: Option<Spanned<u64>>,
    grant: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawFetch {
    allow: Option<Spanned<Vec<Spanned<String>>>>,
    stale: Option<Spanned<String>>,
}

impl Reader<'_> {
    pub(super) fn push(&mut self, raw: Option<&RawPush>) -> PushRules {
        let Some(raw) = raw else {
            return PushRules::nothing(MAX_PACK_BYTES, MAX_FILE_BYTES);
        };
        let on_secret = match &raw.on_secret {
            Some(word) if word.value == "supervise" => OnSecret::Supervise,
            Some(word) if word.value != "block" => {
                let message =
                    format!("`on_secret` is `block` or `supervise`, not `{}`", word.value.escape_debug());
                self.note(word.referenced, message);
                OnSecret::Block
            }
            Some(_) | None => OnSecret::Block,
        };
        let granted = raw.granted.iter().filter_map(|granted| {
            let pattern = self.take(&granted.name, RefPattern::parse(&granted.name.value));
            let grant =
                self.grant(granted.expires_at.as_ref(), granted.max_uses.as_ref(), granted.grant.as_ref());
            Some(GrantedRef { pattern: pattern?, grant })
        });
        PushRules {
            granted: granted.collect(),
            allow: self.patterns(&raw.allow),
            force: raw.force,
            delete: raw.delete,
            tags: raw.tags,
            push_options: raw.push_options,
            lfs: raw.lfs,
            opaque: raw.opaque,
            max_pack: self.size(raw.max_pack.as_ref(), MAX_PACK_BYTES, MAX_PACK_BYTES_MOST),
            max_file: self.size(raw.max_file.as_ref(), MAX_FILE_BYTES, MAX_FILE_BYTES_MOST),
            on_secret,
            author_domains: raw.author_domains.iter().filter_map(|text| self.domain(text)).collect(),
            grant: self.grant(raw.expires_at.as_ref(), raw.max_uses.as_ref(), raw.grant.as_ref()),
        }
    }

    pub(super) fn fetch(&mut self, raw: Option<&RawFetch>) -> FetchRules {
        let default = || FETCH_DEFAULT.into_iter().filter_map(|p| RefPattern::parse(p).ok()).collect();
        let Some(raw) = raw else {
            return FetchRules { allow: default(), stale: Stale::Refuse };
        };
        let allow = match &raw.allow {
            None => default(),
            Some(list) if list.value.is_empty() => {
                self.note(list.referenced, "`fetch.allow` is empty: nothing could be read".into());
                Vec::new()
            }
            Some(list) => self.patterns(&list.value),
        };
        FetchRules { allow, stale: self.stale(raw.stale.as_ref()) }
    }

    /// The end and the count of a permission. A count needs a name under which it is kept.
    pub(super) fn grant(
        &mut self,
        expires_at: Option<&Spanned<String>>,
        max_uses: Option<&Spanned<u64>>,
        id: Option<&Spanned<String>>,
    ) -> Grant {
        let expires_at = expires_at.and_then(|text| match text.value.parse() {
            Ok(time) => Some(time),
            Err(_) => self.fault(
                text.referenced,
                format!("`{}` is not a time: write it as `2026-12-01T12:00:00Z`", text.value.escape_debug()),
            ),
        });
        let word = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        let is_id = |text: &str| (1..=GRANT_MAX_BYTES).contains(&text.len()) && text.bytes().all(word);
        if let Some(id) = id
            && !is_id(&id.value)
        {
            self.note(id.referenced, "`grant` has letters, digits and `._-` only".into());
        }
        match max_uses {
            Some(uses) if uses.value == 0 => {
                self.note(uses.referenced, "`max_uses` is at least 1".into());
            }
            Some(uses) if id.is_none() => {
                self.note(
                    uses.referenced,
                    "`max_uses` needs `grant: ID`: uses are counted under that name".into(),
                );
            }
            Some(_) | None => {}
        }
        Grant { id: id.map(|id| id.value.clone()), expires_at, max_uses: max_uses.map(|uses| uses.value) }
    }

    fn stale(&mut self, raw: Option<&Spanned<String>>) -> Stale {
        let Some(word) = raw else { return Stale::Refuse };
        if word.value == "refuse" {
            return Stale::Refuse;
        }
        let age = word.value.strip_prefix("allow ").and_then(duration);
        match age.filter(|age| *age <= STALE_MOST) {
            Some(age) => Stale::Allow(age),
            None => {
                let message = format!(
                    "`stale` is `refuse`, or `allow` with an age of at most 24h as in `allow 60s`, not `{}`",
                    word.value.escape_debug()
                );
                self.note(word.referenced, message);
                Stale::Refuse
            }
        }
    }

    fn size(&mut self, raw: Option<&Spanned<String>>, default: u64, most: u64) -> u64 {
        let Some(text) = raw else { return default };
        if let Some(bytes) = bytes(&text.value).filter(|bytes| (1024..=most).contains(bytes)) {
            return bytes;
        }
        let most = if most.is_multiple_of(1024 * MIB) {
            format!("{}GiB", most / MIB / 1024)
        } else {
            format!("{}MiB", most / MIB)
        };
        self.note(
            text.referenced,
            format!("`{}` is not a size from 1KiB to {most}, such as 200MiB", text.value.escape_debug()),
        );
        default
    }

    fn domain(&mut self, raw: &Spanned<String>) -> Option<String> {
        match crate::upstream::host_name(&raw.value) {
            Ok(name) => Some(name),
            Err(_) => self.fault(
                raw.referenced,
                format!("`{}` is not the part of an address after `@`", raw.value.escape_debug()),
            ),
        }
    }

    fn patterns(&mut self, raw: &[Spanned<String>]) -> Vec<RefPattern> {
        raw.iter().filter_map(|text| self.take(text, RefPattern::parse(&text.value))).collect()
    }
}

/// `200MiB` in bytes.
fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let unit = match unit {
        "" | "B" => 1,
        "KiB" => 1024,
        "MiB" => MIB,
        "GiB" => 1024 * MIB,
        _ => return None,
    };
    number.checked_mul(unit)
}

/// `60s`, `10m`, `2h`.
fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    number.checked_mul(unit).filter(|seconds| *seconds > 0).map(Duration::from_secs)
}

fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..digits].parse().ok()?, text[digits..].trim_start()))
}
