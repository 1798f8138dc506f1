"""The stretches in which gaio, or the interpreter itself, relies on no signal handler being run: that none is, on this
interpreter.

CPython runs signal handlers, and so raises KeyboardInterrupt, where an opcode checks the `eval breaker`: RESUME at the
start of a function, jumps backward, and calls, when they have returned. No other opcode does. (Python/ceval.c,
Python/bytecodes.c; CHECK_EVAL_BREAKER. In 3.10 jumps forward do as well.)
"""

from __future__ import annotations

import sys
from types import CodeType

import pytest

from gaio.leader import Leader
from tests.interruption.opcodes import (
    HANDING_OVER,
    ON_THE_STACK_ONLY,
    bookkeeping_of_exceptions,
    code_of_gaio,
    ending_of_generator,
    uninterruptible_stretches,
)

# Opcodes that move values within a frame, and one that stores an attribute of an object.
HARMLESS = {*ON_THE_STACK_ONLY, "POP_BLOCK", "STORE_ATTR"}


@pytest.mark.parametrize("code", HANDING_OVER, ids=lambda code: code.co_name)
def test_from_handing_over_to_the_return(code: CodeType) -> None:
    *_, stretch = uninterruptible_stretches(code)
    *moves, last = stretch
    assert moves
    assert {entry.opname for entry in moves} <= HARMLESS
    assert last.opname == "RETURN_VALUE"


def test_storing_an_attribute_of_the_loop_runs_no_code() -> None:
    assert Leader.__setattr__ is object.__setattr__
    assert not hasattr(Leader, "consumer")
    assert not hasattr(Leader, "delivery")


def test_from_the_body_of_a_with_to_the_release_of_its_lock() -> None:
    """The call of __exit__() checks when it has returned: the lock is released by then."""
    ends = 0
    for code in code_of_gaio():
        if code in HANDING_OVER:
            continue
        for *moves, call in uninterruptible_stretches(code):
            assert {entry.opname for entry in moves} <= HARMLESS, code
            assert call.opname in ("CALL", "CALL_FUNCTION"), code
            ends += 1
    assert ends >= 4


def test_the_ending_of_a_generator() -> None:
    found = [[entry.opname for entry in ending_of_generator(code)] for code in code_of_gaio()]
    endings = [names for names in found if names]
    assert all(names == ["CALL_INTRINSIC_1", "RERAISE"] for names in endings)
    assert bool(endings) == (sys.version_info >= (3, 12))


def test_the_bookkeeping_of_exceptions() -> None:
    stretches = [stretch for code in code_of_gaio() for stretch in bookkeeping_of_exceptions(code)]
    assert stretches
    for *moves, last in stretches:
        assert {entry.opname for entry in moves} <= HARMLESS
        assert last.opname in ("PUSH_EXC_INFO", "POP_EXCEPT")
