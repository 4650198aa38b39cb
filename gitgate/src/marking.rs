//! The key under which findings are named. It stays here: whoever has it could try out what a name stands for.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use scan::{MARK_KEY_BYTES, MarkKey};

/// The key that is kept beside the journal, which is made when there is none.
pub(crate) fn open(state_dir: &Path) -> io::Result<Arc<MarkKey>> {
    let path = state_dir.join("audit/git-gate/fingerprint.key");
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut key = [0; MARK_KEY_BYTES];
            getrandom::fill(&mut key).map_err(io::Error::other)?;
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            file.write_all(&key)?;
            key.to_vec()
        }
        Err(error) => return Err(error),
    };
    let key = bytes.try_into().map_err(|_| io::Error::other(format!("{} is no key", path.display())))?;
    Ok(Arc::new(MarkKey::new(key)))
}
