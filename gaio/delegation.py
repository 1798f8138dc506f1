"""Taking a descriptor over, handing it back, and reclaiming it when its object is forgotten.

The submitting call delegates, so a wrong object or a lack of descriptors is an exception where the caller stands.
    a socket        check it, register its descriptor, and then take that from the object and enter it into the table
    anything else   check it, dup(2), register the duplicate, enter it into the table, close the original
The first needs no second descriptor: there may be none left, which the last accept has taken. Only socket.socket can be
parted from its descriptor by C code, so that an interruption cannot lose it; and what another class does in its close()
is not known. One delegation at a time; a signal handler may submit for the same object in the middle of one: it goes on
with what has begun, or makes the entry itself, and the call that it interrupted finds that one.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import threading
import weakref
from functools import partial

from gaio.closing import Close, Detach
from gaio.connection import (
    Connection,
    DatagramConnection,
    RequestQueue,
    SharedConnection,
    check_connected,
    check_file,
    check_kind,
    descriptor_of,
    family_of,
    family_to_connect,
    flush_now,
    is_plain_socket,
    is_socket,
    kind_of,
    peer_of,
    reclaim_when_collected,
)
from gaio.engine import Stop
from gaio.errors import ConnClosedError, GaioError, UnsupportedConnError, WatcherClosedError
from gaio.leader import release_all
from gaio.memory import SocketAddress
from gaio.platform import DATAGRAM, FILE, LISTENER, SELECTOR, STREAM, _libc, _sockaddr, _sockets
from gaio.result import CONNECT, READ, WRITE, Operation

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn, TypeVar

    from gaio.leader import Leader
    from gaio.timers import Cancel
    from gaio.types import HasFileno

    _Argument = TypeVar("_Argument")
    _Outcome = TypeVar("_Outcome")

_detach: Callable[[Any], int] = socket.SocketType.detach

CLOSED = "the watcher is closed: make a new one to submit more requests"


class Delegation:
    """The connections of one watcher, for the threads that submit."""

    __slots__ = ("_leader", "_engine", "_tokens", "_forget")

    def __init__(self, leader: Leader) -> None:
        self._leader = leader
        self._engine = leader.engine
        self._tokens = itertools.count(2, 2)  # even, see gaio.platform.Queue
        # One for all finalizers, and no method, which would be a cycle.
        self._forget = leader.engine.forget = partial(_forget, leader)

    # --- finding one, or taking a descriptor over -------------------------------------------------------------

    def known(self, conn: HasFileno) -> Connection | None:
        engine = self._engine
        connection = engine.connections.get(id(conn)) or engine.listeners.get(id(conn))
        return connection if connection is not None and _is_of(connection, conn) else None

    def connection(self, conn: HasFileno, operation: Operation, repeats: bool = False) -> Connection:
        """That of an object, for a request of this kind; delegates it if it is not known yet."""
        connection = self.known(conn)
        if connection is None:
            return self.one_at_a_time(self._take_descriptor, (conn, operation, repeats))
        check_kind(connection.kind, operation)
        return connection

    def writes(self, connection: Connection) -> RequestQueue:
        """Its queue of writes, which is made for the first of them."""
        return connection.writes or self.one_at_a_time(Connection.open_writes, connection)

    def one_at_a_time(self, step: Callable[[_Argument], _Outcome], argument: _Argument) -> _Outcome:
        """Do a step of delegation: no other thread does one meanwhile, nor does anyone close the watcher."""
        leader = self._leader
        leader.look_around()
        thread = threading.get_ident()
        # Else the handler of a signal has interrupted another call, which may have the lock as well.
        outermost = thread not in leader.inside and thread != leader.consumer
        try:
            if outermost:
                leader.inside.add(thread)
            with leader.delegation:
                outcome = step(argument)
            if outermost:
                leader.inside.discard(thread)
        except BaseException:
            if outermost:
                release_all(leader.delegation)
                leader.inside.discard(thread)
            raise
        return outcome

    def _take_descriptor(self, request: tuple[HasFileno, Operation, bool]) -> Connection:
        """Take the caller's descriptor over, unless another thread was faster."""
        conn, operation, repeats = request
        if self._leader.closing:
            raise WatcherClosedError(CLOSED)
        connection = self.known(conn)
        if connection is None:
            try:
                connection = self._delegate(conn, operation, repeats)
            except Exception as error:
                connection = self.known(conn)
                if connection is None:
                    if getattr(error, "errno", None) == errno.EBADF:
                        descriptor_of(conn)  # raises ConnClosedError when another thread has closed it meanwhile
                    raise
                # A signal handler has submitted for it in the middle of this, and so taken it over: all is well.
        check_kind(connection.kind, operation)
        return connection

    def _delegate(self, conn: HasFileno, operation: Operation, repeats: bool) -> Connection:
        """Check the caller's object, and take its descriptor or a duplicate of it."""
        fd = descriptor_of(conn)
        kind = kind_of(fd, operation)
        check_kind(kind, operation)
        if operation is not CONNECT:
            check_connected(fd, kind, operation)
        check_file(conn, fd)
        flush_now(conn, fd)
        if (kind == LISTENER and _sockets.is_tcp(fd)) or (operation is CONNECT and kind == STREAM):
            _sockets.send_small_ones_at_once(fd)
        return (self._take_over if is_plain_socket(conn) else self._duplicate)(conn, fd, kind, repeats)

    def _take_over(self, conn: HasFileno, fd: int, kind: int, repeats: bool) -> Connection:
        """Register the descriptor while it is the object's still, and then take it: what fails has taken nothing."""
        engine = self._engine
        connection = engine.begun.get(id(conn))
        begins = connection is None or not _is_of(connection, conn)  # else this is the handler of a signal, in there
        if connection is None or begins:
            connection = _connection_for(conn, fd, kind, next(self._tokens))
            connection.peer = peer_of(fd, kind)
            engine.begun[connection.key] = connection
        key, token = connection.key, connection.token
        try:
            if conn.fileno() != fd:
                raise _closed_meanwhile(conn)  # or a signal handler has taken it over, before this was in `begun`
            self._reclaim_later(conn, connection, repeats)
            # Known before the kernel knows it: an edge may be reported before registration has returned.
            engine.descriptors[token] = connection
            self._register(conn, connection, again=not begins)
            self._forget_stale(conn)
            os.set_inheritable(fd, False)
            # By C code, in one step: take it from the object and, if it is what was checked, enter it into the table.
            enter = engine.table_of(connection).update
            taken = zip((key,), map({fd: connection}.__getitem__, map(_detach, (conn,))), strict=True)
            if self._leader.abandoned:
                raise WatcherClosedError(CLOSED)  # a signal handler has forked, and in the child it stays the object's
            enter(taken)
        except BaseException as error:
            if begins and self.known(conn) is not connection:
                if engine.descriptors.pop(token, None) is not None:
                    engine.backend.unregister(connection)  # at once: the number stays the caller's
                connection.fd = -1  # for a finalizer that an interruption has kept from being known here
                if connection.finalizer is not None:
                    connection.finalizer.detach()
            if isinstance(error, KeyError):
                raise _closed_meanwhile(conn) from None
            raise
        finally:
            if begins:
                engine.begun.pop(key, None)
        conn.close()
        return connection

    def _duplicate(self, conn: HasFileno, fd: int, kind: int, repeats: bool) -> Connection:
        """Duplicate the caller's descriptor, register the duplicate, close the original."""
        engine = self._engine
        duplicates: list[int] = []
        token = next(self._tokens)
        try:
            # By C code into a list, so that an interruption cannot lose it. os.dup() sets close-on-exec.
            duplicates.extend(map(os.dup, (fd,)))
            if descriptor_of(conn) != fd:  # the duplicate may be of a stranger by now
                raise _closed_meanwhile(conn)
            connection = _connection_for(conn, duplicates[0], kind, token)
            connection.peer = peer_of(duplicates[0], kind)
            engine.descriptors[token] = connection  # before the kernel knows it, as above
            try:
                self._register(conn, connection)
            except (OSError, GaioError):
                engine.descriptors.pop(token, None)
                raise
            duplicates.clear()  # it is the connection's now
            self._reclaim_later(conn, connection, repeats)
            self._forget_stale(conn)
            # From here on a signal handler finds it; before, it may have taken the descriptor over itself.
            known = engine.table_of(connection).setdefault(connection.key, connection)
            if known is not connection:
                self._give_up(connection)
                return known
            conn.close()
        except BaseException:
            if token in engine.descriptors:
                # Perhaps the kernel knows it already, and epoll would keep it while the original is open.
                self._give_up(engine.descriptors[token])
            else:
                _libc.close_all(duplicates)
            raise
        return connection

    def _register(self, conn: HasFileno, connection: Connection, again: bool = False) -> None:
        try:
            self._engine.backend.register(connection)
        except FileExistsError:  # of epoll_ctl(2)
            if not again:
                raise
        except PermissionError as error:  # EPERM of epoll_ctl(2)
            raise UnsupportedConnError(f"conn cannot be polled, as regular files cannot: {conn!r}") from error

    def _reclaim_later(self, conn: HasFileno, connection: Connection, repeats: bool) -> None:
        """Have it closed when its object is collected."""
        if repeats and connection.finalizer is None:
            # Such a request holds its conn until it ends, see Engine.reclaim(). Until then there need be neither a
            # finalizer nor a weak reference, which take a third as much memory as all else.
            connection.conn = conn
        elif connection.finalizer is None:
            reclaim_when_collected(conn, connection, self._forget)

    def share(self, conn: HasFileno) -> None:
        """Take on what stays open: a stream socket, of which the caller may ask for addresses and set options, or an
        epoll or a kqueue, to be told when it is readable.

        It needs no descriptor more. The watcher holds the object until free(), which closes it; a watcher that is
        closed leaves it open. So does this where it raises. After an exception such as KeyboardInterrupt the object may
        be shared already: then this does nothing the next time.
        """
        self.one_at_a_time(self._share, conn)

    def _share(self, conn: HasFileno) -> None:
        if self._leader.closing:
            raise WatcherClosedError(CLOSED)
        engine = self._engine
        known = self.known(conn)
        if known is not None and known.shared:
            return
        fd = descriptor_of(conn)
        kind = kind_of(fd, READ) if is_socket(fd) else SELECTOR
        check_kind(kind, READ)
        check_connected(fd, kind)
        connection = SharedConnection(conn, fd, kind, next(self._tokens))
        engine.descriptors[connection.token] = connection
        try:
            engine.backend.register(connection)
            self._forget_stale(conn)
            engine.connections[connection.key] = connection
        except BaseException as error:
            # Undone at once, and not by the leader: the caller may close it, and another may be given its number.
            engine.descriptors.pop(connection.token, None)
            if engine.connections.get(connection.key) is connection:
                del engine.connections[connection.key]
            if not isinstance(error, (OSError, WatcherClosedError)):  # the kernel may know it
                engine.backend.unregister(connection)
            raise

    def _forget_stale(self, conn: HasFileno) -> None:
        """Before a connection takes this place: an object that had it may have died, and an interruption may have kept
        its finalizer from saying so.
        """
        engine = self._engine
        stale = engine.connections.get(id(conn)) or engine.listeners.get(id(conn))
        if stale is not None and stale.conn is not conn and stale.conn() is None:
            self._forget(stale)

    def _give_up(self, connection: Connection) -> None:
        """A delegation failed after the backend was told of it: undone by the leader, as a free() is."""
        table = self._engine.table_of(connection)
        if table.get(connection.key) is connection:
            del table[connection.key]
        tell(self._leader, Close(connection))

    # --- connecting -------------------------------------------------------------------------------------------

    def begin_connecting(self, request: tuple[HasFileno, Any, list[int]]) -> tuple[Connection, SocketAddress]:
        """A step of delegation: the connection of an object that is to connect, and where to. Its token is added to the
        list that the caller gave: what fails later must take it out of `connecting` again.
        """
        conn, address, begun = request
        connecting = self._engine.connecting
        connection = self.known(conn)
        if connection is not None and connection.token in connecting:
            raise UnsupportedConnError("conn is connecting already: wait for the result")
        fd = connection.fd if connection is not None else descriptor_of(conn)
        kind = connection.kind if connection is not None else kind_of(fd, CONNECT)
        check_kind(kind, CONNECT)
        memory = SocketAddress(_sockaddr.pack(family_to_connect(fd, kind), address))
        if connection is None:  # and nothing was delegated for a request that is refused
            connection = self._take_descriptor((conn, CONNECT, False))
            if connection.token in connecting:  # by a signal handler
                raise UnsupportedConnError("conn is connecting already: wait for the result")
        connection.peer = memory.data
        begun.append(connection.token)
        connecting.add(connection.token)
        return connection, memory

    # --- datagrams --------------------------------------------------------------------------------------------

    def destination(self, conn: HasFileno, address: Any) -> tuple[Connection, bytes, bool]:
        """The connection of a datagram socket; an address to write to, as a struct sockaddr; and whether that is one of
        which nothing tells when it has room: see Addressed.
        """
        connection = self.known(conn)
        if isinstance(connection, DatagramConnection):
            family = connection.family
        else:
            fd = descriptor_of(conn) if connection is None else connection.fd
            kind = kind_of(fd, WRITE) if connection is None else connection.kind
            check_kind(kind, WRITE)
            if kind != DATAGRAM:
                raise UnsupportedConnError("conn is no datagram socket: write() to it without an address")
            family = family_of(fd)
        name = _sockaddr.pack(family, address, "write")
        if connection is None:  # and nothing was delegated for a request that is refused
            connection = self.connection(conn, WRITE)
        return connection, name, family == _sockaddr.AF_UNIX

    # --- handing back and closing -----------------------------------------------------------------------------

    def hand_back(self, conn: HasFileno) -> Detach:
        """Have the leader part with a connection that has nothing pending."""
        leader = self._leader
        leader.look_around()
        connection = self.known(conn)
        if connection is None:
            if leader.closed:
                raise WatcherClosedError("the watcher is closed, and its connections with it")
            _refuse_unknown(conn)
        if connection.kind == FILE:
            raise UnsupportedConnError("conn is no socket: only sockets can be handed back")
        if connection.shared:
            raise UnsupportedConnError("conn has kept its descriptor: there is nothing to hand back")
        if leader.is_inside():
            raise RuntimeError("detach() was called from within another call, by a signal handler or a finalizer")
        item = Detach(connection)
        tell(leader, item)
        leader.call(partial(leader.run_until_done, item))
        if item.error is not None:
            try:
                raise item.error
            finally:
                item.error = None  # a cycle, as in Leader.begin(): a dropped conn would wait for the collector
        if not item.done:
            raise WatcherClosedError("the watcher was closed meanwhile")
        self.leave_to_collector(conn, connection)
        return item

    def free(self, conn: HasFileno) -> None:
        """See Watcher.free()."""
        self._leader.look_around()
        connection = self.known(conn) or self._finishing(conn)
        if connection is None:
            connection = self.one_at_a_time(self._close_undelegated, conn)
            if connection is None:
                return
        tell(self._leader, Close(connection))
        if connection.shared:
            return  # it stays known until it is closed: whoever names it must not take it for what is not delegated
        # Not before: interrupted up to here, free() can be called again.
        self._engine.table_of(connection).pop(connection.key, None)
        self.leave_to_collector(conn, connection)

    def is_finishing(self, conn: HasFileno, connection: Connection) -> None:
        """finish() has been submitted: from now on only free() and unsent() find it."""
        engine = self._engine
        engine.finishing[connection.key] = connection
        engine.connections.pop(connection.key, None)
        if connection.fd < 0:
            engine.finishing.pop(connection.key, None)  # another thread has seen to its end meanwhile
        self.leave_to_collector(conn, connection)

    def _finishing(self, conn: HasFileno) -> Connection | None:
        connection = self._engine.finishing.get(id(conn))
        if connection is None or (connection.conn is not conn and connection.conn() is not conn):
            return None
        return connection

    def stop(self, conn: HasFileno) -> None:
        """See Watcher.read_stop() and accept_stop()."""
        self._leader.look_around()
        connection = self.known_or_freed(conn)
        if connection is not None:
            tell(self._leader, Stop(connection))

    def known_or_freed(self, conn: HasFileno) -> Connection | None:
        """None when it has been freed or closed; `UnsupportedConnError` when it was never delegated here."""
        connection = self.known(conn) or self._finishing(conn)
        if connection is None:
            try:
                _refuse_unknown(conn)
            except ConnClosedError:
                return None
        return connection

    def _close_undelegated(self, conn: HasFileno) -> Connection | None:
        """Close what is the caller's still. While another thread delegates it, its number must stay its own."""
        connection = self.known(conn)
        if connection is not None:
            return connection  # that thread was faster
        if getattr(conn, "fileno", None) is None or getattr(conn, "close", None) is None:
            descriptor_of(conn)  # raises, saying what a connection is
        conn.close()
        return None

    # --- reclaiming what is forgotten -------------------------------------------------------------------------

    def reclaim(self, conn: HasFileno) -> None:
        """A request that repeats was not submitted: have its connection, if there is one, closed with its object."""
        connection = self.known(conn)
        if connection is not None:
            self._engine.reclaim(conn, connection)

    def leave_to_collector(self, conn: HasFileno, connection: Connection) -> None:
        """Nothing is left to reclaim, and without a finalizer no Python code runs when conn is collected: a Ctrl-C that
        strikes there would be swallowed, as the interpreter does with whatever a finalizer raises.
        """
        if connection.finalizer is not None:
            connection.finalizer.detach()
            connection.conn = weakref.ref(conn)  # the one before would call the finalizer even so


