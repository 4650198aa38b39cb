"""What egress is asked to do in its benchmark: one host, one path prefix, one injected credential, everything else 403, and each
request counted and recorded in a hash chain, with what egress records of it."""

import hashlib
import json
import time
from collections import Counter
from datetime import datetime, timezone

from mitmproxy import http

DIGEST = "sha256:" + hashlib.sha256(b"one route").hexdigest()


class Egress:
    def __init__(self) -> None:
        self.counts: Counter[tuple[str, int]] = Counter()
        # Written out as it fills, as the journal of egress is: not for each request.
        self.journal = open("journal.jsonl", "w", buffering=64 * 1024)
        self.chain = ""
        self.sequence = 0

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        flow.metadata["up"] = flow.metadata["down"] = 0
        flow.request.stream = self.counting(flow, "up")
        if flow.request.pretty_host == "localhost" and flow.request.path.startswith("/v1/"):
            flow.request.headers["authorization"] = "Bearer real-token"
            flow.metadata["decision"] = "allow"
        else:
            flow.metadata["decision"] = "deny"
            flow.response = http.Response.make(403, b"refused")

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        flow.metadata["answered"] = time.time()
        flow.response.stream = self.counting(flow, "down")

    def response(self, flow: http.HTTPFlow) -> None:
        self.record(flow, flow.response.status_code)

    def error(self, flow: http.HTTPFlow) -> None:
        self.record(flow, 502)

    def counting(self, flow: http.HTTPFlow, way: str):
        def count(piece: bytes) -> bytes:
            flow.metadata[way] += len(piece)
            return piece

        return count

    def record(self, flow: http.HTTPFlow, status: int) -> None:
        decision, began, ended = flow.metadata["decision"], flow.request.timestamp_start, time.time()
        self.counts[decision, status] += 1
        event = {
            "type": "request",
            "decision": decision,
            "host": flow.request.pretty_host,
            "port": flow.request.port,
            "scheme": flow.request.scheme,
            "method": flow.request.method,
            "path": flow.request.path.partition("?")[0],
            "route": "0",
            "generation": 1,
            "digest": DIGEST,
            "status": status,
            "bytes_up": flow.metadata["up"],
            "bytes_down": flow.metadata["down"],
            "millis": int((ended - began) * 1000),
            "answered_millis": int((flow.metadata.get("answered", ended) - began) * 1000),
        }
        self.sequence += 1
        line = {
            "seq": self.sequence,
            "time": datetime.now(timezone.utc).isoformat(),
            "previous": self.chain,
            "event": event,
        }
        text = json.dumps(line, separators=(",", ":"))
        self.chain = hashlib.sha256(text.encode()).hexdigest()
        self.journal.write(text + "\n")

    def done(self) -> None:
        self.journal.close()


addons = [Egress()]
