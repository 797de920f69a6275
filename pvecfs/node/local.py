"""Changes in local mode: straight to the tree."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from zope.interface import implementer

from pvecfs.interfaces import Acknowledge, IProposer
from pvecfs.node.ledger import Ledger
from pvecfs.tree.admission import Limits, admit
from pvecfs.tree.changes import Change
from pvecfs.tree.errors import OperationError
from pvecfs.tree.locks import LockClocks

if TYPE_CHECKING:
    pass

LOCAL_WRITER = 0
"""Writer of changes in local mode (10-tree.md)."""


@implementer(IProposer)
class LocalProposer:
    """Applies each change at once: there is nobody to agree with.

    @param wall_clock: seconds since 1970, for the changes' mtime.
    @param monotonic: seconds that never jump, for the age of locks.
    """

    def __init__(
        self, ledger: Ledger, limits: Limits, wall_clock: Callable[[], float], monotonic: Callable[[], float]
    ) -> None:
        self._ledger = ledger
        self._limits = limits
        self._wall_clock = wall_clock
        self._monotonic = monotonic
        self._locks = LockClocks()

    def propose(self, change: Change, acknowledge: Acknowledge, by_mount: bool = False) -> None:
        ledger = self._ledger
        tree = ledger.newest
        try:
            change = admit(tree, change, self._limits)
            applied = tree.apply(change, LOCAL_WRITER, int(self._wall_clock()))
        except OperationError as refused:
            ledger.settle(acknowledge, -(refused.errno or 0))
            return
        ledger.commit(applied.delta, acknowledge, applied.result, by_mount)

    def synchronise(self, acknowledge: Acknowledge) -> None:
        self._ledger.synchronise(acknowledge)
