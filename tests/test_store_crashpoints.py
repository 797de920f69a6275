"""Crash points of the store: every write and sync, and every statement, fails or is the last one, in turn.

C{PVECFS_CRASH_POINTS=all} looks at all of them, which takes minutes; without it at a sample that is another one each
hour, so that runs add up.
"""

from __future__ import annotations

import os
import time
from errno import EIO, ENOSPC
from random import Random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from pvecfs.store.errors import StoreError
from tests.crashpoints.crashes import Crashes, Stage
from tests.crashpoints.disk import Disk, Record
from tests.crashpoints.scenario import STEPS, WORDS, history
from tests.needs import needs_gcc
from tests.store_databases import store_at

ALL = os.environ.get("PVECFS_CRASH_POINTS") == "all"
SAMPLE = int(time.time()) // 3600
"""Which sample is looked at. It is part of the test's message."""

NEVER = 10**6


class Case(SynchronousTestCase):
    timeout = 3600 if ALL else 120

    def setUp(self) -> None:
        self.stage = Stage()
        self.addCleanup(self.stage.clear)

    def crashes(self, durability: str) -> Crashes:
        return Crashes(durability, self.stage.base, SAMPLE)

    def nothing_wrong(self, wrong: list[str]) -> None:
        self.assertEqual(wrong[:5], [], f"{len(wrong)} of them, in sample {SAMPLE}")

    def report(self, text: str) -> None:
        """Figures for docs/reliability.md; trial's log has them."""
        with open("crashpoints.txt", "a") as file:
            file.write(f"{self.id()}: {text}\n")


