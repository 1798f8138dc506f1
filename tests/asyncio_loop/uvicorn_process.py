"""uvicorn, started as a user starts it."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
from collections.abc import Iterator

from tests.asyncio_loop import loops
from tests.environment import ROOT
from tests.server_process import PYTHON, Server, environment
from tests.waiting import LIMIT, Background

APPLICATION = "tests.asyncio_loop.uvicorn_application:app"


class Uvicorn(Server):
    def status(self) -> int:
        """Its exit status, when it has been told to stop. It must have complained of nothing since it started."""
        _, said = self.process.communicate(timeout=LIMIT)
        assert [line for line in said.splitlines() if not line.startswith("INFO: ")] == []
        assert said.endswith(f"Finished server process [{self.process.pid}]\n")
        return self.process.returncode


@contextlib.contextmanager
def uvicorn(loop: str, *options: str, listener: int | None = None) -> Iterator[Uvicorn]:
    """It serves the application, in development mode and with warnings as errors, on this loop.

    On a port of its own, unless it is given the descriptor of a listener or, with `--uds`, the path of one.
    """
    if listener is not None:
        options += ("--fd", str(listener))
    elif "--uds" not in options:
        options += ("--port", "0")
    chosen = "asyncio" if loop == loops.STDLIB else "gaio.asyncio:new_event_loop"
    # Until 0.49 or so, uvicorn's first choice for WebSockets was a part of `websockets` that warns of its age.
    usual = ("--ws", "websockets-sansio", "--no-access-log", "--no-date-header")
    process = subprocess.Popen(
        [*PYTHON, "-m", "uvicorn", APPLICATION, "--loop", chosen, *usual, *options],
        cwd=ROOT,
        env={**environment(), **loops.variables(loop)},
        pass_fds=() if listener is None else (listener,),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        line = said = ""
        while "Uvicorn running on" not in line:
            line = Background(process.stderr.readline).result()
            said += line
            assert line, said
        port = re.search(r"127\.0\.0\.1\D+(\d+)", line)
        server = Uvicorn(process, ("127.0.0.1", int(port[1]) if port else 0))
        yield server
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
            assert server.status() == 0
    finally:
        with process:
            process.kill()
