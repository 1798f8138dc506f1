"""The parser of the WSGI server: however the bytes are cut, and beside h11, which must understand the same."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from examples.wsgi_server.http1 import More, Parser, Refused, Request

CHUNKS = b'5\r\nhello\r\n00A;ext="1"\r\n\r\n\r\nworld!\r\n0\r\nTrailer: x\r\n\r\n'
REQUESTS = (
    b"GET /a?b HTTP/1.1\r\nHost: here\r\n\r\n",
    b"\r\nPOST /a HTTP/1.1\r\nHost: here\r\nContent-Length: 12\r\n\r\nhello\r\n\r\nyou",
    b"POST /a HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n%b" % CHUNKS,
    b"PUT /a HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: Chunked\r\nExpect: 100-continue\r\n\r\n0\r\n\r\n",
    b"HEAD http://there/ HTTP/1.1\r\nHost: here\r\nX: \t\xe9, ok \t\r\nCookie: a\r\ncookie:b\r\n\r\n",
)
Understood = tuple[str, str, bytes]


def understood(pieces: Iterable[bytes]) -> tuple[list[Understood], str]:
    """Method, path and body of each request, and why there are no more of them."""
    parser = Parser({}, 1000)
    found: list[Understood] = []
    try:
        for piece in pieces:
            parser.add(memoryview(piece))
            while True:
                step = next(parser.steps)
                if isinstance(step, Request):
                    with step.body:
                        found.append((step.method, step.environ["PATH_INFO"], step.body.read()))
                elif step is not More.CONTINUE:
                    break
    except Refused as refused:
        return found, str(refused)
    finally:
        parser.close()
    return found, ""


EXPECTED = [
    ("GET", "/a", b""),
    ("POST", "/a", b"hello\r\n\r\nyou"),
    ("POST", "/a", b"hello\r\n\r\nworld!"),
    ("PUT", "/a", b""),
    ("HEAD", "/", b""),
]


@pytest.mark.parametrize("size", range(1, 30))
def test_where_the_bytes_are_cut_makes_no_difference(size: int) -> None:
    data = b"".join(REQUESTS)
    assert understood(data[at : at + size] for at in range(0, len(data), size)) == (EXPECTED, "")


def test_all_at_once() -> None:
    assert understood([b"".join(REQUESTS)]) == (EXPECTED, "")


DELICATE = [b"\r\n", b"\n\n", *(bytes([byte]) for byte in b"\r\n \t:;,-+0x\0\x0b\x85")]


def mutated(source: random.Random) -> bytes:
    """Requests with a byte or a few changed: left out, put in, doubled, or taken from what is delicate."""
    data = bytearray(b"".join(source.sample(REQUESTS, 2)))
    for _ in range(source.randint(1, 3)):
        at = source.randrange(len(data))
        kind = source.randrange(4)
        piece = source.choice(DELICATE)
        if kind == 0:
            del data[at]
        elif kind == 1:
            data[at:at] = piece
        elif kind == 2:
            data[at : at + 1] = piece
        else:
            line = data.rfind(b"\n", 0, at) + 1
            data[line:line] = data[line : data.find(b"\n", at) + 1]
    return bytes(data)


def understood_by_h11(data: bytes) -> list[tuple[str, bytes]]:
    """Method and body of each request."""
    h11 = pytest.importorskip("h11")
    found: list[tuple[str, bytes]] = []
    try:
        while data := data.removeprefix(b"\r\n"):  # which it does not know, RFC 9112 section 2.2
            connection = h11.Connection(h11.SERVER)
            connection.receive_data(data)
            request = connection.next_event()
            if request is h11.NEED_DATA:
                break
            body = b""
            while type(event := connection.next_event()) is h11.Data:
                body += event.data
            if event is h11.NEED_DATA:
                break
            found.append((request.method.decode(), body))
            data, _ = connection.trailing_data
    except h11.RemoteProtocolError:
        pass
    return found


def test_what_it_understands_h11_understands_in_the_same_way() -> None:
    """It may refuse more. A peer behind h11 or a proxy like it then sees no request that was not seen here."""
    source = random.Random(1)
    accepted = 0
    for _ in range(20_000):
        data = mutated(source)
        ours, _ = understood([data])
        theirs = understood_by_h11(data)
        assert [one[0::2] for one in ours] == theirs[: len(ours)], data
        accepted += len(ours)
    assert accepted > 1000
