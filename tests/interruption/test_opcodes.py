"""That no opcode is forgotten: by those who go from one to the next, and where one is skipped."""

from __future__ import annotations

import dis

import pytest

from tests import backends
from tests.interruption.opcodes import Census, Opcode, Strike, at_opcodes, code_of_gaio, interruption
from tests.interruption.scenarios import play, read_into_the_swap_arena


@pytest.mark.usefixtures("thread_acts_when_told")
def test_all_that_are_there_are_struck(backend: backends.Name) -> None:
    struck: list[Opcode] = []

    def play_and_note(at: Opcode) -> Strike:
        strike = play(read_into_the_swap_arena, backend, interruption(at))
        if strike.place is not None:
            struck.append(at)
        return strike

    at_opcodes(play_and_note)
    play(read_into_the_swap_arena, backend, there_are := Census())
    assert sorted(struck) == sorted(there_are.found)


def test_no_code_rebinds_what_other_code_loads() -> None:
    """Else another thread, or a handler, could do so between the loading and the use."""
    rebound = [
        (code.co_name, opcode.argval)
        for code in code_of_gaio()
        for opcode in dis.get_instructions(code)
        if opcode.opname in ("STORE_GLOBAL", "DELETE_GLOBAL")
        or (opcode.opname in ("STORE_DEREF", "DELETE_DEREF") and opcode.argval in code.co_freevars)
    ]
    assert not rebound
