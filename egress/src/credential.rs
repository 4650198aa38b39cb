//! Credentials: the agent's are taken out of a request, the route's are put in. The only module that opens a [`Secret`].

mod json;
mod knowns;
pub(crate) mod placeholder;
pub(crate) mod rewrite;
mod secret;
mod store;

pub(crate) use knowns::{Knowns, Lookout};
pub use secret::Secret;
pub use store::SecretStore;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use policy::{AgentCredentials, AuthScheme, Credential};

use crate::headers;
use placeholder::Substitution;
pub use placeholder::{Placeholder, PlaceholderError};
use rewrite::Rewriter;

/// Headers that carry a credential of the agent's own. Documented in docs/credentials.md.
pub const CREDENTIAL_HEADERS: &[&str] = &[
    "api-key",
    "apikey",
    "authorization",
    "deploy-token",
    "dpop",
    "job-token",
    "ocp-apim-subscription-key",
    "private-token",
    "x-access-token",
    "x-amz-security-token",
    "x-api-key",
    "x-api-token",
    "x-auth-key",
    "x-auth-token",
    "x-figma-token",
    "x-functions-key",
    "x-gitlab-token",
    "x-goog-api-key",
    "x-goog-iam-authorization-token",
    "x-honeycomb-team",
    "x-ms-authorization-auxiliary",
    "x-rapidapi-key",
    "x-session-token",
    "x-shopify-access-token",
    "x-subscription-token",
    "x-vault-token",
];

/// Query keys that carry a credential of the agent's own.
pub const CREDENTIAL_QUERY_KEYS: &[&str] = &[
    "access_key",
    "access_token",
    "api-key",
    "api_key",
    "apikey",
    "app_key",
    "auth",
    "auth_token",
    "authorization",
    "client_secret",
    "key",
    "password",
    "private_token",
    "secret",
    "sig",
    "signature",
    "subscription-key",
    "token",
    "x-amz-credential",
    "x-amz-security-token",
    "x-amz-signature",
    "x-goog-credential",
    "x-goog-signature",
];

/// Why a credential cannot be put into a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// The secret has a byte that a header cannot carry.
    #[error("the secret cannot be the value of a header")]
    NotAHeaderValue,
    /// The secret for `basic` is not `user:password`.
    #[error("the secret for `basic` must be `user:password`")]
    NotAPair,
    /// The secret is to be the user of a pair, and has the colon that ends it.
    #[error("the secret has a colon and cannot be the user of `basic`")]
    NotAUser,
    /// The secret is to be a string of JSON, and is no text.
    #[error("the secret is not text")]
    NotText,
    /// Nothing is in it.
    #[error("the secret is empty")]
    Empty,
}

/// What goes out in place of what the agent sent.
pub(crate) struct Exchanged {
    pub(crate) query: Option<String>,
    /// What replaces the placeholder in the body.
    pub(crate) body: Option<Rewriter>,
    /// What replaces it in the messages, where the request opens a WebSocket.
    pub(crate) messages: Option<Rewriter>,
}

/// Takes the agent's credentials out and puts `secret` in: where the placeholder stands at a position of the route, and as the
/// route's scheme says.
pub(crate) fn exchange(
    what: AgentCredentials,
    wanted: &Credential,
    placeholder: &Placeholder,
    secret: &Secret,
    headers: &mut HeaderMap,
    query: Option<&str>,
) -> Result<Exchanged, Error> {
    if secret.open().is_empty() {
        return Err(Error::Empty);
    }
    let positions = &wanted.placeholder_in;
    let substitution = Substitution { positions, word: placeholder.word(), secret };
    let replaced = substitution.headers(headers)?;
    let body = substitution.body(headers)?;
    let messages = substitution.messages()?;
    let (kept, rest) = split_query(query, &substitution);
    let mut query = strip(what, headers, rest.as_deref());
    for (name, value) in replaced {
        headers::remove_all(headers, |other| headers::reads_as(other, name.as_str()));
        headers.insert(name, value);
    }
    for pair in kept {
        query = Some(query.map_or_else(|| pair.clone(), |query| format!("{query}&{pair}")));
    }
    if let Some(scheme) = &wanted.scheme {
        query = inject(scheme, secret, headers, query)?;
    }
    Ok(Exchanged { query, body, messages })
}

