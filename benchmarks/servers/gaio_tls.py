"""gaio.tls: the loop of a plain server, on a TLSWatcher."""

import socket
from typing import TYPE_CHECKING, cast

import gaio
from gaio.tls import TLSWatcher

from . import common

if TYPE_CHECKING:
    from gaio import BackendName


def echo(watcher: TLSWatcher, listener: socket.socket) -> None:
    context = common.tls()
    watcher.accept_start(listener)
    while True:
        for result in watcher.wait_io():
            if result.operation is gaio.READ:
                if result.error is None:
                    watcher.write(result.conn, result.buffer)
                else:
                    watcher.free(result.conn)
            elif result.operation is gaio.ACCEPT and result.accepted is not None:
                watcher.start_server(common.without_delay(result.accepted), context)
                watcher.read_start(result.accepted)


def main() -> None:
    options = common.start()
    echo(TLSWatcher(backend=cast("BackendName", options.backend)), common.listen())


if __name__ == "__main__":
    main()
