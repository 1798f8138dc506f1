"""What comes over a connection is bytes to gaio and nothing else: it is not compiled, imported, unpickled or run."""

from __future__ import annotations

import ast

from tests import child
from tests.backends import Name
from tests.environment import ROOT

# Each with a meaning to some part of Python that evaluates what it is given, and each would print or leave a trace.
TRAFFIC = """
import pickle, socket, sys
import gaio

class Trap:
    def __reduce__(self):
        return print, ("evaluated",)

HOSTILE = [
    b"print('evaluated')", b"__import__('os').system('echo evaluated')", b"%s%n%d" * 100, b"{{0.__class__}}",
    pickle.dumps(Trap()), b"\\x80\\x04.", b"#!/bin/sh\\necho evaluated\\n", b"\\0" * 1000, bytes(range(256)),
]

def serve(watcher, message):
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    client, own = socket.socket(), bytearray(1)
    watcher.accept(listener, context=message)
    watcher.connect(client, address, context=message)
    watcher.write(client, message, context=message)
    watcher.shutdown(client)
    received, ended = b"", False
    while not ended:
        for result in watcher.wait_io(30):
            if result.operation is gaio.ACCEPT:
                watcher.read_full(result.accepted, own, timeout=30)
                watcher.read(result.accepted)
            elif result.operation is gaio.READ and result.error is None:
                received += bytes(result.buffer[:result.size])
                watcher.read(result.conn)
            elif result.operation is gaio.READ:
                assert isinstance(result.error, EOFError), result
                ended = True
    assert received == message
    watcher.free(client), watcher.free(listener)
    repr(result), str(result.error), repr(watcher)

watcher = gaio.Watcher(backend={backend!r})
serve(watcher, b"what is imported when it is needed is imported by now")
seen = []
EVALUATION = ("compile", "exec", "import", "marshal.", "pickle.", "code.", "os.exec", "os.system", "os.posix_spawn",
              "os.fork", "subprocess.", "open", "ctypes.dlopen")
def hook(event, arguments):
    if event.startswith(EVALUATION):
        seen.append((event, arguments))
sys.addaudithook(hook)
for message in HOSTILE:
    serve(watcher, message)
watcher.close()
assert seen == [], seen
compile("1", "it would be noticed", "eval")
assert [event for event, _ in seen] == ["compile"], seen
print("good")
"""


def test_hostile_bytes_run_nothing(backend: Name) -> None:
    """Audit events tell of all that Python evaluates: docs.python.org/3/library/audit_events.html."""
    assert child.output_of(TRAFFIC.format(backend=backend)) == "good"


# What makes code of data, or starts programs.
MODULES = {"code", "codeop", "marshal", "pickle", "pty", "runpy", "shelve", "subprocess"}
BUILTINS = {"__import__", "compile", "eval", "exec", "input"}
OF_OS = {"execl", "execv", "execve", "popen", "posix_spawn", "spawnl", "spawnv", "system"}


def used_by(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names} & MODULES
    if isinstance(node, ast.ImportFrom):
        return {str(node.module).partition(".")[0]} & MODULES
    if isinstance(node, ast.Name):
        return {node.id} & BUILTINS
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
        return {node.attr} & OF_OS
    return set()


def test_the_package_has_nothing_that_could() -> None:
    files = sorted((ROOT / "gaio").rglob("*.py"))
    assert ROOT / "gaio" / "engine.py" in files
    found = {
        f"{path.name}:{getattr(node, 'lineno', 0)}": names
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (names := used_by(node))
    }
    assert found == {}
