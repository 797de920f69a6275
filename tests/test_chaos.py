"""Chaos on real clusters, and the judge of its records."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import gettempdir

from twisted.trial.unittest import SynchronousTestCase

from tests import chaos
from tests.chaos_client import parsed, value
from tests.chaos_history import LATE, Operation, Window, judge, load, order
from tests.needs import needs_corosync, needs_fuse

MINUTES = float(os.environ.get("PVECFS_CHAOS_MINUTES", "2"))
"""Of faults in all; the preparations and the judgement come on top."""

A, B = "nodes/n1/lxc/1.conf", "nodes/n2/lxc/1.conf"


def guest(op: str, begin: float, end: float, *paths: str, result: str = "ok", doubtful: bool = False) -> Operation:
    return Operation("c", "n1", op, [1, *paths], begin, end, result, doubtful)


def own(op: str, begin: float, number: int = 0, result: str = "ok", doubtful: bool = False) -> Operation:
    return Operation("w", "n1", op, ["w-0", number], begin, begin + 0.5, result, doubtful)


def lock(op: str, client: str, begin: float, result: str = "ok") -> Operation:
    return Operation(client, "n1", op, ["l"], begin, begin + 0.1, result)


class JudgeTests(SynchronousTestCase):
    """The judge finds what is wrong, and nothing else."""

    def judged(self, *operations: Operation, files: dict[str, bytes] | None = None) -> list[str]:
        return judge(operations, files or {}, {}, (), lock_timeout=3.0, longest=10.0).violations

    def test_values(self) -> None:
        for number in range(20):
            content = value("writer", number)
            self.assertEqual(parsed(content), ("writer", number))
            self.assertIsNone(parsed(content[:-1]))
            self.assertIsNone(parsed(content + b"x"))
        self.assertIsNone(parsed(b""))

    def test_guests_in_order(self) -> None:
        self.assertEqual(
            order([guest("create", 0, 1, A), guest("move", 2, 3, A, B), guest("destroy", 4, 5, B)], None), ""
        )
        twice = [guest("create", 0, 1, A), guest("move", 2, 3, A, B), guest("move", 2, 4, A, B)]
        self.assertEqual(order(twice, B), "")
        # At once, so in any order.
        self.assertEqual(order([guest("create", 0, 9, B), guest("create", 1, 2, A), guest("destroy", 3, 4, A)], B), "")

    def test_guest_created_twice(self) -> None:
        self.assertIn("cannot", order([guest("create", 0, 1, A), guest("create", 2, 3, B)], B))
        self.assertIn("cannot", order([guest("create", 0, 2, A), guest("create", 1, 3, B)], B))

    def test_guest_moved_twice(self) -> None:
        moves = [guest("move", 2, 4, A, B), guest("move", 2, 4, A, "nodes/n3/lxc/1.conf")]
        self.assertIn("cannot", order([guest("create", 0, 1, A), *moves], B))

    def test_guest_lost(self) -> None:
        self.assertIn("in the end", order([guest("create", 0, 1, A)], None))
        self.assertEqual(order([guest("create", 0, 1, A, doubtful=True)], None), "")
        self.assertEqual(order([guest("create", 0, 1, A, doubtful=True)], A), "")

    def test_unknown_outcomes(self) -> None:
        unknown = guest("destroy", 2, 3, A, result="EIO")
        again = guest("create", 4, 5, B)
        self.assertEqual(order([guest("create", 0, 1, A), unknown], A), "")
        self.assertEqual(order([guest("create", 0, 1, A), unknown, again], B), "")
        late = guest("create", 3 + LATE + 2, 3 + LATE + 3, A)
        moved = guest("move", 3 + LATE + 0.5, 3 + LATE + 1, A, A)
        self.assertIn("cannot", order([guest("create", 0, 1, A), unknown, moved, late], A))

    def test_many_unknown_outcomes(self) -> None:
        """Are judged in no time."""
        history = [guest("create", 0, 1, A)]
        history += [guest("move", 2 + n / 100, 3, *pair, result="EIO") for n in range(60) for pair in ((A, B), (B, A))]
        history += [guest("move", 4, 5, B, A), guest("move", 6, 7, B, A)]
        self.assertEqual(order(history, A), "")

    def test_own_files(self) -> None:
        self.assertEqual(self.judged(own("put", 0, 1), own("put", 1, 2), files={"w-0": value("w", 2)}), [])
        self.assertEqual(len(self.judged(own("put", 0, 1), own("put", 1, 2), files={"w-0": value("w", 1)})), 1)
        self.assertEqual(len(self.judged(own("put", 0, 1))), 1)
        self.assertEqual(self.judged(own("put", 0, 1, "EIO")), [])
        self.assertEqual(self.judged(own("put", 0, 1, doubtful=True)), [])
        self.assertEqual(self.judged(own("put", 0, 1), own("delete", 1)), [])
        self.assertEqual(self.judged(own("overwrite", 0, 1, "EIO"), files={"w-0": b""}), [])
        self.assertEqual(len(self.judged(own("overwrite", 0, 1), files={"w-0": b""})), 1)
        self.assertEqual(len(self.judged(own("put", 0, 1), files={"w-0": value("w", 1)[:-1]})), 2)

    def test_reads(self) -> None:
        files = {"w-0": value("w", 2)}
        wrote = (own("put", 0, 1), own("put", 1, 2))
        self.assertEqual(self.judged(*wrote, own("read", 2, result="w 2"), files=files), [])
        self.assertEqual(len(self.judged(*wrote, own("read", 2, result="w 1"), files=files)), 1)
        self.assertEqual(len(self.judged(*wrote, own("read", 2, result="none"), files=files)), 1)
        self.assertEqual(len(self.judged(*wrote, own("read", 2, result="TORN"), files=files)), 1)
        self.assertEqual(self.judged(*wrote, own("read", 2, result="ENOTCONN"), files=files), [])

    def test_locks(self) -> None:
        taken, given = lock("lock", "a", 0), lock("unlock", "a", 1)
        self.assertEqual(self.judged(taken, given, lock("lock", "b", 2)), [])
        self.assertEqual(len(self.judged(taken, lock("lock", "b", 2))), 1)
        self.assertEqual(len(self.judged(taken, lock("lock", "b", 0.5), given)), 1)
        self.assertEqual(self.judged(taken, lock("lock", "b", 3)), [])
        self.assertEqual(self.judged(taken, lock("lock", "b", 2, "EEXIST")), [])
        self.assertEqual(len(self.judged(taken, lock("unlock", "a", 2, "GONE"))), 1)
        self.assertEqual(self.judged(taken, lock("unlock", "a", 4, "GONE")), [])

    def test_unlock_that_comes_late(self) -> None:
        """A holder that was frozen removes, by name, the lock of the next one, which does the same to the one after."""
        late = Operation("a", "n1", "unlock", ["l"], 1.0, 4.5, "ok")
        chain = [
            lock("lock", "a", 0),
            late,
            lock("lock", "b", 4),
            lock("lock", "c", 4.6),
            lock("unlock", "b", 5),
            lock("lock", "d", 5.2),
            lock("unlock", "c", 6),
            lock("unlock", "d", 7, "GONE"),
        ]
        self.assertEqual(self.judged(*chain), [])
        late.end = 2.9
        self.assertIn("a lock lost before its time", self.judged(*chain)[0])

    def test_times(self) -> None:
        slow = Operation("c", "n1", "ask", ["l"], 0, 12, "EACCES")
        for operation in slow, Operation("c", "n1", "ask", ["l"], 0):
            self.assertEqual(len(self.judged(operation)), 1)
        frozen = [Window("n1", "freeze daemon", 1, 5)]
        self.assertEqual(judge([slow], {}, {}, frozen, 3.0, 10.0).violations, [])

    def test_records(self) -> None:
        path = Path(self.mktemp())
        path.write_text(
            '{"client": "c", "node": "n1", "kind": "writer"}\n'
            '{"id": 1, "begin": 1.0, "op": "put", "args": ["k", 1]}\n'
            '{"id": 1, "end": 2.0, "result": "ok"}\n'
            '{"id": 2, "begin": 5.0, "op": "put", "args": ["k", 2]}\n'
            '{"id": 2, "en'
        )
        first, second = load([path], [Window("n1", "cut", 4, 6)])
        self.assertEqual((first.result, first.end, first.certain), ("ok", 2.0, True))
        self.assertEqual((second.result, second.doubtful, second.possible), ("lost", True, True))


@needs_corosync()
@needs_fuse()
class ChaosTests(SynchronousTestCase):
    """A few rounds of faults with a seed of their own each time; a failing seed is shown."""

    timeout = 60 * MINUTES + 600

    def chaos(self, nodes: int, minutes: float) -> None:
        seed = os.environ.get("PVECFS_CHAOS_SEED", str(int.from_bytes(os.urandom(4), "little")))
        keep = Path(gettempdir()) / f"pvecfs-chaos-{seed}-{nodes}"
        report = chaos.run(minutes, nodes, seed, keep=keep)
        self.assertEqual(report.violations, [], f"seed {seed}, {nodes} nodes; records in {keep}")
        self.assertGreater(report.figures["acknowledged changes"], 0)

    def test_ten_writers(self) -> None:
        """Ten processes write while nodes come and go: nothing acknowledged is lost, the trees are identical."""
        seconds = float(os.environ.get("PVECFS_WRITERS_SECONDS", "20"))
        seed = str(int.from_bytes(os.urandom(4), "little"))
        kinds = {"kill daemon": 2, "stop daemon": 2, "cut": 1, "kill corosync": 1}
        clients = [("writer",) * count for count in (4, 3, 3)]
        keep = Path(gettempdir()) / f"pvecfs-writers-{seed}"
        report = chaos.Chaos(3, seed, seconds, kinds=kinds, clients=clients).run(keep)
        self.assertEqual(report.violations, [], f"seed {seed}; records in {keep}")

    def test_three_nodes(self) -> None:
        self.chaos(3, MINUTES * 0.6)

    def test_five_nodes(self) -> None:
        self.chaos(5, MINUTES * 0.4)
