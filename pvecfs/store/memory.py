"""A store without a file, for tests of whatever commits: synchronous, or settled by hand, and it fails on demand."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from pvecfs.interfaces import IStore, Settled
from pvecfs.store.errors import StoreError
from pvecfs.tree.entry import Entry
from pvecfs.tree.tree import Delta, Tree


@implementer(IStore)
class MemoryStore:
    """Rows in memory, with the store's promises about order, batches and failures; everything on the caller's thread.

    @param tree: what the database holds; None for one that is created by L{open}.
    @param now: tells the time for a new database, seconds since 1970.
    @param manual: commit only when told so by L{settle}, all that was handed over as one transaction; else at once.
    @ivar rows: what is committed: inode to entry, the root included. Empty until there is a database.
    @ivar failure: set it to make transactions, recoveries and synchronisations fail with it; None to let them work.
    @ivar created: L{open} made the database.
    @ivar broken: why everything fails until a recovery; None normally.
    @ivar batches: number of deltas in each committed transaction.
    @ivar synchronised: number of successful synchronisations.
    @ivar closed: L{close} was called.
    """

    def __init__(self, tree: Tree | None = None, now: Callable[[], int] = lambda: 0, manual: bool = False) -> None:
        self.rows: dict[int, Entry] = {} if tree is None else {entry.inode: entry for entry in tree.entries()}
        self.failure: StoreError | None = None
        self.created = False
        self.broken: StoreError | None = None
        self.batches: list[int] = []
        self.synchronised = 0
        self.closed = False
        self.manual = manual
        self._now = now
        self._queue: list[tuple[Delta | None, Settled]] = []
        self._settling = False

    @property
    def waiting(self) -> int:
        """How many deltas and synchronisations are handed over and not settled."""
        return len(self._queue)

    def stored(self) -> Tree:
        """The tree that a restart would load."""
        return Tree.load([entry for inode, entry in self.rows.items() if inode != 0], self.rows[0])

    def open(self, stopped: Callable[[], bool] = lambda: False) -> Tree:
        """See L{IStore}."""
        if self.failure is not None:
            raise self.failure
        if not self.rows:
            self.created = True
            self.rows = {0: Tree.new(self._now()).root}
        return self.stored()

    def commit_now(self, delta: Delta) -> None:
        """See L{IStore}. What was handed over before it is settled first."""
        outcomes: list[Exception | None] = []
        self.commit(delta, outcomes.append)
        self.settle()
        if outcomes[0] is not None:
            raise outcomes[0]

    def close_now(self) -> None:
        """See L{IStore}."""
        self.settle()
        self.closed = True

    def commit(self, delta: Delta, settled: Settled) -> None:
        """See L{IStore}."""
        self._submit(delta, settled)

    def gathering(self) -> AbstractContextManager[None]:
        """See L{IStore}. Nothing is gathered but by C{manual}."""
        return nullcontext()

    def synchronise(self, settled: Settled) -> None:
        """See L{IStore}."""
        self._submit(None, settled)

    def recover(self, tree: Tree) -> Deferred[None]:
        """See L{IStore}. What was handed over before it is settled first."""
        self.settle()
        if self.failure is not None:
            return fail(self.failure)
        self.rows = {entry.inode: entry for entry in tree.entries()}
        self.broken = None
        return succeed(None)

    def close(self) -> Deferred[None]:
        """See L{IStore}."""
        self.close_now()
        return succeed(None)

    def settle(self) -> int:
        """Run transactions until nothing waits; return how many deltas and synchronisations were settled."""
        if self._settling:  # called by a callback: the loop below takes what it added
            return 0
        self._settling = True
        count = 0
        try:
            while self._queue:
                batch, self._queue = self._queue, []
                count += len(batch)
                self._settle(batch)
        finally:
            self._settling = False
        return count

    def _submit(self, delta: Delta | None, settled: Settled) -> None:
        self._queue.append((delta, settled))
        if not self.manual:
            self.settle()

    def _settle(self, batch: list[tuple[Delta | None, Settled]]) -> None:
        deltas = [delta for delta, _ in batch if delta is not None]
        outcome = self.broken or self.failure
        if outcome is None:
            for delta in deltas:
                for inode in delta.deleted:
                    self.rows.pop(inode, None)
                self.rows.update({entry.inode: entry for entry in delta.stored})
                self.rows[0] = delta.tree.root
            if deltas:
                self.batches.append(len(deltas))
            self.synchronised += len(batch) - len(deltas)
        elif deltas:
            self.broken = outcome
        for _, settled in batch:
            settled(outcome)
