"""The connections over libraries that are doubles: order, failures, and calls that hang."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, cast

from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from pvecfs.corosync import group
from pvecfs.corosync.configuration import SETTLING_SECONDS, ClusterConfigConnection, read_configuration
from pvecfs.corosync.group import (
    AWAKE_SECONDS,
    BACKLOG_BYTES,
    REST_SECONDS,
    SEND_MARGIN,
    SIGNAL_BYTES,
    GroupConnection,
)
from pvecfs.corosync.libcmap import LibCmap
from pvecfs.corosync.libcpg import ATOMIC_SIZE, ConfigurationChanged, Delivered
from pvecfs.corosync.libquorum import QuorumChanged
from pvecfs.corosync.quorum import QuorumConnection
from pvecfs.corosync.service import PersistentConnection
from pvecfs.corosync.session import LATE_SECONDS, Session
from pvecfs.errors import CorosyncUnavailable, TryAgain
from pvecfs.interfaces import IClusterConfigListener, IGroupConnection, IGroupListener, IQuorumListener
from pvecfs.log import set_verbose
from pvecfs.replica.member import Member
from pvecfs.replica.status import ClusterConfiguration, NodeInfo
from tests.lab import eventually


class DoubleReactor(Clock):
    """A clock, the readers, and the calls from threads, which are made by L{run}."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[Session] = []
        self.from_threads: deque[Callable[[], None]] = deque()

    def addReader(self, reader: Session) -> None:
        if reader not in self.readers:
            self.readers.append(reader)

    def removeReader(self, reader: Session) -> None:
        if reader in self.readers:
            self.readers.remove(reader)

    def callFromThread(self, call: Callable[..., None], *arguments: object) -> None:
        self.from_threads.append(lambda: call(*arguments))

    def turn(self) -> None:
        """Make the calls from threads."""
        while self.from_threads:
            self.from_threads.popleft()()

    def until(self, condition: Callable[[], bool], what: str = "condition") -> None:
        """Turn until C{condition}, bounded."""

        def turned() -> bool:
            self.turn()
            return condition()

        eventually(turned, 5, what)


class Events(deque[Any]):
    """What dispatch hands out. With each event a byte lies in the library's sockets, as libqb does it.

    @ivar signal: puts bytes there.
    """

    def __init__(self, signal: Callable[[int], None]) -> None:
        super().__init__()
        self.signal = signal

    def append(self, event: Any) -> None:
        super().append(event)
        self.signal(1)

    def extend(self, events: Iterable[Any]) -> None:
        for event in events:
            self.append(event)


