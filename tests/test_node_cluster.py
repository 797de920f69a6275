"""The group service and the cluster's proposer, over a group connection in memory."""

from __future__ import annotations

from collections.abc import Callable
from errno import EACCES, EBUSY, EEXIST, EFBIG, EINVAL, EIO, ENOENT, ENOSPC

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from pvecfs.errors import CorosyncUnavailable, TryAgain
from pvecfs.interfaces import (
    SEND_PATIENCE,
    IGroupConnection,
    IGroupListener,
    ILedger,
    ILedgerListener,
    IProposer,
    IQuorumListener,
)
from pvecfs.log import set_verbose
from pvecfs.node.cluster import (
    JOIN_INTERVAL,
    LEAVE_PATIENCE,
    SEND_INTERVAL,
    SEND_TURN,
    STOP_PATIENCE,
    ClusterProposer,
    GroupService,
    Standing,
)
from pvecfs.node.ledger import RECOVERY_INTERVAL, Ledger
from pvecfs.node.view import NodeView
from pvecfs.replica import dcdb
from pvecfs.replica.dcdb import TreeReplica
from pvecfs.replica.machine import GroupMachine, Mode
from pvecfs.replica.member import Instant, Member
from pvecfs.replica.messages import (
    Normal,
    State,
    SyncStart,
    TreeSubtype,
    Update,
    UpdateComplete,
    VerifyRequest,
    encode_change,
    encode_entry,
)
from pvecfs.store.errors import StoreError
from pvecfs.store.memory import MemoryStore
from pvecfs.tree.admission import Limits
from pvecfs.tree.changes import Create, Delete, Mkdir, Rename, SetMtime, Write
from pvecfs.tree.locks import LockClocks
from pvecfs.tree.tree import Tree
from tests.wire import Message, decode

ME, OTHER = Member(2, 20), Member(3, 30)


