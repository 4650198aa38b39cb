//! One client of the bottle against all others: whatever it does, egress stays small and serves the next.
#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use tests::{Bundle, EchoServer, PATIENCE, Wire};

const MIB: u64 = 1024 * 1024;

/// A line of /proc/PID/status in bytes: `VmHWM` is the most memory that the process ever had resident.
fn memory(bundle: &Bundle, line: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", bundle.pid("egress").unwrap())).unwrap();
    let value = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':')).unwrap();
    value.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// An API without TLS on loopback, and egress in front of it.
fn behind_egress() -> (Bundle, SocketAddr) {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = EchoServer::bind_plain(([127, 0, 0, 1], 0).into()).await.unwrap();
            sender.send(server.address().unwrap()).unwrap();
            server.serve().await.unwrap()
        });
    });
    let api = receiver.recv_timeout(PATIENCE).unwrap();
    let routes = format!(
        "routes:\n  - host: 127.0.0.1\n    scheme: http\n    ports: [{port}]\n    allow_private: [\"127.0.0.1:{port}\"]\n",
        port = api.port()
    );
    let bundle = Bundle::builder().unwrap().daemons("egress").routes(&routes).unwrap().start().unwrap();
    (bundle, api)
}

fn others_are_served(bundle: &Bundle, api: SocketAddr) {
    let answer = bundle.curl([format!("http://{api}/")]).unwrap();
    assert_eq!(answer.code, 200, "{answer:?}");
}

/// So many connections to egress, each with these bytes written.
fn attack(bundle: &Bundle, count: usize, bytes: &[u8]) -> Vec<TcpStream> {
    let address = bundle.address(9099);
    let open = || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(bytes).unwrap();
        stream
    };
    (0..count).map(|_| open()).collect()
}

