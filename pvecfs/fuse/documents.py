"""The special files: each content that the kernel was given has a node id of its own, and never changes.

So an open handle keeps the content it was opened with, stat gives exactly its length, and the kernel may cache it
for ever. A lookup (the kernel looks up at each open, since these names are valid for no time) makes the content
anew; the same bytes get the same node id again.

To take another node id the kernel needs its lock of the root directory, which is held while a change there waits for
the cluster. Reads never wait for that: then the content changes in its place.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING

from pvecfs.fuse.nodes import FIRST_FROZEN

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_FROZEN = 4096
MAX_BYTES = 16 * 1024 * 1024
"""Contents kept at most, and their bytes. Only handles can keep more than a few alive; beyond this go those that were
looked up longest ago: who still holds one open then gets ENOENT, as from a grave. The one looked up last stays,
whatever its size."""


class _Frozen:
    __slots__ = ("content", "lookups", "name")

    def __init__(self, name: bytes, content: bytes) -> None:
        self.name = name
        self.content = content
        self.lookups = 0


class FrozenDocuments:
    """Contents by node id, kept as long as the kernel knows the id. Any thread.

    @param make: gives the present content of a special file.
    """

    def __init__(self, make: Callable[[bytes], bytes]) -> None:
        self._make = make
        self._lock = Lock()
        self._frozen: OrderedDict[int, _Frozen] = OrderedDict()  # in the order of their last lookups
        self._bytes = 0
        self._newest: dict[bytes, int] = {}
        self._next = FIRST_FROZEN

    def look_up(self, name: bytes, in_place: bool = False) -> tuple[int, int, bool]:
        """Make the content of C{name} and count one lookup of it.

        @param in_place: another content is to get the node id of the one before. The kernel has to forget that one.
        @return: its node id, its length in bytes, and whether it has taken another one's place.
        @raise KeyError: there is no such document.
        """
        content = self._make(name)
        with self._lock:
            node = self._newest.get(name, 0)
            frozen = self._frozen.get(node)
            other = frozen is None or (frozen.content is not content and frozen.content != content)
            replaces = other and frozen is not None and in_place
            if frozen is None or (other and not in_place):
                if frozen is not None and not frozen.lookups:
                    self._remove(node)
                node = self._newest[name] = self._next
                self._next += 1
                frozen = self._frozen[node] = _Frozen(name, b"")
            if other:
                self._bytes += len(content) - len(frozen.content)
                frozen.content = content
            self._frozen.move_to_end(node)
            while len(self._frozen) > 1 and (self._bytes > MAX_BYTES or len(self._frozen) > MAX_FROZEN):
                self._remove(next(iter(self._frozen)))
            frozen.lookups += 1
            return node, len(content), replaces

    def name(self, node: int) -> bytes | None:
        """Which special file C{node} is a content of."""
        frozen = self._frozen.get(node)
        return None if frozen is None else frozen.name

    def content(self, node: int) -> bytes | None:
        """The bytes of C{node}; C{None} when nobody can have it any more."""
        frozen = self._frozen.get(node)
        return None if frozen is None else frozen.content

    def forget(self, node: int, lookups: int) -> None:
        """The kernel gives back C{lookups} of its lookups."""
        with self._lock:
            frozen = self._frozen.get(node)
            if frozen is None:
                return
            frozen.lookups -= lookups
            if frozen.lookups <= 0 and self._newest.get(frozen.name) != node:
                self._remove(node)

    def _remove(self, node: int) -> None:
        self._bytes -= len(self._frozen.pop(node).content)

    def __len__(self) -> int:
        return len(self._frozen)
