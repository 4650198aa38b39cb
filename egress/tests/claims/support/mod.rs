//! A proxy, an upstream and an agent in one process.

mod agent;
pub(crate) mod frames;
mod grpc;
mod mirror;
mod origin;
mod upstream;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use egress::ca::{CertificateAuthority, Existing};
use egress::journal::Recorder;
use egress::upstream::{Dialer, Resolve, UpstreamTls};
use egress::uses::Uses;
use egress::{Answers, Doors, Marking, Parts, Placeholder, Proxy, Secret, SecretStore};
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use scan::Budget;
use tokio::net::{TcpListener, TcpSocket, UdpSocket};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) use agent::{Agent, Answer, Transport, get, http1_on, http2_on, read_head, request};
pub(crate) use grpc::Plain;
pub(crate) use mirror::in_form;
pub(crate) use origin::Origin;
pub(crate) use upstream::{CHUNK, CHUNKS, Upstream};

/// The word that stands for a credential.
pub(crate) const PLACEHOLDER: &str = "placeholder-0123456789";
/// The host that the routes of the tests are for.
pub(crate) const HOST: &str = "api.test";

/// How long something may take that has to come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// An address that belongs to no one (RFC 5737), where the names of the DNS answers are said to be.
pub(crate) const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

/// Where names lead for clients that ignore proxy variables.
pub(crate) const BY_NAME: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// Leads every name to loopback, and remembers the names.
#[derive(Default)]
pub(crate) struct Names {
    asked: Mutex<Vec<String>>,
}

impl Names {
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

struct Resolver(Arc<Names>);

impl Resolve for Resolver {
    fn resolve<'a>(
        &'a self,
        name: &'a str,
    ) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send + 'a>> {
        self.0.asked.lock().unwrap().push(name.to_owned());
        assert_ne!(name, "panic.test", "the resolver panics at this name");
        Box::pin(async { Ok(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]) })
    }
}

/// What of a bench takes connections; each keeps a place ready for the next.
const LISTENERS: usize = 5;

