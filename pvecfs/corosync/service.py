"""Connections that are kept for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from twisted.internet.interfaces import IReactorTime

from pvecfs.corosync.configuration import ClusterConfigConnection
from pvecfs.corosync.quorum import QuorumConnection
from pvecfs.corosync.session import SessionReactor
from pvecfs.errors import CorosyncUnavailable
from pvecfs.interfaces import IClusterConfigListener, IQuorumListener
from pvecfs.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall

_log = logger("corosync")

L = TypeVar("L", contravariant=True)

RETRY_SECONDS = 2.0
"""Pause between two attempts to connect."""


class ListenedTo(Protocol[L]):
    """A connection that a listener can be given to, again and again."""

    def open(self, listener: L, lost: Callable[[CorosyncUnavailable], None], connected: Callable[[], None]) -> None: ...
    def close(self) -> None: ...


class PersistentConnection(Generic[L]):
    """Keeps C{connection} open from C{startService} to C{stopService}. The log has one line when it is there, and
    one when it is not, which is repeated only if the reason is another one."""

    def __init__(
        self,
        reactor: IReactorTime,
        connection: ListenedTo[L],
        listener: L,
        what: str,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._reactor = reactor
        self._connection = connection
        self._listener = listener
        self._what = what
        self._retry_seconds = retry_seconds
        self._retry: IDelayedCall | None = None
        self._said = ""

    def startService(self) -> None:
        self._open()

    def stopService(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._connection.close()

    def _open(self) -> None:
        self._retry = None
        self._connection.open(self._listener, self._lost, self._connected)

    def _connected(self) -> None:
        self._said = ""
        _log.info("{what}: connected to corosync", what=self._what)

    def _lost(self, reason: CorosyncUnavailable) -> None:
        if str(reason) != self._said:
            self._said = str(reason)
            _log.warn("{what}: no connection to corosync: {reason}", what=self._what, reason=reason)
        self._retry = self._reactor.callLater(self._retry_seconds, self._open)


class CorosyncServices:
    """Quorum and the cluster's configuration, followed from C{startService} to C{stopService}.

    @ivar quorum: its C{dispatch_pending} is what a L{pvecfs.corosync.group.GroupConnection} calls before each event.
    """

    def __init__(
        self,
        reactor: SessionReactor,
        quorum_listener: IQuorumListener,
        configuration_listener: IClusterConfigListener,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self.quorum = QuorumConnection(reactor)
        self.configuration = ClusterConfigConnection(reactor)
        self._services: tuple[PersistentConnection[Any], ...] = (
            PersistentConnection(reactor, self.quorum, quorum_listener, "quorum", retry_seconds),
            PersistentConnection(reactor, self.configuration, configuration_listener, "configuration", retry_seconds),
        )

    def startService(self) -> None:
        """Connect; returns at once, whether corosync runs or not."""
        for service in self._services:
            service.startService()

    def stopService(self) -> None:
        """Disconnect; returns at once. Listeners are told nothing any more."""
        for service in self._services:
            service.stopService()
