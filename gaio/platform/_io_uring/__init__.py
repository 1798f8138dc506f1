"""io_uring(7): requests go to the kernel in batches and come back finished.

    abi.py         numbers and layouts
    ring.py        the memory shared with the kernel, and io_uring_enter(2)
    buffers.py     provided buffers: memory for reads without a buffer
    operations.py  what each operation becomes on its way in, and what its completion means
    backend.py     the contract: start, wait, cancel, recover
    probe.py       whether it works here, and opening one

Each of these knows only those above it.
"""

from gaio.platform._io_uring.probe import advice, is_behind, open_backend

__all__ = ["advice", "is_behind", "open_backend"]
