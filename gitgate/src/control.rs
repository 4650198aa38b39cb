//! The operator's socket: `git-gate.sock`, one JSON object a line.

use std::fs;
use std::io::{self, BufRead as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::cli::Status as Options;
use crate::daemon::{Failure, InForce};
use crate::front::Front;
use crate::status::{self, Status};

/// The socket's name in the run directory.
const SOCKET: &str = "git-gate.sock";
const REQUEST_MAX_BYTES: u64 = 4096;
const REPLY_MAX_BYTES: u64 = 16 << 20;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECTIONS_MAX: usize = 16;

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
enum Request {
    Status {},
}

#[derive(Debug, Serialize, Deserialize)]
struct Reply {
    ok: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result: Option<Status>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<Fault>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Fault {
    code: String,
    message: String,
}

/// Makes the socket, in place of one that an earlier gate left.
pub(crate) fn bind(run_dir: &Path) -> io::Result<UnixListener> {
    let path = run_dir.join(SOCKET);
    let new = run_dir.join(format!("{SOCKET}.{}", std::process::id()));
    let _ = fs::remove_file(&new);
    let listener = UnixListener::bind(&new)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
    fs::rename(&new, path)?;
    Ok(listener)
}

/// Answers operators.
pub(crate) async fn serve(
    listener: UnixListener,
    front: Arc<Front>,
    force: impl Fn() -> InForce + Clone + Send + Sync + 'static,
) {
    let mut connections = JoinSet::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "cannot accept on the control socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        if connections.len() < CONNECTIONS_MAX && is_operator(&stream) {
            let (front, force) = (front.clone(), force.clone());
            connections.spawn(async move {
                if let Err(error) = converse(stream, &front, &force).await {
                    debug!(%error, "control connection ended");
                }
            });
        }
    }
}

/// Root, or whoever runs the daemon.
fn is_operator(stream: &UnixStream) -> bool {
    let own = nix::unistd::Uid::effective().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}

async fn converse(
    stream: UnixStream,
    front: &Front,
    force: &(impl Fn() -> InForce + Sync),
) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut reader).take(REQUEST_MAX_BYTES);
        timeout(REQUEST_TIMEOUT, bounded.read_until(b'\n', &mut line)).await??;
        if line.is_empty() {
            return Ok(());
        }
        let reply = match serde_json::from_slice(&line) {
            Ok(Request::Status {}) => {
                Reply { ok: true, result: Some(status::of(front, force()).await), error: None }
            }
            Err(error) => {
                let fault = Fault { code: "bad-request".to_owned(), message: error.to_string() };
                Reply { ok: false, result: None, error: Some(fault) }
            }
        };
        let mut text = serde_json::to_vec(&reply)?;
        text.push(b'\n');
        timeout(REPLY_TIMEOUT, writer.write_all(&text)).await??;
    }
}

/// `git-gate status`: asks the running gate and prints what it says.
pub fn show(options: &Options) -> Result<(), Failure> {
    let path = options.run_dir.join(SOCKET);
    let ask = || -> anyhow::Result<(String, Reply)> {
        let mut stream = std::os::unix::net::UnixStream::connect(&path)
            .with_context(|| format!("cannot reach git-gate at {}", path.display()))?;
        stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
        let mut line = serde_json::to_vec(&Request::Status {})?;
        line.push(b'\n');
        stream.write_all(&line)?;
        let mut text = String::new();
        io::BufReader::new(io::Read::take(stream, REPLY_MAX_BYTES)).read_line(&mut text)?;
        let reply = serde_json::from_str(&text).context("git-gate did not answer")?;
        Ok((text, reply))
    };
    let (text, reply) = ask().map_err(Failure::Broken)?;
    let status = match reply {
        Reply { result: Some(status), .. } => status,
        Reply { error, .. } => {
            let message = error.map_or_else(|| "no answer".to_owned(), |fault| fault.message);
            return Err(Failure::Broken(anyhow!(message)));
        }
    };
    let shown = if options.json { text } else { status.to_string() };
    io::stdout().lock().write_all(shown.as_bytes()).map_err(|error| Failure::Broken(error.into()))
}
