"""How many descriptors there are, how many of them clients get, and what happens when there are none left."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from contextlib import ExitStack
from errno import ENOMEM

from twisted.trial.unittest import SynchronousTestCase, TestCase

from pvecfs.ipc.client import Client
from pvecfs.ipc.descriptors import MAX_CONNECTIONS, MAX_GREETINGS, OTHERS, WANTED, Share, clients_share
from tests.ipc_process import ROOT, Daemon
from tests.needs import needs_libqb, needs_root


class ShareTests(SynchronousTestCase):
    def test_enough(self) -> None:
        for soft in (WANTED, WANTED + 1, 1 << 20, resource.RLIM_INFINITY):
            self.assertEqual(clients_share(soft), Share(MAX_CONNECTIONS, MAX_GREETINGS))

    def test_scarce(self) -> None:
        """The others' descriptors are never given away, where there are as many."""
        for soft in range(OTHERS + 2, WANTED):
            share = clients_share(soft)
            self.assertLessEqual(share.connections + share.greetings, soft - OTHERS)
            self.assertTrue(0 < share.greetings <= MAX_GREETINGS and 0 < share.connections <= MAX_CONNECTIONS, soft)
        self.assertEqual(clients_share(1024), Share(672, 224))
        for soft in (0, 3, OTHERS):
            self.assertEqual(clients_share(soft), Share(1, 1))


class LimitTests(SynchronousTestCase):
    def raised(self, soft: int, hard: int) -> str:
        """Soft and hard limit after they were C{soft} and C{hard}, and what was written."""
        script = (
            "import resource, sys; from pvecfs.ipc.descriptors import raise_limit\n"
            "resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))\n"
            "raise_limit(); print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, str(soft), str(hard)], capture_output=True, text=True, cwd=ROOT, timeout=60
        )
        return done.stdout + done.stderr

    def test_raised(self) -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if 0 <= hard <= WANTED:
            self.skipTest("the hard limit is too low")
        self.assertEqual(self.raised(256, WANTED + 1), f"{WANTED} {WANTED + 1}\n")
        self.assertEqual(self.raised(256, 1000), "1000 1000\n")
        self.assertEqual(self.raised(WANTED + 1, WANTED + 1), f"{WANTED + 1} {WANTED + 1}\n")


@needs_libqb()
@needs_root()
class ScarceTests(TestCase):
    """A daemon that may have few descriptors."""

    LIMIT = 240

    def setUp(self) -> None:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (self.LIMIT, limits[1]))
        try:
            self.daemon = Daemon(self.id().rpartition(".")[2][:60])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        self.addCleanup(self.daemon.end)

    def silent(self, stack: ExitStack, count: int) -> None:
        """Connections that say nothing."""
        for _ in range(count):
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.settimeout(5)
            connection.connect(f"\0{self.daemon.name}".ljust(108, "\0"))

    def test_clients_leave_some(self) -> None:
        """Clients are refused in order while the daemon still has what it needs."""
        share = clients_share(self.LIMIT)
        with ExitStack() as stack:
            for _ in range(share.connections):
                stack.enter_context(Client(self.daemon.name, buffer=4096))
            refused = self.assertRaises(OSError, Client(self.daemon.name, buffer=4096).connect)
            self.assertEqual(refused.errno, ENOMEM)
            self.silent(stack, 2 * share.greetings)
            refused = self.assertRaises(OSError, Client(self.daemon.name, buffer=4096).connect)
            self.assertEqual(refused.errno, ENOMEM)
            self.assertLess(self.daemon.ask("descriptors"), self.LIMIT - OTHERS // 2)
        with Client(self.daemon.name) as client:
            self.assertEqual(client.get_config(b"user.cfg"), b"while n3 down\n")

    def test_none_left(self) -> None:
        """Who cannot be accepted waits, and is accepted when there are descriptors again."""
        pid = self.daemon.process.pid
        hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
        highest = max(map(int, os.listdir(f"/proc/{pid}/fd")))
        with Client(self.daemon.name) as client, ExitStack() as stack:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 2, hard))
            self.silent(stack, 6)
            self.assertEqual(client.get_config(b"user.cfg"), b"while n3 down\n")
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (self.LIMIT, hard))
            with Client(self.daemon.name) as other:
                self.assertEqual(other.get_config(b"user.cfg"), b"while n3 down\n")
        self.daemon.end()
        self.assertEqual(self.daemon.log.count("no IPC client can be accepted now"), 1)
