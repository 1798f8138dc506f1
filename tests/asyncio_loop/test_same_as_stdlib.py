"""What a program can see of transports: the same trace on the standard library's loop and on gaio's.

A scenario is a coroutine with a transport on one end of a connection and a plain socket, the peer, on the other. What
the transport calls and answers is noted. One loop says what is right, the others must say the same.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import contextvars
import errno
import gc
import importlib
import itertools
import logging
import os
import random
import socket
import ssl
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.asyncio_loop import loops
from tests.peers import reset

# The asyncio of Python 3.10 and 3.11.2 begins to read where connection_made() has paused that.
HEEDED_WHEN_CONNECTED = "is_reading" in vars(importlib.import_module("asyncio.selector_events")._SelectorTransport)

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")
LIMIT = 20.0  # seconds that a scenario may wait for something


class Trace:
    """What there was to see, in order."""

    def __init__(self) -> None:
        self.entries: list[tuple[object, ...]] = []

    def note(self, *what: object) -> None:
        self.entries.append(tuple(plain(part) for part in what))

    def last(self) -> tuple[object, ...]:
        return self.entries[-1] if self.entries else ()

    def has(self, name: object) -> bool:
        return any(name in entry for entry in self.entries)

    def attempt(self, name: str, call: Callable[[], object]) -> None:
        """Note what a call returns or raises."""
        try:
            self.note(name, call())
        except Exception as error:  # noqa: BLE001  # whatever it is, it is noted
            self.note(name, error)


# What asyncio says from Python 3.14 on, and for writelines() from 3.12 on, and what it said before, as gaio does.
REWORDED = (
    ("a bytes, bytearray, or memoryview object", "a bytes-like object"),
    ("Cannot call writelines()", "Cannot call write()"),
)


def plain(what: object) -> object:
    """The same for every loop: an exception by its type and text, anything else as it is if it can be compared."""
    if isinstance(what, BaseException):
        text = str(what)
        for later, earlier in REWORDED:
            text = text.replace(later, earlier)
        return type(what).__name__, text
    if isinstance(what, str):
        return what.replace("_SelectorSocketTransport", "_StreamTransport")
    if what is None or isinstance(what, (bytes, int, float, tuple, list, set)):
        return what
    return type(what).__name__


class Notes:
    """A protocol that notes what it is told, and then does what the scenario wants it to do."""

    def __init__(self, trace: Trace, name: str = "", **acts: Callable[[Any], object]) -> None:
        self.trace, self.name, self.acts = trace, name, acts
        self.transport: Any = None
        self.received = b""

    def noted(self, call: str, *details: object) -> Any:
        transport, state = self.transport, None
        if transport is not None:
            try:
                state = transport.is_closing(), transport.is_reading()
            except RuntimeError:
                state = None  # in CPython 3.10 a transport of TLS that is lost cannot be asked whether it reads
        self.trace.note(self.name + call, *details, VARIABLE.get(), state)
        act = self.acts.get(call)
        return act(self) if act is not None else None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.noted("connection_made")

    def eof_received(self) -> Any:
        return self.noted("eof_received")

    def connection_lost(self, error: Exception | None) -> None:
        self.noted("connection_lost", error)

    def pause_writing(self) -> None:
        self.noted("pause_writing")

    def resume_writing(self) -> None:
        self.noted("resume_writing")


class Plain(Notes, asyncio.Protocol):
    def data_received(self, data: bytes) -> None:
        self.received += data
        self.noted("data_received", type(data).__name__, data if len(data) < 100 else len(data))


class Buffered(Notes, asyncio.BufferedProtocol):
    def __init__(self, trace: Trace, name: str = "", size: int = 4, **acts: Callable[[Any], object]) -> None:
        super().__init__(trace, name, **acts)
        self.room = bytearray(size)

    def get_buffer(self, sizehint: int) -> Any:
        instead = self.noted("get_buffer", sizehint)
        return self.room if instead is None else instead

    def buffer_updated(self, nbytes: int) -> None:
        self.received += self.room[:nbytes]
        self.noted("buffer_updated", bytes(self.room[:nbytes]))


class Scene:
    """A loop, the trace, and one end of each connection."""

    def __init__(self, trace: Trace, kind: str) -> None:
        self.trace, self.kind = trace, kind
        self.peers: list[socket.socket] = []
        self.loop = asyncio.get_running_loop()

    async def connect(self, protocol: Any, kind: str | None = None) -> tuple[Any, socket.socket]:
        """A transport, and its peer."""
        ours, peer = pair(kind or self.kind)
        self.peers.append(peer)
        await self.loop.create_connection(lambda: protocol, sock=ours)
        return protocol.transport, peer

    async def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < deadline, f"nothing more comes after {self.trace.last()}"
            await asyncio.sleep(0.001)

    async def has_received(self, protocol: Notes, size: int) -> None:
        await self.until(lambda: len(protocol.received) >= size)

    async def is_told(self, what: str | bytes) -> None:
        await self.until(lambda: self.trace.has(what))

    async def settle(self) -> None:
        """Until all that is under way has been told: a message of a loop to itself goes through the same kernel."""
        for _ in range(4):
            probe, peer = pair(self.kind)
            with probe, peer:
                probe.setblocking(False)
                peer.send(b"x")
                await self.loop.sock_recv(probe, 1)
                await asyncio.sleep(0.002)

    async def read(self, peer: socket.socket, size: int | None = None) -> bytes:
        """So many bytes, or all to the end."""
        data = b""
        while size is None or len(data) < size:
            try:
                more = await asyncio.wait_for(self.loop.sock_recv(peer, 1 << 20), LIMIT)
            except ConnectionError as error:
                self.trace.note("peer", error)
                break
            if not more:
                break
            data += more
        return data


def pair(kind: str) -> tuple[socket.socket, socket.socket]:
    if kind == "unix":
        ours, peer = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            peer, _ = listener.accept()
    ours.setblocking(False)
    peer.setblocking(False)
    return ours, peer


def itself(protocol: Any) -> Any:
    return protocol


def end(peer: socket.socket) -> None:
    try:
        peer.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the transport has closed it


def small_buffers(transport: Any, peer: socket.socket) -> None:
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)


class Logged(logging.Handler):
    def __init__(self, trace: Trace) -> None:
        super().__init__(logging.WARNING)
        self._trace = trace

    def emit(self, record: logging.LogRecord) -> None:
        self._trace.note("log", record.levelname, record.getMessage())


Scenario = Callable[[Scene], Awaitable[None]]


def trace_of(name: str, scenario: Scenario, kind: str) -> list[tuple[object, ...]]:
    """What there is to see of a scenario on this loop."""
    trace = Trace()
    handler = Logged(trace)
    logger = logging.getLogger("asyncio")

    def report(_: object, context: dict[str, Any]) -> None:
        keys = sorted(context)
        trace.note("report", keys, context["message"].partition("(")[0], context.get("exception"), VARIABLE.get())

    async def main() -> None:
        scene = Scene(trace, kind)
        scene.loop.set_exception_handler(report)
        try:
            await asyncio.wait_for(scenario(scene), 2 * LIMIT)
            trace.note("the scenario has ended")
            await scene.settle()
        finally:
            for peer in scene.peers:
                peer.close()
            await asyncio.sleep(0.01)

    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    loop = loops.factory(name)()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loop.run_until_complete(main())
            loop.close()
            del loop
            gc.collect()
        for warning in caught:
            if "<socket.socket" in str(warning.message):
                continue  # gaio's watcher holds it, so that it is not collected with its transport
            trace.note("warning", warning.category.__name__, str(warning.message).partition("<")[0])
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
    pairs = itertools.pairwise([*trace.entries, ()])
    return [entry for entry, following in pairs if not asked_before_the_end(entry, following)]


def asked_before_the_end(entry: tuple[object, ...], following: tuple[object, ...]) -> bool:
    """asyncio asks for a buffer and then sees that the stream has ended; gaio knows that before."""
    return entry[0] == "get_buffer" and following[:1] == ("eof_received",)


SCENARIOS: list[Scenario] = []


def scenario(function: Scenario) -> Scenario:
    SCENARIOS.append(function)
    return function


# --- reading ----------------------------------------------------------------------------------------------------------


@scenario
async def messages_and_the_end(scene: Scene) -> None:
    protocol = Plain(scene.trace)
    _, peer = await scene.connect(protocol)
    for message in (b"one", b"two", b"x" * 3000):
        before = len(protocol.received)
        peer.send(message)
        await scene.has_received(protocol, before + len(message))
    peer.shutdown(socket.SHUT_WR)
    await scene.is_told("connection_lost")


@scenario
async def small_buffer_for_a_long_message(scene: Scene) -> None:
    """What buffer_updated() has called soon runs before the buffer is asked for again."""

    def soon(protocol: Any) -> None:
        scene.loop.call_soon(scene.trace.note, "soon", protocol.received)

    protocol = Buffered(scene.trace, size=3, buffer_updated=soon)
    _, peer = await scene.connect(protocol)
    peer.send(b"0123456789")
    await scene.until(lambda: len(protocol.received) == 10)
    peer.shutdown(socket.SHUT_WR)
    await scene.is_told("connection_lost")


@scenario
async def paused_in_connection_made(scene: Scene) -> None:
    if not HEEDED_WHEN_CONNECTED:
        return
    protocol = Plain(scene.trace, connection_made=lambda self: self.transport.pause_reading())
    transport, peer = await scene.connect(protocol)
    peer.send(b"hello")
    await scene.settle()
    scene.trace.note("paused", transport.is_reading())
    transport.pause_reading()
    transport.resume_reading()
    transport.resume_reading()
    await scene.until(lambda: protocol.received)
    transport.close()
    await scene.is_told("connection_lost")


@scenario
async def paused_in_data_received(scene: Scene) -> None:
    protocol = Plain(scene.trace, data_received=lambda self: self.transport.pause_reading())
    transport, peer = await scene.connect(protocol)
    for message in (b"one", b"two", b"three"):
        before = protocol.received
        peer.send(message)
        await scene.settle()
        scene.trace.note("received", protocol.received == before)
        transport.resume_reading()
        await scene.has_received(protocol, len(before + message))
    peer.send(b"last")
    peer.shutdown(socket.SHUT_WR)
    await scene.settle()
    transport.resume_reading()
    await scene.until(lambda: protocol.received.endswith(b"last"))
    await scene.settle()
    scene.trace.note("end not told")
    transport.resume_reading()
    await scene.is_told("connection_lost")


@scenario
async def paused_and_resumed_in_one_turn(scene: Scene) -> None:
    def twice(self: Any) -> None:
        for _ in range(3):
            self.transport.pause_reading()
            self.transport.resume_reading()

    protocol = Plain(scene.trace, connection_made=twice, data_received=twice)
    _, peer = await scene.connect(protocol)
    for message in (b"one", b"two"):
        before = len(protocol.received)
        peer.send(message)
        await scene.has_received(protocol, before + len(message))
        twice(protocol)
    peer.shutdown(socket.SHUT_WR)
    twice(protocol)
    await scene.is_told("connection_lost")


@scenario
async def end_while_paused(scene: Scene) -> None:
    protocol = Plain(scene.trace, eof_received=lambda _: True)
    transport, peer = await scene.connect(protocol)
    transport.pause_reading()
    peer.close()
    await scene.settle()
    transport.resume_reading()
    transport.pause_reading()
    transport.resume_reading()
    await scene.is_told("eof_received")
    await scene.settle()
    scene.trace.note("state", transport.is_closing(), transport.is_reading())
    transport.close()
    await scene.is_told("connection_lost")


@scenario
async def half_closed_by_the_peer(scene: Scene) -> None:
    """eof_received() keeps it open, and it goes on writing."""
    protocol = Plain(scene.trace, eof_received=lambda self: self.transport.write(b"more") or 1)
    transport, peer = await scene.connect(protocol)
    peer.shutdown(socket.SHUT_WR)
    scene.trace.note("read", await scene.read(peer, 4))
    transport.write(b" and more")
    transport.write_eof()
    scene.trace.note("read", await scene.read(peer))
    await scene.settle()
    transport.close()
    await scene.is_told("connection_lost")


def fails(error: BaseException) -> Callable[[Any], object]:
    def fail(_: Any) -> object:
        raise type(error)(*error.args)  # a new one, for it keeps the frames that it has gone through

    return fail


def failing(call: str, error: BaseException) -> Scenario:
    async def run(scene: Scene) -> None:
        VARIABLE.set("of the caller")
        acts: Any = {call: fails(error)}
        protocol = (Buffered if "buffer" in call else Plain)(scene.trace, **acts)
        transport, peer = await scene.connect(protocol)
        small_buffers(transport, peer)
        VARIABLE.set("later")
        peer.send(b"hi")
        if "writing" in call:
            transport.write(b"x" * 3_000_000)
            scene.trace.note("state", transport.is_closing())
            got = await scene.read(peer, 3_000_000)
            await scene.settle()  # with the last bytes writing is resumed, in this turn or in the next
            scene.trace.note("read", len(got))
        await scene.until(lambda: len(protocol.received) == 2 or transport.is_closing())
        end(peer)
        await scene.is_told("connection_lost")
        await scene.settle()

    run.__name__ = f"{type(error).__name__}_of_{call}"
    return run


for _call in ("connection_made", "data_received", "get_buffer", "buffer_updated", "eof_received", "pause_writing",
              "resume_writing", "connection_lost"):  # fmt: skip
    scenario(failing(_call, ZeroDivisionError("wrong")))
for _call in ("data_received", "get_buffer", "buffer_updated", "eof_received"):
    scenario(failing(_call, OSError(5, "wrong")))
    scenario(failing(_call, asyncio.CancelledError("wrong")))


def wrong_buffer(name: str, buffer: Any) -> Scenario:
    async def run(scene: Scene) -> None:
        protocol = Buffered(scene.trace, get_buffer=lambda _: buffer)
        _, peer = await scene.connect(protocol)
        peer.send(b"hi")
        await scene.is_told("connection_lost")
        # The text of a TypeError is that of another call.
        scene.trace.entries = [entry for entry in scene.trace.entries if "connection_lost" not in entry]
        scene.trace.entries = [
            tuple(part[0] if isinstance(part, tuple) and part[:1] == ("TypeError",) else part for part in entry)
            for entry in scene.trace.entries
        ]

    run.__name__ = f"buffer_that_is_{name}"
    return run


for _name, _buffer in (("empty", bytearray()), ("read_only", b"1234"), ("a_number", 7)):
    scenario(wrong_buffer(_name, _buffer))


@scenario
async def protocol_changed_in_the_middle(scene: Scene) -> None:
    second = Buffered(scene.trace, "second ")
    third = Plain(scene.trace, "third ")

    def change(to: Notes) -> Callable[[Any], None]:
        def act(self: Any) -> None:
            to.transport = self.transport
            self.transport.set_protocol(to)
            scene.trace.note("now", self.transport.get_protocol() is to)

        return act

    first = Plain(scene.trace, "first ", data_received=change(second))
    second.acts["buffer_updated"] = change(third)
    _, peer = await scene.connect(first)
    peer.send(b"one")
    await scene.until(lambda: first.received)
    peer.send(b"0123456789")
    await scene.until(lambda: len(second.received + third.received) == 10)
    peer.shutdown(socket.SHUT_WR)
    await scene.is_told("third connection_lost")


@scenario
async def data_received_replaced(scene: Scene) -> None:
    """A protocol whose attribute says what comes next."""
    protocol: Any = Plain(scene.trace)
    _, peer = await scene.connect(protocol)
    peer.send(b"one")
    await scene.until(lambda: protocol.received)
    got: list[bytes] = []
    protocol.data_received = got.append
    peer.send(b"two")
    await scene.until(lambda: got)
    scene.trace.note("got", *got)


@scenario
async def protocol_that_cannot_receive(scene: Scene) -> None:
    class Only(asyncio.BaseProtocol):
        transport: Any

        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def connection_lost(self, error: Exception | None) -> None:
            scene.trace.note("connection_lost", type(error).__name__)

    transport, peer = await scene.connect(Only())
    transport.write(b"hello")
    scene.trace.note("read", await scene.read(peer, 5))
    peer.send(b"hi")
    await scene.is_told("connection_lost")


# --- writing ----------------------------------------------------------------------------------------------------------


@scenario
async def all_that_can_be_written(scene: Scene) -> None:
    transport, peer = await scene.connect(Plain(scene.trace))
    changed = bytearray(b"bytearray ")
    transport.write(changed)
    changed[:] = b"XXXXXXXXXX"
    transport.write(memoryview(b"memoryview "))
    transport.write(memoryview(array.array("H", [0x2020] * 4)))
    transport.write(b"")
    transport.writelines([])
    transport.writelines([b"a", b"", bytearray(b"b"), memoryview(b"c")])
    transport.writelines(part for part in (b"d", b"e"))
    for wrong in ("text", 5, None, [b"list"]):
        try:
            transport.write(wrong)
        except TypeError as error:
            scene.trace.note("write", error)
    try:
        transport.writelines(["text"])
    except TypeError:
        scene.trace.note("writelines refuses")
    scene.trace.note("size", transport.get_write_buffer_size())
    transport.write_eof()
    transport.write_eof()
    scene.trace.note("can", transport.can_write_eof())
    for data in (b"", b"late"):
        scene.trace.attempt("write", partial(transport.write, data))
    with pytest.raises(RuntimeError, match=r"after write_eof\(\)"):
        transport.writelines([b"late"])
    scene.trace.note("read", await scene.read(peer))
    transport.close()
    await scene.is_told("connection_lost")


@scenario
async def changed_while_it_waits(scene: Scene) -> None:
    transport, peer = await scene.connect(Plain(scene.trace))
    small_buffers(transport, peer)
    if sys.version_info >= (3, 12):
        return  # there asyncio keeps a view of it, and sends what has become of it
    data = bytearray(b"a" * 1_000_000)
    transport.write(data)
    data[:] = b"b" * len(data)
    more = bytearray(b"c" * 1000)
    transport.write(memoryview(more))
    more[:] = b"d" * len(more)
    transport.writelines([b"e", b"f"])
    got = await scene.read(peer, 1_001_002)
    scene.trace.note("read", len(got), got.count(b"a"), got[-1002:])


@scenario
async def flow_control(scene: Scene) -> None:
    VARIABLE.set("of the connection")
    protocol = Plain(scene.trace)
    transport, peer = await scene.connect(protocol)
    small_buffers(transport, peer)
    for limits in ({}, {"high": 100}, {"low": 7}, {"high": 100, "low": 20}, {"high": 0}):
        transport.set_write_buffer_limits(**limits)
        scene.trace.note("limits", transport.get_write_buffer_limits())
    scene.trace.attempt("wrong", lambda: transport.set_write_buffer_limits(high=1, low=2))
    transport.set_write_buffer_limits(high=1000, low=100)
    VARIABLE.set("of the writer")
    transport.write(b"x" * 2_000_000)
    VARIABLE.set("later")
    scene.trace.note("paused", scene.trace.has("pause_writing"))
    transport.write(b"y" * 500_000)
    scene.trace.note("large", transport.get_write_buffer_size() > 1_000_000)
    got = await scene.read(peer, 2_500_000)
    await scene.settle()  # with the last bytes writing is resumed, in this turn or in the next
    scene.trace.note("read", len(got))
    await scene.is_told("resume_writing")
    scene.trace.note("size", transport.get_write_buffer_size())


@scenario
async def writing_resumes_at_the_low_mark(scene: Scene) -> None:
    """The peer reads on only when it is asked to, and that is when the buffer has fallen to the low mark."""
    transport, peer = await scene.connect(Plain(scene.trace))
    small_buffers(transport, peer)
    transport.set_write_buffer_limits(high=2_000_000, low=1_000_000)
    transport.write(b"x" * 3_000_000)
    scene.trace.note("paused", scene.trace.has("pause_writing"))
    received = 0
    while received < 2_200_000:
        received += len(await scene.read(peer, 1))
    await scene.is_told("resume_writing")
    scene.trace.note("size", 0 < transport.get_write_buffer_size() <= 1_000_000)
    transport.abort()


@scenario
async def closed_with_data_unsent(scene: Scene) -> None:
    transport, peer = await scene.connect(Plain(scene.trace))
    small_buffers(transport, peer)
    transport.write(b"x" * 1_000_000)
    transport.close()
    transport.close()
    scene.trace.note("closing", transport.is_closing(), transport.get_write_buffer_size() > 0)
    transport.write(b"y" * 10)
    scene.trace.attempt("write_eof", transport.write_eof)
    got = await scene.read(peer)
    scene.trace.note("read", len(got), got[-10:])
    await scene.is_told("connection_lost")
    scene.trace.note("closed", transport.is_closing(), transport.get_write_buffer_size())


@scenario
async def write_eof_with_data_unsent(scene: Scene) -> None:
    transport, peer = await scene.connect(Plain(scene.trace))
    small_buffers(transport, peer)
    transport.write(b"x" * 1_000_000)
    transport.write_eof()
    scene.trace.attempt("write", lambda: transport.write(b"y"))
    scene.trace.note("read", len(await scene.read(peer)))
    peer.send(b"answer")
    await scene.is_told(b"answer")
    transport.close()
    await scene.is_told("connection_lost")


@scenario
async def aborted(scene: Scene) -> None:
    transport, peer = await scene.connect(Plain(scene.trace))
    small_buffers(transport, peer)
    transport.write(b"x" * 5_000_000)
    transport.abort()
    scene.trace.note("state", transport.is_closing(), transport.get_write_buffer_size())
    transport.abort()
    transport.close()
    transport.write(b"y")
    await scene.is_told("connection_lost")
    transport.abort()
    scene.trace.note("state", transport.is_closing(), transport.get_write_buffer_size())
    scene.trace.note("read", len(await scene.read(peer)) < 5_000_000)


@scenario
async def written_and_aborted(scene: Scene) -> None:
    transport, peer = await scene.connect(Plain(scene.trace))
    transport.write(b"goodbye")
    transport.abort()
    await scene.is_told("connection_lost")
    scene.trace.note("read", await scene.read(peer))


@scenario
async def used_after_it_was_closed(scene: Scene) -> None:
    transport, _ = await scene.connect(Plain(scene.trace))
    sock = transport.get_extra_info("socket")
    names = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
    transport.close()
    for _ in range(8):
        transport.write(b"x")
    scene.trace.attempt("writelines", lambda: transport.writelines([b"x"]) if sys.version_info < (3, 12) else None)
    await scene.is_told("connection_lost")
    scene.trace.note("fileno", sock.fileno())
    for call in ("close", "abort", "pause_reading", "resume_reading", "is_reading", "is_closing", "write_eof",
                 "get_write_buffer_size", "get_protocol", "can_write_eof", "get_write_buffer_limits"):  # fmt: skip
        scene.trace.attempt(call, getattr(transport, call))
    transport.write(b"x")
    scene.trace.note("names", names == (transport.get_extra_info("sockname"), transport.get_extra_info("peername")))
    scene.trace.note("socket", transport.get_extra_info("socket") is sock)
    scene.trace.note("text", repr(transport).partition("fd=")[0].partition(" ")[2])


@scenario
async def closed_in_its_callbacks(scene: Scene) -> None:
    for call in ("connection_made", "data_received", "eof_received"):
        protocol = Plain(scene.trace, call + ": ", **{call: lambda self: self.transport.close()})
        _, peer = await scene.connect(protocol)
        if call != "connection_made":
            peer.send(b"hi")
        await scene.settle()
        end(peer)
        await scene.is_told(f"{call}: connection_lost")


@scenario
async def reset_by_the_peer(scene: Scene) -> None:
    protocol = Plain(scene.trace)
    _, peer = await scene.connect(protocol, "tcp")
    peer.send(b"hi")
    await scene.until(lambda: protocol.received)
    reset(peer)
    await scene.is_told("connection_lost")


@scenario
async def reset_while_paused(scene: Scene) -> None:
    protocol = Plain(scene.trace)
    transport, peer = await scene.connect(protocol, "tcp")
    transport.pause_reading()
    await scene.settle()
    reset(peer)
    await scene.settle()
    transport.write(b"x")
    scene.trace.note("state", transport.is_closing())
    await scene.is_told("connection_lost")
    for _ in range(8):
        transport.write(b"x")


@scenario
async def written_to_a_peer_that_has_reset(scene: Scene) -> None:
    """Before the loop has had a turn to see it."""
    transport, peer = await scene.connect(Plain(scene.trace), "tcp")
    await scene.settle()
    reset(peer)
    transport.write(b"x")
    scene.trace.note("state", transport.is_closing())
    for _ in range(8):
        transport.write(b"x")
    await scene.is_told("connection_lost")


@scenario
async def written_to_a_peer_that_is_gone(scene: Scene) -> None:
    transport, peer = await scene.connect(Plain(scene.trace, eof_received=lambda _: True))
    peer.close()
    await scene.is_told("eof_received")
    for _ in range(3):
        transport.write(b"x")
        await scene.settle()
    await scene.is_told("connection_lost")


@scenario
async def reset_with_data_unsent(scene: Scene) -> None:
    protocol = Plain(scene.trace)
    transport, peer = await scene.connect(protocol, "tcp")
    small_buffers(transport, peer)
    transport.pause_reading()
    await scene.settle()
    transport.write(b"x" * 3_000_000)
    await scene.settle()
    reset(peer)
    await scene.is_told("connection_lost")


# --- the rest ---------------------------------------------------------------------------------------------------------


@scenario
async def what_it_knows_of_its_socket(scene: Scene) -> None:
    path = os.path.join(tempfile.mkdtemp(), "s")
    accepted: asyncio.Queue[Plain] = asyncio.Queue()
    make = lambda: Plain(Trace(), connection_made=accepted.put_nowait)  # noqa: E731
    kinds: list[Any] = [lambda: scene.loop.create_server(make, "127.0.0.1", 0)]
    kinds.append(lambda: scene.loop.create_unix_server(make, path))
    for make_server in kinds:
        server = await make_server()
        address = server.sockets[0].getsockname()
        if isinstance(address, str):
            transport, _ = await scene.loop.create_unix_connection(lambda: Plain(Trace()), address)
        else:
            transport, _ = await scene.loop.create_connection(lambda: Plain(Trace()), *address)
        other = (await accepted.get()).transport
        for end, opposite in ((transport, other), (other, transport)):
            sock = end.get_extra_info("socket")
            same = end.get_extra_info("sockname") == opposite.get_extra_info("peername")
            scene.trace.note("names", same, type(end.get_extra_info("peername")).__name__, type(sock).__name__)
            scene.trace.note("missing", end.get_extra_info("sslcontext"), end.get_extra_info("wrong", "default"))
            scene.trace.note("names", sock.getsockname() == end.get_extra_info("sockname"), sock.family, sock.type)
            scene.trace.note("blocks", sock.gettimeout())
            if sock.family != socket.AF_UNIX:
                scene.trace.note("no delay", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0)
            end.close()
        server.close()
        await asyncio.wait_for(server.wait_closed(), LIMIT)
        await scene.settle()
        scene.trace.note("sockets", len(server.sockets), server.is_serving())


@scenario
async def nagle_of_a_socket_of_unnamed_protocol(scene: Scene) -> None:
    """asyncio sets TCP_NODELAY only where the socket says that it is of TCP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for protocol in (0, socket.IPPROTO_TCP):
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol)
            sock.setblocking(False)
            await scene.loop.sock_connect(sock, listener.getsockname())
            scene.peers.append(listener.accept()[0])
            transport, _ = await scene.loop.create_connection(lambda: Plain(scene.trace), sock=sock)
            scene.trace.note("no delay", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0)
            transport.close()


