//! The texts of a bottle's own /etc and home.

use std::path::{Path, PathBuf};

use crate::addresses::Addresses;
use crate::layout::{HOME, OURS};
use crate::plan::DIRECT_V4;

/// The user that the agent is inside.
pub const USER: &str = "agent";
/// Its number, user and group.
pub const UID: u32 = 1000;
/// The name of the machine inside.
pub const HOSTNAME: &str = "bottle";

/// What differs between bottles in these texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Which repositories git is to ask the gate for.
    pub gitconfig: String,
    /// The roots of trust, PEM: the host's and the bottle's.
    pub roots: String,
    /// The bottle's own certificate authority, PEM.
    pub ca: Option<String>,
    /// What the agent brings.
    pub luggage: Vec<(PathBuf, String)>,
    /// The same roots as a Java machine reads them.
    pub java: Option<Vec<u8>>,
    /// Where the daemons are reached.
    pub addresses: Addresses,
    /// Who answers for names.
    pub names: Names,
}

/// Who answers for names inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// /etc/hosts alone.
    Files,
    /// After it egress, which knows allowed names.
    Egress,
}

/// Path and text of each file of /etc that is ours.
#[must_use]
pub fn files(identity: &Identity) -> Vec<(PathBuf, String)> {
    let mut files = vec![
        etc("hosts", hosts()),
        etc("hostname", format!("{HOSTNAME}\n")),
        etc("resolv.conf", resolv_conf(identity.names)),
        etc("nsswitch.conf", nsswitch_conf(identity.names)),
        etc("passwd", passwd((UID, UID))),
        etc("group", group((UID, UID))),
        etc("gitconfig", identity.gitconfig.clone()),
        etc("shells", "/bin/sh\n/bin/bash\n".to_owned()),
        etc("ssl/certs/ca-certificates.crt", identity.roots.clone()),
        etc("ssl/cert.pem", identity.roots.clone()),
    ];
    files.extend(own_files(identity));
    files
}

/// Path and text of each file in the directory that is ours, whatever the rest of /etc is.
#[must_use]
pub fn own_files(identity: &Identity) -> Vec<(PathBuf, String)> {
    let mut files = vec![
        ours("ca-bundle.pem", identity.roots.clone()),
        ours("gitconfig", identity.gitconfig.clone()),
        ours("mcp.json", mcp_servers(&identity.addresses)),
    ];
    files.extend(identity.ca.iter().map(|ca| ours("ca.pem", ca.clone())));
    files.extend(identity.luggage.iter().filter(|(path, _)| !path.starts_with(HOME)).cloned());
    files
}

impl Identity {
    /// Path and text of each file that the home starts with.
    #[must_use]
    pub fn home_files(&self) -> Vec<(PathBuf, String)> {
        let mut files = vec![(Path::new(HOME).join(".claude.json"), mcp_servers(&self.addresses))];
        files.extend(self.luggage.iter().filter(|(path, _)| path.starts_with(HOME)).cloned());
        files
    }
}

fn etc(name: &str, text: String) -> (PathBuf, String) {
    (Path::new("/etc").join(name), text)
}

fn ours(name: &str, text: String) -> (PathBuf, String) {
    (Path::new(OURS).join(name), text)
}

fn hosts() -> String {
    format!("127.0.0.1 localhost egress git-gate supervise {HOSTNAME}\n::1 localhost\n")
}

fn resolv_conf(names: Names) -> String {
    match names {
        // No resolver answers there.
        Names::Files => "# names are looked up by the proxy, outside\nnameserver 127.0.0.1\noptions timeout:1 attempts:1\n".into(),
        Names::Egress => format!("# egress knows allowed names, and asks no one\nnameserver {DIRECT_V4}\n"),
    }
}

fn nsswitch_conf(names: Names) -> String {
    let hosts = match names {
        Names::Files => "files",
        Names::Egress => "files dns",
    };
    format!(
        "passwd: files\ngroup: files\nshadow: files\nhosts: {hosts}\nnetworks: files\nprotocols: files\nservices: files\n\
         ethers: files\nrpc: files\n"
    )
}

/// /etc/passwd with the agent as that user and group.
#[must_use]
pub fn passwd((user, group): (u32, u32)) -> String {
    format!(
        "{USER}:x:{user}:{group}:{USER}:{HOME}:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    )
}

/// /etc/group with the agent's group.
#[must_use]
pub fn group((_, group): (u32, u32)) -> String {
    format!("{USER}:x:{group}:\nnogroup:x:65534:\n")
}

fn mcp_servers(addresses: &Addresses) -> String {
    let servers = serde_json::json!({
        "mcpServers": { "bottlecap": { "type": "http", "url": addresses.mcp(), "alwaysLoad": true } }
    });
    format!("{servers:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mcp_entry_is_loaded_without_being_searched_for() {
        insta::assert_snapshot!(mcp_servers(&Addresses::names()), @r#"
        {
          "mcpServers": {
            "bottlecap": {
              "alwaysLoad": true,
              "type": "http",
              "url": "http://supervise:9100/mcp"
            }
          }
        }
        "#);
    }

    #[test]
    fn names_of_the_bundle_are_loopback() {
        insta::assert_snapshot!(hosts(), @r"
        127.0.0.1 localhost egress git-gate supervise bottle
        ::1 localhost
        ");
    }
}
