//! HTTP/2 (RFC 9113) on both sides, on the h2 crate itself: hyper can neither send nor hear interim answers there (RFC 9110, section 15.2),
//! and takes a stream that was reset with NO_ERROR for one that has ended (docs/adr/0009-http2.md).

pub(crate) mod client;
mod duplex;
mod pulse;
mod received;
mod sent;
pub(crate) mod server;

use std::io;

use http::header::{CONNECTION, HeaderMap, HeaderName, TE, TRANSFER_ENCODING, UPGRADE};

pub(crate) use duplex::Duplex;
pub(crate) use received::Received;

/// The largest frame that is taken: what every peer may send (RFC 9113, section 4.2).
const FRAME_BYTES: u32 = 16 * 1024;
/// Which HTTP/1.1 has and HTTP/2 must not (RFC 9113, section 8.2.2), besides `TE`.
const OF_THE_CONNECTION: [HeaderName; 5] = [
    CONNECTION,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Takes out what is for a connection of HTTP/1.1 alone.
fn leave_out_connection(headers: &mut HeaderMap) {
    for name in &OF_THE_CONNECTION {
        headers.remove(name);
    }
    if headers.get(TE).is_some_and(|value| value != "trailers") {
        headers.remove(TE);
    }
}

/// Without what the other side says beside its reason: that is logged, and upstream may say what it was sent.
fn broken(error: h2::Error) -> io::Error {
    let reason =
        error.reason().map_or_else(|| "the connection ended".to_owned(), |reason| reason.to_string());
    io::Error::new(io::ErrorKind::ConnectionReset, reason)
}
