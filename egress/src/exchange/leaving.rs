//! What of a request may leave: the agent's credentials do not, what is left is searched, and the route's own come in.

use std::sync::Arc;

use http::{HeaderMap, StatusCode, request};
use jiff::Timestamp;
use policy::{AgentCredentials, Credential, Detector, Dlp, Route};
use scan::KnownError;
use tracing::warn;

use super::Judged;
use crate::authority::Endpoint;
use crate::credential::{self, Exchanged, Lookout, Secret};
use crate::headers;
use crate::inspect::{self, Format, Inspection, Suspicion};
use crate::lease::{RequestAsked, Unsearched, Until};
use crate::proxy::Proxy;
use crate::refusal::{Code, Refusal};
use crate::scrub::Scrub;

/// What of a request and its answer is looked at.
pub(super) struct Watch {
    pub(super) inspection: Option<(Inspection, Format)>,
    /// What was found in the head, where a person is asked: until it was.
    pub(super) suspicion: Option<Suspicion>,
    /// What is excepted of what may be found.
    pub(super) exceptions: Vec<policy::Exception>,
    pub(super) scrub: Option<Scrub>,
    /// Where nothing is scrubbed yet: until when it is not.
    pub(super) unsearched: Option<Unsearched>,
}

/// What of the agent's follows the head of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    Nothing,
    /// A body, or messages.
    Content,
}

impl Watch {
    pub(super) fn is_on(&self) -> bool {
        self.inspection.is_some() || self.scrub.is_some()
    }

    /// Takes out of the head of an answer, final or not, what ends here and what may not be seen in the bottle.
    pub(super) fn clean(&self, status: StatusCode, headers: &mut HeaderMap) {
        // Before it is forgotten in which transfer coding it came.
        headers::settle_length(status, headers);
        headers::towards_agent(headers);
        if let Some(scrub) = &self.scrub {
            scrub.headers(headers);
        }
    }
}

impl Judged {
    /// Takes the agent's credentials out, searches what is left, puts the route's in, and gives what goes out.
    pub(super) fn exchange_credentials(
        &self,
        route: &Route,
        asked: &RequestAsked,
        parts: &mut request::Parts,
        rest: Rest,
        now: Timestamp,
    ) -> Result<(Exchanged, Watch), Refusal> {
        let what = route.agent_credentials();
        let secret = match route.credential() {
            Some(wanted) => Some((wanted, self.given(route, wanted)?)),
            None => None,
        };
        let mut watch = self.watch(route, &asked.endpoint, now)?;
        if rest == Rest::Content && what == AgentCredentials::TakenOut {
            self.look_for_credentials(&mut watch, secret.as_ref().map(|(_, secret)| secret));
        }
        let mut query = parts.uri.query().map(str::to_owned);
        if let Some((inspection, _)) = &mut watch.inspection
            && inspection.looks_at_heads()
        {
            // What is taken out or replaced does not leave, so it is not searched.
            let mut leaving = parts.headers.clone();
            let before = credential::strip(what, &mut leaving, query.as_deref());
            let mut after = before.clone();
            let line = [asked.method.as_str(), asked.endpoint.host.as_str(), asked.path.as_str()];
            watch.suspicion = inspection.head(line, &mut after, &mut leaving)?;
            if let Some(suspicion) = &mut watch.suspicion {
                suspicion.beside(&parts.headers, &leaving, query.as_deref());
            }
            if after != before {
                query = after;
            }
            let masked = leaving.iter().filter(|_| inspection.masks());
            for (name, value) in masked {
                if parts.headers.get(name) != Some(value) && leaving.get_all(name).iter().count() == 1 {
                    parts.headers.insert(name.clone(), value.clone());
                } else if leaving.get_all(name) != parts.headers.get_all(name) {
                    return Err(inspect::Objection::Secret("header", None).refusal("header"));
                }
            }
        }
        if let Some((inspection, format)) = &mut watch.inspection {
            *format = inspection.format(&parts.headers)?;
        }
        if watch.scrub.is_some() {
            Scrub::prepare(&parts.method, &mut parts.headers);
        }
        let exchanged = match secret {
            Some((wanted, secret)) => {
                let placeholder = &self.proxy.placeholder;
                credential::exchange(what, wanted, placeholder, &secret, &mut parts.headers, query.as_deref())
                    .map_err(|error| unavailable(route, wanted, &error))?
            }
            None => Exchanged {
                query: credential::strip(what, &mut parts.headers, query.as_deref()),
                body: None,
                messages: None,
            },
        };
        Ok((exchanged, watch))
    }