@scenario
async def contexts(scene: Scene) -> None:
    """In which context each callback runs, and that what one sets the next one sees."""

    def counted(self: Any) -> None:
        VARIABLE.set(VARIABLE.get() + "+")

    VARIABLE.set("connect")
    names = ("connection_made", "data_received", "eof_received", "pause_writing", "resume_writing", "connection_lost")
    acts: Any = dict.fromkeys(names, counted)
    protocol = Plain(scene.trace, **acts)
    transport, peer = await scene.connect(protocol)
    small_buffers(transport, peer)
    for context in ("one", "two"):
        VARIABLE.set(context)
        for _ in range(2):
            before = len(protocol.received)
            peer.send(b"hi")
            await scene.has_received(protocol, before + 2)
        transport.pause_reading()
        peer.send(b"held")
        await scene.settle()
        VARIABLE.set(context + " resumes")
        transport.resume_reading()
        await scene.until(lambda: protocol.received.endswith(b"held"))
    for _ in range(2):
        VARIABLE.set("writes")
        transport.write(b"x" * 2_000_000)
        VARIABLE.set("reads")
        await scene.read(peer, 2_000_000)
        await scene.until(lambda: transport.get_write_buffer_size() == 0)
    VARIABLE.set("closes")
    transport.close()
    await scene.is_told("connection_lost")


