"""Crash points: what a power loss or a full disk leaves loads, with each change whole or absent."""

from __future__ import annotations

import os
import subprocess
from errno import ENOSPC
from pathlib import Path
from random import Random
from threading import Semaphore

from twisted.trial.unittest import SynchronousTestCase

from pvecfs.store.errors import StoreError
from pvecfs.store.sqlite import LogLimits
from pvecfs.tree.changes import Create, Delete, Write
from pvecfs.tree.tree import Tree
from tests.needs import needs_root
from tests.store_databases import deltas, random_deltas, reopened, settle, store_at

PAGE = 512
HEAD, FRAME = 32, PAGE + 24


class PowerLossTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = os.path.abspath(self.mktemp())
        os.mkdir(self.directory)
        self.path = os.path.join(self.directory, "config.db")
        self.number = 0

    def run_changes(self, count: int) -> tuple[list[bytes], list[int]]:
        """Commit C{count} changes; return the index after each, the new database's first, and the log's length."""
        store = store_at(self.path, page_size=PAGE)
        tree = store.open()
        indexes, lengths = [tree.index()], [os.stat(self.path + "-wal").st_size]
        _, made = random_deltas(Random(4), tree, count)
        for delta in made:
            store.commit_now(delta)
            indexes.append(delta.tree.index())
            lengths.append(os.stat(self.path + "-wal").st_size)
        self.database = Path(self.path).read_bytes()
        self.log = Path(self.path + "-wal").read_bytes()
        store.close_now()
        self.finished = Path(self.path).read_bytes()
        return indexes, lengths

    def loaded(self, database: bytes, log: bytes) -> Tree:
        """What a start makes of these two files."""
        self.number += 1
        path = os.path.join(self.directory, f"crash{self.number}.db")
        Path(path).write_bytes(database)
        Path(path + "-wal").write_bytes(log)
        tree = reopened(path)
        os.unlink(path)
        return tree

    def test_the_log_ends_anywhere(self) -> None:
        """Whatever part of the log reached the disk: the changes whose frames are there, in order, and no others."""
        indexes, lengths = self.run_changes(50)
        random = Random(2)
        cuts = {*range(HEAD, len(self.log) + 1, FRAME), *lengths}
        cuts |= {random.randrange(len(self.log)) for _ in range(40)}
        for cut in sorted(cuts):
            whole = max(number for number, length in enumerate(lengths) if length <= max(cut, lengths[0]))
            self.assertEqual(self.loaded(self.database, self.log[:cut]).index(), indexes[whole], cut)

    def test_a_write_to_the_log_is_torn(self) -> None:
        """A sector of the log is not the one that was written: all before its transaction is there, nothing after."""
        indexes, lengths = self.run_changes(20)
        for at in range(HEAD + 24, len(self.log), 7 * FRAME):
            torn = self.log[:at] + bytes(byte ^ 0x55 for byte in self.log[at : at + 100]) + self.log[at + 100 :]
            whole = max(number for number, length in enumerate(lengths) if length <= at)
            self.assertEqual(self.loaded(self.database, torn).index(), indexes[whole], at)

    def test_a_checkpoint_ends_anywhere(self) -> None:
        """The log is whole, but only some pages of it are in the database, in whatever order the disk took them."""
        indexes, _ = self.run_changes(50)
        random = Random(8)
        before, after = self.database, self.finished
        size = max(len(before), len(after))
        before, after = before.ljust(size, b"\0"), after.ljust(size, b"\0")
        for _ in range(60):
            pages = [random.choice((before, after))[at : at + PAGE] for at in range(0, size, PAGE)]
            self.assertEqual(self.loaded(b"".join(pages), self.log).index(), indexes[-1])


@needs_root()
class FullDiskTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = os.path.abspath(self.mktemp())
        os.mkdir(self.directory)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "pvecfs-test", self.directory], check=True)
        self.addCleanup(subprocess.run, ["umount", self.directory], check=True)
        self.path = os.path.join(self.directory, "config.db")

    def test_full_and_free_again(self) -> None:
        store = store_at(self.path)
        tree = store.open()
        ballast = os.path.join(self.directory, "ballast")
        Path(ballast).write_bytes(bytes(500_000))
        committed = tree
        failure: StoreError | None = None
        for number in range(100):
            delta = committed.apply(Create(b"%d" % number), 1, 1).delta
            delta = delta.tree.apply(Write(b"%d" % number, os.urandom(20_000)), 1, 1).delta
            try:
                store.commit_now(delta)
            except StoreError as error:
                failure = error
                break
            committed = delta.tree
        assert failure is not None
        self.assertEqual(failure.errno, ENOSPC)
        os.unlink(ballast)
        done: list[object] = []
        store.recover(committed).addBoth(done.append)
        settle(store)
        self.assertEqual(done, [None])
        tree, made = deltas(committed, Delete(b"0"), Create(b"more"))
        for delta in made:
            store.commit_now(delta)
        store.close_now()
        self.assertEqual(reopened(self.path).index(), tree.index())

    def test_sustained_load_on_a_small_disk(self) -> None:
        """Ten times what the disk has room for is written without a pause; the log leaves room for the database."""
        subprocess.run(["mount", "-o", "remount,size=24m", self.directory], check=True)
        random = Random(4)
        store = store_at(self.path)
        tree, made = deltas(store.open(), *(Create(b"%d" % number) for number in range(200)))
        for delta in made:
            store.commit_now(delta)
        under_way = Semaphore(8)
        failures: list[Exception] = []

        def settled(outcome: Exception | None) -> None:
            if outcome is not None:
                failures.append(outcome)
            under_way.release()

        written = longest = 0
        while written < 240 * 2**20 and not failures:
            number = random.randrange(200)
            size = 2**20 if number < 6 else random.choice((0, 100, 2000, 9000))
            for change in Write(b"%d" % number, b"", 0, True), Write(b"%d" % number, random.randbytes(size)):
                under_way.acquire()
                delta = tree.apply(change, 1, 1).delta
                tree = delta.tree
                store.commit(delta, settled)
            written += size
            longest = max(longest, os.stat(self.path + "-wal").st_size)
        settle(store)
        store.close_now()
        self.assertEqual(failures, [])
        self.assertLess(longest, LogLimits.within(24 * 2**20).full + 2**20)
        self.assertGreater(longest, LogLimits.within(14 * 2**20).busy)
        self.assertEqual(reopened(self.path).index(), tree.index())

    def test_no_room_for_a_new_database(self) -> None:
        with open(os.path.join(self.directory, "ballast"), "wb", buffering=0) as ballast:
            try:
                while ballast.write(bytes(4096)) == 4096:
                    pass
            except OSError:
                pass
        error = self.assertRaises(StoreError, store_at(self.path).open)
        self.assertEqual(error.errno, ENOSPC)
        self.assertEqual(os.listdir(self.directory), ["ballast"])
