"""A process that frees the mount of a daemon that was killed.

A thread that takes a name back from the kernel can be waiting for a lock of a directory, which a client's operation
holds that waits for the daemon's answer. Killed in this moment (kill -9, out of memory, a crash), the daemon cannot
die: that thread waits on, not to be interrupted, keeps the connection open that would have to be closed to end the
wait, and with it the lock file, the mount and the membership in corosync's groups. Its parent is never told that it
ended, so nobody restarts it. Only from outside can the connection be ended.

So each mount has this small process beside it (about 9 MB; it does nothing but wait). The kernel tells it of its
parent's death by a signal (PR_SET_PDEATHSIG: of the death of the thread that started it, the main one). If the parent
still has threads then, it ends the FUSE connection, by its number, so that no later mount can be meant.

It is run as a file and imports nothing of this package: to be small, and to be there soon.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
MNT_FORCE = 1
TOLD_BY = signal.SIGUSR1

GRACE = 0.1
"""Seconds that a killed process has to end by itself, between two looks."""

TRIES = 50


def start(place: str, connection: int) -> subprocess.Popen[bytes]:
    """Start the process, for the mount at C{place} of number C{connection}. To be called by the main thread.

    When the mount has ended in order, kill it; it also ends with the process that started it.
    """
    return subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, place, str(connection), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )


def is_dead(pid: int) -> bool:
    """Whether the main thread of C{pid} has ended; others may not have."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return True
    return stat.rpartition(b")")[2].split()[0] in (b"Z", b"X")


def end_connection(place: str, connection: int) -> None:
    """End the FUSE connection of that number: who waits for it gets an error."""
    try:
        Path(f"/sys/fs/fuse/connections/{connection}/abort").write_bytes(b"1")
        return
    except OSError:
        pass  # fusectl is not mounted everywhere, a container for example
    mounted = [line.split()[2] for line in Path("/proc/self/mountinfo").read_bytes().splitlines()]
    if f"0:{connection}".encode() in mounted:
        ctypes.CDLL(None).umount2(os.fsencode(place), MNT_FORCE)


def watch(place: str, connection: int, parent: int) -> None:
    """Wait for the death of C{parent}, and see to it that it is complete."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {TOLD_BY})
    for number in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(TOLD_BY), 0, 0, 0)
    while os.getppid() == parent and not is_dead(parent):
        signal.sigtimedwait({TOLD_BY}, 60)
    for _ in range(TRIES):
        time.sleep(GRACE)
        if os.getppid() != parent:  # as long as it has threads, it is our parent
            return
        end_connection(place, connection)


if __name__ == "__main__":
    watch(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
