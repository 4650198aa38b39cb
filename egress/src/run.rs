//! From settings to a serving proxy and back: start, reload, stop.

mod reload;
mod routes;
mod sockets;
mod status;
mod watch;

use std::ffi::{OsStr, OsString};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use policy::Policy;
use scan::Budget;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::activation::Inheritance;
use crate::ca;
use crate::cli::Settings;
use crate::credential::SecretStore;
use crate::credential::placeholder::{self, Placeholder, PlaceholderError};
use crate::except::{self, Marking};
use crate::explain::{self, Circumstances, Explanation, Question};
use crate::journal::{self, Recorder};
use crate::notify::Notifier;
use crate::proxy::{self, Parts, Proxy};
use crate::room::Room;
use crate::upstream::{Dialer, Parent, ParseParentError, SystemResolver, TlsError, UpstreamTls};
use crate::uses::{self, Uses};
use crate::{control, metrics, peer};
use reload::Reload;
use routes::RoutesFile;
use status::StatusFile;
use watch::Watch;

/// Why the proxy did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The routes cannot be read.
    #[error("cannot read {path}")]
    ReadRoutes {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The routes are no good, or TLS cannot be prepared.
    #[error(transparent)]
    Proxy(#[from] proxy::Error),
    /// There is no certificate authority.
    #[error(transparent)]
    Authority(#[from] ca::Error),
    /// Upstream TLS cannot be prepared.
    #[error("EGRESS_UPSTREAM_CA")]
    UpstreamTls(#[from] TlsError),
    /// The parent proxy is not one.
    #[error("EGRESS_UPSTREAM_PROXY")]
    Parent(#[from] ParseParentError),
    /// A listener cannot be opened.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There is no address to answer DNS with.
    #[error("DNS is to be answered on no address in particular, so it has none to answer with")]
    NoDnsAnswer,
    /// A socket that was handed over cannot be used.
    #[error("cannot use the inherited socket")]
    Inherited(#[source] io::Error),
    /// The journal cannot be opened.
    #[error(transparent)]
    Journal(#[from] journal::Error),
    /// The counted uses cannot be read.
    #[error(transparent)]
    Uses(#[from] uses::Error),
    /// There is no placeholder.
    #[error(transparent)]
    Placeholder(#[from] PlaceholderError),
    /// The key that names findings cannot be kept.
    #[error("cannot keep the key that names findings in {path}")]
    Marking {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The request to be explained is none.
    #[error(transparent)]
    Explain(#[from] explain::Error),
    /// Metrics would be where a bottle reaches them.
    #[error("--metrics {0}: a bottle could reach that address")]
    MetricsInReach(SocketAddr),
    /// The directory of the routes cannot be watched.
    #[error("cannot watch {path}")]
    Watch {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is not known what must never be dialled.
    #[error("cannot see which gateways and addresses this machine has")]
    Surroundings(#[source] io::Error),
    /// A signal handler cannot be installed.
    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
}

impl Error {
    /// What the reader can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Authority(error) => error.hint(),
            Error::ReadRoutes { .. } => {
                Some("--config names the directory that holds routes.yaml".to_owned())
            }
            Error::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                Some("another process listens there; choose another --listen".to_owned())
            }
            Error::NoDnsAnswer => Some("name one with --dns-answer".to_owned()),
            Error::MetricsInReach(_) => {
                Some("name a loopback address, as in `--metrics 127.0.0.1:9464`".to_owned())
            }
            Error::Proxy(_)
            | Error::Explain(_)
            | Error::Placeholder(_)
            | Error::Marking { .. }
            | Error::Watch { .. }
            | Error::UpstreamTls(_)
            | Error::Parent(_)
            | Error::Listen { .. }
            | Error::Inherited(_)
            | Error::Journal(_)
            | Error::Uses(_)
            | Error::Surroundings(_)
            | Error::Signals(_) => None,
        }
    }

    /// 64 for what the configuration says, 70 for what the system refuses.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::ReadRoutes { .. }
            | Error::Explain(_)
            | Error::MetricsInReach(_)
            | Error::Proxy(_)
            | Error::Authority(_)
            | Error::UpstreamTls(_)
            | Error::NoDnsAnswer
            | Error::Parent(_) => 64,
            Error::Listen { .. }
            | Error::Inherited(_)
            | Error::Journal(_)
            | Error::Uses(_)
            | Error::Watch { .. }
            | Error::Placeholder(_)
            | Error::Marking { .. }
            | Error::Surroundings(_)
            | Error::Signals(_) => 70,
        }
    }
}

/// Serves until SIGTERM or SIGINT.
pub async fn run(settings: &Settings, mut inheritance: Inheritance) -> Result<(), Error> {
    let mut signals = Signals::install().map_err(Error::Signals)?;
    let notifier = Notifier::from_env();
    let authority = ca::CertificateAuthority::load(&settings.ca_dir)?;
    let tls = UpstreamTls::new(variable("EGRESS_UPSTREAM_CA").as_deref().map(Path::new))?;
    let parent = variable("EGRESS_UPSTREAM_PROXY").as_deref().map(parent).transpose()?;
    if let Some(parent) = &parent {
        info!(?parent, "going through a parent proxy");
    }
    if let Some(address) = settings.metrics.filter(|address| !metrics::is_out_of_reach(*address)) {
        return Err(Error::MetricsInReach(address));
    }
    // Watched before they are read, so that no change falls between.
    let mut watch = Watch::of(settings)?;
    let mut routes = RoutesFile::new(settings.config.join("routes.yaml"));
    let bytes = routes.read().await?;
    let room = Room::of_process();
    let (doors, addresses) = sockets::open(settings, &mut inheritance, room.from_bottle).await?;
    let mut own = addresses.clone();
    let metrics = match settings.metrics {
        Some(address) => {
            let failed = |source| Error::Listen { address, source };
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            let address = listener.local_addr().map_err(failed)?;
            own.push(address);
            Some((listener, address))
        }
        None => None,
    };
    let peer = inheritance.peer.take();
    // Not among the secrets: it is none, and no route can name it.
    let word = inheritance.secrets.remove(placeholder::NAME);
    let marking = except::path(&settings.state_dir);
    let parts = Parts {
        authority,
        secrets: SecretStore::new(inheritance.secrets, settings.secrets_dir.clone()),
        dialer: Dialer::new(Arc::new(SystemResolver::default()), parent, own)
            .map_err(Error::Surroundings)?
            .with_places(room.upstream),
        tls,
        recorder: Recorder::open(&journal::path(&settings.state_dir))?,
        uses: Uses::open(&uses::path(&settings.state_dir))?,
        placeholder: Placeholder::open(word.as_ref(), &placeholder::path(&settings.state_dir))?,
        marking: Marking::open(&marking).map_err(|source| Error::Marking { path: marking, source })?,
        decoding: Budget::of(room.decoding),
    };
    let proxy = Arc::new(Proxy::new(parts, &bytes)?);
    for address in addresses {
        info!(%address, "listening");
    }
    // Ends with this function.
    let mut beside = JoinSet::new();
    if let Some((listener, address)) = metrics {
        info!(%address, "serving metrics");
        beside.spawn(metrics::serve(listener, Arc::clone(&proxy)));
    }
    match control::bind(&settings.run_dir.join(control::SOCKET)) {
        Ok(listener) => drop(beside.spawn(control::serve(listener, Arc::clone(&proxy)))),
        Err(error) => warn!(%error, directory = %settings.run_dir.display(), "cannot make egress.sock"),
    }
    if let Some(socket) = peer {
        let proxy = Arc::clone(&proxy);
        beside.spawn(async move {
            if let Err(error) = peer::serve(socket, proxy).await {
                warn!(%error, "supervise can no longer ask what was refused");
            }
        });
    }
    let status = StatusFile::new(&settings.run_dir);
    let mut reload = Reload::begin(Arc::clone(&proxy), routes, notifier, status);
    beside.spawn(Notifier::from_env().keep_alive());

    let stop = CancellationToken::new();
    let serving = crate::serve(Arc::clone(&proxy), doors, stop.clone());
    let mut serving = std::pin::pin!(serving);
    loop {
        tokio::select! {
            () = serving.as_mut() => break,
            () = watch.changed() => {
                if reload.is_news() {
                    reload.now().await;
                }
            }
            () = reload.is_due() => reload.again().await,
            signal = signals.next() => match signal {
                Request::Reload => reload.now().await,
                Request::Stop => {
                    info!("stopping");
                    reload.stopping();
                    stop.cancel();
                }
            },
        }
    }
    proxy.flush().await;
    Ok(())
}

fn parsed(file: &str, bytes: &[u8]) -> Result<Policy, proxy::Error> {
    let text = policy::text(file, bytes).map_err(|finding| proxy::Error::Routes(finding.into()))?;
    Policy::parse(file, text).map_err(proxy::Error::Routes)
}

/// What the routes in `file` say to a request. Nothing counts as used up, and every secret as provided.
pub fn explain(file: &Path, method: &str, url: &str, headers: &[String]) -> Result<Explanation, Error> {
    let question = Question::parse(method, url, headers)?;
    let policy = parsed(&file.display().to_string(), &routes::read_once(file)?)?;
    let circumstances = Circumstances { now: Timestamp::now(), is_spent: &|_| false, has_secret: &|_| true };
    Ok(question.answer(&policy, &circumstances))
}

/// Reads routes.yaml and says in words what it allows.
pub fn check(settings: &Settings) -> Result<String, Error> {
    let policy = parsed("routes.yaml", &routes::read_once(&settings.config.join("routes.yaml"))?)?;
    let mut summary = format!("routes.yaml: {} route(s)\n", policy.routes().len());
    for route in policy.routes() {
        summary.push_str(&format!("  {}\n", policy::describe(route)));
    }
    for warning in policy.warnings() {
        let policy::Diagnostic { file, line, column, message } = warning;
        summary.push_str(&format!("{file}:{line}:{column}: warning: {message}\n"));
    }
    Ok(summary)
}

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

fn parent(url: &OsStr) -> Result<Parent, ParseParentError> {
    Parent::parse(url.to_str().ok_or(ParseParentError)?)
}

enum Request {
    Reload,
    Stop,
}

struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn install() -> io::Result<Signals> {
        Ok(Signals {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> Request {
        tokio::select! {
            _ = self.terminate.recv() => Request::Stop,
            _ = self.interrupt.recv() => Request::Stop,
            _ = self.hangup.recv() => Request::Reload,
        }
    }
}
