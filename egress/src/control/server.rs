use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use proposal::wire::{Failure, Reply};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::{Request, RouteCounts, Status, Tail};
use crate::explain::Question;
use crate::proxy::Proxy;
use crate::sys;

const LINE_LIMIT: u64 = 64 << 10;
const IDLE: Duration = Duration::from_secs(60);
const CONNECTIONS_MAX: usize = 16;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Makes the socket at `path`, mode 0600, in place of one that a dead daemon left.
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

/// Serves operators until it is dropped.
pub async fn serve(listener: UnixListener, proxy: Arc<Proxy>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= CONNECTIONS_MAX {
            connections.join_next().await;
        }
        let accepted = match listener.accept().await {
            Err(error) if sys::is_shortage(&error) => {
                sys::with_reserve(|| listener.accept().now_or_never()).unwrap_or(Err(error))
            }
            accepted => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let proxy = Arc::clone(&proxy);
                connections.spawn(async move {
                    if let Err(error) = converse(stream, &proxy).await {
                        debug!(%error, "an operator's connection ended");
                    }
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept an operator");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn converse(mut stream: UnixStream, proxy: &Proxy) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    let (reader, mut writer) = stream.split();
    if uid != 0 && uid != nix::unistd::geteuid().as_raw() {
        warn!(uid, "a peer that is no operator was turned away");
        let refused = Failure::new("forbidden", "only root and the daemon's own uid are operators");
        return send(&mut writer, &Reply::Failed(refused)).await;
    }
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut limited = (&mut reader).take(LINE_LIMIT);
        let Ok(read) = tokio::time::timeout(IDLE, limited.read_until(b'\n', &mut line)).await else {
            return Ok(());
        };
        if read? == 0 {
            return Ok(());
        }
        let Some(request) = line.strip_suffix(b"\n") else {
            let long = Failure::new("bad-request", "a request is one line of at most 64 KiB");
            return send(&mut writer, &Reply::Failed(long)).await;
        };
        let request = match serde_json::from_slice::<Request>(request) {
            Ok(request) => request,
            Err(error) => {
                let wrong = Failure::new("bad-request", error.to_string());
                send(&mut writer, &Reply::Failed(wrong)).await?;
                continue;
            }
        };
        match request {
            Request::Tail { follow: true } => {
                // Whoever follows says nothing more: the end of what it sends is the end of the tail.
                let mut rest = [0; 1];
                return tokio::select! {
                    followed = follow(&mut writer, proxy) => followed,
                    _ = reader.read(&mut rest) => Ok(()),
                };
            }
            request => {
                // A secret may have to be looked at in its file.
                let reply = sys::with_reserve(|| answer(proxy, request));
                send(&mut writer, &reply).await?;
            }
        }
    }
}

fn answer(proxy: &Proxy, request: Request) -> Reply {
    match request {
        Request::Status {} => Reply::done(&Status::of(proxy)),
        Request::Limits {} => Reply::done(&RouteCounts::of(proxy)),
        Request::Tail { .. } => Reply::done(&latest(proxy)),
        Request::Explain { method, url, headers } => match Question::parse(&method, &url, &headers) {
            Ok(question) => Reply::done(&proxy.explain(&question)),
            Err(error) => Reply::Failed(Failure::new("bad-request", error.to_string())),
        },
    }
}

fn latest(proxy: &Proxy) -> Tail {
    let refusals = proxy.recorder.observer().refusals();
    Tail { requests: refusals.iter().map(|seen| (**seen).clone()).collect(), missed: 0 }
}

async fn follow(writer: &mut (impl AsyncWriteExt + Unpin), proxy: &Proxy) -> io::Result<()> {
    // Before the latest are read, so that nothing falls between.
    let mut watched = proxy.recorder.observer().watch();
    send(writer, &Reply::done(&latest(proxy))).await?;
    loop {
        let tail = match watched.recv().await {
            Ok(seen) => Tail { requests: vec![(*seen).clone()], missed: 0 },
            Err(RecvError::Lagged(missed)) => Tail { requests: Vec::new(), missed },
            Err(RecvError::Closed) => return Ok(()),
        };
        send(writer, &Reply::done(&tail)).await?;
    }
}

async fn send(writer: &mut (impl AsyncWriteExt + Unpin), reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    tokio::time::timeout(IDLE, writer.write_all(&line)).await?
}
