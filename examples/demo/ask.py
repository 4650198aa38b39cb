"""The agent's side of a request: propose a route over MCP, then wait for the decision."""

import asyncio
import os
import sys

from mcp import Client


async def main(host: str, method: str, path: str, reason: str) -> int:
    async with Client(os.environ["BOTTLECAP_MCP_URL"]) as client:
        names = sorted(tool.name for tool in (await client.list_tools()).tools)
        print("tools:", ", ".join(names))
        asked = await client.call_tool(
            "propose_route",
            {
                "host": host,
                "methods": [method],
                "paths": [{"type": "prefix", "value": path}],
                "ttl_seconds": 600,
                "reason": reason,
            },
        )
        print("propose_route:", asked.structured_content)
        request = asked.structured_content["id"]
        while True:
            answer = (await client.call_tool("wait_decision", {"id": request})).structured_content
            print("wait_decision:", answer)
            if answer["state"] not in ("pending", "approved", "applying"):
                return 0 if answer["state"] == "active" else 1


sys.exit(asyncio.run(main(*sys.argv[1:])))
