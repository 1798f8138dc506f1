"""What a kqueue may do and epoll does not, or what it must not do and has been seen to do."""

from __future__ import annotations

import errno
import os
import select
import socket
from typing import Any

import pytest

import gaio
from gaio.platform import _kqueue, _kqueue_abi
from gaio.swap import SwapArena
from tests import child
from tests.accounting import AccountedWatcher, MakeWatcher
from tests.faulty_libc import FaultyLibc
from tests.peers import Pairs, pattern, receive_exactly
from tests.simulated_kqueue import EV_ERROR, PATH, SYSTEMS, Kernel, bytes_to_read, install
from tests.waiting import Background

MIB = 1 << 20


def exchange(watcher: AccountedWatcher, conn: socket.socket, peer: socket.socket) -> None:
    """A megabyte each way at once, through small buffers so that both directions wait time and again; then the end."""
    there, back = pattern(MIB, seed=1), pattern(MIB, seed=2)
    buffer = bytearray(MIB)
    sending = Background(lambda: peer.sendall(back))
    receiving = Background(lambda: receive_exactly(peer, MIB))
    watcher.finish(watcher.read_full(conn, buffer), watcher.write(conn, there))
    sending.result()
    assert receiving.result() == there
    assert buffer == back
    read, end = watcher.read(conn), watcher.read(conn)
    peer.sendall(b"last")
    peer.shutdown(socket.SHUT_WR)
    watcher.finish(read, end)
    assert read.data == b"last"
    assert isinstance(end.error, EOFError)


