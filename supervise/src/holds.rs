//! What another daemon holds for the operator, as requests on the desk; and what became of them, told back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use proposal::peer::{Held, Hold, Verdict, Word};
use proposal::wire::View;
use proposal::{Ask, Change, Id, State};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, warn};

use crate::desk::{Desk, Wanted};
use crate::peer::Peer;

/// How often a daemon is asked what it holds: words may be lost, and whoever waited may be gone.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// What is told of something that could only wait for nobody.
const OFFLINE: &str = "operator_offline: nobody watches, so it is not held; leave it out, or ask with propose_capability (dlp_exception and the fingerprint), which waits for the operator, and send it again then";
/// How many words may wait to be looked at.
pub const WORDS_MAX: usize = 32;

/// Takes in what `peer` says and tells it what is decided, for ever.
pub async fn attend(peer: Peer, desk: Arc<Desk>, mut words: mpsc::Receiver<Word>) {
    let mut news = desk.news();
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Grants that were used up before the host had said that they are in force.
    let mut early = BTreeSet::new();
    loop {
        tokio::select! {
            word = words.recv() => match word {
                Some(word) => hear(&peer, &desk, word, &mut early).await,
                None => std::future::pending().await,
            },
            news = news.recv() => match news {
                Ok(view) => {
                    if early.contains(&view.id) {
                        used_up(&desk, view.id.as_str(), &mut early).await;
                    }
                    tell(&peer, &view).await;
                }
                Err(RecvError::Lagged(_)) => {
                    for id in early.clone() {
                        used_up(&desk, id.as_str(), &mut early).await;
                    }
                    look(&peer, &desk).await;
                }
                Err(RecvError::Closed) => std::future::pending().await,
            },
            _ = looks.tick() => look(&peer, &desk).await,
        }
    }
}

async fn hear(peer: &Peer, desk: &Arc<Desk>, word: Word, early: &mut BTreeSet<Id>) {
    match word {
        Word::Held { hold } => {
            if let Err(error) = hold.check() {
                warn!(%error, daemon = peer.name(), "what it holds cannot be shown to anybody");
                return decide(peer, &hold, Verdict::Reject, "it cannot be shown to the operator").await;
            }
            if !is_of(peer, &hold.what) {
                return;
            }
            if let Some(view) = desk.hold(&hold.id, desk.now()) {
                return tell(peer, &view).await;
            }
            if !desk.is_operator_there() {
                return decide(peer, &hold, Verdict::Reject, OFFLINE).await;
            }
            let wanted = Wanted::from(Ask::Held(Box::new(hold.clone())));
            let at = Arc::clone(desk);
            match tokio::task::spawn_blocking(move || at.propose(wanted, at.now())).await {
                // The same content may have been decided on a moment ago; it waits under another name now.
                Ok(Ok(view)) => tell_of(peer, &view, &hold).await,
                Ok(Err(refusal)) => decide(peer, &hold, Verdict::Reject, &refusal.to_string()).await,
                Err(_) => decide(peer, &hold, Verdict::Reject, "the operator cannot be asked").await,
            }
        }
        Word::Dropped { id } => {
            if let Some(view) = desk.hold(&id, desk.now()) {
                withdraw(desk, view).await;
            }
        }
        Word::Exhausted { grant } => used_up(desk, &grant, early).await,
    }
}

/// Takes in that a grant is used up. A daemon may use it up before the host has said that it is in force: then it waits in `early`.
async fn used_up(desk: &Arc<Desk>, grant: &str, early: &mut BTreeSet<Id>) {
    let Ok(id) = Id::parse(grant) else { return };
    let state = desk.view(&id, desk.now()).map(|view| view.state);
    if matches!(state, Some(State::Approved | State::Applying)) {
        early.insert(id);
        return;
    }
    early.remove(&id);
    if state == Some(State::Active) {
        file(desk, id, Change::Exhausted).await;
    }
}

/// Which of the two holds such a thing: the other has no say in it.
fn is_of(peer: &Peer, what: &Held) -> bool {
    match what {
        Held::Request { .. } => peer.name() == "egress",
        Held::Push { .. } => peer.name() == "git-gate",
    }
}

/// Brings the desk and what is held together.
async fn look(peer: &Peer, desk: &Arc<Desk>) {
    let about = |view: &View| view.proposal.held().is_some_and(|hold| is_of(peer, &hold.what));
    let before: Vec<View> = desk.views(None, desk.now()).into_iter().filter(about).collect();
    let Ok(ids) = peer.holds().await else { return };
    for view in before {
        let waits = view.proposal.held().is_some_and(|hold| ids.contains(&hold.id));
        if waits {
            tell(peer, &view).await;
        } else {
            withdraw(desk, view).await;
        }
    }
}

async fn withdraw(desk: &Arc<Desk>, view: View) {
    if view.state == State::Pending {
        file(desk, view.id, Change::Withdrawn).await;
    }
}

async fn file(desk: &Arc<Desk>, id: Id, change: Change) {
    let desk = Arc::clone(desk);
    let filed = tokio::task::spawn_blocking(move || desk.file(id, change, desk.now())).await;
    if let Ok(Err(error)) = filed {
        debug!(%error, "what a daemon said was not filed");
    }
}

/// Tells what became of something that is held, if anything has.
async fn tell(peer: &Peer, view: &View) {
    if let Some(hold) = view.proposal.held()
        && is_of(peer, &hold.what)
    {
        tell_of(peer, view, hold).await;
    }
}

async fn tell_of(peer: &Peer, view: &View, hold: &Hold) {
    let reason = || view.decision.as_ref().and_then(|decision| decision.reason.clone()).unwrap_or_default();
    match view.state {
        State::Pending | State::Approved | State::Applying | State::ApplyFailed | State::Withdrawn => {}
        State::Active => decide(peer, hold, Verdict::Approve, "").await,
        State::Rejected => decide(peer, hold, Verdict::Reject, &reason()).await,
        State::Revoked => {
            let reason = view.revoked.as_ref().map_or("", |revoked| &revoked.reason);
            decide(peer, hold, Verdict::Reject, reason).await;
        }
        State::Expired | State::Superseded | State::Exhausted | State::Ended => {
            decide(peer, hold, Verdict::Reject, "nobody let it pass in time").await;
        }
    }
}

async fn decide(peer: &Peer, hold: &Hold, verdict: Verdict, reason: &str) {
    let reason: String = reason.chars().take(500).collect();
    if let Err(error) = peer.decide(hold, verdict, &reason).await {
        debug!(%error, "what was decided could not be told; it will be asked for");
    }
}
