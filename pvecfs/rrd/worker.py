"""One thread for what waits for the disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Condition, Thread
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

from pvecfs.log import logger

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorFromThreads

_log = logger("rrd")

Job = Callable[[], None]


class DiskWorker:
    """Runs jobs one after the other on a thread of its own, which exists from L{start} to L{stop}.

    The queue is bounded: when it is full, the oldest job is forgotten, with one log line until the queue was empty
    again. The thread does not keep the process alive: it may hang on a disk for ever.
    """

    def __init__(self, reactor: IReactorFromThreads, limit: int = 4096) -> None:
        self._reactor = reactor
        self._limit = limit
        self._jobs: deque[Job] = deque()
        self._changed = Condition()
        self._overflowed = False
        self._stopping = True
        self._stopped: Deferred[None] = Deferred()

    def start(self) -> None:
        self._stopping = False
        self._stopped = Deferred()
        Thread(target=self._run, name="rrd", daemon=True).start()

    def submit(self, job: Job) -> None:
        """Run C{job} some time; any thread, never blocks. After L{stop} it is forgotten."""
        overflowed = False
        with self._changed:
            if self._stopping:
                return
            if len(self._jobs) >= self._limit:
                self._jobs.popleft()
                overflowed, self._overflowed = not self._overflowed, True
            self._jobs.append(job)
            self._changed.notify()
        if overflowed:
            _log.warn("the disk is too slow for the round-robin databases, updates are lost")

    def stop(self) -> Deferred[None]:
        """End the thread after the jobs that are waiting; fires on the reactor thread when it has ended."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        return self._stopped

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._stopping:
                    self._overflowed = False
                    self._changed.wait()
                if not self._jobs:
                    break
                job = self._jobs.popleft()
            try:
                job()
            except Exception:
                _log.failure("a job of the round-robin databases failed")
        self._reactor.callFromThread(self._stopped.callback, None)
