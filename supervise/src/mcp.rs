//! The agent's side: an MCP server whose tools file proposals and tell what became of them. Nothing here decides.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use proposal::peer::{Located, Target};
use proposal::policy::{CanonicalPath, Decision, Host, RequestHead, Scheme};
use proposal::wire::View;
use proposal::{Ask, Change, Id, KEY_MAX_CHARS, Proposal, State};
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, Implementation, JsonObject, ListToolsResult,
    PaginatedRequestParams, ProgressNotificationParam, ServerCapabilities, ServerConfig,
};
use rmcp::service::{RequestContext, ServiceError};
use rmcp::{ErrorData, RoleServer, ServerHandler};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};
use tracing::{error, warn};

use crate::access::Sources;
use crate::answer::{can_wait, explained, is_proposable, told};
use crate::desk::{Desk, Refusal, Wanted};
use crate::peer::Peer;
use crate::tools::{self, Call};

/// How many calls may be open at once.
const CALLS_MAX: usize = 8;
/// How many calls may wait at once.
const WAITERS_MAX: usize = 4;
/// How many requests `list_requests` returns.
const LIST_MAX: usize = 50;

/// When to look again whether the operator takes requests.
const PAUSED_RETRY: Duration = Duration::from_secs(60);

const BLOCK_ID: &str = "the block_id of a refusal";

const INSTRUCTIONS: &str = "You are in a sealed bottle. Requests to hosts that are not allowed are refused with a JSON body that says why. \
To reach such a host, call propose_route (the block_id of the refusal is enough) and then wait_decision. The operator decides; do not look \
for a way around a refusal.";

/// How `wait_decision` waits.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// How long one call waits.
    pub poll: Duration,
    /// How often it says that it still waits, to clients that gave a progress token.
    pub progress: Duration,
}

/// Some clients give up on a call after 60 s, and on a silent one sooner.
impl Default for Patience {
    fn default() -> Patience {
        Patience { poll: Duration::from_secs(45), progress: Duration::from_secs(5) }
    }
}

/// The MCP server, cheap to clone: one serves each request.
#[derive(Clone)]
pub struct Server {
    desk: Arc<Desk>,
    sources: Arc<Sources>,
    patience: Patience,
    calls: Arc<Semaphore>,
    waiters: Arc<Semaphore>,
    egress: Option<Peer>,
    gate: Option<Peer>,
}

/// What the agent is told instead of a result: a stable word, a sentence, and when to come back.
struct Told {
    code: &'static str,
    message: String,
    retry_after: Option<Duration>,
}

impl Told {
    fn new(code: &'static str, message: impl Into<String>) -> Told {
        Told { code, message: message.into(), retry_after: None }
    }
}

impl Server {
    /// A server on that desk.
    #[must_use]
    pub fn new(desk: Arc<Desk>, sources: Sources, patience: Patience) -> Server {
        Server {
            desk,
            sources: Arc::new(sources),
            patience,
            calls: Arc::new(Semaphore::new(CALLS_MAX)),
            waiters: Arc::new(Semaphore::new(WAITERS_MAX)),
            egress: None,
            gate: None,
        }
    }

    /// With a way to ask the others about what they refused.
    #[must_use]
    pub fn with_peers(self, peers: &[Peer]) -> Server {
        let named = |name: &str| peers.iter().find(|peer| peer.name() == name).cloned();
        Server { egress: named("egress"), gate: named("git-gate"), ..self }
    }

    async fn call(
        &self,
        call: Call,
        arguments: JsonObject,
        context: &RequestContext<RoleServer>,
    ) -> Result<Value, Told> {
        match call {
            Call::ProposeRoute => self.propose_route(arguments).await,
            Call::ProposeCapability => self.propose_capability(arguments).await,
            Call::WaitDecision => self.wait(id(&arguments)?, context).await,
            Call::GetRequest => self.view(&id(&arguments)?).map(|view| self.told(&view)),
            Call::ListRequests => {
                no_arguments(&arguments)?;
                let views = self.desk.views(None, self.desk.now());
                let requests: Vec<Value> =
                    views.iter().rev().take(LIST_MAX).map(|view| self.told(view)).collect();
                Ok(json!({"requests": requests}))
            }
            Call::WithdrawRequest => {
                let id = id(&arguments)?;
                self.write(move |desk| desk.file(id, Change::Withdrawn, desk.now())).await
            }
            Call::CurrentAccess => {
                no_arguments(&arguments)?;
                self.access().await
            }
            Call::ExplainBlock => {
                self.explain(&block_id(&arguments)?).await.map(|refusal| explained(&refusal))
            }
            Call::DryRun => self.dry_run(&arguments).await,
        }
    }

