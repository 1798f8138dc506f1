"""HTTP/1.1 for a WSGI server: requests out of bytes as they arrive, and answers as bytes (RFC 9110, 9112, PEP 3333).

h11 is the well-kept library for that, and examples/http_server.py stands on it. It takes 28 µs for a small request and
its answer where this takes 5; that is more than all the rest of a request through this server. So the head
of a request is matched here by one regular expression. What that does not match is refused, and so is all that two
servers in a row could understand differently, which is what smuggled requests live on: a bare LF, a folded line, space
before a colon, more than one Content-Length or Host, a Content-Length beside a Transfer-Encoding, any coding but
`chunked`.

The body is collected before the request is handed on, in memory and from `IN_MEMORY` bytes on in a temporary file. So a
client that sends it slowly holds a connection, and no thread.
"""

from __future__ import annotations

import enum
import functools
import io
import re
import tempfile
from collections.abc import Callable, Generator, Iterable
from email.utils import formatdate
from time import time
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    from _typeshed import OptExcInfo

MAX_HEAD = 1 << 16  # bytes of a request line and its headers; of a line of a chunk; of trailers
IN_MEMORY = 1 << 18  # bytes of a body

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_FIELDS = rb"(?:%b:[\t -~\x80-\xff]*\r\n)*" % _TOKEN
_HEAD = re.compile(rb"(%b) ([!-~]+) HTTP/1\.([0-9])\r\n(%b)\r\n" % (_TOKEN, _FIELDS))
_OTHER_VERSION = re.compile(rb"[^\r\n]* HTTP/[02-9]\.[0-9]\r\n")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_HOST = re.compile(r"[A-Za-z0-9\-._~%!$&'()*+;=:\[\]]*")
_ABSOLUTE = re.compile(rf"https?://({_HOST.pattern})((?:[/?].*)?)", re.IGNORECASE)
_LENGTH = re.compile(r"[0-9]{1,18}", re.ASCII)
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t -~\x80-\xff]*)?\r\n")
_TRAILERS = re.compile(rb"%b\r\n" % _FIELDS)

_SAFE = re.compile(r"(?:[\t -~\x80-\xff]+\r\n)+")  # what the head of an answer may be made of
_NO_LENGTH = ("1", "204")  # a status that begins so has no Content-Length, RFC 9110 section 8.6
_NO_BODY = (*_NO_LENGTH, "304")
_HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
_SMALL = 1 << 16  # bytes of an answer that are copied behind its head

# CGI has one name for `X-A` and `X_A`: who trusts what a proxy sets must not be given what a client sets beside it. And
# HTTP_PROXY is what many programs take for their configuration. (CVE-2015-0219; CVE-2016-5385.)
_IGNORED = ""
_KEYS = {"Content-Type": "CONTENT_TYPE", "Content-Length": "CONTENT_LENGTH", "Proxy": _IGNORED}
_MOST_KEYS = 1000  # that are remembered: clients make them up
_ONCE = {"CONTENT_LENGTH", "CONTENT_TYPE", "HTTP_HOST", "HTTP_TRANSFER_ENCODING"}


class Refused(Exception):
    """What has arrived is no request, or one that is not served; `str()` of this is the status to answer with."""


class More(enum.Enum):
    """What has to arrive next."""

    HEAD = "the head of a request"
    BODY = "its body"
    CONTINUE = "its body, for which the client waits to be asked"


