"""What the pure core asks for: data, to be carried out by a thin service, in the order in which it was returned.

An input given to L{pvecfs.replica.machine.GroupMachine} returns a list of these. The service must finish the list
before it gives the next input (a failed multicast is an input of its own, L{GroupMachine.multicast_failed}).
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import TYPE_CHECKING

from pvecfs.tree.record import record

if TYPE_CHECKING:
    from pvecfs.replica.status import StatusSnapshot
    from pvecfs.tree.tree import Delta


class Level(Enum):
    """How loud a log line is; the values are the names of L{twisted.logger.LogLevel}."""

    DEBUG = "debug"
    INFO = "info"
    WARN = "warn"
    ERROR = "error"
    CRITICAL = "critical"


class Weight(Enum):
    """What a message that cannot be sent means."""

    CRITICAL = "critical"
    """Tell the machine, which leaves the group: SYNC_START, STATE, VERIFY, UPDATE_COMPLETE, resent messages."""

    VERIFICATION = "verification"
    """A VERIFY_REQUEST: tell the machine, which logs it and forgets the request."""

    ORDINARY = "ordinary"
    """Log it: a single UPDATE, a NORMAL message that nobody waits for."""


@record
class Multicast:
    """Send C{message} to the group. Messages go out in the order of these effects, always."""

    message: bytes
    weight: Weight = Weight.ORDINARY


@record
class MulticastSeries:
    """Send C{multicasts}, in order. They are made while they are sent, once, since they may be a hundred thousand;
    other inputs may come meanwhile. NORMAL messages that are asked for later go out between them, since callers wait
    for those (who gets the updates puts them aside); all other later messages go out after them."""

    multicasts: Iterator[Multicast]


@record
class Leave:
    """Leave the group, keeping the connection; when we are out, join again.

    @ivar reason: for the log.
    @ivar delay: seconds that the next join must wait at least, besides the usual 5 s since the last one.
    """

    reason: str
    delay: float = 0.0


@record
class Halt:
    """Leave the group and stay out until the daemon restarts."""

    reason: str


@record
class Log:
    """Write a log line."""

    level: Level
    text: str


@record
class FailWaiting:
    """Acknowledge every local operation that still waits for its own message with C{-errno}."""

    errno: int


@record
class Commit:
    """dcdb: C{delta.tree} is the newest tree; hand its rows to the database.

    @ivar count: of our own message, whose caller is acknowledged with C{outcome} after the commit; C{None} when the
        change is another node's.
    @ivar outcome: the operation's result, 0 or bytes written.
    """

    delta: Delta
    count: int | None = None
    outcome: int = 0


@record
class Settle:
    """dcdb: our own message C{count} was delivered and changed nothing: acknowledge its caller with C{outcome}
    (0, or -errno), after everything that was committed before it."""

    count: int
    outcome: int


@record
class ClusterConfChanged:
    """dcdb: C{corosync.conf} was created, written, renamed to or synchronised: bring the host's copy in step, once the
    commit before this effect is done.

    @ivar content: what it holds now.
    @ivar own: the change was made on this node, so that corosync may have to be told.
    """

    content: bytes
    own: bool


@record
class Send:
    """Asked by an application only: send a NORMAL message, C{subtype} and C{payload}. The machine counts it and makes
    a L{Multicast} of it, or nothing while we are not in the group; a service never sees this effect."""

    subtype: int
    payload: bytes


@record
class RoundRobinUpdate:
    """kvstore: give C{value} (text without NUL) to the round-robin sink under C{key} (without C{rrd/})."""

    key: bytes
    value: bytes


@record
class PublishStatus:
    """kvstore: C{snapshot} is the newest status of the cluster:
    let readers on other threads have it."""

    snapshot: StatusSnapshot


Effect = (
    Multicast
    | MulticastSeries
    | Leave
    | Halt
    | Log
    | FailWaiting
    | Commit
    | Settle
    | ClusterConfChanged
    | Send
    | RoundRobinUpdate
    | PublishStatus
)