    async fn propose_route(&self, mut arguments: JsonObject) -> Result<Value, Told> {
        let key = take_key(&mut arguments)?;
        let supersedes = take_id(&mut arguments, "supersedes")?;
        let block_id = take_text(&mut arguments, "block_id", BLOCK_ID)?;
        if let Some(block_id) = &block_id {
            self.fill(&mut arguments, block_id).await?;
        }
        let proposal = Proposal::parse(&Value::Object(arguments)).map_err(invalid)?;
        let wanted = Wanted { ask: Ask::Route(proposal), key, block_id, supersedes };
        self.write(move |desk| desk.propose(wanted, desk.now())).await
    }

    async fn propose_capability(&self, mut arguments: JsonObject) -> Result<Value, Told> {
        let key = take_key(&mut arguments)?;
        let supersedes = take_id(&mut arguments, "supersedes")?;
        if arguments.get("capability").is_some_and(|kind| kind == "dlp_exception") {
            self.locate(&mut arguments).await?;
        }
        let ask = proposal::Capability::parse(&Value::Object(arguments)).map_err(invalid)?;
        let wanted = Wanted { ask: Ask::Capability(ask), key, block_id: None, supersedes };
        self.write(move |desk| desk.propose(wanted, desk.now())).await
    }

    /// Adds what egress recorded of a refusal. What the agent says besides may ask for other methods or paths, not for another place.
    async fn fill(&self, arguments: &mut JsonObject, block_id: &str) -> Result<(), Told> {
        let refusal = self.explain(block_id).await?;
        if !is_proposable(&refusal.code) {
            let message = format!("the refusal {block_id} is a {}, which no route changes", refusal.code);
            return Err(Told::new("not-proposable", message));
        }
        let place = [
            ("host", json!(refusal.host)),
            ("scheme", json!(refusal.scheme)),
            ("ports", json!([refusal.port])),
        ];
        for (key, recorded) in place {
            if arguments.get(key).is_some_and(|given| !given.is_null() && *given != recorded) {
                let message =
                    format!("`{key}` is not that of the refusal {block_id}, {recorded}; leave it out");
                return Err(Told::new("invalid-proposal", message));
            }
            arguments.insert(key.to_owned(), recorded);
        }
        // A tunnel that was refused says nothing of the requests that would have been in it.
        if refusal.method != "CONNECT" {
            arguments.entry("methods").or_insert_with(|| json!([refusal.method]));
            arguments.entry("paths").or_insert_with(|| json!([{"type": "exact", "value": refusal.path}]));
        }
        Ok(())
    }

    /// Adds what the daemon that found it recorded. The agent names it by its fingerprint, and says nothing of the place.
    async fn locate(&self, arguments: &mut JsonObject) -> Result<(), Told> {
        const FINGERPRINT: &str = "the fingerprint of a finding, from the refusal";
        if let Some(key) =
            ["host", "repo", "rule", "place"].into_iter().find(|key| arguments.contains_key(*key))
        {
            let message = format!("leave `{key}` out: it comes from the record of the refusal");
            return Err(Told::new("invalid-arguments", message));
        }
        let fingerprint = take_text(arguments, "fingerprint", FINGERPRINT)?
            .ok_or_else(|| Told::new("invalid-arguments", format!("`fingerprint` must be {FINGERPRINT}")))?;
        let located = self.finding(&fingerprint).await?;
        match located.target {
            Target::Host(host) => arguments.insert("host".to_owned(), json!(host)),
            Target::Repo(repo) => arguments.insert("repo".to_owned(), json!(repo)),
        };
        arguments.insert("place".to_owned(), json!(located.found.place()));
        arguments.insert("rule".to_owned(), json!(located.found.rule));
        arguments.insert("fingerprint".to_owned(), json!(located.fingerprint));
        Ok(())
    }

