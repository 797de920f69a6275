"""How the node is: a value that says it, taken in a moment on the reactor thread, and what is wrong in words.

Nothing here goes through the tree, or waits: each number is one that its owner keeps anyhow.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from errno import errorcode
from typing import TYPE_CHECKING

from pvecfs.interfaces import Backlog
from pvecfs.replica.machine import Mode
from pvecfs.tree.quoting import printable

if TYPE_CHECKING:
    from pvecfs.node.cluster import ClusterProposer, GroupService
    from pvecfs.node.hostconf import HostConfiguration
    from pvecfs.node.ledger import Ledger
    from pvecfs.node.local import LocalProposer
    from pvecfs.node.status import StatusService
    from pvecfs.node.view import NodeView
    from pvecfs.replica.member import Member
    from pvecfs.replica.status import ClusterConfiguration
    from pvecfs.tree.admission import Limits

FORMAT = 1
"""Of the JSON document: counted up when something in it is renamed or taken away."""

PATIENCE = 5.0
"""Seconds that a synchronisation, or a program with its change, may wait before that is a problem."""

CONF_PATIENCE = 10.0
"""Seconds that corosync may take to read a new corosync.conf."""

NEARLY = 0.9
"""Part of a limit from which on we are close to it."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What does not change while the daemon runs.

    @ivar mode: C{local} or C{cluster}.
    @ivar started: monotonic seconds.
    """

    node: str
    pid: int
    version: str
    mountpoint: str
    mode: str
    database: str
    durability: str
    started: float


@dataclass(frozen=True, slots=True)
class TreeHealth:
    """The newest tree, and how large it may get by changes of this node."""

    version: int
    entries: int
    bytes: int
    max_entries: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class DatabaseHealth:
    """The database.

    @ivar refuses: name of the errno for which it refused the last change; empty: it takes them.
    @ivar log_bytes: about how many bytes its log holds.
    """

    path: str
    durability: str
    refuses: str
    log_bytes: int


@dataclass(frozen=True, slots=True)
class ConfHealth:
    """Versions (C{config_version}) of corosync's configuration; 0 while one is not known.

    @ivar tree: of the cluster's corosync.conf.
    @ivar corosync: of the one that corosync runs with.
    @ivar seconds: for which the former is that.
    """

    tree: int = 0
    corosync: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class MemberHealth:
    """A member of a group.

    @ivar name: of its node; empty if that is not known.
    @ivar synced: its data is the group's.
    @ivar in_quorum: its node is in the quorum membership.
    """

    node_id: int
    pid: int
    name: str
    synced: bool
    in_quorum: bool

    def __str__(self) -> str:
        where = "" if self.in_quorum else ", not in the quorum membership"
        return f"{self.name or 'a node'} (node {self.node_id}, pid {self.pid}{where})"


@dataclass(frozen=True, slots=True)
class Waits:
    """What waits for something: how many, and the oldest. Without any: zeros and an empty path."""

    count: int = 0
    oldest_seconds: float = 0.0
    oldest_path: str = ""


@dataclass(frozen=True, slots=True)
class GroupHealth:
    """This node in a process group.

    @ivar mode: a value of L{Mode}.
    @ivar mode_seconds: for which it is in this mode.
    @ivar unsynced_seconds: for which it is not in mode C{synced}; 0 if it is.
    @ivar standing: a value of L{pvecfs.node.cluster.Standing}.
    @ivar members: in order; empty while it is not in the group.
    @ivar waits_for: the members whose state or updates the synchronisation waits for.
    @ivar absent: names of the cluster's nodes that have no member in it.
    @ivar left_because: why the group was left last, until it is synced again.
    @ivar unsent: messages that corosync did not take yet.
    @ivar delivered: messages, since the start; so are C{synchronisations} that began, and C{departures} from the group
        that this node decided on.
    """

    name: str
    mode: str
    mode_seconds: float
    unsynced_seconds: float
    standing: str
    members: tuple[MemberHealth, ...]
    waits_for: tuple[MemberHealth, ...]
    absent: tuple[str, ...]
    left_because: str
    unsent: Waits
    delivered: int
    synchronisations: int
    departures: int


@dataclass(frozen=True, slots=True)
class Health:
    """A node at one moment.

    @ivar unwritable_because: why no change of this node is carried out now; empty: it is.
    @ivar nodes_known: the cluster's node list is known; in local mode there is none to know.
    @ivar changes: changes of this node that wait for the cluster.
    @ivar requests: requests that programs at the mount wait for, those of C{changes} among them.
    @ivar ipc_clients: local programs that are connected.
    @ivar proposed: changes since the start; C{refused} of them were refused where they were submitted.
    @ivar database_refusals: how many times since the start the database began to refuse changes.
    """

    node: str
    pid: int
    version: str
    uptime_seconds: float
    mountpoint: str
    mode: str
    quorate: bool
    writable: bool
    unwritable_because: str
    nodes_known: bool
    tree: TreeHealth
    database: DatabaseHealth
    conf: ConfHealth
    groups: tuple[GroupHealth, ...]
    changes: Waits
    requests: Waits
    ipc_clients: int
    proposed: int
    refused: int
    database_refusals: int


class HealthSource:
    """Takes the node's health. Reactor thread only.

    @param clock: monotonic seconds.
    @param groups: the tree's group and the status', none in local mode.
    @param proposer: its C{backlog} is asked for if there are groups.
    @param requests: gives what programs at the mount wait for.
    @param log_bytes: gives the size of the database's log.
    @param ipc_clients: gives the number of local programs that are connected.
    @param conf: the cluster's corosync.conf.
    """

    def __init__(
        self,
        facts: NodeFacts,
        clock: Callable[[], float],
        view: NodeView,
        ledger: Ledger,
        limits: Limits,
        status: StatusService,
        proposer: ClusterProposer | LocalProposer,
        groups: Sequence[GroupService],
        requests: Callable[[], Backlog],
        log_bytes: Callable[[], int],
        ipc_clients: Callable[[], int],
        conf: HostConfiguration | None = None,
    ) -> None:
        self._facts = facts
        self._clock = clock
        self._view = view
        self._ledger = ledger
        self._limits = limits
        self._status = status
        self._proposer = proposer
        self._groups = groups
        self._requests = requests
        self._log_bytes = log_bytes
        self._ipc_clients = ipc_clients
        self._conf = conf

    def take(self) -> Health:
        """The node's health now."""
        facts, ledger, tree, now = self._facts, self._ledger, self._ledger.newest, self._clock()
        configuration = self._status.snapshot.configuration
        names = {} if configuration is None else {n.node_id: printable(n.name) for n in configuration.nodes}
        reason = self._unwritable_because()
        return Health(
            node=facts.node,
            pid=facts.pid,
            version=facts.version,
            uptime_seconds=_seconds(facts.started, now),
            mountpoint=facts.mountpoint,
            mode=facts.mode,
            quorate=self._view.partition_quorate,
            writable=not reason,
            unwritable_because=reason,
            nodes_known=configuration is not None or not self._groups,
            tree=TreeHealth(
                tree.version, len(tree), tree.total_bytes, self._limits.max_entries, self._limits.max_bytes
            ),
            database=DatabaseHealth(facts.database, facts.durability, _errno_name(ledger.doubt), self._log_bytes()),
            conf=_conf(self._conf, configuration, now),
            groups=tuple(_group(group, names, now) for group in self._groups),
            changes=_waits(self._proposer.backlog, now),
            requests=_waits(self._requests(), now),
            ipc_clients=self._ipc_clients(),
            proposed=self._proposer.proposed,
            refused=self._proposer.refused,
            database_refusals=ledger.refusals,
        )

    def document(self) -> bytes:
        """The node's health now, as JSON."""
        return document(self.take())

    def _unwritable_because(self) -> str:
        if self._ledger.failure:
            return f"the database refuses changes ({_errno_name(self._ledger.failure)})"
        if not self._view.partition_quorate:
            return "no quorum"
        if self._groups:
            machine = self._groups[0].machine
            if not machine.joined:
                return "not in the group"
            if machine.mode is not Mode.SYNCED:
                return "synchronisation"
        return ""


