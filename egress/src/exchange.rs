//! One request: bound to its host, judged, forwarded with our credential, answered.

pub(crate) mod admit;
mod ask;
mod leaving;
pub(crate) mod unread;
mod upgrade;
mod waiting;

use std::future::poll_fn;
use std::mem;
use std::sync::Arc;
use std::time::Instant;

use audit::Decision as Recorded;
use bytes::Bytes;
use http::header::{HOST, SEC_WEBSOCKET_EXTENSIONS};
use http::uri::{self, Authority, PathAndQuery};
use http::{Request, Response, StatusCode, Uri, Version, request};
use http_body::Body as _;
use hudsucker::Body;
use policy::{CanonicalPath, Decision, Denial, LogLevel, Route, RouteLimits, Scheme};
use tracing::{info, warn};

use crate::alarm::Alarm;
use crate::authority::{self, Endpoint};
use crate::body::{self, Limits, Progress, Upload, Whole};
use crate::credential::Exchanged;
use crate::credential::rewrite::Rewriter;
use crate::frames::Looks;
use crate::front::{Connection, Next};
use crate::headers;
use crate::inspect;
use crate::interim::Interim;
use crate::journal::Entry;
use crate::lease::{Asked, Lease, RequestAsked};
use crate::local;
use crate::proxy::Proxy;
use crate::refusal::{Code, Form, Refusal, Subject};
use crate::scrub::{self, Ending, Scrub};
use crate::snapshot::Snapshot;
use crate::splice::Spliced;
use crate::upgraded::AgentSide;
use crate::upstream::{self, Lent, RouteClient};
use crate::uses::NoUse;
use admit::{Upgrade, too_large};
use ask::Source;
use leaving::{Rest, Watch};
pub(crate) use leaving::{not_provided, secret_of};
use upgrade::WEBSOCKET;
use waiting::{given_up, let_through};

/// So much of a cause is logged.
const CAUSE_CHARS: usize = 512;
/// Stands in answers and records for a path that holds a secret.
const WITHHELD: &str = "(withheld)";

/// How a request came to us.
pub(crate) enum Via {
    /// To the proxy itself.
    Plain,
    /// In a tunnel that was opened for this endpoint.
    Tunnel(Endpoint, Authority),
    /// In plain text, meant for this port of another host, and led here.
    LedHere(u16),
}

/// Where a request is answered: on a connection, in a task that heeds `alarm`, and what can be said there before the answer.
#[derive(Clone, Copy)]
pub(crate) struct Seat<'c> {
    pub(crate) connection: &'c Connection,
    pub(crate) alarm: &'c Alarm,
    pub(crate) interim: &'c Arc<Interim>,
}

/// Answers one request.
pub(crate) async fn serve(
    seat: Seat<'_>,
    via: &Via,
    request: Request<Upload>,
    agent_side: AgentSide,
) -> Response<Body> {
    let proxy = &seat.connection.proxy;
    let snapshot = proxy.snapshot();
    if !matches!(via, Via::Tunnel(..)) && local::is_for_us(request.uri(), request.headers()) {
        return local::answer(proxy, &snapshot, request.method(), request.uri());
    }
    let subject = rough_subject(via, &request);
    match Judged::begin(proxy, snapshot, subject).await {
        Ok(judged) => judged.run(via, seat, request, agent_side).await,
        Err(response) => *response,
    }
}

/// What can be said of a request before it is understood.
fn rough_subject(via: &Via, request: &Request<Upload>) -> Subject {
    let (scheme, host, port) = match via {
        Via::Tunnel(endpoint, _) => (endpoint.scheme, endpoint.host.as_str().to_owned(), endpoint.port),
        Via::Plain => {
            let host = request.uri().host().unwrap_or_default().escape_default().to_string();
            (Scheme::Http, host, request.uri().port_u16().unwrap_or(Scheme::Http.default_port()))
        }
        Via::LedHere(port) => {
            let named = request.headers().get(HOST).map_or("", |host| host.to_str().unwrap_or_default());
            (Scheme::Http, named.escape_default().to_string(), *port)
        }
    };
    Subject {
        scheme: scheme.as_str(),
        host,
        port,
        method: request.method().as_str().to_owned(),
        path: shown(request.uri().path()),
        form: Form::of(request.method(), request.headers()),
    }
}

