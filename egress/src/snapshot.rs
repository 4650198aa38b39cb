//! The routes in force, and all that hangs on them. A request is judged and forwarded by one snapshot.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use policy::{
    Credential, Defaults, Diagnostics, GrantId, HostPattern, Policy, PrivateAllow, Resolves, Route, Scheme,
};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::alarm;
use crate::credential::SecretStore;
use crate::limits::Gauge;
use crate::scrub::{Counts, Hits};
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
    pub(crate) digest: Arc<str>,
    pub(crate) loaded_at: Timestamp,
    lanes: Vec<Lane>,
}

/// What a route has besides its rules: connections and counts. It goes over to the next generation when the route's upstream
/// is unchanged.
#[derive(Clone)]
struct Lane {
    upstream: Upstream,
    client: RouteClient,
    gauge: Arc<Gauge>,
    hits: Arc<Hits>,
}

/// What two routes must have in common for connections of the one to be good for the other. Routes with the same upstream are
/// told apart by their order: nothing is shared between two routes of one generation.
#[derive(Clone, PartialEq)]
struct Upstream {
    host: HostPattern,
    scheme: Scheme,
    ports: Vec<u16>,
    allow_private: Vec<PrivateAllow>,
    resolves: Resolves,
    connect_timeout: Duration,
    grant: Option<GrantId>,
    credential: Option<Credential>,
}

impl Upstream {
    fn of(route: &Route, defaults: &Defaults) -> Upstream {
        Upstream {
            host: route.host().clone(),
            scheme: route.scheme(),
            ports: route.ports().to_vec(),
            allow_private: route.allow_private().to_vec(),
            resolves: route.resolves(),
            connect_timeout: defaults.connect_timeout,
            grant: route.grant().cloned(),
            credential: route.credential().cloned(),
        }
    }
}

impl Snapshot {
    /// The routes in `bytes`, the first ones or those after `previous`.
    pub(crate) fn parse(
        bytes: &[u8],
        previous: Option<&Snapshot>,
        open: &OpenSide,
    ) -> Result<Snapshot, Diagnostics> {
        let policy = Policy::parse(FILE, policy::text(FILE, bytes)?)?;
        let mut kept: HashMap<String, VecDeque<&Lane>> = HashMap::new();
        for lane in previous.iter().flat_map(|previous| &previous.lanes) {
            kept.entry(lane.upstream.host.to_string()).or_default().push_back(lane);
        }
        let lanes = policy.routes().iter().map(|route| {
            let upstream = Upstream::of(route, policy.defaults());
            let like = kept.get_mut(&upstream.host.to_string());
            let lane = like.and_then(|lanes| {
                let place = lanes.iter().position(|lane| lane.upstream == upstream)?;
                lanes.remove(place).cloned()
            });
            lane.unwrap_or_else(|| {
                let gauge = Gauge::new();
                let client = RouteClient::new(route, policy.defaults(), open, &gauge);
                Lane { upstream, client, gauge, hits: Arc::default() }
            })
        });
        let lanes = lanes.collect();
        let generation = previous.map_or(1, |previous| previous.generation + 1);
        Ok(Snapshot { lanes, policy, generation, digest: digest(bytes).into(), loaded_at: Timestamp::now() })
    }

    /// Takes over what is shared with the routes before: to be called once nothing speaks against these any more.
    pub(crate) fn enforce(&mut self, counts: &Counts, secrets: &SecretStore) {
        for (route, lane) in self.policy.routes().iter().zip(&mut self.lanes) {
            lane.gauge.bound(route.limits());
            lane.hits = counts.of(route, secrets);
        }
    }

    pub(crate) fn client(&self, route: &Route) -> &RouteClient {
        &self.lanes[route.id().index()].client
    }

    pub(crate) fn hits(&self, route: &Route) -> &Arc<Hits> {
        &self.lanes[route.id().index()].hits
    }

    pub(crate) fn gauge(&self, route: &Route) -> &Arc<Gauge> {
        &self.lanes[route.id().index()].gauge
    }
}

/// `sha256:` and the hexadecimal digest of the file's bytes.
pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// The snapshot in force.
#[derive(Clone)]
pub(crate) struct Snapshots(Arc<InForce>);

struct InForce {
    snapshot: watch::Sender<Arc<Snapshot>>,
    /// Its own, to be read without a lock.
    generation: AtomicU64,
}

impl Snapshots {
    pub(crate) fn new(first: Snapshot) -> Snapshots {
        let generation = AtomicU64::new(first.generation);
        Snapshots(Arc::new(InForce { snapshot: watch::Sender::new(Arc::new(first)), generation }))
    }

    pub(crate) fn current(&self) -> Arc<Snapshot> {
        Arc::clone(&self.0.snapshot.borrow())
    }

    /// The generation of the snapshot in force.
    pub(crate) fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    /// Puts `next` in force, and has everything in flight look at it.
    pub(crate) fn replace(&self, next: Snapshot) {
        let generation = next.generation;
        self.0.snapshot.send_replace(Arc::new(next));
        self.0.generation.store(generation, Ordering::Release);
        alarm::ring_all();
    }

    /// Tells of each replacement.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.0.snapshot.subscribe()
    }
}
