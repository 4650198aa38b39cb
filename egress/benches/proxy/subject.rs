//! A proxy under measurement, as a process.

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::origin::Origin;
use crate::relay;

const START_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Egress,
    /// egress that searches what leaves and scrubs what comes back.
    Inspecting,
    /// Another egress, to see what a change is worth.
    Before,
    Hudsucker,
    Mitmdump,
    /// What passes on bytes and does nothing else.
    Relay,
}

impl Kind {
    /// Those that are compared for the same work.
    pub(crate) const ALL: [Kind; 5] =
        [Kind::Egress, Kind::Before, Kind::Hudsucker, Kind::Mitmdump, Kind::Relay];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Egress => "egress",
            Kind::Inspecting => "egress, inspecting",
            Kind::Before => "egress before",
            Kind::Hudsucker => "hudsucker",
            Kind::Mitmdump => "mitmdump",
            Kind::Relay => "a relay",
        }
    }

    pub(crate) fn program(self) -> Option<PathBuf> {
        match self {
            Kind::Egress | Kind::Inspecting => {
                let named = std::env::var_os("EGRESS_BENCH_EGRESS");
                Some(named.map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_egress")), PathBuf::from))
            }
            Kind::Before => std::env::var_os("EGRESS_BENCH_BEFORE").map(PathBuf::from),
            Kind::Hudsucker => std::env::var_os("EGRESS_BENCH_HUDSUCKER").map(PathBuf::from),
            Kind::Mitmdump => std::env::var_os("EGRESS_BENCH_MITMDUMP").map(PathBuf::from),
            Kind::Relay => std::env::current_exe().ok(),
        }
    }
}

pub(crate) struct Subject {
    pub(crate) kind: Kind,
    pub(crate) address: SocketAddr,
    /// What its clients trust: its authority, and the origin's.
    pub(crate) roots: RootCertStore,
    child: Child,
    clock: ClockId,
    _directory: tempfile::TempDir,
}

impl Subject {
    pub(crate) fn start(kind: Kind, origin: &Origin) -> Subject {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for name in ["etc", "run", "state", "secrets"] {
            std::fs::create_dir(root.join(name)).unwrap();
        }
        // One that is as short is not looked for in answers.
        let token = if kind == Kind::Inspecting { "q8Zr2LkT0vWcN5mYx1JdB7sHfG3aPe" } else { "real-token" };
        std::fs::write(root.join("secrets/token"), token).unwrap();
        std::fs::write(root.join("etc/routes.yaml"), routes(kind, origin)).unwrap();
        let made = Command::new(Kind::Egress.program().unwrap())
            .args(["ca", "init", "--ca-dir"])
            .arg(root.join("ca"))
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(made.success());
        let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = probe.local_addr().unwrap();
        drop(probe);
        let mut child = command(kind, root, origin, address).current_dir(root).spawn().unwrap();
        await_port(address, &mut child);
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(root.join("ca/ca.pem")).unwrap()).unwrap();
        roots.add(CertificateDer::from_pem_file(&origin.roots).unwrap()).unwrap();
        let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(child.id().try_into().unwrap())).unwrap();
        Subject { kind, address, roots, child, clock, _directory: directory }
    }

    /// What all threads of the process have used so far.
    pub(crate) fn processor_time(&self) -> Duration {
        clock_gettime(self.clock).unwrap().into()
    }

    /// Its resident memory, in bytes.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::File::open(format!("/proc/{}/status", self.child.id())).unwrap();
        let lines = BufReader::new(status).lines().map(Result::unwrap);
        let line = lines.filter_map(|line| line.strip_prefix("VmRSS:").map(str::to_owned)).next().unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        // In peace, for what it has to write at its end.
        let pid = Pid::from_raw(self.child.id().cast_signed());
        let _ = kill(pid, Signal::SIGTERM);
        let (say, heard) = mpsc::channel();
        std::thread::spawn(move || {
            let _ = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
            let _ = say.send(());
        });
        if heard.recv_timeout(Duration::from_secs(10)).is_err() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

fn routes(kind: Kind, origin: &Origin) -> String {
    let (http1, http2) = (origin.http1, origin.http2);
    let looks = match kind {
        Kind::Inspecting => {
            "    dlp:\n      outbound_detectors: [token_patterns, known_secrets]\n      inbound_detectors: [known_secrets]\n"
        }
        // Else bodies would be searched for credentials of the agent's own, which neither hudsucker nor mitmdump does.
        Kind::Egress | Kind::Before | Kind::Hudsucker | Kind::Mitmdump | Kind::Relay => {
            "    own_credential_only: false\n"
        }
    };
    format!(
        "routes:\n  - host: localhost\n    ports: [{http1}, {http2}]\n    allow_private: [127.0.0.0/8, \"::1/128\"]\n    \
         path_allowlist: [/v1/]\n    auth_scheme: bearer\n    token_file: token\n{looks}"
    )
}

fn command(kind: Kind, root: &Path, origin: &Origin, address: SocketAddr) -> Command {
    let mut command = Command::new(kind.program().unwrap());
    let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers");
    match kind {
        Kind::Egress | Kind::Before | Kind::Inspecting => {
            command
                .args(["--config", "etc", "--ca-dir", "ca", "--run-dir", "run", "--state-dir", "state"])
                .args(["--secrets-dir", "secrets", "--listen", &address.to_string()])
                .env("EGRESS_UPSTREAM_CA", &origin.roots)
                .stderr(Stdio::null());
        }
        Kind::Hudsucker => {
            command
                .arg(address.to_string())
                .args([&root.join("ca/ca.pem"), &root.join("ca/ca-key.pem"), &origin.roots])
                .stderr(Stdio::null());
        }
        Kind::Relay => {
            command.env(relay::ADDRESS, address.to_string());
        }
        Kind::Mitmdump => {
            // Its authority is one file: the key, then the certificate.
            let read = |name: &str| std::fs::read_to_string(root.join("ca").join(name)).unwrap();
            std::fs::create_dir(root.join("mitm")).unwrap();
            std::fs::write(root.join("mitm/mitmproxy-ca.pem"), read("ca-key.pem") + &read("ca.pem")).unwrap();
            command
                .args(["--quiet", "--set", "flow_detail=0", "--set", "connection_strategy=lazy"])
                .arg("--set")
                .arg(format!("confdir={}", root.join("mitm").display()))
                .arg("--set")
                .arg(format!("ssl_verify_upstream_trusted_ca={}", origin.roots.display()))
                .args(["--listen-host", "127.0.0.1", "--listen-port", &address.port().to_string()])
                .arg("--scripts")
                .arg(peers.join("mitmproxy/addon.py"))
                .stdout(Stdio::null());
        }
    }
    command
}

fn await_port(address: SocketAddr, child: &mut Child) {
    let until = Instant::now() + START_TIMEOUT;
    while TcpStream::connect(address).is_err() {
        assert!(child.try_wait().unwrap().is_none(), "it ended at once");
        assert!(Instant::now() < until, "it did not start in time");
        std::thread::yield_now();
    }
}

/// For ten thousand tunnels, here and in what is started.
pub(crate) fn raise_descriptors() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(65_536), hard).unwrap();
}
