//! The built program: its start, its signals, its exit codes.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub(super) const ROUTES: &str = "routes:\n  - host: api.test\n";

pub(super) fn egress(root: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_egress"));
    command
        .env_clear()
        .args(["--config", "etc", "--ca-dir", "ca", "--run-dir", "run", "--state-dir", "state"])
        .args(["--secrets-dir", "secrets", "--listen", "127.0.0.1:0"])
        .current_dir(root);
    command
}

/// The same behind `prelude`, in shell, with a log to be read.
pub(super) fn egress_behind(prelude: &str, root: &Path) -> Command {
    let plain = egress(root);
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("{prelude}; exec \"$0\" \"$@\"")])
        .arg(plain.get_program())
        .args(plain.get_args())
        .env("NO_COLOR", "1")
        .current_dir(root)
        .stderr(Stdio::piped());
    command
}

pub(super) fn init(root: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_egress"))
        .args(["ca", "init", "--ca-dir"])
        .arg(root.join("ca"))
        .output()
        .unwrap()
}

pub(super) fn directory(routes: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for name in ["etc", "run", "state", "secrets"] {
        std::fs::create_dir(directory.path().join(name)).unwrap();
    }
    std::fs::write(directory.path().join("etc/routes.yaml"), routes).unwrap();
    directory
}

/// The program with everything that is off by default, and the lines of its log.
pub(super) fn start_seeing(root: &Path, more: &[&str]) -> (Running, BufReader<std::process::ChildStderr>) {
    let path = root.join("notify");
    let notifications = UnixDatagram::bind(&path).unwrap();
    let mut child =
        egress(root).args(more).env("NOTIFY_SOCKET", &path).stderr(Stdio::piped()).spawn().unwrap();
    let log = BufReader::new(child.stderr.take().unwrap());
    (Running { child, notifications }, log)
}

/// The address behind `what` in the log.
pub(super) fn address_in(log: &mut impl BufRead, what: &str) -> String {
    for line in log.lines() {
        let line = line.unwrap();
        if line.contains(what) {
            return line.split("address=").nth(1).unwrap().split(' ').next().unwrap().to_owned();
        }
    }
    panic!("no `{what}` in the log");
}

pub(super) fn get(address: &str, target: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let host = target.strip_prefix("http://").and_then(|rest| rest.split('/').next()).unwrap_or("x");
    write!(stream, "GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn metrics_are_served_on_loopback_and_refused_where_a_bottle_could_reach_them() {
    let root = directory(ROUTES);
    assert!(init(root.path()).status.success());
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:9464"] {
        let refused = egress(root.path()).args(["--metrics", address]).output().unwrap();
        assert_eq!(refused.status.code(), Some(64), "{address}");
        assert!(String::from_utf8(refused.stderr).unwrap().contains("a bottle could reach that address"));
    }
    let (running, mut log) = start_seeing(root.path(), &["--metrics", "127.0.0.1:0"]);
    let proxy = address_in(&mut log, "listening");
    let metrics = address_in(&mut log, "serving metrics");
    assert!(running.told().starts_with("READY=1"));
    assert!(get(&proxy, "http://other.test/").contains("host-not-allowed"));
    let told = get(&metrics, "/metrics");
    assert!(told.contains("bottlecap_egress_requests_total{decision=\"deny\"} 1\n"), "{told}");
    assert!(told.contains("bottlecap_egress_answers_by_code_total{code=\"host-not-allowed\"} 1\n"), "{told}");
    assert!(told.contains("bottlecap_egress_route_requests{route=\"routes[0]\"} 0\n"), "{told}");
    assert!(get(&metrics, "http://other.test/").starts_with("HTTP/1.1 404"));
    assert!(get(&proxy, "/metrics").starts_with("HTTP/1.1 403"));

    // A route that leads to loopback does not lead to us.
    let port = metrics.rsplit(':').next().unwrap();
    let routes = format!(
        "routes:\n  - {{host: 127.0.0.1, scheme: http, ports: [{port}], allow_private: [127.0.0.0/8]}}\n"
    );
    std::fs::write(root.path().join("etc/routes.yaml"), routes).unwrap();
    running.signal(Signal::SIGHUP);
    assert!(running.told().starts_with("RELOADING=1"));
    assert!(running.told().starts_with("READY=1\nX_GENERATION=2"));
    assert!(get(&proxy, &format!("http://{metrics}/metrics")).contains("address-not-allowed"));
}

