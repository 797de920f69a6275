"""A node in its cluster: the thin services that carry out what the group machines ask for.

L{GroupService} owns a group's connection and its machine. L{ClusterProposer} stands above the one of the tree: changes
of this node go out through it, and what the group decided comes in through it, to the ledger. Reactor thread only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from errno import EACCES, EBUSY, EINVAL, EIO, ENOENT
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple, Protocol

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import LogLevel
from zope.interface import implementer

from pvecfs.errors import CorosyncUnavailable, TryAgain
from pvecfs.interfaces import (
    SEND_PATIENCE,
    Acknowledge,
    Backlog,
    IGroupConnection,
    IGroupListener,
    ILedger,
    ILedgerListener,
    IProposer,
    IQuorumListener,
    Meant,
)
from pvecfs.log import logger
from pvecfs.replica.dcdb import TreeReplica
from pvecfs.replica.effects import (
    ClusterConfChanged,
    Commit,
    Effect,
    FailWaiting,
    Halt,
    Leave,
    Log,
    Multicast,
    MulticastSeries,
    Settle,
    Weight,
)
from pvecfs.replica.machine import GroupMachine, Mode
from pvecfs.replica.member import Instant, Member
from pvecfs.replica.messages import LockPayload, TreeSubtype, encode_change
from pvecfs.tree.admission import Limits, admit
from pvecfs.tree.changes import Change, Rename, SetMtime, Write
from pvecfs.tree.errors import OperationError
from pvecfs.tree.locks import release_asked
from pvecfs.tree.tree import Tree

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall


_log = logger("cluster")


class ClusterReactor(Protocol):
    """What the proposer wants of a reactor."""

    def callFromThread(self, callable: Callable[..., object], *args: object) -> None: ...

    def callLater(self, delay: float, callable: Callable[..., object]) -> IDelayedCall: ...


JOIN_INTERVAL = 5.0
"""Seconds between two attempts to join."""

SEND_INTERVAL = 0.01
"""Seconds between two offers."""

SEND_TURN = 0.005
"""Seconds for which messages are made and sent in one turn of the reactor, where many wait."""

LEAVE_PATIENCE = 10.0
"""Seconds after which a leave that nobody confirmed is replaced by a new connection."""

STOP_PATIENCE = 1.0
"""Seconds that a stop waits for the group to confirm that we left."""


class Standing(Enum):
    """How a L{GroupService} stands to its group."""

    CLOSED = "closed"
    """No connection."""
    JOINED = "joined"
    """Connected, or connecting, and asked to join."""
    LEAVING = "leaving"
    """Asked to leave, not yet told that we are out."""
    OUT = "out"
    """Connected, not in the group."""
    ENDED = "ended"
    """Stopped, or halted by the machine."""


class _Unsent(NamedTuple):
    """A message that corosync did not take yet, or some that are not made yet.

    @ivar number: of a NORMAL message that someone waits for; else 0.
    @ivar since: when it was first offered, monotonic seconds.
    @ivar failed: called when it will not be sent any more.
    """

    multicast: Multicast | MulticastSeries
    number: int
    since: float
    failed: Callable[[], None] | None


@implementer(IGroupListener)
class GroupService(Service):
    """One process group: its connection, kept for ever, and its machine, whose effects are carried out in order.

    @ivar machine: the group's machine.
    @ivar perform: given each effect that is the application's business, in order.
    @ivar mode_changed: called after the machine's mode changed, with all effects carried out.
    @ivar mode_since: when it changed last, monotonic seconds.
    @ivar unsynced_since: since when it is not C{SYNCED}, monotonic seconds, or C{None}.
    @ivar left_because: why the group was left last, until it is C{SYNCED} again; else empty.
    @ivar delivered: messages that were delivered to us as a member.
    @ivar departures: how many times we left the group because something was wrong.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        connection: IGroupConnection,
        machine: GroupMachine,
        clock: Callable[[], Instant],
        perform: Callable[[Effect], None] = lambda effect: None,
        join_interval: float = JOIN_INTERVAL,
    ) -> None:
        """@param connection: to this group, not open yet.
        @param clock: the wall clock, and the monotonic one.
        @param join_interval: seconds between two attempts to join.
        """
        self.machine = machine
        self.perform = perform
        self.mode_changed: Callable[[Mode], None] = lambda mode: None
        self.mode_since = 0.0
        self.unsynced_since: float | None = 0.0
        self.left_because = ""
        self.delivered = 0
        self.departures = 0
        self._reactor = reactor
        self._connection = connection
        self._clock = clock
        self._join_interval = join_interval
        self._standing = Standing.CLOSED
        self._suspended = False
        self._inside: bool | None = None  # None: joining, not told yet
        self._quorum_known = False  # until it is, no join is tried
        self._not_before = 0.0
        self._attempt: IDelayedCall | None = None
        self._leave_timeout: IDelayedCall | None = None
        self._tick: IDelayedCall | None = None
        self._tick_due = 0.0
        self._flush_later: IDelayedCall | None = None
        self._unsent: deque[_Unsent] = deque()
        self._last_sent = 0.0
        self._inputs: deque[Callable[[Instant], Iterable[Effect]]] = deque()
        self._busy = False
        self._mode = machine.mode
        self._stopped: Deferred[None] | None = None
        self._lost_said = False

    # -- service

    def startService(self) -> None:
        """Connect, and stay connected."""
        super().startService()  # type: ignore[no-untyped-call]  # Twisted has no annotations there
        self._standing = Standing.CLOSED
        self.mode_since = self.unsynced_since = self.monotonic()
        self._schedule()

    def stopService(self) -> Deferred[None]:
        """Leave the group, telling it where possible. Callers that wait are failed with EBUSY.

        @return: fires when we are out, at the latest after L{STOP_PATIENCE}.
        """
        super().stopService()  # type: ignore[no-untyped-call]  # Twisted has no annotations there
        was = self._standing
        self._cancel(self._attempt)
        self._input(self.machine.stopped)
        if was is Standing.JOINED and self._inside:
            stopped: Deferred[None] = Deferred()
            self._stopped = stopped
            self._standing = Standing.LEAVING
            try:
                self._connection.leave()
            except CorosyncUnavailable:
                self._end()
            else:
                self._leave_timeout = self._reactor.callLater(STOP_PATIENCE, self._end)
            return stopped
        self._end()
        return succeed(None)

    def _end(self) -> None:
        self._standing = Standing.ENDED
        for call in (self._attempt, self._leave_timeout, self._tick, self._flush_later):
            self._cancel(call)
        self._unsent.clear()
        self._connection.close()
        stopped, self._stopped = self._stopped, None
        if stopped is not None:
            stopped.callback(None)

    @staticmethod
    def _cancel(call: IDelayedCall | None) -> None:
        if call is not None and call.active():
            call.cancel()

    # -- what others ask

    @property
    def standing(self) -> Standing:
        """How we stand to the group."""
        return self._standing

    @property
    def unsent(self) -> Backlog:
        """The messages that were not sent yet, and since when corosync has taken none. A leader's updates that are not
        made yet count as one; what the connection has taken to send it in pieces is not counted."""
        if not self._unsent:
            return Backlog()
        return Backlog(len(self._unsent), max(self._unsent[0].since, self._last_sent))

    def monotonic(self) -> float:
        """Seconds of the clock that never jumps: deadlines are told by it. (A reactor's own clock may jump; a delayed
        call that comes too early for that reason finds nothing to do.)"""
        return self._clock().monotonic

    def wall(self) -> int:
        """Seconds since 1970, as our messages say them."""
        return self._clock().wall

    def send(self, subtype: int, payload: bytes, failed: Callable[[], None] | None = None) -> int:
        """Multicast a NORMAL message, behind all that was asked for before it.

        @param failed: called if corosync did not take it for L{SEND_PATIENCE}; not when the group is left.
        @return: its count; 0 while we are not in the group: nothing was sent then.
        """
        if not self.machine.joined:
            return 0
        number, multicast = self.machine.submit(subtype, payload, self._clock())
        self._multicast(multicast, number, failed)
        return number

    def send_status(self, subtype: int, payload: bytes) -> None:
        """As L{send}; nobody waits for it."""
        self.send(subtype, payload)

    def withdraw(self, number: int) -> bool:
        """Do not send the message of count C{number} any more.

        @return: False if it was sent already.
        """
        for unsent in self._unsent:
            if unsent.number == number:
                self._unsent.remove(unsent)
                return True
        return False

    def quorum_changed(self, node_ids: Iterable[int], quorate: bool = True) -> None:
        """Quorum's membership is C{node_ids}, and it may write or not; nothing is known of it if there are none."""
        known = frozenset(node_ids)
        for effect in self.machine.quorum_changed(known, self._clock(), quorate):
            self._carry_out(effect)
        before, self._quorum_known = self._quorum_known, bool(known)
        if known and not before:
            self._schedule_unless_joined()

    def suspend(self, reason: str) -> None:
        """Leave the group before anything else is delivered, and stay out until L{resume}."""
        self._suspended = True
        self._cancel(self._attempt)
        self._input(lambda now: self.machine.leave(reason), urgent=True)

    def resume(self) -> None:
        """Join again, after L{suspend}."""
        self._suspended = False
        self._schedule_unless_joined()

    # -- IGroupListener

    def joined_as(self, member: Member) -> None:
        self._lost_said = False
        self._input(lambda now: self.machine.joined_as(member, now))

    def membership_changed(self, members: Sequence[Member], left: Sequence[Member], joined: Sequence[Member]) -> None:
        _log.debug(
            "{group}: members {members}, left: {left}, joined: {joined}",
            group=self.machine.group_name,
            members=_listed(members),
            left=_listed(left),
            joined=_listed(joined),
        )
        if self.machine.own in members:
            self._inside = True
        elif self._inside:
            self._inside = False
        if self._standing is Standing.JOINED:
            self._input(lambda now: self.machine.membership_changed(members, left, joined, now))
        elif self._standing is Standing.LEAVING and self._inside is False:
            self._got_out()

    def message_delivered(self, sender: Member, message: bytes) -> None:
        if self._standing is not Standing.JOINED:
            return
        self.delivered += 1
        self._input(lambda now: self.machine.message_delivered(sender, message, now))

    def connection_lost(self, reason: Exception) -> None:
        if self._standing is Standing.ENDED:
            return
        if self._stopped is not None:
            self._end()
            return
        self._standing = Standing.CLOSED
        self._unsent.clear()
        self._cancel(self._leave_timeout)
        said, self._lost_said = self._lost_said, True
        if said:
            _log.debug("{group}: still no connection: {reason}", group=self.machine.group_name, reason=reason)
            self._schedule()
            return
        self._schedule()
        self._input(lambda now: self.machine.connection_lost(str(reason), now))

    # -- joining and leaving

    def _schedule(self) -> None:
        """Try to join, when it is time."""
        if self._suspended or not self.running:
            return
        self._cancel(self._attempt)
        self._attempt = self._reactor.callLater(max(0.0, self._not_before - self.monotonic()), self._join)

    def _schedule_unless_joined(self) -> None:
        if self._standing in (Standing.CLOSED, Standing.OUT):
            self._schedule()

    def _join(self) -> None:
        if not self._quorum_known:
            # The first change of another node would put us out again, since as far as we know nobody may write.
            return
        self._not_before = self.monotonic() + self._join_interval
        self._inside = None
        standing, self._standing = self._standing, Standing.JOINED
        if standing is Standing.CLOSED:
            self._connection.open(self)
            return
        try:
            self._connection.join()
        except CorosyncUnavailable as error:
            self._abandon(error)
        else:
            own = self.machine.own
            self._input(lambda now: self.machine.joined_as(own, now))

    def _leave(self, delay: float) -> None:
        self._unsent.clear()
        self._not_before = max(self._not_before, self.monotonic() + delay)
        if self._standing is not Standing.JOINED:
            return
        if self._inside is False:  # told so before we asked for it
            self._got_out()
            return
        if self._inside is None:  # who knows how far the join has come
            self._abandon(CorosyncUnavailable("left while joining"))
            return
        self._standing = Standing.LEAVING
        try:
            self._connection.leave()
        except CorosyncUnavailable as error:
            self._abandon(error)
        else:
            self._leave_timeout = self._reactor.callLater(
                LEAVE_PATIENCE, self._abandon, CorosyncUnavailable("the group does not let us leave")
            )

    def _got_out(self) -> None:
        self._cancel(self._leave_timeout)
        if self._stopped is not None:
            self._end()
            return
        self._standing = Standing.OUT
        self._schedule()

    def _abandon(self, reason: Exception) -> None:
        """The connection is of no use: have a new one."""
        self._connection.close()
        self.connection_lost(reason)

    # -- sending

    def _multicast(self, multicast: Multicast, number: int = 0, failed: Callable[[], None] | None = None) -> None:
        if self._standing is not Standing.JOINED:
            return
        if not self._unsent:
            try:
                self._connection.multicast(multicast.message)
                return
            except TryAgain:
                self._last_sent = self.monotonic()
                self._flush_later = self._reactor.callLater(SEND_INTERVAL, self._flush)
            except CorosyncUnavailable as error:
                self._abandon(error)
                return
        unsent = _Unsent(multicast, number, self.monotonic(), failed)
        if multicast.weight is Weight.ORDINARY and self._unsent and type(self._unsent[-1].multicast) is MulticastSeries:
            self._unsent.insert(len(self._unsent) - 1, unsent)
        else:
            self._unsent.append(unsent)

    def _multicast_series(self, series: MulticastSeries) -> None:
        if self._standing is Standing.JOINED:
            self._unsent.append(_Unsent(series, 0, self.monotonic(), None))
            if len(self._unsent) == 1:  # otherwise it is flushed in its turn
                self._flush()

    def _flush(self) -> None:
        """Offer corosync what it did not take, in order, and make what is not made yet."""
        began = self.monotonic()
        while self._unsent and self._standing is Standing.JOINED:
            unsent = self._unsent[0]
            now = self.monotonic()
            multicast = unsent.multicast
            if isinstance(multicast, MulticastSeries):
                try:
                    following = next(multicast.multicasts, None)
                except Exception:
                    _log.failure("the group's data cannot be trusted any more")
                    self._unsent.clear()
                    self._input(self._fail)
                    return
                if following is None:
                    self._unsent.popleft()
                    continue
                multicast = following
                unsent = _Unsent(multicast, 0, now, None)
                self._unsent.appendleft(unsent)
            try:
                self._connection.multicast(multicast.message)
            except TryAgain as error:
                if now - max(unsent.since, self._last_sent) < SEND_PATIENCE:
                    self._flush_later = self._reactor.callLater(SEND_INTERVAL, self._flush)
                    return
                self._unsent.popleft()
                self._not_sent(multicast, unsent.failed, str(error))
            except CorosyncUnavailable as error:
                self._abandon(error)
                return
            else:
                self._unsent.popleft()
                self._last_sent = now
            if self._unsent and self.monotonic() - began >= SEND_TURN:
                self._flush_later = self._reactor.callLater(0, self._flush)
                return

    def _not_sent(self, multicast: Multicast, failed: Callable[[], None] | None, reason: str) -> None:
        if failed is not None:
            failed()
        else:
            self._input(lambda now: self.machine.multicast_failed(multicast, reason, now))

    # -- the machine

    def _input(self, give: Callable[[Instant], Iterable[Effect]], urgent: bool = False) -> None:
        """Give the machine an input and carry out what it asks for; inputs that arise meanwhile come after it, an
        C{urgent} one before the others."""
        if urgent:
            self._inputs.appendleft(give)
        else:
            self._inputs.append(give)
        if self._busy:
            return
        self._busy = True
        try:
            while self._inputs:
                try:
                    for effect in self._inputs.popleft()(self._clock()):
                        self._carry_out(effect)
                except Exception:
                    _log.failure("the group's data cannot be trusted any more")
                    if self.machine.halted:
                        self._inputs.clear()
                        self._end()
                    else:
                        self._inputs.appendleft(self._fail)
        finally:
            self._busy = False
        self._watch_time()
        if self.machine.mode is not self._mode:
            _log.debug(
                "{group}: mode {before}, now {mode}",
                group=self.machine.group_name,
                before=self._mode.value,
                mode=self.machine.mode.value,
            )
            self._note_mode(self.machine.mode)
            self.mode_changed(self._mode)

    def _note_mode(self, mode: Mode) -> None:
        self._mode = mode
        self.mode_since = self.monotonic()
        if mode is Mode.SYNCED:
            self.unsynced_since = None
            self.left_because = ""
        elif self.unsynced_since is None:
            self.unsynced_since = self.mode_since

    def _fail(self, now: Instant) -> Iterable[Effect]:
        return self.machine.fail("an error in this program, see above")

    def _carry_out(self, effect: Effect) -> None:
        kind = type(effect)
        if kind is Multicast:
            assert isinstance(effect, Multicast)
            self._multicast(effect)
        elif kind is MulticastSeries:
            assert isinstance(effect, MulticastSeries)
            self._multicast_series(effect)
        elif kind is Log:
            assert isinstance(effect, Log)
            level = LogLevel.levelWithName(effect.level.value)
            _log.emit(level, "{group}: {text}", group=self.machine.group_name, text=effect.text)
        elif kind is Leave:
            assert isinstance(effect, Leave)
            self.departures += 1
            self.left_because = effect.reason
            self._leave(effect.delay)
        elif kind is Halt:
            assert isinstance(effect, Halt)
            self.departures += 1
            self.left_because = effect.reason
            self._end()
        else:
            self.perform(effect)

    def _watch_time(self) -> None:
        """Keep one delayed call for the machine's next tick. One that comes too early finds nothing to do."""
        due = self.machine.next_tick()
        if due is None or self._standing is Standing.ENDED:
            return
        if self._tick is not None and self._tick.active():
            if self._tick_due <= due:
                return
            self._tick.cancel()
        self._tick_due = due
        self._tick = self._reactor.callLater(max(0.0, due - self._clock().monotonic), self._ticked)

    def _ticked(self) -> None:
        self._input(self.machine.tick)