@implementer(IGroupConnection)
class MemoryConnection:
    """A connection whose other end is the test.

    @ivar calls: what was asked for besides sending.
    @ivar sent: messages that corosync took and that were not delivered.
    @ivar refusals: number of sends to refuse with L{TryAgain}; -1: all.
    @ivar broken: every call raises L{CorosyncUnavailable}.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.sent: list[bytes] = []
        self.refusals = 0
        self.broken = False
        self.listener: IGroupListener | None = None

    def _called(self, name: str) -> None:
        if self.broken:
            raise CorosyncUnavailable("broken")
        self.calls.append(name)

    def open(self, listener: IGroupListener) -> None:
        self.calls.append("open")
        self.listener = listener

    def leave(self) -> None:
        self._called("leave")

    def join(self) -> None:
        self._called("join")

    def multicast(self, message: bytes) -> None:
        if self.broken:
            raise CorosyncUnavailable("broken")
        if self.refusals:
            self.refusals -= 1
            raise TryAgain("full")
        self.sent.append(message)

    def close(self) -> None:
        self.calls.append("close")
        self.listener = None

    def taken(self) -> list[str]:
        """The calls since the last question."""
        calls, self.calls = self.calls, []
        return calls


class DirectReactor(Clock):
    """Reactor thread and store thread are one here."""

    def callFromThread(self, callable: Callable[..., object], *args: object) -> None:
        callable(*args)


class Outcomes:
    """Collects acknowledgements by name, in order."""

    def __init__(self) -> None:
        self.got: list[tuple[str, int]] = []

    def __call__(self, name: str) -> Callable[[int], None]:
        return lambda outcome: self.got.append((name, outcome))


BASE = Tree.new(1)
for _path in (b"priv", b"priv/lock", b"d"):
    BASE = BASE.apply(Mkdir(_path), 1, 1).tree


class ServiceCase(SynchronousTestCase):
    """A node 2 with its service, proposer, ledger and a store in memory."""

    manual = False

    def setUp(self) -> None:
        self.reactor = DirectReactor()
        self.connection = MemoryConnection()
        self.store = MemoryStore(BASE, manual=self.manual)
        self.view = NodeView(BASE, b"n2", Limits(), True, False, lambda debug: None)
        self.ledger = Ledger(self.reactor, self.store, self.view)
        self.replica = TreeReplica(BASE, LockClocks())
        self.machine = GroupMachine(self.replica, lambda: 0.5, 3600.0, 10.0)
        self.service = GroupService(self.reactor, self.connection, self.machine, self.instant)
        self.confs: list[tuple[bytes, bool]] = []
        self.proposer = ClusterProposer(
            self.reactor,
            self.service,
            self.replica,
            self.ledger,
            Limits(),
            60.0,
            lambda content, own: self.confs.append((content, own)),
        )
        self.ledger.listener = self.proposer
        self.outcomes = Outcomes()
        self.proposer.quorum_changed(True, [2, 3])
        self.service.startService()
        self.reactor.advance(0)

    def instant(self) -> Instant:
        return Instant(1000 + int(self.reactor.seconds()), self.reactor.seconds())

    def enter(self, *members: Member) -> None:
        """The join is done."""
        self.service.joined_as(ME)
        self.service.membership_changed(members or (ME,), (), (ME,))

    def deliver(self) -> None:
        """Deliver everything that we sent, back to us."""
        while self.connection.sent:
            self.service.message_delivered(ME, self.connection.sent.pop(0))

    def sent(self) -> list[Message]:
        return [decode(data) for data in self.connection.sent]

    def turns(self, seconds: float, step: float = 0.05) -> None:
        for _ in range(round(seconds / step)):
            self.reactor.advance(step)

    def got_out(self) -> None:
        self.service.membership_changed((OTHER,), (ME,), ())


class Interfaces(ServiceCase):
    def test_declared(self) -> None:
        verifyObject(IGroupListener, self.service)
        verifyObject(IProposer, self.proposer)
        verifyObject(ILedgerListener, self.proposer)
        verifyObject(IQuorumListener, self.proposer)
        verifyObject(ILedger, self.ledger)
        verifyObject(IGroupConnection, self.connection)


class Logging(ServiceCase):
    """What the log says of the group."""

    def synchronise(self) -> list[str]:
        """Synchronise with the other member, which lacks something, and lose it; the lines."""
        with capturedLogs() as events:
            self.enter(ME, OTHER)
            self.deliver()
            behind = State(1, 0, self.machine.epoch, Tree.new(1).index()).encode()
            self.service.message_delivered(OTHER, behind)
            self.deliver()
            self.service.membership_changed((ME,), (OTHER,), ())
            self.proposer.quorum_changed(False, [2])
        return [formatEvent(event) for event in events]

    def test_verbose(self) -> None:
        """Every step of a synchronisation, membership and mode is told."""
        self.addCleanup(set_verbose, False)
        set_verbose(True)
        self.assertEqual(
            self.synchronise(),
            [
                "pve_dcdb_v1: members 2/20, 3/30, left: none, joined: 2/20",
                "pve_dcdb_v1: starting data synchronisation of members 2/20, 3/30",
                "pve_dcdb_v1: mode start, now start-sync",
                "pve_dcdb_v1: member 2/20 starts the synchronisation, sending our state",
                "pve_dcdb_v1: state 1 of 2, of member 2/20",
                "pve_dcdb_v1: state 2 of 2, of member 3/30",
                "pve_dcdb_v1: all states are here, up to date: 2/20",
                "pve_dcdb_v1: we lead, sending updates",
                "pve_dcdb_v1: all data is up to date",
                "pve_dcdb_v1: mode start-sync, now synced",
                "pve_dcdb_v1: member 2/20 has sent all updates",
                "pve_dcdb_v1: members 2/20, left: 3/30, joined: none",
                "pve_dcdb_v1: alone in the group, all data is up to date",
                "quorum: nodes 2, this one may not write",
            ],
        )

    def test_otherwise(self) -> None:
        """What is not to be expected, and what it has come to."""
        self.assertEqual(
            self.synchronise(),
            [
                "pve_dcdb_v1: starting data synchronisation of members 2/20, 3/30",
                "pve_dcdb_v1: all data is up to date",
                "pve_dcdb_v1: alone in the group, all data is up to date",
            ],
        )


class Joining(ServiceCase):
    def test_start(self) -> None:
        self.assertEqual(self.connection.taken(), ["open"])
        self.enter()
        self.assertIs(self.machine.mode, Mode.SYNCED)

    def test_constructor_does_nothing(self) -> None:
        connection = MemoryConnection()
        GroupService(Clock(), connection, self.machine, self.instant)
        self.assertEqual(connection.calls, [])

    def test_reconnects_for_ever(self) -> None:
        self.connection.taken()
        for _ in range(5):
            self.service.connection_lost(CorosyncUnavailable("no corosync"))
            self.reactor.advance(JOIN_INTERVAL - 0.1)
            self.assertEqual(self.connection.taken(), [])
            self.reactor.advance(0.2)
            self.assertEqual(self.connection.taken(), ["open"])
        self.enter()
        self.assertIs(self.machine.mode, Mode.SYNCED)

    def test_quorum_comes_first(self) -> None:
        """Nothing of the group is heard before it is known whether we may write."""
        self.proposer.quorum_changed(False, ())
        self.service.connection_lost(CorosyncUnavailable("no corosync"))
        self.connection.taken()
        self.reactor.pump([JOIN_INTERVAL] * 5)
        self.assertEqual(self.connection.taken(), [])
        self.proposer.quorum_changed(False, [2])
        self.reactor.advance(0)
        self.assertEqual(self.connection.taken(), ["open"])
        self.proposer.quorum_changed(True, [2, 3])
        self.reactor.advance(0)
        self.assertEqual(self.connection.taken(), [])

    def test_quorum_comes_back_at_once(self) -> None:
        """The pause between two attempts is kept."""
        self.proposer.quorum_changed(False, ())
        self.service.connection_lost(CorosyncUnavailable("no corosync"))
        self.connection.taken()
        self.proposer.quorum_changed(True, [2])
        self.reactor.advance(JOIN_INTERVAL - 0.1)
        self.assertEqual(self.connection.taken(), [])
        self.reactor.advance(0.1)
        self.assertEqual(self.connection.taken(), ["open"])

    def test_leaves_and_joins_again(self) -> None:
        self.enter(ME, OTHER)
        self.connection.taken()
        self.service.message_delivered(OTHER, b"short")
        self.assertEqual(self.connection.taken(), ["leave"])
        self.assertIs(self.service.standing, Standing.LEAVING)
        self.service.message_delivered(OTHER, b"short")  # nothing is heard any more
        self.got_out()
        self.reactor.advance(JOIN_INTERVAL - 0.1)
        self.assertEqual(self.connection.taken(), [])
        self.reactor.advance(0.1)
        self.assertEqual(self.connection.taken(), ["join"])
        self.assertIs(self.machine.mode, Mode.START)
        self.service.membership_changed((ME,), (), (ME,))
        self.assertIs(self.machine.mode, Mode.SYNCED)

    def test_joins_at_once_when_the_last_join_was_long_ago(self) -> None:
        self.enter(ME, OTHER)
        self.reactor.advance(9.0)
        self.service.message_delivered(OTHER, b"short")
        self.connection.taken()
        self.got_out()
        self.reactor.advance(0)
        self.assertEqual(self.connection.taken(), ["join"])

    def test_put_out_by_the_group(self) -> None:
        self.enter(ME, OTHER)
        self.reactor.advance(9.0)
        self.connection.taken()
        self.got_out()
        self.reactor.advance(0)
        self.assertEqual(self.connection.taken(), ["join"])

    def test_a_leave_that_nobody_confirms(self) -> None:
        self.enter(ME, OTHER)
        self.service.message_delivered(OTHER, b"short")
        self.connection.taken()
        self.reactor.advance(LEAVE_PATIENCE)
        self.reactor.advance(0)
        self.assertEqual(self.connection.taken(), ["close", "open"])

    def test_a_broken_connection_while_leaving_or_joining(self) -> None:
        self.enter(ME, OTHER)
        self.connection.broken = True
        self.service.message_delivered(OTHER, b"short")
        self.connection.taken()
        self.connection.broken = False
        self.reactor.advance(JOIN_INTERVAL)
        self.assertEqual(self.connection.taken(), ["open"])
        self.enter(ME, OTHER)
        self.service.message_delivered(OTHER, b"short")
        self.got_out()
        self.connection.broken = True
        self.reactor.advance(JOIN_INTERVAL)
        self.assertIs(self.service.standing, Standing.CLOSED)
        self.connection.broken = False
        self.reactor.advance(JOIN_INTERVAL)
        self.assertIs(self.service.standing, Standing.JOINED)

    def test_newer_protocol_ends_it(self) -> None:
        self.enter(ME, OTHER)
        self.connection.taken()
        self.service.message_delivered(OTHER, Normal(2, 1, 1, 1, b"").encode())
        self.assertEqual(self.connection.taken(), ["close"])
        self.reactor.advance(1000.0)
        self.assertEqual(self.connection.taken(), [])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_a_bug_ends_it(self) -> None:
        self.enter()

        def fail(effect: object) -> None:
            raise ZeroDivisionError

        self.service.perform = fail
        self.service.send(*encode_change(Create(b"f")))
        self.deliver()
        self.assertIs(self.machine.mode, Mode.ERROR)
        self.assertIs(self.service.standing, Standing.ENDED)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_synchronisation_deadline(self) -> None:
        self.enter(ME, OTHER)
        self.connection.taken()
        self.reactor.advance(9.9)
        self.assertIs(self.machine.mode, Mode.START_SYNC)
        self.reactor.advance(0.2)
        self.assertIs(self.machine.mode, Mode.LEAVE)
        self.assertEqual(self.connection.taken(), ["leave"])

    def test_verification(self) -> None:
        self.enter()
        for _ in range(3):
            self.reactor.advance(1200.1)
        self.assertEqual([type(message) for message in self.sent()], [VerifyRequest])


class Stopping(ServiceCase):
    def stop(self) -> Deferred[None]:
        return self.service.stopService()

    def test_inside(self) -> None:
        self.enter(ME, OTHER)
        self.connection.taken()
        stopped = self.stop()
        self.assertEqual(self.connection.taken(), ["leave"])
        self.assertNoResult(stopped)
        self.got_out()
        self.successResultOf(stopped)
        self.assertEqual(self.connection.taken(), ["close"])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_without_an_answer(self) -> None:
        self.enter(ME, OTHER)
        stopped = self.stop()
        self.reactor.advance(STOP_PATIENCE)
        self.successResultOf(stopped)

    def test_corosync_gone(self) -> None:
        self.enter()
        stopped = self.stop()
        self.service.connection_lost(CorosyncUnavailable("killed"))
        self.successResultOf(stopped)
        self.enter()
        self.connection.broken = True
        self.successResultOf(self.stop())

    def test_not_connected(self) -> None:
        self.service.connection_lost(CorosyncUnavailable("no corosync"))
        self.successResultOf(self.stop())
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_waiting_callers_are_failed(self) -> None:
        self.enter()
        self.proposer.propose(Create(b"f"), self.outcomes("f"))
        self.stop()
        self.assertEqual(self.outcomes.got, [("f", -EBUSY)])
        self.proposer.propose(Create(b"g"), self.outcomes("g"))
        self.assertEqual(self.outcomes.got[1:], [("g", -EBUSY)])


class Proposing(ServiceCase):
    def test_through_the_group(self) -> None:
        self.enter()
        self.proposer.propose(Create(b"f"), self.outcomes("create"))
        self.proposer.propose(Write(b"f", b"abc"), self.outcomes("write"))
        self.proposer.propose(Create(b"f"), self.outcomes("again"))
        self.proposer.propose(Delete(b"none"), self.outcomes("delete"))
        self.assertEqual(self.outcomes.got, [])
        self.assertIs(self.view.tree, BASE)
        self.assertEqual([m.count for m in self.sent() if isinstance(m, Normal)], [1, 2, 3, 4])
        self.deliver()
        self.assertEqual(self.outcomes.got, [("create", 0), ("write", 3), ("again", -EEXIST), ("delete", -ENOENT)])
        entry = self.store.stored().lookup(b"f")
        assert entry is not None
        self.assertEqual((entry.data, entry.writer, entry.mtime), (b"abc", 2, 1000))

    def test_refused_before_sending(self) -> None:
        self.enter()
        for change, errno in (
            (Write(b"f", b"x", 2**40), EFBIG),
            (Rename(b"d", b"d/x"), EINVAL),
            (Create(b"a\0b"), EINVAL),
            (Rename(b"d", b"a\0b"), EINVAL),
        ):
            self.proposer.propose(change, self.outcomes("x"))
            self.assertEqual(self.outcomes.got.pop(), ("x", -errno))
        self.assertEqual(self.sent(), [])

    def test_not_quorate(self) -> None:
        self.enter()
        self.proposer.quorum_changed(False, [2])
        self.proposer.propose(Create(b"f"), self.outcomes("f"))
        self.assertEqual(self.outcomes.got, [("f", -EACCES)])

    def test_quorum_lost_while_it_was_under_way(self) -> None:
        self.enter()
        self.proposer.propose(Create(b"f"), self.outcomes("f"))
        self.proposer.quorum_changed(False, [2])
        self.deliver()
        self.assertEqual(self.outcomes.got, [("f", -EACCES)])
        self.assertIs(self.machine.mode, Mode.LEAVE)

    def test_not_joined(self) -> None:
        self.proposer.propose(Create(b"f"), self.outcomes("f"))
        self.assertEqual(self.outcomes.got, [("f", -EBUSY)])

    def test_connection_lost_fails_the_waiting_at_once(self) -> None:
        self.enter()
        self.proposer.propose(Create(b"f"), self.outcomes("f"))
        self.service.connection_lost(CorosyncUnavailable("gone"))
        self.assertEqual(self.outcomes.got, [("f", -EBUSY)])

    def test_connection_lost_while_sending(self) -> None:
        self.enter()
        self.connection.broken = True
        self.proposer.propose(Create(b"f"), self.outcomes("f"))
        self.assertEqual(self.outcomes.got, [("f", -EBUSY)])
        self.assertIs(self.service.standing, Standing.CLOSED)

    def test_deadline(self) -> None:
        self.enter()
        self.proposer.propose(Create(b"f"), self.outcomes("f"))
        self.reactor.advance(30.0)
        self.proposer.propose(Create(b"g"), self.outcomes("g"))
        self.reactor.advance(29.9)
        self.assertEqual(self.outcomes.got, [])
        self.reactor.advance(0.2)
        self.assertEqual(self.outcomes.got, [("f", -EIO)])
        self.deliver()  # it happens after all, and nobody is told twice
        self.assertEqual(self.outcomes.got, [("f", -EIO), ("g", 0)])
        self.assertIsNotNone(self.view.tree.lookup(b"f"))
        self.reactor.advance(100.0)
        self.assertEqual(len(self.outcomes.got), 2)

    def test_try_again(self) -> None:
        self.enter()
        self.connection.refusals = 3
        for name in ("a", "b", "c"):
            self.proposer.propose(Create(name.encode()), self.outcomes(name))
        self.assertEqual(self.sent(), [])
        self.turns(0.2, 0.01)
        self.assertEqual([m.count for m in self.sent() if isinstance(m, Normal)], [1, 2, 3])
        self.deliver()
        self.assertEqual(self.outcomes.got, [("a", 0), ("b", 0), ("c", 0)])

    def test_try_again_for_too_long(self) -> None:
        self.enter()
        self.connection.refusals = -1
        self.proposer.propose(Create(b"a"), self.outcomes("a"))
        self.turns(5.0)
        self.proposer.propose(Create(b"b"), self.outcomes("b"))
        self.turns(SEND_PATIENCE - 5.2)
        self.assertEqual(self.outcomes.got, [])
        self.turns(0.5)
        self.assertEqual(self.outcomes.got, [("a", -EBUSY)])
        self.connection.refusals = 0
        self.turns(0.1)
        self.deliver()
        self.assertEqual(self.outcomes.got, [("a", -EBUSY), ("b", 0)])
        self.assertIsNone(self.view.tree.lookup(b"a"))

    def test_never_sent_at_the_deadline(self) -> None:
        """Its outcome is known: it will not happen."""
        self.proposer._operation_timeout = 2.0
        self.enter()
        self.connection.refusals = -1
        self.proposer.propose(Create(b"a"), self.outcomes("a"))
        self.turns(2.1)
        self.assertEqual(self.outcomes.got, [("a", -EBUSY)])
        self.connection.refusals = 0
        self.turns(0.1)
        self.assertEqual(self.sent(), [])

    def test_state_message_that_cannot_be_sent(self) -> None:
        self.connection.refusals = -1
        self.enter(ME, OTHER)
        self.machine._synchronisation_timeout = 1e6
        self.machine._deadline = None
        self.connection.taken()
        self.turns(SEND_PATIENCE + 0.2)
        self.assertEqual(self.connection.taken(), ["leave"])

    def test_waits_for_the_end_of_a_synchronisation(self) -> None:
        self.enter(ME, OTHER)
        self.proposer.propose(Create(b"f"), self.outcomes("f"))
        self.proposer.propose(Create(b"f"), self.outcomes("again"))
        self.assertEqual([type(m) for m in self.sent()], [SyncStart])
        self.deliver()
        self.service.message_delivered(OTHER, State(1, 1, self.machine.epoch, BASE.index()).encode())
        self.assertEqual([type(m) for m in self.sent()], [UpdateComplete, Normal, Normal])
        self.deliver()
        self.assertEqual(self.outcomes.got, [("f", 0), ("again", -EEXIST)])

    def lead(self, entries: int, refusals: int = 0) -> None:
        """Become the leader of a synchronisation in which C{OTHER} lacks so many entries (and has another root), with
        a corosync that does not take the first updates at once."""
        tree = BASE
        for number in range(entries):
            tree = tree.apply(Create(b"d/%d" % number), 2, 7).tree
        self.replica.reset(tree)
        self.enter(ME, OTHER)
        self.deliver()
        self.connection.refusals = refusals
        self.service.message_delivered(OTHER, State(1, 1, self.machine.epoch, BASE.index()).encode())

    def test_many_updates(self) -> None:
        """They are made a few at a time, and other work comes between: a change of ours is not held up by them."""
        take = self.connection.multicast

        def slow(message: bytes) -> None:
            self.reactor.rightNow += SEND_TURN / 10
            take(message)

        self.connection.multicast = slow  # type: ignore[method-assign]
        self.lead(24)
        self.proposer.propose(Create(b"f"), self.outcomes("f"))
        counts = [len(self.connection.sent)]
        self.reactor.callLater(0, lambda: counts.append(len(self.connection.sent)))
        self.reactor.advance(0)
        counts.append(len(self.connection.sent))
        self.assertEqual(counts, [10, 20, 27])
        kinds = [type(message) for message in self.sent()]
        self.assertEqual(kinds, [*[Update] * 10, Normal, *[Update] * 15, UpdateComplete])

    def test_updates_that_corosync_does_not_take_at_once(self) -> None:
        self.lead(2, refusals=3)
        self.assertEqual(self.sent(), [])
        self.turns(SEND_INTERVAL * 5, SEND_INTERVAL)
        kinds = [type(message) for message in self.sent()]
        self.assertEqual(kinds, [*[Update] * 3, UpdateComplete])

    def test_updates_that_cannot_be_made(self) -> None:
        """As any error in a group's machine: it ends, and tells whoever waits."""
        self.patch(dcdb, "encode_entry", lambda entry: 1 / 0)
        self.lead(2)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertIs(self.machine.mode, Mode.ERROR)
        self.assertIs(self.service.standing, Standing.ENDED)

    def test_updates_of_a_synchronisation_that_is_over(self) -> None:
        self.lead(5, refusals=1)
        self.service.membership_changed((ME, OTHER, Member(9, 9)), (), (Member(9, 9),))
        self.turns(SEND_INTERVAL * 5, SEND_INTERVAL)
        kinds = [type(message) for message in self.sent()]
        self.assertEqual(kinds, [Update, SyncStart], "one was made already")

    def test_a_synchronisation_puts_another_file_at_the_path(self) -> None:
        """What was meant for the file that was there is not done to the new one."""
        mine = BASE.apply(Create(b"d/f"), 2, 7).tree
        theirs = BASE.apply(Create(b"e"), 3, 8).tree.apply(Create(b"d/f"), 3, 8).tree
        for tree, outcome in (theirs, -ENOENT), (mine.apply(Create(b"e"), 3, 8).tree, 1):
            self.setUp()
            self.replica.reset(mine)
            self.ledger.newest = mine
            self.enter(ME, OTHER)
            self.proposer.propose(Write(b"d/f", b"x"), self.outcomes("write"))
            self.deliver()
            epoch = self.machine.epoch
            self.service.message_delivered(OTHER, State(1, 1, epoch, tree.index()).encode())
            for entry in tree.entries():
                if mine.entry(entry.inode) != entry:
                    self.service.message_delivered(OTHER, Update(1, 1, epoch, encode_entry(entry)).encode())
            self.service.message_delivered(OTHER, UpdateComplete(1, 1, epoch).encode())
            self.assertIs(self.machine.mode, Mode.SYNCED)
            self.deliver()
            self.assertEqual(self.outcomes.got, [("write", outcome)])
            there = self.ledger.newest.lookup(b"d/f")
            assert there is not None
            self.assertEqual(there.data, b"x" if outcome > 0 else b"")

    def test_a_synchronisation_that_takes_too_long(self) -> None:
        self.proposer._operation_timeout = 2.0
        self.enter(ME, OTHER)
        self.proposer.propose(Create(b"f"), self.outcomes("f"))
        self.reactor.advance(2.0)
        self.assertEqual(self.outcomes.got, [("f", -EBUSY)])

    def test_quorum_lost_in_a_synchronisation(self) -> None:
        self.enter(ME, OTHER)
        self.proposer.propose(Create(b"f"), self.outcomes("f"))
        self.proposer.quorum_changed(False, [2])
        self.assertEqual(self.outcomes.got, [("f", -EACCES)])

    def test_lock_release(self) -> None:
        self.enter(ME)
        self.proposer.propose(Mkdir(b"priv/lock/x"), self.outcomes("lock"))
        self.deliver()
        self.proposer.propose(SetMtime(b"priv/lock/x", 0), self.outcomes("release"))
        self.assertEqual(
            [m.subtype for m in self.sent() if isinstance(m, Normal)], [TreeSubtype.UNLOCK_REQUEST, TreeSubtype.MTIME]
        )
        self.deliver()
        self.reactor.advance(121.0)
        self.proposer.propose(SetMtime(b"priv/lock/x", 0), self.outcomes("release"))
        self.deliver()  # we are the lowest, so we send the unlock too
        self.assertEqual(self.outcomes.got, [("lock", 0), ("release", -EACCES), ("release", -EACCES)])
        self.assertIsNone(self.view.tree.lookup(b"priv/lock/x"))

    def test_cluster_conf(self) -> None:
        self.enter(ME)
        conf = b"config_version: 7"
        self.proposer.propose(Create(b"corosync.conf"), self.outcomes("c"))
        self.proposer.propose(Write(b"corosync.conf", conf), self.outcomes("w"))
        self.deliver()
        self.assertEqual(self.confs, [(b"", True), (conf, True)])
        self.service.message_delivered(
            OTHER, Normal(1, 1, *_swapped(encode_change(Write(b"corosync.conf", conf)))).encode()
        )
        self.assertEqual(self.confs[2:], [(conf, False)])

    def test_synchronise(self) -> None:
        self.proposer.synchronise(self.outcomes("sync"))
        self.assertEqual(self.outcomes.got, [("sync", 0)])
        self.assertEqual(self.store.synchronised, 1)


