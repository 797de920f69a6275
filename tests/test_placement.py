"""Threads keep to their processors while changes come, and not longer."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress as ignoring
from errno import EINVAL, ESRCH

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pvecfs import placement
from pvecfs.placement import REST, WAITED, WATCH, Linux, ThreadPlacement, processors_of
from tests.cluster_support import eventually
from tests.daemons import DaemonProcess, temporary_base
from tests.needs import needs_fuse, needs_processors

REACTOR, STORE, LATER = 10, 11, 12


class SystemDouble:
    """Threads by id, and where they may run."""

    def __init__(self, processors: int = 8) -> None:
        self.may = {thread: set(range(processors)) for thread in (REACTOR, STORE)}
        self.at = {REACTOR: 2, STORE: 5}
        self.seconds = dict.fromkeys(self.may, 0.0)
        self.near: set[int] = set()
        self.refusals: set[int] = set()

    def threads(self) -> set[int]:
        return set(self.may)

    def affinity(self, thread: int) -> set[int]:
        if thread not in self.may:
            raise OSError(ESRCH, "no such thread")
        return set(self.may[thread])

    def set_affinity(self, thread: int, processors: set[int]) -> None:
        if thread in self.refusals:
            raise OSError(EINVAL, "refused")
        self.may[thread] = set(processors)

    def processor(self, thread: int) -> int:
        return self.at[thread]

    def waited(self, thread: int) -> float:
        return self.seconds[thread]

    def neighbours(self, processor: int) -> set[int]:
        return self.near


class ThreadPlacementTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.patch(placement, "get_native_id", lambda: REACTOR)
        self.clock = Clock()
        self.clock.advance(100)
        self.other: int | None = STORE
        self.begin(SystemDouble())

    def begin(self, system: SystemDouble) -> None:
        self.system = system
        self.before = {thread: set(may) for thread, may in system.may.items()}
        self.placement = ThreadPlacement(self.clock, lambda: self.other, system)

    def kept(self) -> tuple[set[int], set[int]]:
        return self.system.may[REACTOR], self.system.may[STORE]

    def series(self) -> None:
        self.placement.want(True)
        self.placement.begin()
        self.clock.advance(0)

    def test_where_they_are(self) -> None:
        self.placement.want(True)
        self.clock.advance(1)
        self.assertEqual(self.system.may, self.before, "a single change")
        self.placement.begin()
        self.assertEqual(self.system.may, self.before, "what is at hand goes first")
        self.clock.advance(0)
        self.assertEqual(self.kept(), ({2}, {5}))
        self.placement.begin()
        self.clock.advance(0)
        self.assertEqual(self.kept(), ({2}, {5}))
        self.placement.want(False)
        self.assertEqual(self.system.may, self.before)
        self.clock.advance(10)
        self.assertEqual((self.system.may, self.clock.getDelayedCalls()), (self.before, []))

    def test_over_at_once(self) -> None:
        for _ in range(2):
            self.placement.want(True)
            self.placement.begin()
            self.placement.want(False)
            self.clock.advance(1)
            self.assertEqual(self.system.may, self.before)
        self.series()
        self.assertEqual(self.kept(), ({2}, {5}))

    def test_apart(self) -> None:
        for at, near, place in (
            (2, set(), 3),
            (7, set(), 0),
            (5, {4, 5}, 4),
            (5, {2, 5}, 2),
            (5, {5}, 6),
        ):
            self.begin(SystemDouble())
            self.system.at = {REACTOR: at, STORE: at}
            self.system.near = near
            self.series()
            self.assertEqual(self.kept(), ({at}, {place}), (at, near))

    def test_what_others_have_decided(self) -> None:
        """Who gave them processors has them there, and then back."""
        self.system.may = {REACTOR: {2, 3}, STORE: {2, 6, 7}}
        self.before = {REACTOR: {2, 3}, STORE: {2, 6, 7}}
        self.series()
        self.assertEqual(self.kept(), ({2}, {6}))
        self.system.may[STORE] = {1, 2}
        self.placement.want(False)
        self.assertEqual(self.kept(), ({2, 3}, {1, 2}), "decided meanwhile")

    def test_nothing_to_choose(self) -> None:
        for may in ({REACTOR: {2}, STORE: {2}}, {REACTOR: {1}, STORE: {1, 2}}):
            self.begin(SystemDouble())
            self.system.may = {thread: set(processors) for thread, processors in may.items()}
            self.series()
            self.clock.advance(1)
            self.placement.want(False)
            self.assertEqual(self.system.may, may)

    def test_no_other_thread(self) -> None:
        self.other = None
        self.series()
        self.placement.want(False)
        self.assertEqual(self.system.may, self.before)

    def test_threads_that_begin_meanwhile(self) -> None:
        """They inherit their place."""
        self.series()
        self.system.may[LATER] = {5}
        self.system.may[LATER + 1] = {4}
        self.placement.want(False)
        self.assertEqual(self.system.may, {**self.before, LATER: self.before[STORE], LATER + 1: {4}})

    def test_who_was_there_already(self) -> None:
        self.system.may[LATER] = {5}
        self.series()
        self.placement.want(False)
        self.assertEqual(self.system.may, {**self.before, LATER: {5}})

    def test_waiting(self) -> None:
        """Who has to wait is left alone, for a while."""
        self.series()
        for _ in range(5):
            self.system.seconds[STORE] += WATCH * WAITED * 0.9
            self.system.seconds[REACTOR] += WATCH * WAITED * 0.5
            self.clock.advance(WATCH)
            self.assertEqual(self.kept(), ({2}, {5}))
        self.system.seconds[STORE] += WATCH * WAITED * 1.1
        self.clock.advance(WATCH)
        self.assertEqual(self.system.may, self.before)
        self.placement.want(False)
        self.series()
        self.assertEqual(self.system.may, self.before, "another series, too soon")
        self.clock.advance(REST)
        self.assertEqual(self.system.may, self.before, "it may be over, for all we know")
        self.placement.begin()
        self.clock.advance(0)
        self.assertEqual(self.kept(), ({2}, {5}), "it has gone on")

    def test_waiting_is_over(self) -> None:
        self.series()
        self.system.seconds[REACTOR] += WATCH
        self.clock.advance(WATCH)
        self.assertEqual(self.system.may, self.before)
        self.clock.advance(REST)
        self.series()
        self.assertEqual(self.kept(), ({2}, {5}))

    def test_refused(self) -> None:
        self.system.refusals = {STORE}
        self.series()
        self.assertEqual(self.system.may, self.before)
        self.system.refusals = set()
        self.placement.want(False)
        self.series()
        self.assertEqual(self.system.may, self.before, "it was said once")

    def test_a_thread_that_has_ended(self) -> None:
        for moment in ("look", "release"):
            self.begin(SystemDouble())
            self.series()
            del self.system.may[STORE]
            if moment == "look":
                self.system.waited = Linux().waited  # type: ignore[method-assign]  # there is no such thread
                self.clock.advance(WATCH)
            self.placement.want(False)
            self.assertEqual(self.system.may, {REACTOR: self.before[REACTOR]})

    def test_stopped(self) -> None:
        self.series()
        self.placement.stop()
        self.assertEqual(self.system.may, self.before)
        self.series()
        self.assertEqual(self.system.may, self.before)


class LinuxTests(SynchronousTestCase):
    def test_calls(self) -> None:
        system, thread = Linux(), threading.get_native_id()
        self.assertIn(thread, system.threads())
        self.assertIn(system.processor(thread), system.affinity(thread))
        self.assertGreaterEqual(system.waited(thread), 0)
        own = system.processor(thread)
        self.assertIn(own, system.neighbours(own) or {own})
        self.assertEqual(system.neighbours(1 << 20), set())
        before = system.affinity(thread)
        system.set_affinity(thread, {own})
        self.assertEqual(system.affinity(thread), {own})
        system.set_affinity(thread, before)

    def test_lists(self) -> None:
        for text, numbers in (("0\n", {0}), ("0-3,8", {0, 1, 2, 3, 8}), ("5,7-8", {5, 7, 8}), ("\n", set())):
            self.assertEqual(processors_of(text), numbers)


@needs_processors()
@needs_fuse()
class DaemonTests(SynchronousTestCase):
    """The daemon in local mode."""

    def started(self, *options: str) -> DaemonProcess:
        daemon = DaemonProcess(temporary_base(self), "--local", *options)
        self.addCleanup(daemon.clean)
        daemon.start()
        return daemon

    def kept(self, daemon: DaemonProcess) -> int:
        """How many threads keep to one processor."""
        count = 0
        for thread in os.listdir(f"/proc/{daemon.pid}/task"):
            with ignoring(ProcessLookupError):  # ended meanwhile
                count += len(os.sched_getaffinity(int(thread))) == 1
        return count

    def change(self, daemon: DaemonProcess, seconds: float) -> int:
        """Make changes until two threads keep in place, for C{seconds} at most. @return: how many do."""
        end = time.monotonic() + seconds
        kept = 0
        while kept != 2 and time.monotonic() < end:
            for _ in range(50):
                (daemon.mount / "file").write_bytes(b"content")
            kept = self.kept(daemon)
        return kept

    def test_while_changes_come(self) -> None:
        daemon = self.started()
        self.assertEqual(self.kept(daemon), 0)
        for _ in range(2):
            self.assertEqual(self.change(daemon, 40), 2)
            eventually(lambda: self.kept(daemon) == 0, 10, "free again")

    def test_option(self) -> None:
        daemon = self.started("--no-cpu-affinity")
        self.assertEqual(self.change(daemon, 0.5), 0)
