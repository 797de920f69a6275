"""Memory that is at hand."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

SCRIPT = """
import resource, sys
from threading import Thread
from pvecfs.heap import LARGE_CHANGE, prepare

def faults():
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt

def work():
    if sys.argv[1] == "prepared":
        prepare()
    before = faults()
    blocks = [bytearray(LARGE_CHANGE // 4) for _ in range(3)]
    print(faults() - before)

thread = Thread(target=work)
thread.start()
thread.join()
"""


class PrepareTests(SynchronousTestCase):
    if platform.libc_ver()[0] != "glibc":
        skip = "needs glibc"

    def faults(self, how: str) -> int:
        """Page faults of a new process's thread that has some large blocks in use at a time."""
        root = Path(__file__).resolve().parent.parent
        command = [sys.executable, "-c", SCRIPT, how]
        return int(subprocess.run(command, cwd=root, check=True, capture_output=True, timeout=60).stdout)

    def test_no_faults(self) -> None:
        usual = self.faults("not prepared")
        self.assertGreater(usual, 500)
        self.assertLess(self.faults("prepared"), usual // 10)
