//! What a sandbox may use of the machine: control groups of its own, below the one that this process is in.
//!
//! Both kinds are used: the one tree of newer systems (v2), where it is delegated to this user, and the trees of older ones (v1),
//! which are root's. What a manifest asks for and no group of this user's can keep is refused before anything is made.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::poll::{PollTimeout, poll};
use nix::unistd::AccessFlags;
use policy::{Diagnostic, Diagnostics};

use crate::fault::{Attempted, Fault};
use crate::manifest::{Limits, Name};
use crate::state::Home;

/// The groups of a bottle, in its state: for whoever cleans up after it.
const LIST: &str = "cgroups";
/// What this process moves to where a group with processes may have none below it.
const HOLDER: &str = "bottlecap-holder";
/// The wall and the bottle's init.
const OWN_PROCESSES: u32 = 2;
const PERIOD_MICROSECONDS: u64 = 100_000;
/// How often a group is looked at whose last processes are ending.
const LOOKS_MAX: u32 = 200;
const LOOK_INTERVAL_MS: u16 = 10;

/// What a group bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Controller {
    Memory,
    Processes,
    Processor,
}

impl Controller {
    fn name(self) -> &'static str {
        match self {
            Controller::Memory => "memory",
            Controller::Processes => "pids",
            Controller::Processor => "cpu",
        }
    }
}

/// Where this process is in the control groups of this host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// Its directory in the one tree, and what that can bound.
    unified: Option<(PathBuf, BTreeSet<String>)>,
    /// Its directory in the tree of each controller.
    separate: BTreeMap<String, PathBuf>,
}

/// A group to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    directory: PathBuf,
    /// What has to be handed down to it, in the one tree.
    handed_down: BTreeSet<&'static str>,
    /// File and value, in order. What a kernel without swap accounting does not have is left out.
    values: Vec<(&'static str, String, Need)>,
}

/// Whether a file has to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Always,
    WhereItIs,
}

impl Host {
    /// That of this process.
    #[must_use]
    pub fn of_process() -> Host {
        let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        let writable = |path: &Path| nix::unistd::access(path, AccessFlags::W_OK).is_ok();
        let mounts = read(Path::new("/proc/self/mountinfo"));
        Host::parse(&mounts, &read(Path::new("/proc/self/cgroup")), |path| {
            writable(path).then(|| read(&path.join("cgroup.controllers")))
        })
    }

    /// From the texts of `mountinfo` and `cgroup`; `look` gives the controllers of a directory, if this user may write there.
    fn parse(mounts: &str, own: &str, look: impl Fn(&Path) -> Option<String>) -> Host {
        let own: Vec<(&str, &str)> =
            own.lines().filter_map(|line| line.split_once(':')?.1.split_once(':')).collect();
        let mut host = Host::default();
        for line in mounts.lines() {
            let Some((before, after)) = line.split_once(" - ") else { continue };
            let fields: Vec<&str> = before.split(' ').collect();
            let after: Vec<&str> = after.split(' ').collect();
            let (Some(root), Some(point), Some(kind)) = (fields.get(3), fields.get(4), after.first()) else {
                continue;
            };
            let below = |path: &str| {
                let rest = Path::new(path).strip_prefix(root).ok()?;
                let directory = Path::new(point).join(rest);
                look(&directory).map(|controllers| (directory, controllers))
            };
            match *kind {
                "cgroup2" => {
                    let path = own.iter().find(|(controllers, _)| controllers.is_empty());
                    if let Some((directory, controllers)) = path.and_then(|(_, path)| below(path)) {
                        host.unified =
                            Some((directory, controllers.split_whitespace().map(str::to_owned).collect()));
                    }
                }
                "cgroup" => {
                    let options = after.last().copied().unwrap_or_default();
                    for (controllers, path) in &own {
                        let named = controllers
                            .split(',')
                            .filter(|name| options.split(',').any(|option| option == *name));
                        for name in named {
                            if let Some((directory, _)) = below(path) {
                                host.separate.insert(name.to_owned(), directory);
                            }
                        }
                    }
                }
                _ => {}
            }
        }
        host
    }

    /// The groups that keep `limits` for the bottle `name`; or what no group of this user's bounds.
    fn plan(&self, limits: &Limits, name: &str) -> Result<Vec<Group>, Controller> {
        let wanted = [
            (Controller::Memory, limits.memory),
            (Controller::Processes, limits.processes.map(u64::from)),
            (Controller::Processor, limits.cpu_thousandths.map(u64::from)),
        ];
        let mut groups: Vec<Group> = Vec::new();
        for (controller, value) in wanted {
            let Some(value) = value else { continue };
            let word = controller.name();
            let unified = self.unified.as_ref().filter(|(_, controllers)| controllers.contains(word));
            let (parent, values, handed) = match (unified, self.separate.get(word)) {
                (Some((directory, _)), _) => (directory, unified_values(controller, value), Some(word)),
                (None, Some(directory)) => (directory, separate_values(controller, value), None),
                (None, None) => return Err(controller),
            };
            let directory = parent.join(format!("bottlecap-{name}"));
            match groups.iter_mut().find(|group| group.directory == directory) {
                Some(group) => {
                    group.values.extend(values);
                    group.handed_down.extend(handed);
                }
                None => groups.push(Group { directory, values, handed_down: handed.into_iter().collect() }),
            }
        }
        Ok(groups)
    }
}

