"""What the simulator found, each as a test of its own (docs/reliability-simulator.md, "Found")."""

from __future__ import annotations

from collections.abc import Iterable

from twisted.trial.unittest import SynchronousTestCase

from pvecfs.node.hostconf import configuration_version
from pvecfs.replica.dcdb import TreeReplica
from pvecfs.replica.effects import Commit, Effect, Leave, Multicast
from pvecfs.replica.machine import GroupMachine, Mode
from pvecfs.replica.member import Instant, Member
from pvecfs.replica.messages import Epoch, Normal, State, SyncStart, TreeSubtype, encode_change
from pvecfs.tree.changes import Create
from pvecfs.tree.locks import LockClocks
from pvecfs.tree.tree import Tree

A, B, C = Member(1, 100), Member(2, 200), Member(3, 300)
NOW = Instant(500, 50.0)


class ConfigurationVersionTests(SynchronousTestCase):
    """Found by fuzzing: a number of thousands of digits in corosync.conf raised an error on every node that applied the
    write, instead of counting as a version that cannot be parsed."""

    def test_numbers(self) -> None:
        for text, version in (
            (b"12", 12),
            (b"0012", 12),
            (b"0", 0),
            (b"%d" % (2**64 - 1), 2**64 - 1),
            (b"%d" % 2**64, 0),
            (b"9" * 5000, 0),
            (b"0" * 5000 + b"7", 7),
            (b"x", 0),
        ):
            self.assertEqual(configuration_version(b"totem {\n config_version: " + text + b"\n}"), version, text[:30])


