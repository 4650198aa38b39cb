//! The routes in force, and all that hangs on them. A request is judged and forwarded by one snapshot.

use std::sync::Arc;

use jiff::Timestamp;
use policy::{Diagnostics, Policy, Route};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::tasks::Tasks;
use crate::tls::hex;
use crate::upstream::{Dialer, RouteClient, UpstreamTls};

/// The file's name in messages.
const FILE: &str = "routes.yaml";

/// The open side, which outlives the routes.
pub(crate) struct OpenSide {
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) tls: UpstreamTls,
    pub(crate) tasks: Tasks,
}

/// One generation of routes.
pub(crate) struct Snapshot {
    pub(crate) policy: Policy,
    pub(crate) generation: u64,
    pub(crate) digest: String,
    pub(crate) loaded_at: Timestamp,
    clients: Vec<RouteClient>,
}

impl Snapshot {
    pub(crate) fn parse(text: &str, generation: u64, open: &OpenSide) -> Result<Snapshot, Diagnostics> {
        let policy = Policy::parse(FILE, text)?;
        let client = |route| RouteClient::new(route, policy.defaults(), &open.dialer, &open.tls, &open.tasks);
        let clients = policy.routes().iter().map(client).collect();
        Ok(Snapshot { clients, policy, generation, digest: digest(text), loaded_at: Timestamp::now() })
    }

    pub(crate) fn client(&self, route: &Route) -> &RouteClient {
        &self.clients[route.id().index()]
    }
}

/// `sha256:` and the hexadecimal digest of the file's bytes.
pub(crate) fn digest(text: &str) -> String {
    format!("sha256:{}", hex(&Sha256::digest(text.as_bytes())))
}

/// The snapshot in force.
pub(crate) struct Snapshots(watch::Sender<Arc<Snapshot>>);

impl Snapshots {
    pub(crate) fn new(first: Snapshot) -> Snapshots {
        Snapshots(watch::Sender::new(Arc::new(first)))
    }

    pub(crate) fn current(&self) -> Arc<Snapshot> {
        Arc::clone(&self.0.borrow())
    }

    pub(crate) fn replace(&self, next: Snapshot) {
        self.0.send_replace(Arc::new(next));
    }

    /// Tells of each replacement.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.0.subscribe()
    }
}
