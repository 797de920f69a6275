"""Replays recordings of the reference (tests/golden/README.md) through our group machines.

A L{Process} stands for one recorded process. It feeds each machine with what the process received, in order, and
collects the state messages that our machine sends, and those that the process sent. Time is the newest time that any
message's header told so far, for both clocks.
"""

from __future__ import annotations

import gzip
import lzma
import sqlite3
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pvecfs.replica.application import GroupApplication
from pvecfs.replica.effects import Effect, FailWaiting, Halt, Leave, Log, Multicast
from pvecfs.replica.machine import GroupMachine, Mode
from pvecfs.replica.member import Instant, Member
from pvecfs.replica.messages import STATE_HEAD_SIZE, MessageType, Normal
from pvecfs.tree.entry import ROOT_INODE, Entry
from pvecfs.tree.tree import Tree
from tests.bus import one_by_one
from tests.wire import Header, decode

GOLDEN = Path(__file__).parent / "golden"
RUN = GOLDEN / "cluster-run"

_U32 = struct.Struct("<I")
_MEMBER = struct.Struct("<II")
_CHANGED = struct.Struct("<III")


class Record(NamedTuple):
    """One record of a trace.

    @ivar kind: C{I}, C{Q}, C{C}, C{D}, C{S} or C{s}.
    @ivar group: of C and D, and of S and s by their protocol version; else empty.
    @ivar data: the message of D, S and s; of Q the number; of I the process id.
    @ivar members: of C: members, left, joined; of D: the sender alone, in a tuple.
    """

    kind: str
    group: str
    data: bytes = b""
    number: int = 0
    members: tuple[tuple[Member, ...], ...] = ()


def trace(path: Path) -> Iterator[Record]:
    """The records of a C{.trace.xz} file."""
    data = lzma.decompress(path.read_bytes())
    at = 0
    while at < len(data):
        kind = chr(data[at])
        (length,) = _U32.unpack_from(data, at + 1)
        yield _record(kind, data[at + 5 : at + 5 + length])
        at += 5 + length


def _record(kind: str, data: bytes) -> Record:
    if kind in "IQ":
        return Record(kind, "", number=_U32.unpack(data)[0])
    if kind in "Ss":
        return Record(kind, "pve_dcdb_v1" if Header.decode(data).protocol_version else "pve_kvstore_v1", data)
    (length,) = _U32.unpack_from(data)
    group = data[4 : 4 + length].rstrip(b"\0").decode()
    at = 4 + length
    if kind == "D":
        sender = Member(*_MEMBER.unpack_from(data, at))
        return Record(kind, group, data[at + _MEMBER.size :], members=((sender,),))
    lists = []
    for _ in range(3):
        (count,) = _U32.unpack_from(data, at)
        at += 4
        ends = at + count * _CHANGED.size
        lists.append(tuple(Member(*_CHANGED.unpack_from(data, i)[:2]) for i in range(at, ends, _CHANGED.size)))
        at = ends
    return Record(kind, group, members=tuple(lists))


