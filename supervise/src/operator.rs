//! The operator's side: a unix socket over which requests are listed and decided, one JSON object a line.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use proposal::wire::{Failure, Reply, Request, Requests, TEXT_MAX_CHARS};
use proposal::{Change, Id, Noted, State, TTL_MAX, TTL_MIN};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::desk::{Desk, Refusal};
use crate::kin;
use crate::mcp::chain;

/// The name of the socket in the run directory.
pub const SOCKET: &str = "supervise.sock";

const LINE_LIMIT: u64 = 64 << 10;
const IDLE: Duration = Duration::from_secs(60);
const CONNECTIONS_MAX: usize = 16;

/// Makes the socket at `path`, mode 0600, in place of one that a dead daemon left. Whoever calls it holds the journal's lock, so
/// no living daemon of the same state can own it.
///
/// # Errors
/// When it cannot be made.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path)?,
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "a file that is no socket is in its place",
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves operators until `stop`.
pub async fn serve(listener: UnixListener, desk: Arc<Desk>, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let place = Arc::clone(&places).acquire_owned();
        let stream = tokio::select! {
            () = stop.cancelled() => return,
            stream = async { (place.await, listener.accept().await) } => stream,
        };
        let (Ok(place), Ok((stream, _))) = stream else {
            warn!("cannot accept an operator");
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let desk = Arc::clone(&desk);
        connections.spawn(async move {
            if let Err(error) = converse(stream, desk).await {
                debug!(%error, "operator connection ended");
            }
            drop(place);
        });
    }
}

async fn converse(mut stream: UnixStream, desk: Arc<Desk>) -> io::Result<()> {
    let peer = stream.peer_cred()?;
    let uid = peer.uid();
    let sibling = kin::is_sibling(peer.pid(), &stream);
    let (reader, mut writer) = stream.split();
    if sibling || (uid != 0 && uid != nix::unistd::geteuid().as_raw()) {
        warn!(uid, sibling, "a peer that is no operator was turned away");
        return send(
            &mut writer,
            &Reply::Failed(Failure::new("forbidden", "only root and the daemon's own uid are operators")),
        )
        .await;
    }
    let by = format!("uid:{uid}");
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut limited = (&mut reader).take(LINE_LIMIT);
        let read = limited.read_until(b'\n', &mut line);
        let Ok(read) = tokio::time::timeout(IDLE, read).await else { return Ok(()) };
        if read? == 0 {
            return Ok(());
        }
        let Some(request) = line.strip_suffix(b"\n") else {
            return send(
                &mut writer,
                &Reply::Failed(Failure::new("bad-request", "a request is one line of at most 64 KiB")),
            )
            .await;
        };
        let reply = match serde_json::from_slice::<Request>(request) {
            Ok(Request::Tail) => return tail(&desk, &mut reader, &mut writer).await,
            Ok(request) => {
                desk.operator_asked();
                let (desk, by) = (Arc::clone(&desk), by.clone());
                tokio::task::spawn_blocking(move || answer(&desk, &by, request, desk.now()))
                    .await
                    .unwrap_or_else(|_| {
                        Reply::Failed(Failure::new("internal", "the request could not be handled"))
                    })
            }
            Err(error) => Reply::Failed(Failure::new("bad-request", error.to_string())),
        };
        send(&mut writer, &reply).await?;
    }
}

async fn send(writer: &mut (impl AsyncWriteExt + Unpin), reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    tokio::time::timeout(IDLE, writer.write_all(&line)).await?
}

/// Tells what waits, and then each request that changes, until the client closes.
async fn tail(
    desk: &Desk,
    reader: &mut (impl AsyncReadExt + Unpin),
    writer: &mut (impl AsyncWriteExt + Unpin),
) -> io::Result<()> {
    let mut watching = desk.watch();
    let pending = || Reply::done(&Requests { requests: desk.views(Some(State::Pending), desk.now()) });
    send(writer, &pending()).await?;
    let mut said = [0; 1];
    loop {
        tokio::select! {
            news = watching.news.recv() => match news {
                Ok(view) => send(writer, &Reply::done(&Requests { requests: vec![view] })).await?,
                Err(RecvError::Lagged(_)) => send(writer, &pending()).await?,
                Err(RecvError::Closed) => return Ok(()),
            },
            // Whatever it says, it has nothing more to ask here.
            _ = reader.read(&mut said) => return Ok(()),
        }
    }
}