    async fn finding(&self, fingerprint: &str) -> Result<Located, Told> {
        let mut silent = false;
        for (peer, is_own) in
            [(&self.egress, true), (&self.gate, false)].map(|(peer, is_egress)| (peer.as_ref(), is_egress))
        {
            let Some(peer) = peer else { continue };
            match peer.finding(fingerprint).await {
                // Each speaks for what is its own.
                Ok(Some(located)) if matches!(located.target, Target::Host(_)) == is_own => {
                    return Ok(located);
                }
                Ok(_) => {}
                Err(silence) => {
                    warn!(error = %silence, "a finding cannot be looked up");
                    silent = true;
                }
            }
        }
        if silent {
            let message = "the daemons do not answer at present".to_owned();
            return Err(Told {
                code: "refusals-unavailable",
                message,
                retry_after: Some(self.patience.progress),
            });
        }
        let message = format!(
            "nothing was refused for the finding {fingerprint}, or it was long ago; try again what was refused, then ask"
        );
        Err(Told::new("unknown-finding", message))
    }

    async fn explain(&self, block_id: &str) -> Result<proposal::peer::Refusal, Told> {
        let silent = |message: String| Told {
            code: "refusals-unavailable",
            message,
            retry_after: Some(self.patience.progress),
        };
        let Some(egress) = &self.egress else {
            return Err(silent(
                "egress cannot be asked here; name host, methods and paths yourself".to_owned(),
            ));
        };
        match egress.refusal(block_id).await {
            Ok(Some(refusal)) => Ok(refusal),
            Ok(None) => Err(Told::new(
                "unknown-block",
                format!("no refusal has the id {block_id}, or it was long ago"),
            )),
            Err(silence) => {
                warn!(error = %silence, "a refusal cannot be looked up");
                Err(silent("egress does not answer at present".to_owned()))
            }
        }
    }

    /// What the routes as they are written say about a request.
    async fn dry_run(&self, arguments: &JsonObject) -> Result<Value, Told> {
        let wrong = || {
            Told::new("invalid-arguments", "the arguments are {\"url\": an http or https URL, \"method\"?}")
        };
        if arguments.keys().any(|key| key != "url" && key != "method") {
            return Err(wrong());
        }
        let url = arguments.get("url").and_then(Value::as_str).ok_or_else(wrong)?;
        let method = match arguments.get("method") {
            None | Some(Value::Null) => "GET".to_owned(),
            Some(method) => method.as_str().ok_or_else(wrong)?.to_ascii_uppercase(),
        };
        let method = axum::http::Method::from_bytes(method.as_bytes()).map_err(|_| wrong())?;
        let url: axum::http::Uri = url.parse().map_err(|_| wrong())?;
        let scheme = match url.scheme_str() {
            Some("https") => Scheme::Https,
            Some("http") => Scheme::Http,
            Some(_) | None => return Err(wrong()),
        };
        let sources = Arc::clone(&self.sources);
        let now = self.desk.now();
        let Ok(Ok((_, policy))) = tokio::task::spawn_blocking(move || sources.policy()).await else {
            return Err(unreadable());
        };
        let refused = |code: &str, hint: String| json!({"decision": "deny", "code": code, "hint": hint});
        let host = match Host::parse(url.host().unwrap_or_default()) {
            Ok(host) => host,
            Err(error) => return Ok(refused("malformed-host", error.to_string())),
        };
        let path = match CanonicalPath::of_request(url.path()) {
            Ok(path) => path,
            Err(error) => return Ok(refused("ambiguous-path", error.to_string())),
        };
        let port = url.port_u16().unwrap_or(scheme.default_port());
        let head = RequestHead {
            scheme,
            host: &host,
            port,
            method: &method,
            path: &path,
            query: url.query(),
            headers: &axum::http::HeaderMap::new(),
        };
        Ok(match policy.decide(&head, now) {
            Decision::Allow(route) => json!({
                "decision": "allow", "route": proposal::policy::describe(route),
                "expires_at": route.expires_at(), "note": "limits, addresses and what is in the body are judged when it is sent",
            }),
            Decision::Deny(denial) => {
                let mut value = refused(denial.code.as_str(), denial.hint);
                if is_proposable(denial.code.as_str()) {
                    value["propose"] = json!({
                        "tool": "propose_route",
                        "arguments": {
                            "host": host.as_str(), "scheme": scheme.as_str(), "ports": [port], "methods": [method.as_str()],
                            "paths": [{"type": "exact", "value": path.as_str()}], "reason": "why you need it",
                        },
                    });
                }
                value
            }
        })
    }

