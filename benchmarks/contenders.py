"""Who is measured: for each contender how its server is started, what it can answer, and why it may be missing."""
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass

from . import places

Available = Callable[[], str]    # "" when the contender can run here, else what is missing


@dataclass(frozen=True)
class Request:
    """What a server is asked to be."""
    protocol: str = "echo"     # echo, ping (RESP) or http
    life: int = 60             # seconds after which it ends by itself
    burn: bool = False         # a thread computing without pause in the same process
    size: int = 64             # of the messages that will come: for contenders with buffers of their own


@dataclass(frozen=True)
class Contender:
    name: str
    title: str
    command: Callable[[Request], list[str]]
    missing: Available
    protocols: frozenset[str] = frozenset({"echo", "ping", "http"})
    can_burn: bool = True      # a Python thread can compute in its process
    is_gaio: bool = False


def _python_server(module: str, *extra: str) -> Callable[[Request], list[str]]:
    def command(request: Request) -> list[str]:
        return [
            sys.executable, "-m", f"benchmarks.servers.{module}", "--protocol", request.protocol,
            "--life", str(request.life), "--buffer-size", str(max(request.size, 1024)),
            *(["--burn"] if request.burn else []), *extra,
        ]
    return command


def _always() -> str:
    return ""


def _needs_package(name: str) -> Available:
    return lambda: "" if importlib.util.find_spec(name) else f"pip install {name}"


def _epoll_server(request: Request) -> list[str]:
    return [str(places.compile_c(places.EPOLL_SERVER)), str(request.life)]


def _gaio_backend(backend: str) -> Available:
    def missing() -> str:
        import gaio
        for candidate in gaio.backends():
            if candidate.name == backend:
                return "" if candidate.available else candidate.reason
        return f"gaio.backends() does not offer {backend} on this system"
    return missing


def _gaio_contenders(backend: str) -> list[Contender]:
    return [
        Contender(f"gaio-{backend}", f"gaio ({backend}, swap buffers)",
                  _python_server("gaio_watcher", "--backend", backend), _gaio_backend(backend), is_gaio=True),
        Contender(f"gaio-{backend}-caller", f"gaio ({backend}, caller buffers)",
                  _python_server("gaio_watcher", "--backend", backend, "--variant", "caller"),
                  _gaio_backend(backend), frozenset({"echo"}), is_gaio=True),
    ]


ALL: list[Contender] = [
    Contender("c_epoll", "C epoll server", _epoll_server, _always, frozenset({"echo"}), can_burn=False),
    Contender("uvloop", "uvloop protocol", _python_server("uvloop_protocol"), _needs_package("uvloop")),
    Contender("asyncio", "asyncio protocol", _python_server("asyncio_protocol"), _always),
    Contender("asyncio-streams", "asyncio streams", _python_server("asyncio_streams"), _always),
    Contender("trio", "trio", _python_server("trio_streams"), _needs_package("trio")),
    Contender("gevent", "gevent StreamServer", _python_server("gevent_streamserver"), _needs_package("gevent")),
    Contender("plain-stdlib", "plain stdlib version of gaio's API", _python_server("plain_stdlib"), _always),
    Contender("plain-stdlib-caller", "plain stdlib version, caller buffers",
              _python_server("plain_stdlib", "--variant", "caller"), _always, frozenset({"echo"})),
    *_gaio_contenders("epoll"),
    *_gaio_contenders("io_uring"),
]
BY_NAME = {contender.name: contender for contender in ALL}
