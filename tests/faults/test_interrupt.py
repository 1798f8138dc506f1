"""Ctrl-C, for real and 500 times: SIGINT strikes a consumer in the main thread under traffic, and nothing is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import CodeType, FrameType
from typing import Literal

import pytest

import gaio
from gaio.engine import Engine
from gaio.leader import Leader
from tests import backends
from tests.accounting import AccountedWatcher, MakeWatcher
from tests.behaviour.echo import EchoServer
from tests.faulty_libc import FaultyLibc
from tests.peers import Pairs, pattern, receive_exactly, receive_until_eof
from tests.waiting import LIMIT, Background, TimeLimit

TIMES = 500
CONNECTIONS = 8

pytestmark = pytest.mark.scenario(2)

# Sends SIGINT to a process every other millisecond, until its standard input ends. Not to its parent: that is another
# process, perhaps number 1, as soon as the first has been killed.
ANOTHER_PROCESS = """
import os, random, signal, sys, threading, time
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
while not ended.wait(random.uniform(0.0005, 0.003)):
    os.kill(int(sys.argv[1]), signal.SIGINT)
"""


class Interruptions:
    """Raises KeyboardInterrupt on SIGINT, as Python does by itself, but only within wait_io().

    What an exception does to the caller's own code, between the return of wait_io() and the bookkeeping of this test,
    is the caller's affair.
    """

    def __init__(self) -> None:
        self.count = 0
        self.enough = threading.Event()

    def handler(self, _number: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code is gaio.Watcher.wait_io.__code__:
                self.count += 1
                raise KeyboardInterrupt
            frame = frame.f_back

    def caught(self) -> None:
        """Not in the handler, which may be interrupted itself: an Event that is struck in set() stays locked."""
        if self.count >= TIMES:
            self.enough.set()


@pytest.fixture
def interruptions() -> Iterator[Interruptions]:
    made = Interruptions()
    before = signal.signal(signal.SIGINT, made.handler)
    yield made
    signal.signal(signal.SIGINT, before)


def client(peer: socket.socket, enough: threading.Event) -> int:
    """Sends messages of every size and checks each echo, until there were enough interruptions; then ends its side."""
    moved = 0
    while not enough.is_set():
        message = pattern(random.choice([1, 64, 700, 5000, 70_000]), seed=random.randrange(4))
        peer.sendall(message)
        assert receive_exactly(peer, len(message)) == message
        moved += len(message)
    peer.shutdown(socket.SHUT_WR)
    assert receive_until_eof(peer) == b""
    return moved


def strike_from_a_thread(enough: threading.Event) -> None:
    limit = TimeLimit(LIMIT * 2)
    while not enough.wait(random.uniform(0.0005, 0.003)):
        limit.left(f"{TIMES} interruptions")
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["thread", "process"])
def test_500_interruptions_under_traffic(
    watcher: AccountedWatcher, pairs: Pairs, interruptions: Interruptions, source: Literal["thread", "process"]
) -> None:
    server = EchoServer(watcher, "mixed")
    ends = [pairs.tcp() for _ in range(CONNECTIONS)]
    clients = [Background(partial(client, peer, interruptions.enough)) for _, peer in ends]
    for conn, _ in ends:
        server.start(conn)
    striking: Background[None] | subprocess.Popen[bytes]
    if source == "thread":
        striking = Background(partial(strike_from_a_thread, interruptions.enough))
    else:
        command = [sys.executable, "-c", ANOTHER_PROCESS, str(os.getpid())]
        striking = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        limit = TimeLimit(LIMIT * 2)
        while server.ended < CONNECTIONS:
            limit.left(f"{TIMES} interruptions, of which {interruptions.count} came, and the end of the traffic")
            try:
                server.serve(CONNECTIONS)
            except KeyboardInterrupt:
                interruptions.caught()
                if random.random() < 0.05:
                    time.sleep(0.012)  # stays away so long that the watcher thread takes over what was interrupted
    finally:
        interruptions.enough.set()
        if isinstance(striking, Background):
            striking.result()
        else:
            assert striking.stdin is not None
            striking.stdin.close()
            assert striking.wait(LIMIT) == 0
    assert interruptions.count >= TIMES
    assert server.echoed == sum(peer.result() for peer in clients)
    assert watcher.pending == 0


@pytest.mark.scenario(2, on="epoll, kqueue")
@pytest.mark.parametrize("call", ["send", "recv"])
@pytest.mark.parametrize("backend", backends.telling_readiness(), indirect=True)
def test_a_call_that_moved_everything_leaves_the_connection_ready(
    libc: FaultyLibc, make_watcher: MakeWatcher, pairs: Pairs, call: str
) -> None:
    """Taken for a short one, it had the next write wait for an edge that never came.

    Whether it was short was judged by what the call before had asked for: here a read of the whole arena.
    """
    watcher = make_watcher()
    conn, peer = pairs.tcp()
    peer.sendall(b"question")
    read = watcher.read(conn)
    watcher.finish(read)
    libc.interrupt_after(call)
    if call == "recv":
        request = watcher.read_full(conn, bytearray(4))
        peer.sendall(b"next")
    else:
        request = watcher.write(conn, b"answer")  # nothing comes in meanwhile: its edge would tell of room, too
    with pytest.raises(KeyboardInterrupt):
        watcher.finish(request)
    watcher.finish(request)
    assert request.size == (4 if call == "recv" else 6)
    watcher.finish(watcher.write(conn, b"and more"))
    expected = b"and more" if call == "recv" else b"answerand more"
    assert receive_exactly(peer, len(expected)) == expected


@pytest.mark.scenario(2, 18, on="epoll, kqueue")
@pytest.mark.usefixtures("thread_acts_when_told")
@pytest.mark.parametrize("backend", backends.telling_readiness(), indirect=True)
def test_a_write_without_memory_for_the_moment_that_is_interrupted_is_tried_again(
    libc: FaultyLibc, make_watcher: MakeWatcher, pairs: Pairs
) -> None:
    """ENOBUFS is no error of the connection, nor is it when it is found after Ctrl-C."""
    watcher = make_watcher()
    conn, peer = pairs.tcp()
    libc.fail("send", errno.ENOBUFS)
    libc.interrupt_after("send")
    write = watcher.write(conn, b"at last")
    with pytest.raises(KeyboardInterrupt):
        watcher.finish(write)
    watcher.finish(write)
    assert write.error is None
    assert receive_exactly(peer, 7) == b"at last"


@contextlib.contextmanager
def struck_twice() -> Iterator[None]:
    """KeyboardInterrupt at the start of a turn, and again where the watcher is about to deal with that."""
    struck: list[CodeType] = []

    def strike_at(place: CodeType) -> Callable[[FrameType, str, object], None]:
        def hook(frame: FrameType, event: str, argument: object) -> None:
            if frame.f_code is place and event == "call":
                struck.append(place)
                raise KeyboardInterrupt  # the interpreter then takes the hook out

        return hook

    # There are two hooks of the interpreter: one for each strike.
    sys.setprofile(strike_at(Engine.turn.__code__))
    sys.settrace(strike_at(Leader.relinquish.__code__))
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        sys.setprofile(None)
        sys.settrace(None)
    assert struck == [Engine.turn.__code__, Leader.relinquish.__code__]


@pytest.mark.parametrize("call", ["wait_io", "close", "detach", "fileno"])
def test_struck_again_while_it_stepped_aside(watcher: AccountedWatcher, pairs: Pairs, call: str) -> None:
    """The next call took itself for one from within the first: wait_io() was refused for ever, close() did nothing."""
    conn, peer = pairs.tcp()
    watcher.finish(watcher.write(conn, b"x"))
    with struck_twice():
        watcher.wait(30)
    if call == "close":
        watcher.close_and_check()
        assert receive_until_eof(peer) == b"x"
        return
    if call == "fileno":
        assert watcher.watcher.fileno() >= 0
    if call == "detach":
        with watcher.watcher.detach(conn) as detached:
            detached.send(b"y")
        assert receive_until_eof(peer) == b"xy"
        return
    read = watcher.read(conn)
    peer.send(b"still there?")
    watcher.finish(read)
    assert read.data == b"still there?"
