//! What passes on a connection that was upgraded.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tracing::{debug, warn};

use crate::body::Limits;
use crate::frames::{self, Agent, CloseCode, Looks};
use crate::inspect::Objection;
use crate::journal::Entry;
use crate::splice::{Ended, Spliced, splice};
use crate::upgraded::AgentSide;

/// The only protocol that a connection may be upgraded to.
pub(super) const WEBSOCKET: &str = "websocket";

/// Passes on what both sides send after they have agreed, and records it.
pub(super) async fn run(
    agent_side: AgentSide,
    upstream_side: OnUpgrade,
    spliced: Spliced,
    limits: Limits,
    looks: Looks,
    mut entry: Box<Entry>,
) {
    let (agent, upstream) = match tokio::join!(agent_side.opened(), upstream_side) {
        (Some(agent), Ok(upstream)) => (agent, upstream),
        (None, _) => return,
        (_, Err(error)) => {
            debug!(%error, "an upgrade did not happen");
            return;
        }
    };
    let (mut agent, upstream) = (Agent::new(agent.into_stream()), TokioIo::new(upstream));
    let ended = if looks.are_any() {
        frames::splice(&mut agent, upstream, &spliced, &limits, looks).await
    } else {
        Ok(splice(&mut agent, upstream, &spliced, &limits).await)
    };
    let farewell = match ended {
        Ok(Ended::ByThem) => None,
        Ok(Ended::Silent) => Some((CloseCode::GoingAway, "nothing came for too long".to_owned())),
        Ok(Ended::Revoked(denial)) => Some((CloseCode::Policy, denial.hint)),
        Err(objection) => {
            let refusal = objection.refusal("message");
            warn!(code = %refusal.code, hint = refusal.hint, "a WebSocket was cut");
            entry.cut(&refusal);
            entry.event.late = true;
            let is_too_big = matches!(objection, Objection::TooBig);
            let code = if is_too_big { CloseCode::TooBig } else { CloseCode::Policy };
            Some((code, refusal.hint))
        }
    };
    entry.event.bytes_down = spliced.down.bytes();
    drop(entry);
    if let Some((code, reason)) = farewell {
        agent.close(code, &reason).await;
    }
}
