//! Where the screen's facts come from: the control sockets of the chosen bottle, and its journals.

use std::path::{Path, PathBuf};

use audit::Event;
use jiff::Timestamp;
use proposal::wire::{Request, Requests};
use serde::Deserialize;
use serde_json::json;

use super::facts::{Daemon, Facts, GitFacts, GitLine, Listed, Passages};
use crate::fault::{Attempted, Fault};
use crate::manifest::Name;
use crate::requests::{client, refusals};
use crate::state::{Directories, Record, in_words};

const GIT_LINES_MAX: usize = 200;

/// One user's bottles, looked at.
#[derive(Debug, Clone)]
pub(super) struct Feed {
    directories: Directories,
    git: Option<(PathBuf, u64, Vec<GitLine>)>,
}

#[derive(Deserialize)]
struct Supervised {
    daemons: Vec<Daemon>,
}

impl Feed {
    pub(super) fn new(directories: Directories) -> Feed {
        Feed { directories, git: None }
    }

    fn records(&self) -> Result<Vec<(Record, bool)>, Fault> {
        self.directories.list().failing(|| "cannot list the bottles".to_owned())
    }

    pub(super) fn bottles(&self) -> Result<Vec<Listed>, Fault> {
        let listed = |(record, running): (Record, bool)| Listed {
            state: in_words(&record, running),
            name: record.name,
            running,
            started: record.started,
        };
        Ok(self.records()?.into_iter().map(listed).collect())
    }

    /// The directory of the sockets of a bottle that runs.
    fn run_dir(&self, name: &str) -> Result<PathBuf, Fault> {
        let found = self.records()?.into_iter().find(|(record, running)| *running && record.name == name);
        let found = found.map(|(record, _)| record.run_dir);
        found.ok_or_else(|| Fault::refused(format!("the bottle {name} does not run")))
    }

    pub(super) fn facts(&mut self, name: &str) -> Facts {
        let mut facts = Facts::default();
        if let Ok(name) = name.parse::<Name>() {
            let journal = refusals::journal(&self.directories.home(&name), "git-gate");
            facts.git_log = self.git_log(&journal);
        }
        let run_dir = match self.run_dir(name) {
            Ok(run_dir) => run_dir,
            Err(fault) => {
                facts.problems.push(fault.to_string());
                return facts;
            }
        };
        let status = json!({ "op": "status" });
        let desk = run_dir.join("supervise.sock");
        let mut problems = Vec::new();
        let mut tell = |fault: Fault| problems.push(fault.to_string());
        match client::ask::<Requests>(&desk, &Request::List { state: None }) {
            Ok(Requests { requests }) => facts.requests = requests,
            Err(fault) => tell(fault),
        }
        facts.desk = client::ask(&desk, &Request::Status).map_err(&mut tell).ok();
        facts.egress = client::ask(&run_dir.join("egress.sock"), &status).map_err(&mut tell).ok();
        let git: Result<GitFacts, Fault> = client::ask(&run_dir.join("git-gate.sock"), &status);
        facts.git = git.map_err(&mut tell).ok();
        match client::ask::<Supervised>(&run_dir.join("supervisor.sock"), &status) {
            Ok(Supervised { daemons }) => facts.daemons = daemons,
            Err(fault) => tell(fault),
        }
        facts.problems = problems;
        facts
    }

    /// The newest reads and pushes; the journal is read again when it has grown.
    fn git_log(&mut self, journal: &Path) -> Vec<GitLine> {
        let length = std::fs::symlink_metadata(journal).map_or(0, |metadata| metadata.len());
        match &self.git {
            Some((path, known, lines)) if path == journal && *known == length => lines.clone(),
            Some(_) | None => {
                let lines = git_lines(journal);
                self.git = Some((journal.to_path_buf(), length, lines.clone()));
                lines
            }
        }
    }

    /// Hands what passes in `name` to `each`, until the bottle ends or `each` has enough.
    pub(super) fn traffic(
        &self,
        name: &str,
        each: impl FnMut(Passages) -> std::ops::ControlFlow<()>,
    ) -> Result<(), Fault> {
        let request = json!({ "op": "tail", "follow": true });
        client::follow(&self.run_dir(name)?.join("egress.sock"), &request, each)
    }

    /// What passed lately.
    pub(super) fn passed(&self, name: &str) -> Result<Passages, Fault> {
        client::ask(&self.run_dir(name)?.join("egress.sock"), &json!({ "op": "tail" }))
    }
}

fn git_lines(journal: &Path) -> Vec<GitLine> {
    let Ok(records) = audit::replay::<Event>(journal) else { return Vec::new() };
    let mut lines: Vec<GitLine> =
        records.map_while(Result::ok).filter_map(|record| git_line(record.time, record.event)).collect();
    lines.drain(..lines.len().saturating_sub(GIT_LINES_MAX));
    lines
}

fn git_line(at: Timestamp, event: Event) -> Option<GitLine> {
    let names = |refs: &[audit::RefUpdate]| {
        refs.iter().map(|update| update.name.clone()).collect::<Vec<_>>().join(" ")
    };
    match event {
        Event::Fetch(fetch) => Some(GitLine {
            at,
            what: "fetch",
            repo: fetch.repo,
            outcome: fetch.outcome,
            about: String::new(),
        }),
        Event::PushBegun(push) => Some(GitLine {
            at,
            what: "pushing",
            about: names(&push.refs),
            repo: push.repo,
            outcome: "begun".to_owned(),
        }),
        Event::Push(push) => {
            let found = push
                .findings
                .first()
                .map(|finding| format!(" {} in {}:{}", finding.rule, finding.path, finding.line));
            let about = names(&push.refs) + &found.unwrap_or_default();
            Some(GitLine { at, what: "push", repo: push.repo, outcome: push.outcome, about })
        }
        Event::Request(_) | Event::Repeated(_) | Event::Reload(_) | Event::Uses(_) => None,
    }
}
