//! Where the bottle comes in: accepts, within bounds, on every side that is open to it.

use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::dns::{self, Answers};
use crate::front::Connection;
use crate::proxy::Proxy;
use crate::transparent::{self, Led};

/// How many connections the bottle may have open, over all sides.
const CONNECTIONS: usize = 12 * 1024;
/// The pause after the system would not give us a connection, so that we do not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What is in flight may take this long once we are asked to stop.
const GRACE: Duration = Duration::from_secs(5);

/// The open sockets, by what is spoken on them.
#[derive(Debug, Default)]
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
    let Doors { proxy: proxies, direct, transparent, dns_udp, dns_tcp, answers } = doors.into();
    let places = Arc::new(Semaphore::new(CONNECTIONS));
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
    proxy.open.tasks.end().await;
}

async fn accept(
    proxy: Arc<Proxy>,
    listener: TcpListener,
    side: Side,
    places: Arc<Semaphore>,
    stop: CancellationToken,
) {
    let mut connections = JoinSet::new();
    loop {
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
            Ok((stream, _)) if is_gone(&stream) => {}
            Ok((stream, _)) => {
                let connection = Connection::new(Arc::clone(&proxy), stop.clone());
                connections.spawn(async move {
                    side.serve(connection, stream).await;
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
    let _ = timeout(GRACE, async { while connections.join_next().await.is_some() {} }).await;
    connections.shutdown().await;
}

impl Side {
    async fn serve(self, connection: Connection, stream: TcpStream) {
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "cannot set TCP_NODELAY");
        }
        // Boxed, because a task's future is moved many times on its way to where it runs, and when it ends.
        match self {
            Side::Proxy => Box::pin(connection.serve_proxy(stream)).await,
            Side::Transparent(led) => Box::pin(transparent::serve(connection, stream, led)).await,
            Side::Dns(answers) => Box::pin(dns::serve_tcp(&connection, stream, answers)).await,
        }
    }
}

/// Whether who connected has left already without a word: whoever only opens and closes connections then costs little of what the next one
/// in the queue waits for.
fn is_gone(stream: &TcpStream) -> bool {
    match recv(stream.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) {
        Ok(length) => length == 0,
        Err(Errno::EAGAIN | Errno::EINTR) => false,
        Err(_) => true,
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}
