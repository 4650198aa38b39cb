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
