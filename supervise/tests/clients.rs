//! MCP clients that others wrote: the official conformance suite, the inspector, Python's own client, Claude Code and Codex.
//!
//! `scripts/need.sh mcpclients` installs them; without them these tests fail and say so.
#![allow(clippy::unwrap_used)]

mod common;
mod suite;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::Bundle;
use serde_json::{Value, json};

/// Those of the suite that a server with tools alone can pass. The rest want prompts, resources, sampling or tools made for the suite, and
/// one wants a page of localhost to be let in, which we keep out.
const SCENARIOS: [&str; 5] = ["server-initialize", "ping", "tools-list", "http-header-validation", "caching"];

#[test]
fn the_conformance_suite_passes_for_what_this_server_offers() {
    let bundle = Bundle::start();
    for scenario in SCENARIOS {
        assert_eq!(suite::failure(bundle.address, scenario), None);
    }
}

#[test]
fn pythons_own_client_asks_and_waits() {
    let bundle = Bundle::start();
    let operator = bundle.operator();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/ask.py");
    let url = format!("http://{}/mcp", bundle.address);
    let mut watching = operator.watch();
    // Not joined: when the client fails there is nothing to decide.
    std::thread::spawn(move || {
        let id = watching.next_pending();
        operator.ask(json!({"op": "reject", "id": id, "reason": "use the mirror"})).unwrap();
    });
    let output = Command::new(suite::clients().join("bin/python")).args([script, &url]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    insta::assert_snapshot!(said.trim(), @"
    tools: 14
    filed: pending
    told: rejected: use the mirror
    ");
}

#[test]
fn the_inspector_lists_and_calls() {
    let bundle = Bundle::start();
    let url = format!("http://{}/mcp", bundle.address);
    let inspect = |words: &[&str]| -> Value {
        let mut command = suite::node("mcp-inspector");
        let output = command.args(["--cli", &url, "--transport", "http"]).args(words).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}"))
    };
    let listed = inspect(&["--method", "tools/list"]);
    assert_eq!(listed["tools"].as_array().unwrap().len(), 14);
    let called = inspect(&[
        "--method",
        "tools/call",
        "--tool-name",
        "propose_route",
        "--tool-arg",
        "host=docs.example.com",
        "--tool-arg",
        "reason=the guide",
    ]);
    assert_eq!(called["structuredContent"]["state"], "pending");
    let pending = bundle.operator().ask(json!({"op": "list", "state": "pending"})).unwrap();
    assert_eq!(pending["requests"][0]["id"], called["structuredContent"]["id"]);
}

/// The stand-in for the agents' models.
struct Model {
    child: Child,
    port: u16,
}

impl Model {
    fn start() -> Model {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/model.py");
        let mut command = Command::new(suite::clients().join("bin/python"));
        let mut child = command.arg(script).stdout(Stdio::piped()).spawn().unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Model { child, port: port.trim().parse().unwrap() }
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a coding agent says in the end, whose model asks for a route, waits, and tells the answer, which is a no.
fn says(agent: impl FnOnce(&Bundle, &Model, &Path) -> Command) -> String {
    let (bundle, model, home) = (Bundle::start(), Model::start(), tempfile::tempdir().unwrap());
    let operator = bundle.operator();
    let mut watching = operator.watch();
    // Not joined: when the client fails there is nothing to decide.
    std::thread::spawn(move || {
        let id = watching.next_pending();
        operator.ask(json!({"op": "reject", "id": id, "reason": "use the mirror"})).unwrap();
    });
    let mut command = agent(&bundle, &model, home.path());
    let programs = suite::clients().join("node_modules/.bin");
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
    let output = command.env("PATH", path).env("HOME", home.path()).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

#[test]
fn claude_code_asks_waits_and_reads_the_answer() {
    let said = says(|bundle, model, _| {
        let url = format!("http://{}/mcp", bundle.address);
        let servers = json!({"mcpServers": {"supervise": {"type": "http", "url": url, "alwaysLoad": true}}});
        let program = suite::clients().with_file_name("node_modules").join(".bin/claude");
        assert!(program.exists(), "no {}: run `scripts/need.sh node22`", program.display());
        let mut command = Command::new(program);
        command.args([
            "--print",
            "reach the documentation",
            "--strict-mcp-config",
            "--allowedTools",
            "mcp__supervise",
        ]);
        command.arg("--mcp-config").arg(servers.to_string());
        command
            .env("ANTHROPIC_BASE_URL", format!("http://127.0.0.1:{}", model.port))
            .env("ANTHROPIC_API_KEY", "x");
        command.env("DISABLE_AUTOUPDATER", "1").env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1");
        command
    });
    assert!(
        said.starts_with("told: ") && said.contains("use the mirror") && said.contains("rejected"),
        "{said}"
    );
}

#[test]
fn codex_asks_waits_and_reads_the_answer() {
    let said = says(|bundle, model, home| {
        let provider = format!(
            "model_providers.stand-in={{name=\"stand-in\",base_url=\"http://127.0.0.1:{}/v1\",wire_api=\"responses\",env_key=\"KEY\"}}",
            model.port
        );
        let server = format!("mcp_servers.supervise.url=\"http://{}/mcp\"", bundle.address);
        let mut command = suite::node("codex");
        command.args(["exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]);
        command.args([
            "-c",
            "model=\"stand-in\"",
            "-c",
            "model_provider=\"stand-in\"",
            "-c",
            &provider,
            "-c",
            &server,
        ]);
        command.arg("reach the documentation").current_dir(home).env("CODEX_HOME", home).env("KEY", "x");
        command
    });
    assert!(
        said.contains("told: ") && said.contains("use the mirror") && said.contains("rejected"),
        "{said}"
    );
}
