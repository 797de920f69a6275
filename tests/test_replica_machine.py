"""The group state machine: every cell of its table, every step of a membership change (30-replication.md)."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pvecfs.replica.application import GroupApplication, Resync, Verdict
from pvecfs.replica.effects import (
    Effect,
    FailWaiting,
    Halt,
    Leave,
    Level,
    Log,
    Multicast,
    MulticastSeries,
    Send,
    Weight,
)
from pvecfs.replica.machine import GroupMachine, Mode
from pvecfs.replica.member import Instant, Member
from pvecfs.replica.messages import (
    Epoch,
    Normal,
    State,
    SyncStart,
    Update,
    UpdateComplete,
    Verify,
    VerifyRequest,
)
from pvecfs.tree.errors import MalformedMessage
from tests.bus import one_by_one
from tests.wire import Message, decode

A, B, C = Member(1, 100), Member(2, 200), Member(3, 300)
VERSION = 1
STALE = Epoch(77, 7, 7, 7)


class Notebook:
    """An application that writes down what it is told. Payloads C{resync}, C{bad} and C{send} do what they say."""

    group_name = "notes"
    protocol_version = VERSION

    def __init__(self) -> None:
        self.verified = True
        self.delivered: list[tuple[Member, bytes]] = []
        self.told: list[str] = []
        self.leader = A
        self.synced = frozenset({A, B, C})
        self.updates: list[bytes] | None = None
        self.commit_error: Exception | None = None
        self.digest = b"d" * 32

    def state(self) -> bytes:
        return b"state"

    def states_collected(self, states: Mapping[Member, bytes], own: Member, now: Instant) -> Verdict:
        self.told.append("states of " + " ".join(map(str, states)))
        updates = self.updates if own == self.leader else None
        receiver = None if own in self.synced else NotebookReceiver(self)
        return Verdict(self.leader, self.synced, updates, [Send(5, b"keys")], receiver)

    def deliver(self, message: Normal, sender: Member, own: bool, lowest: bool, now: Instant) -> Sequence[Effect]:
        if message.payload == b"resync":
            raise Resync("asked to", 3.0, [Log(Level.INFO, "before")])
        if message.payload == b"bad":
            raise MalformedMessage("not understood")
        self.delivered.append((sender, message.payload))
        return [Send(9, b"answer")] if message.payload == b"send" else []

    def membership_changed(
        self, members: Sequence[Member], left: Sequence[Member], joined: Sequence[Member], now: Instant
    ) -> Sequence[Effect]:
        self.told.append("members " + " ".join(map(str, members)))
        return ()

    def became_synced(self, now: Instant) -> Sequence[Effect]:
        self.told.append("synced")
        return ()

    def checksum(self) -> bytes:
        return self.digest


class NotebookReceiver:
    """Writes into its notebook what was received, when it is committed."""

    def __init__(self, notebook: Notebook) -> None:
        self._notebook = notebook
        self._updates: list[bytes] = []

    def receive(self, payload: bytes) -> None:
        if payload == b"bad":
            raise MalformedMessage("a bad entry")
        self._updates.append(payload)

    def commit(self, now: Instant) -> Sequence[Effect]:
        if self._notebook.commit_error is not None:
            raise self._notebook.commit_error
        self._notebook.told.append(f"commit {b' '.join(self._updates).decode()}")
        return ()


def application(notebook: Notebook) -> GroupApplication:
    """For the type checker: a Notebook is one."""
    return notebook


class MachineCase(SynchronousTestCase):
    """A machine as member B, and short words for its inputs. C{self.out} is what the last input returned."""

    own = B

    def setUp(self) -> None:
        self.notebook = Notebook()
        self.machine = GroupMachine(application(self.notebook), lambda: 1.0, 3600.0, 10.0)
        self.time = 1000.0
        self.out: list[Effect] = self.machine.joined_as(self.own, self.now)

    @property
    def now(self) -> Instant:
        return Instant(int(self.time) + 500_000, self.time)

    def members(self, *members: Member, left: Sequence[Member] = (), joined: Sequence[Member] = ()) -> None:
        self.out = self.machine.membership_changed(members, left, joined, self.now)

    def give(self, sender: Member, data: bytes) -> None:
        self.out = list(one_by_one(self.machine.message_delivered(sender, data, self.now)))

    def normal(self, sender: Member, count: int, payload: bytes, version: int = VERSION) -> None:
        self.give(sender, Normal(version, 5, 1, count, payload).encode())

    @property
    def epoch(self) -> Epoch:
        return self.machine.epoch

    def sync_start(self, sender: Member, epoch: Epoch) -> None:
        self.give(sender, SyncStart(VERSION, 5, epoch).encode())

    def state(self, sender: Member, epoch: Epoch | None = None) -> None:
        self.give(sender, State(VERSION, 5, epoch or self.epoch, b"s" + str(sender).encode()).encode())

    def states(self) -> None:
        for member in self.machine.members:
            self.state(member)

    def update(self, payload: bytes, sender: Member = A) -> None:
        self.give(sender, Update(VERSION, 5, self.epoch, payload).encode())

    def complete(self, sender: Member = A) -> None:
        self.give(sender, UpdateComplete(VERSION, 5, self.epoch).encode())

    def to_start_sync(self) -> None:
        self.members(A, B, C, joined=[B])
        self.sync_start(A, Epoch(9, 9, A.node_id, A.pid))

    def to_synced(self) -> None:
        self.to_start_sync()
        self.states()
        self.assertIs(self.machine.mode, Mode.SYNCED)

    def to_update(self) -> None:
        self.notebook.synced = frozenset({A, C})
        self.to_start_sync()
        self.states()
        self.assertIs(self.machine.mode, Mode.UPDATE)

    def to_mode(self, mode: Mode) -> None:
        if mode is not Mode.START:
            {Mode.START_SYNC: self.to_start_sync, Mode.SYNCED: self.to_synced, Mode.UPDATE: self.to_update}[mode]()

    def sent(self) -> list[Message]:
        return [decode(effect.message) for effect in self.out if isinstance(effect, Multicast)]

    def payloads(self) -> list[bytes]:
        return [payload for _, payload in self.notebook.delivered]

    def assert_leaves(self, delay: float = 0.0, says: str = "") -> None:
        self.assertIs(self.machine.mode, Mode.LEAVE)
        last = self.out[-1]
        assert isinstance(last, Leave), self.out
        self.assertEqual(last.delay, delay)
        self.assertIn(says, last.reason)
        self.assertTrue(any(isinstance(effect, FailWaiting) for effect in self.out))

    def logged(self) -> str:
        return "\n".join(effect.text for effect in self.out if isinstance(effect, Log))


class Memberships(MachineCase):
    def test_alone(self) -> None:
        self.members(B, joined=[B])
        self.assertIs(self.machine.mode, Mode.SYNCED)
        self.assertEqual(self.machine.synced, {B})
        self.assertEqual(self.notebook.told, ["synced", "members 2/200"])
        self.assertEqual(self.sent(), [])
        self.assertEqual(self.epoch, Epoch(1, self.now.wall, 2, 200))

    def test_lowest_starts(self) -> None:
        self.members(C, B, joined=[C])
        self.assertIs(self.machine.mode, Mode.START_SYNC)
        self.assertEqual(self.sent(), [SyncStart(VERSION, self.now.wall, self.epoch)])
        self.assertEqual([e.weight for e in self.out if isinstance(e, Multicast)], [Weight.CRITICAL])
        self.assertEqual(self.machine.members, (B, C))

    def test_not_lowest_waits(self) -> None:
        self.members(A, B, joined=[B])
        self.assertIs(self.machine.mode, Mode.START_SYNC)
        self.assertEqual(self.sent(), [])
        self.assertEqual(self.notebook.told, ["members 1/100 2/200"])

    def test_not_a_member_in_start(self) -> None:
        self.members(A, C)
        self.assertIs(self.machine.mode, Mode.START)
        self.assertEqual(self.out, [])
        self.normal(A, 1, b"x")
        self.assert_leaves()

    def test_not_a_member_later(self) -> None:
        for mode in (Mode.START_SYNC, Mode.SYNCED, Mode.UPDATE):
            self.setUp()
            self.to_mode(mode)
            self.members(A, C, left=[B])
            self.assert_leaves()

    def test_epoch_counter_survives(self) -> None:
        self.members(B, joined=[B])
        self.members(B, C, joined=[C])
        self.assertEqual(self.epoch.counter, 2)
        self.machine.connection_lost("gone", self.now)
        self.machine.joined_as(B, self.now)
        self.members(B, joined=[B])
        self.assertEqual(self.epoch.counter, 3)

    def test_message_count_survives(self) -> None:
        self.members(B, joined=[B])
        self.assertEqual(self.machine.submit(1, b"", self.now)[0], 1)
        self.machine.connection_lost("gone", self.now)
        self.machine.joined_as(B, self.now)
        self.members(B, joined=[B])
        self.assertEqual(self.machine.submit(1, b"", self.now)[0], 2)

    def test_own_queued_messages_are_sent_again_when_someone_joins(self) -> None:
        self.to_start_sync()
        self.normal(C, 1, b"theirs")
        self.normal(B, 2, b"ours")
        self.members(A, B, C, Member(4, 400), joined=[Member(4, 400)])
        self.assertEqual([m.payload for m in self.sent() if isinstance(m, Normal)], [b"ours"])
        self.assertEqual([m.count for m in self.sent() if isinstance(m, Normal)], [2])
        self.notebook.synced = frozenset(self.machine.members)
        self.sync_start(A, Epoch(10, 9, 1, 100))
        self.states()
        self.assertEqual(self.payloads(), [])  # the queue was emptied; ours comes again by itself

    def test_queue_is_kept_when_members_only_leave(self) -> None:
        self.to_start_sync()
        self.normal(A, 1, b"kept")
        self.normal(C, 1, b"of one that left")
        self.members(A, B, left=[C])
        self.assertEqual(self.sent(), [])
        self.sync_start(A, Epoch(10, 9, 1, 100))
        self.states()
        self.assertEqual(self.payloads(), [b"kept"])

    def test_left_alone_delivers_the_queue(self) -> None:
        self.to_start_sync()
        self.normal(A, 1, b"of one that left")
        self.normal(B, 1, b"ours")
        self.members(B, left=[A, C])
        self.assertEqual(self.payloads(), [b"ours"])

    def test_unfinished_synchronisation_is_forgotten(self) -> None:
        self.to_update()
        self.update(b"old")
        self.normal(A, 1, b"in the sync queue")
        self.members(A, B, left=[C])
        self.notebook.synced = frozenset({A})
        self.sync_start(A, Epoch(10, 9, 1, 100))
        self.states()
        self.update(b"new")
        self.complete()
        self.assertIn("commit new", self.notebook.told)
        self.assertEqual(self.payloads(), [])

    def test_ended_modes_hear_nothing(self) -> None:
        self.machine.fail("test")
        self.members(B, joined=[B])
        self.assertEqual(self.out, [])
        self.normal(A, 1, b"x")
        self.assertEqual(self.out, [])
        self.assertIs(self.machine.mode, Mode.ERROR)
        self.assertEqual(self.machine.joined_as(B, self.now), [])
        self.assertTrue(self.machine.halted)


class AnyMode(MachineCase):
    """What holds whatever the mode."""

    modes = (Mode.START, Mode.START_SYNC, Mode.SYNCED, Mode.UPDATE)

    def each_mode(self) -> list[Mode]:
        return list(self.modes)

    def test_short(self) -> None:
        for mode in self.each_mode():
            for data in (
                b"",
                bytes(15),
                struct.pack("<HHIII", 0, 1, VERSION, 0, 0) + bytes(7),
                struct.pack("<HHIII", 2, 0, VERSION, 0, 0) + bytes(15),
            ):
                self.setUp()
                self.to_mode(mode)
                self.give(A, data)
                self.assert_leaves()

    def test_higher_version(self) -> None:
        for mode in self.each_mode():
            self.setUp()
            self.to_mode(mode)
            self.normal(A, 1, b"x", VERSION + 1)
            self.assertIs(self.machine.mode, Mode.VERSION_ERROR)
            self.assertIsInstance(self.out[-1], Halt)
            self.assertTrue(self.machine.halted)

    def test_lower_version(self) -> None:
        for mode in self.each_mode():
            self.setUp()
            self.to_mode(mode)
            self.normal(A, 1, b"x", VERSION - 1)
            self.assertIs(self.machine.mode, mode)
            self.assertEqual(self.out, [])

    def test_stale_epoch(self) -> None:
        for mode in self.each_mode()[1:]:
            for message in (
                State(VERSION, 1, STALE, b""),
                Update(VERSION, 1, STALE, b""),
                UpdateComplete(VERSION, 1, STALE),
                VerifyRequest(VERSION, 1, STALE, 1),
                Verify(VERSION, 1, STALE, 1, bytes(32)),
            ):
                self.setUp()
                self.to_mode(mode)
                self.give(A, message.encode())
                self.assertIs(self.machine.mode, mode)
                self.assertEqual(self.out, [])

    def test_start_has_no_membership(self) -> None:
        for data in (SyncStart(VERSION, 1, STALE), State(VERSION, 1, self.epoch, b""), Normal(VERSION, 1, 1, 1, b"")):
            self.setUp()
            self.give(A, data.encode())
            self.assert_leaves()

    def test_failed_multicasts(self) -> None:
        critical, request, update = (
            Multicast(b"", Weight.CRITICAL),
            Multicast(b"", Weight.VERIFICATION),
            Multicast(b"", Weight.ORDINARY),
        )
        for mode in self.each_mode()[1:]:
            for multicast in (request, update):
                self.setUp()
                self.to_mode(mode)
                self.out = self.machine.multicast_failed(multicast, "full", self.now)
                self.assertIs(self.machine.mode, mode)
                self.assertIn("full", self.logged())
            self.out = self.machine.multicast_failed(critical, "full", self.now)
            self.assert_leaves(says="full")

    @settings(max_examples=150, deadline=None)
    @given(
        st.sampled_from((Mode.START, Mode.START_SYNC, Mode.SYNCED, Mode.UPDATE)),
        st.integers(0, 9),
        st.booleans(),
        st.binary(max_size=80),
    )
    def test_generated(self, mode: Mode, type_: int, current: bool, rest: bytes) -> None:
        """Whatever comes: no exception, and a mode that is in the table."""
        self.setUp()
        self.to_mode(mode)
        epoch = self.epoch if current else STALE
        head = struct.pack("<HHIII", type_, 0, VERSION, 0, 0)
        self.give(A, head + (epoch.encode() if type_ else b"") + rest)
        if self.machine.mode is Mode.LEAVE:
            self.assert_leaves()
        else:
            self.assertIn(self.machine.mode, self.modes)


class StartSync(MachineCase):
    def setUp(self) -> None:
        super().setUp()
        self.to_start_sync()

    def test_sync_start(self) -> None:
        epoch = Epoch(9, 9, 1, 100)
        self.assertEqual(self.epoch, epoch)
        self.assertEqual(self.sent(), [State(VERSION, self.now.wall, epoch, b"state")])

    def test_sync_start_by_another_than_the_lowest(self) -> None:
        self.state(A)
        epoch = Epoch(3, 3, 3, 300)
        self.sync_start(C, epoch)
        self.assertIn("3/300", self.logged())
        self.assertEqual(self.sent(), [State(VERSION, self.now.wall, epoch, b"state")])
        self.states()  # the collected one was dropped: none is a second state
        self.assertIs(self.machine.mode, Mode.SYNCED)

    def test_states_in_any_order(self) -> None:
        for member in (C, B, A):
            self.assertIs(self.machine.mode, Mode.START_SYNC)
            self.state(member)
        self.assertIn("states of 1/100 2/200 3/300", self.notebook.told)
        self.assertIs(self.machine.mode, Mode.SYNCED)

    def test_state_of_a_stranger(self) -> None:
        self.state(Member(9, 9))
        self.assert_leaves(says="9/9")

    def test_second_state(self) -> None:
        self.state(A)
        self.state(A)
        self.assert_leaves(says="second")

    def test_application_effects_come_before_the_mode(self) -> None:
        self.states()
        self.assertEqual([m.subtype for m in self.sent() if isinstance(m, Normal)], [5])
        self.assertEqual(self.notebook.told[-1], "synced")

    def test_leader_sends_updates(self) -> None:
        self.notebook.leader, self.notebook.synced, self.notebook.updates = B, frozenset({B}), [b"u1", b"u2"]
        self.states()
        wall = self.now.wall
        self.assertEqual(
            self.sent()[:3],
            [
                Update(VERSION, wall, self.epoch, b"u1"),
                Update(VERSION, wall, self.epoch, b"u2"),
                UpdateComplete(VERSION, wall, self.epoch),
            ],
        )
        weights = [effect.weight for effect in self.out if isinstance(effect, Multicast)]
        self.assertEqual(weights[:3], [Weight.ORDINARY, Weight.ORDINARY, Weight.CRITICAL])
        self.assertIs(self.machine.mode, Mode.SYNCED)

    def test_updates_end_with_their_synchronisation(self) -> None:
        """What the leader has not sent when the members change is of no use to anybody."""
        self.notebook.leader, self.notebook.updates = B, [b"u1", b"u2"]
        for member in (A, B):
            self.state(member)
        last = State(VERSION, 5, self.epoch, b"s").encode()
        effects = self.machine.message_delivered(C, last, self.now)
        (series,) = [effect for effect in effects if isinstance(effect, MulticastSeries)]
        self.assertEqual(next(series.multicasts), Multicast(Update(VERSION, self.now.wall, self.epoch, b"u1").encode()))
        self.members(A, B, left=(C,))
        self.assertEqual(list(series.multicasts), [])
        late = self.machine._updates(Epoch(1, 1, 1, 1), [b"u1"], self.now)
        self.assertEqual(list(late), [], "asked for the first time after its synchronisation")

    def test_leader_always_completes(self) -> None:
        self.notebook.leader, self.notebook.updates = B, []
        self.states()
        self.assertEqual(self.sent()[0], UpdateComplete(VERSION, self.now.wall, self.epoch))

    def test_queue_is_ordered_by_count_then_arrival(self) -> None:
        for sender, count, payload in ((C, 5, b"c5"), (A, 3, b"a3"), (B, 5, b"b5"), (A, 4, b"a4"), (B, 1, b"b1")):
            self.normal(sender, count, payload)
        self.states()
        self.assertEqual(self.payloads(), [b"b1", b"a3", b"a4", b"c5", b"b5"])

    def test_queue_of_members_that_are_not_synced_waits(self) -> None:
        self.notebook.synced = frozenset({A, B})
        self.normal(C, 1, b"c1")
        self.normal(A, 2, b"a2")
        self.states()
        self.assertEqual(self.payloads(), [b"a2"])
        self.complete()
        self.assertEqual(self.payloads(), [b"a2", b"c1"])

    def test_message_of_a_stranger(self) -> None:
        self.normal(Member(9, 9), 1, b"x")
        self.assert_leaves(says="9/9")

    def test_verification_is_ignored(self) -> None:
        for data in (VerifyRequest(VERSION, 1, self.epoch, 1), Verify(VERSION, 1, self.epoch, 1, bytes(32))):
            self.give(A, data.encode())
            self.give(A, data.encode()[:-3])
            self.assertEqual(self.out, [])
            self.assertIs(self.machine.mode, Mode.START_SYNC)

    def test_unknown(self) -> None:
        for data in (
            Update(VERSION, 1, self.epoch, b"").encode(),
            UpdateComplete(VERSION, 1, self.epoch).encode(),
            struct.pack("<HHIII", 99, 0, VERSION, 0, 0) + self.epoch.encode(),
        ):
            self.setUp()
            self.give(A, data)
            self.assert_leaves(says="unexpected")

    def test_malformed_in_the_queue(self) -> None:
        self.normal(A, 1, b"bad")
        self.states()
        self.assert_leaves(says="not understood")


class Updating(MachineCase):
    def setUp(self) -> None:
        super().setUp()
        self.to_update()

    def test_commit(self) -> None:
        self.update(b"u1")
        self.update(b"u2")
        self.complete()
        self.assertEqual(self.notebook.told[-2:], ["commit u1 u2", "synced"])
        self.assertIs(self.machine.mode, Mode.SYNCED)
        self.assertEqual(self.machine.synced, {A, B, C})

    def test_bad_update(self) -> None:
        self.update(b"bad")
        self.assert_leaves(says="bad entry")

    def test_nothing_stays_of_a_synchronisation_that_ends_early(self) -> None:
        for end in (
            lambda: self.update(b"bad"),
            lambda: self.members(A, B),
            lambda: self.give(A, SyncStart(VERSION, 5, Epoch(99, 9, 1, 100)).encode()),
            self.complete,
        ):
            self.setUp()
            self.update(b"u1")
            self.assertIsNotNone(self.machine._receiver)
            end()
            self.assertIsNone(self.machine._receiver)

    def test_a_second_synchronisation_begins_with_nothing(self) -> None:
        self.update(b"u1")
        self.to_update()
        self.update(b"u2")
        self.complete()
        self.assertEqual(self.notebook.told[-2:], ["commit u2", "synced"])

    def test_failed_commit(self) -> None:
        self.notebook.commit_error = Resync("not the leader's", 20.0, critical=True)
        self.complete()
        self.assert_leaves(20.0, "not the leader's")
        self.assertTrue(any(isinstance(e, Log) and e.level is Level.CRITICAL for e in self.out))

    def test_sync_queue_before_message_queue(self) -> None:
        self.normal(B, 1, b"b1")
        self.normal(C, 9, b"c9")
        self.normal(A, 3, b"a3")
        self.complete()
        self.assertEqual(self.payloads(), [b"c9", b"a3", b"b1"])

    def test_queued_before_the_states_were_complete(self) -> None:
        super().setUp()
        self.notebook.synced = frozenset({A, C})
        self.to_start_sync()
        for sender, count, payload in ((B, 1, b"b1"), (C, 4, b"c4"), (A, 2, b"a2")):
            self.normal(sender, count, payload)
        self.states()
        self.normal(A, 3, b"a3")
        self.assertEqual(self.payloads(), [])
        self.complete()
        self.assertEqual(self.payloads(), [b"a2", b"c4", b"a3", b"b1"])

    def test_message_of_a_stranger(self) -> None:
        self.normal(Member(9, 9), 1, b"x")
        self.assert_leaves(says="9/9")

    def test_verification_is_ignored(self) -> None:
        self.give(A, VerifyRequest(VERSION, 1, self.epoch, 1).encode())
        self.give(A, Verify(VERSION, 1, self.epoch, 1, bytes(32)).encode())
        self.assertIs(self.machine.mode, Mode.UPDATE)

    def test_unknown(self) -> None:
        for data in (
            SyncStart(VERSION, 1, STALE).encode(),
            State(VERSION, 1, self.epoch, b"").encode(),
            struct.pack("<HHIII", 99, 0, VERSION, 0, 0) + self.epoch.encode(),
        ):
            self.setUp()
            self.give(A, data)
            self.assert_leaves(says="unexpected")


class Synced(MachineCase):
    def setUp(self) -> None:
        super().setUp()
        self.to_synced()

    def test_delivers_at_once(self) -> None:
        self.normal(C, 7, b"now")
        self.assertEqual(self.notebook.delivered, [(C, b"now")])
        self.assertEqual(self.out, [])

    def test_application_sends(self) -> None:
        self.normal(C, 7, b"send")
        self.assertEqual([(m.subtype, m.payload) for m in self.sent() if isinstance(m, Normal)], [(9, b"answer")])

    def test_application_asks_for_resync(self) -> None:
        self.normal(C, 7, b"resync")
        self.assertEqual(self.out[0], Log(Level.INFO, "before"))
        self.assert_leaves(3.0, "asked to")

    def test_malformed(self) -> None:
        self.normal(C, 7, b"bad")
        self.assert_leaves(says="3/300")

    def test_others_are_ignored(self) -> None:
        for data in (
            SyncStart(VERSION, 1, STALE).encode(),
            State(VERSION, 1, self.epoch, b"").encode(),
            Update(VERSION, 1, self.epoch, b"bad").encode(),
            struct.pack("<HHIII", 99, 0, VERSION, 0, 0) + self.epoch.encode(),
        ):
            self.give(A, data)
            self.assertEqual(self.out, [])
            self.assertIs(self.machine.mode, Mode.SYNCED)

    def test_leaving_empties_everything_at_the_next_join(self) -> None:
        self.members(A, B, C)
        self.normal(A, 1, b"queued")
        self.out = self.machine.leave("outside reasons", 7.0)
        self.assert_leaves(7.0, "outside")
        self.assertEqual(self.machine.leave("again"), [])
        self.assertFalse(self.machine.joined)
        self.assertEqual([type(e) for e in self.machine.joined_as(B, self.now)], [FailWaiting])
        self.members(B, joined=[B])
        self.assertEqual(self.payloads(), [])

    def test_submit(self) -> None:
        _, multicast = self.machine.submit(1, b"x", self.now)
        message = decode(multicast.message)
        assert isinstance(message, Normal)
        self.assertEqual((message.subtype, message.payload, message.time), (1, b"x", self.now.wall))


class Verification(MachineCase):
    own = A

    def request(self, sender: Member, id_: int = 1) -> None:
        self.give(sender, VerifyRequest(VERSION, 1, self.epoch, id_).encode())

    def verify(self, sender: Member, checksum: bytes, id_: int = 1) -> None:
        self.give(sender, Verify(VERSION, 1, self.epoch, id_, checksum).encode())

    def at(self, seconds: float) -> None:
        self.time = 1000.0 + seconds
        self.out = self.machine.tick(self.now)

    def test_interval(self) -> None:
        self.to_synced()
        self.assertEqual(self.machine.next_tick(), 4600.0)
        self.at(3599.0)
        self.assertEqual(self.out, [])
        self.at(3600.0)
        self.assertEqual(self.sent(), [VerifyRequest(VERSION, self.now.wall, self.epoch, 1)])
        self.assertEqual([e.weight for e in self.out if isinstance(e, Multicast)], [Weight.VERIFICATION])
        self.at(7200.0)
        self.assertEqual(self.sent(), [])  # the first one is outstanding
        self.request(A)
        self.at(10800.0)
        self.assertEqual(self.sent(), [VerifyRequest(VERSION, self.now.wall, self.epoch, 2)])

    def test_only_when_synced(self) -> None:
        self.to_start_sync()
        self.machine._deadline = None
        self.at(3600.0)
        self.assertEqual(self.sent(), [])

    def test_membership_change_forgets_the_outstanding_one(self) -> None:
        self.to_synced()
        self.at(3600.0)
        self.request(A)
        self.members(A, B, left=[C])
        self.notebook.synced = frozenset({A, B})
        self.sync_start(A, self.epoch)
        self.states()
        self.verify(A, b"d" * 32)
        self.assertIn("skipping", self.logged())
        self.at(7200.0)
        self.assertEqual([m.checksum_id for m in self.sent() if isinstance(m, VerifyRequest)], [2])

    def test_failed_request_is_not_outstanding(self) -> None:
        self.to_synced()
        self.at(3600.0)
        multicast = self.out[0]
        assert isinstance(multicast, Multicast)
        self.machine.multicast_failed(multicast, "full", self.now)
        self.at(7200.0)
        self.assertEqual(len(self.sent()), 1)

    def test_own_request_is_answered(self) -> None:
        self.to_synced()
        self.at(3600.0)
        self.request(A)
        self.assertEqual(self.sent(), [Verify(VERSION, self.now.wall, self.epoch, 1, b"d" * 32)])
        self.verify(A, b"d" * 32)
        self.assertEqual(self.logged(), "data verification successful")

    def test_other_request_is_not_answered(self) -> None:
        self.to_synced()
        self.request(B)
        self.assertEqual(self.out, [])
        self.verify(B, b"d" * 32)
        self.assertEqual(self.logged(), "data verification successful")

    def test_different(self) -> None:
        self.to_synced()
        self.request(B)
        self.verify(B, b"e" * 32)
        self.assert_leaves(says="verification failed")
        self.assertIs(next(e.level for e in self.out if isinstance(e, Log)), Level.CRITICAL)

    def test_other_id(self) -> None:
        self.to_synced()
        self.request(B, 4)
        self.verify(B, b"e" * 32, 5)
        self.assertIn("skipping", self.logged())
        self.assertIs(self.machine.mode, Mode.SYNCED)

    def test_malformed(self) -> None:
        for body in (bytes(7), bytes(9), bytes(39), bytes(41)):
            self.setUp()
            self.to_synced()
            type_ = 5 if len(body) < 32 else 6
            self.give(A, struct.pack("<HHIII", type_, 0, VERSION, 0, 0) + self.epoch.encode() + body)
            self.assert_leaves(says="needed")

    def test_a_group_that_is_never_verified(self) -> None:
        self.notebook.verified = False
        self.machine = GroupMachine(application(self.notebook), lambda: 1.0)
        self.machine.joined_as(self.own, self.now)
        self.to_synced()
        self.assertIsNone(self.machine.next_tick())
        self.request(B)
        self.verify(B, b"e" * 32)
        self.give(B, Verify(VERSION, 1, self.epoch, 1, bytes(32)).encode()[:-1])
        self.assertIs(self.machine.mode, Mode.SYNCED)
        self.give(B, VerifyRequest(VERSION, 1, self.epoch, 1).encode()[:-1])
        self.assert_leaves()


class Deadlines(MachineCase):
    def at(self, time: float) -> None:
        self.time = time
        self.out = self.machine.tick(self.now)

    def test_states_missing(self) -> None:
        self.machine.quorum_changed([1, 2], self.now)
        self.to_start_sync()
        self.state(B)
        self.assertEqual(self.machine.next_tick(), 1010.0)
        self.at(1009.9)
        self.assertEqual(self.out, [])
        self.at(1010.0)
        self.assert_leaves(says="no states")
        self.assertIn("member 1/100 (node 1 is in", self.logged())
        self.assertIn("member 3/300 (node 3 is not in", self.logged())
        self.assertNotIn("2/200", self.logged())

    def test_announcement_missing(self) -> None:
        """Nobody has sent a state yet, since the lowest is silent: it alone is waited for."""
        self.members(A, B, C, joined=[B])
        self.assertEqual(self.machine.waiting_for, (A,))
        self.at(1010.0)
        self.assert_leaves(says="no states")
        self.assertIn("1/100", self.logged())
        self.assertNotIn("2/200", self.logged())
        self.machine.joined_as(B, self.now)
        self.to_start_sync()
        self.state(A)
        self.state(B)
        self.assertEqual(self.machine.waiting_for, (C,))
        self.members(A, B, C)
        self.assertEqual(self.machine.waiting_for, (A,))

    def test_restarted_by_every_state_message(self) -> None:
        self.members(A, B, C, joined=[B])
        for time, member in ((1005.0, None), (1010.0, A), (1015.0, B)):
            self.time = time
            if member is None:
                self.sync_start(A, Epoch(9, 9, 1, 100))
            else:
                self.state(member)
            self.assertEqual(self.machine.next_tick(), time + 10.0)

    def test_not_restarted_by_others(self) -> None:
        self.to_start_sync()
        self.time = 1005.0
        self.normal(A, 1, b"x")
        self.state(A, STALE)
        self.assertEqual(self.machine.next_tick(), 1010.0)

    def test_updates_missing(self) -> None:
        self.to_update()
        self.assertEqual(self.machine.waiting_for, (A,))
        self.at(1010.0)
        self.assert_leaves(says="no updates")
        self.assertIn("1/100", self.logged())

    def test_none_when_synced(self) -> None:
        self.to_synced()
        self.assertEqual(self.machine.next_tick(), 4600.0)
        self.assertEqual(self.machine.waiting_for, ())

    def test_grows_from_try_to_try(self) -> None:
        waits = []
        for _ in range(3):
            self.members(A, B, C, joined=[B])
            due = self.machine.next_tick()
            assert due is not None
            waits.append(due - self.time)
            self.at(due)
            self.assert_leaves()
            self.machine.joined_as(B, self.now)
        self.assertEqual(waits, [10.0, 20.0, 30.0])
        self.to_synced()
        self.members(A, B, left=[C])
        due = self.machine.next_tick()
        assert due is not None
        self.assertEqual(due - self.time, 10.0)
