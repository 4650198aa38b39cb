//! One exchange with the proxy: bytes out, statuses in.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    time::{Duration, Instant},
};

use rustls::{ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;

use crate::{
    case::{Case, Expect, Over, Script, Step, Tls},
    h2,
    identity::{Client, Identity, Trust},
    judge::Seen,
    lend,
    template::Names,
};

/// How long the proxy may take to say anything, where saying nothing is right too.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long it may take where an answer must come: a busy machine is no finding.
const LONG: Duration = Duration::from_secs(30);
/// How long nothing may come after something has, for it to count as all.
const QUIET: Duration = Duration::from_millis(200);
/// Between two parts that must not be read as one.
const GAP: Duration = Duration::from_millis(15);
/// What is read of an answer at most.
const ENOUGH: usize = 1 << 20;

/// What every exchange of a run has in common.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) proxy: Door,
    pub(crate) identity: Identity,
    pub(crate) trust: Trust,
    pub(crate) host: String,
}

/// Where connections to the proxy come from.
#[derive(Debug)]
pub(crate) enum Door {
    /// From here.
    Own(SocketAddr),
    /// From whoever listens on that socket.
    Lent(PathBuf),
}

impl Door {
    fn connect(&self) -> io::Result<TcpStream> {
        match self {
            Door::Own(address) => TcpStream::connect_timeout(address, LONG),
            Door::Lent(socket) => lend::borrow(socket),
        }
    }
}

/// Plays the case; what reached the origin is not looked at here.
pub(crate) fn exchange(
    setting: &Setting,
    case: &Case,
    over: Over,
    origin: SocketAddr,
) -> anyhow::Result<Seen> {
    let names = Names { host: setting.host.clone(), address: origin, absolute: over == Over::Plain };
    let mut stream = setting.proxy.connect()?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let wait = Wait::of(case);
    if over == Over::Raw {
        return Ok(raw(&mut stream, case, &names, wait)?);
    }
    if over == Over::Plain {
        return Ok(http1(&mut stream, &parts(case, &names), wait)?);
    }
    let connect =
        case.connect.as_deref().unwrap_or("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
    send(&mut stream, &names.fill(connect))?;
    let (head, end) = read(&mut stream, wait.first(), ends_head)?;
    match statuses(&head)[..] {
        [200] => {}
        ref other => return Ok(Seen { statuses: other.to_vec(), end: end.into(), ..Seen::default() }),
    }
    let alpn = case.tls.alpn.as_deref().unwrap_or(if over == Over::H2 { "h2" } else { "http/1.1" });
    let client = setting.trust.client(alpn, case.tls.old)?;
    let mut seen = match handshake(stream, &client, &case.tls, setting) {
        Err(error) => Seen { end: format!("handshake: {error}"), ..Seen::default() },
        Ok(stream) if over == Over::H2 && stream.conn.alpn_protocol() != Some(b"h2") => {
            Seen { end: "no HTTP/2 in the tunnel".into(), ..Seen::default() }
        }
        Ok(mut stream) if over == Over::H2 => http2(&mut stream, case, &names, wait)?,
        Ok(mut stream) => http1(&mut stream, &parts(case, &names), wait)?,
    };
    seen.bypassed = client.met(&setting.identity.leaf);
    Ok(seen)
}

fn parts(case: &Case, names: &Names) -> Vec<Vec<u8>> {
    match &case.play {
        Script::Send(parts) => parts.iter().map(|part| names.fill(part)).collect(),
        Script::Request(request) => {
            let mut text =
                format!("{} {{to}}{} HTTP/1.1\r\nHost: {{authority}}\r\n", request.method, request.path);
            for (name, value) in &request.headers {
                text += &format!("{name}: {value}\r\n");
            }
            let body = request.body.as_deref().map(|body| names.fill(body));
            if let Some(body) = &body {
                text += &format!("Content-Length: {}\r\n", body.len());
            }
            let mut bytes = names.fill(&(text + "\r\n"));
            bytes.extend(body.unwrap_or_default());
            vec![bytes]
        }
        Script::Frames(_) => Vec::new(),
    }
}

fn raw(stream: &mut TcpStream, case: &Case, names: &Names, wait: Wait) -> io::Result<Seen> {
    let parts = parts(case, names);
    let (first, rest) = parts.split_first().map_or((&[][..], &[][..]), |(first, rest)| (&first[..], rest));
    send(stream, first)?;
    let (head, end) = read(stream, wait.first(), ends_head)?;
    let mut seen = Seen { statuses: statuses(&head), end: end.into(), ..Seen::default() };
    if seen.statuses == [200] && !rest.is_empty() {
        // The tunnel may open: it leads to the proxy itself until it knows more.
        seen = http1(stream, rest, wait)?;
    }
    Ok(seen)
}

fn http1(stream: &mut (impl Read + Write + Socket), parts: &[Vec<u8>], wait: Wait) -> io::Result<Seen> {
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            stream.socket().set_read_timeout(Some(GAP))?;
            // Bytes or the end of them: either way the next part goes out.
            drop(stream.socket().peek(&mut [0]));
        }
        send(stream, part)?;
    }
    let (answer, end) =
        read(stream, wait, |seen| wait.answers.is_some_and(|count| statuses(seen).len() >= count))?;
    Ok(Seen { statuses: statuses(&answer), end: end.into(), ..Seen::default() })
}

