"""What is read and written through TLS: the results are those of plain connections."""

from __future__ import annotations

import socket
import ssl
import threading

import pytest

import gaio
from gaio.tls import TLSWatcher
from tests.accounting import AccountedWatcher
from tests.backends import Name
from tests.peers import Pairs, pattern, receive_exactly, receive_until_eof, reset
from tests.tls.conftest import Connect, Contexts
from tests.waiting import Background, TimeLimit

MIB = 1 << 20


def test_what_arrives_is_plain(connect: Connect, watcher: AccountedWatcher, version: ssl.TLSVersion) -> None:
    conn, peer = connect()
    assert peer.version() == version.name.replace("_", ".")
    read = watcher.read_start(conn)
    for size in (1, 1024, 16384, 16385, 200_000):
        before = read.received
        sending = Background(lambda size=size: peer.sendall(pattern(size)))  # type: ignore[misc]  # of a default
        watcher.harvest_until(lambda: read.received >= before + size, "the bytes")  # noqa: B023 - called at once
        sending.result()
        assert read.stream[before:] == pattern(size)


@pytest.mark.parametrize("size", [1, 16384, 16385, 1_000_000])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, "list", "view"])
def test_what_is_written_arrives(
    connect: Connect, watcher: AccountedWatcher, version: ssl.TLSVersion, kind: object, size: int
) -> None:
    conn, peer = connect()
    payload = pattern(size)
    buffer: object
    if kind == "list":
        buffer = [payload[: size // 2], b"", bytearray(payload[size // 2 :])]
    elif kind == "view":
        buffer = memoryview(bytearray(b"-" + payload + b"-"))[1:-1]
    else:
        assert isinstance(kind, type)
        buffer = kind(payload)
    receiving = Background(lambda: receive_exactly(peer, size))
    write = watcher.write(conn, buffer)  # type: ignore[arg-type]  # one of those above
    watcher.finish(write)
    assert (write.size, write.error) == (size, None)
    assert receiving.result() == payload


def test_writes_complete_in_order(connect: Connect, watcher: AccountedWatcher, tls: TLSWatcher) -> None:
    conn, peer = connect()
    sizes = [1, 20_000, 5, 300_000, 7, 16384, 2]
    receiving = Background(lambda: receive_exactly(peer, sum(sizes)))
    writes = [watcher.write(conn, bytes([number]) * size) for number, size in enumerate(sizes)]
    assert tls.unsent(conn) >= sum(sizes) - 1  # the first may be on its way
    assert [request for request in watcher.finish(*writes) if request in writes] == writes
    assert receiving.result() == b"".join(bytes([number]) * size for number, size in enumerate(sizes))
    assert tls.unsent(conn) == 0


def test_reads_of_every_kind(connect: Connect, watcher: AccountedWatcher, version: ssl.TLSVersion) -> None:
    conn, peer = connect()
    peer.sendall(b"abcdefghij")
    header, rest = bytearray(4), bytearray(100)
    first = watcher.read_full(conn, header)
    second = watcher.read(conn, rest)
    watcher.finish(first, second)
    assert (first.size, second.size) == (4, 6)
    assert bytes(header + rest[:6]) == b"abcdefghij"
    third = watcher.read(conn)
    peer.sendall(b"swap")
    watcher.finish(third)
    assert third.data == b"swap"
    large = bytearray(100_000)
    whole = watcher.read_full(conn, large)
    sending = Background(lambda: peer.sendall(pattern(100_003)))
    watcher.finish(whole)
    sending.result()
    behind = watcher.read_full(conn, bytearray(3))
    watcher.finish(behind)
    assert bytes(large) + bytes(behind.buffer) == pattern(100_003)


def test_what_was_left_of_an_arrival_is_for_whoever_reads_next(connect: Connect, watcher: AccountedWatcher) -> None:
    conn, peer = connect()
    peer.sendall(b"abc")
    watcher.finish(watcher.read_full(conn, bytearray(1)))
    repeating = watcher.read_start(conn)
    watcher.harvest_until(lambda: repeating.received == 2, "the rest")
    assert repeating.stream == b"bc"
    peer.sendall(b"def")
    watcher.harvest_until(lambda: repeating.received == 5, "what came later")
    assert repeating.stream == b"bcdef"


def test_reading_stops_and_starts_again(connect: Connect, watcher: AccountedWatcher) -> None:
    conn, peer = connect()
    read = watcher.read_start(conn)
    peer.sendall(b"one")
    watcher.harvest_until(lambda: read.received, "the first bytes")
    watcher.read_stop(conn)
    watcher.read_stop(conn)
    watcher.finish(read)
    assert (read.error, read.size) == (None, 0)
    peer.sendall(b"two")
    assert watcher.wait(0.01) == []
    again, behind = watcher.read_start(conn), watcher.read_start(conn)
    watcher.harvest_until(lambda: again.received == 3, "what came meanwhile")
    watcher.read_stop(conn)
    assert watcher.finish(again, behind)[-1] is again
    assert (again.stream, again.error, behind.error) == (b"two", None, None)


def test_a_read_times_out_and_the_next_one_goes_on(connect: Connect, watcher: AccountedWatcher) -> None:
    conn, peer = connect()
    single, repeating = watcher.read(conn, timeout=0.01), watcher.read_start(conn, timeout=0.02)
    watcher.finish(single, repeating)
    assert isinstance(single.error, gaio.DeadlineError)
    assert isinstance(repeating.error, gaio.DeadlineError)
    peer.sendall(b"late")
    read = watcher.read_start(conn, timeout=30)
    watcher.harvest_until(lambda: read.received == 4, "the bytes")


def test_a_write_times_out(connect: Connect, watcher: AccountedWatcher, tls: TLSWatcher) -> None:
    conn, _ = connect()
    stuck, queued = watcher.write(conn, bytes(32 * MIB), timeout=0.05), watcher.write(conn, b"x", timeout=0.05)
    watcher.finish(stuck, queued)
    assert isinstance(stuck.error, gaio.DeadlineError)
    assert isinstance(queued.error, gaio.DeadlineError)
    assert 0 <= stuck.size < 32 * MIB
    assert queued.size == 0


def test_wrong_arguments_are_refused_as_without_tls(as_server: Connect, tls: TLSWatcher) -> None:
    conn, _ = as_server()
    for empty in (b"", bytearray(), [b""], []):
        with pytest.raises(gaio.EmptyBufferError):
            tls.write(conn, empty)
    with pytest.raises(TypeError, match="encode it first"):
        tls.write(conn, "text")  # type: ignore[arg-type]  # refused
    with pytest.raises(BufferError):
        tls.write(conn, memoryview(b"abcd")[::2])
    with pytest.raises(BufferError):
        tls.read(conn, b"read-only")
    with pytest.raises(ValueError, match="timeout"):
        tls.write(conn, b"x", timeout=-1)
    with pytest.raises(ValueError, match="timeout"):
        tls.read_start(conn, timeout=-1)
    with pytest.raises(gaio.UnsupportedConnError, match="TLS"):
        tls.detach(conn)
    assert tls.wait_io(0) == []


def test_half_close(connect: Connect, watcher: AccountedWatcher) -> None:
    """close_notify and FIN behind what was written; reading goes on."""
    conn, peer = connect()
    read = watcher.read_start(conn)
    shutdown = [watcher.write(conn, b"last words"), watcher.shutdown(conn)]
    late = watcher.write(conn, b"too late")
    watcher.finish(*shutdown, late)
    assert [request.error for request in shutdown] == [None, None]
    assert isinstance(late.error, BrokenPipeError)
    assert receive_until_eof(peer) == b"last words"
    peer.sendall(b"an answer")
    watcher.harvest_until(lambda: read.received, "the answer")
    assert read.stream == b"an answer"
    plain = peer.unwrap()
    watcher.finish(read)
    assert isinstance(read.error, EOFError)
    plain.close()


def test_the_peer_has_said_all_and_is_answered(as_server: Connect, watcher: AccountedWatcher) -> None:
    conn, peer = as_server()
    read = watcher.read_start(conn)
    peer.sendall(b"a question")
    plain = Background(peer.unwrap)  # close_notify, and waits for ours
    watcher.finish(read)
    assert (read.stream, type(read.error)) == (b"a question", EOFError)
    again = watcher.read(conn)
    watcher.finish(again)
    assert isinstance(again.error, EOFError)
    watcher.finish(watcher.shutdown(conn))
    assert plain.result().recv(1) == b""
    plain.result().close()


def test_a_stream_that_is_cut_off_is_told_from_one_that_has_ended(
    connect: Connect, watcher: AccountedWatcher, version: ssl.TLSVersion
) -> None:
    conn, peer = connect()
    read = watcher.read_start(conn)
    watcher.finish(watcher.write(conn, b"x"))
    assert peer.recv(1) == b"x"  # and the session tickets before it: closed with bytes unread, it would be reset
    peer.sendall(b"the half of a")
    raw = socket.socket(fileno=peer.detach())
    raw.close()
    watcher.finish(read)
    assert read.stream == b"the half of a"
    assert isinstance(read.error, ssl.SSLEOFError)
    assert not isinstance(read.error, EOFError)


def test_a_reset(connect: Connect, watcher: AccountedWatcher) -> None:
    conn, peer = connect()
    read = watcher.read_start(conn)
    reset(socket.socket(fileno=peer.detach()))
    watcher.finish(read)
    assert isinstance(read.error, ConnectionResetError)
    writes = [watcher.write(conn, bytes(MIB)), watcher.write(conn, b"x")]
    watcher.finish(*writes)
    assert [type(write.error) for write in writes] == [BrokenPipeError] * 2
    again = watcher.read(conn)
    watcher.finish(again)
    assert isinstance(again.error, ConnectionResetError)


def test_garbage_behind_the_handshake(connect: Connect, watcher: AccountedWatcher) -> None:
    conn, peer = connect()
    read = watcher.read_start(conn)
    raw = socket.socket(fileno=peer.detach())
    raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
    watcher.finish(read)
    assert isinstance(read.error, ssl.SSLError)
    write = watcher.write(conn, b"x")
    watcher.finish(write)
    assert isinstance(write.error, ssl.SSLError)
    raw.close()


@pytest.mark.slow
def test_a_large_write_takes_little_memory(as_server: Connect, watcher: AccountedWatcher) -> None:
    import tracemalloc

    conn, peer = as_server()
    payload = bytearray(100 * MIB)
    received = 0

    def receive() -> None:
        nonlocal received
        buffer = bytearray(MIB)
        while received < len(payload):
            received += peer.recv_into(buffer)

    receiving = Background(receive)
    tracemalloc.start()
    try:
        write = watcher.write(conn, payload)
        watcher.finish(write)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    receiving.result()
    assert (write.size, write.error) == (100 * MIB, None)
    assert peak < 8 * MIB


@pytest.mark.slow
def test_both_ways_at_once_with_back_pressure(
    backend: Name, contexts: Contexts, pairs: Pairs, version: ssl.TLSVersion
) -> None:
    """An echo of TLS on the one side, a client of TLS on the other, each a watcher, and neither takes much memory."""
    payload = pattern(24 * MIB)
    server, client = TLSWatcher(backend=backend), TLSWatcher(backend=backend)
    conn, peer = pairs.tcp()
    most = 0

    def echo() -> None:
        nonlocal most
        server.start_server(conn, contexts.server)
        server.read_start(conn)
        paused = False
        for result in server:
            if result.operation is gaio.READ and result.more:
                server.write(conn, result.buffer)
                most = max(most, server.unsent(conn))
                if server.unsent(conn) > 4 * 65536:
                    server.read_stop(conn)
            elif isinstance(result.error, EOFError):
                server.shutdown(conn)
            elif result.operation is gaio.SHUTDOWN:
                return
            else:
                assert result.error is None, result
                paused = paused or result.operation is gaio.READ
                if paused and not server.unsent(conn):
                    paused = False
                    server.read_start(conn)

    with server, client:
        serving = Background(echo)
        client.start_client(peer, contexts.client, server_hostname="localhost")
        client.write(peer, payload)
        client.shutdown(peer)
        client.read_start(peer)
        received, limit = bytearray(), TimeLimit()
        while True:
            results = client.wait_io(limit.left("the echo"))
            for result in results:
                if result.operation is gaio.READ and result.more:
                    received += result.buffer
            last = results[-1] if results else None
            if last is not None and last.operation is gaio.READ and not last.more:
                break
        assert isinstance(last.error, EOFError), last
        serving.result()
    assert received == payload
    assert most < len(payload) // 2  # what had arrived when it stopped to read is echoed


def test_many_connections_plain_and_tls_in_one_loop(
    tls: TLSWatcher, contexts: Contexts, watcher: AccountedWatcher
) -> None:
    """The loop is that of a plain server, but for the line that starts TLS."""
    with socket.create_server(("127.0.0.1", 0)) as plain, socket.create_server(("127.0.0.1", 0)) as encrypted:
        addresses = plain.getsockname(), encrypted.getsockname()

        def talk(address: tuple[str, int], secure: bool) -> None:
            with socket.create_connection(address, timeout=30) as client:
                used = contexts.client.wrap_socket(client, server_hostname="localhost") if secure else client
                with used:
                    for size in (10, 50_000):
                        used.sendall(pattern(size))
                        assert receive_exactly(used, size) == pattern(size)
                    if isinstance(used, ssl.SSLSocket):
                        used.unwrap().close()
                    else:
                        used.shutdown(socket.SHUT_WR)
                        assert used.recv(1) == b""

        tls.accept_start(plain, context="plain")
        tls.accept_start(encrypted, context="TLS")
        talks = [Background(lambda n=n: talk(addresses[n % 2], bool(n % 2))) for n in range(40)]  # type: ignore[misc]
        served, limit = 0, TimeLimit()
        while served < len(talks):
            for result in tls.wait_io(limit.left("the clients")):
                if result.operation is gaio.READ and result.more:
                    tls.write(result.conn, result.buffer)
                elif result.operation is gaio.ACCEPT and result.accepted:
                    if result.context == "TLS":
                        tls.start_server(result.accepted, contexts.server)
                    tls.read_start(result.accepted)
                elif isinstance(result.error, EOFError):
                    tls.shutdown(result.conn)
                elif result.operation is gaio.SHUTDOWN:
                    tls.free(result.conn)
                    served += 1
                else:
                    assert result.error is None, result
        for one in talks:
            one.result()
        tls.free(plain)
        tls.free(encrypted)
        while tls.stats().pending:
            tls.wait_io(1)


def test_threads_write(as_server: Connect, watcher: AccountedWatcher, tls: TLSWatcher) -> None:
    """Each message whole, those of a thread in its order; the consumer is woken, though it waits without end."""
    conn, peer = as_server()
    count, threads = 200, 4

    def message(thread: int, number: int) -> bytes:
        return b"%d %03d " % (thread, number) + b"." * (number * 37)

    def write(thread: int) -> None:
        for number in range(count):
            tls.write(conn, message(thread, number), context=(thread, number))

    def receive() -> list[bytes]:
        total = sum(len(message(thread, number)) for thread in range(threads) for number in range(count))
        return receive_exactly(peer, total).replace(b".", b"").split()

    receiving = Background(receive)
    writers = [threading.Thread(target=write, args=(thread,)) for thread in range(threads)]
    for writer in writers:
        writer.start()
    results: list[tuple[int, int]] = []
    while len(results) < count * threads:
        results += [result.context for result in tls.wait_io() if result.error is None]
    for writer in writers:
        writer.join()
    words = receiving.result()
    told = list(zip(map(int, words[::2]), map(int, words[1::2]), strict=True))
    for sequence in (results, told):
        assert sorted(sequence) == [(thread, number) for thread in range(threads) for number in range(count)]
        for thread in range(threads):
            assert [number for of, number in sequence if of == thread] == list(range(count))
