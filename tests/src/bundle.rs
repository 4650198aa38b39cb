//! The bundle as plain processes: the supervisor over its three daemons, in a temporary root.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::temp_root::{EGRESS, GIT_GATE, as_root};
use crate::{Binaries, GitHost, PATIENCE, Process, Run, TempRoot, git_host};

/// A bundle that is about to start.
#[derive(Debug)]
pub struct BundleBuilder {
    root: TempRoot,
    daemons: Option<String>,
    upstream_ca: Option<PathBuf>,
    repos: String,
    environment: Vec<(String, String)>,
}

impl BundleBuilder {
    /// routes.yaml.
    pub fn routes(self, text: &str) -> Result<Self> {
        self.root.write("etc/egress/routes.yaml", text)?;
        Ok(self)
    }

    /// A secret that egress may open, by name.
    pub fn secret(self, name: &str, value: &str) -> Result<Self> {
        self.root.write_private(&format!("run/secrets/{name}"), value, EGRESS)?;
        Ok(self)
    }

    /// A repository that git-gate serves as NAME.git, with push to every branch.
    pub fn repository(mut self, name: &str, host: &GitHost) -> Result<Self> {
        let key =
            self.root.write_private(&format!("git-gate/creds/{name}.key"), &host.client_key()?, GIT_GATE)?;
        self.repos.push_str(&format!(
            "  - name: {name}\n    upstream: {}\n    identity: {}\n    host_key: \"{}\"\n    push: {{allow: [\"refs/heads/*\"]}}\n",
            host.url(),
            key.display(),
            host.host_key()?,
        ));
        Ok(self)
    }

    /// Trusts this file's certificates for upstream TLS, beside the usual ones.
    #[must_use]
    pub fn upstream_ca(mut self, path: &Path) -> Self {
        self.upstream_ca = Some(path.to_path_buf());
        self
    }

    /// Starts these daemons only.
    #[must_use]
    pub fn daemons(mut self, names: &str) -> Self {
        self.daemons = Some(names.to_owned());
        self
    }

    /// Adds a variable to the supervisor's environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts the supervisor and returns when it says that everything is ready.
    pub fn start(self) -> Result<Bundle> {
        let mut bundle = self.launch()?;
        bundle.await_ready()?;
        Ok(bundle)
    }

    /// Starts the supervisor and returns at once.
    pub fn launch(self) -> Result<Bundle> {
        let repos =
            if self.repos.is_empty() { "repos: []\n".to_owned() } else { format!("repos:\n{}", self.repos) };
        self.root.write("etc/git-gate/repos.yaml", &repos)?;
        let binaries = reachable(Binaries::find()?.directory(), &self.root)?;
        let address = own_address();
        let notify = UnixDatagram::bind(self.root.path("run/notify"))?;

        let mut command = Command::new(binaries.join("supervisor"));
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("NOTIFY_SOCKET", self.root.path("run/notify"))
            .envs(self.environment)
            .arg("--root")
            .arg(self.root.path(""))
            .arg("--bin-dir")
            .arg(&binaries)
            .args(["--ca-init", "--log", "text"]);
        for (name, port) in [("egress", 9099), ("git-gate", 9418), ("supervise", 9100)] {
            command.arg("--listen").arg(format!("{name}={}", SocketAddr::new(address, port)));
        }
        if let Some(path) = self.upstream_ca {
            command.env("EGRESS_UPSTREAM_CA", path);
        }
        if let Some(names) = self.daemons {
            command.env("SIDECAR_DAEMONS", names);
        }
        let started = Instant::now();
        let supervisor = Process::start(&mut command)?;
        Ok(Bundle { supervisor, notify, address, started, root: self.root })
    }
}

/// A running bundle; stopped when dropped.
#[derive(Debug)]
pub struct Bundle {
    /// PID 1's stand-in: the supervisor, with everything it prints.
    pub supervisor: Process,
    notify: UnixDatagram,
    address: IpAddr,
    started: Instant,
    /// Its files.
    pub root: TempRoot,
}

impl Bundle {
    /// A bundle with a root of its own and nothing allowed.
    pub fn builder() -> Result<BundleBuilder> {
        let root = TempRoot::new()?;
        BundleBuilder {
            root,
            daemons: None,
            upstream_ca: None,
            repos: String::new(),
            environment: Vec::new(),
        }
        .routes("routes: []\n")
    }

