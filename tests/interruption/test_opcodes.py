"""That no opcode is forgotten: by those who go from one to the next, and where one is skipped."""

from __future__ import annotations

import dis
import sys

import pytest

from tests import backends
from tests.interruption import opcodes
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


def test_an_opcode_that_is_not_known_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of a later CPython are, and what is to be done, before anything is struck."""
    monkeypatch.setattr(opcodes, "_ACT", opcodes._ACT - {"STORE_ATTR"})
    (message,) = opcodes.not_understood.__wrapped__()
    assert f"CPython {sys.version_info.major}.{sys.version_info.minor} has an opcode STORE_ATTR" in message
    assert "tests/interruption/opcodes.py" in message


def test_an_ending_of_a_with_that_is_not_recognized_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opcodes, "_ends_of_with", lambda _: iter(()))
    messages = opcodes.not_understood.__wrapped__()
    assert any("ends a `with` in close() of closing.py" in message for message in messages), messages


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
