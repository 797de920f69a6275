"""The store on real files: what it writes, in which transactions, and what it makes of failures."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Generator
from errno import EBUSY, EIO, ENOSPC
from pathlib import Path
from random import Random
from threading import Event, Thread
from time import monotonic, sleep
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from pvecfs.interfaces import IStore
from pvecfs.store import rows, sqlite
from pvecfs.store.errors import StoreError
from pvecfs.store.offline import OfflineDatabase
from pvecfs.store.sqlite import SqliteStore
from pvecfs.tree.changes import Create, Delete, Mkdir, Rename, SetMtime, Write
from pvecfs.tree.entry import DT_DIR, DT_REG, Entry
from pvecfs.tree.tree import Delta, Tree
from tests.store_databases import (
    GOLDEN,
    Connections,
    Gate,
    ImmediateReactor,
    Outcomes,
    deltas,
    random_deltas,
    raw,
    reopened,
    settle,
    store_at,
)

COPYING = """
import fcntl, sys
with open(sys.argv[1], "r+b") as index:
    fcntl.lockf(index, fcntl.LOCK_EX, 1, 121)  # WAL_CKPT_LOCK (https://www.sqlite.org/walformat.html#locks)
    print(flush=True)
    sys.stdin.read()
"""
"""A program that has SQLite's lock of who copies the log, given C{-shm}, until its input ends."""


class StoreTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        os.mkdir(self.mktemp())
        self.directory = os.path.abspath(self.mktemp())
        os.mkdir(self.directory)
        self.path = os.path.join(self.directory, "config.db")

    def opened(self, **kwargs: Any) -> tuple[SqliteStore, Tree]:
        store = store_at(self.path, **kwargs)
        tree = store.open()
        self.addCleanup(store.close_now)
        return store, tree

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """What another process sees."""
        connection = sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)
        try:
            return connection.execute(statement).fetchall()
        finally:
            connection.close()


class InterfaceTests(SynchronousTestCase):
    def test_interfaces(self) -> None:
        verifyObject(IStore, store_at("unused"))
        verifyObject(IReactorFromThreads, ImmediateReactor())


class GoldenTests(StoreTestCase):
    def test_what_is_written_opens_again_with_the_same_index(self) -> None:
        shutil.copy(GOLDEN / "config.db", self.path)
        store, tree = self.opened()
        self.assertEqual(len(tree), 17)
        self.assertEqual(self.query("PRAGMA page_size"), [(4096,)])
        tree, made = deltas(tree, Create(b"new"), Write(b"new", b"text"), Delete(b"user.cfg"))
        for delta in made:
            store.commit(delta, lambda outcome: None)
        store.close_now()
        self.assertEqual(reopened(self.path).index(), tree.index())

    def test_size_of_the_log(self) -> None:
        """It is told while the store is open, without asking SQLite."""
        store, tree = self.opened()
        before = store.log_bytes
        _, made = deltas(tree, Create(b"new"))
        store.commit(made[0], lambda outcome: None)
        settle(store)
        self.assertGreater(store.log_bytes, before)

    def test_a_copy_of_the_whole_tree(self) -> None:
        shutil.copy(GOLDEN / "config.db", self.path)
        tree = reopened(self.path)
        copy = os.path.join(self.directory, "copy.db")
        sqlite.create(copy, tree)
        self.assertEqual(reopened(copy).index(), tree.index())
        self.assertEqual(reopened(copy).checksum(), tree.checksum())

    def test_a_symbolic_link(self) -> None:
        shutil.copy(GOLDEN / "config.db", self.path)
        os.mkdir(os.path.join(self.directory, "other"))
        link = os.path.join(self.directory, "other", "config.db")
        os.symlink(self.path, link)
        store = store_at(link)
        tree, made = deltas(store.open(), Create(b"new"))
        store.commit(made[0], lambda outcome: None)
        settle(store)
        self.assertTrue(os.path.exists(self.path + "-wal"))
        store.close_now()
        self.assertEqual(reopened(self.path).index(), tree.index())


