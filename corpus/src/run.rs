//! Playing one case against a proxy, with an origin of our own behind it that counts who called.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::case::{Case, Expect, octets};

/// How long the proxy may take to answer or to close.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a tunnel may stay silent before it counts as silent.
const SILENCE: Duration = Duration::from_millis(700);
/// What our origin answers to anything: seeing it means that bytes were forwarded.
const ORIGIN_BANNER: &[u8] = b"bottlecap-corpus-origin-was-reached\r\n";

/// What came of one case.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    /// The case.
    pub(crate) id: String,
    /// Its class.
    pub(crate) class: String,
    /// Whether the proxy did what a sound one does.
    pub(crate) passed: bool,
    /// What was seen, for a person.
    pub(crate) seen: String,
}

/// A TCP server that greets, and counts who came.
pub(crate) struct Origin {
    calls: Arc<AtomicUsize>,
}

impl Origin {
    /// Listens on `address` until the program ends.
    pub(crate) fn listen(address: SocketAddr) -> std::io::Result<(Self, SocketAddr)> {
        let listener = TcpListener::bind(address)?;
        let bound = listener.local_addr()?;
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                counted.fetch_add(1, Ordering::SeqCst);
                if let Ok(mut stream) = stream {
                    // A peer that hung up was counted all the same.
                    let _gone = stream.write_all(ORIGIN_BANNER);
                }
            }
        });
        Ok((Self { calls }, bound))
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

/// Plays `case` against the proxy at `proxy`.
pub(crate) fn play(case: &Case, proxy: SocketAddr, origin: &Origin) -> Outcome {
    let before = origin.calls();
    let seen = exchange(case, proxy);
    let contacted = origin.calls() - before;
    let (passed, seen) = match seen {
        Err(error) => (false, format!("could not play: {error}")),
        Ok(_) if contacted > 0 => (false, format!("the origin was contacted {contacted} time(s)")),
        Ok(reply) => judge(case.expect, &reply),
    };
    Outcome { id: case.id.clone(), class: case.class.clone(), passed, seen }
}

/// What the proxy sent: to the head, and then inside the tunnel.
struct Reply {
    head: Vec<u8>,
    tunnel: Vec<u8>,
}

fn judge(expect: Expect, reply: &Reply) -> (bool, String) {
    let status = status(&reply.head);
    match (expect, status) {
        (Expect::Refused, None) if reply.head.is_empty() => (true, "closed".into()),
        (Expect::Refused, Some(code)) => (code >= 400, format!("status {code}")),
        (Expect::NothingForwarded, Some(code)) if code >= 400 => {
            (true, format!("refused at CONNECT with {code}"))
        }
        (Expect::NothingForwarded, Some(200)) => {
            let reached = reply.tunnel.windows(ORIGIN_BANNER.len()).any(|window| window == ORIGIN_BANNER);
            (!reached, format!("tunnel answered {} byte(s)", reply.tunnel.len()))
        }
        _ => (false, format!("an answer that is not HTTP, {} byte(s)", reply.head.len())),
    }
}

/// The status code of an HTTP/1 response head.
fn status(head: &[u8]) -> Option<u16> {
    let line = head.split(|byte| *byte == b'\r').next()?;
    let line = std::str::from_utf8(line).ok()?;
    line.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()
}

fn exchange(case: &Case, proxy: SocketAddr) -> std::io::Result<Reply> {
    let mut stream = TcpStream::connect_timeout(&proxy, PATIENCE)?;
    stream.set_nodelay(true)?;
    send(&mut stream, &octets(&case.head))?;
    let head = read_until(&mut stream, PATIENCE, |seen| seen.windows(4).any(|w| w == b"\r\n\r\n"))?;
    let mut tunnel = Vec::new();
    if let (Some(parts), Some(200)) = (&case.tunnel, status(&head)) {
        for part in parts {
            send(&mut stream, &octets(part))?;
        }
        tunnel = read_until(&mut stream, SILENCE, |_| false)?;
    }
    Ok(Reply { head, tunnel })
}

/// Writes; a peer that already closed has answered by that.
fn send(stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    match stream.write_all(bytes) {
        Err(error) if hung_up(&error) => Ok(()),
        other => other,
    }
}

fn read_until(
    stream: &mut TcpStream,
    patience: Duration,
    enough: impl Fn(&[u8]) -> bool,
) -> std::io::Result<Vec<u8>> {
    let deadline = Instant::now() + patience;
    let mut seen = Vec::new();
    let mut buffer = [0_u8; 4096];
    while !enough(&seen) && seen.len() < 64 * 1024 {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => seen.extend_from_slice(&buffer[..n]),
            Err(error) if hung_up(&error) => break,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(seen)
}

fn hung_up(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(head: &str, tunnel: &[u8]) -> Reply {
        Reply { head: head.as_bytes().to_vec(), tunnel: tunnel.to_vec() }
    }

    #[test]
    fn an_answer_below_400_is_not_a_refusal() {
        assert!(!judge(Expect::Refused, &reply("HTTP/1.1 200 OK\r\n\r\n", b"")).0);
        assert!(!judge(Expect::Refused, &reply("HTTP/1.1 302 Found\r\n\r\n", b"")).0);
        assert!(judge(Expect::Refused, &reply("HTTP/1.1 403 Forbidden\r\n\r\n", b"")).0);
        assert!(judge(Expect::Refused, &reply("", b"")).0);
    }

    #[test]
    fn a_tunnel_that_carries_the_origins_banner_fails() {
        assert!(!judge(Expect::NothingForwarded, &reply("HTTP/1.1 200 OK\r\n\r\n", ORIGIN_BANNER)).0);
        assert!(judge(Expect::NothingForwarded, &reply("HTTP/1.1 200 OK\r\n\r\n", b"\x15\x03\x03")).0);
    }

    /// Negative control: a proxy that opens a raw tunnel to whatever is asked fails the tunnel cases.
    #[test]
    fn a_naive_proxy_fails() {
        let (origin, origin_at) = Origin::listen(([127, 0, 0, 1], 0).into()).unwrap();
        let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy_at = proxy.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut client, _) = proxy.accept().unwrap();
            read_until(&mut client, PATIENCE, |seen| seen.ends_with(b"\r\n\r\n")).unwrap();
            let mut upstream = TcpStream::connect(origin_at).unwrap();
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            let mut banner = vec![0; ORIGIN_BANNER.len()];
            upstream.read_exact(&mut banner).unwrap();
            client.write_all(&banner).unwrap();
        });
        let case = Case::all()
            .unwrap()
            .into_iter()
            .find(|case| case.tunnel.is_some())
            .unwrap()
            .aimed_at(&origin_at.to_string());
        let outcome = play(&case, proxy_at, &origin);
        assert!(!outcome.passed, "{outcome:?}");
        assert_eq!(outcome.seen, "the origin was contacted 1 time(s)");
    }
}
