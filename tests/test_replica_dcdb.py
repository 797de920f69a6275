"""The tree replica alone, and three of them in a simulated group (30-replication.md, "dcdb callbacks")."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from errno import EACCES, EEXIST, EINVAL, ENOENT
from typing import ClassVar

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pvecfs.replica.application import GroupApplication, Resync, UpdateReceiver
from pvecfs.replica.dcdb import _MOST_FORESEEN, TreeReplica
from pvecfs.replica.effects import ClusterConfChanged, Commit, Effect, Level, Log, Send, Settle
from pvecfs.replica.machine import Mode
from pvecfs.replica.member import Instant, Member
from pvecfs.replica.messages import (
    ChangePayload,
    LockPayload,
    MessageType,
    Normal,
    TreeSubtype,
    decode_entry,
    encode_change,
    encode_entry,
)
from pvecfs.tree.changes import Change, Create, Delete, Mkdir, Rename, SetMtime, Write
from pvecfs.tree.entry import DT_DIR, DT_REG, Entry
from pvecfs.tree.errors import MalformedMessage
from pvecfs.tree.index import HEADER, ITEM, LastIndex
from pvecfs.tree.locks import LockClocks
from pvecfs.tree.replacement import Replacement
from pvecfs.tree.tree import Applied, Tree
from tests.bus import Bus, Node
from tests.wire import Header

A, B, C = Member(1, 100), Member(2, 200), Member(3, 300)
NOW = Instant(500, 50.0)
LOCK = b"priv/lock/x"


def grown(tree: Tree, *changes: Change, writer: int = 1, mtime: int = 10) -> Tree:
    for change in changes:
        tree = tree.apply(change, writer, mtime).tree
    return tree


_BEGINNING = Mkdir(b"priv"), Mkdir(b"priv/lock"), Mkdir(b"d"), Create(b"f"), Write(b"f", b"text")
BASE = grown(Tree.new(1), *_BEGINNING)


def from_nothing(tree: Tree) -> bytes:
    """The index of C{tree}, from its entries alone."""
    return LastIndex.of(tree.root, {entry.inode: entry for entry in tree.entries() if entry.inode}).encoded


class ReplicaCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.replica = TreeReplica(BASE, LockClocks())
        self.replica.quorate = True
        self.count = 0

    def deliver(
        self,
        change: Change | tuple[int, bytes],
        sender: Member = B,
        own: bool = False,
        lowest: bool = False,
        now: Instant = NOW,
    ) -> Sequence[Effect]:
        subtype, payload = change if isinstance(change, tuple) else encode_change(change)
        self.count += 1
        return self.replica.deliver(Normal(1, 77, subtype, self.count, payload), sender, own, lowest, now)


class Foreseen(ReplicaCase):
    """Messages of ours that are applied while they are on their way: whatever comes in between, nothing else is told
    and nothing else becomes of the tree than if they were applied when they came."""

    def setUp(self) -> None:
        super().setUp()
        self.plain = TreeReplica(grown(Tree.new(1), *_BEGINNING), LockClocks())
        self.plain.quorate = True
        self.sent: list[Normal] = []

    def send(self, change: Change, foreseen_at: int = 77) -> None:
        """Send C{change} at 77 seconds, thinking that it is C{foreseen_at}."""
        subtype, payload = encode_change(change)
        self.count += 1
        self.sent.append(Normal(1, 77, subtype, self.count, payload))
        self.replica.foresee(subtype, payload, A.node_id, foreseen_at)

    def come(self, message: Normal, sender: Member) -> None:
        """C{message} is delivered: here, and to a replica that foresees nothing."""
        own = sender == A
        got = self.replica.deliver(message, sender, own, False, NOW)
        wanted = self.plain.deliver(message, sender, own, False, NOW)
        self.assertEqual(len(got), len(wanted))
        for effect, other in zip(got, wanted, strict=True):
            if isinstance(effect, Commit):
                assert isinstance(other, Commit)
                self.assertEqual((effect.count, effect.outcome), (other.count, other.outcome))
                self.assertEqual(effect.delta[1:], other.delta[1:])
                self.assertIs(effect.delta.tree, self.replica.tree)
            else:
                self.assertEqual(effect, other)
        self.assertEqual(self.replica.tree.index(), self.plain.tree.index())
        self.assertEqual(self.replica.tree.checksum(), self.plain.tree.checksum())
        self.assertEqual(self.replica.tree.total_bytes, self.plain.tree.total_bytes)

    def foreign(self, change: Change) -> None:
        subtype, payload = encode_change(change)
        self.come(Normal(1, 78, subtype, 1, payload), B)

    def deliver_own(self, applied_then: bool) -> None:
        """The first of what was sent is back. @param applied_then: C{apply} must be called now."""
        tree = self.replica.tree
        calls: list[Change] = []
        apply = Tree.apply

        def noted(self: Tree, change: Change, writer: int, mtime: int) -> Applied:
            if self is tree:
                calls.append(change)
            return apply(self, change, writer, mtime)

        with self.applying(noted):
            self.come(self.sent.pop(0), A)
        self.assertEqual(len(calls), 1 if applied_then else 0)

    @contextmanager
    def applying(self, noted: Callable[[Tree, Change, int, int], Applied]) -> Iterator[None]:
        patch = self.patch(Tree, "apply", noted)
        try:
            yield
        finally:
            patch.restore()

    def test_nothing_is_seen_before(self) -> None:
        self.send(Write(b"f", b"new"))
        self.assertIs(self.replica.tree, BASE)

    def test_alone(self) -> None:
        self.send(Write(b"f", b"new"))
        self.deliver_own(applied_then=False)

    def test_one_after_another(self) -> None:
        for change in (
            Create(b"n"),
            Write(b"n", b"1"),
            Rename(b"n", b"m"),
            Mkdir(LOCK),
            SetMtime(LOCK, 99),
            Delete(b"m"),
        ):
            self.send(change)
        while self.sent:
            self.deliver_own(applied_then=False)

    def test_another_node_was_first(self) -> None:
        self.send(Create(b"n"))
        self.send(Write(b"n", b"mine"))
        self.foreign(Create(b"n"))
        self.deliver_own(applied_then=True)
        self.deliver_own(applied_then=True)
        self.send(Write(b"n", b"again"))
        self.deliver_own(applied_then=False)

    def test_what_changes_nothing_does_no_harm(self) -> None:
        self.send(Write(b"f", b"mine"))
        self.foreign(Create(b"f"))
        self.deliver_own(applied_then=False)

    def test_refused(self) -> None:
        for change in Create(b"f"), Delete(b"nothing"), Write(b"f", b"x"), Rename(b"f", b"f"), Write(b"f", b"y"):
            self.send(change)
        self.deliver_own(applied_then=True)
        self.deliver_own(applied_then=True)
        for _ in range(3):
            self.deliver_own(applied_then=False)

    def test_never_came(self) -> None:
        """A message that was not sent after all, or whose group we left: those after it are applied when they come."""
        self.send(Create(b"lost"))
        self.send(Write(b"f", b"x"))
        del self.sent[0]
        self.deliver_own(applied_then=True)
        self.send(Write(b"f", b"y"))
        self.deliver_own(applied_then=False)

    def test_the_same_twice(self) -> None:
        self.send(Write(b"f", b"x"))
        self.send(Write(b"f", b"x"))
        self.deliver_own(applied_then=False)
        self.deliver_own(applied_then=False)

    def test_another_second(self) -> None:
        """The message says 77 seconds, and that counts."""
        self.send(Write(b"f", b"x"), foreseen_at=78)
        self.deliver_own(applied_then=True)
        self.assertEqual(self.replica.tree.root.mtime, 77)

    def test_foreseen_by_one_who_is_not_the_sender(self) -> None:
        self.send(Write(b"f", b"x"))
        message = self.sent.pop()
        self.come(message, B)
        self.assertEqual(self.replica.tree.root.writer, B.node_id)

    def test_taken_back(self) -> None:
        """A commit failed meanwhile."""
        self.send(Write(b"f", b"x"))
        other = grown(BASE, Write(b"f", b"committed"))
        self.replica.reset(other)
        self.plain.reset(grown(BASE, Write(b"f", b"committed")))
        self.deliver_own(applied_then=True)

    def test_malformed(self) -> None:
        self.replica.foresee(1, b"x", 1, 77)
        self.replica.foresee(99, ChangePayload(b"f").encode(), 1, 77)
        self.replica.foresee(1, ChangePayload(None).encode(), 1, 77)
        self.send(Write(b"f", b"x"))
        self.deliver_own(applied_then=False)

    def test_many(self) -> None:
        """Only so many are kept; the others are applied when they come."""
        for number in range(_MOST_FORESEEN + 2):
            self.send(Write(b"f", b"%d" % number))
        for number in range(_MOST_FORESEEN + 2):
            self.deliver_own(applied_then=number >= _MOST_FORESEEN)

    def test_any_order(self) -> None:
        random_ = random.Random(7)
        names = [b"f", b"n", b"d", b"d/n", LOCK]
        for _ in range(1500):
            change = random_.choice(
                (
                    Create(random_.choice(names)),
                    Mkdir(random_.choice(names)),
                    Delete(random_.choice(names)),
                    Rename(random_.choice(names), random_.choice(names)),
                    Write(
                        random_.choice(names),
                        b"%d" % random_.randrange(9),
                        random_.randrange(3),
                        random_.random() < 0.5,
                    ),
                )
            )
            turn = random_.random()
            if turn < 0.4:
                self.send(change)
            elif turn < 0.5:
                self.foreign(change)
            elif self.sent:
                self.come(self.sent.pop(0), A)


class Delivery(ReplicaCase):
    def test_writer_and_time_are_the_senders(self) -> None:
        (commit,) = self.deliver(Create(b"new"))
        assert isinstance(commit, Commit)
        self.assertIs(self.replica.tree, commit.delta.tree)
        root = self.replica.tree.root
        self.assertEqual((root.version, root.writer, root.mtime), (BASE.version + 1, 2, 77))
        self.assertIsNone(commit.count)

    def test_own(self) -> None:
        (commit,) = self.deliver(Write(b"f", b"abc"), own=True)
        assert isinstance(commit, Commit)
        self.assertEqual((commit.count, commit.outcome), (1, 3))

    def test_errors_are_results(self) -> None:
        self.assertEqual(self.deliver(Create(b"f")), ())
        self.assertEqual(list(self.deliver(Create(b"f"), own=True)), [Settle(2, -EEXIST)])
        self.assertIs(self.replica.tree, BASE)

    def test_onto_itself_changes_nothing(self) -> None:
        self.assertEqual(list(self.deliver(Rename(b"f", b"f"), own=True)), [Settle(1, 0)])
        self.assertIs(self.replica.tree, BASE)

    def test_absent_paths(self) -> None:
        absent = ChangePayload(None).encode()
        for subtype in range(1, 7):
            errno = ENOENT if subtype == TreeSubtype.DELETE else EINVAL
            (settle,) = self.deliver((subtype, absent), own=True)
            assert isinstance(settle, Settle)
            self.assertEqual(settle.outcome, -errno)
            self.assertEqual(self.deliver((subtype, absent)), ())

    def test_not_quorate(self) -> None:
        self.replica.quorate = False
        for subtype, payload in (encode_change(Create(b"n")), (7, LockPayload(bytes(32), LOCK).encode())):
            resync = self.assertRaises(Resync, self.deliver, (subtype, payload))
            self.assertEqual(tuple(resync.effects), ())
            resync = self.assertRaises(Resync, self.deliver, (subtype, payload), A, True)
            self.assertEqual(tuple(resync.effects), (Settle(self.count, -EACCES),))
        self.assertIs(self.replica.tree, BASE)

    def test_malformed(self) -> None:
        for subtype, payload in ((1, b"x"), (0, ChangePayload(b"f").encode()), (9, b""), (7, bytes(32)), (8, b"")):
            self.assertRaises(MalformedMessage, self.deliver, (subtype, payload))

    def test_cluster_conf(self) -> None:
        conf = b"corosync.conf"
        for change, content in (
            (Create(conf), b""),
            (Write(conf, b"config_version: 3"), b"config_version: 3"),
            (Write(b"/corosync.conf", b"x"), b"xonfig_version: 3"),
            (Rename(b"f", conf), b"text"),
            (Rename(conf, b"g"), None),
            (Mkdir(conf), None),
            (Delete(conf), None),
            (Create(b"d/corosync.conf"), None),
        ):
            effects = self.deliver(change, own=True)
            self.assertEqual(
                [effect for effect in effects if isinstance(effect, ClusterConfChanged)],
                [] if content is None else [ClusterConfChanged(content, True)],
                change,
            )
        self.assertIn(ClusterConfChanged(b"", False), self.deliver(Create(conf)))

    def test_reset(self) -> None:
        self.deliver(Create(b"new"))
        self.replica.reset(BASE)
        self.assertEqual(self.replica.state(), BASE.index())
        self.assertEqual(self.replica.checksum(), BASE.checksum())

    @settings(max_examples=200, deadline=None)
    @given(st.integers(0, 10), st.binary(max_size=80))
    def test_any_payload(self, subtype: int, payload: bytes) -> None:
        try:
            self.deliver((subtype, payload))
        except MalformedMessage:
            return


class Locks(ReplicaCase):
    def setUp(self) -> None:
        super().setUp()
        self.deliver(Mkdir(LOCK), B)
        lock = self.replica.tree.lookup(LOCK)
        assert lock is not None
        self.payload = LockPayload(lock.lock_checksum(), LOCK).encode()

    def request(self, age: float, lowest: bool = True, own: bool = False) -> list[Effect]:
        now = Instant(NOW.wall, NOW.monotonic + age)
        return list(self.deliver((7, self.payload), C, own, lowest, now))

    def test_young(self) -> None:
        self.assertEqual(self.request(120.0), [])

    def test_lowest_releases(self) -> None:
        self.assertEqual(self.request(120.5), [Send(TreeSubtype.UNLOCK, self.payload)])

    def test_others_do_not(self) -> None:
        self.assertEqual(self.request(120.5, lowest=False), [])

    def test_own_request_is_settled(self) -> None:
        self.assertEqual(self.request(1.0, own=True), [Settle(2, 0)])

    def test_other_checksum(self) -> None:
        self.payload = LockPayload(b"c" * 32, LOCK).encode()
        self.assertEqual(self.request(500.0), [])
        self.assertEqual(self.deliver((8, self.payload)), ())

    def test_unlock(self) -> None:
        (commit,) = self.deliver((8, self.payload), A)
        assert isinstance(commit, Commit)
        self.assertIsNone(self.replica.tree.lookup(LOCK))
        self.assertEqual((self.replica.tree.root.writer, self.replica.tree.root.mtime), (1, 77))

    def test_a_lock_that_is_not_empty_stays(self) -> None:
        self.deliver(Create(LOCK + b"/f"))
        self.assertEqual(self.deliver((8, self.payload), A), ())
        self.assertIsNotNone(self.replica.tree.lookup(LOCK))

    def test_met_first_in_a_request(self) -> None:
        self.replica = TreeReplica(self.replica.tree, LockClocks())
        self.replica.quorate = True
        self.assertEqual(self.request(1000.0), [])
        self.assertEqual(self.request(1120.0), [])
        self.assertEqual(self.request(1121.0), [Send(TreeSubtype.UNLOCK, self.payload)])

    def test_found_in_the_database(self) -> None:
        """The clock starts when the group is met first, not at each membership change."""
        self.replica = TreeReplica(self.replica.tree, LockClocks())
        self.replica.quorate = True
        self.replica.membership_changed([A], (), [A], NOW)
        self.replica.membership_changed([A], (), [A], Instant(0, NOW.monotonic + 100.0))
        self.assertEqual(self.request(121.0), [Send(TreeSubtype.UNLOCK, self.payload)])

    def test_renewed(self) -> None:
        self.deliver(SetMtime(LOCK, 1000), B, now=Instant(0, NOW.monotonic + 100))
        self.assertEqual(self.request(200.0), [])  # of the old checksum
        lock = self.replica.tree.lookup(LOCK)
        assert lock is not None
        self.payload = LockPayload(lock.lock_checksum(), LOCK).encode()
        self.assertEqual(self.request(200.0), [])
        self.assertEqual(len(self.request(221.0)), 1)

    def test_deeper_directories_are_unlocked(self) -> None:
        self.deliver(Mkdir(LOCK + b"/deep"))
        deep = self.replica.tree.lookup(LOCK + b"/deep")
        assert deep is not None
        self.deliver((8, LockPayload(deep.lock_checksum(), LOCK + b"/deep").encode()))
        self.assertIsNone(self.replica.tree.lookup(LOCK + b"/deep"))


class Synchronisation(ReplicaCase):
    def states(self, *trees: Tree) -> dict[Member, bytes]:
        return {member: tree.index() for member, tree in zip((A, B, C), trees, strict=False)}

    def test_highest_version_leads(self) -> None:
        newer = grown(BASE, Create(b"n"))
        verdict = self.replica.states_collected(self.states(BASE, newer, BASE), A, NOW)
        self.assertEqual((verdict.leader, verdict.synced), (B, {B}))
        self.assertIsNone(verdict.updates)

    def test_then_higher_mtime(self) -> None:
        older, newer = (grown(BASE, Create(b"n"), mtime=mtime) for mtime in (5, 6))
        self.replica.reset(older)
        verdict = self.replica.states_collected(self.states(older, older, newer), A, NOW)
        self.assertEqual(verdict.leader, C)

    def test_then_the_first(self) -> None:
        one, other = (grown(BASE, Create(name)) for name in (b"n", b"m"))
        self.replica.reset(other)
        verdict = self.replica.states_collected(self.states(one, other, one), B, NOW)
        self.assertEqual((verdict.leader, verdict.synced), (A, {A, C}))

    def test_equal(self) -> None:
        verdict = self.replica.states_collected(self.states(BASE, BASE), A, NOW)
        self.assertEqual((verdict.leader, verdict.synced), (A, {A, B}))
        assert verdict.updates is not None
        self.assertEqual(list(verdict.updates), [])  # only UPDATE_COMPLETE

    def test_updates_of_the_leader(self) -> None:
        newer = grown(BASE, Write(b"f", b"other"), Create(b"n"), Delete(b"d"))
        self.replica.reset(newer)
        verdict = self.replica.states_collected(self.states(newer, BASE, Tree.new(3)), A, NOW)
        assert verdict.updates is not None
        entries = [decode_entry(update) for update in verdict.updates]
        self.assertEqual({e.inode for e in entries}, {e.inode for e in newer.entries()})
        self.assertEqual(len(entries), len(newer))
        verdict = self.replica.states_collected(self.states(newer, BASE), A, NOW)
        assert verdict.updates is not None
        names = sorted(decode_entry(update).name for update in verdict.updates)
        self.assertEqual(names, [b"", b"f", b"n"])

    def test_malformed_states(self) -> None:
        good = BASE.index()
        for bad in (b"", good[:31], good[:-1], good + b"\0", good[:32]):
            self.assertRaises(MalformedMessage, self.replica.states_collected, {A: good, B: bad}, A, NOW)

    def receiver(self, leader: bytes, own: Tree = BASE) -> UpdateReceiver:
        verdict = self.replica.states_collected({A: leader, B: own.index()}, B, NOW)
        assert verdict.receiver is not None
        return verdict.receiver

    def sync_to(
        self, newer: Tree | bytes, updates: Iterable[Entry], own: Tree = BASE, now: Instant = NOW
    ) -> Sequence[Effect]:
        receiver = self.receiver(newer if isinstance(newer, bytes) else newer.index(), own)
        for entry in updates:
            receiver.receive(encode_entry(entry))
        effects = receiver.commit(now)
        tree = self.replica.tree
        self.assertEqual(tree.index(), from_nothing(tree))
        return effects

    def test_commit(self) -> None:
        newer = grown(BASE, Write(b"f", b"other"), Create(b"n"), Delete(b"d"))
        loads = self.replica.tree.counters.value(b"storage.cfg")
        changed = [newer.root, *(e for name in (b"f", b"n") if (e := newer.lookup(name)) is not None)]
        (commit,) = self.sync_to(newer, changed)
        assert isinstance(commit, Commit)
        gone = BASE.lookup(b"d")
        assert gone is not None
        self.assertEqual(commit.delta.deleted, (gone.inode,))
        self.assertEqual({e.name for e in commit.delta.stored}, {b"f", b"n"})
        self.assertTrue(commit.delta.synchronised)
        self.assertEqual(self.replica.tree.index(), newer.index())
        self.assertEqual(self.replica.tree.counters.value(b"storage.cfg"), loads + 1)

    def test_cluster_conf(self) -> None:
        newer = grown(BASE, Create(b"corosync.conf"), Write(b"corosync.conf", b"x"))
        _, conf = self.sync_to(newer, list(newer.entries()))
        self.assertEqual(conf, ClusterConfChanged(b"x", False))

    def test_what_we_have_is_not_stored_again(self) -> None:
        """Another member lacked it; here it stays the same object, and the store has nothing to do for it."""
        newer = grown(BASE, Write(b"f", b"other"))
        (commit,) = self.sync_to(newer, list(newer.entries()))
        assert isinstance(commit, Commit)
        self.assertEqual([entry.name for entry in commit.delta.stored], [b"f"])
        self.assertIs(self.replica.tree.lookup(b"d"), BASE.lookup(b"d"))
        self.assertEqual(self.replica.tree.index(), newer.index())

    def test_any_order(self) -> None:
        newer = grown(
            BASE, Create(b"d/x"), Mkdir(b"e"), Mkdir(b"e/e"), Rename(b"d/x", b"e/e/x"), Create(b"g"),
            Rename(b"f", b"h"), Rename(b"g", b"f"), Delete(b"d"), Create(b"d"),
        )  # fmt: skip
        entries = list(newer.entries())
        for seed in range(50):
            self.replica.reset(BASE)
            self.sync_to(newer, random.Random(seed).sample(entries, len(entries)))
            self.assertEqual(self.replica.tree.index(), newer.index())
            for path in (b"e/e/x", b"f", b"h", b"d"):
                self.assertEqual(self.replica.tree.lookup(path), newer.lookup(path))
            self.assertIsNone(self.replica.tree.lookup(b"g"))

    def test_an_entry_that_comes_twice(self) -> None:
        """The last one counts, as if the others had not come."""
        newer = grown(BASE, Write(b"f", b"other"), Create(b"n"))
        held, right = BASE.lookup(b"f"), newer.lookup(b"f")
        assert held is not None and right is not None
        wrong = Entry(right.inode, 77, 1, 1, 1, DT_DIR, b"..")
        others = [newer.root, *(entry for entry in newer.entries() if entry.name == b"n")]
        for series, good in (
            ((wrong, right), True),
            ((right, wrong), False),
            ((held, right), True),
            ((right, held), False),
            ((right, held, right), True),
        ):
            self.replica.reset(BASE)
            if good:
                (commit,) = self.sync_to(newer, [*series, *others])
                assert isinstance(commit, Commit)
                self.assertEqual({entry.name for entry in commit.delta.stored}, {b"f", b"n"})
                self.assertEqual(self.replica.tree.index(), newer.index())
            else:
                self.assertRaises(Resync, self.sync_to, newer, [*series, *others])
                self.assertIs(self.replica.tree, BASE)

    def test_entries_that_the_leader_does_not_have(self) -> None:
        newer = grown(BASE, Write(b"f", b"other"), Delete(b"d"))
        gone = BASE.lookup(b"d")
        assert gone is not None
        for entry in (gone, Entry(88, 0, 3, 1, 1, DT_REG, b"more")):
            self.assertRaises(Resync, self.sync_to, newer, [*newer.entries(), entry])
            self.assertIs(self.replica.tree, BASE)

    def test_an_update_that_is_no_entry(self) -> None:
        receiver = self.receiver(grown(BASE, Create(b"n")).index())
        self.assertRaises(MalformedMessage, receiver.receive, b"x")

    def test_the_root(self) -> None:
        """Whatever else it says, its numbers count; and they have to be the leader's."""
        newer = grown(BASE, Create(b"n"))
        entries = [entry for entry in newer.entries() if entry.inode]
        version, writer, mtime = newer.root.version, newer.root.writer, newer.root.mtime
        self.sync_to(newer, [Entry(0, 5, version, writer, mtime, DT_REG, b"odd", b"data"), *entries])
        self.assertEqual(self.replica.tree.index(), newer.index())
        for root in ((version + 1, writer, mtime), (version, writer + 1, mtime), (version, writer, mtime + 1)):
            self.replica.reset(BASE)
            self.assertRaises(Resync, self.sync_to, newer, [Entry(0, 0, *root, DT_DIR, b""), *entries])
            self.assertRaises(Resync, self.sync_to, newer, entries)
            self.assertIs(self.replica.tree, BASE)

    def test_indexes_that_no_tree_has(self) -> None:
        newer = grown(BASE, Create(b"n"))
        good = newer.index()
        version, last, writer, mtime, size, total = HEADER.unpack_from(good)
        items = good[HEADER.size :]
        for header, body in (
            ((version + 1, last, writer, mtime, size, total), items),
            ((version, last + 1, writer, mtime, size, total), items),
            ((version, last, writer + 1, mtime, size, total), items),
            ((version, last, writer, mtime + 1, size, total), items),
            ((version, last, writer, mtime, size - 1, total - ITEM.size), items[ITEM.size :]),
            ((version, last, writer, mtime, 0, HEADER.size), b""),
        ):
            self.assertRaises(Resync, self.sync_to, HEADER.pack(*header) + body, newer.entries())
            self.assertIs(self.replica.tree, BASE)

    def test_the_tree_is_taken_back_meanwhile(self) -> None:
        newer = grown(BASE, Create(b"n"))
        receiver = self.receiver(newer.index())
        for entry in newer.entries():
            receiver.receive(encode_entry(entry))
        older = grown(Tree.new(1), Mkdir(b"d"))
        self.replica.reset(older)
        self.assertRaises(Resync, receiver.commit, NOW)
        self.assertIs(self.replica.tree, older)
        self.assertRaises(Resync, self.receiver, newer.index())  # our state was that of the tree before
        self.assertIs(self.replica.tree, older)

    def test_a_synchronisation_that_ends_early_leaves_nothing(self) -> None:
        newer, other = grown(BASE, Create(b"n"), Write(b"f", b"other")), grown(BASE, Create(b"o"))
        before = (BASE.index(), list(BASE.entries()), BASE.children(0))
        receiver = self.receiver(newer.index())
        for entry in newer.entries():
            receiver.receive(encode_entry(entry))
        del receiver
        self.assertIs(self.replica.tree, BASE)
        self.assertEqual((from_nothing(BASE), list(BASE.entries()), BASE.children(0)), before)
        self.sync_to(other, [entry for entry in other.entries() if entry not in list(BASE.entries())])
        self.assertEqual(self.replica.tree.index(), other.index())

    def test_the_commit_has_little_left(self) -> None:
        """No entry is looked at in the end, nor is any index made: others wait for that."""
        newer = grown(BASE, *(Create(b"d/%d" % i) for i in range(50)))
        receiver = self.receiver(newer.index())
        for entry in newer.entries():
            receiver.receive(encode_entry(entry))
        records = 0
        record = Entry.record

        def counted(entry: Entry) -> bytes:
            nonlocal records
            records += 1
            return record(entry)

        self.patch(Entry, "record", counted)
        self.patch(Replacement, "put", None)
        self.patch(LastIndex, "of", None)
        self.patch(LastIndex, "touch", None)
        receiver.commit(NOW)
        self.assertEqual(records, 1, "the root's")
        self.assertEqual(self.replica.tree.index(), newer.index())

    def test_commit_that_misses_something(self) -> None:
        newer = grown(BASE, Create(b"n"))
        delays = []
        for _ in range(8):
            resync = self.assertRaises(Resync, self.sync_to, newer, [newer.root])
            delays.append(resync.delay)
        self.assertEqual(delays[:4], [5.0, 10.0, 20.0, 40.0])
        self.assertEqual(max(delays), 300.0)
        self.assertIs(self.replica.tree, BASE)
        entry = newer.lookup(b"n")
        assert entry is not None
        self.sync_to(newer, [newer.root, entry])
        self.assertEqual(self.replica.tree.index(), newer.index())

    def test_updates_that_make_no_tree(self) -> None:
        newer = grown(BASE, Create(b"n"))
        for entry in (
            Entry(99, 98, 99, 1, 1, DT_REG, b"orphan"),
            Entry(99, 0, 99, 1, 1, DT_REG, b"f"),
            Entry(99, 0, 99, 1, 1, DT_REG, b""),
        ):
            resync = self.assertRaises(Resync, self.sync_to, newer, [newer.root, entry])
            self.assertTrue(resync.critical)
            self.assertIs(self.replica.tree, BASE)

    def test_two_configs_of_one_vm(self) -> None:
        tree = grown(
            BASE, *(Mkdir(p) for p in (b"nodes", b"nodes/a", b"nodes/a/lxc", b"nodes/b", b"nodes/b/lxc")),
            Create(b"nodes/a/lxc/100.conf"),
        )  # fmt: skip
        parent = tree.lookup(b"nodes/b/lxc")
        assert parent is not None
        twice = [Entry(90, parent.inode, 90, 1, 1, DT_REG, b"100.conf")]
        newer = tree.replaced([], twice, Entry(0, 0, 90, 1, 1, DT_DIR, b""))
        effects = self.sync_to(newer, list(newer.entries()))
        lines = [effect for effect in effects if isinstance(effect, Log)]
        self.assertEqual([line.level for line in lines], [Level.CRITICAL])
        self.assertIn("100", lines[0].text)
        self.assertEqual(self.replica.tree.index(), newer.index())

    def test_locks_that_are_the_same_keep_running(self) -> None:
        self.deliver(Mkdir(LOCK), B)
        tree = self.replica.tree
        newer = grown(tree, Create(b"n"))
        entry, lock = newer.lookup(b"n"), newer.lookup(LOCK)
        assert entry is not None and lock is not None
        later = Instant(0, NOW.monotonic + 100)
        self.sync_to(newer, [newer.root, entry], tree, later)
        payload = LockPayload(lock.lock_checksum(), LOCK).encode()
        last = Instant(0, NOW.monotonic + 121)
        self.assertEqual(len(self.deliver((7, payload), A, lowest=True, now=last)), 1)


