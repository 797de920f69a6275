"""Real-time priority for the threads that a change in a cluster passes through, and what keeps it harmless.

Corosync runs under SCHED_RR at the highest priority (C{sched_rr}, C{priority} in corosync.conf(5)). While a change is
on its way it wakes up again and again, and each time takes the processor from a daemon of normal priority. At the same
priority the daemon finishes its turn first, most of them far shorter than the 0.1 s after which SCHED_RR has equals
take turns. That is so while somebody on this node waits for changes. What others change has time: where there are few
processors for many threads, it is better that corosync goes on. But not if that makes us fall behind.

A daemon that computes for long must not keep others off the processor. So the kernel watches (RLIMIT_RTTIME, see
setrlimit(2)): a thread that computes for L{LONGEST_TURN} without waiting for anything has SIGXCPU sent to the process.
Then all threads go back to normal priority, for L{PAUSE}. Python takes a signal on the main thread, between two of its
instructions: that can be later, after a long call of C, or when another thread has the only processor (0.1 to 0.2 s).
Until then corosync waits 0.1 s at most for its turn.

What a raised thread starts, threads and processes, has normal priority (SCHED_RESET_ON_FORK). Child processes inherit
the limit, which means nothing to them unless they give themselves real-time priority.
"""

from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.interfaces import IReactorFromThreads, IReactorTime

from pvecfs.log import logger

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall

LONGEST_TURN = 0.05
"""Seconds that a thread may compute on end at real-time priority. Corosync calls a node lost when it is silent for its
token timeout, 1 s and more; between equals it is its turn after 0.1 s anyway. No usual change takes 0.01 s."""

PAUSE = 1.0
"""Seconds at normal priority after that. So of long work at most a twentieth is done at real-time priority."""

CATCH_UP = 0.05
"""Seconds at real-time priority for who fell behind."""

Limits = tuple[int, int]
"""Soft and hard RLIMIT_RTTIME, microseconds."""

Handler = Callable[[int, FrameType | None], Any] | int | None
"""Of a signal, as the module C{signal} has it."""

_log = logger("scheduling")


class Reactor(IReactorFromThreads, IReactorTime):
    """What is needed of the reactor."""


class System(Protocol):
    """The calls of the system."""

    def is_normal(self) -> bool:
        """Whether the calling thread is under SCHED_OTHER."""

    def has(self, thread: int) -> bool:
        """Whether the process has a thread of that id."""

    def schedule(self, thread: int, real_time: bool) -> None:
        """Give a thread real-time or normal priority. @raise OSError: refused; ESRCH: it has ended."""

    def limits(self) -> Limits: ...

    def set_limits(self, limits: Limits) -> None:
        """@raise OSError, ValueError: refused."""

    def catch(self, handler: Handler) -> Handler:
        """Have SIGXCPU handled; return what handled it before. Main thread."""


class Linux:
    """The real calls."""

    def is_normal(self) -> bool:
        return os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK == os.SCHED_OTHER

    def has(self, thread: int) -> bool:
        return os.access(f"/proc/self/task/{thread}", os.F_OK)

    def schedule(self, thread: int, real_time: bool) -> None:
        if real_time:
            policy, priority = os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_get_priority_max(os.SCHED_RR)
        else:
            # The flag stays: to take it away is a privilege, which may have been lost by then.
            policy, priority = os.SCHED_OTHER | os.sched_getscheduler(thread) & os.SCHED_RESET_ON_FORK, 0
        os.sched_setscheduler(thread, policy, os.sched_param(priority))

    def limits(self) -> Limits:
        return resource.getrlimit(resource.RLIMIT_RTTIME)

    def set_limits(self, limits: Limits) -> None:
        resource.setrlimit(resource.RLIMIT_RTTIME, limits)

    def catch(self, handler: Handler) -> Handler:
        # To ignore a signal drops one that is pending: by default it would end the process.
        before = signal.signal(signal.SIGXCPU, signal.SIG_IGN)
        signal.signal(signal.SIGXCPU, signal.SIG_DFL if handler is None else handler)
        signal.siginterrupt(signal.SIGXCPU, False)
        return before


