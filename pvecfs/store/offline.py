"""Work on a database without a daemon: reading, copying, replacing, renaming."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from errno import EBUSY, EEXIST, EINVAL, EIO, EMLINK, ENOENT, ENOSPC, ENOTDIR

from pvecfs.store import rows
from pvecfs.store.errors import StoreError
from pvecfs.store.examination import Survey, survey
from pvecfs.store.lockfile import locks_of
from pvecfs.store.repair import Repair
from pvecfs.store.rows import DEFAULT_PAGE_SIZE
from pvecfs.store.sqlite import create, place, read_tree
from pvecfs.tree.entry import DT_DIR, ROOT_INODE, Entry
from pvecfs.tree.errors import OperationError, TreeDefect
from pvecfs.tree.paths import NODES, is_node_name
from pvecfs.tree.tree import MAX_VERSION, Tree


class OfflineDatabase:
    """The database at C{path}.

    What writes takes the locks of the daemons that could use it, whatever symbolic links lead to it. What reads works
    beside a daemon too, in one transaction.

    @param path: of the file.
    @param now: seconds since 1970.
    """

    def __init__(self, path: str | os.PathLike[str], now: Callable[[], float] = time.time) -> None:
        self.path = os.path.realpath(path)
        self._locks = locks_of(path)
        self._now = now

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the locks. No daemon uses a database of another name, so that it has none.

        @raise StoreError: EBUSY when a daemon has one; EMLINK when the file has other names, hard links: nothing tells
            where they are, so which lock a daemon would have that uses one of them; or it is no regular file.
        """
        with self._holding():
            if os.path.exists(self.path):
                rows.check_kind(self.path)
                if os.stat(self.path).st_nlink > 1:
                    raise StoreError(
                        EMLINK, f"{self.path}: has several names (hard links); a daemon may use another: work on a copy"
                    )
            yield

    @contextmanager
    def _holding(self) -> Iterator[None]:
        with ExitStack() as held:
            for lock in self._locks:
                if not lock.try_acquire():
                    raise StoreError(
                        EBUSY, f"{self.path}: is in use by a daemon ({lock.path} is locked); stop it first"
                    )
                held.callback(lock.release)
            yield

    @contextmanager
    def read(self) -> Iterator[bool]:
        """Hold the locks that there are, if that is possible; yields whether nobody writes meanwhile."""
        alone = True
        with ExitStack() as held:
            for lock in self._locks:
                if os.path.exists(lock.path):
                    try:
                        alone = lock.try_acquire(to_write=False) and alone
                    except StoreError:  # not allowed to lock it, so not to know either
                        alone = False
                    held.callback(lock.release)
            yield alone

    def survey(self) -> Survey:
        """All that can be read.

        @raise StoreError: there is no database, or one of something else.
        """
        with self.read() as alone:
            return survey(self.path, alone)

    def tree(self) -> Tree:
        """The tree that a daemon would load.

        @raise StoreError: there is no database, or it cannot be read.
        @raise TreeDefect: the rows are no tree.
        """
        with self.read() as alone, rows.reading(self.path, alone) as connection:
            connection.execute("BEGIN")
            tree = read_tree(connection, self.path)
        return Tree.new(int(self._now())) if tree is None else tree

    def backup(self, target: str, replace: bool = False) -> None:
        """Copy the database to C{target}, whole, also while a daemon writes to it.

        @raise StoreError: it cannot be read, or C{target} cannot be written, or is there and C{replace} is not set, or
            a daemon uses it.
        """
        real = os.path.realpath(target)
        if real == self.path:
            raise StoreError(EINVAL, f"{target}: is the database itself")
        for suffix in rows.BESIDE:
            database = real.removesuffix(suffix)
            if database != real and os.path.lexists(database):
                raise StoreError(EINVAL, f"{target}: belongs to the database {database}")
        there = os.path.lexists(target)
        if there and not replace:
            raise StoreError(EEXIST, f"{target}: exists already")
        if os.path.exists(target):
            rows.check_kind(target)
        # What is replaced may be a daemon's database.
        held = OfflineDatabase(target)._holding() if there else nullcontext()
        with held, self.read() as alone, rows.reading(self.path, alone) as source:
            rows.check_schema(source, self.path)
            place(target, lambda temporary: _copy(source, temporary), replace)

    def restore(self, source: str) -> str | None:
        """Put a copy of the database C{source} in the place of this one.

        The directory is made if it is missing, and C{source} has no defects.

        @return: where the database that was there is kept.
        @raise StoreError: C{source} is no database, or this one is in use, or there is no room.
        @raise TreeDefect: C{source} has defects; nothing was changed.
        """
        origin = OfflineDatabase(source, self._now)
        if origin.path == self.path:
            raise StoreError(EINVAL, f"{source}: is the database itself")
        defects = origin.survey().defects()
        if defects:
            raise TreeDefect(f"{source}: {defects[0]} ({len(defects)} defects in all); 'repair' it first")
        self._make_directory()
        with self.locked(), origin.read() as alone, rows.reading(origin.path, alone) as connection:
            kept = self._kept("restore")
            self._check_room(_bytes(origin.path))
            place(self.path, lambda temporary: _copy(connection, temporary), True, kept)
            return kept

    def repair(self) -> tuple[list[str], str | None]:
        """Mend what is wrong.

        @return: what was done, a line each, none when nothing was wrong; and where the damaged database is kept.
        @raise StoreError: it is no database, holds something else, or is in use, or there is no room.
        @raise TreeDefect: no row can be read, or it is beyond mending; nothing was changed.
        """
        with self.locked():
            found = survey(self.path, True)
            if found.is_empty:
                if found.problems:
                    raise TreeDefect(f"{self.path}: no row can be read: {found.problems[0]}")
                return [], None
            repair = Repair(found, int(self._now()))
            tree = repair.run()
            actions = [f"{problem}: written anew" for problem in found.problems] + repair.actions
            if not actions:
                return [], None
            kept = self._kept("repair")
            self._check_room(_bytes(self.path))
            create(self.path, tree, self._page_size(), replace=True, kept=kept)
            return actions, kept

    def compact(self, page_size: int | None) -> None:
        """Write the database anew, without free pages.

        @param page_size: bytes of a page of the new file; None to keep it.
        @raise StoreError: it is no database, or is in use by a daemon or another program.
        """
        with self.locked():
            with rows.reading(self.path, True) as connection:
                tree = read_tree(connection, self.path)
            if tree is None:
                return
            # The log goes before the file does, so between the two the file must hold everything.
            with rows.writing(self.path) as connection:
                busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                if busy:
                    raise StoreError(EBUSY, f"{self.path}: another program uses it; end that first")
            create(self.path, tree, page_size or self._page_size(), replace=True)

    def create(self, tree: Tree) -> None:
        """Make a new database of C{tree}, and its directory if it is missing.

        @raise StoreError: there is one already, or it cannot be written.
        """
        self._make_directory()
        with self.locked():
            create(self.path, tree)

    def rename_node(self, old: bytes, new: bytes) -> list[str]:
        """Move what is below C{nodes/old} to C{nodes/new}, into what is there already.

        @return: what was done, a line each.
        @raise OperationError: a name that is none, no such node, or files that are in both; nothing was changed.
        """
        with self.locked():
            with rows.reading(self.path, True) as connection:
                tree = read_tree(connection, self.path)
            if tree is None:
                raise OperationError(ENOENT, f"{self.path}: is empty")
            move = _NodeMove(tree, old, new, int(self._now()))
            move.run()
            with rows.writing(self.path) as connection:
                rows.commit(connection, move.stored, move.deleted, rows.root_row(move.root))
            return move.actions

    def _make_directory(self) -> None:
        """Make the database's directory if it is missing, as a daemon's; not those above it."""
        directory = os.path.dirname(self.path)
        try:
            os.mkdir(directory, 0o750)
        except FileExistsError:
            return
        except OSError as error:
            raise StoreError(error.errno or EIO, f"{directory}: {error.strerror}") from error

    def _check_room(self, count: int) -> None:
        """Whether there seems to be room for C{count} bytes and for a copy of what is there.

        @raise StoreError: ENOSPC.
        """
        needed = count + _bytes(self.path)
        status = os.statvfs(os.path.dirname(self.path))
        free = status.f_bfree * status.f_frsize  # what root can have, and others are refused in time too
        if status.f_blocks and free < needed:  # 0 blocks: it does not say
            raise StoreError(ENOSPC, f"{self.path}: no room beside it: {needed} bytes are needed, {free} are free")

    def _kept(self, before: str) -> str | None:
        """Where a copy of the file goes before something is done to it; None when there is no file."""
        if not os.path.lexists(self.path):
            return None
        base = f"{self.path}.before-{before}-{time.strftime('%Y%m%d-%H%M%S', time.localtime(self._now()))}"
        kept, number = base, 0
        while any(os.path.lexists(kept + suffix) for suffix in ("", *rows.BESIDE)):
            number += 1
            kept = f"{base}.{number}"
        return kept

    def _page_size(self) -> int:
        try:
            with rows.reading(self.path, True) as connection:
                return int(connection.execute("PRAGMA page_size").fetchone()[0])
        except StoreError:
            return DEFAULT_PAGE_SIZE


