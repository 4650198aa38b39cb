use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};

use policy::{AddressDenial, Host, PrivateAllow, Resolves, address};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::near::Near;
use super::parent::{Parent, ParentError};
use super::race::{interleaved, race};
use super::resolve::Resolve;
use super::socket;
use crate::limits::TooManyConnections;
use crate::room::Room;

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
    #[error("as many connections to upstream as may be are open")]
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
    places: Arc<Semaphore>,
    parent: Option<Parent>,
    own: Vec<SocketAddr>,
    near: RwLock<Near>,
}

impl Dialer {
    /// `own` are the addresses that we listen on: they are never dialled. What lies next to us must be known.
    pub fn new(
        resolver: Arc<dyn Resolve>,
        parent: Option<Parent>,
        own: Vec<SocketAddr>,
    ) -> io::Result<Dialer> {
        let places = Arc::new(Semaphore::new(Room::WHOLE.upstream));
        Ok(Dialer { resolver, places, parent, own, near: RwLock::new(Near::read()?) })
    }

    /// The same, with so many places for connections.
    pub(crate) fn with_places(self, places: usize) -> Dialer {
        Dialer { places: Arc::new(Semaphore::new(places)), ..self }
    }

    /// Looks again at what lies next to us: interfaces come and go.
    pub(crate) fn look_around(&self) {
        self.saw(Near::read());
    }