class Request:
    """One request: `environ` has its headers and its target as PEP 3333 wants them."""

    __slots__ = ("body", "chunked", "environ", "keep", "length", "method", "minor")

    def __init__(self, head: bytes, environ: dict[str, Any]) -> None:
        match = _HEAD.fullmatch(head)
        if match is None:
            raise Refused("505 HTTP Version Not Supported" if _OTHER_VERSION.match(head) else "400 Bad Request")
        method, target, minor, fields = match.groups()
        self.environ = environ
        self.body: IO[bytes] | io.BytesIO = io.BytesIO()
        self.method = environ["REQUEST_METHOD"] = method.decode()
        self.minor = 0 if minor == b"0" else 1  # of HTTP/1.x; what is after 1.1 is served as that
        environ["SERVER_PROTOCOL"] = "HTTP/1.1" if self.minor else "HTTP/1.0"
        for line in fields.decode("latin-1").split("\r\n")[:-1]:
            name, _, value = line.partition(":")
            key = _KEYS.get(name)
            if key is None:
                key = _key(name)
            value = value.strip(" \t")
            if key in environ:
                if key in _ONCE:
                    raise Refused("400 Bad Request")
                value = environ[key] + ("; " if key == "HTTP_COOKIE" else ",") + value
            environ[key] = value
        environ.pop(_IGNORED, None)
        self._find_target(target.decode())
        self._find_end(environ.get("CONTENT_LENGTH"), environ.get("HTTP_TRANSFER_ENCODING"))
        connection = environ.get("HTTP_CONNECTION")
        if connection is None:
            self.keep = self.minor == 1
        else:
            options = connection.lower().replace(" ", "").split(",")
            self.keep = "close" not in options and (self.minor == 1 or "keep-alive" in options)

    def _find_target(self, target: str) -> None:
        environ = self.environ
        host = environ.get("HTTP_HOST")
        if (self.minor if host is None else _HOST.fullmatch(host) is None) or "#" in target:
            raise Refused("400 Bad Request")
        if target[0] != "/":
            absolute = _ABSOLUTE.fullmatch(target)
            if absolute is not None:
                environ["HTTP_HOST"], target = absolute.groups()
                target = target if target.startswith("/") else "/" + target
            elif target != "*" or self.method != "OPTIONS":
                raise Refused("501 Not Implemented" if self.method == "CONNECT" else "400 Bad Request")
        path, _, environ["QUERY_STRING"] = target.partition("?")
        if "%" in path:
            path = unquote_to_bytes(path).decode("latin-1")
        environ["PATH_INFO"] = path if path != "*" else ""

    def _find_end(self, length: str | None, coding: str | None) -> None:
        """RFC 9112 section 6.3."""
        self.length = 0
        self.chunked = coding is not None
        if coding is not None:
            if length is not None or not self.minor:
                raise Refused("400 Bad Request")
            if coding.lower() != "chunked":
                raise Refused("501 Not Implemented")
            del self.environ["HTTP_TRANSFER_ENCODING"]  # the application gets the body without it
        elif length is not None:
            if _LENGTH.fullmatch(length) is None:
                raise Refused("400 Bad Request")
            self.length = int(length)


def _key(name: str) -> str:
    """The name of that header in an environ."""
    key = _KEYS.get(name.title())
    if key is None:
        key = _IGNORED if "_" in name else "HTTP_" + name.upper().replace("-", "_")
    if len(_KEYS) < _MOST_KEYS:
        _KEYS[name] = key
    return key


