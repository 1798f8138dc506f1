"""One module of CPython's own tests of asyncio, on gaio's event loop in place of the loop that asyncio has:

    python3 -m tests.asyncio_loop.stdlib_suite test_streams --backend epoll

With `--loop stdlib` nothing is replaced: what goes wrong then as well, this machine does.
Tests may leave files in the working directory.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import functools
import gc
import importlib
import json
import logging
import os
import signal
import sys
import threading
import unittest
import warnings
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from selectors import BaseSelector
from typing import Any, NamedTuple, NoReturn, TypedDict

PACKAGE = "test.test_asyncio"
LIMIT = 30.0  # seconds of a test
FAILED, SKIPPED = "failed", "skipped"


class Complaint(NamedTuple):
    """Something that was not as it should be, and that asyncio's own loop may have to answer for as well."""

    test: str  # without the name of the package
    kind: str  # FAILED, SKIPPED, or what unittest does not count: a ResourceWarning, a thread left, an error logged
    text: str


class Report(TypedDict):
    ran: list[str]
    complaints: list[Complaint]
    transports: int  # made by gaio's loop
    backends: list[str]  # that carried them


class Used:
    """That it was gaio which moved the bytes. What processes that a test forks do is not counted."""

    def __init__(self) -> None:
        self.transports = 0
        self.backends: set[str] = set()


def replace_loop() -> Used:
    """From now on the event loop is gaio's, whichever way a test comes by one."""
    import gaio
    from gaio.asyncio import EventLoop

    used = Used()
    make_transport = EventLoop._make_socket_transport
    read_start = gaio.Watcher.read_start

    @functools.wraps(make_transport)
    def counted_make_transport(*args: Any, **kwargs: Any) -> Any:
        transport = make_transport(*args, **kwargs)
        used.transports += type(transport).__module__ == EventLoop.__module__
        return transport

    @functools.wraps(read_start)
    def noted_read_start(watcher: gaio.Watcher, *args: Any, **kwargs: Any) -> Any:
        used.backends.add(watcher.backend)
        return read_start(watcher, *args, **kwargs)

    setattr(EventLoop, "_make_socket_transport", counted_make_transport)  # noqa: B010  a method is not assigned to
    setattr(gaio.Watcher, "read_start", noted_read_start)  # noqa: B010

    class Replacement(EventLoop):
        def __init__(self, selector: BaseSelector | None = None) -> None:
            if selector is not None:  # some tests bring one; this loop has its own
                selector.close()
            super().__init__()

    replaced = asyncio.SelectorEventLoop
    unix_events = importlib.import_module("asyncio.unix_events")
    for module in (asyncio, unix_events):
        for name, value in list(vars(module).items()):
            if value is replaced:  # SelectorEventLoop, _UnixSelectorEventLoop and, from Python 3.13 on, EventLoop
                setattr(module, name, Replacement)
            elif getattr(value, "_loop_factory", None) is replaced:  # the policy, which everything else asks for a loop
                value._loop_factory = Replacement
    loop = asyncio.new_event_loop()
    loop.close()
    if type(loop) is not Replacement:
        raise SystemExit(f"asyncio.new_event_loop() still makes {type(loop)}")
    return used


