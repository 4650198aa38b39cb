//! Where the programs under test are.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result};

use crate::Run;

/// The five programs, and the stand-in for an API, in one directory.
#[derive(Debug, Clone)]
pub struct Binaries {
    directory: PathBuf,
}

impl Binaries {
    /// Those of this checkout, built once for this process; or those in the directory that `BOTTLECAP_BIN_DIR` names.
    pub fn find() -> Result<&'static Self> {
        static FOUND: OnceLock<Result<Binaries, String>> = OnceLock::new();
        FOUND
            .get_or_init(|| {
                locate().map(|directory| Self { directory }).map_err(|error| format!("{error:#}"))
            })
            .as_ref()
            .map_err(|error| anyhow::anyhow!("{error}"))
    }

    /// The directory that holds them.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// One of them.
    pub fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

fn locate() -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os("BOTTLECAP_BIN_DIR") {
        return Ok(PathBuf::from(directory).canonicalize()?);
    }
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    // cargo's own lock orders the test binaries that ask for this at the same time.
    Run::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        // All of them, as the tests themselves are built: another choice of packages would be another set of features, and
        // everything that others wrote would be compiled again.
        .args(["build", "--locked", "--quiet", "--workspace", "--bins", "--profile", profile])
        .within(workspace_root())
        .ok()
        .context("cannot build the programs under test")?;
    Ok(target_directory().join(if profile == "dev" { "debug" } else { profile }))
}

/// The top of the checkout.
pub fn workspace_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies one level below the workspace")
}

/// Where cargo put this very test, and so everything else.
pub fn target_directory() -> PathBuf {
    // TARGET/PROFILE/deps/TEST
    std::env::current_exe()
        .ok()
        .and_then(|test| test.ancestors().nth(3).map(Path::to_path_buf))
        .unwrap_or_else(|| workspace_root().join("target"))
}
