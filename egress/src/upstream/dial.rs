use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use policy::{AddressDenial, Host, PrivateAllow, address};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

use super::parent::{Parent, ParentError};
use super::resolve::Resolve;

/// How many look-ups may be under way: each holds a thread of the system resolver.
const LOOKUPS: usize = 64;
/// No attempt at one of several addresses is given less than this.
const ATTEMPT_MINIMUM: Duration = Duration::from_secs(2);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name could not be looked up.
    #[error("cannot resolve the name")]
    Resolve(#[source] io::Error),
    /// The name has no address.
    #[error("the name has no address")]
    NoAddress,
    /// All its addresses are refused; this is the first.
    #[error("the address may not be dialled")]
    NotAllowed(#[source] AddressDenial),
    /// It leads back to us.
    #[error("{0} is our own listener")]
    Ours(SocketAddr),
    /// No address took the connection; this is the last failure.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// The parent proxy did not connect.
    #[error("cannot connect through the parent proxy")]
    Parent(#[source] ParentError),
    /// It took too long.
    #[error("took too long to connect")]
    Timeout,
    /// TLS failed.
    #[error("TLS failed")]
    Tls(#[source] io::Error),
    /// The target of the connection is not a host.
    #[error("the target of the connection is not a host")]
    Name,
}

/// Dials upstream hosts.
pub struct Dialer {
    resolver: Arc<dyn Resolve>,
    lookups: Semaphore,
    parent: Option<Parent>,
    own: Vec<SocketAddr>,
}

impl Dialer {
    /// `own` are the addresses that we listen on: they are never dialled.
    pub fn new(resolver: Arc<dyn Resolve>, parent: Option<Parent>, own: Vec<SocketAddr>) -> Dialer {
        Dialer { resolver, lookups: Semaphore::new(LOOKUPS), parent, own }
    }

    /// A connection to `host`, which is resolved once; what is dialled is one of the addresses that were checked.
    pub(crate) async fn dial(
        &self,
        host: &Host,
        port: u16,
        allow_private: &[PrivateAllow],
        deadline: Instant,
    ) -> Result<TcpStream, DialError> {
        let dialled = timeout_at(deadline, async {
            let addresses = self.permitted(host, port, allow_private).await?;
            self.connect(&addresses, deadline).await
        });
        let stream = dialled.await.unwrap_or(Err(DialError::Timeout))?;
        stream.set_nodelay(true).map_err(DialError::Connect)?;
        Ok(stream)
    }

    async fn permitted(
        &self,
        host: &Host,
        port: u16,
        allow_private: &[PrivateAllow],
    ) -> Result<Vec<SocketAddr>, DialError> {
        let addresses = match host.ip() {
            Some(ip) => vec![ip],
            None => {
                let _lookup = self.lookups.acquire().await.map_err(|_| DialError::Timeout)?;
                self.resolver.resolve(host.as_str()).await.map_err(DialError::Resolve)?
            }
        };
        let mut permitted = Vec::new();
        let mut refused = None;
        for ip in addresses {
            match self.check(ip, port, allow_private) {
                Ok(address) => permitted.push(address),
                Err(denial) => refused = refused.or(Some(denial)),
            }
        }
        match (permitted.is_empty(), refused) {
            (false, _) => Ok(permitted),
            (true, Some(refused)) => Err(refused),
            (true, None) => Err(DialError::NoAddress),
        }
    }

    fn check(&self, ip: IpAddr, port: u16, allow_private: &[PrivateAllow]) -> Result<SocketAddr, DialError> {
        address::check(ip, port, allow_private).map_err(DialError::NotAllowed)?;
        let address = SocketAddr::new(ip, port);
        if self.own.iter().any(|own| reaches(address, *own)) {
            return Err(DialError::Ours(address));
        }
        Ok(address)
    }

    async fn connect(&self, addresses: &[SocketAddr], deadline: Instant) -> Result<TcpStream, DialError> {
        let mut failure = DialError::NoAddress;
        for (index, &address) in addresses.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let attempts_left = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
            let share = (left / attempts_left).max(ATTEMPT_MINIMUM);
            let attempt = async {
                match &self.parent {
                    Some(parent) => parent.connect(address).await.map_err(DialError::Parent),
                    None => TcpStream::connect(address).await.map_err(DialError::Connect),
                }
            };
            failure = match timeout(share, attempt).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => error,
                Err(_) => DialError::Timeout,
            };
        }
        Err(failure)
    }
}

/// Whether dialling `address` may reach a listener on `own`.
fn reaches(address: SocketAddr, own: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    let own_ip = own.ip().to_canonical();
    // A listener on every address is reached by any address of this machine, of which the loopback ones are known.
    let same = ip == own_ip
        || ((own_ip.is_unspecified() || own_ip.is_loopback()) && (ip.is_loopback() || ip.is_unspecified()));
    address.port() == own.port() && same
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::pin::Pin;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    struct Private;

    impl Resolve for Private {
        fn resolve<'a>(
            &'a self,
            _: &'a str,
        ) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send + 'a>> {
            Box::pin(async { Ok(vec![IpAddr::from([10, 0, 0, 1])]) })
        }
    }

    #[tokio::test]
    async fn a_parent_gets_an_address_that_was_checked_and_never_a_name() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let parent = Parent::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let dialer = Dialer::new(Arc::new(Private), Some(parent), Vec::new());
        let host = Host::parse("api.test").unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let refused = dialer.dial(&host, 443, &[], deadline).await;
        assert!(matches!(refused, Err(DialError::NotAllowed(_))), "{refused:?}");

        let leave = [PrivateAllow::parse("10.0.0.0/8").unwrap()];
        let answer = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            String::from_utf8(head).unwrap()
        };
        let (dialled, head) = tokio::join!(dialer.dial(&host, 443, &leave, deadline), answer);
        assert!(dialled.is_ok());
        assert_eq!(head, "CONNECT 10.0.0.1:443 HTTP/1.1\r\nhost: 10.0.0.1:443\r\n\r\n");
    }

    #[test]
    fn our_own_listener_is_recognised_by_any_of_its_addresses() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        for (dialled, own, same) in [
            ("127.0.0.1:9099", "127.0.0.1:9099", true),
            ("127.0.0.2:9099", "0.0.0.0:9099", true),
            ("[::ffff:127.0.0.1]:9099", "127.0.0.1:9099", true),
            ("[::1]:9099", "[::]:9099", true),
            ("0.0.0.0:9099", "127.0.0.1:9099", true),
            ("127.0.0.1:9100", "127.0.0.1:9099", false),
            ("10.0.0.1:9099", "10.0.0.2:9099", false),
        ] {
            assert_eq!(reaches(address(dialled), address(own)), same, "{dialled} {own}");
        }
    }
}
