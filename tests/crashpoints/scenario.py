"""Fifty changes and what happens between them, played by a store that may be made to fail.

C{python -m tests.crashpoints.scenario DIRECTORY DURABILITY} plays it once, under the recorder; with C{start} as a
further word it only opens and closes the database that is there.
C{python -m tests.crashpoints.scenario DIRECTORY DURABILITY FAULTS...} plays it once for each fault, in directories 0,
1, ... below DIRECTORY, and prints a JSON object of what it saw.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from errno import EIO
from pathlib import Path
from random import Random
from threading import Event
from typing import Any

from pvecfs.store import sqlite
from pvecfs.store.errors import StoreError
from pvecfs.store.sqlite import SqliteStore
from pvecfs.tree.changes import Change, Create, Delete, Mkdir, Rename, SetMtime, Write
from pvecfs.tree.tree import Delta, Tree
from tests.store_databases import Gate, store_at

SYNCHRONISE, CHECKPOINT, RESTART, RECOVER = "synchronise", "checkpoint", "restart", "recover"
WORDS = (SYNCHRONISE, CHECKPOINT, RESTART, RECOVER)

Step = tuple[Change, ...] | str
"""Changes that are one transaction, or one of the words above."""


def _steps() -> list[Step]:
    bytes_of = Random(7).randbytes
    guest = b"nodes/n1/qemu-server/%d.conf"
    return [
        (Mkdir(b"nodes"),),
        (Mkdir(b"nodes/n1"),),
        (Mkdir(b"nodes/n1/qemu-server"),),
        (Create(b"storage.cfg"),),
        (Write(b"storage.cfg", b"dir: local\n\tpath /var/lib/vz\n"),),
        SYNCHRONISE,
        (Create(guest % 100), Write(guest % 100, b"name: web\n" * 20), Create(guest % 101)),
        (Create(b"large"),),
        (Write(b"large", bytes_of(40_000)),),
        (Rename(guest % 101, guest % 102),),
        (Delete(guest % 102),),
        CHECKPOINT,
        (Create(b"storage.cfg.new"),),
        (Write(b"storage.cfg.new", bytes_of(3_000)),),
        (Rename(b"storage.cfg.new", b"storage.cfg"),),
        SYNCHRONISE,
        (Write(b"large", b"", 10_000, True),),
        (Write(b"large", bytes_of(5_000), 30_000),),
        (Mkdir(b"priv"),),
        (Mkdir(b"priv/lock"),),
        (Mkdir(b"priv/lock/a"), Mkdir(b"priv/lock/b"), SetMtime(b"priv/lock/a", 3000), Delete(b"priv/lock/b")),
        RESTART,
        (Create(b"\xff\xfe"),),
        (Write(b"\xff\xfe", b"x"),),
        (Write(b"large", bytes_of(20_000), 0),),
        (Delete(b"\xff\xfe"),),
        (Delete(b"priv/lock/a"),),
        SYNCHRONISE,
        CHECKPOINT,
        (Write(guest % 100, bytes_of(900), 100),),
        (SetMtime(b"storage.cfg", 2**32 - 1),),
        RECOVER,
        (Create(b"user.cfg"), Write(b"user.cfg", bytes_of(2_000)), Rename(b"user.cfg", b"users"), Delete(b"users")),
        (Delete(b"large"),),
        SYNCHRONISE,
        (Create(b"large"),),
        (Write(b"large", bytes_of(12_000), 500),),
        (Write(b"large", b"", 0, True),),
        (Mkdir(b"ha"),),
        (Rename(b"ha", b"sdn"),),
        CHECKPOINT,
        (Create(b"sdn/zones.cfg"),),
        (Write(b"sdn/zones.cfg", bytes_of(1_500)),),
        (Write(b"sdn/zones.cfg", bytes_of(1_500), 1_500),),
        (Rename(b"sdn/zones.cfg", b"storage.cfg"),),
        (Delete(b"sdn"),),
        RESTART,
        (Create(b"last"),),
        (Write(b"last", bytes_of(600)),),
        (Mkdir(b"mapping"), SetMtime(b"last", 7), Rename(b"last", b"mapping/pci.cfg")),
    ]


STEPS = _steps()


def history() -> list[Tree]:
    """The new database's tree, and that after each change."""
    trees = [Tree.new(1000)]
    for step in STEPS:
        if not isinstance(step, str):
            for change in step:
                trees.append(delta_of(trees[-1], change).tree)
    return trees


def delta_of(tree: Tree, change: Change) -> Delta:
    return tree.apply(change, 1, 2000).delta


