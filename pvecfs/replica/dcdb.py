"""The tree replica: what group C{pve_dcdb_v1} replicates (30-replication.md, "dcdb callbacks")."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from errno import EACCES, EINVAL, ENOENT
from typing import NamedTuple

from pvecfs.replica.application import Resync, Verdict
from pvecfs.replica.effects import ClusterConfChanged, Commit, Effect, Level, Log, Send, Settle
from pvecfs.replica.member import Instant, Member
from pvecfs.replica.messages import (
    U32,
    ChangePayload,
    LockPayload,
    Normal,
    TreeSubtype,
    decode_entry,
    encode_entry,
)
from pvecfs.tree.changes import Change, Create, Rename, Write
from pvecfs.tree.entry import ROOT_INODE, Entry
from pvecfs.tree.errors import MalformedMessage, OperationError, TreeDefect
from pvecfs.tree.index import Index
from pvecfs.tree.locks import LockClocks, unlocked
from pvecfs.tree.paths import split
from pvecfs.tree.tree import Applied, Delta, Tree

CLUSTER_CONF = b"corosync.conf"

_TAKEN_BACK = "our tree was taken back in the middle of a synchronisation"

_FIRST_DELAY = 5.0
_LONGEST_DELAY = 300.0

_MOST_FORESEEN = 32
"""Messages of ours that are applied in advance: more are on their way only if nobody waits for each."""


class _Foreseen(NamedTuple):
    """A message of ours, applied in advance.

    @ivar before: the tree that it was applied to.
    """

    before: Tree
    subtype: int
    payload: bytes
    writer: int
    time: int
    change: Change
    applied: Applied

    def is_of(self, message: Normal, writer: int) -> bool:
        head = self.subtype, self.writer, self.time
        return head == (message.subtype, writer, message.time) and self.payload == message.payload


class TreeReplica:
    """The newest tree, as the group's messages make it. Implements L{pvecfs.replica.application.GroupApplication}.

    It only ever goes forward by the group's order; L{reset} takes it back to what the database holds.

    @ivar tree: the newest applied tree, committed or not yet.
    @ivar quorate: whether this partition may write; set by the service, before any group event that comes after.
    @ivar outdated: asks whether what is delivered now comes from before quorum was won, see
        L{pvecfs.replica.machine.GroupMachine.outdated}. It counts as not quorate.
    """

    group_name = "pve_dcdb_v1"
    protocol_version = 1
    verified = True

    def __init__(self, tree: Tree, locks: LockClocks) -> None:
        self.tree = tree
        self.quorate = False
        self.outdated: Callable[[], bool] = lambda: False
        self._locks = locks
        self._locks_met = False
        self._failed_commits = 0
        self._foreseen: deque[_Foreseen] = deque()

    def reset(self, tree: Tree) -> None:
        """A commit failed: C{tree} is the newest one that the database holds, and the newest of all now."""
        self.tree = tree
        self._foreseen.clear()

    # -- synchronisation

    def state(self) -> bytes:
        """The index of the newest tree."""
        return self.tree.index()

    def states_collected(self, states: Mapping[Member, bytes], own: Member, now: Instant) -> Verdict:
        """The leader has the highest version, then the higher mtime, then comes first in (node id, pid) order.

        @raise MalformedMessage: a state is no index.
        @raise Resync: our state is not that of our newest tree, and not the leader's.
        """
        indexes: dict[Member, Index] = {}
        distinct: list[tuple[bytes, Index]] = []
        for member, state in states.items():
            index = next((index for known, index in distinct if known == state), None)
            if index is None:
                try:
                    index = Index.decode(state)
                except MalformedMessage as error:
                    raise MalformedMessage(f"state of member {member}: {error}") from None
                distinct.append((state, index))
            indexes[member] = index

        def rank(member: Member) -> tuple[int, int]:
            index = indexes[member]
            return index.version, index.mtime

        leader = max(states, key=rank)
        best = indexes[leader]
        synced = frozenset(member for member, index in indexes.items() if index is best)
        if leader == own:
            return Verdict(leader, synced, self._updates(best, [index for _, index in distinct]))
        if own in synced:
            return Verdict(leader, synced)
        if self.tree.index() != states[own]:
            raise Resync(_TAKEN_BACK)
        return Verdict(leader, synced, receiver=TreeReceiver(self, best, indexes[own]))

    def _updates(self, own: Index, indexes: Sequence[Index]) -> Iterator[bytes]:
        """Every entry that another member lacks or has otherwise, once; as it is now, whenever it is taken."""
        tree = self.tree
        inodes: set[int] = set()
        for index in indexes:
            if index is not own:
                inodes.update(own.differing(index))
        entries = (tree.entry(inode) for inode in sorted(inodes))
        return (encode_entry(entry) for entry in entries if entry is not None)

    def synchronised(self, tree: Tree, now: Instant) -> None:
        """C{tree} is what the leader's updates have made of the newest one."""
        self._failed_commits = 0
        self.tree = tree
        self._foreseen.clear()
        self._locks.resynchronised(tree, now.monotonic)
        self._locks_met = True

    def not_synchronised(self, reason: str) -> Resync:
        """The leader's updates do not make the leader's tree: what to raise, each time in a row with a longer delay."""
        delay = min(_FIRST_DELAY * 2.0**self._failed_commits, _LONGEST_DELAY)
        self._failed_commits = min(self._failed_commits + 1, 16)
        return Resync(reason, delay, critical=True)

    def membership_changed(
        self, members: Sequence[Member], left: Sequence[Member], joined: Sequence[Member], now: Instant
    ) -> Sequence[Effect]:
        """The clocks of locks that the database holds start when the group is met first."""
        if not self._locks_met:
            self._locks_met = True
            self._locks.resynchronised(self.tree, now.monotonic)
        return ()

    def became_synced(self, now: Instant) -> Sequence[Effect]:
        """Nothing is due."""
        return ()

    def checksum(self) -> bytes:
        """The tree checksum of the newest tree."""
        return self.tree.checksum()

    # -- operations

    def deliver(self, message: Normal, sender: Member, own: bool, lowest: bool, now: Instant) -> Sequence[Effect]:
        """Apply the operation that C{message} carries, by its sender at its time.

        @raise Resync: while not quorate; a caller on this node gets EACCES.
        @raise MalformedMessage: the payload is malformed or of an unknown subtype.
        """
        if not self.quorate or self.outdated():
            refused = (Settle(message.count, -EACCES),) if own else ()
            raise Resync("received write while not quorate - trigger resync", effects=refused)
        subtype = message.subtype
        count = message.count if own else None
        if subtype == TreeSubtype.UNLOCK_REQUEST or subtype == TreeSubtype.UNLOCK:
            return self._unlock(message, sender, count, lowest, now)
        foreseen = self._still_foreseen()
        if foreseen and foreseen[0].is_of(message, sender.node_id):
            first = foreseen.popleft()
            return self._applied(first.change, first.applied, count, now)
        change = ChangePayload.decode(message.payload).change(subtype)
        if change is None:
            if count is None:
                return ()
            return (Settle(count, -ENOENT if subtype == TreeSubtype.DELETE else -EINVAL),)
        return self._apply(change, sender.node_id, message.time, count, now)

    def foresee(self, subtype: int, payload: bytes, writer: int, time: int) -> None:
        """A message of ours is on its way: apply it to the tree that it will find if no other comes before. Nothing of
        that is seen until it is delivered; and it is the same, byte for byte, as if it was applied then.

        While corosync has the message this node waits anyway. When it is back, somebody waits for us.
        """
        foreseen = self._still_foreseen()
        if len(foreseen) >= _MOST_FORESEEN:
            return
        tree = foreseen[-1].applied.tree if foreseen else self.tree
        try:
            change = ChangePayload.decode(payload).change(subtype)
            if change is not None:
                applied = tree.apply(change, writer, time)
                foreseen.append(_Foreseen(tree, subtype, payload, writer, time & U32, change, applied))
        except (MalformedMessage, OperationError):
            return  # that is said when it is delivered

    def _still_foreseen(self) -> deque[_Foreseen]:
        """What was applied in advance to our newest tree and on from there: nothing, if another message came first."""
        foreseen = self._foreseen
        if foreseen and foreseen[0].before is not self.tree:
            foreseen.clear()
        return foreseen

    def _apply(self, change: Change, writer: int, mtime: int, count: int | None, now: Instant) -> Sequence[Effect]:
        try:
            applied = self.tree.apply(change, writer, mtime)
        except OperationError as refused:
            return () if count is None else (Settle(count, -refused.errno),)
        return self._applied(change, applied, count, now)

    def _applied(self, change: Change, applied: Applied, count: int | None, now: Instant) -> Sequence[Effect]:
        """C{change} was applied to our newest tree."""
        if applied.tree is self.tree:
            return () if count is None else (Settle(count, applied.result),)
        self.tree = applied.tree
        self._locks.applied(applied.tree, change, now.monotonic)
        commit = Commit(applied.delta, count, applied.result)
        if _touches_cluster_conf(change):
            return commit, *_cluster_conf(applied.tree, own=count is not None)
        return (commit,)

    def _unlock(
        self, message: Normal, sender: Member, count: int | None, lowest: bool, now: Instant
    ) -> Sequence[Effect]:
        lock = LockPayload.decode(message.payload)
        if message.subtype == TreeSubtype.UNLOCK_REQUEST:
            effects: list[Effect] = [] if count is None else [Settle(count, 0)]
            # Every node asks, since a lock that is met first in a request starts its clock then.
            if self._locks.requested(self.tree, lock.path, lock.checksum, now.monotonic) and lowest:
                effects.append(Send(TreeSubtype.UNLOCK, message.payload))
            return effects
        deletion = unlocked(self.tree, lock.path, lock.checksum)
        if deletion is None:
            return () if count is None else (Settle(count, 0),)
        return self._apply(deletion, sender.node_id, message.time, count, now)


