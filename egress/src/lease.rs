//! How long what was allowed stays allowed: until its route ends, or until new routes refuse it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{HeaderMap, Method};
use jiff::Timestamp;
use policy::{
    AgentCredentials, CanonicalPath, Code, Decision, Denial, Detector, Dlp, Front, Host, RequestHead,
    Resolves, Route, RouteId, Unreadable,
};
use tokio::time::sleep;

use crate::authority::Endpoint;
use crate::clock::Clock;
use crate::proxy::Proxy;
use crate::snapshot::Snapshot;

/// What is in flight when new routes refuse it has this long to end by itself.
const MOMENT: Duration = Duration::from_millis(500);
/// How often an end is looked at.
const STEP: Duration = Duration::from_millis(500);

/// What was asked for, kept to be judged again.
pub(crate) enum Asked {
    /// A request.
    Request(Box<RequestAsked>),
    /// A tunnel that is passed on.
    Tunnel(Host, u16),
}

/// A request as it was judged.
pub(crate) struct RequestAsked {
    pub(crate) endpoint: Endpoint,
    pub(crate) method: Method,
    pub(crate) path: CanonicalPath,
    pub(crate) query: Option<String>,
    pub(crate) headers: HeaderMap,
}

impl RequestAsked {
    pub(crate) fn head(&self) -> RequestHead<'_> {
        RequestHead {
            scheme: self.endpoint.scheme,
            host: &self.endpoint.host,
            port: self.endpoint.port,
            method: &self.method,
            path: &self.path,
            query: self.query.as_deref(),
            headers: &self.headers,
        }
    }
}

/// The leave that one request or tunnel has.
pub(crate) struct Lease {
    asked: Asked,
    proxy: Arc<Proxy>,
    /// What allowed it.
    snapshot: Arc<Snapshot>,
    route: RouteId,
    until: Option<Timestamp>,
    clock: Clock,
    unsearched: Option<Unsearched>,
}

/// An answer that is passed on as it comes, while there is no secret that it could show. Once there is one it ends: it may be compressed, or a
/// part of something.
#[derive(Debug)]
pub(crate) struct Unsearched {
    until: Until,
    /// What was looked at last, as the secrets count it.
    seen: AtomicU64,
}

/// What ends that.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Until {
    /// Any secret that can be looked for.
    Known,
    /// One that went to where the answer comes from.
    Gone,
}

impl Unsearched {
    /// For what is known at this generation.
    pub(crate) fn new(until: Until, generation: u64) -> Unsearched {
        Unsearched { until, seen: AtomicU64::new(generation) }
    }
}

impl Lease {
    /// For what `route` of `snapshot` allowed at `now`.
    pub(crate) fn new(
        asked: Asked,
        proxy: &Arc<Proxy>,
        snapshot: &Arc<Snapshot>,
        route: &Route,
        clock: Clock,
    ) -> Lease {
        let (proxy, snapshot) = (Arc::clone(proxy), Arc::clone(snapshot));
        let (route, until) = (route.id(), route.expires_at());
        Lease { asked, proxy, snapshot, route, until, clock, unsearched: None }
    }

    /// The same, of an answer that is not searched as yet.
    pub(crate) fn of(self, unsearched: Option<Unsearched>) -> Lease {
        Lease { unsearched, ..self }
    }

    /// Whether what has come of the answer may go on unsearched, where it does; to be asked once it is there.
    pub(crate) fn unsearched(&self) -> Result<(), Denial> {
        let (Some(Unsearched { until, seen }), Asked::Request(asked)) = (&self.unsearched, &self.asked)
        else {
            return Ok(());
        };
        let generation = self.proxy.knowns.generation();
        if seen.load(Ordering::Relaxed) == generation {
            return Ok(());
        }
        let now = self.proxy.knowns.now(&asked.endpoint);
        let is_over = match until {
            Until::Known => !now.known.is_empty(),
            Until::Gone => now.gone.is_some(),
        };
        if is_over {
            let hint = "since this began there is a secret that what comes back may show, and it is not searched for it: ask again";
            return Err(Denial { code: Code::RequestNotAllowed, hint: hint.to_owned() });
        }
        seen.store(now.generation, Ordering::Relaxed);
        Ok(())
    }

