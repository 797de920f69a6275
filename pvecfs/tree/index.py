"""The index: the state by which nodes compare their trees (10-tree.md, "Index")."""

from __future__ import annotations

import struct
import sys
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from operator import lt

from pvecfs.tree.entry import Entry, records
from pvecfs.tree.errors import MalformedMessage

HEADER = struct.Struct("<QQIIII")
"""version, last inode, writer, mtime, number of entries, bytes of the whole index."""

ITEM = struct.Struct("<Q32s")
"""inode, entry digest: L{Entry.record}."""

_LEAST_LIMIT = 1000
"""So many entries may be touched in any tree before its next index is made from nothing; in large ones a quarter."""

_PART = 64
"""How many entries are compared at once."""


def _inodes_of(items: bytes | memoryview) -> Sequence[int]:
    """The inodes of packed L{ITEM}s."""
    if sys.byteorder == "little":
        return memoryview(items).cast("Q")[:: ITEM.size // 8]
    return [inode for inode, _digest in ITEM.iter_unpack(items)]


class Index:
    """An index, ours or another node's. Immutable.

    @ivar version: the tree's version.
    @ivar last_inode: the highest inode.
    @ivar writer: writer of the tree's last change.
    @ivar mtime: time of the tree's last change, seconds.
    @ivar items: a packed L{ITEM} for each entry, the root's (inode 0) too, by ascending inode.
    """

    def __init__(self, version: int, last_inode: int, writer: int, mtime: int, items: bytes) -> None:
        self.version = version
        self.last_inode = last_inode
        self.writer = writer
        self.mtime = mtime
        self.items = items

    @cached_property
    def _inodes(self) -> Sequence[int]:
        return _inodes_of(self.items)

    @cached_property
    def entries(self) -> Mapping[int, bytes]:
        """Entry digests by inode, the root's (inode 0) too; ascending."""
        return dict(ITEM.iter_unpack(self.items))

    @classmethod
    def of(cls, root: Entry, items: bytes) -> Index:
        """The index of a tree, of its root and L{Entry.record} of all entries, by ascending inode."""
        last_inode: int = ITEM.unpack_from(items, len(items) - ITEM.size)[0]
        return cls(root.version, last_inode, root.writer, root.mtime, items)

    def encode(self) -> bytes:
        size, rest = divmod(len(self.items), ITEM.size)
        assert rest == 0
        total = HEADER.size + len(self.items)
        return HEADER.pack(self.version, self.last_inode, self.writer, self.mtime, size, total) + self.items

    @classmethod
    def decode(cls, data: bytes) -> Index:
        """Read an index that came from another node.

        @raise MalformedMessage: shorter than its header, not as long as it says, or its inodes do not ascend.
        """
        if len(data) < HEADER.size:
            raise MalformedMessage(f"index of {len(data)} bytes is shorter than its header of {HEADER.size}")
        version, last_inode, writer, mtime, size, total = HEADER.unpack_from(data)
        if total != len(data):
            raise MalformedMessage(f"index of {len(data)} bytes says that it has {total}")
        if total != HEADER.size + size * ITEM.size:
            raise MalformedMessage(f"index of {total} bytes says that it has {size} entries")
        items = data[HEADER.size :]
        inodes = list(_inodes_of(items))
        if not all(map(lt, inodes, islice(inodes, 1, None))):
            raise MalformedMessage("inodes of an index do not ascend")
        return cls(version, last_inode, writer, mtime, items)

    def __len__(self) -> int:
        """Number of entries, the root included."""
        return len(self.items) // ITEM.size

    def item(self, inode: int) -> bytes:
        """The L{ITEM} of C{inode}; empty when there is none."""
        at = bisect_left(self._inodes, inode)
        item = self.items[at * ITEM.size : (at + 1) * ITEM.size]
        return item if item and self._inodes[at] == inode else b""

    def differing(self, other: Index) -> list[int]:
        """The inodes, ascending, whose entries C{other} lacks or has otherwise."""
        return [
            inode
            for ours, theirs in self._unequal_parts(other)
            for inode, digest in ours.items()
            if theirs.get(inode) != digest
        ]

    def differences(self, other: Index) -> tuple[list[int], list[int]]:
        """The inodes, ascending, that C{other} has not; and those whose entries it has otherwise."""
        surplus: list[int] = []
        otherwise: list[int] = []
        for ours, theirs in self._unequal_parts(other):
            for inode, digest in ours.items():
                their = theirs.get(inode)
                if their is None:
                    surplus.append(inode)
                elif their != digest:
                    otherwise.append(inode)
        return surplus, otherwise

    def _unequal_parts(self, other: Index) -> Iterator[tuple[dict[int, bytes], dict[int, bytes]]]:
        """Digests by inode of the parts in which C{other} is not the same, and all that it has in these places.

        Equal parts are compared as bytes: that takes a few milliseconds for a hundred thousand entries.
        """
        ours, theirs = self.items, other.items
        inodes, their_inodes = self._inodes, other._inodes
        at = 0
        for first in range(0, len(inodes), _PART):
            part = ours[first * ITEM.size : (first + _PART) * ITEM.size]
            end = at + _PART
            if part == theirs[at * ITEM.size : end * ITEM.size]:
                at = end
                continue
            at = bisect_left(their_inodes, inodes[first], at)
            end = len(their_inodes)
            if first + _PART < len(inodes):
                end = bisect_left(their_inodes, inodes[first + _PART], at)
            their_part = theirs[at * ITEM.size : end * ITEM.size]
            if part != their_part:
                yield dict(ITEM.iter_unpack(part)), dict(ITEM.iter_unpack(their_part))
            at = end

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Index) and self.encode() == other.encode()

    def __hash__(self) -> int:
        return hash((self.version, self.items))

    def __repr__(self) -> str:
        return f"<Index of version {self.version}, {len(self)} entries>"


