"""libqb's poll handlers on a reactor: every descriptor and every job of libqb's becomes the reactor's.

libqb hands over descriptors with a function to call when they are ready (C{qb/qbipcs.h}, C{qb_ipcs_poll_handlers}).
Everything happens on the reactor thread. Three kinds of descriptor come, told apart by what was being dispatched when
they came: the listening socket; greetings, that is connections which have not said yet who they are; and connections.

What a dispatch returns: negative, remove the descriptor; else nothing needs doing. There may be more to do (positive),
but the reactor watches levels, not edges, and comes back by itself. (Calling again at once would be wrong: libqb also
returns 1 when it has just freed what the call is about.)
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from errno import EEXIST, EIO, ENOENT
from select import POLLHUP, POLLIN, POLLOUT
from typing import TYPE_CHECKING, Protocol

from twisted.internet.interfaces import IDelayedCall, IReadDescriptor, IReadWriteDescriptor, IWriteDescriptor
from zope.interface import implementer

from pvecfs.ipc import libqb
from pvecfs.ipc.descriptors import MAX_GREETINGS
from pvecfs.log import logger

if TYPE_CHECKING:
    from twisted.python.failure import Failure

GREETING_SECONDS = 10.0
"""How long a connection may take to say who it is."""

ACCEPT_PAUSE = 0.1
"""Seconds until the listening socket is looked at again after nothing could be accepted."""

_MAX_JOBS_AT_CLOSE = 1000

_log = logger("ipc")


class PollReactor(Protocol):
    """What is asked of the reactor: C{IReactorFDSet} and C{IReactorTime}, of which its own type knows nothing."""

    def addReader(self, reader: IReadDescriptor) -> None: ...
    def removeReader(self, reader: IReadDescriptor) -> None: ...
    def addWriter(self, writer: IWriteDescriptor) -> None: ...
    def removeWriter(self, writer: IWriteDescriptor) -> None: ...
    def callLater(self, delay: float, callable: Callable[..., object], *args: object) -> IDelayedCall: ...


@implementer(IReadWriteDescriptor)
class Descriptor:
    """A descriptor of libqb's: a connection, and the base of the other kinds.

    @ivar deadline: ends the state that it is in, if time does.
    """

    prototype = libqb.Dispatch
    deadline: IDelayedCall | None = None

    def __init__(self, poll: ReactorPoll, fd: int, events: int, function: int, data: int | None) -> None:
        self.poll = poll
        self.fd = fd
        self.events = events
        self.function = self.prototype(function)
        self.data = data

    def fileno(self) -> int:
        return self.fd

    def logPrefix(self) -> str:
        return "ipc"

    def doRead(self) -> None:
        if self.function(self.fd, POLLIN, self.data) < 0:
            self.poll.dropped(self)

    def doWrite(self) -> None:
        if self.function(self.fd, POLLOUT, self.data) < 0:
            self.poll.dropped(self)

    def connectionLost(self, reason: Failure) -> None:
        """The other side is gone."""
        if self.fd >= 0:
            self.hang_up()

    def hang_up(self) -> None:
        """Tell libqb that the other side is gone; it closes the descriptor."""
        self.function(self.fd, POLLHUP, self.data)
        self.poll.dropped(self)


class ListeningDescriptor(Descriptor):
    """The service's socket: what comes while it is dispatched is a greeting.

    When nothing comes, libqb could not accept the connection that waits, most likely for want of descriptors. It keeps
    that to itself, and the socket stays ready: so it is left alone for a moment.
    """

    refusing = False

    def doRead(self) -> None:
        added = self.poll.added
        self.poll.adding = GreetingDescriptor
        try:
            super().doRead()
        finally:
            self.poll.adding = Descriptor
        refused, self.refusing = self.refusing, self.poll.added == added
        if self.refusing and self.fd >= 0:
            if not refused:
                _log.warn("no IPC client can be accepted now; trying again every {pause} s", pause=ACCEPT_PAUSE)
            self.poll.pause(self)


class GreetingDescriptor(Descriptor):
    """A connection that has not said yet who it is. Its time is limited."""

    prototype = libqb.SlowDispatch

    def __init__(self, poll: ReactorPoll, fd: int, events: int, function: int, data: int | None) -> None:
        super().__init__(poll, fd, events, function, data)
        take_urgent_bytes_in_line(fd)


def take_urgent_bytes_in_line(fd: int) -> None:
    """Have bytes that are sent out of band (C{MSG_OOB}) to the socket C{fd} arrive among the others, for good.

    Such a byte makes a socket readable, but is not among what is read. libqb would wait for the one that announces a
    request, on the reactor thread, for as long as a client likes.

    @raise OSError: it is no socket.
    """
    connection = socket.socket(fileno=fd)
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    finally:
        connection.detach()  # it is libqb's


class ReactorPoll:
    """The four poll handlers of one service.

    @param max_greetings: so many greetings may be waited for at once.
    @ivar handlers: the structure for C{qb_ipcs_poll_handlers_set}; it must live as long as the service.
    @ivar adding: the kind of descriptor that the next C{dispatch_add} brings.
    @ivar added: number of descriptors that were ever added.
    """

    def __init__(self, reactor: PollReactor, max_greetings: int = MAX_GREETINGS) -> None:
        self._reactor = reactor
        self._max_greetings = max_greetings
        self._descriptors: dict[int, Descriptor] = {}
        self._greetings: dict[int, GreetingDescriptor] = {}
        self._jobs: tuple[deque[tuple[int, int | None]], ...] = (deque(), deque(), deque())
        self._run_call: IDelayedCall | None = None
        self.adding: type[Descriptor] = ListeningDescriptor
        self.added = 0
        self.handlers = libqb.PollHandlers(
            libqb.JobAdd(self._job_add),
            libqb.DispatchAdd(self._dispatch_add),
            libqb.DispatchModify(self._dispatch_mod),
            libqb.DispatchDelete(self._dispatch_del),
        )

    def __len__(self) -> int:
        """Number of descriptors watched."""
        return len(self._descriptors)

    def close(self) -> None:
        """After C{qb_ipcs_destroy}: let go of what libqb left, such as greetings."""
        for _ in range(_MAX_JOBS_AT_CLOSE):
            if not any(self._jobs):
                break
            self._run_jobs()
        if self._run_call is not None:
            self._run_call.cancel()
            self._run_call = None
        for descriptor in list(self._descriptors.values()):
            if descriptor.fd >= 0:
                descriptor.hang_up()

    def dropped(self, descriptor: Descriptor) -> None:
        """libqb wants no more of C{descriptor}; mostly it has said so already."""
        if descriptor.fd >= 0:
            self._remove(descriptor)

    def pause(self, descriptor: Descriptor) -> None:
        """Do not look at C{descriptor} for L{ACCEPT_PAUSE}."""
        self._reactor.removeReader(descriptor)
        if descriptor.deadline is None:
            descriptor.deadline = self._reactor.callLater(ACCEPT_PAUSE, self._resume, descriptor)

    # libqb's side. No exception may leave these.

    def _dispatch_add(self, priority: int, fd: int, events: int, data: int | None, function: int) -> int:
        try:
            if fd in self._descriptors:
                return -EEXIST
            descriptor = self.adding(self, fd, events, function, data)
            self._descriptors[fd] = descriptor
            self._watch(descriptor)
            if isinstance(descriptor, GreetingDescriptor):
                self._await_greeting(descriptor)
            self.added += 1
        except BaseException:
            # libqb closes it.
            _log.failure("libqb's descriptor {fd} cannot be watched", fd=fd)
            self._dispatch_del(fd)
            return -EIO
        return 0

    def _dispatch_mod(self, priority: int, fd: int, events: int, data: int | None, function: int) -> int:
        try:
            descriptor = self._descriptors.get(fd)
            if descriptor is None:
                return -ENOENT
            descriptor.events = events
            descriptor.data = data
            descriptor.function = descriptor.prototype(function)
            self._watch(descriptor)
        except BaseException:
            _log.failure("libqb's descriptor {fd} cannot be changed", fd=fd)
            return -EIO
        return 0

    def _dispatch_del(self, fd: int) -> int:
        try:
            descriptor = self._descriptors.get(fd)
            if descriptor is None:
                return -ENOENT
            self._remove(descriptor)
        except BaseException:
            _log.failure("libqb's descriptor {fd} cannot be removed", fd=fd)
            return -EIO
        return 0

    def _job_add(self, priority: int, data: int | None, function: int) -> int:
        try:
            self._jobs[min(max(priority, libqb.PRIORITY_LOW), libqb.PRIORITY_HIGH)].append((function, data))
            if self._run_call is None:
                self._run_call = self._reactor.callLater(0, self._run_jobs)
        except BaseException:
            _log.failure("libqb's job cannot be taken")
            return -EIO
        return 0

    # The reactor's side

    def _watch(self, descriptor: Descriptor) -> None:
        if descriptor.events & POLLIN:
            self._reactor.addReader(descriptor)
        else:
            self._reactor.removeReader(descriptor)
        if descriptor.events & POLLOUT:
            self._reactor.addWriter(descriptor)
        else:
            self._reactor.removeWriter(descriptor)

    def _remove(self, descriptor: Descriptor) -> None:
        # Before libqb closes it: afterwards the number may be another descriptor's.
        self._reactor.removeReader(descriptor)
        self._reactor.removeWriter(descriptor)
        del self._descriptors[descriptor.fd]
        if isinstance(descriptor, GreetingDescriptor):
            self._greetings.pop(descriptor.fd, None)
        if descriptor.deadline is not None:
            descriptor.deadline.cancel()
            descriptor.deadline = None
        descriptor.fd = -1

    def _await_greeting(self, descriptor: GreetingDescriptor) -> None:
        if len(self._greetings) >= self._max_greetings:
            # Within a dispatch of the listening socket, so that nothing of the oldest one is on the stack.
            next(iter(self._greetings.values())).hang_up()
        self._greetings[descriptor.fd] = descriptor
        descriptor.deadline = self._reactor.callLater(GREETING_SECONDS, self._greeting_missed, descriptor)

    def _resume(self, descriptor: Descriptor) -> None:
        descriptor.deadline = None
        self._watch(descriptor)

    def _greeting_missed(self, descriptor: GreetingDescriptor) -> None:
        descriptor.deadline = None
        descriptor.hang_up()

    def _run_jobs(self) -> None:
        """Run the jobs that are there now, the urgent ones first; jobs that they add wait for the next turn."""
        if self._run_call is not None and self._run_call.active():
            self._run_call.cancel()
        self._run_call = None
        jobs = [job for priority in reversed(self._jobs) for job in priority]
        for priority in self._jobs:
            priority.clear()
        for function, data in jobs:
            libqb.Job(function)(data)
