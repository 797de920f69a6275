"""Figures of daemons in local mode that this programme starts itself."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.mount import Figures, Target, messages_per_second, resident_kib, timed
from pvecfs.replica.application import Verdict
from pvecfs.replica.dcdb import TreeReplica
from pvecfs.replica.member import Instant, Member
from pvecfs.store.sqlite import create
from pvecfs.tree.changes import SetMtime
from pvecfs.tree.entry import DT_DIR, DT_REG, Entry
from pvecfs.tree.index import Index
from pvecfs.tree.locks import LockClocks
from pvecfs.tree.tree import Tree
from tests.daemons import DaemonProcess

FILES_IN_DIRECTORY = 1000
BYTES_IN_FILE = 500

MESSAGE_WRITERS = (1, 4, 16)


@contextmanager
def daemon(*options: str, tree: Tree | None = None) -> Iterator[tuple[DaemonProcess, float]]:
    """A daemon in local mode, on a disk (not a tmpfs), and the seconds that its start took.

    @param tree: what its database holds before.
    """
    base = Path(tempfile.mkdtemp(prefix="pvecfs-", dir="/var/tmp"))
    process = DaemonProcess(base, "--local", *options)
    try:
        if tree is not None:
            process.state.mkdir(mode=0o700)
            create(str(process.database), tree)
        yield process, process.start()
        process.stop()
    finally:
        process.clean()
        shutil.rmtree(base, ignore_errors=True)


def grown_tree(entries: int) -> Tree:
    """A tree of that many entries, the root among them: files of 500 bytes, in directories of a thousand."""
    now = int(time.time())
    rows = []
    directory = 0
    for inode in range(1, entries):
        if (inode - 1) % (FILES_IN_DIRECTORY + 1) == 0:
            directory = inode
            rows.append(Entry(inode, 0, inode, 0, now, DT_DIR, b"d%d" % inode))
        else:
            content = (b"%d " % inode * BYTES_IN_FILE)[:BYTES_IN_FILE]
            rows.append(Entry(inode, directory, inode, 0, now, DT_REG, b"f%d" % inode, content))
    return Tree.load(rows, Entry(0, 0, entries + 1, 0, now, DT_DIR, b""))


def growth(entries: int) -> Figures:
    """What the number of entries costs: the start of a daemon, its memory, and each step of a synchronisation."""
    tree = grown_tree(entries)
    figures: Figures = {}
    with daemon(tree=tree) as (process, seconds):
        figures["start s"] = seconds
        figures["daemon RSS KiB"] = resident_kib(process.pid)
        target = Target("", process.mount, process.pid)
        figures["changes/s, one writer"] = messages_per_second(target, 1)
    index = tree.index()
    figures["index bytes"] = len(index)
    updated = [entry for entry in tree.entries() if entry.inode]
    # Entries keep their digests, and a tree its last index: the first index costs most.
    fresh = Tree.load((Entry(*_fields(entry)) for entry in tree.entries()), tree.root)
    figures["index, first ms"] = timed(1, fresh.index) / 1000
    last = updated[-1]
    changed = fresh.apply(SetMtime(fresh.path_of(last.inode) or b"", 1), 1, 0).tree
    figures["index, again ms"] = timed(1, changed.index) / 1000
    figures["index, read ms"] = timed(1, lambda: Index.decode(index)) / 1000
    figures |= synchronisation(tree)
    changed_entry = changed.entry(last.inode) or last
    figures["one entry replaced ms"] = timed(1, lambda: tree.replaced((), [changed_entry], changed.root).index()) / 1000
    return figures


def synchronisation(tree: Tree) -> Figures:
    """What it costs to give C{tree} to a node that has nothing: each step that is done in one piece."""
    now = Instant(int(time.time()), time.monotonic())
    leader, node = Member(1, 1), Member(2, 1)
    giving, taking = TreeReplica(tree, LockClocks()), TreeReplica(Tree.new(0), LockClocks())
    states = {leader: giving.state(), node: taking.state()}
    verdicts: list[Verdict] = []
    figures: Figures = {}
    for name, replica, member in ("leader", giving, leader), ("node", taking, node):
        took = timed(1, lambda r=replica, m=member: verdicts.append(r.states_collected(states, m, now)))  # type: ignore[misc]
        figures[f"synchronisation, {name} compares ms"] = took / 1000
    updates, receiver = verdicts[0].updates, verdicts[1].receiver
    assert updates is not None
    assert receiver is not None
    payloads: list[bytes] = []
    took = timed(1, lambda: payloads.extend(updates))
    figures["synchronisation, leader makes an entry"] = took / len(payloads)
    figures["synchronisation, node takes an entry us"] = timed(
        len(payloads), lambda: deque(map(receiver.receive, payloads), 0)
    )
    figures["synchronisation, node commits ms"] = timed(1, lambda: receiver.commit(now)) / 1000
    return figures


def _fields(entry: Entry) -> tuple[int, int, int, int, int, int, bytes, bytes]:
    return (
        entry.inode,
        entry.parent,
        entry.version,
        entry.writer,
        entry.mtime,
        entry.type,
        entry.name,
        entry.data,
    )


def messages(target: Target) -> Figures:
    """Changes per second, each a message in a cluster, from one, four and sixteen writers."""
    return {f"messages, writers x{writers} ops/s": messages_per_second(target, writers) for writers in MESSAGE_WRITERS}


def ipc_round_trips(process: DaemonProcess, count: int = 3000) -> Figures:
    """Microseconds of a "get config" through libqb, from C.

    @raise RuntimeError: there is no compiler, or no libqb to compile with; the message says which.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise RuntimeError("there is no C compiler")
    source = Path(__file__).with_name("ipc_roundtrip.c")
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as directory:
        program = f"{directory}/ipc_roundtrip"
        built = subprocess.run(
            [compiler, "-O2", "-o", program, str(source), "-lqb"], capture_output=True, text=True, check=False
        )
        if built.returncode:
            raise RuntimeError(f"cannot build {source.name}: {built.stderr.strip().splitlines()[-1]}")
        for size in (100, 100_000):
            path = process.mount / f"ipc-{size}"
            path.write_bytes(b"i" * size)
            name = process.options[process.options.index("--ipc-name") + 1]
            done = subprocess.run([program, name, path.name, str(count)], capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(done.stderr.strip())
            result = json.loads(done.stdout)
            figures[f"IPC get {size}B median"] = result["median"]
            figures[f"IPC get {size}B p99"] = result["p99"]
            path.unlink()
    return figures


def say(text: str) -> None:
    """Progress, for who watches."""
    print(text, file=sys.stderr, flush=True)