class Parser:
    """The requests of one client. `add()` what has arrived, and take `next()` of `steps` until that is a `More`."""

    def __init__(self, environ: dict[str, Any], max_body: int) -> None:
        """`environ` is what is the same for each request of this client."""
        self.data = b""
        self.at = 0  # where the next request begins in that, or what is not read yet of this one
        self.steps = self._requests(environ, max_body)

    def add(self, view: memoryview) -> None:
        self.data = self.data[self.at :] + view
        self.at = 0

    @property
    def waiting(self) -> int:
        """Bytes that have arrived and belong to no request yet."""
        return len(self.data) - self.at

    def close(self) -> None:
        """Give up the body that is arriving."""
        self.steps.close()
        self.data, self.at = b"", 0

    def _requests(self, environ: dict[str, Any], max_body: int) -> Generator[More | Request, None, None]:
        while True:
            head = yield from self._until(b"\r\n\r\n", More.HEAD)
            request = Request(head, environ.copy())
            if request.length > max_body:
                raise Refused("413 Content Too Large")
            if request.chunked or request.length:
                yield from self._body(request, max_body)
            request.environ["wsgi.input"] = request.body
            yield request

    def _until(self, end: bytes, more: More) -> Generator[More, None, bytes]:
        """Take what stands before `end`, and that."""
        searched = 0
        while True:
            data, at = self.data, self.at
            if more is More.HEAD and data.startswith(b"\r\n", at):
                self.at = at = at + 2  # before a request; RFC 9112 section 2.2
            found = data.find(end, at + searched)
            if (found if found >= 0 else len(data)) - at > MAX_HEAD:
                first_line = data.find(b"\r\n", at, at + MAX_HEAD)
                long_line = more is More.HEAD and first_line < 0
                raise Refused("414 URI Too Long" if long_line else "431 Request Header Fields Too Large")
            if found >= 0:
                self.at = found + len(end)
                if self.at == len(data):
                    self.data, self.at = b"", 0
                return data[at : found + len(end)]
            if _BARE_LF.search(data, at + searched):
                raise Refused("400 Bad Request")
            searched = max(0, len(data) - at - len(end) + 1)
            yield more

    def _body(self, request: Request, max_body: int) -> Generator[More, None, None]:
        expected = request.environ.get("HTTP_EXPECT")
        if expected is not None and request.minor:
            if expected.lower() != "100-continue":
                raise Refused("417 Expectation Failed")
            if not self.waiting:
                yield More.CONTINUE
        if not request.chunked and self.waiting >= request.length:
            request.body = io.BytesIO(self.data[self.at : self.at + request.length])
            self.at += request.length
            return
        # Open as long as the request is, which closes it.
        request.body = body = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115
        try:
            if request.chunked:
                size = 0
                while (chunk := (yield from self._chunk_size())) > 0:
                    size += chunk
                    if size > max_body:
                        raise Refused("413 Content Too Large")
                    yield from self._copy(chunk, body)
                    if (yield from self._until(b"\r\n", More.BODY)) != b"\r\n":
                        raise Refused("400 Bad Request")
                yield from self._trailers()
                request.environ["CONTENT_LENGTH"] = str(size)
            else:
                yield from self._copy(request.length, body)
            body.seek(0)
        except BaseException:
            body.close()
            raise

    def _copy(self, count: int, body: IO[bytes]) -> Generator[More, None, None]:
        while count:
            part = self.data[self.at : self.at + count]
            body.write(part)
            self.at += len(part)
            count -= len(part)
            if count:
                yield More.BODY

    def _chunk_size(self) -> Generator[More, None, int]:
        line = _CHUNK.fullmatch((yield from self._until(b"\r\n", More.BODY)))
        if line is None:
            raise Refused("400 Bad Request")
        return int(line[1], 16)

    def _trailers(self) -> Generator[More, None, None]:
        """They are not told to the application."""
        trailers = b""
        while not trailers.endswith(b"\r\n\r\n") and trailers != b"\r\n":
            trailers += yield from self._until(b"\r\n", More.BODY)
            if len(trailers) > MAX_HEAD:
                raise Refused("431 Request Header Fields Too Large")
        if _TRAILERS.fullmatch(trailers) is None:
            raise Refused("400 Bad Request")


