//! What the bottle may reach at present.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nix::fcntl::OFlag;
use proposal::policy::{AllowlistEntry, Policy};
use serde::{Deserialize, Serialize};

/// No routes.yaml of a person's comes near it.
const FILE_LIMIT: u64 = 4 << 20;

/// Where to look: the routes as they are written, and what egress says about those in force.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The routes.
    pub routes: PathBuf,
    /// Egress's status file.
    pub status: PathBuf,
}

/// The effective routes.
#[derive(Debug, Serialize)]
pub struct Access {
    /// Digest of the routes as they are written, `sha256:…`.
    pub digest: String,
    /// Whether these are the ones in force; unknown when egress has not said so.
    pub in_force: Option<bool>,
    /// The generation in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Why egress did not take newer routes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// The routes, without what is secret. Everything else is refused.
    pub routes: Vec<AllowlistEntry>,
}

/// Why that cannot be told. For the log: the agent gets the code.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The routes cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The routes as they are written are not valid.
    #[error("{0}")]
    Invalid(proposal::policy::Diagnostics),
}

#[derive(Debug, Deserialize)]
struct Status {
    generation: u64,
    digest: String,
    #[serde(default)]
    last_error: Option<String>,
}

impl Sources {
    /// Reads both.
    ///
    /// # Errors
    /// When the routes cannot be read or are not valid; a missing status is no error.
    pub fn access(&self, now: Timestamp) -> Result<Access, AccessError> {
        let (text, policy) = self.policy()?;
        let status = read(&self.status).ok().and_then(|text| serde_json::from_str::<Status>(&text).ok());
        let digest = proposal::digest(&text);
        Ok(Access {
            in_force: status.as_ref().map(|status| status.digest == digest),
            generation: status.as_ref().map(|status| status.generation),
            last_error: status.and_then(|status| status.last_error),
            routes: policy.allowlist(now).routes,
            digest,
        })
    }

    /// The routes as they are written.
    ///
    /// # Errors
    /// When they cannot be read or are not valid.
    pub fn policy(&self) -> Result<(String, Policy), AccessError> {
        let text =
            read(&self.routes).map_err(|source| AccessError::Read { path: self.routes.clone(), source })?;
        let policy = Policy::parse("routes.yaml", &text).map_err(AccessError::Invalid)?;
        Ok((text, policy))
    }
}

/// The status is egress' own file: what it puts in its place is neither waited for nor read without end.
fn read(path: &Path) -> std::io::Result<String> {
    let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("not a regular file"));
    }
    let mut text = String::new();
    file.take(FILE_LIMIT).read_to_string(&mut text)?;
    Ok(text)
}
