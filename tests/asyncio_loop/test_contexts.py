"""In which context a protocol is called, and so which values its context variables have: as with asyncio's own loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from contextvars import Context, ContextVar
from functools import partial

import pytest

from gaio.asyncio import EventLoop
from tests import backends
from tests.asyncio_loop import loops

last: ContextVar[str] = ContextVar("last", default="nothing")
Log = list[tuple[str, str]]
LARGE = 8_000_000  # bytes, more than a pair of sockets holds


class Noting(asyncio.Protocol):
    """Notes each call with what `last` is then, and has `last` be that call."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.lost = asyncio.get_running_loop().create_future()

    def note(self, call: str) -> None:
        self.log.append((call, last.get()))
        last.set(call)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.note(f"data_received {data.decode()}")

    def pause_writing(self) -> None:
        self.note("pause_writing")

    def resume_writing(self) -> None:
        self.note("resume_writing")

    def eof_received(self) -> None:
        self.note("eof_received")

    def connection_lost(self, _: Exception | None) -> None:
        self.note("connection_lost")
        self.lost.set_result(None)


class NotingFromTheFirst(Noting):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.note("connection_made")


class Raising(Noting):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        raise ValueError


class Answering(Noting):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.write(bytes(LARGE))


@contextlib.contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, peer = socket.socketpair()
    with ours, peer:
        ours.setblocking(False)
        peer.setblocking(False)
        yield ours, peer


async def conversation(make: type[Noting]) -> Log:
    loop = asyncio.get_running_loop()
    log: Log = []
    loop.set_exception_handler(lambda *_: log.append(("exception handler", last.get())))
    with pair() as (ours, peer):
        _, protocol = await loop.create_connection(partial(make, log), sock=ours)
        await loop.sock_sendall(peer, b"1")
        if make is Answering:
            left = LARGE
            while left:
                left -= len(await loop.sock_recv(peer, left))
            while protocol.transport.get_write_buffer_size() or log[-1][0] != "resume_writing":
                await asyncio.sleep(0)
        peer.shutdown(socket.SHUT_WR)
        await protocol.lost
    return log


def log_of(make_loop: Callable[[], asyncio.AbstractEventLoop], make: type[Noting], preset: list[str]) -> Log:
    def run() -> Log:
        for value in preset:
            last.set(value)
        loop = make_loop()
        try:
            return loop.run_until_complete(conversation(make))
        finally:
            loop.close()

    return Context().run(run)


@pytest.mark.parametrize("make", [Noting, NotingFromTheFirst, Raising, Answering])
@pytest.mark.parametrize("preset", [[], ["preset"]], ids=["an empty context", "a context"])
def test_every_call_of_a_protocol_finds_the_values_that_it_would(
    make: type[Noting], preset: list[str], backend: backends.Name
) -> None:
    theirs = log_of(loops.factory(loops.STDLIB), make, preset)
    assert "connection_lost" in dict(theirs)
    assert log_of(lambda: EventLoop(backend=backend), make, preset) == theirs


def test_so_does_a_call_about_what_was_to_leave_with_many_others(backend: backends.Name) -> None:
    """What has left of that is known when no code of a program runs."""

    class Asking(Noting):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.write(bytes(60_000))

    async def conversations() -> list[Log]:
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            pairs = [stack.enter_context(pair()) for _ in range(32)]
            logs: list[Log] = [[] for _ in pairs]
            protocols = []
            for (ours, _), log in zip(pairs, logs, strict=True):
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
                transport, protocol = await loop.create_connection(partial(Asking, log), sock=ours)
                transport.set_write_buffer_limits(high=1000)
                protocols.append(protocol)
            for _, peer in pairs:
                peer.send(b"1")
            for protocol, log in zip(protocols, logs, strict=True):
                while len(log) < 2:
                    await asyncio.sleep(0)
                protocol.transport.abort()
                await protocol.lost
        return logs

    def run() -> list[Log]:
        last.set("the program")
        loop = EventLoop(backend=backend)
        try:
            return loop.run_until_complete(conversations())
        finally:
            loop.close()

    for log in Context().run(run):
        values = dict(reversed(log))
        assert values["pause_writing"].startswith("data_received")
