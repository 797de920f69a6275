"""A simulated node: a daemon's real services, with a clock, a database and a corosync that the simulation holds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from errno import ENOSPC
from random import Random
from typing import TYPE_CHECKING, cast

from twisted.internet.task import Clock

from pvecfs.node.cluster import ClusterProposer, GroupService, _Proposal
from pvecfs.node.ledger import Ledger
from pvecfs.node.status import NoRoundRobin, StatusService
from pvecfs.node.view import NodeView
from pvecfs.replica.dcdb import TreeReplica
from pvecfs.replica.effects import Commit, Effect, Multicast, Settle
from pvecfs.replica.kvstore import StatusReplica
from pvecfs.replica.machine import GroupMachine, Mode
from pvecfs.replica.member import Instant, Member
from pvecfs.replica.messages import Normal, decode_entry
from pvecfs.replica.status import ClusterConfiguration
from pvecfs.store.errors import StoreError
from pvecfs.store.memory import MemoryStore
from pvecfs.tree.admission import Limits
from pvecfs.tree.entry import Entry
from pvecfs.tree.locks import LockClocks
from pvecfs.tree.tree import Delta, Tree
from tests.simulator.corosync import CorosyncNode, SimulatedGroupConnection, Uid

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pvecfs.interfaces import Settled
    from pvecfs.node.cluster import ClusterReactor
    from pvecfs.replica.application import UpdateReceiver, Verdict
    from tests.simulator.checks import History

TREE_GROUP = "pve_dcdb_v1"
STATUS_GROUP = "pve_kvstore_v1"

WALL_START = 1_800_000_000

Chain = tuple[Uid, ...]
"""The messages that made a tree, in order, without those that changed nothing. L{BASE} stands for the initial tree."""

BASE: Uid = (0, 0, 0)

LIMITS = Limits()


MOST_CALLS = 100_000
"""Delayed calls in one step of time: 125 s of a message that is offered every 10 ms are 12,500."""


class NodeClock(Clock):
    """A node's monotonic clock and its reactor's other thread."""

    def __init__(self, now: float) -> None:
        super().__init__()
        self.rightNow = now
        self._from_threads: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()

    def callFromThread(self, callable: Callable[..., object], *args: object) -> None:
        self._from_threads.append((callable, args))

    def advance(self, amount: float) -> None:
        """As L{Clock.advance}; but what finds something to do at the same time again and again is no progress."""
        self.rightNow += amount
        self._sortCalls()
        for _ in range(MOST_CALLS):
            if not self.calls or self.calls[0].getTime() > self.rightNow:
                return
            call = self.calls.pop(0)
            call.called = 1
            call.func(*call.args, **call.kw)
        raise AssertionError("the node calls itself for ever")

    def turn(self) -> bool:
        """Run what other threads left and what is due; whether there was anything."""
        busy = False
        while self._from_threads:
            busy = True
            callable, args = self._from_threads.popleft()
            callable(*args)
        if self.calls and self.calls[0].getTime() <= self.rightNow:
            busy = True
            self.advance(0)
        return busy


class ObservedStore(MemoryStore):
    """A L{MemoryStore} that tells which chain is stored."""

    def __init__(self, node: SimulatedNode, rows: dict[int, Entry]) -> None:
        super().__init__(manual=True)
        self.rows = rows
        self._node = node

    def _settle(self, batch: list[tuple[Delta | None, Settled]]) -> None:
        trees = [delta.tree for delta, _ in batch if delta is not None]
        if trees and self.failure is None and self.broken is None:
            self._node.stored_chain = self._node.chain_of(trees[-1])
        super()._settle(batch)


class ObservedReplica(TreeReplica):
    """A L{TreeReplica} that tells the history what it did."""

    def __init__(self, tree: Tree, locks: LockClocks, node: SimulatedNode) -> None:
        super().__init__(tree, locks)
        self._node = node

    def state(self) -> bytes:
        state = super().state()
        self._node.history.state_sent(self._node, state)
        return state

    def states_collected(self, states: Mapping[Member, bytes], own: Member, now: Instant) -> Verdict:
        verdict = super().states_collected(states, own, now)
        if verdict.receiver is None:
            return verdict
        leader = verdict.leader
        return replace(verdict, receiver=ObservedReceiver(verdict.receiver, self, self._node, leader, states[leader]))

    def deliver(self, message: Normal, sender: Member, own: bool, lowest: bool, now: Instant) -> Sequence[Effect]:
        before = self.tree
        effects = super().deliver(message, sender, own, lowest, now)
        outcome: object = None
        for effect in effects:
            if isinstance(effect, Commit):
                outcome = (effect.delta.stored, effect.delta.deleted)
                break
            if isinstance(effect, Settle) and effect.outcome:
                break
        uid = (sender.node_id, sender.pid, message.count)
        self._node.history.delivered(self._node, uid, message.payload, before, self.tree, outcome)
        return effects

    def reset(self, tree: Tree) -> None:
        super().reset(tree)
        self._node.history.rolled_back(self._node, tree)


class ObservedReceiver:
    """The receiver of an L{ObservedReplica}: it tells the history what becomes of the leader's updates.

    @ivar inodes: of the entries that came, in order.
    """

    def __init__(
        self, receiver: UpdateReceiver, replica: TreeReplica, node: SimulatedNode, leader: Member, state: bytes
    ) -> None:
        self.inodes: list[int] = []
        self._receiver = receiver
        self._replica = replica
        self._node = node
        self._leader = leader
        self._state = state

    def receive(self, payload: bytes) -> None:
        self.inodes.append(decode_entry(payload).inode)
        self._receiver.receive(payload)

    def commit(self, now: Instant) -> Sequence[Effect]:
        self._node.history.updates_received(self._node, self.inodes)
        effects = self._receiver.commit(now)
        self._node.history.synchronised(self._node, self._leader, self._state, self._replica.tree)
        return effects


class ObservedMachine(GroupMachine):
    """A L{GroupMachine} that tells the history what its process sends."""

    def __init__(self, replica: TreeReplica, node: SimulatedNode, verify_interval: float) -> None:
        super().__init__(replica, node.random.random, verify_interval)
        self._history = node.history

    @property
    def has_updates(self) -> bool:
        """Whether we are in the middle of a leader's updates."""
        return isinstance(self._receiver, ObservedReceiver) and bool(self._receiver.inodes)

    def submit(self, subtype: int, payload: bytes, now: Instant) -> tuple[int, Multicast]:
        count, multicast = super().submit(subtype, payload, now)
        self._history.submitted[(*self.own, count)] = payload
        return count, multicast


