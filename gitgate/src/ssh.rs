//! Upstream over ssh, spoken by this process: one connection, one pinned host key, one identity.
//!
//! A `Session` is a login. What runs at upstream is a `Remote`, which ends with its value. No
//! configuration, no agent and no file of the machine has a say; the key leaves this process for nobody.

use std::borrow::Cow;
use std::convert::Infallible;
use std::str::FromStr as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use repos::{HostKey, Ssh};
use russh::client::{self, AuthResult, Handle};
use russh::keys::{Algorithm, HashAlg, PrivateKey, PrivateKeyWithHashAlg};
use russh::{AlgorithmKind, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Preferred, SshId, cipher, kex};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::fault::Fault;
use crate::git::printable;

pub(crate) mod identity;
mod line;
mod pinned;
mod until;

use line::Line;
use pinned::Pinned;
pub(crate) use until::Until;

pub use identity::IdentityError;

/// How long upstream may take to let us in.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take to begin a command.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a command may take to end after its last word.
const END_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVES_MAX: usize = 3;
/// How much of what a command says of itself is kept.
const WORDS_MAX_BYTES: usize = 64 << 10;
const PIPE_BYTES: usize = 64 << 10;
/// How many packets of a command wait for who reads it.
const PACKETS_MAX: usize = 16;
const STANDARD_ERROR: u32 = 1;
/// How a signature begins that was made with SHA-1.
const SHA1_SIGNATURE: &[u8] = b"\0\0\0\x07ssh-rsa";

/// What a default sshd of the last ten years offers, without SHA-1; the last two are no exchanges but say what this end knows.
const KEY_EXCHANGES: &[kex::Name] = &[
    kex::MLKEM768X25519_SHA256,
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::ECDH_SHA2_NISTP256,
    kex::ECDH_SHA2_NISTP384,
    kex::ECDH_SHA2_NISTP521,
    kex::DH_GEX_SHA256,
    kex::DH_G16_SHA512,
    kex::DH_G18_SHA512,
    kex::DH_G14_SHA256,
    kex::EXTENSION_SUPPORT_AS_CLIENT,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
];
const CIPHERS: &[cipher::Name] = &[
    cipher::AES_128_GCM,
    cipher::AES_256_GCM,
    cipher::CHACHA20_POLY1305,
    cipher::AES_256_CTR,
    cipher::AES_192_CTR,
    cipher::AES_128_CTR,
];

/// What is asked of the other side of git's protocol.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ask {
    /// The newest version.
    V2,
    /// The one that everybody speaks.
    V0,
}

/// A login at upstream. Its connection ends with it and with the last command that it began.
pub(crate) struct Session {
    handle: Handle<Pinned>,
    line: Arc<Line>,
}

impl Session {
    /// Logs in. That it succeeds shows that upstream is there now, has the pinned key, and lets the identity in.
    pub(crate) async fn open(ssh: &Ssh) -> Result<Self, Fault> {
        let identity = identity::read(&ssh.identity).map_err(|error| Fault::refused(told(&error)))?;
        let stream = line::dial(ssh).await?;
        // What speaks ssh on it is a task of its own, which knows nothing of who waits here.
        let line = Line::of(&stream).map_err(|error| Fault::unreachable(&format!("ssh: {error}")))?;
        let denied = AtomicBool::new(false);
        let handle = timeout(LOGIN_TIMEOUT, log_in(ssh, identity, stream, &denied)).await;
        match handle {
            Ok(Ok(handle)) => Ok(Self { handle, line: Arc::new(line) }),
            // Whatever came after its no, it said no.
            Ok(Err(_)) | Err(_) if denied.load(Ordering::Relaxed) => {
                let at = format!("{}@{}", ssh.user, ssh.host);
                let words = format!("it does not accept the gate's identity ({at}: Permission denied)");
                Err(Fault::refused(words))
            }
            Ok(Err(fault)) => Err(fault),
            Err(_) => Err(Fault::unreachable("ssh: it takes too long to let us in")),
        }
    }

    /// Whether the connection is still there, as far as this end knows.
    pub(crate) fn lives(&self) -> bool {
        !self.handle.is_closed()
    }

