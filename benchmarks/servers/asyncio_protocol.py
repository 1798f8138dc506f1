"""A Protocol: callbacks on a transport, the fast face of asyncio.

The "TCP Echo Server" of https://docs.python.org/3/library/asyncio-protocol.html; `--variant buffered` is the
same as a BufferedProtocol, which that page offers to save an allocation for each receive. How much those
allocations can matter: NOTES.md.
"""

import asyncio
from collections.abc import Callable, Iterator
from typing import cast

from . import common


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


class BufferedEcho(asyncio.BufferedProtocol):
    def __init__(self, buffer_size: int) -> None:
        self._buffer = memoryview(bytearray(buffer_size))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio passes it
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        # A copy: since Python 3.12 the transport keeps what it could not send at once, not a copy of it.
        self._transport.write(bytes(self._buffer[:nbytes]))


class Answering(asyncio.Protocol):
    def __init__(self, protocol: str) -> None:
        self._answer = common.answer_for(protocol)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if reply := self._answer(data):
            self._transport.write(reply)


class Push(asyncio.Protocol):
    """One message to everybody, whenever somebody asks for one."""

    def __init__(self, everybody: dict["Push", asyncio.Transport], messages: Iterator[bytes]) -> None:
        self._everybody = everybody
        self._messages = messages

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._everybody[self] = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio passes it
        del self._everybody[self]

    def data_received(self, data: bytes) -> None:
        if common.HERE in data:
            self._everybody[self].write(common.HERE)
        for _ in range(data.count(common.NEXT)):
            message = next(self._messages)
            for transport in self._everybody.values():
                transport.write(message)


def protocol_factory(options: common.Options) -> Callable[[], asyncio.BaseProtocol]:
    if options.protocol == "push":
        everybody: dict[Push, asyncio.Transport] = {}
        messages = common.pushed_messages(options.message_size)
        return lambda: Push(everybody, messages)
    if options.protocol in ("ping", "http"):
        return lambda: Answering(options.protocol)
    if options.variant == "buffered":
        return lambda: BufferedEcho(options.buffer_size)
    return Echo


async def serve(options: common.Options) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        protocol_factory(options),
        sock=common.listen(),
        backlog=common.BACKLOG,
        ssl=common.tls() if options.protocol == "tls" else None,
    )
    async with server:
        await server.serve_forever()