fn unified_values(controller: Controller, value: u64) -> Vec<(&'static str, String, Need)> {
    match controller {
        Controller::Memory => vec![
            ("memory.max", value.to_string(), Need::Always),
            ("memory.swap.max", "0".to_owned(), Need::WhereItIs),
        ],
        Controller::Processes => {
            vec![("pids.max", (value + u64::from(OWN_PROCESSES)).to_string(), Need::Always)]
        }
        Controller::Processor => {
            let quota = value * PERIOD_MICROSECONDS / 1000;
            vec![("cpu.max", format!("{quota} {PERIOD_MICROSECONDS}"), Need::Always)]
        }
    }
}

fn separate_values(controller: Controller, value: u64) -> Vec<(&'static str, String, Need)> {
    match controller {
        Controller::Memory => vec![
            ("memory.limit_in_bytes", value.to_string(), Need::Always),
            // Memory and swap together; it cannot be less than memory alone.
            ("memory.memsw.limit_in_bytes", value.to_string(), Need::WhereItIs),
        ],
        Controller::Processes => unified_values(controller, value),
        Controller::Processor => vec![
            ("cpu.cfs_period_us", PERIOD_MICROSECONDS.to_string(), Need::Always),
            ("cpu.cfs_quota_us", (value * PERIOD_MICROSECONDS / 1000).to_string(), Need::Always),
        ],
    }
}

/// Refuses limits that no group of this user's can keep, where they stand.
///
/// # Errors
/// Then.
pub fn check(limits: &Limits, host: &Host) -> Result<(), Fault> {
    match host.plan(limits, "check") {
        Ok(_) => Ok(()),
        Err(controller) => {
            Err(refusal(limits, &format!("no control group of this user's bounds {}", controller.name())))
        }
    }
}

fn refusal(limits: &Limits, why: &str) -> Fault {
    let message = format!(
        "these limits cannot be kept by a sandbox here: {why}; start it where one is delegated, such as \
         `systemd-run --user --scope -p Delegate=yes bottlecap run …`, or use --backend docker"
    );
    match limits.place.clone() {
        Some((file, line, column)) => Diagnostics::from(Diagnostic { file, line, column, message }).into(),
        None => Fault::refused(message),
    }
}

/// The groups of one bottle.
#[derive(Debug)]
pub struct Groups(Vec<PathBuf>);

impl Groups {
    /// Makes them for the bottle `name`, and writes into its state where they are.
    ///
    /// # Errors
    /// When one of them cannot be made.
    pub fn make(limits: &Limits, name: &Name, home: &Home) -> Result<Groups, Fault> {
        let planned = Host::of_process().plan(limits, name.as_str());
        let planned = planned
            .map_err(|controller| refusal(limits, &format!("nothing bounds {}", controller.name())))?;
        // What a killed one of that name left, which may have been elsewhere.
        for directory in left_by(home) {
            remove(&directory).failing(|| format!("cannot remove {}", directory.display()))?;
        }
        let lines: String = planned.iter().map(|group| format!("{}\n", group.directory.display())).collect();
        let list = home.path().join(LIST);
        fs::write(&list, lines).failing(|| format!("cannot write {}", list.display()))?;
        let mut groups = Groups(Vec::new());
        for group in &planned {
            groups.0.push(group.directory.clone());
            if let Err(error) = group.make() {
                groups.remove();
                return Err(refusal(
                    limits,
                    &format!("{} cannot be made: {error}", group.directory.display()),
                ));
            }
        }
        Ok(groups)
    }

    /// Puts the process, and what it starts from now on, into them.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub fn take(&self, process: u32) -> io::Result<()> {
        self.0.iter().try_for_each(|directory| put(&directory.join("cgroup.procs"), &process.to_string()))
    }

    /// Ends what is left in them, and removes them.
    pub fn remove(self) {
        for directory in self.0 {
            if let Err(error) = remove(&directory) {
                tracing::warn!(
                    "{} could not be removed: {error}; `bottlecap cleanup` finds it",
                    directory.display()
                );
            }
        }
    }
}

