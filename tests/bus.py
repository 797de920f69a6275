"""A simulated corosync for one group: one total order in each partition, memberships at the same point everywhere.

Small and strict: everything is delivered in lockstep, one message at a time, to all members of the sender's partition.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from pvecfs.replica.application import GroupApplication
from pvecfs.replica.effects import Effect, Halt, Leave, Log, Multicast, MulticastSeries
from pvecfs.replica.machine import GroupMachine, Mode
from pvecfs.replica.member import Instant, Member


def one_by_one(effects: Iterable[Effect]) -> Iterator[Effect]:
    """C{effects}, with each message of a series on its own."""
    for effect in effects:
        if isinstance(effect, MulticastSeries):
            yield from effect.multicasts
        else:
            yield effect


class Node:
    """A process with its machine.

    @ivar log: its log lines.
    @ivar outcomes: all effects that are the application's, in order.
    """

    def __init__(self, bus: Bus, member: Member, application: GroupApplication) -> None:
        self.bus = bus
        self.member = member
        self.machine = GroupMachine(application, lambda: 0.5)
        self.log: list[str] = []
        self.outcomes: list[Effect] = []
        self.halted = False

    def carry_out(self, effects: Iterable[Effect]) -> None:
        for effect in one_by_one(effects):
            if isinstance(effect, Multicast):
                self.bus.multicast(self.member, effect.message)
            elif isinstance(effect, Leave):
                self.bus.leave(self.member)
            elif isinstance(effect, Halt):
                self.halted = True
                self.bus.leave(self.member)
            elif isinstance(effect, Log):
                self.log.append(effect.text)
            else:
                self.outcomes.append(effect)

    def submit(self, subtype: int, payload: bytes) -> int:
        """Send a NORMAL message; its count."""
        count, multicast = self.machine.submit(subtype, payload, self.bus.now)
        self.carry_out([multicast])
        return count


class Bus:
    """The group.

    @ivar time: seconds of both clocks.
    @ivar watch: called with each message before it is delivered.
    """

    def __init__(self) -> None:
        self.time = 1000.0
        self.nodes: dict[Member, Node] = {}
        self.configurations: list[tuple[Member, ...]] = []
        self.order: deque[tuple[Member, bytes]] = deque()
        self.watch: Callable[[Member, bytes], None] = lambda sender, data: None

    @property
    def now(self) -> Instant:
        return Instant(int(self.time), self.time)

    def node(self, node_id: int, pid: int, application: GroupApplication) -> Node:
        """A process that is not in the group yet."""
        member = Member(node_id, pid)
        self.nodes[member] = Node(self, member, application)
        return self.nodes[member]

    def join(self, *nodes: Node) -> None:
        """C{nodes} join, one after the other, the first configuration there is."""
        for node in nodes:
            node.carry_out(node.machine.joined_as(node.member, self.now))
            old = self.configurations[0] if self.configurations else ()
            self._reconfigure([old], [(*old, node.member)])

    def leave(self, member: Member) -> None:
        """C{member} leaves, or dies: what it has sent and was not delivered dies with it."""
        for configuration in self.configurations:
            if member in configuration:
                self.order = deque((sender, data) for sender, data in self.order if sender != member)
                rest = tuple(other for other in configuration if other != member)
                self._reconfigure([configuration], [rest])
                return

    def kill(self, node: Node) -> None:
        """C{node} is gone without a word."""
        del self.nodes[node.member]
        self.leave(node.member)

    def partition(self, *groups: Iterable[Node]) -> None:
        """The members are now in these configurations; undelivered messages are lost where the sender is away."""
        old = list(self.configurations)
        self._reconfigure(old, [tuple(node.member for node in group) for group in groups])

    def _reconfigure(self, old: list[tuple[Member, ...]], new: list[tuple[Member, ...]]) -> None:
        was = {member: configuration for configuration in old for member in configuration}
        self.configurations = [c for c in self.configurations if c not in old]
        self.configurations += [c for c in new if c]
        for configuration in new:
            for member in sorted(configuration):
                before = was.get(member, ())
                node = self.nodes.get(member)
                if node is not None:
                    left = [other for other in before if other not in configuration]
                    joined = [other for other in configuration if other not in before]
                    node.carry_out(node.machine.membership_changed(configuration, left, joined, self.now))

    def multicast(self, sender: Member, data: bytes) -> None:
        self.order.append((sender, data))

    def run(self, steps: int = 100_000) -> None:
        """Deliver until nothing is under way."""
        for _ in range(steps):
            if not self.order:
                return
            self.step()
        raise AssertionError("the group does not come to rest")

    def step(self) -> None:
        """Deliver one message."""
        sender, data = self.order.popleft()
        self.watch(sender, data)
        for configuration in self.configurations:
            if sender in configuration:
                for member in sorted(configuration):
                    node = self.nodes.get(member)
                    if node is not None:
                        node.carry_out(node.machine.message_delivered(sender, data, self.now))
                return

    def pass_time(self, seconds: float) -> None:
        """Let time pass, with all ticks that fall due, and what they lead to."""
        end = self.time + seconds
        while True:
            self.run()
            ticks = [tick for node in self.nodes.values() if (tick := node.machine.next_tick()) is not None]
            due = min(ticks, default=end)
            if due >= end:
                break
            self.time = max(self.time, due)
            for node in list(self.nodes.values()):
                node.carry_out(node.machine.tick(self.now))
        self.time = end
        self.run()

    def rejoin(self) -> None:
        """Whoever has left joins again."""
        inside = {member for configuration in self.configurations for member in configuration}
        for member in sorted(self.nodes):
            if member not in inside and not self.nodes[member].halted:
                self.join(self.nodes[member])
        self.run()

    @property
    def all_synced(self) -> bool:
        return all(node.machine.mode is Mode.SYNCED for node in self.nodes.values())
