"""One use of a library's handle, from initialize to finalize: what the three connections have in common.

Most calls of corosync's libraries wait for an answer without a limit: of a stopped corosync (SIGSTOP, swapping) it
never comes. So each session has a thread, which makes all the calls that wait, one after the other. The reactor thread
makes the calls that never wait: dispatch, and sends that fit (see L{pvecfs.corosync.group}).

What a session does to get rid of a call that hangs is to shut the socket beneath it down: the call then fails within
2 s, the longest time that libqb sleeps. A hanging initialize has no socket that is known here. It is left alone, in a
daemon thread, until corosync goes on or ends; the next session waits for that thread, so that there is at most one.
"""

from __future__ import annotations

import fcntl
import os
import socket
import termios
import threading
from collections import deque
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Protocol, TypeVar

from twisted.internet.interfaces import IReactorFDSet, IReactorFromThreads, IReactorTime, IReadDescriptor
from zope.interface import implementer

from pvecfs.errors import CorosyncUnavailable, TryAgain
from pvecfs.log import logger

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

_log = logger("corosync")

T = TypeVar("T")

LATE_SECONDS = 0.02
"""A rest that ends by so much too late means that the reactor had to wait for a processor, or for something long."""

PATIENCE = 1.0
"""Seconds that an orderly finalize may take before its socket is shut down."""


_INT = bytes(4)


class Library(Protocol):
    """What the session itself needs of a library."""

    def initialize(self) -> int: ...
    def finalize(self, handle: int) -> None: ...
    def fd_get(self, handle: int) -> int: ...


class SessionReactor(IReactorFDSet, IReactorFromThreads, IReactorTime):
    """What a session needs of the reactor."""


