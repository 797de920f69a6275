"""The status replica: this node's status values and the other nodes', addresses, RRD lines and the cluster log.

It is the application of group C{pve_kvstore_v1} (30-replication.md, "kvstore callbacks"; 40-status.md) and works
without a group as well: then nobody carries out what it asks to send. Pure: time comes in, effects go out.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence

from immutables import Map

from pvecfs.replica.application import Verdict
from pvecfs.replica.clusterlog import DEFAULT_LIMIT, ClusterLog, LogEntry, decode_ring, digest, log_document
from pvecfs.replica.effects import Effect, Level, Log, PublishStatus, RoundRobinUpdate, Send
from pvecfs.replica.member import Instant, Member
from pvecfs.replica.messages import KEY_SIZE, Normal, StatusSubtype, ValuePayload
from pvecfs.replica.status import RRD_SECONDS, ClusterConfiguration, NodeVersions, RrdLine, StatusSnapshot
from pvecfs.tree.errors import MalformedMessage, OperationError

MAX_VALUE = 32 * 1024
"""Bytes of the largest value."""

MAX_REMOVED = 256
"""Removed keys that are remembered; then the one that was removed longest ago is forgotten."""

NODE_ADDRESS = b"nodeip"
RRD_PREFIX = b"rrd/"

MAX_ADDRESS = 255
"""Bytes of the longest address, its NUL included."""

MAX_RRD_LINE = 4095
"""Bytes of the longest RRD line, its NUL included."""


class NodeValues:
    """The values of one node, with the version of each: 0 when the key appears, one more for every later set."""

    def __init__(self) -> None:
        self._values: dict[bytes, tuple[int, bytes]] = {}

    def put(self, key: bytes, value: bytes) -> bool:
        """Set C{key}, or remove it with an empty value; whether anything changed."""
        if not value:
            return self._values.pop(key, None) is not None
        known = self._values.get(key)
        self._values[key] = (0 if known is None else known[0] + 1, value)
        return True

    def get(self, key: bytes) -> bytes | None:
        known = self._values.get(key)
        return None if known is None else known[1]

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values, in the order in which the keys appeared."""
        return ((key, value) for key, (_version, value) in self._values.items())

    def versions(self) -> tuple[tuple[bytes, int], ...]:
        """Keys and versions, by key."""
        return tuple((key, self._values[key][0]) for key in sorted(self._values))


def is_address(value: bytes) -> bool:
    """Whether C{value} may be published under C{nodeip}: 1 to 255 bytes, the last one NUL."""
    return len(value) <= MAX_ADDRESS and value.endswith(b"\0")


def is_rrd_line(value: bytes) -> bool:
    """Whether C{value} may be published under C{rrd/}: shorter than 4096 bytes, the last one NUL."""
    return len(value) <= MAX_RRD_LINE and value.endswith(b"\0")


def _text(value: bytes) -> bytes:
    """A C string's bytes."""
    return value.split(b"\0", 1)[0]


