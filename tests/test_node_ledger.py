"""The ledger commits, then publishes, then acknowledges; and what it does when the database refuses."""

from __future__ import annotations

from collections.abc import Callable
from errno import EEXIST, ENOSPC

from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from pvecfs.interfaces import Acknowledge, IKernelCache, ILedger, ILedgerListener, INodeView, IProposer, Meant
from pvecfs.log import set_verbose
from pvecfs.node.ledger import RECOVERY_INTERVAL, Ledger, NoKernelCache, NoLedgerListener
from pvecfs.node.local import LocalProposer
from pvecfs.node.logged import LoggedProposer
from pvecfs.node.view import NodeView
from pvecfs.store.errors import StoreError
from pvecfs.store.memory import MemoryStore
from pvecfs.tree.admission import Limits
from pvecfs.tree.changes import Change, Create, Delete, Mkdir, Rename, SetMtime, Write
from pvecfs.tree.locks import LockClocks
from pvecfs.tree.tree import Delta, Tree


class DirectReactor(Clock):
    """A clock whose callFromThread runs at once: the memory store settles on this thread."""

    def callFromThread(self, callable: Callable[..., object], *args: object) -> None:
        callable(*args)


@implementer(IKernelCache)
class RecordingCache:
    def __init__(self) -> None:
        self.changes: list[tuple[int, int]] = []
        self.published: list[tuple[int, int, Meant | None]] = []
        self.modes = 0

    def publishing(self, before: Tree, delta: Delta, meant: Meant | None) -> bool:
        self.published.append((before.version, delta.tree.version, meant))
        return meant is None

    def changed(self, before: Tree, after: Tree, delta: Delta) -> None:
        self.changes.append((before.version, after.version))

    def modes_changed(self) -> None:
        self.modes += 1


@implementer(ILedgerListener)
class RecordingListener:
    def __init__(self) -> None:
        self.events: list[object] = []

    def commit_failed(self, errno: int, committed: Tree) -> None:
        self.events.append((errno, committed.version))

    def recovered(self) -> None:
        self.events.append("recovered")


class LedgerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = DirectReactor()
        self.tree = Tree.new(1)
        self.store = MemoryStore(self.tree, manual=True)
        self.view = NodeView(self.tree, b"n1", Limits(), True, False, lambda enabled: None)
        self.ledger = Ledger(self.reactor, self.store, self.view)
        self.cache = RecordingCache()
        self.listener = RecordingListener()
        self.ledger.kernel_cache = self.cache
        self.ledger.listener = self.listener
        self.wall, self.monotonic = 1000.0, 0.0
        self.proposer = LocalProposer(self.ledger, Limits(), lambda: self.wall, lambda: self.monotonic, LockClocks())
        self.outcomes: list[tuple[str, int]] = []

    def propose(self, label: str, change: object, meant: Meant | None = None) -> None:
        self.proposer.propose(change, lambda outcome: self.outcomes.append((label, outcome)), meant)  # type: ignore[arg-type]  # any change

    def test_interfaces(self) -> None:
        verifyObject(ILedger, self.ledger)
        verifyObject(INodeView, self.view)
        verifyObject(IProposer, self.proposer)
        for cache in self.cache, NoKernelCache():
            verifyObject(IKernelCache, cache)
        for listener in self.listener, NoLedgerListener():
            verifyObject(ILedgerListener, listener)

    def test_nothing_is_seen_or_acknowledged_before_the_commit(self) -> None:
        self.propose("a", Create(b"a"))
        self.assertEqual((self.outcomes, self.view.tree), ([], self.tree))
        self.assertIsNotNone(self.ledger.newest.lookup(b"a"))
        self.store.settle()
        self.assertEqual(self.outcomes, [("a", 0)])
        self.assertIs(self.view.tree, self.ledger.newest)

    def test_published_before_acknowledged(self) -> None:
        seen: list[bool] = []
        self.proposer.propose(Create(b"a"), lambda outcome: seen.append(self.view.tree.lookup(b"a") is not None))
        self.store.settle()
        self.assertEqual(seen, [True])

    def test_errors_wait_for_what_was_before(self) -> None:
        self.propose("first", Create(b"a"))
        self.propose("second", Create(b"a"))
        self.assertEqual(self.outcomes, [])
        self.store.settle()
        self.assertEqual(self.outcomes, [("first", 0), ("second", -EEXIST)])
        self.propose("third", Create(b"a"))
        self.assertEqual(self.outcomes[2:], [("third", -EEXIST)])

    def test_the_kernel_is_told_of_what_it_cannot_know(self) -> None:
        self.propose("mount", Create(b"a"), meant=Meant((1,)))
        self.propose("other", Create(b"b"))
        self.store.settle()
        self.assertEqual(self.cache.changes, [(2, 3)])
        self.assertEqual(self.cache.published, [(1, 2, Meant((1,))), (2, 3, None)])

    def test_the_kernel_cache_hears_of_a_publication_before_it(self) -> None:
        seen: list[tuple[bool, Meant | None]] = []

        def publishing(before: Tree, delta: Delta, meant: Meant | None) -> bool:
            seen.append((self.view.tree is before, meant))
            return False

        self.patch(self.cache, "publishing", publishing)
        self.propose("mount", Create(b"a"), meant=Meant((1,)))
        self.propose("other", Create(b"b"))
        self.store.settle()
        self.store.failure = StoreError(ENOSPC, "full")
        self.propose("refused", Create(b"c"))
        self.store.settle()
        self.assertEqual(seen, [(True, Meant((1,))), (True, None)])

    def test_failed_commit(self) -> None:
        self.propose("a", Create(b"a"))
        self.store.settle()
        self.store.failure = StoreError(ENOSPC, "full")
        self.propose("b", Create(b"b"))
        self.propose("c", Create(b"c"))
        self.store.settle()
        self.assertEqual(self.outcomes, [("a", 0), ("b", -ENOSPC), ("c", -ENOSPC)])
        self.assertIs(self.ledger.newest, self.view.tree)
        self.assertIsNone(self.ledger.newest.lookup(b"b"))
        self.assertFalse(self.view.quorate)
        self.assertEqual(self.listener.events, [(ENOSPC, 2)])
        self.propose("d", Create(b"d"))
        self.assertEqual(self.outcomes[3:], [("d", -ENOSPC)])
        self.reactor.advance(RECOVERY_INTERVAL)
        self.assertFalse(self.ledger.writable)
        self.store.failure = None
        self.reactor.advance(RECOVERY_INTERVAL)
        self.assertTrue(self.view.quorate)
        self.assertEqual(self.listener.events[1:], ["recovered"])
        self.propose("e", Create(b"e"))
        self.store.settle()
        self.assertEqual(self.outcomes[4:], [("e", 0)])
        self.assertEqual(self.store.stored().index(), self.view.tree.index())

    def test_refused_again_and_again(self) -> None:
        """A database that takes what is tried, and refuses what comes then, is tried again ever later."""
        waited = []
        for _ in range(8):
            self.store.failure = StoreError(ENOSPC, "full")
            self.propose("too much", Create(b"a"))
            self.store.settle()
            self.assertEqual((self.ledger.writable, self.ledger.doubt), (False, ENOSPC))
            self.store.failure = None
            waited.append(0)
            while not self.ledger.writable:
                self.reactor.advance(RECOVERY_INTERVAL)
                waited[-1] += round(RECOVERY_INTERVAL)
            self.assertEqual(self.ledger.doubt, ENOSPC)  # nothing was committed yet
        self.assertEqual(waited, [2, 4, 8, 16, 32, 60, 60, 60])
        self.propose("enough", Create(b"a"))
        self.store.settle()
        self.assertEqual(self.ledger.doubt, 0)
        self.store.failure = StoreError(ENOSPC, "full")
        self.propose("too much", Create(b"b"))
        self.store.settle()
        self.store.failure = None
        self.reactor.advance(RECOVERY_INTERVAL)
        self.assertTrue(self.ledger.writable)

    def test_modes_follow_quorum_and_database(self) -> None:
        changes: list[bool] = []
        self.view.modes_changed = lambda: changes.append(self.view.quorate)
        self.view.quorum_changed(False)
        self.view.writable_changed(False)
        self.view.quorum_changed(True)
        self.view.writable_changed(True)
        self.assertEqual(changes, [False, True])

    def test_local_writer_and_time(self) -> None:
        self.propose("f", Create(b"f"))
        self.propose("f", Write(b"f", b"x"))
        self.store.settle()
        entry = self.view.tree.lookup(b"f")
        assert entry is not None
        self.assertEqual((entry.writer, entry.mtime, entry.data), (0, 1000, b"x"))

    def test_local_lock_is_released_after_its_time(self) -> None:
        for path in b"priv", b"priv/lock", b"priv/lock/x":
            self.propose("mkdir", Mkdir(path))
        self.store.settle()
        self.monotonic = 119.0
        self.propose("early", SetMtime(b"priv/lock/x", 0))
        self.monotonic = 121.0
        self.propose("late", SetMtime(b"priv/lock/x", 0))
        self.store.settle()
        self.assertEqual([label for label, outcome in self.outcomes if outcome < 0], ["early"])
        self.assertIsNone(self.view.tree.lookup(b"priv/lock/x"))

    def test_synchronise(self) -> None:
        self.proposer.synchronise(lambda outcome: self.outcomes.append(("fsync", outcome)))
        self.store.settle()
        self.assertEqual(self.outcomes, [("fsync", 0)])

    def test_empty_delta_is_a_settled_outcome(self) -> None:
        self.propose("a", Create(b"a"))
        self.ledger.commit(Delta(self.ledger.newest, (), ()), lambda outcome: self.outcomes.append(("nop", outcome)))
        self.store.settle()
        self.assertEqual(self.outcomes, [("a", 0), ("nop", 0)])
        self.propose("gone", Delete(b"a"))
        self.store.settle()
        self.assertEqual(self.store.batches, [1, 1])