def _seconds(since: float, now: float) -> float:
    return round(max(0.0, now - since), 3)


def _errno_name(number: int) -> str:
    return errorcode.get(number, str(number)) if number else ""


def _conf(conf: HostConfiguration | None, configuration: ClusterConfiguration | None, now: float) -> ConfHealth:
    if conf is None:
        return ConfHealth()
    return ConfHealth(conf.version, 0 if configuration is None else configuration.version, _seconds(conf.since, now))


def _waits(backlog: Backlog, now: float) -> Waits:
    if not backlog.count:
        return Waits()
    return Waits(backlog.count, _seconds(backlog.since, now), printable(backlog.path))


def _group(group: GroupService, names: dict[int, str], now: float) -> GroupHealth:
    machine = group.machine

    def member(member: Member) -> MemberHealth:
        name = names.get(member.node_id, "")
        return MemberHealth(*member, name, member in machine.synced, machine.in_quorum(member))

    present = {member.node_id for member in machine.members} or names.keys()
    return GroupHealth(
        name=machine.group_name,
        mode=machine.mode.value,
        mode_seconds=_seconds(group.mode_since, now),
        unsynced_seconds=0.0 if group.unsynced_since is None else _seconds(group.unsynced_since, now),
        standing=group.standing.value,
        members=tuple(map(member, machine.members)),
        waits_for=tuple(map(member, machine.waiting_for)),
        absent=tuple(name for node_id, name in names.items() if node_id not in present),
        left_because=group.left_because,
        unsent=_waits(group.unsent, now),
        delivered=group.delivered,
        synchronisations=machine.synchronisations,
        departures=group.departures,
    )


