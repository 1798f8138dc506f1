"""A libc that fails when it is told to: faults are injected where gaio reaches libc, never into gaio itself.

`gaio.platform._libc` finds every foreign function by its name in a library. Here that library is replaced by one whose
functions are the real ones, but for the calls that a test has marked: those return -1 with the errno asked for, move
fewer bytes than they were asked to, overlook a flag, are made and then said to have failed, or have an interruption
before or behind them.
"""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from gaio.platform import _libc
from gaio.platform._io_uring import abi

Condition = Callable[..., bool]


def every_call(*arguments: Any) -> bool:
    return True


def is_call(number: int) -> Condition:
    """Of the calls of syscall(2): those with this number."""
    return lambda *arguments: bool(arguments[0] == number)


enters_ring = is_call(abi.SYS_io_uring_enter)


class _Fault:
    def __init__(self, error: int, times: int | None, when: Condition) -> None:
        self.error = error
        self.left = times
        self.when = when

    def strikes(self, arguments: tuple[Any, ...]) -> bool:
        if self.left == 0 or not self.when(*arguments):
            return False
        if self.left is not None:
            self.left -= 1
        return True


class FaultyLibc:
    """Put it in place before the watcher is made: backends bind their functions when they are opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._faults: dict[str, list[_Fault]] = {}
        self._most: dict[str, tuple[int, int]] = {}
        self._interrupted: dict[str, int] = {}
        self._after: dict[str, int] = {}
        self._overlooked: dict[str, tuple[int, int]] = {}
        self._signals: dict[str, tuple[signal.Signals, Condition]] = {}
        self.struck = 0  # calls that failed because of a fault
        self.calls: dict[str, int] = {}
        for library in ("keeping_gil", "dropping_gil"):
            real = getattr(_libc.LIBC, library)
            monkeypatch.setattr(_libc.LIBC, library, _FaultyLibrary(real, self))

    def fail(self, name: str, error: int, *, times: int | None = 1, when: Condition = every_call) -> None:
        """Let the next `times` calls of this function (None: all) that `when` is true for fail with this errno."""
        self._faults.setdefault(name, []).append(_Fault(error, times, when))

    def fail_after(self, name: str, error: int) -> None:
        """Let the next call of this function be made, and fail with this errno all the same."""
        self._after[name] = error

    def shorten(self, name: str, most: int, *, argument: int = 2) -> None:
        """Let calls of this function move no more than so many bytes; `argument` is the place of the length."""
        self._most[name] = (argument, most)

    def overlook(self, name: str, flag: int, *, argument: int) -> None:
        """Let this function take no notice of a flag; `argument` is the place of the flags."""
        self._overlooked[name] = (argument, flag)

    def interrupt_after(self, name: str, *, times: int = 1) -> None:
        """Raise KeyboardInterrupt when the next `times` calls of this function have returned, as Ctrl-C may: those that
        fail as well.
        """
        self._interrupted[name] = times

    def signal_before(self, name: str, number: signal.Signals, when: Condition) -> None:
        """Let a signal come just before the main thread's next call that `when` is true for: too late for its handler
        to run, which only that thread does.
        """
        self._signals[name] = (number, when)

    def recover(self) -> None:
        """From now on nothing fails."""
        self._faults.clear()
        self._signals.clear()
        self._most.clear()
        self._overlooked.clear()
        self._interrupted.clear()
        self._after.clear()

    def fault_of(self, name: str, arguments: tuple[Any, ...]) -> int | None:
        self.calls[name] = self.calls.get(name, 0) + 1
        for fault in self._faults.get(name, ()):
            if fault.strikes(arguments):
                self.struck += 1
                return fault.error
        return None

    def signal_for(self, name: str, arguments: tuple[Any, ...]) -> signal.Signals | None:
        number, when = self._signals.get(name, (None, every_call))
        if number is None or not when(*arguments) or threading.current_thread() is not threading.main_thread():
            return None
        del self._signals[name]
        self.struck += 1
        return number

    def fault_after(self, name: str) -> int | None:
        error = self._after.pop(name, None)
        self.struck += error is not None
        return error

    def called(self, name: str) -> None:
        left = self._interrupted.get(name, 0)
        if left:
            self._interrupted[name] = left - 1
            self.struck += 1
            raise KeyboardInterrupt

    def changed(self, name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        changed = list(arguments)
        if name in self._most:
            place, most = self._most[name]
            changed[place] = min(most, changed[place])
        if name in self._overlooked:
            place, flag = self._overlooked[name]
            changed[place] &= ~flag
        return tuple(changed)


def _signalled(number: signal.Signals, call: partial[Any]) -> Any:
    """Send this thread the signal and make the call. C code does both, so that no handler runs in between."""
    kill = partial(ctypes.PyDLL(None).pthread_kill, ctypes.c_ulong(threading.get_ident()), int(number))
    _, result = map(partial.__call__, (kill, call))
    return result


class _FaultyLibrary:
    def __init__(self, real: Any, faults: FaultyLibc) -> None:
        self._real = real
        self._faults = faults

    def __getitem__(self, name: str) -> _FaultyFunction:
        return _FaultyFunction(self._real[name], name, self._faults)


class _FaultyFunction:
    """A foreign function as ctypes has it: `argtypes`, `restype` and `errcheck` can be set."""

    def __init__(self, real: Any, name: str, faults: FaultyLibc) -> None:
        self.__dict__.update(_real=real, __name__=name, _faults=faults)

    def __setattr__(self, attribute: str, value: Any) -> None:
        setattr(self.__dict__["_real"], attribute, value)

    def __call__(self, *arguments: Any) -> Any:
        real, name, faults = (self.__dict__[key] for key in ("_real", "__name__", "_faults"))
        error = faults.fault_of(name, arguments)
        if error is None and (error := faults.fault_after(name)) is not None:
            restype, real.restype = real.restype, ctypes.c_int  # what it really returns is for nobody to collect
            real(*arguments)
            real.restype = restype
        if error is None:
            call = partial(real, *faults.changed(name, arguments))
            number = faults.signal_for(name, arguments)
            result = call() if number is None else _signalled(number, call)
            faults.called(name)
            return result
        ctypes.set_errno(error)
        failed = ctypes.c_void_p(-1).value if real.restype is ctypes.c_void_p else -1
        if getattr(real, "errcheck", None) is not None:
            return real.errcheck(failed, real, arguments)
        result = failed if isinstance(real.restype, type) else real.restype(failed)
        faults.called(name)
        return result
