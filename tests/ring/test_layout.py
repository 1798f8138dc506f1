"""Structures shared with the kernel: as literal offsets, and as a C compiler lays out the installed headers."""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gaio.platform import _libc
from gaio.platform._io_uring import abi

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="io_uring is Linux's")

# structure -> its size and the offset of each field that gaio uses, as <linux/io_uring.h> has had them since 5.1.
LAYOUTS: dict[str, tuple[int, dict[str, int]]] = {
    "io_sqring_offsets": (
        40,
        {"head": 0, "tail": 4, "ring_mask": 8, "ring_entries": 12, "flags": 16, "dropped": 20, "array": 24},
    ),
    "io_cqring_offsets": (
        40,
        {"head": 0, "tail": 4, "ring_mask": 8, "ring_entries": 12, "overflow": 16, "cqes": 20, "flags": 24},
    ),
    "io_uring_params": (
        120,
        {
            "sq_entries": 0, "cq_entries": 4, "flags": 8, "sq_thread_cpu": 12, "sq_thread_idle": 16,
            "features": 20, "wq_fd": 24, "resv": 28, "sq_off": 40, "cq_off": 80,
        },
    ),
    "io_uring_buf_reg": (40, {"ring_addr": 0, "ring_entries": 8, "bgid": 12, "flags": 14, "resv": 16}),
    "io_uring_getevents_arg": (24, {"sigmask": 0, "sigmask_sz": 8, "ts": 16}),
    "kernel_timespec": (16, {"tv_sec": 0, "tv_nsec": 8}),
}
# `flags` is `pad` in headers before Linux 6.4. `resv` begins at 20 in later ones (that of 6.12.117 is the first seen),
# behind a new field; gaio sends zeros there, as test_setup.py sees to.
NAMED_DIFFERENTLY = {("io_uring_buf_reg", "flags"), ("io_uring_buf_reg", "resv")}
# What is packed by the struct module: field -> offset and bytes.
SQE = {
    "opcode": (0, 1), "flags": (1, 1), "ioprio": (2, 2), "fd": (4, 4), "off": (8, 8), "addr": (16, 8),
    "len": (24, 4), "rw_flags": (28, 4), "user_data": (32, 8), "buf_group": (40, 2),
}
CQE = {"user_data": (0, 8), "res": (8, 4), "flags": (12, 4)}
BUF = {"addr": (0, 8), "len": (8, 4), "bid": (12, 2), "resv": (14, 2)}
TAIL_OF_BUF_RING = 14

# Constants by their name in the header; those that gaio has under the same name.
CONSTANTS = [
    name
    for name in vars(abi)
    if name.startswith(("IORING_", "IOSQE_", "IOU_")) and name != "IORING_CQE_BUFFER_SHIFT"
]


@pytest.mark.parametrize("name", LAYOUTS)
def test_structures_have_the_offsets_of_the_kernel(name: str) -> None:
    structure: Any = getattr(abi, name)
    size, offsets = LAYOUTS[name]
    assert ctypes.sizeof(structure) == size
    for field, offset in offsets.items():
        assert getattr(structure, field).offset == offset, field


def packed_fields(layout: struct.Struct, values: tuple[int, ...], fields: dict[str, tuple[int, int]]) -> dict[str, int]:
    data = layout.pack(*values)
    return {
        name: int.from_bytes(data[offset : offset + size], sys.byteorder) for name, (offset, size) in fields.items()
    }


def test_submission_queue_entries() -> None:
    first = abi.first_word(0x11, 0x22, 0x4433)
    found = packed_fields(abi.SQE, (first, 5, 6, 7, 8, 9, 10, 11), SQE)
    assert abi.SQE.size == 64
    assert found == {
        "opcode": 0x11, "flags": 0x22, "ioprio": 0x4433, "fd": 5, "off": 6, "addr": 7, "len": 8,
        "rw_flags": 9, "user_data": 10, "buf_group": 11,
    }


def test_completion_queue_entries() -> None:
    assert abi.CQE.size == 16
    assert packed_fields(abi.CQE, (1, 2, 3), CQE) == {"user_data": 1, "res": 2, "flags": 3}