# What is wrong


def problems(health: Health) -> list[str]:
    """What is wrong with the node, the worst first; empty: it is healthy."""
    found = []
    if health.database.refuses:
        found.append(f"the database refuses changes: {health.database.refuses}")
    if not health.quorate:
        found.append("no quorum: nothing can be changed on this node")
    found += [problem for group in health.groups if (problem := _group_problem(group))]
    if not health.nodes_known:
        found.append("the cluster's list of nodes is not known: corosync has not told it")
    conf = health.conf
    if conf.tree and conf.corosync and conf.tree != conf.corosync and conf.seconds >= CONF_PATIENCE:
        found.append(
            f"corosync runs with version {conf.corosync} of its configuration, "
            f"the cluster's corosync.conf is version {conf.tree}"
        )
    found += _waiting_problems(health)
    tree = health.tree
    for used, limit, what, option in (
        (tree.bytes, tree.max_bytes, "bytes of files", "--max-size"),
        (tree.entries, tree.max_entries, "entries", "--max-entries"),
    ):
        if used >= NEARLY * limit:
            found.append(f"close to the limit: {used} of {limit} {what} ({option})")
    return found


def _group_problem(group: GroupHealth) -> str:
    if group.mode in (Mode.ERROR.value, Mode.VERSION_ERROR.value):
        return f"out of group {group.name} until the daemon restarts: {group.left_because}"
    if group.unsynced_seconds < PATIENCE:
        return ""
    return f"group {group.name} is not synchronised for {group.unsynced_seconds:.0f} s: {waiting(group)}"


def waiting(group: GroupHealth) -> str:
    """What keeps C{group} from being synchronised, for people."""
    if group.waits_for:
        return f"waiting for {', '.join(map(str, group.waits_for))}"
    if group.standing == "closed":
        return "no connection to corosync"
    if group.left_because:
        return f"it was left: {group.left_because}"
    return "waiting for corosync"


def _waiting_problems(health: Health) -> list[str]:
    found = []
    for group in health.groups:
        if group.unsent.oldest_seconds >= PATIENCE:
            found.append(
                f"group {group.name}: corosync takes no messages for {group.unsent.oldest_seconds:.0f} s, "
                f"{group.unsent.count} wait to be sent"
            )
    if health.changes.oldest_seconds >= PATIENCE:
        found.append(_long(health.changes, "changes wait for the cluster"))
    elif health.requests.oldest_seconds >= PATIENCE:
        found.append(_long(health.requests, "requests of programs wait for this node"))
    return found


def _long(waits: Waits, what: str) -> str:
    path = f" ({waits.oldest_path})" if waits.oldest_path else ""
    return f"{what}: {waits.count}, the oldest for {waits.oldest_seconds:.0f} s{path}"


# As a document


def document(health: Health) -> bytes:
    """C{health} and its problems as JSON, in one line."""
    content = {"format": FORMAT, "problems": problems(health), **_fields(health)}
    return json.dumps(content, default=_fields).encode() + b"\n"


def _fields(value: object) -> dict[str, object]:
    return {name: getattr(value, name) for name in value.__slots__}  # type: ignore[attr-defined]  # a dataclass of ours
