//! The operator's side: a unix socket over which requests are listed and decided, one JSON object a line.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use proposal::wire::{Failure, Reply, Request, Requests, TEXT_MAX_CHARS};
use proposal::{Change, TTL_MAX, TTL_MIN};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
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
            Ok(request) => {
                let (desk, by) = (Arc::clone(&desk), by.clone());
                tokio::task::spawn_blocking(move || answer(&desk, &by, request, Timestamp::now()))
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

/// Does what one request asks.
fn answer(desk: &Desk, by: &str, request: Request, now: Timestamp) -> Reply {
    let (id, change) = match request {
        Request::List { state } => return Reply::done(&Requests { requests: desk.views(state, now) }),
        Request::Show { id } => {
            return match desk.view(&id, now) {
                Some(view) => Reply::done(&view),
                None => Reply::Failed(Failure::new("unknown-id", format!("no request has the id {id}"))),
            };
        }
        Request::Approve { id, ttl_seconds } => {
            let Some(view) = desk.view(&id, now) else {
                return Reply::Failed(Failure::new("unknown-id", format!("no request has the id {id}")));
            };
            let ttl_seconds = ttl_seconds.unwrap_or(view.proposal.ttl_seconds());
            if !(TTL_MIN..=TTL_MAX).contains(&ttl_seconds) {
                return Reply::Failed(Failure::new(
                    "bad-request",
                    format!("`ttl_seconds` must be from {TTL_MIN} to {TTL_MAX}"),
                ));
            }
            (id, Change::Approved { by: by.to_owned(), ttl_seconds })
        }
        Request::Reject { id, reason } => match bounded("reason", &reason) {
            Ok(reason) => (id, Change::Rejected { by: by.to_owned(), reason }),
            Err(failure) => return Reply::Failed(failure),
        },
        Request::Applied { id, generation, digest, expires_at } => {
            let term =
                desk.view(&id, now).and_then(|view| view.decision).and_then(|decision| decision.expires_at());
            let Some(expires_at) =
                expires_at.or(term).filter(|at| *at <= now + SignedDuration::from_hours(25))
            else {
                return Reply::Failed(Failure::new(
                    "wrong-state",
                    format!("request {id} has no approval that says when it ends"),
                ));
            };
            (id, Change::Applied { generation, digest, expires_at })
        }
        Request::ApplyFailed { id, error } => match bounded("error", &error) {
            Ok(error) => (id, Change::ApplyFailed { error }),
            Err(failure) => return Reply::Failed(failure),
        },
    };
    match desk.file(id, change, now) {
        Ok(view) => Reply::done(&view),
        Err(refusal) => {
            if let Refusal::Journal(cause) = &refusal {
                error!(error = %chain(cause), "the journal cannot be written");
            }
            Reply::Failed(Failure::new(refusal.code(), chain(&refusal)))
        }
    }
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
