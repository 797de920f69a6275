"""The text protocol of rrdcached on its unix socket (rrdcached(1), "The protocol").

A command is one line. Its answer is a line of a number and a text: negative for an error, otherwise the number of lines
that follow. Answers come in the order of the commands.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import Factory, connectionDone
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from pvecfs.rrd.layout import STEP

ANSWER_TIMEOUT = 10.0
"""Seconds without any answer, while one is due, after which the connection is given up."""

_STATUS = re.compile(rb"(-?[0-9]{1,9}) (.*)", re.DOTALL)


class Refused(Exception):
    """rrdcached answered with an error; the message is its own."""


class ConnectionGone(Exception):
    """The connection ended before the answer came."""


def escaped(argument: bytes) -> bytes:
    """C{argument} as part of a command; it must not have a newline."""
    return argument.replace(b"\\", b"\\\\").replace(b" ", b"\\ ")


def update_command(path: bytes, line: bytes) -> bytes:
    """The command that stores C{line} (time and values, joined by ':') in the database C{path} (absolute)."""
    return b"UPDATE %b %b" % (escaped(path), line)


def create_command(path: bytes, start: int, definitions: Sequence[bytes]) -> bytes:
    """The command that makes the database C{path} unless it exists; C{start} in seconds since 1970."""
    return b"CREATE %b -s %d -b %d -O %b" % (escaped(path), STEP, start, b" ".join(definitions))


class RrdcachedProtocol(LineOnlyReceiver):
    """One connection. L{command} may be called again before the answers have come.

    @ivar waiting: number of commands without an answer.
    @ivar lost: fires when the connection has ended, after the commands without an answer have failed, in their order.
    """

    delimiter = b"\n"
    MAX_LENGTH = 65536

    def __init__(self, clock: IReactorTime, connected: Callable[[RrdcachedProtocol], None]) -> None:
        self._clock = clock
        self._connected = connected
        self._answers: deque[Deferred[bytes]] = deque()
        self._lines_to_come = 0
        self._text = b""
        self._overdue: IDelayedCall | None = None
        self.lost: Deferred[None] = Deferred()

    @property
    def waiting(self) -> int:
        return len(self._answers)

    def command(self, line: bytes) -> Deferred[bytes]:
        """Send C{line}.

        @return: fires with the answer's text (its number and further lines are not kept); fails with L{Refused} or
            L{ConnectionGone}.
        """
        answer: Deferred[bytes] = Deferred()
        self._answers.append(answer)
        if self._overdue is None:
            self._overdue = self._clock.callLater(ANSWER_TIMEOUT, self._give_up)
        assert self.transport is not None
        self.transport.write(line + self.delimiter)
        return answer

    def connectionMade(self) -> None:
        self._connected(self)

    def lineReceived(self, line: bytes) -> None:
        if self._lines_to_come:
            self._lines_to_come -= 1
        else:
            status = _STATUS.fullmatch(line)
            if status is None:
                return  # some errors have a second line that is not announced
            if not self._answers:
                self._drop()
                return
            self._text = status[2]
            self._lines_to_come = int(status[1])
            if self._lines_to_come < 0:
                self._lines_to_come = 0
                self._answered(Refused(self._text.decode("utf-8", "replace")))
                return
        if not self._lines_to_come:
            self._answered(self._text)

    def lineLengthExceeded(self, line: bytes) -> None:
        self._drop()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._cancel_timeout()
        answers, self._answers = self._answers, deque()
        for answer in answers:
            answer.errback(ConnectionGone(reason.getErrorMessage()))
        self.lost.callback(None)

    def _answered(self, outcome: bytes | Refused) -> None:
        answer = self._answers.popleft()
        self._cancel_timeout()
        if self._answers:
            self._overdue = self._clock.callLater(ANSWER_TIMEOUT, self._give_up)
        if isinstance(outcome, Refused):
            answer.errback(outcome)
        else:
            answer.callback(outcome)

    def _cancel_timeout(self) -> None:
        overdue, self._overdue = self._overdue, None
        if overdue is not None and overdue.active():
            overdue.cancel()

    def _give_up(self) -> None:
        self._overdue = None
        self._drop()

    def _drop(self) -> None:
        assert self.transport is not None
        self.transport.abortConnection()  # type: ignore[attr-defined]  # not in ITransport, but every TCP or UNIX one has it


class RrdcachedFactory(Factory):
    """Makes protocols that tell C{connected} of themselves."""

    noisy = False

    def __init__(self, clock: IReactorTime, connected: Callable[[RrdcachedProtocol], None]) -> None:
        self._clock = clock
        self._connected = connected

    def buildProtocol(self, addr: object) -> RrdcachedProtocol:
        return RrdcachedProtocol(self._clock, self._connected)
