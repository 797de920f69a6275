"""Changes in local mode: straight to the tree."""

from __future__ import annotations

from collections.abc import Callable

from zope.interface import implementer

from pvecfs.interfaces import Acknowledge, Backlog, IProposer, Meant
from pvecfs.node.ledger import Ledger
from pvecfs.tree.admission import Limits, admit
from pvecfs.tree.changes import Change
from pvecfs.tree.errors import OperationError
from pvecfs.tree.locks import LockClocks

LOCAL_WRITER = 0
"""Writer of changes in local mode (10-tree.md)."""


@implementer(IProposer)
class LocalProposer:
    """Applies each change at once: there is nobody to agree with.

    @param wall_clock: seconds since 1970, for the changes' mtime.
    @param monotonic: seconds that never jump, for the age of locks.
    @param locks: the clocks of the locks.
    @ivar proposed: how many changes were proposed.
    @ivar refused: how many of them were refused.
    @ivar backlog: none ever waits for a cluster.
    """

    def __init__(
        self,
        ledger: Ledger,
        limits: Limits,
        wall_clock: Callable[[], float],
        monotonic: Callable[[], float],
        locks: LockClocks,
    ) -> None:
        self._ledger = ledger
        self._limits = limits
        self._wall_clock = wall_clock
        self._monotonic = monotonic
        self._locks = locks
        self.proposed = 0
        self.refused = 0
        self.backlog = Backlog()
        locks.resynchronised(ledger.newest, monotonic())

    def propose(self, change: Change, acknowledge: Acknowledge, meant: Meant | None = None) -> None:
        self.proposed += 1
        ledger = self._ledger
        tree = ledger.newest
        try:
            now = self._monotonic()
            change = self._locks.release(tree, admit(tree, change, self._limits), now)
            applied = tree.apply(change, LOCAL_WRITER, int(self._wall_clock()))
            self._locks.applied(applied.tree, change, now)
        except OperationError as refused:
            self.refused += 1
            ledger.settle(acknowledge, -refused.errno)
            return
        ledger.commit(applied.delta, acknowledge, applied.result, meant)

    def synchronise(self, acknowledge: Acknowledge) -> None:
        self._ledger.synchronise(acknowledge)
