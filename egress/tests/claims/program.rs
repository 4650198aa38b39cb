//! The built program: its start, its signals, its exit codes.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const ROUTES: &str = "routes:\n  - host: api.test\n";

fn egress(root: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_egress"));
    command
        .env_clear()
        .args(["--config", "etc", "--ca-dir", "ca", "--run-dir", "run", "--state-dir", "state"])
        .args(["--secrets-dir", "secrets", "--listen", "127.0.0.1:0"])
        .current_dir(root);
    command
}

fn init(root: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_egress"))
        .args(["ca", "init", "--ca-dir"])
        .arg(root.join("ca"))
        .output()
        .unwrap()
}

fn directory(routes: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for name in ["etc", "run", "state", "secrets"] {
        std::fs::create_dir(directory.path().join(name)).unwrap();
    }
    std::fs::write(directory.path().join("etc/routes.yaml"), routes).unwrap();
    directory
}

struct Running {
    child: Child,
    notifications: UnixDatagram,
}

impl Running {
    fn start(root: &Path) -> Running {
        let path = root.join("notify");
        let notifications = UnixDatagram::bind(&path).unwrap();
        let child = egress(root).env("NOTIFY_SOCKET", &path).stderr(Stdio::null()).spawn().unwrap();
        Running { child, notifications }
    }

