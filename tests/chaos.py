"""Chaos: real clusters with clients at work, and faults of all kinds: C{python -m tests.chaos --minutes N}.

Rounds of faults, each on a minority of the nodes; between two rounds everything heals and all nodes must be in step
again. In the end the clients' records are judged (L{tests.chaos_history}): nothing acknowledged is lost, locks are
exclusive, VMIDs unique, all databases equal. A seed fixes the faults, not the machine's timing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from tests.chaos_history import Verdict, Window, judge, load
from tests.cluster_support import (
    LOCK_TIMEOUT,
    OPERATION_TIMEOUT,
    PATIENCE,
    VERIFIED,
    alarms,
    at_once,
    equal_trees,
    eventually,
    in_step,
    log_of,
    quorate,
    runs,
    start,
    stored_tree,
)
from tests.lab import Lab, LabError, LabNode, process_state, terminate

MARGIN = 5.0
"""Seconds that an operation may take beyond its timeout: the machine is busy."""

LONGEST_STOP = 5.0
"""Seconds that an orderly stop may take."""

STATE_SIZE = "128m"
"""Of the file system that is filled."""

EXPECTED_WHEN_FULL = "the database refuses changes, this node is read-only"
"""The one critical line that a fault is allowed to cause."""

CLIENTS = ("writer", "writer", "locker", "guests")
"""On each node."""


@dataclass(frozen=True)
class Fault:
    """@ivar kind: one of L{KINDS}. @ivar node: number. @ivar after: seconds from the round's start.
    @ivar seconds: how long it lasts."""

    kind: str
    node: int
    after: float
    seconds: float


KINDS = {
    "kill daemon": 3,
    "stop daemon": 2,
    "freeze daemon": 2,
    "kill corosync": 2,
    "stop corosync": 1,
    "freeze corosync": 2,
    "cut": 3,
    "fill disk": 2,
}
"""Faults of a node, with their weights."""


def rounds(seed: str, nodes: int, kinds: Mapping[str, int]) -> Iterator[list[Fault]]:
    """The faults of one round after the other, without end.

    @param kinds: of L{KINDS}, with weights. With all of them, now and then all nodes are cut off at once.
    """
    draw = random.Random(seed)
    while True:
        if draw.random() < 0.08 and kinds is KINDS:
            seconds = draw.uniform(3, 8)
            yield [Fault("cut all", number, 0.0, seconds) for number in range(1, nodes + 1)]
            continue
        count = draw.randint(1, (nodes - 1) // 2)
        yield [
            Fault(
                draw.choices(list(kinds), list(kinds.values()))[0],
                number,
                draw.uniform(0.5, 3.0),
                draw.choice((0.2, 1.0, 3.0, 8.0)) * draw.uniform(0.5, 1.5),
            )
            for number in draw.sample(range(1, nodes + 1), count)
        ]


@dataclass
class Report:
    """@ivar violations: what must not happen, one line each; empty is good."""

    seed: str
    nodes: int
    violations: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    figures: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "nodes": self.nodes,
            "violations": self.violations,
            "faults": dict(sorted(self.faults.items())),
            **self.figures,
        }


class Chaos:
    """One run.

    @param say: where to write what happens.
    @param kinds: the faults, as L{KINDS}.
    @param clients: their kinds, for each node.
    """

    def __init__(
        self,
        nodes: int,
        seed: str,
        seconds: float,
        say: TextIO | None = None,
        kinds: Mapping[str, int] = KINDS,
        clients: Sequence[Sequence[str]] | None = None,
    ) -> None:
        self.report = Report(seed, nodes)
        self.seconds = seconds
        self.say = say
        self.kinds = kinds
        self.kinds_of_clients = clients or [CLIENTS] * nodes
        self.windows: list[Window] = []
        self.problems: list[str] = []
        self.recoveries: list[float] = []
        self.lock = threading.Lock()
        self.began = time.monotonic()
        self.lab = Lab(nodes, state_size=STATE_SIZE)
        self.clients: list[subprocess.Popen[Any]] = []

    def tell(self, text: str) -> None:
        if self.say is not None:
            self.say.write(f"{time.monotonic() - self.began:8.2f} {text}\n")
            self.say.flush()

    def run(self, keep: Path | None = None) -> Report:
        """@param keep: directory to which records and logs are copied when something is wrong."""
        self.began = time.monotonic()
        with self.lab:
            try:
                self._run()
            except LabError as error:
                self.problems.append(f"the cluster does not recover: {error}")
            finally:
                self.report.violations[:0] = self.problems
                if self.report.violations and keep is not None:
                    self._keep(keep)
        return self.report

    def _keep(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        for path in self.lab.directory.iterdir():
            shutil.copy(path, directory)
        (directory / "windows.json").write_text(json.dumps([vars(window) for window in self.windows], indent=1))
        (directory / "report.json").write_text(json.dumps(self.report.as_dict(), indent=1))

    def _run(self) -> None:
        lab, report = self.lab, self.report
        start(lab.nodes)
        in_step(lab.nodes)
        self._prepare()
        for node, kinds in zip(lab.nodes, self.kinds_of_clients, strict=True):
            for number, kind in enumerate(kinds):
                name = f"{kind}{number}-{node.name}"
                arguments = [kind, name, node.name, ",".join(lab.names), report.seed, str(LOCK_TIMEOUT)]
                record = lab.directory / f"{name}.history"
                self.clients.append(node.python(["-m", "tests.chaos_client", *arguments, str(record)]))
        end = time.monotonic() + self.seconds
        for faults in rounds(report.seed, lab.size, self.kinds):
            if time.monotonic() >= end:
                break
            at_once([lambda f=fault: self._inflict(f) for fault in faults], 4 * PATIENCE)  # type: ignore[misc]
            self._recover(faults)
            for client in self.clients:
                if client.poll() is not None:
                    self.problems.append(f"a client ended with {client.returncode}")
        self._end()

    def _prepare(self) -> None:
        top = self.lab.node(1).mount
        directories = [f"nodes/{name}/{kind}" for name in self.lab.names for kind in ("qemu-server", "lxc")]
        for path in ("chaos", "priv/lock", *directories):
            (top / path).mkdir(parents=True, exist_ok=True)
        in_step(self.lab.nodes)

    # Faults

    def _inflict(self, fault: Fault) -> None:
        node = self.lab.node(fault.node)
        time.sleep(fault.after)
        self.tell(f"{node.name}: {fault.kind} for {fault.seconds:.1f} s")
        begin = time.monotonic()
        with self.lock:
            self.report.faults[fault.kind] += 1
        undo = self._begin(node, fault.kind)
        time.sleep(fault.seconds)
        undo()
        if fault.kind == "freeze daemon":
            self._window(node, fault.kind, begin)
        elif fault.kind not in ("kill daemon", "stop daemon", "fill disk"):
            # Until it has heard of its loss of quorum, and is in step again: see _recover.
            with self.lock:
                self.windows.append(Window(node.name, fault.kind, begin, float("inf")))

    def _window(self, node: LabNode, kind: str, begin: float) -> None:
        with self.lock:
            self.windows.append(Window(node.name, kind, begin, time.monotonic()))

    def _begin(self, node: LabNode, kind: str) -> Callable[[], object]:
        """Do it. @return: what undoes it."""
        daemon = node.pvecfs
        assert daemon is not None
        if kind in ("cut", "cut all"):
            node.cut()
            return node.heal
        if kind == "kill daemon":
            node.kill_pvecfs()
            return lambda: start([node])
        if kind == "stop daemon":
            began = time.monotonic()
            ended = terminate(daemon, 30)
            took = time.monotonic() - began
            if not ended or took > LONGEST_STOP or daemon.returncode:
                self.problems.append(f"{node.name}: stop took {took:.1f} s, exit code {daemon.returncode}")
            return lambda: start([node])
        if kind == "freeze daemon":
            daemon.send_signal(signal.SIGSTOP)
            eventually(lambda: process_state(daemon) in ("T", "D"), 10, f"{node.name}: stopped")
            return lambda: daemon.send_signal(signal.SIGCONT)
        if kind == "kill corosync":
            node.kill_corosync()
            return node.start_corosync
        if kind == "stop corosync":
            node.stop_corosync()
            return node.start_corosync
        if kind == "freeze corosync":
            node.freeze_corosync()
            return node.thaw_corosync
        assert kind == "fill disk"
        filler = node.database.parent / "filler"
        fill(filler)
        return lambda: filler.unlink()

    def _recover(self, faults: Sequence[Fault]) -> None:
        """Everything is healed: wait until all nodes are in step."""
        began = time.monotonic()
        for node in self.lab.nodes:
            if not runs(node.pvecfs):
                code = node.pvecfs.returncode if node.pvecfs is not None else None
                self.problems.append(f"{node.name}: the daemon ended by itself with {code}")
                start([node])
            if not runs(node.corosync):
                self.tell(f"{node.name}: corosync ended by itself")
                node.start_corosync()
        self.lab.wait_quorate(PATIENCE)
        for node in self.lab.nodes:
            eventually(lambda node=node: quorate(node), PATIENCE, f"{node.name} may write")  # type: ignore[misc]
        in_step_while_busy(self.lab.nodes)
        now = time.monotonic()
        self.windows = [
            Window(each.node, each.kind, each.begin, now) if each.end == float("inf") else each for each in self.windows
        ]
        self.recoveries.append(now - began)
        self.tell(f"in step after {now - began:.1f} s ({', '.join(sorted({fault.kind for fault in faults}))})")

    # The end

    def _end(self) -> None:
        lab, report = self.lab, self.report
        self.tell("the end")
        for client in self.clients:
            client.terminate()
        for client in self.clients:
            try:
                if client.wait(OPERATION_TIMEOUT + 2 * MARGIN):
                    self.problems.append(f"a client ended with {client.returncode}")
            except subprocess.TimeoutExpired:
                self.problems.append("a client hangs")
        in_step(lab.nodes)
        counts = [log_of(node).count(VERIFIED) for node in lab.nodes]
        for node, count in zip(lab.nodes, counts, strict=True):
            eventually(lambda n=node, c=count: log_of(n).count(VERIFIED) >= c + 2, PATIENCE, "verification")  # type: ignore[misc]
        tree = equal_trees(lab.nodes)
        files: dict[str, bytes] = {}
        guests: dict[int, list[str]] = {}
        for entry in tree.entries():
            path = (tree.path_of(entry.inode) or b"").decode()
            if entry.is_directory:
                continue
            if path.startswith("chaos/"):
                files[path.removeprefix("chaos/")] = entry.data
            elif path.endswith(".conf") and path.startswith("nodes/"):
                guests.setdefault(int(Path(path).stem), []).append(path)
        for node, code in zip(lab.nodes, at_once([node.stop_pvecfs for node in lab.nodes]), strict=True):
            if code:
                self.problems.append(f"{node.name}: exit code {code} in the end")
        trees = {stored_tree(node.database).index() for node in lab.nodes}
        if len(trees) != 1:
            self.problems.append("the databases differ after the stop")
        for node in lab.nodes:
            lines = alarms(log_of(node))
            if report.faults["fill disk"]:
                lines = [line for line in lines if EXPECTED_WHEN_FULL not in line]
            self.problems += [f"{node.name}: log: {line}" for line in lines]
        self.tell("all are in step and stopped, judging the records")
        operations = load(lab.directory.glob("*.history"), self.windows)
        verdict: Verdict = judge(operations, files, guests, self.windows, LOCK_TIMEOUT, OPERATION_TIMEOUT + MARGIN)
        report.violations += verdict.violations
        report.figures = {
            "seconds": round(time.monotonic() - self.began, 1),
            "rounds of faults": len(self.recoveries),
            "longest recovery, seconds": round(max(self.recoveries, default=0.0), 1),
            "entries": len(tree),
            "tree version": tree.version,
            **verdict.figures,
        }


def fill(path: Path) -> None:
    """Fill the file system with the file C{path}."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


