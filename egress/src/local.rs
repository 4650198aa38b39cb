//! What the proxy itself answers, for the host `_egress.local`.

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HOST, HeaderValue};
use http::{HeaderMap, Method, Response, StatusCode, Uri};
use hudsucker::Body;
use serde::Serialize;

use crate::credential::percent_decode;
use crate::explain::Question;
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
pub(crate) fn is_for_us(uri: &Uri, headers: &HeaderMap) -> bool {
    match uri.authority() {
        Some(authority) => uri.scheme_str() == Some("http") && is_our_name(authority.as_str()),
        None => headers.get(HOST).and_then(|host| host.to_str().ok()).is_some_and(is_our_name),
    }
}

fn is_our_name(authority: &str) -> bool {
    let name = authority.split_once(':').map_or(authority, |(name, _)| name);
    name.eq_ignore_ascii_case(NAME)
}

/// What would be said to a request: `url` and, if it is not GET, `method`.
fn explain(proxy: &Proxy, query: &str) -> Response<Body> {
    let value = |wanted: &str| {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let (_, value) = pairs.into_iter().find(|(key, _)| *key == wanted)?;
        String::from_utf8(percent_decode(&value.replace('+', " "))).ok()
    };
    let Some(url) = value("url") else {
        return plain(
            StatusCode::BAD_REQUEST,
            "name the URL, escaped: /explain?url=https%3A%2F%2Fapi.example.com%2Fv1\n",
        );
    };
    match Question::parse(&value("method").unwrap_or_else(|| "GET".to_owned()), &url, &[]) {
        Ok(question) => {
            let text =
                serde_json::to_vec(&proxy.explain(&question)).expect("an explanation always has a JSON form");
            let mut response = Response::new(Body::from(Bytes::from(text)));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        Err(error) => plain(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

/// The effective routes, the certificate, or an explanation.
pub(crate) fn answer(proxy: &Proxy, snapshot: &Snapshot, method: &Method, uri: &Uri) -> Response<Body> {
    let (content_type, body) = match uri.path() {
        "/allowlist" => {
            let allowlist = snapshot.policy.allowlist(proxy.now());
            let answer =
                AllowlistAnswer { generation: snapshot.generation, digest: &snapshot.digest, allowlist };
            let text = serde_json::to_vec(&answer).expect("an allowlist always has a JSON form");
            ("application/json", Bytes::from(text))
        }
        "/explain" => return explain(proxy, uri.query().unwrap_or_default()),
        "/placeholder" => ("text/plain", Bytes::from(format!("{}\n", proxy.placeholder.word()))),
        "/ca.pem" => ("application/x-pem-file", Bytes::from(proxy.leaves.pem().to_owned())),
        _ => {
            return plain(
                StatusCode::NOT_FOUND,
                "there is /allowlist, /ca.pem, /placeholder and /explain?url=URL&method=METHOD\n",
            );
        }
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

fn plain(status: StatusCode, text: impl Into<String>) -> Response<Body> {
    let mut response = Response::new(Body::from(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}
