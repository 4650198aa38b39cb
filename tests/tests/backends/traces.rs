//! What this host has of one bottle, by words that stand in nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Instant;

use nix::poll::{PollTimeout, poll};
use tests::{PATIENCE, Run};

use crate::stage::Stage;

const LOOK_INTERVAL_MS: u16 = 50;
/// Of each process: what it was started with, where it is, and what it is counted to.
const OF_PROCESSES: [&str; 3] = ["cmdline", "environ", "cgroup"];
/// What the network of this host is made of. A program that this host does not have knows of none.
const OF_THE_NETWORK: [&[&str]; 8] = [
    &["ip", "-o", "link"],
    &["ip", "-o", "addr"],
    &["ip", "route", "show", "table", "all"],
    &["iptables-save"],
    &["iptables-legacy-save"],
    &["ip6tables-save"],
    &["ip6tables-legacy-save"],
    &["nft", "list", "ruleset"],
];

/// Words that stand only in what belongs to one bottle.
#[derive(Debug)]
pub(crate) struct Marks(BTreeSet<String>);

impl Marks {
    /// Those of a bottle that runs.
    pub(crate) fn of(stage: &Stage) -> Marks {
        let mut marks = BTreeSet::from([stage.name.clone(), stage.path("").display().to_string()]);
        // Of a network's number the interface of the host has the first twelve digits, of a container's the file system.
        marks.extend(stage.objects().split_whitespace().map(|id| id.chars().take(12).collect()));
        for network in
            stage.docker.run(["network", "ls", "--quiet", "--filter", &stage.label()]).ok().unwrap().lines()
        {
            let ranges =
                ["network", "inspect", "--format", "{{range .IPAM.Config}}{{.Subnet}} {{end}}", network];
            marks.extend(stage.docker.run(ranges).ok().unwrap().split_whitespace().map(str::to_owned));
        }
        Marks(marks)
    }

    fn stand_in(&self, text: &[u8]) -> bool {
        let text = String::from_utf8_lossy(text);
        self.0.iter().any(|mark| text.contains(mark))
    }

    /// Everything that has one of them, with its kind before it.
    pub(crate) fn traces(&self) -> Vec<String> {
        let mut traces = Vec::new();
        let own = std::process::id().to_string();
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let number = process.file_name().to_string_lossy().into_owned();
            let about = OF_PROCESSES.map(|file| fs::read(process.path().join(file)).unwrap_or_default());
            let place = fs::read_link(process.path().join("cwd")).unwrap_or_default();
            let is_one = number.bytes().all(|byte| byte.is_ascii_digit()) && number != own;
            if is_one
                && (about.iter().any(|text| self.stand_in(text))
                    || self.stand_in(place.as_os_str().as_encoded_bytes()))
            {
                traces.push(format!(
                    "process {number} {}",
                    String::from_utf8_lossy(&about[0]).replace('\0', " ")
                ));
            }
        }
        let mut lines = |kind: &str, text: &str| {
            let found = text.lines().filter(|line| self.stand_in(line.as_bytes()));
            traces.extend(found.map(|line| format!("{kind} {line}")));
        };
        lines("mount", &fs::read_to_string("/proc/self/mountinfo").unwrap());
        lines("socket", &fs::read_to_string("/proc/net/unix").unwrap());
        for words in OF_THE_NETWORK {
            let said = Run::new(words[0]).args(&words[1..]).finish().map(|finished| finished.stdout);
            lines(words[0], &said.unwrap_or_default());
        }
        let mut groups = Vec::new();
        directories(Path::new("/sys/fs/cgroup"), &mut groups);
        lines("group", &groups.join("\n"));
        traces
    }

    /// Waits until there is none: what was killed takes a moment to be gone.
    pub(crate) fn are_gone(&self, after: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let traces = self.traces();
            if traces.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "after {after}:\n{}", traces.join("\n"));
            let _ = poll(&mut [], PollTimeout::from(LOOK_INTERVAL_MS));
        }
    }
}

fn directories(below: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(below).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.path().display().to_string());
            directories(&entry.path(), found);
        }
    }
}
