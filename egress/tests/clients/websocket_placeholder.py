"""The bottle's placeholder in a message that the other side sends back: what comes shows what went out.

websocket_placeholder.py URL
"""

import asyncio
import json
import os
import ssl
import sys

from websockets.asyncio.client import connect

WORD = os.environ["BOTTLECAP_PLACEHOLDER"]


async def main():
    trust = ssl.create_default_context()
    async with connect(f"{sys.argv[1]}/v1/told", ssl=trust, subprotocols=["chat"]) as socket:
        await socket.send(json.dumps({"auth": {"token": WORD}, "text": WORD}))
        answer = json.loads(await socket.recv())
    print(answer["auth"]["token"], answer["text"] == WORD, flush=True)


asyncio.run(main())