fn http2(
    stream: &mut (impl Read + Write + Socket),
    case: &Case,
    names: &Names,
    wait: Wait,
) -> io::Result<Seen> {
    let frames: Vec<Step> = match &case.play {
        Script::Frames(frames) => frames.clone(),
        Script::Request(request) => h2::request(request),
        Script::Send(_) => Vec::new(),
    };
    let (script, opened) = h2::script(&frames, names);
    send(stream, &h2::opening())?;
    let (mut answer, mut end) =
        read(stream, wait.first(), |seen| h2::answers(seen).settings || seen.starts_with(b"HTTP/"))?;
    if end != CLOSED {
        send(stream, &h2::acknowledgement())?;
        for piece in script.chunks(64 * 1024) {
            send(stream, piece)?;
        }
        let before = answer.len();
        let over = |seen: &[u8]| {
            let answers = h2::answers(&[&answer[..before], seen].concat());
            answers.goodbye || (opened > 0 && answers.ended >= opened)
        };
        let (rest, why) = read(stream, wait, over)?;
        answer.extend(rest);
        end = why;
    }
    let answers = h2::answers(&answer);
    let end = if answers.goodbye { "GOAWAY" } else { end };
    Ok(Seen { statuses: answers.statuses, end: end.into(), ..Seen::default() })
}

fn handshake(
    mut stream: TcpStream,
    client: &Client,
    tls: &Tls,
    setting: &Setting,
) -> anyhow::Result<StreamOwned<ClientConnection, TcpStream>> {
    let name = match &tls.sni {
        // rustls sends no server name for an address.
        _ if tls.no_sni => ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into()),
        Some(name) => ServerName::try_from(name.clone())?,
        None => ServerName::try_from(setting.host.clone())?,
    };
    let mut connection = ClientConnection::new(std::sync::Arc::clone(&client.config), name)?;
    let mut hello = Vec::new();
    connection.write_tls(&mut hello)?;
    let hello = tls.fragment.map_or_else(|| hello.clone(), |size| refragmented(&hello, size));
    let mut from = 0;
    for cut in tls.split.iter().copied().chain([hello.len()]) {
        let cut = cut.min(hello.len()).max(from);
        stream.write_all(&hello[from..cut])?;
        from = cut;
        stream.set_read_timeout(Some(GAP))?;
        drop(stream.peek(&mut [0]));
    }
    stream.set_read_timeout(Some(LONG))?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    Ok(StreamOwned::new(connection, stream))
}

/// The handshake message of one record in records of `size` bytes (RFC 8446 section 5.1 allows it).
fn refragmented(hello: &[u8], size: usize) -> Vec<u8> {
    let Some((head, body)) = hello.split_at_checked(5) else { return hello.to_vec() };
    let mut out = Vec::new();
    for chunk in body.chunks(size.max(1)) {
        out.extend(&head[..3]);
        out.extend(u16::try_from(chunk.len()).unwrap_or_default().to_be_bytes());
        out.extend(chunk);
    }
    out
}

