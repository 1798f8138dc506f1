"""An ordinary user's limits, which root never meets: rings are charged to RLIMIT_MEMLOCK, their buffers to RLIMIT_AS.

Each test has a child process that gives root up, and is a user of its own, for all processes of a user share what is
charged. A test that is not run by root keeps its user.
"""

from __future__ import annotations

import os

import pytest

from gaio.platform._io_uring.buffers import buffer_geometry
from tests import child

pytestmark = pytest.mark.usefixtures("backend")

KIB = 1024
LIMITS = (0, 64 * KIB, 512 * KIB, 8192 * KIB)

BEGINNING = """
import os, resource, socket
import gaio, gaio.__main__, gaio.types
import gaio.platform._epoll, gaio.platform._io_uring

def become_an_ordinary_user(limit):
    # Returns whether it is a user of its own: else other processes of the user may have rings, too.
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
    if os.getuid() != 0:
        return False
    os.setgroups([])
    os.setgid({user})
    os.setuid({user})
    return True

def check_echo(watcher):
    conn, peer = socket.socketpair()
    watcher.read(conn)
    peer.send(b"hello")
    (result,) = watcher.wait_io(60)
    watcher.write(conn, result.buffer)
    assert watcher.wait_io(60)[0].error is None
    assert peer.recv(10) == b"hello"
    watcher.free(conn)
    peer.close()

def offered():
    return {{backend.name: backend for backend in gaio.backends()}}
"""

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user who has no other ring")


def run(code: str, user: int = 0) -> str:
    return child.output_of(BEGINNING.format(user=user or 60_000 + os.getpid() % 5_000) + code)


@pytest.mark.parametrize("limit", LIMITS)
def test_a_watcher_works_and_says_on_what(limit: int) -> None:
    run(
        f"""
alone = become_an_ordinary_user({limit})
with gaio.Watcher() as watcher:
    check_echo(watcher)
    chosen = watcher.backend
found = gaio.backends()
assert found[0].available and (found[0].name == chosen or not alone), (chosen, found)
reason = offered()["io_uring"].reason
try:
    with gaio.Watcher(backend="io_uring") as watcher:
        check_echo(watcher)
except gaio.BackendUnavailableError as error:
    assert "RLIMIT_MEMLOCK" in str(error) and "ulimit -l" in str(error), error
    if alone:
        assert not offered()["io_uring"].available
        assert "RLIMIT_MEMLOCK" in reason, reason
        assert {limit} < 64 * 1024, "there is room for a ring"
"""
    )


@pytest.mark.parametrize("limit", LIMITS)
def test_the_command_says_why(limit: int) -> None:
    run(
        f"""
command = gaio.__main__
command.report(0.1)  # imports what it needs, which the user may not be allowed to read
become_an_ordinary_user({limit})
facts = command.report(0.1)
assert facts["echo"], facts
printed = command.as_text(facts)
assert offered()["io_uring"].available or "RLIMIT_MEMLOCK" in printed, printed
"""
    )


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize(("limit", "count"), [(64 * KIB, 30), (512 * KIB, 300), (8192 * KIB, 300)])
def test_hundreds_one_after_another(limit: int, count: int) -> None:
    """The memory of a closed ring is given back later, in the background. With room for few, each is waited for."""
    run(
        f"""
become_an_ordinary_user({limit})
for _ in range({count}):
    gaio.Watcher(backend="io_uring").close()
"""
    )


@needs_root
@pytest.mark.slow
def test_two_hundred_at_once() -> None:
    run(
        f"""
resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 1000))
become_an_ordinary_user({8192 * KIB})
watchers = [gaio.Watcher(backend="io_uring") for _ in range(200)]
for watcher in watchers:
    check_echo(watcher)
for watcher in watchers:
    watcher.close()
"""
    )


@needs_root
def test_beyond_the_limit_auto_takes_another() -> None:
    run(
        f"""
become_an_ordinary_user({512 * KIB})
watchers = [gaio.Watcher() for _ in range(50)]
for watcher in watchers:
    check_echo(watcher)
for watcher in watchers:
    watcher.close()
"""
    )


def test_little_address_space() -> None:
    """Enough for the swap arena and a thread, but not for the buffers of a ring as well."""
    output = run(
        """
def address_space():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmSize"))

LARGE = 1 << 20  # bytes a swap read: 64 MiB of arena, 256 MiB of buffers for a ring
_, hard = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (address_space() + (160 << 20), hard))
with gaio.Watcher(swap_size=LARGE) as watcher:
    check_echo(watcher)
    print(watcher.backend)
try:
    gaio.Watcher(swap_size=LARGE, backend="io_uring")
except gaio.BackendUnavailableError as error:
    assert "RLIMIT_AS" in str(error), error
resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
gaio.Watcher(swap_size=LARGE, backend="io_uring").close()
"""
    )
    assert output == "epoll"


@pytest.mark.parametrize(
    ("swap_size", "incremental", "geometry"),
    [
        (1, True, (64 * KIB, 4, 64)),
        (64 * KIB, True, (256 * KIB, 4, 64)),
        (1024 * KIB, True, (4096 * KIB, 4, 64)),
        (4096 * KIB, True, (16384 * KIB, 4, 64)),  # a GiB, the most but for buffers that are larger yet
        (8192 * KIB, True, (32768 * KIB, 4, 32)),
        (65536 * KIB, True, (262144 * KIB, 4, 4)),
        (131072 * KIB, True, (524288 * KIB, 4, 4)),
        (1, False, (1, 64, 1024)),
        (64 * KIB, False, (16 * KIB, 64, 1024)),
    ],
)
def test_address_space_for_buffers(swap_size: int, incremental: bool, geometry: tuple[int, int, int]) -> None:
    """Bytes of a buffer, how many at first, and the most."""
    assert buffer_geometry(swap_size, incremental) == geometry
