"""gaio/deadlines.py against a list that is sorted anew each time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaio.deadlines import Deadline, Deadlines
from gaio.result import OpResult

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.floats(0, 100)),
        st.tuples(st.just("call off"), st.floats(0, 1)),
        st.tuples(st.just("expire"), st.floats(0, 100)),
    ),
    max_size=400,
)


@settings(max_examples=200, deadline=None)
@given(steps=STEPS)
def test_expires_what_a_sorted_list_would(steps: list[tuple[str, float]]) -> None:
    deadlines: Deadlines = Deadlines()
    pending: list[Deadline] = []
    for step, value in steps:
        if step == "add":
            entry = Deadline(value, OpResult())
            deadlines.add(entry)
            pending.append(entry)
        elif step == "call off" and pending:
            deadlines.call_off(pending.pop(int(value * (len(pending) - 1))))
        elif step == "expire":
            due = [entry for entry in pending if entry.when <= value]
            while (request := deadlines.expired(value)) is not None:
                first = min(pending, key=lambda entry: entry.when).when
                entry = next(entry for entry in pending if entry.request is request)
                assert entry.when == first
                due.remove(entry)
                pending.remove(entry)
                deadlines.call_off(entry)
            assert not due
        assert deadlines.earliest() == min((entry.when for entry in pending), default=None)
        assert len(deadlines) <= 2 * len(pending) + 65, "shells pile up"


@pytest.mark.parametrize("pending", [1, 64, 100])
def test_shells_are_no_more_than_a_few_or_the_rest(pending: int) -> None:
    """However often the heap has been built anew."""
    deadlines: Deadlines = Deadlines()
    for _ in range(pending):
        deadlines.add(Deadline(1.0, OpResult()))
    most = 0
    for _ in range(1000):
        entry = Deadline(2.0, OpResult())
        deadlines.add(entry)
        deadlines.call_off(entry)
        most = max(most, len(deadlines) - pending)
    assert most == max(64, pending)


def test_an_entry_called_off_lets_go_of_its_request() -> None:
    deadlines: Deadlines = Deadlines()
    entry = Deadline(1.0, OpResult())
    deadlines.add(entry)
    deadlines.call_off(entry)
    deadlines.call_off(entry)
    assert entry.request is None
    assert deadlines.earliest() is None


def test_an_entry_that_is_added_twice_expires_once() -> None:
    deadlines: Deadlines = Deadlines()
    entry = Deadline(1.0, OpResult())
    deadlines.add(entry)
    deadlines.add(entry)
    assert deadlines.expired(1.0) is entry.request is not None
    deadlines.call_off(entry)
    assert deadlines.expired(1.0) is None
