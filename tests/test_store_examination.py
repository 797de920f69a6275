"""What check finds and repair mends: rows that are no tree, and files that SQLite cannot read through."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pvecfs.store import rows
from pvecfs.store.errors import StoreError
from pvecfs.store.examination import Survey, survey
from pvecfs.store.offline import OfflineDatabase
from pvecfs.store.repair import Repair
from pvecfs.store.salvage import salvage
from pvecfs.tree.entry import DT_DIR, DT_REG, Entry
from pvecfs.tree.errors import TreeDefect
from pvecfs.tree.tree import Tree
from tests.store_databases import raw, reopened, snapshot, store_at
from tests.test_store_refusals import DEFECTS, DIRECTORY, FILE
from tests.trees import unreachable

RING: list[tuple[object, ...]] = [
    (20, 22, 20, 1, 5, 4, b"ring1", None),
    (21, 20, 21, 1, 5, 4, b"ring2", None),
    (22, 21, 22, 1, 5, 4, b"ring3", None),
    (23, 22, 23, 1, 5, 8, b"inside", b"kept"),
]
SELF: list[tuple[object, ...]] = [(20, 20, 20, 1, 5, 4, b"self", None)]
MISPLACED: list[tuple[object, ...]] = [
    (10, 0, 10, 1, 5, 4, b"nodes", None),
    (11, 10, 11, 1, 5, 4, b"n1", None),
    (12, 11, 12, 1, 5, 8, b"qemu-server", b"a file"),
]

ALL = {**DEFECTS, "inside itself": RING, "is inside itself": SELF, "in the place of a directory": MISPLACED}


def data_of(entries: list[tuple[object, ...]]) -> list[bytes]:
    return sorted(row[7] for row in entries if isinstance(row[7], bytes) and row[7])


class RepairTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = os.path.abspath(self.mktemp())
        os.mkdir(directory)
        self.path = os.path.join(directory, "config.db")
        self.database = OfflineDatabase(self.path, lambda: 5000)

    def repaired(self) -> Tree:
        """Repair, then look: no defects, a daemon loads it, a copy is kept, and a second run changes nothing."""
        before = Path(self.path).read_bytes()
        actions, kept = self.database.repair()
        self.assertTrue(actions)
        assert kept is not None
        self.assertEqual(Path(kept).read_bytes(), before)
        self.assertEqual(self.database.survey().defects(), [])
        state = snapshot(self.path)
        self.assertEqual(self.database.repair(), ([], None))
        self.assertEqual(snapshot(self.path), state)
        self.assertEqual(os.stat(self.path).st_mode & 0o777, 0o600)
        return reopened(self.path)

    def test_every_defect(self) -> None:
        for what, entries in ALL.items():
            with self.subTest(what):
                held = [row for row in (DIRECTORY, FILE) if row not in entries] + entries
                raw(self.path, held)
                (line,) = [line for line in self.database.survey().defects() if what in line]
                self.assertIn("inode", line)
                tree = self.repaired()
                self.assertEqual(sorted(entry.data for entry in tree.entries() if entry.data), data_of(held))
                self.assertEqual(
                    len([entry for entry in tree.entries() if entry.parent == 0 and entry.inode]) > 0, True
                )
                self.assertLessEqual({row[0] for row in held}, {entry.inode for entry in tree.entries()})
                found = tree.lookup(b"lost+found")
                assert found is not None
                self.assertEqual(unreachable(tree), [])
                self.assertGreater(tree.version, 100)
                os.unlink(self.path)

    def test_a_ring_keeps_its_content(self) -> None:
        raw(self.path, RING)
        tree = self.repaired()
        entry = tree.lookup(b"lost+found/20-ring1/ring2/ring3/inside")
        assert entry is not None
        self.assertEqual(entry.data, b"kept")

    def test_everything_at_once(self) -> None:
        rows: list[tuple[object, ...]] = [DIRECTORY, FILE]
        moved = 0
        for entries in ALL.values():
            moved += 1000
            for row in entries:
                if row == FILE:
                    continue
                inode, parent, *rest = row
                assert isinstance(inode, int) and isinstance(parent, int)
                inside = any(other[0] == parent for other in entries) and parent != 3
                rows.append((inode + moved, parent + moved if inside else parent, *rest))
        raw(self.path, rows)
        self.assertGreater(len(self.database.survey().defects()), 6)
        tree = self.repaired()
        self.assertLessEqual({row[0] for row in rows}, {entry.inode for entry in tree.entries()})

    def test_data_of_a_directory(self) -> None:
        raw(self.path, [(4, 0, 4, 1, 5, 4, b"d", b"data"), (5, 4, 5, 1, 5, 8, b"f", b"inside")])
        tree = self.repaired()
        saved, inside = tree.lookup(b"lost+found/4-d.data"), tree.lookup(b"d/f")
        assert saved is not None and inside is not None
        self.assertEqual((saved.data, inside.data), (b"data", b"inside"))

    def test_an_unknown_type_that_holds_entries(self) -> None:
        raw(self.path, [(4, 0, 4, 1, 5, 10, b"d", b"data"), (5, 4, 5, 1, 5, 8, b"f", b"inside")])
        tree = self.repaired()
        inside = tree.lookup(b"lost+found/4-d/f")
        assert inside is not None
        self.assertEqual(data_of([(*[0] * 7, entry.data) for entry in tree.entries()]), [b"data", b"inside"])

    def test_row_0(self) -> None:
        for root in (
            [],
            [(0, 0, 1, 0, 5, 8, b"name", b"and data")],
            [(0, 0, 1, 0, 5, 10, b"__version__", None)],
            [(0, 0, 1, 0, 5, 8, b"__version__", None)],
        ):
            raw(self.path, [*root, DIRECTORY, FILE], root=False)
            tree = self.repaired()
            self.assertGreater(tree.version, 3)
            self.assertIsNotNone(tree.lookup(b"file"))
            os.unlink(self.path)

    def test_a_version_near_its_end(self) -> None:
        """One flipped bit of row 0: what is negative in the file is not far from it."""
        raw(self.path, [(0, 0, -3, 0, 5, 8, b"__version__", None), DIRECTORY, FILE], root=False)
        (line,) = self.database.survey().defects()
        self.assertIn(f"version {2**64 - 3} is far ahead of its entries' 3", line)
        tree = self.repaired()
        self.assertEqual((tree.version, len(tree)), (4, 3))

    def test_lost_and_found_that_is_there(self) -> None:
        raw(
            self.path,
            [(4, 0, 4, 1, 5, 4, b"lost+found", None), (5, 4, 5, 1, 5, 8, b"6-x", b"1"), (6, 9, 6, 1, 5, 8, b"x", b"2")],
        )
        self.assertEqual(len(self.repaired()), 4)
        os.unlink(self.path)
        raw(self.path, [(4, 0, 4, 1, 5, 8, b"lost+found", b"1"), (6, 9, 6, 1, 5, 8, b"x" * 300, b"2")])
        tree = self.repaired()
        self.assertIsNotNone(tree.lookup(b"lost+found.1/6-" + b"x" * 253))

    def test_columns_of_another_kind(self) -> None:
        raw(self.path, [DIRECTORY])
        connection = sqlite3.connect(self.path)
        connection.execute("PRAGMA ignore_check_constraints=1")
        connection.execute("INSERT INTO tree VALUES (9, 2, 9, 1.5, 'x', 8, 'f', 'text')")
        connection.commit()
        connection.close()
        self.assertTrue(any("another kind" in line for line in self.database.survey().defects()))
        tree = self.repaired()
        entry = tree.lookup(b"lost+found/9-f")
        assert entry is not None
        self.assertEqual(entry.data, b"text")

    def test_schema_that_opens_files(self) -> None:
        """What a foreign database calls its schema is tried out, but not on other files."""
        raw(self.path, [DIRECTORY])
        other = f"{self.path}.other"
        for statement in f"ATTACH '{other}' AS o; CREATE TABLE o.t (x)", f"VACUUM INTO '{other}'":
            with sqlite3.connect(self.path) as connection:
                connection.execute("PRAGMA writable_schema=1")
                connection.execute("UPDATE sqlite_master SET sql = sql || ?", (f"; {statement}",))
            connection.close()
            self.assertIn("not authorized", str(self.assertRaises(StoreError, self.database.survey)))
            self.assertFalse(os.path.exists(other))

    def test_nothing_to_repair(self) -> None:
        raw(self.path, [DIRECTORY, FILE])
        before = snapshot(self.path)
        self.assertEqual(self.database.repair(), ([], None))
        after = snapshot(self.path)
        del after[".pmxcfs.lockfile"]
        self.assertEqual(after, before)

    def test_the_end_of_all_versions(self) -> None:
        top = 2**64 - 1
        found = Survey({5: Entry(5, 77, top, 0, 0, DT_REG, b"orphan")}, Entry(0, 0, 1, 0, 0, DT_REG, b"__version__"))
        self.assertRaises(TreeDefect, Repair(found, 1).run)

    numbers = st.integers(0, 12)
    entries = st.builds(
        Entry,
        inode=st.integers(1, 12),
        parent=numbers,
        version=numbers,
        writer=numbers,
        mtime=numbers,
        type=st.sampled_from([DT_DIR, DT_DIR, DT_REG, DT_REG, 10]),
        name=st.sampled_from(
            [b"nodes", b"n1", b"n2", b"lxc", b"qemu-server", b"1.conf", b"", b"..", b"lost+found", b"a/b"]
        ),
        data=st.sampled_from([b"", b"", b"x"]),
    )

    @settings(max_examples=300, deadline=None)
    @given(st.lists(entries, max_size=12), st.booleans())
    def test_any_rows(self, rows: list[Entry], rooted: bool) -> None:
        found = Survey({entry.inode: entry for entry in rows})
        if rooted:
            found.root = Entry(0, 0, 5, 0, 0, DT_REG, b"__version__")
        if found.is_empty:
            return
        defects = found.defects()
        repair = Repair(found, 1)
        tree = repair.run()
        self.assertEqual(bool(defects), bool(repair.actions))
        self.assertEqual(unreachable(tree), [])
        root = Entry(0, 0, tree.version, 0, 0, DT_REG, b"__version__")
        again = Survey({entry.inode: entry for entry in tree.entries() if entry.inode}, root)
        self.assertEqual(again.defects(), [])
        self.assertEqual(
            sorted(entry.data for entry in tree.entries() if entry.data),
            sorted(entry.data for entry in found.entries.values() if entry.data),
        )


class DamageTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = os.path.abspath(self.mktemp())
        os.mkdir(directory)
        self.path = os.path.join(directory, "config.db")
        self.database = OfflineDatabase(self.path, lambda: 5000)
        random = Random(9)
        self.rows: list[tuple[object, ...]] = [(2, 0, 2, 1, 5, 4, b"dir", None)]
        for inode in range(3, 400):
            self.rows.append(
                (inode, 2, inode, 1, 5, 8, b"f%d" % inode, random.randbytes(random.choice((10, 500, 9000))))
            )
        raw(self.path, self.rows)
        self.whole = Path(self.path).read_bytes()

    def found(self) -> dict[int, Entry]:
        entries = survey(self.path, True).entries
        for entry in entries.values():
            row = self.rows[entry.inode - 2]
            self.assertEqual(entry.name, row[6])
        return entries

    def test_all_pages_are_read(self) -> None:
        rows = salvage(self.whole)
        self.assertEqual(len(rows), len(self.rows) + 1)
        self.assertTrue(all(row.whole for row in rows))
        held = {row.entry.inode: row.entry.data or None for row in rows}
        self.assertEqual({row[0]: row[7] for row in self.rows}, {n: held[n] for n in held if n})

    def test_freed_pages_are_not_read(self) -> None:
        connection = sqlite3.connect(self.path)
        connection.execute("PRAGMA secure_delete=0")
        connection.execute("DELETE FROM tree WHERE inode > 100")
        connection.commit()
        connection.close()
        rows = salvage(Path(self.path).read_bytes())
        self.assertEqual(max(row.entry.inode for row in rows), 100)

    def test_truncated(self) -> None:
        for part in (2, 3, 10):
            Path(self.path).write_bytes(self.whole[: len(self.whole) // part])
            found = self.found()
            self.assertGreater(len(found), len(self.rows) // part // 3)
            actions, kept = self.database.repair()
            self.assertTrue(actions)
            self.assertTrue(kept)
            self.assertEqual(self.database.survey().defects(), [])
            self.assertEqual(self.database.repair(), ([], None))
            self.assertLessEqual(set(found), {entry.inode for entry in reopened(self.path).entries()})

    def test_one_bad_page_anywhere(self) -> None:
        """Whichever page is overwritten, the rows of the others are found, and the repair has them all."""
        count = len(self.whole) // 4096
        least = len(self.rows)
        leaves = [page for page in range(1, count) if self.whole[page * 4096] == 0x0D]
        for page in [0, 1, 2, *leaves[::5], *range(3, count, 37)]:
            damaged = self.whole[: page * 4096] + b"\xa5" * 4096 + self.whole[(page + 1) * 4096 :]
            Path(self.path).write_bytes(damaged)
            for suffix in ("-wal", "-shm"):
                self.assertFalse(os.path.exists(self.path + suffix))
            found = survey(self.path, True)
            self.assertTrue(found.defects(), page)
            self.assertGreater(len(found.entries), len(self.rows) - 60, page)
            least = min(least, len(found.entries))
            whole = {inode: e for inode, e in found.entries.items() if inode not in found.marred}
            for inode, entry in whole.items():
                # The last page of a row's data has nothing by which one could tell that it is another's.
                if b"\xa5" * 1000 not in entry.data:
                    self.assertEqual(entry.data or None, self.rows[inode - 2][7])
            tree = Repair(found, 1).run()
            self.assertLessEqual(set(found.entries), {entry.inode for entry in tree.entries()})
        self.assertLess(least, len(self.rows))  # some pages did hold rows

    def test_zeros_in_the_first_page(self) -> None:
        """The schema is gone, so SQLite sees a database without tables."""
        Path(self.path).write_bytes(self.whole[:100] + b"\x0d\0\0\0\0\x10\0\0" + bytes(3988) + self.whole[4096:])
        self.assertEqual(len(self.found()), len(self.rows))
        self.database.repair()
        self.assertEqual(len(reopened(self.path)), len(self.rows) + 1)

    def test_any_bad_byte_of_the_schema(self) -> None:
        """Whatever SQLite makes of it, and says, in bytes that may be no text: all rows are found, and no daemon starts
        with less."""
        schema = self.whole.index(b"CREATE TABLE")
        said: set[str] = set()
        for bit in (0x80, 0x01):
            for at in range(schema - 40, 4096, 3):
                damaged = bytearray(self.whole)
                damaged[at] ^= bit
                Path(self.path).write_bytes(damaged)
                found = survey(self.path, True)
                self.assertEqual((len(found.entries), found.marred, found.root is None), (len(self.rows), {}, False))
                said.update(problem.partition(": ")[2][:14] for problem in found.problems)
                store = store_at(self.path)
                try:
                    self.assertEqual(len(store.open()), len(self.rows) + 1)
                except StoreError:
                    self.assertTrue(found.problems)
                store.close_now()
        self.assertLessEqual({"malformed data", "'malformed dat", "another schema"}, said)
        damaged = bytearray(self.whole)
        damaged[schema + 40] ^= 0x80
        Path(self.path).write_bytes(damaged)
        self.database.repair()
        self.assertEqual(len(reopened(self.path)), len(self.rows) + 1)

    def test_a_format_that_can_be_read_only(self) -> None:
        damaged = bytearray(self.whole)
        damaged[18] = 3
        Path(self.path).write_bytes(damaged)
        self.assertEqual(len(self.database.tree()), len(self.rows) + 1)
        self.assertIn("write version 3", str(self.assertRaises(StoreError, store_at(self.path).open)))
        self.assertEqual(len(self.found()), len(self.rows))
        actions, _ = self.database.repair()
        self.assertIn("write version 3", actions[0])
        self.assertEqual(self.database.survey().defects(), [])
        self.assertEqual(len(reopened(self.path)), len(self.rows) + 1)

    def test_a_schema_of_others_is_no_damage(self) -> None:
        for schema, entry in (
            (rows.SCHEMA.replace("tree", "other"), FILE),
            (rows.SCHEMA.replace("writer", "owner"), (0, 0, 1, 0, 5, 8, b"root", None)),
            (rows.SCHEMA.replace("data BLOB", "data BLOB, more BLOB"), (0, 0, 1, 0, 5, 8, b"__version__", None, 1)),
        ):
            os.unlink(self.path)
            connection = sqlite3.connect(self.path)
            connection.execute(schema)
            table = "other" if "other" in schema else "tree"
            marks = ", ".join("?" * len(entry)).replace("?, ?, ?, ?, ?, ?, ?", "?, ?, ?, ?, ?, ?, CAST(? AS TEXT)")
            connection.execute(f"INSERT INTO {table} VALUES ({marks})", entry)
            connection.commit()
            connection.close()
            before = Path(self.path).read_bytes()
            self.assertIn("another schema", str(self.assertRaises(StoreError, self.database.repair)))
            self.assertEqual(Path(self.path).read_bytes(), before)

    def test_cut_within_its_first_bytes(self) -> None:
        for size in range(1, 101):
            self.assertEqual(salvage(self.whole[:size]), [])

    def test_rows_that_are_only_in_the_log(self) -> None:
        store = store_at(self.path)
        tree = store.open()
        entry = tree.lookup(b"dir")
        assert entry is not None
        store.close_now()
        writer = sqlite3.connect(self.path, isolation_level=None)
        writer.execute("PRAGMA wal_autocheckpoint=0").fetchall()
        writer.execute("INSERT INTO tree VALUES (1000, 2, 5, 1, 5, 8, 'new', 'in the log')")
        log = Path(self.path + "-wal").read_bytes()
        writer.close()
        page = len(self.whole) // 4096 // 2
        Path(self.path).write_bytes(self.whole[: page * 4096] + b"\xa5" * 4096 + self.whole[(page + 1) * 4096 :])
        Path(self.path + "-wal").write_bytes(log)
        self.assertEqual(survey(self.path, True).entries[1000].data, b"in the log")

    def test_something_else(self) -> None:
        for content in (b"", b"text " * 3000, b"SQLite format 3\0" + bytes(8000)):
            Path(self.path).write_bytes(content)
            self.assertRaises((StoreError, TreeDefect), self.database.repair)
            self.assertEqual(Path(self.path).read_bytes(), content)

    @settings(max_examples=100, deadline=None)
    @given(st.binary(max_size=3000))
    def test_any_bytes(self, noise: bytes) -> None:
        salvage(noise)
        salvage(self.whole[:5000] + noise)
        salvage(self.whole[:100] + noise + self.whole[100 + len(noise) : 20000])
