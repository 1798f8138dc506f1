"""The server and the client of `websockets`, both on the loop under test."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest

pytest.importorskip("websockets")

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import Server, ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed, ConnectionClosedError
from websockets.sync.client import connect as connect_in_thread

from tests.asyncio_loop import loops
from tests.peers import pattern, receive_exactly, reset
from tests.waiting import LIMIT

CLIENTS = 500


def port_of(server: Server) -> int:
    port: int = next(iter(server.sockets)).getsockname()[1]
    return port


def url_of(server: Server) -> str:
    return f"ws://127.0.0.1:{port_of(server)}"


def client_of(server: Server) -> connect:
    return connect(url_of(server), proxy=None, max_size=None, compression=None, open_timeout=LIMIT)


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


def test_broadcast_to_500_clients(loop: str) -> None:
    """Each gets every message in order, and answers the last."""
    messages: list[str | bytes] = ["hello", "ü" * 100, pattern(20_000)]
    answers: list[object] = []

    async def handler(connection: ServerConnection) -> None:
        answers.append(await connection.recv())

    async def client(connection: ClientConnection) -> None:
        assert [await connection.recv() for _ in messages] == messages
        await connection.send("received")
        with pytest.raises(ConnectionClosed):
            await connection.recv()
        assert connection.close_code == 1000

    async def main() -> None:
        async with (
            serve(handler, "127.0.0.1", 0, max_size=None, compression=None, open_timeout=LIMIT) as server,
            AsyncExitStack() as stack,
        ):
            clients = [await stack.enter_async_context(client_of(server)) for _ in range(CLIENTS)]
            assert len(server.connections) == CLIENTS
            for message in messages:
                broadcast(server.connections, message)
            await asyncio.wait_for(asyncio.gather(*(client(connection) for connection in clients)), LIMIT)

    loops.run(loop, main())
    assert answers == ["received"] * CLIENTS


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_echo(loop: str, compression: str | None) -> None:
    messages: list[str | bytes] = ["", "hello", b"\0\1\2", "ü" * 40_000, pattern(10 << 20)]

    async def main() -> list[object]:
        async with (
            serve(echo, "127.0.0.1", 0, max_size=None, compression=compression) as server,
            connect(url_of(server), proxy=None, max_size=None, compression=compression) as client,
        ):
            received: list[object] = []
            for message in messages:
                await client.send(message)
                received.append(await asyncio.wait_for(client.recv(), LIMIT))
            await asyncio.wait_for(await client.ping(), LIMIT)
            return received

    assert loops.run(loop, main()) == messages


def test_fragments(loop: str) -> None:
    async def main() -> object:
        async with serve(echo, "127.0.0.1", 0, max_size=None) as server, client_of(server) as client:
            await client.send(f"{number} " for number in range(1000))
            return await asyncio.wait_for(client.recv(), LIMIT)

    assert loops.run(loop, main()) == "".join(f"{number} " for number in range(1000))


def test_a_client_that_does_not_read_holds_up_its_sender_alone(loop: str) -> None:
    """Until it does. The sender has to wait although its peer is alive."""
    piece = pattern(1 << 20)

    async def handler(connection: ServerConnection) -> None:
        if connection.request is not None and connection.request.path == "/echo":
            await echo(connection)
        else:
            for _ in range(20):
                await connection.send(piece)

    async def main() -> list[object]:
        async with serve(handler, "127.0.0.1", 0, max_size=None, compression=None) as server:
            url = url_of(server)
            async with (
                connect(url, proxy=None, max_size=None, max_queue=1, compression=None) as slow,
                connect(f"{url}/echo", proxy=None) as other,
            ):
                for number in range(100):
                    await other.send(str(number))
                    assert await asyncio.wait_for(other.recv(), LIMIT) == str(number)
                return [await asyncio.wait_for(slow.recv(), LIMIT) for _ in range(20)]

    assert loops.run(loop, main()) == [piece] * 20


@pytest.mark.parametrize("leave", [socket.socket.close, reset])
def test_a_client_gone(loop: str, leave: Callable[[socket.socket], None]) -> None:
    """Without a word."""

    def client(port: int) -> None:
        head = ("GET / HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
        with socket.create_connection(("127.0.0.1", port), LIMIT) as sock:
            sock.sendall("\r\n".join((*head, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "", "")).encode())
            answer = b""
            while not answer.endswith(b"\r\n\r\n"):
                answer += receive_exactly(sock, 1)
            assert answer.startswith(b"HTTP/1.1 101 ")
            leave(sock)

    async def main() -> int | None:
        ends: asyncio.Queue[int | None] = asyncio.Queue()

        async def handler(connection: ServerConnection) -> None:
            with pytest.raises(ConnectionClosedError):
                await connection.recv()
            ends.put_nowait(connection.close_code)

        async with serve(handler, "127.0.0.1", 0, compression=None) as server:
            await asyncio.to_thread(client, port_of(server))
            return await asyncio.wait_for(ends.get(), LIMIT)

    assert loops.run(loop, main()) == 1006


def test_a_client_in_a_thread(loop: str) -> None:
    def client(url: str) -> list[object]:
        with connect_in_thread(url, proxy=None, max_size=None) as connection:
            received: list[object] = []
            for message in ("hello", pattern(1 << 20)):
                connection.send(message)
                received.append(connection.recv(LIMIT))
            return received

    async def main() -> list[object]:
        async with serve(echo, "127.0.0.1", 0, max_size=None) as server:
            return await asyncio.to_thread(client, url_of(server))

    assert loops.run(loop, main()) == ["hello", pattern(1 << 20)]


def test_a_server_that_stops_tells_its_clients(loop: str) -> None:
    async def main() -> list[int | None]:
        server = await serve(echo, "127.0.0.1", 0)
        clients = [await client_of(server) for _ in range(20)]
        server.close()
        await asyncio.wait_for(server.wait_closed(), LIMIT)
        for client in clients:
            await asyncio.wait_for(client.wait_closed(), LIMIT)
        return [client.close_code for client in clients]

    assert loops.run(loop, main()) == [1001] * 20
