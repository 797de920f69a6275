"""What tests of the store share: trees, a store driven without a reactor, databases that fail."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from random import Random
from threading import Event
from typing import Any

from twisted.internet.interfaces import IReactorFromThreads
from zope.interface import implementer

from pvecfs.store import rows
from pvecfs.store.sqlite import SqliteStore
from pvecfs.tree.changes import Change, Create, Delete, Mkdir, Rename, SetMtime, Write
from pvecfs.tree.errors import OperationError
from pvecfs.tree.tree import Delta, Tree

GOLDEN = Path(__file__).parent / "golden"

Outcomes = list[Exception | None]


@implementer(IReactorFromThreads)
class ImmediateReactor:
    """Calls at once, on the thread that asks."""

    def callFromThread(self, callable: Callable[..., Any], *args: object, **kwargs: object) -> None:
        callable(*args, **kwargs)


class FailingConnection(sqlite3.Connection):
    """Fails a statement that contains a chosen text, with a real error of SQLite's as the model.

    @ivar fail: given each statement; raises what is to be raised.
    @ivar log: all statements executed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.log: list[str] = []
        self.fail: Callable[[str], None] = lambda statement: None

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        self.log.append(sql)
        self.fail(sql)
        return super().execute(sql, *args)

    def executemany(self, sql: str, *args: Any) -> sqlite3.Cursor:
        self.fail(sql)
        return super().executemany(sql, *args)


class Connections:
    """Opens databases, and keeps the connections for a test to spoil.

    @ivar opened: in the order of opening.
    @ivar fail: L{FailingConnection.fail} of all that are opened from now on.
    """

    def __init__(self) -> None:
        self.opened: list[FailingConnection] = []
        self.fail: Callable[[str], None] = lambda statement: None

    def __call__(self, uri: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            uri, timeout=10.0, isolation_level=None, uri=True, factory=FailingConnection, check_same_thread=False
        )
        connection.fail = self.fail
        self.opened.append(connection)
        return connection

    @property
    def newest(self) -> FailingConnection:
        return self.opened[-1]

    @property
    def transactions(self) -> int:
        """How many transactions the newest connection was asked to commit."""
        count = 0
        begun = False
        for statement in self.newest.log:
            begun = begun or statement.startswith("BEGIN")
            if statement == "COMMIT" or (statement in rows.STORE_WITH_ROOT and not begun):
                count += 1
                begun = False
            elif statement == "ROLLBACK":
                begun = False
        return count


class Gate:
    """A callback of a commit that holds the store's thread until the test opens it, so that work piles up."""

    def __init__(self) -> None:
        self.reached = Event()
        self.opened = Event()
        self.outcomes: Outcomes = []

    def __call__(self, outcome: Exception | None) -> None:
        self.outcomes.append(outcome)
        self.reached.set()
        self.opened.wait(30)


def store_at(path: str, **kwargs: Any) -> SqliteStore:
    return SqliteStore(path, ImmediateReactor(), lambda: 1000, **kwargs)


def settle(store: SqliteStore) -> None:
    """Wait until everything handed over so far is settled."""
    done = Event()
    store.synchronise(lambda outcome: done.set())
    if not done.wait(30):
        raise AssertionError("the store did not answer")


def reopened(path: str) -> Tree:
    """The tree that a start would load."""
    store = store_at(path)
    tree = store.open()
    store.close_now()
    return tree


def deltas(tree: Tree, *changes: Change) -> tuple[Tree, list[Delta]]:
    """The tree after C{changes}, and their deltas."""
    result = []
    for change in changes:
        result.append(tree.apply(change, 1, 2000).delta)
        tree = result[-1].tree
    return tree, result


def random_deltas(random: Random, tree: Tree, count: int) -> tuple[Tree, list[Delta]]:
    """C{count} random changes that succeed and change something."""
    names = [b"a", b"b", b"c", b"\xff\xfe", "né".encode(), b"x y", b"d.conf"]
    result: list[Delta] = []

    def path() -> bytes:
        return b"/".join(random.choice(names) for _ in range(random.randint(1, 3)))

    while len(result) < count:
        kind = random.randrange(6)
        change: Change
        if kind == 0:
            change = Create(path())
        elif kind == 1:
            change = Write(path(), random.randbytes(random.choice((0, 1, 100, 5000))), random.choice((0, 7)), kind == 1)
        elif kind == 2:
            change = Mkdir(path())
        elif kind == 3:
            change = Delete(path())
        elif kind == 4:
            change = Rename(path(), path())
        else:
            change = SetMtime(path(), random.randrange(2**32))
        try:
            delta = tree.apply(change, random.randrange(4), random.randrange(2**32)).delta
        except OperationError:
            continue
        if delta.tree is tree:  # renamed onto itself
            continue
        result.append(delta)
        tree = delta.tree
    return tree, result


def raw(path: str, entries: list[tuple[object, ...]], root: bool = True, schema: str = rows.SCHEMA) -> None:
    """Make a database of C{entries} (inode, parent, version, writer, mtime, type, name, data), whatever they are."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL").fetchall()
    connection.execute(schema)
    if root:
        entries = [(0, 0, 100, 1, 5, 8, b"__version__", None), *entries]
    insert = "INSERT INTO tree VALUES (?, ?, ?, ?, ?, ?, CAST(? AS TEXT), ?)"
    connection.executemany(insert, entries)
    connection.close()


def snapshot(path: str) -> dict[str, bytes]:
    """The content of all files in the directory of C{path}."""
    directory = os.path.dirname(path)
    return {name: Path(directory, name).read_bytes() for name in sorted(os.listdir(directory))}
