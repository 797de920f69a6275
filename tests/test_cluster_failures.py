"""A cluster of three real nodes that fail one after the other, and come back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from itertools import permutations
from typing import Any

from tests.cluster_support import (
    OPERATION_TIMEOUT,
    PATIENCE,
    ClusterCase,
    LabNode,
    at_once,
    eventually,
    in_step,
    outcome,
    quorate,
    read,
    runs,
)
from tests.lab import terminate
from tests.needs import needs_corosync, needs_fuse

PROMPT = 1.5
"""Seconds that a read may take on a busy machine; without waiting for the cluster it takes a thousandth."""


def wipe(node: LabNode) -> None:
    """Delete the node's database, with all that lies beside it."""
    for path in node.database.parent.iterdir():
        path.unlink()


def store(node: LabNode, content: dict[str, bytes]) -> None:
    """Put files into the place of the node's database; its daemon does not run."""
    wipe(node)
    for name, data in content.items():
        (node.database.parent / name).write_bytes(data)


def stored(node: LabNode) -> dict[str, bytes]:
    """The files of the node's database; its daemon does not run."""
    return {path.name: path.read_bytes() for path in node.database.parent.iterdir()}


@needs_corosync()
@needs_fuse()
class DaemonTests(ClusterCase):
    def changes(self, node: LabNode, word: str) -> None:
        """Create, replace, rename and delete, below C{failures}, on C{node}."""
        top = node.mount / "failures"
        top.mkdir(exist_ok=True)
        for number in range(20):
            (top / f"{word}-{number}").write_text(word * 100)
        for number in range(5):
            (top / f"{word}-{number}").unlink()
        for number in range(5, 10):
            os.rename(top / f"{word}-{number}", top / f"{word}-renamed-{number}")
        (top / "common").write_text(word)
        (top / f"{word}-directory").mkdir()
        for path in top.glob("*-directory"):
            if path.name != f"{word}-directory":
                path.rmdir()

    def test_killed_and_stopped(self) -> None:
        """One killed with -9, then one stopped, and both together, catch up after changes and deletions."""
        self.changes(self.node(1), "before")
        in_step(self.nodes)
        self.node(3).kill_pvecfs()
        self.changes(self.node(1), "killed")
        self.start(3)
        self.settled()
        self.assertEqual(read(self.node(3), "failures/common"), b"killed")
        began = time.monotonic()
        self.assertEqual(self.node(2).stop_pvecfs(), 0)
        self.assertLess(time.monotonic() - began, 5)
        self.changes(self.node(3), "stopped")
        self.start(2)
        self.settled()
        self.assertEqual(read(self.node(2), "failures/common"), b"stopped")
        self.assertFalse((self.node(2).mount / "failures/killed-directory").exists())

    def test_corosync_killed(self) -> None:
        """Without corosync a node reads, and refuses changes; with it again, it is in step."""
        node = self.node(2)
        self.changes(self.node(1), "first")
        in_step(self.nodes)
        node.kill_corosync()
        eventually(lambda: not quorate(node), 10, "no quorum")
        self.assertEqual(outcome(lambda: (node.mount / "failures/x").write_text("x")), "EACCES")
        self.assertEqual(read(node, "failures/common"), b"first")
        self.changes(self.node(3), "second")
        node.start_corosync()
        self.lab.wait_quorate(PATIENCE)
        self.settled()
        self.assertEqual(read(node, "failures/common"), b"second")

    def test_restarts_in_each_order(self) -> None:
        """All three stopped one after the other, with a change after each; started in each order: the newest wins."""
        for round_number, order in enumerate(permutations((1, 2, 3))):
            for stopping in (1, 2, 3):
                place = self.node(3).mount / "newest"
                place.write_text(f"round {round_number}, before {stopping}")
                eventually(
                    lambda: read(self.node(3), "newest") == read(self.node(stopping), "newest"),  # noqa: B023
                    PATIENCE,
                    "the change",
                )
                self.assertEqual(self.node(stopping).stop_pvecfs(), 0)
            for number in order:
                self.start(number)
            in_step(self.nodes)
            for node in self.nodes:
                self.assertEqual(read(node, "newest"), f"round {round_number}, before 3".encode(), f"{order}")
        self.verified()

    def test_empty_database(self) -> None:
        """A node that lost its database gets all from the others."""
        self.changes(self.node(1), "kept")
        in_step(self.nodes)
        self.node(1).stop_pvecfs()
        wipe(self.node(1))
        self.start(1)
        tree = self.settled()
        entry = tree.lookup(b"failures/common")
        assert entry is not None
        self.assertEqual(entry.data, b"kept")

    def test_older_database_with_changes_of_its_own(self) -> None:
        """What a node wrote on its own, in fewer changes than the others made, is gone when it joins them."""
        self.diverge(own=3, others=30)
        self.settled()
        for node in self.nodes:
            self.assertIsNone(read(node, "own-0"))
            self.assertEqual(read(node, "others-29"), b"others")
            self.assertEqual(read(node, "both"), b"others")

    def test_newer_database_with_changes_of_its_own(self) -> None:
        """The highest version leads: who wrote more on his own, has his way everywhere."""
        self.diverge(own=30, others=3)
        self.settled()
        for node in self.nodes:
            self.assertIsNone(read(node, "others-0"))
            self.assertEqual(read(node, "own-29"), b"own")
            self.assertEqual(read(node, "both"), b"own")

    def diverge(self, own: int, others: int) -> None:
        """Let node 3 write without the others, which write without it; then start it among them."""
        node = self.node(3)
        for name in [*(f"own-{n}" for n in range(30)), *(f"others-{n}" for n in range(30)), "both"]:
            (self.node(1).mount / name).unlink(missing_ok=True)
        in_step(self.nodes)
        node.stop_pvecfs()
        node.start_pvecfs([*self.options, "--local"], wait=PATIENCE)
        for number in range(own):
            (node.mount / f"own-{number}").write_text("own")
        (node.mount / "both").write_text("own")
        node.stop_pvecfs()
        for number in range(others):
            (self.node(1).mount / f"others-{number}").write_text("others")
        (self.node(1).mount / "both").write_text("others")
        self.start(3)

    def test_a_database_of_long_ago(self) -> None:
        """A node restored from an old copy is brought up to date, deletions included."""
        node = self.node(2)
        self.changes(self.node(1), "old")
        in_step(self.nodes)
        node.stop_pvecfs()
        copy = stored(node)
        self.start(2)
        in_step(self.nodes)
        self.changes(self.node(2), "new")
        in_step(self.nodes)
        shutil.rmtree(self.node(3).mount / "failures/new-directory")
        in_step(self.nodes)
        node.kill_pvecfs()
        store(node, copy)
        self.start(2)
        self.settled()
        self.assertEqual(read(node, "failures/common"), b"new")
        self.assertFalse((node.mount / "failures/old-directory").exists())


