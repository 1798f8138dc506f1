"""trio: one task a connection, as "An echo server" in trio's tutorial. TCP_NODELAY is its default."""

import trio

from . import common


async def serve(protocol: str) -> None:
    async def converse(stream: trio.SocketStream) -> None:
        answer = common.answer_for(protocol)
        try:
            async for data in stream:
                if reply := answer(data):
                    await stream.send_all(reply)
        except trio.BrokenResourceError:
            pass  # the peer went away without saying goodbye: nothing is owed to it

    listener = trio.SocketListener(trio.socket.from_stdlib_socket(common.listen()))
    await trio.serve_listeners(converse, [listener])


if __name__ == "__main__":
    trio.run(serve, common.start().protocol)
