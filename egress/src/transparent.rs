//! Connections that were meant for another address and were led here, for clients that ignore proxy variables.
//!
//! Of where they were meant to go, the port alone is believed: an address says nothing about a name. The name is the one
//! in the ClientHello or in Host, and it is resolved here, as any other.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;
use tracing::debug;

use crate::exchange::Via;
use crate::front::{Connection, HEAD_TIMEOUT, Next, first_bytes};
use crate::splice::Prefixed;
use crate::{sys, tunnel};

const TLS_HANDSHAKE: u8 = 22;
const BACKLOG: u32 = 1024;

/// A listener for connections that netfilter redirects, or, where we may, hands over as they are (TPROXY).
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    let handed_over = match address {
        SocketAddr::V4(_) => setsockopt(&socket, sockopt::IpTransparent, &true).map_err(io::Error::from),
        SocketAddr::V6(_) => sys::set_ipv6_transparent(&socket),
    };
    match handed_over {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            debug!(%address, "no right to be transparent: what is redirected is served, what is handed over is not");
        }
        Err(error) => return Err(error),
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// How connections come to a listener.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Led {
    /// DNS gives its address for every name: they mean its port.
    ByName(u16),
    /// They were meant for elsewhere, and never for its own port.
    FromElsewhere(u16),
}

/// Serves one connection that was led here, of which `already` was read: TLS by its ClientHello, everything else as HTTP/1.1.
pub(crate) async fn serve(
    connection: Connection,
    already: Vec<u8>,
    mut stream: TcpStream,
    led: Led,
) -> Option<Next> {
    let port = match led {
        Led::ByName(port) => port,
        Led::FromElsewhere(own) => match destination(&stream) {
            Ok(port) if port == own => {
                debug!("a connection that was meant for the listener itself");
                return None;
            }
            Ok(port) => port,
            Err(error) => {
                debug!(%error, "cannot tell where a connection was meant to go");
                return None;
            }
        },
    };
    let first = tokio::select! {
        first = timeout(HEAD_TIMEOUT, first_bytes(already, &mut stream)) => first,
        () = connection.stop.cancelled() => return None,
    };
    let Ok(Ok(bytes)) = first else { return None };
    match *bytes.first()? {
        TLS_HANDSHAKE => tunnel::led_here(connection, stream, bytes, port).await,
        _ => Some(Next::new(
            connection.serve_http1(Prefixed::new(bytes, stream), Arc::new(Via::LedHere(port))),
        )),
    }
}

/// The port that the connection was meant for.
fn destination(stream: &TcpStream) -> io::Result<u16> {
    let local = stream.local_addr()?;
    // A listener on `[::]` is come to over IPv4 too.
    let original = match local.ip().to_canonical() {
        IpAddr::V4(_) => getsockopt(stream, sockopt::OriginalDst).map(|found| found.sin_port),
        IpAddr::V6(_) => getsockopt(stream, sockopt::Ip6tOriginalDst).map(|found| found.sin6_port),
    };
    match original {
        Ok(port) => Ok(u16::from_be(port)),
        // Not redirected, or nothing keeps track of it: then it is as TPROXY leaves it.
        Err(Errno::ENOENT | Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => Ok(local.port()),
        Err(error) => Err(error.into()),
    }
}
