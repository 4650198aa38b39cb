//! Whoever answers for all names, and notes which it was asked for.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

/// Of a message.
const HEADER: usize = 12;
/// A question for an address of IPv4.
const A: [u8; 2] = [0, 1];
/// Asked to see what was asked before: it comes last.
const LAST: &str = "last.control.example";
/// How long a connection may be open that says nothing.
const SILENCE: Duration = Duration::from_secs(2);

/// A name server on port 53, by UDP and TCP, for as long as the process lives.
#[derive(Debug)]
pub struct NameServer {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl NameServer {
    /// One on `address`, which every name leads to.
    pub fn start(address: Ipv4Addr) -> Result<Self> {
        let at = SocketAddr::new(IpAddr::V4(address), 53);
        let told = || format!("a name server on {at}");
        let (udp, tcp) = (UdpSocket::bind(at).with_context(told)?, TcpListener::bind(at).with_context(told)?);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let notes = [Arc::clone(&asked), Arc::clone(&asked)];
        let [by_udp, by_tcp] = notes.map(|asked| Zone { address, asked });
        std::thread::spawn(move || {
            let mut query = [0; 4096];
            while let Ok((length, from)) = udp.recv_from(&mut query) {
                let answer = by_udp.answer(&query[..length]);
                drop(answer.map(|answer| udp.send_to(&answer, from)));
            }
        });
        std::thread::spawn(move || {
            // One after the other: whoever connects later is heard later.
            for stream in tcp.incoming().flatten() {
                drop(by_tcp.serve(stream));
            }
        });
        Ok(Self { address: at, asked })
    }

    /// The names that it was asked for until now, by either way, sorted, each once.
    pub fn asked(&self) -> Result<Vec<String>> {
        let question = question(LAST);
        let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        udp.set_read_timeout(Some(crate::PATIENCE))?;
        udp.send_to(&question, self.address)?;
        udp.recv(&mut [0; 512]).context("no answer by UDP")?;
        let mut tcp = TcpStream::connect(self.address)?;
        tcp.set_read_timeout(Some(crate::PATIENCE))?;
        let length = u16::try_from(question.len())?.to_be_bytes();
        tcp.write_all(&[&length[..], &question].concat())?;
        ensure!(tcp.read(&mut [0; 512])? > 0, "no answer by TCP");
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
        asked.retain(|name| name != LAST);
        asked.sort_unstable();
        asked.dedup();
        Ok(asked)
    }
}

/// What is answered, and where it is noted.
struct Zone {
    address: Ipv4Addr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Zone {
    fn serve(&self, mut stream: TcpStream) -> Result<()> {
        stream.set_read_timeout(Some(SILENCE))?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut query)?;
        let answer = self.answer(&query).context("no question")?;
        let length = u16::try_from(answer.len())?.to_be_bytes();
        stream.write_all(&[&length[..], &answer].concat())?;
        Ok(())
    }

    /// Our address to a question for one, else nothing; `None` to what is no question.
    fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        let mut labels = Vec::new();
        let mut rest = query.get(HEADER..)?;
        let kind = loop {
            let (&length, tail) = rest.split_first()?;
            let (label, tail) = tail.split_at_checked(usize::from(length))?;
            rest = tail;
            if length == 0 {
                break rest.first_chunk::<4>()?.first_chunk::<2>()?;
            }
            labels.push(String::from_utf8_lossy(label).into_owned());
        };
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(labels.join("."));
        let question = query.get(HEADER..query.len() - rest.len() + 4)?;
        let answers = u8::from(*kind == A);
        let mut reply = [&query[..2], &[0x81, 0x80, 0, 1, 0, answers, 0, 0, 0, 0], question].concat();
        if answers > 0 {
            // The name of the question, for a minute.
            reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            reply.extend(self.address.octets());
        }
        Some(reply)
    }
}

fn question(name: &str) -> Vec<u8> {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).expect("a label is short"));
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    query
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_is_asked_for_is_noted_and_answered() {
        let zone = Zone { address: Ipv4Addr::new(192, 0, 2, 9), asked: Arc::default() };
        let answer = zone.answer(&question("a.example")).unwrap();
        assert!(answer.ends_with(&[0, 4, 192, 0, 2, 9]));
        assert_eq!(*zone.asked.lock().unwrap(), ["a.example"]);
        assert_eq!(zone.answer(&question("a.example")[..20]), None);
    }
}
