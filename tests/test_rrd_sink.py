"""RRD updates into real files, by a real rrdcached and by librrd."""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from threading import Event
from threading import enumerate as threads
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from pvecfs.interfaces import IRoundRobinSink
from pvecfs.rrd import librrd, sink
from pvecfs.rrd.layout import parse_update
from pvecfs.rrd.sink import MAX_WAITING, RoundRobinSink, make_directories, store_directly
from pvecfs.rrd.worker import DiskWorker

Steps = Any  # what inlineCallbacks yields and sends


def needs_rrd() -> None:
    missing = [name for name in ("rrdcached", "rrdtool") if shutil.which(name) is None]
    try:
        ctypes.CDLL("librrd.so.8")
    except OSError:
        missing.append("librrd.so.8")
    if missing and os.environ.get("CI") != "true":
        raise SkipTest(f"needs {', '.join(missing)}")


def last_update(path: str, *options: str) -> tuple[int, list[str]]:
    """Time and values of the last update of a database."""
    output = subprocess.run(
        ["rrdtool", "lastupdate", path, *options], check=True, capture_output=True, text=True
    ).stdout
    moment, values = output.strip().splitlines()[-1].split(":")
    return int(moment), values.split()


def numbers(count: int) -> bytes:
    return b":".join(b"%d" % number for number in range(1, count + 1))


def six_shapes(now: int) -> dict[bytes, tuple[bytes, str, list[str]]]:
    """Key -> value, file, columns that must be stored."""
    moment = b"%d:" % now
    node, vm = [str(number) for number in range(1, 20)], [str(number) for number in range(1, 18)]
    return {
        b"pve2-node/n1": (b"99:1:" + moment + numbers(12), "pve-node-9.0/n1", node[:12] + ["U"] * 7),
        b"pve-node-9.1/n2": (b"99:1:" + moment + numbers(23), "pve-node-9.0/n2", node),
        b"pve2.3-vm/100": (b"9:web:running:0:" + moment + numbers(10), "pve-vm-9.0/100", vm[:10] + ["U"] * 7),
        b"pve-vm-9.0/101": (b"9:web:running:0:" + moment + numbers(17), "pve-vm-9.0/101", vm),
        b"pve2-storage/n1/local": (moment + b"7:3", "pve-storage-9.0/n1/local", ["7", "3"]),
        b"pve-storage-9.0/n1/a b": (moment + b"8:U", "pve-storage-9.0/n1/a b", ["8", "U"]),
    }


def _wait(event: Event) -> None:
    event.wait(30)


MALICIOUS = (
    b"pve2-node/..", b"pve2-node/../x", b"pve2-node/a/b", b"pve2-node/", b"pve-storage-9.0/../x", b"pve-storage-9.0//x",
    b"pve-storage-9.0/n1/", b"../x", b"/etc/x", b"pve2-node/n\0x", b"pve2-node/n\nQUIT", b"what/ever",
)  # fmt: skip


def files_below(directory: str) -> list[str]:
    return sorted(
        os.path.relpath(os.path.join(place, name), directory)
        for place, directories, names in os.walk(directory)
        for name in (*directories, *names)
    )