    /// Has the body and the messages searched for credentials of the agent's own, where the route does not have its rules look for them. The
    /// placeholder is none, and what is injected is not the agent's.
    fn look_for_credentials(&self, watch: &mut Watch, injected: Option<&Secret>) {
        if watch.inspection.as_ref().is_some_and(|(inspection, _)| inspection.has_rules()) {
            return;
        }
        let inspection = watch.inspection.take().map(|(inspection, _)| inspection);
        let (proxy, injected) = (Arc::clone(&self.proxy), injected.cloned());
        let ours = move |text: &[u8]| {
            proxy.placeholder.word().as_bytes() == text
                || injected.as_ref().is_some_and(|secret| secret.is_injected_as(text))
        };
        let marks = self.proxy.marking.marks(&watch.exceptions).passing(ours);
        let inspection =
            Inspection::without_credentials(inspection, &self.proxy.decoding).marked(Arc::new(marks));
        watch.inspection = Some((inspection, Format::Plain));
    }

    /// The secret of `route`, which goes out.
    fn given(&self, route: &Route, wanted: &Credential) -> Result<Secret, Refusal> {
        let hits = self.snapshot.hits(route);
        let learn = |secret: &Secret| self.proxy.knowns.give(secret, wanted.scheme.as_ref(), route, hits);
        learned(&self.proxy, route, wanted, learn)
    }

    /// What the route has searched and scrubbed. Where it says nothing, the answers of a host that is given a credential, or was,
    /// are scrubbed.
    fn watch(&self, route: &Route, endpoint: &Endpoint, now: Timestamp) -> Result<Watch, Refusal> {
        let present = self.proxy.knowns.now(endpoint);
        let exceptions = self.snapshot.policy.exceptions(&endpoint.host, now);
        let exceptions: Vec<_> =
            exceptions.filter(|one| !self.proxy.uses.is_exception_spent(one)).cloned().collect();
        let inspection = route.dlp().and_then(|dlp| {
            let destination = self.proxy.tails.of(&format!("{}:{}", endpoint.host, endpoint.port));
            let lookout = Lookout::since(&self.proxy.knowns, &present);
            let inspection = Inspection::of(dlp, &lookout, destination, &self.proxy.decoding)?;
            Some(inspection.marked(Arc::new(self.proxy.marking.marks(&exceptions))))
        });
        // What another route gave to a host may come back by this one, and is no other guess.
        let injecting = match route.credential() {
            Some(_) => Some(route),
            None => self.snapshot.policy.injecting(endpoint.scheme, &endpoint.host, endpoint.port),
        };
        let (scrubs, until) = match route.dlp() {
            Some(dlp) => (dlp.inbound.contains(&Detector::KnownSecrets), Until::Known),
            // A route that is no more may have given it one, which upstream may have kept.
            None => (injecting.is_some() || present.gone.is_some(), Until::Gone),
        };
        let may_scrub = scrubs || route.dlp().is_none();
        let scrubs = scrubs && !present.known.is_empty();
        let unsearched = (may_scrub && !scrubs).then(|| Unsearched::new(until, present.generation));
        let hits = match (injecting, &present.gone) {
            (None, Some(gone)) => gone,
            (injecting, _) => self.snapshot.hits(injecting.unwrap_or(route)),
        };
        if scrubs {
            hits.judge()?;
        }
        Ok(Watch {
            inspection: inspection.map(|inspection| (inspection, Format::Plain)),
            suspicion: None,
            exceptions,
            scrub: scrubs.then(|| {
                let lookout = Lookout::since(&self.proxy.knowns, &present);
                Scrub::new(lookout, Arc::clone(hits), self.proxy.decoding.clone())
            }),
            unsearched,
        })
    }
}

/// The secret that a route injects, which is looked for from now on.
pub(crate) fn secret_of(proxy: &Proxy, route: &Route, wanted: &Credential) -> Result<Secret, Refusal> {
    learned(proxy, route, wanted, |secret| proxy.knowns.learn(secret, wanted.scheme.as_ref()))
}

fn learned(
    proxy: &Proxy,
    route: &Route,
    wanted: &Credential,
    learn: impl FnOnce(&Secret) -> Result<(), KnownError>,
) -> Result<Secret, Refusal> {
    let secret = proxy.secrets.get(&wanted.secret).map_err(|error| unavailable(route, wanted, &error))?;
    let looks = |dlp: &Dlp| {
        dlp.inbound.contains(&Detector::KnownSecrets) || dlp.outbound.contains(&Detector::KnownSecrets)
    };
    match learn(&secret) {
        Err(error) if route.dlp().is_some_and(looks) => Err(unavailable(route, wanted, &error)),
        Ok(()) | Err(_) => Ok(secret),
    }
}

fn unavailable(route: &Route, wanted: &Credential, cause: &dyn std::fmt::Display) -> Refusal {
    warn!(secret = %wanted.secret.name(), route = %route.id(), %cause, "a credential is not available");
    not_provided(wanted)
}

/// The secret of a route is not to be had.
pub(crate) fn not_provided(wanted: &Credential) -> Refusal {
    let hint = format!("the operator has to provide the secret `{}` for this route", wanted.secret.name());
    Refusal::new(Code::CredentialUnavailable, hint)
}
