"""Something happens between two lines of a turn: KeyboardInterrupt, or the handler of a signal that submits.

Where lines begin is what versions of Python differ in: in comprehensions, in statements of many lines, in loops and
`with`. So only simple statements on a line of their own count. What a header decides has no effect before the first
statement behind it, so that nothing is missed by that.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import Any

from gaio import closing, connection, deadlines, engine, leader, outcome, recovery, result, writes

_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Lambda)
_BRANCHES = (ast.BoolOp, ast.IfExp)  # in Python 3.12 a line may begin for the second time where they meet again
_SIMPLE = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Expr, ast.Delete, ast.Assert, ast.Return)


def _lines(module: ModuleType, functions: tuple[str, ...] = ()) -> tuple[str, frozenset[int]]:
    """The file and its lines that count; only of these functions, if any are named."""
    path = str(module.__file__)
    with open(path, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    lines = set()
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef) or (functions and function.name not in functions):
            continue
        if function.decorator_list:
            continue  # a property that the backend may ask for, in the middle of a step that is none in its kernel
        for statement in ast.walk(function):
            if (
                isinstance(statement, _SIMPLE)
                and statement.lineno == statement.end_lineno
                and not (isinstance(statement, ast.Return) and statement.value is None)
                and not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
                and not any(isinstance(node, (*_COMPREHENSIONS, *_BRANCHES)) for node in ast.walk(statement))
            ):
                lines.add(statement.lineno)
    return path, frozenset(lines)


LINES = dict(
    [
        *map(_lines, (engine, closing, writes, recovery, outcome, deadlines, connection)),
        _lines(leader, ("collect", "pause")),
        _lines(result, ("own", "take")),
    ]
)


class Between:
    """Has `happen` called before the line that is so many lines ahead; for use in `with`."""

    def __init__(self, ahead: int, happen: Callable[[str], None]) -> None:
        self.ahead = ahead
        self.happen = happen

    def __enter__(self) -> None:
        self.before = sys.gettrace()
        sys.settrace(self._called)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self.before)

    def _called(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        # The frame of a comprehension, which not every version has, has no line that counts.
        return self._line if frame.f_code.co_filename in LINES else None

    def _line(self, frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "line" and frame.f_lineno in LINES[frame.f_code.co_filename]:
            self.ahead -= 1
            if not self.ahead:
                code = frame.f_code
                self.happen(f"{code.co_name}() at line {frame.f_lineno}")
        return self._line


@contextmanager
def calm() -> Iterator[None]:
    """Nothing happens in what is called from here."""
    before = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(before)
