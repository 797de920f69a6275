"""Memory that a thread has at hand before it needs it."""

from __future__ import annotations

LARGE_CHANGE = 4 * 1024 * 1024
"""Bytes that a thread has in use at a time for a file of the largest size, 1 MiB: copies of it, SQLite's record and
pages."""


def prepare(size: int = LARGE_CHANGE) -> None:
    """Have C{size} bytes of the calling thread's heap mapped and touched, so that what it allocates first is as fast as
    what it allocates later: with the page faults, a first change of 1 MiB takes nearly twice as long.

    glibc maps a large block by itself, and unmaps it when it is freed; from then on it takes blocks of that size from
    the heap, and keeps twice that much at its end (mallopt(3), M_MMAP_THRESHOLD). So the second block, which is
    touched too, is there to stay. With another C library this does nothing, and no harm.
    """
    for _ in range(2):
        bytearray(size)
