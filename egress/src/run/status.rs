use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::proxy::InForce;
use crate::sys;

/// `egress.status.json`: which routes are in force, and why newer ones are not.
pub(super) struct StatusFile {
    directory: PathBuf,
}

#[derive(Serialize)]
struct Status<'a> {
    generation: u64,
    digest: &'a str,
    loaded_at: String,
    last_error: Option<&'a str>,
}

impl StatusFile {
    pub(super) fn new(directory: &Path) -> StatusFile {
        StatusFile { directory: directory.to_owned() }
    }

    /// Replaces the file at once.
    pub(super) fn write(&self, in_force: &InForce, last_error: Option<&str>) -> io::Result<()> {
        let status = Status {
            generation: in_force.generation,
            digest: &in_force.digest,
            loaded_at: in_force.loaded_at.to_string(),
            last_error,
        };
        let mut text = serde_json::to_vec(&status)?;
        text.push(b'\n');
        let new = self.directory.join(format!(".egress.status.json.{}", std::process::id()));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o644);
        let mut file = sys::with_reserve(|| options.open(&new))?;
        file.write_all(&text)?;
        fs::rename(&new, self.directory.join("egress.status.json"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_status_says_what_is_in_force_and_what_was_refused() {
        let directory = tempfile::tempdir().unwrap();
        let in_force = InForce {
            generation: 3,
            digest: "sha256:ab".to_owned(),
            loaded_at: "2026-11-21T10:00:00Z".parse().unwrap(),
        };
        let refused = Some("routes.yaml:5:5: unknown field `metods`");
        StatusFile::new(directory.path()).write(&in_force, refused).unwrap();
        assert_eq!(
            fs::read_to_string(directory.path().join("egress.status.json")).unwrap(),
            "{\"generation\":3,\"digest\":\"sha256:ab\",\"loaded_at\":\"2026-11-21T10:00:00Z\",\
             \"last_error\":\"routes.yaml:5:5: unknown field `metods`\"}\n"
        );
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
