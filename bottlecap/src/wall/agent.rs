//! The last steps before the command: its own session, a second user namespace, no capability, no new privilege, no
//! foreign descriptor or key, and the system call filter.

use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};

use super::{Attempt, Setback};
use crate::etc::UID;
use crate::plan::{FromWall, Layer, Plan, Stdio};
use crate::seccomp::Filter;
use crate::sys::process::Image;
use crate::sys::socket::Channel;
use crate::sys::{descriptors, identity, process, terminal};

/// The exit codes of a shell for a command that is not there, and for one that cannot be run.
const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;

/// Becomes the command. Comes back only if that cannot be, with the exit code.
pub(super) fn become_command(
    plan: &Plan,
    stdio: &[OwnedFd; 3],
    filter: &Filter,
    channel: &Channel,
) -> Result<i32, Setback> {
    let image = image(plan).to("prepare the command")?;
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
    let error = execute(plan, &image);
    let errno = error.raw_os_error().unwrap_or(libc::EINVAL);
    channel.send(&FromWall::NotExecuted(errno), &[]).to("say so")?;
    Ok(if errno == libc::ENOENT { NOT_FOUND } else { NOT_EXECUTABLE })
}

fn image(plan: &Plan) -> io::Result<Image> {
    let c_string =
        |bytes: &[u8]| CString::new(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let arguments = plan.command.iter().map(|word| c_string(word.as_bytes())).collect::<io::Result<_>>()?;
    let variable =
        |(name, value): &(OsString, OsString)| c_string(&[name.as_bytes(), b"=", value.as_bytes()].concat());
    let environment = plan.environment.iter().map(variable).collect::<io::Result<_>>()?;
    Ok(Image::new(arguments, environment))
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

/// Tries the command by its path, or in each directory of PATH.
fn execute(plan: &Plan, image: &Image) -> io::Error {
    let Some(command) = plan.command.first() else { return io::Error::from_raw_os_error(libc::ENOENT) };
    if command.as_bytes().contains(&b'/') {
        return try_path(image, Path::new(command));
    }
    let path = plan.environment.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_bytes());
    let mut last = io::Error::from_raw_os_error(libc::ENOENT);
    for directory in
        path.unwrap_or_default().split(|byte| *byte == b':').filter(|directory| !directory.is_empty())
    {
        let error = try_path(image, &Path::new(OsStr::from_bytes(directory)).join(command));
        if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) {
            last = error;
        }
    }
    last
}

fn try_path(image: &Image, path: &Path) -> io::Error {
    match CString::new(path.as_os_str().as_bytes()) {
        Err(_) => io::Error::from_raw_os_error(libc::ENOENT),
        Ok(path) => match image.execute(&path) {
            Err(error) => error,
            Ok(never) => match never {},
        },
    }
}
