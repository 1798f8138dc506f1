"""The figures the project set itself, held against the medians of one run."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .contenders import BY_NAME
from .loads import Load
from .summary import Point, Summary

BACKENDS = ("epoll", "io_uring")
ASYNCIO = "gaio-asyncio-"  # asyncio on gaio
WSGI = "gaio-wsgi-"  # examples/wsgi_server


@dataclass(frozen=True)
class Verdict:
    """One row: a ratio to a peer for each backend, or an absolute figure in `unit`."""

    work: str
    against: str
    wanted: float
    reached: dict[str, float]  # backend -> ratio or figure; a backend that was not measured is not in it
    unit: str = "x"
    at_most: bool = False  # the figure must not exceed what is wanted

    @property
    def best(self) -> float:
        return min(self.reached.values()) if self.at_most else max(self.reached.values())

    @property
    def passed(self) -> bool:
        return self.best <= self.wanted if self.at_most else self.best >= self.wanted


@dataclass(frozen=True)
class Ratio:
    """Requests a second at one point, gaio's over a peer's (a contender; it is named by its title)."""

    point: Point
    peer: str
    wanted: float
    prefix: str = "gaio-"  # of the contender that is gaio: the backend follows
    backends: tuple[str, ...] = BACKENDS

    def judge(self, found: dict[Point, Summary]) -> Verdict | None:
        summary = found.get(self.point, {})
        peer = rate(summary, self.peer)
        reached = {
            backend: own / peer
            for backend in self.backends
            if peer and (own := rate(summary, self.prefix + backend))
        }
        work = self.point.title + (", asyncio on gaio" if self.prefix == ASYNCIO else "")
        if self.backends == ("epoll",):
            work += ", epoll backend"
        return Verdict(work, BY_NAME[self.peer].title, self.wanted, reached) if reached else None


def rate(summary: Summary, contender: str) -> float:
    figures = summary.get(contender, {})
    return figures["requests_per_second"].median if "requests_per_second" in figures else 0.0


def echo(connections: int, placement: str, size: int = 64) -> Point:
    return Point("echo", connections, size, 0, placement)


def ratios() -> Iterator[Ratio]:
    for connections, over_c, epoll_over_uvloop in ((64, 0.82, 0.85), (1000, 0.8, 0.75)):
        point = echo(connections, "pinned")
        yield Ratio(point, "uvloop", 1.0)
        yield Ratio(point, "uvloop", epoll_over_uvloop, backends=("epoll",))
        yield Ratio(point, "c_epoll", over_c)
        yield Ratio(point, "asyncio", 3.5)
        yield Ratio(point, "go-gaio", 1.5)
        yield Ratio(point, "plain-stdlib", 1.4)
    yield Ratio(echo(64, "pinned"), "asyncio-buffered", 1.25)
    yield Ratio(Point("tls", 64, 1024, 0, "pinned"), "asyncio", 1.2, "gaio-tls-")
    yield Ratio(echo(8, "pinned"), "uvloop", 0.9)
    for connections, over_uvloop, over_asyncio in ((1, 0.8, 1.0), (8, 0.9, 2.5), (64, 0.8, 3.5)):
        yield Ratio(echo(connections, "free"), "uvloop", over_uvloop)
        yield Ratio(echo(connections, "free"), "asyncio", over_asyncio)
    for placement in ("pinned", "free"):
        for connections in (1, 16):
            yield Ratio(echo(connections, placement, 65536), "uvloop", 1.0)
        yield Ratio(Point("push", 1000, 100, 0, placement), "asyncio", 2.0)
        yield Ratio(Point("burn", 64, 64, 0, placement), "asyncio", 5.0)


def ratios_of_asyncio() -> Iterator[Ratio]:
    """Of asyncio on gaio: the same program on another loop."""
    for connections in (64, 1000):
        point = echo(connections, "pinned")
        yield Ratio(point, "asyncio", 3.5, ASYNCIO)
        yield Ratio(point, "asyncio-buffered", 1.15, ASYNCIO)
        yield Ratio(point, "uvloop", 0.95, ASYNCIO)
    yield Ratio(echo(8, "free"), "uvloop", 0.85, ASYNCIO)
    for placement in ("pinned", "free"):
        yield Ratio(Point("streams", 64, 64, 0, placement), "asyncio", 1.5, ASYNCIO)
        yield Ratio(Point("uvicorn", 64, 0, 0, placement), "asyncio", 1.15, ASYNCIO)
        yield Ratio(Point("tls", 64, 1024, 0, placement), "asyncio", 1.1, ASYNCIO)
    yield Ratio(Point("uvicorn-burn", 64, 0, 0, "free"), "uvloop", 2.0, ASYNCIO)
    yield Ratio(Point("burn", 64, 64, 0, "free"), "uvloop", 4.0, ASYNCIO)
    yield Ratio(Point("burn", 64, 64, 0, "free"), "asyncio", 50.0, ASYNCIO)
    yield Ratio(Point("burn", 64, 64, 0, "pinned"), "uvloop", 1.0, ASYNCIO)


def ratios_of_wsgi() -> Iterator[Ratio]:
    for placement in ("pinned", "free"):
        for connections, wanted in ((1, 1.0), (8, 2.0), (64, 3.0)):
            for peer in ("waitress", "gunicorn", "cheroot"):
                yield Ratio(Point("wsgi", connections, 0, 0, placement), peer, wanted, WSGI)


def judge(found: dict[Point, Summary]) -> list[Verdict]:
    """A row for each target whose figures are in this run."""
    judges: list[Callable[[dict[Point, Summary]], Verdict | None]] = [ratio.judge for ratio in ratios()]
    judges += [_many_connections, _memory, _flood, _neighbours, _import]
    judges += [ratio.judge for ratio in ratios_of_asyncio()]
    judges += [_memory_of_asyncio]
    judges += [ratio.judge for ratio in ratios_of_wsgi()]
    return [verdict for one in judges if (verdict := one(found)) is not None]


MEMORY = f"{Load('memory', 8000).title}, served once"


def _memory(found: dict[Point, Summary]) -> Verdict | None:
    reached = {backend: served for backend in BACKENDS if (served := _bytes_served(found, f"gaio-{backend}"))}
    return Verdict(MEMORY, "absolute", 800, reached, "bytes", at_most=True) if reached else None


def _memory_of_asyncio(found: dict[Point, Summary]) -> Verdict | None:
    peer = _bytes_served(found, "asyncio")
    reached = {
        backend: own / peer
        for backend in BACKENDS
        if peer and (own := _bytes_served(found, ASYNCIO + backend))
    }
    work = f"{MEMORY}, asyncio on gaio"
    return Verdict(work, BY_NAME["asyncio"].title, 1.0, reached, at_most=True) if reached else None


def _bytes_served(found: dict[Point, Summary], contender: str) -> float:
    # Measured in one placement, and which one makes no difference.
    for point, summary in found.items():
        if (point.group, point.connections) == ("memory", 8000):
            figures = summary.get(contender, {})
            return served.median if (served := figures.get("served_bytes_per_connection")) else 0.0
    return 0.0


def _many_connections(found: dict[Point, Summary]) -> Verdict | None:
    many, some = found.get(echo(8000, "pinned"), {}), found.get(echo(64, "pinned"), {})
    reached = {
        backend: own / at_64
        for backend in BACKENDS
        if (own := rate(many, f"gaio-{backend}")) and (at_64 := rate(some, f"gaio-{backend}"))
    }
    return Verdict(echo(8000, "pinned").title, "itself at 64 connections", 0.75, reached) if reached else None


def _flood(found: dict[Point, Summary]) -> Verdict | None:
    return _beside(found, Point("flood", 64, 64, 0, "pinned"), "")


def _neighbours(found: dict[Point, Summary]) -> Verdict | None:
    return _beside(found, Point("neighbours", 64, 64, 0, "pinned"), "-caller")


def _beside(found: dict[Point, Summary], point: Point, variant: str) -> Verdict | None:
    """The 99th percentile, a multiple of what it is without the neighbours."""
    reached = {
        backend: figures["p99_us"].median / figures["calm_p99_us"].median
        for backend in BACKENDS
        if (figures := found.get(point, {}).get(f"gaio-{backend}{variant}"))
    }
    work = f"p99, {point.title}" + (", caller buffers" if variant else "")
    return Verdict(work, "itself without", 3, reached, at_most=True) if reached else None


def _import(found: dict[Point, Summary]) -> Verdict | None:
    figures = found.get(Point("import", 0, 0, 0, "free"), {}).get("import gaio")
    if figures is None:
        return None
    return Verdict(
        "import gaio", "interpreter start", 15, {"any": figures["import_ms"].median}, "ms", at_most=True
    )
