//! The tools, as an agent sees them.

use std::sync::Arc;

use proposal::{TTL_DEFAULT, TTL_MAX};
use rmcp::model::{Tool, ToolAnnotations};
use serde_json::{Value, json};

/// What can be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    ProposeRoute,
    WaitDecision,
    GetRequest,
    ListRequests,
    WithdrawRequest,
    CurrentAccess,
}

impl Call {
    /// By name or alias; some clients write `_` for `-`.
    pub(crate) fn by_name(name: &str) -> Option<Call> {
        match name.replace('-', "_").as_str() {
            "propose_route" | "egress_block" | "pipelock_block" | "allow" => Some(Call::ProposeRoute),
            "wait_decision" => Some(Call::WaitDecision),
            "get_request" => Some(Call::GetRequest),
            "list_requests" => Some(Call::ListRequests),
            "withdraw_request" => Some(Call::WithdrawRequest),
            "current_access" | "list_egress_routes" => Some(Call::CurrentAccess),
            _ => None,
        }
    }
}

/// The list, under the names proper.
pub(crate) fn all() -> Vec<Tool> {
    vec![
        tool(
            "propose_route",
            "Ask the operator to let this bottle reach a host that is refused. Ask for the least that does the job: one host, the \
             methods and paths you need. Answers at once with the id of the request; nothing is allowed by it. Then call \
             wait_decision with that id. Asking for the same again gives the same id. \
             (Also callable as egress-block, pipelock-block, allow.)",
            propose_schema(),
            ToolAnnotations::new().read_only(false).destructive(false).idempotent(true).open_world(false),
        ),
        tool(
            "wait_decision",
            "Wait up to 45 seconds for the operator's decision on a request. Returns its state: pending or approved (call again), \
             active (retry what was refused; expires_at says for how long), rejected (reason says why; do not ask for the same \
             again), expired, withdrawn, apply_failed, ended. Cancelling the call does not cancel the request.",
            id_schema(),
            reading(),
        ),
        tool("get_request", "Return one request and its state, at once.", id_schema(), reading()),
        tool(
            "list_requests",
            "Return the requests of this bottle and their states, newest first.",
            json!({"type": "object", "properties": {}, "additionalProperties": false}),
            reading(),
        ),
        tool(
            "withdraw_request",
            "Take back a pending request that is no longer needed.",
            id_schema(),
            ToolAnnotations::new().read_only(false).destructive(false).idempotent(true).open_world(false),
        ),
        tool(
            "current_access",
            "Return what this bottle may reach at present; everything else is refused. (Also callable as list-egress-routes.)",
            json!({"type": "object", "properties": {}, "additionalProperties": false}),
            reading(),
        ),
    ]
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
                "type": "integer", "minimum": 60, "maximum": TTL_MAX, "default": TTL_DEFAULT,
                "description": "For how long, from the approval on.",
            },
            "reason": {
                "type": "string", "maxLength": 500,
                "description": "Why you need it, in a sentence, for the operator.",
            },
        },
        "required": ["host", "reason"],
        "additionalProperties": false,
    })
}
