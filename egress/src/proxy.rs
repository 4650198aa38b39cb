//! The proxy as one value: what every connection shares.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use audit::ReloadEvent;
use jiff::Timestamp;
use policy::{Detector, Diagnostics, Policy, Route};
use scan::Budget;
use tracing::warn;

use crate::alarm;
use crate::credential::{Knowns, Placeholder, SecretStore};
use crate::except::Marking;
use crate::exchange;
use crate::explain::{Circumstances, Explanation, Question};
use crate::hold::Holds;
use crate::inspect::Tails;
use crate::journal::Recorder;
use crate::scrub::Counts;
use crate::snapshot::{OpenSide, Snapshot, Snapshots};
use crate::sys;
use crate::tasks::Tasks;
use crate::tls::ca::CertificateAuthority;
use crate::tls::leaf::LeafAuthority;
use crate::upstream::{Dialer, UpstreamTls};
use crate::uses::Uses;

/// What a proxy is made of.
pub struct Parts {
    /// Signs what the bottle sees.
    pub authority: CertificateAuthority,
    /// What is injected.
    pub secrets: SecretStore,
    /// Dials upstream.
    pub dialer: Dialer,
    /// What upstream is trusted by.
    pub tls: UpstreamTls,
    /// Where requests are recorded.
    pub recorder: Recorder,
    /// How often counted routes were used.
    pub uses: Uses,
    /// The word that the agent uses like a credential.
    pub placeholder: Placeholder,
    /// Names what is found in requests.
    pub marking: Marking,
    /// The memory of all decoders.
    pub decoding: Budget,
}

/// Why a proxy cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The routes are no good.
    #[error("{0}")]
    Routes(Diagnostics),
    /// The bottle-facing TLS cannot be prepared.
    #[error("cannot prepare the bottle-facing TLS: {0}")]
    Tls(String),
    /// The thread that looks after time-outs could not be started.
    #[error("cannot start the thread that looks after time-outs")]
    Thread(#[source] io::Error),
}

/// Which routes are in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InForce {
    /// Counts the sets of routes from 1.
    pub generation: u64,
    /// `sha256:…` of the file.
    pub digest: String,
    /// Since when.
    pub loaded_at: Timestamp,
}

/// The proxy.
pub struct Proxy {
    pub(crate) leaves: LeafAuthority,
    pub(crate) secrets: SecretStore,
    pub(crate) knowns: Arc<Knowns>,
    pub(crate) tails: Tails,
    /// The memory of all decoders.
    pub(crate) decoding: Budget,
    reflected: Counts,
    pub(crate) open: OpenSide,
    pub(crate) recorder: Recorder,
    pub(crate) uses: Uses,
    pub(crate) placeholder: Placeholder,
    pub(crate) marking: Marking,
    pub(crate) snapshots: Snapshots,
    pub(crate) holds: Holds,
    reloading: Mutex<()>,
}

impl Proxy {
    /// A proxy with the routes in `bytes`.
    pub fn new(parts: Parts, bytes: impl AsRef<[u8]>) -> Result<Proxy, Error> {
        alarm::start().map_err(Error::Thread)?;
        let open = OpenSide { dialer: Arc::new(parts.dialer), tls: parts.tls, tasks: Tasks::default() };
        let leaves = LeafAuthority::new(parts.authority).map_err(|error| Error::Tls(error.to_string()))?;
        let mut first = Snapshot::parse(bytes.as_ref(), None, &open).map_err(Error::Routes)?;
        refuse_weak(&first.policy, &parts.secrets).map_err(Error::Routes)?;
        let reflected = Counts::default();
        first.enforce(&reflected, &parts.secrets);
        let proxy = Proxy {
            leaves,
            secrets: parts.secrets,
            knowns: Arc::default(),
            tails: Tails::default(),
            decoding: parts.decoding,
            reflected,
            open,
            recorder: parts.recorder,
            uses: parts.uses,
            placeholder: parts.placeholder,
            marking: parts.marking,
            snapshots: Snapshots::new(first),
            holds: Holds::default(),
            reloading: Mutex::default(),
        };
        proxy.warn();
        Ok(proxy)
    }