class DirectTests(SynchronousTestCase):
    """librrd alone."""

    def setUp(self) -> None:
        needs_rrd()
        self.root = self.mktemp()

    def store(self, key: bytes, value: bytes, now: float) -> None:
        update = parse_update(key, value)
        store_directly(os.fsencode(self.root) + b"/" + update.path, update, now)

    def test_six_shapes(self) -> None:
        now = int(time.time())
        for key, (value, path, columns) in six_shapes(now).items():
            self.store(key, value, now)
            self.assertEqual(last_update(f"{self.root}/{path}"), (now, columns))

    def test_the_file_made(self) -> None:
        now = int(time.time())
        self.store(b"pve2-node/n1", b"9:1:%d:" % now + numbers(12), now)
        info = subprocess.run(
            ["rrdtool", "info", f"{self.root}/pve-node-9.0/n1"], check=True, capture_output=True, text=True
        ).stdout
        for line in (
            "step = 60", 'ds[loadavg].type = "GAUGE"', 'ds[netout].type = "DERIVE"', "ds[cpu].minimal_heartbeat = 120",
            "ds[cpu].min = 0.0000000000e+00", "ds[cpu].max = NaN", 'rra[3].cf = "AVERAGE"',
            "rra[3].pdp_per_row = 10080", "rra[3].rows = 570", 'rra[4].cf = "MAX"', "rra[7].xff = 5.0000000000e-01",
        ):  # fmt: skip
            self.assertIn(line + "\n", info)
        self.assertNotIn("rra[8]", info)

    def test_directories(self) -> None:
        umask = os.umask(0o077)
        self.addCleanup(os.umask, umask)
        path = os.fsencode(f"{self.root}/a/b")
        make_directories(path)
        make_directories(path)
        for made in (path, os.path.dirname(path)):
            self.assertEqual(stat.S_IMODE(os.stat(made).st_mode), 0o750)

    def test_refused(self) -> None:
        now = int(time.time())
        self.store(b"pve2-storage/n1/x", b"%d:1:1" % now, now)
        with self.assertRaises(librrd.RrdError) as caught:
            self.store(b"pve2-storage/n1/x", b"%d:1:1" % now, now)
        self.assertIn("illegal attempt to update", str(caught.exception))
        with self.assertRaises(librrd.RrdError):
            librrd.update(os.fsencode(f"{self.root}/missing"), b"1:2")


class WorkerTests(TestCase):
    def test_the_oldest_jobs_are_forgotten(self) -> None:
        worker = DiskWorker(reactor, limit=3)  # type: ignore[arg-type]  # the module is the reactor
        hold, held = Event(), Event()
        done: list[int] = []
        worker.start()

        def block() -> None:
            held.set()
            hold.wait(10)

        def fail() -> None:
            raise ZeroDivisionError

        worker.submit(block)
        self.assertTrue(held.wait(10))
        for number in range(5):
            worker.submit(partial(done.append, number))
        worker.submit(fail)
        stopped = worker.stop()
        worker.submit(lambda: done.append(99))
        hold.set()

        def check(_: None) -> None:
            self.assertEqual(done, [3, 4])
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

        return stopped.addCallback(check)  # type: ignore[return-value]