class DoubleLibrary:
    """Plays libcpg, libquorum and libcmap. Handles count from 1; every call is written down.

    @ivar events: what dispatch hands out, one element each time.
    @ivar answers: what the calls of a name do, one after the other: exceptions are raised, functions called.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.events = Events(self._signal)
        self.answers: dict[str, deque[Any]] = {}
        self.keys_and_values: dict[bytes, int | bytes] = {}
        self.handles = 0
        self.sockets: dict[int, tuple[socket.socket, socket.socket]] = {}

    def _play(self, name: str, *arguments: object) -> None:
        self.calls.append((name, *arguments))
        answers = self.answers.get(name)
        if answers:
            answer = answers.popleft()
            if isinstance(answer, Exception):
                raise answer
            answer()

    def _signal(self, count: int) -> None:
        for _, theirs in self.sockets.values():
            theirs.send(bytes(count))

    def named(self, name: str) -> list[tuple[object, ...]]:
        return [call[1:] for call in self.calls if call[0] == name]

    def initialize(self) -> int:
        self._play("initialize")
        self.handles += 1
        _, theirs = self.sockets[self.handles] = socket.socketpair()
        theirs.send(bytes(len(self.events)))
        return self.handles

    def finalize(self, handle: int) -> None:
        for end in self.sockets.pop(handle):
            end.close()
        self._play("finalize", handle)

    def fd_get(self, handle: int) -> int:
        return self.sockets[handle][0].fileno()

    def local_get(self, handle: int) -> int:
        self._play("local_get")
        return 7

    def join(self, handle: int, group: bytes) -> None:
        self._play("join", group)

    def leave(self, handle: int, group: bytes) -> None:
        self._play("leave", group)

    def trackstart(self, handle: int) -> None:
        self._play("trackstart")

    def track(self, handle: int, key: bytes, prefix: bool) -> None:
        self._play("track", key, prefix)

    def mcast_joined(self, handle: int, message: bytes) -> None:
        self._play("mcast", message[:10], len(message))

    def get(self, handle: int, key: bytes) -> int | bytes | None:
        return self.keys_and_values.get(key)

    def keys(self, handle: int, prefix: bytes) -> list[bytes]:
        return [key for key in self.keys_and_values if key.startswith(prefix)]

    def dispatch(self, handle: int) -> Any:
        if not self.events:
            return None
        self.sockets[handle][0].recv(1)
        event = self.events.popleft()
        if isinstance(event, Exception):
            raise event
        return event


@implementer(IGroupListener, IQuorumListener, IClusterConfigListener)
class Diary:
    """A listener that writes down what it is told, and then does what it was asked to do at such an event."""

    def __init__(self) -> None:
        self.entries: list[tuple[object, ...]] = []
        self.reactions: dict[str, Callable[[], None]] = {}

    def _write(self, what: str, *details: object) -> None:
        self.entries.append((what, *details))
        self.reactions.get(what, lambda: None)()

    def joined_as(self, member: object) -> None:
        self._write("joined_as", cast(Member, member).node_id)

    def membership_changed(self, members: Sequence[object], left: Sequence[object], joined: Sequence[object]) -> None:
        self._write("membership", *members)

    def message_delivered(self, sender: object, message: bytes) -> None:
        self._write("message", message)

    def connection_lost(self, reason: Exception) -> None:
        self._write("lost", type(reason))

    def quorum_changed(self, quorate: bool, node_ids: Sequence[int]) -> None:
        self._write("quorum", quorate, *node_ids)

    def configuration_read(self, configuration: object) -> None:
        self._write("configuration", configuration)

    def lost(self, reason: CorosyncUnavailable) -> None:
        self._write("lost", type(reason))


def message(text: bytes, sender: int = 7) -> list[Delivered]:
    return [Delivered((sender, 1), text)]


class ConnectionCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = DoubleReactor()
        self.library = DoubleLibrary()
        self.quorum_library = DoubleLibrary()
        self.diary = Diary()
        self.quorum = QuorumConnection(cast(Any, self.reactor), cast(Any, lambda: self.quorum_library))
        self.times_behind = 0
        # No test but the one of portions depends on how long the machine takes.
        self.patch(group, "BATCH_SECONDS", 60.0)

        def fell_behind() -> None:
            self.times_behind += 1

        @contextmanager
        def gathering() -> Iterator[None]:
            self.gatherings.append(0)
            told = len(self.diary.entries)
            yield
            self.gatherings[-1] = len(self.diary.entries) - told

        self.gatherings: list[int] = []  # how much was told in each
        self.group = GroupConnection(
            cast(Any, self.reactor),
            b"pve_dcdb_v1",
            self.quorum.dispatch_pending,
            cast(Any, lambda: self.library),
            fell_behind=fell_behind,
            gathering=gathering,
        )
        self.addCleanup(self.quorum.close)
        self.addCleanup(self.group.close)

    @property
    def told(self) -> list[object]:
        return [entry[0] for entry in self.diary.entries]

    def open(self) -> Session:
        """Open the group; @return: what the reactor reads."""
        others = len(self.reactor.readers)
        self.group.open(self.diary)
        self.reactor.until(lambda: len(self.reactor.readers) > others, "open")
        return self.reactor.readers[-1]

    def hang(self, name: str) -> threading.Event:
        """The next call of C{name} hangs until the event that is returned is set."""
        gate = threading.Event()
        self.addCleanup(gate.set)
        self.library.answers.setdefault(name, deque()).append(lambda: gate.wait(20))
        return gate


class GroupTests(ConnectionCase):
    def test_interfaces(self) -> None:
        verifyObject(IGroupConnection, self.group)
        verifyObject(IReadDescriptor, self.open())
        verifyObject(IGroupListener, self.diary)
        verifyObject(IQuorumListener, self.diary)
        verifyObject(IClusterConfigListener, self.diary)

    def test_open(self) -> None:
        """Join first, then joined_as, and only then does the reactor read events."""
        self.open()
        self.assertEqual([call[0] for call in self.library.calls], ["initialize", "local_get", "join"])
        self.assertEqual(self.library.named("join"), [(b"pve_dcdb_v1",)])
        self.assertEqual(self.diary.entries, [("joined_as", 7)])

    def test_try_again(self) -> None:
        """What corosync refuses for now is asked again."""
        for name in ("initialize", "local_get", "join"):
            self.library.answers[name] = deque([TryAgain("not now"), TryAgain("not now")])
        self.open()
        self.assertEqual(len(self.library.named("join")), 3)

    def test_everything_pending(self) -> None:
        """One doRead takes all that is pending; a piece of a long message is not the end."""
        session = self.open()
        self.library.events.extend([message(b"1"), [], message(b"2"), message(b"3")])
        session.doRead()
        self.assertEqual(self.diary.entries[1:], [("message", b"1"), ("message", b"2"), ("message", b"3")])
        self.assertEqual(self.gatherings, [3])

    def test_others_gather(self) -> None:
        """What others send is told at once after a pause, and then together, as long as it goes on."""
        session = self.open()
        self.library.events.append(message(b"1", sender=2))
        session.doRead()
        self.assertNotIn(session, self.reactor.readers)
        self.library.events.extend([message(b"2", sender=2), message(b"3", sender=3)])
        self.reactor.advance(REST_SECONDS / 2)
        self.assertEqual(self.told[1:], ["message"])
        self.reactor.advance(REST_SECONDS / 2)
        self.assertEqual(self.diary.entries[1:], [("message", b"1"), ("message", b"2"), ("message", b"3")])
        self.assertNotIn(session, self.reactor.readers)
        self.reactor.advance(REST_SECONDS)
        self.assertIn(session, self.reactor.readers)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_own_message_ends_gathering(self) -> None:
        """While a message of our own is on its way, and for a while after it, everything is told at once."""
        session = self.open()
        self.library.events.append(message(b"1", sender=2))
        session.doRead()
        self.group.multicast(b"own")
        self.assertIn(session, self.reactor.readers)
        self.library.events.append(message(b"2", sender=2))
        session.doRead()
        self.assertIn(session, self.reactor.readers)
        self.library.events.append([Delivered((7, os.getpid()), b"own")])
        session.doRead()
        self.reactor.advance(AWAKE_SECONDS / 2)
        self.library.events.append(message(b"3", sender=2))
        session.doRead()
        self.assertIn(session, self.reactor.readers)
        self.reactor.advance(AWAKE_SECONDS / 2)
        self.library.events.append(message(b"4", sender=2))
        session.doRead()
        self.assertNotIn(session, self.reactor.readers)

    def test_falling_behind(self) -> None:
        """It is noticed when messages have gathered for much too long."""
        session = self.open()
        for late, count in (0.0, 0), (LATE_SECONDS * 0.9, 0), (LATE_SECONDS * 1.1, 1):
            self.library.events.append(message(b"1", sender=2))
            session.doRead()
            self.reactor.rightNow += late
            self.library.events.append(message(b"2", sender=2))
            self.reactor.advance(REST_SECONDS)
            self.assertEqual(self.times_behind, count)
            self.reactor.advance(REST_SECONDS)

    def test_closed_while_gathering(self) -> None:
        session = self.open()
        self.library.events.append(message(b"1", sender=2))
        session.doRead()
        self.group.close()
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.reactor.advance(REST_SECONDS)
        self.assertNotIn(session, self.reactor.readers)

    def test_reactor_gets_its_turn(self) -> None:
        """A flood of events is taken in portions; the descriptor stays readable, so that the rest comes too."""
        self.patch(group, "BATCH_SECONDS", 0.01)
        session = self.open()
        self.diary.reactions["message"] = lambda: time.sleep(0.002)
        self.library.events.extend(message(b"%d" % number) for number in range(100))
        session.doRead()
        self.assertTrue(1 <= len(self.diary.entries) - 1 < 50, len(self.diary.entries))
        self.assertEqual(self.times_behind, 1)
        while self.library.events:
            session.doRead()
        self.assertEqual(self.diary.entries[1:], [("message", b"%d" % number) for number in range(100)])

    def test_quorum_first(self) -> None:
        """Quorum events that are pending are told before a group event, before each of them."""
        self.quorum.open(self.diary, self.diary.lost)
        self.reactor.until(lambda: len(self.reactor.readers) == 1)
        session = self.open()
        self.diary.entries.clear()
        self.quorum_library.events.append([QuorumChanged(True, (1, 2))])
        self.library.events.extend([message(b"1"), message(b"2")])

        def quorum_is_lost() -> None:
            self.quorum_library.events.append([QuorumChanged(False, (1,))])
            del self.diary.reactions["message"]

        self.diary.reactions["message"] = quorum_is_lost
        session.doRead()
        self.assertEqual(
            self.diary.entries,
            [("quorum", True, 1, 2), ("message", b"1"), ("quorum", False, 1), ("message", b"2")],
        )

    def test_closed_by_quorum(self) -> None:
        """Whoever closes the group because of quorum is not told the group's event any more."""
        self.quorum.open(self.diary, self.diary.lost)
        self.reactor.until(lambda: len(self.reactor.readers) == 1)
        session = self.open()
        self.quorum_library.events.append([QuorumChanged(False, (1,))])
        self.library.events.append(message(b"1"))
        self.diary.reactions["quorum"] = self.group.close
        session.doRead()
        self.assertEqual(self.told, ["joined_as", "quorum"])

    def test_listener_raises(self) -> None:
        """The connection is closed, the listener told, the failure logged."""
        session = self.open()

        def fail() -> None:
            raise RuntimeError("a defect")

        self.diary.reactions["message"] = fail
        self.library.events.extend([message(b"1"), message(b"2")])
        session.doRead()
        self.assertEqual(self.told, ["joined_as", "message", "lost"])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.reactor.until(lambda: self.library.named("finalize") == [(1,)])
        self.assertEqual(self.reactor.readers, [])

    def test_lost(self) -> None:
        """Told once, and the connection can be opened anew from within."""
        session = self.open()
        self.diary.reactions["lost"] = lambda: self.group.open(self.diary)
        self.library.events.append(CorosyncUnavailable("library error", 2))
        session.doRead()
        session.doRead()
        session.connectionLost(cast(Any, None))
        self.reactor.until(lambda: bool(self.reactor.readers))
        self.assertEqual(self.told, ["joined_as", "lost", "joined_as"])
        self.assertEqual(self.library.named("finalize"), [(1,)])

    def test_not_running(self) -> None:
        """Not an exception, but connection_lost, later."""
        self.library.answers["initialize"] = deque([CorosyncUnavailable("library error", 2)])
        self.group.open(self.diary)
        self.assertEqual(self.told, [])
        self.reactor.until(lambda: bool(self.told))
        self.assertEqual(self.diary.entries, [("lost", CorosyncUnavailable)])

    def test_not_connected(self) -> None:
        for request in (self.group.leave, self.group.join, lambda: self.group.multicast(b"x")):
            self.assertRaises(CorosyncUnavailable, request)

    def test_leave_and_join(self) -> None:
        """Once we are out the handle is closed; joining takes a new one, as the same member."""
        session = self.open()
        self.library.events.append([ConfigurationChanged(((7, 1),), (), ())])
        session.doRead()
        self.group.leave()
        self.reactor.until(lambda: self.library.named("leave") == [(b"pve_dcdb_v1",)])
        self.library.events.extend([[ConfigurationChanged((), ((7, 1),), ())], message(b"of the others")])
        session.doRead()
        self.library.events.clear()
        self.group.join()
        self.reactor.until(lambda: len(self.library.named("join")) == 2)
        self.reactor.until(lambda: bool(self.reactor.readers))
        self.assertEqual(self.told, ["joined_as", "membership", "membership"])
        order = [call[0] for call in self.library.calls]
        self.assertLess(order.index("finalize"), len(order) - 1 - order[::-1].index("initialize"))

    def test_join_from_within(self) -> None:
        """The event that says that we are out may be answered with joining at once."""
        session = self.open()
        self.group.leave()
        self.library.events.append([ConfigurationChanged((), ((7, 1),), ())])
        self.diary.reactions["membership"] = self.group.join
        session.doRead()
        self.reactor.until(lambda: len(self.library.named("join")) == 2)