class NewDatabaseTests(StoreTestCase):
    def test_what_is_made(self) -> None:
        store, tree = self.opened()
        self.assertTrue(store.created)
        self.assertEqual((tree.version, tree.root.writer, tree.root.mtime, len(tree)), (1, 0, 1000, 1))
        self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o600)
        self.assertEqual(
            self.query("SELECT *, typeof(name), typeof(data) FROM tree"),
            [(0, 0, 1, 0, 1000, 8, "__version__", None, "text", "null")],
        )
        self.assertEqual(self.query("PRAGMA journal_mode"), [("wal",)])
        self.assertEqual(self.query("PRAGMA page_size"), [(rows.DEFAULT_PAGE_SIZE,)])
        with sqlite3.connect(GOLDEN / "config.db") as golden:
            (theirs,) = golden.execute("SELECT sql FROM sqlite_master").fetchone()
        self.assertEqual(self.query("SELECT count(*) FROM sqlite_master"), [(1,)])
        self.assertEqual(self.query("SELECT sql FROM sqlite_master")[0][0].split(), theirs.split())

    def test_created_until_something_is_written(self) -> None:
        self.opened()[0].close_now()
        store, tree = self.opened()
        self.assertTrue(store.created)
        store.commit_now(tree.apply(Mkdir(b"d"), 0, 1).delta)
        store.close_now()
        store, tree = self.opened()
        self.assertFalse(store.created)

    def test_a_database_that_the_reference_had_just_begun(self) -> None:
        for statement in ("PRAGMA user_version=1", rows.SCHEMA):
            with self.subTest(statement):
                connection = sqlite3.connect(self.path)
                connection.execute("PRAGMA journal_mode=WAL").fetchall()
                connection.execute(statement)
                connection.close()
                store, tree = self.opened()
                self.assertEqual((tree.version, len(tree), store.created), (1, 1, True))
                store.close_now()
                self.assertEqual(reopened(self.path).index(), tree.index())
                os.unlink(self.path)

    def test_the_log_of_a_database_that_was_removed(self) -> None:
        store, tree = self.opened()
        store.commit_now(tree.apply(Mkdir(b"d"), 0, 1).delta)
        saved = Path(self.path + "-wal").read_bytes()
        store.close_now()
        os.unlink(self.path)
        Path(self.path + "-wal").write_bytes(saved)
        store, tree = self.opened()
        self.assertEqual(len(tree), 1)
        self.assertEqual(Path(self.path + "-wal.old").read_bytes(), saved)

    def test_no_half_made_database(self) -> None:
        connections = Connections()

        def fail(statement: str) -> None:
            if statement == "COMMIT":
                raise sqlite3.OperationalError("disk I/O error")

        connections.fail = fail
        self.assertRaises(StoreError, store_at(self.path, connect=connections).open)
        self.assertEqual(os.listdir(self.directory), [])

    def test_mode_is_enforced(self) -> None:
        shutil.copy(GOLDEN / "config.db", self.path)
        os.chmod(self.path, 0o644)
        self.opened()
        self.assertEqual(self.modes(), {0o600})

    def test_mode_of_what_a_crash_left(self) -> None:
        """It is right before anything is written, which may be private."""
        store, tree = self.opened()
        store.commit_now(tree.apply(Mkdir(b"d"), 0, 1).delta)
        crashed = os.path.join(self.directory, "crashed")
        os.mkdir(crashed)
        for suffix in ("", "-wal", "-shm"):
            shutil.copy(self.path + suffix, os.path.join(crashed, "config.db" + suffix))
            os.chmod(os.path.join(crashed, "config.db" + suffix), 0o644)
        store.close_now()
        self.path = os.path.join(crashed, "config.db")
        modes: list[set[int]] = []

        def connect(uri: str) -> sqlite3.Connection:
            if uri.endswith("mode=rw"):
                modes.append(self.modes())
            return Connections()(uri)

        store, tree = self.opened(connect=connect)
        self.assertEqual((len(tree), modes), (2, [{0o600}]))

    def modes(self) -> set[int]:
        return {stat.S_IMODE(os.stat(self.path + suffix).st_mode) for suffix in ("", "-wal", "-shm")}

    def test_a_version_behind_its_entries(self) -> None:
        """Loaded as it is, and said in the words of check."""
        raw(self.path, [(2, 0, 2, 1, 5, 8, b"f", None), (101, 0, 101, 1, 5, 8, b"added by hand", None)])
        (defect,) = OfflineDatabase(self.path).survey().defects()
        behind = "the tree's version 100 is behind its entries' 101"
        self.assertTrue(defect.startswith(behind), defect)
        with capturedLogs() as events:
            store, tree = self.opened()
        (event,) = events
        self.assertEqual(event["log_level"], LogLevel.warn)
        self.assertIn(f"{self.path}: {behind}", formatEvent(event))
        self.assertEqual((tree.version, len(tree)), (100, 3))
        delta = tree.apply(SetMtime(b"f", 7), 0, 0).delta
        store.commit_now(delta)
        store.close_now()
        with capturedLogs() as events:
            self.assertEqual(reopened(self.path).version, 101)
        self.assertEqual(events, [])


class PlacingTests(StoreTestCase):
    """Where a database takes the place of another, or of none."""

    def setUp(self) -> None:
        super().setUp()
        self.database = OfflineDatabase(self.path, lambda: 5000)
        sqlite.create(self.path, Tree.new(1).apply(Create(b"f"), 0, 1).tree)

    def names(self) -> set[str]:
        return set(os.listdir(self.directory)) - {".pmxcfs.lockfile"}

    def test_files_of_similar_names_are_left_alone(self) -> None:
        """One of them may be what is restored."""
        source = self.path + ".new"
        self.database.backup(source)
        saved = Path(source).read_bytes()
        self.database.backup(self.path + ".other")
        kept = self.database.restore(source)
        assert kept is not None
        self.assertEqual(Path(source).read_bytes(), saved)
        self.assertEqual(len(reopened(self.path)), 2)
        self.assertEqual(self.names(), {"config.db", "config.db.new", "config.db.other", os.path.basename(kept)})
        os.unlink(self.path)
        self.opened()[0].close_now()
        self.assertEqual(Path(source).read_bytes(), saved)

    def test_a_copy_is_kept_under_a_name_that_nothing_has(self) -> None:
        kept = self.database._kept("restore")
        assert kept is not None
        Path(kept + "-wal").write_bytes(b"of another")
        self.assertNotEqual(self.database._kept("restore"), kept)

    def test_the_log_stays_if_the_new_one_cannot_take_its_place(self) -> None:
        source = os.path.join(self.directory, "saved")
        sqlite.create(source, Tree.new(7))
        writer = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(writer.close)
        writer.execute("INSERT INTO tree VALUES (3, 0, 3, 0, 5, 8, 'newest', NULL)")
        writer.execute("UPDATE tree SET version = 3 WHERE inode = 0")
        before = self.names()
        rename = os.rename

        def refused(old: str, new: str) -> None:
            if new == self.path:
                raise OSError(EBUSY, "busy")
            rename(old, new)

        patch = self.patch(os, "rename", refused)
        error = self.assertRaises(StoreError, self.database.restore, source)
        patch.restore()
        (kept,) = [name for name in self.names() - before if name[-1].isdigit()]
        self.assertIn(os.path.join(self.directory, kept), str(error))
        self.assertEqual(self.names() - before, {kept, kept + "-wal"})
        for path in (self.path, os.path.join(self.directory, kept)):
            self.assertEqual(len(OfflineDatabase(path).tree()), 3)


