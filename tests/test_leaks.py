"""Leaks: after a long load of all kinds the daemon holds what it held before it.

C{PVECFS_LEAK_SECONDS} is the length of the load of each of the two tests; 20 without it.

Memory is compared after a warm-up of the same load: by then the rings, caches and the allocator's arenas have their
size. The tolerance is L{TOLERANCE}, because an arena of 1 MiB that has one living object in it cannot be given back; a
leak of a few hundred bytes for each operation shows within the 20 seconds, since there are thousands of them a second.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from twisted.trial.unittest import TestCase

from pvecfs.ipc.client import Client
from pvecfs.tree.errors import OperationError
from tests.daemons import DaemonProcess, abort_connection, temporary_base
from tests.fuse_support import MountedNode
from tests.needs import needs_fuse, needs_libqb, needs_root

SECONDS = float(os.environ.get("PVECFS_LEAK_SECONDS", "20"))
WARM_UP = max(8.0, SECONDS / 3)
TOLERANCE = 6 * 1024 * 1024
"""Bytes."""


@dataclass(frozen=True)
class Used:
    """What a process holds: numbers of descriptors, threads and names in /dev/shm; bytes of memory."""

    descriptors: int
    threads: int
    shared: int
    memory: int

    @classmethod
    def of(cls, pid: int) -> Used:
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
        )
        return cls(
            len(os.listdir(f"/proc/{pid}/fd")),
            int(status["Threads"]),
            len([name for name in os.listdir("/dev/shm") if name.startswith(f"qb-{pid}-")]),
            int(status["VmRSS"].split()[0]) * 1024,
        )

    def counts(self) -> tuple[int, int, int]:
        return self.descriptors, self.threads, self.shared


def writes_databases(pid: int) -> bool:
    """Whether C{pid} has a round-robin database open, in several looks: thousands of updates may be waiting."""
    for _ in range(20):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if "/rrd/" in os.readlink(descriptor):
                    return True
        time.sleep(0.02)
    return False


class LeakCase(TestCase):
    timeout = 300 + 3 * SECONDS

    def load(self, seconds: float, *works: Callable[[Random], int], guard: Callable[[], None]) -> int:
        """Do all C{works} again and again, each in its thread; return how many operations that were."""
        end = time.monotonic() + seconds
        operations: list[int] = []
        failures: list[BaseException] = []

        def again(work: Callable[[Random], int], seed: int) -> None:
            random, count = Random(seed), 0
            try:
                while time.monotonic() < end and not failures:
                    count += work(random)
            except BaseException as error:
                failures.append(error)
            operations.append(count)

        threads = [threading.Thread(target=again, args=(work, n), daemon=True) for n, work in enumerate(works)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(seconds + 30)
        if any(thread.is_alive() for thread in threads):
            guard()
            self.fail("the load hangs")
        if failures:
            raise failures[0]
        return sum(operations)

    def settled(self, pid: int, expected: Used | None = None) -> Used:
        """What is in use once the load's traces (connections that are being closed, idle threads) are gone."""
        deadline = time.monotonic() + 90
        while writes_databases(pid) and time.monotonic() < deadline:
            time.sleep(0.2)
        used = Used.of(pid)
        while time.monotonic() < deadline:
            time.sleep(0.5)
            before, used = used, Used.of(pid)
            if used.counts() == (before if expected is None else expected).counts():
                break
        return used

    def compare(self, what: str, operations: int, before: Used, after: Used) -> None:
        with open("leaks.txt", "a") as file:
            file.write(f"{what}: {operations} operations; before {before}, after {after}\n")
        self.assertEqual(after.counts(), before.counts())
        self.assertLess(after.memory - before.memory, TOLERANCE, f"{operations} operations, {before}, {after}")


