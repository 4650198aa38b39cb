//! Every answer that is not upstream's own: the stable codes and their form.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, Method, Response, StatusCode};
use hudsucker::Body;
use policy::Denial;
use serde::Serialize;

use crate::authority;
use crate::except::Named;
use crate::tls::{hex, random};

/// Carries the code of a refusal.
const DENIED: HeaderName = HeaderName::from_static("x-bottlecap-denied");
/// Carries the code of a failure that is not a refusal.
const FAILED: HeaderName = HeaderName::from_static("x-bottlecap-failed");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// What an agent can do about a refusal by policy.
const PROPOSE: &str = "mcp tool propose_route";
/// What it can do about something that was found.
const PROPOSE_EXCEPTION: &str = "mcp tool propose_capability, with dlp_exception and the fingerprint";

/// Why there is no answer from upstream. The words are stable; docs/denials.md lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The policy refused the request.
    Policy(policy::Code),
    /// The head of a request is not HTTP/1.1, or too large.
    MalformedRequest,
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
    /// The route has had its requests for now.
    RateLimit,
    /// The route answers as many requests as it may at once.
    ConcurrencyLimit,
    /// The route has as many connections to upstream as it may have, or the bottle as many to us.
    ConnectionLimit,
    /// The body is larger than the route allows.
    BodyTooLarge,
    /// The body of the request broke off, or is not framed as it says.
    MalformedBody,
    /// The journal cannot be written, so nothing may go out.
    AuditUnavailable,
    /// What leaves holds a secret.
    SecretDetected,
    /// What leaves cannot be searched for secrets.
    ContentUninspectable,
    /// Upstream sends a secret back too often.
    SecretReflected,
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
    Code::MalformedRequest,
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
    Code::RateLimit,
    Code::ConcurrencyLimit,
    Code::ConnectionLimit,
    Code::BodyTooLarge,
    Code::SecretDetected,
    Code::ContentUninspectable,
    Code::SecretReflected,
    Code::MalformedBody,
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
            Code::MalformedRequest => "malformed-request",
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
            Code::RateLimit => "rate-limit",
            Code::ConcurrencyLimit => "concurrency-limit",
            Code::ConnectionLimit => "connection-limit",
            Code::BodyTooLarge => "body-too-large",
            Code::SecretDetected => "secret-detected",
            Code::ContentUninspectable => "content-uninspectable",
            Code::SecretReflected => "secret-reflected",
            Code::MalformedBody => "malformed-body",
            Code::AuditUnavailable => "audit-unavailable",
            Code::UpstreamUnresolved => "upstream-unresolved",
            Code::UpstreamUnreachable => "upstream-unreachable",
            Code::UpstreamTls => "upstream-tls",
            Code::UpstreamTimeout => "upstream-timeout",
            Code::UpstreamFailed => "upstream-failed",
            Code::Internal => "internal",
        }
    }

    /// Whether it may be the answer to a request of which something has left: not where no connection was had.
    pub(crate) fn may_come_late(self) -> bool {
        !matches!(self, Code::Policy(policy::Code::AddressNotAllowed) | Code::ConnectionLimit)
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
            | Code::CredentialUnavailable
            | Code::SecretDetected
            | Code::ContentUninspectable
            | Code::SecretReflected => StatusCode::FORBIDDEN,
            Code::RateLimit | Code::ConcurrencyLimit | Code::ConnectionLimit => StatusCode::TOO_MANY_REQUESTS,
            Code::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Code::MalformedRequest | Code::MalformedBody => StatusCode::BAD_REQUEST,
            Code::AuditUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            Code::UpstreamUnresolved
            | Code::UpstreamUnreachable
            | Code::UpstreamTls
            | Code::UpstreamFailed => StatusCode::BAD_GATEWAY,
            Code::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
            Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Whether it was decided here that this may not be, and not that it went wrong.
    pub(crate) fn is_refusal(self) -> bool {
        matches!(
            self.status(),
            StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS | StatusCode::PAYLOAD_TOO_LARGE
        )
    }

    /// Which side of a failure failed.
    fn failed_side(self) -> Option<&'static str> {
        match self {
            Code::UpstreamUnresolved
            | Code::UpstreamUnreachable
            | Code::UpstreamTls
            | Code::UpstreamTimeout
            | Code::UpstreamFailed => Some("upstream"),
            Code::MalformedRequest | Code::MalformedBody => Some("client"),
            Code::AuditUnavailable | Code::Internal => Some("egress"),
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
            | Code::CredentialUnavailable
            | Code::RateLimit
            | Code::ConcurrencyLimit
            | Code::ConnectionLimit
            | Code::BodyTooLarge
            | Code::SecretDetected
            | Code::ContentUninspectable
            | Code::SecretReflected => None,
        }
    }

    /// The status of gRPC that says the same.
    fn grpc_status(self) -> &'static str {
        match self.status() {
            StatusCode::FORBIDDEN => "7",
            StatusCode::TOO_MANY_REQUESTS | StatusCode::PAYLOAD_TOO_LARGE => "8",
            StatusCode::GATEWAY_TIMEOUT => "4",
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => "14",
            _ => "13",
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
                    | policy::Code::GrantUsedUp
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

/// The form in which the client can read our answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Form {
    /// A body of JSON.
    #[default]
    Json,
    /// A gRPC status in headers alone.
    Grpc,
}

