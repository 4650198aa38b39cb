//! Namespaces of other processes.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use nix::sys::stat::fstat;
use nix::unistd::getppid;

use super::checked;

/// A network namespace to go into, and the user namespace that it belongs to where that is another than ours: whoever goes in has no
/// power over anything else.
#[derive(Debug)]
pub struct Network {
    network: OwnedFd,
    users: Option<OwnedFd>,
}

impl Network {
    /// That of the process with this number.
    ///
    /// # Errors
    /// When it may not be looked into, or is in the network of this process.
    pub fn of(pid: i32) -> io::Result<Network> {
        let network = OwnedFd::from(File::open(format!("/proc/{pid}/ns/net"))?);
        if is_own(network.as_fd(), "net")? {
            return Err(io::Error::other("it has no network of its own"));
        }
        let users = owner(network.as_fd())?;
        let users = if is_own(users.as_fd(), "user")? { None } else { Some(users) };
        Ok(Network { network, users })
    }

    /// Takes this process there. It has one thread, and makes system calls alone.
    pub fn enter(&self) -> io::Result<()> {
        let parent = getppid();
        if let Some(users) = &self.users {
            setns(users, CloneFlags::CLONE_NEWUSER)?;
        }
        setns(&self.network, CloneFlags::CLONE_NEWNET)?;
        // Changing the user cleared it.
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        // Who had ended by then is not told of.
        if getppid() == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
    }
}

fn is_own(namespace: BorrowedFd<'_>, kind: &str) -> io::Result<bool> {
    let own = File::open(format!("/proc/self/ns/{kind}"))?;
    let (one, other) = (fstat(namespace)?, fstat(own)?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

/// The user namespace that `namespace` belongs to.
fn owner(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: NS_GET_USERNS takes nothing and answers with a descriptor.
    let fd = checked(unsafe { libc::ioctl(namespace.as_raw_fd(), libc::NS_GET_USERNS) }.into())?;
    // SAFETY: the kernel has just made this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
