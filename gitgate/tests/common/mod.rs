//! A real upstream (OpenSSH on the loopback), a real gate, a real git client.
#![allow(dead_code, unreachable_pub, clippy::print_stderr)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The request line of a push to `web`.
pub const RECEIVE: &[u8] = b"git-receive-pack /web.git\0host=h\0";

/// Everything one test needs; gone when it is dropped.
pub struct World {
    pub dir: TempDir,
    pub upstream: Upstream,
    pub gate: Gate,
}

impl World {
    /// One repository `web` that may be read, and pushed to at `agent/*` and tags.
    pub fn new() -> Self {
        Self::with_rules("push: {allow: [refs/heads/agent/*], tags: true}")
    }

    /// The same with other rules, given as lines of repos.yaml.
    pub fn with_rules(rules: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let upstream = Upstream::start(dir.path());
        let gate = Gate::start(dir.path(), &upstream.entry("web", rules));
        Self { dir, upstream, gate }
    }

    /// A clone of `web` through the gate, ready for commits.
    pub fn clone_web(&self) -> Work {
        let work = self.work("work");
        git(self.dir.path(), &["clone", "-q", &self.gate.url("web"), "work"]).succeed();
        work
    }

    /// Pushes past git's own client: these updates (old, new, name), this list of objects. What the gate says.
    pub fn push_raw(&self, work: &Work, updates: &[(&str, &str, &str)], objects: &[&str]) -> String {
        let request = [pkt(RECEIVE), self.commands_and_pack(work, updates, objects)].concat();
        self.gate.talk(&request)
    }

    /// What follows the request line of such a push.
    pub fn commands_and_pack(
        &self,
        work: &Work,
        updates: &[(&str, &str, &str)],
        objects: &[&str],
    ) -> Vec<u8> {
        let mut head = Vec::new();
        for (index, (old, new, name)) in updates.iter().enumerate() {
            let capabilities = if index == 0 { "\0report-status side-band-64k" } else { "" };
            head.extend(pkt(format!("{old} {new} {name}{capabilities}").as_bytes()));
        }
        head.extend(b"0000");
        let mut pack = client(&work.path);
        pack.args(["pack-objects", "--revs", "--stdout", "-q"]);
        let list = format!("{}\n--not\nrefs/remotes/origin/main\n", objects.join("\n"));
        head.extend(fed(pack, list.as_bytes()));
        head
    }

    /// Whether the mirror was packed.
    pub fn has_bitmap(&self) -> bool {
        let packs = fs::read_dir(self.dir.path().join("git/web.git/objects/pack")).unwrap();
        packs.flatten().any(|entry| entry.path().extension().is_some_and(|e| e == "bitmap"))
    }

    pub fn work(&self, name: &str) -> Work {
        Work { path: self.dir.path().join(name) }
    }
}

/// A git host: sshd with its own keys, and one bare repository.
pub struct Upstream {
    pub repository: PathBuf,
    pub port: u16,
    dir: PathBuf,
    sshd: Option<Child>,
    /// Connections whose listener is gone.
    outlived: Vec<u32>,
}

