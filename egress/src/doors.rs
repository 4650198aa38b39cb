//! Where the bottle comes in: accepts, within bounds, on every side that is open to it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, yield_now};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::alarm;
use crate::dns::{self, Answers};
use crate::front::{Connection, FIRST_READ, Next};
use crate::proxy::Proxy;
use crate::room::Room;
use crate::splice::Prefixed;
use crate::sys;
use crate::transparent::{self, Led};

/// So many connections are taken before others have their turn: a task may do 128 things in its own, and who only opens and closes
/// connections has as many waiting.
const TAKEN_AT_ONCE: usize = 8;
/// The pause after the system would not give us a connection, so that we do not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What is in flight may take this long once we are asked to stop.
const GRACE: Duration = Duration::from_secs(5);
/// And so long after that connections, then tasks, which are told to end: what computes ends only with its piece. All of it is less than what
/// the supervisor gives.
const PARTING: Duration = Duration::from_millis(500);

/// The open sockets, by what is spoken on them.
#[derive(Debug)]
pub struct Doors {
    /// HTTP proxy.
    pub proxy: Vec<TcpListener>,
    /// What names lead here, on the port that was meant.
    pub direct: Vec<TcpListener>,
    /// What was meant for another address and was led here.
    pub transparent: Vec<TcpListener>,
    /// DNS over UDP.
    pub dns_udp: Vec<UdpSocket>,
    /// DNS over TCP.
    pub dns_tcp: Vec<TcpListener>,
    /// What DNS answers with.
    pub answers: Answers,
    /// How many connections the bottle may have open, over all sides, with the tunnels in HTTP/2. Each listener keeps one of these places
    /// for who comes next.
    pub connections: usize,
}

impl Default for Doors {
    fn default() -> Doors {
        Doors {
            proxy: Vec::new(),
            direct: Vec::new(),
            transparent: Vec::new(),
            dns_udp: Vec::new(),
            dns_tcp: Vec::new(),
            answers: Answers::default(),
            connections: Room::WHOLE.from_bottle,
        }
    }
}

impl From<Vec<TcpListener>> for Doors {
    fn from(proxy: Vec<TcpListener>) -> Doors {
        Doors { proxy, ..Doors::default() }
    }
}

/// What is spoken on a listener.
#[derive(Clone, Copy)]
enum Side {
    Proxy,
    Transparent(Led),
    Dns(Answers),
}

/// Serves on `doors` until `stop`, then lets what is in flight finish within a grace of five seconds.
pub async fn serve(proxy: Arc<Proxy>, doors: impl Into<Doors>, stop: CancellationToken) {
    let Doors { proxy: proxies, direct, transparent, dns_udp, dns_tcp, answers, connections } = doors.into();
    let places = Arc::new(Semaphore::new(connections));
    let mut accepting = JoinSet::new();
    let port = |listener: &TcpListener| listener.local_addr().map_or(0, |address| address.port());
    let proxies = proxies.into_iter().map(|listener| (listener, Side::Proxy));
    let led_here = |how: fn(u16) -> Led| {
        move |listener: TcpListener| {
            let side = Side::Transparent(how(port(&listener)));
            (listener, side)
        }
    };
    let direct = direct.into_iter().map(led_here(Led::ByName));
    let transparent = direct.chain(transparent.into_iter().map(led_here(Led::FromElsewhere)));
    let names = dns_tcp.into_iter().map(|listener| (listener, Side::Dns(answers)));
    for (listener, side) in proxies.chain(transparent).chain(names) {
        accepting.spawn(accept(Arc::clone(&proxy), listener, side, Arc::clone(&places), stop.clone()));
    }
    for socket in dns_udp {
        let answering = dns::serve_udp(Arc::clone(&proxy), socket, answers);
        let stop = stop.clone();
        accepting.spawn(async move {
            stop.run_until_cancelled_owned(answering).await;
        });
    }
    while accepting.join_next().await.is_some() {}
    // No one of the bottle is left to wait for: what still runs are idle connections to upstream.
    part(proxy.open.tasks.end()).await;
}

async fn accept(
    proxy: Arc<Proxy>,
    listener: TcpListener,
    side: Side,
    places: Arc<Semaphore>,
    stop: CancellationToken,
) {
    prepare(&listener);
    let mut connections = JoinSet::new();
    let mut taken: usize = 0;
    loop {
        taken += 1;
        if taken.is_multiple_of(TAKEN_AT_ONCE) {
            yield_now().await;
        }
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = stop.cancelled() => break,
            next = next => next,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            // It came in while the reserve was open for someone else.
            Ok((stream, _)) if sys::is_of_reserve(&stream) => {}
            Ok((mut stream, _)) => {
                let Some(already) = said_already(&mut stream) else { continue };
                let connection = Connection::new(Arc::clone(&proxy), stop.clone(), Arc::clone(&places));
                connections.spawn(async move {
                    if let Some(next) = side.serve(connection, already, stream).await {
                        next.run().await;
                    }
                    drop(place);
                });
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    alarm::ring_all();
    let _ = timeout(GRACE, async { while connections.join_next().await.is_some() {} }).await;
    part(connections.shutdown()).await;
}

/// Waits for what was told to end; what does not ends with the process, unrecorded.
async fn part(ending: impl Future<Output = ()>) {
    if timeout(PARTING, ending).await.is_err() {
        warn!("what still computes is not waited for");
    }
}

impl Side {
    /// Serves the beginning of `stream`, of which `already` was read.
    async fn serve(self, connection: Connection, already: Vec<u8>, stream: TcpStream) -> Option<Next> {
        // Boxed, because a task's future is moved many times on its way to where it runs, and when it ends.
        match self {
            Side::Proxy => Box::pin(connection.serve_proxy(already, stream)).await,
            Side::Transparent(led) => Box::pin(transparent::serve(connection, already, stream, led)).await,
            Side::Dns(answers) => {
                Box::pin(dns::serve_tcp(&connection, Prefixed::new(already, stream), answers)).await;
                None
            }
        }
    }
}

/// What is set here holds for what connects from now on. The client speaks first on every side, so none is woken for before it did.
fn prepare(listener: &TcpListener) {
    if let Err(error) = setsockopt(listener, sockopt::TcpNoDelay, &true) {
        debug!(%error, "cannot set TCP_NODELAY");
    }
    if let Err(error) = sys::set_defer_accept(listener) {
        debug!(%error, "cannot set TCP_DEFER_ACCEPT");
    }
}

/// What a new connection has said already; nothing when who connected has left without a word: whoever only opens and closes connections
/// then costs little of what the next one in the queue waits for. tokio takes a new connection for readable until a read has shown otherwise.
fn said_already(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(FIRST_READ);
    match stream.read_buf(&mut bytes).now_or_never() {
        Some(Ok(0) | Err(_)) => None,
        Some(Ok(_)) | None => Some(bytes),
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// A listener as it is served, and a connection to it that was taken.
    async fn taken(says: Option<&[u8]>) -> TcpStream {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        prepare(&listener);
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        match says {
            Some(bytes) => client.write_all(bytes).await.unwrap(),
            None => drop(client),
        }
        listener.accept().await.unwrap().0
    }

    #[tokio::test]
    async fn what_was_said_before_it_was_taken_is_read_at_once() {
        let mut stream = taken(Some(b"CONNECT")).await;
        assert_eq!(said_already(&mut stream).as_deref(), Some(&b"CONNECT"[..]));
        assert!(stream.nodelay().unwrap());
    }

    #[tokio::test]
    async fn who_left_without_a_word_is_not_served() {
        assert_eq!(said_already(&mut taken(None).await), None);
    }
}
