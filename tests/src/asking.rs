//! Asking from within a bundle, and deciding on it from outside.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{Binaries, Bundle, PATIENCE, Run};

impl Bundle {
    /// One call of a tool, as an agent without an MCP library would make it: its structured answer.
    pub fn tool(&self, tool: &str, arguments: &Value) -> Result<Value> {
        let params = json!({"name": tool, "arguments": arguments});
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).to_string();
        let address = self.address(9100);
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "POST /mcp HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\n\
             MCP-Protocol-Version: 2025-06-18\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (_, body) = text.split_once("\r\n\r\n").with_context(|| text.clone())?;
        let last = body.lines().filter_map(|line| line.strip_prefix("data:")).next_back().unwrap_or(body);
        let message: Value = serde_json::from_str(last.trim()).with_context(|| text.clone())?;
        Ok(message["result"]["structuredContent"].clone())
    }

    /// `bottlecap` for this bundle; with `requests`, for its files.
    pub fn bottlecap(&self, words: &[&str]) -> Result<String> {
        let program = Binaries::find()?.program("bottlecap");
        let mut run = Run::new(program).args(words);
        if words.first() == Some(&"requests") {
            for (option, directory) in
                [("--routes", "etc/egress"), ("--repos", "etc/git-gate"), ("--run-dir", "run/sidecars")]
            {
                run = run.args([option]).args([self.root.path(directory)]);
            }
        }
        run.ok()
    }

    /// The token of what `requests show` shows with these options.
    pub fn token(&self, id: &str, options: &[&str]) -> Result<String> {
        let shown = self.bottlecap(&[&["requests", "show", id, "--json"], options].concat())?;
        let shown: Value = serde_json::from_str(&shown)?;
        Ok(shown["review"]["token"].as_str().with_context(|| shown.to_string())?.to_owned())
    }

    /// Approves what is shown.
    pub fn approve(&self, id: &str, options: &[&str]) -> Result<String> {
        let token = self.token(id, options)?;
        self.bottlecap(&[&["requests", "approve", id, "--token", &token], options].concat())
    }

    /// What egress would say to a GET: `allow`, or the code. Nothing is looked up or dialled.
    pub fn outcome(&self, url: &str) -> Result<Value> {
        let url = url.replace('/', "%2F").replace(':', "%3A");
        let told = self.curl([format!("http://_egress.local/explain?url={url}")])?.json()?;
        Ok(if told["outcome"] == "deny" { told["code"].clone() } else { told["outcome"].clone() })
    }
}