impl Form {
    /// As method and content type of the request have it.
    pub(crate) fn of(method: &Method, headers: &HeaderMap) -> Form {
        let content_type = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
        let grpc = method == Method::POST && content_type.starts_with(b"application/grpc");
        if grpc { Form::Grpc } else { Form::Json }
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
    pub(crate) form: Form,
}

/// One refusal, or one failure that is told in the same form.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) code: Code,
    pub(crate) hint: String,
    pub(crate) block_id: String,
    /// When it is worth trying again, in seconds.
    pub(crate) retry_after: Option<u64>,
    /// For our log alone.
    pub(crate) cause: Option<String>,
    /// What was found, where it has a name.
    pub(crate) finding: Option<Box<Named>>,
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
    failed: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    propose: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finding: Option<AnswerFinding<'a>>,
}

#[derive(Serialize)]
struct AnswerFinding<'a> {
    rule: &'a str,
    position: &'a str,
    fingerprint: String,
}

impl Refusal {
    pub(crate) fn new(code: Code, hint: impl Into<String>) -> Refusal {
        let block_id = hex(&random::<6>());
        Refusal { code, hint: hint.into(), block_id, retry_after: None, cause: None, finding: None }
    }

    /// The same, about something that was found.
    pub(crate) fn naming(self, finding: Option<Named>) -> Refusal {
        Refusal { finding: finding.map(Box::new), ..self }
    }

    /// The same, with the time after which it is worth trying again.
    pub(crate) fn retry_after(self, wait: Duration) -> Refusal {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        Refusal { retry_after: Some(seconds.max(1)), ..self }
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
        let mut response = match subject.form {
            Form::Json => self.json(subject),
            Form::Grpc => self.grpc(),
        };
        let headers = response.headers_mut();
        let marker = if self.code.is_refusal() { DENIED } else { FAILED };
        headers.insert(marker, HeaderValue::from_static(self.code.as_str()));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }

    /// Trailers-Only, as the gRPC protocol calls it: a client does not read the body of another answer.
    fn grpc(&self) -> Response<Body> {
        let message = format!("{}: {} (block_id {})", self.code, self.hint, self.block_id);
        let mut escaped = String::with_capacity(message.len());
        for byte in message.bytes() {
            match byte {
                b' '..=b'~' if byte != b'%' => escaped.push(char::from(byte)),
                _ => escaped.push_str(&format!("%{byte:02X}")),
            }
        }
        let mut response = Response::new(Body::empty());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(GRPC_STATUS, HeaderValue::from_static(self.code.grpc_status()));
        if let Ok(message) = HeaderValue::from_str(&escaped) {
            headers.insert(GRPC_MESSAGE, message);
        }
        response
    }

    fn json(&self, subject: &Subject) -> Response<Body> {
        let error = AnswerError {
            code: self.code.as_str(),
            host: &subject.host,
            method: &subject.method,
            path: &subject.path,
            block_id: &self.block_id,
            hint: &self.hint,
            failed: self.code.failed_side(),
            propose: self.code.propose().or(self.finding.as_ref().map(|_| PROPOSE_EXCEPTION)),
            finding: self.finding.as_deref().map(|Named { rule, mark, position }| AnswerFinding {
                rule,
                position,
                fingerprint: mark.to_string(),
            }),
        };
        let mut text = serde_json::to_vec(&Answer { error }).expect("strings always have a JSON form");
        text.push(b'\n');
        let length = text.len();
        let mut response = Response::new(Body::from(Bytes::from(text)));
        *response.status_mut() = self.code.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
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
            retry_after: None,
            cause: None,
            finding: None,
        };
        let subject = Subject {
            scheme: "https",
            host: "api.example.com".to_owned(),
            port: 443,
            method: "POST".to_owned(),
            path: "/v1".to_owned(),
            form: Form::Json,
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
    fn a_grpc_client_is_told_in_headers_alone() {
        let refusal = Refusal::new(Code::Policy(policy::Code::MethodNotAllowed), "100 % café\n");
        let response = refusal.answer(&Subject { form: Form::Grpc, ..Subject::default() });
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["grpc-status"], "7");
        let message = response.headers()["grpc-message"].to_str().unwrap();
        assert!(message.starts_with("method-not-allowed: 100 %25 caf%C3%A9%0A (block_id "), "{message}");
        assert_eq!(response.headers()[DENIED], "method-not-allowed");
        assert!(http_body::Body::is_end_stream(response.body()));
    }

    #[test]
    fn a_limit_says_when_to_try_again() {
        let refusal = Refusal::new(Code::RateLimit, "wait").retry_after(Duration::from_millis(1_001));
        let response = refusal.answer(&Subject::default());
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(
            (&response.headers()[RETRY_AFTER], &response.headers()[DENIED]),
            (&HeaderValue::from(2), &HeaderValue::from_static("rate-limit"))
        );
    }

    #[test]
    fn every_code_is_documented() {
        let documentation = include_str!("../../docs/denials.md");
        for code in CODES {
            assert!(documentation.contains(&format!("| `{code}` | {} |", code.status().as_u16())), "{code}");
        }
    }
}
