//! The last steps before the command: its own session, a second user namespace, no capability, no new privilege, no
//! foreign descriptor or key, and the system call filter.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::sched::{CloneFlags, unshare};

use super::{Attempt, Setback};
use crate::command;
use crate::etc::UID;
use crate::plan::{FromWall, Layer, Plan, Stdio};
use crate::seccomp::Filter;
use crate::sys::socket::Channel;
use crate::sys::{descriptors, identity, process, terminal};

/// Becomes the command. Comes back only if that cannot be, with the exit code.
pub(super) fn become_command(
    plan: &Plan,
    stdio: &[OwnedFd; 3],
    filter: &Filter,
    channel: &Channel,
) -> Result<i32, Setback> {
    let environment = plan.environment.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str()));
    let image = command::image(&plan.command, environment).to("prepare the command")?;
    connect(plan, stdio).to("connect the command")?;
    if plan.has(Layer::SecondNamespace) {
        second_namespace()?;
    }
    std::env::set_current_dir(&plan.workdir).to("enter the working directory")?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    if plan.has(Layer::Keyring) {
        identity::new_session_keyring().to("take a new session keyring")?;
    }
    if plan.has(Layer::Cores) {
        process::no_core_dumps().to("keep core handlers away")?;
    }
    if plan.has(Layer::Capabilities) {
        identity::drop_capabilities().to("give up capabilities")?;
    }
    if plan.has(Layer::NoNewPrivileges) {
        nix::sys::prctl::set_no_new_privs().to("refuse new privileges")?;
    }
    if plan.has(Layer::Descriptors) {
        descriptors::close_on_exec_from(3).to("close foreign descriptors")?;
    }
    process::reset_signals().to("reset signals")?;
    if plan.has(Layer::Seccomp) {
        filter.install().to("install the system call filter")?;
    }
    let path = plan.environment.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_os_str());
    let word = plan.command.first().map(OsString::as_os_str);
    let why = command::execute(word, path.unwrap_or(OsStr::new("")), &image);
    channel.send(&FromWall::NotExecuted(why), &[]).to("say so")?;
    Ok(why.code())
}

fn connect(plan: &Plan, stdio: &[OwnedFd; 3]) -> io::Result<()> {
    if plan.has(Layer::Session) {
        nix::unistd::setsid()?;
        if plan.stdio == Stdio::Terminal {
            terminal::take_control(stdio[0].as_fd())?;
        }
    }
    for (number, fd) in (0..).zip(stdio) {
        descriptors::duplicate_to(fd.as_fd(), number)?;
    }
    Ok(())
}

/// Mounts made before are locked in here: they cannot be remounted, unmounted or looked under.
fn second_namespace() -> Result<(), Setback> {
    // The maps of a process that hides itself belong to root. Nobody else is in here to look at it yet.
    nix::sys::prctl::set_dumpable(true).to("open its own maps")?;
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).to("enter a second user namespace")?;
    let write = |name: &str, text: &str| fs::write(Path::new("/proc/self").join(name), text);
    write("setgroups", "deny")
        .and_then(|()| write("uid_map", &format!("{UID} 0 1")))
        .and_then(|()| write("gid_map", &format!("{UID} 0 1")))
        .to("map the agent's user")
}
