"""Contents that tell whether they are whole, and a program that reads them for a while.

C{python -m tests.fuse_torn PLACE SECONDS SEED DROPPING PAUSE} is that program: it reads the files of PLACE, drops the
kernel's pages before a part DROPPING of its reads, and rests up to PAUSE seconds between two of them. It says how many
reads there were, how many were torn, and what was wrong with some.
"""

from __future__ import annotations

import os
import random
import sys
import time
import zlib

HEAD_BYTES = 18


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

    @return: the number of reads, and what was wrong with those that were torn.
    """
    choice = random.Random(seed)
    paths = [os.path.join(place, name) for name in sorted(os.listdir(place))]
    held = [os.open(path, os.O_RDONLY) for path in paths]
    reads, torn = 0, []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        number = choice.randrange(len(paths))
        handle = held[number] if choice.random() < 0.5 else os.open(paths[number], os.O_RDONLY)
        if choice.random() < dropping:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        data = os.pread(handle, 65536, 0)
        reads += 1
        if not is_whole(data):
            torn.append(f"{len(data)} bytes, {data[:8]!r}, the last {len(data) - len(data.rstrip(bytes(1)))} NUL")
        if handle != held[number]:
            os.close(handle)
        if pause:
            time.sleep(choice.uniform(0, pause))
    for handle in held:
        os.close(handle)
    return reads, torn


def main(place: str, seconds: str, seed: str, dropping: str, pause: str) -> None:
    reads, torn = read(place, float(seconds), int(seed), float(dropping), float(pause))
    print(reads, len(torn))
    print("\n".join(torn[:5]))


if __name__ == "__main__":
    main(*sys.argv[1:6])
