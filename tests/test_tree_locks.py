"""Locks and their clocks (10-tree.md, "Locks")."""

from __future__ import annotations

from errno import EACCES, ENOTEMPTY

from twisted.trial.unittest import SynchronousTestCase

from pvecfs.tree.changes import Change, Create, Delete, Mkdir, Rename, SetMtime, Write
from pvecfs.tree.errors import OperationError
from pvecfs.tree.locks import LockClocks, find_lock, release_asked, unlocked
from pvecfs.tree.tree import Tree

LOCK = b"priv/lock/l"


class LockCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clocks = LockClocks()
        self.tree = Tree.new(1)
        self.apply(Mkdir(b"priv"), 0)
        self.apply(Mkdir(b"priv/lock"), 0)

    def apply(self, change: Change, now: float, mtime: int = 1000) -> None:
        self.tree = self.tree.apply(change, 1, mtime).tree
        self.clocks.applied(self.tree, change, now)

    def checksum(self, path: bytes = LOCK) -> bytes:
        entry = self.tree.lookup(path)
        assert entry is not None
        return entry.lock_checksum()

    def expired(self, now: float) -> bool:
        return self.clocks.expired(LOCK, self.checksum(), now)

    def expires_at(self, moment: float) -> None:
        """The lock holds up to C{moment}, and not longer."""
        self.assertFalse(self.expired(moment))
        self.assertTrue(self.expired(moment + 0.01))


class ClockTests(LockCase):
    def test_mkdir_starts_it(self) -> None:
        self.apply(Mkdir(LOCK), 50)
        self.expires_at(170)

    def test_lifetime_is_a_parameter(self) -> None:
        self.clocks = LockClocks(2)
        self.apply(Mkdir(LOCK), 50)
        self.expires_at(52)

    def test_renewal_restarts_it(self) -> None:
        self.apply(Mkdir(LOCK), 0)
        self.apply(SetMtime(LOCK, 1000), 100)  # even to the same time
        self.expires_at(220)

    def test_a_refused_renewal_does_not(self) -> None:
        self.apply(Mkdir(LOCK), 0)
        self.assertRaises(OperationError, self.apply, SetMtime(LOCK, 999), 100)
        self.expires_at(120)

    def test_the_next_lock_of_that_name_has_its_own(self) -> None:
        self.apply(Mkdir(LOCK), 0)
        self.apply(Delete(LOCK), 100)
        self.apply(Mkdir(LOCK), 110)
        self.expires_at(230)

    def test_a_path_is_a_path_however_written(self) -> None:
        self.apply(Mkdir(b"/priv//lock/l"), 0)
        self.assertTrue(self.clocks.expired(b"priv/lock//l/", self.checksum(), 121))

    def test_other_checksums_are_not_expired(self) -> None:
        self.apply(Mkdir(LOCK), 0)
        self.assertFalse(self.clocks.expired(LOCK, bytes(32), 1000))
        self.assertFalse(self.clocks.expired(b"priv/lock/other", self.checksum(), 1000))

    def test_only_directories_right_below(self) -> None:
        self.apply(Mkdir(LOCK), 0)
        for change in (
            Mkdir(LOCK + b"/deep"),
            Create(b"priv/lock/file"),
            Mkdir(b"priv/x"),
            Write(b"priv/lock/file", b"1"),
        ):
            self.apply(change, 0)
            entry = self.tree.lookup(change.path)
            assert entry is not None
            self.assertFalse(self.clocks.expired(change.path, entry.lock_checksum(), 1000))
            self.assertIsNone(find_lock(self.tree, change.path))
        self.assertTrue(self.expired(121), "what happens inside a lock does not renew it")

    def test_a_directory_moved_there(self) -> None:
        self.apply(Mkdir(b"d"), 0)
        self.apply(Rename(b"d", LOCK), 10)
        self.expires_at(130)


class RequestTests(LockCase):
    def test_too_early_and_in_time(self) -> None:
        self.apply(Mkdir(LOCK), 0)
        self.assertFalse(self.clocks.requested(self.tree, LOCK, self.checksum(), 120))
        self.assertTrue(self.clocks.requested(self.tree, LOCK, self.checksum(), 121))

    def test_first_met_in_a_request(self) -> None:
        self.apply(Mkdir(LOCK), 0)
        self.clocks = LockClocks()
        self.assertFalse(self.clocks.requested(self.tree, LOCK, self.checksum(), 500))
        self.expires_at(620)
        self.assertTrue(self.clocks.requested(self.tree, LOCK, self.checksum(), 621))

    def test_of_another_lock(self) -> None:
        self.apply(Mkdir(LOCK), 0)
        self.assertFalse(self.clocks.requested(self.tree, LOCK, bytes(32), 500))
        self.expires_at(120)

    def test_of_none(self) -> None:
        for path in (LOCK, b"", b"priv", b"priv/lock", b"file"):
            self.assertFalse(self.clocks.requested(self.tree, path, bytes(32), 500))

    def test_asked_by_an_mtime_of_zero_only(self) -> None:
        self.apply(Mkdir(LOCK), 0)
        self.apply(Mkdir(LOCK + b"/deep"), 0)
        self.apply(Create(b"priv/lock/file"), 0)
        self.assertEqual(release_asked(self.tree, SetMtime(b"/" + LOCK, 0)), self.checksum())
        others: list[Change] = [SetMtime(LOCK, 1), SetMtime(LOCK + b"/deep", 0), SetMtime(b"priv/lock/file", 0)]
        for change in (*others, SetMtime(b"priv/lock/gone", 0), SetMtime(b"priv", 0), Delete(LOCK)):
            self.assertIsNone(release_asked(self.tree, change))


