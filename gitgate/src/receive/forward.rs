//! The way of a push from the gate to upstream: what upstream has, whether that is what the push was judged by, and what it made of it.

use std::time::Duration;

use repos::{Ssh, Upstream};
use tokio::io::BufReader;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::{ANOTHER, LOGIN_MAX, Permit, Talk, WORD_EVERY, Waiting, lock, say};
use crate::journal::PushOutcome;
use crate::lister::NoListing;
use crate::listing::Listing;
use crate::mirror::{PushLock, RefreshError};
use crate::refresh;
use crate::send::{Answer, Road};
use crate::state::Served;
use crate::warm::Fresh;
use crate::wire::{Change, End, ToHook};

/// How long a push waits for its turn.
const LOCK_TIMEOUT: Duration = Duration::from_secs(300);
/// How often objects are judged again because upstream moved meanwhile.
const LOOKS_MAX: u32 = 3;
/// How long upstream may take for a push.
const SEND_TIMEOUT: Duration = Duration::from_secs(3600);

/// What upstream has, by what the mirror has.
enum At {
    Same,
    Another,
}

/// Why upstream does not wait for the push.
enum Unopened {
    /// It does not take it.
    Road(NoListing),
    /// It is not known whether it has what the mirror has.
    Mirror(RefreshError),
}

impl From<NoListing> for Unopened {
    fn from(reason: NoListing) -> Self {
        Self::Road(reason)
    }
}

