"""accept_start(): each client is a result of its own, until an error of the listener, or accept_stop()."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import gaio
from tests import child, leaks
from tests.accounting import AccountedWatcher, MakeWatcher, Repeating
from tests.backends import Name
from tests.behaviour.test_accept import client_of
from tests.behaviour.test_fork import MAY_FORK
from tests.nest import Nest
from tests.peers import Pairs, receive_exactly, reset
from tests.waiting import LIMIT, Background, TimeLimit, wait_until


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=500) as sock:
        yield sock


@pytest.fixture
def address(listener: socket.socket) -> tuple[str, int]:
    host, port = listener.getsockname()
    return host, port


def take(watcher: AccountedWatcher, accept: Repeating, count: int) -> None:
    watcher.harvest_until(lambda: len(accept.arrivals) >= count or accept.result, f"{count} clients")
    assert accept.result is None, accept
    assert len(accept.arrivals) == count
    assert accept.errors == []


def stop(watcher: AccountedWatcher, accept: Repeating) -> None:
    assert accept.conn is not None
    watcher.accept_stop(accept.conn)
    watcher.finish(accept)
    assert accept.error is None


def served(watcher: AccountedWatcher, accepted: socket.socket, client: socket.socket) -> None:
    """The two are one connection, and it works."""
    assert accepted.getpeername() == client.getsockname()
    accepted.settimeout(LIMIT)
    accepted.sendall(b"welcome")
    assert receive_exactly(client, 7) == b"welcome"


def test_one_client_after_the_other(
    watcher: AccountedWatcher, pairs: Pairs, listener: socket.socket, address: tuple[str, int]
) -> None:
    accept = watcher.accept_start(listener)
    assert listener.fileno() == -1
    for number in range(30):
        client = client_of(address, pairs)
        take(watcher, accept, number + 1)
        accepted = accept.connections[-1]
        pairs.also_close(accepted)
        assert accepted.getblocking()
        served(watcher, accepted, client)
    stop(watcher, accept)
    watcher.free(listener)


def test_the_result_of_an_arrival(
    watcher: AccountedWatcher, pairs: Pairs, listener: socket.socket, address: tuple[str, int]
) -> None:
    context = object()
    watcher.watcher.accept_start(listener, context=context)
    client_of(address, pairs)
    (result,) = watcher.watcher.wait_io(LIMIT)
    assert result.operation is gaio.ACCEPT
    assert result.conn is listener
    assert result.context is context
    assert (result.buffer, result.size, result.error, result.more) == (None, 0, None, True)
    assert result.accepted is result.accepted
    pairs.also_close(result.accepted)
    watcher.watcher.accept_stop(listener)
    (last,) = watcher.watcher.wait_io(LIMIT)
    assert (last.conn, last.context, last.accepted, last.error, last.more) == (listener, context, None, None, False)
    watcher.free(listener)


def test_many_clients_at_once(
    watcher: AccountedWatcher, pairs: Pairs, listener: socket.socket, address: tuple[str, int]
) -> None:
    """More than one turn accepts; some wait already, others come meanwhile."""
    clients = [client_of(address, pairs) for _ in range(100)]
    accept = watcher.accept_start(listener)
    coming = [Background(lambda: [client_of(address, pairs) for _ in range(50)]) for _ in range(3)]
    take(watcher, accept, 250)
    for thread in coming:
        clients += thread.result()
    pairs.also_close(*accept.connections)
    by_name = {client.getsockname(): client for client in clients}
    assert [sock.getpeername() for sock in accept.connections[:100]] == [c.getsockname() for c in clients[:100]]
    for accepted in accept.connections:
        served(watcher, accepted, by_name.pop(accepted.getpeername()))
    assert not by_name
    stop(watcher, accept)
    watcher.free(listener)


def test_a_whole_server(
    watcher: AccountedWatcher, pairs: Pairs, listener: socket.socket, address: tuple[str, int]
) -> None:
    """The loop that this is for, with read_start()."""
    watcher.accept_start(listener)

    def talk(number: int) -> bytes:
        with socket.create_connection(address, timeout=LIMIT) as client:
            client.sendall(b"%05d" % number)
            echo = receive_exactly(client, 5)
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
            return echo

    clients = [Background(partial(talk, number)) for number in range(30)]
    ended = 0
    limit = TimeLimit()
    while ended < 30:
        for result in watcher.watcher.wait_io(limit.left("the clients to end")):
            watcher._book(result)
            if result.operation is gaio.ACCEPT:
                watcher.read_start(result.accepted)
            elif result.operation is gaio.READ and result.more:
                watcher.write(result.conn, result.buffer)
            elif result.operation is gaio.READ:
                watcher.free(result.conn)
                ended += 1
    assert [client.result() for client in clients] == [b"%05d" % number for number in range(30)]
    watcher.free(listener)
    watcher.finish_all()


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
def test_a_unix_listener(watcher: AccountedWatcher, pairs: Pairs, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen(20)
        accept = watcher.accept_start(listener)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(10)]
        pairs.also_close(*clients)
        for client in clients:
            client.connect(str(tmp_path / "socket"))
        take(watcher, accept, 10)
        pairs.also_close(*accept.connections)
        for number, (accepted, client) in enumerate(zip(accept.connections, clients, strict=True)):
            client.sendall(b"%d" % number)
            assert accepted.recv(10) == b"%d" % number
        watcher.free(listener)
        watcher.finish(accept)


def test_clients_that_are_gone_again(
    watcher: AccountedWatcher, pairs: Pairs, listener: socket.socket, address: tuple[str, int]
) -> None:
    accept = watcher.accept_start(listener)
    for _ in range(20):
        reset(socket.create_connection(address, timeout=LIMIT))
    client = client_of(address, pairs)

    def has_come() -> bool:
        return any(_peer_of(sock) == client.getsockname() for sock in accept.connections)

    watcher.harvest_until(has_come, "the one that stays")
    pairs.also_close(*accept.connections)
    assert accept.errors == []
    watcher.free(listener)


def _peer_of(sock: socket.socket) -> object:
    try:
        return sock.getpeername()
    except OSError:
        return None


def test_a_stop_leaves_the_backlog_alone(
    watcher: AccountedWatcher, pairs: Pairs, listener: socket.socket, address: tuple[str, int]
) -> None:
    accept = watcher.accept_start(listener)
    client_of(address, pairs)
    take(watcher, accept, 1)
    stop(watcher, accept)
    late = [client_of(address, pairs) for _ in range(3)]
    assert watcher.wait(0) == []
    once = watcher.accept(listener)
    watcher.finish(once)
    again = watcher.accept_start(listener)
    take(watcher, again, 2)
    accepted = [once.accepted, *again.connections]
    pairs.also_close(*accepted, *accept.connections)
    for one, client in zip(accepted, late, strict=True):
        served(watcher, one, client)
    stop(watcher, again)
    watcher.free(listener)


@pytest.mark.parametrize("waits", [True, False])
def test_no_client_is_lost_around_a_stop(
    watcher: AccountedWatcher, pairs: Pairs, listener: socket.socket, address: tuple[str, int], waits: bool
) -> None:
    names: list[object] = []
    clients = []
    for _ in range(20):
        accept = watcher.accept_start(listener)
        if waits:
            watcher.wait(0)
        clients += [client_of(address, pairs) for _ in range(3)]
        stop(watcher, accept)
        pairs.also_close(*accept.connections)
        names += [sock.getpeername() for sock in accept.connections]
    accept = watcher.accept_start(listener)
    if len(names) < 60:
        take(watcher, accept, 60 - len(names))
        pairs.also_close(*accept.connections)
        names += [sock.getpeername() for sock in accept.connections]
    assert names == [client.getsockname() for client in clients]
    watcher.free(listener)


def test_stop_and_free_twice_and_of_nothing(watcher: AccountedWatcher, pairs: Pairs, listener: socket.socket) -> None:
    with pytest.raises(gaio.UnsupportedConnError):
        watcher.accept_stop(listener)
    once = watcher.accept(listener)
    watcher.accept_stop(listener)
    assert watcher.wait(0) == []
    accepts = [watcher.accept_start(listener), watcher.accept_start(listener)]
    watcher.accept_stop(listener)
    watcher.accept_stop(listener)
    watcher.accept_stop(listener)
    watcher.finish(*accepts)
    assert [accept.error for accept in accepts] == [None, None]
    assert once.result is None
    watcher.free(listener)
    watcher.accept_stop(listener)
    watcher.finish(once)
    assert isinstance(once.error, gaio.ConnClosedError)


def test_accepts_before_it_and_behind_it(
    watcher: AccountedWatcher, pairs: Pairs, listener: socket.socket, address: tuple[str, int]
) -> None:
    before, accept, behind = watcher.accept(listener), watcher.accept_start(listener), watcher.accept(listener)
    clients = [client_of(address, pairs) for _ in range(3)]
    take(watcher, accept, 2)
    assert behind.result is None
    stop(watcher, accept)
    clients.append(client_of(address, pairs))
    watcher.finish(before, behind)
    accepted = [before.accepted, *accept.connections, behind.accepted]
    pairs.also_close(*accepted)
    for one, client in zip(accepted, clients, strict=True):
        served(watcher, one, client)
    watcher.free(listener)


@pytest.mark.parametrize("how", ["free", "close"])
def test_its_end_leaves_nothing_behind(
    make_watcher: MakeWatcher, pairs: Pairs, listener: socket.socket, address: tuple[str, int], how: str
) -> None:
    """What nobody took is closed, so that the clients see an end; and no descriptor is left."""
    watcher = make_watcher()
    accept = watcher.accept_start(listener)
    watcher.wait(0)
    clients = [client_of(address, pairs) for _ in range(40)]
    before = len(leaks.in_use().descriptors)
    watcher.wait(0)
    if how == "free":
        watcher.free(listener)
        watcher.finish(accept)
        assert isinstance(accept.error, gaio.ConnClosedError)
        watcher.wait(0)
    else:
        watcher.close_and_check()
        assert isinstance(accept.error, gaio.WatcherClosedError)
    accept.arrivals.clear()
    del accept
    for client in clients:
        try:
            assert client.recv(1) == b""
        except ConnectionResetError:
            pass  # it was in the backlog
    assert len(leaks.in_use().descriptors) <= before


def test_a_result_that_is_dropped_closes_its_connection(
    watcher: AccountedWatcher, pairs: Pairs, listener: socket.socket, address: tuple[str, int]
) -> None:
    accept = watcher.accept_start(listener)
    clients = [client_of(address, pairs) for _ in range(5)]
    take(watcher, accept, 5)
    accept.arrivals.clear()
    for client in clients:
        assert client.recv(1) == b""
    watcher.free(listener)
    watcher.finish(accept)


def test_a_listener_that_is_shut_down(watcher: AccountedWatcher, listener: socket.socket) -> None:
    """An error of the listener itself ends it."""
    with listener.dup() as other:
        accept = watcher.accept_start(listener)
        assert watcher.wait(0) == []
        other.shutdown(socket.SHUT_RDWR)
        watcher.finish(accept)
    assert isinstance(accept.error, OSError)
    assert accept.arrivals == []
    watcher.free(listener)


def test_of_what_does_not_listen(watcher: AccountedWatcher, pairs: Pairs, told_who_listens: None) -> None:
    conn, _ = pairs.tcp()
    pairs.also_close(conn)
    with pytest.raises(gaio.UnsupportedConnError):
        watcher.accept_start(conn)


def test_nested(
    watcher: AccountedWatcher, pairs: Pairs, listener: socket.socket, address: tuple[str, int]
) -> None:
    """More clients than a turn accepts: the descriptor stays readable."""
    nest = Nest(watcher)
    clients = [client_of(address, pairs) for _ in range(100)]
    accept = watcher.accept_start(listener)
    limit = TimeLimit()
    while len(accept.arrivals) < len(clients):
        assert nest.look(limit.left("the clients")) is not None, "never readable"
    nest.settle()
    clients.append(client_of(address, pairs))
    while len(accept.arrivals) < len(clients):
        assert nest.look(limit.left("the last client")) is not None, "never readable"
    pairs.also_close(*accept.connections)
    watcher.accept_stop(listener)
    nest.finish(accept)
    nest.settle()
    watcher.free(listener)


def test_while_the_consumer_is_away(
    watcher: AccountedWatcher, pairs: Pairs, listener: socket.socket, address: tuple[str, int]
) -> None:
    accept = watcher.accept_start(listener)
    clients = [client_of(address, pairs) for _ in range(50)]
    outbox = watcher.watcher._leader.engine.outbox
    wait_until(lambda: len(outbox) == 50, "the watcher thread to accept them")
    take(watcher, accept, 50)
    pairs.also_close(*accept.connections)
    for accepted, client in zip(accept.connections, clients, strict=True):
        served(watcher, accepted, client)
    watcher.free(listener)


def test_the_consumer_changes(
    watcher: AccountedWatcher, pairs: Pairs, listener: socket.socket, address: tuple[str, int]
) -> None:
    accept = watcher.accept_start(listener)
    for number in range(5):
        client_of(address, pairs)
        Background(partial(take, watcher, accept, number + 1)).result()
    pairs.also_close(*accept.connections)
    watcher.free(listener)


def test_running_out_of_descriptors(backend: Name) -> None:
    """EMFILE is told of, does not end it, and costs no client; there is no storm of it."""
    code = """
        import errno, os, resource, socket, time
        import gaio

        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        watcher = gaio.Watcher(backend={backend!r})
        listener = socket.create_server(("127.0.0.1", 0), backlog=50)
        address = listener.getsockname()
        watcher.accept_start(listener)
        assert watcher.wait_io(0) == []
        clients = [socket.socket() for _ in range(10)]
        taken = []
        try:
            while True:
                taken.append(os.dup(0))
        except OSError:
            pass
        for _ in range(3):
            os.close(taken.pop())
        for client in clients:
            client.connect(address)
        accepted, failures, batches = [], 0, 0
        begun = time.monotonic()
        while failures < 5:
            for result in watcher.wait_io(60):
                assert result.more, result
                if result.error is None:
                    accepted.append(result.accepted)
                else:
                    assert result.error.errno == errno.EMFILE and result.accepted is None, result
                    failures += 1
            batches += 1
        assert len(accepted) == 3 and batches < 20, (accepted, batches)
        assert time.monotonic() - begun >= 0.35, "a storm: each but the first is told of a tenth of a second later"
        for number in taken:
            os.close(number)
        while len(accepted) < 10:
            for result in watcher.wait_io(60):
                assert result.more, result
                if result.error is None:
                    accepted.append(result.accepted)
                else:  # of the last moment before there were some
                    assert result.error.errno == errno.EMFILE, result
        assert [sock.getpeername() for sock in accepted] == [client.getsockname() for client in clients]
        watcher.accept_stop(listener)
        (last,) = watcher.wait_io(60)
        assert last.error is None and not last.more, last
        watcher.close()
        for sock in accepted + clients:
            sock.close()
        print("good")
    """
    assert child.output_of(code.format(backend=backend)) == "good"


def test_stopped_while_there_are_no_descriptors(backend: Name) -> None:
    """It is being held back just then."""
    code = """
        import errno, os, resource, socket
        import gaio

        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        for end in ("stop", "free", "close"):
            watcher = gaio.Watcher(backend={backend!r})
            listener = socket.create_server(("127.0.0.1", 0))
            address = listener.getsockname()
            watcher.accept_start(listener)
            assert watcher.wait_io(0) == []
            client = socket.socket()
            taken = []
            try:
                while True:
                    taken.append(os.dup(0))
            except OSError:
                pass
            client.connect(address)
            (result,) = watcher.wait_io(60)
            assert result.error.errno == errno.EMFILE and result.more
            if end == "stop":
                watcher.accept_stop(listener)
            elif end == "free":
                watcher.free(listener)
            else:
                watcher.close()
            results = []
            while not results or results[-1].more:
                results += watcher.wait_io(60)
            wanted = {{"stop": type(None), "free": gaio.ConnClosedError, "close": gaio.WatcherClosedError}}[end]
            assert type(results[-1].error) is wanted, results
            for number in taken:
                os.close(number)
            watcher.close()
            client.close()
        print("good")
    """
    assert child.output_of(code.format(backend=backend)) == "good"


def test_fork(backend: Name) -> None:
    """A child has none of the connections that are accepted meanwhile: when the parent closes one, that is its end."""
    code = """
        import os, socket
        import gaio

        watcher = gaio.Watcher(backend={backend!r})
        listener = socket.create_server(("127.0.0.1", 0))
        address = listener.getsockname()
        watcher.accept_start(listener)
        assert watcher.wait_io(0) == []
        go, going = os.pipe()
        forked, has_forked = os.pipe()
        clients, children = [], []
        for number in range(6):
            clients.append(socket.create_connection(address, timeout=30))
            pid = os.fork()
            if pid == 0:
                for client in clients:
                    client.close()
                os.close(going)
                os.write(has_forked, b"x")  # by now it has closed its copy of the listener, too
                os.read(go, 1)  # until the parent has seen the ends
                os._exit(0 if watcher.closed else 1)
            children.append(pid)
        accepted = []
        while len(accepted) < 6:
            for result in watcher.wait_io(60):
                assert result.more and result.error is None, result
                accepted.append(result.accepted)
        for sock, client in zip(accepted, clients):
            client.sendall(b"x")
            assert sock.recv(1) == b"x"
            sock.close()
            assert client.recv(1) == b""
            client.close()
        for _ in children:
            assert os.read(forked, 1) == b"x"
        watcher.close()
        try:
            socket.create_connection(address, timeout=30)
        except ConnectionRefusedError:
            print("good")
        os.close(going)
        for pid in children:
            assert os.waitpid(pid, 0)[1] == 0
        for descriptor in (go, forked, has_forked):
            os.close(descriptor)
    """
    assert child.output_of(code.format(backend=backend), *MAY_FORK) == "good"



@pytest.mark.parametrize(("call", "method"), [("accept", "finish"), ("accept_start", "deliver")])
def test_fork_between_accepting_and_delivering(backend: Name, call: str, method: str) -> None:
    """As the handler of a signal may do: the child, which lives on, must not have the connection."""
    code = """
        import os, socket
        import gaio

        watcher = gaio.Watcher(backend={backend!r})
        listener = socket.create_server(("127.0.0.1", 0))
        address = listener.getsockname()
        watcher.{call}(listener)
        assert watcher.wait_io(0) == []
        engine = watcher._leader.engine
        original = engine.{method}
        waits, going = os.pipe()
        children = []

        def fork_first(items):
            pid = 0 if children else os.fork()
            if not children and pid == 0:
                os.close(going)
                client.close()
                os.read(waits, 1)
                os._exit(0)
            children.append(pid)
            original(items)

        engine.{method} = fork_first
        client = socket.create_connection(address, timeout=5)
        results = []
        while not results:
            results = watcher.wait_io(60)
        results[0].accepted.close()
        try:
            assert client.recv(1) == b""
        except TimeoutError:
            raise SystemExit("the child has it, too") from None
        finally:
            os.close(going)
            for pid in filter(None, children):
                os.waitpid(pid, 0)
            os.close(waits)
            client.close()
            watcher.close()
        print("good")
    """
    assert child.output_of(code.format(backend=backend, call=call, method=method), *MAY_FORK) == "good"
