"""Records: data that compares by value. That nobody changes them is the type checker's to see."""

from __future__ import annotations

from dataclasses import fields

from twisted.trial.unittest import SynchronousTestCase

from pvecfs.tree.record import record


@record
class Point:
    """Something."""

    x: int
    y: int = 2


@record
class Other:
    """Something else with the same fields."""

    x: int
    y: int = 2


class RecordTests(SynchronousTestCase):
    def test_value(self) -> None:
        self.assertEqual(Point(1), Point(1, y=2))
        self.assertEqual(hash(Point(1)), hash(Point(1, 2)))
        self.assertNotEqual(Point(1), Point(2))
        self.assertNotEqual(Point(1), Other(1))
        self.assertNotEqual(Point(1), (1, 2))

    def test_said(self) -> None:
        self.assertEqual(repr(Point(1)), "Point(x=1, y=2)")
        self.assertEqual([field.name for field in fields(Point)], ["x", "y"])

    def test_nothing_else(self) -> None:
        self.assertRaises(TypeError, Point)
        self.assertRaises(AttributeError, setattr, Point(1), "z", 3)
