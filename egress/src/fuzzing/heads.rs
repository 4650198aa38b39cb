//! What is left of an HTTP/1.1 head once it has been read, bound to a host and made fit to go on.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use http::header::{CONNECTION, HOST};
use http::{HeaderMap, Request, Response, Version};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use policy::{CanonicalPath, Host, Scheme};

use super::Pieces;
use crate::authority::{self, Endpoint};
use crate::headers;

/// What must never reach upstream as the bottle wrote it.
const ENDS_HERE: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
    "expect",
    "host",
];

/// A request of the stream, as the rest of the proxy sees it.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    line: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Option<usize>,
}

/// However a stream of requests is cut the same requests are read from it; and what would go on of each is for one host, has
/// one reading, and nothing that ends at this hop. The first byte is how the stream is cut.
pub fn heads(bytes: &[u8]) {
    let Some((step, stream)) = bytes.split_first() else { return };
    let whole = requests(stream, stream.len().max(1));
    let cut = requests(stream, usize::from(*step).max(1));
    assert_eq!(whole, cut, "{:?}", String::from_utf8_lossy(stream));
}

fn requests(stream: &[u8], step: usize) -> Vec<Read> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let service = service_fn(|request: Request<Incoming>| {
        let seen = Arc::clone(&seen);
        async move {
            let (parts, body) = request.into_parts();
            let mut read = Read {
                line: format!("{} {}", parts.method, parts.uri),
                headers: listed(&parts.headers),
                body: None,
            };
            judge(parts);
            read.body = body.collect().await.ok().map(|body| body.to_bytes().len());
            seen.lock().unwrap_or_else(PoisonError::into_inner).push(read);
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    super::on_a_runtime(async {
        let stream = Pieces { bytes: stream, step };
        let _ = http1::Builder::new().half_close(true).serve_connection(TokioIo::new(stream), service).await;
    });
    Arc::try_unwrap(seen).map(|seen| seen.into_inner().unwrap_or_default()).unwrap_or_default()
}

fn listed(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect()
}

fn judge(mut parts: http::request::Parts) {
    let tunnel = Endpoint {
        scheme: Scheme::Https,
        host: Host::parse("api.example.com").expect("a valid host"),
        port: 443,
    };
    let bound = authority::of_plain(&parts).is_ok() || authority::bind_to_tunnel(&parts, &tunnel).is_ok();
    if !bound || CanonicalPath::of_request(parts.uri.path()).is_err() {
        return;
    }
    // One; or none where HTTP/1.0 has an absolute target: it is given what that says on its way.
    let by_target = parts.version == Version::HTTP_10 && parts.uri.authority().is_some();
    assert!(matches!((parts.headers.get_all(HOST).iter().count(), by_target), (1, _) | (0, true)));
    let nominated: Vec<String> = parts
        .headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    headers::towards_upstream(&mut parts.headers);
    for name in parts.headers.keys() {
        let folded = name.as_str().replace('_', "-");
        assert!(!ENDS_HERE.contains(&folded.as_str()) || folded == "host" && name != HOST, "{name}");
        assert!(
            folded == "content-length" || folded == "te" || !nominated.iter().any(|one| one == name.as_str()),
            "{name}"
        );
    }
    assert!(parts.headers.get_all("content-length").iter().count() <= 1);
    assert!(parts.headers.get_all("cookie").iter().count() <= 1);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    fn line() -> impl Strategy<Value = String> {
        let fixed = [
            "GET http://api.example.com/a HTTP/1.1",
            "POST /a HTTP/1.1",
            "GET /a HTTP/1.0",
            "CONNECT api.example.com:443 HTTP/1.1",
            "Host: api.example.com",
            "Host: other.example.com",
            "Host : api.example.com",
            "Connection: close, X-A",
            "Connection: keep-alive",
            "Transfer-Encoding: chunked",
            "Transfer-Encoding: chunked, x",
            "Content-Length: 3",
            "Content-Length: 03",
            "Content-Length: 3, 3",
            "Keep_Alive: x",
            "Proxy-Authorization: x",
            "TE: trailers",
            "Upgrade: h2c",
            "Expect: 100-continue",
            "X-A: b",
            " folded: x",
            "cookie: a=1",
            "Forwarded: host=x",
            "",
            "",
            "",
            "3",
            "abc",
            "0",
            "3;x=y",
        ];
        prop_oneof![8 => prop::sample::select(fixed.map(str::to_owned).to_vec()), 1 => "[ -~]{0,20}"]
    }

    proptest! {
        #[test]
        fn what_goes_on_of_a_head_has_one_reading_however_it_comes(step in 1_u8..50, lines in prop::collection::vec(line(), 0..20)) {
            super::heads(&[&[step][..], lines.join("\r\n").as_bytes()].concat());
        }
    }

    #[test]
    fn an_absolute_target_of_http_1_0_needs_no_host_and_nothing_else_goes_without_one() {
        let absolute = b"POST http://api.example.com/a HTTP/1.0\r\nHA: b\r\n\r\nabcGET !b HTTP/1.1\r\n\r\n";
        super::heads(&[&[7][..], absolute].concat());
        super::heads(b"\x07GET /a HTTP/1.0\r\n\r\nGET http://api.example.com/a HTTP/1.1\r\n\r\n");
    }

    #[test]
    fn a_stream_of_two_requests_is_read_as_two() {
        let one = b"POST http://api.example.com/a HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: 3\r\n\r\nabc";
        let read = super::requests(&[&one[..], &one[..]].concat(), 7);
        assert_eq!(read.iter().map(|read| read.body).collect::<Vec<_>>(), [Some(3); 2]);
    }
}
