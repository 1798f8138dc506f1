"""Doing something between any two opcodes of gaio: before the n-th opcode that runs below gaio/."""

from __future__ import annotations

import contextlib
import dis
import functools
import gc
import importlib
import inspect
import pkgutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType, FunctionType, TracebackType
from typing import TYPE_CHECKING, ClassVar, Final

import gaio

if TYPE_CHECKING:
    from _typeshed import TraceFunction
    from typing_extensions import Self

GAIO: Final = str(Path(gaio.__file__).parent)


class Strike:
    """Runs `action` before the `number`-th opcode that a thread runs below gaio/, counting from 1.

    Without `thread`, that is the one that makes this; another must have been started while `threads_can_be_struck()`.
    Opcodes before which the interpreter runs no signal handler, and for which gaio relies on that, are left out:
    `uninterruptible`. Only while `told_of_opcodes()`.
    """

    held_back: ClassVar[bool] = False  # while the test does its books
    of_another_thread: ClassVar[Strike | None] = None  # for `threads_can_be_struck()`
    told: ClassVar[bool] = False  # by `told_of_opcodes()`
    # Offsets, by the id() of the code: its hash takes longer. uninterruptible() keeps the code alive.
    _left_out: ClassVar[dict[int, frozenset[int]]] = {}

    def __init__(self, number: int, action: Callable[[], object], thread: int | None = None) -> None:
        self.number = number
        self.place: str | None = None  # where it struck; None while it has not
        self._action = action
        self._thread = threading.get_ident() if thread is None else thread
        self.counted = 0  # opcodes so far

    def __enter__(self) -> Self:
        assert Strike.told, "without told_of_opcodes() nothing would ever be struck"
        # A finalizer that the collector runs might be struck, which is not what the count is about.
        gc.disable()
        if sys.version_info >= (3, 12):
            sys.monitoring.register_callback(_TOOL, sys.monitoring.events.INSTRUCTION, self._before_opcode)
        elif self._thread == threading.get_ident():
            sys.settrace(self._on_call)
        else:
            Strike.of_another_thread = self
        return self

    def __exit__(self, et: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._stop_listening()
        gc.enable()

    def _stop_listening(self) -> None:
        if sys.version_info >= (3, 12):
            sys.monitoring.register_callback(_TOOL, sys.monitoring.events.INSTRUCTION, None)
        elif Strike.of_another_thread is self:
            Strike.of_another_thread = None
        else:
            sys.settrace(None)

    def _on_call(self, frame: FrameType, _event: str, _argument: object) -> TraceFunction | None:
        if Strike.held_back or not frame.f_code.co_filename.startswith(GAIO):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        left_out = self._offsets_left_out(frame.f_code)

        # It runs some hundred million times in a run of the suite, always in the thread that sys.settrace() is for.
        def on_event(frame: FrameType, event: str, _argument: object) -> TraceFunction:
            if event == "opcode" and frame.f_lasti not in left_out and not Strike.held_back and self.place is None:
                self.counted += 1
                if self.counted == self.number:
                    self._strike(frame)
            return on_event

        return on_event

    def _before_opcode(self, code: CodeType, offset: int) -> None:
        # It, too, runs some hundred million times.
        if Strike.held_back or self.place is not None or threading.get_ident() != self._thread:
            return
        left_out = Strike._left_out.get(id(code))
        if left_out is None:
            left_out = self._offsets_left_out(code)
        if offset in left_out:
            return
        self.counted += 1
        if self.counted == self.number:
            frame = sys._getframe(1)
            while frame.f_code is not code:
                assert frame.f_back is not None
                frame = frame.f_back
            self._strike(frame)

    def _offsets_left_out(self, code: CodeType) -> frozenset[int]:
        left_out = Strike._left_out.get(id(code))
        if left_out is None:
            left_out = Strike._left_out[id(code)] = uninterruptible(code)
        return left_out

    def _strike(self, frame: FrameType) -> None:
        self.place = place_of(frame)
        self._stop_listening()
        self._action()


# --- how the interpreter tells of opcodes ---------------------------------------------------------------------

# From 3.12 on, sys.settrace() leaves opcodes out that another frame of the same code has run without being traced, as
# those of the watcher thread are. What came instead leaves none out: sys.monitoring.
_TOOL: Final = 4  # of the numbers that are kept for nobody


@contextlib.contextmanager
def told_of_opcodes() -> Iterator[None]:
    """See to it that strikes are told of opcodes."""
    Strike.told = True
    try:
        with _monitored():
            yield
    finally:
        Strike.told = False


@contextlib.contextmanager
def _monitored() -> Iterator[None]:
    if sys.version_info >= (3, 12):
        monitoring = sys.monitoring
        monitoring.use_tool_id(_TOOL, "strikes")
        for code in code_of_gaio():
            monitoring.set_local_events(_TOOL, code, monitoring.events.INSTRUCTION)
        try:
            yield
        finally:
            for code in code_of_gaio():
                monitoring.set_local_events(_TOOL, code, monitoring.events.NO_EVENTS)
            monitoring.free_tool_id(_TOOL)
    else:
        yield


@contextlib.contextmanager
def threads_can_be_struck() -> Iterator[None]:
    """Those that are started meanwhile: strikes can be told of their opcodes."""
    if sys.version_info >= (3, 12):
        yield  # as those of every thread
        return
    threading.settrace(_on_call_in_a_thread)
    try:
        yield
    finally:
        threading.settrace(None)


def _on_call_in_a_thread(frame: FrameType, event: str, argument: object) -> TraceFunction | None:
    strike = Strike.of_another_thread
    if strike is None or strike._thread != threading.get_ident():
        return None
    return strike._on_call(frame, event, argument)


@functools.cache
def code_of_gaio() -> list[CodeType]:
    """Of every function and method there is, and of the functions within them."""
    found: dict[CodeType, None] = {}
    for module in pkgutil.walk_packages(gaio.__path__, "gaio."):
        try:
            names = vars(importlib.import_module(module.name))
        except (ImportError, AttributeError, OSError):
            continue  # a backend of another system
        for value in list(names.values()):
            for member in list(vars(value).values()) if isinstance(value, type) else [value]:
                for function in _functions_behind(member):
                    if function.__code__.co_filename.startswith(GAIO):
                        found.update(dict.fromkeys(_with_inner(function.__code__)))
    return sorted(found, key=lambda code: (code.co_filename, code.co_firstlineno))


def _functions_behind(member: object) -> list[FunctionType]:
    candidates = [member]
    if isinstance(member, property):
        candidates = [member.fget, member.fset]
    elif isinstance(member, (staticmethod, classmethod)):
        candidates = [member.__func__]
    elif hasattr(member, "__wrapped__"):
        candidates = [member.__wrapped__]
    return [function for function in candidates if isinstance(function, FunctionType)]


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_inner(constant)


def interrupt() -> None:
    """What Python's own handler of SIGINT does."""
    raise KeyboardInterrupt


def interrupted_at(number: int, function: Callable[[], object]) -> str | None:
    """Call the function and raise KeyboardInterrupt at that opcode; where that was, or None if it has fewer."""
    strike = Strike(number, interrupt)
    with contextlib.suppress(KeyboardInterrupt), strike:
        function()
    return strike.place


def at_opcodes(play: Callable[[int], str | None], *, first: int = 1, step: int = 1, more_than: int = 50) -> None:
    """Play it with a strike at one opcode after the other until it has no more; it must have had more than that many.

    `play` takes the number of the opcode and returns where that was, None if there are fewer.
    """
    number = first
    while play(number) is not None:
        number += step
    assert number > more_than


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
    stretches = [*uninterruptible_stretches(code), ending_of_generator(code)]
    return frozenset(entry.offset for stretch in stretches for entry in stretch)


def ending_of_generator(code: CodeType) -> list[dis.Instruction]:
    """What the compiler adds to a generator from 3.12 on, to make an error of a StopIteration that comes out of it.

    It runs when a generator is closed early, too, where every exception is ignored.
    """
    if not code.co_flags & inspect.CO_GENERATOR:
        return []
    entries = _instructions(code)
    return [
        entry
        for before, entry in zip([None, *entries], entries, strict=False)
        if (entry.opname == "CALL_INTRINSIC_1" and "STOPITERATION" in entry.argrepr)
        or (entry.opname == "RERAISE" and before is not None and "STOPITERATION" in before.argrepr)
    ]


def _instructions(code: CodeType) -> list[dis.Instruction]:
    return [entry for entry in dis.get_instructions(code) if entry.opname not in ("CACHE", "EXTENDED_ARG")]


def uninterruptible_stretches(code: CodeType) -> list[list[dis.Instruction]]:
    entries = _instructions(code)
    stretches = [*_ends_of_with(entries)]
    if code in HANDING_OVER:
        stretches.append(_from_handing_over(entries))
    return stretches


HANDING_OVER: Final = (gaio.Watcher.wait_io.__code__, gaio.Watcher.detach.__code__)


def _from_handing_over(entries: list[dis.Instruction]) -> list[dis.Instruction]:
    """What follows the store or deletion by which a call counts what it returns as the caller's, up to the return."""
    (count,) = (
        index
        for index, entry in enumerate(entries)
        if (entry.opname == "STORE_ATTR" and entry.argval == "delivery") or entry.opname == "DELETE_SUBSCR"
    )
    end = next(index for index in range(count, len(entries)) if entries[index].opname == "RETURN_VALUE")
    return entries[count + 1 : end + 1]


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
