//! The API that Claude Code speaks to, with the model's part of the conversation written down before.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::PATIENCE;
use crate::echo::Script;

/// What the model says when its tools have answered that: a block of content.
pub type Turns = Box<dyn Fn(&[String]) -> Value + Send + Sync>;

/// A conversation, as far as it has come.
pub struct Conversation {
    turns: Turns,
    page: Mutex<Page>,
    changed: Condvar,
}

#[derive(Default)]
struct Page {
    /// The headers of each call.
    calls: Vec<Value>,
    /// What the tools answered.
    results: Vec<String>,
}

impl Conversation {
    /// One in which nobody has spoken.
    #[must_use]
    pub fn new(turns: Turns) -> Arc<Self> {
        Arc::new(Self { turns, page: Mutex::default(), changed: Condvar::new() })
    }

    /// The block that says something.
    #[must_use]
    pub fn text(words: &str) -> Value {
        json!({"type": "text", "text": words})
    }

    /// The block that uses a tool.
    #[must_use]
    pub fn tool(name: &str, input: Value) -> Value {
        json!({"type": "tool_use", "name": name, "input": input})
    }

    /// What an HTTPS stand-in answers.
    #[must_use]
    pub fn script(self: &Arc<Self>) -> Script {
        let own = Arc::clone(self);
        Box::new(move |request, body| own.answer(request, body))
    }

    /// The headers of each call so far.
    pub fn calls(&self) -> Vec<Value> {
        self.page.lock().unwrap_or_else(PoisonError::into_inner).calls.clone()
    }

    /// What the tools have answered so far.
    pub fn results(&self) -> Vec<String> {
        self.page.lock().unwrap_or_else(PoisonError::into_inner).results.clone()
    }

    /// The answer of the tool with that number, waiting for it.
    pub fn result(&self, number: usize) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut page = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        while page.results.len() <= number {
            let left = deadline.saturating_duration_since(Instant::now());
            anyhow::ensure!(!left.is_zero(), "tool {number} never answered: {:?}", page.results);
            page = self.changed.wait_timeout(page, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        page.results.get(number).cloned().context("the answer is there")
    }

    fn answer(&self, request: &Value, body: &[u8]) -> Option<(&'static str, String)> {
        match request["path"].as_str()? {
            "/v1/messages" => {}
            "/v1/messages/count_tokens" => {
                return Some(("application/json", json!({"input_tokens": 1}).to_string()));
            }
            _ => return None,
        }
        let asked: Value = serde_json::from_slice(body).ok()?;
        let mut page = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        page.calls.push(request["headers"].clone());
        // What it asks beside the conversation (a title, say) brings no tools.
        let tools = asked["tools"].as_array().is_some_and(|tools| !tools.is_empty());
        let block = if tools {
            page.results = results(&asked["messages"]);
            self.changed.notify_all();
            (self.turns)(&page.results)
        } else {
            Self::text("ok")
        };
        let number = page.calls.len();
        drop(page);
        if asked["stream"] == true {
            Some(("text/event-stream", events(block, number)))
        } else {
            Some(("application/json", message(block, number).to_string()))
        }
    }
}

/// The text of each answer of a tool, in order.
fn results(messages: &Value) -> Vec<String> {
    let blocks = messages.as_array().into_iter().flatten();
    let blocks = blocks.flat_map(|message| message["content"].as_array().into_iter().flatten());
    let results = blocks.filter(|block| block["type"] == "tool_result");
    let text = |block: &Value| match &block["content"] {
        Value::String(text) => text.clone(),
        parts => parts.as_array().into_iter().flatten().filter_map(|part| part["text"].as_str()).collect(),
    };
    results.map(text).collect()
}

fn message(mut block: Value, number: usize) -> Value {
    let reason = if block["type"] == "tool_use" { "tool_use" } else { "end_turn" };
    if reason == "tool_use" {
        block["id"] = json!(format!("toolu_{number}"));
    }
    json!({
        "id": format!("msg_{number}"), "type": "message", "role": "assistant", "model": "claude-test", "content": [block],
        "stop_reason": reason, "stop_sequence": null, "usage": {"input_tokens": 1, "output_tokens": 1},
    })
}

/// The same message as it is streamed.
fn events(block: Value, number: usize) -> String {
    let mut message = message(block, number);
    let mut block = message["content"][0].take();
    let reason = message["stop_reason"].take();
    message["content"] = json!([]);
    let delta = match block["text"].take() {
        Value::String(text) => {
            block["text"] = json!("");
            json!({"type": "text_delta", "text": text})
        }
        _ => {
            let input = block["input"].take().to_string();
            block = json!({"type": "tool_use", "id": block["id"], "name": block["name"], "input": {}});
            json!({"type": "input_json_delta", "partial_json": input})
        }
    };
    let said = [
        json!({"type": "message_start", "message": message}),
        json!({"type": "content_block_start", "index": 0, "content_block": block}),
        json!({"type": "content_block_delta", "index": 0, "delta": delta}),
        json!({"type": "content_block_stop", "index": 0}),
        json!({"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": null}, "usage": {"output_tokens": 1}}),
        json!({"type": "message_stop"}),
    ];
    said.iter()
        .map(|event| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap_or("")))
        .collect()
}
