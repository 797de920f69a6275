"""What is refused where a change is submitted, before anything is sent (10-tree.md, "Refused where submitted").

These rules are this node's alone. A change that another node sent is applied by L{Tree.apply}, whatever is said here,
so that nodes never disagree. What the tree itself refuses is left to it: the tree may be another on delivery.
"""

from __future__ import annotations

from dataclasses import dataclass
from errno import EACCES, EFBIG, EINVAL, ENAMETOOLONG, ENOSPC, ENOTEMPTY

from pvecfs.tree.changes import Change, Create, Mkdir, Rename, Write
from pvecfs.tree.errors import OperationError
from pvecfs.tree.paths import Names, is_kind_directory, split
from pvecfs.tree.tree import MAX_FILE_BYTES, Tree

BLOCK_BYTES = 4096
MAX_NAME_BYTES = 255


@dataclass(frozen=True, slots=True)
class Limits:
    """How large the file system may grow by changes from this node.

    @ivar max_bytes: bytes of data of all files.
    @ivar max_entries: entries, the root included.
    """

    max_bytes: int = 128 * 1024 * 1024
    max_entries: int = 256 * 1024


@dataclass(frozen=True, slots=True)
class Room:
    """The numbers of statfs."""

    block_bytes: int
    blocks: int
    free_blocks: int
    files: int
    free_files: int
    name_bytes: int


def room(tree: Tree, limits: Limits) -> Room:
    """The room in C{tree}. Data is counted in whole blocks, a part of one is one; nothing is below 0."""
    blocks = limits.max_bytes // BLOCK_BYTES
    used = -(-tree.total_bytes // BLOCK_BYTES)
    return Room(
        BLOCK_BYTES,
        blocks,
        max(0, blocks - used),
        limits.max_entries,
        max(0, limits.max_entries - len(tree)),
        MAX_NAME_BYTES,
    )


def admit(tree: Tree, change: Change, limits: Limits) -> Change:
    """Decide whether C{change} may be submitted on top of C{tree}, the newest one here.

    @return: the change to submit: C{change}, or its equal that the reference survives. The latter's result differs (1
        byte written instead of 0), which no caller of a truncate looks at.
    @raise OperationError: ENAMETOOLONG, EACCES, EINVAL, ENOTEMPTY, EFBIG, ENOSPC.
    """
    if isinstance(change, Write):
        return _admit_write(tree, change, limits)
    if isinstance(change, Create | Mkdir):
        names = split(change.path)
        _check_name(names)
        if tree.lookup(change.path) is None:
            if isinstance(change, Create) and is_kind_directory(names):
                raise OperationError(EACCES, "only a directory can be there")
            if len(tree) >= limits.max_entries:
                raise OperationError(ENOSPC, f"the file system has its {limits.max_entries} entries")
    elif isinstance(change, Rename):
        _admit_rename(tree, change)
    return change


def _check_name(names: Names) -> None:
    if names and len(names[-1]) > MAX_NAME_BYTES:
        raise OperationError(ENAMETOOLONG)
    if names and b"\0" in names[-1]:
        raise OperationError(EINVAL)  # the wire would cut it there


def _admit_write(tree: Tree, change: Write, limits: Limits) -> Change:
    end = change.offset + len(change.data)
    if change.offset < 0:
        raise OperationError(EINVAL)
    if end > MAX_FILE_BYTES:
        raise OperationError(EFBIG)  # the offset might not even fit its 32 bits on the wire
    entry = tree.lookup(change.path)
    if entry is None or entry.is_directory:
        return change
    growth = end - len(entry.data)
    if growth > 0 and tree.total_bytes + growth > limits.max_bytes:
        raise OperationError(ENOSPC, f"the file system would hold more than {limits.max_bytes} bytes")
    if change.truncate and growth > 0 and not entry.data:
        # The reference corrupts its memory on it. On an empty file this gives the same bytes.
        if change.data:
            return Write(change.path, change.data, change.offset)
        return Write(change.path, b"\0", end - 1)
    return change


def _admit_rename(tree: Tree, change: Rename) -> None:
    names, to_names = split(change.path), split(change.to)
    _check_name(to_names)
    entry = tree.lookup(change.path)
    if entry is None or not names or names == to_names:
        return
    if not entry.is_directory:
        if is_kind_directory(to_names):
            raise OperationError(EACCES, "only a directory can be there")
    elif to_names[: len(names)] == names:
        raise OperationError(EINVAL, "a directory cannot be moved into itself")
    elif tree.children(entry.inode):
        tree.apply(change, 0, 0)  # refuses it, with the error that comes first
        raise OperationError(ENOTEMPTY)
