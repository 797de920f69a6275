"""The store in memory keeps the promises that its users are tested with."""

from __future__ import annotations

from errno import ENOSPC

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from pvecfs.interfaces import IStore
from pvecfs.store.errors import StoreError
from pvecfs.store.memory import MemoryStore
from pvecfs.tree.changes import Create, Delete, Write
from tests.store_databases import Outcomes, deltas


class MemoryStoreTests(SynchronousTestCase):
    def test_interface(self) -> None:
        verifyObject(IStore, MemoryStore())

    def test_commit_and_load(self) -> None:
        store = MemoryStore(now=lambda: 5)
        tree = store.open()
        self.assertTrue(store.created)
        self.assertEqual(tree.root.mtime, 5)
        outcomes: Outcomes = []
        tree, made = deltas(tree, Create(b"f"), Create(b"g"), Write(b"f", b"x"), Delete(b"g"))
        for delta in made:
            store.commit(delta, outcomes.append)
        self.assertEqual(outcomes, [None] * 4)
        self.assertEqual(store.stored().index(), tree.index())
        again = MemoryStore(tree)
        self.assertEqual(again.open().index(), tree.index())
        self.assertFalse(again.created)

    def test_by_hand(self) -> None:
        store = MemoryStore(manual=True)
        tree, made = deltas(store.open(), Create(b"f"), Create(b"g"), Create(b"h"))
        outcomes: Outcomes = []

        def more(outcome: Exception | None) -> None:
            outcomes.append(outcome)
            store.commit(made[2], outcomes.append)

        store.commit(made[0], outcomes.append)
        store.commit(made[1], more)
        store.synchronise(outcomes.append)
        self.assertEqual((outcomes, store.waiting), ([], 3))
        self.assertEqual(store.settle(), 4)
        self.assertEqual((outcomes, store.batches, store.synchronised), ([None] * 4, [2, 1], 1))
        self.assertEqual(store.stored().index(), tree.index())

    def test_failure_and_recovery(self) -> None:
        store = MemoryStore()
        tree = store.open()
        _, made = deltas(tree, Create(b"f"), Create(b"g"))
        outcomes: Outcomes = []
        store.failure = failure = StoreError(ENOSPC)
        store.commit(made[0], outcomes.append)
        self.failureResultOf(store.recover(tree), StoreError)
        self.assertRaises(StoreError, store.open)
        self.assertRaises(StoreError, store.commit_now, made[1])
        store.failure = None
        store.commit(made[1], outcomes.append)
        store.synchronise(outcomes.append)
        self.assertEqual(outcomes, [failure] * 3)
        self.assertIsNone(self.successResultOf(store.recover(tree)))
        self.assertEqual(store.stored().index(), tree.index())
        store.commit(made[0], outcomes.append)
        self.assertIsNone(outcomes[-1])
        store.commit_now(made[1])
        self.assertEqual(store.stored().index(), made[1].tree.index())
        self.assertIsNone(self.successResultOf(store.close()))
        self.assertTrue(store.closed)
