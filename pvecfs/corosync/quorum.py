"""The connection that tells of quorum."""

from __future__ import annotations

from collections.abc import Callable

from pvecfs.corosync.libquorum import LibQuorum, libquorum
from pvecfs.corosync.session import Session, SessionReactor
from pvecfs.errors import CorosyncUnavailable
from pvecfs.interfaces import IQuorumListener


class QuorumConnection:
    """Follows quorum. Before the first event, and once the connection is lost, there is none."""

    def __init__(self, reactor: SessionReactor, library: Callable[[], LibQuorum] = libquorum) -> None:
        self._reactor = reactor
        self._load = library
        self._session: Session | None = None
        self._listener: IQuorumListener | None = None
        self._on_lost: Callable[[CorosyncUnavailable], None] | None = None
        self._on_connected: Callable[[], None] = lambda: None

    def open(
        self,
        listener: IQuorumListener,
        lost: Callable[[CorosyncUnavailable], None],
        connected: Callable[[], None] = lambda: None,
    ) -> None:
        """Connect, and tell C{listener} the present state and every change.

        @param lost: called once, after C{quorum_changed(False, ())}, when corosync is not there, or not any more.
        @param connected: called once, when corosync has agreed to tell of changes.
        """
        self.close()
        self._listener, self._on_lost, self._on_connected = listener, lost, connected
        self._session = Session(
            self._reactor, self._load, "quorum", self._session, self._opened, self._readable, self._lost
        )
        self._session.start()

    def close(self) -> None:
        """Disconnect, without waiting for it; idempotent; nothing is told any more."""
        self._listener = self._on_lost = None
        if self._session is not None:
            self._session.close()

    def _opened(self) -> None:
        session = self._session
        assert session is not None
        session.request(lambda: self._load().trackstart(session.handle), lambda _: self._on_connected())
        session.read()

    def dispatch_pending(self) -> None:
        """Tell the listener everything that corosync has said up to now. Never waits, never raises."""
        if self._session is not None and self._session.pending:
            self._session.doRead()

    def _readable(self) -> None:
        session, library = self._session, self._load()
        assert session is not None
        while session.open and (events := library.dispatch(session.handle)) is not None:
            for event in events:
                if self._listener is not None:
                    self._listener.quorum_changed(event.quorate, event.node_ids)

    def _lost(self, reason: CorosyncUnavailable) -> None:
        listener, lost = self._listener, self._on_lost
        self._listener = self._on_lost = None
        try:
            if listener is not None:
                listener.quorum_changed(False, ())
        finally:
            if lost is not None:
                lost(reason)