    fn told(&self, view: &View) -> Value {
        told(view, !self.desk.is_operator_there())
    }

    /// Runs to its end even when the call is cancelled: what was begun to be recorded is recorded.
    async fn write(
        &self,
        write: impl FnOnce(&Desk) -> Result<View, Refusal> + Send + 'static,
    ) -> Result<Value, Told> {
        let desk = Arc::clone(&self.desk);
        let written = tokio::task::spawn_blocking(move || write(&desk)).await;
        match written {
            Ok(Ok(view)) => Ok(self.told(&view)),
            Ok(Err(refusal)) => Err(refuse(&refusal)),
            Err(_) => Err(Told::new("internal", "the request could not be handled")),
        }
    }

    async fn wait(&self, id: Id, context: &RequestContext<RoleServer>) -> Result<Value, Told> {
        let _place = self.waiters.try_acquire().map_err(|_| Told {
            code: "too-many-waiters",
            message: format!(
                "{WAITERS_MAX} calls wait for decisions already; end one of them, or use get_request"
            ),
            retry_after: Some(self.patience.progress),
        })?;
        let mut changes = self.desk.subscribe();
        let Patience { poll, progress } = self.patience;
        let start = Instant::now();
        let mut progress = interval_at(start + progress, progress);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let view = self.view(&id)?;
            let wake = wake_at(&view, start + poll);
            if !can_wait(&view) || start.elapsed() >= poll {
                return Ok(self.told(&view));
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = sleep_until(wake) => {}
                _ = progress.tick() => if notify(context, start.elapsed(), poll, view.state).await.is_err() {
                    return Ok(self.told(&view));
                },
                () = context.ct.cancelled() => return Ok(self.told(&view)),
            }
        }
    }

    fn view(&self, id: &Id) -> Result<View, Told> {
        self.desk
            .view(id, self.desk.now())
            .ok_or_else(|| Told::new("unknown-id", format!("no request has the id {id}")))
    }

    async fn access(&self) -> Result<Value, Told> {
        let sources = Arc::clone(&self.sources);
        let now = self.desk.now();
        match tokio::task::spawn_blocking(move || sources.access(now)).await {
            Ok(Ok(access)) => serde_json::to_value(access).map_err(|_| unreadable()),
            Ok(Err(error)) => {
                warn!(error = %chain(&error), "current access cannot be told");
                Err(unreadable())
            }
            Err(_) => Err(unreadable()),
        }
    }
}

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new("bottlecap-supervise", env!("CARGO_PKG_VERSION")))
            .with_instructions(INSTRUCTIONS)
    }

    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(tools::all()))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let call = Call::by_name(&request.name)
            .ok_or_else(|| ErrorData::invalid_params("no tool has that name; tools/list has them", None))?;
        let arguments = request.arguments.unwrap_or_default();
        let answer = match self.calls.try_acquire() {
            Ok(_place) => self.call(call, arguments, &context).await,
            Err(_) => Err(Told {
                code: "too-many-calls",
                message: format!("{CALLS_MAX} calls are open already; end one of them"),
                retry_after: Some(Duration::from_secs(1)),
            }),
        };
        let result = match answer {
            Ok(value) => CallToolResult::structured(value),
            Err(Told { code, message, retry_after }) => {
                warn!(tool = %request.name, code, "call refused");
                let mut error = json!({"code": code, "message": message});
                if let Some(retry_after) = retry_after {
                    error["retry_after_seconds"] = json!(retry_after.as_secs().max(1));
                }
                CallToolResult::structured_error(json!({"error": error}))
            }
        };
        Ok(result.into())
    }
}

