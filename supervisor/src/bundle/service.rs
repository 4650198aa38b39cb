//! The answers to the clients of the control socket.

use std::collections::VecDeque;

use super::Bundle;
use crate::control::{
    BundleState, ClientId, DaemonGeneration, DaemonStatus, Failure, Healthy, LogLine, LogLines, Reloaded,
    Request, Restarting, Status, Stopping,
};
use crate::daemon::Daemon;
use crate::logs::Source;
use crate::plan::{Event, Outcome, StopCause, Ticket, View};

/// Lines in the answer to `logs` without follow.
const KEPT_LINES: usize = 5000;

impl Bundle {
    /// Takes every request that is complete and whose client waits for no other answer; whether there was one.
    pub(super) fn serve_clients(&mut self, events: &mut VecDeque<Event>) -> bool {
        let mut served = false;
        while let Some((id, request)) = self.control.next_request() {
            served = true;
            match request {
                Ok(request) => self.serve(id, request, events),
                Err(failure) => self.control.reply::<Stopping>(id, Err(failure)),
            }
        }
        served
    }

    fn serve(&mut self, id: ClientId, request: Request, events: &mut VecDeque<Event>) {
        match request {
            Request::Status {} => {
                let status = self.status();
                self.control.reply(id, Ok(status));
            }
            Request::Health {} => {
                let health = self.health();
                self.control.reply(id, health);
            }
            Request::Reload { name } => match name.as_deref().map(|name| self.reloadable(name)).transpose() {
                Ok(only) => {
                    let ticket = Ticket(self.next_ticket);
                    self.next_ticket += 1;
                    self.tickets.push((ticket, id));
                    events.push_back(Event::Reload(ticket, only));
                }
                Err(failure) => self.control.reply::<Reloaded>(id, Err(failure)),
            },
            Request::Restart { name } => {
                let outcome = self.restartable(&name);
                if let Ok(daemon) = &outcome {
                    events.push_back(Event::Restart(*daemon));
                }
                self.control.reply(id, outcome.map(|_| Restarting { name }));
            }
            Request::Stop {} => {
                self.control.reply(id, Ok(Stopping {}));
                events.push_back(Event::Stop(StopCause::Request));
            }
            Request::Logs { name, follow } => match name.as_deref().map(|name| (name, Source::parse(name))) {
                Some((name, None)) => {
                    let text = format!(
                        "unknown source `{name}`, expected one of egress, git-gate, supervise, supervisor"
                    );
                    self.control.reply::<LogLines>(id, Err(Failure::new("unknown-daemon", text)));
                }
                Some((_, source @ Some(_))) if follow => self.control.follow(id, source),
                None if follow => self.control.follow(id, None),
                None => self.reply_with_logs(id, None),
                Some((_, source @ Some(_))) => self.reply_with_logs(id, source),
            },
        }
    }

    fn reply_with_logs(&mut self, id: ClientId, source: Option<Source>) {
        let lines = self.logs.since(0, source, KEPT_LINES).into_iter().map(LogLine::from).collect();
        self.control.reply(id, Ok(LogLines { lines }));
    }

    fn status(&self) -> Status {
        let state = match (self.plan.is_stopping(), self.plan.has_started()) {
            (true, _) => BundleState::Stopping,
            (false, true) => BundleState::Running,
            (false, false) => BundleState::Starting,
        };
        let views = self.plan.views(self.now());
        Status { state, daemons: views.into_iter().map(|view| self.daemon_status(view)).collect() }
    }

    fn daemon_status(&self, view: View) -> DaemonStatus {
        let process = self.running.iter().find(|child| child.daemon == view.daemon);
        let walls = process.map(|child| child.walls.clone()).unwrap_or_default();
        DaemonStatus { walls, ..DaemonStatus::from(view) }
    }

    fn health(&self) -> Result<Healthy, Failure> {
        if self.plan.is_healthy() {
            return Ok(Healthy { healthy: true });
        }
        let views = self.plan.views(self.now());
        let states: Vec<String> = views
            .iter()
            .filter(|view| !view.is_serving())
            .map(|view| format!("{} is {}", view.daemon, view.state.as_str()))
            .collect();
        let message = if states.is_empty() { "the bundle stops".to_owned() } else { states.join(", ") };
        Err(Failure::new("unhealthy", message))
    }

    fn selected(&self, name: &str) -> Result<Daemon, Failure> {
        let daemon =
            Daemon::parse(name).map_err(|error| Failure::new("unknown-daemon", error.to_string()))?;
        if !self.plan.has(daemon) {
            return Err(Failure::new("unknown-daemon", format!("{daemon} is not selected in this bundle")));
        }
        Ok(daemon)
    }

    fn reloadable(&self, name: &str) -> Result<Daemon, Failure> {
        let daemon = self.selected(name)?;
        if !daemon.reloads() {
            return Err(Failure::new("bad-request", format!("{daemon} has nothing to reload")));
        }
        Ok(daemon)
    }

    fn restartable(&self, name: &str) -> Result<Daemon, Failure> {
        let daemon = self.selected(name)?;
        if self.plan.is_stopping() {
            return Err(Failure::new("stopping", "the bundle stops"));
        }
        Ok(daemon)
    }

    pub(super) fn answer(&mut self, ticket: Ticket, mut outcomes: Vec<(Daemon, Outcome)>) {
        outcomes.sort_unstable_by_key(|(daemon, _)| *daemon);
        for (_, id) in self.tickets.extract_if(.., |(other, _)| *other == ticket) {
            self.control.reply(id, reload_result(&outcomes));
        }
    }
}

fn reload_result(outcomes: &[(Daemon, Outcome)]) -> Result<Reloaded, Failure> {
    let mut daemons = Vec::new();
    for (daemon, outcome) in outcomes {
        let code = match outcome {
            Outcome::Applied(report) => {
                daemons.push(DaemonGeneration {
                    name: daemon.name().to_owned(),
                    generation: report.generation,
                    digest: report.digest.clone(),
                });
                continue;
            }
            Outcome::Refused(_) => "reload-failed",
            Outcome::Unanswered => "reload-timeout",
            Outcome::Gone => "not-running",
        };
        return Err(Failure::new(code, format!("{daemon}: {outcome}")));
    }
    Ok(Reloaded { daemons })
}