def read_database(path: Path) -> Tree:
    """The tree in a recorded database, plain or C{.gz}."""
    data = bytearray(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    data[18:20] = b"\1\1"  # a copy in WAL mode cannot be read from memory; it has no WAL that matters
    connection = sqlite3.connect(":memory:")
    connection.text_factory = bytes
    try:
        connection.deserialize(bytes(data))
        rows = list(connection.execute("SELECT inode, parent, version, writer, mtime, type, name, data FROM tree"))
    finally:
        connection.close()
    entries = []
    root = None
    for inode, parent, version, writer, mtime, type_, name, content in rows:
        if inode == ROOT_INODE:
            root = Entry(0, 0, version, writer, mtime, 4, b"")
        else:
            entries.append(Entry(inode, parent, version, writer, mtime, type_, name, content or b""))
    assert root is not None
    return Tree.load(entries, root)


class Conversation:
    """One group of a recorded process: our machine, and both sides' sent messages.

    @ivar ours: state messages that our machine sent, in order.
    @ivar theirs: state messages that the process sent.
    @ivar our_normals: NORMAL messages that our machine sent by itself.
    @ivar their_normals: all NORMAL messages that the process sent.
    @ivar effects: everything else that came out, in order.
    """

    def __init__(self, application: GroupApplication) -> None:
        self.machine = GroupMachine(application, lambda: 0.5, 1e9, 1e9)
        self.ours: list[bytes] = []
        self.theirs: list[bytes] = []
        self.our_normals: list[Normal] = []
        self.their_normals: list[Normal] = []
        self.effects: list[Effect] = []

    def carry_out(self, effects: Iterable[Effect]) -> None:
        for effect in one_by_one(effects):
            if isinstance(effect, Multicast):
                message = decode(effect.message)
                if isinstance(message, Normal):
                    self.our_normals.append(message)
                else:
                    self.ours.append(effect.message)
            else:
                self.effects.append(effect)

    @property
    def troubles(self) -> list[Effect]:
        """What a run without faults of its own does not have."""
        return [effect for effect in self.effects if isinstance(effect, Leave | Halt)]

    @property
    def lines(self) -> list[str]:
        return [effect.text for effect in self.effects if isinstance(effect, Log)]

    @property
    def acknowledgements(self) -> list[Effect]:
        return [effect for effect in self.effects if isinstance(effect, FailWaiting)]


class Process:
    """A recorded process.

    @param node_id: its node.
    @param conversations: by group name; a group that is not here is passed over.
    @param quorum_changed: told of quorum notifications.
    @param sent: told of every accepted NORMAL message that the process sent, before it is delivered; a status replica
        has applied it by then.
    """

    def __init__(
        self,
        node_id: int,
        conversations: dict[str, Conversation],
        quorum_changed: Callable[[bool], None] = lambda quorate: None,
        sent: Callable[[str, Normal, Instant], None] = lambda group, message, now: None,
    ) -> None:
        self._node_id = node_id
        self._conversations = conversations
        self._quorum_changed = quorum_changed
        self._sent = sent
        self._now = Instant(0, 0.0)

    def replay(self, records: Iterable[Record]) -> None:
        for record in records:
            if record.data:
                time = max(self._now.wall, Header.decode(record.data).time)
                self._now = Instant(time, float(time))
            conversation = self._conversations.get(record.group)
            if record.kind == "I":
                self._join(record.number)
            elif record.kind == "Q":
                self._quorum_changed(record.number == 1)
            elif conversation is not None:
                self._step(record, conversation)

    def _join(self, pid: int) -> None:
        """The trace does not say which group's connection it was: at start all, later one that was left."""
        for conversation in self._conversations.values():
            machine = conversation.machine
            if machine.mode is Mode.LEAVE or not machine.own.node_id:
                conversation.carry_out(machine.joined_as(Member(self._node_id, pid), self._now))

    def _step(self, record: Record, conversation: Conversation) -> None:
        machine = conversation.machine
        if record.kind == "C":
            members, left, joined = record.members
            conversation.carry_out(machine.membership_changed(members, left, joined, self._now))
        elif record.kind == "D":
            conversation.carry_out(machine.message_delivered(record.members[0][0], record.data, self._now))
        elif record.kind == "S":
            message = decode(record.data)
            if isinstance(message, Normal):
                conversation.their_normals.append(message)
                self._sent(record.group, message, self._now)
                return
            conversation.theirs.append(record.data)
            if message.TYPE is MessageType.VERIFY_REQUEST:  # its timer, which the trace does not hold
                conversation.carry_out(machine.request_verification(self._now))


def comparable(messages: Iterable[bytes]) -> list[tuple[object, ...]]:
    """State messages without times and epoch counters; runs of UPDATEs sorted, since their order does not matter."""
    out: list[tuple[object, ...]] = []
    run: list[bytes] = []

    def end_run() -> None:
        if run:
            out.append((MessageType.UPDATE, *sorted(run)))
            run.clear()

    for data in messages:
        header = Header.decode(data)
        if header.type == MessageType.UPDATE:
            run.append(data[STATE_HEAD_SIZE:])
        else:
            end_run()
            epoch = _MEMBER.unpack_from(data, STATE_HEAD_SIZE - _MEMBER.size)
            out.append((MessageType(header.type), header.subtype, epoch, data[STATE_HEAD_SIZE:]))
    end_run()
    return out
