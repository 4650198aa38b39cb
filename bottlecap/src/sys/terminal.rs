//! Pseudo-terminals of a bottle's own devpts, and the caller's terminal.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use super::checked;

/// A new pseudo-terminal of the devpts mounted at `devpts`: the master, and the end for a program.
pub fn open_pair(devpts: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
    let master = File::options().read(true).write(true).open(devpts.join("ptmx"))?;
    let unlock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads an int that outlives the call.
    checked(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) }.into())?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open flags by value.
    let peer = checked(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) }.into())?;
    // SAFETY: the kernel has just made this descriptor, and nobody else has it.
    Ok((master.into(), unsafe { OwnedFd::from_raw_fd(peer as i32) }))
}

/// Makes `terminal` the controlling terminal of this session.
pub fn take_control(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer.
    checked(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) }.into())?;
    Ok(())
}

/// Gives the terminal `to` the size of the terminal `from`.
pub fn copy_size(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the structure is plain integers; zero is a value for each.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: TIOCGWINSZ writes a winsize, which outlives the call.
    checked(unsafe { libc::ioctl(from.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) }.into())?;
    // SAFETY: TIOCSWINSZ reads a winsize, which outlives the call.
    checked(unsafe { libc::ioctl(to.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }.into())?;
    Ok(())
}

/// The size of a terminal: columns and rows.
pub fn size(of: BorrowedFd<'_>) -> io::Result<(u16, u16)> {
    // SAFETY: the structure is plain integers; zero is a value for each.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: TIOCGWINSZ writes a winsize, which outlives the call.
    checked(unsafe { libc::ioctl(of.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) }.into())?;
    Ok((size.ws_col, size.ws_row))
}

/// Gives a terminal that many columns and rows.
pub fn set_size(of: &File, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads a winsize, which outlives the call.
    checked(unsafe { libc::ioctl(of.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }.into())?;
    Ok(())
}
