//! The daemon: from the command line to the end of the process.

use std::io::{self, Write as _};
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use repos::{Allow, Repos};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::activation::Notifier;
use crate::cli::Serve;
use crate::front::Front;
use crate::journal::Ledger;
use crate::state::{self, State};

/// How long sessions may go on after the signal to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
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
pub async fn run(options: &Serve, sockets: Vec<StdListener>, signals: Signals) -> Result<(), Failure> {
    let allow = if options.allow_local_upstream { Allow::LocalUpstream } else { Allow::SshUpstream };
    let repos = state::load(&options.config, allow).map_err(configuration)?;
    if options.check {
        return summary(&repos).context("cannot print the summary").map_err(Failure::Broken);
    }
    state::check_programs(&repos).map_err(configuration)?;
    let state = State::prepare(&options.repo_dir).map_err(configuration)?;
    state.put(&repos).map_err(configuration)?;
    let ledger = Ledger::open(&options.state_dir).map_err(|error| Failure::Broken(error.into()))?;
    let listeners = listen(options, sockets).await?;
    let notifier = Notifier::from_environment();
    let front = Arc::new(Front::new(state, ledger));
    tell(notifier.ready(1));
    let mut daemon = Daemon { front, options, allow, notifier, generation: 1, signals };
    daemon.serve(listeners).await;
    Ok(())
}

struct Daemon<'a> {
    front: Arc<Front>,
    options: &'a Serve,
    allow: Allow,
    notifier: Notifier,
    generation: u64,
    signals: Signals,
}

impl Daemon<'_> {
    async fn serve(&mut self, listeners: Vec<TcpListener>) {
        let mut accepting = JoinSet::new();
        for listener in listeners {
            accepting.spawn(accept(listener, self.front.clone()));
        }
        loop {
            tokio::select! {
                _ = self.signals.hangup.recv() => self.reload(),
                _ = self.signals.terminate.recv() => break,
                _ = self.signals.interrupt.recv() => break,
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
        match loaded.and_then(|repos| self.front.state.put(&repos)) {
            Ok(()) => {
                self.generation += 1;
                info!(generation = self.generation, "repositories reloaded");
                tell(self.notifier.ready(self.generation));
            }
            Err(error) => {
                let error = format!("{:#}", anyhow!(error));
                error!(%error, "reload refused; the old repositories stay");
                tell(self.notifier.reload_failed(self.generation, &error));
            }
        }
    }
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
