//! System calls that no safe crate wraps the way they are needed here. The only module with `unsafe`.
#![allow(unsafe_code)]

pub mod beneath;
pub mod credentials;
pub mod descriptors;
pub mod identity;
pub mod mounts;
pub mod namespaces;
pub mod network;
pub mod process;
pub mod socket;
pub mod terminal;

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `path` for a system call.
fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// The result of a system call that answers -1 with `errno`.
fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