    /// What cannot be seen is taken to be where it was.
    fn saw(&self, near: io::Result<Near>) {
        match near {
            Ok(near) => *self.near.write().unwrap_or_else(PoisonError::into_inner) = near,
            Err(error) => {
                warn!(%error, "cannot see which gateways and addresses there are: those seen before stay")
            }
        }
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
                let target = format!("{host}:{port}");
                return parent.connect(&*self.resolver, &target).await.map_err(DialError::Parent);
            }
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
            None => self.resolver.resolve(host.as_str()).await.map_err(DialError::Resolve)?,
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
        let led_to = || std::iter::once(ip).chain(address::embedded(ip));
        let near = self.near.read().unwrap_or_else(PoisonError::into_inner);
        if led_to().any(|ip| near.holds(ip)) {
            return Err(DialError::Near(ip));
        }
        let is_ours = |ip| self.own.iter().any(|own| near.reaches(SocketAddr::new(ip, port), *own));
        if led_to().any(is_ours) {
            return Err(DialError::Ours(address));
        }
        Ok(address)
    }

    /// The first connection to one of `addresses`, tried in turn and then side by side; those that lose are closed.
    async fn connect(&self, addresses: &[SocketAddr], deadline: Instant) -> Result<TcpStream, DialError> {
        let attempts = interleaved(addresses).into_iter().map(|address| self.attempt(address));
        race(attempts, deadline).await.map_err(|failure| failure.unwrap_or(DialError::NoAddress))
    }

    async fn attempt(&self, address: SocketAddr) -> Result<TcpStream, DialError> {
        match &self.parent {
            Some(parent) => {
                parent.connect(&*self.resolver, &address.to_string()).await.map_err(DialError::Parent)
            }
            None => socket::connect(&[address]).await.map_err(DialError::Connect),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashSet;
    use std::pin::Pin;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

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
        let dialer = Dialer::new(Arc::new(Private), Some(parent), Vec::new()).unwrap();
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
        let alone = Dialer::new(Arc::new(Private), None, Vec::new()).unwrap();
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
        (Arc::clone(&resolver), Dialer::new(resolver, None, Vec::new()).unwrap())
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
                dialer.saw(Ok(Near::with(gateways, &[])));
                // What cannot be read changes nothing.
                dialer.saw(Err(io::Error::from_raw_os_error(libc::EMFILE)));
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
        let dialer = Dialer::new(Arc::new(Private), None, Vec::new()).unwrap().with_places(9);
        let soon = Instant::now;
        let mut places = Vec::new();
        for _ in 0..9 {
            places.push(dialer.place(soon()).await.unwrap());
        }
        assert!(matches!(dialer.place(soon()).await, Err(DialError::Full)));
        places.pop();
        assert!(dialer.place(soon()).await.is_ok());
    }

    /// A listener whose queue is full is silent.
    async fn silent() -> (tokio::net::TcpListener, Vec<TcpStream>) {
        let silent = tokio::net::TcpSocket::new_v4().unwrap();
        silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let silent = silent.listen(1).unwrap();
        let address = silent.local_addr().unwrap();
        let mut full = Vec::new();
        while let Ok(Ok(stream)) =
            timeout_at(Instant::now() + Duration::from_millis(200), TcpStream::connect(address)).await
        {
            full.push(stream);
        }
        (silent, full)
    }

    #[tokio::test]
    async fn a_silent_address_does_not_hold_up_one_that_answers() {
        let (silent, _full) = silent().await;
        let answering = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = answering.local_addr().unwrap();
        let dialer = Dialer::new(Arc::new(Private), None, Vec::new()).unwrap();
        let began = Instant::now();
        let stream = dialer.connect(&[silent.local_addr().unwrap(), address], later()).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), address);
        assert!(began.elapsed() >= Duration::from_millis(250), "the first address had its turn");
    }

    #[tokio::test]
    async fn a_dial_holds_two_sockets_however_many_addresses_are_silent() {
        let (silent, _full) = silent().await;
        let address = silent.local_addr().unwrap();
        let dialer = Dialer::new(Arc::new(Private), None, Vec::new()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(2);
        let (addresses, most) = ([address; 16], AtomicUsize::new(0));
        let dialled = timeout_at(deadline, dialer.connect(&addresses, deadline));
        let counting = async {
            // As the kernel has them: of those to this address, the ones that wait for an answer.
            let waits_for_it = format!("0100007F:{:04X} 02 ", address.port());
            loop {
                let table = std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
                let to_it = table.lines().filter(|line| line.contains(&waits_for_it));
                // A line may come twice where others change the table.
                let from: HashSet<_> = to_it.map(|line| line.split_whitespace().nth(1)).collect();
                most.fetch_max(from.len(), Ordering::SeqCst);
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            dialled = dialled => assert!(dialled.is_err()),
            () = counting => {}
        }
        assert_eq!(most.into_inner(), crate::upstream::DIALLED_AT_ONCE);
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[tokio::test]
    async fn an_address_that_refuses_is_followed_by_the_next_and_the_last_failure_is_told() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let answering = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dialer = Dialer::new(Arc::new(Private), None, Vec::new()).unwrap();
        let address = answering.local_addr().unwrap();
        assert_eq!(dialer.connect(&[closed, address], later()).await.unwrap().peer_addr().unwrap(), address);
        assert!(matches!(dialer.connect(&[closed], later()).await, Err(DialError::Connect(_))));
        assert!(matches!(dialer.connect(&[], later()).await, Err(DialError::NoAddress)));
    }

    #[tokio::test]
    async fn our_own_listener_is_not_dialled_in_any_form_of_its_address() {
        let own = ["0.0.0.0:9099", "127.0.0.1:9100"].map(|own| own.parse().unwrap()).to_vec();
        let leave = [PrivateAllow::parse("0.0.0.0/0").unwrap(), PrivateAllow::parse("::/0").unwrap()];
        let dialer = Dialer::new(Arc::new(Private), None, own).unwrap();
        dialer.saw(Ok(Near::with(&[], &["203.0.113.5"])));
        for (ip, port) in [
            ("203.0.113.5", 9099),
            ("::ffff:203.0.113.5", 9099),
            ("64:ff9b::203.0.113.5", 9099),
            ("2002:cb00:7105::1", 9099),
            ("2001:0:808:808::34ff:8efa", 9099),
            ("2606:4700::5efe:203.0.113.5", 9099),
            ("64:ff9b::127.0.0.1", 9100),
        ] {
            let checked = dialer.check(ip.parse().unwrap(), port, &leave);
            assert!(matches!(checked, Err(DialError::Ours(_))), "{ip}: {checked:?}");
            assert!(dialer.check(ip.parse().unwrap(), 9101, &leave).is_ok(), "{ip}: another port");
        }
    }

    #[tokio::test]
    async fn a_parent_is_looked_up_as_hosts_are() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let answers = Mutex::new(vec!["127.0.0.1".parse().unwrap()]);
        let resolver = Arc::new(Rebinding { answers, asked: AtomicUsize::new(0) });
        let parent = Parent::parse(&format!("http://parent.test:{port}")).unwrap();
        let dialer =
            Dialer::new(Arc::clone(&resolver) as Arc<dyn Resolve>, Some(parent), Vec::new()).unwrap();
        let host = Host::parse("8.8.8.8").unwrap();
        tokio::spawn(async move { drop(listener.accept().await) });
        let dialled = dialer.dial(&host, 443, (&[], Resolves::Here), later()).await;
        assert!(matches!(dialled, Err(DialError::Parent(ParentError::Io(_)))), "{dialled:?}");
        assert_eq!(resolver.asked.load(Ordering::SeqCst), 1);
    }
}