@needs_gcc()
class CrashTests(Case):
    """The process is killed, or power is lost, at each call."""

    def test_scenario(self) -> None:
        self.assertEqual(len(history()) - 1, 50)
        self.assertEqual({step for step in STEPS if isinstance(step, str)}, {*WORDS})

    def everywhere(self, durability: str) -> None:
        outcome, made = self.stage.play(durability)
        self.assertEqual(outcome, {"seen": {}, "wrong": []})
        crashes = self.crashes(durability)
        stride = 1 if ALL else 5
        crashes.check(made, stride=stride, offset=SAMPLE % stride)
        self.report(f"{crashes.points} points, {crashes.states} states, {crashes.distinct} different")
        self.nothing_wrong(crashes.wrong)
        self.assertGreater(crashes.points, 100)

    def test_durability_process(self) -> None:
        """A killed process loses nothing acknowledged; a power loss nothing that was synchronised."""
        self.everywhere("process")

    def test_durability_power(self) -> None:
        """A power loss loses nothing acknowledged."""
        self.everywhere("power")

    def test_crash_of_the_start_after_a_crash(self) -> None:
        """What a crash left is opened, and that start crashes too, at each call."""
        _, made = self.stage.play("process")
        disk, states = Disk(), []
        random = Random(SAMPLE)
        for record in made:
            if record.kind != "m":
                disk.apply(record)
                states.append(list(disk.lost_power(random))[-1])
        crashes = self.crashes("power")
        starts = 20 if ALL else 3
        for number in range(starts):
            state = random.choice(states[len(states) * number // starts : len(states) * (number + 1) // starts])
            found = crashes.version(state)
            assert isinstance(found, int)
            _, restart = self.stage.play("process", start_only=True, initial=state)
            words = b"submitted", b"acknowledged", b"synced"
            marks = [Record("m", "", b"%b %d" % (word, found), 0, 0, False) for word in words]
            crashes.check([*marks, *restart], initial=state)
        self.report(f"{starts} starts, {crashes.points} points, {crashes.states} states")
        self.nothing_wrong(crashes.wrong)

    def test_the_test_can_fail(self) -> None:
        """The weaker promise does not pass for the stronger one, nor no syncs at all for the weaker one."""
        _, made = self.stage.play("process")
        crashes = self.crashes("power")
        crashes.check(made, stride=9)
        self.assertNotEqual(crashes.wrong, [])
        careless = self.crashes("process")
        careless.check([record for record in made if record.kind != "s"], stride=9)
        self.assertNotEqual(careless.wrong, [])


class OpenedAgainTests(SynchronousTestCase):
    timeout = 60

    def test_at_once_after_a_failure(self) -> None:
        """The thread of the open that failed does not take what is for the next one's."""
        path = os.path.abspath(self.mktemp())
        os.mkdir(path)  # no database
        store = store_at(path)
        for _ in range(200):
            self.assertRaises(StoreError, store.open)
        os.rmdir(path)
        self.assertEqual(store.open().version, 1)
        store.close_now()


@needs_gcc()
class FaultTests(Case):
    """A call or a statement fails, once, or from then on until the disk is mended. The change fails and says so, the
    store recovers, and memory and disk agree."""

    def play(self, faults: list[dict[str, Any]], least: int = 5) -> list[dict[str, Any]]:
        if not ALL:
            faults = Random(SAMPLE).sample(faults, min(60, len(faults)))
        results, _ = self.stage.play("process", faults, record=False)
        self.nothing_wrong([f"{fault}: {r['wrong']}" for fault, r in zip(faults, results, strict=True) if r["wrong"]])
        seen: dict[str, int] = {}
        for result in results:
            for word, count in result["seen"].items():
                seen[word] = seen.get(word, 0) + count
        self.report(f"{len(faults)} faults, seen: {seen}")
        self.assertGreater(sum(seen.values()), least)
        assert isinstance(results, list)
        return results

    def counted(self, **fault: Any) -> int:
        """How many calls or statements the scenario makes."""
        results, _ = self.stage.play("process", [{"first": NEVER, "last": NEVER, **fault}], record=False)
        return int(results[0]["count"])

    def test_calls(self) -> None:
        calls: dict[str, Any] = {"layer": "call", "kinds": "cwtsur"}
        count = self.counted(**calls)
        self.play(
            [
                {**calls, "first": first, "last": last, "errno": errno}
                for first in range(count)
                for last in (first + 1, NEVER)
                for errno in (EIO, ENOSPC)
            ]
        )

    def test_short_writes(self) -> None:
        """SQLite has to write the rest, and does: nothing fails."""
        writes: dict[str, Any] = {"layer": "call", "kinds": "w", "short": True, "errno": ENOSPC}
        self.play([{**writes, "first": n, "last": n + 3} for n in range(self.counted(**writes))], -1)

    def test_statements(self) -> None:
        """SQLite refuses a statement; or does it, and reports an error all the same."""
        count = self.counted(layer="statement")
        self.play(
            [
                {"layer": "statement", "first": first, "last": last, "after": after}
                for first in range(count)
                for last in (first + 1, NEVER)
                for after in (False, True)
            ]
        )

    def failed_syncs(self, durability: str) -> None:
        syncs: dict[str, Any] = {"layer": "call", "kinds": "s", "errno": EIO}
        faults = [{**syncs, "first": n, "last": n + 1} for n in range(self.counted(**syncs))]
        if not ALL:
            faults = Random(SAMPLE).sample(faults, 6)
        results, made = self.stage.play(durability, faults)
        plays: list[list[Record]] = []
        for record in made:
            if record.kind == "m" and record.data.startswith(b"fault"):
                plays.append([])
            else:
                plays[-1].append(record)
        self.assertEqual(len(plays), len(faults))
        wrong: list[str] = []
        points = 0
        for fault, result, play in zip(faults, results, plays, strict=True):
            crashes = self.crashes(durability)
            crashes.check(play, stride=7 if ALL else 13)
            points += crashes.points
            wrong += [f"{fault}: {what}" for what in [*result["wrong"], *crashes.wrong]]
        self.report(f"{len(faults)} failed syncs, {points} points")
        self.nothing_wrong(wrong)

    def test_power_loss_after_a_failed_sync(self) -> None:
        """The kernel takes for written what a failed sync did not write. What is promised after that is kept."""
        self.failed_syncs("process")

    def test_power_loss_after_a_failed_sync_of_a_commit(self) -> None:
        self.failed_syncs("power")