/// A stream with a socket below.
pub(crate) trait Socket {
    fn socket(&self) -> &TcpStream;
}

impl Socket for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl Socket for StreamOwned<ClientConnection, TcpStream> {
    fn socket(&self) -> &TcpStream {
        &self.sock
    }
}

const CLOSED: &str = "closed without an answer";
const SILENT: &str = "no answer";

/// Writes; a peer that hung up or reads no more has answered by that.
fn send(stream: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    match stream.write_all(bytes).and_then(|()| stream.flush()) {
        Err(error) if hung_up(&error) || waited(&error) => Ok(()),
        other => other,
    }
}

/// How long an exchange is waited for.
#[derive(Debug, Clone, Copy)]
struct Wait {
    /// For the first byte, and for everything.
    patience: Duration,
    /// After any byte; nothing for as long as that.
    quiet: Option<Duration>,
    /// How many answers are all.
    answers: Option<usize>,
}

impl Wait {
    fn of(case: &Case) -> Self {
        match case.expect {
            Expect::Served => Self { patience: LONG, quiet: None, answers: Some(case.most) },
            Expect::Refused | Expect::Sound | Expect::Survives => {
                Self { patience: PATIENCE, quiet: Some(QUIET), answers: None }
            }
        }
    }

    /// The same for something that ends with a mark of its own.
    fn first(self) -> Self {
        Self { quiet: None, ..self }
    }
}

/// Reads until `enough`, the end, or silence.
fn read(
    stream: &mut (impl Read + Socket),
    wait: Wait,
    enough: impl Fn(&[u8]) -> bool,
) -> io::Result<(Vec<u8>, &'static str)> {
    let deadline = Instant::now() + wait.patience;
    let (mut seen, mut buffer) = (Vec::new(), vec![0; 16 * 1024]);
    while !enough(&seen) && seen.len() < ENOUGH {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok((seen, SILENT));
        }
        let pause = wait.quiet.filter(|_| !seen.is_empty()).map_or(left, |quiet| quiet.min(left));
        stream.socket().set_read_timeout(Some(pause))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Ok((seen, CLOSED)),
            Ok(count) => seen.extend_from_slice(&buffer[..count]),
            Err(error) if waited(&error) => return Ok((seen, SILENT)),
            // A reset, or a TLS record that is none: the peer is done with us.
            Err(_) => return Ok((seen, CLOSED)),
        }
    }
    Ok((seen, ""))
}

fn waited(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn hung_up(error: &io::Error) -> bool {
    let kinds = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe, ErrorKind::ConnectionAborted];
    kinds.contains(&error.kind()) || error.kind() == ErrorKind::InvalidData
}

fn ends_head(seen: &[u8]) -> bool {
    seen.windows(4).any(|window| window == b"\r\n\r\n")
}

/// The statuses of HTTP/1 answers, `100 Continue` left out.
fn statuses(bytes: &[u8]) -> Vec<u16> {
    let marks = [&b"HTTP/1.1 "[..], b"HTTP/1.0 "];
    let found = bytes.windows(12).filter(|window| marks.iter().any(|mark| window.starts_with(mark)));
    let codes = found.filter_map(|window| std::str::from_utf8(&window[9..]).ok()?.parse().ok());
    codes.filter(|code| *code >= 200 || *code == 101).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_of_answers_in_a_row_are_read_and_continue_is_none() {
        let text = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\narrivedHTTP/1.0 403 No\r\n\r\n";
        assert_eq!(statuses(text), [200, 403]);
    }

    #[test]
    fn a_hello_in_small_records_is_the_same_hello() {
        let hello = [&[22, 3, 1, 0, 7][..], b"abcdefg"].concat();
        assert_eq!(
            refragmented(&hello, 4),
            [&[22, 3, 1, 0, 4][..], b"abcd", &[22, 3, 1, 0, 3], b"efg"].concat()
        );
    }
}
