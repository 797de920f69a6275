"""The state machine of a process group (30-replication.md, "The state machine"), the same for both groups.

Pure: inputs (L{GroupMachine.joined_as}, C{membership_changed}, C{message_delivered}, C{tick}, ...) return effects, for
a service to carry out before the next input. Time is an argument, randomness is injected; equal inputs give equal
effects. All transitions by message stand in one table, L{_TRANSITIONS}.
"""

from __future__ import annotations

import errno
from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from operator import itemgetter
from typing import NamedTuple

from pvecfs.replica.application import GroupApplication, Resync, UpdateReceiver
from pvecfs.replica.effects import (
    Effect,
    FailWaiting,
    Halt,
    Leave,
    Level,
    Log,
    Multicast,
    MulticastSeries,
    Send,
    Weight,
)
from pvecfs.replica.member import Instant, Member
from pvecfs.replica.messages import (
    BASE,
    NORMAL_HEAD,
    STATE_HEAD_SIZE,
    U32,
    Epoch,
    MessageType,
    Normal,
    State,
    SyncStart,
    Update,
    UpdateComplete,
    Verify,
    VerifyRequest,
)
from pvecfs.tree.errors import MalformedMessage


class Mode(Enum):
    """Where a member stands. Identity comparison only: this is asked for every message."""

    START = "start"
    """Not in the group, or joining and not yet told that we are in."""
    START_SYNC = "start-sync"
    """A synchronisation begins: states are collected."""
    SYNCED = "synced"
    """Our data is the group's; messages are delivered as they come."""
    UPDATE = "update"
    """Our data is not the leader's: its updates are collected."""
    LEAVE = "leave"
    """Leaving, to join again later."""
    VERSION_ERROR = "version-error"
    """Others speak a newer protocol: out until the daemon restarts."""
    ERROR = "error"
    """A failure of this program: out until the daemon restarts."""


# Tuples: to hash a member of an Enum takes a call of Python.
_ENDED = (Mode.LEAVE, Mode.VERSION_ERROR, Mode.ERROR)
_JOINED = (Mode.SYNCED, Mode.START_SYNC, Mode.UPDATE)


class _Queued(NamedTuple):
    """A NORMAL message that waits for the synchronisation's end."""

    number: int
    sender: Member
    data: bytes


_by_number = itemgetter(0)

_MOST_TRIES_COUNTED = 8


