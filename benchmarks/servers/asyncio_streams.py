"""Streams: one coroutine a connection.

The "TCP echo server using streams" of https://docs.python.org/3/library/asyncio-stream.html, reading until
the end.
"""

import asyncio

from . import common


async def serve(options: common.Options) -> None:
    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = common.answer_for(options.protocol)
        try:
            while data := await reader.read(common.READ_SIZE):
                if reply := answer(data):
                    writer.write(reply)
                    await writer.drain()
        except ConnectionError:
            pass  # the peer went away without saying goodbye: nothing is owed to it
        finally:
            writer.close()

    server = await asyncio.start_server(converse, sock=common.listen(), backlog=common.BACKLOG)
    async with server:
        await server.serve_forever()
