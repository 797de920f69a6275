"""The seams between the rooms of pvecfs, with their contracts.

Threads, in one paragraph: the I{reactor thread} owns the newest tree and all replication. The I{store thread} owns
SQLite. The I{FUSE threads} read committed, immutable trees and hand changes to the reactor. Whoever calls an interface
marked "any thread" needs no lock; all others are called on the reactor thread. See C{docs/threads.md}.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from zope.interface import Attribute, Interface

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from pvecfs.replica.member import Member
    from pvecfs.replica.status import ClusterConfiguration
    from pvecfs.tree.changes import Change
    from pvecfs.tree.tree import Delta, Tree


class Acknowledge(Protocol):
    """Takes the outcome of a proposed change, exactly once, on any thread; it neither blocks nor raises.

    The outcome is a result that is not negative (bytes written, or 0), or a negative errno.
    """

    def __call__(self, outcome: int, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits, at one moment.

    @ivar count: how many.
    @ivar since: when the oldest of them came, monotonic seconds.
    @ivar path: the one that the oldest is about, empty if it is about none.
    """

    count: int = 0
    since: float = 0.0
    path: bytes = b""


Settled = Callable[[Exception | None], None]
"""Told how a commit ended: C{None} when it is in the database, else what failed. Called on the store's thread."""


class Meant(NamedTuple):
    """What the kernel takes a change to be about, for which it was asked at this node's mount.

    @ivar nodes: node ids of the entries, and of the directories that these come to or go from.
    @ivar moves: the node id of a directory and the name there of what the kernel moves; C{None}: it moves nothing.
    @ivar to: where it moves that.
    """

    nodes: tuple[int, ...]
    moves: tuple[int, bytes] | None = None
    to: tuple[int, bytes] | None = None


SEND_PATIENCE = 10.0
"""Seconds for which a message is offered to a corosync that says "try again" (30-replication.md)."""


class IProposer(Interface):
    """Propose a change of the tree: to the cluster where there is one, straight to the tree in local mode."""

    def propose(change: Change, acknowledge: Acknowledge, meant: Meant | None = None) -> None:
        """Submit C{change}; reactor thread only, returns at once.

        1. The checks "where a change is submitted" (10-tree.md) run first; a refused change is never sent.
        2. The change is applied in the cluster's order, and committed.
        3. Only then is C{acknowledge} called: with the result, or -errno: what the tree answered, EACCES without
           quorum, EBUSY when the group cannot be reached, at the operation's deadline EIO (outcome unknown), or EBUSY
           if it was not sent, ENOSPC or EIO when the database failed.

        @param meant: the change comes from this node's mount, so that the kernel knows of it already, if this is what
            it turns out to be about: it goes by names, which may lead elsewhere by then.
        """

    def synchronise(acknowledge: Acknowledge) -> None:
        """Put everything acknowledged so far on stable storage (fsync), then call C{acknowledge} with 0 or -errno."""


class IStore(Interface):
    """The database. One thread of its own; the methods return at once, but for those of a start: L{open},
    L{commit_now} and L{close_now} wait, and are for the time before the reactor runs."""

    created = Attribute("bool: once open, that the database is new, or was never written to.")

    def open(stopped: Callable[[], bool] = lambda: False) -> Tree:
        """Open the database, creating it when there is none, and read the tree.

        @param stopped: any thread; whether nobody wants to wait any more for another program that uses the database.
        @raise TreeDefect: rows that are no tree; the file is as it was, here and below.
        @raise StoreError: not a database, unreadable, no room; or it is open already.
        """

    def commit_now(delta: Delta) -> None:
        """L{commit}.

        @raise StoreError: the commit failed.
        """

    def close_now() -> None:
        """L{close}."""

    def commit(delta: Delta, settled: Settled) -> None:
        """Commit C{delta}. What is handed over while a commit runs goes into the next one, as one transaction.

        C{settled} is called for each delta in the order of the calls, on the store's thread: with None when the
        transaction that holds it is committed. When one fails, it and every delta handed over since fail, the
        database is as it was before, and everything fails until L{recover} succeeded.
        """

    def gathering() -> AbstractContextManager[None]:
        """Around several calls of L{commit} on the reactor thread: their deltas, if they are not very many, are
        committed together. Nothing may wait inside."""

    def synchronise(settled: Settled) -> None:
        """Put all commits made so far on stable storage."""

    def recover(tree: Tree) -> Deferred[None]:
        """After a failed commit: try again to write, leaving the database equal to C{tree}.

        @return: fires when commits work again; fails with C{StoreError} while they do not.
        """

    def close() -> Deferred[None]:
        """Finish the commits handed over, checkpoint, close."""


class ILedger(Interface):
    """Commits what was applied, publishes it, then acknowledges it: in the order of the calls. Reactor thread only."""

    newest = Attribute("Tree: the newest applied tree, committed or not yet.")
    writable = Attribute("bool: False from a failed commit until the database could be written again.")

    def commit(
        delta: Delta, acknowledge: Acknowledge | None = None, outcome: int = 0, meant: Meant | None = None
    ) -> None:
        """C{delta.tree} is the newest tree now. Once its rows are committed it is published, the kernel is told unless
        it has C{meant} just that, and C{acknowledge(outcome)} is called. If the commit fails, C{acknowledge(-errno)},
        and the listener's C{commit_failed} is called on the reactor thread with the last committed tree."""

    def gathering() -> AbstractContextManager[None]:
        """L{IStore.gathering}."""

    def settle(acknowledge: Acknowledge, outcome: int) -> None:
        """Call C{acknowledge(outcome)} after everything handed over so far was committed and acknowledged."""

    def synchronise(acknowledge: Acknowledge) -> None:
        """Put what was handed over so far on stable storage, then call C{acknowledge} with 0 or -errno."""


