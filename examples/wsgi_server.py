"""WSGI server (PEP 3333): HTTP/1.1 for an application that runs in a pool of threads.

    python3 -m examples.wsgi_server module:application --port 8000 --threads 8

Without an application it serves a small one of its own. examples/http1.py reads the requests; keep-alive, pipelining,
`Expect: 100-continue` and chunks in both directions are served.

The I/O and the application share one pool of threads, see examples/leader_followers.py: an application that answers at
once costs no change of threads, and one that waits holds nobody up. Whoever ran it writes the answer.

Memory. A body that is large is in a temporary file before the application runs, see http1.py. When a client leaves more
than `MAX_UNSENT` bytes of its answer untaken, the thread that has more waits. A client is cut off when for `--timeout`
seconds it neither sends what is missing nor takes what waits for it, or when the head of a request takes it longer.

Ctrl-C or SIGTERM: nobody new is accepted, idle clients are let go of, the others get the answer to what they have begun
to ask. After `--grace` seconds, or with the second signal, the rest is cut off.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import math
import re
import signal
import socket
import sys
import threading
import traceback
from email.utils import formatdate
from time import monotonic, sleep, time
from typing import TYPE_CHECKING, Any
from wsgiref.util import FileWrapper

import gaio
from examples.http1 import More, Parser, Refused, Request
from examples.leader_followers import Threads

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

MAX_UNSENT = 1 << 18  # bytes of answers that may wait for one client
MAX_WAITING = 1 << 18  # bytes that may wait for the end of the request before them
SMALL = 1 << 16  # bytes of an answer that are copied behind its head
LINGER = 2.0  # seconds that a client has for ending the connection after us

SAFE = re.compile(r"(?:[\t -~\x80-\xff]+\r\n)+")  # what the head of an answer may be made of
NO_LENGTH = ("1", "204")  # a status that begins so has no Content-Length, RFC 9110 section 8.6
NO_BODY = (*NO_LENGTH, "304")
HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}


class Client:
    """One connection. More than one thread has to do with it: `lock` is held for whatever changes here."""

    def __init__(self, conn: socket.socket, parser: Parser) -> None:
        self.conn, self.parser = conn, parser
        self.lock = threading.Lock()
        self.room = threading.Condition(self.lock)
        self.request: Request | None = None  # that is being answered
        self.missing = More.HEAD  # otherwise
        self.since = 0.0  # when that head began to arrive
        self.reading = True  # read_start() is under way
        self.ended = False  # it has sent all it had to say
        self.ending = False  # so have we, and what still comes is dropped
        self.finishing = 0.0  # since when it has been sent all of it
        self.gone = False
        self.written = self.sent = 0  # bytes, counted by who answers and by who leads
        self.held_up = False  # something waits for `unsent` to go down
        self.timed = False  # a timer is under way that looks whether it does
        self.left = 0  # bytes that waited when it was silent before

    @property
    def unsent(self) -> int:
        return self.written - self.sent

    @property
    def is_idle(self) -> bool:
        return self.request is None and self.missing is More.HEAD and not self.parser.waiting


class Answer:
    """The answer to one request: start_response() and write() of PEP 3333, and what the application returns."""

    __slots__ = ("chunked", "client", "headers", "keep", "left", "request", "server", "status")

    def __init__(self, server: Server, client: Client, request: Request) -> None:
        self.server, self.client, self.request = server, client, request
        self.status = ""
        self.headers: list[str] = []  # until they are sent
        self.left: int | None = None  # bytes of the body to come, where that is known
        self.chunked = False
        self.keep = request.keep and not server.stopping

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: OptExcInfo | None = None) -> Any:
        if self.status:
            if exc_info is None:
                raise RuntimeError("start_response() has been called before")
            if not self.headers and exc_info[1] is not None:
                raise exc_info[1].with_traceback(exc_info[2])
        lines = ["HTTP/1.1 ", status, "\r\n"]
        dated, self.left = False, None
        for name, value in headers:
            lower = name.lower()
            if lower == "content-length":
                self.left = int(value)
                if status.startswith(NO_LENGTH):
                    continue
            elif lower == "date":
                dated = True
            elif lower in HOP_BY_HOP:
                raise ValueError(f"{name}: such headers are the server's")
            lines += (name, ": ", value, "\r\n")
        text = "".join(lines)
        if SAFE.fullmatch(text) is None or text.count("\n") != lines.count("\r\n") or not status[:3].isdigit():
            raise ValueError(f"not sent, for its status or a header cannot be: {status!r}, {headers!r}")
        if not dated:
            lines.append(self.server.date())
        self.status, self.headers = status, lines
        return self.write

    def write(self, data: bytes) -> None:
        if data:
            self.send(data, None)

    def send(self, data: bytes, whole: int | None) -> None:
        """A part of the body, behind the head if that is due; `whole`: all the bytes that there will be, if known."""
        if not isinstance(data, bytes):
            raise TypeError(f"the body of an answer is made of bytes, not {type(data).__name__}")
        parts = [] if self.status and not self.headers else [self.head(whole)]
        if self.request.method == "HEAD" or self.status.startswith(NO_BODY):
            data = b""
            self.left = 0
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
            self.server.send(self.client, parts if len(data) > SMALL else b"".join(parts))

    def head(self, whole: int | None) -> bytes:
        """RFC 9112 section 6.3: where the body ends. And whether the connection goes on."""
        if not self.status:
            raise RuntimeError("start_response() has not been called")
        lines, self.headers = self.headers, []
        if self.left is None and not self.status.startswith(NO_BODY):
            if whole is not None:
                self.left = whole
                if whole or self.request.method != "HEAD":
                    lines.append(f"Content-Length: {whole}\r\n")
            elif self.request.minor:
                self.chunked = self.request.method != "HEAD"
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
        if isinstance(result, (list, tuple)) and len(result) < 2 and (self.headers or not self.status):
            data = result[0] if result else b""
            self.send(data, len(data))
        else:
            for data in result:
                self.write(data)
            if self.headers or not self.status:
                self.send(b"", 0)
            elif self.chunked:
                self.server.send(self.client, b"0\r\n\r\n")
        if self.left:
            raise ValueError(f"{self.left} bytes fewer than Content-Length says")


class Server:
    """The threads, and what they share."""

    def __init__(
        self, application: WSGIApplication, watcher: gaio.Watcher, listener: socket.socket, options: argparse.Namespace
    ) -> None:
        self.application, self.watcher, self.listener = application, watcher, listener
        self.timeout: float = options.timeout
        self.max_body: int = options.max_body
        host, port = listener.getsockname()
        self.environ: WSGIEnvironment = {
            "SCRIPT_NAME": "",
            "SERVER_NAME": host,
            "SERVER_PORT": str(port),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            "wsgi.input_terminated": True,
            "wsgi.file_wrapper": FileWrapper,
        }
        self.clients: set[Client] = set()
        self.stopping = False
        self.dated = (0, "")  # a second, and the header for it

        self.threads = Threads[Client](options.threads, self.turn, self.answer)
        watcher.accept_start(listener)

    # --- answering, in any thread --------------------------------------------------------------------------

    def answer(self, client: Client) -> None:
        request = client.request
        assert request is not None
        answer = Answer(self, client, request)
        complete = False
        try:
            result = self.application(request.environ, answer.start)
            try:
                answer.send_all(result)
                complete = True
            finally:
                close = getattr(result, "close", None)
                if close is not None:
                    close()
        except (gaio.ConnClosedError, gaio.WatcherClosedError):
            pass  # the client has gone, or has been cut off; so is this when the answer is not complete
        except (Exception, SystemExit):  # noqa: BLE001  # the application's, whatever it is; the server goes on
            traceback.print_exc()
        request.body.close()
        with client.lock:
            client.request = None
            if client.gone:
                return
            if complete and answer.keep:
                self.advance(client)
            elif complete:
                self.end(client)
            elif answer.headers or not answer.status:
                self.refuse(client, "500 Internal Server Error")
            else:
                self.drop(client)  # the client must not take what it has for the whole

    def date(self) -> str:
        now = int(time())
        if self.dated[0] != now:
            self.dated = (now, f"Date: {formatdate(now, usegmt=True)}\r\n")
        return self.dated[1]

    def send(self, client: Client, data: bytes | list[bytes]) -> None:
        if client.unsent > MAX_UNSENT:
            self.wait_for_room(client)
        self.write(client, data)

    def write(self, client: Client, data: bytes | list[bytes]) -> None:
        client.written += len(data) if isinstance(data, bytes) else sum(map(len, data))
        self.watcher.write(client.conn, data, context=client)

    def wait_for_room(self, client: Client) -> None:
        """Until the client has taken half of what waits for it."""
        self.threads.let_others_lead()
        with client.lock:
            left = 0
            while client.unsent > MAX_UNSENT // 2 and not client.gone:
                client.held_up = True
                if not client.room.wait(self.timeout):
                    before, left = left, self.watcher.unsent(client.conn)
                    if before and left >= before:
                        self.drop(client)
            if client.gone:
                raise gaio.ConnClosedError("the client has gone, or takes nothing")

    # --- what becomes of a client; with its lock held ------------------------------------------------------

    def advance(self, client: Client) -> None:
        """Go on with what has arrived: to the next request, or to where more is needed."""
        if client.unsent > MAX_UNSENT:
            client.held_up = True  # who does not take the answers gets no more of them
            self.keep_an_eye_on(client)
            return
        try:
            step = next(client.parser.steps)
            if step is More.CONTINUE:
                self.write(client, b"HTTP/1.1 100 Continue\r\n\r\n")
                step = next(client.parser.steps)
        except Refused as refused:
            self.refuse(client, str(refused))
            return
        except OSError as error:
            print(f"a body was not stored: {error}", file=sys.stderr, flush=True)
            self.refuse(client, "503 Service Unavailable")
            return
        if isinstance(step, Request):
            client.request = step
            client.missing, client.since, client.left = More.HEAD, 0.0, 0
            self.threads.jobs.append(client)
            return
        client.missing = step
        now = monotonic()
        if not client.parser.waiting or step is not More.HEAD:
            client.since = 0.0
        elif not client.since:
            client.since = now
        if client.since and now > client.since + self.timeout:
            self.refuse(client, "408 Request Timeout")
        elif client.ended or (self.stopping and client.is_idle):
            self.end(client)
        elif not client.reading:
            self.read(client, self.timeout)

    def read(self, client: Client, timeout: float) -> None:
        client.reading = True
        self.watcher.read_start(client.conn, context=client, timeout=timeout)

    def keep_an_eye_on(self, client: Client) -> None:
        """While there is no read whose deadline would do so."""
        if not client.reading and not client.timed:
            client.timed = True
            self.watcher.after(self.timeout, context=client)

    def refuse(self, client: Client, status: str) -> None:
        head = f"HTTP/1.1 {status}\r\n{self.date()}Content-Length: 0\r\nConnection: close\r\n\r\n"
        self.write(client, head.encode())
        self.end(client)

    def end(self, client: Client) -> None:
        """When all is sent. Until then it has the time for that which every client has."""
        client.ending = True
        client.parser.close()
        if client.unsent:
            self.keep_an_eye_on(client)
        else:
            self.finish(client)

    def finish(self, client: Client) -> None:
        """Closing with bytes unread would reset the connection, and the answer might not arrive."""
        client.finishing = monotonic()
        self.watcher.shutdown(client.conn, context=client)
        if client.reading:
            self.watcher.read_stop(client.conn)
        elif not client.ended:
            self.read(client, LINGER)

    def drop(self, client: Client) -> None:
        client.gone = True
        client.parser.close()
        client.room.notify_all()
        self.clients.discard(client)
        self.watcher.free(client.conn)

    # --- leading -------------------------------------------------------------------------------------------

    def turn(self, timeout: float | None) -> None:
        """Take the results of one wait in. No view of what was read outlives this, so another thread may be next."""
        for result in self.watcher.wait_io(timeout):
            if result.operation is gaio.ACCEPT:
                self.welcome(result)
                continue
            client: Client = result.context
            with client.lock:
                if client.gone:
                    pass
                elif result.operation is gaio.READ:
                    self.on_read(client, result)
                elif result.operation is gaio.TIMER:
                    client.timed = False
                    if client.unsent and not client.reading:
                        self.silent(client)
                elif result.error is not None or (result.operation is gaio.SHUTDOWN and client.ended):
                    self.drop(client)
                else:
                    self.on_sent(client, result.size)

    def on_read(self, client: Client, result: gaio.OpResult) -> None:
        if result.more:
            if client.finishing:
                if monotonic() > client.finishing + LINGER:
                    self.drop(client)
            elif not client.ending:
                client.parser.add(result.buffer)
                if client.request is None:
                    self.advance(client)
                elif client.parser.waiting > MAX_WAITING:
                    self.watcher.read_stop(client.conn)
            return
        client.reading = False
        client.ended = isinstance(result.error, EOFError)
        if isinstance(result.error, gaio.DeadlineError):
            self.silent(client)
        elif client.finishing:
            if result.error is not None:
                self.drop(client)
            else:
                self.read(client, LINGER)
        elif result.error is not None and not client.ended:
            self.drop(client)
        elif client.request is None and not client.ending:
            self.advance(client)

    def on_sent(self, client: Client, size: int) -> None:
        client.sent += size
        if client.ending:
            if not client.unsent and not client.finishing:
                self.finish(client)
        elif client.held_up and client.unsent <= MAX_UNSENT // 2:
            client.held_up = False
            client.room.notify()
            if client.request is None:
                self.advance(client)

    def silent(self, client: Client) -> None:
        """It has sent nothing for so long."""
        if client.finishing:
            self.drop(client)
        elif client.request is not None:
            pass  # it is the application that takes its time; then advance() reads on
        elif client.unsent:
            before, client.left = client.left, self.watcher.unsent(client.conn)
            if before and client.left >= before:
                self.drop(client)
            elif client.held_up or client.ending:
                self.keep_an_eye_on(client)
            else:
                self.read(client, self.timeout)
        elif client.is_idle:
            self.end(client)
        else:
            self.refuse(client, "408 Request Timeout")

    def welcome(self, result: gaio.OpResult) -> None:
        conn = result.accepted
        try:
            if result.error is not None:
                raise result.error  # EMFILE, say: this client waits in the backlog until others have left
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            host, port = conn.getpeername()
            parser = Parser({**self.environ, "REMOTE_ADDR": host, "REMOTE_PORT": str(port)}, self.max_body)
            client = Client(conn, parser)
            self.watcher.read_start(conn, context=client, timeout=self.timeout)
        except (OSError, gaio.UnsupportedConnError) as error:
            if conn is not None:
                conn.close()  # it is gone already, or no descriptor is left to take it over
            if isinstance(error, OSError) and error.errno != errno.ENOTCONN and not self.stopping:
                print(f"a client was not served: {error}", file=sys.stderr, flush=True)
            return
        self.clients.add(client)
        if self.stopping:
            with client.lock:
                self.drop(client)

    # --- the end, by the main thread -----------------------------------------------------------------------

    def stop(self, grace: float) -> None:
        """Returns when the last client has gone, or when `grace` seconds have passed."""
        self.stopping = True
        self.watcher.free(self.listener)
        for client in list(self.clients):
            with client.lock:
                if client.is_idle and not client.unsent and not client.gone and not client.ending:
                    self.drop(client)
        end = monotonic() + grace
        while self.clients and monotonic() < end:
            sleep(0.01)


def hello(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The application that is served when none is named. It says hello; what is sent to it, it sends back."""
    if environ["REQUEST_METHOD"] in ("POST", "PUT"):
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        return FileWrapper(environ["wsgi.input"], SMALL)
    text = f"hello from gaio, you asked for {environ['PATH_INFO']}\n".encode("latin-1")
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(text)))])
    return [text]


