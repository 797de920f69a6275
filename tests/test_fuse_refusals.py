"""Writes that are refused leave nothing in the kernel's pages."""

from __future__ import annotations

import mmap
import os
from errno import EACCES
from pathlib import Path

from tests.cluster_support import eventually
from tests.fuse_support import MountCase
from tests.needs import needs_fuse


@needs_fuse()
class RefusedWrites(MountCase):
    def test_mapped(self) -> None:
        """What was written into a mapping, and then refused, is not what others read."""
        path = self.in_place("file")
        Path(path).write_bytes(b"as it is in the tree")
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            self.node.ask("quorate", False)
            self.addCleanup(self.node.ask, "quorate", True)
            mapped[:2] = b"XX"
            failure = self.assertRaises(OSError, mapped.flush)
            self.assertEqual(failure.errno, EACCES)

            def content() -> bytes:
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    return os.read(descriptor, 100)
                finally:
                    os.close(descriptor)

            eventually(lambda: content() == b"as it is in the tree", 5, "the tree's content")
            self.assertEqual(mapped[:2], b"as")