class ILedgerListener(Interface):
    """Told of the ledger's misfortunes. Reactor thread."""

    def commit_failed(errno: int, committed: Tree) -> None:
        """The database refused a commit; C{committed} is the newest tree again. The node is read-only from now on."""

    def recovered() -> None:
        """The database takes commits again and holds the committed tree."""


class INodeView(Interface):
    """What the mount and the IPC service read. Any thread; never waits."""

    tree = Attribute("Tree: the newest committed tree, immutable.")
    quorate = Attribute(
        "bool: whether changes are taken: this partition may write (in local mode always), and the database can."
    )
    node_name = Attribute("bytes: this node's name.")
    max_bytes = Attribute("int: limit of the file system's data, bytes.")
    max_entries = Attribute("int: limit of the number of entries, root included.")

    def document(name: bytes) -> bytes:
        """The content, at this moment, of the special file C{name}: C{b".version"}, C{b".members"}, C{b".vmlist"},
        C{b".clusterlog"}, C{b".rrd"} (without the final NUL) or C{b".debug"}.

        @raise KeyError: no such document.
        """

    def set_debug(enabled: bool) -> None:
        """Switch verbose logging."""


class IKernelCache(Interface):
    """What the kernel remembers of the mount, to be told of changes it cannot know. Any thread, never blocks:
    the work happens on a thread that holds no lock and that nobody waits for (but who takes a lock in C{priv/lock})."""

    def publishing(before: Tree, delta: Delta, meant: Meant | None) -> bool:
        """C{delta}, a change of the published tree C{before}, is committed, and will be published next, with no other
        publication between. In a synchronisation an inode may mean another file than before. Comes before each
        publication, on the thread that publishes, so it is quick.

        @param meant: see L{IProposer.propose}.
        @return: whether L{changed} has to follow: the kernel does not know of it.
        """

    def changed(before: Tree, after: Tree, delta: Delta) -> None:
        """The published tree went from C{before} to C{after} by C{delta}, and the kernel does not know of it."""

    def modes_changed() -> None:
        """Quorum was won or lost: every mode is different now."""


class IStatus(Interface):
    """Status values and the cluster log of this node and the others (40-status.md). Reactor thread only."""

    def set_value(key: bytes, value: bytes) -> None:
        """Set C{key} of this node and tell the others; an empty value removes it.

        @raise OperationError: EINVAL for a malformed key, EFBIG above 32 KiB, ENOMEM for a malformed C{nodeip} or
            C{rrd/} value.
        """

    def value(key: bytes, node: bytes) -> bytes:
        """The value of C{key} on C{node}; an empty C{node} is this one.

        @raise OperationError: ENOENT.
        """

    def log(priority: int, ident: bytes, tag: bytes, message: bytes, pid: int) -> None:
        """Put an entry into the cluster log, here and on the other nodes. Strings come without NUL."""

    def log_document(limit: int, ident: bytes) -> bytes:
        """The newest C{limit} (0: 50) entries as JSON; of one C{ident} unless that is empty."""


class IRoundRobinSink(Interface):
    """Where RRD updates go."""

    def update(key: bytes, value: bytes) -> None:
        """Store C{value} (text, columns joined by ':', without NUL) under C{key} (without C{rrd/}). Never blocks or
        raises; unknown or malformed keys are logged once a call and otherwise ignored."""


class IGroupListener(Interface):
    """Told what happens in a process group, in the cluster's order."""

    def joined_as(member: Member) -> None:
        """A connection is open and asked to join; C{member} is our own (node id, process id) there."""

    def membership_changed(members: Sequence[Member], left: Sequence[Member], joined: Sequence[Member]) -> None:
        """The group's members are now C{members}."""

    def message_delivered(sender: Member, message: bytes) -> None:
        """C{message} was delivered, sent by C{sender}; our own messages too."""

    def connection_lost(reason: Exception) -> None:
        """The connection to corosync is gone; the group connection is closed and must be opened anew."""


class IGroupConnection(Interface):
    """A connection to one closed process group of corosync."""

    def open(listener: IGroupListener) -> None:
        """Begin to connect and to join; returns at once. The order is: C{joined_as}, then C{membership_changed} and
        C{message_delivered}. If corosync does not run, C{connection_lost} says so, later and from the reactor; while it
        does not answer, nothing is told.
        """

    def leave() -> None:
        """Ask to leave the group: the membership change without us says when it happened, and is the last event.

        @raise CorosyncUnavailable: the connection is gone.
        """

    def join() -> None:
        """Join again, after L{leave}: as the same member.

        @raise CorosyncUnavailable: the connection is gone.
        """

    def multicast(message: bytes) -> None:
        """Send C{message} to the group, agreed order; returns at once. What can no longer be sent after that, because
        the connection breaks, or corosync does not take it for L{SEND_PATIENCE}, is not reported one by one:
        C{connection_lost} follows.

        @raise TryAgain: corosync takes no message now; this one was not sent.
        @raise CorosyncUnavailable: the connection is gone.
        """

    def close() -> None:
        """Disconnect, whatever the state; idempotent; nothing is told to the listener any more."""


class IQuorumListener(Interface):
    """Told of quorum."""

    def quorum_changed(quorate: bool, node_ids: Sequence[int]) -> None:
        """This partition, of nodes C{node_ids}, may write or not. A lost connection means C{(False, ())}."""


class IClusterConfigListener(Interface):
    """Told of the cluster's configuration."""

    def configuration_read(configuration: ClusterConfiguration) -> None:
        """C{configuration} was newly read from cmap."""
