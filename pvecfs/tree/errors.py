"""What the tree raises."""

from __future__ import annotations

import os


class OperationError(OSError):
    """An operation that is refused, with the errno that its caller shall see.

    It is a normal result, equal on every node. A refused operation has changed nothing.

    @ivar errno: a positive errno value, always set.
    """

    errno: int

    def __init__(self, errno: int, why: str = "") -> None:
        super().__init__(errno, why or os.strerror(errno))


class TreeDefect(ValueError):
    """Stored rows that are not a tree (10-tree.md, "Loading"): the message names inode, parent and name."""


class MalformedMessage(ValueError):
    """Bytes from outside that do not have the layout that they must have: the message says what and where."""
