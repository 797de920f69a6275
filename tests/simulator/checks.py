"""What must hold, checked while a story runs: the history knows what every node did and what was promised to whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pvecfs.replica.member import Member
from pvecfs.replica.messages import Epoch
from pvecfs.tree.index import LastIndex
from pvecfs.tree.locks import LIFETIME
from pvecfs.tree.tree import Tree
from pvecfs.tree.vmlist import find_configs
from tests.simulator.corosync import Network, Uid
from tests.simulator.node import BASE, TREE_GROUP, Chain

if TYPE_CHECKING:
    from tests.simulator.node import SimulatedNode


class Violation(AssertionError):
    """Something that must hold does not."""


class _Delivered(NamedTuple):
    """What came out of a message, on every member of its epoch alike."""

    uid: Uid
    changed: bool
    version: int
    entries: int
    total_bytes: int
    rows: object


class _Hold(NamedTuple):
    """A client believes that it holds a lock: until C{until}, by C{uid}."""

    client: int
    uid: Uid
    until: float


class History:
    """All that happened.

    @ivar strict: only ever a minority fails, so there is no excuse for a lost change.
    @ivar acknowledged: the messages whose changes were acknowledged.
    @ivar submitted: the payloads of all messages that were given to a machine to send.
    @ivar unpromised: changes that a majority of the votes did not hold at some time since they were applied.
    @ivar lost: acknowledged changes that are gone in the end.
    @ivar forked: acknowledged changes that a majority held, and that lost to a tree whose first other change a majority
        did not hold.
    """

    def __init__(self, network: Network, strict: bool) -> None:
        self.network = network
        self.strict = strict
        self.nodes: dict[int, SimulatedNode] = {}
        self.acknowledged: dict[Uid, None] = {BASE: None}
        self.unpromised: set[Uid] = set()
        self.forked: set[Uid] = set()
        self.lost: list[Uid] = []
        self.submitted: dict[Uid, bytes] = {}
        self.deliveries = 0
        self._unchanged: set[Uid] = set()
        self._applied_by: dict[Uid, set[int]] = {BASE: set(network.nodes)}
        self._states: dict[tuple[Member, bytes], Chain] = {}
        self._sequences: dict[Epoch, list[_Delivered]] = {}
        self._heard: dict[tuple[Epoch, int], dict[tuple[int, int], set[int]]] = {}
        self._positions: dict[int, tuple[Epoch, int]] = {}
        self._holds: dict[bytes, _Hold] = {}

    # -- told by nodes

    def delivered(self, node: SimulatedNode, uid: Uid, payload: bytes, before: Tree, after: Tree, rows: object) -> None:
        """C{node} applied message C{uid}."""
        self.deliveries += 1
        if node.corosync.up and not node.corosync.ring.quorate:
            raise Violation(f"node {node.node_id} applies {uid} in a partition without quorum")
        if self.submitted.get(uid) != payload:
            raise Violation(f"node {node.node_id} applies {uid}, which its sender did not send")
        changed = after is not before
        if changed:
            if uid in node.chain:
                raise Violation(f"node {node.node_id} applies {uid} a second time")
            node.extend(uid, after)
            self._applied_by.setdefault(uid, set()).add(node.node_id)
        else:
            self._unchanged.add(uid)
        machine = node.machine
        epoch = machine.epoch
        sequence = self._sequences.setdefault(epoch, [])
        known_epoch, position = self._positions.get(node.pid, (epoch, 0))
        if known_epoch != epoch:
            position = 0
        self._positions[node.pid] = (epoch, position + 1)
        what = _Delivered(uid, changed, after.root.version, len(after), after.total_bytes, rows)
        counts = self._heard.setdefault((epoch, node.pid), {}).setdefault(uid[:2], set())
        if uid[2] in counts:
            raise Violation(f"node {node.node_id} applies {uid} a second time")
        # What waits in the queues when somebody joins is sent again, behind what its sender has sent since: whoever
        # waits for that waits for all of it at the same time, so no caller has seen any order.
        again = (TREE_GROUP, uid) in self.network.nodes[uid[0]].sent_again
        if counts and max(counts) > uid[2] and not again:
            raise Violation(f"node {node.node_id} applies {uid} after number {max(counts)} of the same sender")
        counts.add(uid[2])
        if position == len(sequence):
            sequence.append(what)
        elif sequence[position] != what:
            raise Violation(
                f"node {node.node_id} disagrees: number {position + 1} of epoch {epoch} is {what}, "
                f"on another member it was {sequence[position]}"
            )

    def state_sent(self, node: SimulatedNode, state: bytes) -> None:
        """C{node} sends its state."""
        self._states[Member(node.node_id, node.pid), state] = node.chain

    def updates_received(self, node: SimulatedNode, inodes: Sequence[int]) -> None:
        """C{node} has got all updates from its leader, who sends each entry once."""
        if len(set(inodes)) != len(inodes):
            raise Violation(f"node {node.node_id} commits updates of more than one synchronisation: {inodes}")

    def synchronised(self, node: SimulatedNode, leader: Member, state: bytes, tree: Tree) -> None:
        """C{node} has taken over C{leader}'s C{state}: the tree is C{tree}."""
        entries = {entry.inode: entry for entry in tree.entries() if entry.inode}
        if LastIndex.of(tree.root, entries).encoded != state or tree.index() != state:
            raise Violation(f"node {node.node_id} is synchronised and has another tree than leader {leader}")
        if tree.vms.duplicates:
            raise Violation(f"node {node.node_id}: {tree.vms.duplicates[0]}")
        chain = self._states.get((leader, state))
        if chain is None:
            raise Violation(f"node {node.node_id} is synchronised to a state that leader {leader} did not send")
        self._dropped(node, node.chain, chain)
        node.adopt(chain, tree)

    def rolled_back(self, node: SimulatedNode, tree: Tree) -> None:
        """C{node}'s database refused a commit."""
        if tree is not node.view.tree:
            raise Violation(f"node {node.node_id} is set back to a tree that is not the committed one")
        node.roll_back(tree)

    def memory_lost(self, node: SimulatedNode) -> None:
        """C{node}'s daemon is gone."""
        node.chain = node.stored_chain

    def acknowledge(self, node: SimulatedNode, uid: Uid) -> None:
        """The client of the change C{uid} was told that it succeeded."""
        if uid not in node.stored_chain:
            if uid in self._unchanged:
                return
            if self.strict or uid not in self.unpromised:
                raise Violation(f"node {node.node_id} acknowledges {uid}, which its database does not hold")
        self.acknowledged[uid] = None

    # -- durability

    def holds(self, node: SimulatedNode, uid: Uid) -> bool:
        """Whether C{node} has C{uid}, or will have it as things are."""
        if uid in node.chain or uid in node.stored_chain:
            return True
        if not node.alive or not node.corosync.up:
            return False
        if any(told.uid == uid and told.sender == (uid[0], uid[1]) for told in node.connection.queue):
            return True
        corosync = node.corosync
        return any(sent.uid == uid for sent in corosync.ring.log[corosync.position :] if sent.group == TREE_GROUP)

    def open_changes(self) -> list[Uid]:
        """Changes that some node's database may lack, and that a majority has held so far."""
        chains = [node.stored_chain for node in self.nodes.values()]
        first = chains[0]
        if all(chain == first for chain in chains):
            if len(first) >= len(self._applied_by):
                return []
            common = set(first)
        else:
            common = set(first).intersection(*chains[1:])
        return [uid for uid in self._applied_by if uid not in common and uid not in self.unpromised]

    def look_for_unpromised(self) -> None:
        """Which changes that were applied does a majority not hold?"""
        for uid in self.open_changes():
            if not self.network.has_majority(node_id for node_id, node in self.nodes.items() if self.holds(node, uid)):
                self.unpromised.add(uid)

    def _dropped(self, node: SimulatedNode, old: Chain, new: Chain) -> None:
        """A synchronisation takes C{node} from C{old} to C{new}."""
        if new[: len(old)] == old:
            return
        if not self.strict:
            self.look_for_unpromised()
            kept = set(new)
            self.unpromised.update(uid for uid in old if uid not in kept and uid not in self.acknowledged)
        lost = [uid for uid in old if uid in self.acknowledged and uid not in new]
        lost = [uid for uid in lost if uid not in self.unpromised]
        if not lost:
            return
        if not self.strict:
            start = next((index for index, uid in enumerate(new) if uid not in old), None)
            if start is not None and (
                new[start] in self.unpromised or not self.network.has_majority(self._applied_by.get(new[start], ()))
            ):
                self.forked.update(lost)
                return
        raise Violation(f"node {node.node_id} drops {lost}, acknowledged and held by a majority, for {new}")

    def check_kept(self, chain: Chain) -> None:
        """C{chain} is what all have in the end."""
        self.lost = [uid for uid in self.acknowledged if uid not in chain]
        missing = [uid for uid in self.lost if self.strict or (uid not in self.unpromised and uid not in self.forked)]
        if missing:
            raise Violation(f"acknowledged and lost: {missing}; left are {chain}")

    def was_delivered(self, uid: Uid) -> bool:
        """Whether any node has applied C{uid}."""
        return uid in self._unchanged or uid in self._applied_by

    # -- locks

    def lock_taken(self, node: SimulatedNode, name: bytes, client: int, uid: Uid, asked: float, now: float) -> None:
        """C{client} was told that it holds lock C{name}; it asked at C{asked}, a time of the true clock."""
        hold = self._holds.get(name)
        if hold is not None and hold.client != client and now < hold.until and hold.uid in node.chain:
            raise Violation(f"lock {name!r} is held by {hold} and was given to {client} at {now}")
        self._holds[name] = _Hold(client, uid, asked + LIFETIME)

    def lock_renewed(self, name: bytes, client: int, uid: Uid, asked: float) -> None:
        """C{client} was told that its lock was renewed."""
        hold = self._holds.get(name)
        if hold is not None and hold.client == client:
            self._holds[name] = _Hold(client, uid, asked + LIFETIME)

    def lock_given_up(self, name: bytes) -> None:
        """Someone removes the lock by force, or its holder does: nobody relies on it."""
        self._holds.pop(name, None)

    def holder(self, name: bytes) -> int | None:
        """The client that may believe that it holds lock C{name}."""
        hold = self._holds.get(name)
        return None if hold is None else hold.client


def check_tree(tree: Tree) -> None:
    """VMIDs are unique, and the VM list says what is there."""
    entries = {entry.inode: entry for entry in tree.entries()}
    children = {inode: tree.children(inode) for inode, entry in entries.items() if entry.is_directory}
    seen: dict[int, object] = {}
    for found in find_configs(entries, children) or ():
        config = found.config
        if config.vmid in seen:
            raise Violation(f"two configs of VM {config.vmid}: {config} and {seen[config.vmid]}")
        seen[config.vmid] = config
        vm = tree.vms.lookup(config.vmid)
        if vm is None or vm.node != config.node or vm.kind != config.kind:
            raise Violation(f"the VM list has {vm} for {config}")
    if len(seen) != len(tree.vms):
        raise Violation(f"the VM list has {len(tree.vms)} VMs, the tree {len(seen)}")
