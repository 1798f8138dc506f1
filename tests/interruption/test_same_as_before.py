"""What is assumed of gaio where an opcode is skipped that follows one which only loads something onto the stack."""

from __future__ import annotations

import dis

from tests.interruption.opcodes import code_of_gaio


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
