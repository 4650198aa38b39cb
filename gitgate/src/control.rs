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
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::cli::Status as Options;
use crate::daemon::{Failure, InForce};
use crate::front::Front;
use crate::state::Served;
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
    /// Make the first copy of a repository, if there is none, and say how far it is.
    Copy {
        repo: String,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct Reply<T> {
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Fault>,
}

impl<T> Reply<T> {
    fn result(result: T) -> Self {
        Self { ok: true, result: Some(result), error: None }
    }

    fn fault(code: &str, message: impl ToString) -> Self {
        let fault = Fault { code: code.to_owned(), message: message.to_string() };
        Self { ok: false, result: None, error: Some(fault) }
    }
}

/// How far a copy is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Copying {
    /// In git's words.
    At(String),
    /// It is there.
    Done,
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
        match serde_json::from_slice(&line) {
            Ok(Request::Status {}) => {
                say(&mut writer, &Reply::result(status::of(front, force()).await)).await?;
            }
            Ok(Request::Copy { repo }) => copy(front, &repo, &mut writer).await?,
            Err(error) => say(&mut writer, &Reply::<Status>::fault("bad-request", error)).await?,
        }
    }
}

async fn say<T: Serialize>(writer: &mut OwnedWriteHalf, reply: &Reply<T>) -> io::Result<()> {
    let mut text = serde_json::to_vec(reply)?;
    text.push(b'\n');
    timeout(REPLY_TIMEOUT, writer.write_all(&text)).await?
}

/// Makes the first copy. Where there is one already, nothing is asked of upstream.
async fn copy(front: &Front, name: &str, writer: &mut OwnedWriteHalf) -> io::Result<()> {
    let Some(served) = front.state.all().into_iter().find(|served| served.repo.name.to_string() == name)
    else {
        return say(writer, &Reply::<Copying>::fault("unknown-repo", "no repository has that name")).await;
    };
    let Served { repo, mirror } = served.as_ref();
    if mirror.has_copy().await {
        return say(writer, &Reply::result(Copying::Done)).await;
    }
    // There is something to wait for, even if upstream says nothing of it.
    say(writer, &Reply::result(Copying::At(String::new()))).await?;
    let (tools, mut progress) = (front.state.tools(), mirror.progress().subscribe());
    let work = mirror.refresh(repo, &tools);
    tokio::pin!(work);
    loop {
        // It goes on when nobody listens any more.
        tokio::select! {
            done = &mut work => return match done {
                Ok(()) => say(writer, &Reply::result(Copying::Done)).await,
                Err(error) => say(writer, &Reply::<Copying>::fault("upstream", error)).await,
            },
            Ok(()) = progress.changed() => {
                let words = progress.borrow_and_update().clone();
                if !words.is_empty() {
                    say(writer, &Reply::result(Copying::At(words))).await?;
                }
            }
        }
    }
}

/// `git-gate status`: asks the running gate and prints what it says.
pub fn show(options: &Options) -> Result<(), Failure> {
    let path = options.run_dir.join(SOCKET);
    let ask = || -> anyhow::Result<(String, Reply<Status>)> {
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
