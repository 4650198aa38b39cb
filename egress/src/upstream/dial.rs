use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use policy::{AddressDenial, Host, PrivateAllow, Resolves, address};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout_at};

use super::near::Near;
use super::parent::{Parent, ParentError};
use super::resolve::Resolve;
use crate::limits::TooManyConnections;

/// How many look-ups may be under way: each holds a thread of the system resolver.
const LOOKUPS: usize = 64;
/// How many connections to upstream may be open, over all routes, idle ones among them.
const CONNECTIONS: usize = 4 * 1024;
/// An address is given this long before the next one is tried beside it (RFC 8305).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

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
    /// It is a gateway of ours, or Docker's resolver.
    #[error("{0} is a gateway of this machine, or its resolver")]
    Near(IpAddr),
    /// No address took the connection; this is the last failure.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// The parent proxy did not connect.
    #[error("cannot connect through the parent proxy")]
    Parent(#[source] ParentError),
    /// The route has all the connections that it may have.
    #[error(transparent)]
    TooMany(#[from] TooManyConnections),
    /// As many connections as may be are open.
    #[error("{CONNECTIONS} connections to upstream are open")]
    Full,
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
    places: Arc<Semaphore>,
    parent: Option<Parent>,
    own: Vec<SocketAddr>,
    near: RwLock<Near>,
}

impl Dialer {
    /// `own` are the addresses that we listen on: they are never dialled.
    pub fn new(resolver: Arc<dyn Resolve>, parent: Option<Parent>, own: Vec<SocketAddr>) -> Dialer {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let near = RwLock::new(Near::read());
        Dialer { resolver, lookups: Semaphore::new(LOOKUPS), places, parent, own, near }
    }

    /// Looks again at what lies next to us: interfaces come and go.
    pub(crate) fn look_around(&self) {
        *self.near.write().unwrap_or_else(PoisonError::into_inner) = Near::read();
    }

    /// A place for one connection, to be kept as long as it is open.
    pub(crate) async fn place(&self, deadline: Instant) -> Result<OwnedSemaphorePermit, DialError> {
        let place = timeout_at(deadline, Arc::clone(&self.places).acquire_owned()).await;
        place.ok().and_then(Result::ok).ok_or(DialError::Full)
    }

    /// A connection to `host`, which is resolved once; what is dialled is one of the addresses that were checked.
    pub(crate) async fn dial(
        &self,
        host: &Host,
        port: u16,
        (allow_private, resolves): (&[PrivateAllow], Resolves),
        deadline: Instant,
    ) -> Result<TcpStream, DialError> {
        let dialled = timeout_at(deadline, async {
            if let (Resolves::Parent, Some(parent), None) = (resolves, &self.parent, host.ip()) {
                return parent.connect(&format!("{host}:{port}")).await.map_err(DialError::Parent);
            }
            let addresses = self.permitted(host, port, allow_private).await?;
            self.connect(&addresses).await
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
        let embedded = address::embedded(ip);
        let near = self.near.read().unwrap_or_else(PoisonError::into_inner);
        if std::iter::once(ip).chain(embedded).any(|ip| near.holds(ip)) {
            return Err(DialError::Near(ip));
        }
        if self.own.iter().any(|own| reaches(address, *own)) {
            return Err(DialError::Ours(address));
        }
        Ok(address)
    }

    /// The first connection to one of `addresses`, tried in turn and then side by side; those that lose are closed.
    async fn connect(&self, addresses: &[SocketAddr]) -> Result<TcpStream, DialError> {
        let mut failure = DialError::NoAddress;
        let mut left = interleaved(addresses).into_iter();
        let mut attempts = FuturesUnordered::new();
        loop {
            let next = left.next();
            let was_last = next.is_none();
            attempts.extend(next.map(|address| self.attempt(address)));
            let pause = async {
                match was_last {
                    true => std::future::pending().await,
                    false => sleep(ATTEMPT_DELAY).await,
                }
            };
            tokio::select! {
                attempted = attempts.next() => match attempted {
                    Some(Ok(stream)) => return Ok(stream),
                    Some(Err(error)) => failure = error,
                    None => return Err(failure),
                },
                () = pause => {}
            }
        }
    }

    async fn attempt(&self, address: SocketAddr) -> Result<TcpStream, DialError> {
        match &self.parent {
            Some(parent) => parent.connect(&address.to_string()).await.map_err(DialError::Parent),
            None => TcpStream::connect(address).await.map_err(DialError::Connect),
        }
    }
}

/// The families by turns, beginning with that of the first address, each in its order.
fn interleaved(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let first = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let (mut one, mut other) = (
        addresses.iter().filter(|a| a.is_ipv4() == first),
        addresses.iter().filter(|a| a.is_ipv4() != first),
    );
    let mut order = Vec::with_capacity(addresses.len());
    loop {
        match (one.next(), other.next()) {
            (None, None) => return order,
            (a, b) => order.extend(a.into_iter().chain(b)),
        }
    }
}

/// Whether dialling `address` may reach a listener on `own`.
fn reaches(address: SocketAddr, own: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    let own_ip = own.ip().to_canonical();
    // A listener on every address is reached by any address of this machine, of which the loopback ones are known.
    // No address at all is loopback.
    let same = ip == own_ip
        || (own_ip.is_unspecified() && (ip.is_loopback() || ip.is_unspecified()))
        || (own_ip.is_loopback() && ip.is_unspecified());
    address.port() == own.port() && same
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::pin::Pin;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

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
    async fn a_parent_gets_an_address_that_was_checked_and_a_name_only_where_the_route_says_so() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let parent = Parent::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let dialer = Dialer::new(Arc::new(Private), Some(parent), Vec::new());
        let host = Host::parse("api.test").unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let refused = dialer.dial(&host, 443, (&[], Resolves::Here), deadline).await;
        assert!(matches!(refused, Err(DialError::NotAllowed(_))), "{refused:?}");

        let leave = [PrivateAllow::parse("10.0.0.0/8").unwrap()];
        let answer = async || {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            String::from_utf8(head).unwrap()
        };
        let (dialled, head) =
            tokio::join!(dialer.dial(&host, 443, (&leave, Resolves::Here), deadline), answer());
        assert!(dialled.is_ok());
        assert_eq!(head, "CONNECT 10.0.0.1:443 HTTP/1.1\r\nhost: 10.0.0.1:443\r\n\r\n");

        // By name where the route says so; an address is checked all the same.
        let (dialled, head) =
            tokio::join!(dialer.dial(&host, 443, (&[], Resolves::Parent), deadline), answer());
        assert!(dialled.is_ok());
        assert_eq!(head, "CONNECT api.test:443 HTTP/1.1\r\nhost: api.test:443\r\n\r\n");
        let private = Host::parse("10.0.0.1").unwrap();
        let refused = dialer.dial(&private, 443, (&[], Resolves::Parent), deadline).await;
        assert!(matches!(refused, Err(DialError::NotAllowed(_))), "{refused:?}");
        // Without a parent there is no one else to look it up.
        let alone = Dialer::new(Arc::new(Private), None, Vec::new());
        let refused = alone.dial(&host, 443, (&[], Resolves::Parent), deadline).await;
        assert!(matches!(refused, Err(DialError::NotAllowed(_))), "{refused:?}");
    }

    /// A name whose answer changes with each look-up, as a hostile server gives it.
    struct Rebinding {
        answers: Mutex<Vec<IpAddr>>,
        asked: AtomicUsize,
    }

    impl Resolve for Rebinding {
        fn resolve<'a>(
            &'a self,
            _: &'a str,
        ) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send + 'a>> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let next = self.answers.lock().unwrap().remove(0);
            Box::pin(async move { Ok(vec![next]) })
        }
    }

    fn rebinding(answers: &[&str]) -> (Arc<Rebinding>, Dialer) {
        let answers = Mutex::new(answers.iter().map(|answer| answer.parse().unwrap()).collect());
        let resolver = Arc::new(Rebinding { answers, asked: AtomicUsize::new(0) });
        (Arc::clone(&resolver), Dialer::new(resolver, None, Vec::new()))
    }

    #[tokio::test]
    async fn a_name_that_changes_its_address_is_dialled_at_the_one_that_was_checked() {
        let checked = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = checked.local_addr().unwrap().port();
        let leave = [PrivateAllow::parse("127.0.0.1").unwrap()];
        let (resolver, dialer) = rebinding(&["127.0.0.1", "127.0.0.2"]);
        let host = Host::parse("rebinds.test").unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);

        let stream = dialer.dial(&host, port, (&leave, Resolves::Here), deadline).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), checked.local_addr().unwrap());
        assert_eq!(resolver.asked.load(Ordering::SeqCst), 1);

        let later = dialer.dial(&host, port, (&leave, Resolves::Here), deadline).await;
        assert!(
            matches!(later, Err(DialError::NotAllowed(_))),
            "the next connection is checked anew: {later:?}"
        );
    }

    #[tokio::test]
    async fn a_refused_address_is_not_looked_up_again() {
        let (resolver, dialer) = rebinding(&["169.254.169.254", "127.0.0.1"]);
        let host = Host::parse("rebinds.test").unwrap();
        let leave = [PrivateAllow::parse("127.0.0.1").unwrap()];
        let refused =
            dialer.dial(&host, 80, (&leave, Resolves::Here), Instant::now() + Duration::from_secs(10)).await;
        assert!(matches!(refused, Err(DialError::NotAllowed(_))), "{refused:?}");
        assert_eq!(resolver.asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn what_lies_next_to_us_is_not_dialled_whatever_a_route_exempts() {
        let leave = [PrivateAllow::parse("0.0.0.0/0").unwrap(), PrivateAllow::parse("::/0").unwrap()];
        let host = Host::parse("rebinds.test").unwrap();
        let all =
            ["127.0.0.11", "10.1.0.1", "::ffff:10.1.0.1", "64:ff9b::10.1.0.1", "2002:a01:1::1", "fe80::1"];
        for (gateways, refused) in [(&["10.1.0.1", "fe80::1"][..], true), (&[], false)] {
            for address in all.into_iter().skip(usize::from(!refused)) {
                let (_, dialer) = rebinding(&[address]);
                let gateways: Vec<IpAddr> = gateways.iter().map(|gateway| gateway.parse().unwrap()).collect();
                *dialer.near.write().unwrap() = Near::with(&gateways);
                let permitted = dialer.permitted(&host, 443, &leave).await;
                assert_eq!(matches!(permitted, Err(DialError::Near(_))), refused, "{address}: {permitted:?}");
            }
        }
        // By number too, and as long as the kernel says so.
        let (_, dialer) = rebinding(&[]);
        dialer.look_around();
        let permitted = dialer.permitted(&Host::parse("127.0.0.11").unwrap(), 53, &leave).await;
        assert!(matches!(permitted, Err(DialError::Near(_))), "{permitted:?}");
    }

    #[tokio::test]
    async fn there_are_only_so_many_places_and_one_that_is_given_back_is_given_again() {
        let dialer = Dialer::new(Arc::new(Private), None, Vec::new());
        let soon = Instant::now;
        let mut places = Vec::new();
        for _ in 0..CONNECTIONS {
            places.push(dialer.place(soon()).await.unwrap());
        }
        assert!(matches!(dialer.place(soon()).await, Err(DialError::Full)));
        places.pop();
        assert!(dialer.place(soon()).await.is_ok());
    }

    #[tokio::test]
    async fn a_silent_address_does_not_hold_up_one_that_answers() {
        // A listener whose queue is full is silent.
        let silent = tokio::net::TcpSocket::new_v4().unwrap();
        silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let silent = silent.listen(1).unwrap();
        let silent_address = silent.local_addr().unwrap();
        let mut full = Vec::new();
        while let Ok(stream) =
            timeout_at(Instant::now() + Duration::from_millis(200), TcpStream::connect(silent_address)).await
        {
            full.push(stream);
        }
        let answering = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = answering.local_addr().unwrap();
        let dialer = Dialer::new(Arc::new(Private), None, Vec::new());
        let began = Instant::now();
        let stream = dialer.connect(&[silent_address, address]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), address);
        assert!(began.elapsed() >= ATTEMPT_DELAY, "the first address had its turn");
    }

    #[tokio::test]
    async fn an_address_that_refuses_is_followed_by_the_next_and_the_last_failure_is_told() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let answering = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dialer = Dialer::new(Arc::new(Private), None, Vec::new());
        let address = answering.local_addr().unwrap();
        assert_eq!(dialer.connect(&[closed, address]).await.unwrap().peer_addr().unwrap(), address);
        assert!(matches!(dialer.connect(&[closed]).await, Err(DialError::Connect(_))));
        assert!(matches!(dialer.connect(&[]).await, Err(DialError::NoAddress)));
    }

    #[test]
    fn the_families_take_turns() {
        let parse =
            |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let resolved = parse(&["[2001:db8::1]:1", "[2001:db8::2]:1", "[2001:db8::3]:1", "192.0.2.1:1"]);
        let order = parse(&["[2001:db8::1]:1", "192.0.2.1:1", "[2001:db8::2]:1", "[2001:db8::3]:1"]);
        assert_eq!(interleaved(&resolved), order);
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
            ("[::]:9099", "[::1]:9099", true),
            ("127.0.0.1:443", "127.0.0.2:443", false),
            ("127.0.0.1:9100", "127.0.0.1:9099", false),
            ("10.0.0.1:9099", "10.0.0.2:9099", false),
        ] {
            assert_eq!(reaches(address(dialled), address(own)), same, "{dialled} {own}");
        }
    }
}