impl Upstream {
    pub fn start(dir: &Path) -> Self {
        let dir = dir.join("upstream");
        fs::create_dir(&dir).unwrap();
        for key in ["host", "other_host", "identity"] {
            let path = dir.join(key);
            let made =
                Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path).status();
            assert!(made.expect("these tests need ssh-keygen (Debian: openssh-client)").success());
        }
        let repository = dir.join("web.git");
        git(&dir, &["init", "-q", "--bare", "-b", "main", "web.git"]).succeed();
        let seed = dir.join("seed");
        git(&dir, &["clone", "-q", "web.git", "seed"]).succeed();
        fs::write(seed.join("README"), "hello\n").unwrap();
        git(&seed, &["checkout", "-q", "-b", "main"]).succeed();
        git(&seed, &["add", "."]).succeed();
        git(&seed, &["commit", "-qm", "one commit"]).succeed();
        git(&seed, &["push", "-q", "origin", "main"]).succeed();
        let mut upstream = Self { repository, port: 0, dir, sshd: None, outlived: Vec::new() };
        upstream.listen();
        upstream
    }

    /// The entry of repos.yaml for the repository.
    pub fn entry(&self, name: &str, rules: &str) -> String {
        self.entry_with_host_key(name, rules, "host")
    }

    pub fn entry_with_host_key(&self, name: &str, rules: &str, key: &str) -> String {
        let public = fs::read_to_string(self.dir.join(format!("{key}.pub"))).unwrap();
        let (dir, port) = (self.dir.display(), self.port);
        let user = whoami();
        format!(
            "repos:\n  - name: {name}\n    upstream: ssh://{user}@git.example.test:{port}{dir}/web.git\n    \
             identity: {dir}/identity\n    host_key: \"{}\"\n    extra_hosts: {{git.example.test: 127.0.0.1}}\n    {rules}\n",
            public.trim()
        )
    }

    /// What upstream's refs are, one line each.
    pub fn refs(&self) -> String {
        git(&self.repository, &["for-each-ref", "--format=%(objectname) %(refname)"]).succeed()
    }

    pub fn rev(&self, name: &str) -> String {
        git(&self.repository, &["rev-parse", name]).succeed().trim().to_owned()
    }

    /// A commit made by somebody else, directly at upstream.
    pub fn commit(&self, file: &str) -> String {
        let seed = self.dir.join("seed");
        fs::write(seed.join(file), "theirs\n").unwrap();
        git(&seed, &["add", "."]).succeed();
        git(&seed, &["commit", "-qm", file]).succeed();
        git(&seed, &["push", "-q", "origin", "main"]).succeed();
        self.rev("main")
    }

    /// Rewrites the branch, so that its last commit is no longer there.
    pub fn purge(&self) {
        let seed = self.dir.join("seed");
        git(&seed, &["reset", "-q", "--hard", "HEAD^"]).succeed();
        git(&seed, &["push", "-q", "--force", "origin", "main"]).succeed();
        git(&self.repository, &["reflog", "expire", "--expire=now", "--all"]).succeed();
        git(&self.repository, &["gc", "-q", "--prune=now"]).succeed();
    }

    /// The commands that came over ssh.
    pub fn commands(&self) -> String {
        fs::read_to_string(self.dir.join("commands")).unwrap_or_default()
    }

    /// How many processes serve connections.
    pub fn connections(&self) -> usize {
        self.sshd.as_ref().map_or(0, |sshd| descendants(sshd.id()).len())
    }

    /// As long as this file is there, the second command that came over ssh does not begin.
    pub fn slow(&self) -> PathBuf {
        self.dir.join("slow")
    }

    /// From now on a branch is elsewhere each time that somebody looks, there is another tag, and another branch in place of the last.
    pub fn move_at_each_look(&self) {
        self.write_login(&format!(
            "export GIT_DIR='{}' GIT_COMMITTER_NAME=T GIT_COMMITTER_EMAIL=t@example.test GIT_AUTHOR_NAME=T GIT_AUTHOR_EMAIL=t@example.test\n\
             new=$(git commit-tree -p main -m $$ 'main^{{tree}}') && git update-ref refs/heads/moving $new && git tag -a -m $$ t$$ $new\n\
             git for-each-ref --format='delete %(refname)' refs/heads/once | git update-ref --stdin\n\
             git update-ref refs/heads/once/$$ $new\n\
             unset GIT_DIR\n",
            self.repository.display()
        ));
    }

    /// Writes what runs for each command that comes over ssh.
    fn write_login(&self, first: &str) {
        let log = self.dir.join("login");
        let script = format!(
            "#!/bin/sh\n{first}echo \"$SSH_ORIGINAL_COMMAND\" >> '{0}'\n\
             if [ $(wc -l < '{0}') -eq 2 ]; then while [ -e '{1}' ]; do sleep 0.05; done; fi\n\
             exec sh -c \"$SSH_ORIGINAL_COMMAND\"\n",
            self.dir.join("commands").display(),
            self.slow().display()
        );
        // In one go: a login may be reading what was there.
        let new = log.with_extension("new");
        fs::write(&new, script).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&new, &log).unwrap();
    }

    pub fn hook(&self, name: &str, script: &str) {
        let path = self.repository.join("hooks").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub fn stop(&mut self) {
        if let Some(mut sshd) = self.sshd.take() {
            // The host is gone, and with it the connections it has.
            for pid in descendants(sshd.id()) {
                kill(pid);
            }
            sshd.kill().unwrap();
            sshd.wait().unwrap();
        }
    }

    /// Takes no new connections; those that there are live on.
    pub fn stop_listening(&mut self) {
        let mut sshd = self.sshd.take().unwrap();
        self.outlived.extend(descendants(sshd.id()));
        sshd.kill().unwrap();
        sshd.wait().unwrap();
    }

    /// Listens again as before.
    pub fn listen_again(&mut self) {
        self.listen_with_key("host");
    }

    /// A new connection of the URL kind that an outsider would use, past the gate.
    pub fn direct_url(&self) -> String {
        format!("file://{}", self.repository.display())
    }

    /// Listens again on the same port, with another host key.
    pub fn listen_with_key(&mut self, key: &str) {
        self.listen_with(key, "");
    }

    /// The same with further lines of its configuration.
    pub fn listen_with(&mut self, key: &str, more: &str) {
        let mut said = String::new();
        assert!(self.try_listen(&mut said, key, more), "{said}");
    }

    /// Makes a key of upstream's; its name is that of a host key from then on.
    pub fn make_key(&self, name: &str, kind: &[&str]) {
        let mut make = Command::new("ssh-keygen");
        make.args(["-q", "-N", "", "-f"]).arg(self.dir.join(name)).arg("-t").args(kind);
        assert!(make.status().unwrap().success());
    }

    fn listen(&mut self) {
        assert!(
            Path::new("/usr/sbin/sshd").exists(),
            "these tests need a real sshd (Debian: openssh-server)"
        );
        // As root, sshd wants its privilege separation directory.
        let _ = fs::create_dir_all("/run/sshd");
        let log = self.dir.join("login");
        self.write_login("");
        let public = fs::read_to_string(self.dir.join("identity.pub")).unwrap();
        let line = format!("restrict,command=\"{}\" {public}", log.display());
        fs::write(self.dir.join("authorized_keys"), line).unwrap();
        let mut said = String::new();
        for _ in 0..10 {
            self.port = free_port();
            if self.try_listen(&mut said, "host", "") {
                return;
            }
        }
        panic!("sshd does not start: {said}");
    }

    fn try_listen(&mut self, said: &mut String, key: &str, more: &str) -> bool {
        let dir = self.dir.display();
        // Another home keeps the login shell from the start-up files of whoever runs the tests.
        let config = format!(
            "ListenAddress 127.0.0.1:{}\nHostKey {dir}/{key}\nAuthorizedKeysFile {dir}/authorized_keys\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nPidFile none\n\
             AcceptEnv GIT_PROTOCOL\nMaxStartups 100\nSetEnv \"PATH={}\" HOME=/nonexistent\n{more}\n",
            self.port,
            std::env::var("PATH").unwrap()
        );
        fs::write(self.dir.join("sshd_config"), config).unwrap();
        let mut sshd = Command::new("/usr/sbin/sshd");
        sshd.args(["-D", "-e", "-f"]).arg(self.dir.join("sshd_config"));
        let mut child = sshd.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        for line in lines.by_ref().map_while(Result::ok) {
            said.push_str(&line);
            if line.contains("Server listening") {
                std::thread::spawn(move || lines.for_each(drop));
                self.sshd = Some(child);
                return true;
            }
        }
        let _ = child.wait();
        false
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop();
        for pid in &self.outlived {
            // The number may be somebody else's by now.
            if fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("sshd")) {
                kill(*pid);
            }
        }
    }
}

