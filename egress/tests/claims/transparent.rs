//! Clients that ignore proxy variables, led to the proxy by netfilter in a network namespace of their own.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::front::exchange;
use crate::support::{BY_NAME, Bench, ELSEWHERE, HOST, read_head};

/// How connections get to a listener that they were not meant for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Led {
    Redirected,
    HandedOver,
}

const BOTH: [Led; 2] = [Led::Redirected, Led::HandedOver];

/// Runs `test` with a network of its own, in which 198.51.100.0/24 is on this side of the wire.
pub(super) fn apart(test: impl Future<Output = ()> + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root, for a network namespace");
        run("ip", &["link", "set", "lo", "up"], "");
        run("ip", &["route", "add", "local", "198.51.100.0/24", "dev", "lo"], "");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

pub(super) fn run(program: &str, arguments: &[&str], input: &str) {
    let mut child = Command::new(program).args(arguments).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{program} {arguments:?}\n{input}");
}

pub(super) fn lead(led: Led, to: SocketAddr) {
    let rules = match led {
        Led::Redirected => format!(
            "table ip led {{\n chain out {{\n type nat hook output priority -100\n \
             ip daddr 198.51.100.0/24 meta l4proto tcp redirect to :{}\n }}\n}}\n",
            to.port()
        ),
        Led::HandedOver => format!(
            "table ip led {{\n chain in {{\n type filter hook prerouting priority -150\n \
             ip daddr 198.51.100.0/24 meta l4proto tcp tproxy to {to} accept\n }}\n}}\n"
        ),
    };
    run("nft", &["-f", "-"], &rules);
}

const RULES: &str = "path_allowlist: [/v1/]";

async fn led_bench(led: Led) -> Bench {
    let bench = Bench::allowing(RULES).await;
    lead(led, bench.transparent);
    bench
}

async fn dial(port: u16) -> TcpStream {
    TcpStream::connect((ELSEWHERE, port)).await.unwrap()
}

fn get(host: &str, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")
}

#[test]
fn tls_that_was_led_here_is_judged_by_its_server_name_and_goes_where_the_name_leads() {
    for led in BOTH {
        apart(async move {
            let bench = led_bench(led).await;
            let port = bench.upstream.tls.port();
            let name = ServerName::try_from(HOST).unwrap();
            let tls = bench.agent().tls(&["http/1.1"]);
            let mut stream = tls.connect(name.clone(), dial(port).await).await.unwrap();
            let allowed = exchange(&mut stream, &get(&bench.target(), "/v1/x")).await;
            assert!(allowed.starts_with("HTTP/1.1 200"), "{led:?} {allowed}");
            let mut stream = tls.connect(name, dial(port).await).await.unwrap();
            let refused = exchange(&mut stream, &get(&bench.target(), "/v2/x")).await;
            assert!(refused.starts_with("HTTP/1.1 403"), "{led:?} {refused}");
            assert_eq!(bench.upstream.requests().len(), 1);
            assert_eq!(bench.names.asked(), [HOST]);
        });
    }
}

#[test]
fn tls_that_was_led_here_without_an_allowed_name_ends_with_an_alert_and_no_look_up() {
    apart(async {
        let bench = led_bench(Led::Redirected).await;
        let tls = bench.agent().tls(&[]);
        let port = bench.upstream.tls.port();
        let nameless = ServerName::from(IpAddr::from(ELSEWHERE));
        let error = tls.connect(nameless, dial(port).await).await.unwrap_err().to_string();
        assert!(error.contains("UnrecognisedName") || error.contains("UnrecognizedName"), "{error}");
        // Port 25 is on no route, so that nothing could be said in the tunnel.
        let other = ServerName::try_from("evil.test").unwrap();
        let error = tls.connect(other, dial(25).await).await.unwrap_err().to_string();
        assert!(error.contains("AccessDenied"), "{error}");
        assert_eq!(bench.names.asked(), Vec::<String>::new());
        let events = bench.events().await;
        let codes: Vec<_> = events.iter().map(|event| event["code"].as_str().unwrap()).collect();
        assert_eq!(codes, ["sni-mismatch", "host-not-allowed"]);
    });
}

#[test]
fn plain_http_that_was_led_here_goes_to_its_host_on_the_port_it_was_meant_for() {
    for led in BOTH {
        apart(async move {
            let bench = led_bench(led).await;
            let port = bench.upstream.plain.port();
            let host = format!("{HOST}:{port}");
            let allowed = exchange(&mut dial(port).await, &get(&host, "/v1/x")).await;
            assert!(allowed.starts_with("HTTP/1.1 200"), "{led:?} {allowed}");
            assert_eq!(bench.upstream.last().target, "/v1/x");
            // Another port than the one in Host; the upstream's TLS port by a plain request; a tunnel; our own answers.
            let mismatch = exchange(&mut dial(81).await, &get(&host, "/v1/x")).await;
            assert!(mismatch.contains("authority-mismatch"), "{led:?} {mismatch}");
            let plain =
                exchange(&mut dial(bench.upstream.tls.port()).await, &get(&bench.target(), "/v1/x")).await;
            assert!(plain.contains("host-not-allowed"), "{led:?} {plain}");
            let connect = format!("CONNECT {host} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
            let connect = exchange(&mut dial(port).await, &connect).await;
            assert!(connect.contains("nested-connect"), "{led:?} {connect}");
            let own = exchange(&mut dial(80).await, &get("_egress.local", "/ca.pem")).await;
            assert!(own.contains("application/x-pem-file"), "{led:?} {own}");
            assert_eq!(bench.upstream.requests().len(), 1);
        });
    }
}

#[test]
fn what_is_neither_tls_nor_http_goes_nowhere() {
    apart(async {
        let bench = led_bench(Led::Redirected).await;
        for bytes in [&b"SSH-2.0-x\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x05\x01\x00"] {
            let mut stream = dial(bench.upstream.tls.port()).await;
            stream.write_all(bytes).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"), "{answer:?}");
        }
        assert_eq!((bench.upstream.memory.connections.get(), bench.names.asked()), (0, Vec::new()));
    });
}

#[tokio::test]
async fn the_transparent_listener_is_no_destination() {
    let bench = Bench::allowing(RULES).await;
    let mut stream = TcpStream::connect(bench.transparent).await.unwrap();
    let _ = stream.write_all(get(HOST, "/v1/x").as_bytes()).await;
    assert_eq!(read_head(&mut stream).await, "");
}

#[tokio::test]
async fn who_comes_by_dns_is_judged_by_server_name_and_host_on_the_port_that_it_came_to() {
    let bench = Bench::allowing(RULES).await;
    let (tls, plain) = (bench.upstream.tls.port(), bench.upstream.plain.port());
    let connector = bench.agent().tls(&["http/1.1"]);
    let meet = async |name: &'static str| {
        let stream = TcpStream::connect((BY_NAME, tls)).await.unwrap();
        connector.connect(ServerName::try_from(name).unwrap(), stream).await
    };
    let mut stream = meet(HOST).await.unwrap();
    assert!(exchange(&mut stream, &get(&bench.target(), "/v1/x")).await.starts_with("HTTP/1.1 200"));
    for (host, code) in [("other.test", "authority-mismatch"), (HOST, "authority-mismatch")] {
        // The second names another port than the one that was come to.
        let answer = exchange(&mut meet(HOST).await.unwrap(), &get(host, "/v1/x")).await;
        assert!(answer.contains(code), "{host}: {answer}");
    }
    let refused = exchange(&mut meet(HOST).await.unwrap(), &get(&bench.target(), "/v2/x")).await;
    assert!(refused.contains("path-not-allowed"), "{refused}");
    let elsewhere = format!("evil.test:{tls}");
    let refused = exchange(&mut meet("evil.test").await.unwrap(), &get(&elsewhere, "/v1/x")).await;
    assert!(refused.contains("host-not-allowed"), "{refused}");
    assert!(meet("127.0.0.2").await.is_err(), "an address is no name");

    let asked = async |host: &str| {
        let mut stream = TcpStream::connect((BY_NAME, plain)).await.unwrap();
        exchange(&mut stream, &get(host, "/v1/x")).await
    };
    assert!(asked(&format!("{HOST}:{plain}")).await.starts_with("HTTP/1.1 200"));
    for host in [HOST, "evil.test", &format!("127.0.0.2:{plain}")] {
        assert!(asked(host).await.starts_with("HTTP/1.1 403"), "{host}");
    }
    for bytes in
        [&b"SSH-2.0-x\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x04\x01\x00\x50", b"\x05\x01\x00"]
    {
        let mut stream = TcpStream::connect((BY_NAME, tls)).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"), "{answer:?}");
    }
    assert_eq!(bench.names.asked(), [HOST, HOST], "what was refused was not looked up");
    assert_eq!(bench.upstream.requests().len(), 2);
}

/// `scripts/need.sh h2load` installs it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_http2_client_is_served_hundreds_of_streams_on_a_few_connections() {
    let bench = Bench::allowing(RULES).await;
    let port = bench.upstream.tls.port();
    let load = async |path: &str, status: &str| {
        let mut client = Command::new("h2load");
        client.args(["-n", "400", "-c", "4", "-m", "32", &format!("--connect-to={BY_NAME}:{port}")]);
        client.arg(format!("https://{HOST}:{port}{path}"));
        let output = tokio::task::spawn_blocking(move || client.output().expect("h2load is there"));
        let said = String::from_utf8_lossy(&output.await.unwrap().stdout).into_owned();
        assert!(said.contains("Application protocol: h2") && said.contains("400 done,"), "{said}");
        assert!(said.contains(status), "{said}");
    };
    load("/v1/x", "status codes: 400 2xx, 0 3xx, 0 4xx, 0 5xx").await;
    load("/v2/x", "status codes: 0 2xx, 0 3xx, 400 4xx, 0 5xx").await;
    assert_eq!(bench.upstream.requests().len(), 400);
}

