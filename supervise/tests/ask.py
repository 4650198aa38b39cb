"""Asks for a route with Python's own MCP client, and prints what it is told."""
import asyncio
import sys

from mcp import Client


async def main(url):
    async with Client(url) as client:
        print("tools:", len((await client.list_tools()).tools))
        asked = {"host": "docs.example.com", "reason": "the guide"}
        filed = (await client.call_tool("propose_route", asked)).structured_content
        print("filed:", filed["state"])
        told = (await client.call_tool("wait_decision", {"id": filed["id"]})).structured_content
        print("told:", told["state"] + ":", told["reason"])


asyncio.run(main(sys.argv[1]))
