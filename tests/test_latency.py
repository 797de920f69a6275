"""Processors stay awake while changes come, and not longer."""

from __future__ import annotations

import os
import struct
import time
from contextlib import suppress as ignoring
from pathlib import Path

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pvecfs.latency import ANY, DEVICE, POLLING, SHALLOW, ProcessorLatency
from tests.cluster_support import eventually
from tests.daemons import DaemonProcess, temporary_base
from tests.needs import needs_cpu_latency, needs_fuse


class ProcessorLatencyTests(SynchronousTestCase):
    def setUp(self) -> None:
        base = Path(self.mktemp())
        base.mkdir()
        self.device = base / "device"
        self.device.touch()
        self.driver = base / "driver"
        self.clock = Clock()

    def new(self, device: str | None = None) -> ProcessorLatency:
        latency = ProcessorLatency(self.clock, device or str(self.device), str(self.driver))
        self.addCleanup(latency.stop)
        return latency

    def said(self) -> list[int]:
        self.clock.advance(0)
        return [limit for (limit,) in struct.iter_unpack("=i", self.device.read_bytes())]

    def test_machine(self) -> None:
        """The first sleeping state is allowed, and everything once nobody waits."""
        self.driver.write_text("intel_idle\n")
        latency = self.new()
        latency.start()
        self.assertEqual(self.said(), [])
        latency.want(True)
        self.assertEqual(self.device.read_bytes(), b"", "said at once, before the change goes on")
        self.assertEqual(self.said(), [SHALLOW])
        latency.want(False)
        self.assertEqual(self.said(), [SHALLOW, ANY])

    def test_virtual_machine(self) -> None:
        self.driver.write_text("haltpoll\n")
        latency = self.new()
        latency.start()
        latency.want(True)
        self.assertEqual(self.said(), [POLLING])

    def test_no_driver(self) -> None:
        latency = self.new()
        latency.start()
        latency.want(True)
        self.assertEqual(self.said(), [SHALLOW])

    def test_said_once(self) -> None:
        """What was taken back before it was said is not said."""
        latency = self.new()
        latency.start()
        for wanted in (True, False, True, True):
            latency.want(wanted)
        self.assertEqual(self.said(), [SHALLOW])
        latency.want(False)
        latency.want(True)
        self.assertEqual(self.said(), [SHALLOW])

    def test_not_started(self) -> None:
        latency = self.new()
        latency.want(True)
        self.assertEqual(self.said(), [])
        latency.stop()

    def test_stopped(self) -> None:
        """The descriptor is closed, which is what takes the wish back."""
        before = set(os.listdir("/proc/self/fd"))
        latency = self.new()
        latency.start()
        self.assertNotEqual(set(os.listdir("/proc/self/fd")), before)
        latency.want(True)
        latency.stop()
        self.assertEqual(set(os.listdir("/proc/self/fd")), before)
        self.assertEqual(self.said(), [])
        latency.want(True)
        self.assertEqual(self.said(), [])

    def test_no_device(self) -> None:
        latency = self.new(str(self.device) + "-missing")
        latency.start()
        latency.want(True)
        self.said()
        self.assertFalse(Path(str(self.device) + "-missing").exists())

    def test_refused(self) -> None:
        """What the system refuses is asked for once."""
        latency = self.new("/dev/full")
        before = set(os.listdir("/proc/self/fd"))
        latency.start()
        for _ in range(2):
            latency.want(True)
            self.clock.advance(0)
            self.assertEqual(set(os.listdir("/proc/self/fd")), before)
            latency.want(False)


def asked_for() -> int:
    """What holds at the moment, microseconds: the least that any process asks for."""
    with open(DEVICE, "rb", buffering=0) as device:
        (limit,) = struct.unpack("=i", device.read(4))
    return int(limit)


@needs_fuse()
@needs_cpu_latency()
class DaemonTests(SynchronousTestCase):
    """The daemon in local mode. Other processes may utter wishes too, for moments."""

    def started(self, *options: str) -> DaemonProcess:
        base = temporary_base(self)
        daemon = DaemonProcess(base, "--local", *options)
        self.addCleanup(daemon.clean)
        daemon.start()
        return daemon

    def change(self, daemon: DaemonProcess) -> None:
        """Make changes until processors stay awake."""
        end = time.monotonic() + 20
        while asked_for() > SHALLOW:
            self.assertLess(time.monotonic(), end)
            (daemon.mount / "file").write_bytes(b"content")

    def has_device(self, daemon: DaemonProcess) -> bool:
        for descriptor in Path(f"/proc/{daemon.pid}/fd").iterdir():
            with ignoring(FileNotFoundError):  # closed meanwhile
                if os.readlink(descriptor) == DEVICE:
                    return True
        return False

    def test_while_changes_come(self) -> None:
        daemon = self.started()
        eventually(lambda: self.has_device(daemon), 20, "the reactor runs")
        for _ in range(3):
            eventually(lambda: asked_for() > SHALLOW, 20, "no wish")
            self.change(daemon)

    def test_killed(self) -> None:
        daemon = self.started()
        self.change(daemon)
        daemon.kill()
        eventually(lambda: asked_for() > SHALLOW, 20, "the wish ends with its process")

    def test_option(self) -> None:
        daemon = self.started("--no-cpu-latency")
        (daemon.mount / "file").write_bytes(b"content")
        self.assertFalse(self.has_device(daemon))
