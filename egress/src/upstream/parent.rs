use std::fmt;
use std::io;
use std::net::SocketAddr;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use policy::Host;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use zeroize::Zeroizing;

use super::resolve::Resolve;
use super::socket;
use crate::credential::percent_decode;

/// The head of a parent's answer may take this much.
const HEAD_LIMIT: usize = 8 * 1024;

/// Why the parent proxy did not connect.
#[derive(Debug, thiserror::Error)]
pub enum ParentError {
    /// It cannot be spoken to.
    #[error("cannot speak to it")]
    Io(#[from] io::Error),
    /// It refused.
    #[error("it answered {0}")]
    Refused(u16),
    /// Its answer is not HTTP.
    #[error("its answer is not HTTP")]
    NotHttp,
}

/// Why the text does not name a parent proxy.
#[derive(Debug, thiserror::Error)]
#[error("expected `http://[user:password@]host:port`")]
pub struct ParseParentError;

/// A proxy that our connections go through, as `http://[user:password@]host:port`.
pub struct Parent {
    host: Host,
    port: u16,
    authorization: Option<Zeroizing<String>>,
}

impl Parent {
    /// The proxy that `url` names.
    pub fn parse(url: &str) -> Result<Parent, ParseParentError> {
        let rest = url.strip_prefix("http://").ok_or(ParseParentError)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user, address) = match rest.rsplit_once('@') {
            Some((user, address)) => (Some(user), address),
            None => (None, rest),
        };
        let (host, port) = address.rsplit_once(':').ok_or(ParseParentError)?;
        let host = Host::parse(host).map_err(|_| ParseParentError)?;
        let port = port.parse().map_err(|_| ParseParentError)?;
        let authorization = user.map(|user| {
            let user = Zeroizing::new(percent_decode(user));
            Zeroizing::new(format!("proxy-authorization: Basic {}\r\n", BASE64_STANDARD.encode(&*user)))
        });
        Ok(Parent { host, port, authorization })
    }

    /// A connection to `target`, an address or a name with a port, through this proxy.
    pub(super) async fn connect(
        &self,
        resolver: &dyn Resolve,
        target: &str,
    ) -> Result<TcpStream, ParentError> {
        let addresses = match self.host.ip() {
            Some(ip) => vec![ip],
            None => resolver.resolve(self.host.as_str()).await?,
        };
        let addresses: Vec<_> = addresses.into_iter().map(|ip| SocketAddr::new(ip, self.port)).collect();
        let mut stream = socket::connect(&addresses).await?;
        stream.set_nodelay(true)?;
        let authorization = self.authorization.as_ref().map_or("", |line| line.as_str());
        let request =
            Zeroizing::new(format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n{authorization}\r\n"));
        stream.write_all(request.as_bytes()).await?;
        match final_status(&mut stream).await? {
            200..=299 => Ok(stream),
            other => Err(ParentError::Refused(other)),
        }
    }
}

impl fmt::Debug for Parent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Parent({}:{})", self.host, self.port)
    }
}

/// The status of the final answer, behind any that only say that it is coming (RFC 9110, 15.2).
async fn final_status(stream: &mut TcpStream) -> Result<u16, ParentError> {
    let mut room = HEAD_LIMIT;
    loop {
        // Byte by byte, so that nothing after the head is taken from the stream.
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            room = room.checked_sub(1).ok_or(ParentError::NotHttp)?;
            head.push(stream.read_u8().await?);
        }
        match status(&head).ok_or(ParentError::NotHttp)? {
            // Nothing was to be upgraded, so this is no answer to what was asked.
            101 => return Err(ParentError::Refused(101)),
            100..=199 => {}
            other => return Ok(other),
        }
    }
}