@scenario
async def context_of_an_error(scene: Scene) -> None:
    VARIABLE.set("connect")

    def fail(_: Any) -> None:
        VARIABLE.set("set by data_received")
        raise ZeroDivisionError

    protocol = Plain(scene.trace, data_received=fail)
    _, peer = await scene.connect(protocol)
    VARIABLE.set("later")
    peer.send(b"hi")
    await scene.is_told("connection_lost")


@scenario
async def added_descriptor_of_a_transport(scene: Scene) -> None:
    transport, _ = await scene.connect(Plain(scene.trace))
    sock = transport.get_extra_info("socket")
    for call in (scene.loop.add_reader, scene.loop.add_writer):
        try:
            call(sock.fileno(), print)
        except RuntimeError as error:
            scene.trace.note("refused", str(error).partition("fd")[0][:20])
    for remove in (scene.loop.remove_reader, scene.loop.remove_writer):
        try:
            scene.trace.note("removed", remove(sock.fileno()))
        except RuntimeError:
            scene.trace.note("refused")
    transport.close()
    await scene.is_told("connection_lost")


@scenario
async def sends_a_file(scene: Scene) -> None:
    protocol = Plain(scene.trace)
    transport, peer = await scene.connect(protocol)
    small_buffers(transport, peer)
    with tempfile.TemporaryFile() as file:
        file.write(b"f" * 300_000)
        transport.write(b"head " * 100_000)
        sending = asyncio.ensure_future(scene.loop.sendfile(transport, file))
        await asyncio.sleep(0)
        scene.trace.attempt("write", lambda: transport.write(b"x"))
        peer.send(b"hi")
        got = await scene.read(peer, 800_000)
        sent = await sending
        await scene.until(lambda: protocol.received)
        scene.trace.note("read", len(got), got.count(b"f"))
        scene.trace.note("sent", sent, transport.is_reading())
        transport.write(b"tail")
        scene.trace.note("read", await scene.read(peer, 4))
        transport.close()
        try:
            await scene.loop.sendfile(transport, file)
        except RuntimeError as error:
            scene.trace.note("sendfile", error)
        await scene.is_told("connection_lost")


