"""A daemon killed while a thread of it waits in the kernel for a client that waits for the daemon."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from errno import ECONNABORTED, ENOTCONN
from pathlib import Path

from pvecfs.fuse import mountpoint, rescue
from tests.fuse_support import ROOT, MountCase
from tests.lab import eventually
from tests.needs import needs_fuse


def states(pid: int) -> list[str]:
    """What each thread of a process waits for in the kernel, as far as it does."""
    places = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            places.append((task / "wchan").read_text())
        except OSError:
            continue
    return places


def rescuers(pid: int) -> list[int]:
    """The rescue processes that were started by C{pid}."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if os.fsencode(rescue.__file__) in words and str(pid).encode() in words:
            found.append(int(path.parent.name))
    return found


@needs_fuse()
class RescueTests(MountCase):
    def stuck_client(self) -> subprocess.Popen[bytes]:
        """A client that makes a directory and is not answered: it holds the lock of the directory above."""
        self.node.ask("stuck", True)
        text = f"import os\ntry:\n os.mkdir({self.in_place('x')!r})\nexcept OSError as e: os._exit(e.errno)"
        client = subprocess.Popen([sys.executable, "-S", "-c", text], cwd=ROOT)
        self.addCleanup(client.wait, 20)
        self.addCleanup(client.kill)
        eventually(lambda: self.node.ask("state")["late"] == 1, 20, "the client waits")
        return client

    def test_killed_while_it_waits_for_a_client(self) -> None:
        """It is dead soon after kill -9, and so is the connection; the client gets an error; one can mount again."""
        process = self.node.process
        assert process is not None
        client = self.stuck_client()
        self.node.ask("change", "create", self.in_tree("y"))  # the kernel is to forget a name in that directory
        if os.geteuid() == 0:
            eventually(lambda: "fuse_reverse_inval_entry" in " ".join(states(process.pid)), 20, "a thread waits")
        eventually(lambda: len(rescuers(process.pid)) == 1, 20, "the rescue process")
        began = time.monotonic()
        process.kill()
        process.wait(10)
        self.assertLess(time.monotonic() - began, 5)
        self.assertIn(client.wait(10), (ECONNABORTED, ENOTCONN))
        eventually(lambda: not rescuers(process.pid), 10, "no rescue process left")
        mountpoint.clear(self.node.path)
        self.assertIsNone(mountpoint.find_mounted(self.node.path))

    def test_orderly_stop(self) -> None:
        """No rescue process is left behind, whatever signals it got."""
        process = self.node.process
        assert process is not None
        eventually(lambda: len(rescuers(process.pid)) == 1, 20, "the rescue process")
        self.node.terminate()
        self.assertEqual(process.returncode, 0)
        eventually(lambda: not rescuers(process.pid), 5, "no rescue process left")

    def test_healthy_mount_is_left_alone(self) -> None:
        """The signal alone does nothing while the daemon lives."""
        process = self.node.process
        assert process is not None
        eventually(lambda: len(rescuers(process.pid)) == 1, 20, "the rescue process")
        (pid,) = rescuers(process.pid)

        def ready() -> bool:
            status = Path(f"/proc/{pid}/status").read_text()
            ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
            return bool(ignored & (1 << (signal.SIGTERM - 1)))

        eventually(ready, 20, "signals are ignored")
        os.kill(pid, signal.SIGUSR1)
        os.kill(pid, signal.SIGTERM)
        os.mkdir(self.in_place("still"))
        self.assertEqual(rescuers(process.pid), [pid])
        self.assertFalse(rescue.is_dead(process.pid))