def application(replica: TreeReplica) -> GroupApplication:
    """For the type checker: a replica is an application."""
    return replica


class ReferenceReplica(TreeReplica):
    """Does to its own memory what the reference does in the two cases in which it deviates (10-tree.md)."""

    def deliver(self, message: Normal, sender: Member, own: bool, lowest: bool, now: Instant) -> Sequence[Effect]:
        before = self.tree
        change = ChangePayload.decode(message.payload).change(message.subtype)
        effects = super().deliver(message, sender, own, lowest, now)
        if isinstance(change, Write) and change.truncate and (entry := before.lookup(change.path)) is not None:
            if not entry.data and (new := self.tree.lookup(change.path)) is not None:
                garbage = Entry(
                    new.inode, new.parent, new.version, new.writer, new.mtime, DT_REG, new.name, b"!" * new.size
                )
                self.tree = self.tree.replaced([], [garbage], None)
        elif isinstance(change, Rename) and (target := before.lookup(change.to)) is not None:
            self.tree = before.replaced([target.inode], [], None)  # lost, though the rename was refused
        return effects


class GroupCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.bus = Bus()
        self.replicas: dict[int, TreeReplica] = {}
        self.pids = itertools.count(100)

    def start(self, node_id: int, tree: Tree = BASE, kind: type[TreeReplica] = TreeReplica) -> Node:
        """A process on C{node_id}, not joined."""
        self.replicas[node_id] = replica = kind(tree, LockClocks())
        replica.quorate = True
        return self.bus.node(node_id, next(self.pids), application(replica))

    def cluster(self, *trees: Tree) -> list[Node]:
        nodes = [self.start(i + 1, tree) for i, tree in enumerate(trees)]
        self.bus.join(*nodes)
        self.bus.run()
        return nodes

    def tree(self, node: Node) -> Tree:
        return self.replicas[node.member.node_id].tree

    def submit(self, node: Node, change: Change) -> int:
        return node.submit(*encode_change(change))

    def assert_equal_trees(self, *nodes: Node) -> None:
        self.assertEqual([node.machine.mode for node in nodes], [Mode.SYNCED] * len(nodes))
        self.assertEqual(len({self.tree(node).index() for node in nodes}), 1)

    def outcome(self, node: Node, count: int) -> int:
        (outcome,) = (e.outcome for e in node.outcomes if isinstance(e, Commit | Settle) and e.count == count)
        return outcome


