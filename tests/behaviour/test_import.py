"""`import gaio` does nothing but define names."""

from __future__ import annotations

from pathlib import Path

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
