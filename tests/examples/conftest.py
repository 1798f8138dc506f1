"""What the tests of more than one example need."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.examples.real_clients import run


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for localhost and its key in one PEM file."""
    folder = tmp_path_factory.mktemp("certificate")
    key, cert, both = folder / "key.pem", folder / "cert.pem", folder / "both.pem"
    options = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    run("openssl", *options, *names, "-keyout", str(key), "-out", str(cert), package="openssl")
    both.write_text(cert.read_text() + key.read_text())
    return both
