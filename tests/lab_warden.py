"""Kills everything that lives in given network namespaces: when a laboratory is closed, or its owner has died.

Run as a program, it waits for the end of its standard input, which the owner holds open, and then cleans up after it.
Needs nothing but the standard library, and runs outside of the namespaces.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Collection


def namespace(pid: int | str) -> str:
    """The identity of the network namespace of a process: C{"net:[4026531840]"}. @raise OSError: no such process."""
    return os.readlink(f"/proc/{pid}/ns/net")


def inhabitants(namespaces: Collection[str]) -> list[int]:
    """The processes in C{namespaces}, zombies not counted."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if namespace(name) in namespaces:
                    found.append(int(name))
            except OSError:
                continue
    return found


def evacuate(namespaces: Collection[str], timeout: float = 10.0) -> bool:
    """Kill everybody in C{namespaces}; the namespaces, their mounts and devices end with the last process.

    @return: whether all are gone after at most C{timeout} seconds.
    """
    if namespace("self") in namespaces:
        raise ValueError("refusing to kill the namespace that this process lives in")
    deadline = time.monotonic() + timeout
    while remaining := inhabitants(namespaces):
        for pid in remaining:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def main() -> None:
    directory, *namespaces = sys.argv[1:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    evacuate(namespaces)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
