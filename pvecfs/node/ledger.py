"""The ledger: what was applied is committed, then published, then acknowledged."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from errno import EIO
from threading import Lock
from typing import TYPE_CHECKING, Protocol

from zope.interface import implementer

from pvecfs.interfaces import Acknowledge, IKernelCache, ILedger, ILedgerListener, IStore, Meant
from pvecfs.log import logger
from pvecfs.node.view import NodeView

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from pvecfs.tree.tree import Delta, Tree


_log = logger("ledger")


class LedgerReactor(Protocol):
    """What the ledger wants of a reactor."""

    def callFromThread(self, callable: Callable[..., object], *args: object) -> None: ...

    def callLater(self, delay: float, callable: Callable[..., object]) -> object: ...


RECOVERY_INTERVAL = 2.0
"""Seconds between two attempts to write to a database that refused a commit. Twice as many after each further refusal
without a commit in between: it took the little that was tried, and the cluster has synchronised for nothing."""

MAX_RECOVERY_INTERVAL = 60.0


@implementer(IKernelCache)
class NoKernelCache:
    """There is no mount, so nothing to invalidate."""

    def publishing(self, before: Tree, delta: Delta, meant: Meant | None) -> bool:
        return False

    def changed(self, before: Tree, after: Tree, delta: Delta) -> None:
        pass

    def modes_changed(self) -> None:
        pass


@implementer(ILedgerListener)
class NoLedgerListener:
    """Nobody needs to know: in local mode the proposer looks at C{ledger.writable} itself."""

    def commit_failed(self, errno: int, committed: Tree) -> None:
        pass

    def recovered(self) -> None:
        pass


@implementer(ILedger)
class Ledger:
    """Hands deltas to the store in order, and publishes their trees as the store settles them.

    Everything here runs on the reactor thread, but for L{_settled}: the store calls it on its own thread, so that an
    acknowledgement costs no further thread switch.

    @ivar newest: the newest applied tree; the published one is C{view.tree}.
    @ivar kernel_cache: told of each publication before it, and after it if it wants to.
    @ivar listener: told when the database refuses a commit, and when it takes them again.
    @ivar refusals: how many times the database began to refuse commits.
    """

    def __init__(self, reactor: LedgerReactor, store: IStore, view: NodeView) -> None:
        self.newest: Tree = view.tree
        self.writable = True
        self.refusals = 0
        self._in_a_row = 0
        self.kernel_cache: IKernelCache = NoKernelCache()
        self.listener: ILedgerListener = NoLedgerListener()
        self._reactor = reactor
        self._store = store
        self._view = view
        self._failure = 0  # errno of the failed commit while not writable
        # The counts and the waiting outcomes are shared with the store's thread. The lock is held for a few
        # instructions only; nothing is called with it held.
        self._lock = Lock()
        self._handed_over = 0
        self._settled_count = 0
        self._outcomes: deque[tuple[int, Acknowledge, int]] = deque()

    @property
    def failure(self) -> int:
        """The errno for which the database refuses commits, or 0."""
        return 0 if self.writable else self._failure

    @property
    def doubt(self) -> int:
        """The errno for which it refused the last commit, or 0: it has taken one since, or all."""
        return self._failure if self._in_a_row else 0

    def commit(
        self, delta: Delta, acknowledge: Acknowledge | None = None, outcome: int = 0, meant: Meant | None = None
    ) -> None:
        if not self.writable:
            if acknowledge is not None:
                acknowledge(-self._failure)
            return
        before = self.newest
        if delta.tree is before:
            if acknowledge is not None:
                self.settle(acknowledge, outcome)
            return
        self.newest = delta.tree
        with self._lock:
            self._handed_over += 1

        def settled(failure: Exception | None) -> None:
            self._settled(before, delta, acknowledge, outcome, meant, failure)

        self._store.commit(delta, settled)

    def gathering(self) -> AbstractContextManager[None]:
        return self._store.gathering()

    def settle(self, acknowledge: Acknowledge, outcome: int) -> None:
        with self._lock:
            waits = self._settled_count < self._handed_over
            if waits:
                self._outcomes.append((self._handed_over, acknowledge, outcome))
        if not waits:
            acknowledge(outcome)

    def synchronise(self, acknowledge: Acknowledge) -> None:
        """Put what was acknowledged so far on stable storage, then call C{acknowledge} with 0 or -errno."""

        def settled(failure: Exception | None) -> None:
            acknowledge(0 if failure is None else -errno_of(failure))

        self._store.synchronise(settled)

    def _settled(
        self,
        before: Tree,
        delta: Delta,
        acknowledge: Acknowledge | None,
        outcome: int,
        meant: Meant | None,
        failure: Exception | None,
    ) -> None:
        """A commit has ended. Store thread."""
        if failure is None:
            self._in_a_row = 0
            tell = self.kernel_cache.publishing(before, delta, meant)
            self._view.tree = delta.tree
            if tell:
                self.kernel_cache.changed(before, delta.tree, delta)
        else:
            outcome = -errno_of(failure)
            self._reactor.callFromThread(self._commit_failed, failure)
        if acknowledge is not None:
            acknowledge(outcome)
        with self._lock:
            self._settled_count += 1
            due = []
            while self._outcomes and self._outcomes[0][0] <= self._settled_count:
                due.append(self._outcomes.popleft())
        for _, waiting, result in due:
            waiting(result)

    def _commit_failed(self, failure: Exception) -> None:
        """The store refuses commits. Each delta that was under way reports it; the first report acts."""
        if not self.writable:
            return
        self.writable = False
        self.refusals += 1
        self._in_a_row += 1
        self._failure = errno_of(failure)
        self.newest = self._view.tree
        self._view.writable_changed(False)
        _log.critical("the database refuses changes, this node is read-only: {reason}", reason=failure)
        self.listener.commit_failed(self._failure, self.newest)
        self._try_again_later()

    def _try_again_later(self) -> None:
        delay = RECOVERY_INTERVAL * 2 ** min(max(self._in_a_row, 1) - 1, 10)
        self._reactor.callLater(min(delay, MAX_RECOVERY_INTERVAL), self._try_again)

    def _try_again(self) -> None:
        def succeeded(_: None) -> None:
            self.writable = True
            _log.info("the database takes changes again")
            self._view.writable_changed(True)
            self.listener.recovered()

        def failed(reason: object) -> None:
            _log.debug("the database still refuses changes: {reason}", reason=reason)
            self._try_again_later()

        recovering: Deferred[None] = self._store.recover(self._view.tree)
        recovering.addCallbacks(succeeded, failed)


def errno_of(failure: Exception) -> int:
    """The errno that a caller shall see for C{failure}: its own, or EIO."""
    number = getattr(failure, "errno", None)
    return number if isinstance(number, int) and number > 0 else EIO
