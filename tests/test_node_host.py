"""Directories and files that the daemon keeps for others on its host."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from pvecfs.node import host
from tests.needs import needs_root

GROUP = 12345
LOCK_NAME = ".lock"


class DirectoryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.base = Path(self.mktemp())
        self.base.mkdir()

    def made(self, path: Path, mode: int, owner: int = 0) -> tuple[int, int, int]:
        """Make C{path}, then let the daemon look at it; its mode, owner and group."""
        path.mkdir(parents=True)
        os.chown(path, owner, 0)
        path.chmod(mode)
        return self.after(path)

    def after(self, path: Path) -> tuple[int, int, int]:
        host.make_directory(path, host.RUN_MODE, GROUP)
        status = path.stat()
        return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid

    @needs_root()
    def test_new(self) -> None:
        self.assertEqual(self.after(self.base / "x/y"), (0o750, 0, GROUP))

    @needs_root()
    def test_ours(self) -> None:
        """By name and owner: as the specification has it, whatever it was."""
        for number, mode in enumerate((0o755, 0o700, 0o775, 0o777)):
            self.assertEqual(self.made(self.base / str(number) / "pve-cluster", mode), (0o750, 0, GROUP))

    @needs_root()
    def test_empty(self) -> None:
        """Nobody uses it yet."""
        for number, mode in enumerate((0o755, 0o700, 0o777)):
            self.assertEqual(self.made(self.base / str(number), mode), (0o750, 0, GROUP))

    @needs_root()
    def test_somebody_elses(self) -> None:
        (self.base / "srv").mkdir()
        (self.base / "srv/x").touch()
        (self.base / "srv").chmod(0o755)
        self.assertEqual(self.after(self.base / "srv"), (0o755, 0, 0))
        self.assertEqual(self.made(self.base / "pve-cluster", 0o755, owner=1), (0o755, 1, 0))

    def test_for_everybody(self) -> None:
        for number, mode in enumerate((0o1777, 0o777, 0o1755, 0o702)):
            path = self.base / str(number)
            path.mkdir(parents=True)
            (path / "x").touch()
            path.chmod(mode)
            with self.assertRaisesRegex(host.StartFailed, f"{path} is a directory that others may write to"):
                host.make_directory(path, host.RUN_MODE, None)
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), mode)

    def test_none(self) -> None:
        file = self.base / "file"
        file.write_text("")
        for path in file, file / "x":
            with self.assertRaisesRegex(host.StartFailed, f"{path}: Not a directory"):
                host.make_directory(path, host.RUN_MODE, None)


class PidFileTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())

    def test_ours(self) -> None:
        self.path.write_text("something that is longer than a number")
        host.write_pid_file(self.path, LOCK_NAME)
        self.assertEqual(self.path.read_text(), f"{os.getpid()}\n")
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o644)
        host.remove_pid_file(self.path)
        self.assertFalse(self.path.exists())
        host.remove_pid_file(self.path)

    def test_anothers(self) -> None:
        self.path.write_text(f"{os.getpid()}1\n")
        host.remove_pid_file(self.path)
        self.assertTrue(self.path.exists())

    def process(self, held: str) -> int:
        """One that has the file C{held} open."""
        directory = Path(self.mktemp())
        directory.mkdir()
        with (directory / held).open("w") as file:
            process = subprocess.Popen(["sleep", "60"], stdin=file)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process.pid

    def test_running_daemons(self) -> None:
        """It is left alone."""
        pid = self.process(LOCK_NAME)
        self.path.write_text(f"{pid}\n")
        with self.assertRaisesRegex(host.StartFailed, f"the pid file {self.path} is that of process {pid}"):
            host.write_pid_file(self.path, LOCK_NAME)
        host.remove_pid_file(self.path)
        self.assertEqual(self.path.read_text(), f"{pid}\n")

    def test_of_nobody_any_more(self) -> None:
        """The number that a killed daemon has left is no process's, or another program's."""
        for text in f"{self.process('file')}", f"{2**22 + 1}", "1", "-1", "", "none", "9" * 40:
            self.path.write_text(text)
            host.write_pid_file(self.path, LOCK_NAME)
            self.assertEqual(self.path.read_text(), f"{os.getpid()}\n")

    def test_impossible(self) -> None:
        with self.assertRaisesRegex(host.StartFailed, f"cannot write the pid file {self.path}/x: No such file"):
            host.write_pid_file(self.path / "x", LOCK_NAME)
