"""A connection to one closed process group."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from zope.interface import implementer

from pvecfs.corosync.libcpg import ATOMIC_SIZE, ConfigurationChanged, Event, LibCpg, libcpg
from pvecfs.corosync.session import Session, SessionReactor
from pvecfs.errors import CorosyncUnavailable, TryAgain
from pvecfs.events import Events
from pvecfs.interfaces import SEND_PATIENCE, IGroupConnection, IGroupListener
from pvecfs.log import logger
from pvecfs.replica.member import Member

_log = logger("corosync")

BATCH_SECONDS = 0.01
"""How long the reactor is kept by one call of doRead, which ends with the event under way."""
BACKLOG_BYTES = 8 * 1024 * 1024
"""Messages of more bytes than this are not kept waiting behind others."""
SEND_BUFFER = 8 * 1024 * 1024
"""Room for the socket's signals, bytes as the kernel counts them: beyond what libqb's ring (1 MiB) can need, see
L{GroupConnection._send}."""
SEND_MARGIN = 64
"""Messages that are sent without looking whether the socket has room."""
SIGNAL_BYTES = 1024
"""At most so much room in the socket takes the signal of a message: a byte, and what the kernel keeps with it."""
REST_SECONDS = 0.004
"""How long a group's messages wait to be taken together, see L{GroupConnection._readable}."""
AWAKE_SECONDS = 0.02
"""For so long after a message of our own nothing is left to wait: the next one of ours will not be long."""
SO_SNDBUFFORCE = 32
"""As in C{asm-generic/socket.h}; Python has no name for it."""