@scenario
async def sends_a_file_to_one_who_goes(scene: Scene) -> None:
    transport, peer = await scene.connect(Plain(scene.trace))
    small_buffers(transport, peer)
    with tempfile.TemporaryFile() as file:
        file.write(b"f" * 3_000_000)
        transport.write(b"h" * 500_000)
        sending = asyncio.ensure_future(scene.loop.sendfile(transport, file))
        await scene.settle()
        transport.abort()
        try:
            await sending
        except ConnectionError as error:
            scene.trace.note("sendfile", error)
        await scene.is_told("connection_lost")


@scenario
async def streams(scene: Scene) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line.upper())
            await writer.drain()
        scene.trace.note("served", reader.at_eof())
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1000)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.writelines([b"one\n", b"two\n"])
    scene.trace.note("line", await reader.readline(), await reader.readline())
    for number in range(3000):
        writer.write(b"%d\n" % number)
    scene.trace.note("lines", [await reader.readline() for _ in range(3000)] == [b"%d\n" % n for n in range(3000)])
    writer.write_eof()
    scene.trace.note("end", await reader.read())
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()


@scenario
async def a_read_is_cancelled(scene: Scene) -> None:
    ours, peer = pair(scene.kind)
    scene.peers.append(peer)
    reader, writer = await asyncio.open_connection(sock=ours)
    for data in (b"first", b"second"):
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(reader.readexactly(100), 0.01)
        peer.send(data)
        scene.trace.note("read", await reader.readexactly(len(data)))
    writer.close()
    await writer.wait_closed()


