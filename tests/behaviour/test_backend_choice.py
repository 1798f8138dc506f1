"""Which kernel interface a watcher uses: asked for by argument or environment, or chosen by gaio."""

from __future__ import annotations

import pytest

import gaio
from tests import child
from tests.backends import Name, known, offered, required, under_test

PRINT_BACKEND = "import gaio\nwith gaio.Watcher({}) as watcher: print(watcher.backend)"


@pytest.mark.parametrize("name", known())
def test_the_behaviour_suite_runs_over(name: str) -> None:
    if name not in under_test():
        pytest.skip(
            offered()[name].reason if name in offered() else f"another backend was chosen than {name}"
        )


def test_backends_names_what_this_machine_offers() -> None:
    found = gaio.backends()
    assert all(isinstance(entry, gaio.Backend) for entry in found)
    assert len({entry.name for entry in found}) == len(found)
    assert {entry.name for entry in found if entry.available} >= required()
    for entry in found:
        assert len(entry.reason.split()) >= 2, f"{entry.name}: the reason tells nothing: {entry.reason!r}"


def test_the_best_comes_first_and_is_what_auto_takes() -> None:
    best = next(entry.name for entry in gaio.backends() if entry.available)
    for watcher in (gaio.Watcher(), gaio.Watcher(backend="auto"), gaio.Watcher(backend=None)):
        with watcher:
            assert watcher.backend == best


def test_a_backend_asked_for_is_the_one_used(backend: Name) -> None:
    with gaio.Watcher(backend=backend) as watcher:
        assert watcher.backend == backend
    assert watcher.backend == backend


def test_the_environment_chooses(backend: Name) -> None:
    assert child.output_of(PRINT_BACKEND.format(""), GAIO_BACKEND=backend) == backend
    assert child.output_of(PRINT_BACKEND.format("backend=None"), GAIO_BACKEND=backend) == backend


def test_an_empty_environment_variable_chooses_nothing() -> None:
    assert child.output_of(PRINT_BACKEND.format(""), GAIO_BACKEND="") in offered()


def test_the_argument_goes_before_the_environment(backend: Name) -> None:
    assert child.output_of(PRINT_BACKEND.format(f"backend={backend!r}"), GAIO_BACKEND="nonsense") == backend


def test_an_unknown_name_in_the_environment_is_refused() -> None:
    done = child.run(PRINT_BACKEND.format(""), GAIO_BACKEND="nonsense")
    assert done.returncode == 1
    last_line = done.stderr.strip().splitlines()[-1]
    assert "nonsense" in last_line
    assert "GAIO_BACKEND" in last_line
    assert "epoll" in last_line


def test_a_backend_that_cannot_run_here_is_refused_and_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GAIO_KQUEUE_LIBRARY", raising=False)  # with one, Linux has every backend at once
    missing: list[Name] = [name for name in ("epoll", "kqueue", "io_uring") if not is_available(name)]
    assert missing, "every backend at once: on which system?"
    for name in missing:
        with pytest.raises(gaio.BackendUnavailableError, match=name) as caught:
            gaio.Watcher(backend=name)
        assert isinstance(caught.value, OSError)
        assert len(str(caught.value).split()) >= 4, "the message must say why"


def is_available(name: str) -> bool:
    return name in offered() and offered()[name].available
