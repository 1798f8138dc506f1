"""Doing something between any two opcodes of gaio: before the n-th opcode that runs below gaio/."""

from __future__ import annotations

import contextlib
import dis
import functools
import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Final

import gaio

if TYPE_CHECKING:
    from typing_extensions import Self

GAIO: Final = str(Path(gaio.__file__).parent)


class Strike:
    """Runs `action` before the `number`-th opcode that this thread runs below gaio/, counting from 1.

    Opcodes before which the interpreter runs no signal handler, and for which gaio relies on that, are left out:
    `uninterruptible`.
    """

    held_back: ClassVar[bool] = False  # while the test does its books

    def __init__(self, number: int, action: Callable[[], object]) -> None:
        self.number = number
        self.place: str | None = None  # where it struck; None while it has not
        self._action = action
        self.counted = 0  # opcodes so far

    def __enter__(self) -> Self:
        # A finalizer that the collector runs might be struck, which is not what the count is about.
        gc.disable()
        # From 3.12 on, opcodes are traced only if some frame has asked for it before tracing begins.
        sys._getframe().f_trace_opcodes = True
        sys.settrace(self._on_call)
        return self

    def __exit__(self, et: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        sys.settrace(None)
        gc.enable()

    def _on_call(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        if Strike.held_back or not frame.f_code.co_filename.startswith(GAIO):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._on_opcode

    def _on_opcode(self, frame: FrameType, event: str, _argument: Any) -> Any:
        if event != "opcode" or self.place is not None or frame.f_lasti in uninterruptible(frame.f_code):
            return self._on_opcode
        self.counted += 1
        if self.counted == self.number:
            sys.settrace(None)
            self.place = place_of(frame)
            self._action()
        return self._on_opcode


def interrupt() -> None:
    """What Python's own handler of SIGINT does."""
    raise KeyboardInterrupt


def interrupted_at(number: int, function: Callable[[], object]) -> str | None:
    """Call the function and raise KeyboardInterrupt at that opcode; where that was, or None if it has fewer."""
    strike = Strike(number, interrupt)
    with contextlib.suppress(KeyboardInterrupt), strike:
        function()
    return strike.place


def place_of(frame: FrameType) -> str:
    """Line, opcode and function that a frame is about to run, and who called it."""
    opcode = dis.opname[frame.f_code.co_code[frame.f_lasti]]
    callers = []
    caller = frame.f_back
    while caller is not None and caller.f_code.co_filename.startswith(GAIO):
        callers.append(caller.f_code.co_name)
        caller = caller.f_back
    via = f", called by {' < '.join(callers)}" if callers else ""
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}, {opcode} in {frame.f_code.co_name}(){via}"


# --- where no signal handler runs -----------------------------------------------------------------------------


@functools.cache
def uninterruptible(code: CodeType) -> frozenset[int]:
    """The offsets of opcodes that gaio relies on not being struck: test_uninterruptible.py proves that they are not."""
    return frozenset(entry.offset for stretch in uninterruptible_stretches(code) for entry in stretch)


def uninterruptible_stretches(code: CodeType) -> list[list[dis.Instruction]]:
    entries = [entry for entry in dis.get_instructions(code) if entry.opname not in ("CACHE", "EXTENDED_ARG")]
    stretches = [*_ends_of_with(entries)]
    if code is gaio.Watcher.wait_io.__code__:
        stretches.append(_after_delivery(entries))
    return stretches


def _after_delivery(entries: list[dis.Instruction]) -> list[dis.Instruction]:
    """What follows the store by which wait_io() counts the batch as delivered, up to the return."""
    (store,) = (
        index for index, entry in enumerate(entries) if entry.opname == "STORE_ATTR" and entry.argval == "delivery"
    )
    end = next(index for index in range(store, len(entries)) if entries[index].opname == "RETURN_VALUE")
    return entries[store + 1 : end + 1]


def _ends_of_with(entries: list[dis.Instruction]) -> Iterator[list[dis.Instruction]]:
    """What leads from the last opcode in the body of each `with` up to and including the call of __exit__()."""
    for index in range(len(entries) - 3):
        first, second, third = entries[index : index + 3]
        if first.opname != "LOAD_CONST" or first.argval is not None:
            continue
        if not all(other.opname == "DUP_TOP" or other.opname == "LOAD_CONST" for other in (second, third)):
            continue
        if second.argval is not None or third.argval is not None:
            continue
        start, end = index, index + 3
        while entries[start - 1].opname in ("NOP", "SWAP", "ROT_TWO"):
            start -= 1
        if entries[end].opname == "PRECALL":
            end += 1
        if entries[end].opname in ("CALL", "CALL_FUNCTION"):
            yield entries[start : end + 1]
