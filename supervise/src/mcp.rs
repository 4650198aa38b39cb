//! The agent's side: an MCP server whose tools file proposals and tell what became of them. Nothing here decides.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use proposal::wire::View;
use proposal::{Change, Id, Proposal, State};
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
use crate::desk::{Desk, Refusal};
use crate::tools::{self, Call};

/// How many calls may wait at once.
const WAITERS_MAX: usize = 4;
/// How many requests `list_requests` returns.
const LIST_MAX: usize = 50;

const INSTRUCTIONS: &str = "You are in a sealed bottle. Requests to hosts that are not allowed are refused with a JSON body that says why. \
To reach such a host, call propose_route and then wait_decision. The operator decides; do not look for a way around a refusal.";

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
    waiters: Arc<Semaphore>,
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
        Server { desk, sources: Arc::new(sources), patience, waiters: Arc::new(Semaphore::new(WAITERS_MAX)) }
    }

    async fn call(
        &self,
        call: Call,
        arguments: JsonObject,
        context: &RequestContext<RoleServer>,
    ) -> Result<Value, Told> {
        match call {
            Call::ProposeRoute => {
                let proposal = Proposal::parse(&Value::Object(arguments))
                    .map_err(|invalid| Told::new(invalid.code(), invalid.to_string()))?;
                self.write(move |desk| desk.propose(proposal, Timestamp::now())).await
            }
            Call::WaitDecision => self.wait(id(&arguments)?, context).await,
            Call::GetRequest => self.view(&id(&arguments)?).map(|view| told(&view)),
            Call::ListRequests => {
                no_arguments(&arguments)?;
                let views = self.desk.views(None, Timestamp::now());
                let requests: Vec<Value> = views.iter().rev().take(LIST_MAX).map(told).collect();
                Ok(json!({"requests": requests}))
            }
            Call::WithdrawRequest => {
                let id = id(&arguments)?;
                self.write(move |desk| desk.file(id, Change::Withdrawn, Timestamp::now())).await
            }
            Call::CurrentAccess => {
                no_arguments(&arguments)?;
                self.access().await
            }
        }
    }

    /// Runs to its end even when the call is cancelled: what was begun to be recorded is recorded.
    async fn write(
        &self,
        write: impl FnOnce(&Desk) -> Result<View, Refusal> + Send + 'static,
    ) -> Result<Value, Told> {
        let desk = Arc::clone(&self.desk);
        let written = tokio::task::spawn_blocking(move || write(&desk)).await;
        match written {
            Ok(Ok(view)) => Ok(told(&view)),
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
            if !view.state.is_undecided() || start.elapsed() >= poll {
                return Ok(told(&view));
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = sleep_until(wake) => {}
                _ = progress.tick() => if notify(context, start.elapsed(), poll, view.state).await.is_err() {
                    return Ok(told(&view));
                },
                () = context.ct.cancelled() => return Ok(told(&view)),
            }
        }
    }

    fn view(&self, id: &Id) -> Result<View, Told> {
        self.desk
            .view(id, Timestamp::now())
            .ok_or_else(|| Told::new("unknown-id", format!("no request has the id {id}")))
    }

    async fn access(&self) -> Result<Value, Told> {
        let sources = Arc::clone(&self.sources);
        let unreadable = || {
            Told::new("routes-unavailable", "the routes cannot be read at present; the operator can see why")
        };
        match tokio::task::spawn_blocking(move || sources.access(Timestamp::now())).await {
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
        let result = match self.call(call, arguments, &context).await {
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
        Refusal::TooFast { retry_after } => told.retry_after = Some(*retry_after),
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

/// A request as the agent sees it: not who decided, nor what the host says about its own files.
fn told(view: &View) -> Value {
    let mut value = json!({
        "id": view.id, "state": view.state, "created_at": view.created_at, "proposal": view.proposal, "next": next(view.state),
    });
    if view.state == State::Pending {
        value["decide_by"] = json!(view.decide_by());
    }
    if let Some(decision) = &view.decision {
        value["decision"] = json!(if decision.ttl_seconds.is_some() { "approved" } else { "rejected" });
        value["decided_at"] = json!(decision.at);
        if let Some(reason) = &decision.reason {
            value["reason"] = json!(reason);
        }
    }
    if let Some(applied) = &view.applied {
        value["generation"] = json!(applied.generation);
        value["expires_at"] = json!(applied.expires_at);
    }
    value
}

fn next(state: State) -> &'static str {
    match state {
        State::Pending => "call wait_decision; nothing is allowed yet",
        State::Approved => "call wait_decision; it is approved but not in force yet",
        State::Active => "retry the request that was refused",
        State::Rejected => "do not ask for the same again; the reason says why",
        State::Expired => "nobody decided in time; ask again if it is still needed",
        State::Withdrawn => "ask again if it is needed after all",
        State::ApplyFailed => "it is approved but could not be put in force; the operator knows",
        State::Ended => "its time is over; ask again if it is still needed",
    }
}
