"""The cluster log: entries, the ring of them that members exchange, their merge, and the JSON that people read.

Facts: 40-status.md, "Cluster log". Everything here is pure; times are seconds since 1970 and come in as arguments.
Strings are bytes without their terminating NUL; on the wire and in every length the NUL is counted.
"""

from __future__ import annotations

import re
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice

from pvecfs.tree.errors import MalformedMessage

RING_SIZE = 131072
"""Bytes of a ring, its head of 8 bytes included."""

MAX_ENTRY_SIZE = 4096
"""Bytes of the largest entry."""

MERGED_BYTES = RING_SIZE - 8 - MAX_ENTRY_SIZE
"""A merge takes entries until they have this many bytes; the one that crosses it is the last."""

DEFAULT_LIMIT = 50
"""Entries in a document when nobody asked for a number."""

_RING_HEAD = struct.Struct("<II")  # size, cpos
# prev, next, uid, time, node digest, ident digest, pid, priority, node length, ident length, tag length, message length
_ENTRY_HEAD = struct.Struct("<IIIIQQIBBBBI")
_MASK64 = (1 << 64) - 1
_MASK32 = (1 << 32) - 1


@lru_cache(maxsize=1024)
def digest(text: bytes) -> int:
    """64-bit FNV-1a of C{text} and its NUL."""
    value = 0xCBF29CE484222325
    for byte in text + b"\0":
        value = ((value ^ byte) * 0x100000001B3) & _MASK64
    return value


def _aligned(offset: int) -> int:
    return (offset + 7) & ~7


# Text --------------------------------------------------------------------------------------------------------------

_NOT_PLAIN = re.compile(r"[^ !#-~]")
# A pair of surrogates, any other escape, anything else.
_WHOLE = re.compile(r"\\u[Dd][89ABab][0-9A-Fa-f]{2}\\u[Dd][C-Fc-f][0-9A-Fa-f]{2}|\\u[0-9A-Fa-f]{4}|.", re.DOTALL)


def _stored(character: str) -> str:
    """What one character that is not plain ASCII becomes in a stored message."""
    if character == '"':
        return '\\"'
    code = ord(character)
    if code < 32 or code == 127:
        return f"#{code:03d}"
    return f"\\u{code:04x}" if code <= 0xFFFF else ""


def stored_text(message: bytes, limit: int) -> bytes:
    """C{message} as the ASCII text that the log stores, ready to stand in a JSON string, of at most C{limit} bytes.

    It is cut between whole characters of the input, of which an escape C{\\uXXXX} counts as one, and so do two that
    are a pair of surrogates. A backslash stays: the programs that log send escapes of their own.
    """
    message = message.split(b"\0", 1)[0]
    try:
        text = message.decode("utf-8")
    except UnicodeDecodeError:
        text = "".join(chr(byte) if byte < 127 else "?" for byte in message)
    stored = _NOT_PLAIN.sub(lambda match: _stored(match.group()), text)
    if len(stored) <= limit:
        return stored.encode("ascii")
    pieces: list[str] = []
    for whole in _WHOLE.findall(text):
        piece = _NOT_PLAIN.sub(lambda match: _stored(match.group()), whole)
        limit -= len(piece)
        if limit < 0:
            break
        pieces.append(piece)
    return "".join(pieces).encode("ascii")


def _cut_name(name: bytes) -> bytes:
    """C{name} up to its first NUL, cut to 254 bytes and between characters of UTF-8."""
    name = name.split(b"\0", 1)[0]
    if len(name) <= 254:
        return name
    end = 254
    while end > 251 and name[end] & 0xC0 == 0x80:
        end -= 1
    return name[: end if name[end] & 0xC0 != 0x80 else 254]