class LastIndex:
    """The index of a tree, from which those of its descendants are made: only what was touched since is looked up.

    @ivar encoded: the index, as nodes send it.
    @ivar touched: inodes of all entries that came, went or became others in any descendant. The descendants share it,
        so it may hold more than one of them needs.
    """

    __slots__ = ("_limit", "_root", "encoded", "touched")

    def __init__(self, root: Entry, items: bytes) -> None:
        """@param items: L{Entry.record} of all entries, by ascending inode."""
        self._root = root
        self._limit = max(_LEAST_LIMIT, len(items) // ITEM.size // 4)
        self.encoded = Index.of(root, items).encode()
        self.touched: set[int] = set()

    @classmethod
    def of(cls, root: Entry, entries: Mapping[int, Entry]) -> LastIndex:
        """@param entries: all but the root."""
        ordered = records(map(entries.__getitem__, sorted(entries)))
        return cls(root, b"".join((root.record(), *ordered)))

    def after(self, root: Entry, entries: Mapping[int, Entry]) -> LastIndex:
        """The index of the descendant that has these; C{self} when it is the same."""
        if not self.touched and root == self._root:
            return self
        items = memoryview(self.encoded)[HEADER.size :]
        inodes = _inodes_of(items)
        parts: list[bytes | memoryview] = [root.record()]
        begin = ITEM.size
        at = 1
        for inode in sorted(self.touched):
            at = bisect_left(inodes, inode, at)
            parts.append(items[begin : at * ITEM.size])
            if at < len(inodes) and inodes[at] == inode:
                at += 1
            begin = at * ITEM.size
            entry = entries.get(inode)
            if entry is not None:
                parts.append(entry.record())
        parts.append(items[begin:])
        return LastIndex(root, b"".join(parts))

    def touch(self, inodes: Collection[int], entries: Iterable[Entry] = ()) -> LastIndex | None:
        """Note what a descendant has otherwise.

        @param inodes: of entries, C{entries}: more of them.
        @return: for that descendant: C{self}, or C{None} when so much was touched that all may be made anew.
        """
        touched = self.touched
        for entry in entries:
            touched.add(entry.inode)
        if inodes:
            touched.update(inodes)
        return self if len(touched) <= self._limit else None