@needs_root()
@needs_fuse()
@needs_libqb()
class DaemonLeaks(LeakCase):
    def test_daemon(self) -> None:
        """Operations of the mount, special files, IPC connections and requests, status values, log entries."""
        base = temporary_base(self)
        daemon = DaemonProcess(base, "--local")
        # The log is copied while changes come, in the warm-up too: after the first time SQLite keeps the descriptor of
        # the connection that copied it for the next one.
        daemon.before = "import pvecfs.store.sqlite as sqlite\nsqlite.BUSY_LOG = 4 * 1024 * 1024"
        self.addCleanup(daemon.clean)
        daemon.start()
        mount, name = daemon.mount, f"pvecfs-{os.getpid()}-{base.name}"
        (mount / "nodes/n1/qemu-server").mkdir(parents=True)
        (mount / "priv/lock").mkdir(parents=True)

        def files(place: str) -> Callable[[Random], int]:
            directory = mount / place
            directory.mkdir()

            def work(random: Random) -> int:
                path, other = directory / f"f{random.randrange(20)}", directory / f"g{random.randrange(20)}"
                path.write_bytes(random.randbytes(random.choice((0, 10, 3000, 70000))))
                with path.open("r+b", 0) as file:
                    file.seek(random.randrange(5000))
                    file.write(b"x" * 100)
                    os.fsync(file.fileno())
                    file.truncate(random.randrange(5000))
                    path.rename(other)
                    file.read(10)
                    if random.random() < 0.5:
                        other.unlink()  # while it is open
                        with contextlib.suppress(OSError):
                            file.write(b"gone")
                os.utime(directory, (5, 5))
                os.listdir(directory)
                for refused in (lambda: os.symlink("a", directory / "l"), lambda: os.rmdir(mount / "nodes")):
                    with contextlib.suppress(OSError):
                        refused()
                with contextlib.suppress(FileNotFoundError):
                    os.stat(directory / f"never-{random.randrange(10**9)}")
                sub = directory / "sub"
                sub.mkdir()
                sub.rmdir()
                return 15

            return work

        def special(random: Random) -> int:
            for document in ".version", ".members", ".vmlist", ".clusterlog", ".rrd", ".debug":
                with (mount / document).open("rb", 0) as file:
                    file.read(random.choice((1, 100, 100_000)))
                os.stat(mount / document)
            vmid = 100 + random.randrange(50)
            (mount / f"local/qemu-server/{vmid}.conf").write_text("name: web\n")
            (mount / f"qemu-server/{vmid}.conf").unlink()
            lock = mount / "priv/lock" / f"l{random.randrange(5)}"
            lock.mkdir()
            os.utime(lock)
            with contextlib.suppress(PermissionError):
                os.utime(lock, (0, 0))
            lock.rmdir()
            return 20

        def requests(random: Random) -> int:
            with Client(name, timeout=20) as client:
                for _ in range(10):
                    client.file_system_version()
                    client.guest_list()
                    client.set_status(b"key%d" % random.randrange(20), random.randbytes(random.randrange(2000)))
                    client.set_status(b"rrd/pve2.3-vm/%d" % random.randrange(100, 120), b"1:2:3\0")
                    client.log(6, b"root@pam", b"test", random.randbytes(20).hex().encode())
                    client.get_log(50)
                    with contextlib.suppress(OperationError):
                        client.get_status(b"missing")
                    with contextlib.suppress(OperationError):
                        client.get_config(b"no/such/file")
                    client.guest_properties(0, [b"name", b"lock"])
                    client.round_robin_dump()
                if random.random() < 0.3:
                    client.send(b"\1\0\0\0\x10\0\0\0" + bytes(8))  # goes without waiting for the answer
            return 100

        works = files("a"), files("b"), special, requests

        def guard() -> None:
            abort_connection(mount)

        self.load(WARM_UP, *works, guard=guard)
        before = self.settled(daemon.pid)
        operations = self.load(SECONDS, *works, guard=guard)
        self.compare("daemon", operations, before, self.settled(daemon.pid, before))
        self.assertNotIn("Traceback", daemon.log_text())
        self.assertEqual(daemon.stop()[0], 0)
        self.assertEqual([n for n in os.listdir("/dev/shm") if n.startswith(f"qb-{daemon.pid}-")], [])


@needs_fuse()
class RemoteLeaks(LeakCase):
    def test_changes_of_other_nodes(self) -> None:
        """Other nodes create, write, rename, replace and delete what this mount's users hold open."""
        node = MountedNode().start()
        self.addCleanup(node.stop)
        place = Path(node.path)
        node.remote("mkdir", "d")

        def remote(random: Random) -> int:
            name, other = (f"d/f{random.randrange(30)}" for _ in range(2))
            changes: list[tuple[Any, ...]] = [
                ("create", name),
                ("write", name, "x" * random.randrange(2000)),
                ("rename", name, other),
                ("mkdir", f"d/s{random.randrange(5)}"),
                ("delete", f"d/s{random.randrange(5)}"),
                ("delete", random.choice((name, other))),
            ]
            for change in changes:
                node.ask("change", *change)
            if random.random() < 0.05:
                node.ask("quorate", False)
                node.ask("quorate", True)
            return len(changes)

        def reader(random: Random) -> int:
            held = []
            for entry in os.listdir(place / "d"):
                with contextlib.suppress(OSError):
                    held.append((place / "d" / entry).open("rb", 0))
            for file in held:
                with contextlib.suppress(OSError):
                    file.read(100)
                file.close()
            return len(held) * 2

        works = remote, reader, reader

        def guard() -> None:
            abort_connection(place)

        assert node.process is not None
        self.load(WARM_UP, *works, guard=guard)
        node.ask("drained")
        before = self.settled(node.process.pid)
        operations = self.load(SECONDS, *works, guard=guard)
        node.ask("drained")
        self.compare("changes of others", operations, before, self.settled(node.process.pid, before))
