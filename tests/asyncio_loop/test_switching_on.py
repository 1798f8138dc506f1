"""The lines of docs/asyncio.md that switch the loop on, but for those that the other tests here use."""

from __future__ import annotations

import signal
import sys

import pytest

from tests import backends, child
from tests.environment import ROOT
from tests.examples.real_clients import curl
from tests.server_process import PYTHON, listening


@pytest.fixture(params=backends.on_a_real_kernel())
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def is_on_the_page(line: str) -> bool:
    return f"`{line}`" in (ROOT / "docs" / "asyncio.md").read_text(encoding="utf-8")


# In development mode asyncio warns of a callback that takes a tenth of a second: on a busy machine any may.
IMPORTS = """
import asyncio, gaio.asyncio, logging, socket
logging.getLogger("asyncio").setLevel(logging.ERROR)
"""
LISTENING = """
listener = socket.create_server(("127.0.0.1", 0))
"""
SERVING = 'print("listening on %s:%d" % listener.getsockname(), flush=True)\n'
ASGI = """
async def app(scope, receive, send):
    if scope["type"] == "http":
        text = asyncio.get_running_loop().watcher.backend.encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": text})
"""

LINES = {
    "aiohttp": "web.run_app(app, loop=gaio.asyncio.new_event_loop())",
    "hypercorn": "gaio.asyncio.run(hypercorn.asyncio.serve(app, config))",
}
PROGRAMS = {
    "aiohttp": """
from aiohttp import web
async def which(request):
    return web.Response(text=asyncio.get_running_loop().watcher.backend)
app = web.Application()
app.add_routes([web.get("/", which)])
"""
    + SERVING
    + LINES["aiohttp"].replace("(app,", "(app, sock=listener, print=None, access_log=None,"),
    "hypercorn": ASGI
    + SERVING
    + """
import hypercorn.asyncio, hypercorn.config
config = hypercorn.config.Config()
config.bind = [f"fd://{listener.detach()}"]
config.loglevel = "ERROR"
"""
    + LINES["hypercorn"],
}


@pytest.mark.parametrize("program", list(PROGRAMS))
def test_servers(program: str, backend: str) -> None:
    pytest.importorskip(program)
    assert is_on_the_page(LINES[program])
    set_backend = f"import os; os.environ['GAIO_BACKEND'] = {backend!r}\n"
    with listening(*PYTHON, "-c", set_backend + IMPORTS + LISTENING + PROGRAMS[program]) as server:
        assert curl(server, "/").decode() == backend
        assert server.stop(signal.SIGTERM) == (0, "")


CONNECTED = """
    async def client(reader, writer):
        writer.close()
    async with await asyncio.start_server(client, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
    print(asyncio.get_running_loop().watcher.backend)
"""
RUN = {
    "any": ("gaio.asyncio.run(main())", "", (3, 10)),
    "3.11": (
        "with asyncio.Runner(loop_factory=gaio.asyncio.new_event_loop) as runner:",
        " runner.run(main())",
        (3, 11),
    ),
    "3.12": ("asyncio.run(main(), loop_factory=gaio.asyncio.new_event_loop)", "", (3, 12)),
    "anyio": (
        'anyio.run(main, backend_options={"loop_factory": gaio.asyncio.new_event_loop})',
        "",
        (3, 10),
    ),
}


@pytest.mark.parametrize("way", list(RUN))
def test_programs(way: str, backend: str) -> None:
    line, rest, since = RUN[way]
    assert is_on_the_page(line)
    if sys.version_info < since:
        pytest.skip(f"asyncio offers this from Python {'.'.join(map(str, since))} on")
    imports = IMPORTS
    if way == "anyio":
        pytest.importorskip("anyio")
        imports += "import anyio\n"
    code = f"{imports}async def main():{CONNECTED}{line}{rest}"
    assert child.output_of(code, GAIO_BACKEND=backend) == backend


