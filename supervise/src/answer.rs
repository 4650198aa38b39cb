//! Requests as the agent sees them: not who decided, nor what the host says about its own files.

use proposal::peer::Refusal;
use proposal::wire::View;
use proposal::{Ask, State, Wish};
use serde_json::{Value, json};

const MEANWHILE: &str = "nobody watches at present: the request waits until decide_by; go on with what current_access allows, and look again with get_request";

/// One request.
pub(crate) fn told(view: &View, operator_offline: bool) -> Value {
    let mut value = json!({
        "id": view.id, "state": view.state, "created_at": view.created_at, "proposal": view.proposal, "next": next(view),
    });
    if let Some(hold) = view.proposal.held() {
        value["held_until"] = json!(hold.until);
    }
    if view.state == State::Pending {
        value["decide_by"] = json!(view.decide_by());
        value["operator_offline"] = json!(operator_offline);
        if operator_offline {
            value["meanwhile"] = json!(MEANWHILE);
        }
    }
    if let Some(block_id) = &view.block_id {
        value["block_id"] = json!(block_id);
    }
    if let Some(decision) = &view.decision {
        value["decision"] = json!(if decision.ttl_seconds.is_some() { "approved" } else { "rejected" });
        value["decided_at"] = json!(decision.at);
        if let Some(reason) = &decision.reason {
            value["reason"] = json!(reason);
        }
        if let Some(scope) = &decision.scope {
            value["granted"] = json!(scope);
        }
        if let Some(uses) = decision.max_uses {
            value["max_uses"] = json!(uses);
        }
    }
    if let (State::Active, Ask::Capability(capability)) = (view.state, &view.proposal)
        && let Some((url, upstream)) = capability.at_the_gate()
    {
        value["use"] = json!(format!("git clone {url}"));
        value["use_address"] = json!(format!("git config --global url.{url}.insteadOf {upstream}"));
    }
    if let Some(applied) = &view.applied {
        value["generation"] = json!(applied.generation);
        value["expires_at"] = json!(applied.expires_at);
    }
    if let Some(revoked) = &view.revoked {
        value["reason"] = json!(revoked.reason);
    }
    value
}

/// Whether there is news to wait for. What a person does by hand has none.
pub(crate) fn can_wait(view: &View) -> bool {
    view.state.is_undecided() && (view.state != State::Approved || view.is_applied())
}

fn next(view: &View) -> &'static str {
    match view.state {
        State::Pending => "call wait_decision; nothing is allowed yet",
        State::Approved if !view.is_applied() => {
            "the operator agreed and makes the change by hand; try it, and work on with something else if it is not there yet"
        }
        State::Approved | State::Applying => "call wait_decision; it is approved but not in force yet",
        State::Active => in_force(&view.proposal),
        State::Rejected => "do not ask for the same again; the reason says why",
        State::Expired => "nobody decided in time; ask again if it is still needed",
        State::Withdrawn => "ask again if it is needed after all",
        State::Superseded => "look at the request that took its place",
        State::ApplyFailed => "it is approved but could not be put in force; the operator knows",
        State::Exhausted => "it was used as often as it may be; ask again if it is still needed",
        State::Revoked => "the operator took it back; the reason says why, do not ask for the same again",
        State::Ended => "its time is over; ask again if it is still needed",
    }
}

fn in_force(ask: &Ask) -> &'static str {
    match ask {
        Ask::Route(_) => "retry the request that was refused",
        Ask::Held(_) => "what was held goes on, once; if you gave up waiting, send exactly the same again",
        Ask::Capability(capability) => match capability.wish() {
            Wish::GitRepo { .. } => {
                "run the command in `use`; git asks the gate for the upstream's own address too, once `use_address` has run"
            }
            Wish::GitRef { .. } => "push again",
            Wish::EgressLimit { .. } => "retry; the limit is higher now",
            Wish::DlpException { .. } => {
                "send again what was refused; more than 1 MiB is still searched as it leaves, without exceptions"
            }
            Wish::Other { .. } => "try again",
        },
    }
}

/// What a refusal was, what it means, and the call that would ask for it, if any would.
pub(crate) fn explained(refusal: &Refusal) -> Value {
    let mut value = json!({
        "block_id": refusal.block_id, "code": refusal.code, "at": refusal.at, "scheme": refusal.scheme, "host": refusal.host,
        "port": refusal.port, "method": refusal.method, "path": refusal.path, "explanation": meaning(&refusal.code),
    });
    if is_proposable(&refusal.code) {
        value["propose"] = json!({
            "tool": "propose_route",
            "arguments": {"block_id": refusal.block_id, "reason": "why you need it"},
        });
    }
    value
}

/// Whether a route could let pass what was refused with that code.
pub(crate) fn is_proposable(code: &str) -> bool {
    matches!(
        code,
        "host-not-allowed"
            | "path-not-allowed"
            | "method-not-allowed"
            | "request-not-allowed"
            | "grant-expired"
            | "grant-used-up"
    )
}

fn meaning(code: &str) -> &'static str {
    match code {
        "host-not-allowed" => "no route is for this host, scheme and port",
        "path-not-allowed" => "the host is allowed, this path is not",
        "method-not-allowed" => "the path is allowed, this method is not",
        "request-not-allowed" => "path and method are allowed, these headers or this query are not",
        "denied-by-rule" => "the operator's rule refuses it; no grant changes that",
        "grant-expired" | "grant-used-up" => "what allowed it has ended",
        "ambiguous-path" => {
            "the path can be read in two ways; write it without `..`, `//` and `\\`, and with `%2F` only where the operator's route says `allow_encoded_slashes: true`"
        }
        "malformed-host" => "the host can be read in two ways, or is none",
        "address-not-allowed" => "the name leads to a private or special address; no grant changes that",
        "git-push-refused" | "git-fetch-refused" => "git goes through the git gate, not through HTTPS",
        "authority-mismatch" | "sni-mismatch" => "CONNECT, TLS and HTTP name different hosts",
        "credential-unavailable" => "the operator has to provide the secret of this route",
        _ => "refused; the documentation of the refusal codes says more",
    }
}