@scenario
async def a_server_that_closes(scene: Scene) -> None:
    """close(), wait_closed(), and from Python 3.13 on what it can do to its clients."""
    for call in ("", "close_clients", "abort_clients"):
        if not hasattr(asyncio.Server, call or "close"):
            continue
        accepted: asyncio.Queue[Plain] = asyncio.Queue()
        make = lambda accepted=accepted: Plain(scene.trace, "server ", connection_made=accepted.put_nowait)  # noqa: E731
        server = await scene.loop.create_server(make, "127.0.0.1", 0)
        client = Plain(scene.trace, "client ")
        await scene.loop.create_connection(partial(itself, client), *server.sockets[0].getsockname())
        protocol = await accepted.get()
        server.close()
        waiting = asyncio.ensure_future(server.wait_closed())
        await scene.settle()
        scene.trace.note("done", waiting.done(), server.is_serving())
        if call:
            getattr(server, call)()
        else:
            protocol.transport.close()
        await asyncio.wait_for(waiting, LIMIT)
        await scene.until(client.transport.is_closing)
        await scene.settle()
        scene.trace.note("done", call, protocol.transport.is_closing())
        await scene.settle()


@scenario
async def timers_and_callbacks_beside_it(scene: Scene) -> None:
    """In which order they come, seen from data_received()."""

    def soon(self: Any) -> None:
        scene.loop.call_soon(scene.trace.note, "soon", self.received)
        scene.loop.call_later(0, scene.trace.note, "later", self.received)

    protocol = Plain(scene.trace, data_received=soon, eof_received=soon)
    _, peer = await scene.connect(protocol)
    peer.send(b"hi")
    await scene.is_told("later")
    peer.shutdown(socket.SHUT_WR)
    await scene.is_told("connection_lost")
    await scene.settle()


