"""The decoders, each with what it may raise."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from random import Random

from pvecfs.ipc import guests
from pvecfs.ipc.requests import Peer, Sources, answer
from pvecfs.node.hostconf import configuration_version
from pvecfs.replica.clusterlog import LogEntry, decode_ring, encode_ring
from pvecfs.replica.dcdb import TreeReplica
from pvecfs.replica.effects import Halt
from pvecfs.replica.kvstore import StatusReplica
from pvecfs.replica.machine import GroupMachine, Mode
from pvecfs.replica.member import Instant, Member
from pvecfs.replica.messages import (
    BASE,
    ChangePayload,
    Epoch,
    LockPayload,
    State,
    SyncStart,
    ValuePayload,
    decode_entry,
    encode_entry,
)
from pvecfs.replica.status import ClusterConfiguration, NodeInfo
from pvecfs.rrd.layout import MalformedUpdate, parse_update
from pvecfs.store.rows import entry_of
from pvecfs.tree.errors import MalformedMessage, OperationError, TreeDefect
from pvecfs.tree.index import Index
from pvecfs.tree.locks import LockClocks
from pvecfs.tree.tree import Tree
from tests.fuzz import corpus
from tests.fuzz.corpus import MOST_BYTES, mutate
from tests.ipc_doubles import MemoryStatus, MemoryView, golden_tree
from tests.wire import decode

A, B = Member(1, 100), Member(2, 200)
NOW = Instant(1_800_000_000, 1000.0)


@dataclass(frozen=True)
class Target:
    """A decoder.

    @ivar seeds: gives the recorded input.
    @ivar take: gives it input; raises anything but C{refusals} where something is wrong.
    """

    name: str
    seeds: Callable[[], tuple[bytes, ...]]
    take: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...] = (MalformedMessage,)

    def inputs(self) -> tuple[bytes, ...]:
        """The recorded input, without what is long if there is enough of the rest."""
        every = self.seeds()
        short = tuple(data for data in every if len(data) <= MOST_BYTES)
        return short or every[:20]

    def fuzz(self, random: Random, count: int) -> int:
        """C{count} inputs; how many of them were accepted.

        @raise AssertionError: with the input that shows what is wrong.
        """
        seeds = self.inputs()
        accepted = 0
        for _ in range(count):
            data = mutate(random, random.choice(seeds), seeds)
            try:
                self.take(data)
                accepted += 1
            except self.refusals:
                pass
            except Exception as error:
                raise AssertionError(f"{self.name}: {type(error).__name__}: {error}, input {_shown(data)}") from error
        return accepted


def _shown(data: bytes) -> str:
    return data.hex() if len(data) <= 1000 else f"{data[:1000].hex()}... ({len(data)} bytes)"


def _round_trip(decoded: object, encoded: bytes, data: bytes) -> None:
    if encoded != data:
        raise ValueError(f"{decoded} is encoded as {encoded.hex()}")


def _message(data: bytes) -> None:
    message = decode(data)
    encoded = message.encode()
    if encoded[:12] + encoded[16:] != data[:12] + data[16:]:  # the reserved field is not kept, and
        _round_trip(
            message, encoded[:2] + encoded[4:12] + encoded[16:], data[:2] + data[4:12] + data[16:]
        )  # no subtype


def _change(data: bytes) -> None:
    payload = ChangePayload.decode(data)
    _round_trip(payload, payload.encode(), data)
    for subtype in range(1, 7):
        change = payload.change(subtype)
        if change is not None:
            try:
                applied = golden().apply(change, 2, 1_800_000_000)
            except OperationError:
                continue
            applied.tree.index()


def _lock(data: bytes) -> None:
    payload = LockPayload.decode(data)
    _round_trip(payload, payload.encode(), data)


def _value(data: bytes) -> None:
    payload = ValuePayload.decode(data)
    if ValuePayload.decode(payload.encode()) != payload:
        raise ValueError("another value")


def _entry(data: bytes) -> None:
    entry = decode_entry(data)
    _round_trip(entry, encode_entry(entry), data)


def _index(data: bytes) -> None:
    index = Index.decode(data)
    _round_trip(index, index.encode(), data)
    own = Index.decode(golden().index())
    own.differing(index)
    own.differences(index)


def _log_entry(data: bytes) -> None:
    entry = LogEntry.decode(data)
    if LogEntry.decode(entry.encode()) != entry:
        raise ValueError("another entry")


def _ring(data: bytes) -> None:
    entries, _defect = decode_ring(data)
    if len(entries) > len(data) // 48:
        raise ValueError(f"{len(entries)} entries")


@cache
def golden() -> Tree:
    """The recorded tree."""
    return golden_tree()


def _tree_replica() -> TreeReplica:
    replica = TreeReplica(golden(), LockClocks())
    replica.quorate = True
    return replica


def _status_replica() -> StatusReplica:
    replica = StatusReplica(b"n1", 100, 1_800_000_000, b"10.0.0.1")
    replica.configuration_read(ClusterConfiguration(b"c", 1, (NodeInfo(1, b"n1"), NodeInfo(2, b"n2"))))
    replica.begin(NOW)
    return replica


EPOCH = Epoch(1, 1_800_000_000, *A)


def _machine(status: bool, mode: Mode) -> GroupMachine:
    """A machine of member A with B in its group, in C{mode}."""
    replica = _status_replica() if status else _tree_replica()
    machine = GroupMachine(replica, lambda: 0.5)
    version = replica.protocol_version
    machine.joined_as(A, NOW)
    machine.membership_changed((A, B), (), (A, B), NOW)
    machine.message_delivered(A, SyncStart(version, 0, EPOCH).encode(), NOW)
    if mode is Mode.START_SYNC:
        return machine
    machine.message_delivered(A, State(version, 0, EPOCH, replica.state()).encode(), NOW)
    better = replica.state()
    if mode is Mode.UPDATE:
        better = _newer(golden())
    machine.message_delivered(B, State(version, 0, EPOCH, better).encode(), NOW)
    assert machine.mode is mode, machine.mode
    return machine


def _newer(tree: Tree) -> bytes:
    index = Index.decode(tree.index())
    return Index(index.version + 1, index.last_inode, index.writer, index.mtime, index.items).encode()


class _Group:
    """A group that gets malformed messages until it leaves, and then begins anew."""

    def __init__(self, status: bool, mode: Mode) -> None:
        self._status = status
        self._mode = mode
        self._machine: GroupMachine | None = None
        self._taken = 0

    def take(self, data: bytes) -> None:
        machine = self._machine
        if machine is None or machine.mode is not self._mode or self._taken == 100:
            machine = self._machine = _machine(self._status, self._mode)
            self._taken = 0
        self._taken += 1
        # As recorded, the epoch is another one: then nothing would be looked at.
        if len(data) >= 32 and data[0] != 0:
            data = data[: BASE.size] + EPOCH_BYTES + data[32:]
        effects = machine.message_delivered(B, data, NOW)
        if any(isinstance(effect, Halt) for effect in effects) and machine.mode is Mode.ERROR:
            raise ValueError("the machine halts")
        if not machine.members:
            self._machine = None


EPOCH_BYTES = SyncStart(1, 0, EPOCH).encode()[BASE.size :]


class _Service:
    """The IPC service's requests, on the recorded tree. The request's number is the first byte."""

    def __init__(self) -> None:
        self._sources: Sources | None = None
        self._taken = 0

    def take(self, data: bytes) -> None:
        if self._sources is None or self._taken == 1000:
            self._sources = Sources(MemoryView(golden()), MemoryStatus())
            self._taken = 0
        self._taken += 1
        number = data[0] if data else 0
        reply = answer(self._sources, Peer(1, bool(number & 0x80)), number & 0x7F, data[1:])
        assert isinstance(reply, bytes)


def _rows(data: bytes) -> None:
    """A database's rows: eight columns each, of whatever kind."""
    rows = []
    columns: list[object] = []
    for part in data.split(b"|"):
        kind, rest = part[:1], part[1:]
        if kind == b"i":
            columns.append(int.from_bytes(rest[:8], "little", signed=True))
        elif kind == b"n":
            columns.append(None)
        elif kind == b"f":
            columns.append(1.5)
        else:
            columns.append(rest)
        if len(columns) == 8:
            rows.append(tuple(columns))
            columns = []
    entries = [entry_of(row) for row in rows]
    roots = [entry for entry in entries if entry.inode == 0]
    if not roots:
        raise TreeDefect("no root")
    tree = Tree.load([entry for entry in entries if entry.inode], roots[0])
    tree.index()


