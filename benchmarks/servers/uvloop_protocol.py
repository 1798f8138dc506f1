"""uvloop with a Protocol: the server of asyncio_protocol.py under `uvloop.run()`, as uvloop's README says."""

import uvloop

from . import common
from .asyncio_protocol import serve

if __name__ == "__main__":
    uvloop.run(serve(common.start()))
