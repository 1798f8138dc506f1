"""The chat server, seen by those who chat."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from tests import child
from tests.backends import Name
from tests.server_process import PYTHON, Server, listening, running
from tests.waiting import LIMIT, Background


class Person:
    """A client that reads line by line."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.name = "{}:{}".format(*sock.getsockname())
        self._lines = sock.makefile("rb")

    def says(self, text: str) -> None:
        self.sock.sendall(text.encode() + b"\n")

    def hears(self) -> str:
        return self._lines.readline().decode().rstrip("\n")

    def close(self) -> None:
        self._lines.close()
        self.sock.close()


@pytest.fixture
def server(backend: Name) -> Iterator[Server]:
    with running("examples.chat_server", "--backend", backend) as program:
        yield program


@contextlib.contextmanager
def people(server: Server, count: int) -> Iterator[list[Person]]:
    """So many who are all in the room, and have heard of each other."""
    with contextlib.ExitStack() as stack:
        here: list[Person] = []
        for _ in range(count):
            newcomer = Person(stack.enter_context(server.client()))
            stack.callback(newcomer.close)
            if not here:
                # Nobody tells the first one that it is in: somebody else who comes and leaves does.
                with server.client() as other:
                    name = "{}:{}".format(*other.getsockname())
                    assert newcomer.hears() == f"{name} has come"
                assert newcomer.hears() == f"{name} has left"
            for person in here:
                assert person.hears() == f"{newcomer.name} has come"
            here.append(newcomer)
        yield here


def test_everybody_else_hears_it(server: Server) -> None:
    with people(server, 5) as here:
        for number, speaker in enumerate(here):
            speaker.says(f"number {number} \u00e4\u00f6\u00fc")
            for listener in here:
                if listener is not speaker:
                    assert listener.hears() == f"{speaker.name} says: number {number} \u00e4\u00f6\u00fc"


def test_lines_in_pieces_and_several_at_once(server: Server) -> None:
    with people(server, 2) as (speaker, listener):
        speaker.sock.sendall(b"one\ntwo\nthr")
        assert listener.hears() == f"{speaker.name} says: one"
        assert listener.hears() == f"{speaker.name} says: two"
        speaker.sock.sendall(b"ee\n")
        assert listener.hears() == f"{speaker.name} says: three"


def test_those_who_leave_are_missed(server: Server) -> None:
    with people(server, 3) as (first, second, third):
        second.close()
        assert first.hears() == third.hears() == f"{second.name} has left"
        first.says("who is left?")
        assert third.hears() == f"{first.name} says: who is left?"


def test_last_words_without_a_line_end_are_heard(server: Server) -> None:
    with people(server, 2) as (speaker, listener):
        speaker.sock.sendall(b"one\ntwo")
        speaker.sock.shutdown(socket.SHUT_WR)
        assert [listener.hears() for _ in range(3)] == [
            f"{speaker.name} says: one",
            f"{speaker.name} says: two",
            f"{speaker.name} has left",
        ]


def test_empty_lines_are_not_passed_on(server: Server) -> None:
    with people(server, 2) as (speaker, listener):
        speaker.sock.sendall(b"\n" * 10_000 + b" \r\nwords\n")
        assert listener.hears() == f"{speaker.name} says: words"


def test_a_line_without_end_is_cut(server: Server) -> None:
    with people(server, 2) as (speaker, listener):
        speaker.sock.sendall(b"x" * 100_000 + b"\n")
        heard = 0
        while heard < 100_000:
            heard += listener.hears().count("x")
        assert heard == 100_000


@contextlib.contextmanager
def somebody_dropped(backend: Name) -> Iterator[tuple[socket.socket, int]]:
    """A client that was too slow, for it has not read at all, and how many bytes were said until all knew."""
    with (
        running("examples.chat_server", "--backend", backend) as server,
        people(server, 2) as (speaker, listener),
        server.client(receive_buffer=4096) as slow,
    ):
        name = "{}:{}".format(*slow.getsockname())
        assert speaker.hears() == listener.hears() == f"{name} has come"
        said = 0
        while True:
            speaker.says("x" * 4000)
            said += 4000
            heard = listener.hears()
            if heard == f"{name} was too slow":
                break
            assert heard == f"{speaker.name} says: {'x' * 4000}"
        yield slow, said


@pytest.mark.slow
def test_many_clients_may_be_too_slow_at_the_same_moment(backend: Name) -> None:
    """Who does not read hears the same as the others who do not, so that too much waits for all of them at once."""
    count = 100
    # A hundred calls that call each other in turn are more than this Python takes.
    shallow = "import sys; from examples import chat_server; sys.setrecursionlimit(90); chat_server.main()"
    command = (*PYTHON, "-c", child.program(shallow), "--backend", backend, "--port", "0")
    with listening(*command) as server, people(server, 1) as (speaker,), contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(server.client(receive_buffer=4096))
        for _ in range(count):
            assert speaker.hears().endswith("has come")
        said = Background(lambda: speaker.sock.sendall((b"x" * 4000 + b"\n") * 350))
        for _ in range(count):
            assert speaker.hears().endswith("was too slow")
        said.result()
        with server.client() as newcomer:
            assert speaker.hears() == "{}:{} has come".format(*newcomer.getsockname())


@pytest.mark.slow
def test_a_slow_client_is_dropped_and_holds_nobody_up(backend: Name) -> None:
    """When too much waits for it: the others' words are kept for it in memory."""
    with somebody_dropped(backend) as (slow, said):
        assert said > 1 << 18
        received = 0
        slow.settimeout(LIMIT)
        while part := slow.recv(65536):
            received += len(part)
        assert received < said, "it has had everything, so it was not slow"
