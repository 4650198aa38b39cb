//! Sockets of the bottle's requests, which are none of the descriptors that are kept from it.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpSocket, TcpStream};

use crate::sys;

/// A connection to the first of `addresses` that takes one.
pub(super) async fn connect(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    connect_unless(addresses, sys::is_of_reserve).await
}

/// The reserve is open for a moment when others need it: a socket that was made in it is given back at once, not after the attempt.
async fn connect_unless(
    addresses: &[SocketAddr],
    is_of_reserve: impl Fn(&TcpSocket) -> bool,
) -> io::Result<TcpStream> {
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        if is_of_reserve(&socket) {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        match socket.connect(*address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_socket_of_the_reserve_is_a_shortage_and_connects_to_nothing() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let error = connect_unless(&[address], |_| true).await.unwrap_err();
        assert!(sys::is_shortage(&error), "{error}");
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let stream = connect_unless(&[closed, address], |_| false).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), address);
        assert!(connect_unless(&[], |_| false).await.is_err());
    }
}