/// `text` without what a terminal or a record could take for something else.
fn shown(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'\'' | b'"' | b'\\');
    if text.bytes().all(is_plain) { text.to_owned() } else { text.escape_default().to_string() }
}

/// A request, or a tunnel, that is to be recorded and answered by one snapshot.
pub(crate) struct Judged {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) entry: Box<Entry>,
}

impl Judged {
    /// Takes a place in the journal; without one there is an answer already.
    pub(crate) async fn begin(
        proxy: &Arc<Proxy>,
        snapshot: Arc<Snapshot>,
        subject: Subject,
    ) -> Result<Judged, Box<Response<Body>>> {
        let unavailable =
            || Refusal::new(Code::AuditUnavailable, "requests cannot be recorded now; try again later");
        let entry = match proxy.recorder.begin(snapshot.generation, &snapshot.digest, subject).await {
            Ok(entry) => entry,
            Err(subject) => return Err(Box::new(unavailable().answer(&subject))),
        };
        let mut judged = Judged { proxy: Arc::clone(proxy), snapshot, entry };
        if judged.proxy.recorder.is_broken() {
            // The record of this refusal is also the attempt to write again.
            return Err(Box::new(judged.refuse(&unavailable())));
        }
        Ok(judged)
    }

    /// Records and logs a refusal, and gives the answer.
    pub(crate) fn refuse(&mut self, refusal: &Refusal) -> Response<Body> {
        self.entry.refused(refusal);
        if let Some(named) = refusal.finding.as_deref() {
            self.proxy.marking.note(&self.entry.subject.host, named);
        }
        if self.snapshot.policy.log() >= LogLevel::Refusals {
            let Subject { scheme, host, port, method, path, form: _ } = &self.entry.subject;
            let Refusal { code, block_id, hint, cause, retry_after: _, finding: _ } = refusal;
            // Upstream may have had a word in it, as with the names of its certificate or the reason with which HTTP/2 ends.
            let cause = cause.as_deref().map(|cause| self.proxy.knowns.masked(cause));
            let cause = cause.map(|cause| cause.chars().take(CAUSE_CHARS).collect::<String>());
            warn!(%code, scheme, host, port, method, path, block_id, hint, cause, "refused");
        }
        refusal.answer(&self.entry.subject)
    }

    /// Records a tunnel that is passed on.
    pub(crate) fn passed(&mut self, route: &Route, up: &Arc<Progress>) {
        self.entry.event.decision = Recorded::Allow;
        self.entry.event.route = Some(route.id().to_string());
        self.entry.event.grant = route.grant().map(ToString::to_string);
        self.entry.up = Some(Arc::clone(up));
        if self.snapshot.policy.log() >= LogLevel::Requests {
            let Subject { host, port, .. } = &self.entry.subject;
            info!(host, port, "tunnel passed on");
        }
    }

    /// What `route` gives to what was asked.
    pub(crate) fn lease(&self, asked: Asked, route: &Route) -> Lease {
        let proxy = &self.proxy;
        Lease::new(asked, proxy, &self.snapshot, route, proxy.uses.clock())
    }

