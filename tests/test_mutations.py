"""A test of the tests: the simulator notices each of the small faults in C{tests/mutations}."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from pvecfs.node.ledger import Ledger
from pvecfs.replica.machine import _TRANSITIONS, GroupMachine, Mode
from tests.mutations.catalogue import MUTATIONS
from tests.mutations.mutation import Mutation
from tests.simulator.shrink import failure
from tests.simulator.story import tell

SEEDS = 2000
"""Within so many, each fault must be noticed."""


class CaughtTests(SynchronousTestCase):
    """A method for each mutation, made below."""

    timeout = 600

    def catch(self, mutation: Mutation) -> None:
        with mutation.applied():
            seed = next((seed for seed in range(SEEDS) if failure(tell(seed))), None)
        self.assertIsNotNone(seed, f"{SEEDS} seeds and nothing noticed: {mutation.name}")
        assert seed is not None
        self.assertEqual(failure(tell(seed)), "", "without the fault, nothing is wrong")


def _test_of(mutation: Mutation) -> object:
    def test(self: CaughtTests) -> None:
        self.catch(mutation)

    test.__doc__ = mutation.name
    return test


for _mutation in MUTATIONS:
    _name = "test_" + "".join(letter if letter.isalnum() else "_" for letter in _mutation.name.lower())
    assert not hasattr(CaughtTests, _name)
    setattr(CaughtTests, _name, _test_of(_mutation))


class MutationTests(SynchronousTestCase):
    def test_catalogue(self) -> None:
        self.assertGreaterEqual(len(MUTATIONS), 30)

    def test_applied_and_taken_back(self) -> None:
        before = Ledger.commit
        mutation = Mutation("x", Ledger.commit, "before = self.newest", "before = None")
        with mutation.applied():
            self.assertIsNot(Ledger.commit, before)
        self.assertIs(Ledger.commit, before)

    def test_tables_too(self) -> None:
        table = dict(_TRANSITIONS[Mode.SYNCED])
        mutation = Mutation("x", GroupMachine._complete, "self._deliver_queue(now, out)", "pass")
        with mutation.applied():
            self.assertNotEqual(_TRANSITIONS[Mode.SYNCED], table)
        self.assertEqual(_TRANSITIONS[Mode.SYNCED], table)

    def test_source_has_changed(self) -> None:
        mutation = Mutation("x", Ledger.commit, "this is not there", "")
        with self.assertRaises(ValueError), mutation.applied():
            self.fail("not reached")