# Entries -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One entry. C{uid} counts the entries of the process that logged it, from 1; C{priority} is syslog's, 0 to 7.

    The four bytes of the C{trailer} mean nothing: ours are zero, foreign ones are passed on as they came.
    """

    uid: int
    time: int
    node_digest: int
    ident_digest: int
    pid: int
    priority: int
    node: bytes
    ident: bytes
    tag: bytes
    message: bytes
    trailer: bytes = field(default=bytes(4), compare=False, repr=False)

    @classmethod
    def written(
        cls, uid: int, time: int, node: bytes, ident: bytes, tag: bytes, message: bytes, pid: int, priority: int
    ) -> LogEntry:
        """A new entry; C{message} is text as a program sent it. What is too long is cut."""
        node, ident, tag = _cut_name(node), _cut_name(ident), _cut_name(tag)
        room = MAX_ENTRY_SIZE - 48 - len(node) - len(ident) - len(tag) - 4
        return cls(
            uid & _MASK32,
            time & _MASK32,
            digest(node),
            digest(ident),
            pid & _MASK32,
            priority & 0xFF,
            node,
            ident,
            tag,
            stored_text(message, room),
        )

    @property
    def size(self) -> int:
        """Bytes of the encoded entry."""
        return 52 + len(self.node) + len(self.ident) + len(self.tag) + len(self.message)

    @property
    def key(self) -> tuple[int, int, int]:
        """What identifies an entry, and sorts entries: (time, node digest, uid)."""
        return (self.time, self.node_digest, self.uid)

    def encode(self, previous: int = 0, following: int = 0) -> bytes:
        """The entry's bytes; the offsets are those of its neighbours in a ring, 0 in a message."""
        head = _ENTRY_HEAD.pack(
            previous,
            following,
            self.uid,
            self.time,
            self.node_digest,
            self.ident_digest,
            self.pid,
            self.priority,
            len(self.node) + 1,
            len(self.ident) + 1,
            len(self.tag) + 1,
            len(self.message) + 1,
        )
        return b"\0".join((head + self.node, self.ident, self.tag, self.message, self.trailer))

    @classmethod
    def decode(cls, data: bytes) -> LogEntry:
        """The entry of a message that consists of nothing else.

        @raise MalformedMessage: another length than the entry's own, too long, or a string that is none.
        """
        entry, _previous, size = _entry_at(data, 0)
        if size != len(data):
            raise MalformedMessage(f"log entry of {size} bytes in {len(data)} bytes")
        return entry


def _entry_at(data: bytes, offset: int) -> tuple[LogEntry, int, int]:
    """The entry at C{offset}, its C{prev}, its size.

    @raise MalformedMessage: it does not lie inside C{data}, is too long, or holds a string without NUL.
    """
    if offset < 0 or offset + 48 > len(data):
        raise MalformedMessage(f"log entry at {offset} of {len(data)} bytes")
    previous, _next, uid, time, node_digest, ident_digest, pid, priority, *lengths = _ENTRY_HEAD.unpack_from(
        data, offset
    )
    size = 48 + sum(lengths)
    if size > MAX_ENTRY_SIZE:
        raise MalformedMessage(f"log entry at {offset} has {size} bytes")
    if offset + size > len(data):
        raise MalformedMessage(f"log entry of {size} bytes at {offset} of {len(data)} bytes")
    strings: list[bytes] = []
    start = offset + _ENTRY_HEAD.size
    for length in lengths:
        end = start + length
        if length == 0 or data[end - 1] != 0:
            raise MalformedMessage(f"log entry at {offset} has a string without NUL")
        strings.append(data[start : end - 1])
        start = end
    node, ident, tag, message = strings
    trailer = data[start : start + 4]
    entry = LogEntry(uid, time, node_digest, ident_digest, pid, priority, node, ident, tag, message, trailer)
    return entry, previous, size


# Rings -------------------------------------------------------------------------------------------------------------


def encode_ring(entries: Iterable[LogEntry]) -> bytes:
    """The ring into which C{entries} were put one after the other, the newest last."""
    ring = bytearray(RING_SIZE)
    newest = 0
    following = 8
    for entry in entries:
        size = entry.size
        offset = following if following + size < RING_SIZE else 8
        following = _aligned(offset + size)
        ring[offset : offset + size] = entry.encode(newest, following)
        newest = offset
    _RING_HEAD.pack_into(ring, 0, RING_SIZE, newest)
    return bytes(ring)


def decode_ring(state: bytes) -> tuple[list[LogEntry], str]:
    """The entries that can be read from a ring, the newest first, and what is wrong with it (empty: nothing).

    The bytes come from the network: what lies before a defect is kept, what lies behind it is not reached.
    """
    if len(state) <= _RING_HEAD.size:
        return [], f"a ring of {len(state)} bytes" if state else ""
    size, newest = _RING_HEAD.unpack_from(state)
    if size != len(state):
        return [], f"a ring of {len(state)} bytes that says {size}"
    entries: list[LogEntry] = []
    offset = newest
    wrapped = False
    while offset:
        if offset < _RING_HEAD.size or offset % 8:
            return entries, f"a log entry at {offset}"
        try:
            entry, previous, _size = _entry_at(state, offset)
        except MalformedMessage as defect:
            return entries, str(defect)
        entries.append(entry)
        if previous >= offset:
            # From the start of the ring back to its end: once, and only to what the newest entries did not overwrite.
            if wrapped or previous <= newest:
                break
            wrapped = True
        if newest <= previous < newest + MAX_ENTRY_SIZE:
            break
        offset = previous
    return entries, ""


