"""A stand-in for the models behind two coding agents, on loopback: it asks for a route, waits for the decision, and says what it was told.

Prints its port. Speaks Anthropic's messages (POST /v1/messages) and OpenAI's responses (POST /v1/responses), streamed.
"""
import http.server
import json
import re

ASKED = {"host": "docs.example.com", "reason": "the guide"}


def turn(results):
    """What the model does after these results of tools: a tool and its arguments, or words."""
    if not results:
        return "propose_route", ASKED
    last = results[-1].replace("\\", "")
    if len(results) == 1:
        return "wait_decision", {"id": re.search(r'"id": ?"([0-9a-f]{16})"', last)[1]}
    return None, "told: " + " ".join(re.findall(r'"(?:state|reason)": ?"([^"]*)"', last))


def messages(request):
    parts = [part for message in request["messages"] if isinstance(message["content"], list) for part in message["content"]]
    results = [json.dumps(part["content"]) for part in parts if part.get("type") == "tool_result"]
    names = [tool.get("name", "") for tool in request.get("tools", [])]
    wanted = next((name.removesuffix("propose_route") for name in names if name.endswith("propose_route")), None)
    # A call of the client's own, such as for a title, has none of our tools.
    tool, what = turn(results) if wanted is not None else (None, "a title")
    if tool is None:
        block, delta = {"type": "text", "text": ""}, {"type": "text_delta", "text": what}
    else:
        block = {"type": "tool_use", "id": f"toolu_{len(results)}", "name": wanted + tool, "input": {}}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(what)}
    usage = {"input_tokens": 1, "output_tokens": 1}
    start = {"id": "msg_1", "type": "message", "role": "assistant", "model": "stand-in", "content": [], "stop_reason": None,
             "stop_sequence": None, "usage": usage}
    reason = {"stop_reason": "tool_use" if tool else "end_turn", "stop_sequence": None}
    return [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": reason, "usage": {"output_tokens": 1}},
        {"type": "message_stop"},
    ]


def responses(request):
    results = [json.dumps(item["output"]) for item in request["input"] if item.get("type") == "function_call_output"]
    tool, what = turn(results)
    if tool is None:
        item = {"type": "message", "role": "assistant", "id": "m", "content": [{"type": "output_text", "text": what}]}
    else:
        spaces = [tool["name"] for tool in request["tools"] if tool.get("type") == "namespace"]
        space = next(name for name in spaces if name.startswith("mcp__"))
        item = {"type": "function_call", "call_id": f"call_{len(results)}", "namespace": space, "name": tool,
                "arguments": json.dumps(what)}
    usage = {"input_tokens": 1, "input_tokens_details": None, "output_tokens": 1, "output_tokens_details": None, "total_tokens": 2}
    return [
        {"type": "response.created", "response": {"id": "r"}},
        {"type": "response.output_item.done", "item": item},
        {"type": "response.completed", "response": {"id": "r", "usage": usage}},
    ]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status, body=b"{}", kind="application/json"):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        self.reply(404)

    do_HEAD = do_GET

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
        path = self.path.split("?")[0]
        if path not in ("/v1/messages", "/v1/responses"):
            return self.reply(404)
        events = messages(request) if path == "/v1/messages" else responses(request)
        text = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
        self.reply(200, text.encode(), "text/event-stream")


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
