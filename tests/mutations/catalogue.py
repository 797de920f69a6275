"""The mutations that the simulator must catch."""

from __future__ import annotations

from pvecfs.node.cluster import ClusterProposer, GroupService
from pvecfs.node.ledger import Ledger
from pvecfs.replica.dcdb import TreeReceiver, TreeReplica
from pvecfs.replica.kvstore import StatusReplica
from pvecfs.replica.machine import GroupMachine
from pvecfs.tree.locks import LockClocks
from pvecfs.tree.replacement import Replacement
from pvecfs.tree.tree import Tree
from tests.mutations.mutation import Mutation

MUTATIONS = (
    # The group machine
    Mutation(
        "queued messages are not sent again",
        GroupMachine._reconfigure,
        "out += [Multicast(queued.data, Weight.CRITICAL) for queued in self._queue if queued.sender == self.own]",
        "pass",
    ),
    Mutation(
        "the queue is kept after its messages were sent again",
        GroupMachine._reconfigure,
        "self._queue = []",
        "pass",
    ),
    Mutation(
        "queued messages of others are sent again too",
        GroupMachine._reconfigure,
        "for queued in self._queue if queued.sender == self.own]",
        "for queued in self._queue]",
    ),
    Mutation(
        "the epoch is ignored",
        GroupMachine._receive_state_message,
        "if epoch != self.epoch and type_ != MessageType.SYNC_START:",
        "if False:",
    ),
    Mutation(
        "the sync queue is forgotten",
        GroupMachine._commit_updates,
        "for queued in sync_queue:",
        "for queued in ():",
    ),
    Mutation(
        "the sync queue survives a membership change",
        GroupMachine._forget_synchronisation,
        "    self._sync_queue = []",
        "    pass",
    ),
    Mutation(
        "states survive a membership change",
        GroupMachine._forget_synchronisation,
        "    self._states = {}",
        "    pass",
    ),
    Mutation(
        "queued messages of departed members are delivered",
        GroupMachine._deliver_queue,
        "if queued.sender in self.synced:",
        "if queued.sender in self.synced or queued.sender not in self.members:",
        mixed=True,
    ),
    Mutation(
        "queued messages of members that are not synced are delivered",
        GroupMachine._deliver_queue,
        "if queued.sender in self.synced:",
        "if queued.sender in self.members:",
    ),
    Mutation(
        "the queue is in order of arrival",
        GroupMachine._enqueue,
        "insort(self._queue, queued, key=_by_number)",
        "self._queue.append(queued)",
        mixed=True,
    ),
    Mutation(
        "messages are delivered in any mode",
        GroupMachine.message_delivered,
        "if mode is Mode.SYNCED:",
        "if mode is Mode.SYNCED or mode is Mode.UPDATE:",
    ),
    Mutation(
        "the queue is not looked through at the end of the states",
        GroupMachine._collect_state,
        "self._deliver_queue(now, out)",
        "pass",
    ),
    Mutation(
        "a second member's state is enough",
        GroupMachine._collect_state,
        "if len(self._states) < len(self.members):",
        "if len(self._states) < min(2, len(self.members)):",
    ),
    # The tree replica
    Mutation(
        "changes are applied before quorum is looked at",
        TreeReplica.deliver,
        "if not self.quorate or self.outdated():",
        "if False:",
    ),
    Mutation(
        "what a minority delivered is applied when quorum is back",
        TreeReplica.deliver,
        "if not self.quorate or self.outdated():",
        "if not self.quorate:",
    ),
    Mutation(
        "a change without quorum is passed over",
        TreeReplica.deliver,
        'raise Resync("received write while not quorate - trigger resync", effects=refused)',
        "return refused",
    ),
    Mutation(
        "what was foreseen is used though another message came first",
        TreeReplica._still_foreseen,
        "if foreseen and foreseen[0].before is not self.tree:",
        "if False:",
    ),
    Mutation(
        "what was foreseen is used for another message",
        TreeReplica.deliver,
        "if foreseen and foreseen[0].is_of(message, sender.node_id):",
        "if foreseen:",
    ),
    Mutation(
        "the lowest version leads",
        TreeReplica.states_collected,
        "leader = max(states, key=rank)",
        "leader = min(states, key=rank)",
    ),
    Mutation(
        "the newest mtime leads, whatever the version",
        TreeReplica.states_collected,
        "return index.version, index.mtime",
        "return index.mtime, index.version",
    ),
    Mutation(
        "the first member leads",
        TreeReplica.states_collected,
        "leader = max(states, key=rank)",
        "leader = min(states)",
    ),
    Mutation(
        "trees of one version are taken for equal",
        TreeReplica.states_collected,
        "if index is best",
        "if index.version == best.version",
    ),
    Mutation(
        "a synchronisation deletes nothing",
        TreeReceiver.__init__,
        "self._deleted = tuple(deleted)",
        "self._deleted = ()",
    ),
    Mutation(
        "a synchronisation deletes nothing from the database",
        TreeReceiver.commit,
        "Commit(Delta(tree, tuple(self._changed.values()), self._deleted, synchronised=True))",
        "Commit(Delta(tree, tuple(self._changed.values()), (), synchronised=True))",
    ),
    Mutation(
        "an entry that moves or goes leaves its name behind",
        Replacement._take_out,
        "del names[old.name]",
        "pass",
    ),
    Mutation(
        "the leader does not send the root",
        TreeReplica._updates,
        "for inode in sorted(inodes))",
        "for inode in sorted(inodes) if inode)",
    ),
    Mutation(
        "the database does not roll the replica back",
        TreeReplica.reset,
        "self.tree = tree",
        "pass",
    ),
    Mutation(
        "an unlock goes out for a lock that holds",
        LockClocks.expired,
        "> self.lifetime",
        "> 1.0",
    ),
    # The services
    Mutation(
        "acknowledged before the commit",
        Ledger.commit,
        "self.newest = delta.tree\n",
        "self.newest = delta.tree\n    acknowledge = acknowledge and acknowledge(outcome)\n",
    ),
    Mutation(
        "a failed commit is acknowledged",
        Ledger._settled,
        "outcome = -errno_of(failure)",
        "pass",
    ),
    Mutation(
        "the ledger keeps a tree that was not committed",
        Ledger._commit_failed,
        "self.newest = self._view.tree",
        "pass",
    ),
    Mutation(
        "a node whose database fails stays in the group",
        ClusterProposer.commit_failed,
        'self._service.suspend("the database refuses changes")',
        "pass",
    ),
    Mutation(
        "a recovered node does not come back",
        ClusterProposer.recovered,
        "self._service.resume()",
        "pass",
    ),
    Mutation(
        "changes are sent while a synchronisation runs",
        ClusterProposer.propose,
        "if self._service.machine.mode is Mode.SYNCED and not self._held:",
        "if True:",
    ),
    Mutation(
        "changes that waited for a synchronisation are forgotten",
        ClusterProposer._mode_changed,
        "self._submit(proposal)",
        "pass",
    ),
    Mutation(
        "a left group is not joined again",
        GroupService._got_out,
        "    self._schedule()",
        "    pass",
    ),
    Mutation(
        "messages overtake those that corosync did not take",
        GroupService._multicast,
        "if not self._unsent:",
        "if True:",
    ),
    # The tree
    Mutation(
        "a VMID may be used twice",
        Tree._check_config,
        "if config is not None and self.vms.is_known_elsewhere(config):",
        "if False:",
    ),
    Mutation(
        "a replaced entry stays in the database",
        Tree._rename,
        "() if target is None else (target.inode,),",
        "(),",
    ),
    # The status replica
    Mutation(
        "values are not sent after a synchronisation",
        StatusReplica.states_collected,
        "*self._own.items()",
        "*()",
    ),
    Mutation(
        "removals are not sent after a synchronisation",
        StatusReplica.states_collected,
        "for key in self._removed",
        "for key in ()",
    ),
)
