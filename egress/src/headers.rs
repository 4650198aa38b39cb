//! Headers that are for one connection only, and do not go through; and how a header's name is read.

use http::StatusCode;
use http::header::{
    CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT, HOST, HeaderMap, HeaderName,
    HeaderValue, TE, TRANSFER_ENCODING, UPGRADE,
};

/// Hop by hop in either direction. `Alt-Svc` would lead the agent past the proxy.
const HOP_BY_HOP: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
    "alt-svc",
    "alt-used",
    "expect",
];

/// Some servers take these for the method, host or target in place of those that were judged. Documented in docs/denials.md.
const OVERRIDES: &[&str] = &[
    "x-http-method-override",
    "x-http-method",
    "x-method-override",
    // Traefik's and nginx's, when they ask another server whether a request may pass.
    "x-forwarded-method",
    "x-original-method",
    "x-original-url",
    "x-rewrite-url",
    "x-original-uri",
    "x-forwarded-uri",
    "x-forwarded-path",
    "x-envoy-original-path",
    // How much of the path is not the application's: for gunicorn, and in recipes for Flask.
    "script-name",
    "x-script-name",
    "x-forwarded-prefix",
    "x-original-host",
    "x-forwarded-host",
    "x-http-host-override",
    "x-host",
    "forwarded",
    "x-forwarded-server",
    // Envoy's clusters of original destinations dial what stands here.
    "x-envoy-original-dst-host",
];

/// Whether some server takes the header `name` for `listed`: CGI and its heirs do not tell `_` from `-`.
pub(crate) fn reads_as(name: &HeaderName, listed: &str) -> bool {
    reads_as_one_of(name, &[listed])
}

/// The same for any of several.
pub(crate) fn reads_as_one_of(name: &HeaderName, listed: &[&str]) -> bool {
    let folded = |byte: &u8| if *byte == b'_' { b'-' } else { *byte };
    let name = name.as_str().as_bytes();
    let same = |other: &&str| {
        other.len() == name.len() && name.iter().map(folded).eq(other.as_bytes().iter().map(folded))
    };
    listed.iter().any(same)
}

/// Takes out every header that `unwanted` names.
pub(crate) fn remove_all(headers: &mut HeaderMap, unwanted: impl Fn(&HeaderName) -> bool) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| unwanted(name)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// The header that asks upstream to take the request for another than the one that is judged.
pub(crate) fn override_of(headers: &HeaderMap) -> Option<&HeaderName> {
    headers.keys().find(|name| reads_as_one_of(name, OVERRIDES))
}

/// Never taken out by being named in `Connection`: their absence would change what the message means, and how it is searched.
const PROTECTED: [HeaderName; 5] = [
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    HeaderName::from_static("grpc-encoding"),
    HeaderName::from_static("connect-content-encoding"),
];
/// What only egress says to the agent begins with it.
const OURS: &str = "x-bottlecap-";

/// Takes out what ends at this hop, and `Host`, which is made anew. `TE: trailers` is kept: gRPC needs it. Cookies become
/// one line, as HTTP/1.1 and a rule for them have it: HTTP/2 lets a client send each alone.
pub(crate) fn towards_upstream(headers: &mut HeaderMap) {
    let trailers = lists(headers, &TE, "trailers");
    hop(headers);
    headers.remove(HOST);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    join_cookies(headers);
}

fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
    {
        headers.insert(COOKIE, joined);
    }
}

/// Takes out of a response, or of its trailers, what ends at this hop, and what upstream would say in our name.
pub(crate) fn towards_agent(headers: &mut HeaderMap) {
    hop(headers);
    remove_all(headers, |name| name.as_str().starts_with(OURS));
}

