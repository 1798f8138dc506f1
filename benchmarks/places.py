"""Where things are: directories of the benchmark and the system's C compiler at work in them."""
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
BUILD = HERE / ".build"
RESULTS = HERE / "results"

ECHO_LOAD = HERE / "load" / "echo_load.c"
EPOLL_SERVER = HERE / "servers" / "epoll_server.c"


class CannotMeasure(Exception):
    """Something the benchmark needs is missing; the message says what to install."""


def compile_c(source: Path) -> Path:
    """The program made from one C file; made again only when the source has changed."""
    text = source.read_bytes()
    program = BUILD / f"{source.stem}-{hashlib.sha256(text).hexdigest()[:12]}"
    if program.exists():
        return program
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise CannotMeasure("the load generator is a C program: install a C compiler (Debian: apt install gcc libc6-dev)")
    BUILD.mkdir(exist_ok=True)
    unfinished = program.with_suffix(f".{os.getpid()}")
    subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-o", str(unfinished), str(source)], check=True)
    unfinished.rename(program)  # atomic: two benchmarks may compile at the same time
    return program