/// Does what one request asks.
fn answer(desk: &Desk, by: &str, request: Request, now: Timestamp) -> Reply {
    match perform(desk, by, request, now) {
        Ok(reply) => reply,
        Err(failure) => Reply::Failed(failure),
    }
}

fn perform(desk: &Desk, by: &str, request: Request, now: Timestamp) -> Result<Reply, Failure> {
    let by = by.to_owned();
    let (id, change) = match request {
        Request::List { state } => return Ok(Reply::done(&Requests { requests: desk.views(state, now) })),
        Request::Show { id } => {
            return desk.view(&id, now).map(|view| Reply::done(&view)).ok_or_else(|| unknown(&id));
        }
        Request::Status | Request::Tail => return Ok(Reply::done(&desk.status(now))),
        Request::Pause => return note(desk, Noted::Paused { by }, now),
        Request::Resume => return note(desk, Noted::Resumed { by }, now),
        Request::Approve { id, ttl_seconds, max_uses, scope } => {
            let view = desk.view(&id, now).ok_or_else(|| unknown(&id))?;
            let wanted = scope.as_ref().map_or(view.proposal.ttl_seconds(), proposal::Proposal::ttl_seconds);
            let ttl_seconds = ttl_seconds.unwrap_or(wanted);
            if !(TTL_MIN..=TTL_MAX).contains(&ttl_seconds) {
                let bounds = format!("`ttl_seconds` must be from {TTL_MIN} to {TTL_MAX}");
                return Err(Failure::new("bad-request", bounds));
            }
            let asked = scope.as_ref().or(view.proposal.route()).and_then(proposal::Proposal::max_uses);
            (id, Change::Approved { by, ttl_seconds, max_uses: max_uses.or(asked), scope })
        }
        Request::Reject { id, reason } => (id, Change::Rejected { by, reason: bounded("reason", &reason)? }),
        Request::Revoke { id, reason } => (id, Change::Revoked { by, reason: bounded("reason", &reason)? }),
        Request::Applying { id, digest } => (id, Change::Applying { digest: bounded("digest", &digest)? }),
        Request::Exhausted { id } => (id, Change::Exhausted),
        Request::Applied { id, generation, digest, expires_at } => {
            let term =
                desk.view(&id, now).and_then(|view| view.decision).and_then(|decision| decision.expires_at());
            let no_term = || format!("request {id} has no approval that says when it ends");
            let expires_at = expires_at.or(term).ok_or_else(|| Failure::new("wrong-state", no_term()))?;
            (id, Change::Applied { generation, digest, expires_at })
        }
        Request::ApplyFailed { id, error } => (id, Change::ApplyFailed { error: bounded("error", &error)? }),
    };
    desk.file(id, change, now).map(|view| Reply::done(&view)).map_err(|refusal| failed(&refusal))
}

fn note(desk: &Desk, what: Noted, now: Timestamp) -> Result<Reply, Failure> {
    desk.note(what, now).map_err(|refusal| failed(&refusal))?;
    Ok(Reply::done(&desk.status(now)))
}

fn unknown(id: &Id) -> Failure {
    Failure::new("unknown-id", format!("no request has the id {id}"))
}

fn failed(refusal: &Refusal) -> Failure {
    if let Refusal::Journal(cause) = refusal {
        error!(error = %chain(cause), "the journal cannot be written");
    }
    Failure::new(refusal.code(), chain(refusal))
}

fn bounded(key: &str, text: &str) -> Result<String, Failure> {
    let text = text.trim();
    if text.is_empty() || text.chars().count() > TEXT_MAX_CHARS {
        return Err(Failure::new(
            "bad-request",
            format!("`{key}` must be a text of 1 to {TEXT_MAX_CHARS} characters"),
        ));
    }
    Ok(text.to_owned())
}
