//! What the kernel of this host gives, and which setting is in the way where it does not; and what a bottle stands on beside it.

mod surroundings;
pub mod wire;

use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use serde::Serialize;

use crate::fault::{Attempted, Fault};
use crate::owners;
use crate::requests::{Form, json, print};
use crate::seccomp::{Datagrams, Filter};
use crate::state::Directories;
use crate::sys::mounts::{Attributes, Inode, clone_tree, restrict};
use crate::sys::process::fork_single_threaded;

/// The attempt that fails where there are no user namespaces.
pub const GO_APART: &str = "go apart into namespaces of its own";
/// The attempt that fails where /proc is masked.
pub const MOUNT_PROC: &str = "mount a fresh /proc";

/// Settings that stand in the way of user namespaces; `None` where this host has no such setting.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// kernel.unprivileged_userns_clone (Debian's older kernels).
    pub unprivileged_userns_clone: Option<String>,
    /// user.max_user_namespaces.
    pub max_user_namespaces: Option<String>,
    /// kernel.apparmor_restrict_unprivileged_userns (Ubuntu).
    pub apparmor_restrict: Option<String>,
    /// Whether this process is under a system call filter, as in a container.
    pub filtered: bool,
}

impl Settings {
    /// Those of this host.
    #[must_use]
    pub fn read() -> Settings {
        let setting = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Settings {
            unprivileged_userns_clone: setting("/proc/sys/kernel/unprivileged_userns_clone"),
            max_user_namespaces: setting("/proc/sys/user/max_user_namespaces"),
            apparmor_restrict: setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
            filtered: status.lines().any(|line| line.starts_with("Seccomp:") && line.ends_with('2')),
        }
    }

    /// What to do about user namespaces that are refused with `errno`.
    #[must_use]
    pub fn advice(&self, errno: Option<i32>) -> String {
        if self.max_user_namespaces.as_deref() == Some("0") {
            return "user.max_user_namespaces is 0: `sysctl -w user.max_user_namespaces=15000`".into();
        }
        if self.unprivileged_userns_clone.as_deref() == Some("0") {
            return "kernel.unprivileged_userns_clone is 0: `sysctl -w kernel.unprivileged_userns_clone=1`"
                .into();
        }
        if self.apparmor_restrict.as_deref() == Some("1") {
            return "kernel.apparmor_restrict_unprivileged_userns is 1: give bottlecap an AppArmor profile with `userns,`, \
                    or `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`"
                .into();
        }
        if errno == Some(libc::ENOSPC) {
            return "the limit user.max_user_namespaces is reached, or namespaces are nested too deep".into();
        }
        if self.filtered {
            return "a system call filter stands before this process, as in a container: run bottlecap on the host, or start \
                    the container with a seccomp profile that allows unshare"
                .into();
        }
        "this kernel refuses user namespaces: look for CONFIG_USER_NS and for what the distribution restricts"
            .into()
    }
}

/// What to do about a wall that cannot be built because the kernel refuses it; `None` when it is something else.
#[must_use]
pub fn advice(attempt: &str, errno: Option<i32>) -> Option<String> {
    let refused =
        matches!(errno, Some(libc::EPERM | libc::EACCES | libc::ENOSYS | libc::ENOSPC | libc::EINVAL));
    match attempt {
        GO_APART => Some(Settings::read().advice(errno)),
        MOUNT_PROC => Some(MASKED_PROC.into()),
        _ if refused => Some("`bottlecap doctor` says what this kernel gives".into()),
        _ => None,
    }
}

const MASKED_PROC: &str = "/proc of this host is masked in parts, as inside a container: run bottlecap outside of it, or start \
                           the container with `--security-opt systempaths=unconfined`";

/// One thing that a bottle needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Probe {
    UserNamespaces,
    Proc,
    MountAttributes,
    Filter,
    MappedMounts,
}

const PROBES: [(Probe, &str, &str); 5] = [
    (Probe::UserNamespaces, "user-namespaces", "user, network, mount and pid namespaces"),
    (Probe::Proc, "proc", "a fresh /proc in them"),
    (Probe::MountAttributes, "mount-attributes", "mount_setattr (Linux 5.12)"),
    (Probe::Filter, "seccomp", "system call filters"),
    (Probe::MappedMounts, "mapped-mounts", "mounts with mapped owners, for bottles that root starts"),
];

/// One thing that was looked at.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Finding {
    state: State,
    what: String,
    /// What is wrong, and what to do about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    note: String,
}

/// How it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// As it is to be.
    Ok,
    /// Some bottles need it otherwise.
    Note,
    /// No bottle can be made without it.
    Missing,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Finding { state, what, note } = self;
        match state {
            State::Ok => write!(f, "ok       {what}"),
            State::Note => write!(f, "note     {what}: {note}"),
            State::Missing => write!(f, "MISSING  {what}\n         {note}"),
        }
    }
}