@needs_corosync()
@needs_fuse()
class NetworkTests(ClusterCase):
    def modes(self, node: LabNode, *paths: str) -> list[str]:
        return [oct(os.lstat(node.mount / path).st_mode & 0o7777) for path in paths]

    def test_cut_off(self) -> None:
        """A node cut off is read-only at once when quorum is lost; the majority goes on; all meet again."""
        node, top = self.node(3), self.node(1).mount
        (top / "priv").mkdir(exist_ok=True)
        (top / "priv/secret").write_text("secret")
        (top / "file").write_text("file")
        in_step(self.nodes)
        paths = ("local", "lxc", "priv", "priv/secret", "file", "step", ".")
        self.assertEqual(self.modes(node, *paths), ["0o755", "0o755", "0o700", "0o600", "0o640", "0o755", "0o755"])
        node.cut()
        eventually(lambda: not quorate(node), 20, "no quorum")
        self.assertEqual(self.modes(node, *paths), ["0o555", "0o555", "0o500", "0o400", "0o440", "0o555", "0o755"])
        refused = {
            "write": lambda: (node.mount / "file").write_text("changed"),
            "create": lambda: (node.mount / "new").touch(),
            "mkdir": lambda: (node.mount / "directory").mkdir(),
            "unlink": lambda: (node.mount / "file").unlink(),
            "rename": lambda: os.rename(node.mount / "file", node.mount / "renamed"),
            "utime": lambda: os.utime(node.mount / "file", (1, 1)),
            "truncate": lambda: os.truncate(node.mount / "file", 0),
        }
        self.assertEqual(
            {name: outcome(operation) for name, operation in refused.items()}, dict.fromkeys(refused, "EACCES")
        )
        self.assertEqual(outcome(lambda: os.chmod(node.mount / "file", 0o640)), "ok")
        self.assertEqual(read(node, "file"), b"file")
        for number in range(10):
            (self.node(1 + number % 2).mount / f"majority-{number}").write_text("majority")
        (top / "file").unlink()
        in_step(self.nodes[:2])
        self.assertIsNone(read(node, "majority-9"))
        node.heal()
        self.lab.wait_quorate(PATIENCE)
        self.settled()
        self.assertEqual(read(node, "majority-9"), b"majority")
        self.assertIsNone(read(node, "file"))
        self.assertEqual(self.modes(node, "local", "priv"), ["0o755", "0o700"])

    def test_all_cut_off(self) -> None:
        """Without any majority nobody writes; then all go on."""
        self.lab.partition(1, 2, 3)
        for node in self.nodes:
            eventually(lambda node=node: not quorate(node), 20, "no quorum")  # type: ignore[misc]
            self.assertEqual(outcome(lambda node=node: (node.mount / "alone").touch()), "EACCES")  # type: ignore[misc]
        self.lab.heal()
        self.lab.wait_quorate(PATIENCE)
        tree = self.settled()
        self.assertIsNone(tree.lookup(b"alone"))

    def test_writing_while_cut_off(self) -> None:
        """What is under way on a node while its cable is pulled ends within the deadline, with what it says true."""
        node = self.node(2)
        directory = self.node(1).mount / "cutting"
        directory.mkdir(exist_ok=True)
        in_step(self.nodes)
        results: list[tuple[str, float, str]] = []
        cutting = threading.Event()

        def write() -> None:
            """Until it was refused ten times."""
            until = time.monotonic() + PATIENCE
            number = refused = 0
            while refused < 10:
                number += 1
                began = time.monotonic()
                self.assertLess(began, until, results[-10:])
                result = outcome(lambda: (node.mount / f"cutting/{number}").touch())  # noqa: B023
                results.append((f"cutting/{number}", time.monotonic() - began, result))
                refused += result == "EACCES"
                if result == "ok" and not cutting.is_set():
                    acknowledged.append(f"cutting/{number}")

        def cut() -> None:
            eventually(lambda: len(acknowledged) > 50, 20, "some files")
            cutting.set()
            node.cut()

        acknowledged: list[str] = []
        at_once([write, cut], 2 * PATIENCE)
        self.assertLess(max(seconds for _, seconds, _ in results), OPERATION_TIMEOUT + 2)
        node.heal()
        self.lab.wait_quorate(PATIENCE)
        self.settled()
        for path in acknowledged:
            self.assertIsNotNone(read(node, path), path)