class Result(unittest.TextTestResult):
    """Keeps complaints, with the test that each is about."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.support: Any = importlib.import_module("test.support")
        self.ran: list[str] = []
        self.complaints: list[Complaint] = []
        self._running = ""
        self.limit = LIMIT

    def complain(self, kind: str, text: str, test: unittest.TestCase | None = None) -> None:
        self.complaints.append(Complaint(self._running if test is None else name_of(test), kind, text))

    def startTest(self, test: unittest.TestCase) -> None:
        # A test that hangs fails, most often by this signal. Some tests use it themselves: thus anew for each. And it
        # comes again and again, for a test may wait in what it does at its end, too.
        signal.signal(signal.SIGALRM, hangs)
        signal.setitimer(signal.ITIMER_REAL, self.limit, 1.0)
        faulthandler.dump_traceback_later(self.limit + 15.0, exit=True)
        self._running = name_of(test)
        self.ran.append(self._running)
        super().startTest(test)

    def stopTest(self, test: unittest.TestCase) -> None:
        gc.collect()  # what is collected later would be told of another test
        if self.support.environment_altered:
            self.support.environment_altered = False
            self.complain("thread or process left behind", "see the output")
        super().stopTest(test)
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        super().addError(test, err)
        self.complain(FAILED, self.errors[-1][1], test)

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addFailure(test, err)
        self.complain(FAILED, self.failures[-1][1], test)

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            self.complain(FAILED, f"{subtest.id()}: {err[1]!r}", test)

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        super().addUnexpectedSuccess(test)
        self.complain(FAILED, "it was expected to fail, and passed", test)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        self.complain(SKIPPED, reason, test)


def hangs(*_: object) -> NoReturn:
    raise TimeoutError("the test takes too long")


class LoggedErrors(logging.Handler):
    """What the loop itself says went wrong: many a test does not look whether it did."""

    def __init__(self, complain: Callable[[str, str], None]) -> None:
        super().__init__(logging.ERROR)
        self._complain = complain

    def emit(self, record: logging.LogRecord) -> None:
        self._complain("error logged", self.format(record))


def name_of(test: unittest.TestCase) -> str:
    return test.id().replace(f"{PACKAGE}.", "")


def tests_in(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from tests_in(test)
        else:
            yield test


def run(module: str, only: list[str], without: list[str], limit: float) -> Result:
    loaded = unittest.defaultTestLoader.loadTestsFromName(f"{PACKAGE}.{module}")
    suite = unittest.TestSuite(
        test for test in tests_in(loaded)
        if not any(fnmatchcase(name_of(test), pattern) for pattern in without)
        and (not only or any(fnmatchcase(name_of(test), pattern) for pattern in only))
    )
    results: list[Result] = []

    def make_result(*args: Any, **kwargs: Any) -> Result:
        result = Result(*args, **kwargs)
        result.limit = limit
        results.append(result)

        def show_warning(message: Warning | str, category: type[Warning], *rest: Any, **options: Any) -> None:
            if issubclass(category, ResourceWarning):
                result.complain("ResourceWarning", str(message))
            shown(message, category, *rest, **options)

        shown = warnings.showwarning
        warnings.showwarning = show_warning
        logging.getLogger("asyncio").addHandler(LoggedErrors(result.complain))
        sys.unraisablehook = lambda it: result.complain("exception ignored", f"{it.exc_value!r} in {it.object}")
        threading.excepthook = lambda it: result.complain("thread ended by an exception", repr(it.exc_value))
        return result

    gc.collect()
    gc.freeze()  # one collection after each test is then cheap
    unittest.TextTestRunner(resultclass=make_result, warnings="always", verbosity=2).run(suite)
    return results[0]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.asyncio_loop.stdlib_suite", description=__doc__)
    parser.add_argument("module", help=f"one of {PACKAGE}, such as test_streams")
    parser.add_argument("--loop", choices=("gaio", "stdlib"), default="gaio")
    parser.add_argument("--backend", help="of gaio's loop; the best one without it")
    parser.add_argument("--only", action="append", default=[], metavar="MODULE.CLASS.TEST", help="repeatable")
    parser.add_argument("--without", action="append", default=[], metavar="MODULE.CLASS.TEST", help="likewise")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds that a test may take")
    parser.add_argument("--report", type=Path, help="a file to write what was found into, as JSON")
    options = parser.parse_args()
    if options.backend:
        os.environ["GAIO_BACKEND"] = options.backend
    used = replace_loop() if options.loop == "gaio" else Used()
    result = run(options.module, options.only, options.without, options.limit)
    report = Report(
        ran=result.ran,
        complaints=result.complaints,
        transports=used.transports,
        backends=sorted(used.backends),
    )
    if options.report:
        options.report.write_text(json.dumps(report), encoding="utf-8")
    return not result.wasSuccessful()


if __name__ == "__main__":
    sys.exit(main())
