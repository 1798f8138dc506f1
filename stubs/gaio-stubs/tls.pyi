"""TLS for connections of a watcher. stubtest holds the code to it."""

import ssl
from typing import Any

from gaio import HasFileno, Watcher

__all__ = ("TLSWatcher",)

class TLSWatcher(Watcher):
    """A Watcher some of whose connections speak TLS: those for which start_server() or start_client() was called.

    Their requests and results are those of plain connections, so one loop serves both: reads bring plain bytes, writes
    take them, and shutdown() says close_notify before it ends the outgoing direction. What goes wrong in TLS is an
    ssl.SSLError in the result; when the handshake fails, in that of each request. The end of the stream is an EOFError
    if the peer has said so (close_notify), and an ssl.SSLEOFError if it was cut off.
    """

    # TLS is done in wait_io(), by the consumer: what other threads submit is encrypted there.
    def start_server(self, conn: HasFileno, context: ssl.SSLContext, *, timeout: float | None = 60.0) -> None:
        """Begin the handshake as a server, before anything is pending for conn. It has no result of its own.

        Requests may be submitted at once, and wait for it. `timeout`, in seconds, is for the whole handshake. Any
        thread. A context that cannot be used so raises TypeError, ValueError or ssl.SSLError here.
        """

    def start_client(
        self, conn: HasFileno, context: ssl.SSLContext, *, server_hostname: str | None, timeout: float | None = 60.0
    ) -> None:
        """The same as a client; connect() may be under way.

        The certificate of the server must be for `server_hostname`, unless context.check_hostname is off.
        """

    def handshake(self, conn: HasFileno, *, context: Any = None, timeout: float | None = None) -> None:
        """Ask for a CONNECT result when the handshake is done, or has failed. Nobody has to ask."""

    def ssl_object(self, conn: HasFileno) -> ssl.SSLObject | None:
        """To ask for getpeercert(), selected_alpn_protocol() and the like; never read from it or write to it.

        None for a connection without TLS. Any thread.
        """