class Answer:
    """The answer to one request: start_response() and write() of PEP 3333, and what the application returns.

    `send` takes the parts of it. `keep` is whether the connection goes on behind it.
    """

    __slots__ = ("bodiless", "chunked", "headers", "keep", "left", "request", "send", "status")

    def __init__(self, request: Request, keep: bool, send: Callable[[bytes | list[bytes]], None]) -> None:
        self.request, self.keep, self.send = request, keep, send
        self.status = ""
        self.headers: list[str] = []  # until they are sent
        self.left: int | None = None  # bytes of the body to come, where that is known
        self.chunked = self.bodiless = False

    @property
    def has_begun(self) -> bool:
        return self.status != "" and not self.headers

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: OptExcInfo | None = None) -> Any:
        if self.status:
            if exc_info is None:
                raise RuntimeError("start_response() has been called before")
            if self.has_begun and exc_info[1] is not None:
                raise exc_info[1].with_traceback(exc_info[2])
        lines = ["HTTP/1.1 ", status, "\r\n"]
        dated, self.left = False, None
        for name, value in headers:
            lower = name.lower()
            if lower == "content-length":
                self.left = int(value)
                if status.startswith(_NO_LENGTH):
                    continue
            elif lower == "date":
                dated = True
            elif lower in _HOP_BY_HOP:
                raise ValueError(f"{name}: such headers are the server's")
            lines += (name, ": ", value, "\r\n")
        text = "".join(lines)
        if _SAFE.fullmatch(text) is None or text.count("\n") != lines.count("\r\n") or not status[:3].isdigit():
            raise ValueError(f"not sent, for its status or a header cannot be: {status!r}, {headers!r}")
        if not dated:
            lines.append(_date(int(time())))
        self.status, self.headers = status, lines
        return self.write

    def write(self, data: bytes) -> None:
        if data:
            self.put(data, None)

    def put(self, data: bytes, whole: int | None) -> None:
        """A part of the body, behind the head if that is due; `whole`: all the bytes that there will be, if known."""
        if not isinstance(data, bytes):
            raise TypeError(f"the body of an answer is made of bytes, not {type(data).__name__}")
        parts = [] if self.has_begun else [self.head(whole)]
        if self.bodiless:
            data = b""
        elif self.left is not None:
            self.left -= len(data)
            if self.left < 0:
                raise ValueError(f"{-self.left} bytes more than Content-Length says")
        elif self.chunked and data:
            parts.append(b"%x\r\n" % len(data))
        if data:
            parts.append(data)
            if self.chunked:
                parts.append(b"\r\n")
        if parts:
            self.send(parts if len(data) > _SMALL else b"".join(parts))

    def head(self, whole: int | None) -> bytes:
        """RFC 9112 section 6.3: where the body ends. And whether the connection goes on."""
        if not self.status:
            raise RuntimeError("start_response() has not been called")
        lines, self.headers = self.headers, []
        if self.request.method == "HEAD" or self.status.startswith(_NO_BODY):
            self.bodiless = True
            self.left = 0
        elif self.left is None:
            if whole is not None:
                self.left = whole
                lines.append(f"Content-Length: {whole}\r\n")
            elif self.request.minor:
                self.chunked = True
                lines.append("Transfer-Encoding: chunked\r\n")
            else:
                self.keep = False
        if not self.keep:
            lines.append("Connection: close\r\n")
        elif not self.request.minor:
            lines.append("Connection: keep-alive\r\n")
        lines.append("\r\n")
        return "".join(lines).encode("latin-1")

    def send_all(self, result: Iterable[bytes]) -> None:
        if isinstance(result, (list, tuple)) and len(result) < 2 and not self.has_begun:
            data = result[0] if result else b""
            self.put(data, len(data))
        else:
            for data in result:
                self.write(data)
                if self.bodiless:
                    break
            if not self.has_begun:
                self.put(b"", 0)
            elif self.chunked:
                self.send(b"0\r\n\r\n")
        if self.left:
            raise ValueError(f"{self.left} bytes fewer than Content-Length says")


def refusal(status: str) -> bytes:
    """The whole answer to what is no request, or cannot be served; the connection ends with it."""
    return f"HTTP/1.1 {status}\r\n{_date(int(time()))}Content-Length: 0\r\nConnection: close\r\n\r\n".encode()


@functools.lru_cache(maxsize=1)
def _date(now: int) -> str:
    return f"Date: {formatdate(now, usegmt=True)}\r\n"