    /// Returns when the supervisor reports that every daemon is ready: how long that took since it was started.
    pub fn await_ready(&mut self) -> Result<Duration> {
        self.notify.set_read_timeout(Some(Duration::from_millis(200)))?;
        let deadline = Instant::now() + PATIENCE;
        let mut message = [0; 4096];
        loop {
            match self.notify.recv(&mut message) {
                Ok(length)
                    if message[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") =>
                {
                    return Ok(self.started.elapsed());
                }
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    anyhow::ensure!(
                        self.supervisor.runs()?,
                        "the supervisor ended:\n{}",
                        self.supervisor.stderr.text()
                    );
                    anyhow::ensure!(
                        Instant::now() < deadline,
                        "the bundle did not get ready:\n{}",
                        self.supervisor.stderr.text()
                    );
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Where a daemon listens.
    pub fn address(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, port)
    }

    /// The proxy, as a client's environment names it.
    pub fn proxy(&self) -> String {
        format!("http://{}", self.address(9099))
    }

    /// The certificate that clients inside trust.
    pub fn ca(&self) -> PathBuf {
        self.root.path("var/lib/sidecars/egress/ca/ca.pem")
    }

    /// Sends one request to the supervisor's control socket and returns its first reply.
    pub fn control(&self, request: &Value) -> Result<Value> {
        let mut stream = UnixStream::connect(self.root.path("run/sidecars/supervisor.sock"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        writeln!(stream, "{request}")?;
        let mut reply = String::new();
        BufReader::new(stream).read_line(&mut reply)?;
        serde_json::from_str(&reply).with_context(|| format!("not a reply: {reply}"))
    }

    /// What the supervisor says about one daemon.
    pub fn daemon(&self, name: &str) -> Result<Value> {
        let status = self.control(&json!({"op": "status"}))?;
        let daemons =
            status["result"]["daemons"].as_array().with_context(|| format!("no daemons in {status}"))?;
        daemons
            .iter()
            .find(|daemon| daemon["name"] == name)
            .cloned()
            .with_context(|| format!("no {name} in {status}"))
    }

    /// The process id of one daemon.
    pub fn pid(&self, name: &str) -> Result<i32> {
        let daemon = self.daemon(name)?;
        Ok(i32::try_from(daemon["pid"].as_i64().with_context(|| format!("no pid in {daemon}"))?)?)
    }

    /// Stops it and returns its exit code.
    pub fn stop(&mut self) -> Result<i32> {
        self.supervisor.signal(Signal::SIGTERM)?;
        self.supervisor.wait()
    }

    /// curl as an agent in the bottle runs it: through the proxy, trusting the bottle's certificate.
    pub fn curl<A: AsRef<str>>(&self, args: impl IntoIterator<Item = A>) -> Result<Answer> {
        self.curl_with(args, Vec::new())
    }

    /// The same, with standard input.
    pub fn curl_with<A: AsRef<str>>(
        &self,
        args: impl IntoIterator<Item = A>,
        input: Vec<u8>,
    ) -> Result<Answer> {
        let scratch = tempfile::tempdir()?;
        let (head, body) = (scratch.path().join("head"), scratch.path().join("body"));
        let code = Run::bare("curl")
            .env("http_proxy", self.proxy())
            .env("https_proxy", self.proxy())
            .env("CURL_CA_BUNDLE", self.ca())
            .args([
                "--silent",
                "--show-error",
                "--max-time",
                "50",
                "--suppress-connect-headers",
                "--write-out",
                "%{http_code}",
            ])
            .args([Path::new("--dump-header"), &head, Path::new("--output"), &body])
            .args(args.into_iter().map(|arg| arg.as_ref().to_owned()))
            .input(input)
            .ok()?;
        let head = std::fs::read_to_string(head)?;
        let headers = head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        // A body of length zero leaves no file.
        let body = std::fs::read(body).unwrap_or_default();
        Ok(Answer { code: code.parse()?, headers, body })
    }

    /// git as an agent runs it, in this directory.
    pub fn git(&self, directory: &Path) -> Run {
        git_host::git(directory)
    }

    /// A repository as the agent names it.
    pub fn git_url(&self, name: &str) -> String {
        format!("git://{}/{name}.git", self.address(9418))
    }
}

/// An answer to a request through the proxy.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub code: u16,
    /// The headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| String::from_utf8_lossy(&self.body).into_owned())
    }

    /// The code of a refusal, from its header.
    pub fn denied(&self) -> Option<&str> {
        self.headers.iter().find(|(name, _)| name == "x-bottlecap-denied").map(|(_, value)| value.as_str())
    }
}

/// A loopback address that no other bundle of this machine uses: the fixed ports are free there.
fn own_address() -> IpAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(127, 64 | (high & 63), low, NEXT.fetch_add(1, Ordering::SeqCst)))
}

/// The programs where the daemons' own users can reach them: in place, or copied when a parent directory is closed.
fn reachable(binaries: &Path, root: &TempRoot) -> Result<PathBuf> {
    let open = |path: &Path| path.metadata().is_ok_and(|data| data.permissions().mode() & 0o001 != 0);
    if !as_root() || binaries.ancestors().all(open) {
        return Ok(binaries.to_path_buf());
    }
    let copies = root.path("bin");
    std::fs::create_dir_all(&copies)?;
    for program in ["supervisor", "egress", "git-gate", "supervise"] {
        std::fs::copy(binaries.join(program), copies.join(program))?;
    }
    Ok(copies)
}
