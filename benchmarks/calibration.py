"""How fast this machine is, at what a configuration filesystem needs of it: so that machines can be compared."""

from __future__ import annotations

import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from math import prod

from benchmarks.mount import CONTENT, Figures, timed, write_file

PREFIX = "calibration: "

REST = 0.3
"""Seconds."""


def pipe_round_trip(count: int = 5000) -> float:
    """Microseconds for a byte to another process and back."""
    there, back = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        for _ in range(count):
            os.read(there[0], 1)
            os.write(back[1], b"x")
        os._exit(0)

    def run() -> None:
        for _ in range(count):
            os.write(there[1], b"x")
            os.read(back[0], 1)

    result = timed(count, run)
    os.waitpid(child, 0)
    for descriptor in (*there, *back):
        os.close(descriptor)
    return result


def sqlite_commit(count: int = 300) -> float:
    """Microseconds for a transaction that writes one row of 2 KiB, in WAL mode, not synced."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        database = sqlite3.connect(f"{directory}/x.db", isolation_level=None)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=NORMAL")
        database.execute("CREATE TABLE t (i INTEGER PRIMARY KEY, b BLOB)")

        def run() -> None:
            for number in range(count):
                database.execute("BEGIN")
                database.execute("REPLACE INTO t VALUES (?, ?)", (number % 50, CONTENT))
                database.execute("COMMIT")

        result = timed(count, run)
        database.close()
        return result


def tmpfs_write(count: int = 2000) -> float:
    """Microseconds to write a file of 2 KiB in memory."""
    path = f"/dev/shm/benchmark-{os.getpid()}"

    def run() -> None:
        for _ in range(count):
            write_file(path, CONTENT)

    try:
        return timed(count, run)
    finally:
        os.unlink(path)


def measure() -> Figures:
    """One round of all three, once the machine is at rest: what ran before can have left its processors awake."""
    time.sleep(REST)
    return {
        f"{PREFIX}pipe round trip": pipe_round_trip(),
        f"{PREFIX}sqlite commit 2KiB": sqlite_commit(),
        f"{PREFIX}tmpfs write 2KiB": tmpfs_write(),
    }


def slowness(here: Figures, there: Figures) -> float:
    """How many times slower this machine is than another: the geometric mean over the calibration figures."""
    ratios = [value / there[name] for name, value in here.items() if name.startswith(PREFIX) and name in there]
    return prod(ratios) ** (1 / len(ratios)) if ratios else 1.0


def median(rounds: list[Figures]) -> Figures:
    """The median of each figure that any round has."""
    return _of_each(rounds, lambda name, values: statistics.median(values))


def best(rounds: list[Figures]) -> Figures:
    """The best of each figure: what the machine can do while nobody else uses it. Bytes and processor time: medians."""

    def choose(name: str, values: list[float]) -> float:
        if name.endswith("ops/s"):
            return max(values)
        return statistics.median(values) if name.endswith(("disk bytes", "daemon CPU", "RSS KiB")) else min(values)

    return _of_each(rounds, choose)


def _of_each(rounds: list[Figures], choose: Callable[[str, list[float]], float]) -> Figures:
    names = dict.fromkeys(name for figures in rounds for name in figures)
    return {name: choose(name, [figures[name] for figures in rounds if name in figures]) for name in names}
