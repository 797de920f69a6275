"""What the kernel remembers is what the node has applied (20-filesystem.md, its last sentence).

C{FUSE_STRESS_SECONDS} makes the stress tests longer than a moment.
"""

from __future__ import annotations

import mmap
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable

from tests.fuse_stress import FILES, REMOTE, Board, name, steps
from tests.fuse_support import ROOT, MountCase, get, put
from tests.needs import needs_fuse

SECONDS = float(os.environ.get("FUSE_STRESS_SECONDS", "4"))

LAST_ROUND_SECONDS = 40.0
"""A stress test of L{SECONDS} that did not get far on a busy machine is repeated, but not after so many."""


@needs_fuse()
class RemoteChangeTests(MountCase):
    """One change by another node, whatever the kernel was made to remember before."""

    def setUp(self) -> None:
        super().setUp()
        self.path = self.in_place("f")
        self.name = self.in_tree("f")
        self.held: list[int] = []

    def remember(self) -> None:
        """Make the kernel know all that it can."""
        for path in (self.path, self.in_place("other")):
            try:
                os.stat(path)
                get(path)
            except (FileNotFoundError, IsADirectoryError):
                pass
        for _ in range(2):
            os.listdir(self.place)

    def each_way(
        self, prepare: Callable[[], None], change: Callable[[], None], check: Callable[[int | None], None]
    ) -> None:
        """Do it with nobody holding C{f}, and with a reader that does."""
        for holds in (False, True):
            prepare()
            self.remember()
            held = None
            if holds and os.path.isfile(self.path):
                held = os.open(self.path, os.O_RDONLY)
                os.pread(held, 100, 0)
            change()
            check(held)
            if held is not None:
                os.close(held)
            for left in os.listdir(self.place):
                path = self.in_place(left)
                os.rmdir(path) if os.path.isdir(path) else os.unlink(path)

    def test_overwrite_of_same_size_and_time(self) -> None:
        def prepare() -> None:
            put(self.path, b"one")
            os.utime(self.path, (5, 5))

        def change() -> None:
            self.node.remote("write", self.name, b"two")
            self.node.remote("mtime", self.name, 5)

        def check(held: int | None) -> None:
            self.assertEqual(get(self.path), b"two")
            self.assertEqual(os.stat(self.path).st_mtime, 5)
            if held is not None:
                self.assertEqual(os.pread(held, 100, 0), b"two")

        self.each_way(prepare, change, check)

    def test_size(self) -> None:
        for data in (b"a longer text", b"s", b""):

            def check(held: int | None, data: bytes = data) -> None:
                self.assertEqual((get(self.path), os.stat(self.path).st_size), (data, len(data)))
                if held is not None:
                    self.assertEqual((os.pread(held, 100, 0), os.fstat(held).st_size), (data, len(data)))

            def change(data: bytes = data) -> None:
                self.node.remote("write", self.name, b"", 0, True)
                if data:
                    self.node.remote("write", self.name, data)

            self.each_way(lambda: put(self.path, b"middle"), change, check)

    def test_time(self) -> None:
        def check(held: int | None) -> None:
            self.assertEqual(os.stat(self.path).st_mtime, 77)
            if held is not None:
                self.assertEqual(os.fstat(held).st_mtime, 77)

        self.each_way(lambda: put(self.path, b"x"), lambda: self.node.remote("mtime", self.name, 77), check)

    def test_delete(self) -> None:
        def check(held: int | None) -> None:
            self.assertEqual(os.listdir(self.place), [])
            self.assertFalse(os.path.exists(self.path))
            os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY))
            self.assertEqual(os.listdir(self.place), ["f"])
            self.assertEqual(get(self.path), b"")

        self.each_way(lambda: put(self.path, b"x"), lambda: self.node.remote("delete", self.name), check)

    def test_create_of_a_name_looked_up_before(self) -> None:
        def check(held: int | None) -> None:
            self.assertEqual(os.listdir(self.place), ["f"])
            self.assertEqual(get(self.path), b"")
            self.assertRaises(FileExistsError, os.open, self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)

        self.each_way(lambda: None, lambda: self.node.remote("create", self.name), check)

    def test_rename_over(self) -> None:
        def prepare() -> None:
            put(self.path, b"target")
            put(self.in_place("other"), b"source")

        def check(held: int | None) -> None:
            self.assertEqual(os.listdir(self.place), ["f"])
            self.assertEqual(get(self.path), b"source")
            self.assertFalse(os.path.exists(self.in_place("other")))
            if held is not None:
                self.assertEqual(os.pread(held, 100, 0), b"target")
            put(self.in_place("other"), b"again")
            self.assertEqual(get(self.in_place("other")), b"again")

        self.each_way(prepare, lambda: self.node.remote("rename", self.in_tree("other"), self.name), check)

    def test_file_becomes_directory(self) -> None:
        def change() -> None:
            self.node.remote("delete", self.name)
            self.node.remote("mkdir", self.name)
            self.node.remote("create", self.name + "/in")

        def check(held: int | None) -> None:
            self.assertEqual(os.listdir(self.path), ["in"])
            os.unlink(self.path + "/in")
            if held is not None:
                self.assertEqual(os.pread(held, 100, 0), b"file")

        self.each_way(lambda: put(self.path, b"file"), change, check)

    def test_directory_becomes_file(self) -> None:
        def change() -> None:
            self.node.remote("delete", self.name)
            self.node.remote("write", self.in_tree("other"), b"file")
            self.node.remote("rename", self.in_tree("other"), self.name)

        def prepare() -> None:
            os.mkdir(self.path)
            put(self.in_place("other"), b"")

        self.each_way(prepare, change, lambda _: self.assertEqual(get(self.path), b"file"))

    def test_renamed_directory(self) -> None:
        os.mkdir(self.path)
        self.remember()
        self.node.remote("rename", self.name, self.in_tree("g"))
        self.assertEqual(os.listdir(self.place), ["g"])
        self.assertFalse(os.path.exists(self.path))
        put(self.in_place("g/in"), b"x")
        self.node.remote("create", self.in_tree("g/more"))
        self.assertEqual(sorted(os.listdir(self.in_place("g"))), ["in", "more"])

    def test_working_directory_survives_changes_in_it(self) -> None:
        os.mkdir(self.path)
        before = os.getcwd()
        os.chdir(self.path)
        self.addCleanup(os.chdir, before)
        self.node.remote("create", self.name + "/in")
        self.node.remote("mtime", self.name, 9)
        self.node.ask("quorate", False)
        self.node.ask("quorate", True)
        self.assertEqual(os.getcwd(), self.path)
        self.assertEqual(os.listdir("."), ["in"])

    def test_mapped_reader(self) -> None:
        put(self.path, b"a" * 4096)
        with open(self.path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            self.assertEqual(mapped[:3], b"aaa")
            for byte in (b"b", b"c"):
                self.node.remote("write", self.name, byte * 4096)
                self.assertEqual(mapped[:], byte * 4096)
            self.node.remote("delete", self.name)
            self.assertEqual(mapped[:], b"c" * 4096)

    def test_synchronisation(self) -> None:
        """Rows come and go at once; an inode may come back as something else while it is held."""
        put(self.path, b"held")
        put(self.in_place("other"), b"moves")
        os.mkdir(self.in_place("d"))
        self.remember()
        rows = {row[3]: row for row in self.node.ask("state")["entries"]}
        parent, held = rows["f"][1], os.open(self.path, os.O_RDONLY)
        os.read(held, 10)
        moved = [rows["other"][0], rows["d"][0], 1000, 1, 7, 8, "moved", "moves"]
        new = [1001, parent, 1001, 1, 7, 8, "new", "data"]
        self.node.ask("synchronised", [rows["f"][0]], [moved, new])
        self.assertEqual(sorted(os.listdir(self.place)), ["d", "new"])
        self.assertEqual((get(self.in_place("d/moved")), get(self.in_place("new"))), (b"moves", b"data"))
        self.assertFalse(os.path.exists(self.path))
        back = [rows["f"][0], parent, 1002, 1, 7, 8, "f", "other"]
        self.node.ask("synchronised", [], [back])
        self.assertEqual((get(self.path), os.stat(self.path).st_size), (b"other", 5))
        self.node.ask("synchronised", [], [[rows["f"][0], parent, 1003, 1, 7, 4, "f", ""]])
        self.assertEqual(os.listdir(self.path), [])
        self.assertIn("f", os.listdir(self.place))
        self.assertEqual(os.pread(held, 10, 0), b"held")
        os.close(held)

    def test_all_at_once(self) -> None:
        """More than can be told one by one (the daemon's limit is lowered)."""
        self.node.ask("limit", 10)
        for number in range(60):
            put(self.in_place(f"{number}"), b"old")
        self.remember()
        for number in range(60):
            self.assertEqual(get(self.in_place(f"{number}")), b"old")
        for number in range(0, 60, 2):
            self.node.ask("change", "delete", self.in_tree(f"{number}"))
            self.node.ask("change", "write", self.in_tree(f"{number + 1}"), b"newer")
        self.node.ask("drained")
        self.assertEqual(len(os.listdir(self.place)), 30)
        for number in range(0, 60, 2):
            self.assertFalse(os.path.exists(self.in_place(f"{number}")))
            self.assertEqual(get(self.in_place(f"{number + 1}")), b"newer")
            self.assertEqual(os.stat(self.in_place(f"{number + 1}")).st_size, 5)


@needs_fuse()
class OwnChangeTests(MountCase):
    """The kernel is told of nothing then: it has to know by itself."""

    def test_each_change_shows(self) -> None:
        path = self.in_place("f")
        for round in range(3):
            self.assertEqual(os.listdir(self.place), [])
            self.assertFalse(os.path.exists(path))
            put(path, b"one")
            self.assertEqual(os.listdir(self.place), ["f"])
            self.assertEqual((get(path), os.stat(path).st_size), (b"one", 3))
            put(path, b"longer %d" % round)
            self.assertEqual((get(path), os.stat(path).st_size), (b"longer %d" % round, 8))
            os.utime(path, (3, 3))
            self.assertEqual(os.stat(path).st_mtime, 3)
            with open(path, "r+b", buffering=0) as file:
                file.write(b"LONG")
            self.assertEqual(get(path), b"LONGer %d" % round)
            self.assertNotEqual(os.stat(path).st_mtime, 3)
            os.rename(path, self.in_place("g"))
            self.assertEqual(os.listdir(self.place), ["g"])
            put(path, b"new")
            os.rename(self.in_place("g"), path)
            self.assertEqual((os.listdir(self.place), get(path)), (["f"], b"LONGer %d" % round))
            os.unlink(path)
            self.assertEqual(os.listdir(self.place), [])
            os.mkdir(path)
            self.assertEqual(os.listdir(self.place), ["f"])
            self.assertEqual(os.listdir(path), [])
            put(path + "/in", b"x")
            self.assertEqual(os.listdir(path), ["in"])
            os.unlink(path + "/in")
            os.rmdir(path)

    def test_a_refused_write_leaves_nothing_behind(self) -> None:
        path = self.in_place("f")
        put(path, b"a" * 4096)
        self.assertEqual(get(path), b"a" * 4096)
        fd = os.open(path, os.O_WRONLY)
        self.addCleanup(os.close, fd)
        self.node.ask("quorate", False)
        self.assertRaises(PermissionError, os.pwrite, fd, b"b" * 4096, 0)
        self.assertRaises(PermissionError, os.pwrite, fd, b"b" * 100, 4096)
        self.assertEqual((get(path), os.stat(path).st_size), (b"a" * 4096, 4096))
        self.node.ask("quorate", True)


@needs_fuse()
class StressTests(MountCase):
    """Many changes and many readers at once."""

    def launch(self, role: str, seed: int, board: str = "-") -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.fuse_stress", role, self.place, board, str(SECONDS), str(seed)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def results(self, processes: list[subprocess.Popen[bytes]]) -> list[int]:
        """What each has counted; fails with its complaint, or if it hangs."""
        counts = []
        for process in processes:
            output, complaint = process.communicate(timeout=SECONDS + 30)
            self.assertEqual(process.returncode, 0, complaint.decode())
            counts.append(int(output))
        return counts

    def rounds(
        self,
        launch: Callable[[int], list[subprocess.Popen[bytes]]],
        change: Callable[[], None],
        enough: Callable[[list[int]], bool],
    ) -> list[int]:
        """C{launch} processes and C{change} things meanwhile, for L{SECONDS}, until that was C{enough}.

        @param launch: takes the number of the round.
        @return: what each of the processes has counted in all rounds, which is what C{enough} is given.
        """
        totals: list[int] = []
        last = time.monotonic() + LAST_ROUND_SECONDS
        number = 0
        while not totals or not enough(totals):
            self.assertTrue(not totals or time.monotonic() < last, f"{totals} in {number} rounds")
            processes = launch(number)
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                change()
            counts = self.results(processes)
            totals = [sum(pair) for pair in zip(totals or [0] * len(counts), counts, strict=True)]
            number += 1
        return totals

    def test_nothing_stale(self) -> None:
        path = os.path.join(self.node.directory, "board")
        board = Board(path)
        choice = random.Random(1)
        state = [0] * REMOTE
        changes = 0

        def change() -> None:
            nonlocal changes
            batch = choice.sample(range(REMOTE), choice.randrange(1, REMOTE))
            for number in batch:
                state[number] += 1
                board.begin(number, state[number])
                for word, *arguments in steps(number, state[number]):
                    paths = [self.in_tree(at) if isinstance(at, str) else at for at in arguments]
                    self.assertGreaterEqual(self.node.ask("change", word, *paths), 0)
                    changes += 1
            self.node.ask("drained")
            for number in batch:
                board.finish(number, state[number])

        def launch(number: int) -> list[subprocess.Popen[bytes]]:
            readers = [self.launch("read", 2 * number + seed, path) for seed in range(2)]
            return [*readers, self.launch("change", 0, path)]

        def enough(counts: list[int]) -> bool:
            *looks, local = counts
            return min(looks) > 100 and min(changes, local) > 20

        *looks, local = self.rounds(launch, change, enough)
        print(f"\n{sum(looks)} looks at {changes} remote and {local} local changes of {FILES} names like {name(0)}")

    def test_nothing_hangs(self) -> None:
        choice = random.Random(2)
        changes = 0

        def change() -> None:
            nonlocal changes
            one, other = (self.in_tree(f"h{choice.randrange(4)}") for _ in range(2))
            if choice.random() < 0.5:
                one += f"/{choice.randrange(4)}"
            word = choice.choice(("create", "mkdir", "delete", "rename", "write", "mtime"))
            more: dict[str, list[object]] = {
                "rename": [other],
                "write": ["z" * choice.choice((1, 5000))],
                "mtime": [choice.randrange(99)],
            }
            changes += self.node.ask("change", word, one, *more.get(word, ())) >= 0
            if choice.random() < 0.01:
                self.node.ask("quorate", True)  # tells the kernel of all modes

        def launch(number: int) -> list[subprocess.Popen[bytes]]:
            return [self.launch("hammer", 4 * number + seed) for seed in range(4)]

        counts = self.rounds(launch, change, lambda counts: min(counts) > 50 and changes > 50)
        print(f"\n{sum(counts)} operations during {changes} remote changes")
        self.node.ask("drained")
