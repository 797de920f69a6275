"""What the store refuses to load: one clear line, and the file is as it was."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from pvecfs.store import rows
from pvecfs.store.errors import StoreError
from pvecfs.tree.errors import TreeDefect
from tests.store_databases import GOLDEN, raw, snapshot, store_at

DIRECTORY = (2, 0, 2, 1, 5, 4, b"dir", None)
FILE = (3, 0, 3, 1, 5, 8, b"file", b"text")

DEFECTS: dict[str, list[tuple[object, ...]]] = {
    "without a name": [(4, 0, 4, 1, 5, 8, b"", None)],
    "directory with data": [(4, 0, 4, 1, 5, 4, b"d", b"data")],
    "unknown type": [(4, 0, 4, 1, 5, 10, b"link", None)],
    "parent is a file": [FILE, (4, 3, 4, 1, 5, 8, b"below", None)],
    "same name": [(4, 0, 4, 1, 5, 8, b"twice", None), (5, 0, 5, 1, 5, 8, b"twice", None)],
    "parent does not exist": [(4, 77, 4, 1, 5, 8, b"orphan", None)],
    "9000": [
        (10, 0, 4, 1, 5, 4, b"nodes", None),
        (11, 10, 4, 1, 5, 4, b"n1", None),
        (12, 10, 4, 1, 5, 4, b"n2", None),
        (13, 11, 4, 1, 5, 4, b"lxc", None),
        (14, 12, 4, 1, 5, 4, b"qemu-server", None),
        (15, 13, 4, 1, 5, 8, b"9000.conf", None),
        (16, 14, 4, 1, 5, 8, b"9000.conf", None),
    ],
}
"""What the line says; and the rows."""


class RefusalTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = os.path.abspath(self.mktemp())
        os.mkdir(directory)
        self.path = os.path.join(directory, "config.db")

    def refused(self, kind: type[Exception], *texts: str) -> None:
        before = snapshot(self.path)
        store = store_at(self.path)
        error = self.assertRaises(kind, store.open)
        for text in (self.path, *texts):
            self.assertIn(text, str(error))
        self.assertNotIn("\n", str(error))
        self.assertEqual(snapshot(self.path), before)
        store.close_now()

    def test_defects(self) -> None:
        for text, entries in DEFECTS.items():
            with self.subTest(text):
                raw(self.path, [DIRECTORY, *entries])
                self.refused(TreeDefect, text, "inode", "parent", "name")
                os.unlink(self.path)

    def test_row_0(self) -> None:
        for root in (
            (0, 0, 1, 0, 5, 8, b"version", None),
            (0, 0, 1, 0, 5, 8, b"", None),
            (0, 0, 1, 0, 5, 10, b"__version__", None),
        ):
            raw(self.path, [root, DIRECTORY], root=False)
            self.refused(TreeDefect, "row 0", "inode 0")
            os.unlink(self.path)
        raw(self.path, [DIRECTORY], root=False)
        self.refused(TreeDefect, "no row 0")

    def test_row_0_after_a_synchronisation(self) -> None:
        raw(self.path, [(0, 0, 9, 0, 5, 4, b"__version__", None), DIRECTORY], root=False)
        store = store_at(self.path)
        tree = store.open()
        self.assertEqual((tree.version, tree.root.name), (9, b""))
        store.close_now()

    def test_defects_in_the_log(self) -> None:
        """A database of which a part is only in the log yet, as a crash leaves it."""
        raw(self.path, [DIRECTORY])
        writer = sqlite3.connect(self.path, isolation_level=None)
        writer.execute("INSERT INTO tree VALUES (4, 77, 4, 1, 5, 8, 'orphan', NULL)")
        other = os.path.join(os.path.dirname(self.path), "other")
        os.mkdir(other)
        for suffix in ("", "-wal", "-shm"):
            shutil.copy(self.path + suffix, os.path.join(other, "config.db" + suffix))
        writer.close()
        self.path = os.path.join(other, "config.db")
        database = Path(self.path).read_bytes(), Path(self.path + "-wal").read_bytes()
        store = store_at(self.path)
        self.assertRaises(TreeDefect, store.open)
        store.close_now()
        self.assertEqual((Path(self.path).read_bytes(), Path(self.path + "-wal").read_bytes()), database)

    def test_no_databases(self) -> None:
        os.mkdir(self.path)
        self.assertRaises(StoreError, store_at(self.path).open)
        os.rmdir(self.path)
        os.mkfifo(self.path)
        self.assertRaises(StoreError, store_at(self.path).open)
        os.unlink(self.path)
        os.symlink("nowhere/at/all", self.path)
        self.assertRaises(StoreError, store_at(self.path).open)
        os.unlink(self.path)
        for content in (b"", b"x", b"SQLite format 3", b"no database " * 1000, b"SQLite format 3\0" + b"\xaa" * 5000):
            Path(self.path).write_bytes(content)
            self.refused(StoreError)
        missing = store_at(os.path.join(self.path + ".d", "config.db"))
        self.assertIn("No such file", str(self.assertRaises(StoreError, missing.open)))

    def test_other_schemas(self) -> None:
        for schema in (
            "CREATE TABLE other (a)",
            "CREATE TABLE tree (inode INTEGER PRIMARY KEY NOT NULL, name TEXT)",
            rows.SCHEMA.replace("data BLOB", "data BLOB, more BLOB"),
            rows.SCHEMA.replace("name TEXT", "name BLOB"),
        ):
            connection = sqlite3.connect(self.path)
            connection.execute(schema)
            connection.close()
            self.refused(StoreError, "another schema")
            os.unlink(self.path)
        connection = sqlite3.connect(self.path)
        connection.execute("PRAGMA encoding='UTF-16'")
        connection.execute(rows.SCHEMA)
        connection.close()
        self.refused(StoreError, "UTF-8")

    def test_truncated_and_damaged(self) -> None:
        raw(self.path, [DIRECTORY, *((n, 2, n, 1, 5, 8, b"%d" % n, b"x" * 3000) for n in range(10, 60))])
        whole = Path(self.path).read_bytes()
        for size in (len(whole) // 2, 4096, 700):
            Path(self.path).write_bytes(whole[:size])
            self.refused(StoreError)
        Path(self.path).write_bytes(whole[:8192] + b"\xff" * 4096 + whole[12288:])
        self.refused(StoreError, "pvecfs-db")

    def test_golden_copies(self) -> None:
        shutil.copy(GOLDEN / "config.db", self.path)
        store = store_at(self.path)
        store.open()
        store.close_now()
