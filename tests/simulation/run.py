"""One seed from its beginning to its end."""

from __future__ import annotations

import gc
import socket
from collections.abc import Callable

from tests.simulation.program import Simulation


class Failure(Exception):
    """What a seed has found."""


def run(seed: int, say: Callable[[str], object] | None = None) -> tuple[int, float]:
    """Run it; returns its results and a number that only the same run ends with. `Failure` when it went wrong."""
    was_enabled = gc.isenabled()
    gc.disable()  # what is let go must be gone without it
    try:
        with socket.socket() as descriptor:
            simulation = Simulation(seed, descriptor, say)
            try:
                simulation.run()
            except Exception as error:
                simulation.leave()
                raise Failure(
                    f"seed {seed}: {type(error).__name__}: {error}\n"
                    f"    python3 -m tests.simulation --seed {seed} --verbose"
                ) from error
            finally:
                simulation.leave_the_limit()
            return simulation.digest()
    finally:
        if was_enabled:
            gc.enable()
