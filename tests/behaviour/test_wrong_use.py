"""Wrong use is refused where the caller stands, in a sentence that says what to do; nothing is lost."""

from __future__ import annotations

import array
import bz2
import contextlib
import errno
import gzip
import io
import lzma
import math
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytest

import gaio
from tests.accounting import AccountedWatcher, MakeWatcher
from tests.backends import Name
from tests.peers import Pairs, pattern, receive_exactly
from tests.waiting import Background

SUBMITTING: dict[str, Callable[[gaio.Watcher, Any], None]] = {
    "read into the arena": lambda watcher, conn: watcher.read(conn),
    "read": lambda watcher, conn: watcher.read(conn, bytearray(10)),
    "read_full": lambda watcher, conn: watcher.read_full(conn, bytearray(10)),
    "write": lambda watcher, conn: watcher.write(conn, b"x"),
    "vectored write": lambda watcher, conn: watcher.write(conn, [b"x", b"y"]),
}


@pytest.fixture
def unharmed(watcher: AccountedWatcher, pairs: Pairs) -> Iterator[gaio.Watcher]:
    """A watcher that, after the test has misused it, holds nothing of the refused calls and still works."""
    conn, peer = pairs.tcp()
    yield watcher.watcher
    assert watcher.wait(0) == []
    stats = watcher.watcher.stats()
    assert (stats.conns, stats.pending, stats.completions) == (0, 0, 0)
    read = watcher.read(conn)
    peer.sendall(b"x")
    watcher.finish(read, watcher.write(conn, b"y"))
    assert read.data == b"x"
    assert receive_exactly(peer, 1) == b"y"


class WithoutFileno:
    def close(self) -> None:
        raise AssertionError("closed, though it was refused")


class WithoutClose:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def fileno(self) -> int:
        return self.sock.fileno()


class FilenoOfAnotherKind:
    def __init__(self, number: object) -> None:
        self.number = number

    def fileno(self) -> object:
        return self.number

    def close(self) -> None:
        raise AssertionError("closed, though it was refused")


class Slotted:
    """Has everything but a place for weak references."""

    __slots__ = ("sock",)

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def fileno(self) -> int:
        return self.sock.fileno()

    def close(self) -> None:
        self.sock.close()


def assert_helpful(error: BaseException, *words: str) -> None:
    """A sentence, not a word; and it speaks of what is to be done."""
    message = str(error)
    assert len(message.split()) >= 4, f"too short to help: {message!r}"
    assert any(word in message for word in words), f"{message!r} mentions none of {words}"


