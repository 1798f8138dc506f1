"""Where the fields of a structure are, as gaio writes it and as this system's C compiler lays it out."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest


class Field(NamedTuple):
    offset: int
    size: int


def of_format(layout: str, names: Sequence[str]) -> dict[str, Field]:
    """The fields of a format of the module struct, found by filling one after the other with ones."""
    codes = re.sub(r"\d*x|[@=]", "", layout)
    assert len(codes) == len(names)
    found = {}
    for index, name in enumerate(names):
        values = [0] * len(names)
        code = codes[index]
        values[index] = -1 if code.islower() else (1 << 8 * struct.calcsize(f"@{code}")) - 1
        packed = struct.pack(layout, *values)
        ones = [place for place, byte in enumerate(packed) if byte == 0xFF]
        assert ones == list(range(ones[0], ones[0] + len(ones)))
        found[name] = Field(ones[0], len(ones))
    return found


def of_c(headers: Sequence[str], structure: str, names: Sequence[str], folder: Path) -> tuple[int, dict[str, Field]]:
    """The size of a structure of the headers here, and its fields; skips the test where there is no C compiler."""
    lines = [f'printf("%zu\\n", sizeof({structure}));']
    for name in names:
        where = f"offsetof({structure}, {name}), sizeof((({structure} *)0)->{name})"
        lines.append(f'printf("%zu %zu\\n", {where});')
    output = run_c(headers, lines, folder).split("\n")
    fields = {name: Field(*map(int, line.split())) for name, line in zip(names, output[1:], strict=True)}
    return int(output[0]), fields


def run_c(headers: Sequence[str], statements: Sequence[str], folder: Path) -> str:
    """What these statements print; skips the test where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to ask")
    source, program = folder / "layout.c", folder / "layout"
    includes = [f"#include <{header}>" for header in ("sys/types.h", *headers, "stddef.h", "stdio.h")]
    source.write_text("\n".join([*includes, "int main(void) {", *statements, "return 0; }"]), encoding="utf-8")
    subprocess.run([compiler, "-D_GNU_SOURCE", "-o", str(program), str(source)], check=True, timeout=60)
    return subprocess.run([str(program)], check=True, capture_output=True, text=True, timeout=60).stdout.strip()
