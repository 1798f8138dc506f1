"""The accounting of the tests itself: it must fail when a watcher loses, doubles or mixes up results."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

import gaio
from tests import leaks
from tests.accounting import AccountedWatcher, Repeating, Request
from tests.peers import Pairs


@pytest.fixture
def genuine(pairs: Pairs) -> tuple[Request, gaio.OpResult]:
    """A request and its result that are beyond reproach, not booked yet."""
    conn, peer = pairs.tcp()
    buffer = bytearray(4)
    with gaio.Watcher() as watcher:
        watcher.read_full(conn, buffer)
        peer.sendall(b"data")
        (result,) = watcher.wait_io(60)
    return Request(gaio.READ, conn, buffer, whole=True), result


def test_a_right_result_is_accepted(genuine: tuple[Request, gaio.OpResult]) -> None:
    request, result = genuine
    request.record(result)
    assert request.result is result


def test_a_second_result_is_noticed(genuine: tuple[Request, gaio.OpResult]) -> None:
    request, result = genuine
    request.record(result)
    with pytest.raises(AssertionError, match="second result"):
        request.record(result)


@pytest.mark.parametrize(
    ("attribute", "wrong"),
    [
        ("operation", gaio.WRITE),
        ("conn", object()),
        ("buffer", bytearray(b"data")),
        ("size", 3),
        ("size", 5),
        ("size", -1),
        ("error", LookupError("no such error may come")),
        ("more", True),
    ],
)
def test_a_wrong_result_is_noticed(
    genuine: tuple[Request, gaio.OpResult], attribute: str, wrong: Any
) -> None:
    request, result = genuine
    setattr(result, attribute, wrong)
    with pytest.raises(AssertionError):
        request.record(result)


@pytest.fixture
def repeating(pairs: Pairs) -> tuple[Repeating, gaio.OpResult, gaio.OpResult]:
    """One that repeats, an arrival and the last result, that are beyond reproach, not booked yet."""
    conn, peer = pairs.tcp()
    with gaio.Watcher() as watcher:
        watcher.read_start(conn)
        peer.sendall(b"data")
        results = watcher.wait_io(60)
        results[0].buffer = memoryview(bytes(results[0].buffer))  # which is good after the next wait_io(), too
        watcher.read_stop(conn)
        while len(results) < 2:
            results += watcher.wait_io(60)
    arrival, last = results
    return Repeating(gaio.READ, conn, 65536), arrival, last


def test_a_repeating_request(repeating: tuple[Repeating, gaio.OpResult, gaio.OpResult]) -> None:
    request, arrival, last = repeating
    request.record(arrival)
    request.record(last)
    assert (request.messages, request.received, request.result) == ([b"data"], 4, last)


def test_what_comes_after_the_last_result_is_noticed(
    repeating: tuple[Repeating, gaio.OpResult, gaio.OpResult],
) -> None:
    request, arrival, last = repeating
    request.record(last)
    for late in (arrival, last):
        with pytest.raises(AssertionError):
            request.record(late)


@pytest.mark.parametrize(
    ("attribute", "wrong"),
    [
        ("operation", gaio.WRITE),
        ("conn", object()),
        ("buffer", memoryview(bytearray(b"data"))),
        ("buffer", None),
        ("size", 3),
        ("error", OSError("an arrival has none")),
        ("more", False),
        ("more", 1),
    ],
)
def test_a_wrong_arrival_is_noticed(
    repeating: tuple[Repeating, gaio.OpResult, gaio.OpResult], attribute: str, wrong: Any
) -> None:
    request, arrival, _ = repeating
    setattr(arrival, attribute, wrong)
    with pytest.raises(AssertionError):
        request.record(arrival)


def cheat(tamper: Callable[[list[gaio.OpResult]], list[gaio.OpResult]]) -> Any:
    """A watcher that hands on what another one gives, not quite as it was."""

    class Cheating(gaio.Watcher):
        def wait_io(self, timeout: float | None = None) -> list[gaio.OpResult]:
            return tamper(super().wait_io(timeout))

    return AccountedWatcher(Cheating())


def test_a_lost_result_is_noticed(pairs: Pairs) -> None:
    watcher = cheat(lambda _: [])
    watcher.write(pairs.tcp()[0], b"x")
    with pytest.raises(AssertionError, match="never came back"):
        watcher.close_and_check()


def test_a_doubled_result_is_noticed(pairs: Pairs) -> None:
    watcher = cheat(lambda batch: batch * 2)
    request = watcher.write(pairs.tcp()[0], b"x")
    with pytest.raises(AssertionError, match="nobody waits for"):
        watcher.finish(request)
    watcher.watcher.close()


def test_leaks_are_noticed(pairs: Pairs) -> None:
    before = leaks.in_use()
    assert before.since(before) == []
    conn, _ = pairs.unix()
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="left running")
    thread.start()
    found = leaks.in_use().since(before)
    stop.set()
    thread.join()
    assert len([line for line in found if "still open" in line]) == 2
    assert [line for line in found if "left running" in line]
    assert len(before.since(leaks.in_use())) == 2, "a descriptor that went away is noticed too"
    conn.close()
