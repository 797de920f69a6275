"""libqb's poll handlers, driven as libqb drives them, on a reactor in memory."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from errno import EEXIST, EIO, ENOENT, ENOTSOCK
from select import POLLHUP, POLLIN, POLLOUT, POLLPRI

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from pvecfs.ipc import libqb, poll
from pvecfs.ipc.poll import ACCEPT_PAUSE, GREETING_SECONDS, Descriptor, GreetingDescriptor, ReactorPoll

MAX_GREETINGS = 5
LISTENING = 3
GREETING = 4

Called = Callable[[int, int, int], int]


def _fail(fd: int) -> None:
    raise OSError(ENOTSOCK, os.strerror(ENOTSOCK))


class ReactorPollTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.poll = ReactorPoll(self.reactor, MAX_GREETINGS)
        self.kept: list[object] = []
        self.calls: list[tuple[int, int, int | None]] = []
        self.in_line: list[int] = []
        self.patch(poll, "take_urgent_bytes_in_line", self.in_line.append)  # the descriptors here are invented

    def function(self, answer: Called | int = 0) -> int:
        """The address of a function that libqb could hand over; it records its calls."""

        def dispatch(fd: int, events: int, data: int | None) -> int:
            self.calls.append((fd, events, data))
            return answer if isinstance(answer, int) else answer(fd, events, data or 0)

        return self.address(libqb.SlowDispatch(dispatch))

    def address(self, function: object) -> int:
        self.kept.append(function)
        return ctypes.cast(function, ctypes.c_void_p).value or 0  # type: ignore[arg-type]  # any function pointer may be cast

    def add(self, fd: int, answer: Called | int = 0, events: int = POLLIN | POLLPRI, data: int = 7) -> int:
        result = self.poll.handlers.dispatch_add(libqb.PRIORITY_MEDIUM, fd, events, data, self.function(answer))
        assert isinstance(result, int)
        return result

    def reader(self, fd: int) -> Descriptor:
        found = next(reader for reader in self.reactor.readers if reader.fileno() == fd)
        assert isinstance(found, Descriptor)
        return found

    def listen(self) -> Descriptor:
        """A listening socket; each dispatch of it brings one greeting, numbered from L{GREETING} on."""
        numbers = iter(range(GREETING, 10000))
        self.add(LISTENING, lambda _, events, __: self.add(next(numbers), self.greeted) if events & POLLIN else -1)
        return self.reader(LISTENING)

    def greeted(self, fd: int, events: int, data: int) -> int:
        """As libqb does: the descriptor is taken back, then added anew as a connection's, and 1 returned."""
        self.poll.handlers.dispatch_del(fd)
        if events & POLLIN:
            self.add(fd, data=8)
        return 1

    def test_interface(self) -> None:
        self.add(LISTENING)
        verifyObject(IReadWriteDescriptor, self.reader(LISTENING))

    def test_ready(self) -> None:
        """What is ready is dispatched, with its data."""
        self.add(5)
        descriptor = self.reader(5)
        descriptor.doRead()
        descriptor.doWrite()
        self.assertEqual(self.calls, [(5, POLLIN, 7), (5, POLLOUT, 7)])
        self.assertEqual(len(self.poll), 1)

    def test_negative_removes(self) -> None:
        self.add(5, -1)
        self.reader(5).doRead()
        self.assertEqual((len(self.poll), self.reactor.readers), (0, set()))

    def test_positive_is_not_called_again(self) -> None:
        self.add(5, 1)
        self.reader(5).doRead()
        self.assertEqual(len(self.calls), 1)
        self.assertEqual(len(self.poll), 1)

    def test_hang_up(self) -> None:
        """libqb is told, and the descriptor is forgotten, though libqb has said nothing."""
        self.add(5)
        descriptor = self.reader(5)
        descriptor.connectionLost(Failure(ConnectionDone()))
        descriptor.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.calls, [(5, POLLHUP, 7)])
        self.assertEqual((len(self.poll), descriptor.fileno()), (0, -1))

    def test_modified(self) -> None:
        """Events, data and function can be changed."""
        self.add(5)
        changed = self.function()
        events = POLLIN | POLLOUT
        self.assertEqual(self.poll.handlers.dispatch_mod(0, 5, events, 9, changed), 0)
        self.assertEqual([writer.fileno() for writer in self.reactor.writers], [5])
        self.reader(5).doWrite()
        self.assertEqual(self.calls, [(5, POLLOUT, 9)])
        self.poll.handlers.dispatch_mod(0, 5, POLLOUT, 9, changed)
        self.assertEqual(self.reactor.readers, set())

    def test_unknown(self) -> None:
        handlers = self.poll.handlers
        self.assertEqual(handlers.dispatch_mod(0, 5, POLLIN, None, self.function()), -ENOENT)
        self.assertEqual(handlers.dispatch_del(5), -ENOENT)
        self.add(5)
        self.assertEqual(self.add(5), -EEXIST)

    def test_greeting_becomes_connection(self) -> None:
        self.listen().doRead()
        self.assertEqual(self.in_line, [GREETING])
        greeting = self.reader(GREETING)
        self.assertIsInstance(greeting, GreetingDescriptor)
        greeting.doRead()
        connection = self.reader(GREETING)
        self.assertIsNot(connection, greeting)
        self.assertNotIsInstance(connection, GreetingDescriptor)
        self.assertEqual((greeting.fileno(), len(self.poll)), (-1, 2))
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_greeting_is_no_socket(self) -> None:
        """It is refused: what it sends out of band could stop everything."""
        self.patch(poll, "take_urgent_bytes_in_line", _fail)
        results: list[int] = []

        def accept(fd: int, events: int, data: int) -> int:
            results.append(self.add(GREETING))
            return 0

        self.add(LISTENING, accept)
        self.reader(LISTENING).doRead()
        self.assertEqual((results, len(self.poll)), ([-EIO], 1))
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)

    def test_greeting_missed(self) -> None:
        """Who says nothing is hung up on."""
        self.listen().doRead()
        self.reactor.advance(GREETING_SECONDS)
        self.assertEqual(self.calls[-1], (GREETING, POLLHUP, 7))
        self.assertEqual(len(self.poll), 1)

    def test_too_many_greetings(self) -> None:
        """The oldest makes room."""
        listening = self.listen()
        for _ in range(MAX_GREETINGS + 3):
            listening.doRead()
        self.assertEqual(len(self.poll), MAX_GREETINGS + 1)
        hung_up = [fd for fd, events, _ in self.calls if events == POLLHUP]
        self.assertEqual(hung_up, [GREETING, GREETING + 1, GREETING + 2])

    def test_nothing_accepted(self) -> None:
        """A listening socket of which nothing can be accepted is left alone for a while, again and again."""
        free = False
        self.add(LISTENING, lambda _, events, __: self.add(GREETING, self.greeted) if free else 0)
        for _ in range(3):
            self.reader(LISTENING).doRead()
            self.assertEqual(self.reactor.readers, set())
            self.reactor.advance(ACCEPT_PAUSE)
        free = True
        listening = self.reader(LISTENING)
        listening.doRead()
        self.assertIn(listening, self.reactor.readers)
        self.reader(GREETING).doRead()
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_closed_while_nothing_is_accepted(self) -> None:
        self.add(LISTENING)
        self.reader(LISTENING).doRead()
        self.poll.close()
        self.assertEqual((len(self.poll), self.reactor.getDelayedCalls()), (0, []))

    def test_jobs(self) -> None:
        """Urgent jobs first; a job that a job adds, however urgent, runs in the next turn."""
        ran: list[int | None] = []

        def run(data: int | None) -> None:
            ran.append(data)
            if data == 1:
                self.poll.handlers.job_add(libqb.PRIORITY_HIGH, 4, job)

        job = self.address(ctypes.CFUNCTYPE(None, ctypes.c_void_p)(run))
        for priority, data in ((libqb.PRIORITY_LOW, 1), (libqb.PRIORITY_HIGH, 2), (libqb.PRIORITY_MEDIUM, 3)):
            self.assertEqual(self.poll.handlers.job_add(priority, data, job), 0)
        self.assertEqual(ran, [])
        self.reactor.advance(0)
        self.assertEqual(ran, [2, 3, 1, 4])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_close(self) -> None:
        """Jobs are run and descriptors hung up on; nothing waits any more, a job that comes back for ever neither."""
        ran: list[int | None] = []

        def run(data: int | None) -> None:
            ran.append(data)
            self.poll.handlers.job_add(libqb.PRIORITY_LOW, 1, job)

        job = self.address(ctypes.CFUNCTYPE(None, ctypes.c_void_p)(run))
        self.listen().doRead()
        self.poll.handlers.job_add(libqb.PRIORITY_LOW, 1, job)
        self.poll.close()
        self.assertEqual((len(self.poll), self.reactor.readers, self.reactor.getDelayedCalls()), (0, set(), []))
        self.assertIn((GREETING, POLLHUP, 7), self.calls)
        self.assertTrue(ran)

    def test_no_exception_reaches_libqb(self) -> None:
        """A reactor that refuses is an error code and a line in the log."""

        def refuse(_: object) -> None:
            raise ValueError("refused")

        self.patch(self.reactor, "addReader", refuse)
        self.assertEqual(self.add(5), -EIO)
        self.assertEqual(len(self.poll), 0)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
