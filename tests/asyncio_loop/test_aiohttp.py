"""aiohttp's server and aiohttp's client, both on the loop under test; and curl."""

from __future__ import annotations

import asyncio
import hashlib
import io
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest

pytest.importorskip("aiohttp")

import aiohttp
from aiohttp import ClientSession, web

from tests.asyncio_loop import loops
from tests.examples.real_clients import run
from tests.peers import pattern, receive_exactly, reset
from tests.waiting import LIMIT

SIZE = 10 << 20
BODY = pattern(SIZE)
SUM = hashlib.sha256(BODY).hexdigest()
PIECE = 65536

T = TypeVar("T")


class Application:
    """What is served, and what became of requests whose client went away."""

    def __init__(self, file: Path | None = None) -> None:
        self.ends: asyncio.Queue[str] = asyncio.Queue()
        self.begun = asyncio.Event()
        self.may_end = asyncio.Event()
        self.file = file
        self.web = web.Application(client_max_size=2 * SIZE)
        self.web.add_routes(
            [
                web.get("/loop", self.which_loop),
                web.get("/hello/{number}", self.hello),
                web.get("/port", self.port),
                web.get("/download", self.download),
                web.get("/file", self.send_file),
                web.get("/download-for-ever", self.download_for_ever),
                web.get("/half", self.half),
                web.get("/silent", self.silent),
                web.get("/messages", self.echo_messages),
                web.post("/sum", self.sum),
                web.post("/return", self.return_body),
            ]
        )

    async def which_loop(self, request: web.Request) -> web.Response:
        return web.Response(text=loops.running())

    async def hello(self, request: web.Request) -> web.Response:
        return web.Response(text=f"hello {request.match_info['number']}")

    async def port(self, request: web.Request) -> web.Response:
        """The client's: it tells one connection from another."""
        assert request.transport is not None
        return web.Response(text=str(request.transport.get_extra_info("peername")[1]))

    async def download(self, request: web.Request) -> web.Response:
        return web.Response(body=BODY)

    async def send_file(self, request: web.Request) -> web.FileResponse:
        assert self.file is not None
        return web.FileResponse(self.file)

    async def download_for_ever(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(bytes(PIECE))
        except (ConnectionError, asyncio.CancelledError):
            self.ends.put_nowait("download broken off")
            raise

    async def half(self, request: web.Request) -> web.StreamResponse:
        """Breaks off in the middle of what it has promised."""
        response = web.StreamResponse(headers={"Content-Length": str(SIZE)})
        await response.prepare(request)
        await response.write(BODY[: SIZE // 2])
        assert request.transport is not None
        request.transport.abort()
        return response

    async def silent(self, request: web.Request) -> web.Response:
        self.begun.set()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.ends.put_nowait("request broken off")
            raise
        return web.Response(text="at last")

    async def sum(self, request: web.Request) -> web.Response:
        digest = hashlib.sha256()
        try:
            async for piece in request.content.iter_any():
                digest.update(piece)
        except (ConnectionError, aiohttp.ClientError, asyncio.CancelledError):
            self.ends.put_nowait("upload broken off")
            raise
        return web.Response(text=digest.hexdigest())

    async def return_body(self, request: web.Request) -> web.StreamResponse:
        """Piece by piece, as it comes."""
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        async for piece in request.content.iter_any():
            await response.write(piece)
        return response

    async def echo_messages(self, request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse(max_msg_size=0)
        await websocket.prepare(request)
        async for message in websocket:
            if message.type is aiohttp.WSMsgType.TEXT:
                await websocket.send_str(message.data)
            else:
                await websocket.send_bytes(message.data)
        self.ends.put_nowait(f"websocket ended with {websocket.close_code}")
        return websocket


@asynccontextmanager
async def serving(
    application: Application, context: ssl.SSLContext | None = None, path: Path | None = None
) -> AsyncIterator[web.AppRunner]:
    """On a port of its own, or at a path. A handler is cancelled when its client goes away."""
    runner = web.AppRunner(application.web, handler_cancellation=True, access_log=None)
    await runner.setup()
    site: web.BaseSite
    if path is None:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    else:
        site = web.UnixSite(runner, path, ssl_context=context)
    await site.start()
    try:
        yield runner
    finally:
        await runner.cleanup()


def port_of(runner: web.AppRunner) -> int:
    port: int = runner.addresses[0][1]
    return port


def served(loop: str, client: Callable[[ClientSession, Application], Coroutine[object, object, T]]) -> T:
    """What the client's code returns."""

    async def main() -> T:
        application = Application()
        async with serving(application) as runner:
            url = f"http://127.0.0.1:{port_of(runner)}"
            async with ClientSession(url, timeout=aiohttp.ClientTimeout(LIMIT)) as session:
                return await client(session, application)

    return loops.run(loop, main())


async def text(session: ClientSession, path: str) -> str:
    async with session.get(path) as response:
        assert response.status == 200
        return await response.text()


def test_is_served_by_that_loop(loop: str) -> None:
    async def client(session: ClientSession, _: Application) -> str:
        return await text(session, "/loop")

    assert served(loop, client) == loop


def test_the_connection_is_kept(loop: str) -> None:
    async def client(session: ClientSession, _: Application) -> set[str]:
        return {await text(session, "/port") for _ in range(50)}

    assert len(served(loop, client)) == 1


def test_many_clients_at_once(loop: str) -> None:
    async def client(session: ClientSession, _: Application) -> list[str]:
        return await asyncio.gather(*(text(session, f"/hello/{number}") for number in range(300)))

    assert served(loop, client) == [f"hello {number}" for number in range(300)]


def test_ten_megabytes_down(loop: str) -> None:
    async def client(session: ClientSession, _: Application) -> bytes:
        async with session.get("/download") as response:
            return await response.read()

    assert served(loop, client) == BODY


def test_ten_megabytes_down_to_a_client_that_is_slow(loop: str) -> None:
    """While it does not read, others are served."""

    async def client(session: ClientSession, _: Application) -> bytes:
        received = bytearray()
        async with session.get("/download") as response:
            async for piece in response.content.iter_chunked(SIZE // 20):
                received += piece
                assert await text(session, "/hello/1") == "hello 1"
        return bytes(received)

    assert served(loop, client) == BODY


async def pieces() -> AsyncIterator[bytes]:
    for start in range(0, SIZE, PIECE):
        yield BODY[start : start + PIECE]


@pytest.mark.parametrize("chunked", [False, True])
def test_ten_megabytes_up(loop: str, chunked: bool) -> None:
    async def client(session: ClientSession, _: Application) -> str:
        async with session.post("/sum", data=pieces() if chunked else io.BytesIO(BODY)) as response:
            return await response.text()

    assert served(loop, client) == SUM


def test_ten_megabytes_both_ways_at_once(loop: str) -> None:
    """In chunks; each end has to wait for the other."""

    async def client(session: ClientSession, _: Application) -> bytes:
        async with session.post("/return", data=pieces()) as response:
            return await response.read()

    assert served(loop, client) == BODY


def test_websocket(loop: str) -> None:
    messages: list[str | bytes] = ["hello", "", "ü" * 1000, b"\0\1\2", BODY[: 1 << 20]]

    async def client(session: ClientSession, application: Application) -> tuple[list[object], str]:
        async with session.ws_connect("/messages", max_msg_size=0) as websocket:
            received = []
            for message in messages:
                if isinstance(message, str):
                    await websocket.send_str(message)
                else:
                    await websocket.send_bytes(message)
                received.append((await websocket.receive()).data)
            await websocket.close(code=3000)
        return received, await application.ends.get()

    assert served(loop, client) == (messages, "websocket ended with 3000")


def test_a_server_that_breaks_off(loop: str) -> None:
    async def client(session: ClientSession, _: Application) -> str:
        async with session.get("/half") as response:
            received = bytearray()
            with pytest.raises(aiohttp.ClientPayloadError):
                async for piece in response.content.iter_any():
                    received += piece
            assert BODY.startswith(received)
        return await text(session, "/hello/1")

    assert served(loop, client) == "hello 1"


def test_a_client_whose_patience_ends(loop: str) -> None:
    async def client(session: ClientSession, application: Application) -> str:
        with pytest.raises(asyncio.TimeoutError):
            await session.get("/silent", timeout=aiohttp.ClientTimeout(total=0.05))
        return await application.ends.get()

    assert served(loop, client) == "request broken off"


def test_a_read_that_takes_too_long(loop: str) -> None:
    async def client(session: ClientSession, application: Application) -> str:
        with pytest.raises(aiohttp.SocketTimeoutError):
            await session.get("/silent", timeout=aiohttp.ClientTimeout(sock_read=0.05))
        return await application.ends.get()

    assert served(loop, client) == "request broken off"


def test_a_client_that_is_cancelled(loop: str) -> None:
    async def client(session: ClientSession, application: Application) -> str:
        request = asyncio.ensure_future(text(session, "/silent"))
        await application.begun.wait()
        request.cancel()
        return await application.ends.get()

    assert served(loop, client) == "request broken off"


@pytest.mark.parametrize("leave", [socket.socket.close, reset])
@pytest.mark.parametrize(
    ("request_head", "end"),
    [
        (b"GET /download-for-ever HTTP/1.1\r\nHost: x\r\n\r\n", "download broken off"),
        (b"POST /sum HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nbeginning", "upload broken off"),
    ],
    ids=["download", "upload"],
)
def test_a_client_gone(loop: str, request_head: bytes, end: str, leave: Callable[[socket.socket], None]) -> None:
    """A plain socket's, in a thread."""

    def client(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), LIMIT) as sock:
            sock.sendall(request_head)
            if end.startswith("download"):
                receive_exactly(sock, 10 * PIECE)
            leave(sock)

    async def main() -> str:
        application = Application()
        async with serving(application) as runner:
            await asyncio.to_thread(client, port_of(runner))
            return await within(application.ends.get())

    assert loops.run(loop, main()) == end


async def within(awaitable: Awaitable[T]) -> T:
    return await asyncio.wait_for(awaitable, LIMIT)


def test_a_request_that_is_served_when_the_server_stops(loop: str) -> None:
    async def main() -> str:
        application = Application()
        async with serving(application) as runner:
            url = f"http://127.0.0.1:{port_of(runner)}"
            async with ClientSession(url, timeout=aiohttp.ClientTimeout(LIMIT)) as session:
                request = asyncio.ensure_future(text(session, "/silent"))
                await within(application.begun.wait())
                stopping = asyncio.ensure_future(runner.cleanup())
                while runner.sites:
                    await asyncio.sleep(0)  # until the listener is closed
                with pytest.raises(aiohttp.ClientConnectorError):
                    await text(session, "/hello/1")
                application.may_end.set()
                await within(stopping)
                return await request

    assert loops.run(loop, main()) == "at last"


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
def test_a_file(loop: str, encrypted: bool, tmp_path: Path, certificate: Path) -> None:
    """By loop.sendfile(), where there is no TLS."""
    file = tmp_path / "file"
    file.write_bytes(BODY)

    async def main() -> bytes:
        application = Application(file)
        at_client = at_server = None
        if encrypted:
            at_client = ssl.create_default_context(cafile=str(certificate))
            at_server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            at_server.load_cert_chain(certificate)
        async with serving(application, at_server) as runner:
            url = f"{'https' if encrypted else 'http'}://localhost:{port_of(runner)}"
            connector = aiohttp.TCPConnector(ssl=at_client or False, family=socket.AF_INET)
            async with ClientSession(url, connector=connector, timeout=aiohttp.ClientTimeout(LIMIT)) as session:
                assert await text(session, "/loop") == loop
                async with session.get("/file") as response:
                    whole = await response.read()
                async with session.get("/file", headers={"Range": "bytes=1000-1999"}) as response:
                    assert response.status == 206
                    assert await response.read() == BODY[1000:2000]
                return whole

    assert loops.run(loop, main()) == BODY


def test_a_unix_socket(loop: str, tmp_path: Path) -> None:
    async def main() -> bytes:
        path = tmp_path / "listener"
        async with serving(Application(), path=path):
            connector = aiohttp.UnixConnector(str(path))
            async with (
                ClientSession("http://x", connector=connector) as session,
                session.post("/return", data=pieces()) as response,
            ):
                return await within(response.read())

    assert loops.run(loop, main()) == BODY


def test_curl(loop: str) -> None:
    def curl(port: int, path: str, *options: str) -> bytes:
        arguments = ("--silent", "--show-error", "--max-time", "20", *options, f"http://127.0.0.1:{port}{path}")
        return run("curl", *arguments, package="curl", stdin=BODY)

    async def main() -> tuple[bytes, ...]:
        async with serving(Application()) as runner:
            port, upload = port_of(runner), ("--data-binary", "@-")
            chunked = ("--header", "Transfer-Encoding: chunked")
            return (
                await asyncio.to_thread(curl, port, "/hello/1"),
                await asyncio.to_thread(curl, port, "/sum", *upload),
                await asyncio.to_thread(curl, port, "/return", *upload, *chunked),
            )

    assert loops.run(loop, main()) == (b"hello 1", SUM.encode(), BODY)