/// A proxy that serves until it is dropped.
pub(crate) struct Bench {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) address: SocketAddr,
    pub(crate) transparent: SocketAddr,
    pub(crate) dns: SocketAddr,
    pub(crate) names: Arc<Names>,
    pub(crate) upstream: Upstream,
    pub(crate) journal: PathBuf,
    pub(crate) secrets: PathBuf,
    pub(crate) decoding: Budget,
    authority: CertificateDer<'static>,
    stop: CancellationToken,
    serving: JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Bench {
    /// A proxy with the routes that `routes` writes for this upstream.
    pub(crate) async fn with(routes: impl FnOnce(&Upstream) -> String) -> Bench {
        Bench::within(Doors::default().connections, Budget::of(256 << 20), routes).await
    }

    /// The same, with a place for each of its listeners and for `connections` besides.
    pub(crate) async fn with_room_for(connections: usize, routes: impl FnOnce(&Upstream) -> String) -> Bench {
        Bench::within(LISTENERS + connections, Budget::of(256 << 20), routes).await
    }

    /// The same, with so much memory for decoders.
    pub(crate) async fn with_memory(bytes: usize, routes: impl FnOnce(&Upstream) -> String) -> Bench {
        Bench::within(Doors::default().connections, Budget::of(bytes), routes).await
    }

    async fn within(connections: usize, decoding: Budget, routes: impl FnOnce(&Upstream) -> String) -> Bench {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let upstream = Upstream::start(root).await;
        let secrets = root.join("secrets");
        std::fs::create_dir(&secrets).unwrap();
        let authority = CertificateAuthority::init(&root.join("ca"), Existing::Refuse).unwrap();
        let certificate = CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap();
        let names = Arc::<Names>::default();
        let listener = listen_narrow();
        let address = listener.local_addr().unwrap();
        let led_here = egress::listen_transparent((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let transparent = led_here.local_addr().unwrap();
        // On the ports of the upstream, as DNS leads to them.
        let mut direct = Vec::new();
        for port in [upstream.tls.port(), upstream.plain.port()] {
            direct.push(TcpListener::bind((BY_NAME, port)).await.unwrap());
        }
        let (dns_tcp, dns_udp) = one_port_for_both().await;
        let dns = dns_tcp.local_addr().unwrap();
        let doors = Doors {
            proxy: vec![listener],
            direct,
            transparent: vec![led_here],
            dns_tcp: vec![dns_tcp],
            dns_udp: vec![dns_udp],
            answers: Answers { v4: Some(ELSEWHERE), v6: None },
            connections,
        };
        let journal = egress::journal::path(root);
        let inherited = HashMap::from([("TOKEN".to_owned(), Secret::new(b"real-token".to_vec()))]);
        let parts = Parts {
            authority,
            secrets: SecretStore::new(inherited, secrets.clone()),
            dialer: Dialer::new(
                Arc::new(Resolver(Arc::clone(&names))),
                None,
                vec![address, transparent, dns],
            )
            .unwrap(),
            tls: UpstreamTls::new(Some(&upstream.roots)).unwrap(),
            recorder: Recorder::open(&journal).unwrap(),
            uses: Uses::open(&egress::uses::path(root)).unwrap(),
            placeholder: Placeholder::parse(PLACEHOLDER).unwrap(),
            marking: Marking::open(&root.join("fingerprint.key")).unwrap(),
            decoding: decoding.clone(),
        };
        let proxy = Arc::new(Proxy::new(parts, routes(&upstream)).unwrap());
        let stop = CancellationToken::new();
        let serving = tokio::spawn(egress::serve(Arc::clone(&proxy), doors, stop.clone()));
        Bench {
            proxy,
            address,
            transparent,
            dns,
            names,
            upstream,
            journal,
            secrets,
            decoding,
            authority: certificate,
            stop,
            serving,
            _directory: directory,
        }
    }

    /// A proxy whose routes allow `rules`, as the lines of a route after host, ports and addresses.
    pub(crate) async fn allowing(rules: &str) -> Bench {
        let rules = rules.to_owned();
        Bench::with(|upstream| upstream.routes(&rules)).await
    }

    /// An agent that trusts the bottle's authority.
    pub(crate) fn agent(&self) -> Agent {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.clone()).unwrap();
        Agent::new(self.address, roots, self.upstream.plain, self.upstream.tls)
    }

    /// A client of HTTP/2 in a tunnel that hears what comes before an answer, and takes back what it drops.
    pub(crate) async fn http2_by_hand(&self) -> h2::client::SendRequest<Bytes> {
        let stream = self.agent().tunnel(&self.target(), HOST, &["h2"]).await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    /// An agent that trusts upstream's own authority.
    pub(crate) fn friend_of_upstream(&self) -> Agent {
        let pem = std::fs::read(&self.upstream.roots).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
        Agent::new(self.address, roots, self.upstream.plain, self.upstream.tls)
    }

    /// `host:port` of the upstream behind a tunnel.
    pub(crate) fn target(&self) -> String {
        format!("{HOST}:{}", self.upstream.tls.port())
    }

    /// Asks the proxy to stop, and waits until it has.
    pub(crate) async fn stop(&mut self) {
        self.stop.cancel();
        (&mut self.serving).await.unwrap();
    }

    /// All events of the journal.
    pub(crate) async fn events(&self) -> Vec<serde_json::Value> {
        self.proxy.flush().await;
        let text = std::fs::read_to_string(&self.journal).unwrap();
        let line = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["event"].clone();
        text.lines().map(line).collect()
    }
}

/// What the sockets of a test hold back at most, each way: the kernel would let them grow to tens of megabytes.
const SOCKET_BYTES: u32 = 256 * 1024;
const BACKLOG: u32 = 1024;

/// A socket whose buffers stay as they are, and those of what it accepts.
fn narrow() -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(SOCKET_BYTES).unwrap();
    socket.set_recv_buffer_size(SOCKET_BYTES).unwrap();
    socket
}

/// A listener of that kind.
fn listen_narrow() -> TcpListener {
    let socket = narrow();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    socket.listen(BACKLOG).unwrap()
}

async fn one_port_for_both() -> (TcpListener, UdpSocket) {
    loop {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
            return (tcp, udp);
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Counts.
#[derive(Default)]
pub(crate) struct Counter(AtomicUsize);

impl Counter {
    pub(crate) fn add(&self, amount: usize) {
        self.0.fetch_add(amount, Ordering::SeqCst);
    }

    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// The code and the reason with which `frames`, as a WebSocket's server sends them, end.
pub(crate) fn farewell(mut frames: &[u8]) -> Option<(u16, String)> {
    while let [first, length, rest @ ..] = frames {
        assert!(*length < 126, "only short frames are read");
        let (content, rest) = rest.split_at(usize::from(*length));
        if first & 0x0f == 8 {
            assert_eq!((*first, rest), (0x88, &[][..]), "it is whole, and nothing follows");
            let (code, reason) = content.split_first_chunk().unwrap();
            return Some((u16::from_be_bytes(*code), String::from_utf8(reason.to_vec()).unwrap()));
        }
        frames = rest;
    }
    None
}