@implementer(IProposer)
class RecordingProposer:
    def __init__(self) -> None:
        self.proposed: list[tuple[Change, Acknowledge, Meant | None]] = []
        self.synchronised: list[Acknowledge] = []

    def propose(self, change: Change, acknowledge: Acknowledge, meant: Meant | None = None) -> None:
        self.proposed.append((change, acknowledge, meant))

    def synchronise(self, acknowledge: Acknowledge) -> None:
        self.synchronised.append(acknowledge)


class LoggedProposerTests(SynchronousTestCase):
    """What the log says of changes."""

    def setUp(self) -> None:
        self.addCleanup(set_verbose, False)
        self.inner = RecordingProposer()
        self.view = NodeView(Tree.new(1), b"n1", Limits(), True, False, set_verbose)
        self.clock = Clock()
        self.proposer = LoggedProposer(self.inner, self.view, self.clock.seconds)
        self.outcomes: list[int] = []

    def test_interfaces(self) -> None:
        for proposer in self.proposer, self.inner:
            verifyObject(IProposer, proposer)

    def test_verbose(self) -> None:
        """A line for each change, when its caller has been told."""
        self.view.set_debug(True)
        for change, outcome, line in (
            (Create(b"a"), 0, "Create a: 0, 2.5 ms"),
            (Create(b"a"), -EEXIST, "Create a: EEXIST, 2.5 ms"),
            (Write(b"a", b"secret!", 3), 7, "Write a, 7 bytes at 3: 7, 2.5 ms"),
            (Write(b"a", b"", 0, True), 0, "Write a, 0 bytes at 0, where the file ends: 0, 2.5 ms"),
            (Rename(b"a", b"b/{c}"), 0, "Rename a to b/{c}: 0, 2.5 ms"),
            (SetMtime(b"b\xff", 5), 0, "SetMtime b\\xff 5: 0, 2.5 ms"),
        ):
            self.proposer.propose(change, self.outcomes.append, Meant((1,)))
            proposed, acknowledge, meant = self.inner.proposed.pop()
            self.assertEqual((proposed, meant), (change, Meant((1,))))
            self.clock.advance(0.0025)
            with capturedLogs() as events:
                acknowledge(outcome)
            self.assertEqual([formatEvent(event) for event in events], [line])
            self.assertEqual(self.outcomes.pop(), outcome)

    def test_otherwise(self) -> None:
        """Nothing stands between the change and its caller."""
        told: Acknowledge = self.outcomes.append
        for switch in True, False:
            self.view.set_debug(switch)
        self.proposer.propose(Create(b"a"), told)
        self.proposer.synchronise(told)
        self.assertEqual(self.inner.proposed, [(Create(b"a"), told, None)])
        self.assertEqual(self.inner.synchronised, [told])
