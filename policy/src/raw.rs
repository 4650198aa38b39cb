//! `routes.yaml` as serde sees it: every scalar as text with its position, to be judged in `parse`.

use serde::{Deserialize, Deserializer};
use serde_saphyr::Spanned;

pub(crate) type Text = Spanned<String>;

/// For optional fields: a field that is there has a value, so `matches:` with nothing behind it is an error
/// and not the same as no `matches`.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawFile {
    #[serde(default, deserialize_with = "present")]
    pub(crate) log: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) defaults: Option<RawDefaults>,
    #[serde(default)]
    pub(crate) routes: Option<Vec<Spanned<RawRoute>>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) releases: Option<Vec<Spanned<RawRelease>>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) raised: Option<Vec<Spanned<RawRaise>>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) exceptions: Option<Vec<Spanned<RawException>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawException {
    #[serde(default, deserialize_with = "present")]
    pub(crate) host: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) rule: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) fingerprint: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) expires_at: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) max_uses: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) grant: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawRelease {
    #[serde(default, deserialize_with = "present")]
    pub(crate) digest: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) expires_at: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) max_uses: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) grant: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawRaise {
    #[serde(default, deserialize_with = "present")]
    pub(crate) host: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) limit: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) value: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) expires_at: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) grant: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawDefaults {
    #[serde(default, deserialize_with = "present")]
    pub(crate) connect_timeout: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) idle_timeout: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawRoute {
    #[serde(default, deserialize_with = "present")]
    pub(crate) host: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) scheme: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) ports: Option<Spanned<Vec<Text>>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) matches: Option<Spanned<Vec<Spanned<RawMatch>>>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) deny: Option<Spanned<bool>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) path_allowlist: Option<Spanned<Vec<Text>>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) allow_encoded_slashes: Option<Spanned<bool>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) auth_scheme: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) token_env: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) token_file: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) own_credential_only: Option<Spanned<bool>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) git: Option<Spanned<RawGit>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) tls: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) allow_private: Option<Spanned<Vec<Text>>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) parent_resolves: Option<Spanned<bool>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) expires_at: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) grant: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) placeholder_in: Option<Spanned<Vec<Text>>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) dlp: Option<Spanned<RawDlp>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) limits: Option<Spanned<RawLimits>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) max_uses: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawDlp {
    #[serde(default, deserialize_with = "present")]
    pub(crate) outbound_detectors: Option<Vec<Text>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) inbound_detectors: Option<Vec<Text>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) outbound_on_match: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) outbound_uninspectable: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawLimits {
    #[serde(default, deserialize_with = "present")]
    pub(crate) requests_per_minute: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) request_body: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) connections: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) concurrency: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawMatch {
    #[serde(default, deserialize_with = "present")]
    pub(crate) paths: Option<Spanned<Vec<Spanned<RawPath>>>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) methods: Option<Spanned<Vec<Text>>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) headers: Option<Spanned<Vec<Spanned<RawNamed>>>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) query: Option<Spanned<Vec<Spanned<RawNamed>>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawPath {
    #[serde(default, rename = "type", deserialize_with = "present")]
    pub(crate) kind: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) value: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawNamed {
    #[serde(default, deserialize_with = "present")]
    pub(crate) name: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) value: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawGit {
    #[serde(default, deserialize_with = "present")]
    pub(crate) fetch: Option<Spanned<bool>>,
}
