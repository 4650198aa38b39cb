//! SIGTERM to the built program: what runs finishes, HTTP/2 is told, what is idle holds nothing up.

use std::io::Read as _;
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::{StreamExt, stream};
use http::Request;
use http_body_util::BodyExt;
use hudsucker::Body;
use nix::sys::signal::Signal;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::program::{Running, address_in, directory, egress, init};
use crate::support::{Agent, Upstream, get, http1_on, http2_on, read_head};

const PATIENCE: Duration = Duration::from_secs(20);
/// What is given to what runs, less some room for a busy machine.
const LESS_THAN_THE_GRACE: Duration = Duration::from_secs(4);
/// The grace and what is given after it, with some room for a busy machine.
const GRACE_AND_MORE: Duration = Duration::from_secs(12);

struct Stage {
    running: Running,
    agent: Agent,
    upstream: Upstream,
    _root: tempfile::TempDir,
}

/// The program before an upstream that is known by its address.
async fn stage() -> Stage {
    stage_with("").await
}

/// The same, with `more` in its route.
async fn stage_with(more: &str) -> Stage {
    let root = directory("");
    let upstream = Upstream::start(root.path()).await;
    let routes = format!(
        "routes:\n  - {{host: 127.0.0.1, ports: [{}], allow_private: [127.0.0.0/8]{more}}}\n",
        upstream.tls.port()
    );
    std::fs::write(root.path().join("etc/routes.yaml"), routes).unwrap();
    assert!(init(root.path()).status.success());
    let path = root.path().join("notify");
    let notifications = UnixDatagram::bind(&path).unwrap();
    let mut child = egress(root.path())
        .env("NOTIFY_SOCKET", &path)
        .env("EGRESS_UPSTREAM_CA", &upstream.roots)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = std::io::BufReader::new(child.stderr.take().unwrap());
    let address: SocketAddr = address_in(&mut log, "listening").parse().unwrap();
    // Read to the end, so that nothing waits for a reader.
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    let running = Running { child, notifications };
    assert!(running.told().starts_with("READY=1"));
    let pem = std::fs::read(root.path().join("ca/ca.pem")).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
    let agent = Agent::new(address, roots, upstream.plain, upstream.tls);
    Stage { running, agent, upstream, _root: root }
}

impl Stage {
    fn target(&self) -> String {
        format!("127.0.0.1:{}", self.upstream.tls.port())
    }

    /// Sends SIGTERM and returns when nothing new is accepted.
    async fn stop(&self) {
        self.running.signal(Signal::SIGTERM);
        while self.agent.try_dial().await.is_ok() {
            tokio::task::yield_now().await;
        }
    }

    /// How the program ended.
    async fn ended(mut self) -> ExitStatus {
        let waiting = tokio::task::spawn_blocking(move || self.running.child.wait().unwrap());
        timeout(PATIENCE, waiting).await.unwrap().unwrap()
    }
}

fn asked(target: &str, path: &str) -> Request<Body> {
    get(&format!("https://{target}{path}"))
}

#[tokio::test]
async fn a_term_lets_what_runs_finish_and_then_the_program_ends() {
    let stage = stage().await;
    let target = stage.target();
    let tunnel = async |protocol| stage.agent.tunnel(&target, "127.0.0.1", &[protocol]).await.unwrap();
    let mut http2 = http2_on(tunnel("h2").await).await;
    let mut http1 = http1_on(tunnel("http/1.1").await).await;
    let mut first = http2.send_request(asked(&target, "/v1/stream")).await.unwrap().into_body();
    first.frame().await.unwrap().unwrap();
    let mut request = get("/v1/stream");
    request.headers_mut().insert("host", target.parse().unwrap());
    let mut second = http1.send_request(request).await.unwrap().into_body();
    second.frame().await.unwrap().unwrap();

    stage.stop().await;
    let told = async { while http2.send_request(asked(&target, "/v1/x")).await.is_ok() {} };
    timeout(PATIENCE, told).await.expect("HTTP/2 is told that no more is taken");
    let rest = async { tokio::join!(first.collect(), second.collect()) };
    let let_go_on = async {
        loop {
            stage.upstream.memory.go_on.notify_one();
            tokio::task::yield_now().await;
        }
    };
    let (first, second) = tokio::select! {
        rest = timeout(PATIENCE, rest) => rest.unwrap(),
        () = let_go_on => unreachable!("it goes on until both have ended"),
    };
    for rest in [first, second] {
        assert_eq!(rest.unwrap().to_bytes(), "data: two\n\n");
    }
    let finished = Instant::now();
    assert_eq!(stage.ended().await.code(), Some(0));
    assert!(finished.elapsed() < LESS_THAN_THE_GRACE, "{:?}", finished.elapsed());
}