def _forget(leader: Leader, connection: Connection) -> None:
    """The finalizer of callers' objects that are collected: any thread, between any two bytecodes."""
    leader.engine.table_of(connection).pop(connection.key, None)
    if not leader.closed:
        tell(leader, Close(connection, forgotten=True))


def _refuse_unknown(conn: HasFileno) -> NoReturn:
    """An object has no connection here: raises what there is to say of one that is closed, or was never submitted."""
    descriptor_of(conn)
    raise UnsupportedConnError(f"conn was never submitted to this watcher: {conn!r}")


def _is_of(connection: Connection, conn: HasFileno) -> bool:
    return connection.conn is conn or connection.conn() is conn


def _closed_meanwhile(conn: HasFileno) -> ConnClosedError:
    return ConnClosedError(f"conn was closed, or closed and opened again, while it was submitted: {conn!r}")


def tell(leader: Leader, item: Close | Cancel) -> None:
    """Put an item into the inbox that is no request."""
    leader.inbox.append(item)
    if leader.needs_wakeup:
        leader.wake()


def _connection_for(conn: HasFileno, fd: int, kind: int, token: int) -> Connection:
    family = family_of(fd) if kind == DATAGRAM else 0
    try:
        return DatagramConnection(conn, fd, token, family) if family else Connection(conn, fd, kind, token)
    except TypeError as error:  # of weakref.ref()
        raise UnsupportedConnError(
            "conn must be weak-referenceable, so that it can be reclaimed when you drop it: name '__weakref__' among "
            f"the __slots__ of its class: {conn!r}"
        ) from error
