"""Typed use of every public name: what a type checker must accept, and the types it must see."""

import array
import asyncio
import io
import mmap
import socket
import ssl
from collections.abc import Iterator
from typing import Any

from typing_extensions import assert_type

import gaio
import gaio.asyncio
import gaio.tls

conn = socket.create_connection(("127.0.0.1", 7))
pipe = io.FileIO(0)


class Wrapped:
    def fileno(self) -> int:
        return conn.fileno()

    def close(self) -> bool:
        return True


as_conn: gaio.HasFileno = Wrapped()
by_its_short_name: gaio.Conn = as_conn
writable: gaio.Writable = [b"one", bytearray(b"two")]
name: gaio.BackendName = "epoll"

watcher = gaio.Watcher()
assert_type(watcher, gaio.Watcher)
gaio.Watcher(swap_size=4096, backend="auto")
gaio.Watcher(backend=name)
gaio.Watcher(backend=None)

watcher.read(conn)
watcher.read(conn, None)
watcher.read(conn, bytearray(10))
watcher.read(pipe, memoryview(bytearray(10)), context=object(), timeout=1)
watcher.read(as_conn, array.array("B", b"x"), timeout=0.5)
watcher.read(Wrapped(), mmap.mmap(-1, 10), timeout=None)
watcher.read(conn, buf=bytearray(1))
assert_type(watcher.read_full(conn, bytearray(10), context=1, timeout=2), None)
assert_type(watcher.read_start(conn), None)
watcher.read_start(pipe, context=object(), timeout=1)
watcher.read_start(as_conn, timeout=None)
assert_type(watcher.read_stop(conn), None)
watcher.write(conn, b"x")
watcher.write(conn, bytearray(b"x"), context="y", timeout=3.0)
watcher.write(conn, memoryview(b"x"))
watcher.write(conn, b"x", address=("127.0.0.1", 53))
watcher.write(conn, [b"x", b"y"], address="/path", timeout=1)
watcher.write(conn, [b"x", bytearray(b"y"), memoryview(b"z")])
watcher.write(conn, (b"x", b"y"), timeout=1)
assert_type(watcher.unsent(conn), int)
watcher.post()
watcher.post(any_context := object())
watcher.finish(conn)
watcher.finish(conn, context=any_context, timeout=3)
timer = watcher.after(0.5, context=any_context)
assert_type(timer, gaio.Timer)
assert_type(timer.cancel(), bool)
assert_type(watcher.accept(conn), None)
watcher.accept(as_conn, context="z", timeout=1)
assert_type(watcher.accept_start(conn), None)
watcher.accept_start(as_conn, context="z")
assert_type(watcher.accept_stop(conn), None)
assert_type(watcher.connect(conn, ("127.0.0.1", 7)), None)
watcher.connect(conn, "path", context=1, timeout=None)
assert_type(watcher.shutdown(conn, context=2), None)
assert_type(watcher.detach(conn), Any)
assert_type(watcher.fileno(), int)
assert_type(watcher.free(conn), None)

assert_type(watcher.wait_io(), list[gaio.OpResult])
assert_type(watcher.wait_io(0), list[gaio.OpResult])
assert_type(watcher.wait_io(timeout=None), list[gaio.OpResult])
assert_type(iter(watcher), Iterator[gaio.OpResult])

for result in watcher:
    assert_type(result, gaio.OpResult)
    assert_type(result.operation, gaio.Operation)
    assert_type(result.conn, Any)
    assert_type(result.context, Any)
    assert_type(result.buffer, Any)
    assert_type(result.size, int)
    assert_type(result.error, Exception | None)
    assert_type(result.more, bool)
    assert_type(result.is_swap_buffer, bool)
    assert_type(result.accepted, Any)
    if result.operation is gaio.READ:
        result.conn.anything_the_caller_knows()
    elif result.operation is gaio.Operation.WRITE:
        pass

with gaio.Watcher() as entered:
    assert_type(entered, gaio.Watcher)


class Named(gaio.Watcher):
    name = "mine"


with Named() as named:
    assert_type(named, Named)

assert_type(watcher.closed, bool)
assert_type(watcher.backend, str)
assert_type(watcher.set_affinity(0), None)
assert_type(watcher.close(), None)

stats = watcher.stats()
assert_type(stats, gaio.Stats)
assert_type(stats.conns + stats.pending + stats.completions + stats.batches, int)
assert_type(stats.wakeups + stats.gc_found + stats.gc_closed, int)
assert_type(stats[0], int)
for info in watcher.connections():
    assert_type(info, gaio.ConnectionInfo)
    assert_type(info.number + info.reads + info.writes + info.unsent, int)

for backend in gaio.backends():
    assert_type(backend, gaio.Backend)
    assert_type(backend.name, str)
    assert_type(backend.available, bool)
    assert_type(backend.reason, str)

assert_type(gaio.__version__, str)
number: int = gaio.WRITE
operations: list[gaio.Operation] = [gaio.READ, gaio.WRITE, gaio.ACCEPT, gaio.CONNECT, gaio.SHUTDOWN]
operations += [gaio.FINISH, gaio.TIMER, gaio.POST]
members = [gaio.Operation.ACCEPT, gaio.Operation.CONNECT, gaio.Operation.SHUTDOWN]

# Each error is also the builtin that a caller would expect.
a_gaio_error: list[gaio.GaioError] = []
a_gaio_error += [
    gaio.UnsupportedConnError(),
    gaio.EmptyBufferError(),
    gaio.InvalidCPUError(),
    gaio.DeadlineError(),
]
a_gaio_error += [gaio.WatcherClosedError(), gaio.ConnClosedError(), gaio.BackendUnavailableError()]
a_type_error: TypeError = gaio.UnsupportedConnError()
value_errors: list[ValueError] = [gaio.EmptyBufferError(), gaio.InvalidCPUError()]
a_runtime_error: RuntimeError = gaio.WatcherClosedError()
os_errors: list[OSError] = [gaio.ConnClosedError(), gaio.DeadlineError(), gaio.BackendUnavailableError()]
a_timeout_error: TimeoutError = gaio.DeadlineError()
a_connection_error: ConnectionError = gaio.ConnClosedError()


async def main() -> int:
    return 3


event_loop = gaio.asyncio.new_event_loop()
assert_type(event_loop, gaio.asyncio.EventLoop)
assert_type(event_loop.watcher, gaio.Watcher | None)
as_asyncio_has_it: asyncio.AbstractEventLoop = gaio.asyncio.EventLoop(backend=name)
assert_type(gaio.asyncio.run(main()), int)
assert_type(gaio.asyncio.run(main(), debug=True), int)

with gaio.tls.TLSWatcher(swap_size=4096, backend="epoll") as tls:
    assert_type(tls, gaio.tls.TLSWatcher)
    as_a_watcher: gaio.Watcher = tls
    tls.start_server(conn, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), timeout=5)
    tls.start_client(conn, ssl.create_default_context(), server_hostname="localhost", timeout=None)
    tls.handshake(conn, context=1, timeout=0.5)
    tls.write(conn, [b"bytes", bytearray(1)])
    assert_type(tls.wait_io(), list[gaio.OpResult])
    assert_type(tls.ssl_object(conn), ssl.SSLObject | None)