class RowTests(StoreTestCase):
    def test_names_of_any_bytes(self) -> None:
        store, tree = self.opened()
        names = [b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"a\nb", b"\x01", b"'; --", b"1", b"1.0", b"x" * 255]
        names += [bytes([byte]) for byte in range(1, 256) if byte not in b"/."]
        tree, made = deltas(tree, *map(Create, dict.fromkeys(names)))
        for delta in made:
            store.commit(delta, lambda outcome: None)
        store.close_now()
        self.assertEqual(reopened(self.path).index(), tree.index())
        self.assertEqual(self.query("SELECT DISTINCT typeof(name), typeof(data) FROM tree"), [("text", "null")])

    def test_row_0(self) -> None:
        store, tree = self.opened()
        delta = tree.apply(Create(b"f"), 3, 77).delta
        root = "SELECT parent, version, writer, mtime, type, name, data FROM tree WHERE inode = 0"
        store.commit_now(delta)
        self.assertEqual(self.query(root), [(0, 2, 3, 77, DT_REG, "__version__", None)])
        for stored, deleted in ((delta.stored, ()), ((), (2,)), ((), ())):
            store.commit_now(Delta(delta.tree, stored, deleted, synchronised=True))
            self.assertEqual(self.query(root), [(0, 2, 3, 77, DT_DIR, "__version__", None)])
            store.commit_now(delta)
            self.assertEqual(self.query(root), [(0, 2, 3, 77, DT_REG, "__version__", None)])

    def test_the_largest_numbers(self) -> None:
        top = 2**64 - 1
        root = Entry(0, 0, top, 2**32 - 1, 2**32 - 1, DT_DIR, b"")
        entries = [
            Entry(2**63, 0, 2**63 + 1, 2**32 - 1, 2**32 - 1, DT_DIR, b"d"),
            Entry(top, 2**63, top, 2**32 - 1, 2**32 - 1, DT_REG, b"f", b"data"),
        ]
        tree = Tree.load(entries, root)
        store, _ = self.opened()
        store.commit_now(Delta(tree, tuple(entries), ()))
        store.close_now()
        self.assertEqual(reopened(self.path).index(), tree.index())
        store, tree = self.opened()
        store.commit_now(Delta(Tree.load([], root), (), (top, 2**63)))
        store.close_now()
        self.assertEqual(len(reopened(self.path)), 1)

    def test_data_of_another_kind(self) -> None:
        store, tree = self.opened()
        tree, made = deltas(tree, Create(b"f"), Write(b"f", b"\xff\x00x"))
        for delta in made:
            store.commit_now(delta)
        store.close_now()
        connection = sqlite3.connect(self.path)
        connection.execute("UPDATE tree SET data = CAST(data AS TEXT) WHERE inode = 2")
        connection.commit()
        connection.close()
        self.assertEqual(reopened(self.path).index(), tree.index())

    def test_the_log_of_a_process_that_was_killed(self) -> None:
        store, tree = self.opened()
        tree, made = random_deltas(Random(1), tree, 50)
        for delta in made:
            store.commit(delta, lambda outcome: None)
        settle(store)
        other = os.path.join(self.directory, "other.db")
        shutil.copy(self.path, other)
        shutil.copy(self.path + "-wal", other + "-wal")
        self.assertEqual(reopened(other).index(), tree.index())


