//! New routes come into force, or it is told why they do not. What the system kept from being read or told is tried again.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::{error, info, warn};

use super::Error;
use super::routes::{self, RoutesFile};
use super::status::StatusFile;
use crate::notify::{Moment, Notifier};
use crate::proxy::Proxy;
use crate::snapshot;

/// When what failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// The routes on their way into force.
pub(super) struct Reload {
    proxy: Arc<Proxy>,
    routes: RoutesFile,
    notifier: Notifier,
    status: StatusFile,
    /// Why the last routes are not in force.
    problem: Option<Problem>,
    /// The file of the status says something else.
    is_untold: bool,
    /// When to try again.
    again: Option<Instant>,
}

enum Problem {
    /// The system would not give us the file.
    Unread(String),
    /// They are no good.
    Refused(String),
}

impl Problem {
    fn text(&self) -> &str {
        match self {
            Problem::Unread(text) | Problem::Refused(text) => text,
        }
    }
}

impl Reload {
    /// Tells what is in force at the start.
    pub(super) fn begin(
        proxy: Arc<Proxy>,
        routes: RoutesFile,
        notifier: Notifier,
        status: StatusFile,
    ) -> Reload {
        let mut reload =
            Reload { proxy, routes, notifier, status, problem: None, is_untold: false, again: None };
        reload.tell_status();
        reload.notifier.alive();
        reload.tell();
        reload
    }

    /// Whether the file is another than the one in force: what cannot be read is, because it has to be told.
    pub(super) fn is_news(&self) -> bool {
        routes::read_once(self.routes.path())
            .map_or(true, |bytes| snapshot::digest(&bytes) != self.proxy.in_force().digest)
    }

    /// Reads the routes and puts them in force; the old ones stay where that fails.
    pub(super) async fn now(&mut self) {
        self.notifier.reloading(Moment::now());
        match self.routes.read().await {
            Ok(bytes) => self.replace(&bytes).await,
            Err(error) => self.unread(unreadable(&error)),
        }
    }

    /// Returns when something is to be tried again.
    pub(super) async fn is_due(&self) {
        match self.again {
            Some(again) => sleep_until(again).await,
            None => std::future::pending().await,
        }
    }

    /// Tries again what failed. It is told when something else comes of it.
    pub(super) async fn again(&mut self) {
        match &self.problem {
            Some(Problem::Unread(last)) => {
                // A hang-up that comes from here on is not answered by this.
                let began = Moment::now();
                match self.routes.read().await.map_err(|error| unreadable(&error)) {
                    Ok(bytes) => {
                        self.notifier.reloading(began);
                        self.replace(&bytes).await;
                    }
                    Err(problem) if problem == *last => self.tell_status_if_untold(),
                    Err(problem) => {
                        self.notifier.reloading(began);
                        self.unread(problem);
                    }
                }
            }
            Some(Problem::Refused(_)) | None => self.tell_status_if_untold(),
        }
    }

    /// Tells the supervisor that we stop.
    pub(super) fn stopping(&self) {
        self.notifier.stopping();
    }

    async fn replace(&mut self, bytes: &[u8]) {
        let replaced = self.proxy.reload(bytes).await;
        self.problem = replaced.err().map(|error| Problem::Refused(error.to_string()));
        self.tell_status();
        self.tell();
    }

    fn unread(&mut self, problem: String) {
        self.proxy.reloaded(Some(problem.clone()));
        self.problem = Some(Problem::Unread(problem));
        self.tell_status();
        self.tell();
    }

    /// Tells the log and the supervisor.
    fn tell(&self) {
        let in_force = self.proxy.in_force();
        match self.problem.as_ref().map(Problem::text) {
            None => {
                info!(generation = in_force.generation, digest = in_force.digest, "routes in force");
                self.notifier.ready(in_force.generation, &in_force.digest);
            }
            Some(problem) => {
                error!(problem, "the new routes are refused; the old ones stay");
                self.notifier.reload_failed(in_force.generation, &in_force.digest, problem);
            }
        }
    }

    fn tell_status_if_untold(&mut self) {
        if self.is_untold {
            self.tell_status();
        } else {
            self.plan();
        }
    }

    /// Writes the status, or tries again later: requests do not depend on it.
    fn tell_status(&mut self) {
        let told = self.status.write(&self.proxy.in_force(), self.problem.as_ref().map(Problem::text));
        if let Err(error) = &told
            && !self.is_untold
        {
            warn!(%error, "cannot write egress.status.json: it is tried again each second");
        }
        self.is_untold = told.is_err();
        self.plan();
    }

    fn plan(&mut self) {
        let is_open = self.is_untold || matches!(self.problem, Some(Problem::Unread(_)));
        self.again = is_open.then(|| Instant::now() + AGAIN);
    }
}

fn unreadable(error: &Error) -> String {
    let cause = error.source().map(ToString::to_string).unwrap_or_default();
    format!("routes.yaml: cannot be read: {cause}")
}