class StatusReplica:
    """The status of the cluster as this node knows it. Implements L{pvecfs.replica.application.GroupApplication}.

    @ivar snapshot: the newest status, immutable.
    """

    group_name = "pve_kvstore_v1"
    protocol_version = 0
    verified = False

    def __init__(self, nodename: bytes, pid: int, starttime: int, address: bytes) -> None:
        """
        @param pid: this process's id, for its log entries.
        @param starttime: seconds since 1970.
        @param address: this node's own address, text without NUL; published unless another one is set.
        """
        self.snapshot = StatusSnapshot(nodename, starttime)
        self._nodename = nodename
        self._pid = pid
        self._starttime = starttime
        self._address = address
        self._published: bytes | None = None  # our address as the nodes know it
        self._node_id: int | None = None
        self._clinfo = 0
        self._configuration: ClusterConfiguration | None = None
        self._names: dict[int, bytes] = {}
        self._quorate = False
        self._online: frozenset[int] = frozenset()
        self._own = NodeValues()
        # Keys that this process removed, the newest last: who was cut off at that time still has them.
        self._removed: dict[bytes, None] = {}
        self._others: dict[int, NodeValues] = {}
        self._addresses: dict[int, bytes] = {}
        self._rrd: dict[bytes, RrdLine] = {}  # oldest arrival first
        self._log = ClusterLog()
        self._uid = 0
        self._versions_part: tuple[NodeVersions, ...] = ()
        self._log_part: tuple[LogEntry, ...] = ()
        self._rrd_part: Map[bytes, RrdLine] = Map()

    # What this node does

    def begin(self, now: Instant) -> Sequence[Effect]:
        """The daemon starts: the log's first entry, which is not sent, since nobody can hear it yet."""
        self._written(6, b"root", b"cluster", b"starting cluster log", self._pid, now)
        self._versions_changed()
        return (self._publish(),)

    def set_value(self, key: bytes, value: bytes, now: Instant) -> Sequence[Effect]:
        """Set this node's C{key}, or remove it with an empty C{value}.

        @raise OperationError: EFBIG above 32 KiB, ENOMEM for a malformed C{nodeip} or C{rrd/} value, EINVAL for a key
            that does not fit into a message; nothing is changed or sent then.
        """
        if len(key) >= KEY_SIZE or b"\0" in key:
            raise OperationError(errno.EINVAL)
        if len(value) > MAX_VALUE:
            raise OperationError(errno.EFBIG)
        effects: list[Effect] = []
        if key == NODE_ADDRESS:
            if not is_address(value):
                raise OperationError(errno.ENOMEM)
            self._address = _text(value)
            self._address_published()
        elif key.startswith(RRD_PREFIX):
            if not is_rrd_line(value):
                raise OperationError(errno.ENOMEM)
            effects.append(self._rrd_arrived(key, value, now))
        else:
            self._remember_removal(key, not value)
            if self._own.put(key, value):
                self._versions_changed()
        effects.append(Send(StatusSubtype.UPDATE, ValuePayload(key, value).encode()))
        effects.append(self._publish())
        return effects

    def log(self, priority: int, ident: bytes, tag: bytes, message: bytes, pid: int, now: Instant) -> Sequence[Effect]:
        """Write an entry into the cluster log and tell the others. A C{priority} that is not 0 to 7 logs nothing."""
        if not 0 <= priority <= 7:
            return ()
        entry = self._written(priority, ident, tag, message, pid, now)
        return (Send(StatusSubtype.LOG, entry.encode()), self._publish())

    def value(self, key: bytes, node: bytes) -> bytes:
        """The value of C{key} on C{node}; an empty C{node} is this one.

        @raise OperationError: ENOENT.
        """
        value = None
        if not node or node == self._nodename:
            value = self._own.get(key)
        else:
            for node_id, name in self._names.items():
                if name == node:
                    values = self._own if node_id == self._node_id else self._others.get(node_id)
                    value = None if values is None else values.get(key)
        if value is None:
            raise OperationError(errno.ENOENT)
        return value

    def log_document(self, limit: int, ident: bytes) -> bytes:
        """The newest C{limit} (0: 50) entries as JSON; of one C{ident} unless that is empty."""
        return log_document(self._log, limit or DEFAULT_LIMIT, ident)

    # What happens around it

    def configuration_read(self, configuration: ClusterConfiguration) -> Sequence[Effect]:
        """The cluster's configuration was read. Nodes that remain keep what is known of them."""
        self._configuration = configuration
        self._names = {node.node_id: node.name for node in configuration.nodes}
        if self._node_id is None:
            self._node_id = next((node_id for node_id, name in self._names.items() if name == self._nodename), None)
        for known in (self._others, self._addresses):
            for node_id in [node_id for node_id in known if node_id not in self._names]:
                del known[node_id]
        self._clinfo += 1
        self._versions_changed()
        return (self._publish(),)

    def quorum_changed(self, quorate: bool) -> Sequence[Effect]:
        """This partition may write, or not."""
        self._quorate = quorate
        return (self._publish(),)

    # The group's side

    def state(self) -> bytes:
        return self._log.state()

    def states_collected(self, states: Mapping[Member, bytes], own: Member, now: Instant) -> Verdict:
        self._learn_node_id(own)
        effects: list[Effect] = []
        logs: list[list[LogEntry] | None] = []
        for member, state in states.items():
            if member == own:
                logs.append(None)
                continue
            entries, defect = decode_ring(state)
            if defect:
                effects.append(Log(Level.WARN, f"cluster log of member {member}: {defect}"))
            logs.append(entries)
        self._log.merge(logs)
        self._log_part = self._log.newest()
        resent = (*self._own.items(), *((key, b"") for key in self._removed))
        effects.extend(Send(StatusSubtype.UPDATE, ValuePayload(key, value).encode()) for key, value in resent)
        effects.append(self._publish())
        return Verdict(leader=next(iter(states)), synced=frozenset(states), effects=effects)

    def deliver(self, message: Normal, sender: Member, own: bool, lowest: bool, now: Instant) -> Sequence[Effect]:
        if own:
            self._learn_node_id(sender)
        if own or sender.node_id == self._node_id:
            return ()  # applied when it was sent
        try:
            match message.subtype:
                case StatusSubtype.UPDATE:
                    return self._value_arrived(ValuePayload.decode(message.payload), sender, now)
                case StatusSubtype.LOG:
                    return self._entry_arrived(LogEntry.decode(message.payload))
        except MalformedMessage as defect:
            return (Log(Level.WARN, f"status message of member {sender} ignored: {defect}"),)
        return (Log(Level.WARN, f"status message of member {sender} ignored: unknown subtype {message.subtype}"),)

    def membership_changed(
        self, members: Sequence[Member], left: Sequence[Member], joined: Sequence[Member], now: Instant
    ) -> Sequence[Effect]:
        # A node that is away keeps its values, and so does one that comes back as another process: only an empty value
        # removes (40-status.md).
        self._online = frozenset(member.node_id for member in members)
        if self._configuration is not None:
            self._clinfo += 1
        return (self._publish(),)

    def became_synced(self, now: Instant) -> Sequence[Effect]:
        self._address_published()
        address = Send(StatusSubtype.UPDATE, ValuePayload(NODE_ADDRESS, self._address + b"\0").encode())
        return (address, self._publish())

    def checksum(self) -> bytes:
        return bytes(32)  # never asked for: this group is not verified

    # Inside

    def _learn_node_id(self, own: Member) -> None:
        """Corosync's word on our node id outweighs the node list's names."""
        if self._node_id != own.node_id:
            self._node_id = own.node_id
            self._others.pop(own.node_id, None)
            self._addresses.pop(own.node_id, None)
            self._versions_changed()

    def _remember_removal(self, key: bytes, removed: bool) -> None:
        self._removed.pop(key, None)
        if removed:
            self._removed[key] = None
            if len(self._removed) > MAX_REMOVED:
                del self._removed[next(iter(self._removed))]

    def _written(self, priority: int, ident: bytes, tag: bytes, message: bytes, pid: int, now: Instant) -> LogEntry:
        """The next entry of this process. Everyone would drop one that is not newer than our last: if the clock was set
        back, it takes the first time that is."""
        self._uid += 1
        newest = self._log.newest_of(digest(self._nodename))
        time = max(now.wall, newest[0] + (newest[1] >= self._uid))
        entry = LogEntry.written(self._uid, time, self._nodename, ident, tag, message, pid, priority)
        self._entry_inserted(entry)
        return entry

    def _entry_inserted(self, entry: LogEntry) -> bool:
        inserted = self._log.insert(entry)
        if inserted:
            self._log_part = self._log.newest()
        return inserted

    def _entry_arrived(self, entry: LogEntry) -> Sequence[Effect]:
        return (self._publish(),) if self._entry_inserted(entry) else ()

    def _value_arrived(self, update: ValuePayload, sender: Member, now: Instant) -> Sequence[Effect]:
        """A value of another node. What it would not have been allowed to set is dropped."""
        key, value, node_id = update.key, update.value, sender.node_id
        # A new node's name may be read later than its values come, which it sends once only. So they are kept, and not
        # shown; what turns out to be of no node is dropped when the configuration is read.
        unknown = self._configuration is not None and node_id not in self._names
        if key == NODE_ADDRESS:
            if not is_address(value) or self._addresses.get(node_id) == _text(value):
                return ()
            self._addresses[node_id] = _text(value)
            self._clinfo += not unknown
        elif key.startswith(RRD_PREFIX):
            if unknown or not is_rrd_line(value):
                return ()
            return (self._rrd_arrived(key, value, now), self._publish())
        elif len(value) > MAX_VALUE:
            raise MalformedMessage(f"a value of {len(value)} bytes")
        else:
            values = self._others.get(node_id)
            if values is None:
                if not value:
                    return ()
                values = self._others[node_id] = NodeValues()
            if not values.put(key, value):
                return ()
            self._versions_changed()
        return (self._publish(),)

    def _address_published(self) -> None:
        if self._published != self._address:
            self._published = self._address
            self._clinfo += 1

    def _rrd_arrived(self, key: bytes, value: bytes, now: Instant) -> RoundRobinUpdate:
        name, line = key[len(RRD_PREFIX) :], _text(value)
        self._rrd.pop(name, None)
        self._rrd[name] = RrdLine(name, line, now.monotonic)
        lines = self._rrd_part.set(name, self._rrd[name])
        while (oldest := next(iter(self._rrd.values()))).arrived < now.monotonic - RRD_SECONDS:
            del self._rrd[oldest.key]
            lines = lines.delete(oldest.key)
        self._rrd_part = lines
        return RoundRobinUpdate(name, line)

    def _versions_changed(self) -> None:
        others = sorted(node_id for node_id in self._others if node_id in self._names and node_id != self._node_id)
        self._versions_part = (
            NodeVersions(self._nodename, self._own.versions()),
            *(NodeVersions(self._names[node_id], self._others[node_id].versions()) for node_id in others),
        )

    def _publish(self) -> PublishStatus:
        addresses = dict(self._addresses)
        if self._node_id is not None and self._published is not None:
            addresses[self._node_id] = self._published
        self.snapshot = StatusSnapshot(
            nodename=self._nodename,
            starttime=self._starttime,
            clinfo=self._clinfo,
            configuration=self._configuration,
            quorate=self._quorate,
            online=self._online,
            addresses=tuple(sorted(addresses.items())),
            versions=self._versions_part,
            log=self._log_part,
            rrd=self._rrd_part,
        )
        return PublishStatus(self.snapshot)