impl<'s> Talk<'_, 's> {
    /// What is to happen to a push whose objects may pass, and the turn in which it does. It is judged by what upstream
    /// had before; the hook looks whether that is still there.
    pub(super) async fn forward(&mut self, age: Duration) -> (ToHook, Option<PushLock<'s>>) {
        let upstream = &self.served.repo.upstream;
        let waited = age.is_zero();
        // An upstream behind ssh shows what it has when it is asked to receive.
        if (waited || !matches!(upstream, Upstream::Ssh(_)))
            && let Err(no) = self.refreshed(age).await
        {
            return (no, None);
        }
        let lock = loop {
            let lock = timeout(LOCK_TIMEOUT, self.served.mirror.lock_for_push()).await.ok();
            let (Upstream::Ssh(ssh), true) = (upstream, lock.is_some()) else { break lock };
            // A session from before a push was held is too old for it.
            let through = if waited { None } else { self.state.warm.take_since(ssh, self.came) };
            match self.open(ssh, through).await {
                Err(no) => return (no, None),
                Ok(At::Same) => break lock,
                // It moves on while it is looked at; a moment ago it was as the mirror is.
                Ok(At::Another)
                    if (waited || self.looks > 0) && self.served.mirror.seen_within(LOGIN_MAX) =>
                {
                    break lock;
                }
                Ok(At::Another) => drop(lock),
            }
            // What somebody let pass is not judged again; the hook looks whether it still rests on what upstream has.
            if !waited {
                return (self.again().await, None);
            }
            if let Err(no) = self.catch_up().await {
                return (no, None);
            }
        };
        let answer = self.go(lock.as_ref()).await;
        if !matches!(answer, ToHook::Forward { .. })
            && let Some(waiting) = self.road.take()
        {
            self.leave(waiting).await;
        }
        (answer, lock)
    }

    /// Has upstream wait for the push; whether it has what the mirror has.
    async fn open(&mut self, ssh: &Ssh, through: Option<Fresh>) -> Result<At, ToHook> {
        let (waiting, same) = match self.reach(ssh, through).await {
            Ok(opened) => opened,
            Err(Unopened::Road(reason)) => {
                let error = RefreshError::from(reason);
                self.pushed.outcome = PushOutcome::Refused("refresh-failed");
                return Err(self.deny(format!("upstream cannot be pushed to: {error}").into()));
            }
            Err(Unopened::Mirror(error)) => return Err(self.unrefreshed(&error)),
        };
        if let Some(answer) = waiting.road.shown.misfit(&self.pushed.updates, &self.options) {
            self.leave(waiting).await;
            return Err(self.ended(answer));
        }
        self.road = Some(waiting);
        Ok(if same { At::Same } else { At::Another })
    }

    /// A session that was made since the push came saves the time of the login, and not the login: that one is newer than the commands
    /// of the push, and shows that upstream is still there, who it is, and that it lets the identity in.
    async fn reach(&self, ssh: &Ssh, through: Option<Fresh>) -> Result<(Waiting, bool), Unopened> {
        let early = async {
            Ok(match &through {
                Some(through) => Some(self.ask(through, ssh).await),
                None => None,
            })
        };
        let (asked, login) = tokio::try_join!(early, self.login(ssh))?;
        let ((road, same), through) = match asked {
            Some(Ok(asked)) => (asked, through),
            // Whatever went wrong may be the older session's doing.
            Some(Err(_)) | None => (self.ask(&login, ssh).await?, None),
        };
        let waiting = Waiting { road, login, _through: through };
        match same {
            Ok(same) => Ok((waiting, same)),
            Err(error) => {
                self.leave(waiting).await;
                Err(Unopened::Mirror(error))
            }
        }
    }

    /// Has upstream wait, and looks what it has.
    async fn ask(&self, through: &Fresh, ssh: &Ssh) -> Result<(Road, Result<bool, RefreshError>), NoListing> {
        let road = Road::open(&through.session, &self.served.repo, ssh, &self.pushed.updates).await?;
        let same = self.is_at(&road).await;
        Ok((road, same))
    }

    /// Sends nothing.
    async fn leave(&self, Waiting { road, login, _through: through }: Waiting) {
        road.leave().await;
        drop(through);
        self.keep(login);
    }

    /// Keeps a login on which nothing is under way any more.
    fn keep(&self, login: Fresh) {
        if let Upstream::Ssh(ssh) = &self.served.repo.upstream {
            self.state.warm.keep(ssh, login);
        }
    }

    /// Whether upstream has what the mirror has. Who pushes may be shown less than who reads: where something differs, what
    /// is shown to readers counts.
    async fn is_at(&self, road: &Road) -> Result<bool, RefreshError> {
        let Served { repo, mirror } = self.served;
        if refresh::is_at(mirror.path(), road.shown.listing.clone()).await? {
            return Ok(true);
        }
        let listed = mirror.list(repo, &self.state.tools()).await?;
        refresh::is_at(mirror.path(), Listing::clone(&listed.listing)).await
    }

    /// Brings the mirror to what upstream has by now; not for ever.
    async fn catch_up(&mut self) -> Result<(), ToHook> {
        if let Some(waiting) = self.road.take() {
            self.leave(waiting).await;
        }
        self.looks += 1;
        if self.looks > LOOKS_MAX {
            self.pushed.outcome = PushOutcome::Refused("busy");
            return Err(self.deny("upstream moves too fast; push again".to_owned().into()));
        }
        self.refreshed(Duration::ZERO).await
    }

    /// Has the objects judged again, by what upstream has now.
    async fn again(&mut self) -> ToHook {
        if let Err(no) = self.catch_up().await {
            return no;
        }
        match self.judge(&self.pushed.updates) {
            Ok(Permit { bounds, .. }) => self.inspect(bounds),
            Err(no) => {
                self.pushed.outcome = PushOutcome::Denied;
                self.deny(no)
            }
        }
    }

    /// Sends the push, whose pack comes from the hook; what upstream made of it.
    pub(super) async fn send(
        &mut self,
        reader: &mut BufReader<OwnedReadHalf>,
        writer: &mut OwnedWriteHalf,
    ) -> ToHook {
        let Some(Waiting { road, login, _through }) = self.road.take() else {
            let words = "git-gate: upstream was not asked\n".to_owned();
            return self.ended(Answer { end: End::Refused, words, refs: Vec::new() });
        };
        let answer = {
            let send = timeout(SEND_TIMEOUT, road.send(&self.pushed.updates, &self.options, reader));
            tokio::pin!(send);
            loop {
                match timeout(WORD_EVERY, &mut send).await {
                    Ok(answer) => break answer,
                    // The hook is told that somebody is still there.
                    Err(_) => drop(say(writer, &ToHook::Wait { words: String::new() }).await),
                }
            }
        };
        let words = || "git-gate: upstream took too long\n".to_owned();
        let late = |_| Answer { end: End::Unknown, words: words(), refs: Vec::new() };
        let answer = answer.unwrap_or_else(late);
        match answer.end {
            End::Taken | End::Refused => self.keep(login),
            End::Unknown => {}
        }
        self.ended(answer)
    }

    /// Takes note of what upstream made of the push.
    pub(super) fn ended(&mut self, Answer { end, words, refs }: Answer) -> ToHook {
        let told = words.clone();
        if end != End::Taken {
            let others = others(end, refs.is_empty());
            let refs = refs.into_iter().map(|(name, word)| (name, bare(&word).to_owned()));
            self.tell(refs.collect(), others.to_owned());
        }
        self.pushed.outcome = match end {
            End::Taken => {
                self.left_behind();
                PushOutcome::Forwarded(words)
            }
            End::Refused => PushOutcome::Rejected(words),
            End::Unknown => PushOutcome::Unanswered(words),
        };
        ToHook::Sent { end, words: told }
    }

    /// Sees to it that the mirror shows what upstream had at most this long ago.
    pub(super) async fn refreshed(&mut self, age: Duration) -> Result<(), ToHook> {
        let Served { repo, mirror } = self.served;
        if !age.is_zero() && mirror.seen_within(age) {
            return Ok(());
        }
        let Err(error) = mirror.refresh(repo, &self.state.tools()).await else { return Ok(()) };
        Err(self.unrefreshed(&error))
    }

    fn unrefreshed(&mut self, error: &RefreshError) -> ToHook {
        self.pushed.outcome = PushOutcome::Refused("refresh-failed");
        self.deny(crate::front::unrefreshed(&self.served.repo.upstream, error).into())
    }

    /// Takes note that the mirror keeps objects that the push took its refs away from.
    pub(super) fn left_behind(&self) {
        let mut changes = self.pushed.updates.iter().map(|update| update.change);
        if changes.any(|change| matches!(change, Change::Rewrite | Change::Delete)) {
            self.served.mirror.torn();
            self.served.mirror.tidy();
        }
    }

    /// A login of a moment ago at most.
    async fn login(&self, ssh: &Ssh) -> Result<Fresh, Unopened> {
        let early = lock(self.login).take().filter(|(began, _)| began.elapsed() < LOGIN_MAX);
        let login = match early {
            Some((_, login)) => match login.await {
                Ok(login) => login,
                Err(_) => Fresh::open(ssh).await,
            },
            None => Fresh::open(ssh).await,
        };
        login.map_err(|fault| {
            self.state.warm.end(ssh);
            Unopened::Road(NoListing::Upstream(fault))
        })
    }
}

/// What is told of refs that upstream said nothing of.
fn others(end: End, none: bool) -> &'static str {
    match (end, none) {
        (End::Unknown, _) => "upstream's answer did not come; it may have taken it",
        (End::Refused | End::Taken, true) => "upstream cannot be pushed to",
        (End::Refused | End::Taken, false) => ANOTHER,
    }
}

/// `[remote rejected] (reason)` without what the client adds again.
fn bare(verdict: &str) -> &str {
    let reason = verdict.split_once("] (").and_then(|(_, rest)| rest.strip_suffix(')'));
    reason.unwrap_or(verdict)
}