    /// Runs git's program of that name on the repository.
    pub(crate) async fn run(&self, program: &str, ssh: &Ssh, ask: Ask) -> Result<Remote, Fault> {
        let begun = timeout(BEGIN_TIMEOUT, self.begin(program, ssh, ask)).await;
        let (half, writer) = match begun {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Err(failed(error)),
            Err(_) => return Err(Fault::unreachable("ssh: it begins no command in time")),
        };
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let (stdin, open) = Until::new(Box::pin(writer.make_writer()));
        let (left, gone) = oneshot::channel();
        let words = Arc::default();
        let pump = Pump { half, writer, to: theirs, words: Arc::clone(&words), gone, open };
        let ended = tokio::spawn(pump.run());
        let over = Over { words, ended, _left: left, _line: Some(Arc::clone(&self.line)) };
        Ok(Remote { stdin: Box::pin(stdin), stdout: Box::pin(ours), over })
    }

    async fn begin(
        &self,
        program: &str,
        ssh: &Ssh,
        ask: Ask,
    ) -> Result<(ChannelReadHalf, ChannelWriteHalf<client::Msg>), russh::Error> {
        let channel = self.handle.channel_open_session().await?;
        match ask {
            Ask::V2 => channel.set_env(false, "GIT_PROTOCOL", "version=2").await?,
            Ask::V0 => {}
        }
        // The path of an upstream has no character that a shell would read.
        channel.exec(true, format!("{program} '{}'", path(ssh))).await?;
        Ok(channel.split())
    }
}

/// The path as the other side sees it, in the form that git gives it.
fn path(ssh: &Ssh) -> &str {
    match ssh.path.strip_prefix('/') {
        Some(home) if home.starts_with('~') => home,
        Some(_) | None => &ssh.path,
    }
}

async fn log_in(
    ssh: &Ssh,
    identity: Arc<PrivateKey>,
    stream: TcpStream,
    denied: &AtomicBool,
) -> Result<Handle<Pinned>, Fault> {
    let config = Arc::new(config(&ssh.host_key));
    let dismissed = Arc::default();
    let pinned = Pinned::new(&ssh.host_key, Arc::clone(&dismissed));
    let mut handle = client::connect_stream(config, stream, pinned).await.map_err(failed)?;
    if !handle.agent_session_binding().is_some_and(|shown| proves(shown.signature())) {
        return Err(Fault::refused("it proves its host key with SHA-1"));
    }
    for hash in hashes(&handle, &identity).await {
        let key = PrivateKeyWithHashAlg::new(Arc::clone(&identity), hash);
        let error = match handle.authenticate_publickey(&ssh.user, key).await {
            Ok(AuthResult::Success) => return Ok(handle),
            // An end of the connection is told as a no that leaves nothing to try.
            Ok(AuthResult::Failure { remaining_methods, .. })
                if remaining_methods.is_empty() && handle.is_closed() =>
            {
                russh::Error::HUP
            }
            Ok(AuthResult::Failure { .. }) => {
                denied.store(true, Ordering::Relaxed);
                continue;
            }
            Err(error) => error,
        };
        // With its end it is known whether upstream took its leave, which is a no too.
        let _ = (&mut handle).await;
        denied.fetch_or(dismissed.load(Ordering::Relaxed), Ordering::Relaxed);
        return Err(failed(error));
    }
    Err(failed(russh::Error::NotAuthenticated))
}

/// With which hashes the identity is shown, the best one first: a server may count what it does not take. SHA-1 is not among
/// them.
async fn hashes(handle: &Handle<Pinned>, identity: &PrivateKey) -> Vec<Option<HashAlg>> {
    if !identity.algorithm().is_rsa() {
        return vec![None];
    }
    match handle.best_supported_rsa_hash().await {
        Ok(Some(Some(HashAlg::Sha256))) => vec![Some(HashAlg::Sha256)],
        Ok(_) | Err(_) => vec![Some(HashAlg::Sha512), Some(HashAlg::Sha256)],
    }
}

/// Whether a signature that fits proves anything: a host may sign otherwise than was agreed.
fn proves(signature: &[u8]) -> bool {
    !signature.is_empty() && !signature.starts_with(SHA1_SIGNATURE)
}

