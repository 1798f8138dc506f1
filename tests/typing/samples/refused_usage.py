"""Wrong use, one mistake a line: a type checker must refuse each line that is marked, and no other."""

import socket
import ssl

import gaio
import gaio.asyncio
import gaio.tls

conn = socket.create_connection(("127.0.0.1", 7))


class WithoutClose:
    def fileno(self) -> int:
        return 0


class FilenoOfAnotherKind:
    def fileno(self) -> str:
        return "0"

    def close(self) -> None: ...


watcher = gaio.Watcher()
gaio.Watcher(65536)  # refused
gaio.Watcher(swap_size="65536")  # refused
gaio.Watcher(swap_size=None)  # refused
gaio.Watcher(backend="select")  # refused
gaio.Watcher(backends="epoll")  # refused

watcher.read()  # refused
watcher.read(None)  # refused
watcher.read(7)  # refused
watcher.read(object())  # refused
watcher.read(WithoutClose())  # refused
watcher.read(FilenoOfAnotherKind())  # refused
watcher.read(conn, "text")  # refused
watcher.read(conn, 10)  # refused
watcher.read(conn, [bytearray(10)])  # refused
watcher.read(conn, bytearray(10), "context")  # refused
watcher.read(conn, timeout="1")  # refused
watcher.read_full(conn)  # refused
watcher.read_full(conn, None)  # refused
watcher.read_start()  # refused
watcher.read_start(conn, bytearray(10))  # refused
watcher.read_start(conn, "context")  # refused
watcher.read_start(conn, timeout="1")  # refused
watcher.read_stop()  # refused
watcher.read_stop(7)  # refused
watcher.read_stop(conn, context=1)  # refused
watcher.write(conn)  # refused
watcher.write(conn, "text")  # refused
watcher.write(conn, None)  # refused
watcher.write(conn, 7)  # refused
watcher.write(conn, [b"bytes", "text"])  # refused
watcher.write(conn, {b"set"})  # refused
watcher.write(conn, b"x", 5)  # refused
watcher.unsent()  # refused
watcher.unsent(7)  # refused
watcher.finish(conn, 3)  # refused
watcher.after("soon")  # refused
watcher.after(1, 2)  # refused
watcher.after(1).stop()  # refused
watcher.unsent(conn).nonsense  # refused
watcher.accept()  # refused
watcher.accept(7)  # refused
watcher.accept(conn, 1)  # refused
watcher.accept(conn, timeout="1")  # refused
watcher.accept_start()  # refused
watcher.accept_start(conn, timeout=1)  # refused
watcher.accept_start(conn, 1)  # refused
watcher.accept_stop()  # refused
watcher.connect(conn)  # refused
watcher.connect(("127.0.0.1", 7))  # refused
watcher.connect(conn, "127.0.0.1", 7)  # refused
watcher.shutdown()  # refused
watcher.shutdown(conn, timeout=1)  # refused
watcher.shutdown(conn, 1)  # refused
watcher.detach()  # refused
watcher.detach(7)  # refused
watcher.fileno(conn)  # refused
watcher.free()  # refused
watcher.free(7)  # refused

watcher.wait_io("1")  # refused
watcher.wait_io()[0].nonsense  # refused
watcher.wait_io()[0].more.nonsense  # refused
watcher.wait_io()[0].is_swap_buffer = True  # refused
watcher.wait_io()[0].accepted = conn  # refused
watcher.set_affinity("0")  # refused
watcher.closed = True  # refused
watcher.backend = "epoll"  # refused
watcher.stats().nonsense  # refused
watcher.stats().pending = 0  # refused
gaio.READ = gaio.WRITE  # refused
gaio.Operation.READ = gaio.WRITE  # refused
gaio.nonsense  # refused
error: gaio.DeadlineError = gaio.ConnClosedError()  # refused

with watcher as entered:
    entered.nonsense  # refused
for result in watcher:
    result.size.nonsense  # refused

gaio.asyncio.EventLoop(backend="none")  # refused
gaio.asyncio.EventLoop("epoll")  # refused
gaio.asyncio.new_event_loop().watcher = watcher  # refused
gaio.asyncio.run(3)  # refused
gaio.asyncio.nonsense  # refused

gaio.tls.TLSWatcher(65536)  # refused
tls = gaio.tls.TLSWatcher()
tls.start_server(conn, "cert.pem")  # refused
tls.start_client(conn, ssl.create_default_context())  # refused
tls.start_client(conn, ssl.create_default_context(), server_hostname=b"localhost")  # refused
tls.ssl_object(conn).version()  # refused
tls.write(conn, "text")  # refused
