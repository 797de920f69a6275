"""An inode that means another file after a synchronisation."""

from __future__ import annotations

import os

from tests.fuse_support import MountCase, get, put
from tests.needs import needs_fuse


@needs_fuse()
class IdentityTests(MountCase):
    def test_another_file_of_the_same_inode(self) -> None:
        """Both sides of a partition made a file at the same version: these have one inode. A handle of the file that
        lost must not write into the one that won (20-filesystem.md: "never another file's content")."""
        put(self.in_place("mine"), b"mine")
        handle = os.open(self.in_place("mine"), os.O_RDWR)
        self.addCleanup(os.close, handle)
        (inode, parent, kind, _), *_ = [row for row in self.node.ask("state")["entries"] if row[3] == "mine"]
        self.node.ask("synchronised", [], [[inode, parent, 99, 2, 5, kind, "other", "of the others"]])
        self.assertEqual(get(self.in_place("other")), b"of the others")
        self.assertRaises(OSError, os.pwrite, handle, b"MINE", 0)
        self.assertEqual(get(self.in_place("other")), b"of the others")
