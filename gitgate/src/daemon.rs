//! The daemon: from the command line to the end of the process.

use std::io::{self, Write as _};
use std::net::TcpListener as StdListener;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use repos::{Allow, Repos};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::activation::{Inherited, Notifier};
use crate::cli::Serve;
use crate::door::Keyring;
use crate::front::Front;
use crate::hold::Holds;
use crate::journal::Ledger;
use crate::state::{self, Loaded, State};
use crate::{control, maintain, marking, metrics};

/// How long sessions may go on after the signal to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How often what is kept is looked through.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);
/// How long to wait after an accept that failed for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the daemon ended, by exit code.
#[derive(Debug)]
pub enum Failure {
    /// Usage or configuration: 64.
    Configuration(anyhow::Error),
    /// Configuration, with what the reader can do: 64.
    Advised(anyhow::Error, &'static str),
    /// Something else: 70.
    Broken(anyhow::Error),
}

/// The signals, caught from the first moment on.
pub struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Catches the signals. Needs a runtime.
    pub fn catch() -> io::Result<Self> {
        let hangup = signal(SignalKind::hangup())?;
        Ok(Self {
            hangup,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }
}

/// Serves until told to stop.
pub async fn run(options: &Serve, sockets: Inherited, signals: Signals) -> Result<(), Failure> {
    let allow = if options.allow_local_upstream { Allow::LocalUpstream } else { Allow::SshUpstream };
    let Loaded { repos, digest } = state::load(&options.config, allow).map_err(configuration)?;
    if options.check {
        return summary(&repos).context("cannot print the summary").map_err(Failure::Broken);
    }
    state::check_programs().map_err(configuration)?;
    let keyring = Keyring {
        secrets_dir: options.secrets_dir.clone(),
        handed: Arc::new(sockets.secrets),
        roots: options.upstream_ca.clone(),
    };
    let state = State::prepare(&options.repo_dir, keyring).map_err(configuration)?;
    state.put(&repos).map_err(configuration)?;
    let ledger = Ledger::open(&options.state_dir).map_err(|error| Failure::Broken(error.into()))?;
    let listeners = listen(options, sockets.listeners).await?;
    let marking = marking::open(&options.state_dir);
    let marking = marking.context("cannot keep the key that names findings").map_err(Failure::Broken)?;
    let holds = Holds::new(sockets.peer, marking);
    let holds = holds.context("cannot use the socket to supervise").map_err(Failure::Broken)?;
    let metrics = metrics_listener(options, &listeners).await?;
    let notifier = Notifier::from_environment();
    let front = Arc::new(Front::new(state, ledger, holds));
    let force = Arc::new(RwLock::new(InForce { generation: 1, digest, error: None }));
    tell(notifier.alive());
    tell(notifier.ready(1, &in_force(&force).digest));
    let mut daemon = Daemon { front, options, allow, notifier, force, signals };
    daemon.serve(listeners, metrics).await;
    Ok(())
}

/// Which configuration is in force.
#[derive(Debug, Clone)]
pub(crate) struct InForce {
    pub(crate) generation: u64,
    pub(crate) digest: String,
    /// Why the last reload was refused, until one succeeds.
    pub(crate) error: Option<String>,
}

fn in_force(force: &RwLock<InForce>) -> InForce {
    force.read().unwrap_or_else(PoisonError::into_inner).clone()
}

struct Daemon<'a> {
    front: Arc<Front>,
    options: &'a Serve,
    allow: Allow,
    notifier: Notifier,
    force: Arc<RwLock<InForce>>,
    signals: Signals,
}

impl Daemon<'_> {
    async fn serve(&mut self, listeners: Vec<TcpListener>, metrics: Option<TcpListener>) {
        let mut accepting = JoinSet::new();
        accepting.spawn(Notifier::from_environment().keep_alive());
        for listener in listeners {
            accepting.spawn(accept(listener, self.front.clone()));
        }
        if let Some(listener) = metrics {
            accepting.spawn(metrics::serve(listener, self.front.clone()));
        }
        let (front, state) = (self.front.clone(), &self.front.state);
        accepting.spawn(maintain::tend(move || front.state.all(), state.gate.clone(), state.changed.clone()));
        accepting.spawn(Holds::serve(self.front.clone()));
        match control::bind(&self.options.run_dir) {
            Ok(listener) => {
                let (front, force) = (self.front.clone(), self.force.clone());
                accepting.spawn(control::serve(listener, front, move || in_force(&force)));
            }
            Err(error) => {
                let dir = self.options.run_dir.display();
                warn!(%dir, %error, "no control socket: `git-gate status` will not work");
            }
        }
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        loop {
            tokio::select! {
                _ = self.signals.hangup.recv() => self.reload(),
                _ = self.signals.terminate.recv() => break,
                _ = self.signals.interrupt.recv() => break,
                _ = sweep.tick() => self.front.state.warm.sweep(),
            }
        }
        info!("stopping");
        accepting.abort_all();
        while accepting.join_next().await.is_some() {}
        if timeout(DRAIN_TIMEOUT, self.front.sessions_ended()).await.is_err() {
            warn!("sessions cut short");
        }
    }

