//! Playing one case against a proxy, with an origin of our own behind it that counts who called.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
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

/// A TCP server that takes down what it is sent, and greets.
pub(crate) struct Origin {
    heads: Arc<Mutex<Vec<String>>>,
}

impl Origin {
    /// Listens on `address` until the program ends.
    pub(crate) fn listen(address: SocketAddr) -> std::io::Result<(Self, SocketAddr)> {
        let listener = TcpListener::bind(address)?;
        let bound = listener.local_addr()?;
        let heads = Arc::new(Mutex::new(Vec::new()));
        let taken = Arc::clone(&heads);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                // Counted at once: the runner may look while we still read.
                let place = push(&taken, String::new());
                // A peer that hung up was counted all the same.
                let head = read_until(&mut stream, SILENCE, ends_head).unwrap_or_default();
                lock(&taken)[place] = String::from_utf8_lossy(&head).to_ascii_lowercase();
                let _gone = stream.write_all(ORIGIN_BANNER);
            }
        });
        Ok((Self { heads }, bound))
    }

    /// What came since the first `seen` connections.
    fn since(&self, seen: usize) -> Vec<String> {
        lock(&self.heads)[seen..].to_vec()
    }

    fn calls(&self) -> usize {
        lock(&self.heads).len()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn push(heads: &Mutex<Vec<String>>, head: String) -> usize {
    let mut heads = lock(heads);
    heads.push(head);
    heads.len() - 1
}

fn ends_head(seen: &[u8]) -> bool {
    seen.windows(4).any(|window| window == b"\r\n\r\n")
}

/// Plays `case` against the proxy at `proxy`.
pub(crate) fn play(case: &Case, proxy: SocketAddr, origin: &Origin) -> Outcome {
    let before = origin.calls();
    let seen = exchange(case, proxy);
    let forwarded = origin.since(before);
    let contacted = forwarded.len();
    let (passed, seen) = match seen {
        Err(error) => (false, format!("could not play: {error}")),
        Ok(_) if case.expect == Expect::Reframed && contacted > 0 => judge_framing(&forwarded),
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

fn judge_framing(heads: &[String]) -> (bool, String) {
    let twice = |head: &String| head.contains("content-length:") && head.contains("transfer-encoding:");
    let unread = |head: &String| !ends_head(head.as_bytes());
    let sound = heads.len() == 1 && !heads.iter().any(|head| twice(head) || unread(head));
    (sound, format!("forwarded as {} request(s)", heads.len()))
}

fn judge(expect: Expect, reply: &Reply) -> (bool, String) {
    let status = status(&reply.head);
    match (expect, status) {
        (Expect::Refused | Expect::Reframed, None) if reply.head.is_empty() => (true, "closed".into()),
        (Expect::Refused | Expect::Reframed, Some(code)) => (code >= 400, format!("status {code}")),
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
    let head = read_until(&mut stream, PATIENCE, ends_head)?;
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

    #[test]
    fn two_framings_at_the_origin_fail() {
        let head = |text: &str| text.to_owned();
        assert!(!judge_framing(&[head("content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n")]).0);
        assert!(!judge_framing(&[head("\r\n\r\n"), head("\r\n\r\n")]).0);
        assert!(judge_framing(&[head("transfer-encoding: chunked\r\n\r\n")]).0);
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
            upstream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
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