/// When there could be news without an event: the end of the call, or of the time to decide.
fn wake_at(view: &View, end: Instant) -> Instant {
    if view.state != State::Pending {
        return end;
    }
    let left = view.decide_by().duration_since(Timestamp::now());
    Duration::try_from(left).map_or(end, |left| end.min(Instant::now() + left))
}

/// Tells the waiting client that the call is alive; an error when there is no client any more.
async fn notify(
    context: &RequestContext<RoleServer>,
    elapsed: Duration,
    total: Duration,
    state: State,
) -> Result<(), ServiceError> {
    let Some(token) = context.meta.get_progress_token() else { return Ok(()) };
    let progress = ProgressNotificationParam::new(token, elapsed.as_secs_f64())
        .with_total(total.as_secs_f64())
        .with_message(format!("still {}", state.as_str()));
    context.peer.notify_progress(progress).await
}

fn refuse(refusal: &Refusal) -> Told {
    let mut told = Told::new(refusal.code(), refusal.to_string());
    match refusal {
        Refusal::TooFast { retry_after } | Refusal::CoolDown { retry_after, .. } => {
            told.retry_after = Some(*retry_after);
        }
        Refusal::Paused => told.retry_after = Some(PAUSED_RETRY),
        Refusal::Journal(cause) => error!(error = %chain(cause), "the journal cannot be written"),
        Refusal::QueueFull | Refusal::Illegal(_) | Refusal::Random => {}
    }
    told
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn id(arguments: &JsonObject) -> Result<Id, Told> {
    let invalid =
        || Told::new("invalid-arguments", "the arguments are {\"id\": the id that propose_route gave}");
    match (arguments.len(), arguments.get("id").and_then(Value::as_str)) {
        (1, Some(id)) => Id::parse(id).map_err(|_| invalid()),
        (_, Some(_) | None) => Err(invalid()),
    }
}

fn no_arguments(arguments: &JsonObject) -> Result<(), Told> {
    if arguments.is_empty() {
        Ok(())
    } else {
        Err(Told::new("invalid-arguments", "this tool takes no arguments"))
    }
}

fn invalid(invalid: proposal::Invalid) -> Told {
    Told::new(invalid.code(), invalid.to_string())
}

fn unreadable() -> Told {
    Told::new("routes-unavailable", "the routes cannot be read at present; the operator can see why")
}

fn block_id(arguments: &JsonObject) -> Result<String, Told> {
    let mut arguments = arguments.clone();
    match (take_text(&mut arguments, "block_id", BLOCK_ID)?, arguments.is_empty()) {
        (Some(block_id), true) => Ok(block_id),
        (_, _) => {
            Err(Told::new("invalid-arguments", format!("the arguments are {{\"block_id\": {BLOCK_ID}}}")))
        }
    }
}

fn take_key(arguments: &mut JsonObject) -> Result<Option<String>, Told> {
    take_text(arguments, "idempotency_key", "a text of 1 to 64 letters, digits and `-_.`")
}

fn take_id(arguments: &mut JsonObject, key: &str) -> Result<Option<Id>, Told> {
    let text = take_text(arguments, key, "the id of a pending request")?;
    text.map(|text| Id::parse(&text))
        .transpose()
        .map_err(|error| Told::new("invalid-arguments", error.to_string()))
}

/// Takes out a short word that is no part of the proposal itself.
fn take_text(arguments: &mut JsonObject, key: &str, expected: &str) -> Result<Option<String>, Told> {
    let plain = |text: &String| {
        (1..=KEY_MAX_CHARS).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    match arguments.remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if plain(&text) => Ok(Some(text)),
        Some(_) => Err(Told::new("invalid-arguments", format!("`{key}` must be {expected}"))),
    }
}