class UnlockTests(LockCase):
    def test_matching(self) -> None:
        self.apply(Mkdir(LOCK), 0)
        self.assertEqual(unlocked(self.tree, LOCK, self.checksum()), Delete(LOCK))
        self.assertIsNone(unlocked(self.tree, LOCK, bytes(32)))
        self.assertIsNone(unlocked(self.tree, b"priv/lock/gone", self.checksum()))

    def test_at_any_depth(self) -> None:
        self.apply(Mkdir(LOCK), 0)
        self.apply(Mkdir(LOCK + b"/deep"), 0)
        self.assertEqual(unlocked(self.tree, LOCK + b"/deep", self.checksum(LOCK + b"/deep")), Delete(LOCK + b"/deep"))

    def test_nowhere_else(self) -> None:
        self.apply(Create(b"priv/lock/file"), 0)
        for path in (b"priv/lock", b"priv", b"", b"priv/lock/file"):
            self.assertIsNone(unlocked(self.tree, path, self.checksum(path)))

    def test_a_lock_that_is_not_empty_stays(self) -> None:
        self.apply(Mkdir(LOCK), 0)
        self.apply(Create(LOCK + b"/x"), 0)
        change = unlocked(self.tree, LOCK, self.checksum())
        assert change is not None
        error = self.assertRaises(OperationError, self.tree.apply, change, 2, 5)
        self.assertEqual(error.errno, ENOTEMPTY)


class SynchronisationTests(LockCase):
    def test_unchanged_locks_keep_running(self) -> None:
        self.apply(Mkdir(LOCK), 0)
        self.clocks.resynchronised(self.tree, 100)
        self.expires_at(120)

    def test_changed_locks_restart(self) -> None:
        self.apply(Mkdir(LOCK), 0)
        self.tree = self.tree.apply(SetMtime(LOCK, 2000), 1, 0).tree
        self.clocks.resynchronised(self.tree, 100)
        self.expires_at(220)

    def test_new_locks_start_and_gone_ones_are_forgotten(self) -> None:
        self.apply(Mkdir(LOCK), 0)
        checksum = self.checksum()
        self.tree = self.tree.apply(Mkdir(b"priv/lock/m"), 2, 5).tree.apply(Delete(LOCK), 2, 5).tree
        self.clocks.resynchronised(self.tree, 100)
        self.assertFalse(self.clocks.expired(LOCK, checksum, 1000))
        self.assertFalse(self.clocks.expired(b"priv/lock/m", self.checksum(b"priv/lock/m"), 220))
        self.assertTrue(self.clocks.expired(b"priv/lock/m", self.checksum(b"priv/lock/m"), 221))

    def test_at_start(self) -> None:
        self.apply(Mkdir(LOCK), 0)
        self.clocks = LockClocks()
        self.clocks.resynchronised(Tree.load(self.tree.entries(), self.tree.root), 10)
        self.expires_at(130)

    def test_no_directory_of_locks(self) -> None:
        self.apply(Mkdir(LOCK), 0)
        self.clocks.resynchronised(Tree.new(1), 10)
        self.assertFalse(self.expired(1000))


class LocalReleaseTests(LockCase):
    def test_old_lock(self) -> None:
        self.apply(Mkdir(LOCK), 0)
        self.assertEqual(self.clocks.release(self.tree, SetMtime(LOCK, 0), 121), Delete(LOCK))

    def test_young_lock(self) -> None:
        self.apply(Mkdir(LOCK), 0, mtime=0)  # of an mtime that the tree would take for a renewal
        error = self.assertRaises(OperationError, self.clocks.release, self.tree, SetMtime(LOCK, 0), 120)
        self.assertEqual(error.errno, EACCES)

    def test_everything_else_passes(self) -> None:
        self.apply(Mkdir(LOCK), 0)
        changes: list[Change] = [SetMtime(LOCK, 5), SetMtime(b"priv", 0), Delete(LOCK), Create(b"x")]
        for change in changes:
            self.assertIs(self.clocks.release(self.tree, change, 1000), change)
