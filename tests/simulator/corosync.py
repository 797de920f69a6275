"""A simulated corosync: rings, quorum and closed process groups with extended virtual synchrony.

A L{Ring} is one configuration of nodes with one total order of what its members sent. A node receives that order at its
own pace, and the processes on it again at theirs. When the nodes that reach each other change, each new component forms
a ring: those of its nodes that come from the same old ring first receive the same part of its order, everything that
any of them has; what only others had is dropped with them. Then quorum is told, then who left, then who joined.

A message that is sent and has not its place in the order yet waits in its node's outbox, and goes to the next ring.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from zope.interface import implementer

from pvecfs.errors import CorosyncUnavailable, TryAgain
from pvecfs.interfaces import IGroupConnection, IGroupListener
from pvecfs.replica.member import Member
from pvecfs.replica.messages import NORMAL_HEAD

Uid = tuple[int, int, int]
"""A NORMAL message: node id, process id, count."""


class Sent(NamedTuple):
    """Something that has, or waits for, its place in the order.

    @ivar kind: C{message}, C{join} or C{leave}.
    @ivar uid: of a NORMAL message.
    """

    kind: str
    group: str
    sender: Member
    connection: SimulatedGroupConnection
    opened: int = 0
    data: bytes = b""
    uid: Uid | None = None


class Told(NamedTuple):
    """What waits in a connection for its process: C{kind} is C{message}, C{members}, C{joined} or C{lost}."""

    kind: str
    sender: Member | None = None
    data: bytes = b""
    uid: Uid | None = None
    members: tuple[Member, ...] = ()
    left: tuple[Member, ...] = ()
    joined: tuple[Member, ...] = ()


class Ring:
    """One configuration of nodes.

    @ivar quorate: whether its nodes have more than half of all votes.
    @ivar log: the order.
    """

    def __init__(self, nodes: tuple[int, ...], quorate: bool) -> None:
        self.nodes = nodes
        self.quorate = quorate
        self.log: list[Sent] = []


@implementer(IGroupConnection)
class SimulatedGroupConnection:
    """A process' connection to one group.

    @ivar queue: what waits for the process.
    @ivar inside: whether the process is told of the group: from its join's to its leave's place in the order.
    """

    def __init__(self, corosync: CorosyncNode, group: str, member: Member) -> None:
        self._corosync = corosync
        self.group = group
        self.member = member
        self.listener: IGroupListener | None = None
        self.queue: deque[Told] = deque()
        self.inside = False
        self.opened = 0  # how often: the join and the leave of an earlier connection do not concern this one
        self._connected = False
        self._asked = False
        self._sent: set[Uid] = set()

    def open(self, listener: IGroupListener) -> None:
        self.close()
        self.listener = listener
        self.queue.clear()
        corosync = self._corosync
        if not corosync.up:
            self.queue.append(Told("lost"))
            return
        self._connected = True
        self.opened += 1
        corosync.connections[self.group] = self
        self.queue.append(Told("joined"))
        self.join()

    def join(self) -> None:
        if not self._connected:
            raise CorosyncUnavailable("not connected")
        self._asked = True
        self._send("join")

    def leave(self) -> None:
        if not self._connected:
            raise CorosyncUnavailable("not connected")
        self._asked = False
        self._send("leave")

    def multicast(self, message: bytes) -> None:
        corosync = self._corosync
        if not self._connected:
            raise CorosyncUnavailable("not connected")
        if corosync.congested:
            corosync.refused = True
            raise TryAgain("congested")
        uid = None
        if len(message) >= NORMAL_HEAD.size:
            type_, _, _, _, _, count = NORMAL_HEAD.unpack_from(message)
            if type_ == 0:
                uid = (self.member.node_id, self.member.pid, count)
                if uid in self._sent:
                    corosync.sent_again.add((self.group, uid))
                self._sent.add(uid)
        corosync.outbox.append(Sent("message", self.group, self.member, self, self.opened, message, uid))

    def close(self) -> None:
        self.listener = None
        self.queue.clear()
        self.inside = False
        if self._connected:
            self._connected = False
            if self._asked:
                self._asked = False
                self._send("leave")
            if self._corosync.connections.get(self.group) is self:
                del self._corosync.connections[self.group]

    def lose(self) -> None:
        """Corosync died."""
        self._connected = False
        self._asked = False
        self.inside = False
        self.queue.clear()
        self.queue.append(Told("lost"))

    def _send(self, kind: str) -> None:
        self._corosync.outbox.append(Sent(kind, self.group, self.member, self, self.opened))

    def tell_next(self) -> None:
        """Give the process what it waits for next."""
        told = self.queue.popleft()
        listener = self.listener
        if listener is None:
            return
        kind = told.kind
        if kind == "message":
            assert told.sender is not None
            listener.message_delivered(told.sender, told.data)
        elif kind == "members":
            listener.membership_changed(told.members, told.left, told.joined)
        elif kind == "joined":
            listener.joined_as(self.member)
        else:
            self.listener = None
            listener.connection_lost(CorosyncUnavailable("corosync is gone"))


class CorosyncNode:
    """Corosync on one node.

    @ivar ring: the ring it is in; of none while it is down.
    @ivar congested: it takes no messages now.
    @ivar refused: it has refused one.
    @ivar sent_again: by group, the messages that its process has sent more than once.
    @ivar position: how far it has received the ring's order.
    @ivar view: the members of each group at that position.
    @ivar quorum: notifications of quorum that wait for this node's process.
    """

    def __init__(self, node_id: int, votes: int) -> None:
        self.node_id = node_id
        self.votes = votes
        self.up = True
        self.congested = False
        self.refused = False
        self.sent_again: set[tuple[str, Uid]] = set()
        self.ring = Ring((node_id,), False)
        self.position = 0
        self.view: dict[str, frozenset[Member]] = {}
        self.connections: dict[str, SimulatedGroupConnection] = {}
        self.outbox: deque[Sent] = deque()
        self.quorum: deque[tuple[bool, tuple[int, ...]]] = deque()

    @property
    def behind(self) -> int:
        """How many entries of the order have not been received."""
        return len(self.ring.log) - self.position

    def order(self, count: int) -> int:
        """Give the next C{count} of the outbox their place in the order; the sender has all up to there."""
        outbox, log = self.outbox, self.ring.log
        done = 0
        while outbox and done < count:
            log.append(outbox.popleft())
            done += 1
        if done:
            self.receive(len(log))
        return done

    def receive(self, count: int) -> int:
        """Receive the next C{count} entries of the order."""
        log = self.ring.log
        end = min(len(log), self.position + count)
        start = self.position
        for index in range(start, end):
            self.position = index + 1
            self._received(log[index])
        return end - start

    def _received(self, sent: Sent) -> None:
        group, sender = sent.group, sent.sender
        members = self.view.get(group, frozenset())
        if sent.kind == "message":
            if sender in members:
                connection = self.connections.get(group)
                if connection is not None and connection.inside:
                    connection.queue.append(Told("message", sender, sent.data, sent.uid))
        elif sent.kind == "join":
            if self._is_current(sent):
                sent.connection.inside = True
            self.change_view(group, members | {sender}, (), (sender,))
        elif sender in members:
            self.change_view(group, members - {sender}, (sender,), ())
            if self._is_current(sent):
                sent.connection.inside = False

    def _is_current(self, sent: Sent) -> bool:
        connection = sent.connection
        return self.connections.get(sent.group) is connection and connection.opened == sent.opened

    def change_view(
        self, group: str, members: frozenset[Member], left: Sequence[Member], joined: Sequence[Member]
    ) -> None:
        """The group's members are C{members} now."""
        self.view[group] = members
        connection = self.connections.get(group)
        if connection is not None and connection.inside:
            connection.queue.append(
                Told("members", members=tuple(sorted(members)), left=tuple(left), joined=tuple(joined))
            )

    def tell_quorum(self) -> None:
        """Queue what quorum is now."""
        self.quorum.append((self.ring.quorate, self.ring.nodes))

    def kill(self) -> None:
        """Corosync dies, with all it has not sent."""
        self.up = False
        self.outbox.clear()
        for connection in list(self.connections.values()):
            connection.lose()
        self.connections.clear()
        self.view = {}
        self.ring = Ring((self.node_id,), False)
        self.position = 0
        self.quorum.clear()
        self.quorum.append((False, ()))


