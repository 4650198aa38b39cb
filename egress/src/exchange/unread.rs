//! A head that hyper did not take for a request and answered by itself, without a body.

use std::sync::Arc;

use policy::Scheme;

use super::{Judged, Via};
use crate::front::{Connection, HEAD_LIMIT};
use crate::refusal::{Code, Refusal, Subject};

/// Records what ended a connection, where that was a head.
pub(crate) async fn record(connection: &Connection, via: &Via, error: &hyper::Error) {
    if !error.is_parse() {
        return;
    }
    let hint = if error.is_parse_too_large() {
        format!("the head of the request is too large: at most 100 headers and {HEAD_LIMIT} bytes")
    } else {
        "the head of the request is not HTTP/1.1".to_owned()
    };
    let refusal = Refusal::new(Code::MalformedRequest, hint).because(error);
    let proxy = &connection.proxy;
    if let Ok(mut judged) = Judged::begin(proxy, Arc::clone(&proxy.snapshot()), subject(via)).await {
        judged.refuse(&refusal);
        judged.entry.event.status = status(error);
    }
}

/// What hyper answered; nothing to who goes on as if it were HTTP/2. That it was the target that is too large (414) is not told.
fn status(error: &hyper::Error) -> Option<u16> {
    if error.is_parse_version_h2() {
        return None;
    }
    Some(if error.is_parse_too_large() { 431 } else { 400 })
}

/// What is known without the request.
fn subject(via: &Via) -> Subject {
    let (scheme, host, port) = match via {
        Via::Tunnel(endpoint, _) => (endpoint.scheme, endpoint.host.as_str(), endpoint.port),
        Via::Plain => (Scheme::Http, "", 0),
        Via::LedHere(port) => (Scheme::Http, "", *port),
    };
    Subject { scheme: scheme.as_str(), host: host.to_owned(), port, ..Subject::default() }
}
