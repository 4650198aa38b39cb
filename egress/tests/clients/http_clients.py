"""requests, httpx (HTTP/1.1 and HTTP/2) and aiohttp as a program in a bottle uses them: nothing set but the environment.

http_clients.py URL   prints one line for each: name, status of an allowed request, code of a refused one.
"""

import asyncio
import ssl
import sys

import aiohttp
import httpx
import requests

URL = sys.argv[1]
BODY = b"x" * 300_000


def say(name, version, allowed, echoed, refused, code):
    print(name, version, allowed, "same" if echoed == BODY else "other", refused, code, flush=True)


with requests.Session() as session:
    allowed = session.post(f"{URL}/v1/echo", data=BODY)
    refused = session.get(f"{URL}/secret")
    say("requests", "1.1", allowed.status_code, allowed.content, refused.status_code,
        refused.json()["error"]["code"])

for http2 in (False, True):
    with httpx.Client(http2=http2) as client:
        allowed = client.post(f"{URL}/v1/echo", content=iter([BODY[:1000], BODY[1000:]]))
        refused = client.get(f"{URL}/secret")
        say("httpx", allowed.http_version.removeprefix("HTTP/"), allowed.status_code, allowed.content,
            refused.status_code, refused.json()["error"]["code"])


async def with_aiohttp():
    async with aiohttp.ClientSession(trust_env=True) as session:
        async with session.post(f"{URL}/v1/echo", data=BODY, ssl=ssl.create_default_context()) as allowed:
            content = await allowed.read()
        async with session.get(f"{URL}/secret", ssl=ssl.create_default_context()) as refused:
            say("aiohttp", "1.1", allowed.status, content, refused.status, (await refused.json())["error"]["code"])


asyncio.run(with_aiohttp())
