"""`import gaio` does nothing but define names."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests import child
from tests.backends import Name


def test_import_starts_no_thread_and_opens_no_descriptor() -> None:
    code = """
        import ctypes, socket, struct  # what they do when they are imported is not gaio's doing
        from tests.leaks import in_use
        before = in_use()
        import gaio
        print(in_use().since(before))
    """
    assert child.output_of(code) == "[]"


def test_import_needs_nothing_but_the_standard_library() -> None:
    code = """
        import sys
        before = set(sys.modules)
        import gaio
        roots = {name.partition(".")[0] for name in set(sys.modules) - before}
        print(sorted(roots - set(sys.stdlib_module_names)))
    """
    assert child.output_of(code) == "['gaio']"


def test_import_does_without_typing() -> None:
    """Which would take a third of the time; -S because `site` may import it for reasons of its own."""
    code = """
        import sys
        import gaio
        print("typing" in sys.modules, gaio.Stats.__name__, "typing" in sys.modules, "Stats" in dir(gaio))
    """
    assert child.output_of(code, "-S") == "False Stats True True"


def test_import_does_without_ssl() -> None:
    """Which gaio.tls needs, and takes longer to import than gaio."""
    code = """
        import sys
        import gaio
        print("ssl" in sys.modules)
        import gaio.tls
        print("ssl" in sys.modules)
    """
    assert child.output_of(code) == "False\nTrue"


def last_line_of(code: str) -> str:
    """What an interpreter that fails says in the end."""
    done = child.run(code)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


def test_an_interpreter_that_is_not_cpython() -> None:
    code = """
        import sys
        sys.implementation.name = "pypy"
        import gaio
    """
    message = last_line_of(code)
    assert message.startswith("ImportError: gaio needs CPython and cannot work on pypy, which ")
    assert message.endswith(": run this on CPython, or use asyncio instead")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no select.epoll")
def test_a_select_that_gevent_has_patched() -> None:
    """It takes away what would block, as eventlet does."""
    message = last_line_of("import select; del select.epoll; import gaio")
    assert message.startswith("ImportError: select.epoll has been taken away, as gevent and eventlet do: ")
    assert "patch_all(thread=False, select=False)" in message


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no select.epoll")
def test_a_select_that_is_patched_after_the_import(backend: Name) -> None:
    code = f"""
        import os, select, gaio
        del select.epoll
        with gaio.Watcher(backend={backend!r}) as watcher:
            reading, writing = os.pipe()
            source, sink = os.fdopen(reading, "rb", buffering=0), os.fdopen(writing, "wb", buffering=0)
            watcher.read(source)
            sink.write(b"through the pipe")
            print(*(bytes(result.buffer) for result in watcher.wait_io()))
            sink.close()
    """
    assert child.output_of(code) == "b'through the pipe'"


def test_threads_that_gevent_has_replaced() -> None:
    """Before or after the import: the watcher's would be a greenlet, which stops everything when it waits."""
    code = """
        import threading, gaio
        own = threading.get_ident
        threading.get_ident = lambda: 1  # as gevent and eventlet do
        try:
            gaio.backends()
            gaio.Watcher()
        finally:
            threading.get_ident = own  # for the interpreter's exit
    """
    message = last_line_of(code)
    assert message.startswith("RuntimeError: threads have been replaced by greenlets, and a watcher needs ")
    assert "patch_all(thread=False, select=False)" in message


def test_a_watcher_may_be_made_while_a_module_is_imported(backend: Name, tmp_path: Path) -> None:
    """Its thread imports the backend meanwhile, and must not wait for an import that waits for it."""
    (tmp_path / "module.py").write_text(f"import gaio\nwatcher = gaio.Watcher(backend={backend!r})\n")
    code = f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        import module
        print(module.watcher.backend)
        module.watcher.close()
    """
    assert child.output_of(code) == backend


def test_every_public_name_is_there() -> None:
    code = """
        import gaio
        print([name for name in gaio.__all__ if not hasattr(gaio, name)], gaio.__version__)
        missing = set(
            "Watcher HasFileno Conn BackendName Writable Operation READ WRITE OpResult Stats Backend backends "
            "GaioError UnsupportedConnError "
            "EmptyBufferError InvalidCPUError WatcherClosedError ConnClosedError DeadlineError "
            "BackendUnavailableError".split()
        ) - set(gaio.__all__)
        print(sorted(missing))
    """
    first, second = child.output_of(code).splitlines()
    assert first.startswith("[] ")
    assert second == "[]"