/// An error and what is behind it.
fn told(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

fn config(host_key: &HostKey) -> client::Config {
    let keys: Vec<Algorithm> = match host_key.kind() {
        "ssh-rsa" => {
            [HashAlg::Sha512, HashAlg::Sha256].map(|hash| Algorithm::Rsa { hash: Some(hash) }).into()
        }
        kind => Algorithm::from_str(kind).into_iter().collect(),
    };
    let preferred = Preferred {
        kex: Cow::Borrowed(KEY_EXCHANGES),
        key: Cow::Owned(keys),
        cipher: Cow::Borrowed(CIPHERS),
        ..Preferred::DEFAULT
    };
    client::Config {
        client_id: SshId::Standard(Cow::Borrowed("SSH-2.0-git-gate")),
        preferred,
        keepalive_interval: Some(KEEPALIVE_INTERVAL),
        keepalive_max: KEEPALIVES_MAX,
        channel_buffer_size: PACKETS_MAX,
        ..client::Config::default()
    }
}

/// What an error of a connection means.
fn failed(error: russh::Error) -> Fault {
    use russh::Error;
    match error {
        Error::UnknownKey => Fault::refused(
            "its host key is not the pinned one; if the change is genuine, the operator sets the new `host_key` in repos.yaml \
             (Host key verification failed)",
        ),
        Error::NoCommonAlgo { kind: AlgorithmKind::Key, theirs, .. } => Fault::refused(format!(
            "it has no host key of the pinned type; if that is genuine, the operator sets the new `host_key` in repos.yaml \
             (it offers {})",
            printable(&theirs.join(", "))
        )),
        Error::NoCommonAlgo { kind, theirs, .. } => Fault::refused(format!(
            "its ssh and the gate's have no {} in common (it offers {})",
            match kind {
                AlgorithmKind::Kex => "key exchange",
                AlgorithmKind::Key => "host key type",
                AlgorithmKind::Cipher => "cipher",
                AlgorithmKind::Compression => "compression",
                AlgorithmKind::Mac => "integrity check",
            },
            printable(&theirs.join(", "))
        )),
        Error::IO(error) => Fault::unreachable(&format!("ssh: {error}")),
        Error::HUP | Error::Disconnect | Error::SendError | Error::RecvError | Error::Join(_) => {
            Fault::unreachable("ssh: the connection was closed")
        }
        Error::KeepaliveTimeout | Error::ConnectionTimeout | Error::InactivityTimeout | Error::Elapsed(_) => {
            Fault::unreachable("ssh: it stopped answering")
        }
        error => Fault::refused(format!("ssh to it fails: {}", printable(&error.to_string()))),
    }
}

/// A command that runs at upstream.
pub(crate) struct Remote {
    pub(crate) stdin: Stdin,
    pub(crate) stdout: Stdout,
    pub(crate) over: Over,
}

/// What a command at upstream reads. Shut down, it ends there.
pub(crate) type Stdin = std::pin::Pin<Box<dyn AsyncWrite + Send + Sync>>;
/// What it writes.
pub(crate) type Stdout = std::pin::Pin<Box<dyn AsyncRead + Send + Sync>>;

/// The end of a command at upstream. The command ends with this value.
pub(crate) struct Over {
    words: Words,
    ended: JoinHandle<Ended>,
    _left: oneshot::Sender<Infallible>,
    /// None where there is no connection.
    _line: Option<Arc<Line>>,
}

type Words = Arc<Mutex<Vec<u8>>>;

/// How a command came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// By itself.
    Closed,
    /// The connection broke off.
    Lost,
    /// Nobody listens any more.
    Left,
}

impl Remote {
    /// Lets the command come to its end by itself; nobody waits for that, and not for ever.
    pub(crate) fn settle(self) {
        let Self { mut stdin, mut stdout, over } = self;
        tokio::spawn(async move {
            let settled = async {
                let _ = stdin.shutdown().await;
                tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await
            };
            let _ = timeout(END_TIMEOUT, settled).await;
            drop(over);
        });
    }

    /// Why the command ended before it did what it should.
    pub(crate) async fn fault(self) -> Fault {
        let Self { mut stdin, mut stdout, over } = self;
        let rest = async {
            let _ = stdin.shutdown().await;
            let _ =
                tokio::io::copy(&mut stdout.as_mut().take(u64::from(u32::MAX)), &mut tokio::io::sink()).await;
        };
        let _ = timeout(END_TIMEOUT, rest).await;
        over.fault().await
    }
}

