//! The built program while its journal cannot be written, as on a full disk: its files may not grow beyond a bound.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use audit::{Decision, Event};
use nix::sys::signal::Signal;

use crate::program::{Running, directory, egress_behind, init};

const PATIENCE: Duration = Duration::from_secs(20);
/// So many requests are out when the disk gets full.
const OUT: usize = 100;

struct Stage {
    running: Running,
    address: String,
    log: Receiver<String>,
    journal: PathBuf,
    _root: tempfile::TempDir,
}

impl Stage {
    fn with(routes: &str) -> Stage {
        let root = directory(routes);
        assert!(init(root.path()).status.success());
        let path = root.path().join("notify");
        let notifications = UnixDatagram::bind(&path).unwrap();
        // Who writes beyond the bound is told so, and not ended by a signal.
        let mut limited = egress_behind("trap '' XFSZ", root.path());
        let mut child = limited.env("NOTIFY_SOCKET", &path).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (say, log) = channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| say.send(line)));
        let running = Running { child, notifications };
        let mut stage = Stage {
            running,
            address: String::new(),
            log,
            journal: egress::journal::path(&root.path().join("state")),
            _root: root,
        };
        stage.address = stage.logged("listening").rsplit('=').next().unwrap().to_owned();
        assert!(stage.running.told().starts_with("READY=1"));
        stage
    }

    /// The next line of the log with `what` in it.
    fn logged(&self, what: &str) -> String {
        loop {
            let line = self.log.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no `{what}` in the log"));
            if line.contains(what) {
                return line;
            }
        }
    }

    /// Files may grow to so many bytes, or as they want.
    fn bound_files(&self, bytes: Option<u64>) {
        let bytes = bytes.map_or("unlimited".to_owned(), |bytes| bytes.to_string());
        let pid = self.running.child.id().to_string();
        let bounded = Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={bytes}:")]).status();
        assert!(bounded.unwrap().success());
    }

    fn ask(&self, target: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let host = target.strip_prefix("http://").and_then(|rest| rest.split('/').next()).unwrap();
        write!(stream, "GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").unwrap();
        stream
    }

    fn answer(&self, target: &str) -> String {
        rest_of(&mut self.ask(target))
    }

    /// What the journal has, whose chain is sound.
    fn events(&self) -> Vec<Event> {
        audit::verify(&self.journal).unwrap();
        let text = std::fs::read_to_string(&self.journal).unwrap();
        // The program may end in the middle of an attempt, of which the next start takes away what there is.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let event = |line| serde_json::from_str::<serde_json::Value>(line).unwrap()["event"].clone();
        whole.lines().map(|line| serde_json::from_value(event(line)).unwrap()).collect()
    }

    /// [`OUT`] requests go out, the disk gets full, and then they are answered.
    fn answered_on_a_full_disk() -> Stage {
        let upstream = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = upstream.local_addr().unwrap().port();
        let stage = Stage::with(&format!(
            "routes:\n  - {{host: 127.0.0.1, scheme: http, ports: [{port}], allow_private: [\"127.0.0.1:{port}\"]}}\n"
        ));
        let mut asked: Vec<TcpStream> =
            (0..OUT).map(|number| stage.ask(&format!("http://127.0.0.1:{port}/{number}"))).collect();
        let mut out = Vec::new();
        for _ in 0..OUT {
            let (mut stream, _) = upstream.accept().unwrap();
            let mut head = [0; 1024];
            assert_ne!(stream.read(&mut head).unwrap(), 0);
            out.push(stream);
        }
        // Room for some.
        stage.bound_files(Some(std::fs::metadata(&stage.journal).unwrap().len() + 2_000));
        for mut stream in out {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
        }
        for stream in &mut asked {
            assert!(rest_of(stream).starts_with("HTTP/1.1 200"));
        }
        stage.logged("the journal cannot be written");
        stage
    }
}

fn rest_of(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn when_the_journal_cannot_be_written_nothing_goes_out() {
    let stage = Stage::with("routes: []\n");
    // The journal is full after a few records.
    stage.bound_files(Some(2_048));
    assert!(stage.answer("http://api.test/").starts_with("HTTP/1.1 403"));
    let unavailable = (0..64).map(|_| stage.answer("http://api.test/"));
    let unavailable = unavailable.into_iter().find(|text| text.starts_with("HTTP/1.1 503"));
    assert!(unavailable.unwrap().contains("x-bottlecap-failed: audit-unavailable"));
}

#[test]
fn what_went_out_before_the_disk_was_full_is_recorded_once_there_is_room() {
    let mut stage = Stage::answered_on_a_full_disk();
    for _ in 0..3 {
        assert!(stage.answer("http://api.test/").contains("x-bottlecap-failed: audit-unavailable"));
    }
    stage.bound_files(None);
    // Without a further request.
    stage.logged("the journal is written again");
    assert!(stage.answer("http://api.test/").starts_with("HTTP/1.1 403"));
    stage.running.signal(Signal::SIGTERM);
    assert_eq!(stage.running.child.wait().unwrap().code(), Some(0));

    let (mut out, mut unavailable, mut refused) = (Vec::new(), 0, 0);
    for event in stage.events() {
        match event {
            Event::Request(event) if event.decision == Decision::Allow => out.push(event.path),
            // The last of them may have come when there was room again.
            Event::Request(event) if event.code.as_deref() == Some("audit-unavailable") => unavailable += 1,
            Event::Request(event) => {
                assert_eq!(event.code.as_deref(), Some("host-not-allowed"));
                refused += 1;
            }
            Event::Repeated(event) => {
                assert_eq!(event.code, "audit-unavailable");
                unavailable += event.count;
            }
            other => panic!("{other:?}"),
        }
    }
    out.sort_unstable();
    let mut all: Vec<String> = (0..OUT).map(|number| format!("/{number}")).collect();
    all.sort_unstable();
    assert_eq!((out, unavailable, refused), (all, 3, 1));
}

#[test]
fn a_term_while_the_disk_is_full_is_not_held_up_and_says_how_many_records_are_missing() {
    let mut stage = Stage::answered_on_a_full_disk();
    stage.running.signal(Signal::SIGTERM);
    let missing = stage.logged("its last records are missing");
    let missing: usize = missing.rsplit("missing=").next().unwrap().parse().unwrap();
    assert_eq!(stage.running.child.wait().unwrap().code(), Some(0));
    let written = stage.events().len();
    assert!(written < OUT, "{written} of them fit in");
    assert_eq!(written + missing, OUT);
}
