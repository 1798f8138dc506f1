"""KeyboardInterrupt at every single opcode of every kind of turn: nothing is lost, doubled, leaked or stuck."""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable, Collection
from functools import partial

import pytest

from gaio import loop
from tests import backends
from tests.interruption.opcodes import Opcode, Strike, at_opcodes, interrupted_at
from tests.interruption.scenarios import SCENARIOS, Scenario
from tests.interruption.world import ResumedBy, World

pytestmark = [pytest.mark.slow, pytest.mark.scenario(2)]

def every_kind_of_turn(*, but: Collection[str] = ()) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "scenario",
        [pytest.param(scenario, id=scenario.name) for scenario in SCENARIOS if scenario.name not in but],
    )


@pytest.fixture(autouse=True)
def _thread_acts_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "GRACE", 3600)


def play(
    scenario: Scenario, backend: backends.Name, *opcodes: Opcode, resumed_by: ResumedBy = "consumer"
) -> Strike:
    """Play the scenario, what it does being begun and interrupted at each of these opcodes, one after the other, until
    it comes to its end.

    Returns the last of the strikes.
    """
    strikes: list[Strike] = []
    try:
        with World(backend, scenario.swap_size) as world:
            steps = scenario.play(world)
            act = next(steps)
            for opcode in opcodes:
                strikes.append(interrupted_at(opcode, act))
                if strikes[-1].place is None:
                    break
            if resumed_by == "watcher thread" and not world.watcher.watcher.closed:
                world.hand_to_thread()
            for _ in steps:
                pass
            if not world.watcher.watcher.closed:
                world.prove_it_goes_on()
    except BaseException as error:
        raise AssertionError(f"interrupted at {[(str(s.at), s.place) for s in strikes]}") from error
    return strikes[-1]


@every_kind_of_turn()
def test_every_opcode(scenario: Scenario, backend: backends.Name) -> None:
    at_opcodes(partial(play, scenario, backend))


# detach() asks for the watch again every GRACE, which is endless here; and while it is nested, the watcher thread
# leaves the work to the loop it is nested in.
@every_kind_of_turn(
    but=(
        *("detach", "detach_or_free", "detach_or_drop"),
        *("nest_in_another_loop", "results_for_another_loop", "deadline_for_another_loop"),
    )
)
def test_every_fifth_opcode_and_the_watcher_thread_goes_on(scenario: Scenario, backend: backends.Name) -> None:
    at_opcodes(partial(play, scenario, backend, resumed_by="watcher thread"), step=5)


@every_kind_of_turn()
def test_two_opcodes(scenario: Scenario, backend: backends.Name) -> None:
    """What goes on after an interruption, and so puts things right, is interrupted itself."""
    choose = random.Random(scenario.name)
    struck_twice = 0
    for first in choose.sample(opcodes_of(partial(play, scenario, backend)), 5):
        after_the_first = partial(play, scenario, backend, first)
        there_are = opcodes_of(after_the_first)  # none, if the first was the last thing to do
        for second in choose.sample(there_are, min(8, len(there_are))):
            struck_twice += after_the_first(second).place is not None
    assert struck_twice >= 10


def opcodes_of(play: Callable[[Opcode], Strike]) -> list[Opcode]:
    """All there are, found by strikes that come too late in one call after the other."""
    found: list[Opcode] = []
    for call in itertools.count(1):
        strike = play(Opcode(call, sys.maxsize))
        if strike.calls < call:
            return found
        found += [Opcode(call, number) for number in range(1, strike.counted + 1)]
    raise AssertionError("calls without end")