class Network:
    """All nodes' corosync, and who reaches whom.

    @ivar component: of each node id; nodes of one component reach each other.
    """

    def __init__(self, votes: Sequence[int]) -> None:
        self.nodes = {index + 1: CorosyncNode(index + 1, vote) for index, vote in enumerate(votes)}
        self.votes = sum(votes)
        self.component = dict.fromkeys(self.nodes, 0)

    def has_majority(self, nodes: Iterable[int]) -> bool:
        """Whether C{nodes} have more than half of the votes."""
        return 2 * sum(self.nodes[node_id].votes for node_id in nodes) > self.votes

    def reform(self, safe: bool, before_change: Callable[[], None] = lambda: None) -> None:
        """Form the rings of the components, where they are not those that are.

        @param safe: what any node of a ring has received, the part of it that keeps the majority receives as well.
            Corosync does not promise that: a node that is cut off may have delivered what nobody else has.
        @param before_change: called when the rest of the old orders was received and nobody knows of the change yet.
        """
        components: dict[int, list[CorosyncNode]] = {}
        for node_id, component in self.component.items():
            if self.nodes[node_id].up:
                components.setdefault(component, []).append(self.nodes[node_id])
        changed = [nodes for nodes in components.values() if self._ring_of(nodes) is None]
        if not changed:
            return
        for nodes in changed:
            rings: dict[int, list[CorosyncNode]] = {}
            for node in nodes:
                rings.setdefault(id(node.ring), []).append(node)
            for together in rings.values():
                end = max(node.position for node in together)
                if safe and self.has_majority(node.node_id for node in together):
                    end = len(together[0].ring.log)
                for node in together:
                    node.receive(end - node.position)
        before_change()
        for nodes in changed:
            ids = tuple(node.node_id for node in nodes)
            self._form(nodes, Ring(ids, self.has_majority(ids)))

    def _ring_of(self, nodes: list[CorosyncNode]) -> Ring | None:
        """The ring that C{nodes}, all of a component, form already."""
        ring = nodes[0].ring
        if ring.nodes == tuple(node.node_id for node in nodes) and all(node.ring is ring for node in nodes):
            return ring
        return None

    def _form(self, nodes: list[CorosyncNode], ring: Ring) -> None:
        groups: dict[str, set[Member]] = {}
        for node in nodes:
            for group, members in node.view.items():
                groups.setdefault(group, set()).update(member for member in members if member.node_id == node.node_id)
        for node in nodes:
            node.ring = ring
            node.position = 0
            node.tell_quorum()
        for group, present in groups.items():
            members = frozenset(present)
            for node in nodes:
                before = node.view.get(group, frozenset())
                left = sorted(before - members)
                joined = sorted(members - before)
                if left:
                    node.change_view(group, before & members, left, ())
                if joined:
                    node.change_view(group, members, (), joined)
                if not left and not joined:
                    node.view[group] = members
