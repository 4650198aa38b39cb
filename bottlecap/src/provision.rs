//! What a bottle is provided with, in a fixed order, and the report of it.
//!
//! A step that the walls rest on stops the start when it fails; any other is told as a warning and left out.

pub mod java;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::addresses::Addresses;
use crate::backend::Kind;
use crate::environment::{JAVA_PASSWORD, Java};
use crate::etc::Identity;
use crate::fault::{Attempted, Fault};
use crate::host;
use crate::layout::HOME;
use crate::run::Checked;
use crate::state::Home;
use crate::workdir::shown;

/// The report in a bottle's state.
pub const REPORT: &str = "provision.json";

/// Whether the report is printed too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Report {
    /// It is only kept in the bottle's state.
    #[default]
    Kept,
    /// It is printed before the command runs.
    Printed,
}

/// One thing that a bottle was provided with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// What.
    pub step: String,
    /// How it went.
    pub outcome: Outcome,
    /// Where it is, or what is missing.
    pub detail: String,
}

/// How a step went. One that the walls rest on has no third outcome: the bottle does not start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It is there.
    Done,
    /// It is left out.
    Warned,
}

impl Item {
    /// A step that was done.
    pub fn done(step: &str, detail: impl Into<String>) -> Item {
        Item { step: step.to_owned(), outcome: Outcome::Done, detail: detail.into() }
    }

    fn warned(step: &str, detail: impl Into<String>) -> Item {
        Item { step: step.to_owned(), outcome: Outcome::Warned, detail: detail.into() }
    }
}

/// Whether a bottle of this kind may have a Java machine: a container's image is not looked into.
#[must_use]
pub fn java(kind: Kind) -> Java {
    let installed = || Path::new("/usr/lib/jvm").is_dir() || Path::new("/usr/bin/java").exists();
    if kind == Kind::Docker || installed() { Java::Present } else { Java::Absent }
}

/// The texts of a bottle that trusts `ca`, and what it is provided with.
///
/// # Errors
/// When the bottle's certificate authority is none.
pub fn identity(
    checked: &Checked,
    addresses: &Addresses,
    ca: Option<String>,
) -> Result<(Identity, Vec<Item>), Fault> {
    let mut items = Vec::new();
    if let Some(ca) = &ca {
        items.push(Item::done("authority", format!("SHA-256 {}", fingerprint(ca)?)));
    }
    let host_roots = host::roots();
    items.push(if host_roots.is_empty() {
        Item::warned("trust", "this host keeps no roots of trust: only the bottle's own authority is trusted")
    } else {
        Item::done("trust", "system bundle, Node, Python, curl, git, cargo, Deno, pip, AWS")
    });
    let roots = join(host_roots, ca.as_deref());
    let java = match java(checked.backend) {
        Java::Absent => None,
        Java::Present => {
            let certificates = java::certificates(&roots);
            items.push(Item::done("trust-java", format!("{} roots", certificates.len())));
            Some(java::store(&certificates, JAVA_PASSWORD))
        }
    };
    items.push(Item::done("agent", format!("{} files of its own", checked.luggage.files.len())));
    items.push(Item::done(
        "git",
        format!("{} repositories by {}", checked.repos.iter().count(), addresses.git()),
    ));
    items.push(Item::done("workdir", shown(&checked.workdir.path).to_string()));
    items.push(Item::done("mcp", format!("{}, registered for the agent", addresses.mcp())));
    items.push(Item::done("environment", format!("{} variables", checked.environment.len())));
    let mut gitconfig = repos::gitconfig(&checked.repos, &addresses.git_with_port());
    gitconfig.push_str(&checked.luggage.gitconfig());
    let mut luggage = checked.luggage.files.clone();
    let registration = checked.luggage.preset.and_then(|preset| preset.registration(addresses));
    luggage.extend(registration.map(|(path, text)| (Path::new(HOME).join(path), text)));
    let names = checked.names();
    Ok((Identity { gitconfig, roots, ca, java, luggage, names, addresses: addresses.clone() }, items))
}

/// The digest of a certificate as people compare it.
fn fingerprint(pem: &str) -> Result<String, Fault> {
    let Some(certificate) = java::certificates(pem).into_iter().next() else {
        return Err(Fault::failed("the bottle's certificate authority is no certificate"));
    };
    let digits: Vec<String> = Sha256::digest(certificate).iter().map(|byte| format!("{byte:02X}")).collect();
    Ok(digits.join(":"))
}

fn join(mut roots: String, ca: Option<&str>) -> String {
    if !roots.is_empty() && !roots.ends_with('\n') {
        roots.push('\n');
    }
    roots.push_str(ca.unwrap_or_default());
    roots
}

/// Keeps the report in the bottle's state, tells of what was left out, and prints all of it where that was asked for.
pub fn tell(items: &[Item], home: &Home, report: Report) -> Result<(), Fault> {
    let path = home.path().join(REPORT);
    let told = || format!("cannot write {}", path.display());
    let text = serde_json::to_vec(items).failing(told)?;
    let file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&path);
    file.and_then(|mut file| file.write_all(&text)).failing(told)?;
    for item in items {
        match (item.outcome, report) {
            (Outcome::Warned, Report::Kept) => tracing::warn!("{}: {}", item.step, item.detail),
            (Outcome::Done, Report::Kept) => {}
            (Outcome::Done | Outcome::Warned, Report::Printed) => {
                let word = if item.outcome == Outcome::Done { "ok" } else { "warning" };
                // Nobody is there to be told that nobody is there.
                let _ = writeln!(std::io::stderr(), "{word:<8} {:<12} {}", item.step, item.detail);
            }
        }
    }
    Ok(())
}

/// What the bottle at `home` was provided with last.
#[must_use]
pub fn read(home: &Home) -> Vec<Item> {
    let bytes = fs::read(home.path().join(REPORT)).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}
