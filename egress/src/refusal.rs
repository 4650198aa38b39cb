//! Every answer that is not upstream's own: the stable codes and their form.

use std::fmt;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use hudsucker::Body;
use policy::Denial;
use serde::Serialize;

use crate::authority;
use crate::tls::{hex, random};

/// Carries the code of a refusal.
const DENIED: HeaderName = HeaderName::from_static("x-bottlecap-denied");
/// Carries the code of a failure that is not a refusal.
const FAILED: HeaderName = HeaderName::from_static("x-bottlecap-failed");
/// What an agent can do about a refusal by policy.
const PROPOSE: &str = "mcp tool propose_route";

/// Why there is no answer from upstream. The words are stable; docs/denials.md lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The policy refused the request.
    Policy(policy::Code),
    /// The target is not one that a proxy serves.
    MalformedTarget,
    /// Two places of the request name different hosts.
    AuthorityMismatch,
    /// CONNECT inside a tunnel.
    NestedConnect,
    /// An upgrade to something other than WebSocket.
    UpgradeNotSupported,
    /// A header would have upstream take the request for another.
    OverrideRefused,
    /// The tunnel does not carry TLS.
    TunnelNotTls,
    /// The TLS server name is not the host of the tunnel.
    SniMismatch,
    /// The ClientHello of a passed-through tunnel hides its name.
    EncryptedHello,
    /// The bottle refused our certificate, or its TLS failed otherwise.
    HandshakeFailed,
    /// The secret of the route is not to be had.
    CredentialUnavailable,
    /// The journal cannot be written, so nothing may go out.
    AuditUnavailable,
    /// Upstream's name could not be resolved.
    UpstreamUnresolved,
    /// No connection to upstream.
    UpstreamUnreachable,
    /// Upstream's certificate or TLS is not acceptable.
    UpstreamTls,
    /// Upstream took too long.
    UpstreamTimeout,
    /// Upstream broke off, or did not speak HTTP.
    UpstreamFailed,
    /// Our own fault.
    Internal,
}

/// The codes of this crate, for the documentation and its test.
pub const CODES: &[Code] = &[
    Code::MalformedTarget,
    Code::AuthorityMismatch,
    Code::NestedConnect,
    Code::UpgradeNotSupported,
    Code::OverrideRefused,
    Code::TunnelNotTls,
    Code::SniMismatch,
    Code::EncryptedHello,
    Code::HandshakeFailed,
    Code::CredentialUnavailable,
    Code::AuditUnavailable,
    Code::UpstreamUnresolved,
    Code::UpstreamUnreachable,
    Code::UpstreamTls,
    Code::UpstreamTimeout,
    Code::UpstreamFailed,
    Code::Internal,
];

impl Code {
    /// The word in the answer.
    pub fn as_str(self) -> &'static str {
        match self {
            Code::Policy(code) => code.as_str(),
            Code::MalformedTarget => "malformed-target",
            Code::AuthorityMismatch => "authority-mismatch",
            Code::NestedConnect => "nested-connect",
            Code::UpgradeNotSupported => "upgrade-not-supported",
            Code::OverrideRefused => "override-refused",
            Code::TunnelNotTls => "tunnel-not-tls",
            Code::SniMismatch => "sni-mismatch",
            Code::EncryptedHello => "encrypted-hello",
            Code::HandshakeFailed => "handshake-failed",
            Code::CredentialUnavailable => "credential-unavailable",
            Code::AuditUnavailable => "audit-unavailable",
            Code::UpstreamUnresolved => "upstream-unresolved",
            Code::UpstreamUnreachable => "upstream-unreachable",
            Code::UpstreamTls => "upstream-tls",
            Code::UpstreamTimeout => "upstream-timeout",
            Code::UpstreamFailed => "upstream-failed",
            Code::Internal => "internal",
        }
    }

    /// The status of the answer.
    pub fn status(self) -> StatusCode {
        match self {
            Code::Policy(_)
            | Code::MalformedTarget
            | Code::AuthorityMismatch
            | Code::NestedConnect
            | Code::UpgradeNotSupported
            | Code::OverrideRefused
            | Code::TunnelNotTls
            | Code::SniMismatch
            | Code::EncryptedHello
            | Code::HandshakeFailed
            | Code::CredentialUnavailable => StatusCode::FORBIDDEN,
            Code::AuditUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            Code::UpstreamUnresolved
            | Code::UpstreamUnreachable
            | Code::UpstreamTls
            | Code::UpstreamFailed => StatusCode::BAD_GATEWAY,
            Code::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
            Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn propose(self) -> Option<&'static str> {
        let asks = matches!(
            self,
            Code::Policy(
                policy::Code::HostNotAllowed
                    | policy::Code::PathNotAllowed
                    | policy::Code::MethodNotAllowed
                    | policy::Code::RequestNotAllowed
                    | policy::Code::GrantExpired
            )
        );
        asks.then_some(PROPOSE)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// What was asked for, as far as it was understood.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) scheme: &'static str,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) method: String,
    pub(crate) path: String,
}

/// One refusal, or one failure that is told in the same form.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) code: Code,
    pub(crate) hint: String,
    pub(crate) block_id: String,
    /// For our log alone.
    pub(crate) cause: Option<String>,
}

