//! A directory laid out as a bundle sees the root of its file system.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

/// The fixed user of each daemon when the supervisor runs as root.
pub(crate) const EGRESS: u32 = 64101;
pub(crate) const GIT_GATE: u32 = 64102;
pub(crate) const SUPERVISE: u32 = 64103;

/// A temporary root with the bundle's directories, gone when dropped.
#[derive(Debug)]
pub struct TempRoot {
    directory: TempDir,
}

impl TempRoot {
    /// Makes it, with the owners that the image gives its directories.
    pub fn new() -> Result<Self> {
        // Short: socket paths end at 108 bytes.
        let directory = tempfile::Builder::new().prefix("bc-").tempdir()?;
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755))?;
        let root = Self { directory };
        for (path, mode, owner) in [
            ("etc/egress", 0o755, None),
            ("etc/git-gate", 0o755, None),
            ("git-gate/creds", 0o700, Some(GIT_GATE)),
            ("git", 0o700, Some(GIT_GATE)),
            ("var/lib/sidecars", 0o755, None),
            ("var/lib/sidecars/egress", 0o700, Some(EGRESS)),
            ("var/lib/sidecars/audit", 0o755, None),
            ("var/lib/sidecars/audit/egress", 0o700, Some(EGRESS)),
            ("var/lib/sidecars/audit/git-gate", 0o700, Some(GIT_GATE)),
            ("var/lib/sidecars/audit/supervise", 0o700, Some(SUPERVISE)),
            ("run/sidecars", if as_root() { 0o1777 } else { 0o700 }, None),
            ("run/secrets", 0o755, None),
        ] {
            let path = root.path(path);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
            fs::set_permissions(&path, Permissions::from_mode(mode))?;
            give(&path, owner)?;
        }
        Ok(root)
    }

    /// A path below it.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(relative)
    }

    /// Writes a file as an operator does: whole, beside it, then renamed over it.
    pub fn write(&self, relative: &str, text: &str) -> Result<()> {
        let path = self.path(relative);
        let beside = path.with_extension("new");
        fs::write(&beside, text)?;
        fs::rename(&beside, &path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Writes a secret that one daemon's user alone may read.
    pub(crate) fn write_private(&self, relative: &str, text: &str, owner: u32) -> Result<PathBuf> {
        let path = self.path(relative);
        fs::write(&path, text)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        give(&path, Some(owner))?;
        Ok(path)
    }
}

/// Whether the tests run as root, and the daemons then as users of their own.
pub(crate) fn as_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Changes the owner where that is possible: a test without root runs everything as one user.
fn give(path: &Path, owner: Option<u32>) -> Result<()> {
    match owner {
        Some(id) if as_root() => {
            chown(path, Some(id), Some(id)).with_context(|| format!("cannot chown {}", path.display()))
        }
        _ => Ok(()),
    }
}