@scenario
async def dropped(scene: Scene) -> None:
    """Transports that nobody holds: paused ones are collected, and say so."""
    if not HEEDED_WHEN_CONNECTED:
        return
    for cycle in (False, True):
        ours, peer = pair(scene.kind)
        scene.peers.append(peer)
        protocol: Any = Plain(scene.trace, connection_made=lambda self: self.transport.pause_reading())
        await scene.loop.create_connection(partial(itself, protocol), sock=ours)
        await scene.settle()
        if cycle:
            protocol.ours = ours
        del protocol, ours
        gc.collect()
        scene.trace.note("read", await scene.read(peer))


@scenario
async def dropped_as_it_reads(scene: Scene) -> None:
    """It is held by the loop, until that is closed."""
    await scene.connect(Plain(scene.trace))
    gc.collect()
    await scene.settle()
    scene.trace.note("held")


@scenario
async def debug_mode(scene: Scene) -> None:
    scene.loop.set_debug(True)
    scene.loop.slow_callback_duration = 0.05

    def slow(_: Any) -> None:
        time.sleep(0.1)

    def emit(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if text.startswith("Executing"):
            scene.trace.note("slow", record.levelname)
            return False
        return True

    logger = logging.getLogger("asyncio")
    logger.addFilter(emit)
    try:
        protocol = Plain(scene.trace, data_received=slow)
        _, peer = await scene.connect(protocol)
        peer.send(b"hi")
        await scene.until(lambda: protocol.received)
        peer.shutdown(socket.SHUT_WR)
        await scene.is_told("connection_lost")
        await scene.settle()
    finally:
        logger.removeFilter(emit)
        scene.loop.set_debug(False)


@pytest.mark.parametrize("upgrades", [False, True], ids=["from the start", "start_tls"])
@pytest.mark.parametrize("name", [name for name in loops.names() if name != loops.STDLIB])
def test_the_trace_of_tls_is_the_same(name: str, upgrades: bool, certificate: Path) -> None:
    """Both ends on the loop: echo in pieces, pausing, more than fits, the end."""
    accepts = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    accepts.load_cert_chain(certificate)
    asks = ssl.create_default_context(cafile=str(certificate))

    async def talk(scene: Scene) -> None:
        loop = scene.loop

        async def secure(protocol: Any) -> None:
            transport: Any = await loop.start_tls(protocol.transport, protocol, accepts, server_side=True)
            protocol.transport = transport
            transport.write(b"secured")

        def received(protocol: Any) -> None:
            if protocol.received == b"STARTTLS" and upgrades:
                protocol.received = b""
                protocol.transport.pause_reading()  # what comes next is for start_tls()
                protocol.transport.write(b"go on")
                tasks.append(loop.create_task(secure(protocol)))
            else:
                protocol.transport.write(protocol.received)
                protocol.received = b""

        tasks: list[Any] = []
        servers: list[Any] = []
        acts: Any = {"data_received": received, "connection_made": servers.append}
        make = lambda: Plain(scene.trace, "server ", **acts)  # noqa: E731
        server = await loop.create_server(make, "127.0.0.1", 0, ssl=None if upgrades else accepts)
        client = Plain(scene.trace, "client ")
        address = server.sockets[0].getsockname()
        options: dict[str, Any] = {} if upgrades else {"ssl": asks, "server_hostname": "localhost"}
        transport: Any = (await loop.create_connection(lambda: client, *address, **options))[0]
        await scene.until(lambda: servers)
        if upgrades:
            transport.write(b"STARTTLS")
            await scene.has_received(client, 5)
            client.received = b""
            transport = await loop.start_tls(transport, client, asks, server_hostname="localhost")
            client.transport = transport
            await scene.until(lambda: client.received == b"secured")
            client.received = b""
        for data in (b"one", b"two", b"x" * 10_000):
            transport.write(data)
            await scene.has_received(client, len(data))
            scene.trace.note("echo", client.received == data)
            client.received = b""
        transport.pause_reading()
        transport.write(b"paused")
        await scene.settle()
        scene.trace.note("reading", transport.is_reading(), client.received)
        transport.resume_reading()
        await scene.until(lambda: client.received == b"paused")
        for key in ("cipher", "compression", "sslcontext", "ssl_object", "peercert", "peername", "sockname", "socket"):
            scene.trace.note(key, type(transport.get_extra_info(key)).__name__)
        scene.trace.note("can", transport.can_write_eof(), transport.get_write_buffer_size())
        transport.close()
        scene.trace.note("closing", transport.is_closing())
        await scene.is_told("client connection_lost")
        await scene.is_told("server connection_lost")
        server.close()

    def by_end(trace: list[tuple[object, ...]]) -> list[list[tuple[object, ...]]]:
        """Each end for itself, and what came in two records as one: the kernel decides which end is told first."""
        ends = [[entry for entry in trace if str(entry[0]).startswith(end)] for end in ("server", "client")]
        rest = [entry for entry in trace if not str(entry[0]).startswith(("server", "client"))]
        return [*([entry for entry in end if "data_received" not in str(entry[0])] for end in ends), rest]

    assert by_end(trace_of(name, talk, "tcp")) == by_end(trace_of(loops.STDLIB, talk, "tcp"))


# --- what ends a run of the loop --------------------------------------------------------------------------------------


class Crowd:
    """Twenty connections: what their peers send at once, a loop gets in one batch."""

    def __init__(self, loop: asyncio.AbstractEventLoop, make: Callable[[int], Any]) -> None:
        self.loop = loop
        self.protocols = [make(number) for number in range(20)]
        self.peers: list[socket.socket] = []

    async def connect(self) -> None:
        for protocol in self.protocols:
            ours, peer = pair("tcp")
            self.peers.append(peer)
            await self.loop.create_connection(partial(itself, protocol), sock=ours)
        await asyncio.sleep(0.01)

    def send(self, data: bytes) -> None:
        for peer in self.peers:
            peer.send(data)

    def until(self, condition: Callable[[], object]) -> None:
        async def wait() -> None:
            deadline = time.monotonic() + LIMIT
            while not condition():
                assert time.monotonic() < deadline
                await asyncio.sleep(0.001)

        self.loop.run_until_complete(wait())

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        for protocol in self.protocols:
            protocol.transport.abort()
        self.loop.run_until_complete(asyncio.sleep(0.01))
        self.loop.close()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("call", ["data_received", "get_buffer", "buffer_updated", "eof_received", "connection_lost"])
@pytest.mark.parametrize("name", loops.names())
def test_nothing_is_lost_where_a_callback_ends_the_run(name: str, call: str, error: type[BaseException]) -> None:
    """One of twenty raises it in the middle of what has come for all. Each gets all of it in the next run."""
    trace = Trace()
    calls = itertools.count()

    def act(_: Any) -> None:
        if next(calls) == 6:
            raise error

    kind = Buffered if "buffer" in call else Plain
    acts: Any = {call: act}
    crowd = Crowd(loops.factory(name)(), lambda number: kind(trace, f"{number} ", **acts))
    try:
        crowd.loop.run_until_complete(crowd.connect())
        crowd.send(b"0123456789")
        for peer in crowd.peers:
            peer.shutdown(socket.SHUT_WR)
        with pytest.raises(error):
            crowd.loop.run_until_complete(asyncio.sleep(LIMIT))
        crowd.until(lambda: all(trace.has(f"{number} connection_lost") for number in range(20)))
        assert [protocol.received for protocol in crowd.protocols] == [b"0123456789"] * 20
        told = [entry[0] for entry in trace.entries if str(entry[0]).endswith("eof_received")]
        assert len(set(told)) == 20
        assert len(told) == 20 + (call == "eof_received"), "it is told again to the one that did not take it"
    finally:
        crowd.close()


@pytest.mark.parametrize("name", loops.names())
def test_what_is_written_before_and_after_a_run_leaves_at_once(name: str) -> None:
    """loop.stop() in a callback that has written, in a turn that brought much, and then a write between two runs."""
    trace = Trace()

    def answer(protocol: Any) -> None:
        protocol.transport.write(b"answer")
        protocol.transport.get_protocol()
        crowd.loop.stop()

    crowd = Crowd(loops.factory(name)(), lambda _: Plain(trace, data_received=answer))
    try:
        crowd.loop.run_until_complete(crowd.connect())
        crowd.send(b"question")
        crowd.loop.run_forever()
        assert any(protocol.received for protocol in crowd.protocols)
        for protocol, peer in zip(crowd.protocols, crowd.peers, strict=True):
            if protocol.received:
                assert peer.recv(100) == b"answer"
            protocol.transport.write(b"more")
            assert peer.recv(100).endswith(b"more")
    finally:
        crowd.close()


@pytest.mark.parametrize("name", loops.names())
def test_a_child_that_leaves_sends_nothing_twice(name: str) -> None:
    """A callback writes and forks, and the child goes out of the loop by an exception."""
    trace = Trace()
    parent = os.getpid()

    def answer(protocol: Any) -> None:
        protocol.transport.write(b"answer")
        if protocol is crowd.protocols[10]:
            child = os.fork()
            if child == 0:
                raise SystemExit
            os.waitpid(child, 0)

    crowd = Crowd(loops.factory(name)(), lambda _: Plain(trace, data_received=answer))
    try:
        crowd.loop.run_until_complete(crowd.connect())
        crowd.send(b"question")
        try:
            crowd.until(lambda: all(protocol.received for protocol in crowd.protocols))
        finally:
            if os.getpid() != parent:
                os._exit(0)
        assert [peer.recv(100) for peer in crowd.peers] == [b"answer"] * 20
        with pytest.raises(BlockingIOError):
            crowd.peers[0].recv(100)
    finally:
        if os.getpid() != parent:
            os._exit(0)
        crowd.close()


@pytest.mark.parametrize("name", loops.names())
def test_many_small_writes_that_wait(name: str) -> None:
    """To ask how much waits for each of them would take minutes."""
    crowd = Crowd(loops.factory(name)(), lambda _: Plain(Trace()))
    try:
        crowd.loop.run_until_complete(crowd.connect())
        transport, peer = crowd.protocols[0].transport, crowd.peers[0]
        small_buffers(transport, peer)
        transport.write(b"x" * 4_000_000)
        for _ in range(20_000):
            transport.write(b"y")
        received = bytearray()
        crowd.loop.add_reader(peer, lambda: received.extend(peer.recv(1 << 20)))
        crowd.until(lambda: len(received) == 4_020_000)
        crowd.loop.remove_reader(peer)
        assert received.count(b"y") == 20_000
    finally:
        crowd.close()


@pytest.mark.parametrize("name", loops.names())
def test_a_loop_that_goes_from_thread_to_thread(name: str) -> None:
    crowd = Crowd(loops.factory(name)(), lambda _: Plain(Trace()))
    steps = [
        lambda: crowd.loop.run_until_complete(crowd.connect()),
        lambda: crowd.send(b"hello"),
        lambda: crowd.until(lambda: all(protocol.received == b"hello" for protocol in crowd.protocols)),
        crowd.close,
    ]
    done = []
    for step in steps:
        thread = threading.Thread(target=lambda step=step: done.append(step()))
        thread.start()
        thread.join(2 * LIMIT)
    assert len(done) == len(steps)


@pytest.mark.parametrize("name", loops.names())
def test_calls_from_other_threads_while_much_arrives(name: str) -> None:
    """None is lost, none waits for ever, and descriptors that the loop polls besides have their turn."""
    count = 2000
    loop = loops.factory(name)()
    crowd = Crowd(loop, lambda _: Plain(Trace(), data_received=lambda self: self.transport.write(b"pong")))
    called: list[int] = []
    polled: list[bytes] = []
    ours, other = socket.socketpair()
    ours.setblocking(False)

    def storm() -> None:
        for number in range(count):
            loop.call_soon_threadsafe(called.append, number)
            if number % 100 == 0:
                other.send(b"z")

    def answer(peer: socket.socket) -> None:
        peer.recv(100)
        peer.send(b"ping")

    threads = [threading.Thread(target=storm) for _ in range(3)]
    try:
        loop.run_until_complete(crowd.connect())
        loop.add_reader(ours, lambda: polled.append(ours.recv(1)))
        for peer in crowd.peers:
            loop.add_reader(peer, answer, peer)
        crowd.send(b"ping")
        for thread in threads:
            thread.start()
        crowd.until(lambda: len(called) == 3 * count and len(polled) == 3 * count // 100)
        assert all(protocol.received for protocol in crowd.protocols)
    finally:
        for thread in threads:
            thread.join()
        for reader in (ours, *crowd.peers):
            loop.remove_reader(reader)
        ours.close()
        other.close()
        crowd.close()


@pytest.mark.parametrize("name", loops.names())
def test_a_loop_is_closed_with_open_transports(name: str) -> None:
    """Nothing is told to them. What they are asked then is refused, as the loop is closed, and their end says so."""
    trace = Trace()
    crowd = Crowd(loops.factory(name)(), lambda _: Plain(trace))
    crowd.loop.run_until_complete(crowd.connect())
    crowd.loop.close()
    transport, peer = crowd.protocols[0].transport, crowd.peers[0]
    transport.write(b"hello")
    assert peer.recv(100) == b"hello"
    assert not trace.has("connection_lost")
    for call in (transport.close, transport.abort):
        with contextlib.suppress(RuntimeError):  # the second one finds it closing
            call()
    assert transport.is_closing()
    for one in crowd.peers:
        one.close()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del transport, crowd, call
        gc.collect()
    assert sum("unclosed transport" in str(warning.message) for warning in caught) == 20


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", [name for name in loops.names() if name != loops.STDLIB])
def test_the_trace_of_a_random_program_is_the_same(name: str, seed: int) -> None:
    """Each step is done when all that the one before has caused has been told."""

    async def program(scene: Scene) -> None:
        chance = random.Random(seed)
        kinds = (Plain, Buffered)
        steps = ("send", "send", "write", "writelines", "pause", "resume", "both", "change", "eof", "end")
        protocol: Any = chance.choice(kinds)(scene.trace, eof_received=lambda _: chance_of_end)
        chance_of_end = chance.random() < 0.5
        transport, peer = await scene.connect(protocol)
        taken = b""
        for _ in range(12):
            step = chance.choice(steps)
            scene.trace.note("step", step)
            size = chance.choice((1, 3, 4, 5, 9))
            if step == "send":
                with contextlib.suppress(OSError):
                    peer.send(bytes(range(size)))
            elif step in ("write", "writelines"):
                data: Any = bytes(range(size))
                scene.trace.attempt(step, partial(getattr(transport, step), data if step == "write" else [data]))
            elif step in ("pause", "resume"):
                getattr(transport, step + "_reading")()
            elif step == "both":
                transport.pause_reading()
                transport.resume_reading()
            elif step == "change":
                following: Any = chance.choice(kinds)(scene.trace, eof_received=lambda _: chance_of_end)
                following.transport = transport
                transport.set_protocol(following)
            elif step == "eof" and chance.random() < 0.3:
                transport.write_eof()
            elif step == "end" and chance.random() < 0.3:
                end(peer)
            await scene.settle()
            with contextlib.suppress(BlockingIOError):
                while more := peer.recv(1000):
                    taken += more
            scene.trace.note("state", taken, transport.is_closing(), transport.is_reading())
        transport.close()
        await scene.settle()

    kind = ("tcp", "unix")[seed % 2]
    assert joined(trace_of(name, program, kind)) == joined(trace_of(loops.STDLIB, program, kind))


def joined(trace: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
    """What came with one read may come with two: pieces in a row are one, and questions for room none."""
    entries: list[tuple[object, ...]] = []
    for entry in trace:
        if entry[0] in ("data_received", "buffer_updated"):
            before: Any = entries.pop()[1] if entries and entries[-1][0] == "data" else b""
            data: Any = entry[-3]
            entries.append(("data", before + data, *entry[-2:]))
        elif entry[0] != "get_buffer":
            entries.append(entry)
    return entries


# --- all scenarios ----------------------------------------------------------------------------------------------------

# A kernel tells once that a connection was reset, and later calls get EPIPE. A read of io_uring is under way all the
# time, and so it is the first to be told.
READ_IS_TOLD_FIRST = {"written_to_a_peer_that_has_reset"}


def reset_told_to_the_read(entry: tuple[object, ...]) -> tuple[object, ...]:
    told = plain(BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)))
    return tuple(told if isinstance(part, tuple) and part[0] == "ConnectionResetError" else part for part in entry)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=[scenario.__name__ for scenario in SCENARIOS])
@pytest.mark.parametrize("name", [name for name in loops.names() if name != loops.STDLIB])
def test_the_trace_is_the_same(name: str, scenario: Scenario, kind: str) -> None:
    trace, expected = trace_of(name, scenario, kind), trace_of(loops.STDLIB, scenario, kind)
    if scenario.__name__ in READ_IS_TOLD_FIRST and name == "gaio-io_uring":
        expected = [reset_told_to_the_read(entry) for entry in expected]
    assert trace == expected