class SendingTests(ConnectionCase):
    def test_at_once(self) -> None:
        """A message that fits is sent before multicast returns."""
        self.open()
        self.group.multicast(b"m" * ATOMIC_SIZE)
        self.assertEqual(self.library.named("mcast"), [(b"m" * 10, ATOMIC_SIZE)])

    def test_refused(self) -> None:
        """Corosync's "try again" is the caller's, and nothing was sent."""
        self.open()
        self.library.answers["mcast"] = deque([TryAgain("full")])
        self.assertRaises(TryAgain, self.group.multicast, b"m")
        self.group.multicast(b"m")

    def test_order(self) -> None:
        """What follows a long message waits for it, and nothing overtakes."""
        self.open()
        gate = self.hang("mcast")
        self.group.multicast(b"1" * (ATOMIC_SIZE + 1))
        self.group.multicast(b"2")
        self.group.multicast(b"3" * (ATOMIC_SIZE + 1))
        self.library.answers["mcast"].append(TryAgain("full"))
        eventually(lambda: len(self.library.calls) == 4, 5, "the first send")
        self.assertEqual(len(self.library.named("mcast")), 1)
        gate.set()
        eventually(lambda: len(self.library.named("mcast")) == 4, 5, "all sends")
        self.assertEqual([cast(bytes, sent[0])[:1] for sent in self.library.named("mcast")], [b"1", b"2", b"2", b"3"])

    def test_long_message_refused_for_too_long(self) -> None:
        """The connection is of no use then: nothing that waits behind it is sent later, when it has been given up."""
        self.patch(group, "SEND_PATIENCE", 0.05)
        self.open()
        self.library.answers["mcast"] = deque(TryAgain("full") for _ in range(1000))
        self.group.multicast(b"1" * (ATOMIC_SIZE + 1))
        self.group.multicast(b"2")
        self.reactor.until(lambda: "lost" in self.told)
        self.assertEqual({text for text, _ in self.library.named("mcast")}, {b"1" * 10})
        self.assertRaises(CorosyncUnavailable, self.group.multicast, b"3")

    def test_message_after_a_lost_one(self) -> None:
        """It is not sent, though the reactor was not told yet."""
        self.patch(group, "SEND_PATIENCE", 0.05)
        session = self.open()
        self.library.answers["mcast"] = deque(TryAgain("full") for _ in range(1000))
        self.group.multicast(b"1" * (ATOMIC_SIZE + 1))
        eventually(lambda: session.lane.idle, 5, "it is given up")
        self.library.answers["mcast"].clear()
        offered = len(self.library.named("mcast"))
        self.assertRaises(CorosyncUnavailable, self.group.multicast, b"2")
        self.assertEqual(len(self.library.named("mcast")), offered)

    def test_backlog(self) -> None:
        """Waiting messages are bounded; one that is larger than the bound is taken when nothing waits."""
        self.open()
        gate = self.hang("mcast")
        self.group.multicast(bytes(2 * BACKLOG_BYTES))
        self.assertRaises(TryAgain, self.group.multicast, b"2")
        gate.set()
        self.reactor.until(lambda: len(self.library.named("mcast")) == 1)
        eventually(lambda: self.sent_again(b"3"), 5, "room")

    def sent_again(self, text: bytes) -> bool:
        try:
            self.group.multicast(text)
        except TryAgain:
            return False
        return True

    def test_full_socket(self) -> None:
        """The library would try for ever to write its signal: so it is not called when there is no room."""
        session = self.open()
        assert session.socket is not None
        room = session.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        self.patch(self.group, "_room", min(room, 2 * SEND_MARGIN * SIGNAL_BYTES))
        while self.sent_again(b"x"):
            session.socket.send(b"s")  # as the library does
        self.assertTrue(SEND_MARGIN <= len(self.library.named("mcast")) <= 4 * SEND_MARGIN)
        self.library.sockets[1][1].recv(1000)
        self.group.multicast(b"x")

    def test_small_buffer(self) -> None:
        """How much room there is, is told to who asks, if it is less than wished (here: as much as can be)."""
        self.patch(group, "SO_SNDBUFFORCE", 9999)  # refused, as without CAP_NET_ADMIN
        self.patch(group, "SEND_BUFFER", 2**31 - 1)
        self.addCleanup(set_verbose, False)
        set_verbose(True)
        with capturedLogs() as events:
            session = self.open()
        assert session.socket is not None
        room = session.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        self.assertEqual(
            [formatEvent(event) for event in events],
            [f"pve_dcdb_v1: the socket's buffer is of {room} bytes, {2**31 - 1} are wished"],
        )

    def test_failed_later(self) -> None:
        """A waiting message that cannot be sent is a lost connection."""
        self.open()
        self.library.answers["mcast"] = deque([CorosyncUnavailable("bad handle", 9)])
        self.group.multicast(bytes(ATOMIC_SIZE + 1))
        self.reactor.until(lambda: "lost" in self.told)


