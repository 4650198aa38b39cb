//! What the proxy itself answers, for the host `_egress.local`.

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HOST, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use hudsucker::Body;
use serde::Serialize;

use crate::proxy::Proxy;
use crate::snapshot::Snapshot;

pub(crate) const NAME: &str = "_egress.local";

#[derive(Serialize)]
struct AllowlistAnswer<'a> {
    generation: u64,
    digest: &'a str,
    #[serde(flatten)]
    allowlist: policy::Allowlist,
}

/// Whether the request is for the proxy itself: in absolute form, or in origin form with our name as Host.
pub(crate) fn is_for_us<B>(request: &Request<B>) -> bool {
    match request.uri().authority() {
        Some(authority) => request.uri().scheme_str() == Some("http") && is_our_name(authority.as_str()),
        None => request.headers().get(HOST).and_then(|host| host.to_str().ok()).is_some_and(is_our_name),
    }
}

fn is_our_name(authority: &str) -> bool {
    let name = authority.split_once(':').map_or(authority, |(name, _)| name);
    name.eq_ignore_ascii_case(NAME)
}

/// The effective routes, or the certificate.
pub(crate) fn answer(proxy: &Proxy, snapshot: &Snapshot, method: &Method, uri: &Uri) -> Response<Body> {
    let (content_type, body) = match uri.path() {
        "/allowlist" => {
            let allowlist = snapshot.policy.allowlist(proxy.now());
            let answer =
                AllowlistAnswer { generation: snapshot.generation, digest: &snapshot.digest, allowlist };
            let text = serde_json::to_vec(&answer).expect("an allowlist always has a JSON form");
            ("application/json", Bytes::from(text))
        }
        "/ca.pem" => ("application/x-pem-file", Bytes::from(proxy.leaves.pem().to_owned())),
        _ => return plain(StatusCode::NOT_FOUND, "there is /allowlist and /ca.pem\n"),
    };
    if method != Method::GET && method != Method::HEAD {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}
