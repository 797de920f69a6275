"""The status of the node and its cluster, for the IPC service and the mount: carries out what the replica asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from twisted.logger import LogLevel
from zope.interface import implementer

from pvecfs.interfaces import IClusterConfigListener, IQuorumListener, IRoundRobinSink, IStatus
from pvecfs.log import logger
from pvecfs.replica.documents import Documents
from pvecfs.replica.effects import Effect, Log, PublishStatus, RoundRobinUpdate, Send
from pvecfs.replica.kvstore import StatusReplica
from pvecfs.replica.member import Instant
from pvecfs.replica.status import ClusterConfiguration, StatusSnapshot

if TYPE_CHECKING:
    from pvecfs.tree.tree import Tree

_log = logger("status")

SendStatus = Callable[[int, bytes], None]
"""Sends a NORMAL message, subtype and payload, to the status group; nothing while we are not in it."""


@implementer(IRoundRobinSink)
class NoRoundRobin:
    """Keeps no round-robin databases."""

    def update(self, key: bytes, value: bytes) -> None:
        pass


def _to_nobody(subtype: int, payload: bytes) -> None:
    """Local mode, or no group yet: the values go out when the group has synchronised."""


@implementer(IStatus, IQuorumListener, IClusterConfigListener)
class StatusService:
    """Owns the L{StatusReplica}. Reactor thread only, but for L{document} and L{snapshot}, which are for any thread.

    @ivar replica: the application of the status group's machine.
    @ivar snapshot: the newest published status.
    """

    def __init__(self, replica: StatusReplica, sink: IRoundRobinSink, clock: Callable[[], Instant]) -> None:
        self.replica = replica
        self.snapshot: StatusSnapshot = replica.snapshot
        self._sink = sink
        self._clock = clock
        self._documents = Documents()
        self._send: SendStatus = _to_nobody

    def begin(self) -> None:
        """The daemon starts."""
        self.perform(self.replica.begin(self._clock()))

    def attach_group(self, send: SendStatus) -> None:
        """From now on messages go to C{send}."""
        self._send = send

    def perform(self, effects: Sequence[Effect]) -> None:
        """Carry out what the replica asks for, in order. What a machine has returned may be mixed in: only L{Log},
        L{PublishStatus}, L{RoundRobinUpdate} and L{Send} are the replica's, the rest is left alone."""
        for effect in effects:
            match effect:
                case Send():
                    self._send(effect.subtype, effect.payload)
                case PublishStatus():
                    self.snapshot = effect.snapshot
                case RoundRobinUpdate():
                    self._sink.update(effect.key, effect.value)
                case Log():
                    _log.emit(LogLevel.levelWithName(effect.level.value), "{text}", text=effect.text)

    # IStatus

    def set_value(self, key: bytes, value: bytes) -> None:
        self.perform(self.replica.set_value(key, value, self._clock()))

    def value(self, key: bytes, node: bytes) -> bytes:
        return self.replica.value(key, node)

    def log(self, priority: int, ident: bytes, tag: bytes, message: bytes, pid: int) -> None:
        self.perform(self.replica.log(priority, ident, tag, message, pid, self._clock()))

    def log_document(self, limit: int, ident: bytes) -> bytes:
        return self.replica.log_document(limit, ident)

    # What corosync says

    def quorum_changed(self, quorate: bool, node_ids: Sequence[int]) -> None:
        self.perform(self.replica.quorum_changed(quorate))

    def configuration_read(self, configuration: ClusterConfiguration) -> None:
        self.perform(self.replica.configuration_read(configuration))

    # Any thread

    def document(self, name: bytes, tree: Tree) -> bytes:
        """The content now of C{.version}, C{.members}, C{.vmlist}, C{.clusterlog} or C{.rrd} (without its NUL), of
        C{tree}.

        @raise KeyError: no such document.
        """
        return self._documents.document(name, tree, self.snapshot, self._clock().monotonic)