class HangingTests(ConnectionCase):
    def test_close_while_joining(self) -> None:
        """The socket is shut down, which is what lets the call of the library fail."""
        shut = threading.Event()

        def hang() -> None:
            self.library.sockets[1][1].settimeout(5)
            if self.library.sockets[1][1].recv(1) == b"":
                shut.set()
            raise CorosyncUnavailable("library error", 2)

        self.library.answers["join"] = deque([hang])
        self.group.open(self.diary)
        self.reactor.until(lambda: bool(self.library.named("join")))
        self.group.close()
        eventually(lambda: self.library.named("finalize") == [(1,)], 5, "finalize")
        self.assertTrue(shut.is_set())
        self.reactor.turn()
        self.assertEqual(self.told, [])

    def test_finalize_hangs(self) -> None:
        """Nobody waits for it. It is given a second, then the socket is shut down."""
        self.open()
        other_end = self.library.sockets[1][1].dup()
        self.addCleanup(other_end.close)
        other_end.settimeout(20)
        returned = threading.Event()
        seen: list[object] = []

        def hang() -> None:
            seen.append(returned.wait(20))
            seen.append(other_end.recv(1))

        self.library.answers["finalize"] = deque([hang])
        self.group.close()
        returned.set()
        eventually(self.over, 10, "end of the thread")
        self.assertEqual(seen, [True, b""])

    def over(self) -> bool:
        return not any(thread.name == "pve_dcdb_v1" for thread in threading.enumerate())

    def test_initialize_hangs(self) -> None:
        """However often it is opened meanwhile, one call hangs and one session waits for it; then all is well."""
        gate = self.hang("initialize")
        for _ in range(10):
            self.group.open(self.diary)
        eventually(lambda: self.library.named("initialize") == [()], 5, "initialize")
        for _ in range(10):
            self.group.open(self.diary)
        eventually(lambda: self.threads() <= 2, 5, "threads to end")
        self.assertEqual(len(self.library.named("initialize")), 1)
        gate.set()
        self.reactor.until(lambda: bool(self.reactor.readers))
        self.assertEqual(self.told, ["joined_as"])
        self.assertEqual(self.library.named("finalize"), [(1,)])

    def threads(self) -> int:
        return sum(thread.name == "pve_dcdb_v1" for thread in threading.enumerate())


