//! A supervisor on stand-in daemons, below a directory of its own.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Longer than anything here takes on a busy machine; a test that waits so long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const NAMES: [&str; 3] = ["egress", "git-gate", "supervise"];

/// The files of a bundle whose supervisor is yet to be started.
pub(crate) struct Ground {
    home: TempDir,
}

impl Ground {
    pub(crate) fn new() -> Self {
        let home = tempfile::Builder::new().prefix("sup").tempdir().unwrap();
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let ground = Self { home };
        for directory in
            ["bin", "root", "root/etc", "root/etc/egress", "root/etc/git-gate", "root/var", "root/run"]
        {
            let path = ground.path(directory);
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let fake = fake_daemon();
        for name in NAMES {
            place(&fake, &ground.path("bin").join(name));
        }
        place(Path::new(env!("CARGO_BIN_EXE_supervisor")), &ground.path("bin/supervisor"));
        ground
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.home.path().join(below)
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.path("root/run/sidecars")
    }

    pub(crate) fn write(&self, below: &str, text: &str) -> &Self {
        let path = self.path(below);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        self
    }

    /// The supervisor's own command line, with ports that the kernel picks.
    pub(crate) fn command(&self) -> Command {
        let mut command = self.bare_command();
        for name in NAMES {
            command.arg("--listen").arg(format!("{name}=127.0.0.1:0"));
        }
        command
    }

    pub(crate) fn bare_command(&self) -> Command {
        let mut command = Command::new(self.path("bin/supervisor"));
        command.env_clear().env("PATH", "/usr/bin:/bin").arg("--root").arg(self.path("root"));
        command
    }

    pub(crate) fn start(self) -> Bundle {
        let command = self.command();
        self.start_with(command)
    }

    pub(crate) fn start_with(self, command: Command) -> Bundle {
        self.start_on(command, Stdio::null())
    }

    pub(crate) fn start_on(self, mut command: Command, input: Stdio) -> Bundle {
        let mut child = command.stdin(input).stderr(Stdio::piped()).spawn().unwrap();
        let log = Log::follow(child.stderr.take().unwrap());
        Bundle { ground: self, child, log }
    }

    /// Starts it and waits until every daemon is ready.
    pub(crate) fn started(self) -> Bundle {
        let bundle = self.start();
        bundle.log.wait("all daemons are ready");
        bundle
    }
}

/// The lines that a process says.
#[derive(Clone)]
pub(crate) struct Log(Arc<(Mutex<Said>, Condvar)>);

#[derive(Default)]
struct Said {
    lines: Vec<String>,
    ended: bool,
}

impl Log {
    fn follow(stream: impl std::io::Read + Send + 'static) -> Self {
        let log = Self(Arc::default());
        let shared = log.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                shared.0.0.lock().unwrap().lines.push(line);
                shared.0.1.notify_all();
            }
            shared.0.0.lock().unwrap().ended = true;
            shared.0.1.notify_all();
        });
        log
    }

    /// The first line with this text, once it is there.
    pub(crate) fn wait(&self, text: &str) -> String {
        self.wait_for(text, 1)
    }

    /// The line that is the `count`th with this text.
    pub(crate) fn wait_for(&self, text: &str, count: usize) -> String {
        let until = Instant::now() + PATIENCE;
        let mut state = self.0.0.lock().unwrap();
        loop {
            if let Some(line) = state.lines.iter().filter(|line| line.contains(text)).nth(count - 1) {
                return line.clone();
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(!state.ended && !left.is_zero(), "no line with `{text}` in {:#?}", state.lines);
            state = self.0.1.wait_timeout(state, left).unwrap().0;
        }
    }

    /// Everything, when the process is gone.
    pub(crate) fn whole(&self) -> Vec<String> {
        let state = self.0.0.lock().unwrap();
        let (state, timeout) = self.0.1.wait_timeout_while(state, PATIENCE, |state| !state.ended).unwrap();
        assert!(!timeout.timed_out());
        state.lines.clone()
    }
}

/// A running supervisor. Dropping it kills it, and the kernel kills its daemons.
pub(crate) struct Bundle {
    pub(crate) ground: Ground,
    child: Child,
    pub(crate) log: Log,
}