/// Has an answer with `status` say its length in one way, or not at all: once where it says the same several times; not beside a transfer
/// coding, which counts in its place (RFC 9112, section 6.1), with 1xx and 204, which have none (RFC 9110, section 8.6), or where it says
/// two of a body that is not there. HTTP/2 clients take the rest for an error; what contradicts itself about a body was refused before.
pub(crate) fn settle_length(status: StatusCode, headers: &mut HeaderMap) {
    if !headers.contains_key(CONTENT_LENGTH) {
        return;
    }
    let has_none = status.is_informational() || status == StatusCode::NO_CONTENT;
    let length = if has_none || headers.contains_key(TRANSFER_ENCODING) { None } else { length(headers) };
    match length {
        Some(length) => _ = headers.insert(CONTENT_LENGTH, HeaderValue::from(length)),
        None => _ = headers.remove(CONTENT_LENGTH),
    }
}

/// The one length that all of `Content-Length` names.
pub(crate) fn length(headers: &HeaderMap) -> Option<u64> {
    let mut length = None;
    for line in headers.get_all(CONTENT_LENGTH) {
        for listed in line.to_str().ok()?.split(',') {
            // No sign, which numbers may have elsewhere.
            let digits =
                Some(listed.trim()).filter(|listed| listed.bytes().all(|byte| byte.is_ascii_digit()))?;
            let listed = digits.parse().ok()?;
            if *length.get_or_insert(listed) != listed {
                return None;
            }
        }
    }
    length
}

