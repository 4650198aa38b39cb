//! WebSockets over HTTP/2 (RFC 8441), seen by the rest of the proxy as the HTTP/1.1 upgrade that they stand for.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use h2::ext::Protocol;
use http::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE,
};
use http::{Method, Request, Response, StatusCode, Version};
use hudsucker::Body;
use sha1::{Digest, Sha1};

use crate::refusal::{Code, Form, Refusal, Subject};
use crate::tls::random;

/// RFC 6455, section 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What the answer to a request has to look like.
pub(crate) enum Shape {
    /// As it is.
    Plain,
    /// To an extended CONNECT.
    Extended {
        /// What upstream has to prove that it understood.
        accept: HeaderValue,
        subject: Subject,
    },
}

/// Turns an extended CONNECT into the GET that upgrades; everything else stays as it is.
pub(crate) fn unfold<B>(mut request: Request<B>) -> (Request<B>, Shape) {
    let Some(protocol) = request.extensions_mut().remove::<Protocol>() else {
        return (request, Shape::Plain);
    };
    let subject = Subject {
        scheme: "https",
        host: request.uri().host().unwrap_or_default().escape_default().to_string(),
        port: request.uri().port_u16().unwrap_or(443),
        method: Method::CONNECT.to_string(),
        path: request.uri().path().escape_default().to_string(),
        form: Form::Json,
    };
    let key = BASE64_STANDARD.encode(random::<16>());
    let accept = accept_of(key.as_bytes());
    // What is not a protocol's name stands for one that is refused.
    let protocol = HeaderValue::from_str(protocol.as_str()).unwrap_or(HeaderValue::from_static("unknown"));
    *request.method_mut() = Method::GET;
    *request.version_mut() = Version::HTTP_11;
    let authority = request.uri().authority().map(|authority| HeaderValue::from_str(authority.as_str()));
    let headers = request.headers_mut();
    if let Some(Ok(authority)) = authority {
        headers.entry(http::header::HOST).or_insert(authority);
    }
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
    if let Ok(key) = HeaderValue::from_str(&key) {
        headers.insert(SEC_WEBSOCKET_KEY, key);
    }
    (request, Shape::Extended { accept, subject })
}

impl Shape {
    /// Gives the answer the form that the request asked for.
    pub(crate) fn fold(self, mut answer: Response<Body>) -> Response<Body> {
        let Shape::Extended { accept, subject } = self else { return answer };
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            if !accepts(answer.headers(), &accept) {
                let hint = "the upstream host did not accept the WebSocket as the protocol asks";
                return Refusal::new(Code::UpstreamFailed, hint).answer(&subject);
            }
            *answer.status_mut() = StatusCode::OK;
            for name in [CONNECTION, UPGRADE, SEC_WEBSOCKET_ACCEPT] {
                answer.headers_mut().remove(name);
            }
        } else if answer.status().is_success() {
            // To the client this would be an open WebSocket.
            let hint = "the upstream host answered without opening a WebSocket";
            return Refusal::new(Code::UpstreamFailed, hint).answer(&subject);
        }
        answer
    }
}

fn accepts(headers: &HeaderMap, accept: &HeaderValue) -> bool {
    let mut values = headers.get_all::<HeaderName>(SEC_WEBSOCKET_ACCEPT).iter();
    values.next() == Some(accept) && values.next().is_none()
}

fn accept_of(key: &[u8]) -> HeaderValue {
    let digest = Sha1::new().chain_update(key).chain_update(GUID).finalize();
    HeaderValue::from_str(&BASE64_STANDARD.encode(digest)).expect("base64 is visible ASCII")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn extended(protocol: &'static str) -> Request<()> {
        let mut request =
            Request::connect("https://api.test/chat").version(Version::HTTP_2).body(()).unwrap();
        request.extensions_mut().insert(Protocol::from_static(protocol));
        request
    }

    #[test]
    fn the_accept_of_the_rfcs_example_key_is_the_rfcs() {
        assert_eq!(accept_of(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn an_extended_connect_is_judged_as_the_get_that_it_stands_for() {
        let (request, _) = unfold(extended("websocket"));
        assert_eq!((request.method(), request.version()), (&Method::GET, Version::HTTP_11));
        assert_eq!(request.headers()[UPGRADE], "websocket");
        assert_eq!(request.headers()[http::header::HOST], "api.test");
        assert_eq!(unfold(extended("connect-udp")).0.headers()[UPGRADE], "connect-udp");
    }

    #[test]
    fn only_an_upgrade_with_the_right_proof_becomes_an_open_stream() {
        let answer = |status: u16, accept: Option<&HeaderValue>| {
            let mut answer = Response::builder().status(status).header(UPGRADE, "websocket");
            if let Some(accept) = accept {
                answer = answer.header(SEC_WEBSOCKET_ACCEPT, accept);
            }
            answer.body(Body::empty()).unwrap()
        };
        let (request, shape) = unfold(extended("websocket"));
        let accept = accept_of(request.headers()[SEC_WEBSOCKET_KEY].as_bytes());
        let opened = shape.fold(answer(101, Some(&accept)));
        assert_eq!(opened.status(), StatusCode::OK);
        assert!(opened.headers().is_empty());
        for (status, accept) in [(101, None), (101, Some(&HeaderValue::from_static("x"))), (200, None)] {
            let (_, shape) = unfold(extended("websocket"));
            assert_eq!(shape.fold(answer(status, accept)).status(), StatusCode::BAD_GATEWAY, "{status}");
        }
        let (_, shape) = unfold(extended("websocket"));
        assert_eq!(shape.fold(answer(403, None)).status(), StatusCode::FORBIDDEN);
    }
}
