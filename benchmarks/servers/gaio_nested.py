"""gaio inside asyncio: the loop waits for the watcher's descriptor, and harvests without waiting."""

import asyncio
from typing import TYPE_CHECKING, cast

import gaio

from . import common

if TYPE_CHECKING:
    from gaio import BackendName


async def serve(watcher: gaio.Watcher) -> None:
    def harvest() -> None:
        for result in watcher.wait_io(0):
            if result.operation is gaio.READ:
                if result.error is None:
                    watcher.write(result.conn, result.buffer)
                else:
                    watcher.free(result.conn)
            elif result.operation is gaio.ACCEPT and result.accepted is not None:
                watcher.read_start(result.accepted)

    asyncio.get_running_loop().add_reader(watcher.fileno(), harvest)
    watcher.accept_start(common.listen())
    await asyncio.Event().wait()


def main() -> None:
    options = common.start()
    asyncio.run(serve(gaio.Watcher(backend=cast("BackendName", options.backend))))


if __name__ == "__main__":
    main()