/// The pairs in which the placeholder was replaced, and the query without them.
fn split_query(query: Option<&str>, substitution: &Substitution<'_>) -> (Vec<String>, Option<String>) {
    if substitution.positions.is_empty() {
        return (Vec::new(), query.map(str::to_owned));
    }
    let mut kept = Vec::new();
    let rest: Vec<&str> = query
        .into_iter()
        .flat_map(|query| query.split('&'))
        .filter(|pair| match substitution.query_pair(pair) {
            Some(replaced) => {
                kept.push(replaced);
                false
            }
            None => true,
        })
        .collect();
    (kept, (!rest.is_empty()).then(|| rest.join("&")))
}

/// Takes the agent's credentials out of the headers, and gives the query without them.
pub(crate) fn strip(what: AgentCredentials, headers: &mut HeaderMap, query: Option<&str>) -> Option<String> {
    match what {
        AgentCredentials::TakenOut => {
            headers::remove_all(headers, |name| headers::reads_as_one_of(name, CREDENTIAL_HEADERS));
            without_keys(query, |key| {
                CREDENTIAL_QUERY_KEYS.iter().any(|listed| key.eq_ignore_ascii_case(listed))
            })
        }
        AgentCredentials::AuthorizationTakenOut => {
            headers.remove(AUTHORIZATION);
            query.map(str::to_owned)
        }
        AgentCredentials::Passed => query.map(str::to_owned),
    }
}

/// Puts `secret` where `scheme` says, in place of whatever the agent had put there, and gives the new query.
fn inject(
    scheme: &AuthScheme,
    secret: &Secret,
    headers: &mut HeaderMap,
    query: Option<String>,
) -> Result<Option<String>, Error> {
    let value = secret.open();
    if value.is_empty() {
        return Err(Error::Empty);
    }
    match scheme {
        AuthScheme::Bearer => set(headers, AUTHORIZATION, &[b"Bearer ", value])?,
        AuthScheme::Token => set(headers, AUTHORIZATION, &[b"token ", value])?,
        AuthScheme::Basic => {
            if !value.contains(&b':') {
                return Err(Error::NotAPair);
            }
            let encoded = zeroize::Zeroizing::new(BASE64_STANDARD.encode(value));
            set(headers, AUTHORIZATION, &[b"Basic ", encoded.as_bytes()])?;
        }
        AuthScheme::Header(name) => set(headers, name.clone(), &[value])?,
        AuthScheme::Query(key) => {
            let mut query = without_keys(query.as_deref(), |named| named == key).unwrap_or_default();
            if !query.is_empty() {
                query.push('&');
            }
            escape(&mut query, key.as_bytes());
            query.push('=');
            escape(&mut query, value);
            return Ok(Some(query));
        }
    }
    Ok(query)
}

fn set(headers: &mut HeaderMap, name: HeaderName, parts: &[&[u8]]) -> Result<(), Error> {
    let bytes = zeroize::Zeroizing::new(parts.concat());
    let mut value = HeaderValue::from_bytes(&bytes).map_err(|_| Error::NotAHeaderValue)?;
    value.set_sensitive(true);
    headers::remove_all(headers, |other| headers::reads_as(other, name.as_str()));
    headers.insert(name, value);
    Ok(())
}

/// The query without the pairs whose decoded key is named; what stays, stays byte for byte.
fn without_keys(query: Option<&str>, named: impl Fn(&str) -> bool) -> Option<String> {
    let kept = query?
        .split('&')
        .filter(|pair| {
            // Some servers take `;` for a separator too: a pair is dropped when any of its parts is named.
            !pair.split(';').any(|part| named(&unescape(part.split('=').next().unwrap_or_default())))
        })
        .collect::<Vec<_>>();
    if kept.is_empty() { None } else { Some(kept.join("&")) }
}

fn unescape(text: &str) -> String {
    String::from_utf8_lossy(&percent_decode(&text.replace('+', " "))).trim().to_owned()
}

