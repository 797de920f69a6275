"""Stories: what happens to a cluster, as data. A seed gives a story; a story gives a run, always the same one.

What cannot happen when its turn comes (killing what is dead) does nothing, so that any part of a story is a story too.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import NamedTuple

PACE_NONE, PACE_SOME, PACE_ALL = 0, 1, 2
"""How much of what is under way is done after an event: nothing, a random part, everything."""


class Event(NamedTuple):
    """One step.

    @ivar kind: a method of L{tests.simulator.simulation.Simulation}, without its C{on_}.
    @ivar node: node id, or 0.
    @ivar arguments: numbers; what they mean depends on the kind.
    @ivar pace: C{PACE_NONE}, C{PACE_SOME} or C{PACE_ALL}.
    @ivar luck: seed of what is random in carrying it out.
    """

    kind: str
    node: int
    arguments: tuple[int, ...]
    pace: int
    luck: int

    def __str__(self) -> str:
        where = f" n{self.node}" if self.node else ""
        what = f" {self.arguments}" if self.arguments else ""
        return f"{self.kind}{where}{what} pace {self.pace} luck {self.luck}"


@dataclass(frozen=True)
class Story:
    """A run, told beforehand.

    @ivar votes: of each node; their number is the cluster's size.
    @ivar strict: only what leaves a healthy majority happens, and no node delivers what the majority will not have:
        nothing acknowledged may be lost, without excuse.
    @ivar status: the status group runs as well.
    @ivar skews: of each node, seconds by which its wall clock is ahead.
    @ivar verify_interval: seconds.
    """

    seed: int
    votes: tuple[int, ...]
    strict: bool
    status: bool
    skews: tuple[int, ...]
    verify_interval: float
    events: tuple[Event, ...]

    def __str__(self) -> str:
        head = (
            f"seed {self.seed}: votes {self.votes}, {'strict' if self.strict else 'anything goes'}"
            f"{', with status' if self.status else ''}, clocks ahead {self.skews} s, "
            f"verification each {self.verify_interval:g} s"
        )
        return "\n".join((head, *(f"  {number:3} {event}" for number, event in enumerate(self.events))))


OPERATIONS = ("keep", "write", "create", "mkdir", "delete", "rename", "truncate", "mtime", "vm_create", "vm_move",
              "vm_delete", "lock", "renew", "release", "unlock", "conf")  # fmt: skip
_OPERATION_WEIGHTS = (8, 5, 3, 2, 3, 3, 1, 1, 3, 3, 1, 4, 2, 2, 2, 1)

_FAULTS = {
    "split": 5, "cut": 3, "flap": 6, "heal": 7, "kill": 7, "start": 9, "stop": 2, "wipe": 2, "corosync_kill": 4,
    "corosync_start": 6, "freeze": 3, "thaw": 5, "disk_full": 2, "disk_free": 4, "congest": 2, "clear": 4, "verify": 2,
}  # fmt: skip
_DISTURBING = frozenset(
    ("split", "cut", "heal", "kill", "start", "corosync_kill", "corosync_start", "thaw", "wipe", "congest")
)
_REJOINING = frozenset(("heal", "start", "corosync_start", "wipe"))
_GRAINS = {"order": 4, "receive": 5, "run": 8, "settle": 5, "flow": 8}
_FAULT_KINDS, _FAULT_WEIGHTS = list(_FAULTS), list(_FAULTS.values())
_GRAIN_KINDS, _GRAIN_WEIGHTS = list(_GRAINS), list(_GRAINS.values())
_PACES = (0, 0, 0, 1, 1, 1, 1, 1, 2, 2)


def tell(seed: int, steps: int = 60) -> Story:
    """The story of C{seed}: C{steps} events."""
    random = Random(seed)
    size = random.choice((3, 3, 3, 3, 5, 5, 4, 2))
    votes = (1,) * size if random.random() < 0.8 else tuple(random.choice((1, 1, 2)) for _ in range(size))
    strict = random.random() < 0.5
    status = random.random() < 0.25
    skews = tuple(random.choice((0, 0, 0, 1, -1, 30, -30)) for _ in range(size))
    trouble = random.choice((0.1, 0.2, 0.3, 0.45))
    events = []
    # At first all come together, in most stories without a fault.
    if random.random() < 0.8:
        events.append(Event("flow", 0, (), PACE_ALL, random.getrandbits(32)))
    storm = random.choice((0.0, 0.3, 0.7))
    while len(events) < steps:
        node = 1 + int(random.random() * size)
        kind, arguments = _draw(random, trouble, size)
        stormy = kind in _DISTURBING and random.random() < storm
        pace = PACE_NONE if stormy else random.choice(_PACES)
        events.append(Event(kind, node, arguments, pace, random.getrandbits(32)))
        if kind in _REJOINING and random.random() < 0.4:
            events.append(Event("interrupt", 0, (), random.choice(_PACES), random.getrandbits(32)))
        if stormy:
            rounds = 2 + int(random.random() * 12)
            events.append(
                Event("busy", 0, (rounds, random.choice((0, 10, 25))), random.choice(_PACES), random.getrandbits(32))
            )
    return Story(seed, votes, strict, status, skews, random.choice((3600.0, 3600.0, 7.0)), tuple(events[:steps]))


def _draw(random: Random, trouble: float, size: int) -> tuple[str, tuple[int, ...]]:
    draw = random.random()
    if draw < trouble:
        kind = random.choices(_FAULT_KINDS, _FAULT_WEIGHTS)[0]
        if kind == "cut":
            return kind, (1 + int(random.random() * 3),)
        if kind == "flap":
            minority = random.sample(range(size), 1 + int(random.random() * max(1, (size - 1) // 2)))
            return kind, tuple(int(node in minority) for node in range(size))
        if kind == "split":
            return kind, tuple(random.choice((0, 0, 1)) for _ in range(size))
        return kind, ()
    draw = random.random()
    if draw < 0.45:
        operation = random.choices(range(len(OPERATIONS)), _OPERATION_WEIGHTS)[0]
        return "operate", (operation, random.getrandbits(16))
    if draw < 0.52:
        return "status", (random.getrandbits(16),)
    if draw < 0.64:
        return "wait", (random.choice((10, 20, 100, 500, 1000, 3000, 5000, 10000, 15000, 61000, 125000)),)
    kind = random.choices(_GRAIN_KINDS, _GRAIN_WEIGHTS)[0]
    return kind, (1 + int(random.random() * 6),)
