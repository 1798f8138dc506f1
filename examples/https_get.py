"""Fetch pages by https, all at once: their sizes, or the page itself where there is one alone.

    python3 -m examples.https_get https://www.python.org/ https://example.org/

HTTP/1.0 is asked for, with which the end of the connection ends the page. So it matters that TLS tells an end from a
connection that was cut off.
"""

import argparse
import signal
import socket
import ssl
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import gaio
from gaio.tls import TLSWatcher

if TYPE_CHECKING:
    from collections.abc import Iterator


class Page:
    """One URL, and what has come for it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname:
            raise ValueError(f"not an https URL: {url}")
        self.url, self.host, self.port = url, parts.hostname, parts.port or 443
        path = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
        self.request = f"GET {path} HTTP/1.0\r\nHost: {parts.netloc}\r\nUser-Agent: gaio\r\n\r\n".encode("ascii")
        self.answer = bytearray()
        self.error: Exception | None = None

    def summary(self) -> str:
        status = bytes(self.answer.partition(b"\r\n")[0]).decode("latin-1")
        return f"{self.url}: {self.error or status}, {len(self.body())} bytes"

    def body(self) -> bytes:
        return bytes(self.answer.partition(b"\r\n\r\n")[2])


def fetch(watcher: TLSWatcher, pages: list[Page], context: ssl.SSLContext, timeout: float) -> "Iterator[Page]":
    """Each page as soon as it is there, or has failed."""
    conns = {start(watcher, page, context, timeout): page for page in pages}
    while conns:
        for result in watcher.wait_io():
            page = conns.get(result.conn)
            if page is None:
                continue  # done, and what else was pending for it comes back
            if result.operation is gaio.READ and result.more:
                page.answer += result.buffer
            elif result.error is not None:
                # An ssl.SSLCertVerificationError, say, of each request that waited for the handshake.
                page.error = None if isinstance(result.error, EOFError) else result.error
                del conns[result.conn]
                watcher.free(result.conn)
                yield page


def start(watcher: TLSWatcher, page: Page, context: ssl.SSLContext, timeout: float) -> socket.socket:
    """Submit all that is to be done: each request waits for those before it."""
    addresses = socket.getaddrinfo(page.host, page.port, type=socket.SOCK_STREAM)
    family, _, _, _, address = min(addresses, key=lambda found: found[0])  # IPv4 first: only one is tried
    conn = socket.socket(family)
    watcher.connect(conn, address, timeout=timeout)
    watcher.start_client(conn, context, server_hostname=page.host, timeout=timeout)
    watcher.write(conn, page.request)
    watcher.read_start(conn, timeout=timeout)
    return conn


def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m examples.https_get")
    parser.add_argument("urls", nargs="+", metavar="URL")
    parser.add_argument("--cafile", help="trust the certificates in this PEM file instead of the system's")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds without a byte")
    parser.add_argument("--backend", choices=("auto", "epoll", "kqueue", "io_uring"))
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    failed = False
    try:
        context = ssl.create_default_context(cafile=options.cafile)
        pages = [Page(url) for url in options.urls]
        with TLSWatcher(backend=options.backend) as watcher:
            for page in fetch(watcher, pages, context, options.timeout):
                failed = failed or page.error is not None
                if len(pages) > 1 or page.error is not None:
                    print(page.summary(), flush=True, file=sys.stderr if page.error else sys.stdout)
                else:
                    sys.stdout.buffer.write(page.body())
    except KeyboardInterrupt:
        failed = True
    except (OSError, ValueError) as error:
        sys.exit(f"cannot fetch: {error}")  # no such name, not a URL, no such file, no such backend
    sys.exit(failed)


if __name__ == "__main__":
    main()
