"""What tests want to know of a tree."""

from __future__ import annotations

from pvecfs.tree.entry import Entry
from pvecfs.tree.tree import Tree


def unreachable(tree: Tree) -> list[Entry]:
    """Entries to which no path leads, by ascending inode.

    A reference node can rename an empty directory into itself; the result is the same on all nodes and hurts
    nobody. C{pvecfs-db check} tells an administrator.
    """
    return [entry for entry in tree.entries() if tree.path_of(entry.inode) is None]
