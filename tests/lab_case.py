"""What test cases on a laboratory share: the laboratory itself, and processes in it that speak JSON."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.lab import Lab, LabError, LabNode, eventually

Event = dict[str, Any]


class _Shared:
    """At most one laboratory at a time; the class of test cases that asks last has it."""

    owner: type | None = None
    lab: Lab | None = None

    @classmethod
    def lend(cls, owner: type, size: int) -> Lab:
        if cls.owner is not owner or cls.lab is None or cls.lab.size != size or not cls.lab.nodes:
            if cls.lab is not None:
                cls.lab.stop()
            cls.owner, cls.lab = owner, None
            lab = Lab(size)
            lab.start()
            cls.lab = lab
        return cls.lab


class LabCase(SynchronousTestCase):
    """A test case with C{self.lab}: shared by the tests of its class, healthy when each of them starts."""

    size = 3

    def setUp(self) -> None:
        self.lab = _Shared.lend(type(self), self.size)
        restore(self.lab)

    def node(self, number: int) -> LabNode:
        return self.lab.node(number)

    def peer(self, number: int, open_group: bool = True) -> Peer:
        """A started peer on node C{number}; opened, it is a member and has seen quorum."""
        peer = Peer(self.node(number))
        self.addCleanup(peer.kill)
        peer.wait("started")
        if open_group:
            peer.wait("quorum", lambda event: bool(event["quorate"]))
            peer.command("open")
            peer.wait("membership", lambda event: peer.member in event["members"])
        return peer

    def peers(self, *numbers: int) -> list[Peer]:
        """Peers on nodes C{numbers} that see each other."""
        peers = [self.peer(number) for number in numbers]
        members = [peer.member for peer in peers]
        for peer in peers:
            peer.wait_for_members(members)
        return peers


def restore(lab: Lab) -> None:
    """Undo what a test did to C{lab}: corosync runs everywhere, cables are in, all nodes see all."""
    lab.heal()
    for node in lab.nodes:
        if node.corosync is None or node.corosync.poll() is not None:
            node.start_corosync()
    lab.wait_quorate(30)


class Peer:
    """A process of C{tests.lab_peer} on C{node}. Events are kept; what was waited for is behind us."""

    def __init__(self, node: LabNode) -> None:
        self.node = node
        self.process = node.python(
            ["-m", "tests.lab_peer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.member = [node.number, self.process.pid]
        self.events: list[Event] = []
        self.log: list[str] = []
        self._seen = 0
        self._changed = threading.Condition()
        for target in (self._read, self._read_log):
            threading.Thread(target=target, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            with self._changed:
                self.events.append(json.loads(line))
                self._changed.notify_all()

    def _read_log(self) -> None:
        for line in self.process.stderr or ():
            self.log.append(line)

    def command(self, name: str, *arguments: object) -> Event:
        """Have a command carried out; @return: its "done" event, with the seconds that it took."""
        assert self.process.stdin is not None
        with self._changed:
            start = len(self.events)
        self.process.stdin.write(json.dumps([name, *arguments]) + "\n")
        self.process.stdin.flush()
        return self._find("done", lambda event: event["command"] == name, 10, start)[1]

    def wait(self, kind: str, condition: Callable[[Event], bool] = lambda event: True, timeout: float = 15) -> Event:
        """The next event of C{kind} that meets C{condition}, after those waited for before. @raise LabError: none."""
        position, event = self._find(kind, condition, timeout, self._seen)
        self._seen = position + 1
        return event

    def wait_for_members(self, members: Sequence[Sequence[int]]) -> None:
        """Wait until the last membership told is C{members}, which may be so already; what happened is behind us."""
        wanted = [list(member) for member in members]
        memberships: list[Event] = []

        def settled() -> bool:
            nonlocal memberships
            memberships = self.of_kind("membership")
            return bool(memberships) and memberships[-1]["members"] == wanted

        eventually(settled, 15, f"members {wanted} on {self.node.name}")
        self.mark()

    def _find(self, kind: str, condition: Callable[[Event], bool], timeout: float, start: int) -> tuple[int, Event]:
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                for position in range(start, len(self.events)):
                    event = self.events[position]
                    if event["event"] == kind and condition(event):
                        return position, event
                start = len(self.events)
                remaining = deadline - time.monotonic()
                if remaining <= 0 or not self._changed.wait(remaining):
                    story = [str(event)[:200] for event in self.events[-30:]] + self.log[-10:]
                    raise LabError(f"{self.node.name}: no {kind} within {timeout} s; last:\n" + "\n".join(story))

    def of_kind(self, *kinds: str) -> list[Event]:
        """All events of C{kinds} so far."""
        with self._changed:
            return [event for event in self.events if event["event"] in kinds]

    def mark(self) -> None:
        """What happened so far is behind us."""
        with self._changed:
            self._seen = len(self.events)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                try:
                    stream.close()
                except (OSError, ValueError):
                    continue


def texts(peer: Peer) -> Sequence[tuple[int, str]]:
    """The messages that C{peer} was told, as (node id of the sender, text)."""
    return [(event["sender"][0], event["text"]) for event in peer.of_kind("message")]