    /// Whether it may end: only then is it to be waited for. All alarms ring when the routes are replaced.
    pub(crate) fn is_in_question(&self) -> bool {
        self.until.is_some() || self.proxy.snapshots.generation() != self.snapshot.generation
    }

    /// Returns with the reason once it is no longer allowed.
    pub(crate) async fn ended(self: Arc<Lease>) -> Denial {
        self.watch(Duration::ZERO).await
    }

    /// The same, a moment after new routes refuse it: what is nearly through then ends as it was judged.
    pub(crate) async fn ended_after_a_moment(self: Arc<Lease>) -> Denial {
        self.watch(MOMENT).await
    }

    async fn watch(&self, moment: Duration) -> Denial {
        let mut snapshots = self.proxy.snapshots.watch();
        let mut until = self.until;
        let mut generation = self.snapshot.generation;
        loop {
            let newest = Arc::clone(&snapshots.borrow_and_update());
            let now = self.clock.now();
            if newest.generation != generation || until.is_some_and(|until| until <= now) {
                let by_reload = newest.generation != generation;
                generation = newest.generation;
                match self.judge(&newest, now) {
                    Ok(end) => until = end,
                    Err(denial) if moment.is_zero() || !by_reload => return denial,
                    Err(_) => {
                        sleep(moment).await;
                        let newest = Arc::clone(&snapshots.borrow_and_update());
                        generation = newest.generation;
                        match self.judge(&newest, self.clock.now()) {
                            Ok(end) => until = end,
                            Err(denial) => return denial,
                        }
                    }
                }
            }
            drop(newest);
            let end = async {
                match until {
                    // In steps, because a timer does not see the wall clock being set, nor the time asleep.
                    Some(until) => sleep(left(until, now).min(STEP)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = end => {}
                Ok(()) = snapshots.changed() => {}
            }
        }
    }

    fn judge(&self, snapshot: &Snapshot, now: Timestamp) -> Result<Option<Timestamp>, Denial> {
        let policy = &snapshot.policy;
        let route = match &self.asked {
            Asked::Request(request) => match policy.decide(&request.head(), now) {
                Decision::Allow(route) => route,
                Decision::Deny(denial) => return Err(denial),
            },
            Asked::Tunnel(host, port) => match policy.front(host, *port, now) {
                Front::Passthrough(route) => route,
                Front::Refuse(denial) => return Err(denial),
                Front::Intercept => {
                    let hint = "the tunnels of this host are opened now: connect again".to_owned();
                    return Err(Denial { code: policy::Code::HostNotAllowed, hint });
                }
            },
        };
        if is_narrower(route, &self.snapshot.policy.routes()[self.route.index()]) {
            let hint = "the route that allowed this has other terms now: ask again".to_owned();
            return Err(Denial { code: Code::RequestNotAllowed, hint });
        }
        Ok(route.expires_at())
    }
}

/// Whether what goes on by the terms of `before` does what `now` would not let it do: go to another address, with another credential, less
/// searched.
fn is_narrower(now: &Route, before: &Route) -> bool {
    let strictness = |what: AgentCredentials| match what {
        AgentCredentials::Passed => 0,
        AgentCredentials::AuthorizationTakenOut => 1,
        AgentCredentials::TakenOut => 2,
    };
    let loses = before.allow_private().iter().any(|allowed| !now.allow_private().contains(allowed));
    let is_resolved_otherwise = before.resolves() == Resolves::Parent && now.resolves() != before.resolves();
    let is_other_credential = before.credential().is_some() && now.credential() != before.credential();
    let is_searched = now.dlp().is_some_and(|now| searches_more(now, before.dlp()));
    loses
        || is_resolved_otherwise
        || is_other_credential
        || is_searched
        || strictness(now.agent_credentials()) > strictness(before.agent_credentials())
}

/// Whether `now` finds something that `before` does not, or does another thing with it.
fn searches_more(now: &Dlp, before: Option<&Dlp>) -> bool {
    let Some(before) = before else { return true };
    let adds = |now: &[Detector], before: &[Detector]| now.iter().any(|detector| !before.contains(detector));
    adds(&now.outbound, &before.outbound)
        || adds(&now.inbound, &before.inbound)
        || now.on_match != before.on_match
        || now.unreadable == Unreadable::Refuse && before.unreadable == Unreadable::Pass
}

fn left(until: Timestamp, now: Timestamp) -> Duration {
    until.duration_since(now).try_into().unwrap_or_default()
}
