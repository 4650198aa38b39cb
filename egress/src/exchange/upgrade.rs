//! Upgrades: which are asked for, and what passes on a connection that was upgraded.

use http::{Method, Version, request};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tracing::{debug, warn};

use crate::body::Limits;
use crate::frames::{self, Agent, CloseCode, Looks};
use crate::inspect::Objection;
use crate::journal::Entry;
use crate::refusal::{Code, Refusal};
use crate::splice::{Ended, Spliced, splice};

/// The only protocol that a connection may be upgraded to.
pub(super) const WEBSOCKET: &str = "websocket";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Upgrade {
    None,
    WebSocket,
}

/// What an upgrade that is `wanted` comes to. `h2c` is refused too: what a client sends once it believes to speak HTTP/2 would
/// not be judged.
pub(super) fn judge(
    wanted: Option<&str>,
    parts: &request::Parts,
    body: &Incoming,
) -> Result<Upgrade, Refusal> {
    match wanted {
        None => Ok(Upgrade::None),
        Some(WEBSOCKET)
            if parts.version == Version::HTTP_11 && parts.method == Method::GET && body.is_end_stream() =>
        {
            Ok(Upgrade::WebSocket)
        }
        Some(_) => Err(Refusal::new(
            Code::UpgradeNotSupported,
            "a connection can be upgraded to websocket only, by GET without a body",
        )),
    }
}

/// Passes on what both sides send after they have agreed, and records it.
pub(super) async fn run(
    agent_side: OnUpgrade,
    upstream_side: OnUpgrade,
    spliced: Spliced,
    limits: Limits,
    looks: Looks,
    mut entry: Box<Entry>,
) {
    let (agent, upstream) = match tokio::join!(agent_side, upstream_side) {
        (Ok(agent), Ok(upstream)) => (agent, upstream),
        (Err(error), _) | (_, Err(error)) => {
            debug!(%error, "an upgrade did not happen");
            return;
        }
    };
    let (mut agent, upstream) = (Agent::new(TokioIo::new(agent)), TokioIo::new(upstream));
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
