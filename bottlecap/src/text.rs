//! Configuration files as text.

use std::fs;
use std::path::Path;

use policy::Diagnostics;

use crate::fault::{Attempted, Fault};

/// What `file` says.
///
/// # Errors
/// When it cannot be read, with `attempt`; bytes that are no text, with their place.
pub fn read(file: &Path, attempt: impl FnOnce() -> String) -> Result<String, Fault> {
    let bytes = fs::read(file).refusing(attempt)?;
    Ok(policy::text(&file.display().to_string(), &bytes).map_err(Diagnostics::from)?.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_text_are_told_with_their_place() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("bottle.yaml");
        let told = |bytes: &[u8]| {
            fs::write(&file, bytes).unwrap();
            let fault = read(&file, || "cannot read".to_owned()).unwrap_err();
            assert_eq!(fault.code(), 64);
            fault.to_string().replace(&directory.path().display().to_string(), "")
        };
        assert_eq!(
            told("name: web\nenv: {A: ä\u{ff}".as_bytes().strip_suffix(b"\xbf").unwrap()),
            "/bottle.yaml:2:11: this is not UTF-8"
        );
        assert_eq!(told(b"\xff\xfe"), "/bottle.yaml:1:1: this is not UTF-8");
        assert_eq!(told(b"name: web\n\xff"), "/bottle.yaml:2:1: this is not UTF-8");
    }
}
