"""C{pvecfs-db}, command by command."""

from __future__ import annotations

import base64
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import threading
import tracemalloc
from errno import ENOSPC
from pathlib import Path
from typing import BinaryIO

from click.testing import CliRunner, Result
from twisted.trial.unittest import SynchronousTestCase

from pvecfs.cli import main
from pvecfs.fuse.nodes import DOCUMENTS
from pvecfs.store import rows
from pvecfs.store.errors import StoreError
from pvecfs.store.lockfile import LockFile
from pvecfs.store.offline import OfflineDatabase
from pvecfs.tree.changes import Write
from tests.needs import needs_root
from tests.store_databases import GOLDEN, raw, reopened, settle, snapshot, store_at
from tests.test_store_examination import ALL
from tests.test_store_refusals import DIRECTORY, FILE
from tests.test_tree_golden import golden_tree

NODE: list[tuple[object, ...]] = [
    (10, 0, 10, 1, 5, 4, b"nodes", None),
    (11, 10, 11, 1, 5, 4, b"alpha", None),
    (12, 11, 12, 1, 5, 4, b"qemu-server", None),
    (13, 12, 13, 1, 5, 8, b"100.conf", b"memory: 1"),
    (14, 11, 14, 1, 5, 8, b"config", b"alpha's"),
]


class CommandTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = os.path.abspath(self.mktemp())
        os.mkdir(self.directory)
        self.path = os.path.join(self.directory, "config.db")

    def run_command(self, *arguments: str) -> Result:
        result = CliRunner().invoke(main, ["--state-dir", self.directory, *arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def succeeds(self, *arguments: str) -> str:
        result = self.run_command(*arguments)
        self.assertEqual(result.exit_code, 0, result.output)
        return result.output

    def fails(self, code: int, *arguments: str) -> str:
        result = self.run_command(*arguments)
        self.assertEqual(result.exit_code, code, result.output)
        self.assertNotIn("Traceback", result.output)
        return result.output

    def make_lock(self) -> None:
        """Make the lock file, which stays."""
        lock = LockFile.beside(self.path)
        lock.try_acquire()
        lock.release()

    def golden(self) -> None:
        shutil.copy(GOLDEN / "config.db", self.path)


class ReadingTests(CommandTestCase):
    def test_help(self) -> None:
        self.assertIn("repair", self.succeeds("--help"))
        for command in main.commands:
            self.assertIn("Usage", self.succeeds(command, "--help"))
        self.fails(2, "no-such-command")
        self.fails(2, "cat")

    def test_check(self) -> None:
        self.golden()
        self.assertIn("no defects: 17 entries, version 51", self.succeeds("check"))
        self.assertEqual(json.loads(self.succeeds("check", "--json")), [])
        self.assertEqual(os.listdir(self.directory), ["config.db"])

    def test_check_of_every_defect(self) -> None:
        for what, entries in ALL.items():
            raw(self.path, [row for row in (DIRECTORY, FILE) if row not in entries] + entries)
            before = snapshot(self.path)
            output = self.fails(1, "check")
            self.assertIn(what, output)
            self.assertEqual(json.loads(self.fails(1, "check", "--json")), output.splitlines())
            self.succeeds("dump")
            self.assertEqual(snapshot(self.path), before)
            os.unlink(self.path)

    def test_no_database(self) -> None:
        for command in (["check"], ["dump"], ["index"], ["cat", "x"], ["extract", "x"], ["backup", "x"], ["compact"]):
            self.assertIn("config.db", self.fails(2, *command))
        Path(self.path).write_bytes(b"some text, but no database\n")
        for command in (["check"], ["dump"], ["index"], ["repair"], ["rename-node", "a", "b"], ["backup", "x"]):
            self.assertIn("not an SQLite database", self.fails(2, *command))
        self.assertFalse(os.path.exists("x"))

    def test_no_regular_file(self) -> None:
        """Nothing waits for what is never written, or reads what never ends."""
        self.golden()
        pipe = os.path.join(self.directory, "pipe")
        os.mkfifo(pipe)
        for name in (pipe, "/dev/zero"):
            for arguments in (["check", name], ["restore", name], ["--db", name, "repair"], ["--db", name, "cat", "x"]):
                self.assertIn("is not a regular file", self.fails(2, *arguments))
            for arguments in (["--db", name, "restore", self.path], ["backup", "--force", name]):
                if name == pipe:
                    self.assertIn("is not a regular file", self.fails(2, *arguments))
        self.assertTrue(stat.S_ISFIFO(os.stat(pipe).st_mode))

    def test_a_large_file_of_something_else(self) -> None:
        """It is searched for rows without having all of it in memory."""
        other = os.path.join(self.directory, "other")
        Path(other).touch()
        os.truncate(other, 64 * 1024 * 1024)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        self.assertIn("is not an SQLite database", self.fails(2, "check", other))
        self.assertLess(tracemalloc.get_traced_memory()[1], 16 * 1024 * 1024)
        raw(self.path, [FILE])
        Path(other).write_bytes(bytes(3 * 1024 * 1024) + Path(self.path).read_bytes())
        self.assertIn("rows were read from pages", self.fails(1, "check", other))

    def test_dump(self) -> None:
        self.golden()
        lines = self.succeeds("dump").splitlines()
        self.assertEqual(len(lines), 18)
        self.assertTrue(lines[-1].endswith("sdn/zones.cfg"))
        documents = {document["path"]: document for document in json.loads(self.succeeds("dump", "--json"))}
        entry = golden_tree().lookup(b"user.cfg")
        assert entry is not None
        found = documents["user.cfg"]
        self.assertEqual(base64.b64decode(found["data"]), entry.data)
        self.assertEqual((found["inode"], found["version"], found["size"]), (39, 46, 14))
        self.assertEqual(documents[""]["name"], "__version__")

    def test_dump_shows_no_control_characters(self) -> None:
        raw(self.path, [(2, 0, 2, 1, 5, 8, b"a\nb\x1b[31m\xff\\", None), (3, 9, 3, 1, 5, 8, b"orphan", None)])
        output = self.succeeds("dump")
        self.assertIn("a\\x0ab\\x1b[31m\\xff\\\\", output)
        self.assertIn("? orphan", output)
        documents = json.loads(self.succeeds("dump", "--json"))
        self.assertEqual(os.fsencode(documents[1]["path"]), b"a\nb\x1b[31m\xff\\")
        self.assertIsNone(documents[2]["path"])

    def test_index(self) -> None:
        self.golden()
        tree = golden_tree()
        output = self.succeeds("index")
        self.assertIn(tree.checksum().hex(), output)
        self.assertEqual(output, self.succeeds("index", str(GOLDEN / "config.db")))
        document = json.loads(self.succeeds("index", "--json"))
        self.assertEqual(document["version"], 51)
        self.assertEqual(document["entries"][0]["digest"], tree.root.digest().hex())
        raw(os.path.join(self.directory, "bad.db"), ALL["same name"])
        self.assertIn("same name", self.fails(1, "index", os.path.join(self.directory, "bad.db")))

    def test_cat(self) -> None:
        raw(self.path, [DIRECTORY, (3, 2, 3, 1, 5, 8, b"\xff", b"\0\xff\n")])
        result = CliRunner().invoke(main, ["--db", self.path, "cat", os.fsdecode(b"/dir/\xff")])
        self.assertEqual(result.stdout_bytes, b"\0\xff\n")
        self.assertIn("no such file", self.fails(2, "cat", "missing"))
        self.assertIn("is a directory", self.fails(2, "cat", "dir"))


class ExchangeTests(CommandTestCase):
    def test_out_and_in_again(self) -> None:
        self.golden()
        out = os.path.join(self.directory, "out")
        self.assertIn("16 entries", self.succeeds("extract", out))
        for entry in golden_tree().entries():
            path = golden_tree().path_of(entry.inode)
            assert path is not None
            status = os.stat(os.path.join(os.fsencode(out), path))
            if entry.inode:
                private = path.startswith(b"priv")
                mode = (0o700 if private else 0o755) if entry.is_directory else (0o600 if private else 0o640)
                self.assertEqual((status.st_mode & 0o7777, int(status.st_mtime)), (mode, entry.mtime))
        os.symlink("/etc", os.path.join(out, "local"))
        for name in DOCUMENTS:
            Path(os.fsdecode(os.path.join(os.fsencode(out), name))).write_text("{}")
        self.assertIn("exists already", self.fails(2, "import", out))
        os.unlink(self.path)
        output = self.succeeds("import", out)
        self.assertIn("16 entries", output)
        self.assertEqual(output.count("is a special file"), len(DOCUMENTS))
        self.assertIn("is neither a file nor a directory", output)
        tree = reopened(self.path)
        for entry in golden_tree().entries():
            path = golden_tree().path_of(entry.inode)
            assert path is not None
            copy = tree.lookup(path)
            assert copy is not None
            self.assertEqual((copy.type, copy.data), (entry.type, entry.data))
            if entry.inode:
                self.assertEqual(copy.mtime, entry.mtime)
        self.assertIn("no defects", self.succeeds("check"))

    def test_extract_stays_inside(self) -> None:
        long = b"x" * 300
        raw(
            self.path,
            [(2, 0, 2, 1, 5, 8, long, b"1"), (3, 0, 3, 1, 5, 8, b"\xff\n", b"2"), (4, 0, 4, 1, 5, 8, b"...", b"3")],
        )
        out = os.path.join(self.directory, "out")
        self.assertIn("too long", self.fails(2, "extract", out))
        self.assertEqual(sorted(os.listdir(os.fsencode(out))), [b"...", b"\xff\n"])
        self.assertIn("not empty", self.fails(2, "extract", out))
        link = os.path.join(self.directory, "link")
        os.symlink("/nowhere/at/all", link)
        self.fails(2, "extract", link)
        for name in (b"..", b"../x", b"/etc/x", b""):
            bad = os.path.join(self.directory, "bad.db")
            raw(bad, [(2, 0, 2, 1, 5, 8, name, b"1")])
            result = CliRunner().invoke(main, ["--db", bad, "extract", os.path.join(self.directory, "bad")])
            self.assertEqual(result.exit_code, 1)
            self.assertFalse(os.path.exists(os.path.join(self.directory, "bad")))
            os.unlink(bad)

    def test_extract_leaves_out_a_directory_with_all_in_it(self) -> None:
        raw(
            self.path,
            [
                (2, 0, 2, 1, 5, 4, b"x" * 300, None),
                (3, 2, 3, 1, 5, 4, b"d", None),
                (4, 3, 4, 1, 5, 8, b"f", None),
                (5, 0, 5, 1, 5, 8, b"g", None),
            ],
        )
        output = self.fails(2, "extract", os.path.join(self.directory, "out"))
        self.assertEqual((output.count("left out:"), output.count("its directory is left out")), (3, 2))
        self.assertIn("1 entries written", output)

    def test_import_refuses_what_a_mount_would(self) -> None:
        for number, (name, size) in enumerate((("large", 2**20 + 1), ("nodes/n1/lxc", 1))):
            source = os.path.join(self.directory, f"source{number}")
            os.makedirs(os.path.dirname(os.path.join(source, name)))
            Path(source, name).write_bytes(bytes(size))
            self.assertIn(name, self.fails(2, "import", source))
        source = os.path.join(self.directory, "many")
        os.mkdir(source)
        for number in range(4):
            Path(source, str(number)).write_bytes(bytes(400_000))
        self.assertIn("would hold more", self.fails(2, "import", "--max-size", "1", source))
        self.assertIn("3 entries", self.fails(2, "import", "--max-entries", "3", source))
        self.assertFalse(os.path.exists(self.path))
        self.succeeds("import", source)


class WritingTests(CommandTestCase):
    def test_rename_node(self) -> None:
        raw(self.path, NODE)
        self.assertIn("beta", self.succeeds("rename-node", "alpha", "beta"))
        tree = reopened(self.path)
        self.assertIsNone(tree.lookup(b"nodes/alpha"))
        self.assertEqual([vm.node for vm in tree.vms.items()], [b"beta"])
        self.assertEqual(tree.version, 101)
        self.assertIn("no defects", self.succeeds("check"))

    def test_rename_node_into_one_that_is_there(self) -> None:
        there: list[tuple[object, ...]] = [
            (21, 10, 11, 1, 5, 4, b"beta", None),
            (22, 21, 12, 1, 5, 4, b"qemu-server", None),
            (23, 22, 13, 1, 5, 8, b"200.conf", b"memory: 2"),
        ]
        raw(self.path, NODE + there)
        self.succeeds("rename-node", "alpha", "beta")
        tree = reopened(self.path)
        self.assertEqual([vm.vmid for vm in tree.vms.items()], [100, 200])
        self.assertEqual({vm.node for vm in tree.vms.items()}, {b"beta"})
        self.assertIsNone(tree.lookup(b"nodes/alpha"))
        self.assertIsNotNone(tree.lookup(b"nodes/beta/config"))
        os.unlink(self.path)
        raw(self.path, [*NODE, *there, (24, 21, 14, 1, 5, 8, b"config", b"beta's")])
        before = Path(self.path).read_bytes()
        self.assertIn("alpha/config", self.fails(2, "rename-node", "alpha", "beta"))
        self.assertEqual(Path(self.path).read_bytes(), before)

    def test_rename_node_refused(self) -> None:
        raw(self.path, NODE)
        before = Path(self.path).read_bytes()
        for old, new in (("gamma", "beta"), ("alpha", "a/b"), ("alpha", ""), ("alpha", "-x"), ("alpha", "alpha")):
            self.fails(2, "rename-node", "--", old, new)
        self.assertEqual(Path(self.path).read_bytes(), before)

    def test_backup_and_restore(self) -> None:
        self.golden()
        saved = os.path.join(self.directory, "saved.db")
        self.succeeds("backup", saved)
        self.assertEqual(os.stat(saved).st_mode & 0o777, 0o600)
        self.assertIn("exists already", self.fails(2, "backup", saved))
        self.succeeds("backup", "--force", saved)
        for suffix in ("", "-wal"):
            self.fails(2, "backup", "--force", self.path + suffix)
        self.assertEqual(reopened(saved).index(), golden_tree().index())
        os.unlink(self.path)
        raw(self.path, NODE)
        now = Path(self.path).read_bytes()
        self.assertIn("is kept", self.succeeds("restore", saved))
        self.assertEqual(reopened(self.path).index(), golden_tree().index())
        (kept,) = [name for name in os.listdir(self.directory) if "before-restore" in name]
        self.assertEqual(Path(self.directory, kept).read_bytes(), now)
        os.unlink(self.path)
        self.assertNotIn("is kept", self.succeeds("restore", saved))
        self.fails(2, "restore", self.path)

    def test_the_directory_is_made(self) -> None:
        """Not those above it, and not for what is refused."""
        self.golden()
        source = os.path.join(self.directory, "source")
        os.mkdir(source)
        bad = os.path.join(self.directory, "bad.db")
        raw(bad, ALL["same name"])
        for number, command in enumerate((["restore", self.path], ["import", source])):
            state = os.path.join(self.directory, f"state{number}")
            self.fails(1, "--state-dir", state, "restore", bad)
            self.assertFalse(os.path.exists(state))
            self.fails(2, "--state-dir", os.path.join(state, "below"), *command)
            self.assertFalse(os.path.exists(state))
            self.succeeds("--state-dir", state, *command)
            self.assertEqual(stat.S_IMODE(os.stat(state).st_mode), 0o750)
            self.succeeds("--state-dir", state, "check")

    def test_restore_of_a_damaged_one(self) -> None:
        self.golden()
        before = Path(self.path).read_bytes()
        bad = os.path.join(self.directory, "bad.db")
        raw(bad, ALL["same name"])
        self.assertIn("same name", self.fails(1, "restore", bad))
        Path(bad).write_bytes(b"text")
        self.fails(2, "restore", bad)
        self.assertEqual(Path(self.path).read_bytes(), before)
        self.assertEqual(sorted(os.listdir(self.directory)), ["bad.db", "config.db"])

    def test_backup_of_a_damaged_one(self) -> None:
        raw(self.path, ALL["same name"])
        saved = os.path.join(self.directory, "saved.db")
        self.assertIn("same name", self.fails(1, "backup", saved))
        self.assertTrue(os.path.exists(saved))

    def test_repair(self) -> None:
        raw(self.path, ALL["same name"])
        self.assertIn("lost+found/5-twice", self.succeeds("repair"))
        self.succeeds("check")
        self.assertIn("nothing to repair", self.succeeds("repair"))

    def test_a_copy_is_kept_whole_or_not_at_all(self) -> None:
        raw(self.path, ALL["same name"])
        good = os.path.join(self.directory, "good.db")
        shutil.copy(GOLDEN / "config.db", good)
        self.make_lock()
        before = snapshot(self.path)

        def full(source: BinaryIO, target: BinaryIO, length: int) -> None:
            target.write(source.read(100))
            raise OSError(ENOSPC, os.strerror(ENOSPC))

        for command in (["repair"], ["restore", good]):
            patch = self.patch(shutil, "copyfileobj", full)
            output = self.fails(2, *command)
            patch.restore()
            self.assertIn(f"{self.path}.before-{command[0]}-", output)
            self.assertIn("No space left", output)
            self.assertEqual(snapshot(self.path), before)
        self.succeeds("repair")

    def test_the_log_is_kept_too(self) -> None:
        raw(self.path, [FILE, (7, 99, 7, 1, 5, 8, b"orphan", None)])
        writer = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(writer.close)
        writer.execute("INSERT INTO tree VALUES (8, 0, 8, 1, 5, 8, 'newest', NULL)")
        self.succeeds("repair")
        (kept,) = [name for name in os.listdir(self.directory) if "before-repair" in name and name[-1].isdigit()]
        self.assertIn("newest", self.succeeds("--db", os.path.join(self.directory, kept), "dump"))

    def test_compact_while_another_program_uses_the_database(self) -> None:
        def connect(uri: str) -> sqlite3.Connection:
            return sqlite3.connect(uri, timeout=0.01, isolation_level=None, uri=True)

        self.patch(rows, "connect", connect)
        self.golden()
        inode = os.stat(self.path).st_ino
        other = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("PRAGMA locking_mode=EXCLUSIVE").fetchall()
        other.execute("BEGIN EXCLUSIVE")
        self.assertIn("another program uses it", self.fails(2, "compact"))
        other.execute("COMMIT")
        other.close()
        reader, writer = (sqlite3.connect(self.path, isolation_level=None) for _ in range(2))
        self.addCleanup(reader.close)
        self.addCleanup(writer.close)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM tree").fetchall()
        writer.execute("UPDATE tree SET mtime = 1 WHERE inode = 0")
        self.assertIn("another program uses it", self.fails(2, "compact"))
        self.assertEqual(os.stat(self.path).st_ino, inode)
        reader.execute("COMMIT")
        self.succeeds("compact")
        self.assertEqual(reopened(self.path).root.mtime, 1)

    def test_compact(self) -> None:
        self.golden()
        self.succeeds("compact", "--page-size", "1024")
        connection = sqlite3.connect(self.path)
        self.assertEqual(connection.execute("PRAGMA page_size").fetchone(), (1024,))
        connection.close()
        self.assertEqual(reopened(self.path).index(), golden_tree().index())
        self.fails(2, "compact", "--page-size", "1000")
        before = Path(self.path).read_bytes()
        self.assertRaises(StoreError, OfflineDatabase(self.path).compact, 1000)
        self.assertEqual(Path(self.path).read_bytes(), before)


@needs_root()
class MediumTests(CommandTestCase):
    """On a file system of its own."""

    def setUp(self) -> None:
        super().setUp()
        self.mount("size=3m")
        self.addCleanup(subprocess.run, ["umount", "-l", self.directory], check=True)

    def mount(self, options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.directory], check=True)

    def test_one_that_cannot_be_written(self) -> None:
        self.golden()
        self.make_lock()
        for crashed in (False, True):
            if crashed:  # the newest change is in the log only
                writer = sqlite3.connect(self.path, isolation_level=None)
                writer.execute("INSERT INTO tree VALUES (52, 0, 52, 1, 5, 8, 'newest', 'of all')")
                writer.execute("UPDATE tree SET version = 52 WHERE inode = 0")
                log = Path(self.path + "-wal").read_bytes()
                writer.close()
                self.golden()
                Path(self.path + "-wal").write_bytes(log)
            self.mount("remount,ro")
            before = snapshot(self.path)
            self.assertIn(f"{17 + crashed} entries", self.succeeds("check"))
            self.succeeds("cat", "newest" if crashed else "user.cfg")
            out = os.path.abspath(self.mktemp())
            os.mkdir(out)
            self.succeeds("extract", os.path.join(out, "tree"))
            self.succeeds("backup", os.path.join(out, "saved.db"))
            self.succeeds("--state-dir", os.path.join(out, "state"), "restore", self.path)
            self.assertEqual(len(reopened(os.path.join(out, "state", "config.db"))), 17 + crashed)
            for command in (["repair"], ["compact"], ["rename-node", "n1", "n4"]):
                self.assertIn("Read-only file system", self.fails(2, *command))
            self.assertEqual(snapshot(self.path), before)
            self.mount("remount,rw")

    def test_no_room(self) -> None:
        """What cannot be done for lack of room leaves everything as it was, and says so."""
        large: list[tuple[object, ...]] = [(n, 0, n, 1, 5, 8, b"%d" % n, bytes(500_000)) for n in (20, 21)]
        outside = os.path.abspath(self.mktemp())
        os.mkdir(outside)
        good = os.path.join(outside, "good.db")
        raw(good, large)
        raw(self.path, [*large, *ALL["same name"]])
        self.make_lock()
        free = os.statvfs(self.directory).f_bavail * 4096
        for ballast in (free - 600_000, free - 1_500_000):  # not even one copy; one, but not two
            Path(self.directory, "ballast").write_bytes(bytes(ballast))
            before = snapshot(self.path)
            for command in (["repair"], ["restore", good]):
                output = self.fails(2, *command)
                self.assertIn(f"{self.path}: no room", output)
                self.assertEqual(snapshot(self.path), before)
                patch = self.patch(OfflineDatabase, "_check_room", lambda database, count: None)
                output = self.fails(2, *command)
                patch.restore()
                self.assertRegex(output, "is full|No space left")
                self.assertIn(self.path, output)
                self.assertEqual(snapshot(self.path), before)
        os.unlink(os.path.join(self.directory, "ballast"))
        self.succeeds("restore", good)
        self.succeeds("check")

    def test_import_without_room(self) -> None:
        source = os.path.abspath(self.mktemp())
        os.mkdir(source)
        for number in range(4):
            Path(source, f"{number}").write_bytes(bytes(1_000_000))
        output = self.fails(2, "import", source)
        self.assertIn(f"{self.path}: database or disk is full", output)
        self.assertEqual(os.listdir(self.directory), [".pmxcfs.lockfile"])
        os.unlink(os.path.join(source, "3"))
        os.unlink(os.path.join(source, "2"))
        self.succeeds("import", source)  # which takes the room once


class LiveTests(CommandTestCase):
    """Beside a daemon."""

    def hold_lock(self, path: str) -> LockFile:
        """Hold the lock of the database at C{path}, as its daemon does."""
        lock = LockFile.beside(path)
        lock.try_acquire()
        self.addCleanup(lock.release)
        return lock

    def test_what_writes_is_refused(self) -> None:
        self.golden()
        other = os.path.join(self.directory, "other.db")
        shutil.copy(self.path, other)
        self.hold_lock(self.path)
        before = Path(self.path).read_bytes()
        for command in (["repair"], ["restore", other], ["rename-node", "n1", "n4"], ["compact"]):
            self.assertIn("in use by a daemon", self.fails(2, *command))
        self.assertEqual(Path(self.path).read_bytes(), before)

    def test_symbolic_links(self) -> None:
        """Whatever links lead to a database that a daemon uses, nothing writes to it."""
        self.golden()
        saved = os.path.join(self.directory, "saved.db")
        shutil.copy(self.path, saved)
        elsewhere = os.path.join(self.directory, "elsewhere")
        os.mkdir(elsewhere)

        def link(name: str, target: str) -> str:
            path = os.path.join(elsewhere, name)
            os.symlink(target, path)
            return path

        file = link("file", self.path)
        directory = link("directory", self.directory)
        chain = link("chain", "file")
        beyond = link("beyond", os.path.join("directory", "config.db"))
        own = link("config.db", "../config.db")  # with a lock of its own, which nobody has
        names = [file, f"{directory}/config.db", chain, beyond, own, f"{file}/", f"{elsewhere}/../elsewhere/chain"]
        lock = self.hold_lock(self.path)
        before, inode = Path(self.path).read_bytes(), os.stat(self.path).st_ino
        for name in names:
            for command in (["repair"], ["restore", saved], ["rename-node", "n1", "n4"], ["compact"]):
                self.assertIn("in use by a daemon", self.fails(2, "--db", name, *command))
            self.fails(2, "--db", saved, "backup", "--force", name)
            self.assertIn("no defects", self.succeeds("--db", name, "check"))
        self.assertEqual((Path(self.path).read_bytes(), os.stat(self.path).st_ino), (before, inode))
        self.assertTrue(os.path.islink(own))
        lock.release()
        for name in names:
            self.succeeds("--db", name, "compact")

    def test_a_daemon_that_uses_a_link(self) -> None:
        """The lock is beside its config.db, which is a link; the file itself has another name, or none yet."""
        state = os.path.join(self.directory, "state")
        os.mkdir(state)
        link, file = os.path.join(state, "config.db"), os.path.join(self.directory, "file.db")
        os.symlink("../file.db", link)
        os.symlink("state/config.db", os.path.join(self.directory, "to-the-link"))
        source = os.path.join(self.directory, "source")
        os.mkdir(source)
        self.hold_lock(link)
        for name in (link, os.path.join(self.directory, "to-the-link")):
            self.assertIn("in use by a daemon", self.fails(2, "--db", name, "import", source))
        self.assertFalse(os.path.exists(file))
        shutil.copy(GOLDEN / "config.db", file)
        for name in (link, os.path.join(self.directory, "to-the-link")):
            self.assertIn("in use by a daemon", self.fails(2, "--db", name, "compact"))

    def test_links_in_a_ring(self) -> None:
        os.symlink("other", self.path)
        os.symlink("config.db", os.path.join(self.directory, "other"))
        for command in (["check"], ["compact"]):
            self.fails(2, *command)

    def test_hard_links(self) -> None:
        """Nothing leads from one to the lock, so that nothing is written to a file with several names."""
        self.golden()
        other = os.path.join(self.directory, "other.db")
        os.link(self.path, other)
        lock = self.hold_lock(self.path)
        before = snapshot(self.path)
        commands = (["repair"], ["restore", str(GOLDEN / "config.db")], ["rename-node", "n1", "n4"], ["compact"])
        for name, why in ((other, "hard links"), (self.path, "in use by a daemon")):
            for command in commands:
                self.assertIn(why, self.fails(2, "--db", name, *command))
            lock.release()
            self.assertIn("hard links", self.fails(2, "--db", name, "compact"))
            lock.try_acquire()
        lock.release()
        self.assertEqual(snapshot(self.path), before)
        os.unlink(other)
        self.succeeds("compact")

    def test_backup_over_a_database_in_use(self) -> None:
        self.golden()
        saved = os.path.join(self.directory, "saved.db")
        self.succeeds("backup", saved)
        lock = self.hold_lock(self.path)
        inode = os.stat(self.path).st_ino
        self.assertIn("in use by a daemon", self.fails(2, "--db", saved, "backup", "--force", self.path))
        self.assertEqual(os.stat(self.path).st_ino, inode)
        lock.release()
        self.succeeds("--db", saved, "backup", "--force", self.path)

    def test_backup_over_what_belongs_to_a_database(self) -> None:
        """A file of such a name would be taken for its log, in use or not."""
        self.golden()
        saved = os.path.join(self.directory, "saved.db")
        self.succeeds("backup", saved)
        for suffix in rows.BESIDE:
            for there in (False, True):
                if there:
                    Path(self.path + suffix).write_bytes(b"the log")
                before = snapshot(self.path)
                output = self.fails(2, "--db", saved, "backup", "--force", self.path + suffix)
                self.assertIn(f"belongs to the database {self.path}", output)
                self.assertEqual(snapshot(self.path), before)

    def test_reading_and_backup_under_load(self) -> None:
        self.golden()
        self.hold_lock(self.path)
        store = store_at(self.path)
        tree = store.open()
        self.addCleanup(store.close_now)
        stopped = threading.Event()

        def load() -> None:
            nonlocal tree
            room = threading.Semaphore(20)
            number = 0
            while not stopped.is_set():
                number += 1
                room.acquire()
                tree = (delta := tree.apply(Write(b"user.cfg", b"%d" % number * 500, 0, True), 1, 1).delta).tree
                store.commit(delta, lambda outcome: room.release())

        writer = threading.Thread(target=load)
        writer.start()
        try:
            for number in range(5):
                saved = os.path.join(self.directory, f"saved{number}.db")
                self.succeeds("backup", saved)
                self.succeeds("check", saved)
                self.succeeds("check")
                self.succeeds("cat", "user.cfg")
                self.assertEqual(len(self.succeeds("dump").splitlines()), 18)
        finally:
            stopped.set()
            writer.join()
        settle(store)
        saved = os.path.join(self.directory, "saved.db")
        self.succeeds("backup", saved)
        self.assertEqual(reopened(saved).index(), tree.index())
