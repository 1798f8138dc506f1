"""An echo by asyncio's streams over TLS: both ends on the loop under test, or a client of another make."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from tests.asyncio_loop import loops
from tests.examples.real_clients import need
from tests.peers import pattern, receive_exactly, receive_until_eof, reset
from tests.waiting import LIMIT

T = TypeVar("T")
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

BODY = pattern(10 << 20)
PIECE = 65536


class Ends:
    """The contexts of both ends."""

    def __init__(self, certificate: Path) -> None:
        self.server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.server.load_cert_chain(certificate)
        self.client = ssl.create_default_context(cafile=str(certificate))


@pytest.fixture(scope="module", params=["1.2", "1.3"])
def tls(request: pytest.FixtureRequest, certificate: Path) -> Ends:
    """Of each version of the protocol: they begin and end in other ways."""
    ends = Ends(certificate)
    version = ssl.TLSVersion.TLSv1_2 if request.param == "1.2" else ssl.TLSVersion.TLSv1_3
    ends.client.minimum_version = ends.client.maximum_version = version
    return ends


async def within(awaitable: Awaitable[T]) -> T:
    return await asyncio.wait_for(awaitable, LIMIT)


async def finish(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await within(writer.wait_closed())


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(PIECE):
        writer.write(data)
        await writer.drain()
    await finish(writer)


@contextlib.asynccontextmanager
async def serving(handler: Handler, context: ssl.SSLContext | None) -> AsyncIterator[int]:
    """The port; at the end every connection must have been handled."""
    handling: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handling.add(task)
        await handler(reader, writer)

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    try:
        port: int = server.sockets[0].getsockname()[1]
        yield port
        await within(asyncio.gather(*handling))
    finally:
        server.close()
        await within(server.wait_closed())


async def connect(port: int, context: ssl.SSLContext | None) -> Streams:
    name = None if context is None else "localhost"
    return await within(asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name))


def in_thread(port: int, context: ssl.SSLContext, use: Callable[[ssl.SSLSocket], T]) -> Awaitable[T]:
    """What the standard library's blocking client sees."""

    def client() -> T:
        with (
            socket.create_connection(("127.0.0.1", port), LIMIT) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as client,
        ):
            return use(client)

    return asyncio.to_thread(client)


async def send_all(writer: asyncio.StreamWriter, data: bytes) -> None:
    for start in range(0, len(data), PIECE):
        writer.write(data[start : start + PIECE])
        await writer.drain()


def test_every_byte_comes_back(loop: str, tls: Ends) -> None:
    async def main() -> None:
        async with serving(echo, tls.server) as port:
            reader, writer = await connect(port, tls.client)
            for size in (1, 100, 20_000):
                writer.write(BODY[:size])
                assert await within(reader.readexactly(size)) == BODY[:size]
            sending = asyncio.ensure_future(send_all(writer, BODY))
            assert await within(reader.readexactly(len(BODY))) == BODY
            await sending
            await finish(writer)

    loops.run(loop, main())


def test_what_is_told_of_the_connection(loop: str, tls: Ends) -> None:
    async def main() -> None:
        async with serving(echo, tls.server) as port:
            _, writer = await connect(port, tls.client)
            assert writer.get_extra_info("peername") == ("127.0.0.1", port)
            assert writer.get_extra_info("peercert")["subject"] == ((("commonName", "localhost"),),)
            assert writer.get_extra_info("ssl_object").version() == tls.client.minimum_version.name.replace("_", ".")
            assert writer.get_extra_info("socket").getpeername() == ("127.0.0.1", port)
            assert writer.get_extra_info("sslcontext") is tls.client
            assert not writer.can_write_eof()
            with pytest.raises(NotImplementedError):
                writer.write_eof()
            await finish(writer)

    loops.run(loop, main())


def test_many_connections(loop: str, tls: Ends) -> None:
    async def client(port: int, number: int) -> None:
        reader, writer = await connect(port, tls.client)
        for size in (1, number * 1000, 1):
            writer.write(BODY[:size])
            assert await within(reader.readexactly(size)) == BODY[:size]
        await finish(writer)

    async def main() -> None:
        async with serving(echo, tls.server) as port:
            await asyncio.gather(*(client(port, number) for number in range(64)))

    loops.run(loop, main())