/// `%` and two hexadecimal digits are a byte; everything else is itself.
pub(crate) fn percent_decode(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let escaped = match after {
            [high, low, ..] if *first == b'%' => digit(*high).zip(digit(*low)),
            _ => None,
        };
        match escaped {
            Some((high, low)) => {
                bytes.push(high << 4 | low);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// Writes `bytes` as a part of a query.
pub(crate) fn escape(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            text.push(char::from(*byte));
        } else {
            text.push('%');
            text.push_str(&format!("{byte:02X}"));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn injected(scheme: AuthScheme, secret: &str, query: Option<&str>) -> (HeaderMap, Option<String>) {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer agent"));
        let secret = Secret::new(secret.as_bytes().to_vec());
        let query = inject(&scheme, &secret, &mut headers, query.map(str::to_owned)).unwrap();
        (headers, query)
    }

    #[test]
    fn each_scheme_puts_the_secret_in_its_place() {
        assert_eq!(injected(AuthScheme::Bearer, "s3", None).0[AUTHORIZATION], "Bearer s3");
        assert_eq!(injected(AuthScheme::Token, "s3", None).0[AUTHORIZATION], "token s3");
        assert_eq!(injected(AuthScheme::Basic, "me:s3", None).0[AUTHORIZATION], "Basic bWU6czM=");
        let name = HeaderName::from_static("x-api-key");
        assert_eq!(injected(AuthScheme::Header(name.clone()), "s3", None).0[name], "s3");
        let query = injected(AuthScheme::Query("key".to_owned()), "s 3&", Some("a=1&key=agent&b=2")).1;
        assert_eq!(query.as_deref(), Some("a=1&b=2&key=s%203%26"));
    }

    #[test]
    fn no_other_spelling_of_the_injected_header_stays_beside_it() {
        let name = HeaderName::from_static("x-acme-key");
        let mut headers = HeaderMap::new();
        headers.insert("x_acme_key", HeaderValue::from_static("agent"));
        inject(&AuthScheme::Header(name.clone()), &Secret::new(b"s3".to_vec()), &mut headers, None).unwrap();
        assert_eq!(headers.keys().collect::<Vec<_>>(), [name]);
    }

    #[test]
    fn an_injected_header_is_marked_sensitive() {
        assert!(injected(AuthScheme::Bearer, "s3", None).0[AUTHORIZATION].is_sensitive());
    }

    #[test]
    fn a_secret_that_cannot_be_carried_is_an_error() {
        let headers = &mut HeaderMap::new();
        let secret = |text: &str| Secret::new(text.as_bytes().to_vec());
        assert_eq!(inject(&AuthScheme::Bearer, &secret("a\nb"), headers, None), Err(Error::NotAHeaderValue));
        assert_eq!(inject(&AuthScheme::Basic, &secret("alone"), headers, None), Err(Error::NotAPair));
        assert_eq!(inject(&AuthScheme::Bearer, &secret("\n"), headers, None), Err(Error::Empty));
        assert!(headers.is_empty());
    }

    #[test]
    fn every_listed_place_is_emptied_and_nothing_else() {
        let mut headers = HeaderMap::new();
        for name in CREDENTIAL_HEADERS {
            headers.append(*name, HeaderValue::from_static("agent"));
            headers.append(*name, HeaderValue::from_static("again"));
            let underscored = HeaderName::try_from(name.replace('-', "_")).unwrap();
            headers.append(underscored, HeaderValue::from_static("agent"));
        }
        headers.insert("accept", HeaderValue::from_static("*/*"));
        let query = "q=key&%74oken=a&ACCESS_TOKEN=b&a=1;key=c&page=2&token";
        assert_eq!(
            strip(AgentCredentials::TakenOut, &mut headers, Some(query)).as_deref(),
            Some("q=key&page=2")
        );
        assert_eq!(headers.keys().collect::<Vec<_>>(), ["accept"]);
    }

    #[test]
    fn the_lists_are_sorted_lower_case_and_documented() {
        let documentation = include_str!("../../docs/credentials.md");
        for list in [CREDENTIAL_HEADERS, CREDENTIAL_QUERY_KEYS] {
            assert!(list.is_sorted());
            assert!(list.iter().all(|name| documentation.contains(&format!("`{name}`"))));
            assert!(list.iter().all(|name| *name == name.to_ascii_lowercase()));
        }
    }
}
