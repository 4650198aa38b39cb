//! Negative controls: proxies that forward whatever they are told, and one that forwards nothing. If a check passes
//! with these it checks nothing.

use std::{
    collections::BTreeSet,
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    ops::DerefMut,
    sync::Arc,
    time::Duration,
};

use rustls::{ClientConnection, ConnectionCommon, ServerConfig, ServerConnection, SideData, StreamOwned};
use rustls_pki_types::ServerName;

use crate::{
    case::{Case, Expect, Over},
    exchange::{Door, Setting},
    identity::{Identity, Trust},
    origin::Origin,
    play::{self, Play},
};

/// How long one side is listened to before the other is.
const TURN: Duration = Duration::from_millis(5);
const ORIGINS: usize = 12;
/// How long a client may take until it says something.
const HEAD_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Clone)]
enum Naive {
    /// Hands on bytes as they are, in tunnels too.
    Splices,
    /// Ends the TLS in a tunnel and hands on what is inside.
    Intercepts(Arc<ServerConfig>),
    /// Hangs up.
    Closes,
}

/// A proxy in which the origin of a request is the port in it; what else it says does not matter.
fn start(naive: &Naive, origins: &[SocketAddr]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (naive, origins) = (naive.clone(), origins.to_vec());
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let (naive, origins) = (naive.clone(), origins.clone());
            std::thread::spawn(move || drop(serve(&naive, client, &origins)));
        }
    });
    address
}

fn serve(naive: &Naive, mut client: TcpStream, origins: &[SocketAddr]) -> io::Result<()> {
    client.set_nodelay(true)?;
    client.set_read_timeout(Some(HEAD_TIMEOUT))?;
    let mut head = vec![0; 64 * 1024];
    let count = client.read(&mut head)?;
    head.truncate(count);
    let text = String::from_utf8_lossy(&head).into_owned();
    // Cases that leave the port out all go to the first; the test gives those an origin of their own.
    let named = origins.iter().find(|origin| names(&text, origin.port()));
    let origin = named.copied().unwrap_or(origins[0]);
    match naive {
        Naive::Closes => Ok(()),
        Naive::Splices | Naive::Intercepts(_) if !text.starts_with("CONNECT") => {
            let mut upstream = TcpStream::connect(origin)?;
            upstream.write_all(&head)?;
            copy(client, upstream)
        }
        Naive::Splices => {
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
            copy(client, TcpStream::connect(origin)?)
        }
        Naive::Intercepts(config) => {
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
            client.set_read_timeout(None)?;
            let mut tls = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
            while tls.is_handshaking() {
                tls.complete_io(&mut client)?;
            }
            let trust = Trust::new(
                None,
                &Identity::new(None, "localhost", std::net::Ipv4Addr::LOCALHOST.into())
                    .map_err(io::Error::other)?,
            );
            let onward = trust.and_then(|trust| trust.client("http/1.1", false)).map_err(io::Error::other)?;
            let name = ServerName::IpAddress(origin.ip().into());
            let mut onward = ClientConnection::new(onward.config, name).map_err(io::Error::other)?;
            let mut upstream = TcpStream::connect(origin)?;
            // Here and not within a turn, in which a slow machine would not get to its end.
            while onward.is_handshaking() {
                onward.complete_io(&mut upstream)?;
            }
            copy(StreamOwned::new(tls, client), StreamOwned::new(onward, upstream))
        }
    }
}

/// Whether a number of `text` is the port: the whole number, for a longer one may hold the digits of any.
fn names(text: &str, port: u16) -> bool {
    let port = port.to_string();
    text.split(|letter: char| !letter.is_ascii_digit()).any(|number| number.trim_start_matches('0') == port)
}

trait Timed {
    fn turn(&self) -> io::Result<()>;
}

impl Timed for TcpStream {
    fn turn(&self) -> io::Result<()> {
        self.set_read_timeout(Some(TURN))
    }
}

impl<C: DerefMut<Target = ConnectionCommon<S>>, S: SideData> Timed for StreamOwned<C, TcpStream> {
    fn turn(&self) -> io::Result<()> {
        self.sock.turn()
    }
}

