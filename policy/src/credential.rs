//! Where a route's credential comes from and where it goes: names only.

use std::fmt;

use crate::placeholder::Position;

/// The credential a route injects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// How it is put into every request; `None` where it only takes the placeholder's place.
    pub scheme: Option<AuthScheme>,
    /// Where it takes the place of the bottle's placeholder.
    pub placeholder_in: Vec<Position>,
    /// Which secret it is.
    pub secret: SecretRef,
}

/// How a credential is put into the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthScheme {
    /// `authorization: Bearer SECRET`.
    Bearer,
    /// `authorization: token SECRET`.
    Token,
    /// `authorization: Basic BASE64(SECRET)`; the secret is `user:password`.
    Basic,
    /// The secret is the whole value of this header.
    Header(http::HeaderName),
    /// The secret is the value of this query key.
    Query(String),
}

impl fmt::Display for AuthScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AuthScheme::Bearer => f.write_str("bearer"),
            AuthScheme::Token => f.write_str("token"),
            AuthScheme::Basic => f.write_str("basic"),
            AuthScheme::Header(name) => write!(f, "header:{name}"),
            AuthScheme::Query(key) => write!(f, "query:{key}"),
        }
    }
}

/// What happens to the credentials that the agent sends along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentCredentials {
    /// Every header and query key of a fixed list is taken out: where a credential is injected, or by
    /// `own_credential_only: true`.
    TakenOut,
    /// `authorization` alone is taken out: where nothing is injected, or by `own_credential_only: false` where
    /// something is.
    AuthorizationTakenOut,
    /// They go out: by `own_credential_only: false` where nothing is injected.
    Passed,
}

impl AgentCredentials {
    /// As `own_credential_only` says, or as fits a route with or without a credential.
    pub(crate) fn new(
        own_credential_only: Option<bool>,
        credential: Option<&Credential>,
    ) -> AgentCredentials {
        match (own_credential_only, credential) {
            (Some(true), _) | (None, Some(_)) => AgentCredentials::TakenOut,
            (None, None) | (Some(false), Some(_)) => AgentCredentials::AuthorizationTakenOut,
            (Some(false), None) => AgentCredentials::Passed,
        }
    }
}

/// Which secret, by the kind of place it is handed over in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SecretRef {
    /// `token_env`: handed over under the name of an environment variable.
    Env(SecretName),
    /// `token_file`: a file of this name in the secrets directory.
    File(SecretName),
}

impl SecretRef {
    /// The secret's name, whichever kind it is.
    #[must_use]
    pub fn name(&self) -> &SecretName {
        match self {
            SecretRef::Env(name) | SecretRef::File(name) => name,
        }
    }
}

/// The name of a secret: letters, digits, `_`, `-` and `.`, not starting with a dot, so that it is one
/// file name and never a path.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SecretName(String);

/// Why a text does not name a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a secret's name is 1 to 128 letters, digits, `_`, `-` and `.`, not starting with a dot")]
pub struct SecretNameError;

impl SecretName {
    /// The name, when it is one.
    pub fn parse(text: &str) -> Result<SecretName, SecretNameError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
        if text.is_empty() || text.len() > 128 || text.starts_with('.') || !text.bytes().all(allowed) {
            return Err(SecretNameError);
        }
        Ok(SecretName(text.to_owned()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
