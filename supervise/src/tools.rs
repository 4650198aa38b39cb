//! The tools, as an agent sees them.

use std::sync::Arc;

use proposal::{TTL_DEFAULT, TTL_MAX, TTL_MIN, USES_MAX};
use rmcp::model::{Tool, ToolAnnotations};
use serde_json::{Value, json};

/// What can be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    ProposeRoute,
    ProposeCapability,
    WaitDecision,
    GetRequest,
    ListRequests,
    WithdrawRequest,
    ExplainBlock,
    CurrentAccess,
    DryRun,
}

impl Call {
    /// By name or alias; some clients write `_` for `-`.
    pub(crate) fn by_name(name: &str) -> Option<Call> {
        match name.replace('-', "_").as_str() {
            "propose_route" | "egress_block" | "pipelock_block" | "allow" => Some(Call::ProposeRoute),
            "propose_capability" | "capability_block" => Some(Call::ProposeCapability),
            "explain_block" => Some(Call::ExplainBlock),
            "dry_run" => Some(Call::DryRun),
            "wait_decision" => Some(Call::WaitDecision),
            "get_request" => Some(Call::GetRequest),
            "list_requests" => Some(Call::ListRequests),
            "withdraw_request" => Some(Call::WithdrawRequest),
            "current_access" | "list_egress_routes" => Some(Call::CurrentAccess),
            _ => None,
        }
    }
}

/// Old names, and what they are called now. They are listed as well: some clients call only what is listed.
const ALIASES: [(&str, &str); 5] = [
    ("egress-block", "propose_route"),
    ("pipelock-block", "propose_route"),
    ("allow", "propose_route"),
    ("capability-block", "propose_capability"),
    ("list-egress-routes", "current_access"),
];

/// The list: first the names proper, then the old ones.
pub(crate) fn all() -> Vec<Tool> {
    let mut tools = proper();
    for (alias, name) in ALIASES {
        if let Some(tool) = tools.iter().find(|tool| tool.name == name) {
            let mut tool = tool.clone();
            tool.name = alias.into();
            tool.description = Some(format!("Another name of {name}.").into());
            tools.push(tool);
        }
    }
    tools
}

fn proper() -> Vec<Tool> {
    let writing =
        || ToolAnnotations::new().read_only(false).destructive(false).idempotent(true).open_world(false);
    vec![
        tool(
            "propose_route",
            "Ask the operator to let this bottle reach a host that is refused. Ask for the least that does the job: one host, the \
             methods and paths you need. With the block_id of a refusal, host, method and path are filled in from it. Answers at once \
             with the id of the request; nothing is allowed by it. Then call wait_decision with that id. Asking for the same again \
             gives the same id.",
            propose_schema(),
            writing(),
        ),
        tool(
            "propose_capability",
            "Ask the operator for something that is no route: a repository behind the git gate (git_repo: upstream, access), a \
             reference of one (git_ref: repo, ref, access), that one finding of the scanner may pass because it is no secret \
             (dlp_exception: the fingerprint that the refusal names, max_uses), a higher limit (egress_limit: host, limit, value), or \
             anything else in your words (other: what). Refs to fetch and what is in your words a person does by hand; the rest is put \
             in force when the operator agrees, and ends by itself.",
            capability_schema(),
            writing(),
        ),
        tool(
            "wait_decision",
            "Wait up to 45 seconds for the operator's decision on a request. Returns its state: pending, approved or applying (call \
             again), active (retry what was refused; expires_at says for how long), rejected or revoked (reason says why; do not ask \
             for the same again), expired, withdrawn, superseded, apply_failed, exhausted, ended. operator_offline says that nobody \
             watches. Cancelling the call does not cancel the request.",
            id_schema(),
            reading(),
        ),
        tool("get_request", "Return one request and its state, at once.", id_schema(), reading()),
        tool(
            "list_requests",
            "Return the requests of this bottle and their states, newest first.",
            empty(),
            reading(),
        ),
        tool(
            "withdraw_request",
            "Take back a pending request that is no longer needed.",
            id_schema(),
            writing(),
        ),
        tool(
            "explain_block",
            "Say what was refused under a block_id, why, and how to ask for it.",
            json!({
                "type": "object",
                "properties": {"block_id": {"type": "string", "description": "From the JSON body of the refusal.", "maxLength": 64}},
                "required": ["block_id"],
                "additionalProperties": false,
            }),
            reading(),
        ),
        tool(
            "current_access",
            "Return what this bottle may reach at present; everything else is refused.",
            empty(),
            reading(),
        ),
        tool(
            "dry_run",
            "Say whether a request would pass, without sending it, and what to ask for if not.",
            json!({
                "type": "object",
                "properties": {
                    "url": {"type": "string", "description": "Such as https://api.example.com/v1/items.", "maxLength": 2048},
                    "method": {"type": "string", "default": "GET", "maxLength": 16},
                },
                "required": ["url"],
                "additionalProperties": false,
            }),
            reading(),
        ),
    ]
}

