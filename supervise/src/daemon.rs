//! The daemon: opens what it needs, serves both sides, stops when told.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use proposal::Noted;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::access::Sources;
use crate::activation::{Notify, Passed};
use crate::cli::{DaemonArgs, Places};
use crate::desk::Desk;
use crate::mcp::{Patience, Server};
use crate::peer::Peer;
use crate::{holds, http, operator};

/// How often the ends of the other journals are recorded.
const ANCHOR_INTERVAL: Duration = Duration::from_secs(300);
const LISTEN_DEFAULT: &str = "127.0.0.1:9100";

/// Runs the daemon on `passed` sockets, or on those that `args` name, until a signal ends it.
///
/// # Errors
/// When it cannot start.
pub fn run(places: &Places, args: &DaemonArgs, passed: Passed) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(serve(places, args, passed))
}

async fn serve(places: &Places, args: &DaemonArgs, passed: Passed) -> anyhow::Result<()> {
    // Before anything else: a SIGHUP that is meant for the siblings must not end this one.
    let mut signals = Signals::install().context("cannot handle signals")?;
    let notify = Notify::from_env();
    let desk = Arc::new(Desk::open(&places.journal())?);
    let socket = places.socket();
    std::fs::create_dir_all(&places.run_dir)
        .with_context(|| format!("cannot create {}", places.run_dir.display()))?;
    let operators =
        operator::bind(&socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    let listeners = if passed.listeners.is_empty() { bind(&args.listen)? } else { passed.listeners };
    let addresses = listeners
        .iter()
        .map(TcpListener::local_addr)
        .collect::<Result<Vec<_>, _>>()
        .context("a socket has no address")?;

    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let peers = passed
        .peers
        .into_iter()
        .map(|(name, socket)| {
            Peer::new(&name, socket).with_context(|| format!("cannot use the socket to {name}"))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    for peer in &peers {
        tasks.spawn(attend(peer.clone(), Arc::clone(&desk), stop.clone()));
    }
    let server =
        Server::new(Arc::clone(&desk), sources(places, args), Patience::default()).with_peers(&peers);
    tasks.spawn(operator::serve(operators, desk, stop.clone()));
    for listener in listeners {
        let listener = tokio::net::TcpListener::from_std(listener).context("cannot use a socket")?;
        let (addresses, server, stop) = (addresses.clone(), server.clone(), stop.clone());
        tasks.spawn(async move { http::serve(listener, &addresses, server, stop).await });
    }
    for address in &addresses {
        info!(%address, "listening");
    }
    notify.alive();
    report(&notify, "READY=1");
    let signal = tokio::select! {
        signal = signals.stop() => signal,
        _ = tasks.join_next() => return Err(anyhow!("a part of the daemon ended by itself")),
        never = notify.keep_alive() => match never {},
    };
    info!(signal, "stopping");
    report(&notify, "STOPPING=1");
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    if let Err(error) = std::fs::remove_file(&socket) {
        warn!(%error, "cannot remove the operator socket");
    }
    Ok(())
}

/// Listens to a peer, and records now and then where its journal ends.
async fn attend(peer: Peer, desk: Arc<Desk>, stop: CancellationToken) {
    let (words, heard) = tokio::sync::mpsc::channel(holds::WORDS_MAX);
    let holds = holds::attend(peer.clone(), Arc::clone(&desk), heard);
    let mut ticks = tokio::time::interval(ANCHOR_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let anchors = async {
        loop {
            ticks.tick().await;
            if let Ok((records, hash)) = peer.head().await {
                let anchor = Noted::Anchor { daemon: peer.name().to_owned(), records, hash };
                let desk = Arc::clone(&desk);
                let noted = tokio::task::spawn_blocking(move || desk.note(anchor, desk.now())).await;
                if let Ok(Err(error)) = noted {
                    warn!(%error, daemon = peer.name(), "where its journal ends cannot be recorded");
                }
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = anchors => {}
        () = holds => {}
        () = peer.listen(words) => {
            warn!(daemon = peer.name(), "its socket ended");
            // The daemon serves on without; its end is not ours.
            stop.cancelled().await;
        }
    }
}

/// Where current access is read from.
#[must_use]
pub fn sources(places: &Places, args: &DaemonArgs) -> Sources {
    Sources { routes: args.config.join("routes.yaml"), status: places.run_dir.join("egress.status.json") }
}

fn bind(addresses: &[SocketAddr]) -> anyhow::Result<Vec<TcpListener>> {
    let default = [LISTEN_DEFAULT.parse().expect("the default is an address")];
    let addresses = if addresses.is_empty() { &default } else { addresses };
    addresses
        .iter()
        .map(|address| {
            let listener =
                TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
            listener.set_nonblocking(true).with_context(|| format!("cannot listen on {address}"))?;
            Ok(listener)
        })
        .collect()
}

fn report(notify: &Notify, state: &str) {
    if let Err(error) = notify.send(state) {
        warn!(%error, state, "cannot report to NOTIFY_SOCKET");
    }
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    _hangup: tokio::signal::unix::Signal,
}

impl Signals {
    fn install() -> std::io::Result<Signals> {
        Ok(Signals {
            _hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn stop(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
