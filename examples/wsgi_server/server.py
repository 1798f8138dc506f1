"""What becomes of each client: it is read from, its requests are answered, and it is let go of."""

from __future__ import annotations

import argparse
import errno
import socket
import sys
import threading
import traceback
from functools import partial
from time import monotonic, sleep
from typing import TYPE_CHECKING
from wsgiref.util import FileWrapper

import gaio
from examples.wsgi_server.http1 import Answer, More, Parser, Refused, Request, refusal
from examples.wsgi_server.leader_followers import Threads

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

MAX_UNSENT = 1 << 18  # bytes of answers that may wait for one client
MAX_WAITING = 1 << 18  # bytes that may wait for the end of the request before them
LINGER = 2.0  # seconds that a client has for ending the connection after us


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
        self.timed = False  # a timer is under way, for want of a read with a deadline
        self.left = 0  # bytes that waited when it was silent before

    @property
    def unsent(self) -> int:
        return self.written - self.sent

    @property
    def is_idle(self) -> bool:
        return self.request is None and self.missing is More.HEAD and not self.parser.waiting


class Server:
    """The threads, and what they share."""

    def __init__(
        self, application: WSGIApplication, watcher: gaio.Watcher, listener: socket.socket, options: argparse.Namespace
    ) -> None:
        self.application, self.watcher, self.listener = application, watcher, listener
        self.timeout: float = options.timeout
        self.max_body: int = options.max_body
        host, port = listener.getsockname()[:2]
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

        self.threads = Threads[Client](options.threads, self.turn, self.answer)
        watcher.accept_start(listener)

    # --- answering, in any thread --------------------------------------------------------------------------

    def answer(self, client: Client) -> None:
        request = client.request
        assert request is not None
        if client.gone:
            request.body.close()
            return
        answer = Answer(request, request.keep and not self.stopping, partial(self.send, client))
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
            elif answer.has_begun:
                self.drop(client)  # the client must not take what it has for the whole
            else:
                self.refuse(client, "500 Internal Server Error")

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
                if not client.room.wait(self.timeout):
                    before, left = left, self.watcher.unsent(client.conn)
                    if before and left >= before:
                        self.drop(client)
            if client.gone:
                raise gaio.ConnClosedError("the client has gone, or takes nothing")

    # --- what becomes of a client; with its lock held ------------------------------------------------------

    def advance(self, client: Client) -> None:
        """Go on with what has arrived: to the next request, or to where more is needed."""
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
        """As the deadline of a read does, where there is one."""
        if not client.reading and not client.timed:
            client.timed = True
            self.watcher.after(self.timeout, context=client)

    def refuse(self, client: Client, status: str) -> None:
        self.write(client, refusal(status))
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
        elif client.ending:
            self.keep_an_eye_on(client)
        elif client.request is None:
            self.advance(client)

    def on_sent(self, client: Client, size: int) -> None:
        client.sent += size
        if client.ending:
            if not client.unsent and not client.finishing:
                self.finish(client)
        elif client.unsent <= MAX_UNSENT // 2:
            client.room.notify()

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
            elif client.ending:
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
            host, port = conn.getpeername()[:2]
            parser = Parser({**self.environ, "REMOTE_ADDR": host, "REMOTE_PORT": str(port)}, self.max_body)
            client = Client(conn, parser)
            self.watcher.read_start(conn, context=client, timeout=self.timeout)
        except (OSError, gaio.UnsupportedConnError) as error:
            if conn is not None:
                conn.close()  # it is gone already, or the kernel has no room to watch it
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
                if client.gone or client.ending or not client.is_idle:
                    continue  # it has gone, or will when it has its answer
                if client.unsent:
                    self.end(client)
                else:
                    self.drop(client)
        end = monotonic() + grace
        while self.clients and monotonic() < end:
            sleep(0.01)