class LateMinorityTests(SynchronousTestCase):
    """Notifications of quorum overtake the group's events (seed 412 of 60 steps, before the fix): a node that was in
    the minority learned that quorum is back, and then applied what had been delivered in the minority."""

    def setUp(self) -> None:
        self.replica = TreeReplica(Tree.new(1), LockClocks())
        self.machine = GroupMachine(self.replica, lambda: 0.5)
        self.replica.outdated = lambda: self.machine.outdated
        self.effects: list[Effect] = []
        self.quorum(True, 1, 2, 3)
        self.take(self.machine.joined_as(B, NOW))
        self.change_members((A, B, C), (B,))
        self.synchronise((A, B, C), 1)
        self.change_members((B, C))

    def take(self, effects: Iterable[Effect]) -> None:
        self.effects += effects

    def quorum(self, quorate: bool, *nodes: int) -> None:
        self.replica.quorate = quorate
        self.take(self.machine.quorum_changed(nodes, NOW, quorate))

    def change_members(self, members: tuple[Member, ...], joined: tuple[Member, ...] = ()) -> None:
        left = tuple(member for member in self.machine.members if member not in members)
        self.take(self.machine.membership_changed(members, left, joined, NOW))

    def synchronise(self, members: tuple[Member, ...], counter: int) -> None:
        self.start_synchronisation(members, counter)
        self.end_synchronisation(members, counter)

    def start_synchronisation(self, members: tuple[Member, ...], counter: int) -> None:
        epoch = Epoch(counter, 500, *members[0])
        self.take(self.machine.message_delivered(members[0], SyncStart(1, 500, epoch).encode(), NOW))

    def end_synchronisation(self, members: tuple[Member, ...], counter: int) -> None:
        epoch = Epoch(counter, 500, *members[0])
        for member in members:
            state = State(1, 500, epoch, self.replica.state())
            self.take(self.machine.message_delivered(member, state.encode(), NOW))

    def write(self, sender: Member = C, count: int = 1) -> None:
        subtype, payload = encode_change(Create(b"f"))
        self.take(self.machine.message_delivered(sender, Normal(1, 500, subtype, count, payload).encode(), NOW))

    @property
    def left(self) -> bool:
        return any(isinstance(effect, Leave) for effect in self.effects)

    @property
    def commits(self) -> int:
        return sum(isinstance(effect, Commit) for effect in self.effects)

    def test_queued_in_the_minority(self) -> None:
        self.write()
        self.start_synchronisation((B, C), 2)
        self.quorum(False, 2, 3)
        self.quorum(True, 1, 2, 3)
        self.end_synchronisation((B, C), 2)
        self.assertTrue(self.left)
        self.assertEqual(self.commits, 0)
        self.assertEqual(self.replica.tree.version, 1)

    def test_delivered_in_the_minority(self) -> None:
        self.synchronise((B, C), 2)
        self.quorum(False, 2, 3)
        self.quorum(True, 1, 2, 3)
        self.write()
        self.assertTrue(self.left)
        self.assertEqual(self.commits, 0)

    def test_alone(self) -> None:
        self.write(B)
        self.quorum(False, 2)
        self.quorum(True, 1, 2, 3)
        self.change_members((B,))
        self.assertTrue(self.left)
        self.assertEqual(self.commits, 0)

    def sent(self) -> None:
        """What L{write} delivers of ours was sent by now."""
        self.machine.submit(TreeSubtype.CREATE, b"", NOW)

    def test_majority_without_the_others_of_the_minority(self) -> None:
        """Seed 11329: B is with the majority, C is not, and B learns what it did when C had gone and A not yet come."""
        self.sent()
        self.quorum(False, 2, 3)
        self.quorum(True, 1, 2)
        self.change_members((B,))
        self.write(B)
        self.assertTrue(self.left)
        self.assertEqual(self.commits, 0)

    def test_one_minority_after_the_other(self) -> None:
        """The group's events are so late that between the two it meets the majority."""
        self.sent()
        for _ in range(2):
            self.quorum(False, 2)
            self.quorum(True, 1, 2, 3)
        self.change_members((B,))
        self.change_members((A, B, C), (A, C))
        self.change_members((B,))
        self.write(B)
        self.assertTrue(self.left)
        self.assertEqual(self.commits, 0)

    def test_what_is_sent_with_quorum_is_proof(self) -> None:
        """A message of ours that is newer than the notification does not come from the minority."""
        self.sent()
        self.quorum(False, 2)
        self.change_members((B,))
        self.quorum(True, 1, 2)  # A's daemon does not run
        self.sent()
        self.write(B, count=2)
        self.assertFalse(self.left)
        self.assertEqual(self.commits, 1)

    def test_joined_in_the_minority(self) -> None:
        """The join that is told of was asked for before quorum was back."""
        self.quorum(False, 2, 3)
        self.take(self.machine.joined_as(B, NOW))
        self.quorum(True, 1, 2, 3)
        self.change_members((B,), (B,))
        self.write(C)
        self.assertTrue(self.left)
        self.assertEqual(self.commits, 0)

    def test_the_majority_is_met_again(self) -> None:
        self.quorum(False, 2, 3)
        self.quorum(True, 1, 2, 3)
        self.change_members((A, B, C), (A,))
        self.synchronise((A, B, C), 3)
        self.write()
        self.assertFalse(self.left)
        self.assertEqual(self.commits, 1)
        self.change_members((B, C))  # A's daemon ends, its corosync does not
        self.synchronise((B, C), 4)
        self.write()
        self.assertFalse(self.left)
        self.assertEqual(self.commits, 1)  # the file exists: an ordinary refusal

    def test_members_come_before_the_notification(self) -> None:
        self.quorum(False, 2, 3)
        self.change_members((A, B, C), (A,))
        self.quorum(True, 1, 2, 3)
        self.synchronise((A, B, C), 3)
        self.write()
        self.assertFalse(self.left)
        self.assertEqual(self.commits, 1)

    def test_quorum_by_votes_alone(self) -> None:
        """An administrator expects fewer votes: the partition is the same, and there is nothing to wait for."""
        self.quorum(False, 2, 3)
        self.synchronise((B, C), 2)
        self.quorum(True, 2, 3)
        self.write()
        self.assertFalse(self.left)
        self.assertEqual(self.commits, 1)

    def test_own_proof(self) -> None:
        """Quorum is back by a node that is not in the group yet: what we send at once is the proof that others' changes
        are newer, as soon as it is delivered."""
        self.quorum(False, 2, 3)
        self.synchronise((B, C), 2)
        self.effects.clear()
        self.quorum(True, 1, 2, 3)
        (first,) = self.effects
        assert isinstance(first, Multicast)
        self.quorum(False, 2, 3)
        self.quorum(True, 1, 2, 3)
        second = self.effects[-1]
        assert isinstance(second, Multicast)
        self.take(self.machine.message_delivered(C, second.message, NOW))
        self.take(self.machine.message_delivered(B, first.message, NOW))
        self.assertTrue(self.machine.outdated, "another's, or older than quorum's last notification")
        self.take(self.machine.message_delivered(B, second.message, NOW))
        self.assertFalse(self.machine.outdated)
        self.write()
        self.assertFalse(self.left)
        self.assertEqual(self.commits, 1)

    def test_no_proof_wanted(self) -> None:
        """Nothing is sent where nothing is in doubt, or nobody would hear it."""
        self.effects.clear()
        self.quorum(True, 1, 2, 3)
        self.assertEqual(self.effects, [])
        self.quorum(False, 2, 3)
        self.take(self.machine.leave("for a test"))
        self.effects.clear()
        self.quorum(True, 1, 2, 3)
        self.assertEqual(self.effects, [])

    def test_others_without_a_daemon(self) -> None:
        """Quorum is back by a node without a daemon: the group does not change. Who hears another's change before his
        own proof joins anew, once."""
        self.quorum(False, 2, 3)
        self.synchronise((B, C), 2)
        self.quorum(True, 1, 2, 3)
        self.write()
        self.assertTrue(self.left)
        self.effects.clear()
        self.take(self.machine.joined_as(B, NOW))
        self.change_members((B, C), (B,))
        self.synchronise((B, C), 3)
        self.assertIs(self.machine.mode, Mode.SYNCED)
        self.write()
        self.assertFalse(self.left)
        self.assertEqual(self.commits, 1)