#[derive(Serialize)]
struct Answer<'a> {
    error: AnswerError<'a>,
}

#[derive(Serialize)]
struct AnswerError<'a> {
    code: &'a str,
    host: &'a str,
    method: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    path: &'a str,
    block_id: &'a str,
    hint: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    propose: Option<&'a str>,
}

impl Refusal {
    pub(crate) fn new(code: Code, hint: impl Into<String>) -> Refusal {
        Refusal { code, hint: hint.into(), block_id: hex(&random::<6>()), cause: None }
    }

    /// The same, with what our log says about it.
    pub(crate) fn because(self, cause: &(dyn std::error::Error + 'static)) -> Refusal {
        let mut text = cause.to_string();
        let mut source = cause.source();
        while let Some(error) = source {
            text = format!("{text}: {error}");
            source = error.source();
        }
        Refusal { cause: Some(text), ..self }
    }

    /// The answer that the agent reads.
    pub(crate) fn answer(&self, subject: &Subject) -> Response<Body> {
        let error = AnswerError {
            code: self.code.as_str(),
            host: &subject.host,
            method: &subject.method,
            path: &subject.path,
            block_id: &self.block_id,
            hint: &self.hint,
            propose: self.code.propose(),
        };
        let mut text = serde_json::to_vec(&Answer { error }).expect("strings always have a JSON form");
        text.push(b'\n');
        let status = self.code.status();
        let marker = if status == StatusCode::FORBIDDEN { DENIED } else { FAILED };
        let mut response = Response::new(Body::from(Bytes::from(text)));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(marker, HeaderValue::from_static(self.code.as_str()));
        response
    }
}

impl From<Denial> for Refusal {
    fn from(denial: Denial) -> Refusal {
        Refusal::new(Code::Policy(denial.code), denial.hint)
    }
}

impl From<authority::Error> for Refusal {
    fn from(error: authority::Error) -> Refusal {
        let code = match error {
            authority::Error::Malformed(_) => Code::MalformedTarget,
            authority::Error::Mismatch(_) => Code::AuthorityMismatch,
        };
        Refusal::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use http_body_util::BodyExt;

    use super::*;

    async fn text(refusal: &Refusal, subject: &Subject) -> (StatusCode, HeaderValue, String) {
        let response = refusal.answer(subject);
        let marker = response.headers().get(DENIED).or(response.headers().get(FAILED)).unwrap().clone();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, marker, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_refusal_reads_as_the_contract_says() {
        let refusal = Refusal {
            code: Code::Policy(policy::Code::MethodNotAllowed),
            hint: "allowed here: GET".to_owned(),
            block_id: "b10c".to_owned(),
            cause: None,
        };
        let subject = Subject {
            scheme: "https",
            host: "api.example.com".to_owned(),
            port: 443,
            method: "POST".to_owned(),
            path: "/v1".to_owned(),
        };
        let (status, marker, text) = text(&refusal, &subject).await;
        assert_eq!((status, marker.to_str().unwrap()), (StatusCode::FORBIDDEN, "method-not-allowed"));
        assert_eq!(
            text,
            "{\"error\":{\"code\":\"method-not-allowed\",\"host\":\"api.example.com\",\"method\":\"POST\",\
             \"path\":\"/v1\",\"block_id\":\"b10c\",\"hint\":\"allowed here: GET\",\
             \"propose\":\"mcp tool propose_route\"}}\n"
        );
    }

    #[tokio::test]
    async fn a_failure_of_upstream_is_not_called_a_refusal() {
        let refusal = Refusal::new(Code::UpstreamUnreachable, "no connection");
        let response = refusal.answer(&Subject::default());
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
        assert!(!response.headers().contains_key(DENIED));
    }

    #[test]
    fn every_code_is_documented() {
        let documentation = include_str!("../../docs/denials.md");
        for code in CODES {
            assert!(documentation.contains(&format!("| `{code}` | {} |", code.status().as_u16())), "{code}");
        }
    }
}