impl Group {
    fn make(&self) -> io::Result<()> {
        let parent = self.directory.parent().unwrap_or(Path::new("/"));
        if !self.handed_down.is_empty() {
            hand_down(parent, &self.handed_down)?;
        }
        // One that an earlier bottle of that name left, of which nothing runs any more.
        match fs::remove_dir(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        fs::create_dir(&self.directory)?;
        for (file, value, need) in &self.values {
            let path = self.directory.join(file);
            if *need == Need::Always || path.exists() {
                put(&path, value)?;
            }
        }
        Ok(())
    }
}

/// Lets groups below `parent` bound these. A group in which processes are can only be the root of the tree or one that bounds
/// nothing below it; this process gives way if it is alone there.
fn hand_down(parent: &Path, controllers: &BTreeSet<&'static str>) -> io::Result<()> {
    let file = parent.join("cgroup.subtree_control");
    let given: String = fs::read_to_string(&file)?;
    let missing: Vec<String> = controllers
        .iter()
        .filter(|name| !given.split_whitespace().any(|word| word == **name))
        .map(|name| format!("+{name}"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    match put(&file, &missing.join(" ")) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
        written => return written,
    }
    let own = std::process::id().to_string();
    let there = fs::read_to_string(parent.join("cgroup.procs"))?;
    if there.split_whitespace().any(|process| process != own) {
        return Err(io::Error::other("other processes are in the group that this one is in"));
    }
    let holder = parent.join(HOLDER);
    match fs::create_dir(&holder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    put(&holder.join("cgroup.procs"), &own)?;
    put(&file, &missing.join(" "))
}

/// Writes to a file of the kernel's, which is there or not: none is made.
fn put(path: &Path, value: &str) -> io::Result<()> {
    File::options().write(true).open(path)?.write_all(value.as_bytes())
}

/// Removes a group; what is in it ends first.
///
/// # Errors
/// When something in it does not end.
pub fn remove(directory: &Path) -> io::Result<()> {
    // Where the kernel has it. Elsewhere they are ending by themselves: they were all of one pid namespace, which is gone.
    let _ = put(&directory.join("cgroup.kill"), "1");
    for _ in 0..LOOKS_MAX {
        match fs::remove_dir(directory) {
            Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => {
                // A group of the older kind tells nobody that it is empty.
                let _ = poll(&mut [], PollTimeout::from(LOOK_INTERVAL_MS));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => return removed,
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

/// The groups that a bottle left, as its state says.
#[must_use]
pub fn left_by(home: &Home) -> Vec<PathBuf> {
    let list = fs::read_to_string(home.path().join(LIST)).unwrap_or_default();
    list.lines().map(PathBuf::from).filter(|path| path.is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLDER: &str = "\
24 20 0:21 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
25 20 0:22 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
26 20 0:23 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
27 20 0:24 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const IN_OLDER: &str = "4:memory:/service\n3:pids:/\n2:cpu,cpuacct:/\n1:name=systemd:/\n0::/\n";
    const NEWER: &str = "30 20 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
    const IN_NEWER: &str = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/run-1.scope\n";

    fn limits() -> Limits {
        let place = Some(("bottle.yaml".to_owned(), 3, 9));
        Limits { memory: Some(1 << 30), processes: Some(64), cpu_thousandths: Some(1500), place }
    }

    fn told(groups: &[Group]) -> String {
        let line = |group: &Group| {
            let values: Vec<String> =
                group.values.iter().map(|(file, value, _)| format!("{file}={value}")).collect();
            format!("{} {:?} {}", group.directory.display(), group.handed_down, values.join(", "))
        };
        groups.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn each_tree_of_the_older_kind_has_a_group_where_this_process_is() {
        let host = Host::parse(OLDER, IN_OLDER, |_| Some(String::new()));
        insta::assert_snapshot!(told(&host.plan(&limits(), "web").expect("kept")), @r"
        /sys/fs/cgroup/memory/service/bottlecap-web {} memory.limit_in_bytes=1073741824, memory.memsw.limit_in_bytes=1073741824
        /sys/fs/cgroup/pids/bottlecap-web {} pids.max=66
        /sys/fs/cgroup/cpu,cpuacct/bottlecap-web {} cpu.cfs_period_us=100000, cpu.cfs_quota_us=150000
        ");
    }

    #[test]
    fn the_one_tree_of_the_newer_kind_has_one_group() {
        let host = Host::parse(NEWER, IN_NEWER, |_| Some("cpu memory pids".to_owned()));
        insta::assert_snapshot!(told(&host.plan(&limits(), "web").expect("kept")), @r#"
        /sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/app.slice/run-1.scope/bottlecap-web {"cpu", "memory", "pids"} memory.max=1073741824, memory.swap.max=0, pids.max=66, cpu.max=150000 100000
        "#);
    }

    #[test]
    fn limits_that_no_group_keeps_are_refused_where_they_stand() {
        let refused = |host: &Host| {
            check(&limits(), host).map_or_else(|fault| fault.to_string(), |()| "kept".to_owned())
        };
        let bounds_processes = Host::parse(NEWER, IN_NEWER, |_| Some("pids".to_owned()));
        let told = refused(&bounds_processes);
        assert!(told.starts_with("bottle.yaml:3:9: ") && told.contains("bounds memory"), "{told}");
        let not_ours = Host::parse(OLDER, IN_OLDER, |_| None);
        assert_eq!(not_ours, Host::default());
        assert!(refused(&not_ours).contains("bounds memory"));
        assert!(check(&Limits::default(), &not_ours).is_ok(), "nothing is asked for");
        assert_eq!(refused(&Host::parse(OLDER, IN_OLDER, |_| Some(String::new()))), "kept");
        // A group that is mounted from somewhere else than where this process is.
        let elsewhere = OLDER.replace(" / /sys", " /other /sys");
        assert_eq!(Host::parse(&elsewhere, IN_OLDER, |_| Some(String::new())), Host::default());
    }
}