def test_all_that_was_written_arrives_before_the_end(loop: str, tls: Ends) -> None:
    """Closed at once, with far more to send than the kernel takes."""

    async def handler(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(BODY)
        await finish(writer)

    async def main() -> None:
        async with serving(handler, tls.server) as port:
            reader, writer = await connect(port, tls.client)
            assert await within(reader.read()) == BODY
            await finish(writer)
            assert await within(in_thread(port, tls.client, receive_until_eof)) == BODY

    loops.run(loop, main())


def test_a_client_that_does_not_read_is_waited_for(loop: str, tls: Ends) -> None:
    """The writer has to wait until it does, and others are served meanwhile."""
    written = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        # All would find room in the kernel's buffers when both have grown.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIECE)
        if await reader.readexactly(1) == b"x":
            writer.write(b"x")
        else:
            for start in range(0, len(BODY), PIECE):
                writer.write(BODY[start : start + PIECE])
                await writer.drain()
                written += PIECE
        await finish(writer)

    async def main() -> None:
        async with serving(handler, tls.server) as port:
            slow_reader, slow = await connect(port, tls.client)
            slow.write(b"y")
            for _ in range(20):
                reader, writer = await connect(port, tls.client)
                writer.write(b"x")
                assert await within(reader.read()) == b"x"
                await finish(writer)
            assert written < len(BODY)
            assert await within(slow_reader.read()) == BODY
            await finish(slow)

    loops.run(loop, main())


def test_a_client_that_says_it_has_said_all(loop: str, tls: Ends) -> None:
    """By TLS's close_notify: the server's has to come back, behind the echo."""

    def client(sock: ssl.SSLSocket) -> object:
        sock.sendall(b"last words")
        assert receive_exactly(sock, 10) == b"last words"
        try:
            with sock.unwrap() as plain:  # sends its own, and waits for the server's
                return receive_until_eof(plain)
        except ssl.SSLEOFError as error:
            return str(error)

    async def main() -> object:
        async with serving(echo, tls.server) as port:
            return await within(in_thread(port, tls.client, client))

    by_the_standard_loop = loops.run(loops.STDLIB, main())
    assert by_the_standard_loop == b"" or sys.version_info < (3, 11)  # where it never came
    assert loops.run(loop, main()) == by_the_standard_loop


def test_last_words_that_come_together_with_the_end(loop: str, tls: Ends) -> None:
    """Data, close_notify and the end of the stream: what was said is read, and then the end."""

    def client(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), LIMIT) as sock:
            last_words(sock, tls.client, notify=True)
            receive_until_eof(sock)

    assert heard(loop, tls, client) == [b"last words", b"", "closed"]


@pytest.mark.parametrize("end", ["half-close", "close", "reset"])
def test_an_end_that_tls_was_not_told_of(loop: str, tls: Ends, end: str) -> None:
    """As by the standard library's loop, whatever it makes of that."""

    def client(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), LIMIT) as sock:
            last_words(sock, tls.client, notify=False)
            if end == "half-close":
                sock.shutdown(socket.SHUT_WR)
                receive_until_eof(sock)
            elif end == "reset":
                reset(sock)

    assert heard(loop, tls, client) == heard(loops.STDLIB, tls, client)