class BatchTests(StoreTestCase):
    def test_what_piles_up_is_one_transaction(self) -> None:
        connections = Connections()
        store, tree = self.opened(connect=connections)
        gate = Gate()
        tree, made = deltas(tree, Create(b"f"), *(Write(b"f", b"%d" % i, 0, True) for i in range(100)))
        outcomes: list[int] = []
        store.commit(made[0], gate)
        gate.reached.wait(30)
        before = connections.transactions
        for number, delta in enumerate(made[1:]):
            store.commit(delta, lambda outcome, number=number: outcomes.append(number))  # type: ignore[misc]  # mypy knows no lambda with a default
        gate.opened.set()
        settle(store)
        self.assertEqual(connections.transactions - before, 1)
        self.assertEqual(outcomes, list(range(100)))
        self.assertEqual(self.query("SELECT data FROM tree WHERE inode = 2"), [(b"99",)])

    def test_few_rows_and_many(self) -> None:
        """Up to 16 are one statement. They are new, then others, then there is one less."""
        connections = Connections()
        store, tree = self.opened(connect=connections)
        for count in (1, 2, 15, 16, 17, 40):
            names = [b"%d.%d" % (count, number) for number in range(count)]
            for changes in (
                [Create(name) for name in names],
                [Write(name, b"x" * (number * 300)) for number, name in enumerate(names)],
                [Delete(names[0]), *(Write(name, b"y", 5) for name in names[1:])],
            ):
                tree, made = deltas(tree, *changes)
                delta = Delta(tree, tuple(each.stored[0] for each in made if each.stored), made[0].deleted)
                before = connections.transactions
                statements = len(connections.newest.log)
                store.commit_now(delta)
                self.assertEqual(connections.transactions - before, 1)
                if count <= 16 and not delta.deleted:
                    self.assertEqual(len(connections.newest.log) - statements, 1)
        store.close_now()
        self.assertEqual(reopened(self.path).index(), tree.index())

    def test_a_row_that_comes_and_goes(self) -> None:
        store, tree = self.opened()
        gate = Gate()
        tree, made = deltas(
            tree, Mkdir(b"first"), Mkdir(b"d"), Create(b"f"), Delete(b"d"), Create(b"d"), Rename(b"f", b"d")
        )
        for delta in made:
            store.commit(delta, gate)
        gate.opened.set()
        settle(store)
        self.assertEqual(gate.outcomes, [None] * len(made))
        store.close_now()
        self.assertEqual(reopened(self.path).index(), tree.index())

    def test_random_batches(self) -> None:
        random = Random(5)
        store, tree = self.opened(page_size=512)
        for _ in range(40):
            gate = Gate()
            tree, made = random_deltas(random, tree, random.randint(1, 20))
            for delta in made:
                store.commit(delta, gate)
            gate.opened.set()
            settle(store)
            self.assertEqual(gate.outcomes, [None] * len(made))
        store.close_now()
        self.assertEqual(reopened(self.path).index(), tree.index())

    def test_nothing_to_commit(self) -> None:
        connections = Connections()
        store, tree = self.opened(connect=connections)
        before = connections.transactions
        store.commit_now(Delta(tree, (), ()))
        self.assertEqual(connections.transactions, before)

    def test_a_callback_that_fails(self) -> None:
        store, tree = self.opened()
        tree, made = deltas(tree, Create(b"f"), Create(b"g"))
        outcomes: Outcomes = []

        def broken(outcome: Exception | None) -> None:
            raise ZeroDivisionError

        store.commit(made[0], broken)
        store.commit(made[1], outcomes.append)
        settle(store)
        self.assertEqual(outcomes, [None])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_mtime_of_a_large_file_costs_little(self) -> None:
        store, tree = self.opened()
        tree, made = deltas(tree, Create(b"f"), Write(b"f", os.urandom(2**20)))
        for delta in made:
            store.commit_now(delta)
        before = os.stat(self.path + "-wal").st_size
        store.commit_now(tree.apply(SetMtime(b"f", 2001), 1, 0).delta)
        self.assertLess(os.stat(self.path + "-wal").st_size - before, 10_000)


