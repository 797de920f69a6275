"""What differs between the two process groups: the side of a group that L{GroupMachine} calls.

An application is pure like the machine: it asks no clock, draws no random numbers, touches no file or socket.
It returns effects, which the machine puts, in order, among its own. It owns the replicated data and nothing of the
protocol.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pvecfs.replica.effects import Effect
from pvecfs.replica.member import Instant, Member
from pvecfs.replica.messages import Normal


class Resync(Exception):
    """Raised by an application out of any call: the machine leaves the group (mode LEAVE), to come back later and
    synchronise.

    @ivar reason: for the log.
    @ivar delay: seconds that the next join must wait at least, besides the usual pause.
    @ivar effects: carried out before the group is left, for instance the outcome of the caller's operation.
    @ivar critical: log the reason as critical, not as a warning.
    """

    def __init__(self, reason: str, delay: float = 0.0, effects: Sequence[Effect] = (), critical: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.delay = delay
        self.effects = effects
        self.critical = critical


class UpdateReceiver(Protocol):
    """Takes the leader's updates in one synchronisation. If that ends early it is dropped, and nothing has happened.

    Both methods may raise what those of L{GroupApplication} may.
    """

    def receive(self, payload: bytes) -> None:
        """C{payload} of an UPDATE message, in order. It shall do now what L{commit} would otherwise do for all at
        once: other work waits for that.

        @raise MalformedMessage: it is none.
        """

    def commit(self, now: Instant) -> Sequence[Effect]:
        """The leader has sent everything. Called once, and last.

        After this our data is the leader's as of its state; the queued messages follow through
        L{GroupApplication.deliver}.
        """


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an application makes of the collected states.

    @ivar leader: the member whose state wins; for the log.
    @ivar synced: members that need no update. If we are one, the machine goes to SYNCED, otherwise to UPDATE.
    @ivar updates: C{None}: we send no updates. Otherwise the payloads of the UPDATE messages to multicast, after which
        the machine multicasts UPDATE_COMPLETE. Taken as they are sent, so they have to be made of what is now.
    @ivar effects: to carry out before the mode changes.
    @ivar receiver: of the leader's updates, unless we are synced.
    """

    leader: Member
    synced: frozenset[Member]
    updates: Iterable[bytes] | None = None
    effects: Sequence[Effect] = ()
    receiver: UpdateReceiver | None = None


class GroupApplication(Protocol):
    """The data that a group replicates.

    Any method may raise L{Resync}; a L{pvecfs.tree.errors.MalformedMessage} that escapes means the same.
    Methods that return effects may return any of L{pvecfs.replica.effects}, L{Send} included, but not C{Leave}
    or C{Halt}.
    """

    @property
    def group_name(self) -> str:
        """C{pve_dcdb_v1} or C{pve_kvstore_v1}."""

    @property
    def protocol_version(self) -> int:
        """The group's protocol version: 1 or 0."""

    @property
    def verified(self) -> bool:
        """Whether this group's data is verified by checksum; the machine then sends VERIFY_REQUESTs."""

    def state(self) -> bytes:
        """Our state, for a STATE message."""

    def states_collected(self, states: Mapping[Member, bytes], own: Member, now: Instant) -> Verdict:
        """All members' states are there, our own among them. C{states} is in (node id, pid) order."""

    def deliver(self, message: Normal, sender: Member, own: bool, lowest: bool, now: Instant) -> Sequence[Effect]:
        """C{message} is next in the group's order.

        @param own: this process sent it.
        @param lowest: our node is the lowest of the group.
        """

    def membership_changed(
        self, members: Sequence[Member], left: Sequence[Member], joined: Sequence[Member], now: Instant
    ) -> Sequence[Effect]:
        """The group's members, we among them, are C{members} now, in (node id, pid) order. Called last in the handling
        of a membership change: alone in the group, we are synced and the queue is delivered already."""

    def became_synced(self, now: Instant) -> Sequence[Effect]:
        """The mode has changed into SYNCED (alone, after the states, or after a commit); called after the effects of
        L{states_collected} and before queued messages are delivered."""

    def checksum(self) -> bytes:
        """32 bytes over all data, for verification. Called only if L{verified}."""
