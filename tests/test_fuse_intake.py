"""Who takes the kernel's requests: the thread, or the reactor while changes come. Without a mount."""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Callable
from errno import EAGAIN
from threading import Thread
from typing import Any

from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from pvecfs.events import BRIEFLY
from pvecfs.fuse import intake, lowlevel
from pvecfs.fuse.intake import AT_ONCE, QUIET, SERIES, UNDER_WAY, Intake


class MemoryReactor(Clock):
    """A clock, the readers, and the calls from threads, made by L{run}."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: set[object] = set()
        self.from_threads: deque[Callable[[], object]] = deque()
        self._poller: select.epoll | None = None

    def callFromThread(self, callable: Callable[..., object], *arguments: object) -> None:
        self.from_threads.append(lambda: callable(*arguments))

    def addReader(self, reader: object) -> None:
        self.readers.add(reader)

    def removeReader(self, reader: object) -> None:
        self.readers.discard(reader)

    def run(self) -> None:
        while self.from_threads:
            self.from_threads.popleft()()


class IntakeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.pipe = os.pipe()
        self.addCleanup(os.close, self.pipe[0])
        self.addCleanup(os.close, self.pipe[1])
        self.waiting = 0  # requests
        self.answered: list[int] = []
        self.end = -EAGAIN
        self.patch(lowlevel, "session_fd", lambda session: self.pipe[0])
        self.patch(lowlevel, "session_receive", self.receive)
        self.patch(lowlevel, "session_process", lambda session, buffer: self.answered.append(session))
        self.reactor = MemoryReactor()
        self.bursts: list[bool] = []
        self.series: list[int] = []  # how many changes had come
        self.under_way = 0
        self.intake = self.new_intake()
        self.submitted: list[object] = []

    def new_intake(self) -> Intake:
        return Intake(
            self.reactor, 7, lambda: self.under_way, self.bursts.append, lambda: self.series.append(len(self.submitted))
        )

    def receive(self, session: int, buffer: Any) -> int:
        if not self.waiting:
            return self.end
        self.waiting -= 1
        return 100

    def change_on_thread(self, name: str) -> None:
        """A change comes from another thread than the reactor's."""
        thread = Thread(target=self.intake.submit, args=(self.submitted.append, name))
        thread.start()
        thread.join()

    def test_interface(self) -> None:
        verifyObject(IReadDescriptor, self.intake)
        self.assertEqual(self.intake.fileno(), self.pipe[0])

    def test_first_change_begins_a_burst(self) -> None:
        self.change_on_thread("a")
        self.assertEqual(self.submitted, [], "changes are brought in on the reactor thread")
        self.reactor.run()
        self.assertEqual(self.submitted, ["a"])
        self.assertEqual(self.reactor.readers, {self.intake})
        self.assertEqual(self.bursts, [True])

    def test_changes_that_the_reactor_takes_come_in_at_once(self) -> None:
        self.change_on_thread("a")
        self.reactor.run()
        self.intake.submit(self.submitted.append, "b")
        self.assertEqual(self.submitted, ["a", "b"])
        self.assertEqual(len(self.reactor.from_threads), 0)

    def test_quiet_ends_it(self) -> None:
        self.change_on_thread("a")
        self.reactor.run()
        for _ in range(3):
            self.intake.submit(self.submitted.append, "b")
            self.reactor.advance(QUIET)
            self.assertEqual(self.reactor.readers, {self.intake})
        self.reactor.advance(QUIET)
        self.assertEqual(self.reactor.readers, set())
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(self.bursts, [True, False])
        self.change_on_thread("c")
        self.reactor.run()
        self.assertEqual(self.reactor.readers, {self.intake}, "the next change begins another")
        self.intake.rest()
        self.intake.rest()
        self.assertEqual(self.bursts, [True, False, True, False])

    def test_under_way(self) -> None:
        """A change that waits for its answer keeps the burst up, but not for ever."""
        self.change_on_thread("a")
        self.reactor.run()
        self.under_way = 1
        self.reactor.pump([QUIET] * 4)
        self.assertEqual(self.bursts, [True])
        self.under_way = 0
        self.reactor.advance(QUIET)
        self.assertEqual(self.bursts, [True, False])
        self.change_on_thread("b")
        self.reactor.run()
        self.under_way = 1
        self.reactor.pump([QUIET] * (round(UNDER_WAY / QUIET) + 1))
        self.assertEqual(self.bursts, [True, False, True, False])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_series(self) -> None:
        """It is told of a series, again and again; not of a few changes now and then."""

        def changes(count: int) -> None:
            for _ in range(count):
                self.intake.submit(self.submitted.append, "b")

        self.change_on_thread("a")
        self.reactor.run()
        changes(SERIES - 2)
        self.reactor.advance(QUIET)
        changes(SERIES - 1)
        self.assertEqual(self.series, [])
        changes(5)
        self.assertEqual(self.series, [2 * SERIES - 2])
        self.reactor.advance(QUIET)
        changes(SERIES * 3)
        self.assertEqual(len(self.series), 2)

    def test_one_at_a_time(self) -> None:
        """A reactor whose events we cannot wait for comes again for the next one."""
        self.waiting = 2
        self.intake.doRead()
        self.assertEqual(self.answered, [7])
        self.intake.doRead()
        self.assertEqual(self.answered, [7, 7])

    def test_the_next_request_is_waited_for(self) -> None:
        """As long as nothing else happens."""
        self.reactor._poller = poller = select.epoll()
        self.addCleanup(poller.close)
        poller.register(self.pipe[0], select.EPOLLIN)
        other, others_end = os.pipe()
        self.addCleanup(os.close, other)
        self.addCleanup(os.close, others_end)
        poller.register(other, select.EPOLLIN)
        self.intake = self.new_intake()
        to_come = [b"x"] * (AT_ONCE + 3)

        def process(session: int, buffer: Any) -> None:
            self.answered.append(session)
            os.read(self.pipe[0], 1)
            if to_come:
                os.write(self.pipe[1], to_come.pop())
                self.waiting += 1

        def answered() -> int:
            count = len(self.answered)
            self.intake.doRead()
            return len(self.answered) - count

        self.patch(lowlevel, "session_process", process)
        os.write(self.pipe[1], b"x")
        self.waiting = 1
        self.assertEqual(answered(), AT_ONCE, "others have their turn")
        os.write(others_end, b"x")
        self.assertEqual(answered(), 1, "something else happens")
        os.read(other, 1)
        self.assertEqual(answered(), 3, "no more came")
        self.assertEqual(to_come, [])
        to_come += [b"x"] * AT_ONCE
        self.patch(intake, "monotonic", iter((0.0, 0.0, BRIEFLY)).__next__)
        os.write(self.pipe[1], b"x")
        self.waiting = 1
        self.assertEqual(answered(), 2, "timers have their turn")

    def test_thread_answers_what_is_left_lying(self) -> None:
        """The reactor took over and then is kept by something: requests are answered all the same."""
        self.change_on_thread("a")  # from now on the thread rests, though the reactor does nothing
        self.waiting = 2
        answered = self.answered

        def process(session: int, buffer: Any) -> None:
            answered.append(session)
            if not self.waiting:
                self.end = 0  # the session is over

        self.patch(lowlevel, "session_process", process)
        thread = Thread(target=self.intake.run, daemon=True)
        thread.start()
        thread.join(10)
        self.assertFalse(thread.is_alive())
        self.assertEqual(answered, [7, 7])

    def test_end_of_the_session(self) -> None:
        self.change_on_thread("a")
        self.reactor.run()
        self.end = 0
        self.intake.doRead()
        self.assertEqual(self.reactor.readers, set())
        self.intake.run()  # ends at once
        self.change_on_thread("b")
        self.reactor.run()
        self.assertEqual(self.submitted, ["a", "b"], "whoever submitted is answered")
        self.assertEqual(self.reactor.readers, set())
        self.intake.free()

    def test_lost_connection(self) -> None:
        self.change_on_thread("a")
        self.reactor.run()
        self.intake.connectionLost(None)  # type: ignore[arg-type]  # the reason does not matter
        self.assertEqual(self.reactor.readers, set())