/// Looks at each thing, those of the kernel in processes of their own, and says what it found.
///
/// # Errors
/// When something is missing.
pub fn report(form: Form, out: &mut impl Write) -> Result<(), Fault> {
    let mut findings = kernel()?;
    findings.extend(surroundings::look(&Directories::of_process()));
    match form {
        Form::Json => json(out, &findings)?,
        Form::Text => findings.iter().try_for_each(|finding| print(out, &format!("{finding}\n")))?,
    }
    match findings.iter().filter(|finding| finding.state == State::Missing).count() {
        0 => Ok(()),
        missing => Err(Fault::refused(format!("{missing} of what a bottle needs is missing here"))),
    }
}

fn kernel() -> Result<Vec<Finding>, Fault> {
    let root = nix::unistd::geteuid().is_root();
    let mut findings = Vec::new();
    for (probe, name, what) in PROBES {
        if probe == Probe::MappedMounts && !root {
            continue;
        }
        let output = Command::new("/proc/self/exe")
            .args(["__probe", name])
            .stdin(Stdio::null())
            .output()
            .failing(|| "cannot run a probe".to_owned())?;
        let (state, note) = if output.status.success() {
            (State::Ok, String::new())
        } else {
            (State::Missing, String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        findings.push(Finding { state, what: what.to_owned(), note });
    }
    Ok(findings)
}

/// Runs one probe in this process, which is spoilt for anything else by it. What is wrong is written to `out`.
pub fn probe(name: &str, out: &mut impl Write) -> bool {
    let Some((probe, ..)) = PROBES.into_iter().find(|(_, known, _)| *known == name) else { return false };
    let (result, advice) = match probe {
        Probe::UserNamespaces => {
            let result = apart();
            let advice = Settings::read().advice(result.as_ref().err().and_then(io::Error::raw_os_error));
            (result, advice)
        }
        Probe::Proc => (fresh_proc(), MASKED_PROC.to_owned()),
        Probe::MountAttributes => (attributes(), "a newer kernel is needed".to_owned()),
        Probe::Filter => (filter(), "the kernel is built without CONFIG_SECCOMP_FILTER".to_owned()),
        Probe::MappedMounts => {
            (mapped(), "the file system of the temporary directory cannot map owners; others may".to_owned())
        }
    };
    match result {
        Ok(()) => true,
        Err(error) => {
            // The exit code says it too.
            let _ = writeln!(out, "{error}; {advice}");
            false
        }
    }
}

fn apart() -> io::Result<()> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    unshare(
        CloneFlags::CLONE_NEWUSER
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWCGROUP,
    )?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    crate::sys::network::bring_up_loopback()
}

fn fresh_proc() -> io::Result<()> {
    apart()?;
    let Some(child) = fork_single_threaded()? else {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let mounted = mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>);
        std::process::exit(mounted.err().map_or(0, |errno| errno as i32));
    };
    match waitpid(child, None)? {
        WaitStatus::Exited(_, 0) => Ok(()),
        WaitStatus::Exited(_, errno) => Err(io::Error::from_raw_os_error(errno)),
        other => Err(io::Error::other(format!("{other:?}"))),
    }
}

fn attributes() -> io::Result<()> {
    apart()?;
    restrict(clone_tree(Path::new("/usr"))?.as_fd(), Attributes::READ_ONLY)
}

fn filter() -> io::Result<()> {
    nix::sys::prctl::set_no_new_privs()?;
    Ok(Filter::compile(Datagrams::Allowed)?.install()?)
}

fn mapped() -> io::Result<()> {
    let directory = std::env::temp_dir();
    let inode = Inode::from(&fs::metadata(&directory)?);
    owners::mapped_tree(&directory, inode, (0, 0)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advice_names_the_setting() {
        let advice = |change: fn(&mut Settings), errno| {
            let mut settings = Settings { max_user_namespaces: Some("15000".into()), ..Settings::default() };
            change(&mut settings);
            settings.advice(Some(errno)).split(':').next().unwrap_or_default().to_owned()
        };
        let advices = [
            advice(|settings| settings.max_user_namespaces = Some("0".into()), libc::ENOSPC),
            advice(|settings| settings.unprivileged_userns_clone = Some("0".into()), libc::EPERM),
            advice(|settings| settings.apparmor_restrict = Some("1".into()), libc::EPERM),
            advice(|settings| settings.filtered = true, libc::EPERM),
            advice(|_| {}, libc::ENOSPC),
            advice(|_| {}, libc::EPERM),
        ];
        insta::assert_snapshot!(advices.join("\n"), @r"
        user.max_user_namespaces is 0
        kernel.unprivileged_userns_clone is 0
        kernel.apparmor_restrict_unprivileged_userns is 1
        a system call filter stands before this process, as in a container
        the limit user.max_user_namespaces is reached, or namespaces are nested too deep
        this kernel refuses user namespaces
        ");
    }
}