    fn reload(&mut self) {
        tell(self.notifier.reloading());
        let loaded = state::load(&self.options.config, self.allow);
        let put = loaded.and_then(|loaded| self.front.state.put(&loaded.repos).map(|()| loaded.digest));
        let mut force = self.force.write().unwrap_or_else(PoisonError::into_inner);
        match put {
            Ok(digest) => {
                self.front.holds.look();
                *force = InForce { generation: force.generation + 1, digest, error: None };
                info!(generation = force.generation, digest = force.digest, "repositories reloaded");
                tell(self.notifier.ready(force.generation, &force.digest));
            }
            Err(error) => {
                let error = format!("{:#}", anyhow!(error));
                error!(%error, "reload refused; the old repositories stay");
                tell(self.notifier.reload_failed(force.generation, &force.digest, &error));
                force.error = Some(error);
            }
        }
    }
}

/// The socket of the metrics, if it is wanted, and where no bottle reaches it.
async fn metrics_listener(
    options: &Serve,
    listeners: &[TcpListener],
) -> Result<Option<TcpListener>, Failure> {
    let Some(address) = options.metrics else { return Ok(None) };
    let ours =
        |l: &TcpListener| l.local_addr().is_ok_and(|l| l.ip() == address.ip() || l.ip().is_unspecified());
    if !address.ip().is_loopback() && (address.ip().is_unspecified() || listeners.iter().any(ours)) {
        let error = anyhow!("--metrics {address} could be reached from a bottle");
        return Err(Failure::Advised(
            error,
            "take 127.0.0.1, or an address of a network that no bottle is on",
        ));
    }
    let bound = TcpListener::bind(address).await;
    bound.with_context(|| format!("cannot listen on {address}")).map_err(Failure::Broken).map(Some)
}

async fn accept(listener: TcpListener, front: Arc<Front>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => front.clone().admit(stream),
            Err(error) => {
                warn!(%error, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn listen(options: &Serve, sockets: Vec<StdListener>) -> Result<Vec<TcpListener>, Failure> {
    let mut listeners = Vec::new();
    if sockets.is_empty() {
        for address in &options.listen {
            let bound = TcpListener::bind(address).await;
            listeners
                .push(bound.with_context(|| format!("cannot listen on {address}")).map_err(Failure::Broken)?);
        }
    }
    for socket in sockets {
        let taken = socket.set_nonblocking(true).and_then(|()| TcpListener::from_std(socket));
        listeners.push(taken.context("cannot use the socket that was handed over").map_err(Failure::Broken)?);
    }
    for listener in &listeners {
        let address = listener.local_addr().map_err(|error| Failure::Broken(error.into()))?;
        info!(%address, "listening");
    }
    Ok(listeners)
}

fn summary(repos: &Repos) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "repos.yaml: {} repositories", repos.iter().count())?;
    for repo in repos.iter() {
        let push = if repo.push.possible() { "read, push" } else { "read" };
        writeln!(out, "  {}.git  {push}  {}", repo.name, repo.upstream)?;
    }
    Ok(())
}

fn configuration(error: state::ConfigError) -> Failure {
    match error.hint() {
        Some(hint) => Failure::Advised(error.into(), hint),
        None => Failure::Configuration(error.into()),
    }
}

fn tell(sent: io::Result<()>) {
    if let Err(error) = sent {
        warn!(%error, "cannot tell the supervisor");
    }
}