@implementer(IGroupConnection)
class GroupConnection:
    """A member of the group C{group_name}; the terminating NUL is not part of it here.

    Sending. A message of up to L{ATOMIC_SIZE} bytes is put into libqb's ring at once, by the caller: that takes no
    answer of corosync. A longer one is sent by the library in pieces, with an answer to each: that is done on the
    session's thread. While the thread has something to do, messages queue up behind it, so that their order is kept.

    Receiving. What comes is told at once while this member waits for a message of its own, and for L{AWAKE_SECONDS}
    after one. Otherwise, after each event the next ones are left to gather for L{REST_SECONDS}: nobody here waits for
    them, and to take ten together costs little more than to take one, in time and in commits to the disk.

    @param before_dispatch: called before every event that is told to the listener: it handles pending quorum events.
    @param thread_began: called on each session's thread before everything else.
    @param fell_behind: called when messages come faster than they are taken, or waited for much too long.
    @param gathering: around what is told to the listener at one time.
    """

    def __init__(
        self,
        reactor: SessionReactor,
        group_name: bytes,
        before_dispatch: Callable[[], None] = lambda: None,
        library: Callable[[], LibCpg] = libcpg,
        thread_began: Callable[[], None] = lambda: None,
        fell_behind: Callable[[], None] = lambda: None,
        gathering: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._reactor = reactor
        self._name = group_name
        self._before_dispatch = before_dispatch
        self._load = library
        self._thread_began = thread_began
        self._fell_behind = fell_behind
        self._gathering = gathering
        self._session: Session | None = None
        self._listener: IGroupListener | None = None
        self._member: Member | None = None
        self._leaving = False
        self._room = 0
        self._unlooked = 0
        self._unheard = 0
        self._awake_until = 0.0
        self._events = Events(reactor)

    def open(self, listener: IGroupListener) -> None:
        self.close()
        self._listener = listener
        self._member = None
        self._connect()

    def _connect(self) -> None:
        self._leaving = False
        self._unheard = 0
        self._session = Session(
            self._reactor,
            self._load,
            self._name.decode("ascii", "replace"),
            self._session,
            self._opened,
            self._readable,
            self._lost,
            self._thread_began,
            self._fell_behind,
        )
        self._session.start()

    def close(self) -> None:
        self._listener = None
        if self._session is not None:
            self._session.close()

    def leave(self) -> None:
        session = self._connected()
        self._leaving = True
        session.request(lambda: self._load().leave(session.handle, self._name))

    def join(self) -> None:
        """As L{IGroupConnection.join}. Corosync (3.1.7) refuses a second join on the same handle (CS_ERR_EXIST), and
        goes on to deliver messages to who has left: so the handle is closed once we are out, and this takes a new one.
        """
        if self._session is None or self._listener is None:
            raise CorosyncUnavailable("not connected to corosync")
        self._session.close()
        self._connect()

    def multicast(self, message: bytes) -> None:
        session = self._connected()
        if session.lane.idle and len(message) <= ATOMIC_SIZE:
            self._send(session, message)
        else:
            backlog = session.lane.backlog
            if backlog and backlog + len(message) > BACKLOG_BYTES:
                raise TryAgain("too many messages wait for corosync")
            session.request(lambda: self._send(session, message), weight=len(message) or 1, patience=SEND_PATIENCE)
        self._unheard += 1
        if session.resting:
            session.read()

    def _connected(self) -> Session:
        if self._session is None or not self._session.open:
            raise CorosyncUnavailable("not connected to corosync")
        return self._session

    def _send(self, session: Session, message: bytes) -> None:
        """Send now. By whichever thread's turn it is.

        With each message libqb sends one byte through the socket, and if there is no room for it, it tries for ever
        without a pause: with the default buffer that is after 278 messages that corosync has not looked at. So the
        room is enlarged (as far as we may), and looked at in time.

        @raise TryAgain: there is no room, or corosync says so.
        """
        if self._unlooked >= SEND_MARGIN:
            try:
                room = self._room - session.sent
            except OSError as error:
                raise CorosyncUnavailable(f"the connection is gone: {error}") from error
            if room < SEND_MARGIN * SIGNAL_BYTES:
                raise TryAgain("corosync does not read")
            self._unlooked = 0
        self._unlooked += 1
        self._load().mcast_joined(session.handle, message)

    def _opened(self) -> None:
        session = self._connected()
        assert session.socket is not None
        for option in (SO_SNDBUFFORCE, socket.SO_SNDBUF):
            try:
                session.socket.setsockopt(socket.SOL_SOCKET, option, SEND_BUFFER)
                break
            except OSError:
                continue
        self._room = session.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        if self._room < SEND_BUFFER:
            _log.debug(
                "{group}: the socket's buffer is of {room} bytes, {wished} are wished",
                group=self._name.decode("ascii", "replace"),
                room=self._room,
                wished=SEND_BUFFER,
            )

        def enter() -> int:
            library = self._load()
            node_id = session.insist(lambda: library.local_get(session.handle))
            session.insist(lambda: library.join(session.handle, self._name))
            return node_id

        session.request(enter, self._joined)

    def _joined(self, node_id: int) -> None:
        assert self._listener is not None and self._session is not None
        session = self._session
        member = Member(node_id, os.getpid())
        if member != self._member:
            self._member = member
            self._listener.joined_as(member)
        session.read()

    def _readable(self) -> None:
        session = self._session
        assert session is not None
        unheard = self._unheard
        with self._gathering():
            all_taken = self._take(session)
        if not all_taken:
            return
        if self._unheard < unheard:
            self._awake_until = self._reactor.seconds() + AWAKE_SECONDS
            self._events.wait()  # the store's thread begins at once
        elif self._unheard <= 0 and self._reactor.seconds() >= self._awake_until:
            session.rest(REST_SECONDS)

    def _take(self, session: Session) -> bool:
        """Tell what has come, for L{BATCH_SECONDS} at most. What is left then keeps the descriptor readable: there is
        one byte in the socket for each event.

        @return: whether there was something, and nothing is left.
        """
        library = self._load()
        deadline = time.monotonic() + BATCH_SECONDS
        while (events := library.dispatch(session.handle)) is not None:
            for event in events:
                self._before_dispatch()
                if session.closed or self._listener is None:
                    return False
                self._tell(session, self._listener, event)
            if time.monotonic() > deadline:
                self._fell_behind()
                return False
            if not session.pending:
                return True
        return False

    def _tell(self, session: Session, listener: IGroupListener, event: Event) -> None:
        if not isinstance(event, ConfigurationChanged):
            sender = Member(*event.sender)
            if sender == self._member:
                self._unheard -= 1
            listener.message_delivered(sender, event.message)
            return
        members, left, joined = (tuple(Member(*each) for each in processes) for processes in event)
        if self._leaving and self._member not in members:
            session.close()
        listener.membership_changed(members, left, joined)

    def _lost(self, reason: CorosyncUnavailable) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.connection_lost(reason)
