"""Where RRD updates go: to rrdcached when it answers, otherwise to librrd on a thread of its own."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from twisted.application.internet import ClientService, backoffPolicy
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.logger import Logger, LogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from pvecfs.interfaces import IRoundRobinSink
from pvecfs.log import logger
from pvecfs.rrd import librrd
from pvecfs.rrd.layout import MalformedUpdate, Update, local_midnight, parse_update
from pvecfs.rrd.rrdcached import (
    Refused,
    RrdcachedFactory,
    RrdcachedProtocol,
    create_command,
    update_command,
)
from pvecfs.rrd.worker import DiskWorker

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorFromThreads, IReactorTime, IReactorUNIX

    class RrdReactor(IReactorFromThreads, IReactorTime, IReactorUNIX):
        """What the sink wants of a reactor."""


_log = logger("rrd")

MAX_WAITING = 256
"""Commands that may wait for rrdcached's answer; later updates wait here. Two more for each file that is to be made."""

MAX_QUEUED = 4096
"""Updates that may wait here; then the oldest is forgotten."""

MAX_RETRY_SECONDS = 300.0
"""Longest pause between two attempts to reach rrdcached."""

STOP_TIMEOUT = 2.0
"""Seconds that a stop waits for the disk and for rrdcached."""

_DIRECTORY_MODE = 0o750


def make_directories(path: bytes) -> None:
    """Make the directory C{path} and those above it that are missing, mode 0750 whatever the umask.

    @raise OSError: one cannot be made.
    """
    if os.path.isdir(path):
        return
    make_directories(os.path.dirname(path))
    try:
        os.mkdir(path, _DIRECTORY_MODE)
    except FileExistsError:
        return  # rrdcached may have made it in this moment
    os.chmod(path, _DIRECTORY_MODE)


def store_directly(path: bytes, update: Update, now: float) -> None:
    """Store C{update} in the database C{path} with librrd, making the database if it is missing. Waits for the disk.

    @raise OSError, RrdError: it could not be stored.
    """
    if not os.path.exists(path):
        make_directories(os.path.dirname(path))
        librrd.create(path, local_midnight(now), update.kind.definitions())
    librrd.update(path, update.line)


class _QuietClientService(ClientService):
    """Tries for ever, and does not log each attempt: where there is no rrdcached, all of them fail."""

    _log = Logger(observer=LogPublisher())