    /// What seldom comes to pass is boxed, so that there is no room for it in each request.
    fn run(
        mut self,
        via: &Via,
        seat: Seat<'_>,
        request: Request<Upload>,
        agent_side: AgentSide,
    ) -> impl Future<Output = Response<Body>> + Send {
        let (mut parts, upload) = request.into_parts();
        async move {
            let snapshot = Arc::clone(&self.snapshot);
            let mut plan = match self.judge(&snapshot, via, &mut parts, &upload) {
                Ok(plan) => plan,
                Err(refusal) => {
                    Box::pin(upload.pass_over()).await;
                    return self.refuse(&refusal);
                }
            };
            let source = if plan.is_asked_about() {
                match Box::pin(self.ask_about(&mut plan, &parts.method, upload)).await {
                    Ok(source) => source,
                    Err(refusal) => return self.refuse(&refusal),
                }
            } else {
                Source::Agent(upload)
            };
            if let Err(refusal) = self.count(&plan).await {
                if let Source::Agent(upload) = source {
                    Box::pin(upload.pass_over()).await;
                }
                return self.refuse(&refusal);
            }
            let answered = match self.send(&mut plan, parts, source, seat).await {
                Ok((response, lent)) => self.clean(response, lent, &plan),
                Err(refusal) => Err(refusal),
            };
            seat.interim.close();
            match answered {
                Ok(answer) => {
                    self.pass_back(answer, *plan, Opening { agent_side, connection: seat.connection })
                }
                Err(refusal) => self.refuse(&refusal),
            }
        }
    }

