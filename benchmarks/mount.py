"""What programs do on a mount, timed: through the kernel, as a cluster's programs meet it.

Figures are microseconds for each operation; names that end in C{ops/s} are operations per second of several processes,
and C{disk bytes} are the bytes that the daemon wrote to disk for each operation (C{write_bytes} of its /proc/PID/io).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

Figures = dict[str, float]

CONTENT = b"k" * 2048
BIG = 1024 * 1024
FORGETTING = 2.2
"""Seconds after which a kernel has forgotten what common FUSE file systems let it remember for one or two."""

CONCURRENT_SECONDS = 1.5
WRITERS = (1, 4, 16)


class Target(NamedTuple):
    """A mount to measure.

    @ivar name: how it is called in results.
    @ivar pid: of its daemon, 0 if not known: then there are no bytes and no memory.
    """

    name: str
    path: Path
    pid: int = 0


def write_file(path: str, data: bytes, flags: int = os.O_WRONLY | os.O_CREAT | os.O_TRUNC) -> None:
    descriptor = os.open(path, flags, 0o640)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
    finally:
        os.close(descriptor)


def read_file(path: str, size: int = 4096) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, size)
    finally:
        os.close(descriptor)


def replace_file(path: str, data: bytes) -> None:
    write_file(path + ".tmp", data)
    os.rename(path + ".tmp", path)


def disk_bytes(pid: int) -> int:
    """What the process has had written to disk, in bytes."""
    with open(f"/proc/{pid}/io") as counters:
        return next(int(line.split()[1]) for line in counters if line.startswith("write_bytes"))


def resident_kib(pid: int) -> float:
    """Resident memory of the process, in KiB."""
    with open(f"/proc/{pid}/status") as status:
        return next(float(line.split()[1]) for line in status if line.startswith("VmRSS"))


def cpu_seconds(pid: int) -> float:
    """Processor time of the process so far, in steps of 10 ms."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def each(action: Callable[[str], object], paths: list[str]) -> None:
    for path in paths:
        action(path)


def timed(count: int, action: Callable[[], object]) -> float:
    """Microseconds for each of C{count} operations, which C{action} does all."""
    start = time.perf_counter()
    action()
    return (time.perf_counter() - start) / count * 1e6


def concurrent(workers: int, action: Callable[[int, int], object], seconds: float = CONCURRENT_SECONDS) -> float:
    """Operations per second of C{workers} processes that call C{action(worker, number)} for C{seconds}."""
    readers = []
    children = []
    for worker in range(workers):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            number = 0
            try:
                stop = time.perf_counter() + seconds
                while time.perf_counter() < stop:
                    action(worker, number)
                    number += 1
            finally:
                os.write(writer, str(number).encode())
                os._exit(0)
        os.close(writer)
        readers.append(reader)
        children.append(child)
    total = 0
    for reader in readers:
        total += int(os.read(reader, 64) or b"0")
        os.close(reader)
    for child in children:
        os.waitpid(child, 0)
    return total / seconds


@contextmanager
def working_directory(target: Target) -> Iterator[str]:
    """A fresh directory on the mount, removed afterwards."""
    directory = str(target.path / f"benchmark-{os.getpid()}")
    _remove(directory)
    os.mkdir(directory)
    try:
        yield directory
    finally:
        _remove(directory)


def _remove(directory: str) -> None:
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return
    for name in names:
        os.unlink(f"{directory}/{name}")
    os.rmdir(directory)


def measure(target: Target, count: int = 500) -> Figures:
    """One round of all figures.

    @param count: files in the directory.
    """
    with working_directory(target) as directory:
        return _Round(target, directory, count).run()


