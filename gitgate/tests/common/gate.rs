//! A gate on the loopback.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::{RECEIVE, pkt};

/// A running git-gate.
pub struct Gate {
    pub address: SocketAddr,
    pub state_dir: PathBuf,
    pub config_dir: PathBuf,
    pub child: Child,
}

impl Gate {
    pub fn start(dir: &Path, repos_yaml: &str) -> Self {
        Self::start_with(dir, repos_yaml, &[])
    }

    pub fn start_with(dir: &Path, repos_yaml: &str, more: &[&str]) -> Self {
        Self::spawn(Command::new(env!("CARGO_BIN_EXE_git-gate")), dir, repos_yaml, more)
    }

    /// A gate with these variables in its environment.
    pub fn start_among(dir: &Path, repos_yaml: &str, variables: &[(&str, &Path)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_git-gate"));
        command.envs(variables.iter().copied());
        Self::spawn(command, dir, repos_yaml, &[])
    }

    /// A gate whose uid has no entry in the user database.
    pub fn start_as_nobody_known(dir: &Path, repos_yaml: &str) -> Self {
        let mut command = Command::new("unshare");
        command.args(["-U", "--keep-caps", "--map-user=64102", "--map-group=64102"]);
        command.arg(env!("CARGO_BIN_EXE_git-gate"));
        Self::spawn(command, dir, repos_yaml, &[])
    }

    /// A gate with a socket to supervise, as the supervisor passes it.
    pub fn start_with_peer(dir: &Path, repos_yaml: &str, peer: OwnedFd, more: &[&str]) -> Self {
        let mut command = Command::new("bash");
        // The socket comes as standard output, so that nothing else that is started meanwhile has it too.
        let script =
            "exec 3>&1 >&2; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=peer.supervise; exec \"$@\"";
        command.args(["-c", script, "bash", env!("CARGO_BIN_EXE_git-gate")]).stdout(peer);
        Self::spawn(command, dir, repos_yaml, more)
    }

    /// A gate whose mirrors are on a disk of its own, of so many MiB.
    pub fn start_on_small_disk(dir: &Path, repos_yaml: &str, mib: u32) -> Self {
        assert!(nix::unistd::Uid::effective().is_root(), "this test mounts a disk, so it needs root");
        let mirrors = dir.join("git");
        fs::create_dir_all(&mirrors).unwrap();
        let mut command = Command::new("unshare");
        let script = format!("mount -t tmpfs -o size={mib}m,mode=700 none \"$1\" && shift && exec \"$@\"");
        command
            .args(["--mount", "sh", "-c", &script, "sh"])
            .arg(&mirrors)
            .arg(env!("CARGO_BIN_EXE_git-gate"));
        Self::spawn(command, dir, repos_yaml, &[])
    }

    /// A gate that cannot write files longer than this.
    pub fn start_with_file_limit(dir: &Path, repos_yaml: &str, kib: u32) -> Self {
        let mut command = Command::new("bash");
        let script = format!("trap '' XFSZ; ulimit -f {kib}; exec \"$@\"");
        command.args(["-c", &script, "bash", env!("CARGO_BIN_EXE_git-gate")]);
        Self::spawn(command, dir, repos_yaml, &[])
    }

    fn spawn(mut command: Command, dir: &Path, repos_yaml: &str, more: &[&str]) -> Self {
        let (config_dir, state_dir) = (dir.join("config"), dir.join("state"));
        fs::create_dir_all(&config_dir).unwrap();
        fs::write(config_dir.join("repos.yaml"), repos_yaml).unwrap();
        command.arg("--config").arg(&config_dir).arg("--state-dir").arg(&state_dir);
        fs::create_dir_all(dir.join("run")).unwrap();
        command.arg("--run-dir").arg(dir.join("run"));
        command
            .arg("--repo-dir")
            .arg(dir.join("git"))
            .args(["--listen", "127.0.0.1:0", "--log", "json"])
            .args(more);
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut said = Vec::new();
        let address = lines.by_ref().find_map(|line| {
            let json: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            said.push(line);
            json["fields"]["address"].as_str().and_then(|a| a.parse().ok())
        });
        let address = address.unwrap_or_else(|| panic!("git-gate does not start: {said:?}"));
        std::thread::spawn(move || lines.for_each(|line| eprintln!("{line}")));
        Self { address, state_dir, config_dir, child }
    }

    pub fn url(&self, name: &str) -> String {
        format!("git://{}/{name}.git", self.address)
    }

    /// Puts other repositories in force; returns when a push to `web` is refused at the door.
    pub fn forbid_pushes(&self, repos_yaml: &str) {
        fs::write(self.config_dir.join("repos.yaml"), repos_yaml).unwrap();
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).unwrap();
        let refused = || self.talk(&[&pkt(RECEIVE)[..], b"0000"].concat()).contains("nothing may be pushed");
        assert!((0..1000).any(|_| refused()));
    }

    pub fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).unwrap()
    }

    /// Sends bytes and returns everything that comes back.
    pub fn talk(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// How many sessions to upstream are kept, if the gate says so.
    pub fn kept_sessions(&self) -> Option<u64> {
        self.status()["upstream_sessions"].as_u64()
    }

    /// What the gate says of itself.
    pub fn status(&self) -> serde_json::Value {
        let run = self.state_dir.with_file_name("run");
        let mut status = Command::new(env!("CARGO_BIN_EXE_git-gate"));
        let output = status.args(["status", "--json", "--run-dir"]).arg(run).output().unwrap();
        let mut status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        status["result"].take()
    }

    /// The events of the journal.
    pub fn journal(&self) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.state_dir.join("audit/git-gate/journal.jsonl")).unwrap();
        let event = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["event"].clone();
        text.lines().map(event).collect()
    }

    pub fn terminate(&mut self) -> Option<i32> {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
