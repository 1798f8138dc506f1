"""The server of every event loop for asyncio: one program, in which `--loop` changes nothing but the loop.

asyncio_protocol.py, asyncio_streams.py and asyncio_uvicorn.py are what it runs.
"""

import asyncio
import os

from . import asyncio_protocol, asyncio_streams, common


def new_loop(options: common.Options) -> asyncio.AbstractEventLoop:
    # Imported where it is asked for: each server has only its own loop in memory, and uvloop need not be there.
    if options.loop == "gaio":
        import gaio.asyncio

        os.environ["GAIO_BACKEND"] = options.backend
        return gaio.asyncio.new_event_loop()
    if options.loop == "uvloop":
        import uvloop

        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        return loop
    return asyncio.new_event_loop()


def main() -> None:
    options = common.start()
    loop = new_loop(options)
    if options.protocol == "uvicorn":
        from . import asyncio_uvicorn

        serve = asyncio_uvicorn.serve(common.listen())
    elif "streams" in (options.protocol, options.variant):
        serve = asyncio_streams.serve(options)
    else:
        serve = asyncio_protocol.serve(options)
    # Not asyncio.run(): Python 3.10 and 3.11 do not let it be told of a loop.
    loop.run_until_complete(serve)


if __name__ == "__main__":
    main()