@needs_corosync()
@needs_fuse()
class StalledTests(ClusterCase):
    def timed(self, operation: object) -> float:
        assert callable(operation)
        began = time.monotonic()
        operation()
        return time.monotonic() - began

    def test_corosync_stopped(self) -> None:
        """Reads answer at once, a change fails with EIO in time, and the node is in step when corosync goes on."""
        node = self.node(2)
        (node.mount / "stalled").write_text("before")
        in_step(self.nodes)
        node.freeze_corosync()
        self.assertLess(self.timed(lambda: self.assertEqual(read(node, "stalled"), b"before")), PROMPT)
        self.assertLess(self.timed(lambda: os.listdir(node.mount)), PROMPT)
        results: list[str] = []
        took = self.timed(lambda: results.append(outcome(lambda: os.mkdir(node.mount / "stalled-directory"))))
        self.assertIn(results, (["EIO"], ["EBUSY"]))
        self.assertLess(took, OPERATION_TIMEOUT + 1.5)
        self.assertLess(self.timed(lambda: read(node, "stalled")), PROMPT)
        if results == ["EIO"]:
            self.assertIn("stalled-directory", self.log(node))
        # The others miss the token, and go on without this node.
        eventually(lambda: outcome(lambda: (self.node(1).mount / "stalled").write_text("after")) == "ok", 30, "a write")
        node.thaw_corosync()
        self.lab.wait_quorate(PATIENCE)
        self.settled()
        self.assertEqual(read(node, "stalled"), b"after")

    def test_stop_while_corosync_is_stopped(self) -> None:
        """SIGTERM ends the daemon within 5 s."""
        node = self.node(3)
        node.freeze_corosync()
        assert node.pvecfs is not None
        began = time.monotonic()
        self.assertTrue(terminate(node.pvecfs, 15))
        self.assertLess(time.monotonic() - began, 5)
        self.assertEqual(node.pvecfs.returncode, 0)
        self.assertFalse(node.mounted())
        node.thaw_corosync()
        self.lab.wait_quorate(PATIENCE)
        self.start(3)
        self.settled()

    def test_health(self) -> None:
        """Each node is healthy, until a daemon is stopped (SIGSTOP) and a synchronisation begins, which waits for it:
        C{pvecfs-health} names it, and what waits. When it goes on, all are healthy again."""
        first, frozen, third = self.nodes

        def healthy() -> bool:
            return all(self.health(node)[0] == 0 for node in self.nodes)

        def told() -> Any:
            return json.loads(self.health(first, "--json")[1])

        def waits_for_frozen() -> bool:
            document = told()
            group = document["groups"][0]
            waits_for = [(member["name"], member["node_id"], member["pid"]) for member in group["waits_for"]]
            return waits_for == [expected] and any(
                problem.startswith("group pve_dcdb_v1 is not synchronised") and "waiting for n2 (node 2" in problem
                for problem in document["problems"]
            )

        def change_waits() -> bool:
            document = told()
            return all(document[what]["oldest_path"] == "waits" for what in ("changes", "requests"))

        def write() -> None:
            """Again and again: between two tries to synchronise, it is refused at once."""
            while not over.is_set():
                outcome(lambda: (first.mount / "waits").touch())
                over.wait(0.05)

        over = threading.Event()
        writer = threading.Thread(target=write, daemon=True)
        eventually(healthy, PATIENCE, "all healthy")
        self.assertEqual([member["name"] for member in told()["groups"][0]["members"]], ["n1", "n2", "n3"])
        assert frozen.pvecfs is not None
        expected = (frozen.name, frozen.number, frozen.pvecfs.pid)
        os.kill(frozen.pvecfs.pid, signal.SIGSTOP)
        try:
            third.kill_pvecfs()
            self.start(3)
            eventually(waits_for_frozen, PATIENCE, f"told that it waits for {frozen.name}")
            code, text = self.health(first)
            self.assertEqual((code, text.partition(": ")[0]), (1, "problem"), text)
            self.assertIn("pvecfs_healthy 0\n", self.health(first, "--metrics")[1])
            writer.start()
            eventually(change_waits, PATIENCE, "told of the change that waits")
        finally:
            over.set()
            os.kill(frozen.pvecfs.pid, signal.SIGCONT)
        writer.join(PATIENCE)
        self.settled()
        eventually(healthy, PATIENCE, "all healthy again")
        self.assertGreater(told()["groups"][0]["synchronisations"], 1)

    def test_cut_off_health(self) -> None:
        """Without quorum a node is not healthy; those that have it are, and miss it."""
        self.node(3).cut()
        eventually(lambda: self.health(self.node(3))[1].startswith("problem: no quorum"), 30, "no quorum told")
        eventually(
            lambda: json.loads(self.health(self.node(1), "--json")[1])["groups"][0]["absent"] == ["n3"], 30, "n3"
        )
        eventually(lambda: self.health(self.node(1))[0] == 0, PATIENCE, "healthy without it")
        self.node(3).heal()
        self.lab.wait_quorate(PATIENCE)
        self.settled()

    def test_daemon_stopped(self) -> None:
        """While a daemon is stopped (SIGSTOP) the others go on; it catches up when it goes on."""
        node = self.node(1)
        assert node.pvecfs is not None
        os.kill(node.pvecfs.pid, 19)
        try:
            for number in range(20):
                (self.node(2).mount / f"while-{number}").write_text("stopped")
                other = self.node(3).mount / f"while-{number}"
                eventually(lambda: outcome(other.unlink) == "ok", 10, "deleted")  # noqa: B023
        finally:
            os.kill(node.pvecfs.pid, 18)
        tree = self.settled()
        self.assertTrue(runs(node.pvecfs))
        self.assertIsNone(tree.lookup(b"while-0"))