class _Round:
    def __init__(self, target: Target, directory: str, count: int) -> None:
        self._target = target
        self._directory = directory
        self._files = [f"{directory}/f{number}" for number in range(count)]
        self._figures: Figures = {}

    def _case(self, name: str, count: int, action: Callable[[], object], writes: bool = False) -> None:
        pid = self._target.pid if writes else 0
        bytes_before = disk_bytes(pid) if pid else 0
        cpu_before = cpu_seconds(pid) if pid else 0.0
        self._figures[name] = timed(count, action)
        if pid:
            self._figures[f"{name} daemon CPU"] = (cpu_seconds(pid) - cpu_before) / count * 1e6
            self._figures[f"{name} disk bytes"] = (disk_bytes(pid) - bytes_before) / count

    def run(self) -> Figures:
        files, directory, case = self._files, self._directory, self._case
        count = len(files)
        few = min(200, count)
        create = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        case("create+write 2KiB", count, lambda: each(lambda path: write_file(path, CONTENT, create), files), True)
        for path in files:
            os.stat(path)
        time.sleep(FORGETTING)
        case("stat, 2 s later", count, lambda: [os.stat(path) for path in files])
        case("stat, warm", count, lambda: [os.stat(path) for path in files])
        for path in files:
            read_file(path)
        time.sleep(FORGETTING)
        case("open+read+close, 2 s later", count, lambda: [read_file(path) for path in files])
        case("open+read+close, warm", count, lambda: [read_file(path) for path in files])
        case("open+read+close, same file", count, lambda: [read_file(files[0]) for _ in files])
        case("overwrite 2KiB", count, lambda: each(lambda path: write_file(path, CONTENT), files), True)
        case("replace by rename 2KiB", count, lambda: each(lambda path: replace_file(path, CONTENT), files), True)
        case(
            "replace by rename 100B, same file",
            few,
            lambda: each(lambda path: replace_file(path, b"s" * 100), files[:1] * few),
            True,
        )
        case("append 512B x 200", 200, lambda: self._append(200), True)
        case("mkdir+rmdir", few, lambda: self._make_and_remove(few), True)
        case("list 500", 20, lambda: [os.listdir(directory) for _ in range(20)])
        version = self._target.path / ".version"
        if version.exists():
            case("read .version", 200, lambda: [read_file(str(version), 65536) for _ in range(200)])
        self._big()
        case("statfs", 200, lambda: [os.statvfs(directory) for _ in range(200)])
        self._figures["readers x4 ops/s"] = concurrent(4, lambda worker, i: read_file(files[(i * 7 + worker) % count]))
        for writers in WRITERS:
            rate = concurrent(writers, lambda worker, i: write_file(files[(worker * 3 + i % 3) % count], CONTENT))
            self._figures[f"writers x{writers} ops/s"] = rate
        case("unlink", count, lambda: each(os.unlink, files), True)
        if self._target.pid:
            self._figures["daemon RSS KiB"] = resident_kib(self._target.pid)
        return self._figures

    def _append(self, count: int) -> None:
        descriptor = os.open(f"{self._directory}/log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640)
        for _ in range(count):
            os.write(descriptor, b"a" * 512)
        os.close(descriptor)

    def _make_and_remove(self, count: int) -> None:
        for _ in range(count):
            os.mkdir(f"{self._directory}/lock")
            os.rmdir(f"{self._directory}/lock")

    def _big(self) -> None:
        path, content = f"{self._directory}/big", os.urandom(BIG)
        self._case("write 1MiB", 1, lambda: write_file(path, content), True)
        time.sleep(0.1)

        def read_all() -> None:
            for _ in range(10):
                with open(path, "rb", buffering=0) as file:
                    got = b"".join(iter(lambda: file.read(BIG), b""))
                if got != content:
                    raise AssertionError("the mount gives back something else than was written")

        self._case("read 1MiB", 10, read_all)


def messages_per_second(target: Target, writers: int) -> float:
    """Changes per second of C{writers} processes that each overwrite a file of their own: one message each time."""
    with working_directory(target) as directory:
        descriptors = [os.open(f"{directory}/m{writer}", os.O_WRONLY | os.O_CREAT, 0o640) for writer in range(writers)]
        try:
            return concurrent(writers, lambda writer, number: os.pwrite(descriptors[writer], CONTENT, 0))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
