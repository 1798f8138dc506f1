"""KeyboardInterrupt at every single opcode of every kind of turn: nothing is lost, doubled, leaked or stuck."""

from __future__ import annotations

import random
from collections.abc import Collection

import pytest

from gaio import loop
from tests import backends
from tests.interruption.opcodes import Strike, at_opcodes, interrupt, interrupted_at
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
    scenario: Scenario, backend: backends.Name, numbers: list[int], resumed_by: ResumedBy = "consumer"
) -> list[str | None]:
    """Play the scenario, what it does being begun and interrupted at each of these opcodes, one after the other.

    Returns where that was, None where there are fewer opcodes.
    """
    places: list[str | None] = []
    try:
        with World(backend, scenario.swap_size) as world:
            steps = scenario.play(world)
            act = next(steps)
            for number in numbers:
                places.append(interrupted_at(number, act))
            if resumed_by == "watcher thread" and not world.watcher.watcher.closed:
                world.hand_to_thread()
            for _ in steps:
                pass
            if not world.watcher.watcher.closed:
                world.prove_it_goes_on()
    except BaseException as error:
        raise AssertionError(f"interrupted at {dict(zip(numbers, places, strict=False))}") from error
    return places


@every_kind_of_turn()
def test_every_opcode(scenario: Scenario, backend: backends.Name) -> None:
    at_opcodes(lambda number: play(scenario, backend, [number])[0])


# detach() asks for the watch again every GRACE, which is endless here; and while it is nested, the watcher thread
# leaves the work to the loop it is nested in.
@every_kind_of_turn(
    but=(
        *("detach", "detach_or_free", "detach_or_drop"),
        *("nest_in_another_loop", "results_for_another_loop", "deadline_for_another_loop"),
    )
)
def test_every_fifth_opcode_and_the_watcher_thread_goes_on(scenario: Scenario, backend: backends.Name) -> None:
    at_opcodes(lambda number: play(scenario, backend, [number], resumed_by="watcher thread")[0], step=5)


@every_kind_of_turn()
def test_two_opcodes(scenario: Scenario, backend: backends.Name) -> None:
    """What goes on after an interruption, and so puts things right, is interrupted itself."""
    choose = random.Random(scenario.name)
    first_opcodes = opcodes_of(scenario, backend)
    for _ in range(40):
        play(scenario, backend, [choose.randint(1, first_opcodes), choose.randint(1, 500)])


def opcodes_of(scenario: Scenario, backend: backends.Name) -> int:
    with World(backend, scenario.swap_size) as world:
        steps = scenario.play(world)
        act = next(steps)
        strike = Strike(0, interrupt)
        with strike:
            act()
        for _ in steps:
            pass
    return strike.counted
