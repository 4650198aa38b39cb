//! The wall process: a fresh image of this program with nothing of its parent's memory, which goes apart into its own
//! namespaces, hands out the listening sockets, and runs the bottle's init.

mod agent;
mod init;
mod mounts;
mod relay;

use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid};

use crate::plan::{DIRECT_V6, Door, FromWall, Layer, Plan, ToWall, doors};
use crate::sys::socket::Channel;
use crate::sys::{descriptors, network, process};

/// The descriptor with the plan.
pub const PLAN_FD: i32 = 3;
/// The descriptor to talk on.
pub const CHANNEL_FD: i32 = 4;

/// A wall that cannot be built.
#[derive(Debug, thiserror::Error)]
#[error("cannot {attempt}")]
struct Setback {
    attempt: String,
    #[source]
    source: io::Error,
}

trait Attempt<T> {
    /// Says what failed.
    fn to(self, attempt: impl Into<String>) -> Result<T, Setback>;
}

impl<T, E: Into<io::Error>> Attempt<T> for Result<T, E> {
    fn to(self, attempt: impl Into<String>) -> Result<T, Setback> {
        self.map_err(|source| Setback { attempt: attempt.into(), source: source.into() })
    }
}

/// Runs the wall; its exit code is the command's.
#[must_use]
pub fn main() -> i32 {
    let Ok(channel) = descriptors::inherited(CHANNEL_FD).map(Channel::from_fd) else { return FAILED };
    let mut channel = Some(channel);
    run(&mut channel).unwrap_or_else(|setback| report(channel.as_ref(), &setback))
}

/// The exit code when a wall cannot be built.
const FAILED: i32 = 70;

fn report(channel: Option<&Channel>, setback: &Setback) -> i32 {
    let failed = FromWall::Failed {
        attempt: setback.attempt.clone(),
        errno: setback.source.raw_os_error(),
        error: setback.source.to_string(),
    };
    // When nobody listens there is nobody to tell.
    let _ = channel.map(|channel| channel.send(&failed, &[]));
    FAILED
}

/// Goes through the whole life of the wall. The channel ends for the host when the command is executed, so no process
/// keeps its copy longer than it has something to say.
fn run(open: &mut Option<Channel>) -> Result<i32, Setback> {
    let channel = open.as_ref().ok_or(io::ErrorKind::NotConnected).to("talk to the host")?;
    let plan = read_plan().to("read the plan")?;
    if let Some(user) = plan.user {
        become_user(user).to("become an unprivileged user")?;
    }
    go_apart(&plan)?;
    channel.send(&FromWall::Apart, &[]).to("say so")?;
    let handed = expect(channel, ToWall::Mapped)?;
    nix::sys::prctl::set_dumpable(false).to("hide from other processes")?;
    nix::unistd::sethostname(crate::etc::HOSTNAME).to("set the host name")?;
    let listeners = if plan.has(Layer::Network) { listen(&plan.direct)? } else { Vec::new() };
    let borrowed: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
    channel.send(&FromWall::Listening, &borrowed).to("hand out the sockets")?;
    drop(listeners);
    let own = process::watch(nix::unistd::getpid()).to("watch itself")?;
    match process::fork_single_threaded().to("start the bottle's init")? {
        None => std::process::exit(init::main(&plan, open, handed, &own)),
        Some(init) => {
            drop(handed);
            drop(open.take());
            relay::until_exit(init, relay::Target::Process).to("wait for the bottle's init")
        }
    }
}

fn read_plan() -> io::Result<Plan> {
    let mut text = Vec::new();
    File::from(descriptors::inherited(PLAN_FD)?).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

fn become_user(user: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    let parent = nix::unistd::getppid();
    nix::unistd::setgroups(&[])?;
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::unistd::setresuid(uid, uid, uid)?;
    // Changing the user cleared it.
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    if nix::unistd::getppid() == parent { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
}

fn go_apart(plan: &Plan) -> Result<(), Setback> {
    let mut flags = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    flags.set(CloneFlags::CLONE_NEWNET, plan.has(Layer::Network));
    unshare(flags).to(crate::doctor::GO_APART)
}

fn expect(channel: &Channel, wanted: ToWall) -> Result<Vec<OwnedFd>, Setback> {
    match channel.receive::<ToWall>().to("hear from the host")? {
        Some((told, descriptors)) if told == wanted => Ok(descriptors),
        Some(_) | None => Err(io::Error::from(io::ErrorKind::UnexpectedEof)).to("hear from the host"),
    }
}

fn listen(direct: &[SocketAddr]) -> Result<Vec<OwnedFd>, Setback> {
    network::bring_up_loopback().to("bring the loopback interface up")?;
    if direct.iter().any(|address| address.ip() == DIRECT_V6) {
        network::add_to_loopback(DIRECT_V6)
            .to(format!("give the loopback interface the address {DIRECT_V6}"))?;
    }
    let open = |Door { name, kind, address }| {
        network::open(kind, address).to(format!("listen for {name} on {address}"))
    };
    doors(direct).into_iter().map(open).collect()
}
