"""A deterministic simulation of the engine: a seed decides what callers, peers, the kernel and Ctrl-C do.

    program.py        the steps of a seed, through the real Watcher, Delegation, Leader and Engine
    world.py          what the steps have in common: the watcher over that backend, the clock, interruptions
    callers.py        the steps of those that submit
    backend.py        a backend in memory, behind the contract of gaio/platform/__init__.py
    kernel.py         what that does with a request: how far it gets in an attempt, what arrives, what fails
    model.py          connections, their peers, requests; what a result must be by what the backend answered
    invariants.py     what must hold after each call, at rest, and in the end
    interruption.py   KeyboardInterrupt, or the handler of a signal, between two lines of a turn

No thread runs, no clock ticks and no byte moves through a kernel: the same seed is the same run, on every version of
Python. The only real descriptors are duplicates of one unconnected socket, because the engine closes numbers.
"""
