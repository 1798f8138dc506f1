"""Where things are, and how the programs that are not Python are compiled: on the spot."""

import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
BUILD = HERE / ".build"
RESULTS = HERE / "results"
VIRTUAL_ENVIRONMENTS = PROJECT / ".venv-bench"  # one for each version of Python

ECHO_LOAD = HERE / "load" / "echo_load.c"
PUSH_LOAD = HERE / "load" / "push_load.c"
EPOLL_SERVER = HERE / "servers" / "epoll_server.c"
GO_GAIO = HERE / "servers" / "go_gaio"


class CannotBuild(Exception):
    """A program could not be made; the message says what is missing."""


@functools.cache
def compile_c(source: Path, *options: str) -> Path:
    """The program made from one C file and the headers beside it; made again only when they have changed."""
    name = "".join([source.stem, *options])
    program = BUILD / f"{name}-{_fingerprint(source, *sorted(source.parent.glob('*.h')))}"
    if program.exists():
        return program
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise CannotBuild("no C compiler (Debian: apt install gcc libc6-dev)")
    _build([compiler, "-O2", "-Wall", "-Wextra", "-o", "{program}", str(source), *options], program, cwd=HERE)
    return program


def echo_load() -> Path:
    return compile_c(ECHO_LOAD)


def push_load() -> Path:
    return compile_c(PUSH_LOAD)


def tls_load() -> Path:
    try:
        return compile_c(ECHO_LOAD, "-DTLS", "-lssl", "-lcrypto")
    except CannotBuild as problem:
        raise CannotBuild(f"{problem} (Debian: apt install libssl-dev)") from None


@functools.cache
def certificate() -> Path:
    """For servers that speak TLS, signed by itself: the certificate and its key in one file."""
    both = BUILD / "certificate.pem"
    if not both.exists():
        kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "10000"]
        # Asked to write both to the same file, it puts one behind the other.
        files = ["-keyout", "{program}", "-out", "{program}"]
        _build(["openssl", "req", "-x509", *kind, "-subj", "/CN=localhost", *files], both, cwd=HERE)
    return both


@functools.cache
def compile_go_gaio() -> Path:
    """The echo server on Go's gaio, a module that comes from wherever the user's Go takes modules from."""
    program = BUILD / f"go_gaio-{_fingerprint(GO_GAIO / 'main.go', GO_GAIO / 'go.mod')}"
    if program.exists():
        return program
    go = shutil.which("go")
    if go is None:
        raise CannotBuild("no Go toolchain (https://go.dev/dl, 1.21 or later)")
    # In a copy, because `-mod=mod` completes go.mod and go.sum in place.
    copy = BUILD / "go_gaio_source"
    shutil.copytree(GO_GAIO, copy, dirs_exist_ok=True)
    _build([go, "build", "-mod=mod", "-o", "{program}", "."], program, cwd=copy)
    return program


def not_built(*builds: Callable[[], object]) -> str:
    """Why these cannot all be made, "" when they have been."""
    try:
        for build in builds:
            build()
    except CannotBuild as problem:
        return str(problem)
    return ""


def _fingerprint(*sources: Path) -> str:
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]


def _build(command: list[str], program: Path, cwd: Path) -> None:
    BUILD.mkdir(exist_ok=True)
    unfinished = program.with_name(f"{program.name}.{os.getpid()}")
    command = [part.format(program=unfinished) for part in command]
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise CannotBuild(str(problem)) from problem
    if done.returncode != 0:
        raise CannotBuild(" ".join(done.stderr.split())[:300])
    unfinished.rename(program)  # atomic: two benchmarks may build at the same time
