"""Measure the store alone: time of a change, bytes written to the disk, loading; for each size of pages.

usage: python benchmarks/store.py [--directory /var/tmp] [--json] [--files 300] [PAGE_SIZE...]

I{op} is the mean time of an operation, which is one to three changes. The others are of one change: I{commit} what
SQLite takes on the store's thread, I{round trip} from the call on one thread to C{settled} having woken it again
(both medians), I{p99} of the round trips. Bytes are C{write_bytes} of /proc/self/io: newly dirtied pages of the
page cache, the log's and, when it is checkpointed, the database's. The directory must be on a disk, not a tmpfs.
Limits are half of the reference's figures (a quarter for 1 MiB). The changes are
those that a mount makes of the calls named.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from threading import Semaphore

from twisted.internet.interfaces import IReactorFromThreads
from zope.interface import implementer

from pvecfs.store.sqlite import SqliteStore
from pvecfs.tree.changes import Change, Create, Delete, Mkdir, Rename, Write
from pvecfs.tree.entry import DT_DIR, DT_REG, Entry
from pvecfs.tree.tree import Delta, Tree

LIMITS = {
    "create+write 2KiB": 18595,
    "overwrite 2KiB": 10305,
    "replace by rename 2KiB": 33169,
    "replace by rename 100B": 12881,
    "append 512B x 200": 62279,
    "mkdir+rmdir": 9041,
    "write 1MiB": 2636800,
    "unlink": 13877,
}
"""Bytes per operation: half of what the reference writes, a quarter for 1 MiB."""


@implementer(IReactorFromThreads)
class _NoReactor:
    def callFromThread(self, callable: Callable[..., object], *args: object, **kwargs: object) -> None:
        callable(*args, **kwargs)


class _TimedStore(SqliteStore):
    """Tells how long its transactions take."""

    spent = 0.0

    def _write(self, deltas: list[Delta]) -> None:
        start = time.perf_counter()
        super()._write(deltas)
        self.spent = time.perf_counter() - start


class Bench:
    def __init__(self, path: str, page_size: int, durability: str) -> None:
        self.store = _TimedStore(path, _NoReactor(), time.time, page_size=page_size, durability=durability)
        self.tree: Tree = self.store.open()
        self.commits: list[float] = []
        self.trips: list[float] = []
        self._done = Semaphore(0)

    def apply(self, *changes: Change) -> None:
        for change in changes:
            delta = self.tree.apply(change, 0, 1_700_000_000).delta
            self.tree = delta.tree
            start = time.perf_counter()
            self.store.commit(delta, self._settled)
            self._done.acquire()
            self.trips.append((time.perf_counter() - start) * 1e6)
            self.commits.append(self.store.spent * 1e6)

    def _settled(self, outcome: Exception | None) -> None:
        if outcome is not None:
            raise outcome
        self._done.release()

    def case(self, count: int, operation: Callable[[int], None]) -> dict[str, float]:
        self.commits, self.trips = [], []
        before = _written()
        start = time.perf_counter()
        for number in range(count):
            operation(number)
        return {
            "us": (time.perf_counter() - start) / count * 1e6,
            "round trip us": statistics.median(self.trips),
            "commit us": statistics.median(self.commits),
            "p99 us": sorted(self.trips)[int(len(self.trips) * 0.99)],
            "bytes": (_written() - before) / count,
        }


def _written() -> int:
    with open("/proc/self/io") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("write_bytes"))


def measure(directory: str, page_size: int, files: int, durability: str) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory(dir=directory) as where:
        bench = Bench(os.path.join(where, "config.db"), page_size, durability)
        names = [b"d/f%d" % number for number in range(files)]
        text, small = b"k" * 2048, b"s" * 100
        big = [os.urandom(1 << 20) for _ in range(2)]
        bench.apply(Mkdir(b"d"), Create(b"d/log"), Create(b"d/big"))
        apply = bench.apply
        result = {
            "create+write 2KiB": bench.case(files, lambda n: apply(Create(names[n]), Write(names[n], text))),
            "overwrite 2KiB": bench.case(files, lambda n: apply(Write(names[n], b"", 0, True), Write(names[n], text))),
            "replace by rename 2KiB": bench.case(
                files,
                lambda n: apply(Create(b"d/t"), Write(b"d/t", text), Rename(b"d/t", names[n])),
            ),
            "replace by rename 100B": bench.case(
                200, lambda n: apply(Create(b"d/t"), Write(b"d/t", small), Rename(b"d/t", names[0]))
            ),
            "append 512B x 200": bench.case(200, lambda n: apply(Write(b"d/log", b"a" * 512, n * 512))),
            "mkdir+rmdir": bench.case(200, lambda n: apply(Mkdir(b"d/lock"), Delete(b"d/lock"))),
            "write 1MiB": bench.case(6, lambda n: apply(Write(b"d/big", b"", 0, True), Write(b"d/big", big[n % 2]))),
            "unlink": bench.case(files, lambda n: apply(Delete(names[n]))),
        }
        bench.store.close_now()
        return result


def loading(directory: str, page_size: int, count: int) -> float:
    """Seconds to load C{count} VM configs of 1 KiB."""
    with tempfile.TemporaryDirectory(dir=directory) as where:
        path = os.path.join(where, "config.db")
        bench = Bench(path, page_size, "process")
        bench.apply(Mkdir(b"nodes"), Mkdir(b"nodes/n"), Mkdir(b"nodes/n/lxc"))
        above = bench.tree.lookup(b"nodes/n/lxc")
        assert above is not None
        configs = [
            Entry(number, above.inode, number, 1, 1_700_000_000, DT_REG, b"%d.conf" % number, os.urandom(1024))
            for number in range(100, count + 100)
        ]
        tree = bench.tree.replaced((), configs, Entry(0, 0, count + 200, 1, 1_700_000_000, DT_DIR, b""))
        bench.store.commit_now(Delta(tree, tuple(configs), ()))
        bench.store.close_now()
        store = SqliteStore(path, _NoReactor(), time.time)
        start = time.perf_counter()
        store.open()
        spent = time.perf_counter() - start
        store.close_now()
        return spent


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure the store alone.")
    parser.add_argument("--directory", default="/var/tmp")
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--durability", default="process")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("page_size", nargs="*", type=int)
    options = parser.parse_args(arguments)
    results = {}
    for page_size in options.page_size or [512, 1024, 2048, 4096]:
        cases = measure(options.directory, page_size, options.files, options.durability)
        seconds = loading(options.directory, page_size, 10_000)
        results[page_size] = {"cases": cases, "load 10,000 configs, s": seconds}
        if options.json:
            continue
        print(f"page size {page_size}: 10,000 configs loaded in {seconds:.3f} s")
        print(f"{'':24}{'op us':>9}{'round trip us':>15}{'commit us':>11}{'p99 us':>9}{'bytes/op':>10}{'of limit':>9}")
        for name, case in cases.items():
            ratio = case["bytes"] / LIMITS[name]
            print(
                f"{name:24}{case['us']:9.1f}{case['round trip us']:15.1f}{case['commit us']:11.1f}{case['p99 us']:9.0f}"
                f"{case['bytes']:10.0f}{ratio:9.2f}"
            )
    if options.json:
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
