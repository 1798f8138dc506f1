"""The application that uvicorn serves in test_uvicorn.py."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from tests.asyncio_loop import loops
from tests.peers import pattern

SIZE = 10 << 20
PIECE = 65536

# In development mode asyncio warns of a callback that takes a tenth of a second: on a busy machine any may.
logging.getLogger("asyncio").setLevel(logging.ERROR)

# What became of requests whose client went away, for a client to ask.
ends: asyncio.Queue[str] = asyncio.Queue()


async def which_loop(request: Request) -> Response:
    return PlainTextResponse(loops.running())


async def hello(request: Request) -> Response:
    return PlainTextResponse(f"hello {request.path_params['number']}")


async def count(request: Request) -> Response:
    async def numbers() -> AsyncIterator[str]:
        for number in range(request.path_params["number"]):
            await asyncio.sleep(0)
            yield f"{number}\n"

    return StreamingResponse(numbers(), media_type="text/plain")


async def download(request: Request) -> Response:
    return Response(pattern(SIZE))


async def download_in_pieces(request: Request) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, SIZE, PIECE):
            yield pattern(SIZE)[start : start + PIECE]

    return StreamingResponse(pieces())


async def download_for_ever(request: Request) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(PIECE)
                await asyncio.sleep(0)  # so that a client that reads as fast as this writes is not all that runs
        finally:
            ends.put_nowait("download broken off")

    return StreamingResponse(pieces())


async def upload(request: Request) -> Response:
    digest, size = hashlib.sha256(), 0
    try:
        async for piece in request.stream():
            digest.update(piece)
            size += len(piece)
    except ClientDisconnect:
        ends.put_nowait("upload broken off")
    return PlainTextResponse(f"{size} {digest.hexdigest()}")


class ReturnBody:
    """Piece by piece, as it comes: a StreamingResponse would take the request's pieces away while it is sent."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        more = True
        while more:
            message = await receive()
            more = message.get("more_body", False)
            await send({"type": "http.response.body", "body": message.get("body", b""), "more_body": more})


async def next_end(request: Request) -> Response:
    return PlainTextResponse(await ends.get())


async def echo_messages(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message["code"])
            if message.get("text") is not None:
                await websocket.send_text(message["text"])
            else:
                await websocket.send_bytes(message["bytes"])
    except WebSocketDisconnect as disconnect:
        ends.put_nowait(f"websocket ended with {disconnect.code}")


app = Starlette(
    routes=[
        Route("/loop", which_loop),
        Route("/hello/{number:int}", hello),
        Route("/count/{number:int}", count),
        Route("/download", download),
        Route("/download-in-pieces", download_in_pieces),
        Route("/download-for-ever", download_for_ever),
        Route("/upload", upload, methods=["POST"]),
        Route("/return", ReturnBody(), methods=["POST"]),
        Route("/next-end", next_end),
        WebSocketRoute("/echo", echo_messages),
    ]
)
