"""The command line, and the application that is served when none is named."""

from __future__ import annotations

import argparse
import importlib
import math
import signal
import socket
import sys
from time import sleep
from typing import TYPE_CHECKING
from wsgiref.util import FileWrapper

import gaio
from examples.wsgi_server.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def hello(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """It says hello. What is sent to it, it sends back."""
    if environ["REQUEST_METHOD"] in ("POST", "PUT"):
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        return FileWrapper(environ["wsgi.input"], 1 << 16)
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