class SinkTests(TestCase):
    """The service, with and without rrdcached."""

    def setUp(self) -> None:
        needs_rrd()
        self.directory = tempfile.mkdtemp(prefix="pvecfs-rrd-")  # short: it holds a unix socket
        self.addCleanup(shutil.rmtree, self.directory)
        self.root = f"{self.directory}/db"
        self.socket = f"{self.directory}/s"
        os.mkdir(self.root)
        self.sink = RoundRobinSink(reactor, self.root, self.socket)  # type: ignore[arg-type]  # the module is the reactor
        self.addCleanup(lambda: self.sink.stopService() if self.sink.running else None)

    def start_rrdcached(self, *options: str) -> subprocess.Popen[bytes]:
        base = ["rrdcached", "-g", "-B", "-b", self.root, "-F", "-p", f"{self.directory}/pid"]
        daemon = subprocess.Popen(
            [*base, *options, "-l", f"unix:{self.socket}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.addCleanup(self.stop_rrdcached, daemon)
        return daemon

    def stop_rrdcached(self, daemon: subprocess.Popen[bytes]) -> None:
        daemon.kill()
        daemon.wait()

    @inlineCallbacks
    def until(self, condition: Callable[[], bool], what: str) -> Steps:
        """Fires when C{condition} holds; other processes work on it."""
        for _ in range(1000):
            if condition():
                return
            yield deferLater(reactor, 0.01)
        self.fail(f"in vain: {what}")

    @inlineCallbacks
    def until_connected(self) -> Steps:
        yield self.until(lambda: os.path.exists(self.socket), "the socket")
        self.sink.startService()
        yield self.until(lambda: self.sink._protocol is not None, "the connection")

    def stored(self, path: str, *options: str) -> tuple[int, list[str]]:
        try:
            return last_update(f"{self.root}/{path}", *options)
        except (subprocess.CalledProcessError, IndexError, ValueError):
            return 0, []

    def test_interface(self) -> None:
        self.assertTrue(verifyObject(IRoundRobinSink, self.sink))

    @inlineCallbacks
    def test_rrdcached(self) -> Steps:
        """The files are made and updated through rrdcached: it alone knows the values until they are flushed."""
        self.start_rrdcached()
        yield self.until_connected()
        now = int(time.time())
        shapes = six_shapes(now)
        for key, (value, _path, _columns) in shapes.items():
            self.sink.update(key, value)
        flush = ["--daemon", f"unix:{self.socket}"]

        def everything_is_stored() -> bool:
            return all(self.stored(path, *flush) == (now, columns) for _value, path, columns in shapes.values())

        yield self.until(everything_is_stored, "the six updates")
        for name in ("pve-node-9.0", "pve-storage-9.0", "pve-storage-9.0/n1"):
            self.assertEqual(stat.S_IMODE(os.stat(f"{self.root}/{name}").st_mode), 0o750)
        self.sink.update(b"pve2-storage/n1/local", b"%d:9:9" % (now + 1))
        yield self.until(
            lambda: self.stored("pve-storage-9.0/n1/local", *flush) == (now + 1, ["9", "9"]), "the second update"
        )

    @inlineCallbacks
    def test_many_new_files(self) -> Steps:
        """More than may wait for an answer: those that wait here go on when files were made."""
        self.start_rrdcached()
        yield self.until_connected()
        now = int(time.time())
        for wave in range(6):
            for number in range(150):
                self.sink.update(b"pve2-storage/n1/%d.%d" % (wave, number), b"%d:1:2" % now)
            yield deferLater(reactor, 0.004 * wave)
        yield self.until(lambda: len(os.listdir(f"{self.root}/pve-storage-9.0/n1")) == 900, "all of them")

    @inlineCallbacks
    def test_rrdcached_that_may_not_create(self) -> Steps:
        """Then librrd makes the file, and rrdcached updates it from then on."""
        self.start_rrdcached("-P", "UPDATE,FLUSH")
        yield self.until_connected()
        now = int(time.time())
        self.sink.update(b"pve2-storage/n1/x", b"%d:1:2" % now)
        yield self.until(lambda: self.stored("pve-storage-9.0/n1/x") == (now, ["1", "2"]), "the file")
        self.sink.update(b"pve2-storage/n1/x", b"%d:3:4" % (now + 1))
        flush = ["--daemon", f"unix:{self.socket}"]
        yield self.until(lambda: self.stored("pve-storage-9.0/n1/x", *flush) == (now + 1, ["3", "4"]), "the update")

    @inlineCallbacks
    def test_librrd(self) -> Steps:
        self.sink.startService()
        now = int(time.time())
        shapes = six_shapes(now)
        for key, (value, _path, _columns) in shapes.items():
            self.sink.update(key, value)
        yield self.sink.stopService()  # after what was handed over
        for _value, path, columns in shapes.values():
            self.assertEqual(self.stored(path), (now, columns))

    @inlineCallbacks
    def test_no_rrdcached_is_mentioned_once(self) -> Steps:
        """However often it is looked for; and that it was found."""
        tries: list[int] = []

        def at_once(tried: int) -> float:
            tries.append(tried)
            return 0.01

        self.patch(sink, "backoffPolicy", lambda maxDelay: at_once)
        self.sink = RoundRobinSink(reactor, self.root, self.socket)  # type: ignore[arg-type]  # as above
        with capturedLogs() as events:
            self.sink.startService()
            yield self.until(lambda: len(tries) > 2, "more attempts")
            self.start_rrdcached()
            yield self.until(lambda: self.sink._protocol is not None, "the connection")
            yield self.sink.stopService()
        absent, found = map(formatEvent, events)
        self.assertIn(f"no rrdcached at {self.socket}", absent)
        self.assertEqual(found, f"connected to rrdcached at {self.socket}")

    @inlineCallbacks
    def test_stopped_before_it_has_looked(self) -> Steps:
        with capturedLogs() as events:
            self.sink.startService()
            yield self.sink.stopService()
        self.assertEqual(events, [])

    @inlineCallbacks
    def test_rrdcached_dies_and_comes_back(self) -> Steps:
        daemon = self.start_rrdcached()
        yield self.until_connected()
        now = int(time.time())
        self.stop_rrdcached(daemon)
        os.unlink(self.socket)
        # Sent to a dead daemon, or stored directly: it is stored.
        self.sink.update(b"pve2-storage/n1/x", b"%d:1:2" % now)
        yield self.until(lambda: self.stored("pve-storage-9.0/n1/x") == (now, ["1", "2"]), "the direct update")
        self.assertIs(self.sink._protocol, None)
        self.start_rrdcached()
        yield self.until(lambda: self.sink._protocol is not None, "the new connection")

    @inlineCallbacks
    def test_rrdcached_that_is_lost_before_it_answers(self) -> Steps:
        """What it was sent goes to librrd before what waited here: librrd refuses whatever is older than the last."""
        stored: list[bytes] = []
        self.patch(sink, "store_directly", lambda path, update, now: stored.append(update.line))
        silent: list[Protocol] = []

        class Silent(Protocol):
            def connectionMade(self) -> None:
                silent.append(self)

        listening = reactor.listenUNIX(self.socket, Factory.forProtocol(Silent))  # type: ignore[attr-defined]  # the module is the reactor
        self.addCleanup(listening.stopListening)
        yield self.until_connected()
        yield self.until(lambda: bool(silent), "the server's side")
        lines = [b"%d:1:2" % moment for moment in range(1000, 1000 + MAX_WAITING + 50)]
        for line in lines:
            self.sink.update(b"pve2-storage/n1/x", line)
        self.assertEqual(len(self.sink._queue), 50)
        yield listening.stopListening()
        silent[0].transport.abortConnection()  # type: ignore[union-attr]  # it is connected
        yield self.until(lambda: self.sink._protocol is None, "the loss")
        yield self.sink.stopService()
        self.assertEqual(stored, lines)

    @inlineCallbacks
    def test_malicious_keys_write_nothing(self) -> Steps:
        self.start_rrdcached()
        yield self.until_connected()
        before = files_below(self.directory)
        now = int(time.time())
        for key in MALICIOUS:
            self.sink.update(key, b"1:1:%d:" % now + numbers(12))
            self.sink.update(key, b"%d:1:2" % now)
        self.sink.update(b"pve2-storage/n1/last", b"%d:1:2" % now)
        flush = ["--daemon", f"unix:{self.socket}"]
        yield self.until(lambda: self.stored("pve-storage-9.0/n1/last", *flush)[0] == now, "the good one")
        new = set(files_below(self.directory)) - set(before)
        self.assertEqual(new, {"db/pve-storage-9.0", "db/pve-storage-9.0/n1", "db/pve-storage-9.0/n1/last"})

    @inlineCallbacks
    def test_a_disk_that_fails_is_mentioned_once(self) -> Steps:
        os.rmdir(self.root)
        with open(self.root, "wb"):
            pass  # a file where the directory should be
        with capturedLogs() as events:
            self.sink.startService()
            for number in range(1, 5):
                self.sink.update(b"pve2-storage/n1/x", b"%d:1:2" % number)
            yield self.sink.stopService()
        self.assertEqual(len([event for event in events if "reason" in event]), 1)

    @inlineCallbacks
    def test_stop_does_not_wait_for_a_disk_that_hangs(self) -> Steps:
        hold = Event()
        self.addCleanup(hold.set)
        self.sink.startService()
        self.sink._worker.submit(lambda: _wait(hold))
        started = time.monotonic()
        yield self.sink.stopService()
        self.assertLess(time.monotonic() - started, 4)
        hold.set()
        yield self.until(lambda: not any(thread.name == "rrd" for thread in threads()), "the thread's end")
