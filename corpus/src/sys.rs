//! The one place where a number becomes a descriptor.
#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes over a descriptor that came with a message.
pub(crate) fn owned(descriptor: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for the message, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}