impl Bundle {
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal).unwrap();
    }

    pub(crate) fn address(&self, name: &str) -> SocketAddr {
        let marker = format!("{name} listens on ");
        let line = self.log.wait(&marker);
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// One command to a stand-in daemon, and its answer.
    pub(crate) fn ask(&self, name: &str, command: &str) -> String {
        ask(self.address(name), command).unwrap()
    }

    /// Waits until the supervisor has no children but its daemons, for so long that no process can be between two of its forks.
    pub(crate) fn wait_until_only_daemons_are_left(&self) {
        let pid = self.pid();
        let until = Instant::now() + PATIENCE;
        let mut quiet = 0;
        while quiet < 1000 {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
            let count = children.split_whitespace().count();
            quiet = if count == NAMES.len() { quiet + 1 } else { 0 };
            assert!(Instant::now() < until, "{count} children: {children}");
            std::thread::yield_now();
        }
    }

    pub(crate) fn daemon_pid(&self, name: &str) -> i32 {
        self.ask(name, "pid").parse().unwrap()
    }

    /// Runs one of the clients.
    pub(crate) fn client(&self, arguments: &[&str]) -> Output {
        self.ground.bare_command().args(arguments).output().unwrap()
    }

    pub(crate) fn status(&self) -> serde_json::Value {
        let output = self.client(&["status", "--json"]);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    pub(crate) fn daemon_status(&self, name: &str) -> serde_json::Value {
        let status = self.status();
        status["daemons"].as_array().unwrap().iter().find(|daemon| daemon["name"] == name).unwrap().clone()
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        wait(&mut self.child)
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn ask(address: SocketAddr, command: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let _ = stream.write_all(format!("{command}\n").as_bytes());
    let mut answer = String::new();
    // A daemon that ends with the command in hand leaves a reset connection.
    let _ = stream.read_to_string(&mut answer);
    Ok(answer)
}

pub(crate) fn wait(child: &mut Child) -> ExitStatus {
    let process = Process::open(i32::try_from(child.id()).unwrap());
    process.wait_for_its_end();
    child.wait().unwrap()
}

/// A handle on a process that is not our child.
pub(crate) struct Process(std::os::fd::OwnedFd);

impl Process {
    #[allow(unsafe_code)]
    pub(crate) fn open(pid: i32) -> Self {
        // SAFETY: no memory is passed.
        let fd = unsafe { nix::libc::syscall(nix::libc::SYS_pidfd_open, pid, 0) };
        assert!(fd >= 0, "no process {pid}");
        // SAFETY: a fresh descriptor.
        Self(unsafe { std::os::fd::FromRawFd::from_raw_fd(i32::try_from(fd).unwrap()) })
    }

    pub(crate) fn wait_for_its_end(&self) {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(PATIENCE).unwrap();
        assert_eq!(poll(&mut fds, timeout), Ok(1), "the process does not end");
    }
}

pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// What a process has, from its /proc status file.
pub(crate) fn fields(status: &str) -> BTreeMap<String, String> {
    status
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.split_whitespace().collect::<Vec<_>>().join(" ")))
        .collect()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The stand-in. `cargo test` builds it with everything else, `cargo test --test bundle` does not: so it is built here.
pub(crate) fn fake_daemon() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let test = std::env::current_exe().unwrap();
        let profile = test.ancestors().nth(2).unwrap();
        let name = profile.file_name().unwrap().to_str().unwrap();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--offline", "--quiet", "--package", "supervisor", "--example", "fake-daemon"]);
        cargo.args(["--profile", if name == "debug" { "dev" } else { name }]);
        cargo.arg("--target-dir").arg(profile.parent().unwrap()).current_dir(env!("CARGO_MANIFEST_DIR"));
        assert!(cargo.status().unwrap().success(), "the stand-in cannot be built");
        profile.join("examples/fake-daemon")
    };
    BUILT.get_or_init(build).clone()
}

/// Copies a program. Another process does it: a fork of another test must not inherit the file while it is open for
/// writing, or executing it fails with "text file busy".
fn place(source: &Path, target: &Path) {
    let status = Command::new("install").args(["-m", "755"]).arg(source).arg(target).status().unwrap();
    assert!(status.success());
}