impl Over {
    /// Why the command ended before it did what it should.
    pub(crate) async fn fault(self) -> Fault {
        self.fault_or(Fault::refused("it ends the conversation without a word")).await
    }

    /// The same, where the command says nothing of it in the words of who spoke with it.
    pub(crate) async fn fault_or(mut self, fault: Fault) -> Fault {
        let ended = timeout(END_TIMEOUT, &mut self.ended).await;
        let words = self.words();
        match ended {
            Ok(Ok(Ended::Lost)) => Fault::unreachable("ssh: the connection was closed"),
            _ if words.trim().is_empty() => fault,
            _ => Fault::of(&words),
        }
    }

    /// What the command said of itself so far.
    pub(crate) fn words(&self) -> String {
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        printable(&String::from_utf8_lossy(&words))
    }

    /// The same once it came to its end, if it does so soon.
    pub(crate) async fn last_words(&mut self) -> String {
        let _ = timeout(END_TIMEOUT, &mut self.ended).await;
        self.words()
    }
}

/// What comes from a command, to those who read it.
struct Pump {
    half: ChannelReadHalf,
    writer: ChannelWriteHalf<client::Msg>,
    to: DuplexStream,
    words: Words,
    gone: oneshot::Receiver<Infallible>,
    /// Gone, it ends who writes to the command.
    open: oneshot::Sender<Infallible>,
}

impl Pump {
    async fn run(mut self) -> Ended {
        let ended = self.copy().await;
        drop(self.open);
        if ended != Ended::Closed {
            let _ = timeout(END_TIMEOUT, self.writer.close()).await;
        }
        ended
    }

    async fn copy(&mut self) -> Ended {
        loop {
            let message = tokio::select! {
                message = self.half.wait() => message,
                _ = &mut self.gone => return Ended::Left,
            };
            match message {
                Some(ChannelMsg::Data { data }) => {
                    let passed = tokio::select! {
                        passed = self.to.write_all(&data) => passed,
                        _ = &mut self.gone => return Ended::Left,
                    };
                    if passed.is_err() {
                        return Ended::Left;
                    }
                }
                Some(ChannelMsg::ExtendedData { data, ext: STANDARD_ERROR }) => self.keep(&data),
                Some(ChannelMsg::Eof) => drop(self.to.shutdown().await),
                Some(ChannelMsg::Failure) => {
                    self.keep(b"its ssh does not run this command for us\n");
                    return Ended::Left;
                }
                Some(ChannelMsg::Close) => return Ended::Closed,
                Some(_) => {}
                None => return Ended::Lost,
            }
        }
    }

    fn keep(&self, said: &[u8]) {
        let mut words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        let room = WORDS_MAX_BYTES - words.len().min(WORDS_MAX_BYTES);
        words.extend(&said[..said.len().min(room)]);
    }
}

#[cfg(test)]
impl Remote {
    /// A program of this machine in the place of upstream.
    pub(crate) fn local(script: &str) -> Self {
        use std::process::Stdio;
        let mut command = tokio::process::Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().expect("sh runs");
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(mut stderr)) = pipes else { panic!("no pipes") };
        let words = Words::default();
        let (left, _) = oneshot::channel();
        let said = Arc::clone(&words);
        let ended = tokio::spawn(async move {
            let mut read = Vec::new();
            stderr.read_to_end(&mut read).await.expect("read");
            said.lock().expect("not poisoned").extend(read);
            child.wait().await.expect("it ends");
            Ended::Closed
        });
        Self {
            stdin: Box::pin(stdin),
            stdout: Box::pin(stdout),
            over: Over { words, ended, _left: left, _line: None },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_with_sha_1_proves_no_host() {
        let signed =
            |with: &str| [&(with.len() as u32).to_be_bytes(), with.as_bytes(), b"\0\0\0\x01x"].concat();
        for (with, enough) in [("rsa-sha2-512", true), ("ssh-ed25519", true), ("ssh-rsa", false)] {
            assert_eq!(proves(&signed(with)), enough, "{with}");
        }
        assert!(!proves(b""));
    }
}
