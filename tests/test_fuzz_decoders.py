"""Every decoder refuses what is malformed, and breaks at nothing (docs/reliability-simulator.md)."""

from __future__ import annotations

import contextlib
from random import Random

from twisted.trial.unittest import SynchronousTestCase

from tests.fuzz.corpus import mutate
from tests.fuzz.targets import TARGETS, Target

INPUTS = 20_000
"""For each decoder."""


class DecoderTests(SynchronousTestCase):
    """A method for each decoder, made below."""

    timeout = 300

    def check(self, target: Target) -> None:
        for data in target.inputs():
            with contextlib.suppress(*target.refusals):
                target.take(data)
        target.fuzz(Random(target.name), INPUTS)


def _test_of(target: Target) -> object:
    def test(self: DecoderTests) -> None:
        self.check(target)

    test.__doc__ = target.name
    return test


for _target in TARGETS:
    setattr(DecoderTests, "test_" + "".join(c if c.isalnum() else "_" for c in _target.name.lower()), _test_of(_target))


class FuzzerTests(SynchronousTestCase):
    def test_a_broken_decoder_is_shown(self) -> None:
        def take(data: bytes) -> None:
            if data[:1] == b"\xff":
                raise IndexError("there")

        target = Target("broken", lambda: (b"\0" * 20,), take)
        error = self.assertRaises(AssertionError, target.fuzz, Random(1), 5000)
        self.assertIn("input ff", str(error))

    def test_most_input_is_changed(self) -> None:
        random = Random(1)
        data = bytes(range(100))
        changed = [mutate(random, data, (b"other" * 10,)) for _ in range(1000)]
        self.assertGreater(len(set(changed)), 700)
        self.assertLess(changed.count(data), 200)

    def test_repeats(self) -> None:
        first, second = (mutate(Random(7), b"x" * 50, (b"y",)) for _ in range(2))
        self.assertEqual(first, second)
