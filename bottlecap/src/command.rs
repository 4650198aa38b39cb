//! The command: looked for as a shell does it, and why it could not be executed.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::sys::process::Image;

/// The exit codes of a shell for a command that is not there, and for one that cannot be run.
const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;

/// Why the command could not be executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum NotExecuted {
    /// The error of the system.
    #[error("{}", io::Error::from_raw_os_error(*.0))]
    System(i32),
    /// The file is there, and what the kernel needs to run it is not.
    #[error(
        "the program is there, and its interpreter is not: what a script names in its first line, or the loader of another C library"
    )]
    Interpreter,
}

impl NotExecuted {
    /// There is no such program.
    pub const ABSENT: NotExecuted = NotExecuted::System(libc::ENOENT);

    /// The exit code of a shell.
    #[must_use]
    pub fn code(self) -> i32 {
        if self == Self::ABSENT { NOT_FOUND } else { NOT_EXECUTABLE }
    }
}

/// Becomes the program that `word` is the path of, or that is in a directory of `path`. Comes back only if that cannot be.
#[must_use]
pub fn execute(word: Option<&OsStr>, path: &OsStr, image: &Image) -> NotExecuted {
    let Some(word) = word else { return NotExecuted::ABSENT };
    let places: Vec<PathBuf> = if word.as_bytes().contains(&b'/') {
        vec![PathBuf::from(word)]
    } else {
        let directories = path.as_bytes().split(|byte| *byte == b':').filter(|part| !part.is_empty());
        directories.map(|part| Path::new(OsStr::from_bytes(part)).join(word)).collect()
    };
    let mut last = NotExecuted::ABSENT;
    for place in places {
        let there = place.exists();
        let Ok(path) = CString::new(place.into_os_string().into_vec()) else { continue };
        let errno = match image.execute(&path) {
            Err(error) => error.raw_os_error().unwrap_or(libc::EINVAL),
            Ok(never) => match never {},
        };
        match errno {
            libc::ENOENT if there => last = NotExecuted::Interpreter,
            libc::ENOENT | libc::ENOTDIR => {}
            errno => last = NotExecuted::System(errno),
        }
    }
    last
}

/// `words` and what is in `environment`, as the kernel takes them.
///
/// # Errors
/// When one of them has a zero byte in it.
pub fn image<'v>(
    words: &[OsString],
    environment: impl IntoIterator<Item = (&'v OsStr, &'v OsStr)>,
) -> io::Result<Image> {
    let c_string =
        |bytes: Vec<u8>| CString::new(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let arguments = words.iter().map(|word| c_string(word.as_bytes().to_vec())).collect::<io::Result<_>>()?;
    let variable =
        |(name, value): (&OsStr, &OsStr)| c_string([name.as_bytes(), b"=", value.as_bytes()].concat());
    let environment = environment.into_iter().map(variable).collect::<io::Result<_>>()?;
    Ok(Image::new(arguments, environment))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_missing_is_told_apart_and_has_the_exit_code_of_a_shell() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str, mode: u32| {
            fs::write(directory.path().join(name), text).unwrap();
            fs::set_permissions(directory.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        write("script", "#!/nowhere/interpreter\n", 0o755);
        write("plain", "#!/bin/sh\n", 0o644);
        let path = std::env::join_paths([Path::new("/nowhere"), directory.path()]).unwrap();
        let tried = |word: &str| {
            let image = image(&[word.into()], []).unwrap();
            let why = execute(Some(word.as_ref()), &path, &image);
            (why, why.code())
        };
        assert_eq!(tried("script"), (NotExecuted::Interpreter, 126));
        assert_eq!(
            tried(&directory.path().join("script").display().to_string()),
            (NotExecuted::Interpreter, 126)
        );
        assert_eq!(tried("plain"), (NotExecuted::System(libc::EACCES), 126));
        assert_eq!(tried("absent"), (NotExecuted::ABSENT, 127));
        assert_eq!(tried("/nowhere/absent"), (NotExecuted::ABSENT, 127));
        assert!(NotExecuted::ABSENT.to_string().starts_with("No such file or directory"));
    }
}
