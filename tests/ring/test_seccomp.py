"""A seccomp filter, as containers have one, that refuses all of io_uring or one of its calls alone."""

from __future__ import annotations

import pytest

from tests import child

pytestmark = pytest.mark.usefixtures("backend")

CALLS = {"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427}
ADVICE = {"EPERM": "seccomp", "EACCES": "seccomp", "ENOSYS": "a filter hides it"}

PROGRAM = """
import ctypes, errno, socket, struct
import gaio

# seccomp(2), <linux/filter.h>: load the number of the system call; if it is this one, return the error; else allow.
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LD_W_ABS, JEQ, RET = 0x20, 0x15, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000

class sock_fprog(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

def refuse(number, error):
    filter = b"".join(struct.pack("=HBBI", *step) for step in (
        (LD_W_ABS, 0, 0, 0), (JEQ, 0, 1, number), (RET, 0, 0, ERRNO | error), (RET, 0, 0, ALLOW)))
    code = ctypes.create_string_buffer(filter)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    assert prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    program = sock_fprog(len(filter) // 8, ctypes.addressof(code))
    assert prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program), 0, 0) == 0

if {before}:
    gaio.Watcher(backend="io_uring").close()
refuse({number}, errno.{error})
with gaio.Watcher() as watcher:
    assert watcher.backend == "epoll"
    conn, peer = socket.socketpair()
    watcher.write(conn, b"hello")
    assert watcher.wait_io(60)[0].error is None
    assert peer.recv(10) == b"hello"
    peer.close()
offered = {{backend.name: backend for backend in gaio.backends()}}
assert not offered["io_uring"].available
assert {advice!r} in offered["io_uring"].reason, offered
try:
    gaio.Watcher(backend="io_uring")
except gaio.BackendUnavailableError as refused:
    assert {advice!r} in str(refused) and {name!r} in str(refused), refused
    assert refused.errno == errno.{error}
    print("good")
"""


@pytest.mark.parametrize("before", [False, True], ids=["from the start", "after io_uring was used"])
@pytest.mark.parametrize("error", ADVICE)
@pytest.mark.parametrize("name", CALLS)
def test_a_refused_call(name: str, error: str, before: bool) -> None:
    code = PROGRAM.format(before=before, number=CALLS[name], error=error, advice=ADVICE[error], name=name)
    assert child.output_of(code) == "good"
