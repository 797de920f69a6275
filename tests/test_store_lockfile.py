"""The lock file: one holder, never removed."""

from __future__ import annotations

import os
import stat

from twisted.trial.unittest import SynchronousTestCase

from pvecfs.store.errors import StoreError
from pvecfs.store.lockfile import LOCK_NAME, LockFile


class LockFileTests(SynchronousTestCase):
    def test_one_holder(self) -> None:
        directory = self.mktemp()
        os.mkdir(directory)
        first = LockFile.beside(os.path.join(directory, "config.db"))
        second = LockFile(os.path.join(directory, LOCK_NAME))
        self.addCleanup(first.release)
        self.addCleanup(second.release)
        self.assertTrue(first.try_acquire())
        self.assertTrue(first.try_acquire())
        self.assertFalse(second.try_acquire())
        self.assertEqual((first.held, second.held), (True, False))
        first.release()
        first.release()
        self.assertTrue(second.try_acquire())
        second.release()
        self.assertEqual(stat.S_IMODE(os.stat(second.path).st_mode), 0o600)

    def test_of_a_reader(self) -> None:
        """It keeps writers away too, but makes no file and changes none."""
        path = os.path.abspath(self.mktemp())
        reader, writer = LockFile(path), LockFile(path)
        self.addCleanup(reader.release)
        self.addCleanup(writer.release)
        self.assertRaises(StoreError, reader.try_acquire, to_write=False)
        self.assertFalse(os.path.exists(path))
        os.close(os.open(path, os.O_CREAT))
        os.chmod(path, 0o640)
        self.assertTrue(reader.try_acquire(to_write=False))
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o640)
        self.assertFalse(writer.try_acquire())
        reader.release()
        self.assertTrue(writer.try_acquire())
        self.assertFalse(reader.try_acquire(to_write=False))

    def test_no_such_directory(self) -> None:
        error = self.assertRaises(StoreError, LockFile(os.path.join(self.mktemp(), LOCK_NAME)).try_acquire)
        self.assertIn(LOCK_NAME, str(error))
