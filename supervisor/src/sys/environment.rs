//! Taking secrets out of the environment that we were started with.

use std::ffi::{CStr, c_char};

unsafe extern "C" {
    static mut environ: *mut *mut c_char;
}

/// Takes every variable whose name starts with `prefix` out of the environment and overwrites it in place, so that
/// neither `getenv` nor `/proc/PID/environ` shows it any more. The names and values are the only copies left.
///
/// To be called before anything else reads the environment, while there is one thread.
pub(crate) fn take(prefix: &str) -> Vec<(String, Vec<u8>)> {
    let mut taken = Vec::new();
    // SAFETY: one thread runs, so nobody else reads or writes `environ`. It is a null-terminated array of
    // null-terminated strings which lie in the writable block that the kernel made at exec.
    unsafe {
        let mut read = environ;
        if read.is_null() {
            return taken;
        }
        let mut write = read;
        while !(*read).is_null() {
            let entry = *read;
            let text = CStr::from_ptr(entry).to_bytes();
            if text.starts_with(prefix.as_bytes()) {
                let length = text.len();
                taken.extend(split(text));
                super::wipe(std::slice::from_raw_parts_mut(entry.cast::<u8>(), length));
            } else {
                *write = entry;
                write = write.add(1);
            }
            read = read.add(1);
        }
        *write = std::ptr::null_mut();
    }
    taken
}

fn split(entry: &[u8]) -> Option<(String, Vec<u8>)> {
    let at = entry.iter().position(|byte| *byte == b'=')?;
    Some((String::from_utf8_lossy(&entry[..at]).into_owned(), entry[at + 1..].to_vec()))
}
