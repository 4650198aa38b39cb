use std::fmt;
use std::io;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use policy::Host;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use zeroize::Zeroizing;

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
    pub(super) async fn connect(&self, target: &str) -> Result<TcpStream, ParentError> {
        let mut stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        let authorization = self.authorization.as_ref().map_or("", |line| line.as_str());
        let request =
            Zeroizing::new(format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n{authorization}\r\n"));
        stream.write_all(request.as_bytes()).await?;
        // Byte by byte, so that nothing after the head is taken from the stream.
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() >= HEAD_LIMIT {
                return Err(ParentError::NotHttp);
            }
            head.push(stream.read_u8().await?);
        }
        match status(&head).ok_or(ParentError::NotHttp)? {
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

fn status(head: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(head.split(|byte| *byte == b'\r').next()?).ok()?;
    let rest = line.strip_prefix("HTTP/1.")?;
    rest.split(' ').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
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

    #[tokio::test]
    async fn a_connection_through_a_parent_begins_after_the_parents_head() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://me:pw@{}", listener.local_addr().unwrap());
        let parent = Parent::parse(&url).unwrap();
        let answer = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nx: y\r\n\r\nhello").await.unwrap();
            String::from_utf8(head).unwrap()
        };
        let (connected, head) = tokio::join!(parent.connect("[2001:db8::1]:443"), answer);
        assert_eq!(
            head,
            "CONNECT [2001:db8::1]:443 HTTP/1.1\r\nhost: [2001:db8::1]:443\r\nproxy-authorization: Basic bWU6cHc=\r\n\r\n"
        );
        let mut text = String::new();
        connected.unwrap().read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello");
    }
}