class Lane:
    """A daemon thread that makes calls in the order of submission. All methods are for the reactor thread.

    @param began: called on the thread before everything else.
    """

    def __init__(self, name: str, began: Callable[[], None] = lambda: None) -> None:
        self._began = began
        self._calls: deque[tuple[Callable[[], None], int] | None] = deque()
        self._available = threading.Semaphore(0)
        self._submitted = 0
        self._submitted_weight = 0
        # Written by the thread only, as the two above are by the reactor only: no lock is needed to compare them.
        self._finished = 0
        self._finished_weight = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether every submitted call has returned."""
        return self._submitted == self._finished

    @property
    def backlog(self) -> int:
        """The weight of the calls that have not returned."""
        return self._submitted_weight - self._finished_weight

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, call: Callable[[], None], weight: int = 0) -> None:
        """Have C{call} made; it does not raise."""
        self._submitted += 1
        self._submitted_weight += weight
        self._calls.append((call, weight))
        self._available.release()

    def end(self) -> None:
        """End the thread when everything submitted was called."""
        self._calls.append(None)
        self._available.release()

    def _run(self) -> None:
        self._began()
        while True:
            self._available.acquire()
            item = self._calls.popleft()
            if item is None:
                return
            call, weight = item
            call()
            self._finished_weight += weight
            self._finished += 1


@implementer(IReadDescriptor)
class Session:
    """A handle, its descriptor in the reactor, and the thread that makes its calls.

    All methods are for the reactor thread, except where it says so. Nothing is told to the owner after L{close}.

    @param previous: the session before this one; its thread must end first.
    @param opened: called when there is a handle.
    @param readable: called when there may be something to dispatch.
    @param lost: called once, when the session failed; it is closed then.
    @param thread_began: called on the session's thread before everything else.
    @param late: called when a rest ended L{LATE_SECONDS} too late.
    """

    def __init__(
        self,
        reactor: SessionReactor,
        library: Callable[[], Library],
        name: str,
        previous: Session | None,
        opened: Callable[[], None],
        readable: Callable[[], None],
        lost: Callable[[CorosyncUnavailable], None],
        thread_began: Callable[[], None] = lambda: None,
        late: Callable[[], None] = lambda: None,
    ) -> None:
        self._reactor = reactor
        self._load = library
        self._name = name
        self._previous = previous
        self._opened = opened
        self._readable = readable
        self._lost = lost
        self._late = late
        self._closing = threading.Event()
        self.lane = Lane(name, thread_began)
        self.handle = 0
        self.socket: socket.socket | None = None
        self.closed = False
        self._connected = False
        self._descriptor = -1
        self._look: IDelayedCall | None = None

    @property
    def open(self) -> bool:
        """Whether there is a handle to be used; not if a call has failed, though the reactor was not told of it yet."""
        return self._connected and not self.closed and not self._closing.is_set()

    @property
    def over(self) -> bool:
        """Whether the session's thread has ended, and those of the sessions before it. Any thread."""
        return not self.lane.alive and (self._previous is None or self._previous.over)

    def start(self) -> None:
        """Begin to connect."""
        self.lane.start()
        self.lane.submit(self._initialize)

    def _initialize(self) -> None:
        # On the lane's thread.
        while self._previous is not None and not self._previous.over:
            if self._closing.wait(0.02):
                return
        self._previous = None
        try:
            library = self._load()
            self.handle = self.insist(library.initialize)
            # Our own duplicate: it stays what it is when libqb closes its descriptor.
            self.socket = socket.socket(fileno=os.dup(library.fd_get(self.handle)))
            self.socket.setblocking(False)
            self._descriptor = self.socket.fileno()
        except Exception as error:
            self._tell(self.fail, self._explained(error))
        else:
            self._tell(self._initialized)

    def _initialized(self) -> None:
        if not self.closed:
            self._connected = True
            self._guard(self._opened)

    def _explained(self, error: Exception) -> CorosyncUnavailable:
        # In an except clause, on any thread.
        if isinstance(error, CorosyncUnavailable):
            return error
        _log.failure("{name}: unexpected", name=self._name)
        return CorosyncUnavailable(f"{self._name}: {error!r}")

    def insist(self, call: Callable[[], T], patience: float = inf) -> T:
        """Make C{call}, again and again while corosync says "try again". On the lane's thread.

        @param patience: seconds for which it may say so.
        @raise CorosyncUnavailable: it failed, or the session was closed meanwhile.
        """
        delay, waited, said = 0.002, 0.0, False
        while not self._closing.is_set():
            try:
                return call()
            except TryAgain as again:
                if waited >= patience:
                    raise CorosyncUnavailable(f"{self._name}: {again} for {patience:.0f} s") from again
                self._closing.wait(delay)
                waited += delay
                delay = min(2 * delay, 0.1)
                if waited > PATIENCE and not said:
                    said = True
                    _log.info("{name}: waiting for corosync: {again}", name=self._name, again=str(again))
        raise CorosyncUnavailable(f"{self._name}: closed")

    def request(
        self,
        call: Callable[[], T],
        done: Callable[[T], None] = lambda result: None,
        weight: int = 0,
        patience: float = inf,
    ) -> None:
        """Have C{call} made on the thread until corosync takes it, for C{patience} seconds at most, then
        C{done(result)} on the reactor thread.

        If it fails, the session is lost.
        """

        def make() -> None:
            if self._closing.is_set():
                return
            try:
                result = self.insist(call, patience)
            except Exception as error:
                self._closing.set()  # what waits behind it is not to be sent without it
                self._tell(self.fail, self._explained(error))
            else:
                self._tell(self._done, done, result)

        self.lane.submit(make, weight)

    def _done(self, done: Callable[[T], None], result: T) -> None:
        if not self.closed:
            self._guard(lambda: done(result))

    def _tell(self, call: Callable[..., None], *arguments: object) -> None:
        self._reactor.callFromThread(call, *arguments)

    def read(self) -> None:
        """Have the reactor watch the descriptor."""
        self._end_rest()
        self._watch()

    def _watch(self) -> None:
        if self.open:
            self._reactor.addReader(self)

    def rest(self, seconds: float) -> None:
        """Do not have the reactor watch the descriptor, but see after C{seconds} what has come; if that is nothing, go
        on watching. L{read} ends it sooner."""
        if self.open and self._look is None:
            self._reactor.removeReader(self)
            self._look = self._reactor.callLater(seconds, self._rested)

    @property
    def resting(self) -> bool:
        """Whether the descriptor is not watched, see L{rest}."""
        return self._look is not None

    def _rested(self) -> None:
        look, self._look = self._look, None
        assert look is not None
        if self._reactor.seconds() - look.getTime() > LATE_SECONDS:
            self._late()
        if self.pending:
            self.doRead()
        if self._look is None:
            self._watch()

    def _end_rest(self) -> None:
        look, self._look = self._look, None
        if look is not None:
            look.cancel()

    @property
    def pending(self) -> bool:
        """Whether there is something to dispatch: with each event, libqb puts a byte into the socket, and takes it
        out again. To look there costs less than to ask the library."""
        return self.open and fcntl.ioctl(self._descriptor, termios.FIONREAD, _INT) != _INT

    @property
    def sent(self) -> int:
        """What the socket holds of our signals that corosync has not taken, bytes, with the kernel's overhead.

        @raise OSError: the connection is gone.
        """
        return int.from_bytes(fcntl.ioctl(self._descriptor, termios.TIOCOUTQ, _INT), "little")

    def close(self) -> None:
        """Finalize, without waiting for it. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._end_rest()
        if self._connected:
            self._reactor.removeReader(self)
        if not self.lane.idle:
            self._cut_off()
        self._closing.set()
        self.lane.submit(self._finalize)
        self.lane.end()

    def _cut_off(self) -> None:
        # Any thread. Makes a call that waits for an answer of corosync fail.
        if self.socket is not None:
            try:
                self.socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                return

    def _finalize(self) -> None:
        # On the lane's thread; the last call that it makes.
        if not self.handle:
            return
        patience = threading.Timer(PATIENCE, self._cut_off)
        patience.daemon = True
        patience.start()
        try:
            self._load().finalize(self.handle)
        except (CorosyncUnavailable, TryAgain) as error:
            _log.debug("{name}: closed, {error}", name=self._name, error=error)
        finally:
            patience.cancel()
            patience.join()
            if self.socket is not None:
                self.socket.close()

    def fail(self, error: CorosyncUnavailable) -> None:
        """Close, and tell the owner why."""
        if self.closed:
            return
        self.close()
        try:
            self._lost(error)
        except Exception:
            _log.failure("{name}: the listener failed", name=self._name)

    def _guard(self, call: Callable[[], None]) -> None:
        """A listener that raises has missed an event: its connection is of no use any more."""
        try:
            call()
        except Exception as error:
            self.fail(self._explained(error))

    # IReadDescriptor

    def fileno(self) -> int:
        return self._descriptor

    def doRead(self) -> None:
        if not self.closed:
            self._guard(self._readable)

    def connectionLost(self, reason: Failure) -> None:
        self.fail(CorosyncUnavailable(f"{self._name}: corosync closed the connection"))

    def logPrefix(self) -> str:
        return self._name
