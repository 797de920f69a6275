"""Files that are deleted but may be held open: their handles can still be read.

The kernel forgets a node id when nobody holds the file any more, and that empties its grave. Since it may forget late
(or never, for a file it never knew), graves are few, and the oldest go first: a reader then gets ENOENT.
"""

from __future__ import annotations

from threading import Lock

from pvecfs.tree.entry import Entry

MAX_GRAVES = 256
MAX_BYTES = 16 * 1024 * 1024


class Graves:
    """Deleted files by node id. Any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._entries: dict[int, Entry] = {}
        self._bytes = 0

    def bury(self, node: int, entry: Entry) -> None:
        """Keep C{entry}, the file that C{node} means. It may still be alive: the tree is asked first."""
        with self._lock:
            self._remove(node)
            self._entries[node] = entry
            self._bytes += len(entry.data)
            while self._bytes > MAX_BYTES or len(self._entries) > MAX_GRAVES:
                self._remove(next(iter(self._entries)))

    def find(self, node: int) -> Entry | None:
        return self._entries.get(node)

    def forget(self, node: int) -> None:
        """Nobody holds C{node} open."""
        if node in self._entries:
            with self._lock:
                self._remove(node)

    def _remove(self, node: int) -> None:
        entry = self._entries.pop(node, None)
        if entry is not None:
            self._bytes -= len(entry.data)

    def __len__(self) -> int:
        return len(self._entries)