@implementer(IRoundRobinSink)
class RoundRobinSink(Service):
    """Stores RRD updates in databases below C{directory}."""

    def __init__(
        self, reactor: RrdReactor, directory: str, socket: str, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._reactor = reactor
        self._directory = os.fsencode(os.path.abspath(directory))
        self._wall_clock = wall_clock
        self._worker = DiskWorker(reactor)
        endpoint = UNIXClientEndpoint(reactor, socket)  # type: ignore[no-untyped-call]  # Twisted's has no annotations
        self._socket = socket
        self._client = _QuietClientService(
            endpoint,
            RrdcachedFactory(reactor, self._connected),
            backoffPolicy(maxDelay=MAX_RETRY_SECONDS),
            clock=reactor,
        )
        self._protocol: RrdcachedProtocol | None = None
        self._queue: deque[Update] = deque()
        self._overflowed = False
        self._disk_fails = False  # the worker's

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]  # Twisted's has no annotations
        self._worker.start()
        self._client.startService()
        self._client.whenConnected(failAfterFailures=1).addErrback(self._not_connected)

    def stopService(self) -> Deferred[None]:
        """Fires when the thread has ended and the connection is closed, or after 2 s."""
        super().stopService()  # type: ignore[no-untyped-call]  # Twisted's has no annotations
        parts = [self._client.stopService(), self._worker.stop()]
        # The timeout cancels both; nobody else looks at that.
        stopped = DeferredList(parts, consumeErrors=True).addCallback(lambda _: None)
        return stopped.addTimeout(STOP_TIMEOUT, self._reactor, onTimeoutCancel=lambda outcome, timeout: None)

    def update(self, key: bytes, value: bytes) -> None:
        try:
            update = parse_update(key, value)
        except MalformedUpdate as error:
            _log.warn("RRD update of {key!r} ignored: {error}", key=key, error=error)
            return
        if self._protocol is None:
            self._store_directly(update)
            return
        if len(self._queue) >= MAX_QUEUED:
            self._queue.popleft()
            if not self._overflowed:
                self._overflowed = True
                _log.warn("rrdcached is too slow, updates are lost")
        self._queue.append(update)
        self._send_queued()

    # rrdcached

    def _not_connected(self, failure: Failure) -> None:
        """The first attempt failed, or was cut short by a stop."""
        if self.running:
            _log.info(
                "no rrdcached at {socket}, the round-robin databases are updated directly: {reason}",
                socket=self._socket,
                reason=failure.value,
            )

    def _connected(self, protocol: RrdcachedProtocol) -> None:
        _log.info("connected to rrdcached at {socket}", socket=self._socket)
        self._protocol = protocol
        protocol.lost.addCallback(self._disconnected)

    def _disconnected(self, _: None) -> None:
        self._protocol = None
        self._overflowed = False
        if self.running:
            _log.warn("lost rrdcached, the round-robin databases are updated directly")
        queue, self._queue = self._queue, deque()
        for update in queue:
            self._store_directly(update)

    def _send_queued(self) -> None:
        protocol = self._protocol
        while protocol is not None and self._queue and protocol.waiting < MAX_WAITING:
            update = self._queue.popleft()
            answer = protocol.command(update_command(self._path(update), update.line))
            answer.addCallbacks(self._answered, self._refused, errbackArgs=(update,))
        if not self._queue:
            self._overflowed = False

    def _answered(self, _: bytes) -> None:
        self._send_queued()

    def _refused(self, failure: Failure, update: Update) -> None:
        """rrdcached did not take C{update}: its file is missing, the connection is gone, or the values are bad."""
        if not isinstance(failure.value, Refused):
            if self.running:  # else it was most likely stored: a stop does not wait for answers
                self._store_directly(update)
            return
        if str(failure.value).startswith("No such file"):
            # Only this host's disk worker makes directories: rrdcached must be told to, and then chooses the mode.
            self._worker.submit(lambda: self._prepare_file(update))
        else:
            self._log_refusal(update, str(failure.value))
        self._send_queued()

    def _prepare_file(self, update: Update) -> None:
        """Make the directory of C{update}, then let rrdcached make the file. On the worker's thread."""
        path = self._path(update)
        try:
            make_directories(os.path.dirname(path))
        except OSError as error:
            self._log_refusal(update, str(error))
            return
        self._reactor.callFromThread(self._create_file, update, local_midnight(self._wall_clock()))

    def _create_file(self, update: Update, start: int) -> None:
        protocol = self._protocol
        if protocol is None:
            self._store_directly(update)
            return
        path = self._path(update)

        # A file that exists by now is refused too, so it is the second update that tells whether there is one.
        create = protocol.command(create_command(path, start, update.kind.definitions()))
        create.addErrback(lambda failure: None)
        second = protocol.command(update_command(path, update.line))
        second.addCallbacks(self._answered, self._not_created, errbackArgs=(update,))

    def _not_created(self, failure: Failure, update: Update) -> None:
        if self.running:
            self._store_directly(update)
        if isinstance(failure.value, Refused):  # else the connection is gone, and who waits is told so
            self._send_queued()

    # librrd

    def _store_directly(self, update: Update) -> None:
        self._worker.submit(lambda: self._store_on_disk(update))

    def _store_on_disk(self, update: Update) -> None:
        try:
            store_directly(self._path(update), update, self._wall_clock())
        except (OSError, librrd.RrdUnavailable) as error:
            # The next update will most likely meet the same: say it once.
            if not self._disk_fails:
                self._disk_fails = True
                self._log_refusal(update, f"{error}; no more is said until one succeeds")
        except librrd.RrdError as error:
            self._log_refusal(update, str(error))
        else:
            self._disk_fails = False

    def _path(self, update: Update) -> bytes:
        return self._directory + b"/" + update.path

    def _log_refusal(self, update: Update, reason: str) -> None:
        _log.warn("RRD update of {path!r} failed: {reason}", path=update.path, reason=reason)
