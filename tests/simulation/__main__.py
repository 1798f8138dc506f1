"""`python3 -m tests.simulation --seeds N`: so many runs of the engine, each of which a seed decides.

When one fails it tells what was violated, and the command that runs that seed again and prints every step.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
import traceback
import zlib

from tests.simulation.run import Failure, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20_000, help="how many (20,000)")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first of them (0)")
    parser.add_argument("--seed", type=int, help="this one only")
    parser.add_argument("--verbose", action="store_true", help="print every step")
    parser.add_argument("--digest", action="store_true", help="print a number that the same runs have in common")
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    if arguments.seed is not None:
        seeds = range(arguments.seed, arguments.seed + 1)
    began = time.perf_counter()
    digest = results = 0
    gc.disable()
    for seed in seeds:
        try:
            outcome = run(seed, print if arguments.verbose else None)
        except Failure as failure:
            if arguments.verbose:
                traceback.print_exception(type(failure), failure, failure.__traceback__)
            print(failure)
            return 1
        results += outcome[0]
        if not seed % 1000:
            gc.collect()  # the simulations themselves, which are cycles
        digest = zlib.crc32(repr(outcome).encode(), digest)
    seconds = time.perf_counter() - began
    print(f"{len(seeds)} seeds, {results} results, no violation; {len(seeds) / seconds:.0f} seeds a second")
    if arguments.digest:
        print(f"digest {digest:08x}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