class Scenarios(GroupCase):
    def test_join_with_an_empty_database(self) -> None:
        nodes = self.cluster(BASE, BASE, Tree.new(9))
        self.assert_equal_trees(*nodes)
        self.assertEqual(self.tree(nodes[2]).index(), BASE.index())

    def test_newest_wins_in_every_order(self) -> None:
        trees = [BASE, grown(BASE, Create(b"n")), grown(BASE, Create(b"n"), Delete(b"d"))]
        for order in itertools.permutations(trees):
            self.setUp()
            nodes = self.cluster(*order)
            self.assert_equal_trees(*nodes)
            self.assertEqual(self.tree(nodes[0]).index(), trees[2].index())

    def test_older_database_with_changes_of_its_own(self) -> None:
        nodes = self.cluster(grown(BASE, Create(b"mine")), grown(BASE, Create(b"n"), Create(b"m")))
        self.assert_equal_trees(*nodes)
        self.assertIsNone(self.tree(nodes[0]).lookup(b"mine"))

    def test_races_have_one_winner(self) -> None:
        nodes = self.cluster(BASE, BASE, BASE)
        for change in (Mkdir(LOCK), Create(b"excl")):
            counts = [self.submit(node, change) for node in nodes]
            self.bus.run()
            outcomes = [self.outcome(node, count) for node, count in zip(nodes, counts, strict=True)]
            self.assertEqual(sorted(outcomes), [-EEXIST, -EEXIST, 0])
        self.assert_equal_trees(*nodes)

    def test_changes_while_a_member_joins(self) -> None:
        """Changes that are under way at each moment of a join, on old members and on the new one."""
        for moment in range(12):
            self.setUp()
            nodes = self.cluster(BASE, grown(BASE, Create(b"n")))
            late = self.start(3, Tree.new(9))
            for i, node in enumerate(nodes):
                self.submit(node, Create(b"before%d" % i))
            self.bus.join(late)
            for _ in range(moment):
                if self.bus.order:
                    self.bus.step()
            for i, node in enumerate(nodes):
                self.submit(node, Create(b"during%d" % i))
            self.bus.run()
            self.assert_equal_trees(*nodes, late)
            for name in (b"before0", b"before1", b"during0", b"during1"):
                self.assertIsNotNone(self.tree(late).lookup(name), (moment, name))

    def test_death_of_each_member_at_each_moment_of_a_synchronisation(self) -> None:
        for victim in range(3):
            for moment in range(14):
                self.setUp()
                nodes = self.cluster(BASE, grown(BASE, Create(b"n"), Create(b"m")))
                nodes.append(self.start(3, Tree.new(9)))
                self.bus.join(nodes[2])
                for _ in range(moment):
                    if self.bus.order:
                        self.bus.step()
                dead = nodes.pop(victim)
                self.bus.kill(dead)
                self.bus.run()
                self.assert_equal_trees(*nodes)
                again = self.start(dead.member.node_id, self.tree(dead))
                self.bus.join(again)
                self.bus.run()
                self.assert_equal_trees(again, *nodes)
                self.assertIsNotNone(self.tree(again).lookup(b"m"), (victim, moment))

    def test_catching_up_after_deletions(self) -> None:
        nodes = self.cluster(BASE, BASE, BASE)
        self.bus.kill(nodes[2])
        for change in (Delete(b"d"), Delete(b"f"), Create(b"f"), Write(b"f", b"new")):
            self.submit(nodes[0], change)
        self.bus.run()
        again = self.start(3, self.tree(nodes[2]))
        self.bus.join(again)
        self.bus.run()
        self.assert_equal_trees(nodes[0], nodes[1], again)
        self.assertEqual(len([e for e in again.outcomes if isinstance(e, Commit) and e.delta.synchronised]), 1)

    def test_partition(self) -> None:
        nodes = self.cluster(BASE, BASE, BASE)
        self.replicas[3].quorate = False
        self.bus.partition(nodes[:2], nodes[2:])
        self.bus.run()
        self.submit(nodes[0], Create(b"majority"))
        count = self.submit(nodes[2], Create(b"minority"))
        self.bus.run()
        self.assertIs(nodes[2].machine.mode, Mode.LEAVE)
        self.assertEqual(self.outcome(nodes[2], count), -EACCES)
        self.replicas[3].quorate = True
        self.bus.rejoin()
        self.assert_equal_trees(*nodes)
        self.assertIsNotNone(self.tree(nodes[2]).lookup(b"majority"))
        self.assertIsNone(self.tree(nodes[0]).lookup(b"minority"))

    def test_ghost_that_never_answers(self) -> None:
        """All leave at their deadlines; when the ghost is gone they come together."""
        nodes = self.cluster(BASE, grown(BASE, Create(b"n")))
        ghost = self.start(3)
        self.bus.nodes.pop(ghost.member)
        self.bus._reconfigure(
            list(self.bus.configurations), [(*self.bus.configurations[0], ghost.member)]
        )  # corosync knows it
        self.bus.run()
        self.assertEqual({node.machine.mode for node in nodes}, {Mode.START_SYNC})
        self.bus.pass_time(60.0)
        self.assertTrue(any("3/" in line and "no states" in line for line in nodes[0].log))
        self.bus.leave(ghost.member)
        self.bus.rejoin()
        self.assert_equal_trees(*nodes)

    def test_lock_is_released_by_the_lowest(self) -> None:
        nodes = self.cluster(BASE, BASE, BASE)
        self.submit(nodes[1], Mkdir(LOCK))
        self.bus.run()
        lock = self.tree(nodes[2]).lookup(LOCK)
        assert lock is not None
        request = TreeSubtype.UNLOCK_REQUEST, LockPayload(lock.lock_checksum(), LOCK).encode()
        senders: list[Member] = []

        def watch(sender: Member, data: bytes) -> None:
            if Header.decode(data)[:2] == (MessageType.NORMAL, TreeSubtype.UNLOCK):
                senders.append(sender)

        self.bus.watch = watch
        for seconds, holds in ((1.0, True), (118.0, True), (2.0, False)):
            self.bus.pass_time(seconds)
            nodes[2].submit(*request)
            count = self.submit(nodes[2], SetMtime(LOCK, 0))
            self.bus.run()
            self.assertEqual(self.outcome(nodes[2], count), -EACCES)  # it follows at once, ahead of the unlock
            self.assertEqual(self.tree(nodes[2]).lookup(LOCK) is not None, holds)
        self.assertEqual(senders, [nodes[0].member])
        self.assert_equal_trees(*nodes)

    def test_verification_heals(self) -> None:
        nodes = self.cluster(BASE, BASE, BASE)
        entry = BASE.lookup(b"f")
        assert entry is not None
        damaged = Entry(entry.inode, 0, entry.version, 1, entry.mtime, DT_REG, b"f", b"rotten")
        self.replicas[2].tree = BASE.replaced([], [damaged], None)
        self.bus.pass_time(3700.0)
        self.assertIs(nodes[1].machine.mode, Mode.LEAVE)
        self.assertTrue(any("verification failed" in line for line in nodes[1].log))
        self.bus.rejoin()
        self.assert_equal_trees(*nodes)
        self.assertEqual(self.tree(nodes[1]).index(), BASE.index())
        self.bus.pass_time(3700.0)
        self.assertEqual(nodes[1].log[-1], "data verification successful")

    def test_an_interval_of_silence_between_equals(self) -> None:
        nodes = self.cluster(BASE, BASE, BASE)
        self.bus.pass_time(3 * 3600.0 + 1)
        for node in nodes:
            self.assertEqual(node.log.count("data verification successful"), 3)


