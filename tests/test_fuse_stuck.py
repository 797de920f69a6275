"""Special files while a change waits for the cluster, and the kernel keeps the root directory's lock for it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from threading import Thread

from pvecfs.fuse.filesystem import LONG
from tests.fuse_support import MountCase
from tests.needs import needs_fuse


@needs_fuse()
class StuckChanges(MountCase):
    def test_special_files(self) -> None:
        """They are read, with their newest content, whatever waits."""
        top = Path(self.node.path)
        self.node.ask("document", ".version", "old\n")
        self.assertEqual((top / ".version").read_bytes(), b"old\n")
        changes = (
            lambda: (top / "new").touch(),
            lambda: (top / "directory").mkdir(),
            lambda: os.rename(self.in_place("x"), top / "x"),
            lambda: (top / "x").unlink(),
        )
        Path(self.in_place("x")).touch()
        self.addCleanup(self.node.ask, "stuck", False)
        for number, change in enumerate(changes):
            self.node.ask("stuck", True)
            thread = Thread(target=change)
            thread.start()
            time.sleep(LONG * 5)
            for size in range(1, 40, 13):
                content = b"%d" % number * size
                self.node.ask("document", ".version", content.decode())
                begun = time.monotonic()
                self.assertEqual((top / ".version").read_bytes(), content)
                self.assertEqual(os.stat(top / ".version").st_size, len(content))
                self.assertLess(time.monotonic() - begun, 20)
                self.assertTrue(thread.is_alive(), "the change waits")
            self.node.ask("stuck", False)
            thread.join(20)
            self.assertFalse(thread.is_alive())
            self.node.ask("document", ".version", "after\n")
            self.assertEqual((top / ".version").read_bytes(), b"after\n")