def in_step_while_busy(nodes: Sequence[LabNode], timeout: float = PATIENCE) -> None:
    """Wait until every node sees a fresh word of every other, while clients go on. @raise LabError: not in time."""
    word = f"{time.monotonic_ns()}"
    deadline = time.monotonic() + timeout

    def written(node: LabNode) -> bool:
        try:
            (node.mount / "step" / node.name).write_text(word)
        except OSError:
            return False
        return True

    def seen(node: LabNode, other: LabNode) -> bool:
        try:
            return (node.mount / "step" / other.name).read_text() == word
        except OSError:
            return False

    for node in nodes:
        eventually(lambda node=node: written(node), max(0.1, deadline - time.monotonic()), f"{node.name} writes")  # type: ignore[misc]
    for node in nodes:
        for other in nodes:
            eventually(
                lambda node=node, other=other: seen(node, other),  # type: ignore[misc]
                max(0.1, deadline - time.monotonic()),
                f"{node.name} sees what {other.name} writes",
            )


def run(minutes: float, nodes: int, seed: str, say: TextIO | None = None, keep: Path | None = None) -> Report:
    """A run of at least C{minutes}."""
    return Chaos(nodes, seed, minutes * 60, say).run(keep)


def main() -> int:
    parser = argparse.ArgumentParser(description="Real clusters under faults.")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--nodes", type=int, choices=(3, 5), help="[half of the time each]")
    parser.add_argument("--seed", default=str(random.randrange(1 << 32)))
    parser.add_argument("--json", type=Path, help="write the report here too")
    given = parser.parse_args()
    if os.geteuid() != 0:
        print("needs root, to run corosync in network namespaces")
        return 2
    reports = []
    sizes = [given.nodes] if given.nodes else [3, 5]
    for size in sizes:
        print(f"{size} nodes, seed {given.seed}")
        keep = Path(tempfile.gettempdir()) / f"pvecfs-chaos-{given.seed}-{size}"
        report = run(given.minutes / len(sizes), size, given.seed, sys.stdout, keep)
        reports.append(report)
        print(json.dumps(report.as_dict(), indent=1))
        if report.violations:
            print(f"{len(report.violations)} violations; records and logs are in {keep}")
    if given.json:
        given.json.write_text(json.dumps([report.as_dict() for report in reports], indent=1) + "\n")
    broken = sum(len(report.violations) for report in reports)
    print("nothing was lost" if not broken else f"FAILED: {broken} violations")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
