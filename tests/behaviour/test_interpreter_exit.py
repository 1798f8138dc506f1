"""The end of the program, with watchers still open: clean, quick, and without a word."""

from __future__ import annotations

import textwrap

import pytest

from tests import child
from tests.backends import Name
from tests.environment import ROOT

OPEN = """
    import socket, sys, threading
    import gaio
    watcher = gaio.Watcher(backend={backend!r})
    conn, peer = socket.socketpair()
    full, full_peer = socket.socketpair()
    buffer = bytearray(1 << 20)
    watcher.read(conn)
    watcher.read_full(conn, buffer, timeout=3600)
    watcher.write(full, buffer)
    {ending}
    peer.close()
    full_peer.close()
"""
ENDINGS = {
    "at the last line": "",
    "with results waiting": "peer.sendall(b'x')",
    "after the consumer began": "assert watcher.wait_io(0) == []",
    "while a daemon thread waits": "threading.Thread(target=lambda: list(watcher), daemon=True).start()",
    "after close": "watcher.close()",
    "inside with": "watcher.__enter__()",
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
@pytest.mark.scenario(22)
def test_requests_pending_at_exit(backend: Name, ending: str) -> None:
    # It is the caller's fault, and a watcher may say so: then it is a ResourceWarning.
    code = OPEN.format(backend=backend, ending=ending)
    assert child.output_of(code, "-W", "ignore::ResourceWarning") == ""


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
@pytest.mark.scenario(22)
def test_the_watcher_is_closed_at_exit(backend: Name, ending: str) -> None:
    """And not by the kernel only, which closes whatever a process leaves: a handler that runs later finds it done."""
    code = """
        import atexit

        def look():  # registered first, and so run last
            assert watcher.closed
            assert watcher._leader.closed
            left = [thread.name for thread in threading.enumerate() if thread.name == "gaio-watcher"]
            assert not left, left
            for end in (kept_peer, kept_full_peer):
                end.setblocking(False)
                while end.recv(1 << 20):
                    pass
            print("closed")

        atexit.register(look)
    """
    kept = "kept_peer, kept_full_peer = peer.dup(), full_peer.dup()"
    program = textwrap.dedent(code) + textwrap.dedent(OPEN).format(backend=backend, ending=f"{kept}\n{ending}")
    assert child.output_of(program, "-W", "ignore::ResourceWarning") == "closed"


@pytest.mark.scenario(22)
def test_the_peer_sees_the_end_when_the_program_ends(backend: Name) -> None:
    program = """
        import socket, subprocess, sys
        import gaio
        from tests import child
        with socket.create_server(("127.0.0.1", 0)) as listener:
            code = '''if True:
                import socket, sys, gaio
                conn = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
                watcher = gaio.Watcher(backend={backend!r})
                watcher.write(conn, b"bye")
                watcher.wait_io(60)
            '''
            port = str(listener.getsockname()[1])
            with subprocess.Popen([sys.executable, "-c", child.program(code), port]) as process:
                with listener.accept()[0] as peer:
                    assert peer.recv(10) == b"bye"
                    assert peer.recv(10) == b""
                assert process.wait() == 0
        print("good")
    """
    assert child.output_of(program.format(backend=backend)) == "good"


def test_watchers_used_and_closed_leave_no_word(backend: Name) -> None:
    code = """
        import socket
        import gaio
        for _ in range(10):
            with gaio.Watcher(backend={backend!r}) as watcher:
                conn, peer = socket.socketpair()
                watcher.read(conn)
                watcher.write(conn, b"x")
                peer.sendall(b"y")
                assert peer.recv(1) == b"x"
                finished = []
                while len(finished) < 2:
                    finished += watcher.wait_io(60)
                watcher.free(conn)
                peer.close()
        print("good")
    """
    assert child.output_of(code.format(backend=backend)) == "good"


@pytest.mark.parametrize("option", ["-O", "-OO", "-I", "-S"])
def test_it_works_under_every_option_of_the_interpreter(backend: Name, option: str) -> None:
    """Without assert statements, without docstrings, isolated, without site-packages."""
    code = """
        import sys
        sys.path.insert(0, {root!r})
        import socket
        import gaio
        with gaio.Watcher(backend={backend!r}) as watcher:
            conn, peer = socket.socketpair()
            watcher.write(conn, b"x")
            print(peer.recv(1).decode(), len(watcher.wait_io(60)))
            peer.close()
    """
    assert child.output_of(code.format(backend=backend, root=str(ROOT)), option) == "x 1"