    /// Everything that is decided before a byte leaves. What is judged are the headers that will go out.
    fn judge<'s>(
        &mut self,
        snapshot: &'s Snapshot,
        via: &Via,
        parts: &mut request::Parts,
        upload: &Upload,
    ) -> Result<Box<Plan<'s>>, Refusal> {
        let endpoint = bind(via, parts)?;
        let path = CanonicalPath::of_request(parts.uri.path()).map_err(Denial::from)?;
        endpoint.host.as_str().clone_into(&mut self.entry.subject.host);
        path.as_str().clone_into(&mut self.entry.subject.path);
        self.entry.subject.port = endpoint.port;

        let wanted = admit::prepare(parts)?;
        let asked = Box::new(RequestAsked {
            endpoint,
            method: parts.method.clone(),
            path,
            query: parts.uri.query().map(str::to_owned),
            headers: parts.headers.clone(),
        });
        let spent = |route: &Route| self.proxy.uses.is_spent(route);
        let now = self.proxy.now();
        let route = match snapshot.policy.decide_unless(&asked.head(), now, &spent) {
            Decision::Allow(route) => route,
            Decision::Deny(denial) => return Err(denial.into()),
        };
        self.entry.event.route = Some(route.id().to_string());
        self.entry.event.grant = route.grant().map(ToString::to_string);
        let upgrade = admit::upgrade(wanted.as_deref(), parts, !upload.is_end_stream())?;
        let bounds = snapshot.policy.limits(route.limits(), &asked.endpoint.host, now);
        snapshot.gauge(route).bound_for(&asked.endpoint.host, &bounds);
        let request_body = bounds.request_body;
        admit::length(upload.size_hint().lower(), request_body)?;
        admit::echo(route, &parts.method)?;
        let ends = upgrade == Upgrade::None && upload.is_end_stream();
        let rest = if ends { Rest::Nothing } else { Rest::Content };
        let exchanged = self.exchange_credentials(route, &asked, parts, rest, now);
        let withholds = match &exchanged {
            Ok((_, watch)) => watch.suspicion.as_ref().is_some_and(|suspicion| suspicion.in_target),
            Err(refusal) => refusal.code == Code::SecretDetected,
        };
        if withholds {
            // The path may be where it stands, or a method that is no word.
            WITHHELD.clone_into(&mut self.entry.subject.path);
            if self.entry.subject.method.len() >= scan::KNOWN_MIN_BYTES {
                WITHHELD.clone_into(&mut self.entry.subject.method);
            }
        }
        let (Exchanged { query, body: rewriter, messages }, mut watch) = exchanged?;
        let client = snapshot.client(route);
        match upgrade {
            Upgrade::None => {}
            Upgrade::WebSocket => {
                headers::ask_upgrade(&mut parts.headers, WEBSOCKET);
                if watch.is_on() || messages.is_some() {
                    // What is compressed in a context of its own cannot be read.
                    parts.headers.remove(SEC_WEBSOCKET_EXTENSIONS);
                }
            }
        }
        let idle = snapshot.policy.defaults().idle_timeout;
        let uri = target(via, &asked.endpoint, &asked.path, query.as_deref())?;
        let lease = self.lease(Asked::Request(asked), route).of(watch.unsearched.take());
        let limits = Limits { idle, request_body, lease: Arc::new(lease) };
        Ok(Box::new(Plan { route, client, uri, limits, bounds, upgrade, rewriter, messages, watch }))
    }

    /// Counts the request, once, as the last thing before it goes out: against the route's bounds, then as a use.
    async fn count(&mut self, plan: &Plan<'_>) -> Result<(), Refusal> {
        if self.entry.held.is_some() {
            return Ok(());
        }
        let gauge = self.snapshot.gauge(plan.route);
        self.entry.held = Some(gauge.request(&plan.bounds, Instant::now())?);
        let exhausted = || {
            if let Some(grant) = plan.route.grant() {
                self.proxy.holds.exhausted(grant.as_str());
            }
        };
        match self.proxy.uses.take(plan.route).await {
            Ok(()) => {
                if self.proxy.uses.is_spent(plan.route) {
                    exhausted();
                }
                Ok(())
            }
            Err(NoUse::UsedUp) => {
                exhausted();
                let hint = "what allowed this is used up".to_owned();
                Err(Denial { code: policy::Code::GrantUsedUp, hint }.into())
            }
            Err(NoUse::Write(error)) => {
                let hint = "uses cannot be counted now; try again later";
                Err(Refusal::new(Code::AuditUnavailable, hint).because(&error))
            }
        }
    }

    fn send(
        &mut self,
        plan: &mut Plan<'_>,
        mut parts: request::Parts,
        source: Source,
        Seat { connection: _, alarm, interim }: Seat<'_>,
    ) -> impl Future<Output = Result<(Response<Whole>, Option<Lent>), Refusal>> + Send {
        let (body, progress) = match source {
            Source::Agent(upload) => {
                let progress = Progress::new();
                (body::sent(upload, &progress, &plan.limits), progress)
            }
            Source::Begun(body, progress) => (body, progress),
        };
        progress.hold(self.entry.held.take());
        self.entry.up = Some(Arc::clone(&progress));
        // From here on bytes may leave, even if the agent does not stay for the answer.
        self.entry.event.decision = Recorded::Allow;
        let mut outgoing = Request::new(body);
        if let Some((inspection, format)) = &plan.watch.inspection {
            self.entry.inspection = Some(inspection.clone());
            outgoing = outgoing.map(|body| inspect::examined(body, inspection, *format));
        }
        let rewriter = plan.rewriter.take();
        *outgoing.method_mut() = mem::take(&mut parts.method);
        *outgoing.uri_mut() = mem::take(&mut plan.uri);
        *outgoing.headers_mut() = mem::take(&mut parts.headers);
        // A client of HTTP/1.0 knows of no interim answers.
        let interim = Some(interim).filter(|_| parts.version >= Version::HTTP_11);
        let plan = &*plan;
        async move {
            let inspection = plan.watch.inspection.as_ref();
            let objected = async {
                match inspection {
                    Some((inspection, _)) => inspection.objected().await,
                    None => std::future::pending().await,
                }
            };
            let asked = async {
                if let Some(rewriter) = rewriter {
                    outgoing = Box::pin(rewritten(outgoing, rewriter, plan, &progress)).await?;
                }
                let tap = interim.map(Interim::tap);
                Ok(match plan.upgrade {
                    Upgrade::None => plan.client.request(outgoing, tap).await,
                    Upgrade::WebSocket => {
                        Box::pin(plan.client.upgrade(outgoing, tap)).await.map(|response| (response, None))
                    }
                })
            };
            let mut asked = std::pin::pin!(asked);
            let asked = poll_fn(|context| {
                let asked = asked.as_mut().poll(context);
                if let Some(interim) = interim {
                    interim.pass_on(|status, headers| match plan.limits.lease.unsearched() {
                        Ok(()) => plan.watch.clean(status, headers),
                        Err(_) => headers.clear(),
                    });
                }
                asked
            });
            let answered = tokio::select! {
                biased;
                // First, because what allowed it may have ended since it was judged.
                refusal = given_up(&progress, &plan.limits, alarm) => return Err(refusal),
                answered = asked => match answered {
                    Ok(answered) => answered,
                    Err(refusal) => return Err(refusal),
                },
                refusal = objected => return Err(refusal),
            };
            let objection = || inspection.and_then(|(inspection, _)| inspection.objection());
            let (response, lent) = answered.map_err(|error| match plan.limits.request_body {
                Some(most) if progress.is_too_large() => too_large(most),
                Some(_) | None => objection().unwrap_or_else(|| {
                    // What upstream does with the half of a request is no fault of its own.
                    if progress.is_broken_off() {
                        broken_off(&error)
                    } else {
                        upstream::refusal_of_request(&error)
                    }
                }),
            })?;
            if response.status() == StatusCode::SWITCHING_PROTOCOLS && plan.upgrade == Upgrade::None {
                let hint = "the upstream host changed the protocol unasked";
                return Err(Refusal::new(Code::UpstreamFailed, hint));
            }
            if let Some(interim) = interim.filter(|interim| !interim.is_through()) {
                Box::pin(let_through(interim, &plan.limits, alarm)).await?;
            }
            Ok((response, lent))
        }
    }

    /// Takes out of an answer's head what ends here and what may not be seen in the bottle.
    fn clean(
        &self,
        mut response: Response<Whole>,
        lent: Option<Lent>,
        Plan { watch, limits, .. }: &Plan<'_>,
    ) -> Result<Answer, Refusal> {
        limits.lease.unsearched()?;
        if !headers::is_chunked_at_most(response.headers()) {
            let hint = "the upstream host answered in a transfer coding that was not asked for";
            return Err(Refusal::new(Code::UpstreamFailed, hint));
        }
        if watch.scrub.is_some() {
            Scrub::whole(response.status(), response.headers())?;
        }
        watch.clean(response.status(), response.headers_mut());
        let has_body = !response.body().is_end_stream();
        let encoding = match &watch.scrub {
            Some(scrub) => scrub.decoding(response.headers_mut(), has_body)?,
            None => None,
        };
        Ok(Answer { response, lent, encoding })
    }

    fn pass_back(
        mut self,
        Answer { mut response, lent, encoding }: Answer,
        Plan { limits, messages, watch, .. }: Plan<'_>,
        opening: Opening<'_>,
    ) -> Response<Body> {
        let status = response.status();
        self.entry.event.status = Some(status.as_u16());
        self.entry.answered();
        if self.snapshot.policy.log() >= LogLevel::Requests {
            let Subject { scheme, host, port, method, path, form: _ } = &self.entry.subject;
            info!(status = status.as_u16(), scheme, host, port, method, path, "passed");
        }
        if status == StatusCode::SWITCHING_PROTOCOLS {
            let upstream_side = hyper::upgrade::on(&mut response);
            // Upstream's own words beside the status are not searched.
            response.extensions_mut().clear();
            headers::ask_upgrade(response.headers_mut(), WEBSOCKET);
            let up = self.entry.up.get_or_insert_with(Progress::new);
            let spliced = Spliced { up: Arc::clone(up), down: Progress::new() };
            let Opening { agent_side, connection } = opening;
            let inspection = watch.inspection.map(|(inspection, _)| inspection);
            let looks = Looks { inspection, placeholder: messages, scrub: watch.scrub };
            let run = upgrade::run(agent_side, upstream_side, spliced, limits, looks, self.entry);
            connection.go_on_with(Next::last(run));
            return response.map(|_| Body::empty());
        }
        let (mut parts, answer) = response.into_parts();
        parts.version = Version::HTTP_11;
        parts.extensions.clear();
        let inspection = self.entry.inspection.clone();
        let scrub = watch.scrub.map(|scrub| (scrub, Ending::default()));
        self.entry.ending = scrub.as_ref().map(|(_, ending)| ending.clone());
        let body = body::answered(answer, self.entry, lent, &limits);
        let body = match inspection {
            Some(inspection) => inspect::ended_by(body, inspection),
            None => body,
        };
        Response::from_parts(
            parts,
            match scrub {
                Some((scrub, ending)) => scrub::scrubbed(body, scrub, encoding, ending),
                None => body,
            },
        )
    }
}

