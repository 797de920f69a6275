"""The recordings of the reference, replayed through the tree replica (tests/golden/README.md)."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from twisted.trial import unittest

from pvecfs.replica.dcdb import TreeReplica
from pvecfs.replica.effects import Leave
from pvecfs.replica.machine import Mode
from pvecfs.replica.member import Member
from pvecfs.replica.messages import (
    ChangePayload,
    Epoch,
    LockPayload,
    MessageType,
    Normal,
    State,
    SyncStart,
    TreeSubtype,
    Update,
    UpdateComplete,
    ValuePayload,
    decode_entry,
    encode_entry,
)
from pvecfs.tree.index import Index
from pvecfs.tree.locks import LockClocks
from pvecfs.tree.tree import Tree
from tests.replay import GOLDEN, RUN, Conversation, Process, Record, comparable, read_database, trace
from tests.wire import Header, decode

DCDB = "pve_dcdb_v1"
CONF = b"corosync.conf"


def first_start(records: list[Record], content: bytes) -> Tree:
    """The tree of a process that started without a database and imported corosync.conf: at the time that the first
    state it sent tells."""
    state = next(
        message.payload
        for message in (decode(r.data) for r in records if r.kind == "S" and r.group == DCDB)
        if isinstance(message, State)
    )
    mtime = Index.decode(state).mtime
    return Tree.new(mtime).imported(CONF, content, mtime).tree


def conf_of(tree: Tree) -> bytes:
    entry = tree.lookup(CONF)
    assert entry is not None
    return entry.data


class TreeProcess:
    """A recorded process and our tree replica in its place."""

    def __init__(self, node_id: int, tree: Tree, records: list[Record]) -> None:
        self.replica = TreeReplica(tree, LockClocks())
        self.conversation = Conversation(self.replica)
        self._process = Process(node_id, {DCDB: self.conversation}, self._quorum_changed)
        self._records = records

    def _quorum_changed(self, quorate: bool) -> None:
        self.replica.quorate = quorate

    def replay(self) -> None:
        self._process.replay(self._records)


class ClusterRun(unittest.TestCase):
    """Everything that each process of a run received: our replicas answer as the processes did."""

    def replay(self, name: str, node_id: int) -> TreeProcess:
        records = list(trace(RUN / f"{name}.trace.xz"))
        start = RUN / f"{name}.start.db.gz"
        if start.exists():
            tree = read_database(start)
        else:
            tree = first_start(records, conf_of(read_database(RUN / "n1.end.db.gz")))
        process = TreeProcess(node_id, tree, records)
        process.replay()
        ours, theirs = process.conversation.ours, process.conversation.theirs
        self.assertEqual(comparable(ours), comparable(theirs))
        self.assertIs(process.conversation.machine.mode, Mode.SYNCED)
        return process

    def assert_ends_in(self, process: TreeProcess, database: Path) -> None:
        self.assertEqual(process.replica.tree.index(), read_database(database).index())

    def assert_undisturbed(self, process: TreeProcess) -> None:
        self.assertEqual(process.conversation.troubles, [])

    def test_n1_first(self) -> None:
        process = self.replay("n1.1", 1)
        self.assert_undisturbed(process)
        self.assert_ends_in(process, RUN / "n1.2.start.db.gz")

    def test_n1_second(self) -> None:
        """The lowest node, which releases an expired lock."""
        process = self.replay("n1.2", 1)
        self.assert_undisturbed(process)
        self.assert_ends_in(process, RUN / "n1.end.db.gz")
        unlocks = [m.payload for m in process.conversation.their_normals if m.subtype == TreeSubtype.UNLOCK]
        self.assertEqual([m.payload for m in process.conversation.our_normals], unlocks)
        self.assertEqual(len(unlocks), 1)

    def test_n2_first(self) -> None:
        process = self.replay("n2.1", 2)
        self.assert_undisturbed(process)
        self.assert_ends_in(process, RUN / "n2.2.start.db.gz")

    def test_n2_second(self) -> None:
        process = self.replay("n2.2", 2)
        self.assert_undisturbed(process)
        self.assert_ends_in(process, RUN / "n2.3.start.db.gz")

    def test_n2_third(self) -> None:
        process = self.replay("n2.3", 2)
        self.assert_undisturbed(process)
        self.assert_ends_in(process, RUN / "n2.end.db.gz")

    def test_n3(self) -> None:
        """It was cut off for a while: a write met it without quorum, and it left the group and came back."""
        process = self.replay("n3.1", 3)
        self.assertEqual(
            process.conversation.troubles, [Leave("received write while not quorate - trigger resync", 0.0)]
        )
        self.assert_ends_in(process, RUN / "n3.end.db.gz")

    def test_databases_are_equal(self) -> None:
        indexes = {read_database(RUN / f"n{i}.end.db.gz").index() for i in (1, 2, 3)}
        self.assertEqual(len(indexes), 1)


class Recorded(NamedTuple):
    """A message of the recorded story."""

    sender: str
    group: str
    data: bytes


def story() -> Iterator[Recorded]:
    with gzip.open(GOLDEN / "cpg-messages.jsonl.gz", "rt") as lines:
        for line in lines:
            row = json.loads(line)
            yield Recorded(row["sender"], row["group"], base64.b64decode(row["message"]))


def all_recorded_messages() -> Iterator[tuple[str, bytes]]:
    """Every recorded message with its group: of the story, and all sent and delivered ones of the run."""
    for recorded in story():
        yield recorded.group, recorded.data
    for path in sorted(RUN.glob("*.trace.xz")):
        for record in trace(path):
            if record.kind in "DSs":
                yield record.group, record.data


class Codecs(unittest.TestCase):
    """Every recorded message decodes, and encodes to the same bytes."""

    def test_round_trip(self) -> None:
        kinds = set()
        for group, data in all_recorded_messages():
            message = decode(data)
            if message.encode() != data:
                self.fail(f"{message} encodes differently")
            kinds.add(type(message).__name__)
            if group == DCDB and isinstance(message, Normal):
                self.assert_tree_payload(message)
            elif isinstance(message, Normal) and message.subtype == 1:
                self.assertEqual(ValuePayload.decode(message.payload).encode(), message.payload)
            elif isinstance(message, Update):
                self.assertEqual(encode_entry(decode_entry(message.payload)), message.payload)
            elif isinstance(message, State) and group == DCDB:
                self.assertEqual(Index.decode(message.payload).encode(), message.payload)
        self.assertEqual(kinds, {"Normal", "SyncStart", "State", "Update", "UpdateComplete", "VerifyRequest", "Verify"})

    def assert_tree_payload(self, message: Normal) -> None:
        if message.subtype in (TreeSubtype.UNLOCK_REQUEST, TreeSubtype.UNLOCK):
            self.assertEqual(LockPayload.decode(message.payload).encode(), message.payload)
        else:
            self.assertEqual(ChangePayload.decode(message.payload).encode(), message.payload)


NODE = {"n1": 1, "n2": 2, "n3 (first start)": 3, "n3 (second start)": 3}


class StoryReplayed(unittest.TestCase):
    """The recorded story through four replicas, one for each process.

    The recording tells each process's messages in its own order. What was between them follows from the protocol: the
    lowest node n1 starts each synchronisation, then everyone sends its state, then the leader its updates.
    """

    def setUp(self) -> None:
        self.final = read_database(GOLDEN / "config.db")
        self.sent: dict[str, list[bytes]] = {name: [] for name in NODE}
        for recorded in story():
            if recorded.group == DCDB:
                self.sent[recorded.sender].append(recorded.data)
        # The recorded process ids of the others are not known; any will do, in the epochs only n1's appears.
        pid = Epoch.decode(self.sent["n1"][0], 16).pid
        self.members = {name: Member(NODE[name], pid + i) for i, name in enumerate(NODE)}

    def ordered(self) -> Iterator[Record]:
        """The group's order, with the membership change before each synchronisation."""
        yield self.changed(["n1"], [])
        before = ["n1"]
        for data in self.sent["n1"]:
            message = decode(data)
            if isinstance(message, SyncStart):
                answers = {
                    name: [other for other in self.sent[name] if Epoch.decode(other, 16) == message.epoch]
                    for name in NODE
                    if name != "n1"
                }
                present = ["n1"] + [name for name in answers if answers[name]]
                yield self.changed(present, before)
                before = present
            yield self.delivered("n1", data)
            if isinstance(message, State):
                for type_ in (MessageType.STATE, MessageType.UPDATE, MessageType.UPDATE_COMPLETE):
                    for name, answered in answers.items():
                        for other in answered:
                            if Header.decode(other).type == type_:
                                yield self.delivered(name, other)

    def changed(self, present: list[str], before: list[str]) -> Record:
        left = tuple(self.members[name] for name in before if name not in present)
        joined = tuple(self.members[name] for name in present if name not in before)
        return Record("C", DCDB, members=(tuple(self.members[name] for name in present), left, joined))

    def delivered(self, name: str, data: bytes) -> Record:
        return Record("D", DCDB, data, members=((self.members[name],),))

    def records_of(self, name: str) -> Iterator[Record]:
        """What process C{name} saw: from its first membership to its end. Its verification timer, which a trace shows
        by a sent request, stands before the delivery of the request."""
        own = self.members[name]
        yield Record("I", "", number=own.pid)
        yield Record("Q", "", number=1)
        for record in self.ordered():
            if record.kind == "C":
                present = own in record.members[0]
            if not present:
                continue
            if record.kind == "D" and record.members[0][0] == own:
                yield Record("S", DCDB, record.data)
            yield record

    def start_of(self, name: str) -> Tree:
        records = [Record("S", DCDB, data) for data in self.sent[name]]
        return first_start(records, conf_of(self.final))

    def replay(self, name: str, tree: Tree) -> TreeProcess:
        process = TreeProcess(NODE[name], tree, list(self.records_of(name)))
        process.replay()
        self.assertEqual(comparable(process.conversation.ours), comparable(self.recorded_states(name)))
        self.assertEqual(process.conversation.troubles, [])
        return process

    def recorded_states(self, name: str) -> list[bytes]:
        return [data for data in self.sent[name] if Header.decode(data).type != MessageType.NORMAL]

    def test_story(self) -> None:
        n1 = self.replay("n1", self.start_of("n1"))
        n2 = self.replay("n2", self.start_of("n2"))
        first = self.replay("n3 (first start)", self.start_of("n3 (first start)"))
        second = self.replay("n3 (second start)", first.replica.tree)
        for process in (n1, n2, second):
            self.assertEqual(process.replica.tree.index(), self.final.index())
        self.assertEqual(
            [entry.digest() for entry in n1.replica.tree.entries()], [entry.digest() for entry in self.final.entries()]
        )
        self.assertEqual(n1.replica.tree.checksum(), self.sent["n1"][-1][-32:])
        self.assertIn("data verification successful", n1.conversation.lines)

    def test_recorded_epoch_counters(self) -> None:
        """Even these are ours: one for each membership change that the process saw."""
        process = self.replay("n1", self.start_of("n1"))
        counters = [Epoch.decode(data, 16).counter for data in process.conversation.ours]
        self.assertEqual(counters, [Epoch.decode(data, 16).counter for data in self.recorded_states("n1")])
        completes = [decode(data) for data in process.conversation.ours]
        self.assertEqual(len([m for m in completes if isinstance(m, UpdateComplete)]), 2)
