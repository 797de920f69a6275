"""Test doubles for the IPC service: a node as the recordings in C{tests/golden} leave it."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from dataclasses import dataclass
from errno import EFBIG, ENOENT, ENOMEM
from pathlib import Path

from zope.interface import implementer

from pvecfs.interfaces import INodeView, IStatus
from pvecfs.tree.changes import Create, Mkdir, Write
from pvecfs.tree.entry import DT_DIR, Entry
from pvecfs.tree.errors import OperationError
from pvecfs.tree.tree import Tree

GOLDEN = Path(__file__).parent / "golden"

_MAX_VALUE = 32768


def golden_tree() -> Tree:
    """The tree of the recorded database."""
    with sqlite3.connect(f"file:{GOLDEN / 'config.db'}?mode=ro&immutable=1", uri=True) as database:
        columns = "inode, parent, version, writer, mtime, type, cast(name as blob), coalesce(data, x'')"
        rows = [Entry(*row) for row in database.execute(f"select {columns} from tree order by inode")]
    database.close()
    root, *entries = rows
    return Tree.load(entries, Entry(0, 0, root.version, root.writer, root.mtime, DT_DIR, b""))


def with_file(tree: Tree, path: bytes, data: bytes) -> Tree:
    """C{tree} with a file, and the directories that lead to it."""
    names = path.split(b"/")
    for depth in range(1, len(names)):
        directory = b"/".join(names[:depth])
        if tree.lookup(directory) is None:
            tree = tree.apply(Mkdir(directory), 1, 1).tree
    if tree.lookup(path) is None:
        tree = tree.apply(Create(path), 1, 1).tree
    return tree.apply(Write(path, data, 0, truncate=True), 1, 1).tree if data else tree


@implementer(INodeView)
class MemoryView:
    """A node whose documents are the recorded ones."""

    quorate = True
    node_name = b"n1"
    max_bytes = 128 * 1024 * 1024
    max_entries = 262144

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.debug = False

    def document(self, name: bytes) -> bytes:
        if name == b".rrd":
            return b""
        recorded = {b".version", b".members", b".vmlist", b".clusterlog", b".debug"}
        if name not in recorded:
            raise KeyError(name)
        return (GOLDEN / f"status{name.decode()}.n1").read_bytes()

    def set_debug(self, enabled: bool) -> None:
        self.debug = enabled


@dataclass(frozen=True)
class Logged:
    uid: int
    time: int
    pri: int
    tag: str
    pid: int
    node: str
    user: str
    msg: str


@implementer(IStatus)
class MemoryStatus:
    """Status values and a cluster log in memory; the log begins as recorded."""

    def __init__(self) -> None:
        self.values: dict[tuple[bytes, bytes], bytes] = {(b"tasklist", b"n2"): b'[{"upid":1}]'}
        self.entries = []
        for line in (GOLDEN / "status.clusterlog.n1").read_bytes().decode().splitlines():
            # Not JSON: the reference's text has bare backslashes. It is kept as it is.
            match = re.fullmatch(r'(\{"uid".*), "msg": "(.*)"\},?', line)
            if match is not None:
                self.entries.append(Logged(**json.loads(match[1] + "}"), msg=match[2]))

    def set_value(self, key: bytes, value: bytes) -> None:
        if len(value) > _MAX_VALUE:
            raise OperationError(EFBIG)
        if (key == b"nodeip" or key.startswith(b"rrd/")) and not value.endswith(b"\0"):
            raise OperationError(ENOMEM)
        if value:
            self.values[key, b"n1"] = value
        else:
            self.values.pop((key, b"n1"), None)

    def value(self, key: bytes, node: bytes) -> bytes:
        try:
            return self.values[key, node or b"n1"]
        except KeyError:
            raise OperationError(ENOENT) from None

    def log(self, priority: int, ident: bytes, tag: bytes, message: bytes, pid: int) -> None:
        texts = [text.decode("latin-1") for text in (tag, ident, message)]
        entry = Logged(5, int(time.time()), priority, texts[0], pid, "n1", texts[1], texts[2])
        self.entries = [entry, *self.entries][:1000]

    def log_document(self, limit: int, ident: bytes) -> bytes:
        entries = [entry for entry in self.entries if not ident or entry.user.encode("latin-1") == ident]
        lines = ",\n".join(
            f'{{"uid": {e.uid}, "time": {e.time}, "pri": {e.pri}, "tag": "{e.tag}", "pid": {e.pid}, '
            f'"node": "{e.node}", "user": "{e.user}", "msg": "{e.msg}"}}'
            for e in entries[: limit or 50]
        )
        return f'{{\n"data": [\n{lines}\n]\n}}\n'.encode("latin-1", "replace")
