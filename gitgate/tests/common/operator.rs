//! The way to the operator: the end of the socket that supervise has, and pushes that wait.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, ChildStderr, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::Pid;
use proposal::peer::{Answer, DATAGRAM_MAX, Hold, Question, Verdict, Word, datagram, message};

use super::{Gate, Work, client, github_token};

/// The socket as supervise has it.
pub struct Supervise(UnixDatagram);

impl Supervise {
    /// It, and the end that the gate gets.
    pub fn pair() -> (Self, OwnedFd) {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        let ours = UnixDatagram::from(ours);
        ours.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        (Self(ours), theirs)
    }

    pub fn ask(&self, question: &Question) {
        self.0.send(&datagram(question).unwrap()).unwrap();
    }

    pub fn hear(&self) -> Vec<u8> {
        let mut buffer = vec![0; DATAGRAM_MAX];
        let length = self.0.recv(&mut buffer).expect("a message of the gate");
        buffer.truncate(length);
        buffer
    }

    pub fn held(&self) -> Hold {
        let bytes = self.hear();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert!(!text.contains(&github_token()), "{text}");
        match message::<Word>(&bytes) {
            Some(Word::Held { hold }) => hold,
            other => panic!("{other:?}: {text}"),
        }
    }

    pub fn decide(&self, hold: &Hold, verdict: Verdict, reason: &str) {
        let (id, digest) = (hold.id.clone(), hold.digest.clone());
        self.ask(&Question::Decide { seq: 7, id, digest, verdict, reason: reason.to_owned() });
        assert_eq!(message(&self.hear()), Some(Answer::Decided { seq: 7, waited: true }));
    }
}

/// Writes a release beside these repositories, as the host does.
pub fn release(gate: &Gate, repos_yaml: &str, digest: &str) {
    let releases =
        format!("releases:\n  - {{digest: '{digest}', expires_at: 2100-01-01T00:00:00Z, grant: r1}}\n");
    fs::write(gate.config_dir.join("repos.yaml"), repos_yaml.to_owned() + &releases).unwrap();
    kill(Pid::from_raw(gate.child.id().try_into().unwrap()), Signal::SIGHUP).unwrap();
}

/// A push under way, and what it says.
pub struct Push(pub Child, BufReader<ChildStderr>);

impl Push {
    pub fn begin(work: &Work, to: &str) -> Self {
        let mut push = client(&work.path);
        let mut push = push.args(["push", "origin", to]).stderr(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(push.stderr.take().unwrap());
        Self(push, said)
    }

    pub fn until(&mut self, words: &str) {
        let mut said = String::new();
        while !said.contains(words) {
            assert!(self.1.read_line(&mut said).unwrap() > 0, "{said}");
        }
    }

    pub fn end(mut self) -> (bool, String) {
        let rest = self.1.lines().map_while(Result::ok).collect::<Vec<_>>().join("\n");
        (self.0.wait().unwrap().success(), rest)
    }
}
