"""gevent: a StreamServer, one greenlet a connection.

As examples/echoserver.py of gevent does it, with bytes taken as they come instead of lines.
"""

import socket

from gevent.server import StreamServer

from . import common


def main() -> None:
    protocol = common.start().protocol

    def converse(connection: socket.socket, _address: object) -> None:
        common.without_delay(connection)
        answer = common.answer_for(protocol)
        try:
            while data := connection.recv(common.READ_SIZE):
                if reply := answer(data):
                    connection.sendall(reply)
        except ConnectionError:
            pass  # the peer went away without saying goodbye: nothing is owed to it

    listener = common.listen()
    listener.setblocking(False)
    StreamServer(listener, converse).serve_forever()


if __name__ == "__main__":
    main()