class FailureTests(StoreTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.connections = Connections()
        self.store, self.tree = self.opened(connect=self.connections)

    def fill(self, pages: int) -> None:
        """The disk has room for so many pages more. SQLite says the same as when it is really full."""
        (used,) = self.connections.newest.execute("PRAGMA page_count").fetchone()
        self.connections.newest.execute(f"PRAGMA max_page_count={used + pages}")

    def test_full(self) -> None:
        tree, made = deltas(self.tree, Create(b"f"), Write(b"f", b"x" * 100_000), Create(b"g"))
        self.store.commit_now(made[0])
        self.fill(10)
        gate = Gate()
        outcomes: Outcomes = []
        self.store.commit(Delta(made[0].tree, (), (), True), gate)
        gate.reached.wait(30)
        self.store.commit(made[1], outcomes.append)
        self.store.commit(made[2], outcomes.append)
        gate.opened.set()
        settle(self.store)
        self.store.commit(made[2], outcomes.append)
        self.store.synchronise(outcomes.append)
        settle(self.store)
        self.assertEqual([type(outcome) for outcome in outcomes], [StoreError] * 4)
        self.assertEqual({getattr(outcome, "errno", None) for outcome in outcomes}, {ENOSPC})
        self.assertEqual(self.query("SELECT inode FROM tree"), [(0,), (2,)])

        done: list[object] = []
        self.store.recover(made[0].tree).addBoth(done.append)
        settle(self.store)
        self.assertEqual(done, [None])
        tree, made = deltas(made[0].tree, Write(b"f", b"x" * 100_000), Create(b"h"))
        for delta in made:
            self.store.commit_now(delta)
        self.store.close_now()
        self.assertEqual(reopened(self.path).index(), tree.index())

    def test_recovery_from_a_connection_of_no_use(self) -> None:
        """Whatever it is asked for fails; a new one works."""

        def fail(statement: str) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        _, made = deltas(self.tree, Create(b"f"), Create(b"g"))
        self.store.commit_now(made[0])
        self.connections.newest.fail = fail
        self.assertRaises(StoreError, self.store.commit_now, made[1])
        done: list[object] = []
        self.store.recover(made[0].tree).addBoth(done.append)
        settle(self.store)
        self.assertEqual(done, [None])
        self.store.commit_now(made[1])

    def test_input_output_error(self) -> None:
        def fail(statement: str) -> None:
            if statement == "COMMIT":
                raise sqlite3.OperationalError("disk I/O error")

        tree, made = deltas(self.tree, Create(b"f"), Delete(b"f"), Create(b"g"))
        self.store.commit_now(made[0])
        self.connections.newest.fail = self.connections.fail = fail
        error = self.assertRaises(StoreError, self.store.commit_now, made[1])
        self.assertEqual(error.errno, EIO)
        self.assertIn(self.path, str(error))
        failures: list[object] = []
        self.store.recover(made[0].tree).addErrback(lambda failure: failures.append(failure.value))
        settle(self.store)
        self.assertIsInstance(failures[0], StoreError)
        self.connections.fail = lambda statement: None
        done: list[object] = []
        # The database is put to whatever tree was committed last, even if more or less than that is in it.
        self.store.recover(made[2].tree).addBoth(done.append)
        settle(self.store)
        self.assertEqual(done, [None])
        self.store.close_now()
        self.assertEqual(reopened(self.path).index(), tree.index())

    def test_a_log_whose_name_was_removed(self) -> None:
        """SQLite uses it on, and copies it when it is closed."""
        tree, made = deltas(self.tree, Create(b"f"), Create(b"g"))
        self.store.commit_now(made[0])
        os.unlink(self.path + "-wal")

        def fail(statement: str) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        self.connections.newest.fail = fail
        self.assertRaises(StoreError, self.store.commit_now, made[1])
        self.connections.newest.fail = lambda statement: None
        done: list[object] = []
        self.store.recover(made[0].tree).addBoth(done.append)
        settle(self.store)
        self.assertEqual(done, [None])
        self.store.commit_now(made[1])
        self.store.close_now()
        self.assertEqual(reopened(self.path).index(), tree.index())

    def test_every_statement_may_fail(self) -> None:
        """Whatever statement fails, nothing of its batch is in the database, and a recovery mends it."""
        tree, made = random_deltas(Random(3), self.tree, 60)
        committed = self.tree
        for number, delta in enumerate(made):
            countdown = [number % 5]

            def fail(statement: str, countdown: list[int] = countdown) -> None:
                countdown[0] -= 1
                if countdown[0] == -1 and statement != "ROLLBACK":
                    raise sqlite3.OperationalError("injected")

            self.connections.newest.fail = fail
            try:
                self.store.commit_now(delta)
            except StoreError:
                self.connections.newest.fail = lambda statement: None
                self.assertEqual(self.query("SELECT version FROM tree WHERE inode = 0"), [(committed.version,)])
                done: list[object] = []
                self.store.recover(committed).addBoth(done.append)
                settle(self.store)
                self.assertEqual(done, [None])
                self.store.commit_now(delta)
            self.connections.newest.fail = lambda statement: None
            committed = delta.tree
        self.store.close_now()
        self.assertEqual(reopened(self.path).index(), tree.index())

    def test_a_closed_store(self) -> None:
        self.store.close_now()
        outcomes: Outcomes = []
        self.store.commit(self.tree.apply(Create(b"f"), 0, 0).delta, outcomes.append)
        self.store.synchronise(outcomes.append)
        self.assertEqual([type(outcome) for outcome in outcomes], [StoreError] * 2)
        self.failureResultOf(self.store.recover(self.tree), StoreError)
        self.assertIsNone(self.successResultOf(self.store.close()))
        self.store.close_now()


class LogTests(StoreTestCase):
    def frames(self, store: SqliteStore) -> int:
        return os.stat(self.path + "-wal").st_size

    def write(self, store: SqliteStore, tree: Tree, count: int) -> Tree:
        for _ in range(count):
            delta = tree.apply(Write(b"f", os.urandom(500_000), 0, True), 0, 0).delta
            store.commit_now(delta)
            tree = delta.tree
        return tree

    def test_checkpoint_at_quiet_moments(self) -> None:
        store, tree = self.opened()
        store.commit_now(delta := tree.apply(Create(b"f"), 0, 0).delta)
        self.assertEqual(store._waited_for(lambda: store._rest(sqlite.QUIET)), sqlite.IDLE)  # too little to do
        tree = self.write(store, delta.tree, 4)
        before = os.stat(self.path).st_size
        self.assertIsNone(store._waited_for(lambda: store._rest(sqlite.QUIET)))
        self.assertGreater(os.stat(self.path).st_size, before)
        size = self.frames(store)
        tree = self.write(store, tree, 3)
        self.assertEqual(self.frames(store), size)  # used from its start again
        self.assertEqual(self.query("SELECT type FROM tree WHERE inode = 0"), [(8,)])
        store.close_now()
        self.assertEqual(os.listdir(self.directory), ["config.db"])
        self.assertEqual(reopened(self.path).index(), tree.index())

    def test_the_log_is_bounded_under_load(self) -> None:
        self.patch(sqlite, "BUSY_LOG", 2_000_000)
        self.patch(sqlite, "FULL_LOG", 3_000_000)
        store, tree = self.opened()
        store.commit_now(delta := tree.apply(Create(b"f"), 0, 0).delta)
        self.write(store, delta.tree, 40)
        self.assertLess(self.frames(store), 6_000_000)

    def test_an_old_log_is_checkpointed_at_the_next_quiet_moment(self) -> None:
        store, tree = self.opened()
        self.patch(sqlite, "LATEST", 0.0)
        store.commit_now(tree.apply(Create(b"f"), 0, 0).delta)
        self.assertIsNone(store._waited_for(lambda: store._rest(sqlite.QUIET)))

    def test_an_old_log_is_checkpointed_under_load(self) -> None:
        store, tree = self.opened()
        before = os.stat(self.path).st_size
        self.write(store, tree.apply(Create(b"f"), 0, 0).delta.tree, 1)
        self.assertIsNone(store._copier)
        store._due = 0.0
        store.commit_now(Delta(tree, (), (), True))
        self.assertGreater(store._due, 0.0)
        copier = store._copier
        if copier is not None:
            copier.join(30)
        settle(store)
        self.assertIsNone(store._copier)
        self.assertGreater(os.stat(self.path).st_size, before)

    def test_the_log_is_bounded_by_the_room_there_is(self) -> None:
        mib = 2**20
        limits = sqlite.LogLimits.within
        self.assertEqual(limits(1000 * mib), (sqlite.BUSY_LOG, sqlite.FULL_LOG, sqlite.KEPT_LOG))
        self.assertEqual(limits(24 * mib), (6 * mib, 9 * mib, 3 * mib))
        self.assertEqual(limits(0), (sqlite.LEAST_LOG, sqlite.LEAST_LOG, sqlite.LEAST_LOG // 2))

        room = [8 * mib]
        blocks = 1

        def fstatvfs(fd: int) -> os.statvfs_result:
            free = max(0, room[0] - os.fstat(fd).st_size)
            return os.statvfs_result((4096, 1024, blocks, free // 1024, free // 1024, 0, 0, 0, 0, 255))

        self.patch(os, "fstatvfs", fstatvfs)
        store, tree = self.opened()
        store.commit_now(delta := tree.apply(Create(b"f"), 0, 0).delta)
        tree = self.write(store, delta.tree, 30)
        self.assertLess(self.frames(store), 3 * mib + 600_000)
        room[0] = 1000 * mib
        tree = self.write(store, tree, 30)
        self.assertGreater(self.frames(store), 14_000_000)
        room[0] = 16 * mib  # others fill the disk
        tree = self.write(store, tree, 1)
        settle(store)
        tree = self.write(store, tree, 10)
        settle(store)
        self.assertLess(self.frames(store), 6 * mib + 600_000)
        blocks, room[0] = 0, 0  # a file system that does not say
        tree = self.write(store, tree, 30)
        self.assertGreater(self.frames(store), 14_000_000)

    def test_the_room_cannot_be_told(self) -> None:
        def fstatvfs(fd: int) -> os.statvfs_result:
            raise OSError(EIO, "no answer")

        self.patch(os, "fstatvfs", fstatvfs)
        store, tree = self.opened()
        store.commit_now(delta := tree.apply(Create(b"f"), 0, 0).delta)
        self.write(store, delta.tree, 3)

    def test_another_thread_copies_while_commits_go_on(self) -> None:
        self.patch(sqlite, "BUSY_LOG", 1_000_000)
        store, tree = self.opened()
        store.commit_now(delta := tree.apply(Create(b"f"), 0, 0).delta)
        before = os.stat(self.path).st_size
        released = Event()
        copy_log = store._copy_log

        def gated() -> None:
            released.wait(30)
            copy_log()

        self.patch(store, "_copy_log", gated)
        tree = self.write(store, delta.tree, 5)
        copier = store._copier
        assert copier is not None
        self.assertEqual(os.stat(self.path).st_size, before)
        released.set()
        copier.join(30)
        settle(store)
        self.assertIsNone(store._copier)
        self.assertGreater(os.stat(self.path).st_size, before)
        tree = self.write(store, tree, 10)
        store.close_now()
        self.assertEqual(os.listdir(self.directory), ["config.db"])
        self.assertEqual(reopened(self.path).index(), tree.index())

    def test_no_thread_to_copy_with(self) -> None:
        """The store goes on, and copies the log itself."""
        self.patch(sqlite, "BUSY_LOG", 1_000_000)
        store, tree = self.opened()
        store.commit_now(delta := tree.apply(Create(b"f"), 0, 0).delta)

        def refused(thread: Thread) -> None:
            raise RuntimeError("can't start new thread")

        patch = self.patch(Thread, "start", refused)
        with capturedLogs() as events:
            tree = self.write(store, delta.tree, 20)
        patch.restore()
        self.assertIn("can't start new thread", formatEvent(events[0]))
        self.assertLess(self.frames(store), 3_000_000)
        store.close_now()
        self.assertEqual(reopened(self.path).index(), tree.index())

    def test_a_reader_of_an_old_state_delays_the_checkpoint(self) -> None:
        self.patch(sqlite, "BUSY_LOG", 1_000_000)
        self.patch(sqlite, "FULL_LOG", 1_000_000)
        store, tree = self.opened()
        store.commit_now(delta := tree.apply(Create(b"f"), 0, 0).delta)
        reader = sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, isolation_level=None)
        self.addCleanup(reader.close)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM tree").fetchall()
        synced: list[int] = []
        self.patch(os, "fdatasync", synced.append)
        tree = self.write(store, delta.tree, 10)
        self.assertTrue(synced)
        self.assertEqual(len(reader.execute("SELECT * FROM tree").fetchall()), 2)
        reader.execute("COMMIT")
        tree = self.write(store, tree, 10)
        size = self.frames(store)
        tree = self.write(store, tree, 10)
        self.assertEqual(self.frames(store), size)

    def test_another_program_copies_the_log(self) -> None:
        """SQLite says neither how long the log is nor what is copied. The store tries again."""
        self.patch(sqlite, "QUIET", 1000.0)
        store, tree = self.opened()
        store.commit_now(delta := tree.apply(Create(b"f"), 0, 0).delta)
        self.write(store, delta.tree, 4)
        before = os.stat(self.path).st_size
        held = subprocess.Popen(
            [sys.executable, "-c", COPYING, self.path + "-shm"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with held:
            assert held.stdin is not None and held.stdout is not None
            held.stdout.readline()
            store._waited_for(lambda: store._rest(sqlite.QUIET))
            self.assertGreater(store._log_bytes, 2_000_000)
            self.assertEqual(os.stat(self.path).st_size, before)
            held.stdin.close()
        self.assertIsNone(store._waited_for(lambda: store._rest(sqlite.QUIET)))
        self.assertGreater(os.stat(self.path).st_size, before)

    def test_what_a_copier_copied_is_on_the_disk(self) -> None:
        """SQLite syncs only a copy that reaches the log's end, and copies nothing twice: were a later sync to fail, the
        kernel would never write these pages."""
        store, tree = self.opened()
        store.commit_now(tree.apply(Mkdir(b"d"), 0, 1).delta)
        database_fd = store._database_fd
        synced: list[int] = []
        self.patch(os, "fdatasync", synced.append)
        store._waited_for(store._copy_log)
        self.assertIn(database_fd, synced)
        written: list[tuple[int, int]] = []
        pwrite = os.pwrite

        def noted(fd: int, data: bytes, offset: int) -> int:
            written.append((fd, offset))
            return pwrite(fd, data, offset)

        def refused(fd: int) -> None:
            raise OSError(EIO, "refused")

        self.patch(os, "pwrite", noted)
        self.patch(os, "fdatasync", refused)
        store._waited_for(store._copy_log)
        self.patch(os, "fdatasync", synced.append)
        store._waited_for(store._checkpoint)
        self.assertIn((database_fd, 0), written)
        del written[:]
        store._waited_for(store._checkpoint)
        self.assertEqual(written, [])
        store.close_now()

    def test_closing_while_others_use_the_database(self) -> None:
        """The log is left, on the disk, and nothing is lost."""
        self.patch(sqlite, "CLOSING", 0.01)
        for first in (True, False):  # a reader of an old state; a writer
            with self.subTest(first):
                store, tree = self.opened()
                other = sqlite3.connect(self.path, isolation_level=None)
                self.addCleanup(other.close)
                if first:
                    other.execute("BEGIN")
                    other.execute("SELECT * FROM tree").fetchall()
                store.commit_now(delta := tree.apply(Mkdir(b"%d" % first), 0, 1).delta)
                if not first:
                    other.execute("BEGIN IMMEDIATE")
                synced: list[int] = []
                self.patch(os, "fdatasync", synced.append)
                log_fd, database_fd = store._log_fd, store._database_fd
                began = monotonic()
                store.close_now()
                self.assertLess(monotonic() - began, 5)
                self.assertEqual(synced, [log_fd, database_fd])
                self.assertGreater(os.stat(self.path + "-wal").st_size, 0)
                self.assertEqual(reopened(self.path).index(), delta.tree.index())
                other.execute("ROLLBACK")
                other.close()
                self.assertEqual(reopened(self.path).index(), delta.tree.index())

    def test_a_change_waits_while_others_write(self) -> None:
        self.patch(sqlite, "LOCKED_STEP", 0.01)
        store, tree = self.opened()
        other = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("BEGIN IMMEDIATE")
        for count in (1, 2):  # one statement; a transaction of several
            outcomes: Outcomes = []
            for _ in range(count):
                delta = tree.apply(Mkdir(b"%d" % tree.version), 0, 1).delta
                store.commit(delta, outcomes.append)
                tree = delta.tree
            sleep(0.1)
            self.assertEqual(outcomes, [])
            other.execute("COMMIT")
            settle(store)
            self.assertEqual(outcomes, [None] * count)
            other.execute("BEGIN IMMEDIATE")
        self.patch(sqlite, "LOCKED", 0.1)
        store.commit(tree.apply(Mkdir(b"last"), 0, 1).delta, outcomes.append)
        settle(store)
        failure = outcomes[-1]
        assert isinstance(failure, StoreError)
        self.assertEqual(failure.errno, EIO)
        self.assertIn("another program uses it", str(failure))
        store.close_now()
        other.execute("ROLLBACK")
        self.assertEqual(reopened(self.path).index(), tree.index())

    def test_nothing_is_in_doubt_after_a_change_that_others_kept_waiting(self) -> None:
        """Nor was a checkpoint in vain after which they, not the store, begin the log anew."""
        self.patch(sqlite, "LOCKED", 0.0)
        self.patch(sqlite, "LOCKED_STEP", 0.01)
        store, tree = self.opened()
        store.commit_now(delta := tree.apply(Mkdir(b"d"), 0, 1).delta)
        other = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("BEGIN IMMEDIATE")
        with capturedLogs() as events:
            store._waited_for(lambda: store._checkpoint(restart=True))
        self.assertEqual(events, [])
        self.assertRaises(StoreError, store.commit_now, delta.tree.apply(Mkdir(b"e"), 0, 1).delta)
        self.assertFalse(store._log_in_doubt)

    def test_the_log_is_not_written_anew_while_others_write(self) -> None:
        """What they write between a reading of it and its writing would be undone."""
        self.patch(sqlite, "LOCKED_STEP", 0.01)
        store, tree = self.opened()
        store.commit_now(delta := tree.apply(Mkdir(b"d"), 0, 1).delta)
        other = sqlite3.connect(self.path, isolation_level=None, timeout=0, check_same_thread=False)
        self.addCleanup(other.close)
        refused: list[str] = []
        pread, pwrite = os.pread, os.pwrite

        def read(fd: int, count: int, offset: int) -> bytes:
            try:
                other.execute("BEGIN IMMEDIATE")
                other.execute("ROLLBACK")
            except sqlite3.OperationalError as error:
                refused.append(str(error))
            return pread(fd, count, offset)

        written: list[int] = []

        def noted(fd: int, data: bytes, offset: int) -> int:
            written.append(offset)
            return pwrite(fd, data, offset)

        self.patch(os, "pread", read)
        self.patch(os, "pwrite", noted)
        for doubt in ("_log_in_doubt", "_database_in_doubt"):
            with self.subTest(doubt):
                outcomes: Outcomes = []
                setattr(store, doubt, True)
                other.execute("BEGIN IMMEDIATE")
                store.synchronise(outcomes.append)
                settle(store)
                self.assertIsInstance(outcomes[0], StoreError if doubt == "_log_in_doubt" else type(None))
                self.failureResultOf(self.recovery(store, delta.tree), StoreError)
                self.assertEqual((written, refused), ([], []))
                other.execute("ROLLBACK")
                self.assertIsNone(self.successResultOf(self.recovery(store, delta.tree)))
                self.assertFalse(getattr(store, doubt))
                self.assertEqual((written[0], set(refused)), (0, {"database is locked"}))
                del written[:], refused[:]
        store.close_now()
        self.assertEqual(reopened(self.path).index(), delta.tree.index())

    def recovery(self, store: SqliteStore, tree: Tree) -> Deferred[None]:
        """The outcome of a recovery."""
        recovered = store.recover(tree)
        settle(store)
        return recovered

    def test_closing_does_not_wait_for_a_change_that_waits(self) -> None:
        self.patch(sqlite, "LOCKED", 1000.0)
        self.patch(sqlite, "LOCKED_STEP", 0.01)
        self.patch(sqlite, "CLOSING", 0.01)
        store, tree = self.opened()
        other = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("BEGIN IMMEDIATE")
        outcomes: Outcomes = []
        store.commit(tree.apply(Mkdir(b"d"), 0, 1).delta, outcomes.append)
        sleep(0.05)
        self.assertEqual(outcomes, [])
        thread = store._thread
        assert thread is not None
        store.close()
        thread.join(30)
        self.assertFalse(thread.is_alive())
        self.assertEqual([getattr(outcome, "errno", None) for outcome in outcomes], [EIO])
        other.execute("ROLLBACK")
        self.assertEqual(reopened(self.path).index(), tree.index())

    def test_closing_while_the_log_is_copied(self) -> None:
        self.patch(sqlite, "BUSY_LOG", 1_000_000)
        self.patch(sqlite, "CLOSING_COPY", 0.01)
        store, tree = self.opened()
        store.commit_now(delta := tree.apply(Create(b"f"), 0, 0).delta)
        released = Event()
        self.addCleanup(released.set)
        copy_log = store._copy_log
        self.patch(store, "_copy_log", lambda: released.wait(30) and copy_log())
        tree = self.write(store, delta.tree, 5)
        copier = store._copier
        assert copier is not None
        store.close_now()
        self.assertFalse(released.is_set())
        self.assertTrue(copier.is_alive())
        self.assertEqual(reopened(self.path).index(), tree.index())
        released.set()
        copier.join(30)
        self.assertEqual(reopened(self.path).index(), tree.index())

    def test_durability(self) -> None:
        for durability, level in (("process", 1), ("power", 2)):
            connections = Connections()
            store = store_at(self.path, connect=connections, durability=durability)
            store.open()
            self.assertEqual(connections.newest.execute("PRAGMA synchronous").fetchone(), (level,))
            store.close_now()
        self.assertRaises(StoreError, store_at(self.path, durability="none").open)

    def test_synchronise(self) -> None:
        store, _ = self.opened()
        outcomes: Outcomes = []
        store.synchronise(outcomes.append)
        settle(store)
        self.assertEqual(outcomes, [None])


class ReactorTests(TestCase):
    """With a real reactor and its thread."""

    @inlineCallbacks
    def test_open_commit_close(self) -> Generator[Deferred[Any], Any, None]:
        path = os.path.abspath(self.mktemp())
        store = SqliteStore(path, IReactorFromThreads(reactor), lambda: 7.5)
        tree = store.open()
        self.assertRaises(StoreError, store.open)
        committed: Deferred[object] = Deferred()
        delta = tree.apply(Create(b"f"), 0, 0).delta
        store.commit(delta, lambda outcome: reactor.callFromThread(committed.callback, outcome))  # type: ignore[attr-defined]  # the reactor is a module to mypy
        outcome = yield committed
        self.assertIsNone(outcome)
        yield store.recover(delta.tree)
        yield store.close()
        self.assertEqual(reopened(path).index(), delta.tree.index())

    @inlineCallbacks
    def test_failed_open(self) -> Generator[Deferred[Any], Any, None]:
        path = os.path.abspath(self.mktemp())
        Path(path).write_bytes(b"something else entirely, and long enough")
        store = SqliteStore(path, IReactorFromThreads(reactor), lambda: 7.5)
        self.assertRaises(StoreError, store.open)
        yield store.close()
        self.assertEqual(Path(path).read_bytes(), b"something else entirely, and long enough")


class LargeTests(StoreTestCase):
    def test_ten_thousand_configs(self) -> None:
        store, tree = self.opened()
        directory = b"nodes/n1/qemu-server"
        tree, _ = deltas(tree, Mkdir(b"nodes"), Mkdir(b"nodes/n1"), Mkdir(directory))
        root, parent = tree.root, tree.lookup(directory)
        assert parent is not None
        configs = tuple(
            Entry(number, parent.inode, number, 1, 1, DT_REG, b"%d.conf" % number, b"x" * 1024)
            for number in range(100, 10_100)
        )
        tree = tree.replaced((), configs, Entry(0, 0, 20_000, root.writer, root.mtime, DT_DIR, b""))
        stored = tuple(entry for entry in tree.entries() if entry.inode)
        store.commit_now(Delta(tree, stored, (), True))
        store.close_now()
        loaded = reopened(self.path)
        self.assertEqual(loaded.index(), tree.index())
        self.assertEqual(len(list(loaded.vms.items())), 10_000)