def _listed(items: Iterable[object]) -> str:
    return ", ".join(map(str, items)) or "none"


class _Proposal:
    """A change that someone waits for.

    @ivar inode: of the entry that a held change is meant for; C{None}: whatever has the path.
    """

    __slots__ = ("acknowledge", "change", "deadline", "inode", "meant")

    def __init__(self, change: Change, acknowledge: Acknowledge, meant: Meant | None, deadline: float) -> None:
        self.change = change
        self.acknowledge = acknowledge
        self.meant = meant
        self.deadline = deadline
        self.inode: int | None = None


@implementer(IProposer, ILedgerListener, IQuorumListener)
class ClusterProposer:
    """Proposes changes to the cluster, and hands what the cluster decided to the ledger.

    A change is sent only in mode SYNCED; while a synchronisation runs, changes wait here, in order. (A member that is
    not synced yet must not send: messages of such members are not delivered in the same order everywhere.)

    @param service: of group C{pve_dcdb_v1}; its C{perform} and C{mode_changed} are taken over.
    @param replica: that group's application.
    @param operation_timeout: longest wait of a change for the cluster, seconds.
    @param conf_changed: told the committed content of C{corosync.conf}, and whether this node changed it.
    @ivar proposed: how many changes were proposed.
    @ivar refused: how many of them were refused before they were sent.
    """

    def __init__(
        self,
        reactor: ClusterReactor,
        service: GroupService,
        replica: TreeReplica,
        ledger: ILedger,
        limits: Limits,
        operation_timeout: float,
        conf_changed: Callable[[bytes, bool], object] = lambda content, own: None,
    ) -> None:
        self._reactor = reactor
        self._service = service
        self._replica = replica
        self._ledger = ledger
        self._limits = limits
        self._operation_timeout = operation_timeout
        self._conf_changed = conf_changed
        self.proposed = 0
        self.refused = 0
        self._waiting: dict[int, _Proposal] = {}
        self._held: deque[_Proposal] = deque()
        self._expiry: IDelayedCall | None = None
        self._failure = 0  # errno of the failed commit while the database takes none
        replica.outdated = lambda: service.machine.outdated
        service.perform = self.perform
        service.mode_changed = self._mode_changed

    # -- IProposer

    def propose(self, change: Change, acknowledge: Acknowledge, meant: Meant | None = None) -> None:
        self.proposed += 1
        try:
            change = self._admitted(change)
        except OperationError as refused:
            self.refused += 1
            self._ledger.settle(acknowledge, -refused.errno)
            return
        refusal = self._refusal()
        if refusal:
            self.refused += 1
            acknowledge(-refusal)
            return
        proposal = _Proposal(change, acknowledge, meant, self._service.monotonic() + self._operation_timeout)
        if self._service.machine.mode is Mode.SYNCED and not self._held:
            self._submit(proposal)
        else:
            if isinstance(change, Write | SetMtime):  # of an entry, not of a name
                proposal.inode = self._inode_at(change.path)
            self._held.append(proposal)
        self._watch_time()

    def synchronise(self, acknowledge: Acknowledge) -> None:
        self._ledger.synchronise(acknowledge)

    def _inode_at(self, path: bytes) -> int | None:
        entry = self._replica.tree.lookup(path)
        return None if entry is None else entry.inode

    def _admitted(self, change: Change) -> Change:
        if b"\0" in change.path or (isinstance(change, Rename) and b"\0" in change.to):
            raise OperationError(EINVAL)
        return admit(self._replica.tree, change, self._limits)

    def _refusal(self) -> int:
        """The errno for which nothing can be proposed now, or 0."""
        if self._failure:
            return self._failure
        if not self._replica.quorate:
            return EACCES
        if not self._service.machine.joined:
            return EBUSY
        return 0

    def _submit(self, proposal: _Proposal) -> None:
        service, change = self._service, proposal.change
        lock = release_asked(self._replica.tree, change)
        if lock is not None:
            request = LockPayload(lock, change.path.lstrip(b"/"))
            service.send(TreeSubtype.UNLOCK_REQUEST, request.encode())
        number = 0

        def not_sent() -> None:
            if self._waiting.pop(number, None) is not None:
                proposal.acknowledge(-EBUSY)

        subtype, payload = encode_change(change)
        number = service.send(subtype, payload, not_sent)
        if number and service.machine.joined:
            self._waiting[number] = proposal
            self._replica.foresee(subtype, payload, service.machine.own.node_id, service.wall())
        else:
            proposal.acknowledge(-EBUSY)

    def _mode_changed(self, mode: Mode) -> None:
        while self._held and self._service.machine.mode is Mode.SYNCED:
            proposal = self._held.popleft()
            try:
                if proposal.inode is not None and self._inode_at(proposal.change.path) != proposal.inode:
                    raise OperationError(ENOENT)  # the synchronisation has put another file there
                proposal.change = self._admitted(proposal.change)
            except OperationError as refused:
                self.refused += 1
                self._ledger.settle(proposal.acknowledge, -refused.errno)
            else:
                refusal = self._refusal()
                if refusal:
                    self.refused += 1
                    proposal.acknowledge(-refusal)
                else:
                    self._submit(proposal)

    # -- deadlines

    def _watch_time(self) -> None:
        if self._expiry is None and (self._waiting or self._held):
            self._expiry = self._reactor.callLater(self._operation_timeout, self._expired)

    def _expired(self) -> None:
        """Deadlines are in order: all operations have the same time."""
        self._expiry = None
        now = self._service.monotonic()
        while self._held and self._held[0].deadline <= now:
            # Never sent, so it will not happen: no need for "outcome unknown".
            self._held.popleft().acknowledge(-EBUSY)
        for number, proposal in list(self._waiting.items()):
            if proposal.deadline > now:
                break
            del self._waiting[number]
            if self._service.withdraw(number):
                proposal.acknowledge(-EBUSY)
                continue
            _log.error(
                "no answer of the cluster for {seconds} s, the outcome of {operation} {path} is unknown",
                seconds=self._operation_timeout,
                operation=type(proposal.change).__name__,
                path=proposal.change.path.decode("utf-8", "backslashreplace"),
            )
            proposal.acknowledge(-EIO)
        oldest = self._oldest()
        if oldest is not None:
            self._expiry = self._reactor.callLater(max(0.0, oldest.deadline - now), self._expired)

    def _oldest(self) -> _Proposal | None:
        pending = [next(iter(self._waiting.values()))] if self._waiting else []
        pending += [self._held[0]] if self._held else []
        return min(pending, key=attrgetter("deadline"), default=None)

    @property
    def backlog(self) -> Backlog:
        """The changes that wait for the cluster, sent or not yet."""
        oldest = self._oldest()
        if oldest is None:
            return Backlog()
        count = len(self._waiting) + len(self._held)
        return Backlog(count, oldest.deadline - self._operation_timeout, oldest.change.path)

    # -- effects

    def perform(self, effect: Effect) -> None:
        """Carry out an effect of the tree's replica or machine."""
        if isinstance(effect, Commit):
            proposal = None if effect.count is None else self._waiting.pop(effect.count, None)
            if proposal is None:
                self._ledger.commit(effect.delta)
            else:
                self._ledger.commit(effect.delta, proposal.acknowledge, effect.outcome, proposal.meant)
        elif isinstance(effect, Settle):
            proposal = self._waiting.pop(effect.count, None)
            if proposal is not None:
                self._ledger.settle(proposal.acknowledge, effect.outcome)
        elif isinstance(effect, FailWaiting):
            self._fail_waiting(effect.errno)
        elif isinstance(effect, ClusterConfChanged):
            content, own = effect.content, effect.own

            def committed(outcome: int) -> None:
                self._reactor.callFromThread(self._tell_conf, content, own)

            self._ledger.settle(committed, 0)

    def _fail_waiting(self, errno: int) -> None:
        waiting = [*self._waiting.values(), *self._held]
        self._waiting.clear()
        self._held.clear()
        for proposal in waiting:
            proposal.acknowledge(-errno)

    def _tell_conf(self, content: bytes, own: bool) -> None:
        if not self._failure:  # otherwise its commit has failed, which we were told before
            self._conf_changed(content, own)

    # -- IQuorumListener

    def quorum_changed(self, quorate: bool, node_ids: Sequence[int]) -> None:
        state = "may write" if quorate else "may not write"
        _log.debug("quorum: nodes {nodes}, this one {state}", nodes=_listed(node_ids), state=state)
        self._replica.quorate = quorate
        self._service.quorum_changed(node_ids, quorate)
        if not quorate:
            held, self._held = self._held, deque()
            for proposal in held:
                proposal.acknowledge(-EACCES)

    # -- ILedgerListener

    def commit_failed(self, errno: int, committed: Tree) -> None:
        self._failure = errno
        self._replica.reset(committed)
        self._service.suspend("the database refuses changes")

    def recovered(self) -> None:
        self._failure = 0
        self._replica.reset(self._ledger.newest)
        self._service.resume()
