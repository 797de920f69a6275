"""Locks: directories ``priv/lock/<name>``, held for 120 seconds of local time (10-tree.md, "Locks").

All clocks here are the caller's C{now}: seconds of a monotonic clock, from any start.
"""

from __future__ import annotations

from errno import EACCES

from pvecfs.tree.changes import Change, Delete, Rename, SetMtime
from pvecfs.tree.entry import Entry
from pvecfs.tree.errors import OperationError
from pvecfs.tree.paths import LOCKS, is_below_locks, is_lock, join, split
from pvecfs.tree.tree import Tree

LIFETIME = 120.0
"""Seconds that a lock holds since it was first seen, or renewed."""


def lock_directory(tree: Tree) -> Entry | None:
    """C{priv/lock}, if there is one."""
    return tree.lookup(join(LOCKS))


def find_lock(tree: Tree, path: bytes) -> Entry | None:
    """The lock at C{path}: a directory, direct child of ``priv/lock``."""
    if not is_lock(split(path)):
        return None
    entry = tree.lookup(path)
    return entry if entry is not None and entry.is_directory else None


def release_asked(tree: Tree, change: Change) -> bytes | None:
    """The checksum to send in an unlock request ahead of C{change}; C{None} when the change asks for no release.

    Setting a lock's mtime to 0, and only that, asks for its release.
    """
    if not isinstance(change, SetMtime) or change.mtime != 0:
        return None
    lock = find_lock(tree, change.path)
    return None if lock is None else lock.lock_checksum()


def unlocked(tree: Tree, path: bytes, checksum: bytes) -> Delete | None:
    """What an unlock message does: the deletion to apply, by its sender at its header's time.

    C{None} when no directory of that checksum is at C{path}, at any depth below ``priv/lock/``. A lock that is not
    empty stays: applying the deletion says so.
    """
    if not is_below_locks(split(path)):
        return None
    entry = tree.lookup(path)
    if entry is None or not entry.is_directory or entry.lock_checksum() != checksum:
        return None
    return Delete(path)


class LockClocks:
    """Since when this node knows each lock as it is.

    The checksum of a lock says which one it is: it changes with each new lock of the same name and with each renewal.
    So one rule covers mkdir, renewal, first sight and loss: L{observe} after whatever may have touched a lock.
    """

    def __init__(self, lifetime: float = LIFETIME) -> None:
        self.lifetime = lifetime
        self._clocks: dict[bytes, tuple[bytes, float]] = {}

    def observe(self, tree: Tree, path: bytes, now: float) -> None:
        """Look at the lock at C{path}: start its clock if it is new or another than remembered, forget it if gone."""
        names = split(path)
        if not is_lock(names):
            return
        key = join(names)
        lock = find_lock(tree, key)
        if lock is None:
            self._clocks.pop(key, None)
            return
        checksum = lock.lock_checksum()
        known = self._clocks.get(key)
        if known is None or known[0] != checksum:
            self._clocks[key] = (checksum, now)

    def applied(self, tree: Tree, change: Change, now: float) -> None:
        """C{change} was applied; C{tree} is the tree after it. Any change: those that concern no lock do nothing."""
        self.observe(tree, change.path, now)
        if isinstance(change, Rename):
            self.observe(tree, change.to, now)

    def requested(self, tree: Tree, path: bytes, checksum: bytes, now: float) -> bool:
        """An unlock request was delivered: start the clock if the lock was never met.

        @return: True when the request means the lock that is there and its time is over; the lowest node then
            multicasts the unlock.
        """
        lock = find_lock(tree, path)
        if lock is None or lock.lock_checksum() != checksum:
            return False
        self.observe(tree, path, now)
        return self.expired(path, checksum, now)

    def expired(self, path: bytes, checksum: bytes, now: float) -> bool:
        """True when the lock at C{path} has this checksum since more than the lifetime."""
        known = self._clocks.get(join(split(path)))
        return known is not None and known[0] == checksum and now - known[1] > self.lifetime

    def resynchronised(self, tree: Tree, now: float) -> None:
        """The tree was loaded, or a synchronisation committed: clocks of locks that are the same keep running."""
        directory = lock_directory(tree)
        names = () if directory is None else tree.children(directory.inode)
        paths = {join((*LOCKS, name)) for name in names}
        for path in self._clocks.keys() - paths:
            del self._clocks[path]
        for path in paths:
            self.observe(tree, path, now)

    def release(self, tree: Tree, change: Change, now: float) -> Change:
        """Local mode: what C{change} becomes.

        @return: the deletion of a lock whose time is over, for a change that asks for its release (L{release_asked});
            any other change as it is.
        @raise OperationError: EACCES, asked for release too early.
        """
        checksum = release_asked(tree, change)
        if checksum is None:
            return change
        if not self.requested(tree, change.path, checksum, now):
            raise OperationError(EACCES, "the lock still holds")
        return Delete(change.path)