def last_words(sock: socket.socket, context: ssl.SSLContext, *, notify: bool) -> None:
    """A handshake, and a last record; nothing that the other end sends is left unread, so that closing is no reset."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")

    def until_done(step: Callable[[], T]) -> T:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(PIECE))

    until_done(tls.do_handshake)
    sock.sendall(outgoing.read())
    assert until_done(lambda: tls.read(5)) == b"hello"
    tls.write(b"last words")
    if notify:
        with pytest.raises(ssl.SSLWantReadError):
            tls.unwrap()
    sock.sendall(outgoing.read())


def heard(loop: str, tls: Ends, client: Callable[[int], None]) -> list[object]:
    """What the server reads, up to the end, and how its own writing and closing ends."""
    transcript: list[object] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        try:
            transcript.append(await reader.readexactly(10))
            transcript.append(await reader.read(1))
        except (OSError, EOFError) as error:
            transcript.append(repr(error))
        try:
            await finish(writer)
            transcript.append("closed")
        except OSError as error:
            transcript.append(repr(error))

    async def main() -> None:
        async with serving(handler, tls.server) as port:
            await within(asyncio.to_thread(client, port))

    loops.run(loop, main())
    return transcript


def test_openssl(loop: str, tls: Ends) -> None:
    """In a subprocess, which the loop talks to by pipes."""

    async def main() -> None:
        async with serving(echo, tls.server) as port:
            arguments = ("s_client", "-quiet", "-connect", f"127.0.0.1:{port}")
            pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
            client = await asyncio.create_subprocess_exec(
                need("openssl", "openssl"), *arguments, stdin=pipe, stdout=pipe, stderr=nothing
            )
            assert client.stdin is not None
            assert client.stdout is not None
            for line in (b"hello\n", b"again\n"):
                client.stdin.write(line)
                assert await within(client.stdout.readline()) == line
            client.kill()
            await within(client.communicate())

    loops.run(loop, main())


def test_nonsense_and_silence_end_the_connection(loop: str, tls: Ends) -> None:
    async def main() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=tls.server, ssl_handshake_timeout=0.3)
        port = server.sockets[0].getsockname()[1]
        for nonsense in (b"GET / HTTP/1.1\r\n\r\n", bytes(100), b"\x16\x03\x01\x00\x05hello", b"\x16\x03\x01", b""):
            reader, writer = await connect(port, None)
            writer.write(nonsense)
            await within(reader.read())
            await finish(writer)
        reader, writer = await connect(port, tls.client)
        writer.write(b"x")
        assert await within(reader.readexactly(1)) == b"x"
        await finish(writer)
        server.close()
        await server.wait_closed()

    loops.run(loop, main())


def test_a_certificate_that_is_not_trusted(loop: str, tls: Ends) -> None:
    async def main() -> None:
        async with serving(echo, tls.server) as port:
            with pytest.raises(ssl.SSLCertVerificationError):
                await connect(port, ssl.create_default_context())

    loops.run(loop, main())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="StreamWriter.start_tls() came with Python 3.11")
def test_start_tls_by_streams(loop: str, tls: Ends) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"go ahead\n")
        await writer.drain()
        await writer.start_tls(tls.server)
        await echo(reader, writer)

    async def main() -> None:
        async with serving(handler, None) as port:
            reader, writer = await connect(port, None)
            writer.write(b"STARTTLS\n")
            assert await within(reader.readline()) == b"go ahead\n"
            await within(writer.start_tls(tls.client, server_hostname="localhost"))
            assert writer.get_extra_info("ssl_object") is not None
            sending = asyncio.ensure_future(send_all(writer, BODY))
            assert await within(reader.readexactly(len(BODY))) == BODY
            await sending
            await finish(writer)

    loops.run(loop, main())


class Collecting(asyncio.Protocol):
    def __init__(self) -> None:
        self.received = bytearray()
        self.news = asyncio.Event()
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)

    async def have(self, size: int) -> bytes:
        while len(self.received) < size:
            self.news.clear()
            await within(self.news.wait())
        return bytes(self.received)


def test_start_tls_by_the_loop(loop: str, tls: Ends) -> None:
    """At both ends, of a connection on which something was said before."""

    async def main() -> None:
        event_loop = asyncio.get_running_loop()
        connected: asyncio.Future[tuple[asyncio.Transport, Collecting]] = event_loop.create_future()

        class Accepting(Collecting):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                assert isinstance(transport, asyncio.Transport)
                connected.set_result((transport, self))

        server = await event_loop.create_server(Accepting, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        transport, protocol = await event_loop.create_connection(Collecting, "127.0.0.1", port)
        other, accepting = await within(connected)
        transport.write(b"plain")
        other.write(b"plain")
        assert await protocol.have(5) == await accepting.have(5) == b"plain"
        over, under = await within(
            asyncio.gather(
                event_loop.start_tls(other, accepting, tls.server, server_side=True),
                event_loop.start_tls(transport, protocol, tls.client, server_hostname="localhost"),
            )
        )
        assert over is not None
        assert under is not None
        over.write(BODY)
        under.write(BODY)
        assert await protocol.have(5 + len(BODY)) == await accepting.have(5 + len(BODY)) == b"plain" + BODY
        under.close()
        assert await within(protocol.lost) is None
        assert await within(accepting.lost) is None
        over.close()  # Python 3.10 wants to be told
        server.close()
        await server.wait_closed()

    loops.run(loop, main())


def test_half_close_without_tls(loop: str) -> None:
    """What TLS cannot do: the answer comes when the question has ended."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        question = await reader.read()
        await send_all(writer, question)
        await finish(writer)

    async def main() -> None:
        async with serving(handler, None) as port:
            reader, writer = await connect(port, None)
            assert writer.can_write_eof()
            await send_all(writer, BODY)
            writer.write_eof()
            assert await within(reader.read()) == BODY
            await finish(writer)

    loops.run(loop, main())