fn copy(mut client: impl Read + Write + Timed, mut upstream: impl Read + Write + Timed) -> io::Result<()> {
    client.turn()?;
    upstream.turn()?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        for towards_upstream in [true, false] {
            let read = if towards_upstream { client.read(&mut buffer) } else { upstream.read(&mut buffer) };
            match read {
                Ok(0) => return Ok(()),
                Ok(count) if towards_upstream => {
                    upstream.write_all(&buffer[..count]).and_then(|()| upstream.flush())?
                }
                Ok(count) => client.write_all(&buffer[..count]).and_then(|()| client.flush())?,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// The ids and transports of the plays that pass with this proxy.
fn passing(naive: &Naive, wanted: impl Fn(&Case, Over) -> bool) -> (BTreeSet<String>, usize) {
    let identity = Identity::new(None, "localhost", std::net::Ipv4Addr::LOCALHOST.into()).unwrap();
    let origins: Vec<_> =
        (0..ORIGINS).map(|_| Origin::listen(([127, 0, 0, 1], 0).into(), &identity.server).unwrap()).collect();
    let addresses: Vec<_> = origins.iter().map(|origin| origin.address).collect();
    let proxy = Door::Own(start(naive, &addresses));
    let trust = Trust::new(None, &identity).unwrap();
    let setting = Setting { proxy, identity, trust, host: "localhost".into() };
    let cases = Case::all().unwrap();
    let plays: Vec<_> =
        cases.iter().flat_map(|case| Play::of(case).filter(|play| wanted(case, play.over))).collect();
    // Those that do not name their origin's port reach the first origin, so they are played there, one by one.
    let (named, unnamed): (Vec<_>, Vec<_>) = plays.into_iter().partition(Play::names_the_port);
    let mut outcomes = play::all(&setting, &origins[1..], &named);
    outcomes.extend(play::all(&setting, &origins[..1], &unnamed));
    let count = outcomes.len();
    let passed = outcomes.into_iter().filter(|outcome| outcome.passed);
    (passed.map(|outcome| format!("{} over {}", outcome.id, outcome.over)).collect(), count)
}

fn intercepting() -> Naive {
    let identity = Identity::new(None, "localhost", std::net::Ipv4Addr::LOCALHOST.into()).unwrap();
    let mut config = (*identity.server).clone();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Naive::Intercepts(Arc::new(config))
}

#[test]
fn a_longer_number_names_no_port() {
    assert!(names("CONNECT localhost:42949 HTTP/1.1", 42949));
    assert!(names("CONNECT localhost:000000042949 HTTP/1.1", 42949));
    assert!(!names("CONNECT localhost:4294967739 HTTP/1.1", 42949));
}

#[test]
fn a_proxy_that_hands_on_bytes_fails_every_refusal_outside_a_tunnel() {
    let (passed, count) = passing(&Naive::Splices, |case, over| {
        case.expect == Expect::Refused && matches!(over, Over::Raw | Over::Plain)
    });
    assert!(count > 150, "{count}");
    assert_eq!(passed, BTreeSet::new());
}

#[test]
fn a_proxy_that_intercepts_and_hands_on_fails_every_refusal_inside_a_tunnel() {
    let (passed, count) = passing(&intercepting(), |case, over| {
        case.expect == Expect::Refused && matches!(over, Over::Tunnel | Over::H2)
    });
    assert!(count > 80, "{count}");
    assert_eq!(passed, BTreeSet::new());
}

#[test]
fn a_tunnel_that_is_not_intercepted_fails_whatever_is_sent_through_it() {
    let (passed, count) =
        passing(&Naive::Splices, |case, over| case.class == "must work" && matches!(over, Over::Tunnel));
    assert!(count > 10, "{count}");
    assert_eq!(passed, BTreeSet::new());
}

#[test]
fn a_proxy_that_hangs_up_serves_nobody() {
    let (passed, count) =
        passing(&Naive::Closes, |case, _| matches!(case.expect, Expect::Served | Expect::Survives));
    assert!(count > 80, "{count}");
    assert_eq!(passed, BTreeSet::new());
}

/// Some of these are sound as they stand, and forwarding them is right; in each class that is about more than the
/// handshake there are some that are not.
#[test]
fn a_proxy_that_intercepts_and_hands_on_fails_in_every_class() {
    let sound = |case: &Case, over| case.expect == Expect::Sound && over == Over::Tunnel;
    let (passed, count) = passing(&intercepting(), sound);
    assert!(passed.len() * 3 < count, "{} of {count} pass: {passed:?}", passed.len());
    let cases = Case::all().unwrap();
    let classes = |failing: bool| -> BTreeSet<&str> {
        let of = |case: &&Case| case.over.contains(&Over::Tunnel) && case.expect == Expect::Sound;
        let open = |case: &&Case| !failing || !passed.contains(&format!("{} over {}", case.id, Over::Tunnel));
        let classes = cases.iter().filter(of).filter(open).map(|case| case.class.as_str());
        classes.filter(|class| !["ALPN", "split ClientHello"].contains(class)).collect()
    };
    assert_eq!(classes(true), classes(false));
}