    fn told(&self) -> String {
        let mut buffer = [0; 2048];
        let length = self.notifications.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_missing_authority_is_an_error_that_names_the_command_and_makes_nothing() {
    let root = directory(ROUTES);
    let output = egress(root.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("error: there is no certificate authority in ca"), "{text}");
    assert!(text.contains("hint: make one with `egress ca init --ca-dir ca`"), "{text}");
    assert!(!root.path().join("ca").exists());
}

#[test]
fn the_authority_is_made_once() {
    let root = directory(ROUTES);
    let first = init(root.path());
    assert!(first.status.success());
    assert!(String::from_utf8(first.stdout).unwrap().starts_with("sha256 "));
    assert_eq!(init(root.path()).status.code(), Some(64));
}

#[test]
fn usage_errors_are_64_and_help_is_0() {
    let root = directory(ROUTES);
    assert_eq!(egress(root.path()).arg("--nonsense").output().unwrap().status.code(), Some(64));
    assert_eq!(egress(root.path()).arg("--help").output().unwrap().status.code(), Some(0));
}

#[test]
fn a_parent_proxy_that_cannot_be_read_is_an_error_and_not_left_out() {
    let root = directory(ROUTES);
    assert!(init(root.path()).status.success());
    for url in [&b"http://proxy"[..], b"http://proxy\xff:3128"] {
        let output =
            egress(root.path()).env("EGRESS_UPSTREAM_PROXY", OsStr::from_bytes(url)).output().unwrap();
        assert_eq!(output.status.code(), Some(64));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("error: EGRESS_UPSTREAM_PROXY: expected `http://"), "{text}");
    }
}

#[test]
fn check_prints_what_is_allowed_or_where_it_is_wrong() {
    let root = directory(ROUTES);
    let good = egress(root.path()).arg("--check").output().unwrap();
    assert_eq!(good.status.code(), Some(0));
    assert!(String::from_utf8(good.stdout).unwrap().contains("api.test"));
    std::fs::write(root.path().join("etc/routes.yaml"), "routes:\n  - host: api.test\n    metods: []\n")
        .unwrap();
    let bad = egress(root.path()).arg("--check").output().unwrap();
    assert_eq!(bad.status.code(), Some(64));
    let text = String::from_utf8(bad.stderr).unwrap();
    assert!(text.starts_with("error: routes.yaml:3:5: "), "{text}");
}

#[test]
fn hang_up_reloads_and_says_which_generation_serves_or_why_not() {
    let root = directory(ROUTES);
    assert!(init(root.path()).status.success());
    let mut running = Running::start(root.path());
    let ready = running.told();
    assert!(ready.starts_with("READY=1\nX_GENERATION=1\nX_DIGEST=sha256:"), "{ready}");

    let routes = root.path().join("etc/routes.yaml");
    std::fs::write(&routes, "routes:\n  - host: api.test\n    metods: []\n").unwrap();
    running.signal(Signal::SIGHUP);
    assert!(running.told().starts_with("RELOADING=1\nMONOTONIC_USEC="));
    let refused = running.told();
    assert!(refused.starts_with("READY=1\nX_GENERATION=1\n"), "{refused}");
    assert!(refused.contains("\nX_RELOAD_ERROR=routes.yaml:3:5: "), "{refused}");
    let status = std::fs::read_to_string(root.path().join("run/egress.status.json")).unwrap();
    assert!(status.contains("\"generation\":1") && status.contains("routes.yaml:3:5: "), "{status}");

    std::fs::write(&routes, "routes: []\n").unwrap();
    running.signal(Signal::SIGHUP);
    assert!(running.told().starts_with("RELOADING=1\n"));
    assert!(running.told().starts_with("READY=1\nX_GENERATION=2\nX_DIGEST=sha256:"));

    running.signal(Signal::SIGTERM);
    assert_eq!(running.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_port_in_use_is_said_and_ends_with_70() {
    let root = directory(ROUTES);
    assert!(init(root.path()).status.success());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = egress(root.path()).args(["--listen", &address]).output().unwrap();
    assert_eq!(output.status.code(), Some(70));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains(&format!("cannot listen on {address}")), "{text}");
}

#[test]
fn a_token_of_the_environment_is_wiped_from_it() {
    let root = directory("routes:\n  - {host: api.test, auth_scheme: bearer, token_env: EGRESS_TOKEN_0}\n");
    assert!(init(root.path()).status.success());
    let path = root.path().join("notify");
    let notifications = UnixDatagram::bind(&path).unwrap();
    let child = egress(root.path())
        .env("NOTIFY_SOCKET", &path)
        .env("EGRESS_TOKEN_0", "a-very-secret-token")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let running = Running { child, notifications };
    assert!(running.told().starts_with("READY=1"));
    let mut environment = Vec::new();
    // Readable for the test only where it runs as root: the process is not dumpable.
    if let Ok(mut file) = std::fs::File::open(format!("/proc/{}/environ", running.child.id())) {
        let _ = file.read_to_end(&mut environment);
    }
    assert!(!String::from_utf8_lossy(&environment).contains("a-very-secret-token"));
}

#[test]
fn a_shortage_of_descriptors_passes() {
    let root = directory("routes: []\n");
    assert!(init(root.path()).status.success());
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "ulimit -n 24; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_egress")])
        .args(egress(root.path()).get_args())
        .env("NO_COLOR", "1")
        .current_dir(root.path())
        .stderr(Stdio::piped());
    let mut child = limited.spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let listening = log.find(|line| line.contains("listening")).unwrap();
    let address = listening.rsplit('=').next().unwrap().to_owned();
    let many = (0..32).map(|_| TcpStream::connect(&address).unwrap()).collect::<Vec<_>>();
    assert!(log.any(|line| line.contains("cannot accept a connection")));
    let drained = std::thread::spawn(move || log.count());
    drop(many);
    let mut stream = TcpStream::connect(&address).unwrap();
    let request =
        b"GET http://_egress.local/ca.pem HTTP/1.1\r\nhost: _egress.local\r\nconnection: close\r\n\r\n";
    stream.write_all(request).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    child.kill().unwrap();
    child.wait().unwrap();
    drained.join().unwrap();
}

#[test]
fn when_the_journal_cannot_be_written_nothing_goes_out() {
    let root = directory("routes: []\n");
    assert!(init(root.path()).status.success());
    // Files may grow to 2 KiB: the journal is full after a few records.
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "trap '' XFSZ; ulimit -f 4; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_egress")])
        .args(egress(root.path()).get_args())
        .env("NO_COLOR", "1")
        .current_dir(root.path())
        .stderr(Stdio::piped());
    let mut child = limited.spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let listening = log.find(|line| line.contains("listening")).unwrap();
    let address = listening.rsplit('=').next().unwrap().to_owned();
    let drained = std::thread::spawn(move || log.count());
    let answer = || {
        let mut stream = TcpStream::connect(&address).unwrap();
        let request = b"GET http://api.test/ HTTP/1.1\r\nhost: api.test\r\nconnection: close\r\n\r\n";
        stream.write_all(request).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    assert!(answer().starts_with("HTTP/1.1 403"));
    let unavailable = (0..64).map(|_| answer()).find(|text| text.starts_with("HTTP/1.1 503"));
    assert!(unavailable.unwrap().contains("x-bottlecap-failed: audit-unavailable"));
    child.kill().unwrap();
    child.wait().unwrap();
    drained.join().unwrap();
}
