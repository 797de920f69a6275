"""What killed daemons leave in /dev/shm."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from pvecfs.ipc.client import Client
from pvecfs.ipc.leftovers import remove_leftovers
from tests.ipc_process import Daemon
from tests.needs import needs_libqb, needs_root


def gone() -> int:
    """The pid of a process that is no more."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


class LeftoversTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.memory = Path(self.mktemp())
        self.memory.mkdir(parents=True)

    def connection(self, pid: int, name: str = "pve2", *others: str) -> Path:
        directory = self.memory / f"qb-{pid}-17-9-aB3dEf"
        directory.mkdir()
        for ring in (f"qb-request-{name}-header", f"qb-event-{name}-data", *others):
            (directory / ring).write_bytes(b"ring")
        return directory

    def test_removed(self) -> None:
        self.connection(gone())
        self.assertEqual(remove_leftovers("pve2", self.memory), 1)
        self.assertEqual(os.listdir(self.memory), [])

    def test_empty(self) -> None:
        """A client that outlived the daemon removed its rings, but cannot know when the directory may go."""
        (self.memory / f"qb-{gone()}-17-9-aB3dEf").mkdir()
        self.assertEqual(remove_leftovers("pve2", self.memory), 1)
        self.assertEqual(os.listdir(self.memory), [])

    def test_running(self) -> None:
        """A running process's rings are its own, whoever it is."""
        directory = self.connection(os.getpid())
        self.assertEqual(remove_leftovers("pve2", self.memory), 0)
        self.assertEqual(len(os.listdir(directory)), 2)

    def test_others(self) -> None:
        """Other services' rings, and what is no connection, stay."""
        directory = self.connection(gone(), "cmap")
        (self.memory / "qb-request-pve2-header").write_bytes(b"")
        (self.memory / f"qb-{gone()}-17-9-symlnk").symlink_to(directory)
        (self.memory / f"qb-{gone()}-17-9-a_file").write_bytes(b"")
        self.assertEqual(remove_leftovers("pve2", self.memory), 0)
        self.assertEqual(len(os.listdir(self.memory)), 4)
        self.assertEqual(len(os.listdir(directory)), 2)

    def test_something_else_among_the_rings(self) -> None:
        """It is not touched, and does no harm."""
        directory = self.connection(gone(), "pve2", "else")
        (directory / "qb-response-pve2-data").mkdir()
        (directory / "qb-response-pve2-data" / "kept").write_bytes(b"")
        self.assertEqual(remove_leftovers("pve2", self.memory), 0)
        self.assertIn("else", os.listdir(directory))
        self.assertIn("kept", os.listdir(directory / "qb-response-pve2-data"))


@needs_libqb()
@needs_root()
class KilledDaemonTests(SynchronousTestCase):
    def test_next_one_removes(self) -> None:
        """The service of the same name that starts after a kill -9 removes what is left."""
        with Daemon("killed") as killed, Client(killed.name) as client:
            client.cluster_info()
            self.assertEqual(len(killed.shared_memory()), 1)
            with Client(killed.name) as other:
                other.cluster_info()
                killed.process.kill()
                killed.process.wait()
                self.assertRaises(OSError, other.cluster_info)
            self.assertTrue(killed.shared_memory())
            with Daemon("killed"):
                self.assertEqual(killed.shared_memory(), [])