fn kill(pid: u32) {
    let pid = nix::unistd::Pid::from_raw(pid.try_into().unwrap());
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
}

/// The processes below a process.
pub fn descendants(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children = tasks.map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
    let children: Vec<u32> = children
        .flat_map(|of| of.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect();
    children.iter().flat_map(|pid| [vec![*pid], descendants(*pid)].concat()).collect()
}

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
    pub fn start_with_peer(dir: &Path, repos_yaml: &str, peer: OwnedFd) -> Self {
        let mut command = Command::new("bash");
        // The socket comes as standard output, so that nothing else that is started meanwhile has it too.
        let script =
            "exec 3>&1 >&2; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=peer.supervise; exec \"$@\"";
        command.args(["-c", script, "bash", env!("CARGO_BIN_EXE_git-gate")]).stdout(peer);
        Self::spawn(command, dir, repos_yaml, &[])
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

/// A working copy.
pub struct Work {
    pub path: PathBuf,
}

impl Work {
    pub fn git(&self, arguments: &[&str]) -> Ran {
        git(&self.path, arguments)
    }

    pub fn write(&self, file: &str, content: &str) -> &Self {
        let path = self.path.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    /// Commits everything; the new commit.
    pub fn commit(&self, message: &str) -> String {
        self.git(&["add", "-A"]).succeed();
        self.git(&["commit", "-q", "--allow-empty", "-m", message]).succeed();
        self.git(&["rev-parse", "HEAD"]).succeed().trim().to_owned()
    }

    /// Writes an object as it is, however odd; its name.
    pub fn object(&self, kind: &str, bytes: &[u8]) -> String {
        let mut command = client(&self.path);
        command.args(["hash-object", "-w", "--literally", "--stdin", "-t", kind]);
        String::from_utf8(fed(command, bytes)).unwrap().trim().to_owned()
    }

    pub fn push(&self, refspec: &str) -> Ran {
        self.git(&["push", "origin", refspec])
    }
}

/// Looks again and again; the upkeep has its own time.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::yield_now();
    }
}

/// What a command did.
pub struct Ran(Output);

impl Ran {
    /// Its output; it must have succeeded.
    pub fn succeed(self) -> String {
        let said = self.said();
        assert!(self.0.status.success(), "{said}");
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    /// What it said on standard error; it must have failed.
    pub fn fail(self) -> String {
        let said = self.said();
        assert!(!self.0.status.success(), "it should have failed: {said}");
        said
    }

    pub fn said(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }
}

pub fn git(dir: &Path, arguments: &[&str]) -> Ran {
    let mut command = client(dir);
    Ran(command.args(arguments).output().expect("these tests need git"))
}

/// A pkt-line.
pub fn pkt(payload: &[u8]) -> Vec<u8> {
    [format!("{:04x}", payload.len() + 4).as_bytes(), payload].concat()
}

/// Sends bytes and reads pkt-lines up to the next flush.
pub fn exchange(stream: &mut TcpStream, bytes: &[u8]) -> String {
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    loop {
        let mut head = [0; 4];
        stream.read_exact(&mut head).unwrap();
        let length = usize::from_str_radix(std::str::from_utf8(&head).unwrap(), 16).unwrap();
        if length == 0 {
            return String::from_utf8_lossy(&answer).into_owned();
        }
        let start = answer.len();
        answer.resize(start + length - 4, 0);
        stream.read_exact(&mut answer[start..]).unwrap();
    }
}

/// Sends bytes and reads to the end.
pub fn rest(mut stream: TcpStream, bytes: &[u8]) -> String {
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// The output of a command that reads these bytes.
pub fn fed(mut command: Command, input: &[u8]) -> Vec<u8> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    output.stdout
}

pub fn client(dir: &Path) -> Command {
    let mut command = Command::new("git");
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", "/nonexistent")
        .env("LC_ALL", "C");
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_TERMINAL_PROMPT", "0");
    for (name, value) in [("NAME", "Agent"), ("EMAIL", "agent@example.test")] {
        command.env(format!("GIT_AUTHOR_{name}"), value).env(format!("GIT_COMMITTER_{name}"), value);
    }
    command.current_dir(dir).stdin(Stdio::null());
    command
}

/// A private key that is one for scanners only; made here so that none trips over this file.
pub fn private_key() -> String {
    let line = "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gt";
    format!("-----BEGIN OPENSSH PRIVATE {0}-----\n{line}\n-----END OPENSSH PRIVATE {0}-----\n", "KEY")
}

/// A token with the checksum that makes it one.
pub fn github_token() -> String {
    ["ghp", "_zQWBuTSOoRi4A9spHcVY5", "ncnsDkxkJ0mLq17"].concat()
}

pub fn whoami() -> String {
    nix::unistd::User::from_uid(nix::unistd::Uid::effective()).unwrap().expect("a named user").name
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
