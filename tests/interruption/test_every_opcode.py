"""KeyboardInterrupt at every single opcode of every kind of turn: nothing is lost, doubled, leaked or stuck."""

from __future__ import annotations

import random
from collections.abc import Collection

import pytest

from tests import backends
from tests.interruption.opcodes import Census, at_opcodes, interruption
from tests.interruption.scenarios import SCENARIOS, Scenario, play

pytestmark = [pytest.mark.slow, pytest.mark.scenario(2), pytest.mark.usefixtures("thread_acts_when_told")]


def every_kind_of_turn(*, but: Collection[str] = ()) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "scenario",
        [pytest.param(scenario, id=scenario.name) for scenario in SCENARIOS if scenario.name not in but],
    )


@every_kind_of_turn()
def test_every_opcode(scenario: Scenario, backend: backends.Name) -> None:
    at_opcodes(lambda at: play(scenario, backend, interruption(at)), more_than=20)


# detach() asks for the lead again every GRACE, which is endless here; and while it is nested, the watcher thread
# leaves the work to the loop it is nested in.
@every_kind_of_turn(
    but=(
        *("detach", "detach_or_free", "detach_or_drop"),
        *("nest_in_another_loop", "results_for_another_loop", "deadline_for_another_loop"),
    )
)
def test_every_fifth_opcode_and_the_watcher_thread_goes_on(scenario: Scenario, backend: backends.Name) -> None:
    at_opcodes(
        lambda at: play(scenario, backend, interruption(at), resumed_by="watcher thread"), step=5, more_than=20
    )


@every_kind_of_turn()
def test_two_opcodes(scenario: Scenario, backend: backends.Name) -> None:
    """What goes on after an interruption, and so puts things right, is interrupted itself."""
    choose = random.Random(scenario.name)
    struck_twice = 0
    play(scenario, backend, there_are := Census())
    for tried, first in enumerate(choose.sample(there_are.found, len(there_are.found)), 1):
        play(scenario, backend, interruption(first), after_it := Census())
        # None, if the first was the last thing to do.
        for second in choose.sample(after_it.found, min(8, len(after_it.found))):
            struck_twice += play(scenario, backend, interruption(first), interruption(second)).place is not None
        # Where deadlines pass meanwhile, which is soon in a census, there may be less to strike.
        if tried >= 5 and struck_twice >= 10:
            break
    assert struck_twice >= 10
