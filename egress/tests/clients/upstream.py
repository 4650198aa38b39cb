"""An origin for real clients: files with ranges, uploads, an index for pip and cargo, git over HTTPS, events, WebSockets.

upstream.py DIRECTORY   with cert.pem, key.pem and files/ in it; prints two ports: HTTPS, and WebSockets where they can be had.
Every request is a line of JSON in DIRECTORY/seen.jsonl.
"""

import asyncio
import http.server
import json
import os
import ssl
import subprocess
import sys
import threading

ROOT = sys.argv[1]
LOCK = threading.Lock()
EVENTS = [
    ("message_start", {"message": {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-test",
                                   "content": [], "stop_reason": None, "stop_sequence": None,
                                   "usage": {"input_tokens": 1, "output_tokens": 1}}}),
    ("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}),
    ("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": "hello from "}}),
    ("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": "the stand-in"}}),
    ("content_block_stop", {"index": 0}),
    ("message_delta", {"delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"output_tokens": 4}}),
    ("message_stop", {}),
]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def body(self):
        if self.headers.get("transfer-encoding", "") == "chunked":
            whole = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                whole += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return whole
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def note(self, length):
        headers = {name.lower(): value for name, value in self.headers.items()}
        line = {"method": self.command, "path": self.path, "headers": headers, "length": length}
        with LOCK, open(f"{ROOT}/seen.jsonl", "a") as seen:
            seen.write(json.dumps(line) + "\n")

    def reply(self, status, body=b"", headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer(self):
        body = self.body()
        self.note(len(body))
        path = self.path.split("?")[0]
        if path.startswith("/git/"):
            self.git(path, body)
        elif path == "/v1/messages":
            self.messages(json.loads(body))
        elif path == "/v1/responses":
            self.respond(json.loads(body))
        elif path.startswith("/v1/echo"):
            self.reply(200, body or b"nothing", [("content-type", "text/plain")])
        else:
            self.file(path)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def file(self, path):
        path = f"{ROOT}/files{path}"
        if os.path.isdir(path):
            path += "/index.html"
        if not os.path.isfile(path):
            return self.reply(404)
        with open(path, "rb") as file:
            whole = file.read()
        kind = [("content-type", "text/html" if path.endswith(".html") else "application/octet-stream"),
                ("accept-ranges", "bytes")]
        if wanted := self.headers.get("range"):
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            place = ("content-range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
            return self.reply(206, whole[start:], [*kind, place])
        self.reply(200, whole, kind)

    def git(self, path, body):
        backend = subprocess.run(
            ["git", "http-backend"], input=body, capture_output=True,
            env={"PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": ROOT, "GIT_HTTP_EXPORT_ALL": "1",
                 "PATH_INFO": path, "QUERY_STRING": self.path.partition("?")[2], "REQUEST_METHOD": self.command,
                 "CONTENT_TYPE": self.headers.get("content-type", ""), "REMOTE_USER": "agent",
                 "GIT_PROTOCOL": self.headers.get("git-protocol", ""),
                 "HTTP_CONTENT_ENCODING": self.headers.get("content-encoding", "")})
        head, _, rest = backend.stdout.partition(b"\r\n\r\n")
        headers = [line.split(": ", 1) for line in head.decode().splitlines()]
        status = next((int(value.split()[0]) for name, value in headers if name == "Status"), 200)
        self.reply(status, rest, [(name, value) for name, value in headers if name != "Status"])

    def messages(self, request):
        if not request.get("stream"):
            message = EVENTS[0][1]["message"] | {"content": [{"type": "text", "text": "hello from the stand-in"}],
                                                 "stop_reason": "end_turn"}
            return self.reply(200, json.dumps(message).encode(), [("content-type", "application/json")])
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for name, data in EVENTS:
            event = f"event: {name}\ndata: {json.dumps({'type': name} | data)}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def respond(self, request):
        # The servers whose tools the model may use.
        offered = sorted(tool["name"] for tool in request["tools"] if tool.get("type") == "namespace")
        text = f"hello from the stand-in, with {' '.join(offered)}"
        usage = {"input_tokens": 1, "input_tokens_details": None, "output_tokens": 1, "output_tokens_details": None, "total_tokens": 2}
        item = {"type": "message", "role": "assistant", "id": "m", "content": [{"type": "output_text", "text": text}]}
        events = [{"type": "response.created", "response": {"id": "r"}}, {"type": "response.output_item.done", "item": item},
                  {"type": "response.completed", "response": {"id": "r", "usage": usage}}]
        said = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
        self.reply(200, said.encode(), [("content-type", "text/event-stream")])


def tls():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{ROOT}/cert.pem", f"{ROOT}/key.pem")
    return context


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def get_request(self):
        # The handshake is the thread's of the connection, so that a client that falls silent holds no one up.
        connection, address = self.socket.accept()
        return tls().wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address


async def websockets_forever():
    from websockets.asyncio.server import serve

    async def echo(socket):
        async for message in socket:
            await socket.send(message)

    async with serve(echo, "127.0.0.1", 0, ssl=tls(), subprotocols=["chat"], max_size=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


server = Server(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_address[1], flush=True)
asyncio.run(websockets_forever())
