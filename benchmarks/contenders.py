"""Who is measured: how each contender's server is started, what it can do, and why it may be missing."""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass

from . import places

Missing = Callable[[], str]  # "" when the contender can run here, else why not


@dataclass(frozen=True)
class Request:
    """What a server is asked to be."""

    protocol: str = "echo"  # one of those in servers/common.py
    life: int = 60  # seconds after which it ends by itself
    burn: bool = False  # a thread computing without pause in the same process
    size: int = 64  # of the messages that will come (for contenders with buffers of their own) or are pushed
    flow_control: bool = False  # peers that do not take their answers are not read from


USUAL = frozenset({"echo", "ping", "http"})
# What stands on asyncio, and so runs on any loop for it.
ON_A_LOOP = frozenset({"streams", "tls", "uvicorn"})


@dataclass(frozen=True)
class Contender:
    name: str
    title: str
    missing: Missing
    command: Callable[[Request], list[str]] | None = (
        None  # None: serves nothing, is a floor for single requests
    )
    protocols: frozenset[str] = USUAL
    can_burn: bool = True  # a Python thread can compute in its process
    caller_buffers: bool = False  # reads into buffers that each connection owns
    flow_control: bool = False  # does not read from who leaves answers untaken, or can be asked not to
    asyncio_on_gaio: bool = False  # takes part where loops are compared, see Load.loops
    single_request: str = ""  # its name in single_request.py, where it takes part in that
    quick: bool = False  # takes part in a --quick run

    @property
    def is_gaio(self) -> bool:
        return self.name.startswith("gaio-")


def _python_server(module: str, *extra: str) -> Callable[[Request], list[str]]:
    def command(request: Request) -> list[str]:
        return [
            sys.executable,
            "-m",
            f"benchmarks.servers.{module}",
            "--protocol",
            request.protocol,
            "--life",
            str(request.life),
            "--buffer-size",
            str(_buffer_size(request)),
            "--message-size",
            str(request.size),
            *(["--burn"] if request.burn else []),
            *(["--flow-control"] if request.flow_control else []),
            *extra,
        ]

    return command


def _loop_server(loop: str, *extra: str) -> Callable[[Request], list[str]]:
    return _python_server("asyncio_server", "--loop", loop, *extra)


def _buffer_size(request: Request) -> int:
    """Buffers of a sensible size for the messages that come, chosen by one who knows the traffic."""
    return max(request.size, 1024)


def _wsgi_server(variant: str, *extra: str) -> Callable[[Request], list[str]]:
    return _python_server("wsgi", "--variant", variant, *extra)


def _nothing() -> str:
    return ""


def _package(name: str) -> Missing:
    return lambda: "" if importlib.util.find_spec(name) else f"pip install {name}"


def _epoll_server(request: Request) -> list[str]:
    return [str(places.compile_c(places.EPOLL_SERVER)), str(request.life)]


def _go_gaio(request: Request) -> list[str]:
    return [str(places.compile_go_gaio()), str(request.life), str(_buffer_size(request))]


def _built(build: Callable[[], object]) -> Missing:
    return lambda: places.not_built(build)


def _gaio_backend(backend: str) -> Missing:
    def missing() -> str:
        import gaio

        for candidate in gaio.backends():
            if candidate.name == backend:
                return "" if candidate.available else candidate.reason
        return f"gaio.backends() does not name {backend} on this system"

    return missing


