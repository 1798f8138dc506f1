"""An echo over a path that loses datagrams, doubles some and delays others: who asks again gets every answer."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

import gaio
from tests.accounting import AccountedWatcher, Request
from tests.peers import Pairs
from tests.waiting import LIMIT, Background, TimeLimit

LOST, DOUBLED, DELAYED = 0.3, 0.1, 0.1
PATIENCE = 0.02  # seconds until a client asks again
CLIENTS, QUESTIONS = 8, 12


class Path:
    """A relay between the clients and a server. The seed decides what becomes of each datagram."""

    def __init__(self, server: Any, seed: int) -> None:
        self._server = server
        self._chance = random.Random(seed)
        self._front = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._front.settimeout(LIMIT)
        self._front.bind(("127.0.0.1", 0))
        self.address = self._front.getsockname()
        self.lost = 0

    def run(self) -> None:
        """Until a datagram says that it is over. Clients are told apart by a socket for each of them."""
        with ExitStack() as stack:
            stack.enter_context(self._front)
            back = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            back.bind(("127.0.0.1", 0))
            held: list[tuple[bytes, Any]] = []
            while True:
                data, _ = self._front.recvfrom(2048)
                if data == b"over":
                    return
                for each in self._fate((data, self._server)):
                    held.append(each)
                    if self._chance.random() < DELAYED:
                        continue  # it goes with a later one, behind that
                    while held:
                        back.sendto(*held.pop())

    def _fate(self, datagram: tuple[bytes, Any]) -> Iterator[tuple[bytes, Any]]:
        if self._chance.random() < LOST:
            self.lost += 1
            return
        yield datagram
        if self._chance.random() < DOUBLED:
            yield datagram


class Client:
    """Asks one question after the other, each until it is answered."""

    def __init__(self, watcher: AccountedWatcher, conn: socket.socket, path: Any, number: int) -> None:
        self.watcher = watcher
        self.conn = conn
        self.path = path
        self.number = number
        self.reply_to = conn.getsockname()
        self.answered = 0
        self.again = 0
        self.read: Request = self.ask()

    @property
    def question(self) -> bytes:
        """With the address that the answer is to go to: the relay hides it."""
        return b"%s %d question %d of client %d" % (
            self.reply_to[0].encode(), self.reply_to[1], self.answered, self.number
        )

    def ask(self) -> Request:
        self.watcher.write(self.conn, self.question, address=self.path)
        self.read = self.watcher.read(self.conn, timeout=PATIENCE)
        return self.read

    def hears(self) -> None:
        """Its read has ended, by an answer or for want of one."""
        if self.read.error is not None:
            assert isinstance(self.read.error, gaio.DeadlineError)
            self.again += 1
        elif self.read.data == self.question:
            self.answered += 1  # else it is one that was delayed, or doubled
        if self.answered < QUESTIONS:
            self.ask()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_question_is_answered(watcher: AccountedWatcher, pairs: Pairs, seed: int) -> None:
    conn, address = pairs.bound()
    path = Path(address, seed)
    relaying = Background(path.run)
    server = watcher.read_start(conn)
    clients = {id(client.conn): client for client in make_clients(watcher, pairs, path)}
    limit, served = TimeLimit(), 0
    while any(client.answered < QUESTIONS for client in clients.values()):
        ended = watcher.wait(limit.left("the answers"))
        for question in server.messages[served:]:
            host, port, _ = question.split(maxsplit=2)
            watcher.write(conn, question, address=(host.decode(), int(port)))
        served = len(server.messages)
        for client in clients.values():
            if client.read in ended:
                client.hears()
    watcher.read_stop(conn)
    watcher.finish_all()
    pairs.unbound().sendto(b"over", path.address)
    relaying.result()
    assert path.lost > 0
    assert sum(client.again for client in clients.values()) > 0
    assert {client.answered for client in clients.values()} == {QUESTIONS}


def make_clients(watcher: AccountedWatcher, pairs: Pairs, path: Path) -> Iterator[Client]:
    for number in range(CLIENTS):
        conn, _ = pairs.bound()
        yield Client(watcher, conn, path.address, number)
