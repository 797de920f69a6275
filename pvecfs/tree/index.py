"""The index: the state by which nodes compare their trees (10-tree.md, "Index")."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import cached_property

from pvecfs.tree.entry import Entry
from pvecfs.tree.errors import MalformedMessage

HEADER = struct.Struct("<QQIIII")
"""version, last inode, writer, mtime, number of entries, bytes of the whole index."""

ITEM = struct.Struct("<Q32s")
"""inode, entry digest."""


class Index:
    """An index, ours or another node's. Immutable.

    @ivar version: the tree's version.
    @ivar last_inode: the highest inode.
    @ivar writer: writer of the tree's last change.
    @ivar mtime: time of the tree's last change, seconds.
    """

    def __init__(self, version: int, last_inode: int, writer: int, mtime: int, items: bytes) -> None:
        self.version = version
        self.last_inode = last_inode
        self.writer = writer
        self.mtime = mtime
        self._items = items

    @cached_property
    def entries(self) -> Mapping[int, bytes]:
        """Entry digests by inode, the root's (inode 0) too; ascending."""
        return dict(ITEM.iter_unpack(self._items))

    @classmethod
    def of(cls, root: Entry, inodes: list[int], entries: Mapping[int, Entry]) -> Index:
        """The index of a tree: of C{root}, and of C{entries} in the order of C{inodes}, which is ascending."""
        pack = ITEM.pack
        items = [pack(0, root.digest())]
        items += [pack(inode, entries[inode].digest()) for inode in inodes]
        return cls(root.version, inodes[-1] if inodes else 0, root.writer, root.mtime, b"".join(items))

    def encode(self) -> bytes:
        size, rest = divmod(len(self._items), ITEM.size)
        assert rest == 0
        total = HEADER.size + len(self._items)
        return HEADER.pack(self.version, self.last_inode, self.writer, self.mtime, size, total) + self._items

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
        index = cls(version, last_inode, writer, mtime, items)
        inodes = list(index.entries)
        if len(inodes) != size or inodes != sorted(inodes):
            raise MalformedMessage("inodes of an index do not ascend")
        return index

    def differing(self, other: Index) -> list[int]:
        """The inodes, ascending, whose entries C{other} lacks or has otherwise."""
        theirs = other.entries
        return [inode for inode, digest in self.entries.items() if theirs.get(inode) != digest]

    def surplus(self, other: Index) -> list[int]:
        """The inodes, ascending, that C{other} has not."""
        theirs = other.entries
        return [inode for inode in self.entries if inode not in theirs]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Index) and self.encode() == other.encode()

    def __hash__(self) -> int:
        return hash((self.version, self._items))

    def __repr__(self) -> str:
        return f"<Index of version {self.version}, {len(self._items) // ITEM.size} entries>"
