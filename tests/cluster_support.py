"""A real cluster: the daemon on every node of a laboratory, and what its tests ask of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from errno import EIO, errorcode
from pathlib import Path
from typing import Any, TypeVar

from pvecfs.store.errors import StoreError
from pvecfs.store.rows import reading
from pvecfs.store.sqlite import read_tree
from pvecfs.tree.tree import Tree
from tests.lab import Lab, LabError, LabNode, eventually, process_state
from tests.lab_case import LabCase

T = TypeVar("T")

OPERATION_TIMEOUT = 5.0
LOCK_TIMEOUT = 3.0
VERIFY_INTERVAL = 1.0
OPTIONS = (
    f"--verify-interval={VERIFY_INTERVAL}",
    f"--operation-timeout={OPERATION_TIMEOUT}",
    f"--lock-timeout={LOCK_TIMEOUT}",
)
"""What the daemons are started with, all numbers in seconds."""

PATIENCE = float(os.environ.get("PVECFS_TEST_PATIENCE", "60"))
"""Seconds allowed for what takes a few on a machine with nothing else to do."""

ALARMS = ("#critical]", "Traceback", "Unhandled", "Segmentation fault", "Fatal Python error", "data cannot be trusted")
"""What no line of a daemon's log may hold."""

VERIFIED = "data verification successful"


def alarms(log: str) -> list[str]:
    """The lines of C{log} that tell of a defect."""
    return [line for line in log.splitlines() if any(alarm in line for alarm in ALARMS)]


def stored_tree(path: Path) -> Tree:
    """The tree in the database at C{path}, a daemon's too, read from a copy of its files.

    (SQLite itself cannot open it from outside: it follows the link C{/proc/<pid>/root} by its text.)

    @raise StoreError: it cannot be read, or changes all the time.
    """
    files = [path, path.with_name(path.name + "-wal")]

    def state() -> list[tuple[int, int]]:
        return [(status.st_mtime_ns, status.st_size) for status in (file.stat() for file in files if file.exists())]

    with tempfile.TemporaryDirectory(prefix="pvecfs-tree-") as directory:
        for _ in range(20):
            try:
                before = state()
                for file in files:
                    copy = Path(directory, file.name)
                    copy.unlink(missing_ok=True)
                    if file.exists():
                        shutil.copyfile(file, copy)
                if state() == before:
                    break
            except OSError as error:
                raise StoreError(error.errno or EIO, f"{path}: {error}") from error
        else:
            raise StoreError(EIO, f"{path}: changes all the time")
        with reading(str(Path(directory, path.name)), alone=False) as connection:
            tree = read_tree(connection, str(path))
    if tree is None:
        raise StoreError(EIO, f"{path}: empty")
    return tree


def runs(process: subprocess.Popen[Any] | None) -> bool:
    """Whether C{process} was started and has not ended."""
    return process is not None and process.poll() is None


def outcome(operation: Callable[[], object]) -> str:
    """C{ok}, or the name of the errno with which C{operation} failed."""
    try:
        operation()
    except OSError as error:
        return errorcode.get(error.errno or 0, str(error))
    return "ok"


def at_once(operations: Sequence[Callable[[], T]], timeout: float = PATIENCE) -> list[T]:
    """Run C{operations} in a thread each, let loose together. @return: their results. @raise LabError: one hangs."""
    barrier = threading.Barrier(len(operations))
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def run(number: int, operation: Callable[[], T]) -> None:
        try:
            barrier.wait(timeout)
            results[number] = operation()
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=run, args=(number, operation), daemon=True)
        for number, operation in enumerate(operations)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if errors:
        raise errors[0]
    if len(results) < len(operations):
        raise LabError(f"{len(operations) - len(results)} operations are not over after {timeout} s")
    return [results[number] for number in range(len(operations))]


def quorate(node: LabNode) -> bool:
    """Whether the node may write, as programs learn it: by the write bit of the link C{local}."""
    try:
        return bool(os.lstat(node.mount / "local").st_mode & 0o200)
    except OSError:
        return False