    /// Puts the routes in `bytes` in force for the next request; when they are no good, the old ones stay.
    pub async fn reload(&self, bytes: impl AsRef<[u8]>) -> Result<InForce, Diagnostics> {
        // Secrets are read, and what lies next to us.
        let replaced = sys::with_reserve(|| self.replace(bytes.as_ref()));
        self.reloaded(replaced.as_ref().err().map(ToString::to_string));
        replaced.map(|()| self.in_force())
    }

    /// Records what is in force after it was to be replaced, and why it was not.
    pub(crate) fn reloaded(&self, error: Option<String>) {
        let InForce { generation, digest, .. } = self.in_force();
        self.recorder.reloaded(ReloadEvent { generation, digest, error });
    }

    fn replace(&self, bytes: &[u8]) -> Result<(), Diagnostics> {
        let _one_at_a_time = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = Snapshot::parse(bytes, Some(&self.snapshot()), &self.open)?;
        self.secrets.refresh();
        refuse_weak(&next.policy, &self.secrets)?;
        next.enforce(&self.reflected, &self.secrets);
        self.open.dialer.look_around();
        self.snapshots.replace(next);
        self.warn();
        Ok(())
    }

    /// Which routes are in force.
    pub fn in_force(&self) -> InForce {
        let snapshot = self.snapshot();
        InForce {
            generation: snapshot.generation,
            digest: snapshot.digest.to_string(),
            loaded_at: snapshot.loaded_at,
        }
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.current()
    }

    /// The time by which grants end.
    pub(crate) fn now(&self) -> Timestamp {
        self.uses.clock().now()
    }

    /// What would be said to a request.
    pub(crate) fn explain(&self, question: &Question) -> Explanation {
        let has_secret = |route: &Route| {
            route.credential().is_none_or(|wanted| exchange::secret_of(self, route, wanted).is_ok())
        };
        let is_spent = |route: &Route| self.uses.is_spent(route);
        let circumstances = Circumstances { now: self.now(), is_spent: &is_spent, has_secret: &has_secret };
        question.answer(&self.snapshot().policy, &circumstances)
    }

    /// Returns when the last records are written.
    pub async fn flush(&self) {
        if let Err(error) = self.uses.settle().await {
            warn!(%error, "what was reserved of counted routes and not used is spent");
        }
        self.recorder.flush().await;
    }

    /// Says what is hardly meant in the routes, and which secrets are missing.
    fn warn(&self) {
        let snapshot = self.snapshot();
        for warning in snapshot.policy.warnings() {
            warn!("{warning}");
        }
        for route in snapshot.policy.routes() {
            let Some(credential) = route.credential() else { continue };
            let name = credential.secret.name();
            match self.secrets.get(&credential.secret) {
                Err(error) => {
                    warn!(secret = %name, route = %route.id(), %error, "the secret is missing: this route refuses until it is there");
                }
                Ok(secret) => {
                    if let Err(error) = self.knowns.learn(&secret, credential.scheme.as_ref()) {
                        warn!(secret = %name, route = %route.id(), %error, "the secret is not looked for in what leaves and comes back");
                    }
                }
            }
        }
    }
}

/// An error for every secret that a route asks to be looked for and that could not be told from other text. One that is
/// missing may still come.
fn refuse_weak(policy: &Policy, secrets: &SecretStore) -> Result<(), Diagnostics> {
    let weak = policy.routes().iter().filter_map(|route| {
        let wanted = route.credential()?;
        let asked = route.dlp().is_some_and(|dlp| {
            dlp.inbound.iter().chain(&dlp.outbound).any(|detector| *detector == Detector::KnownSecrets)
        });
        let secret = secrets.get(&wanted.secret).ok().filter(|_| asked)?;
        let error = Knowns::default().learn(&secret, wanted.scheme.as_ref()).err()?;
        let name = wanted.secret.name();
        Some(policy.wrong_secret(
            route,
            format!("the secret `{name}` cannot be looked for, as `known_secrets` asks: {error}"),
        ))
    });
    Diagnostics::new(weak.collect()).map_or(Ok(()), Err)
}
