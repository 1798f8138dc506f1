"""Binding the watcher thread to a CPU, on systems that are not this one: their refusals."""

from __future__ import annotations

import errno
import sys

import pytest

import gaio


@pytest.mark.parametrize("platform", ["darwin", "freebsd14", "openbsd7", "netbsd10", "dragonfly6"])
def test_other_systems_say_why_not(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    with gaio.Watcher() as watcher:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "platform", platform)
            with pytest.raises(OSError, match=platform) as caught:
                watcher.set_affinity(0)
        assert caught.value.errno == errno.ENOTSUP
        assert not isinstance(caught.value, gaio.GaioError)