def read(node: LabNode, path: str) -> bytes | None:
    """The content of a file on the node's mount, C{None} when there is none to be had."""
    try:
        return (node.mount / path).read_bytes()
    except OSError:
        return None


def document(node: LabNode, name: str) -> Any:
    """A document at the root of the node's mount; it must be JSON."""
    return json.loads((node.mount / name).read_bytes())


def log_of(node: LabNode) -> str:
    """The daemon's log, of all its runs."""
    try:
        return node.pvecfs_log.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def start(nodes: Iterable[LabNode], options: Sequence[str] = OPTIONS) -> None:
    """Start the daemon on C{nodes}, as far as it does not run there, all at once."""
    starting = [node for node in nodes if not runs(node.pvecfs)]
    at_once([lambda node=node: node.start_pvecfs(options, wait=PATIENCE) for node in starting])  # type: ignore[misc]


def synchronised(node: LabNode, nodes: Sequence[LabNode]) -> bool:
    """Whether the daemon of C{node}, as it logs, is synchronised with exactly those of C{nodes}."""
    lines = [line.partition("pve_dcdb_v1: ")[2] for line in log_of(node).splitlines() if "pve_dcdb_v1: " in line]
    for line in reversed(lines):
        if line.startswith("leaving the group"):
            return False
        if line.startswith("alone in the group"):
            return list(nodes) == [node]
        if "starting data synchronisation of members" in line:
            members = sorted(f"{each.number}/{each.pvecfs.pid}" for each in nodes if each.pvecfs is not None)
            last = lines[max(number for number, each in enumerate(lines) if each == line) :]
            return sorted(line.partition(" of members ")[2].split(", ")) == members and any(
                "all data is up to date" in each for each in last
            )
    return False


def in_step(nodes: Sequence[LabNode], timeout: float = PATIENCE) -> Tree:
    """Wait until C{nodes} are quorate and synchronised, their databases equal. @return: their tree.

    Each node writes a word, which shows that it may and that the others hear of it.

    @raise LabError: not within C{timeout} seconds.
    """
    word = f"{time.monotonic_ns()}".encode()
    deadline = time.monotonic() + timeout
    # Not sooner: what is written before the newest node has joined would be lost, or it would.
    for node in nodes:
        eventually(lambda node=node: synchronised(node, nodes), timeout, f"{node.name} synchronised with all")  # type: ignore[misc]

    def written(node: LabNode) -> bool:
        try:
            directory = node.mount / "step"
            if not directory.is_dir():
                directory.mkdir(exist_ok=True)
            (directory / node.name).write_bytes(word)
        except OSError:
            return False
        return True

    for node in nodes:
        eventually(lambda node=node: written(node), deadline - time.monotonic(), f"{node.name} may write")  # type: ignore[misc]
    for node in nodes:
        for other in nodes:
            eventually(
                lambda node=node, other=other: read(node, f"step/{other.name}") == word,  # type: ignore[misc]
                max(0.1, deadline - time.monotonic()),
                f"{node.name} sees what {other.name} writes",
            )
    return equal_trees(nodes, max(1.0, deadline - time.monotonic()))


def equal_trees(nodes: Sequence[LabNode], timeout: float = PATIENCE) -> Tree:
    """Wait until the databases of C{nodes} hold equal trees. @return: it. @raise LabError: they differ for too long."""
    trees: list[Tree] = []

    def equal() -> bool:
        try:
            trees[:] = [stored_tree(node.database) for node in nodes]
        except StoreError:
            return False
        return len({tree.index() for tree in trees}) == 1

    try:
        eventually(equal, timeout, f"equal databases on {', '.join(node.name for node in nodes)}")
    except LabError as error:
        raise LabError(f"{error}\n{differences(nodes, trees)}") from None
    return trees[0]


