"""Directory listings, packed once for as long as a directory does not change.

Where a reader stands is told by the offset that it gives back with its next request, and by nothing else:

 - the low 42 bits are a cursor: 1 and 2 for ``.`` and ``..``, up to 31 for links and special files, then inode + 32.
   A listing is in ascending order of it, so entries deleted between two requests make nobody skip or repeat another;
 - the 21 bits above are the generation of the listing that its reading began with.

The generation is for the kernel, which keeps listings: what it kept is complete, and may be used, when the request at
the end of a listing was answered with nothing. If the directory has changed since that reading began, the kernel
must drop the pages before it gets that answer (see L{ListingCache.read}).
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import count
from typing import TYPE_CHECKING

from pvecfs.fuse.lowlevel import DIRENT
from pvecfs.fuse.nodes import DOCUMENTS, LINKS, RESERVED
from pvecfs.tree.entry import DT_DIR, DT_REG, ROOT_INODE

if TYPE_CHECKING:
    from pvecfs.fuse.nodes import Numbering
    from pvecfs.tree.entry import Entry
    from pvecfs.tree.tree import Children, Tree

DT_LNK = 10

CURSOR_BITS = 42
CURSOR_MASK = (1 << CURSOR_BITS) - 1
GENERATIONS = 1 << 21

_FIRST_ENTRY = 32
_MAX_NAME = 1024
"""Longer names make older kernels refuse the whole listing; no program of this host could use them."""

MAX_LISTINGS = 512

_PADDING = [b"\0" * (-length % 8) for length in range(8)]


class Listing:
    """A directory as the kernel reads it, one C{fuse_dirent} after the other.

    @ivar generation: changes whenever the listing is made anew.
    """

    __slots__ = ("_blob", "_cursors", "_ends", "children", "generation", "numbering", "parent")

    def __init__(self, tree: Tree, numbering: Numbering, directory: Entry, children: Children, generation: int) -> None:
        node_of = numbering.node_of
        self.numbering = numbering
        self.children = children
        self.parent = directory.parent
        self.generation = generation
        rows = [(1, node_of(directory.inode), DT_DIR, b"."), (2, node_of(directory.parent), DT_DIR, b"..")]
        hidden: frozenset[bytes] | set[bytes] = frozenset()
        if directory.inode == ROOT_INODE:
            computed = [(name, node, DT_LNK) for name, node in LINKS.items()]
            computed += [(name, number, DT_REG) for name, number in DOCUMENTS.items()]
            rows += [(cursor, number, kind, name) for cursor, (name, number, kind) in enumerate(computed, 3)]
            hidden = RESERVED
        entries = sorted((inode, name) for name, inode in children.items())
        # Inodes that do not fit a cursor (after 4e12 changes) are numbered through instead.
        numbered = bool(entries) and entries[-1][0] + _FIRST_ENTRY > CURSOR_MASK
        for place, (inode, name) in enumerate(entries):
            entry = tree.entry(inode)
            if entry is not None and name not in hidden and len(name) <= _MAX_NAME:
                rows.append((_FIRST_ENTRY + (place if numbered else inode), node_of(inode), entry.type, name))
        stamp = generation << CURSOR_BITS
        pack = DIRENT.pack
        records = []
        ends = []
        end = 0
        for cursor, number, kind, name in rows:
            record = pack(number, stamp | cursor, len(name), kind) + name + _PADDING[len(name) & 7]
            end += len(record)
            ends.append(end)
            records.append(record)
        self._blob = b"".join(records)
        self._ends = ends
        self._cursors = [row[0] for row in rows]

    def chunk(self, cursor: int, size: int, generation: int) -> bytes:
        """The records after C{cursor}, at most C{size} bytes, stamped with C{generation}; empty at the end."""
        first = bisect_right(self._cursors, cursor)
        start = self._ends[first - 1] if first else 0
        last = bisect_right(self._ends, start + size)
        if last <= first:
            return b""
        chunk = self._blob[start : self._ends[last - 1]]
        if generation == self.generation:
            return chunk
        stamped = bytearray(chunk)
        for place in range(first, last):
            at = (self._ends[place - 1] if place else 0) - start
            number, offset, length, kind = DIRENT.unpack_from(stamped, at)
            DIRENT.pack_into(stamped, at, number, offset & CURSOR_MASK | generation << CURSOR_BITS, length, kind)
        return bytes(stamped)


class ListingCache:
    """The listings of directories read lately. Any thread: two threads at worst make the same listing twice."""

    def __init__(self) -> None:
        self._listings: dict[int, Listing] = {}
        self._generations = count(1)

    def read(self, tree: Tree, numbering: Numbering, directory: Entry, offset: int, size: int) -> tuple[bytes, bool]:
        """Read on at C{offset}.

        @param tree: the newest committed tree.
        @param numbering: its node ids.
        @return: the bytes to answer, and whether the kernel must first drop what it has kept of the directory: it
            would take what it read for complete with this answer, but the directory has changed meanwhile.
        """
        listing = self._listing(tree, numbering, directory)
        generation = offset >> CURSOR_BITS if offset else listing.generation
        chunk = listing.chunk(offset & CURSOR_MASK, size, generation)
        return chunk, not chunk and generation != listing.generation

    def _listing(self, tree: Tree, numbering: Numbering, directory: Entry) -> Listing:
        listings = self._listings
        children = tree.children(directory.inode)
        listing = listings.get(directory.inode)
        if (
            listing is None
            or listing.children is not children
            or listing.parent != directory.parent
            or listing.numbering is not numbering
        ):
            listing = Listing(tree, numbering, directory, children, next(self._generations) % GENERATIONS)
            if len(listings) >= MAX_LISTINGS:
                listings.pop(next(iter(list(listings))), None)
            listings[directory.inode] = listing
        return listing