def _bytes(path: str) -> int:
    """Bytes of the database at C{path} with its log."""
    return sum(rows.size(path + suffix) for suffix in ("", "-wal", "-journal"))


def _copy(source: sqlite3.Connection, target: str) -> None:
    with closing(rows.connect(rows.uri(target, "rw"))) as connection:
        source.backup(connection)
        connection.execute("PRAGMA journal_mode=WAL").fetchall()


class _NodeMove:
    """The rows that change when a node gets another name.

    @ivar stored: entries that change.
    @ivar deleted: inodes that go: directories whose content moved into others.
    @ivar root: the root after it.
    """

    def __init__(self, tree: Tree, old: bytes, new: bytes, mtime: int) -> None:
        self.stored: list[Entry] = []
        self.deleted: list[int] = []
        self.actions: list[str] = []
        self.root = tree.root
        self._tree = tree
        self._old = old
        self._new = new
        self._mtime = mtime

    def run(self) -> None:
        for name in (self._old, self._new):
            if not is_node_name(name):
                raise OperationError(EINVAL, f"{os.fsdecode(name)!r} is no name of a node")
        if self._old == self._new:
            raise OperationError(EINVAL, "the two names are the same")
        source = self._tree.lookup(NODES + b"/" + self._old)
        if source is None:
            raise OperationError(ENOENT, f"there is no directory nodes/{os.fsdecode(self._old)}")
        target = self._tree.lookup(NODES + b"/" + self._new)
        if source.type != DT_DIR or (target is not None and target.type != DT_DIR):
            raise OperationError(ENOTDIR, "a node is a directory, this is a file")
        clashes: list[str] = []
        if target is None:
            self._move(source, source.parent, self._new)
        else:
            self._merge(source, target, clashes)
        if clashes:
            raise OperationError(EEXIST, f"in both nodes: {', '.join(clashes)}; nothing was changed")

    def _merge(self, source: Entry, target: Entry, clashes: list[str]) -> None:
        """Move what is in C{source} into C{target}, and remove C{source}."""
        for name, inode in sorted(self._tree.children(source.inode).items()):
            entry = self._tree.entry(inode)
            there = self._tree.child(target.inode, name)
            assert entry is not None
            if there is None:
                self._move(entry, target.inode, name)
            elif entry.type == there.type == DT_DIR:
                self._merge(entry, there, clashes)
            else:
                clashes.append(self._path(entry))
        self._advance()
        self.deleted.append(source.inode)
        self.actions.append(f"{self._path(source)}: removed, its content is in {self._path(target)}")

    def _move(self, entry: Entry, parent: int, name: bytes) -> None:
        self._advance()
        self.stored.append(Entry(entry.inode, parent, self.root.version, 0, self._mtime, entry.type, name, entry.data))
        above = self._tree.path_of(parent) or b""
        self.actions.append(f"{self._path(entry)}: is {os.fsdecode(above + b'/' + name)!r} now")

    def _advance(self) -> None:
        if self.root.version == MAX_VERSION:
            raise OperationError(EIO, "the tree's version is at its end; see 'pvecfs-db check' and 'pvecfs-db repair'")
        self.root = Entry(ROOT_INODE, 0, self.root.version + 1, 0, self._mtime, DT_DIR, b"")

    def _path(self, entry: Entry) -> str:
        return repr(os.fsdecode(self._tree.path_of(entry.inode) or b"?"))
