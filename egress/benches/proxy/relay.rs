//! A relay: it answers CONNECT and passes on bytes that it does not look at. What it takes is the machine's own price of two connections,
//! and no proxy that reads what goes through can be below it.

use std::ffi::OsStr;
use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

/// Where it listens; this program is one when the variable is set.
pub(crate) const ADDRESS: &str = "EGRESS_BENCH_RELAY";

pub(crate) fn run(address: &OsStr) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind(address.to_str().unwrap()).await.unwrap();
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(pass_on(stream));
        }
    });
}

async fn pass_on(mut client: TcpStream) {
    client.set_nodelay(true).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        // A probe says nothing.
        let Ok(byte) = client.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let port = head.split_whitespace().nth(1).and_then(|host| host.rsplit(':').next()).unwrap();
    let mut origin = TcpStream::connect((Ipv4Addr::LOCALHOST, port.parse().unwrap())).await.unwrap();
    origin.set_nodelay(true).unwrap();
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    let _ = copy_bidirectional(&mut client, &mut origin).await;
}