class TreeReceiver:
    """The leader's updates on their way into the tree. Implements L{pvecfs.replica.application.UpdateReceiver}.

    Each entry is compared with the leader's index and put into the maps of the next tree as it comes. All of that in
    the end would hold everything else up, a hundred thousand entries for half a second.
    """

    def __init__(self, replica: TreeReplica, leader: Index, own: Index) -> None:
        """@param leader: the leader's index.
        @param own: the index of our newest tree.
        """
        self._replica = replica
        self._leader = leader
        self._before = replica.tree
        deleted, otherwise = own.differences(leader)
        self._deleted = tuple(deleted)
        self._replacement = self._before.replacement(self._deleted)
        self._changed: dict[int, Entry] = {}
        self._root: Entry | None = None
        # Inodes of our entries, not the root, that are not the leader's. (What we have not got yet is not here.)
        self._wrong = set(otherwise) - {ROOT_INODE}

    def receive(self, payload: bytes) -> None:
        """The next entry.

        @raise MalformedMessage: C{payload} is none.
        """
        entry = decode_entry(payload)
        inode = entry.inode
        if inode == ROOT_INODE:
            self._root = entry
            return
        if entry.record() == self._leader.item(inode):
            self._wrong.discard(inode)
        else:
            self._wrong.add(inode)
        held = self._before.entry(inode)
        if held is not None and held == entry:  # another member lacked it
            entry = held
            self._changed.pop(inode, None)
        else:
            self._changed[inode] = entry
        self._replacement.put(entry)

    def commit(self, now: Instant) -> Sequence[Effect]:
        """Become what the leader's index says.

        @raise Resync: the result is not the leader's tree.
        """
        if self._replica.tree is not self._before:
            raise Resync(_TAKEN_BACK)
        leader = self._leader
        try:
            tree = self._before.succeeded(self._replacement, self._root, leader.items or None)
        except TreeDefect as defect:
            raise self._replica.not_synchronised(f"the leader's updates make no tree: {defect}") from None
        # As many entries as the leader has, and none that is not the leader's: so these are all.
        same = not self._wrong and len(tree) == len(leader) and tree.root.record() == leader.item(ROOT_INODE)
        if not same or tree.index() != leader.encode():
            raise self._replica.not_synchronised("after the leader's updates our tree is not the leader's")
        self._replica.synchronised(tree, now)
        return (
            Commit(Delta(tree, tuple(self._changed.values()), self._deleted, synchronised=True)),
            *(Log(Level.CRITICAL, str(duplicate)) for duplicate in tree.vms.duplicates),
            *_cluster_conf(tree, own=False),
        )


def _touches_cluster_conf(change: Change) -> bool:
    """Whether the host's corosync.conf may have to follow C{change}: a create, a write, a rename to it."""
    if isinstance(change, Write | Create):
        return CLUSTER_CONF in change.path and split(change.path) == (CLUSTER_CONF,)
    return isinstance(change, Rename) and split(change.to) == (CLUSTER_CONF,)


def _cluster_conf(tree: Tree, own: bool) -> Sequence[Effect]:
    entry = tree.lookup(CLUSTER_CONF)
    return () if entry is None or entry.is_directory else (ClusterConfChanged(entry.data, own),)
