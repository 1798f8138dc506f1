"""Applications for the tests of the WSGI server. What one request does another may ask for: all run in one process."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING
from urllib.parse import parse_qs
from wsgiref.validate import validator

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

PLAIN = ("Content-Type", "text/plain")
CHUNK = bytes(range(256)) * 256


class State:
    produced = 0  # bytes that /endless has made
    closed = 0  # answers whose close() was called
    under_way = 0  # requests for /until


def hello(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    text = b"hello " + environ["PATH_INFO"].encode("latin-1")
    start_response("200 OK", [PLAIN, ("Content-Length", str(len(text)))])
    return [text]


def told(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [PLAIN])
    return [json.dumps({name: value for name, value in environ.items() if isinstance(value, str)}).encode()]


def state(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [PLAIN])
    return [json.dumps([State.produced, State.closed, State.under_way]).encode()]


def upload(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The size and the digest of what was sent."""
    digest, size = hashlib.sha256(), 0
    while part := environ["wsgi.input"].read(10_000):
        digest.update(part)
        size += len(part)
    start_response("200 OK", [PLAIN])
    return [f"{size} {digest.hexdigest()} {environ['CONTENT_LENGTH']}".encode()]


def unread(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("403 Forbidden", [PLAIN])
    return [b"no"]


def status(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The status that the query names, with a body whether that may have one or not."""
    start_response(environ["QUERY_STRING"].replace("+", " "), [("ETag", '"x"'), ("Content-Length", "4")])
    return [b"body"]


def lines(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
    """A generator, so even the head comes late; with an empty part, which must not end the chunks."""
    start_response("200 OK", [PLAIN])
    yield b"first\n"
    yield b""
    yield b"second\n"


def written(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    write = start_response("200 OK", [PLAIN])
    write(b"written, ")
    write(b"and ")
    return [b"returned"]


class Endless:
    """So many bytes as the query says, counted as they are made."""

    def __init__(self, environ: WSGIEnvironment, start_response: StartResponse) -> None:
        self.left = int(environ["QUERY_STRING"])
        start_response("200 OK", [PLAIN, ("Content-Length", str(self.left))])

    def __iter__(self) -> Iterator[bytes]:
        while self.left:
            part = CHUNK[: self.left]
            State.produced += len(part)
            self.left -= len(part)
            yield part

    def close(self) -> None:
        State.closed += 1


def at_once(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """So many bytes in one piece."""
    start_response("200 OK", [PLAIN])
    return [CHUNK * (int(environ["QUERY_STRING"]) // len(CHUNK))]


def until(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Waits until there is a file of that name."""
    State.under_way += 1
    path = parse_qs(environ["QUERY_STRING"])["path"][0]
    while not os.path.exists(path):
        time.sleep(0.002)
    State.under_way -= 1
    start_response("200 OK", [PLAIN])
    return [b"at last"]


def fails_before(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    raise RuntimeError("as it should")


def fails_between(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
    start_response("200 OK", [PLAIN])
    yield b"a part of it"
    raise RuntimeError("as it should")


def promises_too_much(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [PLAIN, ("Content-Length", "100")])
    return [b"less"]


def splits(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [PLAIN, ("X-From-A-Client", "a\r\nSet-Cookie: b")])
    return [b"never sent"]


def leaves(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    raise SystemExit("as it should")


def mends(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Starts one answer, and then another one in its place: PEP 3333, `exc_info`."""
    start_response("200 OK", [PLAIN])
    try:
        raise RuntimeError("found out in time")
    except RuntimeError:
        start_response("502 Bad Gateway", [PLAIN], sys.exc_info())
    return [b"mended"]


PATHS: dict[str, Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]] = {
    f"/{one.__name__}": one
    for one in (
        *(told, state, upload, unread, status, lines, written, at_once, until),
        *(fails_before, fails_between, promises_too_much, splits, leaves, mends),
    )
}
PATHS["/endless"] = Endless


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    return PATHS.get(environ["PATH_INFO"], hello)(environ, start_response)


validated: WSGIApplication = validator(application)
