"""Messages that leave together at the end of a turn of the loop, and what becomes of those that do not leave whole."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

import gaio
import gaio.asyncio
from gaio.closing import Sends
from gaio.selector import LoopWatcher
from tests import backends, child
from tests.asyncio_loop import loops
from tests.peers import pattern, receive_exactly
from tests.waiting import LIMIT, Background

MUCH = pattern(60_000)


@pytest.fixture(autouse=True)
def _few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gaio.selector._MANY", 1)


class AnswersAtLength(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    def data_received(self, _: bytes) -> None:
        self.transport.write(MUCH)


def test_the_rest_of_an_answer_waits_for_nobody(loop: str) -> None:
    """The peers do nothing before they have all of it, and nothing else happens either."""
    ends = [socket.socketpair() for _ in range(4)]

    def ask() -> list[bytes]:
        for _, peer in ends:
            peer.settimeout(LIMIT)
            peer.send(b"?")
        answers = [receive_exactly(peer, len(MUCH)) for _, peer in ends]
        for _, peer in ends:
            peer.close()
        return answers

    async def main() -> list[bytes]:
        current = asyncio.get_running_loop()
        ended = current.create_future()
        for conn, _ in ends:
            conn.setblocking(False)
            await current.create_connection(AnswersAtLength, sock=conn)

        def ask_and_say_so() -> list[bytes]:
            try:
                return ask()
            finally:
                current.call_soon_threadsafe(ended.set_result, None)

        asked = Background(ask_and_say_so)
        await ended
        return asked.result()

    assert loops.run(loop, main()) == [MUCH] * 4


@pytest.mark.parametrize("backend", backends.on_a_real_kernel())
def test_a_watcher_that_is_closed_just_then(backend: str) -> None:
    """By whoever gets at it. Its memory is no longer there to be looked at."""
    code = f"""
        import asyncio, socket
        import gaio, gaio.asyncio, gaio.selector
        gaio.selector._MANY = 1

        class Closes(asyncio.Protocol):
            def connection_made(self, transport):
                self.transport = transport

            def data_received(self, data):
                self.transport.write(data)
                loop.watcher.close()

            def connection_lost(self, error):
                print(type(error).__name__)
                loop.stop()

        loop = gaio.asyncio.EventLoop(backend={backend!r})
        loop.slow_callback_duration = 3600  # of which debug mode tells, on a machine that is busy
        loop.set_exception_handler(lambda *_: None)  # which is told of the error, too
        conn, peer = socket.socketpair()
        conn.setblocking(False)
        loop.run_until_complete(loop.create_connection(Closes, sock=conn))
        peer.send(b"x")
        loop.run_forever()
        loop.close()
        peer.close()
    """
    assert child.output_of(code) == "WatcherClosedError"


@pytest.mark.parametrize("backend", backends.on_a_real_kernel())
@pytest.mark.parametrize("later", [b"", b" and later"])
def test_interrupted_while_they_leave(
    backend: backends.Name, later: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop that is run again goes on with the rest: no byte is lost, doubled, or overtaken by later ones."""
    struck: list[bool] = []
    wait_io = LoopWatcher.wait_io

    def interrupted(watcher: LoopWatcher, timeout: float | None = None) -> list[gaio.OpResult]:
        leader = watcher._leader
        if any(isinstance(item, Sends) for item in leader.inbox) and not struck:
            struck.append(True)
            with leader.lead:
                leader.engine.turn(0, leader.pause)
            raise KeyboardInterrupt
        return wait_io(watcher, timeout)

    monkeypatch.setattr(LoopWatcher, "wait_io", interrupted)
    loop = gaio.asyncio.EventLoop(backend=backend)
    conn, peer = socket.socketpair()
    conn.setblocking(False)
    peer.settimeout(LIMIT)
    transport, protocol = loop.run_until_complete(loop.create_connection(AnswersAtLength, sock=conn))
    peer.send(b"?")
    loop.call_later(0.2, loop.stop)
    with contextlib.suppress(KeyboardInterrupt):
        loop.run_forever()
    assert loop.watcher is not None
    assert bool(struck) == loop.watcher._leader.engine.backend.sends_together
    if later:
        protocol.transport.write(later)
    receiving = Background(lambda: receive_exactly(peer, len(MUCH + later)))

    async def until_received() -> None:
        while not receiving.done():
            await asyncio.sleep(0.01)

    loop.run_until_complete(until_received())
    assert receiving.result() == MUCH + later
    transport.abort()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    peer.setblocking(False)
    assert peer.recv(1) == b""
    peer.close()
