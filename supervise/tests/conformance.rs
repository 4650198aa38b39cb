//! The official conformance suite against our transport and dispatch, with what the suite wants to find on a server beside our own tools:
//! tools, prompts and resources of fixed words. They stand in this test, so that no build of the daemon can have them.
//!
//! `scripts/need.sh mcpclients` installs the suite; without it these tests fail and say so.
#![allow(clippy::unwrap_used)]

mod common;
mod suite;

use common::Bundle;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CompleteRequestParams, CompleteResult, GetPromptRequestParams,
    GetPromptResponse, GetPromptResult, ListPromptsResult, ListResourceTemplatesResult, ListResourcesResult,
    ListToolsResult, PaginatedRequestParams, ProgressNotificationParam, ReadResourceRequestParams,
    ReadResourceResponse, ReadResourceResult, ServerCapabilities, ServerConfig, Tool,
};
use rmcp::service::RequestContext;
use rmcp::{ErrorData, RoleServer, ServerHandler};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use supervise::mcp::Server;

/// What has to pass. What is not here wants something that this server has on purpose not: sessions, sampling, elicitation, logging,
/// subscriptions, tasks and skills (nothing here asks the agent's side), and a page of localhost that is let in.
const SCENARIOS: [&str; 22] = [
    "server-initialize",
    "ping",
    "tools-list",
    "tools-call-simple-text",
    "tools-call-image",
    "tools-call-audio",
    "tools-call-embedded-resource",
    "tools-call-mixed-content",
    "tools-call-error",
    "tools-call-with-progress",
    "json-schema-2020-12",
    "resources-list",
    "resources-read-text",
    "resources-read-binary",
    "resources-templates-read",
    "sep-2164-resource-not-found",
    "prompts-list",
    "prompts-get-simple",
    "prompts-get-with-args",
    "prompts-get-embedded-resource",
    "prompts-get-with-image",
    "completion-complete",
];
/// One pixel.
const PNG: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg==";
/// No sound.
const WAV: &str = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQAAAAA=";

/// Our own server, and the suite's fixtures beside it.
#[derive(Clone)]
struct Fixtures(Server);

fn to<T: DeserializeOwned>(value: Value) -> Result<T, ErrorData> {
    serde_json::from_value(value).map_err(|error| ErrorData::internal_error(error.to_string(), None))
}

fn tools() -> Value {
    let plain =
        |name: &str| json!({"name": name, "description": "A fixture.", "inputSchema": {"type": "object"}});
    let names = [
        "test_simple_text",
        "test_image_content",
        "test_audio_content",
        "test_embedded_resource",
        "test_multiple_content_types",
        "test_error_handling",
        "test_tool_with_progress",
    ];
    let mut tools: Vec<Value> = names.map(plain).into();
    tools.push(json!({
        "name": "json_schema_2020_12_tool", "description": "Tool with JSON Schema 2020-12 features",
        "inputSchema": {
            "$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object",
            "$defs": {"address": {"$anchor": "addressDef", "type": "object", "properties": {
                "street": {"type": "string"}, "city": {"type": "string"},
            }}},
            "properties": {
                "name": {"type": "string"}, "address": {"$ref": "#/$defs/address"},
                "contactMethod": {"type": "string", "enum": ["phone", "email"]},
                "phone": {"type": "string"}, "email": {"type": "string"},
            },
            "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
            "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
            "then": {"required": ["phone"]}, "else": {"required": ["email"]},
            "additionalProperties": false,
        },
    }));
    Value::Array(tools)
}

fn called(name: &str) -> Option<Value> {
    let text = |text: &str| json!({"type": "text", "text": text});
    let image = json!({"type": "image", "data": PNG, "mimeType": "image/png"});
    let resource = |uri: &str, kind: &str, text: &str| json!({"type": "resource", "resource": {"uri": uri, "mimeType": kind, "text": text}});
    Some(match name {
        "test_simple_text" => json!({"content": [text("This is a simple text response for testing.")]}),
        "test_image_content" => json!({"content": [image]}),
        "test_audio_content" => json!({"content": [{"type": "audio", "data": WAV, "mimeType": "audio/wav"}]}),
        "test_embedded_resource" => json!({"content": [
            resource("test://embedded-resource", "text/plain", "This is an embedded resource content."),
        ]}),
        "test_multiple_content_types" => json!({"content": [
            text("Multiple content types test:"), image,
            resource("test://mixed-content-resource", "application/json", "{\"test\":\"data\",\"value\":123}"),
        ]}),
        "test_error_handling" => {
            json!({"isError": true, "content": [text("This tool intentionally returns an error for testing")]})
        }
        "test_tool_with_progress" => json!({"content": [text("done")]}),
        _ => return None,
    })
}

