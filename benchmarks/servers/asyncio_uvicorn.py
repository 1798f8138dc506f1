"""uvicorn with httptools and the least application there can be: what is left is HTTP and the loop."""

import socket
from collections.abc import Awaitable, Callable

import uvicorn

from . import common

Message = dict[str, object]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

BODY = b"Hello, world!"
HEADERS = [(b"content-type", b"text/plain"), (b"content-length", str(len(BODY)).encode())]


async def hello(_scope: Message, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})


async def serve(listener: socket.socket) -> None:
    config = uvicorn.Config(
        hello,
        loop="none",  # it runs in the one that is there
        http="httptools",
        ws="none",
        lifespan="off",
        backlog=common.BACKLOG,
        log_level="error",
        access_log=False,
    )
    await uvicorn.Server(config).serve([listener])