#[test]
fn the_operator_sees_requests_and_explanations_through_the_socket() {
    let root = directory(ROUTES);
    assert!(init(root.path()).status.success());
    let (running, mut log) = start_seeing(root.path(), &[]);
    let proxy = address_in(&mut log, "listening");
    assert!(running.told().starts_with("READY=1"));
    assert!(get(&proxy, "http://other.test/a%7e").contains("host-not-allowed"));
    let mut tail = egress(root.path()).arg("tail").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    assert!(first.contains("deny  403 GET http://other.test:80/a~ host-not-allowed "), "{first}");
    assert!(get(&proxy, "http://api.test/").contains("host-not-allowed"));
    let second = lines.next().unwrap().unwrap();
    assert!(second.contains("GET http://api.test:80/ host-not-allowed "), "{second}");
    tail.kill().unwrap();
    tail.wait().unwrap();

    let explain = |arguments: &[&str]| {
        let output = egress(root.path()).arg("explain").args(arguments).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, told) = explain(&["GET", "https://api.test/v1"]);
    assert_eq!(
        (code, told.starts_with("GET https://api.test/v1: allowed\n  by routes[0]")),
        (0, true),
        "{told}"
    );
    let (code, told) = explain(&["GET", "https://other.test/", "--json"]);
    assert_eq!((code, told.contains("\"code\":\"host-not-allowed\"")), (1, true), "{told}");
    let other = root.path().join("other.yaml");
    std::fs::write(&other, "routes: []\n").unwrap();
    assert_eq!(explain(&["GET", "https://api.test/v1", "--routes", other.to_str().unwrap()]).0, 1);
    std::fs::write(&other, "routes: {}\n").unwrap();
    assert_eq!(explain(&["GET", "https://api.test/v1", "--routes", other.to_str().unwrap()]).0, 64);
    assert!(
        get(&proxy, "http://_egress.local/explain?url=https%3A%2F%2Fapi.test%2Fv1&method=PUT")
            .contains("\"outcome\":\"allow\"")
    );
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(root.path().join("run/egress.sock")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
}

pub(super) struct Running {
    pub(super) child: Child,
    pub(super) notifications: UnixDatagram,
}

impl Running {
    pub(super) fn start(root: &Path) -> Running {
        let path = root.join("notify");
        let notifications = UnixDatagram::bind(&path).unwrap();
        let child = egress(root).env("NOTIFY_SOCKET", &path).stderr(Stdio::null()).spawn().unwrap();
        Running { child, notifications }
    }

    pub(super) fn told(&self) -> String {
        let mut buffer = [0; 2048];
        let length = self.notifications.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    pub(super) fn signal(&self, signal: Signal) {
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
fn a_directory_of_routes_that_is_not_there_is_told_as_that_also_where_it_is_to_be_watched() {
    let root = directory(ROUTES);
    assert!(init(root.path()).status.success());
    std::fs::remove_dir_all(root.path().join("etc")).unwrap();
    for more in [&[][..], &["--watch"]] {
        let output = egress(root.path()).args(more).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{more:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(
            text.contains("error: cannot read etc") && text.contains("hint: --config names the"),
            "{text}"
        );
    }
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
    let wrong = [
        (&b"routes:\n  - host: api.test\n    metods: []\n"[..], "routes.yaml:3:5: "),
        (b"routes:\n  - host: \xff\n", "routes.yaml:2:11: this is not UTF-8"),
        (b"", "routes.yaml: cannot be read: Is a directory"),
    ];
    for (bytes, place) in wrong {
        std::fs::remove_file(&routes).unwrap();
        if bytes.is_empty() {
            std::fs::create_dir(&routes).unwrap();
        } else {
            std::fs::write(&routes, bytes).unwrap();
        }
        running.signal(Signal::SIGHUP);
        assert!(running.told().starts_with("RELOADING=1\nMONOTONIC_USEC="));
        let refused = running.told();
        assert!(refused.starts_with("READY=1\nX_GENERATION=1\n"), "{refused}");
        assert!(refused.contains(&format!("\nX_RELOAD_ERROR={place}")), "{refused}");
        let status = std::fs::read_to_string(root.path().join("run/egress.status.json")).unwrap();
        assert!(status.contains("\"generation\":1") && status.contains(place), "{status}");
    }

    std::fs::remove_dir(&routes).unwrap();
    std::fs::write(&routes, "routes: []\n").unwrap();
    running.signal(Signal::SIGHUP);
    assert!(running.told().starts_with("RELOADING=1\n"));
    assert!(running.told().starts_with("READY=1\nX_GENERATION=2\nX_DIGEST=sha256:"));

    running.signal(Signal::SIGTERM);
    assert_eq!(running.child.wait().unwrap().code(), Some(0));
    let journal = std::fs::read_to_string(egress::journal::path(&root.path().join("state"))).unwrap();
    for (_, place) in wrong {
        assert!(journal.contains(&format!("\"error\":\"{place}")), "{journal}");
    }
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

/// An upstream that answers each request with what it was sent, and the request that it had.
pub(super) fn reflecting() -> (u16, std::sync::mpsc::Receiver<String>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, seen) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map(Result::unwrap) {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            let length = head.len();
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n")
                .unwrap();
            stream.write_all(&head).unwrap();
            if sender.send(String::from_utf8(head).unwrap()).is_err() {
                return;
            }
        }
    });
    (port, seen)
}

/// The files below `directory` that hold the secret, but for the one that it came from.
fn files_with(secret: &str, directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let below = entries.flat_map(|path| if path.is_dir() { files_with(secret, &path) } else { vec![path] });
    let holds = |path: &PathBuf| {
        let bytes = std::fs::read(path).unwrap_or_default();
        !path.ends_with("secrets/TOKEN") && bytes.windows(secret.len()).any(|part| part == secret.as_bytes())
    };
    below.filter(holds).collect()
}

#[test]
fn a_process_that_is_killed_in_any_way_after_a_secret_came_back_leaves_no_core() {
    let secret = "kV9/xQ+2mZ=7pL4&wR8-tY1%uN6";
    let (port, seen) = reflecting();
    let root = directory(&format!(
        "routes:\n  - {{host: 127.0.0.1, scheme: http, ports: [{port}], allow_private: [\"127.0.0.1:{port}\"], auth_scheme: bearer, token_file: TOKEN}}\n"
    ));
    assert!(init(root.path()).status.success());
    std::fs::write(root.path().join("secrets/TOKEN"), secret).unwrap();
    // As large a core as there can be, for egress and for the control.
    let with_core = |program: &OsStr| {
        // Whoever runs us in the background may have had QUIT ignored, and a shell cannot take that back.
        let mut command = Command::new("env");
        command.args(["--default-signal", "sh", "-c", "ulimit -c unlimited; exec \"$0\" \"$@\""]);
        command.arg(program).current_dir(root.path());
        command
    };
    // Whoever handles a fault of its own takes the first of such a signal for one, and dies of the second.
    let end_by = |signal: Signal, child: &mut Child| {
        let pid = Pid::from_raw(child.id().cast_signed());
        loop {
            kill(pid, signal).unwrap();
            if let Some(ended) = child.try_wait().unwrap() {
                return ended;
            }
            std::thread::yield_now();
        }
    };
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    for signal in [Signal::SIGQUIT, Signal::SIGABRT, Signal::SIGILL, Signal::SIGSEGV] {
        let path = root.path().join("notify");
        let notifications = UnixDatagram::bind(&path).unwrap();
        let plain = egress(root.path());
        let mut child = with_core(plain.get_program())
            .args(plain.get_args())
            .env_clear()
            .env("NO_COLOR", "1")
            .env("NOTIFY_SOCKET", &path)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut running = Running { child, notifications };
        let proxy = address_in(&mut log, "listening");
        assert!(running.told().starts_with("READY=1"));
        let answer = get(&proxy, &format!("http://127.0.0.1:{port}/"));
        assert!(seen.recv().unwrap().contains(secret), "it went out and came back");
        let mask = "*".repeat(secret.len());
        assert!(answer.contains(&mask) && !answer.contains(secret), "{answer}");
        let ended = end_by(signal, &mut running.child);
        assert_eq!((ended.signal(), ended.core_dumped()), (Some(signal as i32), false));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(files_with(secret, root.path()), Vec::<PathBuf>::new());

        let mut control = with_core(OsStr::new("sleep")).arg("1000").env("KEPT", secret).spawn().unwrap();
        // Until the shell has become what it was told to be.
        while std::fs::read_to_string(format!("/proc/{}/comm", control.id())).unwrap().trim() != "sleep" {
            std::thread::yield_now();
        }
        assert!(end_by(signal, &mut control).core_dumped(), "the system dumps cores");
        // Where it puts them beside the process, what that one knew is in it.
        if !pattern.starts_with(['|', '/']) {
            let cores = files_with(secret, root.path());
            assert_eq!(cores.len(), 1, "{cores:?}");
            std::fs::remove_file(&cores[0]).unwrap();
        }
    }
}
