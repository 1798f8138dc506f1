"""asyncio with a Protocol: callbacks on a transport, the fast face of asyncio.

The "TCP Echo Server" of https://docs.python.org/3/library/asyncio-protocol.html.
"""

import asyncio
from collections.abc import Callable
from typing import cast

from . import common


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


class Answering(asyncio.Protocol):
    def __init__(self, protocol: str) -> None:
        self._answer = common.answer_for(protocol)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if reply := self._answer(data):
            self._transport.write(reply)


def protocol_factory(protocol: str) -> Callable[[], asyncio.Protocol]:
    return Echo if protocol == "echo" else lambda: Answering(protocol)


async def serve(protocol: str) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        protocol_factory(protocol), sock=common.listen(), backlog=common.BACKLOG
    )
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(common.start().protocol))
