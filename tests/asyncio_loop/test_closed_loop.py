"""What somebody keeps of a loop that is closed, as a traceback or a log record does, keeps no descriptor open."""

from __future__ import annotations

import asyncio

from tests import leaks
from tests.asyncio_loop import loops


def test_a_transport_that_is_kept(loop: str) -> None:
    async def main() -> list[asyncio.WriteTransport]:
        accepted: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
        server = await asyncio.start_server(lambda _, writer: accepted.put_nowait(writer), "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        ends = [writer, await accepted.get()]
        for end in ends:
            end.close()
            await end.wait_closed()
        server.close()
        await server.wait_closed()
        return [end.transport for end in ends]

    before = leaks.in_use()
    kept = loops.run(loop, main())
    assert leaks.in_use().since(before) == []
    assert all(transport.is_closing() for transport in kept)
