//! The programs that others wrote, and how the conformance suite is run.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

/// Where scripts/need.sh puts them.
pub fn clients() -> PathBuf {
    let named = std::env::var_os("BOTTLECAP_CLIENTS").map(PathBuf::from);
    // TARGET/PROFILE/deps/TEST
    let beside = || std::env::current_exe().unwrap().ancestors().nth(3).unwrap().join("clients");
    let clients = named.unwrap_or_else(beside).join("mcp");
    for program in [
        "bin/python",
        "node_modules/.bin/codex",
        "node_modules/.bin/conformance",
        "node_modules/.bin/mcp-inspector",
        "node_modules/.bin/node",
    ] {
        let path = clients.join(program);
        assert!(path.exists(), "no {}: run `scripts/need.sh mcpclients`", path.display());
    }
    clients
}

/// A program of npm's, with the node that came with it.
pub fn node(program: &str) -> Command {
    let programs = clients().join("node_modules/.bin");
    let mut command = Command::new(programs.join("node"));
    command.arg(programs.join(program));
    command
}

/// What the suite says of a scenario that does not pass.
pub fn failure(server: SocketAddr, scenario: &str) -> Option<String> {
    let results = tempfile::tempdir().unwrap();
    let output = node("conformance")
        .args(["server", "--url", &format!("http://{server}/mcp"), "--scenario", scenario])
        .current_dir(results.path())
        .output()
        .unwrap();
    let said =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (!output.status.success()).then(|| format!("{scenario}: {said}"))
}
