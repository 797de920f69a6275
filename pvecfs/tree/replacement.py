"""What becomes of a tree's maps when some of its entries are replaced, in time that grows with these alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from immutables import Map, MapMutation

from pvecfs.tree.defects import own_defect
from pvecfs.tree.entry import DT_DIR, Entry

Children = Map[bytes, int]

NOTHING: Children = Map()
"""The children of every directory that has none."""


class Replacement(NamedTuple):
    """The maps of a L{pvecfs.tree.tree.Tree} after some entries were replaced.

    @ivar entries: all but the root, by inode.
    @ivar children: of each directory, the root too, the children's inodes by name. The same object as before where
        none came or went.
    @ivar touched: inodes of all entries that came, went or became others; it may hold more.
    @ivar grown: how many bytes of data there are more than before; negative for fewer.
    """

    entries: Map[int, Entry]
    children: Map[int, Children]
    touched: Collection[int]
    grown: int


def replace(
    entries: Map[int, Entry], children: Map[int, Children], deleted: Collection[int], updated: Mapping[int, Entry]
) -> Replacement | None:
    """Replace entries of a tree without defects.

    Names may clash and parents be missing on the way: only the result counts.

    @param entries: all but the root, by inode.
    @param children: of each directory, the root too, the children's inodes by name.
    @param deleted: inodes; those that do not exist, or are in C{updated}, do not matter.
    @param updated: entries by their inode, never the root's.
    @return: C{None} when the result has defects: L{pvecfs.tree.defects.connect} says which.
    """
    new_entries, new_children = entries.mutate(), children.mutate()
    leaving: list[Entry] = []
    coming: list[Entry] = []
    closed: list[int] = []  # no directories any more
    touched = {*deleted, *updated}
    grown = 0
    for inode in deleted:
        old = new_entries.pop(inode, None) if inode not in updated else None
        if old is not None:
            leaving.append(old)
            grown -= len(old.data)
            if old.type == DT_DIR:
                closed.append(inode)
    for inode, entry in updated.items():
        old = entries.get(inode)
        if old is entry:
            continue
        if own_defect(entry) is not None:
            return None
        new_entries[inode] = entry
        grown += len(entry.data)
        if old is None:
            coming.append(entry)
            if entry.type == DT_DIR:
                new_children[inode] = NOTHING
            continue
        grown -= len(old.data)
        if old.name != entry.name or old.parent != entry.parent:
            leaving.append(old)
            coming.append(entry)
        if old.type != entry.type:
            if entry.type == DT_DIR:
                new_children[inode] = NOTHING
            else:
                closed.append(inode)
    directories: dict[int, MapMutation[bytes, int]] = {}
    for old in leaving:
        names = directories.get(old.parent)
        if names is None:
            directories[old.parent] = names = children[old.parent].mutate()
        del names[old.name]
    for entry in coming:
        names = directories.get(entry.parent)
        if names is None:
            siblings = new_children.get(entry.parent)
            if siblings is None:
                return None
            directories[entry.parent] = names = siblings.mutate()
        if entry.name in names:
            return None
        names[entry.name] = entry.inode
    for inode, names in directories.items():
        new_children[inode] = names.finish() if names else NOTHING
    for inode in closed:
        if new_children.pop(inode):
            return None
    return Replacement(new_entries.finish(), new_children.finish(), touched, grown)
