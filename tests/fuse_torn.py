"""Contents that tell whether they are whole, and a program that reads them for a while.

C{python -m tests.fuse_torn PLACE SECONDS SEED DROPPING PAUSE} is that program: it reads the files of PLACE, drops the
kernel's pages before a part DROPPING of its reads, and rests up to PAUSE seconds between two of them. It says how many
reads there were, how many were torn, and what was wrong with some. A read that had to wait for a processor does not
count: if that was in the middle of it, it can be torn (docs/mount.md, "Limits").
"""

from __future__ import annotations

import os
import random
import sys
import time
import zlib

HEAD_BYTES = 18

STARVED = 0.00025
"""Seconds of a read without a processor after which it does not count: half of what the node allows a reader between
a file's size and its pages (C{QUIET} in L{pvecfs.fuse.invalidation})."""


def whole(length: int, choice: random.Random) -> bytes:
    """A content of C{length} bytes (no less than L{HEAD_BYTES}): its length, a checksum, and something."""
    body = choice.randbytes(length - HEAD_BYTES)
    return b"%08d %08x\n" % (length, zlib.crc32(body)) + body


def is_whole(data: bytes) -> bool:
    """Whether C{data} is all of one L{whole}."""
    try:
        length, checksum = data[: HEAD_BYTES - 1].split()
        return int(length) == len(data) and int(checksum, 16) == zlib.crc32(data[HEAD_BYTES:])
    except ValueError:
        return False


def read(place: str, seconds: float, seed: int, dropping: float, pause: float) -> tuple[int, list[str]]:
    """Read for C{seconds}, by new and by held descriptors.

    @return: the number of reads that count, and what was wrong with those of them that were torn.
    """
    choice = random.Random(seed)
    paths = [os.path.join(place, name) for name in sorted(os.listdir(place))]
    held = [os.open(path, os.O_RDONLY) for path in paths]
    schedstat = os.open("/proc/thread-self/schedstat", os.O_RDONLY)

    def starvation() -> float:
        """For how long, seconds, this thread wanted a processor and had none, so far."""
        return int(os.pread(schedstat, 100, 0).split()[1]) / 1e9

    reads, torn = 0, []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        number = choice.randrange(len(paths))
        before = starvation()
        handle = held[number] if choice.random() < 0.5 else os.open(paths[number], os.O_RDONLY)
        if choice.random() < dropping:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        data = os.pread(handle, 65536, 0)
        counts = starvation() - before < STARVED
        reads += counts
        if counts and not is_whole(data):
            torn.append(f"{len(data)} bytes, {data[:8]!r}, the last {len(data) - len(data.rstrip(bytes(1)))} NUL")
        if handle != held[number]:
            os.close(handle)
        if pause:
            time.sleep(choice.uniform(0, pause))
    for handle in (*held, schedstat):
        os.close(handle)
    return reads, torn


def main(place: str, seconds: str, seed: str, dropping: str, pause: str) -> None:
    reads, torn = read(place, float(seconds), int(seed), float(dropping), float(pause))
    print(reads, len(torn))
    print("\n".join(torn[:5]))


if __name__ == "__main__":
    main(*sys.argv[1:6])