class QuorumTests(ConnectionCase):
    def test_lost(self) -> None:
        """No connection, no quorum."""
        self.quorum.open(self.diary, self.diary.lost)
        self.reactor.until(lambda: bool(self.reactor.readers))
        self.quorum_library.events.extend([[QuorumChanged(True, (1, 2, 3))], CorosyncUnavailable("library error", 2)])
        self.reactor.readers[0].doRead()
        self.assertEqual(
            self.diary.entries, [("quorum", True, 1, 2, 3), ("quorum", False), ("lost", CorosyncUnavailable)]
        )
        self.quorum.dispatch_pending()

    def test_listener_raises(self) -> None:
        """dispatch_pending does not raise into the group: quorum's own connection is closed."""
        self.quorum.open(self.diary, self.diary.lost)
        self.reactor.until(lambda: bool(self.reactor.readers))

        def fail() -> None:
            self.diary.reactions.clear()
            raise RuntimeError("a defect")

        self.diary.reactions["quorum"] = fail
        self.quorum_library.events.append([QuorumChanged(True, (1,))])
        self.quorum.dispatch_pending()
        self.assertEqual(self.told, ["quorum", "quorum", "lost"])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)


class ConfigurationTests(ConnectionCase):
    KEYS: ClassVar[dict[bytes, int | bytes]] = {
        b"totem.cluster_name": b"lab",
        b"totem.config_version": 12,
        b"nodelist.node.0.nodeid": 1,
        b"nodelist.node.0.name": b"n1",
        b"nodelist.node.0.ring0_addr": b"10.0.0.1",
        b"nodelist.node.0.quorum_votes": 2,
        b"nodelist.node.10.nodeid": 3,
        b"nodelist.node.10.ring0_addr": b"10.0.0.3",
        b"nodelist.node.2.name": b"without id",
        b"nodelist.local_node_pos": 0,
    }

    def setUp(self) -> None:
        super().setUp()
        self.library.keys_and_values = dict(self.KEYS)
        self.connection = ClusterConfigConnection(cast(Any, self.reactor), cast(Any, lambda: self.library))
        self.addCleanup(self.connection.close)

    def test_read(self) -> None:
        """A node without a name is called by its address; one without an id is left out; votes default to 1."""
        self.assertEqual(
            read_configuration(cast(LibCmap, self.library), 1),
            ClusterConfiguration(b"lab", 12, (NodeInfo(1, b"n1", 2), NodeInfo(3, b"10.0.0.3", 1))),
        )

    def test_nothing_there(self) -> None:
        self.library.keys_and_values.clear()
        self.assertEqual(read_configuration(cast(LibCmap, self.library), 1), ClusterConfiguration(b"", 0, ()))

    def test_one_reading_for_many_changes(self) -> None:
        self.connection.open(self.diary, self.diary.lost)
        self.reactor.until(lambda: bool(self.told))
        self.assertEqual(self.library.named("track"), [(b"nodelist.", True), (b"totem.config_version", False)])
        for _ in range(3):
            self.library.events.extend([[b"nodelist.node.0.nodeid"]] * 10)
            self.reactor.readers[0].doRead()
            self.reactor.advance(SETTLING_SECONDS / 2)
        self.library.keys_and_values[b"config.reload_in_progress"] = 1
        self.library.keys_and_values[b"totem.config_version"] = 13
        self.reactor.advance(SETTLING_SECONDS)
        self.assertEqual(len(self.told), 1)
        self.library.keys_and_values[b"config.reload_in_progress"] = 0
        self.reactor.until(lambda: len(self.told) == 2)
        self.assertEqual([cast(Any, entry[1]).version for entry in self.diary.entries], [12, 13])

    def test_closed_while_settling(self) -> None:
        self.connection.open(self.diary, self.diary.lost)
        self.reactor.until(lambda: bool(self.told))
        self.library.events.append([b"nodelist.node.0.nodeid"])
        self.reactor.readers[0].doRead()
        self.connection.close()
        self.assertEqual(self.reactor.getDelayedCalls(), [])


