"""What becomes of a tree's maps when some of its entries are replaced, in time that grows with these alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from immutables import Map, MapMutation

from pvecfs.tree.defects import connect, own_defect
from pvecfs.tree.entry import DT_DIR, Entry
from pvecfs.tree.errors import TreeDefect

Children = Map[bytes, int]

NOTHING: Children = Map()
"""The children of every directory that has none."""


class Replaced(NamedTuple):
    """The maps of a L{pvecfs.tree.tree.Tree} after some entries were replaced.

    @ivar entries: all but the root, by inode.
    @ivar children: of each directory, the root too, the children's inodes by name. The same object as before where
        none came or went.
    @ivar touched: inodes of all entries that came, went or became others; it may hold more.
    @ivar grown: how many bytes of data there are more than before; negative for fewer.
    """

    entries: Map[int, Entry]
    children: Map[int, Children]
    touched: set[int]
    grown: int


class Replacement:
    """Entries of a tree without defects are replaced, one by one, in any order; the tree's own maps stay as they are.

    Names may clash and parents be missing on the way: only the result counts, which L{finish} gives. Each entry is
    either among its directory's names, or it is noted that it found no place: then it gets one at the end.
    """

    def __init__(self, entries: Map[int, Entry], children: Map[int, Children], deleted: Iterable[int] = ()) -> None:
        """@param entries: all but the root, by inode.
        @param children: of each directory, the root too, the children's inodes by name.
        @param deleted: inodes to begin with; those that do not exist, or are put later, do not matter.
        """
        self._entries = entries.mutate()
        self._children = children.mutate()
        self._names: dict[int, MapMutation[bytes, int]] = {}  # of directories in which something came or went
        self._homeless: set[int] = set()
        self._closed: set[int] = set()  # were directories
        self._defective: set[int] = set()
        self._touched: set[int] = set()
        self._grown = 0
        for inode in deleted:
            old = self._entries.pop(inode, None)
            if old is not None:
                self._touched.add(inode)
                self._grown -= len(old.data)
                self._take_out(old)
                if old.type == DT_DIR:
                    self._closed.add(inode)

    def put(self, entry: Entry) -> None:
        """C{entry}, never the root, takes the place of what has its inode, or is new."""
        inode = entry.inode
        old = self._entries.get(inode)
        if old is entry:
            return
        self._entries[inode] = entry
        self._touched.add(inode)
        if own_defect(entry) is not None:
            self._defective.add(inode)
        elif self._defective:
            self._defective.discard(inode)
        self._grown += len(entry.data)
        if old is not None:
            self._grown -= len(old.data)
            if old.type == DT_DIR != entry.type:
                self._closed.add(inode)
            if old.parent != entry.parent or old.name != entry.name:
                self._take_out(old)
                old = None
        if entry.type == DT_DIR and inode not in self._children:
            self._children[inode] = NOTHING
        if old is None:
            names = self._names.get(entry.parent) or self._names_in(entry.parent)
            if names is None or entry.name in names:
                self._homeless.add(inode)
            else:
                names[entry.name] = inode

    def _names_in(self, parent: int) -> MapMutation[bytes, int] | None:
        """The children of C{parent}, to be changed; C{None} when it was never a directory."""
        names = self._names.get(parent)
        if names is None:
            siblings = self._children.get(parent)
            if siblings is not None:
                self._names[parent] = names = siblings.mutate()
        return names

    def _take_out(self, old: Entry) -> None:
        names = self._names_in(old.parent)
        if names is not None and names.get(old.name) == old.inode:
            del names[old.name]

    def finish(self) -> Replaced:
        """The result. Nothing can be put any more.

        @raise TreeDefect: the result is no tree.
        """
        entries, children = self._entries.finish(), self._children
        if not self._finish_children(entries):
            _, defects = connect({inode: entries[inode] for inode in sorted(entries)})
            raise TreeDefect(str(min(defects, key=lambda defect: defect.entry.inode)))
        return Replaced(entries, children.finish(), self._touched, self._grown)

    def _finish_children(self, entries: Map[int, Entry]) -> bool:
        """Whether the result is a tree."""
        if self._defective:
            return False
        for inode in self._homeless:
            entry = entries.get(inode)
            if entry is None:
                continue
            names = self._names_in(entry.parent)
            if names is None or names.get(entry.name, inode) != inode:
                return False
            names[entry.name] = inode
        for parent, names in self._names.items():
            self._children[parent] = names.finish() if names else NOTHING
        for inode in self._closed:
            entry = entries.get(inode)
            if (entry is None or entry.type != DT_DIR) and self._children.pop(inode):
                return False
        return True
