"""Shared memory that a killed daemon left behind: libqb removes it when a service closes, not when it is killed."""

from __future__ import annotations

import os
import re
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")

_DIRECTORY = re.compile(r"qb-(\d+)-\d+-\d+-\w{6}")
"""Of a connection: the service's pid, the client's, a descriptor, random characters (libqb 2)."""


def remove_leftovers(name: str, shared_memory: Path = SHARED_MEMORY) -> int:
    """Remove the rings of services called C{name} whose processes are gone.

    A client that is still connected to such a service keeps what it has mapped. Links are not followed: anybody may put
    anything into that directory.

    @return: how many connections they were of.
    """
    rings = {f"qb-{way}-{name}-{part}" for way in ("request", "response", "event") for part in ("header", "data")}
    count = 0
    for found in os.listdir(shared_memory):
        match = _DIRECTORY.fullmatch(found)
        if match is None or _is_running(int(match[1])):
            continue
        try:
            directory = os.open(shared_memory / found, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            left = set(os.listdir(directory))
            for ring in rings & left:
                os.unlink(ring, dir_fd=directory)
            if left <= rings:
                # Empty ones too, whose rings a client removed: nobody else will.
                os.rmdir(shared_memory / found)
                count += 1
        except OSError:
            continue  # not ours, or going away at this moment
        finally:
            os.close(directory)
    return count


def _is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