def differences(nodes: Sequence[LabNode], trees: Sequence[Tree]) -> str:
    """In which entries C{trees} of C{nodes} differ from the first, as text."""
    lines = []
    for node, tree in zip(nodes, trees, strict=False):
        lines.append(f"{node.name}: version {tree.version}, {len(tree)} entries")
        first = trees[0]
        for inode in sorted({e.inode for e in tree.entries()} | {e.inode for e in first.entries()}):
            if tree.entry(inode) != first.entry(inode):
                lines.append(f"  {first.path_of(inode)!r} {first.entry(inode)} is {tree.entry(inode)}")
    return "\n".join(lines[:40])


class ClusterCase(LabCase):
    """A test case on a cluster in which the daemons run and are in step when each test begins.

    The laboratory is shared by the classes of one module. After each test the daemons' logs must be free of alarms.
    """

    options: Sequence[str] = OPTIONS
    silent = True

    def setUp(self) -> None:
        super().setUp()
        self._log_sizes = {node.number: len(log_of(node)) for node in self.nodes}
        self.start()
        in_step(self.nodes)

    def tearDown(self) -> None:
        for node in self.nodes:
            self.assertEqual(alarms(self.log(node)), [], f"in the log of {node.name}")

    @property
    def nodes(self) -> list[LabNode]:
        return self.lab.nodes

    def start(self, *numbers: int) -> None:
        """Start the daemon on nodes C{numbers} (none given: on all) where it does not run."""
        start([self.node(number) for number in numbers or range(1, self.lab.size + 1)], self.options)

    def log(self, node: LabNode) -> str:
        """What the daemon of C{node} has logged since the test began."""
        return log_of(node)[self._log_sizes[node.number] :]

    def verified(self, nodes: Sequence[LabNode] | None = None) -> None:
        """Wait until a verification that starts after now has succeeded on C{nodes}."""
        nodes = self.nodes if nodes is None else nodes
        counts = {node.name: log_of(node).count(VERIFIED) for node in nodes}
        # One may be under way now; the second began after it.
        for node in nodes:
            eventually(
                lambda node=node: log_of(node).count(VERIFIED) >= counts[node.name] + 2,  # type: ignore[misc]
                PATIENCE,
                f"verification on {node.name}",
            )

    def settled(self) -> Tree:
        """Wait until all nodes are in step, and verified. @return: their tree."""
        in_step(self.nodes)
        self.verified()
        return equal_trees(self.nodes)

    def program(self, node: LabNode, text: str, timeout: float = 30.0) -> str:
        """Run a Python program on C{node}; @return: its output. It must end with 0."""
        done = subprocess.run(
            node.command([sys.executable, "-c", text]), capture_output=True, text=True, timeout=timeout, check=False
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def health(self, node: LabNode, *options: str) -> tuple[int, str]:
        """Run C{pvecfs-health} on C{node}; @return: its exit code and output."""
        done = node.run([sys.executable, "-m", "pvecfs.healthcli", *options])
        return done.returncode, done.stdout + done.stderr

    def service(self, node: LabNode, *calls: str) -> list[Any]:
        """Call methods of an IPC client, written as Python expressions, on C{node}; @return: what they returned, bytes
        as text, errors as names of their errno."""
        text = (
            "import errno, json\n"
            "from pvecfs.ipc.client import Client\n"
            "results = []\n"
            "with Client() as client:\n"
            f"    for call in {list(calls)!r}:\n"
            "        try:\n"
            "            result = eval('client.' + call)\n"
            "        except OSError as error:\n"
            "            result = errno.errorcode[error.errno]\n"
            "        if isinstance(result, bytes):\n"
            "            result = result.decode('utf-8', 'surrogateescape')\n"
            "        results.append(result)\n"
            "print(json.dumps(results))\n"
        )
        results: list[Any] = json.loads(self.program(node, text))
        return results


__all__ = [
    "LOCK_TIMEOUT",
    "OPERATION_TIMEOUT",
    "OPTIONS",
    "PATIENCE",
    "VERIFIED",
    "ClusterCase",
    "Lab",
    "LabError",
    "LabNode",
    "alarms",
    "at_once",
    "document",
    "equal_trees",
    "eventually",
    "in_step",
    "log_of",
    "outcome",
    "process_state",
    "quorate",
    "read",
    "runs",
    "start",
    "stored_tree",
]