/// The connections on which nothing came and which are open: the attack holds.
fn held(attackers: &[TcpStream]) -> usize {
    let open = |stream: &&TcpStream| {
        stream.set_nonblocking(true).unwrap();
        matches!(stream.peek(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
    };
    attackers.iter().filter(open).count()
}

#[test]
fn floods_of_every_kind_leave_egress_small() {
    let wire = Wire::start().unwrap();
    let before = memory(&wire.bundle, "VmHWM");
    for _ in 0..3 {
        let outcome = wire.play(&["--only", "flood"]).unwrap();
        assert_eq!(outcome.code, 0, "{}{}", outcome.stdout, outcome.stderr);
    }
    let peak = memory(&wire.bundle, "VmHWM");
    assert!(peak < before + 96 * MIB, "from {before} to {peak} bytes");
}

#[test]
fn a_thousand_unfinished_heads_cost_what_a_head_may_have_and_no_more() {
    const CLIENTS: usize = 1000;
    let (bundle, api) = behind_egress();
    others_are_served(&bundle, api);
    let before = memory(&bundle, "VmRSS");
    let head = format!("GET http://{api}/ HTTP/1.1\r\nHost: {api}\r\nX-Long: {}", "a".repeat(48 * 1024));
    let attackers = attack(&bundle, CLIENTS, head.as_bytes());
    others_are_served(&bundle, api);
    assert_eq!(held(&attackers), CLIENTS);
    let peak = memory(&bundle, "VmHWM");
    assert!(peak < before + CLIENTS as u64 * 160 * 1024, "from {before} to {peak} bytes");
}

#[test]
fn a_thousand_silent_tunnels_cost_little_and_others_are_served() {
    const CLIENTS: usize = 1000;
    let (bundle, api) = behind_egress();
    let before = memory(&bundle, "VmRSS");
    let mut attackers =
        attack(&bundle, CLIENTS, b"CONNECT silent.example:443 HTTP/1.1\r\nHost: silent.example:443\r\n\r\n");
    for stream in &mut attackers {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        stream.write_all(b"\x16\x03\x01").unwrap();
    }
    others_are_served(&bundle, api);
    let peak = memory(&bundle, "VmHWM");
    assert!(peak < before + CLIENTS as u64 * 64 * 1024, "from {before} to {peak} bytes");
}

#[test]
fn clients_that_do_not_read_hold_no_more_than_a_window_each() {
    const CLIENTS: usize = 100;
    let (bundle, api) = behind_egress();
    others_are_served(&bundle, api);
    let before = memory(&bundle, "VmRSS");
    let ask = format!("GET http://{api}/bytes/{} HTTP/1.1\r\nHost: {api}\r\n\r\n", 256 * MIB);
    let mut attackers = attack(&bundle, CLIENTS, ask.as_bytes());
    for stream in &mut attackers {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.read_exact(&mut [0; 12]).unwrap();
    }
    others_are_served(&bundle, api);
    let peak = memory(&bundle, "VmHWM");
    assert!(peak < before + CLIENTS as u64 * MIB, "from {before} to {peak} bytes");
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
/// END_STREAM and END_HEADERS.
const WHOLE: u8 = 5;
/// The first entry of the table that a connection fills (RFC 7541 section 2.3.3).
const OWN_FIRST: u8 = 0x80 | 62;
/// With its name and what every entry counts for, this fills that table: 4,096 bytes.
const ENTRY: usize = 4000;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A request's head with a field that is kept in the table, and then so many times from there, in one byte each.
fn head(api: SocketAddr, times: usize) -> Vec<u8> {
    let authority = api.to_string();
    let host = [&[1, u8::try_from(authority.len()).unwrap()], authority.as_bytes()].concat();
    // A length of 127 and more goes on in bytes of seven bits.
    let rest = ENTRY - 127;
    let length = [0x7f, u8::try_from(rest & 0x7f).unwrap() | 0x80, u8::try_from(rest >> 7).unwrap()];
    let kept = [&[0x40, 1, b'a'][..], &length, &[b'v'; ENTRY]].concat();
    [&[0x82, 0x86, 0x84][..], &host, &kept, &vec![OWN_FIRST; times]].concat()
}

/// How a connection answers.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// A stream, with the status 200 or another.
    Stream { good: bool },
    /// The whole connection ends, for this reason (RFC 9113 section 7).
    Goodbye(u32),
    /// It ends without a word.
    Silence,
}

const ENHANCE_YOUR_CALM: u32 = 11;

/// The first answer to one request with this head.
fn answer(bundle: &Bundle, head: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(bundle.address(9099)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(PREFACE).unwrap();
    stream.write_all(&frame(HEADERS, WHOLE, 1, head)).unwrap();
    let mut head = [0; 9];
    while stream.read_exact(&mut head).is_ok() {
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload).unwrap();
        match head[3] {
            // The status 200 is an entry that every table has.
            HEADERS => return Answer::Stream { good: payload.contains(&0x88) },
            RST_STREAM => return Answer::Stream { good: false },
            GOAWAY => return Answer::Goodbye(u32::from_be_bytes(*payload[4..].first_chunk().unwrap())),
            _ => {}
        }
    }
    Answer::Silence
}

#[test]
fn a_head_that_grows_a_thousandfold_when_it_is_read_is_refused_and_costs_nothing() {
    let (bundle, api) = behind_egress();
    // Three times the entry is within what a head may have: the form itself is served.
    assert_eq!(answer(&bundle, &head(api, 3)), Answer::Stream { good: true });
    assert_eq!(answer(&bundle, &head(api, 20)), Answer::Stream { good: false });
    let before = memory(&bundle, "VmRSS");
    for _ in 0..16 {
        // 48 MB in a frame of 16 KiB.
        assert_eq!(answer(&bundle, &head(api, 12_000)), Answer::Goodbye(ENHANCE_YOUR_CALM));
    }
    others_are_served(&bundle, api);
    let peak = memory(&bundle, "VmHWM");
    assert!(peak < before + 16 * MIB, "from {before} to {peak} bytes");
}