/// A query for `name`, of `kind`.
fn query(name: &str, kind: u8) -> Vec<u8> {
    let mut query = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, kind, 0, 1]);
    query
}

#[tokio::test]
async fn dns_answers_allowed_names_with_one_address_and_looks_nothing_up() {
    let rest = "  - {host: '*.wild.test'}\n  - {host: not.wild.test, deny: true}\n";
    let bench = Bench::with(|upstream| upstream.routes(RULES) + rest).await;
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    udp.connect(bench.dns).await.unwrap();
    let mut tcp = TcpStream::connect(bench.dns).await.unwrap();
    for (name, kind, code, address) in [
        (HOST, 1, 0, Some(ELSEWHERE.octets())),
        ("_egress.local", 1, 0, Some(ELSEWHERE.octets())),
        (HOST, 28, 0, None),
        (HOST, 16, 0, None),
        ("a.wild.test", 1, 0, Some(ELSEWHERE.octets())),
        ("not.wild.test", 1, 3, None),
        // It would not exist with all that is below it.
        ("wild.test", 1, 0, None),
        ("test", 28, 0, None),
        ("c2VjcmV0.evil.test", 1, 3, None),
        ("c2VjcmV0.evil.test", 16, 3, None),
    ] {
        let asked = query(name, kind);
        udp.send(&asked).await.unwrap();
        let mut datagram = [0; 512];
        let length = udp.recv(&mut datagram).await.unwrap();
        tcp.write_u16(u16::try_from(asked.len()).unwrap()).await.unwrap();
        tcp.write_all(&asked).await.unwrap();
        let mut stream = vec![0; usize::from(tcp.read_u16().await.unwrap())];
        tcp.read_exact(&mut stream).await.unwrap();
        assert_eq!(&datagram[..length], stream, "{name}");
        assert_eq!((stream[3] & 15, stream[7]), (code, u8::from(address.is_some())), "{name} {kind}");
        if let Some(address) = address {
            assert_eq!(stream[stream.len() - 4..], address);
        }
    }
    assert_eq!(bench.names.asked(), Vec::<String>::new());
}
