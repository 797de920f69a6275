"""What benchmarks make of their figures."""

from __future__ import annotations

import sys
from io import StringIO
from typing import cast

from twisted.trial.unittest import SynchronousTestCase

from benchmarks import calibration, local, report
from benchmarks.__main__ import compared, parsed, target


class FigureTests(SynchronousTestCase):
    def test_median_and_best(self) -> None:
        rounds = [{"a": 3.0, "r ops/s": 1.0, "a disk bytes": 9.0}, {"a": 1.0, "r ops/s": 5.0}, {"a": 2.0, "b": 1.0}]
        self.assertEqual(calibration.median(rounds), {"a": 2.0, "r ops/s": 3.0, "a disk bytes": 9.0, "b": 1.0})
        self.assertEqual(calibration.best(rounds), {"a": 1.0, "r ops/s": 5.0, "a disk bytes": 9.0, "b": 1.0})

    def test_slowness_is_the_geometric_mean(self) -> None:
        here = {"calibration: x": 8.0, "calibration: y": 1.0, "stat": 100.0}
        there = {"calibration: x": 2.0, "calibration: y": 1.0, "stat": 1.0}
        self.assertEqual(calibration.slowness(here, there), 2.0)
        self.assertEqual(calibration.slowness({}, there), 1.0)

    def test_ratios(self) -> None:
        here = {"calibration: x": 2.0, "stat": 30.0, "w ops/s": 10.0, "w disk bytes": 5.0, "new": 1.0}
        there = {"calibration: x": 1.0, "stat": 10.0, "w ops/s": 40.0, "w disk bytes": 10.0, "old": 1.0}
        self.assertEqual(compared(here, there), {"stat": 1.5, "w ops/s": 0.5, "w disk bytes": 0.5})

    def test_verdicts(self) -> None:
        figures = {"statfs": 10.0, "writers x4 ops/s": 10.0}
        lines = report.table({"ours": figures}, {"baseline": {"statfs": 1.6, "writers x4 ops/s": 0.8}})
        self.assertIn("1.5 MISSED", lines[1])
        self.assertIn("0.7 ok", lines[2])
        lines = report.table({"ours": figures}, {"baseline": {"writers x4 ops/s": 0.8}}, in_cluster=True)
        self.assertIn("1.2 MISSED", lines[2])

    def test_targets(self) -> None:
        self.assertEqual(target("a", "/mnt/x:12").pid, 12)
        self.assertEqual(str(target("a", "/mnt/x").path), "/mnt/x")

    def test_unknown_part(self) -> None:
        self.patch(sys, "stderr", StringIO())
        error = self.assertRaises(SystemExit, parsed, ["--only", "everything"])
        self.assertEqual(cast(SystemExit, error).code, 2)

    def test_grown_tree(self) -> None:
        for entries in 1, 2, 1500:
            self.assertEqual(len(local.grown_tree(entries)), entries)