class Deviations(GroupCase):
    """What a reference node does to itself is healed by the next synchronisation (10-tree.md)."""

    start_tree = grown(BASE, Create(b"empty"), Create(b"d/x"), Mkdir(b"target"))
    cases: ClassVar[list[Change]] = [Write(b"empty", b"", 10, truncate=True), Rename(b"d", b"target")]

    def test_healing(self) -> None:
        for change, reference in itertools.product(self.cases, (1, 2, 3)):
            self.setUp()
            nodes = [
                self.start(i, self.start_tree, ReferenceReplica if i == reference else TreeReplica) for i in (1, 2, 3)
            ]
            self.bus.join(*nodes)
            self.bus.run()
            self.submit(nodes[reference - 1], change)
            self.bus.run()
            ours = [node for node in nodes if node.member.node_id != reference]
            self.assert_equal_trees(*ours)
            self.assertNotEqual(self.tree(nodes[reference - 1]).index(), self.tree(ours[0]).index())
            if isinstance(change, Write):
                entry = self.tree(ours[0]).lookup(b"empty")
                assert entry is not None
                self.assertEqual(entry.data, bytes(10))
            else:
                self.assertIsNotNone(self.tree(ours[0]).lookup(b"d/x"))
                self.assertIsNotNone(self.tree(ours[0]).lookup(b"target"))
            self.bus.pass_time(3700.0)  # the verification finds it
            self.bus.rejoin()
            self.assert_equal_trees(*nodes)
            self.bus.pass_time(3700.0)
            for node in nodes:
                self.assertEqual(node.log[-1], "data verification successful")
