"""The accounting of the tests itself: it must fail when a watcher loses, doubles or mixes up results."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

import gaio
from tests import leaks
from tests.accounting import AccountedWatcher, Request
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
    ],
)
def test_a_wrong_result_is_noticed(
    genuine: tuple[Request, gaio.OpResult], attribute: str, wrong: Any
) -> None:
    request, result = genuine
    setattr(result, attribute, wrong)
    with pytest.raises(AssertionError):
        request.record(result)


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
