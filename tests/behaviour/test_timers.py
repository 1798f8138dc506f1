"""post() and after(): results without I/O."""

from __future__ import annotations

import os
import signal
import threading
import tracemalloc
from types import FrameType

import pytest

import gaio
from tests.accounting import AccountedWatcher, MakeWatcher
from tests.peers import Pairs
from tests.waiting import TimeLimit


def test_what_is_posted_comes_at_once(watcher: AccountedWatcher) -> None:
    request = watcher.post()
    assert watcher.wait(0) == [request]
    assert request.error is None


def test_a_post_has_no_connection_and_hands_the_context_back(watcher: AccountedWatcher) -> None:
    context = object()
    watcher.watcher.post(context)
    (result,) = watcher.watcher.wait_io(0)
    assert result.context is context
    assert (result.operation, result.conn, result.buffer, result.size) == (gaio.POST, None, None, 0)
    assert (result.error, result.more, result.accepted, result.is_swap_buffer) == (None, False, None, False)
    assert "POST" in repr(result)


def test_a_post_of_another_thread_ends_a_wait_without_end(watcher: AccountedWatcher) -> None:
    thread = threading.Timer(0.02, watcher.post)
    thread.start()
    (request,) = watcher.wait(None)
    assert request.operation is gaio.POST
    thread.join()


def test_a_signal_handler_that_posts_ends_a_wait_without_end(watcher: AccountedWatcher) -> None:
    def post(_: int, __: FrameType | None) -> None:
        watcher.post()

    before = signal.signal(signal.SIGALRM, post)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        (request,) = watcher.wait(None)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert request.operation is gaio.POST


def test_posts_come_in_their_order_among_the_writes_of_a_thread(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, _ = pairs.tcp()
    first, write, second = watcher.post(), watcher.write(conn, b"x"), watcher.post()
    finished = watcher.finish(first, write, second)
    assert [request for request in finished if request is not write] == [first, second]


@pytest.mark.slow
def test_of_a_million_posts_by_four_threads_none_is_lost_and_each_thread_keeps_its_order(
    watcher: AccountedWatcher,
) -> None:
    count = 250_000
    plain = watcher.watcher

    def post_all(thread: int) -> None:
        for number in range(count):
            plain.post((thread, number))

    threads = [threading.Thread(target=post_all, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    following = [0] * 4
    limit = TimeLimit(120)
    while sum(following) < 4 * count:
        for result in plain.wait_io(limit.left("a million posts")):
            thread_number, number = result.context
            assert number == following[thread_number]
            following[thread_number] += 1
    for thread in threads:
        thread.join()
    assert plain.wait_io(0) == []


def test_a_timer_comes_when_its_time_has_come(watcher: AccountedWatcher) -> None:
    late, _ = watcher.after(0.03)
    early, timer = watcher.after(0.01)
    assert watcher.finish(late, early) == [early, late]
    assert early.error is None
    assert not timer.cancel()


def test_a_timer_of_no_seconds_comes_with_the_next_batch(watcher: AccountedWatcher) -> None:
    request, _ = watcher.after(0)
    assert watcher.wait(0) == [request]


def test_a_cancelled_timer_never_comes(watcher: AccountedWatcher) -> None:
    request, timer = watcher.after(0)
    assert timer.cancel()
    assert timer.cancel()
    watcher.cancelled(request)
    assert watcher.wait(0.02) == []
    assert watcher.watcher.stats().pending == 0


def test_a_timer_whose_handle_is_dropped_comes_all_the_same(watcher: AccountedWatcher) -> None:
    request = watcher.after(0.01)[0]
    assert watcher.wait(None) == [request]


def test_timers_count_as_pending(watcher: AccountedWatcher) -> None:
    request, timer = watcher.after(1000)
    assert watcher.watcher.stats().pending == 1
    watcher.wait(0)
    assert watcher.watcher.stats().pending == 1
    timer.cancel()
    watcher.cancelled(request)
    watcher.wait(0)
    assert watcher.watcher.stats().pending == 0


def test_close_ends_timers_and_delivers_what_was_posted(watcher: AccountedWatcher) -> None:
    timer, handle = watcher.after(1000)
    posted = watcher.post()
    watcher.close_and_check()
    assert posted.error is None
    assert isinstance(timer.error, gaio.WatcherClosedError)
    assert not handle.cancel()
    with pytest.raises(gaio.WatcherClosedError):
        watcher.post()
    with pytest.raises(gaio.WatcherClosedError):
        watcher.after(1)


@pytest.mark.parametrize(
    ("seconds", "error"),
    [(-1, ValueError), (float("inf"), ValueError), (float("nan"), ValueError), ("1", TypeError), (None, TypeError)],
)
def test_what_is_no_number_of_seconds_is_refused(
    watcher: AccountedWatcher, seconds: object, error: type[Exception]
) -> None:
    with pytest.raises(error, match="seconds"):
        watcher.after(seconds)  # type: ignore[arg-type]  # that is the test
    assert watcher.wait(0) == []


def test_a_hundred_thousand_cancelled_timers_take_no_memory(watcher: AccountedWatcher) -> None:
    plain = watcher.watcher
    plain.wait_io(0)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(100_000):
            assert plain.after(1000 + number % 7).cancel()
            if number % 1000 == 0:
                plain.wait_io(0)
        plain.wait_io(0)
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    # Kept, they would take 50 MB. Without an interpreter lock some are freed late.
    assert after - before < 2_000_000


def test_a_race_of_cancelling_and_coming_due_has_one_winner(watcher: AccountedWatcher) -> None:
    plain = watcher.watcher
    timers = [plain.after(0.001, context=number) for number in range(2000)]
    cancelled: set[int] = set()

    def cancel_all() -> None:
        for number, timer in enumerate(timers):
            if timer.cancel():
                cancelled.add(number)

    thread = threading.Thread(target=cancel_all)
    thread.start()
    came: list[int] = []
    limit = TimeLimit()
    while thread.is_alive() or len(came) + len(cancelled) < len(timers):
        came += [result.context for result in plain.wait_io(min(0.01, limit.left("every timer")))]
    thread.join()
    assert sorted([*came, *cancelled]) == list(range(len(timers)))


def test_timers_and_posts_make_a_nested_watcher_readable(make_watcher: MakeWatcher) -> None:
    import select

    watcher = make_watcher()
    fd = watcher.watcher.fileno()
    request, _ = watcher.after(0.01)
    posted = watcher.post()
    limit = TimeLimit()
    while request.result is None or posted.result is None:
        assert select.select([fd], [], [], limit.left("the descriptor to be readable"))[0]
        watcher.wait(0)


def test_a_child_has_neither_timers_nor_posts(watcher: AccountedWatcher) -> None:
    timer = watcher.after(0.01)[0]
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            watcher.watcher.post()
        except gaio.WatcherClosedError:
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert watcher.wait(None) == [timer]
