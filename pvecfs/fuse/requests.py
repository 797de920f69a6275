"""Requests that wait for the node: each is answered exactly once, whatever happens."""

from __future__ import annotations

from collections.abc import Callable
from errno import EIO
from operator import attrgetter
from time import monotonic

from pvecfs.fuse.lowlevel import reply_err
from pvecfs.interfaces import Backlog
from pvecfs.log import logger
from pvecfs.tree.changes import Change, Create, Delete, Mkdir, Rename

_log = logger("fuse")

Finish = Callable[[int, int], None]
"""Answers a request: called with the request and the outcome, a result or a negative errno."""


def finish_without_result(request: int, outcome: int) -> None:
    """Answer success or the error."""
    reply_err(request, -outcome if outcome < 0 else 0)


class Waiting:
    """A request handed to the node; the C{acknowledge} of its change. Any thread, at any time, more than once.

    Whoever empties C{claim} answers: that is one step for the interpreter, so there is one answer.

    @ivar change: what it asks for, if that is a change.
    @ivar since: when it came, seconds of C{time.monotonic}.
    """

    __slots__ = ("_book", "_claim", "_finish", "change", "since")

    def __init__(self, book: set[Waiting], request: int, finish: Finish, change: Change | None = None) -> None:
        self.change = change
        self.since = monotonic()
        self._book = book
        self._claim = [request]
        self._finish = finish
        book.add(self)

    def keeps_root_locked(self) -> bool:
        """Whether the kernel holds its lock of the root directory until this is answered."""
        change = self.change
        if isinstance(change, Rename) and b"/" not in change.to:
            return True
        return isinstance(change, Create | Mkdir | Delete | Rename) and b"/" not in change.path

    def __call__(self, outcome: int) -> None:
        try:
            request = self._claim.pop()
        except IndexError:
            return  # answered already, when the mount was stopped
        try:
            self._finish(request, outcome)
        except Exception:
            _log.failure("could not answer a file operation")
            reply_err(request, EIO)
        finally:
            self._book.discard(self)


def backlog(book: set[Waiting]) -> Backlog:
    """What waits in C{book}. Any thread."""
    waiting = list(book)
    if not waiting:
        return Backlog()
    oldest = min(waiting, key=attrgetter("since"))
    return Backlog(len(waiting), oldest.since, b"" if oldest.change is None else oldest.change.path)