/// Whether the client waits for leave to send its body, as hyper understands it (RFC 9110, section 10.1.1).
pub(crate) fn expects_leave(headers: &HeaderMap) -> bool {
    headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Whether a body comes in chunks at most. Another transfer coding is not undone here, and ends at this hop: nobody would know of it.
pub(crate) fn is_chunked_at_most(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    codings.next().is_none_or(|coding| {
        coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") && codings.next().is_none()
    })
}

/// The protocol that the message wants to upgrade to, in lower case, when it says so in both places.
pub(crate) fn upgrade(headers: &HeaderMap) -> Option<String> {
    if !lists(headers, &CONNECTION, "upgrade") {
        return None;
    }
    // Two lines are one list (RFC 9110 section 5.3), and no list is `websocket`.
    let lines = headers.get_all(UPGRADE).iter().map(|line| line.to_str().ok().map(str::trim));
    let protocols = lines.collect::<Option<Vec<_>>>()?;
    if protocols.is_empty() { None } else { Some(protocols.join(", ").to_ascii_lowercase()) }
}

/// Asks upstream to upgrade.
pub(crate) fn ask_upgrade(headers: &mut HeaderMap, protocol: &'static str) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(protocol));
}

fn hop(headers: &mut HeaderMap) {
    let nominated: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .filter(|name| !PROTECTED.contains(name))
        .collect();
    remove_all(headers, |name| nominated.contains(name) || reads_as_one_of(name, HOP_BY_HOP));
}

fn lists(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|listed| listed.trim().eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        lines.iter().fold(HeaderMap::new(), |mut headers, (name, value)| {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
            headers
        })
    }

    #[test]
    fn what_is_hop_by_hop_or_nominated_stays_here() {
        let mut request = headers(&[
            ("host", "a"),
            ("connection", "close, X-Hop, te"),
            ("connection", "content-length, Content-Encoding, content-type, grpc-encoding"),
            ("x-hop", "1"),
            ("te", "gzip, trailers"),
            ("proxy-authorization", "Basic x"),
            ("proxy_authorization", "Basic x"),
            ("transfer_encoding", "chunked"),
            ("proxy-connection", "keep-alive"),
            ("upgrade", "h2c"),
            ("http2-settings", "AA"),
            ("content-length", "3"),
            ("content-encoding", "br"),
            ("grpc-encoding", "gzip"),
            ("accept", "*/*"),
        ]);
        towards_upstream(&mut request);
        let stays = [
            ("content-length", "3"),
            ("content-encoding", "br"),
            ("grpc-encoding", "gzip"),
            ("accept", "*/*"),
        ];
        assert_eq!(request, headers(&[&stays[..], &[("te", "trailers")]].concat()));
    }

    #[test]
    fn a_transfer_coding_beside_chunks_is_seen() {
        let coded = |lines: &[&str]| {
            let lines: Vec<_> = lines.iter().map(|line| ("transfer-encoding", *line)).collect();
            !is_chunked_at_most(&headers(&lines))
        };
        assert!(!coded(&[]) && !coded(&["chunked"]) && !coded(&[" Chunked "]));
        for other in [
            &["gzip, chunked"][..],
            &["gzip"],
            &["gzip", "chunked"],
            &["chunked", "chunked"],
            &["identity"],
            &[""],
        ] {
            assert!(coded(other), "{other:?}");
        }
    }

    #[test]
    fn a_length_is_said_once_and_only_where_it_counts() {
        let settled = |status: u16, lines: &[(&str, &str)]| {
            let mut headers = headers(lines);
            settle_length(StatusCode::from_u16(status).unwrap(), &mut headers);
            let left = headers.get_all(CONTENT_LENGTH).iter().map(|line| line.to_str().unwrap().to_owned());
            left.collect::<Vec<_>>().join("|")
        };
        let lengths = |lines: &[&'static str]| -> Vec<(&str, &str)> {
            lines.iter().map(|line| ("content-length", *line)).collect()
        };
        for same in [&["5"][..], &["5", "5"], &["5, 5"], &["05", "5 ,5"]] {
            assert_eq!(settled(200, &lengths(same)), "5", "{same:?}");
            // What a GET would have brought.
            assert_eq!(settled(304, &lengths(same)), "5", "{same:?}");
            assert_eq!(settled(204, &lengths(same)), "", "{same:?}");
            assert_eq!(settled(101, &lengths(same)), "", "{same:?}");
            let coded = [&lengths(same)[..], &[("transfer-encoding", "chunked")]].concat();
            assert_eq!(settled(200, &coded), "", "{same:?}");
        }
        for none in [&["5", "6"][..], &["5, 6"], &["+5"], &["-5"], &["5,"], &[""], &["99999999999999999999"]]
        {
            assert_eq!(settled(304, &lengths(none)), "", "{none:?}");
        }
        assert_eq!(settled(200, &[]), "");
    }

    #[test]
    fn a_header_that_stands_in_for_method_or_target_is_found() {
        for name in [
            "x-http-method-override",
            "x_http_method_override",
            "x-original-method",
            "forwarded",
            "x-forwarded-prefix",
            "x-http-host-override",
            "x-original-uri",
            "x-forwarded-path",
            "script_name",
            "x-envoy-original-dst-host",
        ] {
            let found = headers(&[("accept", "*/*"), (name, "DELETE")]);
            assert_eq!(override_of(&found).map(HeaderName::as_str), Some(name));
        }
        let harmless = [
            "accept",
            "x-forwarded-for",
            "x-forwarded-proto",
            "x-forwarded-port",
            "x-real-ip",
            "via",
            "origin",
        ];
        assert_eq!(override_of(&headers(&harmless.map(|name| (name, "x")))), None);
    }

    #[test]
    fn cookies_sent_one_by_one_go_out_as_one_line() {
        let mut request = headers(&[("cookie", "a=1"), ("accept", "*/*"), ("cookie", "b=2")]);
        towards_upstream(&mut request);
        assert_eq!(request, headers(&[("cookie", "a=1; b=2"), ("accept", "*/*")]));
    }

    #[test]
    fn an_upgrade_is_asked_for_in_two_places() {
        let both = headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")]);
        assert_eq!(upgrade(&both).as_deref(), Some("websocket"));
        assert_eq!(upgrade(&headers(&[("upgrade", "websocket")])), None);
    }

    #[test]
    fn two_upgrades_are_a_list_and_not_the_first_of_them() {
        let twice = headers(&[("connection", "upgrade"), ("upgrade", "websocket"), ("upgrade", "h2c")]);
        assert_eq!(upgrade(&twice).as_deref(), Some("websocket, h2c"));
    }

    #[test]
    fn alternative_services_and_words_in_our_name_do_not_reach_the_agent() {
        let mut response = headers(&[
            ("alt-svc", "h3=\":443\""),
            ("x-bottlecap-denied", "denied-by-rule"),
            ("content-type", "text/plain"),
        ]);
        towards_agent(&mut response);
        assert_eq!(response, headers(&[("content-type", "text/plain")]));
    }
}
