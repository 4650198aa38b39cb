"""The websockets package through the proxy: subprotocol, extension, texts, binaries, fragments, many sizes, a clean close.

websocket_client.py URL SEED
"""

import asyncio
import random
import ssl
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

URL, SEED = sys.argv[1], int(sys.argv[2])


async def main():
    chance = random.Random(SEED)
    context = ssl.create_default_context()
    async with connect(f"{URL}/v1/socket", subprotocols=["chat"], ssl=context, max_size=None) as socket:
        print(socket.subprotocol, flush=True)
        for size in [0, 1, 125, 126, 65535, 65536, 1 << 20, *(chance.randrange(200_000) for _ in range(40))]:
            message = chance.randbytes(size)
            if chance.random() < 0.5:
                message = message.hex()
            if chance.random() < 0.3:
                cut = chance.randrange(len(message) + 1)
                await socket.send([message[:cut], message[cut:]])
            else:
                await socket.send(message)
            assert await socket.recv() == message, f"seed {SEED}, size {size}"
        await (await socket.ping())
    print("closed", socket.close_code, flush=True)
    try:
        async with connect(f"{URL}/secret", ssl=context):
            pass
    except InvalidStatus as refused:
        print(refused.response.status_code, refused.response.headers["x-bottlecap-denied"], flush=True)


asyncio.run(main())
