"""Some thousands of simulated clusters, and what the simulator itself promises (docs/reliability-simulator.md)."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from pvecfs.interfaces import IGroupConnection, IGroupListener, IProposer, IStore
from pvecfs.replica.member import Member
from tests import simulate
from tests.mutations.catalogue import MUTATIONS
from tests.simulator.corosync import Network, SimulatedGroupConnection
from tests.simulator.shrink import failure, shrink
from tests.simulator.simulation import run
from tests.simulator.story import Event, tell

SEEDS = int(os.environ.get("PVECFS_SEEDS", "4000"))
SECONDS = 60.0


class SeedTests(SynchronousTestCase):
    def test_seeds(self) -> None:
        """Thousands of stories; on a slow machine, those that a minute is enough for, at least a thousand."""
        began = time.monotonic()
        for seed in range(SEEDS):
            violated = failure(tell(seed))
            if violated:
                self.fail(f"seed {seed}: {violated}\npython -m tests.simulate --seed {seed}")
            if seed >= 1000 and time.monotonic() - began > SECONDS:
                break

    test_seeds.timeout = 600  # type: ignore[attr-defined]  # trial reads this attribute


class RepetitionTests(SynchronousTestCase):
    def test_a_seed_repeats_exactly(self) -> None:
        for seed in range(20):
            first: list[str] = []
            second: list[str] = []
            run(tell(seed), first)
            run(tell(seed), second)
            self.assertEqual(first, second)
            self.assertGreater(len(first), 60)

    def test_a_seed_repeats_in_another_process(self) -> None:
        command = (sys.executable, "-m", "tests.simulate", "--seeds", "0-4", "--story")
        root = Path(__file__).parent.parent
        outputs = {
            subprocess.run(command, cwd=root, env={**os.environ, "PYTHONHASHSEED": salt}, capture_output=True).stdout
            for salt in ("1", "2")
        }
        self.assertEqual(len(outputs), 1)
        self.assertIn(b"nothing is violated", outputs.pop())

    def test_seeds_differ(self) -> None:
        self.assertEqual(len({tell(seed).events for seed in range(100)}), 100)

    def test_any_part_is_a_story(self) -> None:
        story = tell(5)
        for start in range(0, 60, 7):
            run(replace(story, events=story.events[start:]))


class ExtendedVirtualSynchronyTests(SynchronousTestCase):
    """The simulated corosync keeps its promises."""

    def setUp(self) -> None:
        self.network = Network((1, 1, 1))
        self.network.reform(safe=True)
        self.logs: dict[int, list[object]] = {}
        self.connections = {}
        for node_id in (1, 2, 3):
            listener = Listener()
            self.logs[node_id] = listener.log
            connection = SimulatedGroupConnection(self.network.nodes[node_id], "g", Member(node_id, node_id))
            connection.open(listener)
            self.connections[node_id] = connection
        self.flow()
        for log in self.logs.values():
            log.clear()

    def flow(self) -> None:
        for corosync in self.network.nodes.values():
            corosync.order(100)
        for node_id, corosync in self.network.nodes.items():
            corosync.receive(100)
            connection = self.connections[node_id]
            while connection.queue:
                connection.tell_next()

    def split(self, *components: int, safe: bool) -> None:
        self.network.component = dict(enumerate(components, 1))
        self.network.reform(safe)

    def test_total_order(self) -> None:
        for node_id, connection in self.connections.items():
            connection.multicast(b"from %d" % node_id)
        self.flow()
        self.assertEqual(len(self.logs[1]), 3)
        self.assertEqual(self.logs[1], self.logs[2])
        self.assertEqual(self.logs[1], self.logs[3])

    def test_old_messages_come_before_the_change(self) -> None:
        self.connections[1].multicast(b"x")
        self.network.nodes[1].order(1)
        self.split(0, 0, 1, safe=False)
        self.flow()
        here, there = Member(1, 1), Member(3, 3)
        changed = ((here, Member(2, 2)), (there,), ())
        self.assertEqual(self.logs[1], [(here, b"x"), changed])
        self.assertEqual(self.logs[2], [(here, b"x"), changed])
        self.assertEqual(self.logs[3], [((there,), (here, Member(2, 2)), ())])

    def test_a_message_is_dropped_with_its_sender(self) -> None:
        self.connections[3].multicast(b"x")
        self.network.nodes[3].order(1)
        self.split(0, 0, 1, safe=False)
        self.flow()
        self.assertEqual(self.logs[3][0], (Member(3, 3), b"x"))
        self.assertEqual(len(self.logs[1]), 1)

    def test_a_majority_gets_all_where_it_is_safe(self) -> None:
        self.connections[3].multicast(b"x")
        self.network.nodes[3].order(1)
        self.split(0, 0, 1, safe=True)
        self.flow()
        self.assertEqual(self.logs[1][0], (Member(3, 3), b"x"))

    def test_what_has_no_place_yet_goes_to_the_next_ring(self) -> None:
        self.connections[3].multicast(b"x")
        self.split(0, 0, 1, safe=True)
        self.split(0, 0, 0, safe=True)
        self.flow()
        self.assertEqual(self.logs[1][-1], (Member(3, 3), b"x"))
        self.assertEqual(self.logs[1][-2], (tuple(Member(n, n) for n in (1, 2, 3)), (), (Member(3, 3),)))
        self.assertEqual([nodes for _, nodes in self.network.nodes[3].quorum], [(1, 2, 3), (3,), (1, 2, 3)])

    def test_interfaces(self) -> None:
        verifyObject(IGroupConnection, self.connections[1])
        verifyObject(IGroupListener, Listener())
        simulation = run(tell(1))
        verifyObject(IStore, simulation.nodes[1].store)
        verifyObject(IProposer, simulation.nodes[1].proposer)


@implementer(IGroupListener)
class Listener:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.log: list[object] = []

    def joined_as(self, member: object) -> None:
        pass

    def membership_changed(self, members: Sequence[object], left: Sequence[object], joined: Sequence[object]) -> None:
        self.log.append((members, left, joined))

    def message_delivered(self, sender: object, message: bytes) -> None:
        self.log.append((sender, message))

    def connection_lost(self, reason: Exception) -> None:
        self.log.append(reason)


class CommandTests(SynchronousTestCase):
    def simulate(self, *arguments: str) -> tuple[int, str]:
        output = io.StringIO()
        with patch("sys.argv", ["simulate", *arguments]), redirect_stdout(output), redirect_stderr(output):
            return simulate.main(), output.getvalue()

    def test_nothing_wrong(self) -> None:
        code, output = self.simulate("--seeds", "10-19")
        self.assertEqual(code, 0)
        self.assertIn("10 seeds of 60 steps", output)

    def test_a_failing_seed_is_shown_and_shrunk(self) -> None:
        mutation = next(each for each in MUTATIONS if each.name == "the sync queue is forgotten")
        with mutation.applied():
            seed = next(seed for seed in range(100) if failure(tell(seed)))
            code, output = self.simulate("--seeds", f"{seed}-{seed}")
            story = tell(seed)
            shrunk = shrink(story)
            self.assertTrue(failure(shrunk))
        self.assertEqual(code, 1)
        self.assertIn(f"seed {seed} fails", output)
        self.assertIn("shrunk to", output)
        self.assertLess(len(shrunk.events), len(story.events) // 2)
        self.assertEqual(failure(shrunk), "")

    def test_one_story(self) -> None:
        code, output = self.simulate("--seed", "3", "--story")
        self.assertEqual(code, 0)
        self.assertIn("nothing is violated", output)

    def test_event_text(self) -> None:
        self.assertEqual(str(Event("kill", 2, (), 1, 7)), "kill n2 pace 1 luck 7")
