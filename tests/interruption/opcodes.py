"""Doing something between any two opcodes of gaio: before one that runs below gaio/, or before each in turn."""

from __future__ import annotations

import contextlib
import dis
import functools
import gc
import importlib
import inspect
import itertools
import pkgutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType, FunctionType, TracebackType
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple

import gaio
from gaio.tls import TLSWatcher

if TYPE_CHECKING:
    from _typeshed import TraceFunction
    from typing_extensions import Self

GAIO: Final = str(Path(gaio.__file__).parent)


class Opcode(NamedTuple):
    """One in a file below gaio/: the `number`-th of the `call`-th call there that a thread makes, both counted from 1.

    Resuming a generator counts as a call. What a call calls in turn has its own opcodes.
    """

    call: int
    number: int

    def __str__(self) -> str:
        return f"opcode {self.number} of call {self.call}"


class Strike:
    """Runs `action` in a thread before that opcode.

    Without `thread`, that is the one that makes this; another must have been started while `threads_can_be_struck()`.
    An opcode is skipped, `left_out`, where a strike cannot differ from one at the opcode before it, or where gaio or
    the interpreter itself relies on no signal handler being run. Only while `told_of_opcodes()`.

    The interpreter is asked to tell of the opcodes of that one call only: to be told of those of all calls before it, a
    hundred times as many, takes longer than what is tested.
    """

    held_back: ClassVar[bool] = False  # while the test does its books
    of_another_thread: ClassVar[Strike | None] = None  # for `threads_can_be_struck()`
    told: ClassVar[bool] = False  # by `told_of_opcodes()`

    def __init__(self, at: Opcode, action: Callable[[], object], thread: int | None = None) -> None:
        self.at = at
        self.place: str | None = None  # where it struck; None while it has not
        self.calls = 0  # so far, up to the one in question
        self.counted = 0  # opcodes of that one so far
        self.is_last = False  # it struck before one with which that call ends
        self._action = action
        self._raises = action is interrupt
        self._thread = threading.get_ident() if thread is None else thread
        self._frame: FrameType | None = None  # of the call in question, until the strike
        self._told_of: set[CodeType] = set()  # the code whose opcodes the interpreter tells of, from 3.12 on

    def __enter__(self) -> Self:
        assert Strike.told, "without told_of_opcodes() nothing would ever be struck"
        # A finalizer that the collector runs might be struck, which is not what the count is about.
        gc.disable()
        if sys.version_info >= (3, 12):
            sys.monitoring.register_callback(_TOOL, sys.monitoring.events.PY_START, self._before_call)
            sys.monitoring.register_callback(_TOOL, sys.monitoring.events.PY_RESUME, self._before_call)
            sys.monitoring.register_callback(_TOOL, sys.monitoring.events.INSTRUCTION, self._before_opcode)
        elif self._thread == threading.get_ident():
            sys.settrace(self._on_call)
        else:
            Strike.of_another_thread = self
        return self

    def __exit__(self, et: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._stop_listening()
        if sys.version_info >= (3, 12):
            for code in self._told_of:
                sys.monitoring.set_local_events(_TOOL, code, _CALLS)
        self._frame = None  # it keeps what its variables refer to
        gc.enable()

    def interrupts(self, function: Callable[[], object]) -> None:
        """Call the function, of which a KeyboardInterrupt that this raises is the end."""
        handled = sys.exc_info()[1]
        with contextlib.suppress(KeyboardInterrupt), self:
            function()
        assert sys.exc_info()[1] is handled, "the interpreter has lost count of the exceptions it handles"

    def _stop_listening(self) -> None:
        if sys.version_info >= (3, 12):
            for event in (sys.monitoring.events.PY_START, sys.monitoring.events.PY_RESUME):
                sys.monitoring.register_callback(_TOOL, event, None)
            sys.monitoring.register_callback(_TOOL, sys.monitoring.events.INSTRUCTION, None)
        elif Strike.of_another_thread is self:
            Strike.of_another_thread = None
        else:
            sys.settrace(None)

    # Until 3.11 the interpreter tells the thread that sys.settrace() is for.

    def _on_call(self, frame: FrameType, _event: str, _argument: object) -> TraceFunction | None:
        if Strike.held_back or not frame.f_code.co_filename.startswith(GAIO):
            return None
        self.calls += 1
        if not self._begin(frame):
            frame.f_trace_opcodes = False  # of a generator that goes on
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._on_event

    def _on_event(self, frame: FrameType, event: str, _argument: object) -> TraceFunction:
        if event == "opcode" and not Strike.held_back:
            self._reach(frame, frame.f_lasti)
        return self._on_event

    # From 3.12 on it tells this tool, whatever thread it is.

    if sys.version_info >= (3, 12):

        def _before_call(self, code: CodeType, offset: int) -> None:
            if Strike.held_back or threading.get_ident() != self._thread:
                return
            self.calls += 1
            frame = sys._getframe(1)
            if self._begin(frame):
                if code not in self._told_of:
                    self._told_of.add(code)
                    sys.monitoring.set_local_events(_TOOL, code, _CALLS | sys.monitoring.events.INSTRUCTION)
                self._reach(frame, offset)  # RESUME, which has begun

        def _before_opcode(self, code: CodeType, offset: int) -> None:
            if Strike.held_back or threading.get_ident() != self._thread:
                return
            if code.co_code[offset] != _RESUME:  # of which it tells before it tells of the call
                self._reach(sys._getframe(1), offset)

    # What is made of it, by strikes. A census makes something else of it.

    def _begin(self, frame: FrameType) -> bool:
        """A call begins, or a generator goes on: whether its opcodes are wanted."""
        if self.calls == self.at.call:
            self._frame = frame
            return True
        if frame is self._frame:
            self._frame = None
        return False

    def _reach(self, frame: FrameType, offset: int) -> None:
        """The frame is about to run that opcode."""
        if frame is not self._frame or offset in left_out(frame.f_code, self._raises):
            return
        self.counted += 1
        if self.counted == self.at.number:
            self.place = place_of(frame)
            self.is_last = offset in last_opcodes(frame.f_code, self._raises)
            self._frame = None
            self._stop_listening()
            self._action()


class Census(Strike):
    """Strikes nothing: finds the opcodes there are for `interrupt`, of all calls at once."""

    def __init__(self) -> None:
        super().__init__(Opcode(0, 0), interrupt)
        self.found: list[Opcode] = []
        # By the id of its frame: the number of a call, and its opcodes so far. The frame itself would keep what its
        # variables refer to.
        self._of_frame: dict[int, tuple[int, Iterator[int]]] = {}

    def _begin(self, frame: FrameType) -> bool:
        self._of_frame[id(frame)] = self.calls, itertools.count(1)
        return True

    def _reach(self, frame: FrameType, offset: int) -> None:
        if id(frame) in self._of_frame and offset not in left_out(frame.f_code, self._raises):
            call, numbers = self._of_frame[id(frame)]
            self.found.append(Opcode(call, next(numbers)))


# --- how the interpreter tells of opcodes ---------------------------------------------------------------------

# From 3.12 on, sys.settrace() leaves opcodes out that another frame of the same code has run without being traced, as
# those of the watcher thread are. What came instead leaves none out: sys.monitoring.
_TOOL: Final = 4  # of the numbers that are kept for nobody
if sys.version_info >= (3, 12):
    _CALLS: Final = sys.monitoring.events.PY_START | sys.monitoring.events.PY_RESUME
    _RESUME: Final = dis.opmap["RESUME"]


@contextlib.contextmanager
def told_of_opcodes() -> Iterator[None]:
    """See to it that strikes are told of opcodes, all of which must be known here."""
    assert not not_understood(), "\n".join(not_understood())
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
            monitoring.set_local_events(_TOOL, code, _CALLS)
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


def interruption(at: Opcode) -> Strike:
    return Strike(at, interrupt)


def interrupted_at(at: Opcode, function: Callable[[], object]) -> Strike:
    """Call the function and raise KeyboardInterrupt there; the strike tells whether it has that opcode."""
    strike = interruption(at)
    strike.interrupts(function)
    return strike


def at_opcodes(play: Callable[[Opcode], Strike], *, first: int = 1, step: int = 1, more_than: int = 50) -> None:
    """Play it with a strike at one opcode after the other, call by call, until there is no more; there must be more
    than that many.

    With `step`, at every so many, counted through from one call to the next. `play` returns the strike it has made.
    """
    at = Opcode(1, first)
    struck = 0
    while True:
        strike = play(at)
        if strike.place is not None:
            struck += 1
            at = Opcode(at.call + 1, step) if strike.is_last else Opcode(at.call, at.number + step)
        elif strike.calls < at.call:
            break
        else:
            at = Opcode(at.call + 1, at.number - strike.counted)
    assert struck * step > more_than


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


# --- which opcodes are tried ----------------------------------------------------------------------------------

# They put on the stack of their frame what is elsewhere, or move what is there. An exception discards that stack, and
# no other code can look into it. Nor can any change what was loaded: gaio rebinds no global variable and none of an
# enclosing function, which test_opcodes.py sees to.
ON_THE_STACK_ONLY: Final = {
    *("LOAD_CONST", "LOAD_COMMON_CONSTANT", "LOAD_SMALL_INT", "LOAD_CLOSURE", "LOAD_DEREF", "LOAD_GLOBAL"),
    *("LOAD_FAST", "LOAD_FAST_BORROW", "LOAD_FAST_CHECK", "LOAD_FAST_LOAD_FAST", "LOAD_FAST_BORROW_LOAD_FAST_BORROW"),
    *("COPY", "DUP_TOP", "DUP_TOP_TWO", "ROT_FOUR", "ROT_THREE", "ROT_TWO", "SWAP"),
    *("KW_NAMES", "NOP", "NOT_TAKEN", "PRECALL", "PUSH_NULL"),
}

# They look at what there is, or make something new of it that nobody else has, and leave the outcome on the stack. What
# another thread or a handler does may change that outcome; an exception discards it. Where one runs code of gaio, as
# that of a property, an exception after it is one before the return of that code.
_LOOKS: Final = {
    *("BINARY_SLICE", "BINARY_SUBSCR", "COMPARE_OP", "CONTAINS_OP", "IS_OP", "LOAD_ATTR", "LOAD_METHOD"),
    *("LOAD_SPECIAL", "BUILD_LIST", "BUILD_MAP", "BUILD_SLICE", "BUILD_TUPLE", "TO_BOOL", "UNARY_INVERT", "UNARY_NOT"),
    *("JUMP_IF_FALSE_OR_POP", "JUMP_IF_TRUE_OR_POP", "POP_JUMP_IF_FALSE", "POP_JUMP_IF_TRUE"),
    *(f"POP_JUMP_{way}_IF_{what}" for way in ("FORWARD", "BACKWARD") for what in ("FALSE", "NONE", "NOT_NONE", "TRUE")),
    *("POP_JUMP_IF_NONE", "POP_JUMP_IF_NOT_NONE"),
    *(f"BINARY_{what}" for what in ("ADD", "AND", "FLOOR_DIVIDE", "MULTIPLY", "OR", "SUBTRACT", "TRUE_DIVIDE")),
}

# With these a call ends, or lets its caller go on until it is called again.
_ENDINGS: Final = {"RETURN_VALUE", "RETURN_CONST", "YIELD_VALUE"}

# All others that functions have, from CPython 3.10 to 3.15. Right before and right after one are two different things.
_ACT: Final = {
    *("BEFORE_WITH", "BINARY_LSHIFT", "BINARY_MODULO", "BINARY_OP", "BINARY_POWER", "BINARY_RSHIFT", "BINARY_XOR"),
    *("BUILD_CONST_KEY_MAP", "BUILD_SET", "BUILD_STRING", "CALL", "CALL_FUNCTION", "CALL_FUNCTION_EX"),
    *("CALL_FUNCTION_KW", "CALL_INTRINSIC_1", "CALL_INTRINSIC_2", "CALL_KW", "CALL_METHOD", "CHECK_EXC_MATCH"),
    *("CLEANUP_THROW", "CONVERT_VALUE", "COPY_FREE_VARS", "DELETE_ATTR", "DELETE_DEREF", "DELETE_FAST"),
    *("DELETE_GLOBAL", "DELETE_SUBSCR", "DICT_MERGE", "DICT_UPDATE", "END_FOR", "END_SEND", "EXTENDED_ARG"),
    *("FORMAT_SIMPLE", "FORMAT_VALUE", "FORMAT_WITH_SPEC", "FOR_ITER", "GEN_START", "GET_ITER", "GET_YIELD_FROM_ITER"),
    *("IMPORT_FROM", "IMPORT_NAME", "JUMP_ABSOLUTE", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT", "JUMP_FORWARD"),
    *("JUMP_IF_NOT_EXC_MATCH", "LIST_APPEND", "LIST_EXTEND", "LIST_TO_TUPLE", "LOAD_ASSERTION_ERROR"),
    *("LOAD_FAST_AND_CLEAR", "LOAD_SUPER_ATTR", "MAKE_CELL", "MAKE_FUNCTION", "MAP_ADD", "POP_BLOCK", "POP_EXCEPT"),
    *("POP_ITER", "POP_TOP", "PUSH_EXC_INFO", "RAISE_VARARGS", "RERAISE", "RESUME", "RETURN_GENERATOR", "ROT_N"),
    *("SEND", "SETUP_FINALLY", "SETUP_WITH", "SET_ADD", "SET_FUNCTION_ATTRIBUTE", "SET_UPDATE", "STORE_ATTR"),
    *("STORE_DEREF", "STORE_FAST", "STORE_FAST_LOAD_FAST", "STORE_FAST_STORE_FAST", "STORE_GLOBAL", "STORE_SLICE"),
    *("STORE_SUBSCR", "UNARY_NEGATIVE", "UNARY_POSITIVE", "UNPACK_EX", "UNPACK_SEQUENCE", "WITH_EXCEPT_START"),
    "YIELD_FROM",
    *(f"INPLACE_{what}" for what in ("ADD", "AND", "FLOOR_DIVIDE", "LSHIFT", "MODULO", "MULTIPLY", "OR", "POWER")),
    *(f"INPLACE_{what}" for what in ("RSHIFT", "SUBTRACT", "TRUE_DIVIDE", "XOR")),
}


@functools.cache
def not_understood() -> list[str]:
    """What this interpreter makes of gaio that is handled nowhere here: each with what is to be done about it.

    A strike where a lock is released, say, would keep that lock for ever, and the test would fail far from here.
    """
    known = ON_THE_STACK_ONLY | _LOOKS | _ENDINGS | _ACT
    unknown: dict[str, str] = {}
    found: list[str] = []
    version = f"CPython {sys.version_info.major}.{sys.version_info.minor}"
    for code in code_of_gaio():
        place = f"{code.co_name}() of {Path(code.co_filename).name}"
        entries = _instructions(code)
        for name in {entry.opname for entry in entries} - known:
            unknown.setdefault(name, place)
        if sum(entry.opname == "WITH_EXCEPT_START" for entry in entries) > len(list(_ends_of_with(entries))):
            found.append(
                f"{version} ends a `with` in {place} in a way that _ends_of_with() of tests/interruption/opcodes.py "
                "does not recognize: have it do so"
            )
    found += [
        f"{version} has an opcode {name}, as in {place}, which tests/interruption/opcodes.py does not know: look up "
        "what it does, and name it in ON_THE_STACK_ONLY, _LOOKS, _ENDINGS or _ACT there"
        for name, place in unknown.items()
    ]
    return found


@functools.cache
def left_out(code: CodeType, raises: bool) -> frozenset[int]:
    """The offsets of opcodes before which nothing is tried; `raises` if what is tried only raises an exception."""
    return uninterruptible(code) | same_as_before(code, raises)


@functools.cache
def last_opcodes(code: CodeType, raises: bool) -> frozenset[int]:
    """The offsets of those with which a call ends, or of the ones before that they are the same as."""
    skipped = same_as_before(code, raises)
    found = set()
    first: int | None = None  # of those that are the same, and that nothing but the last of them follows
    for opcode in dis.get_instructions(code):
        if opcode.offset not in skipped:
            first = opcode.offset
        if opcode.opname in _ENDINGS and first is not None:
            found.add(first)
        if "JUMP" in opcode.opname:
            first = None
    return frozenset(found)


def same_as_before(code: CodeType, raises: bool) -> frozenset[int]:
    """The offsets of opcodes that always follow one that changes nothing but the stack of its frame, with the same
    handler of exceptions: whatever happens right before or right after that one, the outcome is the same.
    """
    opcodes = [opcode for opcode in dis.get_instructions(code) if opcode.opname != "CACHE"]
    borders: set[int] = set()
    if sys.version_info >= (3, 11):  # before, opcodes that are not in the lists above began and ended what is protected
        for entry in dis.Bytecode(code).exception_entries:  # type: ignore[attr-defined]  # not in typeshed
            borders |= {entry.start, entry.end, entry.target}
    return frozenset(
        opcode.offset
        for before, opcode in itertools.pairwise(opcodes)
        if (before.opname in ON_THE_STACK_ONLY or (raises and _only_looks(before)))
        and not opcode.is_jump_target
        and opcode.offset not in borders
    )


def _only_looks(opcode: dis.Instruction) -> bool:
    if opcode.opname == "BINARY_OP":
        return not opcode.argrepr.endswith("=")  # += may change what it adds to
    return opcode.opname in _LOOKS


@functools.cache
def uninterruptible(code: CodeType) -> frozenset[int]:
    """The offsets of opcodes that gaio or the interpreter relies on not being struck, as test_uninterruptible.py proves
    that they are not.
    """
    stretches = [*uninterruptible_stretches(code), ending_of_generator(code), *bookkeeping_of_exceptions(code)]
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


def bookkeeping_of_exceptions(code: CodeType) -> Iterator[list[dis.Instruction]]:
    """Where the interpreter notes that an exception is being handled, and where it does so no more.

    It does not expect to be struck there: from 3.11 on it would take the exception for one that is being handled for
    ever, and keep what its traceback refers to.
    """
    entries = _instructions(code)
    for index, entry in enumerate(entries):
        if entry.opname in ("PUSH_EXC_INFO", "POP_EXCEPT"):
            start = index
            while entry.opname == "POP_EXCEPT" and entries[start - 1].opname in ("COPY", "NOP", "SWAP"):
                start -= 1
            yield entries[start : index + 1]


def _instructions(code: CodeType) -> list[dis.Instruction]:
    return [entry for entry in dis.get_instructions(code) if entry.opname not in ("CACHE", "EXTENDED_ARG")]


def uninterruptible_stretches(code: CodeType) -> list[list[dis.Instruction]]:
    entries = _instructions(code)
    stretches = [*_ends_of_with(entries)]
    if code in HANDING_OVER:
        stretches.append(_from_handing_over(entries))
    return stretches


HANDING_OVER: Final = tuple(
    function.__code__ for function in (gaio.Watcher.wait_io, gaio.Watcher.detach, TLSWatcher.wait_io)
)


def _from_handing_over(entries: list[dis.Instruction]) -> list[dis.Instruction]:
    """What follows the last call, by which all is done, up to the return."""
    end = next(index for index, entry in enumerate(entries) if entry.opname == "RETURN_VALUE")
    last_call = max(index for index, entry in enumerate(entries[:end]) if entry.opname.startswith("CALL"))
    return entries[last_call + 2 : end + 1]  # without POP_TOP, of the None that it has returned


def _loads_none(entry: dis.Instruction) -> bool:
    return entry.opname in ("LOAD_CONST", "LOAD_COMMON_CONSTANT") and entry.argval is None


def _ends_of_with(entries: list[dis.Instruction]) -> Iterator[list[dis.Instruction]]:
    """What leads from the last opcode in the body of each `with` up to and including the call of __exit__()."""
    for index in range(len(entries) - 3):
        first, second, third = entries[index : index + 3]
        if not _loads_none(first):
            continue
        if not all(_loads_none(other) or other.opname == "DUP_TOP" for other in (second, third)):
            continue
        start, end = index, index + 3
        while entries[start - 1].opname in ("NOP", "SWAP", "ROT_TWO"):
            start -= 1
        if entries[end].opname == "PRECALL":
            end += 1
        if entries[end].opname in ("CALL", "CALL_FUNCTION"):
            yield entries[start : end + 1]
