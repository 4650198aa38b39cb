//! What the fuzz targets reach of the parsers that meet the bottle, with the claims that hold for any input.

mod heads;
mod messages;
mod names;
mod rewriting;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::header::HOST;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Uri, Version};
use policy::{Host, Scheme};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

pub use heads::heads;
pub use messages::frames;
pub use names::dns;
pub use rewriting::{body, head};

use crate::authority::{self, Endpoint};
use crate::tls::hello;

/// Which host a head is for. Each line of `text` is a part: the target, then Host headers. What is accepted names the
/// host of the tunnel in every place, as a reader sees it who knows nothing of ours.
pub fn authority(text: &str) {
    let mut lines = text.split('\n');
    let Ok(uri) = lines.next().unwrap_or_default().parse::<Uri>() else { return };
    let mut request = Request::builder().uri(uri).version(Version::HTTP_11);
    let hosts: Vec<&str> = lines.collect();
    for host in &hosts {
        let Ok(value) = HeaderValue::from_str(host) else { return };
        request = request.header(HOST, value);
    }
    let Ok(request) = request.body(()) else { return };
    let (mut parts, ()) = request.into_parts();
    let target = parts.uri.to_string();

    let tunnel = Endpoint { scheme: Scheme::Https, host: host("api.example.com"), port: 443 };
    if authority::bind_to_tunnel(&parts, &tunnel).is_ok() {
        assert_eq!(hosts.len(), 1, "{text:?}");
        assert!(names(hosts[0], "api.example.com", 443), "{text:?}");
        // What begins with a slash is a path, whatever stands further on in it.
        let absolute = if target.starts_with('/') { None } else { target.split_once("://") };
        let absolute = absolute.map(|(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or_default());
        assert!(absolute.is_none_or(|named| names(named, "api.example.com", 443)), "{text:?}");
    }
    if let Ok(endpoint) = authority::of_plain(&parts) {
        assert_eq!(endpoint.scheme, Scheme::Http);
        assert!(
            names(hosts[0], endpoint.host.as_str(), endpoint.port) || endpoint.host.ip().is_some(),
            "{text:?}"
        );
        canonical(&endpoint.host);
    }
    parts.method = Method::CONNECT;
    if let Ok((named, port)) = authority::of_connect(&parts) {
        assert!(port > 0 && !target.contains(['@', '#', '?']), "{text:?}");
        assert!(hosts.len() <= 1, "{text:?}");
        canonical(&named);
        let again = Endpoint { scheme: Scheme::Https, host: named, port };
        assert_eq!(authority::of_connect(&connect(&again)), Ok((again.host, again.port)));
    }
}

fn host(name: &str) -> Host {
    Host::parse(name).expect("a valid host")
}

fn canonical(host: &Host) {
    assert_eq!(Host::parse(host.as_str()).as_ref(), Ok(host));
}

fn connect(endpoint: &Endpoint) -> Parts {
    let target = format!("{}:{}", endpoint.host, endpoint.port);
    let request = Request::builder().method(Method::CONNECT).uri(&target).header(HOST, &target).body(());
    request.expect("a canonical host is a valid target").into_parts().0
}

/// `host` or `host:port`, letters of either case, and nothing else.
fn names(text: &str, host: &str, port: u16) -> bool {
    let text = text.trim().to_ascii_lowercase();
    let (named, named_port) = match text.rsplit_once(':') {
        Some((named, digits)) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            (named, digits.parse().ok())
        }
        _ => (text.as_str(), None),
    };
    named.trim_end_matches('.') == host && named_port.is_none_or(|named: u16| named == port)
}

/// A ClientHello is understood the same however the bytes are cut, and not before it is whole.
pub fn client_hello(bytes: &[u8]) {
    let Some((step, bytes)) = bytes.split_first() else { return };
    let whole = read(bytes, bytes.len().max(1));
    let cut = read(bytes, usize::from(*step).max(1));
    match (whole, cut) {
        (Ok(whole), Ok(cut)) => {
            assert_eq!(whole.server_name, cut.server_name);
            // What came after the first bytes that were enough may be left unread.
            assert!(whole.bytes.starts_with(&cut.bytes));
            for hello in [&whole, &cut] {
                assert!(bytes.starts_with(&hello.bytes) && hello.bytes.first() == Some(&22));
            }
        }
        (Err(_), Err(_)) => {}
        (Ok(_), Err(error)) => panic!("only whole: {error}"),
        (Err(error), Ok(_)) => panic!("only cut: {error}"),
    }
}

fn read(bytes: &[u8], step: usize) -> Result<hello::ClientHello, hello::Error> {
    on_a_runtime(hello::read(&mut Pieces { bytes, step }, Vec::new()))
}

fn on_a_runtime<T>(task: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime of one thread");
    }
    RUNTIME.with(|runtime| runtime.block_on(task))
}

/// A stream that gives so many bytes at a time, and takes any.
struct Pieces<'a> {
    bytes: &'a [u8],
    step: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (now, later) = self.bytes.split_at(self.bytes.len().min(self.step).min(buffer.remaining()));
        buffer.put_slice(now);
        self.bytes = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pieces<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_accepted_head_names_one_host_in_every_place(
            target in "(http://|https://|)([a-z]{1,3}@|)(api[.]example[.]com|API.example.com.|0x7f.1|\\[::1\\])(:443|:80|:0443|)(/|/a|)",
            hosts in prop::collection::vec("(api[.]example[.]com|api.example.com.|other.test|\\[::1\\])(:443|:80|:|)", 0..3)
        ) {
            super::authority(&[&[target][..], &hosts].concat().join("\n"));
        }

        #[test]
        fn a_hello_is_understood_however_it_is_cut(step in any::<u8>(), rest in prop::collection::vec(any::<u8>(), 0..80)) {
            super::client_hello(&[&[step, 22, 3, 1, 0, 60, 1, 0, 0, 56, 3, 3][..], &rest].concat());
        }
    }
}