#[tokio::test]
async fn connections_on_which_nothing_runs_do_not_hold_up_a_term() {
    let stage = stage().await;
    let target = stage.target();
    let fresh = stage.agent.dial().await;
    let (_, before_tls) = stage.agent.connect(&target).await;
    let (_, mut in_hello) = stage.agent.connect(&target).await;
    in_hello.write_all(b"\x16\x03\x01\x02").await.unwrap();
    let (_, mut refused) = stage.agent.connect(&target).await;
    refused.write_all(b"SSH-2.0-x\r\n").await.unwrap();
    let mut kept = stage.agent.dial().await;
    kept.write_all(b"GET http://_egress.local/ca.pem HTTP/1.1\r\nhost: _egress.local\r\n\r\n").await.unwrap();
    assert!(read_head(&mut kept).await.starts_with("HTTP/1.1 200"));
    let tunnel = async |protocol| stage.agent.tunnel(&target, "127.0.0.1", &[protocol]).await.unwrap();
    let http1 = tunnel("http/1.1").await;
    let mut http2 = http2_on(tunnel("h2").await).await;
    assert_eq!(http2.send_request(asked(&target, "/v1/x")).await.unwrap().status(), 200);

    let began = Instant::now();
    stage.stop().await;
    assert_eq!(stage.ended().await.code(), Some(0));
    assert!(began.elapsed() < LESS_THAN_THE_GRACE, "{:?}", began.elapsed());
    drop((fresh, before_tls, in_hello, refused, kept, http1));
}

#[tokio::test]
async fn an_http2_client_that_answers_nothing_holds_up_a_term_no_longer_than_the_grace() {
    let stage = stage().await;
    let target = stage.target();
    let mut silent = stage.agent.tunnel(&target, "127.0.0.1", &["h2"]).await.unwrap();
    // A preface and empty SETTINGS, and then nothing: no acknowledgement, no answer to a PING.
    silent.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut first = [0; 9];
    silent.read_exact(&mut first).await.unwrap();

    stage.stop().await;
    assert_eq!(stage.ended().await.code(), Some(0));
}

/// 16 KiB of each come to 16 MiB, which take this program seconds to search as it is built for tests.
#[tokio::test]
async fn bodies_that_are_being_decompressed_hold_up_a_term_no_longer_than_the_grace() {
    const BODIES: usize = 60;
    let stage = stage_with(", dlp: {outbound_detectors: [token_patterns]}").await;
    let target = stage.target();
    let sender = http2_on(stage.agent.tunnel(&target, "127.0.0.1", &["h2"]).await.unwrap()).await;
    let mut coder = GzEncoder::new(Vec::new(), Compression::best());
    std::io::copy(&mut std::io::repeat(b' ').take(16 << 20), &mut coder).unwrap();
    let mut begun = Bytes::from(coder.finish().unwrap());
    let rest = begun.split_off(10);
    // The heads of all go out first.
    let gate = Arc::new(Semaphore::new(0));
    for _ in 0..BODIES {
        let (begun, rest, gate) = (begun.clone(), rest.clone(), Arc::clone(&gate));
        let begun = stream::once(async { Ok::<_, hudsucker::Error>(begun) });
        let rest = stream::once(async move {
            let _closed = gate.acquire().await;
            Ok(rest)
        });
        let request = Request::post(format!("https://{target}/v1/upload")).header("content-encoding", "gzip");
        let request = request.body(Body::from_stream(begun.chain(rest))).unwrap();
        let mut sender = sender.clone();
        tokio::spawn(async move { sender.send_request(request).await });
    }
    let all_have_come = async {
        while stage.upstream.requests().len() < BODIES {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, all_have_come).await.unwrap();
    gate.close();

    let began = Instant::now();
    stage.running.signal(Signal::SIGTERM);
    assert_eq!(stage.ended().await.code(), Some(0));
    let took = began.elapsed();
    assert!(LESS_THAN_THE_GRACE < took && took < GRACE_AND_MORE, "{took:?}");
}

#[tokio::test]
async fn a_look_up_that_hangs_does_not_hold_up_a_term() {
    let root = directory("routes:\n  - {host: silent, scheme: http, ports: [80]}\n");
    assert!(init(root.path()).status.success());
    // The system's resolver reads /etc/resolv.conf: opening a pipe waits for its writer, and reading for what that writes.
    let servers = root.path().join("servers");
    nix::unistd::mkfifo(&servers, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let path = root.path().join("notify");
    let notifications = UnixDatagram::bind(&path).unwrap();
    let plain = egress(root.path());
    let mut child = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c"])
        .args(["mount --bind servers /etc/resolv.conf && exec \"$0\" \"$@\""])
        .arg(plain.get_program())
        .args(plain.get_args())
        .current_dir(root.path())
        .env("NO_COLOR", "1")
        .env("NOTIFY_SOCKET", &path)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = std::io::BufReader::new(child.stderr.take().unwrap());
    let address = address_in(&mut log, "listening");
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    let mut running = Running { child, notifications };
    assert!(running.told().starts_with("READY=1"));
    let mut asking = tokio::net::TcpStream::connect(address).await.unwrap();
    asking.write_all(b"GET http://silent/ HTTP/1.1\r\nhost: silent\r\n\r\n").await.unwrap();
    let (opened, mut is_read) = tokio::sync::mpsc::channel(1);
    std::thread::spawn(move || opened.blocking_send(std::fs::File::options().write(true).open(servers)));
    let hanging = timeout(PATIENCE, is_read.recv()).await.expect("it is looked up").unwrap().unwrap();
    // Nobody waits for the answer any more.
    drop(asking);

    let began = Instant::now();
    running.signal(Signal::SIGTERM);
    let waiting = tokio::task::spawn_blocking(move || running.child.wait().unwrap());
    let ended = timeout(PATIENCE, waiting).await;
    // The program ends, even where it waited for this.
    drop(hanging);
    assert_eq!(ended.expect("it ends").unwrap().code(), Some(0));
    assert!(began.elapsed() < LESS_THAN_THE_GRACE, "{:?}", began.elapsed());
}
