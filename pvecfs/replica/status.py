"""What a node knows of its cluster's nodes, as immutable values that any thread may read."""

from __future__ import annotations

from dataclasses import dataclass, field

from immutables import Map

from pvecfs.replica.clusterlog import LogEntry

RRD_SECONDS = 300.0
"""Seconds for which an RRD line is live after it arrived here."""


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """One node of the cluster's node list (libcmap, C{nodelist.node.<i>.})."""

    node_id: int
    name: bytes
    votes: int = 1


@dataclass(frozen=True, slots=True)
class ClusterConfiguration:
    """The cluster's configuration as corosync knows it: C{totem.cluster_name}, C{totem.config_version}, the nodes."""

    name: bytes
    version: int
    nodes: tuple[NodeInfo, ...]


@dataclass(frozen=True, slots=True)
class RrdLine:
    """The newest value of an RRD key; C{arrived} is a monotonic time, seconds."""

    key: bytes
    value: bytes
    arrived: float


@dataclass(frozen=True, slots=True)
class NodeVersions:
    """The keys of one node with their versions, in ascending order of the keys."""

    node: bytes
    versions: tuple[tuple[bytes, int], ...]


@dataclass(frozen=True, slots=True)
class StatusSnapshot:
    """All that the status documents need besides the tree.

    @ivar starttime: seconds since 1970 at which the daemon started.
    @ivar clinfo: counter of the changes of cluster information.
    @ivar configuration: None without a cluster, or while it was not read yet.
    @ivar online: ids of the nodes that were members of the status group at its last change that this node heard of.
    @ivar addresses: published address of each node id that published one.
    @ivar versions: this node first, then the other nodes that have values, by node id.
    @ivar log: the newest entries of the cluster log, newest first, as many as the document shows.
    @ivar rrd: lines by key (a tree of hashes: there may be thousands, and each update makes a new snapshot), dead ones
        among them.
    """

    nodename: bytes
    starttime: int
    clinfo: int = 0
    configuration: ClusterConfiguration | None = None
    quorate: bool = False
    online: frozenset[int] = frozenset()
    addresses: tuple[tuple[int, bytes], ...] = ()
    versions: tuple[NodeVersions, ...] = ()
    log: tuple[LogEntry, ...] = ()
    rrd: Map[bytes, RrdLine] = field(default_factory=Map)
