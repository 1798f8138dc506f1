"""A WSGI application that says hello, in `--variant`: examples/wsgi_server or one of its peers, each in one process
with as many threads for the application."""

import argparse
import logging
import os
import time
from collections.abc import Callable, Iterable
from typing import Any, cast

from . import common

THREADS = 8
BODY = b"Hello, world!"
HEADERS = [("Content-Type", "text/plain"), ("Content-Length", str(len(BODY)))]


def hello(_environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    start_response("200 OK", HEADERS)
    return [BODY]


def gaio_example(backend: str) -> None:
    import gaio
    from examples.wsgi_server.server import Server

    options = argparse.Namespace(threads=THREADS, timeout=30.0, max_body=1 << 20)
    with gaio.Watcher(backend=cast("gaio.BackendName", backend)) as watcher:
        Server(hello, watcher, common.listen(), options)
        while True:
            time.sleep(1)


def waitress() -> None:
    from waitress.server import create_server

    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # it warns of each request that waits for a thread
    create_server(hello, sockets=[common.listen()], threads=THREADS, connection_limit=10_000).run()


def gunicorn() -> None:
    """The worker alone, as its arbiter would fork it: so all that it takes is this process's."""
    from gunicorn.app.base import BaseApplication
    from gunicorn.glogging import Logger
    from gunicorn.sock import TCPSocket
    from gunicorn.workers.gthread import ThreadWorker

    class Application(BaseApplication):  # type: ignore[misc]  # gunicorn has no annotations
        def load_config(self) -> None:
            settings = {"threads": THREADS, "worker_class": "gthread", "keepalive": 30, "loglevel": "error"}
            for name, value in settings.items():
                self.cfg.set(name, value)

        def load(self) -> Callable[..., Iterable[bytes]]:
            return hello

    application = Application()
    listener, config = common.listen(), application.cfg
    log = Logger(config)
    its = TCPSocket(listener.getsockname(), config, log, fd=listener.detach())
    ThreadWorker(0, os.getppid(), [its], application, 30, config, log).init_process()


def cheroot() -> None:
    from cheroot.wsgi import Server

    server = Server(("127.0.0.1", 0), hello, numthreads=THREADS, request_queue_size=common.BACKLOG, timeout=30)
    server.prepare()
    common.announce(server.socket)
    server.serve()


def main() -> None:
    options = common.start()
    if options.variant == "gaio":
        gaio_example(options.backend)
    else:
        {"waitress": waitress, "gunicorn": gunicorn, "cheroot": cheroot}[options.variant]()


if __name__ == "__main__":
    main()
