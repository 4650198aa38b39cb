//! Connections that are made in one place and used in another: a process in a bottle opens them, and the player outside, beside the
//! origins, speaks on them.

use std::{
    io::{self, IoSlice, IoSliceMut, Write},
    net::{SocketAddr, TcpStream},
    os::{
        fd::AsRawFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};

use crate::sys;

/// Comes with each connection: a descriptor alone is no message.
const HERE: &[u8] = b".";

/// Gives each who asks on `socket` a connection to `proxy`, for as long as this process lives.
pub(crate) fn lend(socket: &UnixListener, proxy: SocketAddr) -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "lending")?;
    out.flush()?;
    for asker in socket.incoming() {
        // Who is given none sees that the line is closed.
        if let (Ok(asker), Ok(stream)) = (asker, TcpStream::connect(proxy)) {
            let descriptors = [stream.as_raw_fd()];
            let rights = [ControlMessage::ScmRights(&descriptors)];
            // It may be gone by now.
            let _ = sendmsg::<UnixAddr>(
                asker.as_raw_fd(),
                &[IoSlice::new(HERE)],
                &rights,
                MsgFlags::empty(),
                None,
            );
        }
    }
    Ok(())
}

/// A connection from whoever lends them on `socket`.
pub(crate) fn borrow(socket: &Path) -> io::Result<TcpStream> {
    let lender = UnixStream::connect(socket)?;
    let mut byte = [0; 1];
    let mut pieces = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<UnixAddr>(lender.as_raw_fd(), &mut pieces, Some(&mut space), flags)?;
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = message
            && let Some(descriptor) = descriptors.first()
        {
            return Ok(sys::owned(*descriptor).into());
        }
    }
    Err(io::Error::new(io::ErrorKind::ConnectionRefused, "no connection to the proxy was lent"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::{io::Read, net::TcpListener};

    #[test]
    fn what_is_lent_is_a_connection_to_the_proxy() {
        let directory = std::env::temp_dir().join(format!("bc-lend-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let socket = directory.join("dial.sock");
        let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, listener) = (proxy.local_addr().unwrap(), UnixListener::bind(&socket).unwrap());
        std::thread::spawn(move || lend(&listener, address));
        let mut borrowed = borrow(&socket).unwrap();
        borrowed.write_all(b"hello").unwrap();
        drop(borrowed);
        let mut text = String::new();
        proxy.accept().unwrap().0.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        std::fs::remove_dir_all(directory).unwrap();
    }
}
