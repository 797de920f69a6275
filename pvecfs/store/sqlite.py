"""The database's thread: loads, commits in batches, checkpoints at quiet moments."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from errno import EINVAL, EIO
from math import inf
from tempfile import TemporaryDirectory
from threading import Thread, current_thread
from time import monotonic
from typing import NamedTuple, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorFromThreads
from zope.interface import implementer

from pvecfs.heap import prepare
from pvecfs.interfaces import IStore, Settled
from pvecfs.log import logger
from pvecfs.store import rows
from pvecfs.store.errors import StoreError
from pvecfs.store.mailbox import Mailbox
from pvecfs.store.rows import DEFAULT_PAGE_SIZE, Connect
from pvecfs.tree.entry import ROOT_INODE, Entry
from pvecfs.tree.errors import TreeDefect
from pvecfs.tree.tree import Delta, Tree

_log = logger("store")

T = TypeVar("T")

SYNCHRONOUS = {"process": "NORMAL", "power": "FULL"}
"""Durability levels: what every acknowledged change survives, and SQLite's word for it.

C{process}: the end of the process, kill -9 included. After a power loss the database is whole, but the newest changes
can be missing: those since the last checkpoint, so of L{LATEST} seconds at most, or L{SqliteStore.synchronise}.
C{power}: power loss too; each transaction waits for the disk.
"""

QUIET = 1.0
"""Seconds without a commit after which a log of L{QUIET_LOG} bytes is checkpointed."""

QUIET_LOG = 1024 * 1024

IDLE = 60.0
"""Seconds without a commit after which any log is checkpointed."""

LATEST = 300.0
"""Seconds after a commit by which the log is checkpointed, however little is in it and however busy the store is."""

BUSY_LOG = 32 * 1024 * 1024
"""Bytes of log after which it is checkpointed however busy the store is: copied by another thread while commits go
on, and what came meanwhile between two commits. The longer the log, the fewer pages are copied that change again."""

FULL_LOG = 64 * 1024 * 1024
"""Bytes of log after which commits wait for the checkpoint: the disk does not keep up."""

KEPT_LOG = 8 * 1024 * 1024
"""Bytes that the log's file keeps when it begins anew. Space that is there already is faster to write to."""

LOCKED = 10.0
"""Seconds that a transaction, and a start, wait for another program that uses the database."""

LOCKED_STEP = 0.25
"""Seconds that SQLite waits for it without looking whether the store is being closed, or nobody waits any more."""


CLOSING = 0.5
"""Seconds that L{SqliteStore.close} waits for other programs that use the database, before it leaves the log."""

CLOSING_COPY = 1.5
"""Seconds that it waits for the copier. A service that stops has five for everything."""

LEAST_LOG = 256 * 1024
"""Bytes of log that are allowed however little room there is, so that not every commit is checkpointed."""