def test_entries_of_a_provided_buffer_ring() -> None:
    assert abi.BUF_SIZE == 16
    entry = struct.Struct(f"{abi.BUF.format}H")
    assert packed_fields(entry, (1, 2, 3, 4), BUF) == {"addr": 1, "len": 2, "bid": 3, "resv": 4}
    assert abi.BUF_RING_TAIL == TAIL_OF_BUF_RING


def test_system_call_numbers() -> None:
    numbers = (abi.SYS_io_uring_setup, abi.SYS_io_uring_enter, abi.SYS_io_uring_register)
    assert numbers == (425, 426, 427)


# --- against the headers of this machine ----------------------------------------------------------------------

_PROGRAM = """
#include <stddef.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <linux/io_uring.h>
#include <linux/time_types.h>
typedef struct __kernel_timespec kernel_timespec;
int main(void)
{
%s
    return 0;
}
"""


def ask_compiler(expressions: dict[str, str], folder: Path) -> dict[str, int]:
    """The values of C expressions; only those that the header knows: `#ifdef` for macros is the caller's."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler: cc, gcc or clang")
    if not Path("/usr/include/linux/io_uring.h").exists():
        pytest.skip("no <linux/io_uring.h>: the kernel's headers are not installed (linux-libc-dev)")
    lines = [f'    printf("%lld {key}\\n", (long long)({value}));' for key, value in expressions.items()]
    source, program = folder / "ask.c", folder / "ask"
    source.write_text(_PROGRAM % "\n".join(lines), encoding="utf-8")
    built = subprocess.run(
        [compiler, "-o", str(program), str(source)], capture_output=True, text=True, timeout=60, check=False
    )
    assert built.returncode == 0, built.stderr
    output = subprocess.run([str(program)], capture_output=True, text=True, timeout=60, check=True).stdout
    answers = (line.split(" ", 1) for line in output.splitlines())
    return {key: int(value) for value, key in answers}


def c_type(name: str) -> str:
    return "kernel_timespec" if name == "kernel_timespec" else f"struct {name}"


def known_to_header(names: list[str]) -> list[str]:
    text = Path("/usr/include/linux/io_uring.h").read_text(encoding="utf-8") if names else ""
    return [name for name in names if name in text]


def test_structures_against_the_headers(tmp_path: Path) -> None:
    asked = {f"sizeof {name}": f"sizeof({c_type(name)})" for name in LAYOUTS}
    expected = {f"sizeof {name}": size for name, (size, _) in LAYOUTS.items()}
    for name, (_, offsets) in LAYOUTS.items():
        for field, offset in offsets.items():
            if (name, field) in NAMED_DIFFERENTLY:
                continue
            asked[f"{name}.{field}"] = f"offsetof({c_type(name)}, {field})"
            expected[f"{name}.{field}"] = offset
    packed: dict[str, tuple[int, dict[str, tuple[int, int]]]] = {
        "io_uring_sqe": (64, SQE), "io_uring_cqe": (16, CQE), "io_uring_buf": (16, BUF),
        "msghdr": (ctypes.sizeof(_libc.linux_msghdr), {}),
    }
    for name, (size, fields) in packed.items():
        asked[f"sizeof {name}"], expected[f"sizeof {name}"] = f"sizeof(struct {name})", size
        for field, (offset, width) in fields.items():
            asked[f"{name}.{field}"], expected[f"{name}.{field}"] = f"offsetof(struct {name}, {field})", offset
            of_field = f"sizeof(((struct {name} *)0)->{field})"
            asked[f"sizeof {name}.{field}"], expected[f"sizeof {name}.{field}"] = of_field, width
    for field in ("msg_name", "msg_namelen", "msg_iov", "msg_iovlen", "msg_control", "msg_controllen", "msg_flags"):
        asked[f"msghdr.{field}"] = f"offsetof(struct msghdr, {field})"
        expected[f"msghdr.{field}"] = getattr(_libc.linux_msghdr, field).offset
    assert ask_compiler(asked, tmp_path) == expected


def test_constants_against_the_headers(tmp_path: Path) -> None:
    """All that the installed header knows; an older one does not know the newest."""
    ask_compiler({}, tmp_path)  # skips where it cannot be asked
    asked = {name: name for name in known_to_header(CONSTANTS)}
    assert len(asked) > 20
    asked["SYS_io_uring_setup"] = "SYS_io_uring_setup"
    found = ask_compiler(asked, tmp_path)
    assert found == {name: getattr(abi, name) for name in asked}