class ClusterLog:
    """This node's log: what a ring in memory would hold, in the order of insertion."""

    def __init__(self) -> None:
        # (lap, offset, entry): where each entry lies in the ring, and how often the ring had begun anew before it.
        self._entries: deque[tuple[int, int, LogEntry]] = deque()
        self._following = 8
        self._newest: dict[int, tuple[int, int]] = {}  # node digest -> newest (time, uid)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[LogEntry]:
        """The entries, newest first."""
        return (entry for _lap, _offset, entry in reversed(self._entries))

    def insert(self, entry: LogEntry) -> bool:
        """Put C{entry} into the log, unless it is a duplicate: not newer than the newest known of its node.

        @return: whether it went in.
        """
        key = (entry.time, entry.uid)
        if key <= self.newest_of(entry.node_digest):
            return False
        self._newest[entry.node_digest] = key
        self._append(entry)
        return True

    def newest_of(self, node_digest: int) -> tuple[int, int]:
        """(time, uid) of the newest entry known of a node, less than any when none is."""
        return self._newest.get(node_digest, (-1, -1))

    def _append(self, entry: LogEntry) -> None:
        lap = self._entries[-1][0] if self._entries else 0
        offset = self._following
        if offset + entry.size >= RING_SIZE:
            lap, offset = lap + 1, 8
        self._following = _aligned(offset + entry.size)
        self._entries.append((lap, offset, entry))
        # An older lap can be read only past the room of the largest entry at the newest's place.
        while (oldest := self._entries[0])[0] < lap - 1 or (oldest[0] < lap and oldest[1] < offset + MAX_ENTRY_SIZE):
            self._entries.popleft()

    def merge(self, others: Sequence[Iterable[LogEntry] | None]) -> None:
        """Make the log the merge of all members' logs.

        @param others: per member, in the members' order, its entries, newest first; None stands for this log.
        """
        found: dict[tuple[int, int, int], LogEntry] = {}
        for entries in others:
            for entry in self if entries is None else entries:
                found.setdefault(entry.key, entry)
        chosen: list[LogEntry] = []
        room = MERGED_BYTES
        # The sort is stable: entries of one second stay in the members' order.
        for entry in sorted(found.values(), key=lambda entry: -entry.time):
            if room <= 0:
                break
            room -= entry.size
            chosen.append(entry)
        chosen.sort(key=lambda entry: entry.key)
        self._entries.clear()
        self._following = 8
        self._newest.clear()
        for entry in chosen:
            self._append(entry)
            self._newest[entry.node_digest] = (entry.time, entry.uid)

    def state(self) -> bytes:
        """The log as a ring, sorted: what members send when the group synchronises."""
        return encode_ring(sorted(self, key=lambda entry: entry.key))

    def newest(self, limit: int = DEFAULT_LIMIT) -> tuple[LogEntry, ...]:
        """At most C{limit} entries, newest first."""
        return tuple(islice(self, limit))


# JSON --------------------------------------------------------------------------------------------------------------

_REPAIRED = re.compile(r'\\(?:u[0-9A-Fa-f]{4}|["\\])|[\\"\x00-\x1f]')


def _repair(match: re.Match[str]) -> str:
    text = match.group()
    if len(text) > 1:
        return text
    return "\\" + text if text in '\\"' else f"\\u{ord(text):04x}"


def json_text(text: bytes) -> str:
    """C{text} as it may stand inside a JSON string. Escapes that JSON knows here pass, all else is repaired."""
    text = text.split(b"\0", 1)[0]
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError:
        decoded = "".join(chr(byte) if byte < 127 else "?" for byte in text)
    return _REPAIRED.sub(_repair, decoded)


def log_document(entries: Iterable[LogEntry], limit: int = DEFAULT_LIMIT, ident: bytes = b"") -> bytes:
    """The newest C{limit} of C{entries} (newest first) as JSON; of one C{ident} unless that is empty."""
    wanted = (entry for entry in entries if not ident or entry.ident == ident)
    lines = ",\n".join(
        f'{{"uid": {entry.uid}, "time": {entry.time}, "pri": {entry.priority}, "tag": "{json_text(entry.tag)}", '
        f'"pid": {entry.pid}, "node": "{json_text(entry.node)}", "user": "{json_text(entry.ident)}", '
        f'"msg": "{json_text(entry.message)}"}}'
        for entry in islice(wanted, limit)
    )
    return ('{\n"data": [\n' + (lines + "\n" if lines else "") + "]\n}\n").encode()
