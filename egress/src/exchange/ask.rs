//! A request that a person is asked about before it goes out, when there is a secret in it.

use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use http_body::Body as _;
use hudsucker::Body;
use proposal::peer::Held;
use tracing::info;

use super::admit::Upgrade;
use super::{Judged, Plan, WITHHELD, broken_off, too_large};
use crate::body::{self, Gathered, Progress, Upload};
use crate::hold::{self, Asking, Suspect};
use crate::inspect::{Format, Inspection, Suspicion};
use crate::refusal::{Code, Refusal};
use crate::tasks::aside;
use crate::uses::NoUse;

/// Where a request's body comes from.
pub(super) enum Source {
    /// From the agent, as it is.
    Agent(Upload),
    /// What was read of it already, and the rest, metered.
    Begun(Body, Arc<Progress>),
}

impl Plan<'_> {
    /// Whether a person may have to be asked.
    pub(super) fn is_asked_about(&self) -> bool {
        self.watch
            .inspection
            .as_ref()
            .is_some_and(|(inspection, _)| self.watch.suspicion.is_some() || inspection.excepts())
    }
}

impl Judged {
    /// Reads the request as a whole and searches it; with a secret in it, it waits for a person. What is too long to be held, comes too
    /// slowly, or is a conversation goes on under search, and is cut where a secret stands.
    pub(super) async fn ask_about(
        &mut self,
        plan: &mut Plan<'_>,
        method: &Method,
        upload: Upload,
    ) -> Result<Source, Refusal> {
        let Some((inspection, format)) = plan.watch.inspection.clone() else {
            return Ok(Source::Agent(upload));
        };
        let mut suspicion = plan.watch.suspicion.take();
        if plan.upgrade != Upgrade::None || matches!(format, Format::Grpc(_)) {
            self.go_on_under_search(plan, suspicion.as_ref(), &inspection).await?;
            return Ok(Source::Agent(upload));
        }
        let turn = if upload.is_end_stream() { None } else { Some(self.proxy.holds.turn().await?) };
        let keep = |bytes: Vec<u8>| match turn {
            Some(turn) => turn.keep(bytes),
            None => Bytes::from(bytes),
        };
        let progress = Progress::new();
        let body = body::sent(upload, &progress, &plan.limits);
        let whole = match body::gathered(body, hold::BODY_MAX).await {
            Ok(Gathered::Whole(whole)) => whole,
            Ok(Gathered::Part(begun, rest)) => {
                let body = body::resumed(keep(begun), rest);
                self.go_on_under_search(plan, suspicion.as_ref(), &inspection).await?;
                return Ok(Source::Begun(body, progress));
            }
            Err(_) if progress.is_too_large() => {
                return Err(too_large(plan.limits.request_body.unwrap_or_default()));
            }
            Err(error) => return Err(broken_off(&error)),
        };
        aside(|| match &mut suspicion {
            Some(suspicion) => suspicion.body(&whole, &inspection, format),
            None => inspection.whole(&whole, format),
        })?;
        if let Some(suspicion) = suspicion.filter(|suspicion| suspicion.count > 0) {
            let suspect = self.suspect(plan, method, suspicion, whole.len());
            let lease = Arc::clone(&plan.limits.lease);
            let proxy = Arc::clone(&self.proxy);
            let mut asking = Asking::new(&proxy, suspect, lease);
            let grant = loop {
                let _turn = asking.wait().await?;
                // A request that may not go out now takes nothing of what the operator gave.
                self.count(plan).await?;
                if let Some(grant) = asking.take().await? {
                    break grant;
                }
            };
            self.entry.event.grant = Some(grant);
            // What was let pass passes as a whole.
            plan.watch.inspection = None;
            progress.note(0);
        }
        self.spend(plan, &inspection).await?;
        let body = if whole.is_empty() { Body::empty() } else { Body::from(keep(whole)) };
        Ok(Source::Begun(body, progress))
    }

    /// What cannot be read whole is searched as it leaves, and nothing in it is excepted; its head is done with.
    async fn go_on_under_search(
        &mut self,
        plan: &mut Plan<'_>,
        suspicion: Option<&Suspicion>,
        inspection: &Inspection,
    ) -> Result<(), Refusal> {
        suspicion.map_or(Ok(()), clean)?;
        self.spend(plan, inspection).await?;
        if let Some((own, _)) = &mut plan.watch.inspection {
            *own = own.clone().strict();
        }
        Ok(())
    }

    /// Takes a use of each exception that was met, before any of it leaves.
    async fn spend(&mut self, plan: &Plan<'_>, inspection: &Inspection) -> Result<(), Refusal> {
        let met = inspection.met();
        if met.is_empty() {
            return Ok(());
        }
        self.count(plan).await?;
        let newest = self.proxy.snapshot();
        for exception in met.into_iter().filter_map(|at| plan.watch.exceptions.get(at)) {
            // It may have ended while the request was read, or waited.
            if !newest.policy.exceptions(&exception.host, self.proxy.now()).any(|one| one == exception) {
                let hint = format!("what excepted the finding of rule `{}` has ended", exception.rule);
                return Err(Refusal::new(Code::SecretDetected, hint));
            }
            match self.proxy.uses.take_exception(exception).await {
                Ok(()) => {
                    info!(grant = %exception.grant, rule = exception.rule, "what is excepted goes out");
                    self.entry.event.grant.get_or_insert_with(|| exception.grant.to_string());
                    if self.proxy.uses.is_exception_spent(exception) {
                        self.proxy.holds.exhausted(exception.grant.as_str());
                    }
                }
                Err(NoUse::UsedUp) => {
                    let hint = format!("what excepted the finding of rule `{}` is used up", exception.rule);
                    return Err(Refusal::new(Code::SecretDetected, hint));
                }
                Err(NoUse::Write(error)) => {
                    let hint = "uses cannot be counted now; try again later";
                    return Err(Refusal::new(Code::AuditUnavailable, hint).because(&error));
                }
            }
        }
        Ok(())
    }

    /// What a person is told. Where the secret may stand in the target, its place in the routes is told in place of it.
    fn suspect(&self, plan: &Plan<'_>, method: &Method, suspicion: Suspicion, body: usize) -> Suspect {
        let (host, method, path) = if suspicion.in_target {
            (plan.route.host().to_string(), WITHHELD.to_owned(), WITHHELD.to_owned())
        } else {
            (self.entry.subject.host.clone(), method.to_string(), self.entry.subject.path.clone())
        };
        let (scheme, port) = (self.entry.subject.scheme.to_owned(), self.entry.subject.port);
        let body = u64::try_from(body).unwrap_or(u64::MAX);
        Suspect {
            digest: suspicion.finish(&scheme, port),
            what: Held::Request { scheme, host, port, method, path, body },
            found: suspicion.count,
            findings: suspicion.findings,
            named: suspicion.named,
        }
    }
}

/// For what cannot be held as a whole: refused, when something was found in its head.
fn clean(suspicion: &Suspicion) -> Result<(), Refusal> {
    let Some(found) = suspicion.findings.first() else { return Ok(()) };
    let (rule, place) = (&found.rule, &found.position);
    let hint = format!(
        "the request's {place} holds what looks like a secret (rule `{rule}`), and the request cannot be held for the operator as a \
         whole: leave it out"
    );
    Err(Refusal::new(Code::SecretDetected, hint).naming(suspicion.named.clone()))
}