fn read(uri: &str) -> Option<Value> {
    let content = match uri {
        "test://static-text" => {
            json!({"mimeType": "text/plain", "text": "This is the content of the static text resource."})
        }
        "test://static-binary" => json!({"mimeType": "image/png", "blob": PNG}),
        _ => {
            let id = uri.strip_prefix("test://template/")?.strip_suffix("/data")?;
            let text = json!({"id": id, "templateTest": true, "data": format!("Data for ID: {id}")});
            json!({"mimeType": "application/json", "text": text.to_string()})
        }
    };
    let mut content = content;
    content["uri"] = json!(uri);
    Some(json!({"contents": [content]}))
}

fn prompt(name: &str, arguments: &Value) -> Option<Value> {
    let says = |content: Value| json!({"role": "user", "content": content});
    let text = |text: String| says(json!({"type": "text", "text": text}));
    let word = |key: &str| arguments[key].as_str().unwrap_or_default().to_owned();
    let messages = match name {
        "test_simple_prompt" => json!([text("This is a simple prompt for testing.".to_owned())]),
        "test_prompt_with_arguments" => {
            json!([text(format!("Prompt with arguments: arg1='{}', arg2='{}'", word("arg1"), word("arg2")))])
        }
        "test_prompt_with_embedded_resource" => {
            let text_of = "Embedded resource content for testing.";
            let resource = json!({"uri": word("resourceUri"), "mimeType": "text/plain", "text": text_of});
            json!([
                says(json!({"type": "resource", "resource": resource})),
                text("Please process the embedded resource above.".to_owned()),
            ])
        }
        "test_prompt_with_image" => json!([
            says(json!({"type": "image", "data": PNG, "mimeType": "image/png"})),
            text("Please analyze the image above.".to_owned()),
        ]),
        _ => return None,
    };
    Some(json!({"messages": messages}))
}

impl ServerHandler for Fixtures {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder();
        let capabilities =
            capabilities.enable_tools().enable_prompts().enable_resources().enable_completions();
        let mut info = self.0.get_info();
        info.capabilities = capabilities.build();
        info
    }

    async fn list_tools(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let mut listed = self.0.list_tools(request, context).await?;
        listed.tools.extend(to::<Vec<Tool>>(tools())?);
        Ok(listed)
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let Some(result) = called(&request.name) else { return self.0.call_tool(request, context).await };
        if request.name == "test_tool_with_progress"
            && let Some(token) = context.meta.get_progress_token()
        {
            for step in [0.0, 50.0, 100.0] {
                let progress = ProgressNotificationParam::new(token.clone(), step).with_total(100.0);
                let told = context.peer.notify_progress(progress).await;
                told.map_err(|error| ErrorData::internal_error(error.to_string(), None))?;
            }
        }
        to::<rmcp::model::CallToolResult>(result).map(Into::into)
    }

    async fn list_prompts(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        let wanted = |name: &str| json!({"name": name, "description": "A fixture.", "required": true});
        let of = |name: &str, arguments: &[&str]| {
            let arguments: Vec<Value> = arguments.iter().map(|name| wanted(name)).collect();
            json!({"name": name, "description": "A fixture.", "arguments": arguments})
        };
        to(json!({"prompts": [
            of("test_simple_prompt", &[]), of("test_prompt_with_arguments", &["arg1", "arg2"]),
            of("test_prompt_with_embedded_resource", &["resourceUri"]), of("test_prompt_with_image", &[]),
        ]}))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        let arguments = request.arguments.map_or(Value::Null, |arguments| json!(arguments));
        let unknown = || ErrorData::invalid_params("no prompt has that name", None);
        to::<GetPromptResult>(prompt(&request.name, &arguments).ok_or_else(unknown)?).map(Into::into)
    }

    async fn list_resources(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        let of = |name: &str, kind: &str| json!({"uri": format!("test://{name}"), "name": name, "description": "A fixture.", "mimeType": kind});
        to(json!({"resources": [of("static-text", "text/plain"), of("static-binary", "image/png")]}))
    }

    async fn list_resource_templates(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        let template = json!({"uriTemplate": "test://template/{id}/data", "name": "template", "description": "A fixture."});
        to(json!({"resourceTemplates": [template]}))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let unknown = || ErrorData::invalid_params("Resource not found", Some(json!({"uri": request.uri})));
        to::<ReadResourceResult>(read(&request.uri).ok_or_else(unknown)?).map(Into::into)
    }

    async fn complete(
        &self,
        _request: CompleteRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        to(json!({"completion": {"values": ["paris", "park"], "total": 2, "hasMore": false}}))
    }
}

#[test]
fn the_suite_passes_with_its_fixtures_beside_our_tools() {
    let bundle = Bundle::mounting(Fixtures);
    let failed: Vec<String> =
        SCENARIOS.iter().filter_map(|scenario| suite::failure(bundle.address, scenario)).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    // Our own tools are still there, and what is theirs is ours alone.
    assert!(bundle.agent().call("list_requests", json!({})).is_ok());
}

#[test]
fn a_scenario_without_its_fixture_fails() {
    let bundle = Bundle::start();
    assert!(suite::failure(bundle.address, "tools-call-simple-text").is_some(), "the suite would not notice");
}