class ObservedProposer(ClusterProposer):
    """A L{ClusterProposer} that tells each change's client by which message it went out.

    @ivar departures: how often the group was left, joined or lost.
    """

    departures = 0

    def _submit(self, proposal: _Proposal) -> None:
        super()._submit(proposal)
        machine = self._service.machine
        # The message can only come back later: the simulated corosync does nothing by itself.
        if machine.joined:
            proposal.acknowledge.uid = (*machine.own, machine._message_count)  # type: ignore[attr-defined]  # an Operation

    def _fail_waiting(self, errno: int) -> None:
        super()._fail_waiting(errno)
        self.departures += 1


class SimulatedNode:
    """One node: its disk and its corosync stay, its daemon comes and goes.

    @ivar rows: what its database holds.
    @ivar stored_chain: the chain of what its database holds.
    @ivar chain: the chain of its daemon's newest tree.
    @ivar skew: seconds by which its wall clock is ahead.
    """

    def __init__(
        self,
        node_id: int,
        corosync: CorosyncNode,
        history: History,
        random: Random,
        rows: dict[int, Entry],
        tree: Tree | None,
        skew: int,
        configuration: ClusterConfiguration | None,
        verify_interval: float,
    ) -> None:
        self.node_id = node_id
        self.name = b"n%d" % node_id
        self.corosync = corosync
        self.history = history
        self.rows = rows
        self.stored_chain: Chain = (BASE,)
        self.chain: Chain = (BASE,)
        self.skew = skew
        self.alive = False
        self.frozen = False
        self.starts = 0
        self._initial_tree = tree
        self.random = random
        self._configuration = configuration
        self._verify_interval = verify_interval
        self._trees: deque[tuple[Tree, Chain]] = deque()

    def start(self, now: float) -> None:
        """Start the daemon on the database."""
        self.alive = True
        self.frozen = False
        self.starts += 1
        self.pid = 1000 * self.starts + self.node_id
        self.clock = clock = NodeClock(now)
        self.store = ObservedStore(self, self.rows)
        tree, self._initial_tree = self._initial_tree, None
        if tree is None:
            tree = self.store.stored()
        self.chain = self.stored_chain
        self._trees.clear()
        self._trees.append((tree, self.chain))
        self.view = NodeView(tree, self.name, LIMITS, False, False, _no_debug)
        reactor = cast("ClusterReactor", clock)
        ledger = self.ledger = Ledger(clock, self.store, self.view)
        locks = LockClocks()
        self.replica = ObservedReplica(tree, locks, self)
        self.machine = ObservedMachine(self.replica, self, self._verify_interval)
        member = Member(self.node_id, self.pid)
        self.connection = SimulatedGroupConnection(self.corosync, TREE_GROUP, member)
        self.service = GroupService(clock, self.connection, self.machine, self.instant)
        self.proposer = ObservedProposer(reactor, self.service, self.replica, ledger, LIMITS, 60.0)
        ledger.listener = self.proposer
        self.connections = [self.connection]
        self.status: StatusService | None = None
        if self._configuration is not None:
            self._start_status(member)
        self.corosync.quorum.clear()
        if self.corosync.up:
            self.corosync.tell_quorum()
        self.service.startService()
        self.turn()

    def _start_status(self, member: Member) -> None:
        assert self._configuration is not None
        replica = StatusReplica(self.name, self.pid, self.instant().wall, b"10.0.0.%d" % self.node_id)
        self.status = status = StatusService(replica, NoRoundRobin(), self.instant)
        status.configuration_read(self._configuration)
        connection = SimulatedGroupConnection(self.corosync, STATUS_GROUP, member)
        machine = GroupMachine(replica, self.random.random)
        self.status_service = GroupService(
            self.clock, connection, machine, self.instant, lambda effect: status.perform((effect,))
        )
        status.attach_group(self.status_service.send_status)
        status.begin()
        self.connections.append(connection)
        self.status_service.startService()

    def instant(self) -> Instant:
        """What the node's clocks say."""
        now = self.clock.rightNow
        return Instant(WALL_START + int(now) + self.skew, now)

    # -- life

    def kill(self) -> None:
        """The daemon is killed with -9: what its database has not committed is gone."""
        if not self.alive:
            return
        self.alive = False
        self.frozen = False
        self.rows = self.store.rows
        self.history.memory_lost(self)
        for connection in self.connections:
            connection.close()

    def wipe(self, tree: Tree) -> None:
        """The database is lost; C{tree} is that of a new one."""
        self.rows = {entry.inode: entry for entry in tree.entries()}
        self.stored_chain = self.chain = ()
        self._initial_tree = tree

    @property
    def runs(self) -> bool:
        return self.alive and not self.frozen

    # -- work

    @property
    def waiting(self) -> int:
        """How many events wait for the daemon."""
        return sum(len(connection.queue) for connection in self.connections) + len(self.corosync.quorum)

    def run(self, count: int) -> int:
        """Let the daemon take up to C{count} events from corosync; quorum's always first."""
        done = 0
        quorum = self.corosync.quorum
        self.turn()
        while done < count and self.runs:
            while quorum:
                self._quorum_changed(*quorum.popleft())
                done += 1
            connections = [connection for connection in self.connections if connection.queue]
            if not connections:
                break
            connections[done % len(connections)].tell_next()
            done += 1
            self.turn()
        return done

    def turn(self) -> bool:
        """Let the daemon's reactor do what is due."""
        return self.clock.turn()

    def settle(self, count: int = 0) -> int:
        """Let the store commit what it was handed, whatever C{count}."""
        done = self.store.settle() if self.store.waiting else 0
        if done:
            self.turn()
        return done

    def advance(self, seconds: float) -> None:
        """Time passes for the daemon."""
        self.clock.advance(seconds)
        self.turn()

    def _quorum_changed(self, quorate: bool, nodes: tuple[int, ...]) -> None:
        self.proposer.quorum_changed(quorate, nodes)
        self.view.quorum_changed(quorate)
        if self.status is not None:
            self.status_service.quorum_changed(nodes)
            self.status.quorum_changed(quorate, nodes)

    def fail_disk(self, failing: bool) -> None:
        """From now on the database refuses changes, or takes them again."""
        self.store.failure = StoreError(ENOSPC) if failing else None

    # -- chains

    def extend(self, uid: Uid, tree: Tree) -> None:
        """C{uid} was applied and gave C{tree}."""
        self.chain = (*self.chain, uid)
        self._trees.append((tree, self.chain))

    def adopt(self, chain: Chain, tree: Tree) -> None:
        """The daemon's tree is now C{tree}."""
        self.chain = chain
        self._trees.append((tree, chain))

    def roll_back(self, tree: Tree) -> None:
        """The daemon's tree is what the database holds."""
        self.chain = self.stored_chain
        self._trees.clear()
        self._trees.append((tree, self.chain))

    def chain_of(self, tree: Tree) -> Chain:
        """The chain of a tree that is being stored; older ones are forgotten."""
        trees = self._trees
        for index, (candidate, chain) in enumerate(trees):
            if candidate is tree:
                for _ in range(index):
                    trees.popleft()
                return chain
        raise AssertionError(f"node {self.node_id}: {tree!r} is not one that the replica made")

    @property
    def synced(self) -> bool:
        """Whether the daemon, as far as it knows, has its group's data."""
        return self.runs and self.machine.mode is Mode.SYNCED

    def describe(self) -> str:
        mode = self.machine.mode.value if self.alive else "dead"
        where = f"ring {self.corosync.ring.nodes}" if self.corosync.up else "no corosync"
        return f"n{self.node_id} {mode} {where}"


def _no_debug(enabled: bool) -> None:
    """There is no verbose logging here."""
