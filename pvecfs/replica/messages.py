"""The messages of the two process groups (30-replication.md, "Layouts"): one frozen codec each.

Everything is little-endian and packed. C{decode} of each class takes the bytes and raises L{MalformedMessage}, saying
what is wrong and where; C{encode} of a decoded message gives the bytes that it came from.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import ClassVar, NamedTuple, Self

from pvecfs.tree.changes import Change, Create, Delete, Mkdir, Rename, SetMtime, Write
from pvecfs.tree.entry import DT_DIR, DT_REG, Entry
from pvecfs.tree.errors import MalformedMessage
from pvecfs.tree.record import record

BASE = struct.Struct("<HHIII")
"""Base header: type, subtype, protocol version, time (sender's clock, seconds), reserved."""

NORMAL_HEAD = struct.Struct("<HHIIIQ")
"""Base header, then the sender's message count."""

EPOCH = struct.Struct("<IIII")

STATE_HEAD_SIZE = BASE.size + EPOCH.size
"""Bytes of a state message before its body: base header and epoch."""

CHECKSUM_SIZE = 32

_CHECKSUM_ID = struct.Struct("<Q")
_CHANGE_HEAD = struct.Struct("<IIIII")
_ENTRY_HEAD = struct.Struct("<QQQIIIIB")

U32 = 0xFFFFFFFF
KEY_SIZE = 256
"""Bytes of a status key on the wire, its NUL included."""


class MessageType(IntEnum):
    """The base header's C{type}."""

    NORMAL = 0
    SYNC_START = 1
    STATE = 2
    UPDATE = 3
    UPDATE_COMPLETE = 4
    VERIFY_REQUEST = 5
    VERIFY = 6


class TreeSubtype(IntEnum):
    """C{subtype} of NORMAL messages in group C{pve_dcdb_v1}."""

    WRITE = 1
    MKDIR = 2
    DELETE = 3
    RENAME = 4
    CREATE = 5
    MTIME = 6
    UNLOCK_REQUEST = 7
    UNLOCK = 8


class StatusSubtype(IntEnum):
    """C{subtype} of NORMAL messages in group C{pve_kvstore_v1}."""

    UPDATE = 1
    LOG = 3


class Epoch(NamedTuple):
    """Names one synchronisation: made by the member that started it.

    @ivar counter: u32, that process's counter of membership changes.
    @ivar time: u32, its clock, seconds.
    @ivar node_id: its node.
    @ivar pid: its process id.
    """

    counter: int
    time: int
    node_id: int
    pid: int

    def encode(self) -> bytes:
        return EPOCH.pack(*self)

    @classmethod
    def decode(cls, data: bytes, offset: int = 0) -> Epoch:
        if len(data) < offset + EPOCH.size:
            raise MalformedMessage(f"epoch: {len(data) - offset} bytes at offset {offset}, {EPOCH.size} needed")
        return cls._make(EPOCH.unpack_from(data, offset))


@record
class Normal:
    """A message of the application.

    @ivar protocol_version: of the group.
    @ivar time: the sender's clock, seconds.
    @ivar subtype: what the payload is; a L{TreeSubtype} or L{StatusSubtype}, or a number we do not know.
    @ivar count: the sending process's count of NORMAL messages in this group, from 1.
    @ivar payload: decoded by the application.
    """

    protocol_version: int
    time: int
    subtype: int
    count: int
    payload: bytes

    def encode(self) -> bytes:
        return (
            NORMAL_HEAD.pack(MessageType.NORMAL, self.subtype, self.protocol_version, self.time, 0, self.count)
            + self.payload
        )

    @classmethod
    def decode(cls, data: bytes) -> Normal:
        if len(data) < NORMAL_HEAD.size:
            raise MalformedMessage(f"normal message: {len(data)} bytes, at least {NORMAL_HEAD.size} needed")
        type_, subtype, version, time, _, count = NORMAL_HEAD.unpack_from(data)
        if type_ != MessageType.NORMAL:
            raise MalformedMessage(f"normal message: type {type_} at offset 0")
        return cls(version, time, subtype, count, data[NORMAL_HEAD.size :])


def _state_head(type_: int, protocol_version: int, time: int, epoch: Epoch) -> bytes:
    return BASE.pack(type_, 0, protocol_version, time, 0) + EPOCH.pack(*epoch)


def _decode_state_head(data: bytes, type_: MessageType) -> tuple[int, int, Epoch]:
    if len(data) < STATE_HEAD_SIZE:
        raise MalformedMessage(f"{type_.name}: {len(data)} bytes, at least {STATE_HEAD_SIZE} needed")
    got, _, version, time, _ = BASE.unpack_from(data)
    if got != type_:
        raise MalformedMessage(f"{type_.name}: type {got} at offset 0")
    return version, time, Epoch._make(EPOCH.unpack_from(data, BASE.size))


def _exactly(data: bytes, size: int, what: str) -> None:
    if len(data) != size:
        raise MalformedMessage(f"{what}: {len(data)} bytes, {size} needed")


@record
class _Bare:
    """A state message without a body."""

    TYPE: ClassVar[MessageType]

    protocol_version: int
    time: int
    epoch: Epoch

    def encode(self) -> bytes:
        return _state_head(self.TYPE, self.protocol_version, self.time, self.epoch)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        head = _decode_state_head(data, cls.TYPE)
        _exactly(data, STATE_HEAD_SIZE, cls.TYPE.name)
        return cls(*head)


@record
class _Loaded:
    """A state message whose body is the application's."""

    TYPE: ClassVar[MessageType]

    protocol_version: int
    time: int
    epoch: Epoch
    payload: bytes

    def encode(self) -> bytes:
        return _state_head(self.TYPE, self.protocol_version, self.time, self.epoch) + self.payload

    @classmethod
    def decode(cls, data: bytes) -> Self:
        return cls(*_decode_state_head(data, cls.TYPE), data[STATE_HEAD_SIZE:])


@record
class SyncStart(_Bare):
    """The lowest node asks all members for their states, under its epoch."""

    TYPE = MessageType.SYNC_START


@record
class State(_Loaded):
    """C{payload} is the sender's state: the index of its tree, or its cluster log ring."""

    TYPE = MessageType.STATE


@record
class Update(_Loaded):
    """The leader's version of one entry; C{payload} is coded by L{encode_entry} and L{decode_entry}."""

    TYPE = MessageType.UPDATE


@record
class UpdateComplete(_Bare):
    """The leader has sent all its updates."""

    TYPE = MessageType.UPDATE_COMPLETE


@record
class VerifyRequest:
    """Everyone takes the checksum of its tree at this point of the order, under the sender's C{checksum_id}."""

    TYPE: ClassVar = MessageType.VERIFY_REQUEST

    protocol_version: int
    time: int
    epoch: Epoch
    checksum_id: int

    def encode(self) -> bytes:
        return _state_head(self.TYPE, self.protocol_version, self.time, self.epoch) + _CHECKSUM_ID.pack(
            self.checksum_id
        )

    @classmethod
    def decode(cls, data: bytes) -> VerifyRequest:
        head = _decode_state_head(data, cls.TYPE)
        _exactly(data, STATE_HEAD_SIZE + _CHECKSUM_ID.size, "VERIFY_REQUEST")
        return cls(*head, *_CHECKSUM_ID.unpack_from(data, STATE_HEAD_SIZE))


@record
class Verify:
    """The requester's checksum, taken when its own request was delivered to it."""

    TYPE: ClassVar = MessageType.VERIFY

    protocol_version: int
    time: int
    epoch: Epoch
    checksum_id: int
    checksum: bytes

    def encode(self) -> bytes:
        return (
            _state_head(self.TYPE, self.protocol_version, self.time, self.epoch)
            + _CHECKSUM_ID.pack(self.checksum_id)
            + self.checksum
        )

    @classmethod
    def decode(cls, data: bytes) -> Verify:
        head = _decode_state_head(data, cls.TYPE)
        _exactly(data, STATE_HEAD_SIZE + _CHECKSUM_ID.size + CHECKSUM_SIZE, "VERIFY")
        (checksum_id,) = _CHECKSUM_ID.unpack_from(data, STATE_HEAD_SIZE)
        return cls(*head, checksum_id, data[STATE_HEAD_SIZE + _CHECKSUM_ID.size :])


def _terminated(field: bytes, what: str, offset: int) -> bytes:
    """C{field} without its NUL, which must be its last byte and its only one."""
    if field.find(b"\0") != len(field) - 1:
        raise MalformedMessage(f"{what}, {len(field)} bytes at offset {offset}, does not end in its only NUL")
    return field[:-1]


@record
class ChangePayload:
    """Payload of the dcdb subtypes 1 to 6: size, offset, path length, to length, flags; then path, to, data.

    @ivar path: without its NUL; C{None} when the message has none (length 0), which is not the root's path C{b""}.
    @ivar to: the same, for RENAME.
    @ivar data: for WRITE.
    @ivar offset: u32; of WRITE in bytes, of MTIME the new mtime in seconds.
    @ivar flags: of WRITE: anything but 0 means truncate.
    """

    path: bytes | None
    to: bytes | None = None
    data: bytes = b""
    offset: int = 0
    flags: int = 0

    def encode(self) -> bytes:
        path = b"" if self.path is None else self.path + b"\0"
        to = b"" if self.to is None else self.to + b"\0"
        return _CHANGE_HEAD.pack(len(self.data), self.offset, len(path), len(to), self.flags) + path + to + self.data

    @classmethod
    def decode(cls, payload: bytes) -> ChangePayload:
        if len(payload) < _CHANGE_HEAD.size:
            raise MalformedMessage(f"change: {len(payload)} bytes, at least {_CHANGE_HEAD.size} needed")
        size, offset, path_length, to_length, flags = _CHANGE_HEAD.unpack_from(payload)
        to_at = _CHANGE_HEAD.size + path_length
        data_at = to_at + to_length
        if len(payload) != data_at + size:
            raise MalformedMessage(
                f"change: {len(payload)} bytes, but its head says {_CHANGE_HEAD.size} + path {path_length}"
                f" + to {to_length} + data {size}"
            )
        return cls(
            _terminated(payload[_CHANGE_HEAD.size : to_at], "path", _CHANGE_HEAD.size) if path_length else None,
            _terminated(payload[to_at:data_at], "target path", to_at) if to_length else None,
            payload[data_at:],
            offset,
            flags,
        )

    def change(self, subtype: int) -> Change | None:
        """The change that this payload describes under C{subtype}.

        @return: C{None} when a path that it needs is absent: the operation fails, the message is not malformed.
        @raise MalformedMessage: C{subtype} is not one of 1 to 6.
        """
        if not TreeSubtype.WRITE <= subtype <= TreeSubtype.MTIME:
            raise MalformedMessage(f"no change has subtype {subtype}")
        path = self.path
        if path is None:
            return None
        if subtype == TreeSubtype.WRITE:
            return Write(path, self.data, self.offset, self.flags != 0)
        if subtype == TreeSubtype.CREATE:
            return Create(path)
        if subtype == TreeSubtype.MKDIR:
            return Mkdir(path)
        if subtype == TreeSubtype.DELETE:
            return Delete(path)
        if subtype == TreeSubtype.MTIME:
            return SetMtime(path, self.offset)
        return None if self.to is None else Rename(path, self.to)


def encode_change(change: Change) -> tuple[TreeSubtype, bytes]:
    """The subtype and payload of the NORMAL message that carries C{change}; leading '/' of its paths are not sent.

    @raise ValueError: an offset that is no u32; such a change is refused before it gets here.
    """
    path = change.path.lstrip(b"/")
    match change:
        case Write():
            if not 0 <= change.offset <= U32:
                raise ValueError(f"offset {change.offset} does not fit into 32 bits")
            return TreeSubtype.WRITE, ChangePayload(
                path, None, change.data, change.offset, int(change.truncate)
            ).encode()
        case Rename():
            return TreeSubtype.RENAME, ChangePayload(path, change.to.lstrip(b"/")).encode()
        case SetMtime():
            return TreeSubtype.MTIME, ChangePayload(path, offset=change.mtime & U32).encode()
        case Create():
            return TreeSubtype.CREATE, ChangePayload(path).encode()
        case Mkdir():
            return TreeSubtype.MKDIR, ChangePayload(path).encode()
        case Delete():
            return TreeSubtype.DELETE, ChangePayload(path).encode()


@record
class LockPayload:
    """Payload of UNLOCK_REQUEST and UNLOCK.

    @ivar checksum: lock checksum, 32 bytes, of the lock that is meant.
    @ivar path: the lock's directory, without NUL.
    """

    checksum: bytes
    path: bytes

    def encode(self) -> bytes:
        return self.checksum + self.path + b"\0"

    @classmethod
    def decode(cls, payload: bytes) -> LockPayload:
        if len(payload) <= CHECKSUM_SIZE:
            raise MalformedMessage(f"unlock: {len(payload)} bytes, more than {CHECKSUM_SIZE} needed")
        return cls(payload[:CHECKSUM_SIZE], _terminated(payload[CHECKSUM_SIZE:], "path", CHECKSUM_SIZE))


@record
class ValuePayload:
    """Payload of the kvstore subtype UPDATE: the key in 256 bytes, then the value.

    @ivar key: at most 255 bytes, without NUL.
    @ivar value: any bytes; empty removes the key.
    """

    key: bytes
    value: bytes

    def encode(self) -> bytes:
        """@raise ValueError: the key is too long or has a NUL."""
        if len(self.key) >= KEY_SIZE or b"\0" in self.key:
            raise ValueError(f"key {self.key!r} is longer than {KEY_SIZE - 1} bytes or has a NUL")
        return self.key.ljust(KEY_SIZE, b"\0") + self.value

    @classmethod
    def decode(cls, payload: bytes) -> ValuePayload:
        """What follows the key's NUL within its 256 bytes is ignored: the reference does not always clear it."""
        if len(payload) < KEY_SIZE:
            raise MalformedMessage(f"status value: {len(payload)} bytes, at least {KEY_SIZE} needed")
        end = payload.find(b"\0", 0, KEY_SIZE)
        if end < 0:
            raise MalformedMessage(f"status value: the key, {KEY_SIZE} bytes at offset 0, has no NUL")
        return cls(payload[:end], payload[KEY_SIZE:])


def encode_entry(entry: Entry) -> bytes:
    """The UPDATE payload for C{entry}."""
    return (
        _ENTRY_HEAD.pack(
            entry.parent,
            entry.inode,
            entry.version,
            entry.writer,
            entry.mtime,
            len(entry.data),
            len(entry.name) + 1,
            entry.type,
        )
        + entry.name
        + b"\0"
        + entry.data
    )


def decode_entry(payload: bytes) -> Entry:
    """The entry in an UPDATE payload; whether it fits into a tree is not looked at here.

    @raise MalformedMessage: lengths that do not add up, a name without NUL, a type that is neither 4 nor 8.
    """
    if len(payload) < _ENTRY_HEAD.size:
        raise MalformedMessage(f"entry: {len(payload)} bytes, at least {_ENTRY_HEAD.size} needed")
    parent, inode, version, writer, mtime, size, name_length, type_ = _ENTRY_HEAD.unpack_from(payload)
    data_at = _ENTRY_HEAD.size + name_length
    if type_ not in (DT_DIR, DT_REG):
        raise MalformedMessage(f"entry {inode}: type {type_} at offset {_ENTRY_HEAD.size - 1}")
    if len(payload) != data_at + size:
        raise MalformedMessage(
            f"entry {inode}: {len(payload)} bytes, but its head says {_ENTRY_HEAD.size} + name {name_length}"
            f" + data {size}"
        )
    if type_ == DT_DIR and size:
        raise MalformedMessage(f"entry {inode}: a directory with {size} bytes of data")
    if not name_length:
        raise MalformedMessage(f"entry {inode}: a name of length 0, without its NUL")
    name = _terminated(payload[_ENTRY_HEAD.size : data_at], f"name of entry {inode}", _ENTRY_HEAD.size)
    return Entry(inode, parent, version, writer, mtime, type_, name, payload[data_at:])
