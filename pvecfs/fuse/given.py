"""Which files the kernel knows: those that it was given by the answer to a lookup or a create, and has not forgotten.

It need not be told of changes to any other. For that to be exact, order is all: who answers first notes here what is
given, and takes the tree after that; who publishes a tree looks here after that. So either the answer is from the new
tree, or the kernel is told of it. (It may be told before it takes the answer; see L{pvecfs.fuse.invalidation}.)
"""

from __future__ import annotations

from threading import Lock

from pvecfs.fuse.lowlevel import ROOT_NODE


class GivenNodes:
    """Node ids, each with the number of answers that gave it: that is how the kernel counts. Any thread."""

    def __init__(self) -> None:
        self._lock = Lock()  # held for the counting only
        self._counts: dict[int, int] = {}
        self.begin()

    def begin(self) -> None:
        """The kernel knows nothing but the root, for which it does not ask."""
        self._counts = {ROOT_NODE: 1}

    def give(self, node: int) -> bool:
        """An answer will give C{node}. @return: whether the kernel did not know it."""
        with self._lock:
            count = self._counts.get(node, 0)
            self._counts[node] = count + 1
        return not count

    def take_back(self, node: int, count: int) -> bool:
        """The kernel forgets C{count} answers, or did not take one. @return: whether it does not know C{node} now."""
        with self._lock:
            left = self._counts.get(node, 0) - count
            if left > 0 or node == ROOT_NODE:
                self._counts[node] = max(left, 1)
                return False
            self._counts.pop(node, None)
        return True

    def __contains__(self, node: int) -> bool:
        return node in self._counts

    def __len__(self) -> int:
        return len(self._counts)