/// Three digits behind the version; the reason after them may be any bytes (RFC 9112, 4).
fn status(head: &[u8]) -> Option<u16> {
    let [minor, space, digits @ .., end] = head.strip_prefix(b"HTTP/1.")?.first_chunk::<6>()?;
    let are_digits = minor.is_ascii_digit() && digits.iter().all(u8::is_ascii_digit);
    let is_whole = *space == b' ' && matches!(end, b' ' | b'\r');
    let status = digits.iter().fold(0, |status, digit| status * 10 + u16::from(digit.wrapping_sub(b'0')));
    (are_digits && is_whole && status >= 100).then_some(status)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::resolve::SystemResolver;
    use super::*;

    #[test]
    fn a_parent_is_a_plain_http_proxy_with_a_port() {
        let parent = Parent::parse("http://me:s%403@proxy.corp:3128/").unwrap();
        assert_eq!(format!("{parent:?}"), "Parent(proxy.corp:3128)");
        assert_eq!(parent.authorization.unwrap().as_str(), "proxy-authorization: Basic bWU6c0Az\r\n");
        for url in
            ["https://proxy.corp:3128", "proxy.corp:3128", "http://proxy.corp", "http://:3128", "http://a:b"]
        {
            assert!(Parent::parse(url).is_err(), "{url}");
        }
    }

    /// What comes of a parent that answers so: the head that it got, and the connection.
    async fn answered(answer: &[u8]) -> (String, Result<TcpStream, ParentError>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://me:pw@{}", listener.local_addr().unwrap());
        let parent = Parent::parse(&url).unwrap();
        let answering = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(answer).await.unwrap();
            String::from_utf8(head).unwrap()
        };
        let resolver = SystemResolver::default();
        let (connected, head) = tokio::join!(parent.connect(&resolver, "[2001:db8::1]:443"), answering);
        (head, connected)
    }

    async fn rest(connected: Result<TcpStream, ParentError>) -> String {
        let mut text = String::new();
        connected.unwrap().read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn a_connection_through_a_parent_begins_after_the_parents_head() {
        let (head, connected) = answered(b"HTTP/1.1 200 OK\r\nx: y\r\n\r\nhello").await;
        assert_eq!(
            head,
            "CONNECT [2001:db8::1]:443 HTTP/1.1\r\nhost: [2001:db8::1]:443\r\nproxy-authorization: Basic bWU6cHc=\r\n\r\n"
        );
        assert_eq!(rest(connected).await, "hello");
    }

    #[tokio::test]
    async fn what_a_parent_says_before_its_answer_is_not_its_answer() {
        let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n";
        let answer = format!("{interim}HTTP/1.0 200 OK\r\n\r\nhello");
        assert_eq!(rest(answered(answer.as_bytes()).await.1).await, "hello");
        let refused = answered(format!("{interim}HTTP/1.1 407 No\r\n\r\n").as_bytes()).await.1;
        assert!(matches!(refused, Err(ParentError::Refused(407))), "{refused:?}");
        let upgraded = answered(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").await.1;
        assert!(matches!(upgraded, Err(ParentError::Refused(101))), "{upgraded:?}");
        // However many there are, they have no more room than one.
        let endless = answered(&b"HTTP/1.1 100 Continue\r\n\r\n".repeat(HEAD_LIMIT / 25 + 1)).await.1;
        assert!(matches!(endless, Err(ParentError::NotHttp)), "{endless:?}");
    }

    #[test]
    fn a_status_is_three_digits_whatever_the_reason_is() {
        for (line, wanted) in [
            (&b"HTTP/1.1 200 OK\r\n"[..], Some(200)),
            (b"HTTP/1.1 200\r\n", Some(200)),
            (b"HTTP/1.1 200 \r\n", Some(200)),
            (b"HTTP/1.0 407 Acc\xe8s refus\xe9\xff\r\n", Some(407)),
            (b"HTTP/1.1 20\r\n", None),
            (b"HTTP/1.1 2000 OK\r\n", None),
            (b"HTTP/1.1 +20 OK\r\n", None),
            (b"HTTP/1.1 099 OK\r\n", None),
            (b"HTTP/1.1  200 OK\r\n", None),
            (b"HTTP/1.x 200 OK\r\n", None),
            (b"HTTP/2 200 OK\r\n", None),
            (b"HTTP/1.1 \r\n", None),
        ] {
            assert_eq!(status(line), wanted, "{}", line.escape_ascii());
        }
    }
}