class Recorder:
    """The library that is preloaded into this process; without it, nothing."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        self._library = library if hasattr(library, "crashpoints_arm") else None
        if self._library is not None:
            self._library.crashpoints_count.restype = ctypes.c_long

    def mark(self, text: str) -> None:
        if self._library is not None:
            self._library.crashpoints_mark(text.encode())

    def arm(self, first: int, last: int, errno: int, short: bool = False, kinds: str = "cwtsur") -> None:
        if self._library is not None:
            args = ctypes.c_long(first), ctypes.c_long(last), errno, int(short), kinds.encode()
            self._library.crashpoints_arm(*args)

    @property
    def count(self) -> int:
        return 0 if self._library is None else int(self._library.crashpoints_count())


class Statements(sqlite3.Connection):
    """Fails statements in turn, before or after SQLite did them.

    @cvar count: statements so far.
    @cvar failing: the numbers of those that fail.
    """

    count = 0
    failing = range(0)
    afterwards = False

    def _due(self) -> bool:
        number, Statements.count = Statements.count, Statements.count + 1
        return number in Statements.failing

    def _done(self, work: Callable[..., sqlite3.Cursor], sql: str, arguments: tuple[Any, ...]) -> sqlite3.Cursor:
        due = self._due()
        result = None
        if not due or Statements.afterwards:
            result = work(sql, *arguments)
        if due or result is None:
            if result is not None:
                result.close()  # an unfinished checkpoint would count as a write under way, and hold back all commits
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error
        return result

    def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
        return self._done(super().execute, sql, arguments)

    def executemany(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
        return self._done(super().executemany, sql, arguments)


def connect(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(uri, timeout=10.0, isolation_level=None, uri=True, factory=Statements)


class Player:
    """Plays the scenario. What fails is tried again, as the node does; after the third time the fault is taken away.

    @ivar committed: the newest acknowledged tree.
    @ivar seen: numbers of failures of each kind.
    @ivar wrong: what must not be.
    """

    def __init__(self, path: str, durability: str, recorder: Recorder, heal: Callable[[], None]) -> None:
        self.path = path
        self.committed = Tree.new(1000)
        self.seen: dict[str, int] = {}
        self.wrong: list[str] = []
        self._number = 0
        self._durability = durability
        self._recorder = recorder
        self._heal = heal
        self._store = self._new_store()

    def play(self) -> None:
        self._open()
        for step in STEPS:
            if step == SYNCHRONISE:
                self._insist(self._synchronised, "synchronise")
            elif step == CHECKPOINT:
                time.sleep(sqlite.QUIET * 3)  # the store does it when it is quiet
            elif step == RECOVER:
                self._insist(self._recovered, "recover")
            elif step == RESTART:
                self._close()
                self._store = self._new_store()
                self._open()
            elif not isinstance(step, str):
                self._change(step)
        self._close()
        self._heal()
        found = loaded(self.path)
        if found.index() != self.committed.index():
            self.wrong.append(f"at the end version {found.version}, not {self.committed.version}")

    def _new_store(self) -> SqliteStore:
        return store_at(self.path, durability=self._durability, connect=connect)

    def _open(self) -> None:
        def opened() -> Exception | None:
            try:
                tree = self._store.open()
            except StoreError as error:
                return error
            if tree.index() != self.committed.index():
                self.wrong.append(f"opened version {tree.version}, not {self.committed.version}")
            return None

        self._insist(opened, "open")

    def _close(self) -> None:
        try:
            self._store.close_now()
        except (StoreError, sqlite3.Error) as error:
            self.wrong.append(f"close: {error!r}")

    def _insist(self, attempt: Callable[[], Exception | None], what: str) -> None:
        """Try until it succeeds."""
        for number in range(5):
            failure = attempt()
            if failure is None:
                return
            self._count(what, failure)
            if number == 2:
                self._heal()
        self.wrong.append(f"{what}: fails although the fault is gone: {failure!r}")

    def _count(self, what: str, failure: Exception) -> None:
        self.seen[what] = self.seen.get(what, 0) + 1
        if not isinstance(failure, StoreError) or not failure.errno:
            self.wrong.append(f"{what}: {failure!r}")

    def _synchronised(self) -> Exception | None:
        outcome: list[Exception | None] = []
        done = Event()

        def settled(failure: Exception | None) -> None:
            outcome.append(failure)
            if failure is None:
                self._recorder.mark(f"synced {self._number}")
            done.set()

        self._store.synchronise(settled)
        if not done.wait(30):
            raise AssertionError("no answer")
        return outcome[0]

    def _recovered(self) -> Exception | None:
        outcome: list[object] = []
        done = Event()
        deferred = self._store.recover(self.committed)
        deferred.addBoth(outcome.append)
        deferred.addBoth(lambda _: done.set())
        if not done.wait(30):
            raise AssertionError("no answer")
        failure = getattr(outcome[0], "value", None)
        return failure if isinstance(failure, Exception) else None

    def _change(self, changes: tuple[Change, ...]) -> None:
        left = list(changes)
        for attempt in range(5):
            left, failure = self._commit(left)
            if failure is None:
                return
            self._count("commit", failure)
            self._check_killed_now(len(left))
            if attempt == 2:
                self._heal()
            self._insist(self._recovered, "recover")
        self.wrong.append(f"commit: fails although the fault is gone: {failure!r}")

    def _commit(self, changes: list[Change]) -> tuple[list[Change], Exception | None]:
        """Hand over all at once; return those that were refused, and why."""
        gate = Gate()
        if len(changes) > 1:
            self._store.synchronise(gate)  # holds the thread until all are there
        tree, number = self.committed, self._number
        last = number + len(changes)
        failures: list[Exception] = []
        done = Event()
        for change in changes:
            delta = delta_of(tree, change)
            tree, number = delta.tree, number + 1
            self._recorder.mark(f"submitted {number}")

            def settled(failure: Exception | None, delta: Delta = delta, number: int = number) -> None:
                if failure is None:
                    if failures:
                        self.wrong.append(f"change {number} is acknowledged, an earlier one was refused")
                    self.committed, self._number = delta.tree, number
                    self._recorder.mark(f"acknowledged {number}")
                else:
                    failures.append(failure)
                if number == last:
                    done.set()

            self._store.commit(delta, settled)
        gate.opened.set()
        if not done.wait(30):
            raise AssertionError("no answer")
        return changes[len(changes) - len(failures) :], failures[0] if failures else None

    def _check_killed_now(self, refused: int) -> None:
        """The process is killed after a failure: all before it is there; the refused, which nobody was told are there,
        may be, up to one of them."""
        place = tempfile.mkdtemp(prefix="pvecfs-killed-")  # not in the recorded directory: no faults there
        copy = os.path.join(place, "config.db")
        for thread in threading.enumerate():
            if thread.name == "pvecfs-checkpoint":
                thread.join(30)  # two files cannot be copied at one moment while it writes
        for suffix in "", "-wal":
            if os.path.exists(self.path + suffix):
                shutil.copyfile(self.path + suffix, copy + suffix)
        found = loaded(copy)
        if not self.committed.version <= found.version <= self.committed.version + refused:
            self.wrong.append(f"killed at {self.committed.version}: version {found.version}")
        shutil.rmtree(place)


def loaded(path: str) -> Tree:
    """What a start makes of the database. Faults are not for this: its directory is not the recorded one, or healed."""
    failing, Statements.failing = Statements.failing, range(0)
    store = store_at(path)
    try:
        return store.open()
    finally:
        store.close_now()
        Statements.failing = failing


def small_log(quiet: float = 0.01) -> None:
    """Have checkpoints of all kinds happen after a few changes."""
    sqlite.QUIET = quiet
    sqlite.QUIET_LOG = 1
    sqlite.BUSY_LOG = 24 * 1024
    sqlite.FULL_LOG = 60 * 1024
    sqlite.KEPT_LOG = 16 * 1024


def play_fault(path: str, durability: str, recorder: Recorder, fault: dict[str, Any]) -> dict[str, Any]:
    """Play it with one fault: C{layer} call or statement, C{first}, C{last}, C{errno}, C{short}, C{after}, C{kinds}."""
    failing = range(fault["first"], fault["last"])
    Statements.count = 0
    by_call = fault["layer"] == "call"

    def heal() -> None:
        Statements.failing = range(0)
        recorder.arm(-1, -1, 0)

    count = 0

    def heal_and_count() -> None:
        nonlocal count
        count = max(count, recorder.count if by_call else Statements.count)
        heal()

    player = Player(path, durability, recorder, heal_and_count)
    Statements.failing = range(0) if by_call else failing
    Statements.afterwards = bool(fault.get("after"))
    if by_call:
        recorder.arm(failing.start, failing.stop, fault.get("errno", EIO), fault.get("short", False), fault["kinds"])
    try:
        player.play()
    except Exception as error:
        player.wrong.append(f"{error!r}")
    heal_and_count()
    return {"seen": player.seen, "wrong": player.wrong, "count": count}


def main(directory: str, durability: str, faults: str = "") -> None:
    recorder = Recorder()
    small_log(0.01 if not faults else 0.002)
    if faults == "start":
        loaded(os.path.join(directory, "config.db"))
        print("null")
        return
    if not faults:
        player = Player(os.path.join(directory, "config.db"), durability, recorder, lambda: None)
        player.play()
        print(json.dumps({"seen": player.seen, "wrong": player.wrong}))
        return
    results = []
    for number, fault in enumerate(json.loads(Path(faults).read_text())):
        place = os.path.join(directory, str(number))
        os.mkdir(place)
        recorder.mark(f"fault {number}")
        results.append(play_fault(os.path.join(place, "config.db"), durability, recorder, fault))
        shutil.rmtree(place)
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