def load(name: str) -> WSGIApplication:
    module, _, attribute = name.partition(":")
    application: WSGIApplication = getattr(importlib.import_module(module), attribute or "application")
    return application


def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m examples.wsgi_server")
    parser.add_argument("application", nargs="?", help="module:name, the name is `application` unless told otherwise")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 lets the system choose one")
    parser.add_argument("--backend", choices=("auto", "epoll", "kqueue", "io_uring"))
    parser.add_argument("--threads", type=int, default=8, help="how many may run the application at a time")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds for which a client may hold things up")
    parser.add_argument("--grace", type=float, default=10.0, help="seconds for what is being served, at the end")
    parser.add_argument("--max-body", type=int, default=1 << 30, help="bytes of a request")
    options = parser.parse_args()
    for name in ("timeout", "grace"):
        if not 0 <= getattr(options, name) < math.inf:
            parser.error(f"--{name} must be a number of seconds, 0 or more")
    if options.threads < 1 or options.max_body < 0:
        parser.error("--threads must be 1 or more, --max-body 0 or more")

    # Both Ctrl-C and `kill` raise KeyboardInterrupt, also where the shell started this with Ctrl-C ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        application = load(options.application) if options.application else hello
        with (
            socket.create_server((options.host, options.port), backlog=1024) as listener,
            gaio.Watcher(backend=options.backend) as watcher,
        ):
            print("listening on {}:{}".format(*listener.getsockname()), flush=True)
            server = Server(application, watcher, listener, options)
            try:
                while True:
                    sleep(1)
            except KeyboardInterrupt:
                server.stop(options.grace)
    except KeyboardInterrupt:
        pass  # the second one; leaving the `with` has cut everybody off
    except (ImportError, AttributeError) as error:
        sys.exit(f"cannot serve: {options.application}: {error}")
    except (OSError, OverflowError, ValueError) as error:
        sys.exit(f"cannot serve: {error}")  # the port is taken or none at all, the backend unknown or unavailable


if __name__ == "__main__":
    main()
