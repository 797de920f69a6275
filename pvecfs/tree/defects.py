"""What can be wrong with stored rows (10-tree.md, "Loading")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pvecfs.tree.entry import DT_DIR, DT_REG, ROOT_INODE, Entry
from pvecfs.tree.paths import is_bad_component


class Defect(NamedTuple):
    """One row that breaks a rule.

    @ivar entry: the row.
    @ivar what: the rule, for people.
    @ivar other: the inode of the entry that it clashes with, if any.
    """

    entry: Entry
    what: str
    other: int | None = None

    def __str__(self) -> str:
        entry = self.entry
        return f"{self.what}: inode {entry.inode}, parent {entry.parent}, name {entry.name!r}"


def own_defect(entry: Entry) -> str | None:
    """What is wrong with an entry for itself, if anything."""
    if is_bad_component(entry.name):
        return "a name that no entry can have" if entry.name else "an entry without a name"
    if entry.type == DT_DIR:
        if entry.data:
            return "a directory with data"
    elif entry.type != DT_REG:
        return f"unknown type {entry.type}"
    # Bits beyond an unsigned number's: too large, or negative.
    if (
        not entry.inode
        or (entry.inode | entry.parent | entry.version) >> 64
        or (entry.writer | entry.mtime | len(entry.data)) >> 32
    ):
        return f"a number out of range (version {entry.version}, writer {entry.writer}, mtime {entry.mtime})"
    return None


def connect(entries: Mapping[int, Entry]) -> tuple[dict[int, dict[bytes, int]], list[Defect]]:
    """Find the children of each directory, and all defects.

    @param entries: all entries but the root, by inode.
    @return: by inode of each directory, the root's too: its children's inodes by name; and the defects. Without
        defects it is a tree, except that directories may form a ring that hangs in the air.
    """
    children: dict[int, dict[bytes, int]] = {ROOT_INODE: {}}
    defects: list[Defect] = []
    for inode, entry in entries.items():
        what = own_defect(entry)
        if what is not None:
            defects.append(Defect(entry, what))
        if entry.type == DT_DIR:
            children[inode] = {}
    for inode, entry in entries.items():
        siblings = children.get(entry.parent)
        if siblings is None:
            if entry.parent in entries:
                defects.append(Defect(entry, "the parent is a file", entry.parent))
            else:
                defects.append(Defect(entry, "the parent does not exist"))
            continue
        first = siblings.setdefault(entry.name, inode)
        if first != inode:
            defects.append(Defect(entry, f"inode {first} in the same directory has the same name", first))
    return children, defects