class GroupMachine:
    """One member's view of a group.

    @ivar mode: the present mode.
    @ivar own: ourselves, once we have joined for the first time.
    @ivar members: the group's members in order; empty before the first membership change after a join.
    @ivar synced: those of them whose data is the leader's.
    @ivar epoch: of the present synchronisation.
    @ivar synchronisations: how many were begun in the life of this process.
    """

    def __init__(
        self,
        application: GroupApplication,
        jitter: Callable[[], float],
        verify_interval: float = 3600.0,
        synchronisation_timeout: float = 10.0,
    ) -> None:
        """@param application: the group's data.
        @param jitter: draws a number from 0 to 1; spreads the deadlines of several nodes.
        @param verify_interval: seconds between verifications, if the application wants any.
        @param synchronisation_timeout: seconds without a state message after which the first try of a synchronisation
            is given up; later tries wait up to C{1 + tries} times as long, at random.
        """
        self._application = application
        self._jitter = jitter
        self._verify_interval = verify_interval
        self._synchronisation_timeout = synchronisation_timeout
        self._version = application.protocol_version
        self.mode = Mode.START
        self.own = Member(0, 0)
        self.members: tuple[Member, ...] = ()
        self.synced: frozenset[Member] = frozenset()
        self.epoch = Epoch(0, 0, 0, 0)
        self.synchronisations = 0
        self._lowest = False
        self._leader: Member | None = None
        self._announced = False  # SYNC_START of the present synchronisation has come
        self._states: dict[Member, bytes] = {}
        self._receiver: UpdateReceiver | None = None  # in UPDATE only
        self._queue: list[_Queued] = []
        self._sync_queue: list[_Queued] = []
        self._quorum_nodes: frozenset[int] = frozenset()
        self._minorities: set[frozenset[int]] = set()
        self._quorate = False
        # What we have sent since quorum's last notification:
        self._counted_at_quorum = 0  # NORMAL messages of higher counts
        self._state_is_newer = False
        self._join_is_newer = False
        self._probe = b""  # see L{quorum_changed}
        self._probes = 0
        # These three belong to the process: they survive membership changes and reconnections.
        self._message_count = 0
        self._epoch_count = 0
        self._checksum_id = 0
        self._verification_outstanding = False
        self._saved_checksum: tuple[Epoch, int, bytes] | None = None
        self._verify_at: float | None = None
        self._tries = 0
        self._patience = 0.0
        self._deadline: float | None = None

    # -- what a service may ask

    @property
    def group_name(self) -> str:
        """The group's name."""
        return self._application.group_name

    @property
    def joined(self) -> bool:
        """Whether we are a member that may send."""
        return self.mode in _JOINED

    @property
    def outdated(self) -> bool:
        """Whether the group's members are those of a partition that had no quorum, while quorum's are more by now.

        Notifications of quorum overtake the group's events. So when quorum is back, what the group delivers at first
        may still belong to the minority that we were in, where nobody of the majority hears it. If we applied it, our
        tree could get the highest version, lead, and undo what the majority has acknowledged. It is surely over when
        something of ours is delivered that we have sent since quorum's last notification: a message, our state, a
        join, or what L{quorum_changed} sends. (Other members are no proof: what comes may be older still, with more
        minorities to follow.)
        """
        if not self._minorities:
            return False
        present = frozenset(member.node_id for member in self.members)
        return any(present <= nodes for nodes in self._minorities)

    @property
    def halted(self) -> bool:
        """Whether we stay out until the daemon restarts."""
        return self.mode is Mode.ERROR or self.mode is Mode.VERSION_ERROR

    @property
    def waiting_for(self) -> tuple[Member, ...]:
        """The members whose state or updates a synchronisation waits for; empty when there is none. The states are sent
        once the lowest member has announced it: until then it is the one."""
        if self.mode is Mode.START_SYNC:
            if not self._announced:
                return self.members[:1]
            return tuple(member for member in self.members if member not in self._states)
        if self.mode is Mode.UPDATE and self._leader is not None:
            return (self._leader,)
        return ()

    def in_quorum(self, member: Member) -> bool:
        """Whether the node of C{member} is in the quorum membership, as far as we were told."""
        return member.node_id in self._quorum_nodes

    def next_tick(self) -> float | None:
        """The monotonic time, in seconds, at which L{tick} has something to do; C{None}: never."""
        if self._deadline is None or self._verify_at is None:
            return self._verify_at if self._deadline is None else self._deadline
        return min(self._deadline, self._verify_at)

    # -- inputs

    def joined_as(self, own: Member, now: Instant) -> list[Effect]:
        """A join was asked for, as C{own}: at first, after a L{Leave} that is done, or on a new connection."""
        if self.halted:
            return []
        self._enter(Mode.START)
        self.own = own
        self._join_is_newer = True
        self._forget_membership()
        if self._verify_at is None and self._application.verified:
            self._verify_at = now.monotonic + self._verify_interval
        return [FailWaiting(errno.EBUSY)]

    def connection_lost(self, reason: str, now: Instant) -> list[Effect]:
        """The connection to corosync is gone; a new one will start with L{joined_as}."""
        if self.halted:
            return [FailWaiting(errno.EBUSY)]
        self._enter(Mode.START)
        self._forget_membership()
        return [Log(Level.WARN, f"lost the connection to the group: {reason}"), FailWaiting(errno.EBUSY)]

    def stopped(self, now: Instant) -> list[Effect]:
        """The service stops, in order."""
        if not self.halted:
            self._enter(Mode.START)
            self._forget_membership()
        return [FailWaiting(errno.EBUSY)]

    def quorum_changed(self, node_ids: Iterable[int], now: Instant, quorate: bool = True) -> list[Effect]:
        """Quorum's membership is C{node_ids} now: to say whom a synchronisation waits for, and for L{outdated}.

        The nodes that make us quorate may come to the group much later, or have no daemon. So if we are outdated we
        send something whose delivery ends that: a state message of an epoch that is nobody's, which the others ignore.
        """
        self._quorum_nodes = frozenset(node_ids)
        if quorate:
            # Quorate by votes alone, with nobody new: there is no newer membership to wait for.
            self._minorities = {nodes for nodes in self._minorities if not self._quorum_nodes <= nodes}
        else:
            self._minorities.add(self._quorum_nodes)
        self._quorate = quorate
        self._counted_at_quorum = self._message_count
        self._state_is_newer = self._join_is_newer = False
        self._probe = b""
        if not (quorate and self.outdated and self.joined):
            return []
        self._probes = (self._probes + 1) & U32
        nobodys = Epoch(self._probes, 0, self.own.node_id, self.own.pid)
        self._probe = UpdateComplete(self._version, now.wall & U32, nobodys).encode()
        return [Multicast(self._probe)]

    def _caught_up_with_quorum(self) -> None:
        """Something of ours was delivered that is newer than quorum's last notification."""
        if self._quorate:
            self._minorities.clear()

    def leave(self, reason: str, delay: float = 0.0) -> list[Effect]:
        """Leave the group because of something outside it, such as a database that takes no commit."""
        out: list[Effect] = []
        if self.mode not in _ENDED:
            self._leave(reason, out, delay)
        return out

    def fail(self, reason: str) -> list[Effect]:
        """This program failed where it must not: stay out until the daemon restarts."""
        out: list[Effect] = []
        self._halt(Mode.ERROR, reason, out)
        return out

    def membership_changed(
        self, members: Iterable[Member], left: Sequence[Member], joined: Sequence[Member], now: Instant
    ) -> list[Effect]:
        """The group's members are now C{members}."""
        out: list[Effect] = []
        if self.mode in _ENDED:
            return out
        try:
            self._reconfigure(tuple(sorted(members)), left, joined, now, out)
        except (Resync, MalformedMessage) as error:
            self._resynchronise(error, out)
        return out

    def message_delivered(self, sender: Member, data: bytes, now: Instant) -> list[Effect]:
        """C{data} is next in the group's order."""
        out: list[Effect] = []
        mode = self.mode
        if mode in _ENDED:
            return out
        try:
            if len(data) < NORMAL_HEAD.size:
                if len(data) < BASE.size:
                    raise MalformedMessage(f"{len(data)} bytes, shorter than the base header")
                type_, subtype, version, time, _ = BASE.unpack_from(data)
                count = 0
            else:
                type_, subtype, version, time, _, count = NORMAL_HEAD.unpack_from(data)
            if version != self._version:
                if version > self._version:
                    self._halt(
                        Mode.VERSION_ERROR,
                        f"member {sender} speaks protocol version {version}, we speak {self._version}",
                        out,
                    )
                return out
            if not self.members:
                raise Resync(f"a message of member {sender}, but no membership yet")
            if type_ == MessageType.NORMAL:
                if len(data) < NORMAL_HEAD.size:
                    raise MalformedMessage(f"normal message: {len(data)} bytes, {NORMAL_HEAD.size} needed")
                if count > self._counted_at_quorum and sender == self.own:
                    self._caught_up_with_quorum()
                if mode is Mode.SYNCED:
                    self._deliver(Normal(version, time, subtype, count, data[NORMAL_HEAD.size :]), sender, now, out)
                else:
                    self._enqueue(_Queued(count, sender, data))
            else:
                self._receive_state_message(type_, sender, data, now, out)
        except (Resync, MalformedMessage) as error:
            self._resynchronise(error, out, sender)
        return out

    def tick(self, now: Instant) -> list[Effect]:
        """Time has passed; call it at L{next_tick} or later."""
        out: list[Effect] = []
        if self._deadline is not None and now.monotonic >= self._deadline:
            self._give_up(out)
        if self._verify_at is not None and now.monotonic >= self._verify_at:
            self._verify_at = now.monotonic + self._verify_interval
            if self._lowest:
                out += self.request_verification(now)
        return out

    def request_verification(self, now: Instant) -> list[Effect]:
        """Start a verification, unless one is outstanding or we are not synced."""
        if self.mode is not Mode.SYNCED or self._verification_outstanding or not self._application.verified:
            return []
        self._checksum_id += 1
        self._verification_outstanding = True
        request = VerifyRequest(self._version, now.wall & U32, self.epoch, self._checksum_id)
        return [Multicast(request.encode(), Weight.VERIFICATION)]

    def multicast_failed(self, multicast: Multicast, reason: str, now: Instant) -> list[Effect]:
        """C{multicast} could not be sent."""
        out: list[Effect] = []
        if self.mode in _JOINED:
            if multicast.weight is Weight.CRITICAL:
                self._leave(f"sending failed: {reason}", out)
            else:
                if multicast.weight is Weight.VERIFICATION:
                    self._verification_outstanding = False
                out.append(Log(Level.WARN, f"sending failed: {reason}"))
        return out

    def submit(self, subtype: int, payload: bytes, now: Instant) -> tuple[int, Multicast]:
        """The next NORMAL message of this process; only while L{joined}.

        @return: its count, by which its delivery will be known, and the message to send.
        """
        self._message_count += 1
        message = Normal(self._version, now.wall & U32, subtype, self._message_count, payload)
        return self._message_count, Multicast(message.encode())

    # -- modes

    def _enter(self, mode: Mode) -> None:
        self.mode = mode
        if mode is Mode.START_SYNC:
            self.synchronisations += 1
            self._tries += 1
        elif mode is Mode.SYNCED:
            self._tries = 0
            self._leader = None
        if mode is not Mode.START_SYNC and mode is not Mode.UPDATE:
            self._deadline = None

    def _forget_membership(self) -> None:
        self.members = ()
        self._lowest = False
        self.synced = frozenset()
        self._queue = []
        self._forget_verification()
        self._forget_synchronisation()

    def _forget_verification(self) -> None:
        self._saved_checksum = None
        self._verification_outstanding = False

    def _forget_synchronisation(self) -> None:
        self._announced = False
        self._sync_queue = []
        self._receiver = None
        self._states = {}
        self._leader = None

    def _leave(self, reason: str, out: list[Effect], delay: float = 0.0, level: Level = Level.WARN) -> None:
        self._enter(Mode.LEAVE)
        self._forget_membership()
        out += (
            Log(level, f"leaving the group: {reason}"),
            FailWaiting(errno.EBUSY),
            Leave(reason, delay),
        )

    def _halt(self, mode: Mode, reason: str, out: list[Effect]) -> None:
        self._enter(mode)
        self._forget_membership()
        out += (
            Log(Level.CRITICAL, f"leaving the group until this daemon restarts: {reason}"),
            FailWaiting(errno.EBUSY),
            Halt(reason),
        )

    def _resynchronise(self, error: Resync | MalformedMessage, out: list[Effect], sender: Member | None = None) -> None:
        if isinstance(error, Resync):
            out += error.effects
            level = Level.CRITICAL if error.critical else Level.WARN
            self._leave(error.reason, out, error.delay, level)
        else:
            self._leave(f"malformed message{'' if sender is None else f' of member {sender}'}: {error}", out)

    # -- membership

    def _reconfigure(
        self,
        members: tuple[Member, ...],
        left: Sequence[Member],
        joined: Sequence[Member],
        now: Instant,
        out: list[Effect],
    ) -> None:
        """The numbered steps of 30-replication.md, "On a membership change"."""
        # 1.
        self._epoch_count = (self._epoch_count + 1) & U32
        self.epoch = Epoch(self._epoch_count, now.wall & U32, self.own.node_id, self.own.pid)
        self._forget_verification()
        self._forget_synchronisation()
        # 3. (before 2., which needs members)
        if self.own not in members:
            if self.mode is not Mode.START:
                raise Resync("we are not a member any more")
            return
        # 2.
        self.members = members
        self.synced = frozenset()
        self._lowest = members[0].node_id == self.own.node_id
        if self._join_is_newer and self.own in joined:
            self._caught_up_with_quorum()
        # 4.
        if len(members) == 1:
            self.synced = frozenset(members)
            self._become_synced("alone in the group, all data is up to date", now, out)
            self._deliver_queue(now, out)
        # 5.
        else:
            if joined and self._queue:
                out += [Multicast(queued.data, Weight.CRITICAL) for queued in self._queue if queued.sender == self.own]
                self._queue = []
            self._enter(Mode.START_SYNC)
            self._patience = self._synchronisation_timeout * (
                1.0 + min(self._tries - 1, _MOST_TRIES_COUNTED) * self._jitter()
            )
            self._deadline = now.monotonic + self._patience
            names = ", ".join(map(str, members))
            out.append(Log(Level.INFO, f"starting data synchronisation of members {names}"))
            if self._lowest:
                out.append(Multicast(SyncStart(self._version, now.wall & U32, self.epoch).encode(), Weight.CRITICAL))
        # 6.
        self._extend(out, self._application.membership_changed(members, left, joined, now), now)

    def _become_synced(self, text: str, now: Instant, out: list[Effect]) -> None:
        changed = self.mode is not Mode.SYNCED  # a member that is left alone may have been synced before
        self._enter(Mode.SYNCED)
        out.append(Log(Level.INFO, text))
        if changed:
            self._extend(out, self._application.became_synced(now), now)

    def _give_up(self, out: list[Effect]) -> None:
        missing = []
        for member in self.waiting_for:
            there = "is" if self.in_quorum(member) else "is not"
            missing.append(f"member {member} (node {member.node_id} {there} in the quorum membership)")
        what = "states" if self.mode is Mode.START_SYNC else "updates"
        self._leave(f"no {what} for {self._patience:.1f} s, waiting for {', '.join(missing)}", out)

    # -- NORMAL messages

    def _extend(self, out: list[Effect], effects: Iterable[Effect], now: Instant) -> None:
        for effect in effects:
            if type(effect) is Send:
                if self.mode in _JOINED:
                    out.append(self.submit(effect.subtype, effect.payload, now)[1])
            else:
                out.append(effect)

    def _deliver(self, message: Normal, sender: Member, now: Instant, out: list[Effect]) -> None:
        self._extend(out, self._application.deliver(message, sender, sender == self.own, self._lowest, now), now)

    def _enqueue(self, queued: _Queued) -> None:
        if queued.sender not in self.members:
            raise Resync(f"a message of {queued.sender}, which is not a member")
        if self.mode is Mode.UPDATE and queued.sender in self.synced:
            self._sync_queue.append(queued)
        else:
            insort(self._queue, queued, key=_by_number)  # to the right of equal counts: order of arrival

    def _deliver_queue(self, now: Instant, out: list[Effect]) -> None:
        """Deliver the queued messages of synced members; those of members that left are dropped."""
        queue, self._queue = self._queue, []
        for queued in queue:
            if queued.sender in self.synced:
                self._deliver(Normal.decode(queued.data), queued.sender, now, out)
            elif queued.sender in self.members:
                self._queue.append(queued)

    # -- state messages

    def _receive_state_message(self, type_: int, sender: Member, data: bytes, now: Instant, out: list[Effect]) -> None:
        if len(data) < STATE_HEAD_SIZE:
            raise MalformedMessage(f"state message of type {type_}: {len(data)} bytes, {STATE_HEAD_SIZE} needed")
        if data == self._probe and sender == self.own:
            self._caught_up_with_quorum()
            return
        epoch = Epoch.decode(data, BASE.size)
        if epoch != self.epoch and type_ != MessageType.SYNC_START:
            return
        if self._deadline is not None:
            self._deadline = now.monotonic + self._patience
        transition = _TRANSITIONS[self.mode].get(type_, _OTHERWISE[self.mode])
        transition(self, sender, data, now, out)

    def _ignore(self, sender: Member, data: bytes, now: Instant, out: list[Effect]) -> None:
        """Of no meaning in this mode."""

    def _reject(self, sender: Member, data: bytes, now: Instant, out: list[Effect]) -> None:
        type_ = BASE.unpack_from(data)[0]
        raise Resync(f"unexpected message of type {type_} of member {sender} in mode {self.mode.value}")

    def _start_synchronisation(self, sender: Member, data: bytes, now: Instant, out: list[Effect]) -> None:
        if sender.node_id != self.members[0].node_id:
            out.append(Log(Level.WARN, f"member {sender}, not the lowest node, starts the synchronisation"))
        self.epoch = Epoch.decode(data, BASE.size)
        out.append(Log(Level.DEBUG, f"member {sender} starts the synchronisation, sending our state"))
        self._forget_synchronisation()
        self._announced = True
        state = State(self._version, now.wall & U32, self.epoch, self._application.state())
        out.append(Multicast(state.encode(), Weight.CRITICAL))
        self._state_is_newer = True

    def _collect_state(self, sender: Member, data: bytes, now: Instant, out: list[Effect]) -> None:
        if sender not in self.members:
            raise Resync(f"the state of {sender}, which is not a member")
        if self._state_is_newer and sender == self.own:
            self._caught_up_with_quorum()
        if sender in self._states:
            raise Resync(f"a second state of member {sender}")
        self._states[sender] = data[STATE_HEAD_SIZE:]
        out.append(Log(Level.DEBUG, f"state {len(self._states)} of {len(self.members)}, of member {sender}"))
        if len(self._states) < len(self.members):
            return
        states = {member: self._states[member] for member in self.members}
        self._states = {}
        verdict = self._application.states_collected(states, self.own, now)
        self._leader = verdict.leader
        self.synced = verdict.synced.intersection(self.members)
        names = ", ".join(map(str, sorted(self.synced)))
        out.append(Log(Level.DEBUG, f"all states are here, up to date: {names or 'none'}"))
        if verdict.updates is not None:
            out.append(Log(Level.DEBUG, "we lead, sending updates"))
            out.append(MulticastSeries(self._updates(self.epoch, verdict.updates, now)))
        self._extend(out, verdict.effects, now)
        if self.own in self.synced:
            self._become_synced("all data is up to date", now, out)
            self._deliver_queue(now, out)
        else:
            self._enter(Mode.UPDATE)
            self._receiver = verdict.receiver
            out.append(Log(Level.INFO, f"waiting for updates from leader {verdict.leader}"))
            queue, self._queue = self._queue, []
            for queued in queue:
                if queued.sender in self.synced:
                    self._sync_queue.append(queued)
                elif queued.sender in self.members:
                    self._queue.append(queued)

    def _updates(self, epoch: Epoch, updates: Iterable[bytes], now: Instant) -> Iterator[Multicast]:
        """The leader's messages in the synchronisation of C{epoch}, until the next one makes them useless."""
        wall = now.wall & U32
        head = Update(self._version, wall, epoch, b"").encode()
        for update in updates:
            if self.epoch is not epoch:
                return
            yield Multicast(head + update)
        if self.epoch is epoch:
            yield Multicast(UpdateComplete(self._version, wall, epoch).encode(), Weight.CRITICAL)

    def _receive_update(self, sender: Member, data: bytes, now: Instant, out: list[Effect]) -> None:
        assert self._receiver is not None
        self._receiver.receive(data[STATE_HEAD_SIZE:])

    def _commit_updates(self, sender: Member, data: bytes, now: Instant, out: list[Effect]) -> None:
        receiver, self._receiver = self._receiver, None
        assert receiver is not None
        self._extend(out, receiver.commit(now), now)
        sync_queue, self._sync_queue = self._sync_queue, []
        self.synced = frozenset(self.members)
        self._become_synced("update complete, all data is up to date", now, out)
        for queued in sync_queue:
            self._deliver(Normal.decode(queued.data), queued.sender, now, out)
        self._deliver_queue(now, out)

    def _complete(self, sender: Member, data: bytes, now: Instant, out: list[Effect]) -> None:
        out.append(Log(Level.DEBUG, f"member {sender} has sent all updates"))
        self.synced = frozenset(self.members)
        self._deliver_queue(now, out)

    def _take_checksum(self, sender: Member, data: bytes, now: Instant, out: list[Effect]) -> None:
        request = VerifyRequest.decode(data)
        if not self._application.verified:
            return
        checksum = self._application.checksum()
        self._saved_checksum = (self.epoch, request.checksum_id, checksum)
        if sender == self.own:
            self._verification_outstanding = False
            verify = Verify(self._version, now.wall & U32, self.epoch, request.checksum_id, checksum)
            out.append(Multicast(verify.encode(), Weight.CRITICAL))

    def _compare_checksum(self, sender: Member, data: bytes, now: Instant, out: list[Effect]) -> None:
        if not self._application.verified:
            return
        verify = Verify.decode(data)
        if self._saved_checksum is None or self._saved_checksum[:2] != (verify.epoch, verify.checksum_id):
            out.append(Log(Level.INFO, f"skipping verification {verify.checksum_id} of member {sender}"))
        elif self._saved_checksum[2] == verify.checksum:
            out.append(Log(Level.INFO, "data verification successful"))
        else:
            raise Resync(
                f"data verification failed: our tree is not that of member {sender} "
                f"(checksum {self._saved_checksum[2].hex()}, theirs {verify.checksum.hex()})",
                critical=True,
            )


