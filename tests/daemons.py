"""Runs C{twistd pvecfs} as a process of its own, for tests that meet the daemon as a user does."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parent.parent
RUN = "from twisted.scripts.twistd import run; run()"
TWISTD = [sys.executable, "-c", RUN]
START_TIMEOUT = 30.0
STOP_TIMEOUT = 10.0


def twistd_environment() -> dict[str, str]:
    """The environment in which twistd finds this checkout's plugin."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


class DaemonProcess:
    """One daemon in local mode, with all its paths below C{base}.

    @ivar mount: its mountpoint.
    @ivar state: its state directory.
    @ivar before: Python statements that its process executes first.
    """

    def __init__(self, base: Path, *options: str, prefix: Sequence[str] = ()) -> None:
        self.base = base
        self.mount = base / "mnt"
        self.state = base / "state"
        self.run = base / "run"
        self.log = base / "log"
        self.options = [
            *("--mountpoint", str(self.mount), "--state-dir", str(self.state), "--run-dir", str(self.run)),
            *("--corosync-conf", str(base / "corosync.conf"), "--rrd-dir", str(base / "rrd")),
            *("--rrdcached-socket", str(base / "rrdcached.sock"), "--node-name", "n1", "--node-ip", "127.0.0.2"),
            *("--ipc-name", f"pvecfs-{os.getpid()}-{base.name}", *options),
        ]
        self.prefix = list(prefix)
        self.before = ""
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def database(self) -> Path:
        return self.state / "config.db"

    def spawn(self, *twistd_options: str) -> subprocess.Popen[bytes]:
        """Start it, and do not wait for readiness."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(*self.prefix, sys.executable, "-c", f"{self.before}\n{RUN}"),
                    *("--nodaemon", "--pidfile=", *twistd_options, "pvecfs", *self.options),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.base,
                env={**twistd_environment(), "NOTIFY_SOCKET": str(self.base / "notify")},
            )
        return self.process

    def start(self) -> float:
        """Start it and wait until it says that it is ready; return the seconds that took."""
        address = self.base / "notify"
        address.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(str(address))
            ready.settimeout(0.2)
            began = time.monotonic()
            process = self.spawn()
            while time.monotonic() < began + START_TIMEOUT:
                try:
                    if ready.recv(100) == b"READY=1":
                        return time.monotonic() - began
                except TimeoutError:
                    if process.poll() is not None:
                        break
        raise AssertionError(f"the daemon did not start: {self.log_text()[-3000:]}")

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Send a signal and wait; return exit code and seconds."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(number)
        code = self.process.wait(STOP_TIMEOUT)
        return code, time.monotonic() - began

    def kill(self) -> None:
        """kill -9, leaving the mount stale."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(STOP_TIMEOUT)

    def log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def clean(self) -> None:
        """Whatever happened: no process, no mount."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            abort_connection(self.mount)
            self.process.wait(STOP_TIMEOUT)
        if is_mounted(self.mount):
            subprocess.run(["umount", "-l", str(self.mount)], capture_output=True, timeout=10, check=False)
        if is_mounted(self.mount):
            subprocess.run(["fusermount3", "-uz", str(self.mount)], capture_output=True, timeout=10, check=False)


def is_mounted(path: Path) -> bool:
    """Whether C{path} is a mountpoint, asked without touching it."""
    escaped = str(path).replace(" ", "\\040")
    with open("/proc/self/mountinfo") as mounts:
        return any(line.split()[4] == escaped for line in mounts)


def processes_of(path: Path) -> list[int]:
    """The processes that were started with C{path} as a word of its own."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with suppress(OSError):  # it has ended
                if os.fsencode(path) in (process / "cmdline").read_bytes().split(b"\0"):
                    found.append(int(process.name))
    return found


def abort_connection(path: Path) -> None:
    """Abort the FUSE connection of the mount at C{path}, so that nothing waits for it any more."""
    escaped = str(path).replace(" ", "\\040")
    with open("/proc/self/mountinfo") as mounts:
        for line in mounts:
            fields = line.split()
            if fields[4] == escaped:
                minor = fields[2].partition(":")[2]
                control = Path(f"/sys/fs/fuse/connections/{minor}/abort")
                if control.exists():
                    control.write_text("1")


def temporary_base(case: SynchronousTestCase) -> Path:
    """A short-named new directory until C{case} is over: paths of sockets are limited to 107 bytes. What is cleaned up
    in it has to be told after this."""
    base = Path(tempfile.mkdtemp(prefix="pvecfs-"))
    case.addCleanup(shutil.rmtree, base, ignore_errors=True)
    return base
