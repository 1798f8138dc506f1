"""What is asked of the contenders: each load is one point of the report."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .contenders import Contender

GROUPS = (
    "echo",
    "streams",
    "tls",
    "uvicorn",
    "uvicorn-burn",
    "wsgi",
    "push",
    "idle",
    "burn",
    "flood",
    "neighbours",
    "ping",
    "http",
    "memory",
    "latency",
    "import",
)


@dataclass(frozen=True)
class Load:
    group: str
    connections: int = 0
    size: int = 0  # bytes a message
    idle: int = 0  # further connections, each with a read pending and nothing to read
    placements: tuple[str, ...] = ("pinned", "free")
    quick: bool = True  # part of a --quick run
    loops: bool = False  # asyncio on gaio takes part: not everywhere, since each contender more takes its time

    @property
    def protocol(self) -> str:
        """What the server is asked to speak."""
        if self.group in ("push", "ping", "http", "streams", "tls", "wsgi"):
            return self.group
        return "uvicorn" if self.group.startswith("uvicorn") else "echo"

    @property
    def burns(self) -> bool:
        """Whether a thread of the server computes meanwhile."""
        return self.group in ("burn", "uvicorn-burn")

    @property
    def counts(self) -> bool:
        """Whether system calls are counted: where every call of the server is for the requests of load/."""
        return self.group in ("echo", "streams", "tls", "push", "idle", "burn")

    @property
    def counts_quickly(self) -> bool:
        """Whether in a --quick run too, which has time for one point of each kind."""
        return self.group == "push" or (self.group, self.connections, self.size) == ("echo", 64, SMALL)

    @property
    def title(self) -> str:
        connections = f"{self.connections:,} connection{'s' if self.connections != 1 else ''}"
        return {
            "echo": f"echo of {_bytes(self.size)}, {connections}",
            "streams": f"echo of {_bytes(self.size)} by StreamReader and StreamWriter, {connections}",
            "tls": f"echo of {_bytes(self.size)} through TLS, {connections}",
            "uvicorn": f"uvicorn hello by wrk, {connections}",
            "uvicorn-burn": f"uvicorn hello by wrk, {connections}, a Python thread computing in the server",
            "wsgi": f"WSGI hello by wrk, {connections}",
            "push": f"push of one message of {_bytes(self.size)} to each of {connections}",
            "idle": f"echo of {_bytes(self.size)}, {connections} busy among {self.idle:,} idle ones",
            "burn": f"echo of {_bytes(self.size)}, {connections}, a Python thread computing in the server",
            "flood": f"echo of {_bytes(self.size)}, {connections}, beside one that sends as fast as it can",
            "neighbours": f"echo of {_bytes(self.size)}, {connections}, beside three bad neighbours",
            "ping": f"RESP PING by redis-benchmark, {connections}",
            "http": f"HTTP hello by wrk, {connections}",
            "memory": f"resident memory per idle connection that waits for data, {connections}",
            "latency": f"one request of {_bytes(self.size)} on a socketpair, submit to completion",
            "import": "import time beyond interpreter start",
        }[self.group]

    def suits(self, contender: Contender) -> bool:
        if self.group == "latency":
            return bool(contender.single_request)
        if contender.command is None or self.protocol not in contender.protocols:
            return False
        if contender.asyncio_on_gaio and not self.loops:
            return False
        if self.group in ("flood", "neighbours"):
            return contender.flow_control
        if self.burns:
            return contender.can_burn and not contender.caller_buffers
        # Buffers of the caller are the caller's memory: they would say nothing of the contender.
        return not (self.group in ("memory", "idle") and contender.caller_buffers)


def _bytes(size: int) -> str:
    return f"{size // 1024} KiB" if size >= 1024 else f"{size} B"


SMALL, MIDDLE, LARGE = 64, 1024, 65536

ALL = [
    Load("echo", 1, SMALL),
    Load("echo", 8, SMALL, loops=True),
    Load("echo", 64, SMALL, loops=True),
    Load("echo", 1000, SMALL, loops=True),
    Load("echo", 8000, SMALL, quick=False),
    Load("echo", 1, MIDDLE, quick=False),
    Load("echo", 64, MIDDLE, quick=False),
    Load("echo", 1000, MIDDLE, quick=False),
    Load("echo", 1, LARGE),
    Load("echo", 16, LARGE),
    Load("echo", 64, LARGE, quick=False),
    Load("streams", 64, SMALL, placements=("pinned",), loops=True),
    Load("tls", 64, MIDDLE, placements=("pinned",), quick=False, loops=True),
    Load("uvicorn", 64, quick=False, loops=True),
    Load("uvicorn-burn", 64, placements=("free",), quick=False, loops=True),
    Load("wsgi", 1, quick=False),
    Load("wsgi", 8, quick=False),
    Load("wsgi", 64, quick=False),
    Load("push", 1000, 100),
    Load("idle", 64, SMALL, idle=10_000, quick=False),
    Load("burn", 64, SMALL, loops=True),
    Load("flood", 64, SMALL, quick=False),
    Load("neighbours", 64, SMALL, quick=False),
    Load("ping", 64, quick=False),
    Load("http", 64, quick=False),
    Load("memory", 8000, placements=("free",), loops=True),
    Load("latency", 1, SMALL),
    Load("import", placements=("free",)),
]


def chosen(
    groups: Iterable[str], connections: Sequence[int], sizes: Sequence[int], quick: bool
) -> list[Load]:
    """The loads of these groups; numbers given for the echo replace the table above by their product."""
    wanted = set(groups)
    loads = [load for load in ALL if load.group in wanted and (load.quick or not quick)]
    if not connections and not sizes:
        return loads
    asked = [
        Load("echo", count, size, loops=True)
        for size in sizes or [SMALL]
        for count in connections or [1, 8, 64, 1000, 8000]
    ]
    return (asked if "echo" in wanted else []) + [load for load in loads if load.group != "echo"]