class LogLimits(NamedTuple):
    """How long the log may get, in bytes.

    @ivar busy: see L{BUSY_LOG}.
    @ivar full: see L{FULL_LOG}.
    @ivar kept: see L{KEPT_LOG}.
    """

    busy: int
    full: int
    kept: int

    @classmethod
    def within(cls, room: int) -> LogLimits:
        """Where the log has C{room} bytes, those that it fills included. While it is copied the database may grow by
        as much as the log holds, and a transaction is in the log before anybody looks how long it is."""
        busy = min(BUSY_LOG, max(LEAST_LOG, room // 4))
        return cls(busy, min(FULL_LOG, max(LEAST_LOG, room * 3 // 8)), min(KEPT_LOG, busy // 2))


_Task = Callable[[], None]
_Commit = tuple[Delta, Settled]


@implementer(IStore)
class SqliteStore:
    """The tree in an SQLite database that pmxcfs can read (10-tree.md, "SQLite").

    A commit is handed over through one queue and settled on the thread that takes it from there, so a change costs one
    switch of threads. The log (WAL) is not checkpointed by commits, as SQLite would: that waits for the disk.

    @param path: the database; beside it SQLite keeps C{-wal} and C{-shm}. The caller holds the lock file.
    @param reactor: where Deferreds fire.
    @param now: seconds since 1970, for a new database.
    @param durability: a key of L{SYNCHRONOUS}.
    @param page_size: bytes of a page, if the database is created: a power of two from 512 to 65536.
    @param connect: opens a database; tests put one here that fails.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        reactor: IReactorFromThreads,
        now: Callable[[], float] = time.time,
        durability: str = "process",
        page_size: int = DEFAULT_PAGE_SIZE,
        connect: Connect = rows.connect,
    ) -> None:
        self.path = os.fspath(path)
        self.created = False
        self._reactor = reactor
        self._now = now
        self._durability = durability
        self._page_size = page_size
        self._connect = connect
        # What the thread is to do, in order: commits as pairs, anything else as a callable; None ends it.
        self._queue: Mailbox[_Commit | _Task | None] = Mailbox()
        self._thread: Thread | None = None
        # All below belongs to the store's thread.
        self._connection: sqlite3.Connection | None = None
        self._log_fd = -1
        self._database_fd = -1  # closed after all connections only: that drops SQLite's locks
        self._root: Entry | None = None
        self._broken: StoreError | None = None
        self._log_bytes = 0  # an upper estimate: SQLite does not tell without being asked
        self._log_in_doubt = False  # a sync of it may have failed; set by the copier too, before it is joined
        self._database_in_doubt = False  # the same of the database itself
        self._log_stuck = 0  # bytes of it that could not be copied when that was last tried
        self._look_at = 0  # bytes of log after which its limits are looked at again
        self._due = inf  # when it is checkpointed at the latest, as monotonic() tells it
        self._limits = LogLimits(BUSY_LOG, FULL_LOG, KEPT_LOG)
        self._kept = KEPT_LOG  # what SQLite knows of them
        self._copier: Thread | None = None

    # Reactor thread

    @property
    def thread_id(self) -> int | None:
        """The native id of the store's thread, C{None} while the store is closed."""
        return None if self._thread is None else self._thread.native_id

    @property
    def log_bytes(self) -> int:
        """About how many bytes the log holds. The store's thread counts them: any thread may look."""
        return self._log_bytes

    def commit(self, delta: Delta, settled: Settled) -> None:
        """See L{IStore}."""
        if self._thread is None:
            _tell(settled, self._closed())
        else:
            self._queue.put((delta, settled))

    def gathering(self) -> AbstractContextManager[None]:
        """See L{IStore}."""
        return self._queue

    def synchronise(self, settled: Settled) -> None:
        """See L{IStore}."""

        def task() -> None:
            outcome = self._broken
            if outcome is None:
                try:
                    self._renew_log()
                    os.fdatasync(self._log_fd)
                except OSError as error:
                    self._log_in_doubt = True
                    outcome = StoreError(error.errno or EIO, f"{self.path}-wal: {error.strerror}")
            _tell(settled, outcome)

        if self._thread is None:
            _tell(settled, self._closed())
        else:
            self._queue.put(task)

    def recover(self, tree: Tree) -> Deferred[None]:
        """See L{IStore}."""
        return self._deferred(lambda: self._recover(tree))

    def close(self) -> Deferred[None]:
        """See L{IStore}."""
        if self._thread is None:
            return succeed(None)
        closed = self._deferred(self._close)
        thread = self._end()

        def joined(result: T) -> T:
            if thread is not None and thread is not current_thread():
                thread.join()  # it has nothing left to do
            return result

        return closed.addBoth(joined)

    # Before the reactor runs: these wait

    def open(self, stopped: Callable[[], bool] = lambda: False) -> Tree:
        """See L{IStore}."""
        if self._thread is not None:
            raise StoreError(EINVAL, f"{self.path}: is open already")
        self._start()
        try:
            return self._waited_for(lambda: self._load(stopped))
        except BaseException:
            self._end()
            raise

    def commit_now(self, delta: Delta) -> None:
        """See L{IStore}."""
        outcomes: list[Exception | None] = []
        self._waited_for(lambda: self._commit([(delta, outcomes.append)]))
        if outcomes[0] is not None:
            raise outcomes[0]

    def close_now(self) -> None:
        """See L{IStore}."""
        if self._thread is not None:
            self._waited_for(self._close)
            thread = self._end()
            if thread is not None:
                thread.join()

    # How work gets to the thread, and its result back

    def _start(self) -> None:
        self.path = os.path.realpath(self.path)  # SQLite keeps the log beside the file itself
        # A queue of its own: the thread of an open that failed may not have ended yet, and ends by what is in its own.
        self._queue = Mailbox()
        self._queue.open()
        self._thread = Thread(target=self._run, args=(self._queue,), name="pvecfs-store", daemon=True)
        self._thread.start()

    def _end(self) -> Thread | None:
        """Have the thread end after what it was given; nothing is handed over any more."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
        return thread

    def _closed(self) -> StoreError:
        return StoreError(EIO, f"{self.path}: is not open")

    def _waited_for(self, work: Callable[[], T]) -> T:
        if self._thread is None:
            raise self._closed()
        future: Future[T] = Future()

        def task() -> None:
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)

        self._queue.put(task)
        return future.result()

    def _deferred(self, work: Callable[[], T]) -> Deferred[T]:
        """Have C{work} done by the thread in its turn; the Deferred fires on the reactor thread."""
        if self._thread is None:
            return fail(self._closed())
        deferred: Deferred[T] = Deferred()

        def task() -> None:
            try:
                result = work()
            except Exception as error:
                self._reactor.callFromThread(deferred.errback, error)
            else:
                self._reactor.callFromThread(deferred.callback, result)

        self._queue.put(task)
        return deferred

    # The store's thread

    def _run(self, queue: Mailbox[_Commit | _Task | None]) -> None:
        prepare()
        patience: float | None = None
        while True:
            items = queue.take(patience)
            if not items:
                patience = self._rest(patience or 0.0)
                continue
            commits: list[_Commit] = []
            for item in items:
                if isinstance(item, tuple):
                    commits.append(item)
                    continue
                if commits:
                    self._commit(commits)
                    commits = []
                if item is None:
                    queue.close()
                    return
                item()
            if commits:
                self._commit(commits)
            patience = QUIET if self._log_bytes else None

    def _rest(self, waited: float) -> float | None:
        """Nothing was asked for C{waited} seconds: tidy up; return how long to wait for work now, None for ever."""
        if self._copier is not None:
            return None  # it puts a task when it is done; until then it is not known whether its sync failed
        if self._log_bytes >= QUIET_LOG or waited > QUIET or monotonic() >= self._due:
            self._checkpoint(restart=True)
            if not self._log_bytes:
                return None
        return min(IDLE, max(QUIET, self._due - monotonic()))

    def _commit(self, commits: list[_Commit]) -> None:
        if self._broken is None:
            try:
                self._write([delta for delta, _ in commits])
            except Exception as error:
                self._broken = self._failed(error)
        outcome = self._broken
        for _, settled in commits:
            _tell(settled, outcome)
        if (self._log_bytes >= self._look_at or monotonic() >= self._due) and self._broken is None:
            self._look()

    def _failed(self, error: Exception) -> StoreError:
        """Undo what failed."""
        if not rows.is_busy(error):  # nothing was written then
            self._log_in_doubt = True
        with suppress(*rows.ERRORS):
            if self._connection is not None and self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        if isinstance(error, StoreError):
            return error
        if isinstance(error, rows.ERRORS):
            return rows.error_of(error, self.path)
        if isinstance(error, OSError):
            return StoreError(error.errno or EIO, f"{self.path}: {error.strerror}")
        _log.failure("a commit failed in a way that was not foreseen")
        return StoreError(EIO, f"{self.path}: {error}")

    def _write(self, deltas: list[Delta]) -> None:
        """Commit C{deltas} as one transaction. If another program writes to the database, wait for it; but a store that
        is being closed does not."""
        end: float | None = None
        while True:
            try:
                self._transact(deltas)
                return
            except sqlite3.OperationalError as error:
                end = end or monotonic() + LOCKED
                if not rows.is_busy(error) or self._thread is None or monotonic() >= end:
                    raise

    def _transact(self, deltas: list[Delta]) -> None:
        connection = self._connection
        if connection is None:
            raise StoreError(EIO, f"{self.path}: is not open")
        last = deltas[-1]
        root = last.tree.root
        stored: Collection[Entry] = last.stored
        deleted: Collection[int] = last.deleted
        if len(deltas) > 1:
            stored, deleted = _merged(deltas)
        if not stored and not deleted and root == self._root and not last.synchronised:
            return
        rows.commit(connection, stored, deleted, rows.root_row(root, last.synchronised))
        written = sum([len(entry.data) for entry in stored])
        count = len(stored) + len(deleted)
        self._root = root
        if not self._log_bytes:
            self._due = monotonic() + LATEST
        # Each row touches a page, some of the tree above it and of the list of free pages, and what its data fill.
        self._log_bytes += written + written // 16 + (count * 3 + 2) * (self._page_size + 24)

    def _look(self) -> None:
        """Checkpoint the log if it is long or old: there was no quiet moment to do it."""
        size = self._measure_room()
        # A file longer than what is kept of it has been written to its end.
        self._log_bytes = size if size > self._kept else min(self._log_bytes, size)
        fresh = self._log_bytes - self._log_stuck
        if fresh >= self._limits.full:
            self._await_copier()
            self._checkpoint()
        elif self._copier is None and (fresh >= self._limits.busy or monotonic() >= self._due):
            self._due = monotonic() + LATEST
            try:
                self._renew_log()
                self._renew_database()
                copier = Thread(target=self._copy_log, name="pvecfs-checkpoint", daemon=True)
                copier.start()
            except OSError as error:
                self._log_in_doubt = True
                self._stuck(error)
            except RuntimeError as error:  # there can be no more threads now, so commits wait
                _log.warn("{path}: no thread to copy the log: {error}", path=self.path, error=error)
                self._checkpoint()
            else:
                self._copier = copier
        self._look_at = self._log_bytes + self._limits.busy // 8

    def _measure_room(self) -> int:
        """Set the limits by the room that there is now; return the size of the log's file.

        Other programs use the disk too, so this is done again and again. It takes three microseconds.
        """
        try:
            size = os.fstat(self._log_fd).st_size
            status = os.fstatvfs(self._log_fd)
        except OSError:  # nobody says; what was true then will do
            return self._log_bytes
        if status.f_blocks:  # a file system that does not say how large it is says 0, such as a tmpfs without a limit
            self._limits = LogLimits.within(status.f_bavail * status.f_frsize + size)
        else:
            self._limits = LogLimits(BUSY_LOG, FULL_LOG, KEPT_LOG)
        return size

    def _stuck(self, error: Exception) -> None:
        """The log could not be copied: try again when it has grown as much again."""
        self._log_stuck = self._log_bytes
        _log.warn("{path}: checkpoint failed: {error}", path=self.path, error=error)

    def _copy_log(self) -> None:
        """Copy the log as it is now into the database. On a thread of its own: it waits for the disk."""
        try:
            with closing(self._connect(rows.uri(self.path, "rw"))) as connection:
                connection.execute("PRAGMA synchronous=NORMAL").fetchall()
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            self._sync_database()
        except (*rows.ERRORS, OSError) as error:
            if not rows.is_busy(error):
                self._log_in_doubt = True
            _log.warn("{path}: checkpoint failed: {error}", path=self.path, error=error)
        self._queue.put(self._copied)

    def _copied(self) -> None:
        """Most of the log is copied. Copy the rest, so that the log can begin anew."""
        if self._copier is not None:
            self._await_copier()
            self._checkpoint(restart=True)

    def _await_copier(self, patience: float | None = None) -> None:
        """Wait until the copier is done, or for C{patience} seconds; then it is left to itself."""
        if self._copier is not None:
            self._copier.join(patience)
            self._copier = None

    def _checkpoint(self, restart: bool = False) -> None:
        """Copy the log into the database and have the disk hold it; the log's file is then used from its start.

        @param restart: also do what the next commit would have to wait for: the sync that begins a new log.
        """
        connection = self._connection
        if connection is None or self._broken is not None:
            return
        self._due = monotonic() + LATEST  # if this fails
        try:
            self._renew_log()
            self._renew_database()
            busy, frames, copied = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if busy or copied < frames:  # someone reads an old state, a backup for instance
                os.fdatasync(self._log_fd)  # what is not copied is on the disk at least
                self._sync_database()
                if frames >= 0:  # else nobody says: another program copies the log
                    self._log_bytes = frames * (self._page_size + 24)
                self._log_stuck = self._log_bytes
                return
            self._log_bytes = self._log_stuck = self._look_at = 0
            self._limit_kept(connection)
            if restart and frames:
                try:
                    self._touch(connection)
                except sqlite3.OperationalError as error:
                    if not rows.is_busy(error):  # who writes now begins the log anew
                        raise
        except (*rows.ERRORS, OSError) as error:
            # The commits are in the log; if there is more to it, the next commit finds out.
            self._failed(error)
            self._stuck(error)

    def _limit_kept(self, connection: sqlite3.Connection) -> None:
        """Have the next transaction, with which the log begins anew, cut its file to what it may keep."""
        self._measure_room()
        if self._limits.kept != self._kept:
            self._kept = self._limits.kept
            connection.execute(f"PRAGMA journal_size_limit={self._kept}").fetchall()

    def _touch(self, connection: sqlite3.Connection) -> None:
        """Write row 0 as it is: a transaction that changes nothing, in two steps, as SQLite writes no equal page."""
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE tree SET type = 12 - type WHERE inode = 0")  # 4 and 8
        connection.execute("UPDATE tree SET type = 12 - type WHERE inode = 0")
        connection.execute("COMMIT")

    def _renew_log(self) -> None:
        """If a sync of the log may have failed, write all of it once more.

        The kernel reports a failed sync once, and takes what it could not write for written. The next sync would
        succeed without writing it; then the log would be copied into the database, and after a power loss the
        database would be half new, with no log to make it whole.

        @raise OSError: it failed, or another program writes to the database: to be tried again.
        """
        if not self._log_in_doubt or self._log_fd < 0:
            return
        with self._excluding_writers():
            _write_again(self._log_fd)
        self._log_in_doubt = False

    @contextmanager
    def _excluding_writers(self) -> Iterator[None]:
        """Have SQLite's lock, without which nobody writes to the log. Who reads part of a file and writes it again
        without it undoes what another program wrote in between.

        If the connection is of no use any more, this goes without: that another program writes at this very moment is
        less likely than that the node would never recover.

        @raise StoreError: another program has it.
        """
        connection = self._connection
        if connection is None:
            raise StoreError(EIO, f"{self.path}: is not open")
        try:
            if connection.in_transaction:  # it failed, and so did undoing it
                connection.execute("ROLLBACK")
            connection.execute("BEGIN IMMEDIATE")
        except rows.ERRORS as error:
            if rows.is_busy(error):
                raise rows.error_of(error, self.path) from error
        try:
            yield
        finally:
            with suppress(*rows.ERRORS):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def _sync_database(self) -> None:
        """After a checkpoint that others kept from the log's end: SQLite syncs none but a whole one. Nor does the next
        one copy a page again for which the sync of that one fails.

        @raise OSError: it failed.
        """
        try:
            os.fdatasync(self._database_fd)
        except OSError:
            self._database_in_doubt = True
            raise

    def _renew_database(self) -> None:
        """As L{_renew_log}. No thread of the store copies the log meanwhile.

        But another program may, of what was committed before: SQLite has no lock against that for others than those
        who copy. The lock for writing keeps the others from committing more, after which they would copy.
        """
        if self._database_in_doubt:
            with self._excluding_writers():
                _write_again(self._database_fd)
            self._database_in_doubt = False

    def _close(self) -> None:
        """Copy the log and close. If others use the database for long, the log is left, on the disk: whoever opens the
        database next, a program of the reference too, reads both."""
        copier = self._copier
        self._await_copier(CLOSING_COPY)
        copying = copier is not None and copier.is_alive()
        connection = self._connection
        if connection is not None and self._log_fd >= 0:  # else it could not be opened
            # Closing it would copy the log too. What fails once may succeed when the log was written anew.
            for _ in range(2):
                try:
                    connection.execute(f"PRAGMA busy_timeout={round(CLOSING * 1000)}").fetchall()
                    self._renew_log()
                    if not copying:
                        self._renew_database()
                    busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                    if busy:
                        os.fdatasync(self._log_fd)
                        self._sync_database()
                        _log.info("{path}-wal: is left, the database is in use", path=self.path)
                    break
                except (*rows.ERRORS, OSError) as error:
                    self._log_in_doubt = True
                    _log.warn("{path}: checkpoint failed: {error}", path=self.path, error=error)
        if self._log_fd >= 0:
            os.close(self._log_fd)
            self._log_fd = -1
        if connection is not None:
            self._connection = None
            connection.close()
        if not copying:
            self._close_database()

    def _close_database(self) -> None:
        if self._database_fd >= 0:
            os.close(self._database_fd)
            self._database_fd = -1

    # Opening

    def _load(self, stopped: Callable[[], bool]) -> Tree:
        """Wait for another program that uses the database, for L{LOCKED} seconds at most."""
        end = monotonic() + LOCKED
        while True:
            try:
                return self._opened()
            except BaseException as error:
                self._close()
                cause = error.__cause__
                busy = isinstance(cause, sqlite3.Error) and rows.is_busy(cause)
                if not busy or stopped() or monotonic() >= end:
                    raise

    def _opened(self) -> Tree:
        if self._durability not in SYNCHRONOUS:
            raise StoreError(EINVAL, f"durability is one of {', '.join(SYNCHRONOUS)}, not {self._durability!r}")
        if not os.path.lexists(self.path):
            create(self.path, Tree.new(int(self._now())), self._page_size, self._connect)
        with rows.reading(self.path, True, self._connect) as connection:
            _wait_briefly(connection)
            tree = read_tree(connection, self.path)
        try:
            what = rows.unwritable(self.path)
            if what is not None:
                raise StoreError(EINVAL, f"{self.path}: {what}; see 'pvecfs-db check' and 'pvecfs-db repair'")
            for suffix in ("", *rows.BESIDE):  # those that a crash left may be of another mode than the database
                with suppress(FileNotFoundError):
                    os.chmod(self.path + suffix, 0o600)
            connection = self._open()
            if tree is None:
                tree = Tree.new(int(self._now()))
                write_new(connection, tree)
        except rows.ERRORS as error:
            raise rows.error_of(error, self.path) from error
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(error.errno or EIO, f"{self.path}: {error.strerror}") from error
        behind = rows.behind(tree.root, tree.entries())
        if behind is not None:
            # Not mended: in a cluster the nodes must hold the same tree.
            _log.warn(
                "{path}: {behind}: no entry can be made until it has caught up; see 'pvecfs-db check'",
                path=self.path,
                behind=behind,
            )
        self._root = tree.root
        self.created = tree.version == 1 and len(tree) == 1
        return tree

    def _open(self) -> sqlite3.Connection:
        """Open the database for writing.

        As long as it is, nothing else in this process may close a descriptor of the file: that would drop SQLite's
        locks. Ours is closed after the connection.
        """
        connection = self._connect(rows.uri(self.path, "rw"))
        self._connection = connection
        self._database_fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        _wait_briefly(connection)
        if connection.execute("PRAGMA journal_mode=WAL").fetchone()[0] != "wal":
            raise StoreError(EINVAL, f"{self.path}: no write-ahead log is possible on this file system")
        for pragma in (
            f"synchronous={SYNCHRONOUS[self._durability]}",
            "wal_autocheckpoint=0",
            f"journal_size_limit={self._kept}",
            # Debian's SQLite overwrites freed pages with zeros, which doubles what a large write costs; FAST does it
            # only where the page is written anyway.
            "secure_delete=FAST",
            "cache_size=-8000",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        self._page_size = connection.execute("PRAGMA page_size").fetchone()[0]
        connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
        # SQLite has made the log with this first read, if there was none. Kept open to be synced, and to be written
        # anew: SQLite uses this file to the end, even if its name is removed.
        log = self.path + "-wal"
        self._log_fd = os.open(log, os.O_RDWR | os.O_CLOEXEC)
        self._log_bytes = os.stat(log).st_size
        # What another process left there may be what it could not sync.
        self._log_in_doubt = self._log_bytes > 0
        self._log_stuck = self._look_at = 0
        self._due = monotonic() + LATEST
        self._limit_kept(connection)
        sync_directory(self.path)
        return connection

    def _recover(self, tree: Tree) -> None:
        """Open the database anew and write what differs from C{tree}."""
        self._await_copier()
        try:
            self._renew_log()
            self._renew_database()
        except OSError as error:
            self._broken = self._failed(error)
            raise self._broken from error
        if self._connection is not None:
            with suppress(*rows.ERRORS):
                self._connection.close()
            self._connection = None
        self._close_database()
        if self._log_fd >= 0:
            os.close(self._log_fd)
            self._log_fd = -1
        try:
            connection = self._open()
            wanted = {entry.inode: entry for entry in tree.entries() if entry.inode != ROOT_INODE}
            surplus = []
            for entry in rows.read_rows(connection):
                if entry.inode == ROOT_INODE:
                    continue
                if entry.inode not in wanted:
                    surplus.append(entry.inode)
                elif wanted[entry.inode] == entry:
                    del wanted[entry.inode]
            rows.commit(connection, wanted.values(), surplus, rows.root_row(tree.root))
            self._touch(connection)  # there may have been nothing to write: try whether it can
        except Exception as error:
            self._broken = self._failed(error)
            raise self._broken from error
        self._root = tree.root
        self._broken = None


def _wait_briefly(connection: sqlite3.Connection) -> None:
    """For other programs, with each call: see L{LOCKED_STEP}."""
    connection.execute(f"PRAGMA busy_timeout={round(LOCKED_STEP * 1000)}").fetchall()


def _merged(deltas: Iterable[Delta]) -> tuple[Collection[Entry], Collection[int]]:
    """What C{deltas}, in their order, store and delete in the end: each row once."""
    stored: dict[int, Entry] = {}
    deleted: dict[int, None] = {}
    for delta in deltas:
        for inode in delta.deleted:
            stored.pop(inode, None)
            deleted[inode] = None
        for entry in delta.stored:
            deleted.pop(entry.inode, None)
            stored[entry.inode] = entry
    return stored.values(), deleted


def _write_again(fd: int) -> None:
    """Write the whole file as it is, and have the disk hold it."""
    offset = 0
    while block := os.pread(fd, 1024 * 1024, offset):
        offset += os.pwrite(fd, block, offset)
    os.fdatasync(fd)


def _tell(settled: Settled, outcome: StoreError | None) -> None:
    try:
        settled(outcome)
    except Exception:
        _log.failure("a commit's callback failed")


def read_tree(connection: sqlite3.Connection, path: str) -> Tree | None:
    """The tree in the database, C{None} when there is no table or no row at all.

    @raise StoreError: it holds something else; the message begins with C{path}, and so does that of
    @raise TreeDefect: the rows are no tree.
    """
    if not rows.check_schema(connection, path):
        return None
    try:
        entries, root = rows.split_root(rows.read_rows(connection))
        return None if root is None else Tree.load(entries, root)
    except TreeDefect as defect:
        raise TreeDefect(f"{path}: {defect}") from defect


def write_new(connection: sqlite3.Connection, tree: Tree) -> None:
    """Write all of C{tree} into a database without rows, in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(rows.SCHEMA)
    entries = [entry for entry in tree.entries() if entry.inode != ROOT_INODE]
    rows.store(connection, entries, (), rows.root_row(tree.root))
    connection.execute("COMMIT")


def create(
    path: str,
    tree: Tree,
    page_size: int = DEFAULT_PAGE_SIZE,
    connect: Connect = rows.connect,
    replace: bool = False,
    kept: str | None = None,
) -> None:
    """Make a database that holds C{tree}, of mode 0600 and in WAL mode: whole and on the disk, or not at all.

    @param replace: see L{place}, and for C{kept}.
    @raise StoreError: something is at C{path} already, or it cannot be written.
    """
    if page_size not in (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536):
        raise StoreError(EINVAL, f"{page_size} is no page size: a power of two from 512 to 65536")

    def fill(temporary: str) -> None:
        connection = connect(rows.uri(temporary, "rw"))
        try:
            connection.execute(f"PRAGMA page_size={page_size}")
            write_new(connection, tree)
            # Not before: the log would take the room a second time, and closing copies it without saying if that fails.
            connection.execute("PRAGMA journal_mode=WAL").fetchall()
        finally:
            connection.close()

    place(path, fill, replace, kept)


def place(path: str, fill: Callable[[str], None], replace: bool, kept: str | None = None) -> None:
    """Have C{fill} make a database in a new, empty file beside C{path}, then move it there, on stable storage.

    @param replace: there may be a database at C{path}; it is gone afterwards, with its log.
    @param kept: where a copy of that database is put before it goes, see L{keep}; without, the caller needs none.
    @raise StoreError: it failed, and all is as before, but for the copy, which it names; or something is at C{path} and
        C{replace} is not set.
    """
    also = ""
    try:
        if not replace and os.path.lexists(path):
            raise StoreError(EINVAL, f"{path}: exists already")
        with _scratch(path) as directory:
            temporary = os.path.join(directory, "new.db")
            os.close(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            fill(temporary)
            for suffix in ("-wal", "-journal"):
                if os.path.exists(temporary + suffix):
                    raise StoreError(EIO, f"{temporary}{suffix}: was left, so the database is not whole")
            os.chmod(temporary, 0o600)
            _sync(temporary)
            if kept is not None:
                keep(path, kept)
                also = f"; what was there is kept as {kept} too"
            _move_in(temporary, path, directory, not replace)
        sync_directory(path)
    except rows.ERRORS as error:
        raise rows.error_of(error, path) from error
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(error.errno or EIO, f"{path}: {error.strerror}{also}") from error


def keep(path: str, kept: str) -> None:
    """Copy the database at C{path}, as it is, with its log, to C{kept}, on stable storage: whole, or not at all.

    @param kept: nothing is there, nor beside it what SQLite would keep there.
    @raise StoreError: it failed, and nothing is left of it.
    """
    made: list[str] = []
    try:
        with _scratch(kept) as directory:
            temporary = os.path.join(directory, "kept.db")
            rows.copy(path, temporary)
            # The database last: without it the others are no database to anybody.
            for suffix in ("-wal", "-journal", ""):
                if os.path.exists(temporary + suffix):
                    _sync(temporary + suffix)
                    os.rename(temporary + suffix, kept + suffix)
                    made.append(kept + suffix)
        sync_directory(kept)
    except BaseException as error:
        for name in made:
            with suppress(OSError):
                os.unlink(name)
        if isinstance(error, OSError) and not isinstance(error, StoreError):
            raise StoreError(error.errno or EIO, f"{kept}: {error.strerror}") from error
        raise


def _scratch(path: str) -> TemporaryDirectory[str]:
    """A new directory beside C{path}, for files that are moved there when they are whole. It goes with all that is left
    in it, but if the process is killed; see docs/recovery.md, "What a killed program leaves"."""
    directory, name = os.path.split(os.path.abspath(path))
    return TemporaryDirectory(prefix=f"{name}.new-", dir=directory, ignore_cleanup_errors=True)


def _move_in(temporary: str, path: str, directory: str, keep: bool) -> None:
    """Rename C{temporary} to C{path}, and part the log from the database that is gone, or goes: SQLite would play it
    into the new one. If that fails, all is as before.

    @param directory: on the same file system; the log is moved there.
    @param keep: put it aside for good instead; else whoever replaces the database has a copy of both.
    """
    moved: list[tuple[str, str]] = []
    try:
        for suffix in rows.BESIDE:
            beside, aside = path + suffix, os.path.join(directory, f"old.db{suffix}")
            if keep and suffix != "-shm" and rows.size(beside):
                aside = f"{beside}.old"
                _log.warn("{path}: put aside as {path}.old, it belongs to another database", path=beside)
            with suppress(FileNotFoundError):
                os.rename(beside, aside)
                moved.append((beside, aside))
        os.rename(temporary, path)
    except BaseException:
        for beside, aside in moved:
            with suppress(OSError):
                os.rename(aside, beside)
        raise


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_directory(path: str) -> None:
    """Have the disk know the names in the directory of C{path}."""
    _sync(os.path.dirname(os.path.abspath(path)))
