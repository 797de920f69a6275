"""Who takes part in a process group, and when something happens: the two values that every input carries."""

from __future__ import annotations

from typing import NamedTuple


class Member(NamedTuple):
    """A process in a closed process group. Ordered as the cluster orders members: by node id, then by process id.

    @ivar node_id: u32, as corosync gives it.
    @ivar pid: u32, process id on that node.
    """

    node_id: int
    pid: int

    def __str__(self) -> str:
        return f"{self.node_id}/{self.pid}"


class Instant(NamedTuple):
    """A moment, told by two clocks; the pure core asks no clock itself.

    @ivar wall: seconds since 1970, a u32: what is written into messages. It may jump.
    @ivar monotonic: seconds of a clock that never jumps: ages, intervals and deadlines are measured with it.
    """

    wall: int
    monotonic: float
