"""What gaio/asyncio.py takes from asyncio that has no public name is there, and is as that file expects it.

A version of Python that fails here has changed something that the loop must follow.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import selectors
import socket
import sys
from asyncio import base_events, constants, events, sslproto, transports, trsock
from collections.abc import Callable, Iterator
from contextvars import Context
from types import CodeType
from typing import Any

import pytest

from gaio.asyncio import EventLoop, _StreamTransport


def named(function: Callable[..., object]) -> list[str]:
    """Its parameters, without `self`."""
    return list(inspect.signature(function).parameters)[1:]


def private_names(function: Callable[..., object]) -> set[str]:
    """The private attributes that a function of asyncio asks for, be it by getattr()."""

    def in_code(code: CodeType) -> Iterator[str]:
        yield from code.co_names
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                yield from in_code(constant)
            elif isinstance(constant, str):
                yield constant

    names = in_code(inspect.unwrap(function).__code__)
    return {name for name in names if name.isidentifier() and name.startswith("_") and not name.startswith("__")}


def of_asyncio(owner: object, name: str) -> Any:
    """What the type checker does not know of."""
    assert hasattr(owner, name), f"{owner} has no {name}"
    return getattr(owner, name)


@contextlib.contextmanager
def connected(loop: asyncio.AbstractEventLoop) -> Iterator[Any]:
    """A transport of this loop, which is closed with that."""
    ours, peer = socket.socketpair()
    ours.setblocking(False)
    transport, _ = loop.run_until_complete(loop.create_connection(asyncio.Protocol, sock=ours))
    try:
        yield transport
    finally:
        transport.abort()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        ours.close()
        peer.close()


def test_what_makes_a_transport_is_asked_in_words_that_it_knows() -> None:
    theirs = of_asyncio(asyncio.SelectorEventLoop, "_make_socket_transport")
    assert named(theirs)[:3] == ["sock", "protocol", "waiter"]
    assert set(named(theirs)) <= set(named(_StreamTransport.__init__))


def test_what_makes_a_transport_with_tls_is_asked_in_words_that_it_knows() -> None:
    theirs = of_asyncio(asyncio.SelectorEventLoop, "_make_ssl_transport")
    assert named(theirs)[:4] == ["rawsock", "protocol", "sslcontext", "waiter"]
    own = set(named(EventLoop._make_ssl_transport)) - {"options"}
    assert set(named(theirs)) - own <= set(named(sslproto.SSLProtocol.__init__))


def test_the_protocol_of_tls_is_made_as_before() -> None:
    parameters = named(sslproto.SSLProtocol.__init__)
    assert parameters[:6] == ["loop", "app_protocol", "sslcontext", "waiter", "server_side", "server_hostname"]
    assert "_app_transport" in private_names(of_asyncio(asyncio.SelectorEventLoop, "_make_ssl_transport"))


def test_the_loop_knows_its_transports_by_descriptor() -> None:
    assert named(of_asyncio(asyncio.SelectorEventLoop, "_ensure_fd_no_transport")) == ["fd"]
    loop = EventLoop()
    with connected(loop) as transport:
        assert of_asyncio(loop, "_transports")[transport._sock_fd] is transport
        with pytest.raises(RuntimeError, match="used by transport"):
            of_asyncio(loop, "_ensure_fd_no_transport")(transport._sock_fd)


def test_a_selector_may_return_what_it_does_not_hold() -> None:
    loop = asyncio.SelectorEventLoop()
    called: list[str] = []
    context = Context()
    handle = events.Handle(called.append, ("called",), loop, context)
    key = selectors.SelectorKey(-1, -1, selectors.EVENT_READ, (handle, None))
    of_asyncio(loop, "_process_events")([(key, selectors.EVENT_READ)])
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert called == ["called"]


def test_a_server_counts_its_transports() -> None:
    for name in ("_attach", "_detach"):
        parameters = named(of_asyncio(base_events.Server, name))
        assert parameters == (["transport"] if sys.version_info >= (3, 13) else [])


def test_flow_control_is_to_be_had() -> None:
    mixin = of_asyncio(transports, "_FlowControlMixin")
    assert named(mixin.__init__) == ["extra", "loop"]
    assert named(mixin._maybe_pause_protocol) == named(mixin._maybe_resume_protocol) == []
    asked_for = private_names(mixin._maybe_pause_protocol) | private_names(mixin._maybe_resume_protocol)
    assert asked_for <= {"_protocol", "_protocol_paused", "_high_water", "_low_water", "_loop"}


def test_constants_and_the_socket_that_is_shown() -> None:
    assert of_asyncio(constants, "_SendfileMode").TRY_NATIVE
    assert of_asyncio(constants, "LOG_THRESHOLD_FOR_CONNLOST_WRITES") > 0
    assert named(of_asyncio(trsock, "TransportSocket").__init__) == ["sock"]


@pytest.mark.skipif(sys.version_info >= (3, 11), reason="from Python 3.11 on asyncio.Runner takes a factory of loops")
def test_a_policy_has_a_factory_of_loops() -> None:
    assert of_asyncio(asyncio.DefaultEventLoopPolicy, "_loop_factory") is asyncio.SelectorEventLoop


def test_who_takes_a_transport_finds_what_it_asks_for() -> None:
    """What private attributes of the standard library's transport the rest of asyncio asks for, that of gaio has."""
    fallback = of_asyncio(base_events, "_SendfileFallbackProtocol")
    takers = [
        *(getattr(asyncio.SelectorEventLoop, name) for name in ("start_tls", "sendfile")),
        *(of_asyncio(asyncio.SelectorEventLoop, name) for name in ("_sendfile_native", "_sendfile_fallback")),
        *(function for owner in (fallback, base_events.Server)
          for function in vars(owner).values() if inspect.isfunction(function)),
    ]
    asked_for = {name for function in takers for name in private_names(function)}
    assert {"_start_tls_compatible", "_sendfile_compatible", "_make_empty_waiter"} <= asked_for
    with connected(asyncio.SelectorEventLoop()) as theirs, connected(EventLoop()) as ours:
        missing = {name for name in asked_for if hasattr(theirs, name) and not hasattr(ours, name)}
        assert missing <= {"_buffer"}  # start_tls() asks a StreamReader for that


def test_what_is_replaced_is_what_asyncio_calls() -> None:
    """A method that gets another name some day would not be replaced, and nothing would say so."""
    with connected(EventLoop()) as transport:
        assert type(transport) is _StreamTransport
    for caller in ("_create_connection_transport", "_accept_connection2"):
        calls = private_names(of_asyncio(asyncio.SelectorEventLoop, caller))
        assert {"_make_socket_transport", "_make_ssl_transport"} <= calls
