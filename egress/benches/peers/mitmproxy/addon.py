"""What egress is asked to do in its benchmark: one host, one path prefix, one injected credential, everything else 403."""

from mitmproxy import http


def requestheaders(flow: http.HTTPFlow) -> None:
    flow.request.stream = True
    if flow.request.pretty_host == "localhost" and flow.request.path.startswith("/v1/"):
        flow.request.headers["authorization"] = "Bearer real-token"
    else:
        flow.response = http.Response.make(403, b"refused")


def responseheaders(flow: http.HTTPFlow) -> None:
    flow.response.stream = True