@pytest.mark.parametrize("submit", SUBMITTING.values(), ids=SUBMITTING)
class TestConn:
    @pytest.mark.parametrize("conn", [None, 7, "socket", b"", Ellipsis], ids=repr)
    def test_what_is_no_connection(
        self, unharmed: gaio.Watcher, submit: Callable[[gaio.Watcher, Any], None], conn: object
    ) -> None:
        with pytest.raises(gaio.UnsupportedConnError) as caught:
            submit(unharmed, conn)
        assert isinstance(caught.value, TypeError)
        assert_helpful(caught.value, "socket", "fileno()")

    def test_an_object_without_fileno(
        self, unharmed: gaio.Watcher, submit: Callable[[gaio.Watcher, Any], None]
    ) -> None:
        with pytest.raises(gaio.UnsupportedConnError) as caught:
            submit(unharmed, WithoutFileno())
        assert_helpful(caught.value, "fileno()")

    @pytest.mark.parametrize("number", ["3", None, True, 1 << 31, 1 << 63], ids=repr)
    def test_an_object_whose_fileno_is_no_number_of_a_descriptor(
        self, unharmed: gaio.Watcher, submit: Callable[[gaio.Watcher, Any], None], number: object
    ) -> None:
        with pytest.raises(gaio.UnsupportedConnError) as caught:
            submit(unharmed, FilenoOfAnotherKind(number))
        assert_helpful(caught.value, "fileno()")

    def test_a_socket_with_an_open_file(
        self, unharmed: gaio.Watcher, pairs: Pairs, submit: Callable[[gaio.Watcher, Any], None]
    ) -> None:
        """Of makefile(): the socket's close() would leave the descriptor open until that is closed."""
        conn, _ = pairs.tcp()
        pairs.also_close(conn)
        with conn.makefile("rb"), pytest.raises(gaio.UnsupportedConnError) as caught:
            submit(unharmed, conn)
        assert_helpful(caught.value, "makefile()")
        assert conn.fileno() != -1

    def test_an_object_without_close(
        self, unharmed: gaio.Watcher, pairs: Pairs, submit: Callable[[gaio.Watcher, Any], None]
    ) -> None:
        conn, _ = pairs.tcp()
        pairs.also_close(conn)
        with pytest.raises(gaio.UnsupportedConnError) as caught:
            submit(unharmed, WithoutClose(conn))
        assert_helpful(caught.value, "close()")
        assert conn.fileno() != -1

    def test_an_object_that_cannot_be_referred_to_weakly(
        self, unharmed: gaio.Watcher, pairs: Pairs, submit: Callable[[gaio.Watcher, Any], None]
    ) -> None:
        conn, peer = pairs.tcp()
        pairs.also_close(conn)
        with pytest.raises(gaio.UnsupportedConnError) as caught:
            submit(unharmed, Slotted(conn))
        assert_helpful(caught.value, "name '__weakref__' among the __slots__")
        conn.sendall(b"untouched")
        assert receive_exactly(peer, 9) == b"untouched"

    def test_a_closed_socket(
        self, unharmed: gaio.Watcher, pairs: Pairs, submit: Callable[[gaio.Watcher, Any], None]
    ) -> None:
        conn, _ = pairs.tcp()
        conn.close()
        with pytest.raises(gaio.ConnClosedError) as caught:
            submit(unharmed, conn)
        assert_helpful(caught.value, "closed")

    def test_a_closed_file(
        self, unharmed: gaio.Watcher, pairs: Pairs, submit: Callable[[gaio.Watcher, Any], None]
    ) -> None:
        conn, _ = pairs.pipe_to_read()
        conn.close()
        with pytest.raises(gaio.ConnClosedError) as caught:
            submit(unharmed, conn)
        assert_helpful(caught.value, "closed")

    def test_a_file_that_was_parted_from_what_it_stood_on(
        self, unharmed: gaio.Watcher, submit: Callable[[gaio.Watcher, Any], None]
    ) -> None:
        reading, writing = os.pipe()
        os.close(writing)
        conn = os.fdopen(reading, "rb")
        conn.detach().close()
        with pytest.raises(gaio.UnsupportedConnError) as caught:
            submit(unharmed, conn)
        assert_helpful(caught.value, "descriptor")

    def test_a_descriptor_that_is_not_open(
        self, unharmed: gaio.Watcher, pairs: Pairs, submit: Callable[[gaio.Watcher, Any], None]
    ) -> None:
        """Closed behind the back of its object."""
        conn, _ = pairs.tcp()
        number = conn.fileno()
        os.close(number)
        with pytest.raises((gaio.UnsupportedConnError, OSError)) as caught:
            submit(unharmed, conn)
        conn.detach()
        assert_helpful(caught.value, "closed", "not open", os.strerror(errno.EBADF))

    @pytest.mark.usefixtures("told_who_listens")
    def test_a_listening_socket(
        self, unharmed: gaio.Watcher, submit: Callable[[gaio.Watcher, Any], None]
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            with pytest.raises(gaio.UnsupportedConnError) as caught:
                submit(unharmed, listener)
            assert_helpful(caught.value, "accept() from it, and submit what the result has as `accepted`")
            with socket.create_connection(listener.getsockname()):
                listener.accept()[0].close()  # it still listens

    def test_a_socket_that_is_not_connected(
        self, unharmed: gaio.Watcher, submit: Callable[[gaio.Watcher, Any], None]
    ) -> None:
        with socket.socket() as sock, socket.create_server(("127.0.0.1", 0)) as listener:
            with pytest.raises(gaio.UnsupportedConnError) as caught:
                submit(unharmed, sock)
            assert_helpful(caught.value, "connect")
            sock.connect(listener.getsockname())  # it is still the caller's
            listener.accept()[0].close()

    def test_a_regular_file(
        self, unharmed: gaio.Watcher, submit: Callable[[gaio.Watcher, Any], None]
    ) -> None:
        """epoll refuses what is always ready: epoll_ctl(2), EPERM."""
        with tempfile.TemporaryFile(buffering=0) as file:
            with pytest.raises(gaio.UnsupportedConnError) as caught:
                submit(unharmed, file)
            assert_helpful(caught.value, "file", "poll")
            assert os.get_blocking(file.fileno()), "whoever shares it would see that"
            file.write(b"still open")
            file.seek(0)
            assert file.read() == b"still open"

    def test_a_file_that_holds_more_than_there_is_room_for(
        self, unharmed: gaio.Watcher, submit: Callable[[gaio.Watcher, Any], None]
    ) -> None:
        """As the stdin of a child process may: its close() would throw away what it cannot write."""
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb", buffering=0) as reader, os.fdopen(writing, "wb") as writer:
            os.set_blocking(writing, False)
            full = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    full += os.write(writing, bytes(4096))
            os.set_blocking(writing, True)
            writer.write(b"unflushed")
            with pytest.raises(gaio.UnsupportedConnError) as caught:
                submit(unharmed, writer)
            assert_helpful(caught.value, "flush()", "buffering=0")
            assert os.get_blocking(writing)
            assert reader.read(full) == bytes(full)
            writer.flush()
            assert reader.read(100) == b"unflushed"

    def test_a_directory(
        self, unharmed: gaio.Watcher, tmp_path: Path, submit: Callable[[gaio.Watcher, Any], None]
    ) -> None:
        class Directory:
            number = os.open(tmp_path, os.O_RDONLY)

            def fileno(self) -> int:
                return self.number

            def close(self) -> None:
                raise AssertionError("closed, though it was refused")

        directory = Directory()
        with pytest.raises(gaio.UnsupportedConnError) as caught:
            submit(unharmed, directory)
        assert_helpful(caught.value, "file", "poll")
        os.close(directory.number)

    def test_refusing_a_thousand_times_leaks_nothing(
        self, unharmed: gaio.Watcher, submit: Callable[[gaio.Watcher, Any], None]
    ) -> None:
        with tempfile.TemporaryFile(buffering=0) as file, socket.socket() as sock:
            for conn in (file, sock) * 500:
                with pytest.raises(gaio.UnsupportedConnError):
                    submit(unharmed, conn)


def filled_pipe(free_pages: int = 0) -> tuple[io.FileIO, int, int]:
    """A pipe with no room, or that of a few pages: the file to read it from, how many bytes are in it, and the number
    of the other end.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    full = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            full += os.write(writing, bytes(4096))
    os.set_blocking(writing, True)
    for _ in range(free_pages):
        full -= len(os.read(reading, 4096))
    return io.FileIO(reading), full, writing


class Delegating:
    """Stands before a file, as the wrappers of tempfile and os.popen() do."""

    def __init__(self, file: IO[Any]) -> None:
        self.file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


class OwnText(io.TextIOWrapper):
    pass


TEXT_FILES: dict[str, Callable[[int], Any]] = {
    "plain": lambda number: os.fdopen(number, "w"),
    "line-buffered": lambda number: os.fdopen(number, "w", buffering=1),
    "with a small buffer": lambda number: os.fdopen(number, "w", buffering=512),
    "of a class of its own": lambda number: OwnText(os.fdopen(number, "wb")),
    "behind a wrapper": lambda number: Delegating(os.fdopen(number, "w")),
}


class TestFilesThatHoldSomething:
    """What a refused file held arrives all the same: once, and in order."""

    @pytest.mark.parametrize("make", TEXT_FILES.values(), ids=TEXT_FILES)
    def test_text(self, unharmed: gaio.Watcher, make: Callable[[int], Any]) -> None:
        """A TextIOWrapper drops what its buffer does not take: CPython issue 85393."""
        reader, full, writing = filled_pipe()
        with reader:
            file = make(writing)
            for part in ("a" * 3000, "b" * 5000):  # less than a TextIOWrapper passes on by itself
                file.write(part)
            for _ in range(2):
                with pytest.raises(gaio.UnsupportedConnError) as caught:
                    unharmed.write(file, b"x")
            assert_helpful(caught.value, "flush() it and submit its `buffer`")
            assert os.get_blocking(writing)
            draining = Background(reader.readall)
            file.flush()
            file.write("c")
            file.close()
            assert draining.result()[full:] == b"a" * 3000 + b"b" * 5000 + b"c"

    def test_text_is_taken_when_the_advice_is_followed(
        self, watcher: AccountedWatcher, pairs: Pairs
    ) -> None:
        reader, full, writing = filled_pipe()
        file = os.fdopen(writing, "w")
        pairs.also_close(reader, file)
        file.write("a" * 3000)
        file.write("b" * 5000)  # less in all than a TextIOWrapper passes on by itself, which differs with versions
        with pytest.raises(gaio.UnsupportedConnError, match=r"flush\(\) it and submit its `buffer`"):
            watcher.watcher.write(file, b"refused")
        draining = Background(reader.readall)
        file.flush()
        watcher.finish(watcher.write(file.buffer, b"taken"))
        watcher.free(file.buffer)
        assert draining.result()[full:] == b"a" * 3000 + b"b" * 5000 + b"taken"

    def test_text_that_is_passed_on_at_once(self, unharmed: gaio.Watcher) -> None:
        """As by the stdin of Popen(text=True): only its buffer holds something, and that keeps what it holds."""
        reader, full, writing = filled_pipe()
        with reader:
            file = io.TextIOWrapper(os.fdopen(writing, "wb"), write_through=True)
            file.write("unflushed")
            with pytest.raises(gaio.UnsupportedConnError) as caught:
                unharmed.write(file, b"x")
            assert_helpful(caught.value, "flush() it before")
            draining = Background(reader.readall)
            file.close()
            assert draining.result()[full:] == b"unflushed"

    def test_the_text_of_a_child(self, watcher: AccountedWatcher) -> None:
        command = [sys.executable, "-c", "print(input() * 3)"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write("ab")
            read = watcher.read_full(child.stdout, bytearray(10))
            watcher.finish(watcher.write(child.stdin, b"c\n"), read)
            assert read.buffer == b"abcabcabc\n"
            watcher.free(child.stdin)
            watcher.free(child.stdout)

    @pytest.mark.parametrize("free_pages", [1, 2, 7])
    def test_bytes_for_a_part_of_which_there_is_room(self, unharmed: gaio.Watcher, free_pages: int) -> None:
        reader, full, writing = filled_pipe(free_pages)
        payload = pattern(40_000)
        with reader:
            file = os.fdopen(writing, "wb", buffering=1 << 16)
            file.write(payload)
            for _ in range(2):
                with pytest.raises(gaio.UnsupportedConnError) as caught:
                    unharmed.write(file, b"x")
            assert_helpful(caught.value, "flush() it before")
            draining = Background(reader.readall)
            file.close()
            assert draining.result()[full:] == payload

    @pytest.mark.parametrize("make", [gzip.GzipFile, bz2.BZ2File, lzma.LZMAFile])
    def test_what_compresses(self, unharmed: gaio.Watcher, make: Callable[..., Any]) -> None:
        """What it still holds would come after what the watcher has written, and close() leaves the pipe open."""
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb") as source, os.fdopen(writing, "wb") as sink:
            with make(sink, "wb") if make is not gzip.GzipFile else make(fileobj=sink, mode="wb") as file:
                file.write(b"text")
                with pytest.raises(gaio.UnsupportedConnError) as caught:
                    unharmed.write(file, b"x")
                assert_helpful(caught.value, "submit the file or the socket beneath it")
            sink.close()
            opened = make(source) if make is not gzip.GzipFile else make(fileobj=source)
            assert opened.read() == b"text"


MAKEFILE_MODES: list[tuple[str, int | None]] = [
    ("r", None), ("w", None), ("rw", None), ("rb", None), ("wb", None), ("rwb", None), ("rb", 0), ("wb", 0), ("rwb", 0)
]  # fmt: skip


class TestFilesThatLeaveTheirDescriptorOpen:
    """Their close() would, and so the connection would go on beside the watcher's."""

    @pytest.mark.parametrize(("mode", "buffering"), MAKEFILE_MODES)
    def test_of_an_open_socket(
        self, watcher: AccountedWatcher, pairs: Pairs, mode: Any, buffering: int | None
    ) -> None:
        conn, peer = pairs.tcp()
        file = conn.makefile(mode, buffering=buffering)
        for submit in SUBMITTING.values():
            with pytest.raises(gaio.UnsupportedConnError) as caught:
                submit(watcher.watcher, file)
            assert_helpful(caught.value, "submit the socket")
        if file.writable():
            text: Any = "there" if "b" not in mode else b"there"
            file.write(text)
            file.flush()
            assert receive_exactly(peer, 5) == b"there"
        if file.readable():
            peer.sendall(b"back\n")
            assert file.readline() in ("back\n", b"back\n")
        file.close()  # as the message says
        watcher.finish(watcher.write(conn, b"taken"))
        assert receive_exactly(peer, 5) == b"taken"

    @pytest.mark.parametrize(
        ("mode", "buffering"), [("r", -1), ("w", -1), ("rb", -1), ("wb", -1), ("rb", 0), ("wb", 0)]
    )
    def test_closefd(self, watcher: AccountedWatcher, pairs: Pairs, mode: str, buffering: int) -> None:
        """As with sys.stdin, sys.stdout and sys.stderr."""
        source, sink = pairs.pipe_to_read() if "r" in mode else reversed(pairs.pipe_to_write())
        pairs.also_close(source, sink)
        number = (source if "r" in mode else sink).fileno()
        with open(number, mode, buffering=buffering, closefd=False) as file:
            for submit in SUBMITTING.values():
                with pytest.raises(gaio.UnsupportedConnError) as caught:
                    submit(watcher.watcher, file)
            assert not file.closed
        advice = re.search(r"os\.fdopen\(.*?\), '[rw]b', buffering=0\)", str(caught.value))
        assert advice is not None
        conn = eval(advice.group())  # what the message says, as it stands
        if "r" in mode:
            read = watcher.read(conn)
            sink.write(b"taken")
            watcher.finish(read)
            assert read.data == b"taken"
        else:
            watcher.finish(watcher.write(conn, b"taken"))
            assert source.read(5) == b"taken"
        watcher.free(conn)

    def test_the_streams_of_the_process(self, watcher: AccountedWatcher) -> None:
        for stream in (sys.__stdin__, sys.__stdout__, sys.__stderr__):
            if stream is not None:  # as where the process was started without
                with pytest.raises(gaio.UnsupportedConnError, match="closefd"):
                    watcher.watcher.read(stream)


def check_refused(
    pairs: Pairs,
    submit: Callable[[Any], None],
    errors: type[Exception] | tuple[type[Exception], ...],
    *words: str,
) -> None:
    """The call is refused, and the connection it came with is still the caller's, as good as before."""
    conn, peer = pairs.tcp()
    pairs.also_close(conn)
    with pytest.raises(errors) as caught:
        submit(conn)
    assert_helpful(caught.value, *words)
    conn.sendall(b"untouched")
    assert receive_exactly(peer, 9) == b"untouched"


BAD_BUFFER = (BufferError, TypeError)

NOT_WRITABLE: dict[str, Any] = {
    "bytes": b"constant",
    "read-only memoryview": memoryview(b"constant"),
}
NO_BUFFER: dict[str, Any] = {"str": "text", "int": 7, "list": [bytearray(5)], "object": object()}
NOT_CONTIGUOUS: dict[str, Any] = {
    "every second byte": memoryview(bytearray(10))[::2],
    "backwards": memoryview(bytearray(10))[::-1],
}
EMPTY: dict[str, Any] = {
    "bytearray": bytearray(),
    "memoryview": memoryview(bytearray(5))[5:],
    "array": array.array("B"),
}


@pytest.mark.parametrize("call", ["read", "read_full"])
class TestBufferToRead:
    def submit(self, watcher: gaio.Watcher, call: str, buffer: Any) -> Callable[[Any], None]:
        return lambda conn: getattr(watcher, call)(conn, buffer)

    @pytest.mark.parametrize("buffer", NOT_WRITABLE.values(), ids=NOT_WRITABLE)
    def test_read_only(self, unharmed: gaio.Watcher, pairs: Pairs, call: str, buffer: Any) -> None:
        check_refused(pairs, self.submit(unharmed, call, buffer), BAD_BUFFER, "bytearray", "writable")

    @pytest.mark.parametrize("buffer", NO_BUFFER.values(), ids=NO_BUFFER)
    def test_no_buffer_at_all(self, unharmed: gaio.Watcher, pairs: Pairs, call: str, buffer: Any) -> None:
        check_refused(pairs, self.submit(unharmed, call, buffer), TypeError, "bytearray", "buffer")

    @pytest.mark.parametrize("buffer", NOT_CONTIGUOUS.values(), ids=NOT_CONTIGUOUS)
    def test_not_contiguous(self, unharmed: gaio.Watcher, pairs: Pairs, call: str, buffer: Any) -> None:
        check_refused(pairs, self.submit(unharmed, call, buffer), BAD_BUFFER, "contiguous")

    @pytest.mark.parametrize("buffer", EMPTY.values(), ids=EMPTY)
    def test_empty(self, unharmed: gaio.Watcher, pairs: Pairs, call: str, buffer: Any) -> None:
        submit = self.submit(unharmed, call, buffer)
        check_refused(pairs, submit, gaio.EmptyBufferError, "empty", "byte")


ADVICE_FOR_READS: dict[str, tuple[Any, str]] = {
    "number": (4096, "bytearray(4096)"),
    "strided": (memoryview(bytearray(10))[::2], "bytearray(5)"),
    "strided and read-only": (memoryview(bytes(10))[::2], "a bytearray"),
    "constant": (b"constant", "a bytearray"),
    "text": ("text", "a bytearray"),
    "list": ([bytearray(5)], "a bytearray"),
    "flag": (True, "a bytearray"),
    "too large a number": (1 << 40, "a bytearray"),
    "empty": (bytearray(), "one of at least one byte"),
}


@pytest.mark.parametrize("call", ["read", "read_full"])
@pytest.mark.parametrize(("wrong", "advice"), ADVICE_FOR_READS.values(), ids=ADVICE_FOR_READS)
def test_what_is_said_of_a_buffer_to_read_into(
    unharmed: gaio.Watcher, pairs: Pairs, call: str, wrong: Any, advice: str
) -> None:
    """It names what the call takes: `bytes` none does, and read_full() wants a buffer."""
    conn, _ = pairs.tcp()
    pairs.also_close(conn)
    with pytest.raises((TypeError, BufferError, ValueError)) as caught:
        getattr(unharmed, call)(conn, wrong)
    message = str(caught.value)
    assert message.endswith(f": pass {advice}{', or no buffer' if call == 'read' else ''}")
    assert message.startswith((f"{call}() needs", "the buffer has no room"))


def test_read_full_needs_a_buffer(unharmed: gaio.Watcher, pairs: Pairs) -> None:
    wrong: Any = None
    check_refused(pairs, lambda conn: unharmed.read_full(conn, wrong), TypeError, "read_full() needs a buffer")


class TestBufferToWrite:
    @pytest.mark.parametrize("buffer", ["text", ["text"], [b"bytes", "text"]], ids=repr)
    def test_text(self, unharmed: gaio.Watcher, pairs: Pairs, buffer: Any) -> None:
        check_refused(pairs, lambda conn: unharmed.write(conn, buffer), TypeError, "encode", "bytes")

    @pytest.mark.parametrize("buffer", [None, 7, 1.5, Ellipsis, [None], [b"bytes", 7], {1: b"x"}], ids=str)
    def test_no_buffer(self, unharmed: gaio.Watcher, pairs: Pairs, buffer: Any) -> None:
        check_refused(pairs, lambda conn: unharmed.write(conn, buffer), TypeError, "bytes", "buffer")

    @pytest.mark.parametrize("buffer", [*NOT_CONTIGUOUS.values(), [b"x", NOT_CONTIGUOUS["backwards"]]])
    def test_not_contiguous(self, unharmed: gaio.Watcher, pairs: Pairs, buffer: Any) -> None:
        check_refused(pairs, lambda conn: unharmed.write(conn, buffer), BAD_BUFFER, "contiguous")

    @pytest.mark.parametrize("buffer", [b"", *EMPTY.values(), [], (), [b""], [b"", bytearray()]])
    def test_empty(self, unharmed: gaio.Watcher, pairs: Pairs, buffer: Any) -> None:
        submit = partial(unharmed.write, buf=buffer)
        check_refused(pairs, submit, gaio.EmptyBufferError, "empty", "byte")


BAD_TIMEOUTS: dict[str, tuple[Any, tuple[type[Exception], ...]]] = {
    "nan": (math.nan, (ValueError,)),
    "inf": (math.inf, (ValueError,)),
    "more than a float can hold": (10**400, (ValueError,)),
    "negative": (-1, (ValueError,)),
    "a little negative": (-1e-9, (ValueError,)),
    "text": ("1", (TypeError,)),
    "object": (object(), (TypeError,)),
    "complex": (1j, (TypeError,)),
}


@pytest.mark.parametrize(("timeout", "errors"), BAD_TIMEOUTS.values(), ids=BAD_TIMEOUTS)
class TestTimeout:
    @pytest.mark.parametrize("call", ["read", "read_full", "write"])
    def test_of_a_request(
        self,
        unharmed: gaio.Watcher,
        pairs: Pairs,
        call: str,
        timeout: Any,
        errors: tuple[type[Exception], ...],
    ) -> None:
        submit = partial(getattr(unharmed, call), buf=bytearray(1), timeout=timeout)
        check_refused(pairs, submit, errors, "timeout")

    def test_of_wait_io(
        self, unharmed: gaio.Watcher, timeout: Any, errors: tuple[type[Exception], ...]
    ) -> None:
        with pytest.raises(errors) as caught:
            unharmed.wait_io(timeout)
        assert_helpful(caught.value, "timeout")


@pytest.mark.parametrize("wrong", [None, 7, Ellipsis], ids=repr)
def test_freeing_what_is_no_connection(unharmed: gaio.Watcher, wrong: Any) -> None:
    with pytest.raises(gaio.UnsupportedConnError) as caught:
        unharmed.free(wrong)
    assert_helpful(caught.value, "close()", "socket")


def test_an_unknown_backend() -> None:
    wrong: Any = "select"
    with pytest.raises(ValueError) as caught:
        gaio.Watcher(backend=wrong)
    assert_helpful(caught.value, "epoll")
    assert "select" in str(caught.value)


@pytest.mark.parametrize("wrong", [7, b"epoll", True, Ellipsis], ids=repr)
def test_a_backend_that_is_no_name(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        gaio.Watcher(backend=wrong)
    assert_helpful(caught.value, "epoll")


@pytest.mark.parametrize("wrong", [0, -1, "65536", 1.5, None], ids=repr)
def test_a_swap_size_that_is_no_size(backend: Name, wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        gaio.Watcher(swap_size=wrong, backend=backend)
    assert_helpful(caught.value, "swap_size")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be bound to a CPU here")
class TestCpu:
    @pytest.mark.parametrize("cpu", [-1, 100_000, 1 << 40])
    def test_that_is_not_there(self, unharmed: gaio.Watcher, cpu: int) -> None:
        with pytest.raises(gaio.InvalidCPUError) as caught:
            unharmed.set_affinity(cpu)
        assert_helpful(caught.value, "CPU", "cpu")

    @pytest.mark.parametrize("cpu", ["0", None, 0.5])
    def test_that_is_no_number(self, unharmed: gaio.Watcher, cpu: Any) -> None:
        with pytest.raises((TypeError, gaio.InvalidCPUError)) as caught:
            unharmed.set_affinity(cpu)
        assert_helpful(caught.value, "CPU", "cpu")


def test_arguments_by_position_that_must_be_named(make_watcher: MakeWatcher, pairs: Pairs) -> None:
    """A timeout in the place of a context would go unnoticed."""
    watcher: Any = make_watcher().watcher
    conn, _ = pairs.tcp()
    pairs.also_close(conn)
    with pytest.raises(TypeError):
        watcher.read(conn, bytearray(1), 5)
    with pytest.raises(TypeError):
        watcher.write(conn, b"x", 5)
    with pytest.raises(TypeError):
        gaio.Watcher(65536)  # type: ignore[call-arg]  # the very mistake under test
    assert conn.fileno() != -1