fn empty() -> Value {
    json!({"type": "object", "properties": {}, "additionalProperties": false})
}

fn tool(name: &'static str, description: &'static str, schema: Value, annotations: ToolAnnotations) -> Tool {
    let schema = match schema {
        Value::Object(object) => object,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            serde_json::Map::new()
        }
    };
    Tool::new(name, description, Arc::new(schema)).with_annotations(annotations)
}

fn reading() -> ToolAnnotations {
    ToolAnnotations::new().read_only(true).open_world(false)
}

fn id_schema() -> Value {
    json!({
        "type": "object",
        "properties": {"id": {"type": "string", "description": "The id that propose_route gave.", "maxLength": 64}},
        "required": ["id"],
        "additionalProperties": false,
    })
}

fn propose_schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "host": {
                "type": "string",
                "description": "One host name, such as api.example.com. No wildcard, no URL.",
                "maxLength": 253,
            },
            "scheme": {"type": "string", "enum": ["https", "http"], "default": "https"},
            "ports": {
                "type": "array",
                "items": {"type": "integer", "minimum": 1, "maximum": 65535},
                "minItems": 1, "maxItems": 8,
                "description": "Default: 443, or 80 with http.",
            },
            "methods": {
                "type": "array",
                "items": {"type": "string", "enum": ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]},
                "minItems": 1, "maxItems": 7,
                "description": "Default: GET.",
            },
            "paths": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "type": {"type": "string", "enum": ["exact", "prefix"]},
                        "value": {"type": "string", "description": "Starts with /. A prefix is of whole path elements.", "maxLength": 512},
                    },
                    "required": ["type", "value"],
                    "additionalProperties": false,
                },
                "minItems": 1, "maxItems": 16,
                "description": "Default: every path.",
            },
            "ttl_seconds": {
                "type": "integer", "minimum": TTL_MIN, "maximum": TTL_MAX, "default": TTL_DEFAULT,
                "description": "For how long, from the approval on.",
            },
            "max_uses": {
                "type": "integer", "minimum": 1, "maximum": USES_MAX,
                "description": "For how many requests. Default: as many as come in that time.",
            },
            "block_id": {"type": "string", "description": "Of the refusal to ask about, in place of host, ports and scheme.", "maxLength": 64},
            "idempotency_key": key_schema(),
            "supersedes": {"type": "string", "description": "The id of a pending request whose place this one takes.", "maxLength": 64},
            "reason": reason_schema(),
        },
        "required": ["reason"],
        "additionalProperties": false,
    })
}

fn capability_schema() -> Value {
    let text = |most: u32| json!({"type": "string", "maxLength": most});
    json!({
        "type": "object",
        "properties": {
            "capability": {"type": "string", "enum": ["git_repo", "git_ref", "dlp_exception", "egress_limit", "other"]},
            "upstream": {"type": "string", "maxLength": 300, "description": "ssh://git@HOST/PATH or https://HOST/PATH."},
            "repo": text(64),
            "ref": {"type": "string", "maxLength": 255, "description": "Such as refs/heads/agent/work."},
            "access": {"type": "string", "enum": ["fetch", "push"], "default": "fetch"},
            "host": text(253),
            "fingerprint": {"type": "string", "maxLength": 64, "description": "Of a finding, from the refusal: 32 hexadecimal digits."},
            "max_uses": {"type": "integer", "minimum": 1, "maximum": USES_MAX, "description": "Of a finding: in how many requests or pushes. Default: 1."},
            "limit": {"type": "string", "enum": ["requests_per_minute", "request_body", "connections", "concurrency"]},
            "value": {"type": "integer", "minimum": 1},
            "what": text(500),
            "ttl_seconds": {"type": "integer", "minimum": TTL_MIN, "maximum": TTL_MAX, "default": TTL_DEFAULT},
            "idempotency_key": key_schema(),
            "supersedes": text(64),
            "reason": reason_schema(),
        },
        "required": ["capability", "reason"],
        "additionalProperties": false,
    })
}

fn key_schema() -> Value {
    json!({"type": "string", "description": "Your own name for this call: repeating it gives the same request.", "maxLength": 64})
}

fn reason_schema() -> Value {
    json!({"type": "string", "maxLength": 500, "description": "Why you need it, in a sentence, for the operator."})
}