def _swapped(change: tuple[TreeSubtype, bytes]) -> tuple[int, int, bytes]:
    return change[0], 1, change[1]


class Order(ServiceCase):
    """Nothing is acknowledged or published before its commit."""

    manual = True

    def test_acknowledged_after_the_commit(self) -> None:
        self.enter()
        self.proposer.propose(Create(b"f"), self.outcomes("f"))
        self.proposer.propose(Create(b"f"), self.outcomes("again"))
        self.deliver()
        self.assertEqual(self.outcomes.got, [])
        self.assertIs(self.view.tree, BASE)
        self.store.settle()
        self.assertEqual(self.outcomes.got, [("f", 0), ("again", -EEXIST)])
        self.assertIs(self.view.tree, self.replica.tree)


class FailedCommits(ServiceCase):
    manual = True

    def test_leaves_and_recovers(self) -> None:
        self.enter(ME, OTHER)
        self.deliver()
        self.service.message_delivered(OTHER, State(1, 1, self.machine.epoch, BASE.index()).encode())
        self.connection.taken()
        self.proposer.propose(Create(b"f"), self.outcomes("f"))
        self.proposer.propose(Create(b"g"), self.outcomes("g"))
        self.deliver()
        self.proposer.propose(Create(b"under-way"), self.outcomes("under-way"))
        self.store.failure = StoreError(ENOSPC, "full")
        self.store.settle()
        self.assertEqual(self.connection.taken(), ["leave"])
        self.assertEqual(sorted(self.outcomes.got), [("f", -ENOSPC), ("g", -ENOSPC), ("under-way", -EBUSY)])
        self.assertIs(self.replica.tree, BASE)
        self.proposer.propose(Create(b"h"), self.outcomes("h"))
        self.assertEqual(self.outcomes.got[-1], ("h", -ENOSPC))
        self.got_out()
        self.reactor.pump([RECOVERY_INTERVAL] * 10)
        self.assertEqual(self.connection.taken(), [])  # it stays out as long as it cannot write
        self.store.failure = None
        self.reactor.advance(RECOVERY_INTERVAL)
        self.reactor.advance(0)
        self.assertEqual(self.connection.taken(), ["join"])
        self.service.membership_changed((ME,), (), (ME,))
        self.connection.sent.clear()
        self.proposer.propose(Create(b"f"), self.outcomes("f"))
        self.deliver()
        self.store.settle()
        self.assertEqual(self.outcomes.got[-1], ("f", 0))
        self.assertEqual(self.store.stored().index(), self.replica.tree.index())

    def test_cluster_conf(self) -> None:
        """The host gets what was committed, not what was applied after it."""
        self.enter()
        self.proposer.propose(Create(b"corosync.conf"), self.outcomes("c"))
        for content in b"1", b"22":
            self.proposer.propose(Write(b"corosync.conf", content), self.outcomes("w"))
        self.deliver()
        self.assertEqual(self.confs, [])
        created, first, second = self.store._queue  # two transactions: one succeeds
        self.store._queue = [created, first]
        self.store.settle()
        self.assertEqual(self.confs, [(b"", True), (b"1", True)])
        self.store._queue = [second]
        self.store.failure = StoreError(ENOSPC, "full")
        self.store.settle()
        self.assertEqual(self.confs, [(b"", True), (b"1", True)])

    def test_what_is_delivered_meanwhile_is_not_applied(self) -> None:
        """The failure arises while messages wait to be handled: they must not reach the tree that was set back."""
        self.enter()
        self.store.manual = False
        self.store.failure = StoreError(ENOSPC, "full")
        for name in (b"f", b"g"):
            self.service.send(*encode_change(Create(name)))
        first, second = self.connection.sent
        perform = self.service.perform

        def meanwhile(effect: object) -> None:
            self.service.message_delivered(ME, second)
            perform(effect)  # type: ignore[arg-type]  # an effect

        self.service.perform = meanwhile
        self.service.message_delivered(ME, first)
        self.assertIs(self.replica.tree, BASE)
        self.assertIs(self.machine.mode, Mode.LEAVE)

    def test_while_joining(self) -> None:
        self.connection.taken()
        self.service.suspend("the database")
        self.assertEqual(self.connection.taken(), ["close"])
        self.reactor.advance(100.0)
        self.assertEqual(self.connection.taken(), [])
        self.service.resume()
        self.reactor.advance(0)
        self.assertEqual(self.connection.taken(), ["open"])
