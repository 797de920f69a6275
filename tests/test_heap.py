"""Memory that is at hand."""

from __future__ import annotations

import platform
import resource
from threading import Thread

from twisted.trial.unittest import SynchronousTestCase

from pvecfs.heap import LARGE_CHANGE, prepare


class PrepareTests(SynchronousTestCase):
    if platform.libc_ver()[0] != "glibc":
        skip = "needs glibc"

    def faults(self, prepared: bool) -> int:
        """Page faults of a new thread that has some large blocks at a time in use."""
        counts: list[int] = []

        def work() -> None:
            if prepared:
                prepare()
            before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
            blocks = [bytearray(LARGE_CHANGE // 4) for _ in range(3)]
            counts.append(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)
            blocks.clear()

        thread = Thread(target=work)
        thread.start()
        thread.join()
        return counts[0]

    def test_no_faults(self) -> None:
        self.assertLess(self.faults(True) * 10, self.faults(False))