/// What was decided about a request that is let out.
struct Plan<'s> {
    route: &'s Route,
    client: &'s RouteClient,
    uri: Uri,
    limits: Limits,
    /// The bounds of the route, as high as they are at present.
    bounds: RouteLimits,
    upgrade: Upgrade,
    /// What replaces the placeholder in the body.
    rewriter: Option<Rewriter>,
    /// What replaces it in the messages, when a WebSocket opens.
    messages: Option<Rewriter>,
    watch: Watch,
}

/// What there is for a WebSocket to run on, should upstream agree to one.
struct Opening<'c> {
    agent_side: AgentSide,
    connection: &'c Connection,
}

/// An answer whose head is fit to be passed back, the connection its body comes on, and what that is encoded with besides.
struct Answer {
    response: Response<Whole>,
    lent: Option<Lent>,
    encoding: Option<scan::Encoding>,
}

/// `outgoing` with the placeholder in its body replaced.
async fn rewritten(
    outgoing: Request<Body>,
    rewriter: Rewriter,
    plan: &Plan<'_>,
    progress: &Progress,
) -> Result<Request<Body>, Refusal> {
    let (mut parts, body) = outgoing.into_parts();
    match body::rewritten(body, rewriter, &mut parts.headers).await {
        Ok(body) => Ok(Request::from_parts(parts, body)),
        // Who looks at the same limits says which of them it was.
        Err(error) if body::is_timed_out(&error) => std::future::pending().await,
        Err(_) if progress.is_too_large() => Err(too_large(plan.limits.request_body.unwrap_or_default())),
        Err(error) => {
            let objection = plan.watch.inspection.as_ref().and_then(|(inspection, _)| inspection.objection());
            Err(objection.unwrap_or_else(|| broken_off(&error)))
        }
    }
}

