"""Two threads that hand work to one another keep to a processor each, while changes come one after another.

In local mode a change goes from its caller to the reactor's thread and to the store's, and the answer wakes the caller:
three threads that run in turn. Where each wakes up the kernel decides anew each time; mostly on the processor where it
ran before, but for stretches of a tenth of a second and more they change places with every change (on two processors,
in a virtual machine), and each step then begins with somebody else's caches and on a processor that has to be woken. So
the two of ours are kept apart and in place. Not in a cluster: there they have real-time priority, and corosync, which
has it too, must not be what they wait for while another processor is free.

A processor can be wanted by others. Every L{WATCH} seconds it is looked how long the two had to wait for theirs; if
that is too long, the kernel places them again as it likes, for L{REST} seconds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from threading import get_native_id
from typing import Protocol

from pvecfs.log import logger

WATCH = 0.02
"""Seconds between two looks at how long they had to wait."""

WAITED = 0.4
"""The share of that time for which a thread may have waited for its processor."""

REST = 0.2
"""Seconds for which they are left alone at least, if it was more."""

_LAST_CACHE = "/sys/devices/system/cpu/cpu{}/cache/index3/shared_cpu_list"

_log = logger("placement")


class DelayingReactor(Protocol):
    """What is wanted of a reactor."""

    def callLater(self, delay: float, callable: Callable[..., object]) -> object: ...

    def seconds(self) -> float: ...


class System(Protocol):
    """The calls of the system; threads by their native ids. Each may raise OSError."""

    def threads(self) -> set[int]:
        """All of this process."""

    def affinity(self, thread: int) -> set[int]:
        """The processors that it may run on."""

    def set_affinity(self, thread: int, processors: set[int]) -> None: ...

    def processor(self, thread: int) -> int:
        """Where it runs, or ran last."""

    def waited(self, thread: int) -> float:
        """Seconds for which it was ready to run and had no processor, since it began."""

    def neighbours(self, processor: int) -> set[int]:
        """Those that share a cache with C{processor}, itself too; empty if nothing tells."""


class Linux:
    """The real calls."""

    def threads(self) -> set[int]:
        return {int(name) for name in os.listdir("/proc/self/task")}

    def affinity(self, thread: int) -> set[int]:
        return os.sched_getaffinity(thread)

    def set_affinity(self, thread: int, processors: set[int]) -> None:
        os.sched_setaffinity(thread, processors)

    def processor(self, thread: int) -> int:
        text = Path(f"/proc/self/task/{thread}/stat").read_text("utf-8", "replace")
        return int(text.rpartition(")")[2].split()[36])  # field 39 of proc(5)

    def waited(self, thread: int) -> float:
        return int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[1]) / 1e9

    def neighbours(self, processor: int) -> set[int]:
        try:
            text = Path(_LAST_CACHE.format(processor)).read_text()
        except OSError:
            return set()
        return processors_of(text)


def processors_of(text: str) -> set[int]:
    """The numbers of a list as the kernel writes it: C{0-3,8}."""
    numbers: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            numbers.update(range(int(first), int(last or first) + 1))
    return numbers


class ThreadPlacement:
    """Keeps the reactor's thread and another one in place while that is wanted. For the reactor thread; where the
    system refuses, it stays at a line in the log.

    @param other: the native id of the other thread, if there is one now.
    """

    def __init__(self, reactor: DelayingReactor, other: Callable[[], int | None], system: System | None = None) -> None:
        self._reactor = reactor
        self._other = other
        self._system = system or Linux()
        self._turn = 0  # counts the ends: what was planned before one is void
        self._planned = False
        self._not_before = 0.0
        self._refused = False
        self._kept: dict[int, tuple[set[int], set[int]]] = {}  # thread: where it is kept, where it may run
        self._others: set[int] = set()  # threads that there were before
        self._waited: dict[int, float] = {}

    def begin(self) -> None:
        """Many changes come: keep the threads in place, a turn later. May be called again and again while they do."""
        if not (self._planned or self._kept or self._refused) and self._reactor.seconds() >= self._not_before:
            self._planned = True
            turn = self._turn
            self._reactor.callLater(0, lambda: self._keep(turn))

    def want(self, wanted: bool) -> None:
        """Whether changes come at all; when they do no more, the threads are let go."""
        if not wanted:
            self._turn += 1
            self._planned = False
            self._release()

    def stop(self) -> None:
        """For good."""
        self._refused = True
        self.want(False)

    def _keep(self, turn: int) -> None:
        if turn != self._turn:
            return
        self._planned = False
        thread, other = get_native_id(), self._other()
        if other is None:
            return
        try:
            self._place(thread, other)
        except (OSError, ValueError, IndexError) as error:
            _log.info("threads are placed by the kernel alone: {reason}", reason=error)
            self._refused = True
            self._release()
            return
        if self._kept:
            self._reactor.callLater(WATCH, lambda: self._look(turn))

    def _place(self, thread: int, other: int) -> None:
        """Keep C{thread} where it is, and C{other} where it is or near by."""
        system = self._system
        allowed, others_allowed = system.affinity(thread), system.affinity(other)
        place = system.processor(thread)
        free = others_allowed - {place}
        if place not in allowed or not free:
            return
        near = free & system.neighbours(place) or free
        last = system.processor(other)
        others_place = last if last in near else min(near, key=lambda number: (number < place, number))
        self._others = system.threads()
        self._waited = {each: system.waited(each) for each in (thread, other)}
        for each, at, before in (thread, place, allowed), (other, others_place, others_allowed):
            self._kept[each] = ({at}, before)
            system.set_affinity(each, {at})

    def _look(self, turn: int) -> None:
        """Did they have to wait for long?"""
        if turn != self._turn:
            return
        waited = self._waited
        try:
            self._waited = {each: self._system.waited(each) for each in self._kept}
        except (OSError, ValueError, IndexError):  # it has ended
            self._release()
            return
        if any(self._waited[each] - waited[each] > WAITED * WATCH for each in self._kept):
            self._release()
            self._not_before = self._reactor.seconds() + REST
        else:
            self._reactor.callLater(WATCH, lambda: self._look(turn))

    def _release(self) -> None:
        """Let all run where they could before; also those that were begun meanwhile, as they inherit their place."""
        kept, self._kept = self._kept, {}
        if not kept:
            return
        system = self._system
        try:
            threads = system.threads() - self._others | kept.keys()
        except OSError:
            threads = set(kept)
        for thread in threads:
            try:
                affinity = system.affinity(thread)
                for place, before in kept.values():
                    if affinity == place:
                        system.set_affinity(thread, before)
                        break
            except OSError:  # it has ended
                continue