class PersistenceTests(ConnectionCase):
    def test_for_ever(self) -> None:
        """Opened again after each loss, until the service is stopped."""
        service = PersistentConnection(self.reactor, self.quorum, self.diary, "quorum", 2.0)
        self.quorum_library.answers["initialize"] = deque([CorosyncUnavailable("library error", 2)] * 3)
        service.startService()
        for attempt in (1, 2, 3):
            self.reactor.until(lambda attempt=attempt: self.told.count("quorum") == attempt)  # type: ignore[misc]
            self.assertEqual(self.reactor.readers, [])
            self.reactor.advance(2.0)
        self.reactor.until(lambda: bool(self.reactor.readers))
        service.stopService()
        self.assertEqual(self.reactor.readers, [])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_log(self) -> None:
        """Each loss is told once, though it lasts, and each time that the connection is there again."""
        configuration = DoubleLibrary()
        connections: tuple[tuple[Any, str, DoubleLibrary], ...] = (
            (self.quorum, "quorum", self.quorum_library),
            (
                ClusterConfigConnection(cast(Any, self.reactor), cast(Any, lambda: configuration)),
                "configuration",
                configuration,
            ),
        )
        for connection, what, library in connections:
            service = PersistentConnection(self.reactor, connection, self.diary, what, 2.0)
            with capturedLogs() as events:
                service.startService()
                for day in (1, 2):
                    self.reactor.until(lambda day=day: len(events) == 2 * day - 1, "connected")  # type: ignore[misc]
                    library.answers["initialize"] = deque([CorosyncUnavailable("library error", 2)] * 2)
                    library.events.append(CorosyncUnavailable("library error", 2))
                    self.reactor.readers[0].doRead()
                    for _ in range(2):
                        self.reactor.advance(2.0)
                        self.reactor.until(lambda: bool(self.reactor.getDelayedCalls()), "still lost")
                    self.reactor.advance(2.0)
                self.reactor.until(lambda: len(events) == 5, "connected")
            service.stopService()
            said = [formatEvent(event) for event in events]
            lost = f"{what}: no connection to corosync: library error"
            self.assertEqual(said, [f"{what}: connected to corosync", lost] * 2 + [f"{what}: connected to corosync"])

    def test_stopped_while_waiting(self) -> None:
        service = PersistentConnection(self.reactor, self.quorum, self.diary, "quorum", 2.0)
        self.quorum_library.answers["initialize"] = deque([CorosyncUnavailable("library error", 2)])
        service.startService()
        self.reactor.until(lambda: bool(self.told))
        service.stopService()
        self.assertEqual(self.reactor.getDelayedCalls(), [])
