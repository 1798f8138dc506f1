"""The peers' packages in a virtual environment of their own, and the machine described for the report."""

import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import ssl
import subprocess
import sys
import time
import venv

from . import places
from .processes import usable_processors

# The `bench` extra in pyproject.toml names the same.
PACKAGES = ("uvloop", "gevent", "trio", "uvicorn", "httptools", "waitress", "gunicorn", "cheroot", "matplotlib")


def enter() -> None:
    """When this interpreter lacks a peer, start again in .venv-bench, which is made on first use."""
    if all(importlib.util.find_spec(name) for name in PACKAGES):
        return
    home = places.VIRTUAL_ENVIRONMENTS / str(sys.implementation.cache_tag)
    python = home / "bin" / "python"
    if home.exists() and os.path.samefile(sys.prefix, home):
        return  # already there: a package that could not be installed is reported as a missing contender
    if not python.exists():
        print(f"making {home.relative_to(places.PROJECT)} with {', '.join(PACKAGES)} (once)", flush=True)
        venv.create(home, with_pip=True, clear=True)
        (places.VIRTUAL_ENVIRONMENTS / ".gitignore").write_text("*\n")
    for name in PACKAGES:
        _install(str(python), name)
    os.chdir(places.PROJECT)
    os.execv(python, [str(python), "-m", "benchmarks", *sys.argv[1:]])


def _install(python: str, name: str) -> None:
    """Each on its own: a peer without a wheel for this interpreter must not take the others away."""
    found = subprocess.run(
        [python, "-c", f"import {name}"], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if found.returncode == 0:
        return
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", name],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        print(f"pip install {name} failed: {done.stderr.strip().splitlines()[-1:]}", flush=True)


def raise_descriptor_limit() -> int:
    """As many descriptors as this user may have, for this process and the servers it starts."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1 << 20


def lacking(group: str) -> str:
    """ "" when the loads of this group can be made here, else what for that is not there, and how to get it."""
    if group == "ping":
        return _missing_tool("redis-benchmark", "redis-tools")
    if group in ("http", "wsgi"):
        return _missing_tool("wrk", "wrk")
    if group in ("uvicorn", "uvicorn-burn"):
        packages = [name for name in ("uvicorn", "httptools") if not importlib.util.find_spec(name)]
        return _missing_tool("wrk", "wrk") or (f"pip install {' '.join(packages)}" if packages else "")
    if group == "tls":
        return _missing_tool("openssl", "openssl") or places.not_built(places.tls_load, places.certificate)
    return ""


def _missing_tool(name: str, package: str) -> str:
    return "" if shutil.which(name) else f"{name} is not installed (Debian: apt install {package})"


def describe() -> dict[str, str]:
    """What the figures depend on, for the head of the report."""
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "processor": _processor(),
        "processors usable": str(len(usable_processors())),
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "OpenSSL": ssl.OPENSSL_VERSION,
    }
    for name in PACKAGES:
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = "not installed"
    return facts


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return platform.machine()
