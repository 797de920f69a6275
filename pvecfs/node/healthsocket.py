"""Tells whoever connects to a socket how this node is: one JSON document, and end of file.

Nothing is read from a client, so there is nothing to check. Nobody keeps this node from its work: there are only so
many clients at a time, each for a few seconds.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXServerEndpoint
from twisted.internet.protocol import Factory, Protocol

from pvecfs.log import logger
from pvecfs.node.host import HEALTH_SOCKET

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress, IDelayedCall, IListeningPort

SOCKET_MODE = 0o660

MAX_CLIENTS = 16
"""Clients at one time; for more the connection ends without a document."""

CLIENT_SECONDS = 5.0
"""Seconds that a client has for taking the document."""

Reactor = Any
"""A reactor with UNIX sockets and delayed calls."""

_log = logger("health")


class _Client(Protocol):
    """A client's connection."""

    def __init__(self, reactor: Reactor, document: Callable[[], bytes], clients: set[_Client]) -> None:
        self._reactor = reactor
        self._document = document
        self._clients = clients
        self._deadline: IDelayedCall | None = None

    def connectionMade(self) -> None:
        transport: Any = self.transport
        self._clients.add(self)
        self._deadline = self._reactor.callLater(CLIENT_SECONDS, transport.abortConnection)
        try:
            transport.write(self._document())
        except Exception:
            _log.failure("this node's health cannot be told")
        transport.loseConnection()  # when it is written; nothing is read from now on

    def connectionLost(self, reason: object = None) -> None:
        self._clients.discard(self)
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()


class _Clients(Factory):
    """Makes at most L{MAX_CLIENTS} of them."""

    noisy = False

    def __init__(self, reactor: Reactor, document: Callable[[], bytes]) -> None:
        self.present: set[_Client] = set()
        self._reactor = reactor
        self._document = document

    def buildProtocol(self, addr: IAddress | None) -> _Client | None:
        if len(self.present) >= MAX_CLIENTS:
            return None
        return _Client(self._reactor, self._document, self.present)


class HealthSocket(Service):
    """The socket C{health} in C{directory}. A node that cannot have it goes on without; the log says why.

    @param group: its group.
    @param document: makes what each client is told.
    """

    def __init__(self, reactor: Reactor, directory: Path, group: int, document: Callable[[], bytes]) -> None:
        self._reactor = reactor
        self._path = directory / HEALTH_SOCKET
        self._group = group
        self._clients = _Clients(reactor, document)
        self._port: IListeningPort | None = None
        self._identity: tuple[int, int] | None = None

    def startService(self) -> None:
        """Listen; in the place of a socket that a killed daemon has left."""
        super().startService()  # type: ignore[no-untyped-call]  # Twisted has no annotations there
        try:
            _make_room(self._path)
        except OSError as error:
            self._not_told(error)
            return
        path = str(self._path)
        endpoint: Any = UNIXServerEndpoint(self._reactor, path, MAX_CLIENTS, SOCKET_MODE)  # type: ignore[no-untyped-call]
        listening: Deferred[IListeningPort] = endpoint.listen(self._clients)
        listening.addCallback(self._listens).addErrback(lambda failure: self._not_told(failure.value))

    def stopService(self) -> Deferred[None] | None:
        """Listen no more, and let nobody wait."""
        super().stopService()  # type: ignore[no-untyped-call]  # Twisted has no annotations there
        for client in list(self._clients.present):
            transport: Any = client.transport
            transport.abortConnection()
        port: Any = self._port
        self._port = None
        if port is None:
            return None
        if _identity(self._path) != self._identity:
            # Somebody has removed it. Twisted's port removes whatever has its path, and fails where nothing has.
            port.stopReading()
            return None
        stopped: Deferred[None] = port.stopListening()
        return stopped

    def _listens(self, port: IListeningPort) -> None:
        self._port = port
        self._identity = _identity(self._path)
        os.chown(self._path, -1, self._group)

    def _not_told(self, reason: object) -> None:
        _log.warn("{path} cannot be had, nobody is told this node's health: {reason}", path=self._path, reason=reason)


def _identity(path: Path) -> tuple[int, int] | None:
    """By what a file is known from another that takes its path; C{None}: there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _make_room(path: Path) -> None:
    """Remove a socket C{path} where nobody listens.

    @raise OSError: something else is there, or somebody listens.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError("something is there that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass  # so many wait that nobody else can
    raise FileExistsError("another daemon listens there")
