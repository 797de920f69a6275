"""Taking requests from the kernel: on a thread of our own, and on the reactor's while changes come one after another.

A thread that sleeps until a request comes answers soonest what is only read. A change, however, goes from there to the
reactor, to the store's thread and back to its caller: each step wakes up a thread, all of which compete for the
interpreter. So the first change of a burst makes the reactor take the requests itself. The thread rests meanwhile, but
for looking whether the reactor, kept by something long, leaves requests lying: reads never wait for it longer than
L{PATIENCE}. After L{QUIET} seconds without a change, if none is under way, the thread goes on as before.
"""

from __future__ import annotations

import ctypes
import os
import select
from collections.abc import Callable
from errno import EAGAIN, EINTR
from threading import Event, get_ident
from time import monotonic
from typing import Protocol

from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from pvecfs.events import BRIEFLY, Events
from pvecfs.fuse import lowlevel

QUIET = 0.005
"""Seconds without a change that end a burst. A program's next change comes within a tenth of that."""

SERIES = 8
"""Changes within L{QUIET} that are a series: more than a program makes for one thing."""

UNDER_WAY = 0.1
"""Seconds without a change that end a burst though requests still wait for their answers: they may do so for long."""

PATIENCE = 0.05
"""Seconds after which the thread answers what the reactor has left lying."""

AT_ONCE = 8
"""Requests that are taken before others have their turn."""


class IntakeReactor(Protocol):
    """What is wanted of a reactor."""

    def callFromThread(self, callable: Callable[..., object], *args: object) -> None: ...

    def callLater(self, delay: float, callable: Callable[..., object]) -> object: ...

    def addReader(self, reader: IReadDescriptor) -> object: ...

    def removeReader(self, reader: IReadDescriptor) -> object: ...


@implementer(IReadDescriptor)
class Intake:
    """The requests of one session.

    @param session: mounted. Its descriptor becomes non-blocking, since two threads may see the same request coming.
    @param waiting: how many requests wait for their answers.
    @param burst: told on the reactor thread that a burst of changes begins (C{True}) or is over.
    @param series: told on the reactor thread, as long as it lasts, that the burst is a series.
    @ivar failure: errno of the read that ended the session, 0 for its orderly end.
    """

    def __init__(
        self,
        reactor: IntakeReactor,
        session: int,
        waiting: Callable[[], int],
        burst: Callable[[bool], None],
        series: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._session = session
        self._waiting = waiting
        self._burst = burst
        self._series = series
        self._fd: int = lowlevel.session_fd(session)
        self._over = False
        self.failure = 0
        self._thread_takes = Event()
        self._thread_takes.set()
        # Written on the reactor thread only
        self._reactor_thread = 0
        self._reactor_takes = False
        self._changes = 0
        self._quiet = 0.0  # seconds without a change
        self._buffer = lowlevel.Buffer()
        self._events = Events(reactor)

    def submit(self, call: Callable[..., object], *arguments: object) -> None:
        """Have the reactor thread make C{call}, which brings in a change: now, if this is that thread. Any thread."""
        if get_ident() == self._reactor_thread:
            self._changes += 1
            if self._changes == SERIES:
                self._series()
            call(*arguments)
        else:
            self._thread_takes.clear()
            self._reactor.callFromThread(self._submitted, call, arguments)

    # The thread

    def run(self) -> None:
        """Answer the kernel until the session is over. On a thread of its own."""
        os.set_blocking(self._fd, False)
        request_came = select.poll()
        request_came.register(self._fd, select.POLLIN)
        buffer = lowlevel.Buffer()
        takes = self._thread_takes
        while not self._over:
            if takes.is_set():
                request_came.poll()
                self._take(buffer, 1)
            elif not takes.wait(PATIENCE):
                self._take(buffer, AT_ONCE)
        lowlevel.free(buffer.memory)

    def _take(self, buffer: lowlevel.Buffer, count: int) -> bool:
        """Answer up to C{count} requests. @return: whether there were so many."""
        session, place = self._session, ctypes.byref(buffer)
        for _ in range(count):
            size = lowlevel.session_receive(session, place)
            if size > 0:
                lowlevel.session_process(session, place)
            elif size in (-EAGAIN, -EINTR):
                return False
            else:
                self.failure = -size
                self._over = True
                self._thread_takes.set()
                return False
        return True

    # Reactor thread

    def _submitted(self, call: Callable[..., object], arguments: tuple[object, ...]) -> None:
        self._changes += 1
        if not self._reactor_takes and not self._over:
            self._reactor_takes = True
            self._reactor_thread = get_ident()
            self._thread_takes.clear()
            self._reactor.addReader(self)
            self._reactor.callLater(QUIET, self._look)
            self._burst(True)
        call(*arguments)

    def _look(self) -> None:
        """Is the burst over?"""
        self._quiet = 0.0 if self._changes else self._quiet + QUIET
        self._changes = 0
        if not self._reactor_takes or self._quiet >= (UNDER_WAY if self._waiting() else QUIET):
            self.rest()
        else:
            self._reactor.callLater(QUIET, self._look)

    def rest(self) -> None:
        """Take no more requests on the reactor thread."""
        if self._reactor_takes:
            self._reactor_takes = False
            self._reactor.removeReader(self)
            self._burst(False)
        self._thread_takes.set()

    def free(self) -> None:
        """The thread has ended: let go of everything."""
        self.rest()
        lowlevel.free(self._buffer.memory)
        self._buffer.memory = None

    def fileno(self) -> int:
        return self._fd

    def logPrefix(self) -> str:
        return "fuse"

    def doRead(self) -> None:
        end = monotonic() + BRIEFLY
        for _ in range(AT_ONCE):
            taken = self._take(self._buffer, 1)
            if self._over:
                self.rest()
                return
            # What was handed over begins at once, who was answered goes on at once, and asks again soon.
            if not taken or not self._events.wait(self._fd) or monotonic() >= end:
                return

    def connectionLost(self, reason: Failure) -> None:
        """The mount has ended. The thread finds that out by itself."""
        self.rest()