class TestWakeUp:
    """By a pipe."""

    def test_a_request_wakes_the_consumer(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        conns = [pairs.unix()[0] for _ in range(50)]
        for conn in conns:
            harvest = Background(lambda: watcher.wait(None))
            write = watcher.write(conn, b"x")
            assert harvest.result() == [write]

    def test_an_exchange(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        exchange(watcher, *pairs.tcp(buffers=8192))

    def test_ringing_too_often_does_no_harm(self, kernel: Kernel) -> None:
        """A pipe that fills up must be emptied, or it would make no edge any more."""
        backend = _kqueue.open_backend(SwapArena(1), {})
        for _ in range(3):
            for _ in range(70_000):  # more than a pipe holds
                backend.wake()
            backend.wait(None)
            reading = [number for queue in kernel.queues.values() for number, kfilter in queue.knotes if kfilter == -1]
            assert [bytes_to_read(number) for number in reading] == [0] * len(reading)
        backend.wait(0)
        backend.wake()
        backend.wait(None)

    def test_its_descriptors_go_with_the_watcher(self, make_watcher: MakeWatcher) -> None:
        """The fixture that counts descriptors checks it."""
        make_watcher()

    @pytest.mark.usefixtures("kernel")
    def test_a_child_has_no_pipe_to_its_parent(self) -> None:
        """While the watcher thread, which the child has not got, stood in the middle of a turn."""
        code = """
            import os, socket, stat
            import gaio

            def pipes():
                found = set()
                for number in range(3, 100):
                    try:
                        if stat.S_ISFIFO(os.fstat(number).st_mode):
                            found.add(number)
                    except OSError:
                        pass
                return found

            before = pipes()
            watcher = gaio.Watcher(backend="kqueue")
            conn, peer = socket.socketpair()
            watcher.read(conn)
            while not watcher._leader.needs_wakeup:
                os.sched_yield()
            assert len(pipes() - before) == 2
            if os.fork() == 0:
                os._exit(len(pipes() - before))
            _, status = os.wait()
            watcher.close()
            peer.close()
            print(os.waitstatus_to_exitcode(status))
        """
        assert child.output_of(code, "-W", "ignore::DeprecationWarning") == "0"


class TestEvents:
    def test_without_cause(self, kernel: Kernel, watcher: AccountedWatcher, pairs: Pairs) -> None:
        kernel.faults.spurious = True
        bystanders = [watcher.read(pairs.unix()[0]) for _ in range(5)]
        exchange(watcher, *pairs.tcp(buffers=8192))
        assert not any(read.result for read in bystanders)

    def test_marked_as_errors(self, kernel: Kernel, watcher: AccountedWatcher, pairs: Pairs) -> None:
        """EV_ERROR is for changes. On any other entry it says no more than that something has happened."""
        kernel.faults.more_flags = EV_ERROR
        exchange(watcher, *pairs.tcp(buffers=8192))

    def test_of_a_number_that_was_closed_are_not_those_of_the_next(
        self, kernel: Kernel, watcher: AccountedWatcher, pairs: Pairs
    ) -> None:
        """Each connection gets the number of the one before; the bytes that came for that one are nobody's."""
        numbers: set[int] = set()
        for number in range(20):
            conn, peer = pairs.unix()
            read = watcher.read(conn)
            assert watcher.wait(0) == []
            numbers.update(ident for queue in kernel.queues.values() for ident, _ in queue.knotes)
            peer.send(b"%d" % number)
            if number % 2:
                watcher.free(conn)
            watcher.finish(read)
            assert read.data == b"%d" % number or isinstance(read.error, gaio.ConnClosedError)
            peer.close()
            watcher.free(conn)
            watcher.wait(0)
        assert len(numbers) < 20, "no number was used again, so nothing was tested"

    @pytest.mark.usefixtures("kernel")
    def test_descriptor_0_is_served_like_any_other(self) -> None:
        """The wake-up's ident is 0 too, of another filter."""
        code = """
            import os, socket, stat, threading
            import gaio
            with gaio.Watcher(backend="kqueue") as watcher:
                os.close(0)
                conn, peer = socket.socketpair()  # the first gets the lowest number, and keeps it
                watcher.read(conn)
                threading.Timer(0.01, peer.sendall, [b"heard"]).start()
                print(stat.S_ISSOCK(os.fstat(0).st_mode), [bytes(result.buffer) for result in watcher.wait_io(60)])
                threading.Timer(0.01, watcher.write, [conn, b"answer"]).start()
                print([result.size for result in watcher.wait_io(60)], peer.recv(10))
                peer.close()
        """
        assert child.output_of(code).splitlines() == ["True [b'heard']", "[6] b'answer'"]


@pytest.mark.scenario(1, on="kqueue")
class TestInterruptedCalls:
    """EINTR: a wait begins again, a change has been applied."""

    def test_waits(self, kernel: Kernel, watcher: AccountedWatcher, pairs: Pairs) -> None:
        kernel.faults.interrupted_waits = 50
        exchange(watcher, *pairs.tcp(buffers=8192))
        assert kernel.faults.interrupted_waits == 0

    def test_while_it_is_tried_out(self, kernel: Kernel) -> None:
        kernel.faults.interrupted_changes = kernel.faults.interrupted_waits = 20
        offered = {offer.name: offer for offer in gaio.backends()}["kqueue"]
        assert offered.available, offered.reason

    def test_a_wait_ends_on_time_all_the_same(self, kernel: Kernel, watcher: AccountedWatcher) -> None:
        kernel.faults.interrupted_waits = 1000
        assert watcher.wait(0.05) == []

    def test_changes(self, kernel: Kernel, watcher: AccountedWatcher, pairs: Pairs) -> None:
        kernel.faults.interrupted_changes = 1000
        conn, peer = pairs.tcp(buffers=8192)
        exchange(watcher, conn, peer)
        watcher.free(conn)
        assert watcher.wait(0) == []
        assert kernel.faults.interrupted_changes < 1000


class TestTheEnd:
    def test_comes_after_bytes_that_were_reported_with_it(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        for size in (1, 7, 10, 4096):
            conn, peer = pairs.tcp()
            waiting = watcher.read_full(conn, bytearray(3))
            assert watcher.wait(0) == []
            peer.sendall(b"0123456789")
            peer.close()
            reads = [watcher.read(conn, bytearray(size)) for _ in range(12)]
            watcher.finish(waiting, *reads)
            got = b"".join(bytes(read.buffer[: read.size]) for read in [waiting, *reads])
            assert got == b"0123456789"
            assert isinstance(reads[-1].error, EOFError)

    def test_may_be_concealed_by_bytes_in_a_library(
        self, monkeypatch: pytest.MonkeyPatch, make_watcher: MakeWatcher, pairs: Pairs
    ) -> None:
        """One over epoll loses an EV_EOF that comes with bytes, where kqueue(2) promises it."""
        kernel = install("linux", monkeypatch.setattr)
        kernel.faults.concealed_eof = True
        watcher = make_watcher()
        conn, peer = pairs.tcp()
        waiting = watcher.read_full(conn, bytearray(100))
        assert watcher.wait(0) == []
        peer.sendall(b"last words")
        peer.close()
        watcher.finish(waiting)
        assert isinstance(waiting.error, EOFError)
        assert waiting.size == 10

    @pytest.mark.parametrize("call_says", ["the end", "EAGAIN"])
    def test_with_an_error_that_no_call_finds(
        self, kernel: Kernel, libc: FaultyLibc, make_watcher: MakeWatcher, pairs: Pairs, call_says: str
    ) -> None:
        """In fflags: the bytes come first, then the error in place of a quiet end, or of a wait for ever."""
        kernel.faults.eof_error = errno.ECONNRESET
        if call_says == "EAGAIN":
            libc.fail("recv", errno.EAGAIN, times=None, when=lambda fd, *_: not bytes_to_read(fd))
        watcher = make_watcher()
        conn, peer = pairs.tcp()
        reads = [watcher.read(conn, bytearray(6)) for _ in range(3)]
        assert watcher.wait(0) == []
        peer.sendall(b"0123456789")
        peer.close()
        watcher.finish(*reads)
        assert [read.size for read in reads] == [6, 4, 0]
        assert isinstance(reads[2].error, ConnectionResetError)

    def test_with_an_error_of_a_connection_being_made(
        self, kernel: Kernel, watcher: AccountedWatcher, pairs: Pairs
    ) -> None:
        kernel.faults.eof_error = errno.EHOSTUNREACH
        conn = socket.socket()
        pairs.also_close(conn)
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))  # and does not listen
            connect = watcher.connect(conn, silent.getsockname())
            watcher.finish(connect)
        assert isinstance(connect.error, OSError)
        assert connect.error.errno in (errno.EHOSTUNREACH, errno.ECONNREFUSED)


class TestUrgentData:
    """recv(2) stops at the mark: a read comes back short although there is more, and no edge comes for that."""

    def test_behind_a_read_that_waited(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        conn, peer = pairs.tcp()
        reads = [watcher.read(conn), watcher.read(conn)]
        assert watcher.wait(0) == []
        send_with_a_mark(peer)
        watcher.finish(*reads)
        assert [read.data for read in reads] == [b"before", b"behind"]

    def test_behind_a_read_that_came_later(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        conn, peer = pairs.tcp()
        watcher.finish(watcher.write(conn, b"x"))
        send_with_a_mark(peer)
        assert watcher.wait(0) == []  # the edge has been told, and nobody waited
        reads = [watcher.read(conn), watcher.read(conn)]
        watcher.finish(*reads)
        assert [read.data for read in reads] == [b"before", b"behind"]


def send_with_a_mark(peer: socket.socket) -> None:
    peer.send(b"before")
    peer.send(b"!", socket.MSG_OOB)
    peer.send(b"behind")


class TestRegistration:
    @pytest.mark.parametrize("kind", ["pipe", "unix"])
    def test_of_reading_says_epipe(self, kernel: Kernel, watcher: AccountedWatcher, pairs: Pairs, kind: str) -> None:
        """What there is to read is found without an event."""
        conn, peer = pairs.pipe_to_read() if kind == "pipe" else pairs.unix()
        os.write(peer.fileno(), b"the last")
        peer.close()
        kernel.faults.change_error = errno.EPIPE
        last, end = watcher.read(conn), watcher.read(conn)
        watcher.finish(last, end)
        assert last.data == b"the last"
        assert isinstance(end.error, EOFError)

    def test_of_writing_says_epipe_although_it_works(
        self, kernel: Kernel, watcher: AccountedWatcher, pairs: Pairs
    ) -> None:
        kernel.faults.refused_writes = errno.EPIPE
        exchange(watcher, *pairs.tcp(buffers=8192))

    def test_of_writing_says_epipe_because_the_reader_has_gone(
        self, kernel: Kernel, watcher: AccountedWatcher, pairs: Pairs
    ) -> None:
        """Between the attempt and the registration, which is not done: nothing would report it any more."""
        conn, peer = pairs.pipe_to_write()
        watcher.finish(watcher.write(conn, b"x"))
        kernel.faults.before_change = peer.close
        kernel.faults.change_error = errno.EPIPE
        write = watcher.write(conn, bytes(100_000))
        watcher.finish(write)
        assert isinstance(write.error, BrokenPipeError)

    def test_of_writing_fails(self, kernel: Kernel, watcher: AccountedWatcher, pairs: Pairs) -> None:
        """Of a write that must wait: its error, and nobody else's."""
        conn, peer = pairs.tcp(buffers=8192)
        watcher.finish(watcher.write(conn, b"x"))
        kernel.faults.change_error = errno.ENOMEM
        write = watcher.write(conn, bytes(16 * MIB))
        watcher.finish(write)
        assert isinstance(write.error, OSError)
        assert write.error.errno == errno.ENOMEM
        kernel.faults.change_error = None
        read = watcher.read(conn)
        peer.sendall(b"still there")
        watcher.finish(read)
        assert read.data == b"still there"

    @pytest.mark.parametrize("number", [errno.ENOMEM, errno.EMFILE])
    def test_of_a_connection_fails(
        self, kernel: Kernel, watcher: AccountedWatcher, pairs: Pairs, number: int
    ) -> None:
        """Where the caller stands, who keeps the connection."""
        conn, peer = pairs.tcp()
        kernel.faults.change_error = number
        with pytest.raises(OSError, match=os.strerror(number)):
            watcher.read(conn)
        conn.sendall(b"mine")
        assert receive_exactly(peer, 4) == b"mine"
        kernel.faults.change_error = None
        watcher.finish(watcher.write(conn, b"now yours"))

    @pytest.mark.parametrize("number", [errno.EINVAL, errno.ENODEV, errno.EOPNOTSUPP])
    def test_of_what_cannot_be_polled(
        self, kernel: Kernel, watcher: AccountedWatcher, pairs: Pairs, number: int
    ) -> None:
        conn, _ = pairs.unix()
        pairs.also_close(conn)
        kernel.faults.change_error = number
        with pytest.raises(gaio.UnsupportedConnError, match="polled"):
            watcher.read(conn)

    @pytest.mark.usefixtures("kernel")
    def test_is_gone_with_the_number_that_a_stranger_closed(self) -> None:
        """Taking it out finds nothing, or not even the number, and is content."""
        descriptors: dict[int, Any] = {}
        backend = _kqueue.open_backend(SwapArena(1), descriptors)

        class Stranded:
            token, kind, reads, writes = 2, 0, None, None

            def __init__(self, fd: int) -> None:
                self.fd = fd

        ends = socket.socketpair()
        with ends[0], ends[1]:
            numbers = [os.dup(ends[0].fileno()), os.dup(ends[0].fileno())]
            for number in numbers:
                backend.register(Stranded(number))
            os.close(numbers[0])
            os.dup2(ends[1].fileno(), numbers[1])
            for number in numbers:
                backend.unregister(Stranded(number))
            os.close(numbers[1])

    def test_of_writing_waits_until_a_write_does(
        self, kernel: Kernel, watcher: AccountedWatcher, pairs: Pairs
    ) -> None:
        """A socket that always has room is not asked about on every acknowledgement."""
        system = kernel.system

        def registered() -> list[int]:
            knotes = [knote for queue in kernel.queues.values() for knote in queue.knotes]
            return [kfilter for ident, kfilter in knotes if ident not in before]

        before = {ident for queue in kernel.queues.values() for ident, _ in queue.knotes}
        conn, peer = pairs.tcp(buffers=8192)
        watcher.finish(watcher.write(conn, b"x"))
        assert receive_exactly(peer, 1) == b"x"
        assert registered() == [system.read]
        write = watcher.write(conn, bytes(MIB))
        while registered() != [system.read, system.write]:
            assert watcher.wait(0) == []
        receive_exactly(peer, MIB)
        watcher.finish(write)
        watcher.free(conn)
        watcher.wait(0)
        assert registered() == []


class TestChoice:
    def test_a_structure_of_another_size_is_noticed_before_it_is_relied_on(self, kernel: Kernel) -> None:
        """FreeBSD 11 has the functions of FreeBSD 12 and an event of half the size."""
        kernel.system = SYSTEMS["linux"]
        offered = {offer.name: offer for offer in gaio.backends()}["kqueue"]
        assert not offered.available
        assert "form" in offered.reason
        with pytest.raises(gaio.BackendUnavailableError, match="form"):
            gaio.Watcher(backend="kqueue")

    @pytest.mark.parametrize(("has", "symbol"), [("netbsd 11", "__kevent100"), ("netbsd", "__kevent50")])
    def test_the_newest_form_that_the_library_has_is_taken(
        self, monkeypatch: pytest.MonkeyPatch, has: str, symbol: str
    ) -> None:
        rows = {f"linux {name}": abi for name, abi in _kqueue_abi.ABIS.items() if name.startswith("netbsd")}
        assert len(rows) == 2
        lent = {name: abi._replace(library="GAIO_KQUEUE_LIBRARY") for name, abi in rows.items()}
        monkeypatch.setenv("GAIO_KQUEUE_LIBRARY", PATH)
        install(has, monkeypatch.setattr)
        monkeypatch.setattr(_kqueue_abi, "ABIS", lent)
        abi, _ = _kqueue_abi.system()
        assert abi.kevent == symbol
        assert {offer.name: offer.available for offer in gaio.backends()}["kqueue"]

    @pytest.mark.usefixtures("kernel")
    def test_auto_prefers_the_kernel_s_own(self) -> None:
        assert gaio.backends()[0].name != "kqueue"


def test_the_descriptor_can_be_watched_by_another_loop(
    kernel: Kernel, make_watcher: MakeWatcher, pairs: Pairs
) -> None:
    """A kqueue polls as readable when it has events."""
    watcher = make_watcher()
    conn, peer = pairs.unix()
    read = watcher.read(conn)
    assert watcher.wait(0) == []
    poll = select.poll()
    poll.register(watcher.watcher.fileno(), select.POLLIN)
    while poll.poll(0):
        assert watcher.wait(0) == []
    peer.send(b"x")
    assert poll.poll(10_000)
    watcher.finish(read)
    assert read.data == b"x"