fn broken_off(error: &(dyn std::error::Error + 'static)) -> Refusal {
    let hint = "the body of the request broke off, or is not in chunks as it says";
    Refusal::new(Code::MalformedBody, hint).because(error)
}

fn bind(via: &Via, request: &request::Parts) -> Result<Endpoint, Refusal> {
    admit::nested(&request.method)?;
    Ok(match via {
        Via::Plain => authority::of_plain(request)?,
        Via::LedHere(port) => authority::of_led_here(request, *port)?,
        Via::Tunnel(endpoint, named) => {
            if !authority::names_plainly(request, named) {
                authority::bind_to_tunnel(request, endpoint)?;
            }
            endpoint.clone()
        }
    })
}

/// The target that goes out: made of what was judged, never of what was sent.
fn target(via: &Via, endpoint: &Endpoint, path: &CanonicalPath, query: Option<&str>) -> Result<Uri, Refusal> {
    let lost = |_: http::Error| Refusal::new(Code::MalformedTarget, "the target cannot be forwarded");
    let target = match query {
        Some(query) => [path.as_str(), "?", query].concat(),
        None => path.as_str().to_owned(),
    };
    let authority = match via {
        Via::Tunnel(_, authority) => authority.clone(),
        Via::Plain | Via::LedHere(_) => {
            Authority::try_from(endpoint.authority()).map_err(|error| lost(error.into()))?
        }
    };
    let target = PathAndQuery::from_maybe_shared(Bytes::from(target)).map_err(|error| lost(error.into()))?;
    let mut parts = uri::Parts::default();
    parts.scheme = Some(match endpoint.scheme {
        Scheme::Http => uri::Scheme::HTTP,
        Scheme::Https => uri::Scheme::HTTPS,
    });
    parts.authority = Some(authority);
    parts.path_and_query = Some(target);
    Uri::from_parts(parts).map_err(|error| lost(error.into()))
}