_Transition = Callable[[GroupMachine, Member, bytes, Instant, "list[Effect]"], None]

_TRANSITIONS: dict[Mode, dict[int, _Transition]] = {
    Mode.START: {},
    Mode.START_SYNC: {
        MessageType.SYNC_START: GroupMachine._start_synchronisation,
        MessageType.STATE: GroupMachine._collect_state,
        MessageType.VERIFY_REQUEST: GroupMachine._ignore,
        MessageType.VERIFY: GroupMachine._ignore,
    },
    Mode.UPDATE: {
        MessageType.UPDATE: GroupMachine._receive_update,
        MessageType.UPDATE_COMPLETE: GroupMachine._commit_updates,
        MessageType.VERIFY_REQUEST: GroupMachine._ignore,
        MessageType.VERIFY: GroupMachine._ignore,
    },
    Mode.SYNCED: {
        MessageType.UPDATE_COMPLETE: GroupMachine._complete,
        MessageType.VERIFY_REQUEST: GroupMachine._take_checksum,
        MessageType.VERIFY: GroupMachine._compare_checksum,
    },
}
"""What a state message of the current epoch (or any SYNC_START) does in each mode. NORMAL messages are not here: they
are delivered in SYNCED and queued otherwise. The modes that have ended hear nothing."""

_OTHERWISE: dict[Mode, _Transition] = {
    Mode.START: GroupMachine._reject,
    Mode.START_SYNC: GroupMachine._reject,
    Mode.UPDATE: GroupMachine._reject,
    Mode.SYNCED: GroupMachine._ignore,
}
"""What every other state message does, of unknown types too."""
