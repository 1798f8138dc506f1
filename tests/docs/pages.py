"""The pages of the documentation, and the Python in them.

The blocks of a page continue one another: together they are one program. A block with the line MARK before it
is a program of its own. A program that says where it listens is a server.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.environment import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MARK = "<!-- a program of its own -->\n"
_BLOCK = re.compile(rf"^(?P<own>{MARK})?```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


class Program(NamedTuple):
    page: Path
    line: int  # where it begins
    code: str  # on the same lines as in the page, so that a traceback tells where to look

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_server(self) -> bool:
        return "listening on" in self.code


def programs() -> Iterator[Program]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        together = Program(page, 0, "")
        for block in _BLOCK.finditer(text):
            before = text.count("\n", 0, block.start("code"))
            if block["own"]:
                yield Program(page, before + 1, "\n" * before + block["code"])
            else:
                gap = "\n" * (before - together.code.count("\n"))
                together = Program(page, together.line or before + 1, together.code + gap + block["code"])
        if together.code:
            yield together
