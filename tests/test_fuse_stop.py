"""Beginnings and ends of a mount: nothing hangs, nothing is left mounted, and the reason is told."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time

from twisted.trial import unittest

from pvecfs.fuse import mountpoint
from tests.fuse_support import MountCase, MountedNode, get, put
from tests.needs import needs_fuse, needs_root


def try_to_close(descriptor: int) -> None:
    """Close what belongs to a file system that is gone: that says so, and closes it."""
    with contextlib.suppress(OSError):
        os.close(descriptor)


@needs_fuse()
class StopTests(MountCase):
    """SIGTERM, whatever clients do."""

    def client(self, script: str) -> subprocess.Popen[bytes]:
        """A program that does C{script} in the test's directory, after it has said that it begins."""
        text = f"import os, sys\nos.chdir({self.place!r})\nprint('begins', flush=True)\n{script}"
        process = subprocess.Popen(
            [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        self.addCleanup(self.end_client, process)
        return process

    @staticmethod
    def end_client(process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.communicate(timeout=10)

    def waits(self, count: int) -> None:
        """Until C{count} changes wait for their answer."""
        end = time.monotonic() + 10
        while self.node.ask("state")["late"] < count:
            self.assertLess(time.monotonic(), end)
            time.sleep(0.01)

    def assert_gone(self) -> None:
        self.assertIsNone(mountpoint.find_mounted(self.node.path))

    def test_idle(self) -> None:
        self.assertLess(self.node.terminate(), 3)
        self.assert_gone()
        self.assertEqual(self.node.process and self.node.process.returncode, 0)

    def test_open_file_and_working_directory(self) -> None:
        put(self.in_place("f"), b"x")
        client = self.client("f = open('f'); sys.stdin.read()")
        held = os.open(self.in_place("f"), os.O_RDONLY)
        self.assertLess(self.node.terminate(), 5)
        self.assert_gone()
        failure = self.assertRaises(OSError, os.fstatvfs, held)  # the kernel remembers attributes and pages
        self.assertIn(failure.errno, (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO))
        try_to_close(held)
        self.assertIsNone(client.poll())

    def test_blocked_changes(self) -> None:
        put(self.in_place("f"), b"x")
        os.mkdir(self.in_place("d"))
        self.node.ask("stuck", True)
        clients = [
            self.client(script)
            for script in (
                "open('f', 'r+b', buffering=0).write(b'y')",
                "os.mkdir('d/x')",
                "os.rename('f', 'd/f')",
                "os.fsync(os.open('f', os.O_RDONLY))",
            )
        ]
        self.waits(2)
        self.assertLess(self.node.terminate(), 5)
        self.assert_gone()
        for client in clients:
            _, complaint = client.communicate(timeout=10)
            self.assertNotEqual(client.returncode, 0)
            self.assertTrue(any(word in complaint for word in (b"Errno 5]", b"Errno 107]", b"Errno 103]")), complaint)

    def test_blocked_invalidation(self) -> None:
        """The directory's lock is held by a change that waits, and the kernel is to be told of names in it."""
        os.mkdir(self.in_place("d"))
        os.listdir(self.in_place("d"))
        put(self.in_place("f"), b"x")
        self.node.ask("stuck", True)
        self.client("os.mkdir('d/x')")
        self.waits(1)
        for number in range(20):
            self.node.ask("change", "create", self.in_tree(f"d/{number}"))
        # Others are told all the same, of data and of modes.
        self.node.ask("change", "write", self.in_tree("f"), b"fresh")
        end = time.monotonic() + 5
        while get(self.in_place("f")) != b"fresh":
            self.assertLess(time.monotonic(), end)
        self.assertLess(self.node.terminate(), 5)
        self.assert_gone()

    def test_requests_are_answered_when_the_cluster_comes_back(self) -> None:
        self.node.ask("stuck", True)
        client = self.client("os.mkdir('x'); print('made')")
        self.waits(1)
        self.node.ask("stuck", False)
        output, _ = client.communicate(timeout=10)
        self.assertEqual(output, b"made\n")
        self.assertEqual(os.listdir(self.place), ["x"])

    def test_others_are_served_while_many_wait(self) -> None:
        put(self.in_place("f"), b"x")
        for number in range(20):
            os.mkdir(self.in_place(f"d{number}"))
        self.node.ask("stuck", True)
        for number in range(20):
            self.client(f"os.mkdir('d{number}/x')")
        self.waits(20)
        start = time.monotonic()
        os.statvfs(self.place)
        self.assertEqual(get(self.in_place("f")), b"x")
        self.assertLess(time.monotonic() - start, 10)  # who waits for one of the changes waits for ever
        self.assertLess(self.node.terminate(), 5)
        self.assert_gone()

    @needs_root()
    def test_taken_away(self) -> None:
        """An administrator unmounts: the daemon notices (here it ends)."""
        subprocess.run(["umount", self.node.path], check=True, timeout=10)
        assert self.node.process is not None
        self.assertEqual(self.node.process.wait(10), 0)
        self.assertIn("was taken away", self.node.log())


@needs_fuse()
class StartTests(MountCase):
    """Where to mount."""

    def setUp(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="pvecfs-start-")
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.path = os.path.join(self.directory, "mnt")

    def launch(self) -> tuple[MountedNode, str]:
        node = MountedNode(self.path)
        self.addCleanup(node.stop)
        return node, node.launch()

    def test_mountpoint_is_made(self) -> None:
        node, said = self.launch()
        self.assertEqual(said, "mounted")
        node.stop()
        self.assertEqual(os.stat(self.path).st_mode & 0o777, 0o750)
        os.rmdir(self.path)

    def test_a_start_that_fails_later(self) -> None:
        node = MountedNode(self.path)
        self.addCleanup(node.stop)
        self.assertEqual(node.launch(FUSE_TEST_ABORT="1"), "aborted")
        assert node.process is not None
        self.assertEqual(node.process.wait(5), 1)
        self.assertIsNone(mountpoint.find_mounted(self.path))

    def test_mountpoint_with_files(self) -> None:
        os.mkdir(self.path)
        put(self.path + "/below", b"")
        node, said = self.launch()
        self.assertEqual(said, "mounted")
        self.assertFalse(os.path.exists(self.path + "/below"))
        node.stop()
        os.unlink(self.path + "/below")
        os.rmdir(self.path)

    def test_mountpoint_is_a_file(self) -> None:
        put(self.path, b"")
        _, said = self.launch()
        self.assertEqual(said, f"failed: cannot mount at {self.path}: it is not a directory")
        os.unlink(self.path)

    def test_mounted_twice(self) -> None:
        node, _ = self.launch()
        _, said = self.launch()
        self.assertEqual(said, f"failed: cannot mount at {self.path}: pvecfs-test is mounted there already")
        self.assertIn("local", os.listdir(self.path))
        node.stop()
        os.rmdir(self.path)

    @needs_root()
    def test_stale_mount(self) -> None:
        """A daemon was killed; a client still holds a file of its mount."""
        node, _ = self.launch()
        put(self.path + "/f", b"x")
        held = os.open(self.path + "/f", os.O_RDONLY)
        self.addCleanup(try_to_close, held)
        assert node.process is not None
        node.process.send_signal(signal.SIGKILL)
        node.process.wait(10)
        failure = self.assertRaises(OSError, os.statvfs, self.path)
        self.assertEqual(failure.errno, errno.ENOTCONN)
        second, said = self.launch()
        self.assertEqual(said, "mounted")
        self.assertIn("local", os.listdir(self.path))
        second.stop()
        self.assertIsNone(mountpoint.find_mounted(self.path))
        os.rmdir(self.path)

    @needs_root()
    def test_as_another_user(self) -> None:
        """Through fusermount3, for oneself alone; if the machine lets users mount."""
        mode = stat.S_IMODE(os.stat("/dev/fuse").st_mode)
        if os.environ.get("CI") == "true" and mode != 0o666:  # as udev has it on every host
            os.chmod("/dev/fuse", 0o666)
            self.addCleanup(os.chmod, "/dev/fuse", mode)
        os.chown(self.directory, 65534, 65534)
        node = MountedNode(self.path)
        self.addCleanup(node.stop)
        os.chown(node.directory, 65534, 65534)
        said = node.launch(FUSE_TEST_USER="65534")
        if said != "mounted":
            raise unittest.SkipTest(f"another user cannot mount here: {said} {node.log()[-500:]}")

        def as_user(script: str) -> bytes:
            return subprocess.run(
                ["sh", "-c", script], cwd="/", user=65534, group=65534, extra_groups=[], capture_output=True, timeout=20
            ).stdout

        self.assertEqual(as_user(f"cd {self.path}; echo x > f; cat f; ls -l f | cut -c 1-10"), b"x\n-rw-r-----\n")
        self.assert_errno(errno.EACCES, os.listdir, self.path)  # not even root
        client = subprocess.Popen(
            ["sh", "-c", f"exec 3< {self.path}/f; echo; exec sleep 20"],
            stdout=subprocess.PIPE,
            user=65534,
            group=65534,
            extra_groups=[],
        )
        assert client.stdout is not None
        client.stdout.readline()
        self.assertLess(node.terminate(), 5)
        client.kill()
        client.communicate(timeout=10)
        self.assertIsNone(mountpoint.find_mounted(self.path))
        os.rmdir(self.path)
