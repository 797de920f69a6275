"""Who has got a lock, by a mkdir in C{priv/lock}, reads what others have written before."""

from __future__ import annotations

import os
from threading import Thread

from pvecfs.fuse.filesystem import LOCK_PATIENCE
from tests.fuse_support import MountCase, get, put
from tests.needs import needs_fuse


@needs_fuse()
class ReadAfterLockTests(MountCase):
    def setUp(self) -> None:
        super().setUp()
        self.lock = os.path.join(self.node.path, "priv", "lock", "x")
        os.makedirs(os.path.dirname(self.lock))
        self.path, self.name = self.in_place("f"), self.in_tree("f")
        put(self.path, b"old")
        self.assertEqual(get(self.path), b"old")
        self.node.ask("drained")
        self.node.ask("held", True)
        self.addCleanup(self.node.ask, "held", False)
        self.seen = b""

    def take(self) -> Thread:
        def take() -> None:
            os.mkdir(self.lock)
            self.seen = get(self.path)

        thread = Thread(target=take)
        thread.start()
        return thread

    def change(self, *change: object) -> None:
        self.assertGreaterEqual(self.node.ask("change", *change), 0)

    def check_new_is_read(self) -> None:
        """Who takes the lock before the kernel was told reads what is told then."""
        thread = self.take()
        thread.join(LOCK_PATIENCE / 3)
        self.node.ask("held", False)
        thread.join(10)
        self.assertEqual(self.seen, b"new, and longer")

    def test_overwritten(self) -> None:
        self.change("write", self.name, "new, and longer", 0, True)
        self.check_new_is_read()

    def test_replaced(self) -> None:
        self.change("create", self.name + ".tmp")
        self.change("write", self.name + ".tmp", "new, and longer")
        self.change("rename", self.name + ".tmp", self.name)
        self.check_new_is_read()

    def test_patience(self) -> None:
        """Nobody hangs, should it ever come to that."""
        self.change("write", self.name, "new", 0, True)
        thread = self.take()
        thread.join(10)
        self.assertFalse(thread.is_alive())
        self.assertTrue(os.path.isdir(self.lock))

    def test_locks_of_others(self) -> None:
        """What others do with locks is not waited for: the caller's mkdir holds the directory."""
        for number in range(20):
            self.change("mkdir", f"priv/lock/{number}")
            self.change("mtime", f"priv/lock/{number}", 2_000_000_000)
        thread = self.take()
        self.node.ask("held", False)
        thread.join(10)
        self.assertEqual(self.seen, b"old")
        self.assertEqual(len(os.listdir(os.path.dirname(self.lock))), 21)

    def test_taken(self) -> None:
        """Who does not get it is told so."""
        os.mkdir(self.lock)
        self.change("write", self.name, "new", 0, True)
        self.assertRaises(FileExistsError, os.mkdir, self.lock)