class RealTimeThreads:
    """Some threads of this process, at real-time priority while that is wanted, between L{start} and L{stop}. Where the
    system refuses, it stays at a line in the log. All methods are for the reactor thread, which is the main one, but
    where it says so.
    """

    def __init__(self, reactor: Reactor, system: System | None = None) -> None:
        self._reactor = reactor
        self._system = system or Linux()
        self._threads: set[int] = set()
        self._before: tuple[Limits, Handler] | None = None
        self._wanted = False
        self._raised = False
        self._again: IDelayedCall | None = None  # during a pause
        self._caught_up: IDelayedCall | None = None  # during a catch-up

    def this_thread(self) -> None:
        """The calling thread is to be one of them. Any thread; it is, soon after the reactor runs."""
        self._reactor.callFromThread(self.add, threading.get_native_id())

    def add(self, thread: int) -> None:
        """The thread of native id C{thread} is to be one of them."""
        self._threads.add(thread)
        if self._raised:
            self._raise((thread,))

    def start(self) -> None:
        """From now on L{want} has an effect, on the threads added and this one."""
        if not self._system.is_normal():
            _log.info("the priority is left as it was set from outside")
            return
        limits = self._system.limits()
        if limits[1] != resource.RLIM_INFINITY:
            _log.info("no real-time priority: the hard limit RLIMIT_RTTIME would end the process")
            return
        # Before the limit is set: by default the signal ends the process.
        self._before = limits, self._system.catch(self._exceeded)
        self._threads.add(threading.get_native_id())
        self._raise_all()  # to know now whether we may
        if self._before is not None:
            _log.info("real-time priority for the threads that changes pass through")
            self._update()

    def want(self, wanted: bool) -> None:
        """Whether real-time priority is wanted now. (It takes 10 to 20 microseconds.)"""
        self._wanted = wanted
        self._update()

    def catch_up(self) -> None:
        """It is wanted for L{CATCH_UP}, whatever L{want} says."""
        if self._before is not None and self._caught_up is None:
            self._caught_up = self._reactor.callLater(CATCH_UP, self._catch_up_over)
            self._update()

    def _catch_up_over(self) -> None:
        self._caught_up = None
        self._update()

    def _update(self) -> None:
        if self._before is None:
            return
        if not self._wanted and self._caught_up is None:
            self._lower()
        elif self._again is None and not self._raised:
            self._raise_all()

    def stop(self) -> None:
        """All threads have normal priority again; limit and handler are as before."""
        before, self._before = self._before, None
        if before is None:
            return
        self._lower()
        calls, self._again, self._caught_up = (self._again, self._caught_up), None, None
        for call in calls:
            if call is not None:
                call.cancel()
        limits, handler = before
        with suppress(OSError, ValueError):
            self._system.set_limits(limits)
        self._system.catch(handler)

    def _raise_all(self) -> None:
        # The id of one that has ended may be another process's one day.
        self._threads = {thread for thread in self._threads if self._system.has(thread)}
        self._raise(self._threads)

    def _paused(self) -> None:
        self._again = None
        self._update()

    def _raise(self, threads: Iterable[int]) -> None:
        self._raised = True  # first: when the signal comes now, it is undone
        try:
            # With each signal the kernel adds a second to the limit.
            self._system.set_limits((round(LONGEST_TURN * 1e6), resource.RLIM_INFINITY))
            for thread in threads:
                if self._system.has(thread):
                    with suppress(ProcessLookupError):
                        self._system.schedule(thread, True)
        except (OSError, ValueError) as error:
            # CAP_SYS_NICE is missing, or RestrictRealtime= is set, or the control group has no real-time share.
            _log.info("no real-time priority: {reason}", reason=error)
            self.stop()

    def _lower(self) -> None:
        self._raised = False
        for thread in self._threads:
            if self._system.has(thread):
                with suppress(OSError):  # the signal's handler is here too, and raises nothing
                    self._system.schedule(thread, False)

    def _exceeded(self, number: int, frame: FrameType | None) -> None:
        """SIGXCPU. It may come between any two instructions of the main thread: so system calls only, and no log."""
        self._lower()
        self._reactor.callFromThread(self._lowered)

    def _lowered(self) -> None:
        if self._before is None:
            return
        self._lower()  # again: the signal may have come while threads were raised
        _log.debug("computing for long, at normal priority for {pause} s", pause=PAUSE)
        if self._again is None:
            self._again = self._reactor.callLater(PAUSE, self._paused)
        else:
            self._again.reset(PAUSE)
