"""What every test runs under: leaks are counted, and a failed type check is a failed item."""

from __future__ import annotations

import gc
import os
import resource
import signal
import socket
from collections.abc import Generator, Iterator

import pytest

import gaio
from gaio import leader
from gaio.platform import _sockets
from tests import backends, leaks, storm
from tests.accounting import AccountedWatcher, MakeWatcher
from tests.faulty_libc import FaultyLibc
from tests.peers import HeldPairs, Pairs
from tests.waiting import wait_until

_failed = pytest.StashKey[bool]()
_SIGNAL_LATENCY = leader.SIGNAL_LATENCY


def pytest_configure(config: pytest.Config) -> None:
    # Thousands of connections, each with both ends in this process. macOS refuses more than OPEN_MAX,
    # whatever the hard limit says; more than 20,000 is never needed.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 20_000 if hard == resource.RLIM_INFINITY else min(hard, 20_000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    # A shell that starts a command in the background has it ignore SIGINT, and so the programs that the tests start and
    # stop by Ctrl-C. With a handler here they get the default (execve(2): signals that are caught are reset).
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    gaio.backends()  # what a library of GAIO_KQUEUE_LIBRARY keeps open once it has been used is no leak of a test


def pytest_collection_finish() -> None:
    # What has been collected stays to the end: the collector, which runs before and after every test, need not go
    # through all of it each time.
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # hypothesis, which may be imported as late as for the summary, asks who refers to its generator


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--storm",
        choices=(storm.CALM, *storm.KINDS),
        help="run every test in this weather: calm, in a storm of signals, or with threads that change places after "
        "every few bytecodes; without it, the behaviour suite runs in each and the rest in calm weather",
    )


@pytest.fixture
def told_who_listens() -> None:
    """For refusals that need it: macOS and OpenBSD do not tell of a socket whether it listens."""
    with socket.socket() as sock:
        if _sockets.listens(sock.fileno()) is None:
            pytest.skip("this system does not tell of a socket whether it listens")


@pytest.fixture
def thread_acts_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watcher thread takes over from no consumer that stays away, unless the test has it do so."""
    monkeypatch.setattr(leader, "GRACE", 3600)


class FailedCheck(pytest.Item):
    """A check that `python3 -m tests` ran before pytest, and that failed."""

    def runtest(self) -> None:
        pytest.fail(f"{self.name} failed; its report stands above pytest's", pytrace=False)

    def reportinfo(self) -> tuple[str, int | None, str]:
        return str(self.path), None, self.name


def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    names = os.environ.get("GAIO_TEST_FAILED_CHECKS", "")
    checks: list[pytest.Item] = [
        FailedCheck.from_parent(session, name=name) for name in names.split(",") if name
    ]
    items.sort(key=lambda item: item.get_closest_marker("minutes") is None)
    items += checks  # last, so that -x stops at a test rather than here


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[_failed] = True
    return report


@pytest.fixture(autouse=True)
def weather(request: pytest.FixtureRequest) -> Iterator[str]:
    """What rages around the test: see tests/storm.py."""
    chosen: str = request.config.getoption("--storm") or getattr(request, "param", storm.CALM)
    with storm.raging(chosen):
        yield chosen


@pytest.fixture(autouse=True)
def _nothing_left_behind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every descriptor and every thread a test made is gone when it ends."""
    monkeypatch.delenv("GAIO_BACKEND", raising=False)
    gc.collect()
    gc.freeze()  # what pytest keeps of each test would make every collection slower than the one before
    before = leaks.in_use()
    yield
    if request.node.stash.get(_failed, False):
        return  # the traceback keeps what the test made alive
    gc.collect()
    try:
        # A thread that was told to stop, and the descriptors it closes, may need a moment.
        wait_until(lambda: not leaks.in_use().since(before), "leaks to go away", seconds=10)
    except AssertionError:
        pytest.fail("\n".join(leaks.in_use().since(before)), pytrace=False)


@pytest.fixture(autouse=True)
def _asleep_until_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The consumer looks again each second for the sake of signals, and so would hide every wake-up that was lost."""
    monkeypatch.setattr(leader, "SIGNAL_LATENCY", 3600.0)


@pytest.fixture
def hears_signals(_asleep_until_woken: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests in which a single signal must be heard by a consumer that nothing else would wake."""
    monkeypatch.setattr(leader, "SIGNAL_LATENCY", _SIGNAL_LATENCY)


@pytest.fixture(params=backends.under_test())
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> backends.Name:
    """Each backend in turn. One that must work here fails every test when it does not.

    The others are skipped, visibly: by tests/behaviour/test_backend_choice.py.
    """
    name: backends.Name = request.param
    if backends.is_simulated(name):
        backends.simulate(monkeypatch)
    offered = backends.offered()
    if name not in offered:
        pytest.fail(f"gaio.backends() does not name {name}, which must work here")
    if not offered[name].available:
        pytest.fail(f"must work here, but does not: {name}: {offered[name].reason}")
    return name


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> FaultyLibc:
    """A libc that can be told to fail. Ask for it before a watcher is made: backends bind their functions when they
    are opened.
    """
    return FaultyLibc(monkeypatch)


@pytest.fixture
def make_watcher(backend: backends.Name, request: pytest.FixtureRequest) -> Iterator[MakeWatcher]:
    """Makes accounted watchers on the backend under test; their books are checked when the test ends."""
    made: list[AccountedWatcher] = []

    def make(swap_size: int = 65536) -> AccountedWatcher:
        accounted = AccountedWatcher(gaio.Watcher(swap_size=swap_size, backend=backend), swap_size)
        made.append(accounted)
        return accounted

    yield make
    for accounted in made:
        if request.node.stash.get(_failed, False):
            accounted.watcher.close()
        else:
            accounted.close_and_check()


@pytest.fixture
def watcher(make_watcher: MakeWatcher) -> AccountedWatcher:
    return make_watcher()


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    made = Pairs()
    yield made
    made.close()


@pytest.fixture
def held_pairs() -> Iterator[HeldPairs]:
    made = HeldPairs()
    yield made
    made.close()