def _gaio_contenders(backend: str) -> list[Contender]:
    return [
        Contender(
            f"gaio-{backend}",
            f"gaio {backend}",
            _gaio_backend(backend),
            _python_server("gaio_watcher", "--backend", backend),
            USUAL | {"push"},
            flow_control=True,
            single_request=f"gaio-{backend}",
            quick=True,
        ),
        Contender(
            f"gaio-{backend}-oneshot",
            f"gaio {backend}, a read for each message",
            _gaio_backend(backend),
            _python_server("gaio_watcher", "--backend", backend, "--variant", "oneshot"),
            single_request=f"gaio-{backend}-oneshot",
        ),
        Contender(
            f"gaio-{backend}-caller",
            f"gaio {backend}, caller buffers",
            _gaio_backend(backend),
            _python_server("gaio_watcher", "--backend", backend, "--variant", "caller"),
            frozenset({"echo"}),
            caller_buffers=True,
            flow_control=True,
            quick=True,
        ),
        Contender(
            f"gaio-{backend}-nested",
            f"gaio {backend}, inside asyncio",
            _gaio_backend(backend),
            _python_server("gaio_nested", "--backend", backend),
            frozenset({"echo"}),
        ),
        Contender(
            f"gaio-wsgi-{backend}",
            f"examples/wsgi_server on gaio {backend}",
            _gaio_backend(backend),
            _wsgi_server("gaio", "--backend", backend),
            frozenset({"wsgi"}),
        ),
        Contender(
            f"gaio-tls-{backend}",
            f"gaio.tls {backend}",
            _gaio_backend(backend),
            _python_server("gaio_tls", "--backend", backend),
            frozenset({"tls"}),
        ),
        Contender(
            f"gaio-asyncio-{backend}",
            f"asyncio on gaio {backend}",
            _gaio_backend(backend),
            _loop_server("gaio", "--backend", backend),
            ON_A_LOOP | {"echo"},
            asyncio_on_gaio=True,
            quick=backend == "io_uring",  # for both there is no time
        ),
        Contender(
            f"gaio-asyncio-{backend}-buffered",
            f"asyncio on gaio {backend}, BufferedProtocol",
            _gaio_backend(backend),
            _loop_server("gaio", "--backend", backend, "--variant", "buffered"),
            frozenset({"echo"}),
            caller_buffers=True,
            asyncio_on_gaio=True,
        ),
    ]


ALL: list[Contender] = [
    Contender("blocking-socket", "a blocking socket", _nothing, single_request="blocking-socket", quick=True),
    Contender(
        "c_epoll",
        "C epoll server",
        _built(lambda: places.compile_c(places.EPOLL_SERVER)),
        _epoll_server,
        frozenset({"echo"}),
        can_burn=False,
        quick=True,
    ),
    Contender(
        "uvloop",
        "uvloop",
        _package("uvloop"),
        _loop_server("uvloop"),
        USUAL | ON_A_LOOP | {"push"},
        single_request="uvloop",
        quick=True,
    ),
    Contender(
        "asyncio",
        "asyncio",
        _nothing,
        _loop_server("asyncio"),
        USUAL | ON_A_LOOP | {"push"},
        single_request="asyncio",
        quick=True,
    ),
    Contender(
        "uvloop-buffered",
        "uvloop BufferedProtocol",
        _package("uvloop"),
        _loop_server("uvloop", "--variant", "buffered"),
        frozenset({"echo"}),
        caller_buffers=True,
    ),
    Contender(
        "asyncio-buffered",
        "asyncio BufferedProtocol",
        _nothing,
        _loop_server("asyncio", "--variant", "buffered"),
        frozenset({"echo"}),
        caller_buffers=True,
    ),
    Contender(
        "asyncio-streams",
        "asyncio streams",
        _nothing,
        _loop_server("asyncio", "--variant", "streams"),
        flow_control=True,
    ),
    Contender("trio", "trio", _package("trio"), _python_server("trio_streams"), flow_control=True),
    Contender(
        "gevent", "gevent StreamServer", _package("gevent"), _python_server("gevent_streamserver"), flow_control=True
    ),
    Contender(
        "go-gaio",
        "Go gaio",
        _built(places.compile_go_gaio),
        _go_gaio,
        frozenset({"echo"}),
        can_burn=False,
        caller_buffers=True,
    ),
    Contender(
        "plain-stdlib",
        "plain stdlib",
        _nothing,
        _python_server("plain_stdlib"),
        single_request="plain-stdlib",
        quick=True,
    ),
    Contender(
        "plain-stdlib-caller",
        "plain stdlib, caller buffers",
        _nothing,
        _python_server("plain_stdlib", "--variant", "caller"),
        frozenset({"echo"}),
        caller_buffers=True,
    ),
    *(
        Contender(name, title, _package(name), _wsgi_server(name), frozenset({"wsgi"}))
        for name, title in (("waitress", "waitress"), ("gunicorn", "gunicorn gthread"), ("cheroot", "cheroot"))
    ),
    *_gaio_contenders("epoll"),
    *_gaio_contenders("io_uring"),
]
BY_NAME = {contender.name: contender for contender in ALL}
