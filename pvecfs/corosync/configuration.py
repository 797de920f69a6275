"""The connection that tells of the cluster's configuration."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from pvecfs.corosync.libcmap import LibCmap, libcmap
from pvecfs.corosync.session import Session, SessionReactor
from pvecfs.errors import CorosyncUnavailable, TryAgain
from pvecfs.interfaces import IClusterConfigListener
from pvecfs.replica.status import ClusterConfiguration, NodeInfo

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall

SETTLING_SECONDS = 0.1
"""A reload changes many keys one by one: they are read when nothing has changed for so long."""

RELOADING = (b"config.reload_in_progress", b"config.totemconfig_reload_in_progress")
"""Keys that are not 0 while corosync takes over a changed corosync.conf."""
NODE_KEY = re.compile(rb"nodelist\.node\.(\d+)\.")


def read_configuration(library: LibCmap, handle: int) -> ClusterConfiguration:
    """Read what corosync knows now. Nodes come in the order of the node list; one without an id is left out.

    @raise TryAgain: a reload of corosync.conf is under way.
    """
    if any(library.get(handle, key) for key in RELOADING):
        raise TryAgain("corosync reads its configuration")
    places = {int(match[1]) for key in library.keys(handle, b"nodelist.node.") if (match := NODE_KEY.match(key))}
    nodes = []
    for place in sorted(places):
        prefix = b"nodelist.node.%d." % place
        node_id = library.get(handle, prefix + b"nodeid")
        name = library.get(handle, prefix + b"name") or library.get(handle, prefix + b"ring0_addr")
        votes = library.get(handle, prefix + b"quorum_votes")
        if isinstance(node_id, int) and isinstance(name, bytes):
            nodes.append(NodeInfo(node_id, name, votes if isinstance(votes, int) else 1))
    cluster = library.get(handle, b"totem.cluster_name")
    version = library.get(handle, b"totem.config_version")
    return ClusterConfiguration(
        cluster if isinstance(cluster, bytes) else b"", version if isinstance(version, int) else 0, tuple(nodes)
    )


class ClusterConfigConnection:
    """Follows the cluster's name, configuration version and node list (libcmap)."""

    def __init__(self, reactor: SessionReactor, library: Callable[[], LibCmap] = libcmap) -> None:
        self._reactor = reactor
        self._load = library
        self._session: Session | None = None
        self._listener: IClusterConfigListener | None = None
        self._on_lost: Callable[[CorosyncUnavailable], None] | None = None
        self._on_connected: Callable[[], None] = lambda: None
        self._settling: IDelayedCall | None = None

    def open(
        self,
        listener: IClusterConfigListener,
        lost: Callable[[CorosyncUnavailable], None],
        connected: Callable[[], None] = lambda: None,
    ) -> None:
        """Connect, and tell C{listener} the configuration, now and whenever it was changed.

        @param lost: called once when corosync is not there, or not any more.
        @param connected: called once, when corosync has agreed to tell of changes.
        """
        self.close()
        self._listener, self._on_lost, self._on_connected = listener, lost, connected
        self._session = Session(
            self._reactor, self._load, "cmap", self._session, self._opened, self._readable, self._lost
        )
        self._session.start()

    def close(self) -> None:
        """Disconnect, without waiting for it; idempotent; nothing is told any more."""
        self._listener = self._on_lost = None
        self._forget()
        if self._session is not None:
            self._session.close()

    def _forget(self) -> None:
        if self._settling is not None and self._settling.active():
            self._settling.cancel()
        self._settling = None

    def _opened(self) -> None:
        session = self._session
        assert session is not None

        def track() -> None:
            self._load().track(session.handle, b"nodelist.", prefix=True)

        def track_version() -> None:
            self._load().track(session.handle, b"totem.config_version", prefix=False)

        # Before the first reading: what changes after it is never missed.
        session.request(track)
        session.request(track_version, lambda _: self._on_connected())
        self._read()
        session.read()

    def _readable(self) -> None:
        session = self._session
        assert session is not None
        changed = False
        while session.open and (events := self._load().dispatch(session.handle)) is not None:
            changed = changed or bool(events)
        if changed and session.open:
            self._forget()
            self._settling = self._reactor.callLater(SETTLING_SECONDS, self._read)

    def _read(self) -> None:
        session = self._session
        if session is None or not session.open:
            return
        session.request(lambda: read_configuration(self._load(), session.handle), self._was_read)

    def _was_read(self, configuration: ClusterConfiguration) -> None:
        if self._listener is not None:
            self._listener.configuration_read(configuration)

    def _lost(self, reason: CorosyncUnavailable) -> None:
        lost = self._on_lost
        self._listener = self._on_lost = None
        self._forget()
        if lost is not None:
            lost(reason)
