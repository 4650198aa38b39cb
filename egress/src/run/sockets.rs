//! The sockets that the bottle comes in by: those that were handed over, or our own.

use std::net::{IpAddr, SocketAddr};

use tokio::net::{TcpListener, UdpSocket};

use super::Error;
use crate::activation::Inheritance;
use crate::cli::Settings;
use crate::dns::Answers;
use crate::doors::Doors;
use crate::transparent;

/// Opens what was not handed over, for so many `connections`. The addresses are all that we listen on for connections.
pub(super) async fn open(
    settings: &Settings,
    inheritance: &mut Inheritance,
    connections: usize,
) -> Result<(Doors, Vec<SocketAddr>), Error> {
    let mut doors = Doors {
        proxy: adopt(std::mem::take(&mut inheritance.sockets))?,
        direct: adopt(std::mem::take(&mut inheritance.direct))?,
        transparent: adopt(std::mem::take(&mut inheritance.transparent))?,
        dns_tcp: adopt(std::mem::take(&mut inheritance.dns_tcp))?,
        connections,
        ..Doors::default()
    };
    for socket in std::mem::take(&mut inheritance.dns_udp) {
        doors.dns_udp.push(UdpSocket::from_std(socket).map_err(Error::Inherited)?);
    }
    if doors.proxy.is_empty() {
        for &address in &settings.listen {
            doors.proxy.push(TcpListener::bind(address).await.map_err(failed(address))?);
        }
    }
    if doors.direct.is_empty() {
        for &address in &settings.direct {
            doors.direct.push(TcpListener::bind(address).await.map_err(failed(address))?);
        }
    }
    if doors.transparent.is_empty() {
        for &address in &settings.transparent {
            doors.transparent.push(transparent::listen(address).map_err(failed(address))?);
        }
    }
    if doors.dns_udp.is_empty() && doors.dns_tcp.is_empty() {
        for &address in &settings.dns {
            let socket = UdpSocket::bind(address).await.map_err(failed(address))?;
            // With port 0, the one that the system chose serves both.
            let address = socket.local_addr().map_err(failed(address))?;
            doors.dns_udp.push(socket);
            doors.dns_tcp.push(TcpListener::bind(address).await.map_err(failed(address))?);
        }
    }
    doors.answers = answers(settings, &doors)?;
    let listeners = doors.proxy.iter().chain(&doors.direct).chain(&doors.transparent).chain(&doors.dns_tcp);
    let addresses = listeners.map(TcpListener::local_addr).collect::<Result<_, _>>();
    Ok((doors, addresses.map_err(Error::Inherited)?))
}

/// What is set; else the addresses that DNS is answered on.
fn answers(settings: &Settings, doors: &Doors) -> Result<Answers, Error> {
    if doors.dns_udp.is_empty() && doors.dns_tcp.is_empty() {
        return Ok(Answers::default());
    }
    let set: Answers = settings.dns_answer.iter().copied().collect();
    if set != Answers::default() {
        return Ok(set);
    }
    let own = doors.dns_udp.iter().map(UdpSocket::local_addr);
    let own = own.chain(doors.dns_tcp.iter().map(TcpListener::local_addr));
    let own: Answers =
        own.filter_map(Result::ok).map(|address| address.ip()).collect::<Vec<IpAddr>>().into_iter().collect();
    if own == Answers::default() { Err(Error::NoDnsAnswer) } else { Ok(own) }
}

fn adopt(sockets: Vec<std::net::TcpListener>) -> Result<Vec<TcpListener>, Error> {
    sockets.into_iter().map(|socket| TcpListener::from_std(socket).map_err(Error::Inherited)).collect()
}

fn failed(address: SocketAddr) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Listen { address, source }
}