def _row_seeds() -> tuple[bytes, ...]:
    seeds = []
    with sqlite3.connect(f"file:{corpus.GOLDEN / 'config.db'}?mode=ro&immutable=1", uri=True) as database:
        select = "SELECT inode, parent, version, writer, mtime, type, CAST(name AS BLOB), CAST(data AS BLOB) FROM tree"
        parts = []
        for row in database.execute(select):
            for column in row:
                if isinstance(column, int):
                    parts.append(b"i" + column.to_bytes(8, "little", signed=True))
                elif column is None:
                    parts.append(b"n")
                else:
                    parts.append(b"b" + bytes(column)[:40])
        for end in (8, 16, 40, 80, 160):
            seeds.append(b"|".join(parts[:end]))
    database.close()
    return tuple(seeds)


def _conf_seeds() -> tuple[bytes, ...]:
    found = golden().lookup(b"corosync.conf")
    assert found is not None
    return (found.data, b"totem {\n  config_version: 12\n}\n", b"config_version:" + b"9" * 5000)


def _guest_seeds() -> tuple[bytes, ...]:
    return (b"name: vm\nmemory: 512\ntags: a;b\n[snap]\nname: x\n", b"a:b\nb\n:\nlock: backup\n[PENDING]\n")


def _rrd_seeds() -> tuple[bytes, ...]:
    columns = b":".join(b"%d" % number for number in range(1_800_000_000, 1_800_000_021))
    return tuple(
        key + b"\0" + columns
        for key in (
            b"pve2-node/n1",
            b"pve-node-9.0/n1",
            b"pve2.3-vm/100",
            b"pve-vm-9.0/100",
            b"pve-storage-9.0/n1/local",
        )
    )


def _rrd(data: bytes) -> None:
    key, _, value = data.partition(b"\0")
    parse_update(key, value)


def _requests() -> tuple[bytes, ...]:
    return tuple(bytes((number & 0x7F,)) + body for number, body in corpus.requests())


DCDB, KVSTORE = "pve_dcdb_v1", "pve_kvstore_v1"


def _messages(group: str) -> Callable[[], tuple[bytes, ...]]:
    return lambda: corpus.group_messages(group)


TARGETS = (
    Target("message of the tree group", _messages(DCDB), _message),
    Target("message of the status group", _messages(KVSTORE), _message),
    Target("change", lambda: corpus.normal_payloads(DCDB), _change),
    Target("lock", lambda: corpus.normal_payloads(DCDB), _lock),
    Target("status value", lambda: corpus.normal_payloads(KVSTORE), _value),
    Target("entry", corpus.entries, _entry),
    Target("index", lambda: corpus.states(DCDB), _index),
    Target("log entry", lambda: corpus.normal_payloads(KVSTORE), _log_entry),
    Target("log ring", lambda: (*corpus.states(KVSTORE)[:5], *_small_rings()), _ring),
    Target("tree group, synced", _messages(DCDB), _Group(False, Mode.SYNCED).take, ()),
    Target("tree group, start of a synchronisation", _messages(DCDB), _Group(False, Mode.START_SYNC).take, ()),
    Target("tree group, updates", _messages(DCDB), _Group(False, Mode.UPDATE).take, ()),
    Target("status group, synced", _messages(KVSTORE), _Group(True, Mode.SYNCED).take, ()),
    Target("status group, start of a synchronisation", _messages(KVSTORE), _Group(True, Mode.START_SYNC).take, ()),
    Target("IPC request", _requests, _Service().take, (OperationError,)),
    Target("database rows", _row_seeds, _rows, (TreeDefect,)),
    Target("corosync.conf", _conf_seeds, configuration_version, ()),
    Target("guest config", _guest_seeds, guests.parse, ()),
    Target("RRD update", _rrd_seeds, _rrd, (MalformedUpdate,)),
)


def _small_rings() -> tuple[bytes, ...]:
    """Rings cut to what is used, with a size field to match: quick to change and to read."""
    small = []
    for state in corpus.states(KVSTORE):
        entries, _ = decode_ring(state)
        ring = encode_ring(reversed(entries[:20]))[:MOST_BYTES]
        small.append(len(ring).to_bytes(4, "little") + ring[4:])
    return tuple(small)
