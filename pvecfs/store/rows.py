"""The one table of the database: its schema, and how entries become rows (10-tree.md, "SQLite").

Names are bytes. They are stored as TEXT whatever the bytes, as the reference does, by casting a bound BLOB: SQLite
keeps the bytes of a cast. Integers of 64 bits are stored as SQLite has them, signed: from 2^63 on they are negative in
the file, and read back as what they were.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from errno import EACCES, EINVAL, EIO, EISDIR, ENOSPC
from itertools import chain
from stat import S_ISDIR, S_ISREG
from tempfile import TemporaryDirectory
from urllib.parse import quote

from pvecfs.store.errors import OtherSchema, StoreError
from pvecfs.tree.entry import DT_DIR, DT_REG, ROOT_INODE, Entry
from pvecfs.tree.errors import TreeDefect

ROOT_NAME = b"__version__"
"""The name of row 0, whose version, writer and mtime are the tree's."""

SCHEMA = """CREATE TABLE IF NOT EXISTS tree (
  inode INTEGER PRIMARY KEY NOT NULL,
  parent INTEGER NOT NULL CHECK(typeof(parent)=='integer'),
  version INTEGER NOT NULL CHECK(typeof(version)=='integer'),
  writer INTEGER NOT NULL CHECK(typeof(writer)=='integer'),
  mtime INTEGER NOT NULL CHECK(typeof(mtime)=='integer'),
  type INTEGER NOT NULL CHECK(typeof(type)=='integer'),
  name TEXT NOT NULL,
  data BLOB)"""

COLUMNS = [
    ("inode", "INTEGER", 1, 1),
    ("parent", "INTEGER", 1, 0),
    ("version", "INTEGER", 1, 0),
    ("writer", "INTEGER", 1, 0),
    ("mtime", "INTEGER", 1, 0),
    ("type", "INTEGER", 1, 0),
    ("name", "TEXT", 1, 0),
    ("data", "BLOB", 0, 0),
]
"""Name, declared type, NOT NULL, primary key."""

_UPSERT = (
    " ON CONFLICT(inode) DO UPDATE SET parent=excluded.parent, version=excluded.version, writer=excluded.writer,"
    " mtime=excluded.mtime, type=excluded.type, name=excluded.name, data=excluded.data"
)
# An update in place, not INSERT OR REPLACE: SQLite then leaves alone the pages of a row that stay as they are (a new
# mtime of a large file costs one page), and frees fewer.
_ENTRY = "(?, ?, ?, ?, ?, ?, CAST(? AS TEXT), ?)"
_ROOT = "(0, 0, ?, ?, ?, ?, '__version__', NULL)"
STORE = f"INSERT INTO tree VALUES {_ENTRY}{_UPSERT}"
STORE_WITH_ROOT = tuple(f"INSERT INTO tree VALUES {f'{_ENTRY}, ' * count}{_ROOT}{_UPSERT}" for count in range(17))
"""So many entries and the root in one statement, which is a transaction of itself. Each statement, and each row of
C{executemany}, lets go of the interpreter and wants it back, which another thread may have by then."""
DELETE = "DELETE FROM tree WHERE inode = ?"
SELECT = (
    "SELECT inode, parent, version, writer, mtime, type, CAST(name AS BLOB), CAST(data AS BLOB) FROM tree"  # any order
)

BESIDE = ("-wal", "-shm", "-journal")
"""What SQLite adds to a database's name for the files that it keeps beside it."""

DEFAULT_PAGE_SIZE = 1024
"""Bytes of a page of a new database; others keep theirs.

A transaction writes whole pages to the log, at least two: the row's and row 0's. Small pages make small changes cheap
on the disk, large pages make large files fast. Measured with benchmarks/store.py: with 1024 every kind of change writes
less than half of the reference's bytes; with 2048 an overwrite of 2 KiB writes 0.8 of them, with 4096 most do. A
file of 1 MiB takes 1.7 ms to commit; with 512 it takes 4 ms, with 4096 1.1 ms.
"""

ERRORS = (sqlite3.Error, UnicodeDecodeError)
"""What Python's module raises: the latter for an error of SQLite's, if its message quotes bytes of a damaged schema
that are no text."""

_I64 = 2**63
_U64_MASK = 2**64 - 1
_U32_MASK = 2**32 - 1

Row = tuple[int, int, int, int, int, int, bytes, bytes | None]
RootRow = tuple[int, int, int, int]


def signed(number: int) -> int:
    """C{number}, a u64, as SQLite stores it."""
    return number if number < _I64 else number - 2**64


def row_of(entry: Entry) -> Row:
    """The parameters of L{STORE}. Of an empty file, or a directory, the data are NULL."""
    inode, parent, version = entry.inode, entry.parent, entry.version
    if inode >= _I64 or parent >= _I64 or version >= _I64:
        inode, parent, version = signed(inode), signed(parent), signed(version)
    return inode, parent, version, entry.writer, entry.mtime, entry.type, entry.name, entry.data or None


def root_row(root: Entry, synchronised: bool = False) -> RootRow:
    """The root's parameters of L{STORE_WITH_ROOT}: type 4 after a synchronisation, 8 after a change."""
    return signed(root.version), root.writer, root.mtime, DT_DIR if synchronised else DT_REG


def entry_of(row: tuple[object, ...]) -> Entry:
    """The entry that a row of L{SELECT} is, row 0 too, which keeps its name and type here.

    @raise TreeDefect: a column of another kind than the schema says.
    """
    inode, parent, version, writer, mtime, type_, name, data = row
    if not (
        isinstance(inode, int)
        and isinstance(parent, int)
        and isinstance(version, int)
        and isinstance(writer, int)
        and isinstance(mtime, int)
        and isinstance(type_, int)
        and isinstance(name, bytes)
        and isinstance(data, bytes | None)
    ):
        raise TreeDefect(f"a column of another kind than declared: inode {inode}, parent {parent}, name {name!r}")
    return unsigned_entry(inode, parent, version, writer, mtime, type_, name, data)


def unsigned_entry(
    inode: int, parent: int, version: int, writer: int, mtime: int, type_: int, name: bytes, data: bytes | None
) -> Entry:
    """The entry of numbers as SQLite has them: signed."""
    return Entry(
        inode & _U64_MASK,
        parent & _U64_MASK,
        version & _U64_MASK,
        writer & _U32_MASK,
        mtime & _U32_MASK,
        type_,
        name,
        data or b"",
    )


def split_root(rows: Iterable[Entry]) -> tuple[list[Entry], Entry | None]:
    """All entries but the root's, and the root as L{Tree} has it; no root at all when there are no rows.

    @raise TreeDefect: rows but no row 0, or a row 0 that is not the root's.
    """
    entries: list[Entry] = []
    root: Entry | None = None
    for entry in rows:
        if entry.inode == ROOT_INODE:
            root = entry
        else:
            entries.append(entry)
    if root is None:
        if entries:
            raise TreeDefect(f"rows but no row 0: inode {ROOT_INODE}, parent 0, name {ROOT_NAME!r} is missing")
        return entries, None
    what = root_defect(root)
    if what is not None:
        raise TreeDefect(f"{what}: inode 0, parent {root.parent}, name {root.name!r}")
    return entries, Entry(ROOT_INODE, 0, root.version, root.writer, root.mtime, DT_DIR, b"")


def root_defect(root: Entry) -> str | None:
    """What is wrong with row 0 (C{root} as L{entry_of} gave it), if anything."""
    if root.name != ROOT_NAME:
        return f"row 0 has another name than {ROOT_NAME.decode()}"
    if root.type not in (DT_DIR, DT_REG):
        return f"row 0 has type {root.type}, neither 4 nor 8"
    return None


def newest_number(entries: Iterable[Entry]) -> int:
    """The highest version or inode: the tree's version is not below it, or new entries take inodes in use."""
    return max((max(entry.version, entry.inode) for entry in entries), default=0)


def behind(root: Entry, entries: Iterable[Entry]) -> str | None:
    """What is wrong with the tree's version, if anything.

    @param entries: all; the root may be among them.
    """
    newest = newest_number(entries)
    if root.version >= newest:
        return None
    return f"the tree's version {root.version} is behind its entries' {newest}"


def ahead(root: Entry, entries: Iterable[Entry]) -> str | None:
    """What is wrong with the tree's version, if no tree gets there by changes. At its end there can be no more of them.

    @param entries: all; the root is not among them.
    """
    newest = newest_number(entries)
    if not root.version >= _I64 > newest:
        return None
    return f"the tree's version {root.version} is far ahead of its entries' {newest}"


def uri(path: str, mode: str) -> str:
    """The name by which SQLite opens the file at C{path}; mode C{ro}, C{rw} or C{rwc}."""
    return f"file:{quote(os.path.abspath(os.fsencode(path)))}?mode={mode}"


Connect = Callable[[str], sqlite3.Connection]
"""Opens the database that a URI names; in tests also one that fails."""


def connect(uri: str) -> sqlite3.Connection:
    """A connection without transactions of Python's own making, that waits 10 s for a lock."""
    connection = sqlite3.connect(uri, timeout=10.0, isolation_level=None, uri=True)
    connection.text_factory = _text
    return connection


def _text(stored: bytes) -> str:
    """In a damaged file, what is declared as text, or reported, may be none."""
    return stored.decode(errors="replace")


def check_file(path: str) -> None:
    """Refuse what is no database before SQLite touches it.

    @raise StoreError: naming C{path}; ENOENT when there is nothing.
    """
    if check_kind(path) == 0:
        raise StoreError(
            EINVAL, f"{path}: is empty, not a database; restore a backup, or remove it to begin with a new one"
        )
    try:
        with open(path, "rb") as file:
            magic = file.read(16)
    except OSError as error:
        raise StoreError(error.errno or EIO, f"{path}: {error.strerror}") from error
    if magic != b"SQLite format 3\0":
        raise StoreError(EINVAL, f"{path}: is not an SQLite database")


def check_kind(path: str) -> int:
    """The size in bytes of the regular file at C{path}.

    @raise StoreError: it is none; opening it could wait for ever.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise StoreError(error.errno or EIO, f"{path}: {error.strerror}") from error
    if S_ISDIR(status.st_mode):
        raise StoreError(EISDIR, f"{path}: is a directory, not a database")
    if not S_ISREG(status.st_mode):
        raise StoreError(EINVAL, f"{path}: is not a regular file")
    return status.st_size


def unwritable(path: str) -> str | None:
    """Why SQLite reads the database at C{path} but refuses to write to it, if so.

    That is the "file format write version" (https://www.sqlite.org/fileformat2.html, section 1.3): 1 or 2, which is
    with a log. Not to be called while this process has the database open: closing the file would drop SQLite's locks.

    @raise OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(19)
    return f"its format can be read only: write version {head[18]}" if head[18:] > b"\2" else None


def check_schema(connection: sqlite3.Connection, path: str) -> bool:
    """Whether there is a table of entries; C{False} for a database without anything in it.

    @raise OtherSchema: it holds something else.
    """
    if connection.execute("PRAGMA encoding").fetchone()[0] != "UTF-8":
        raise OtherSchema(EINVAL, f"{path}: the database's text is not UTF-8")
    columns = [(row[1], str(row[2]).upper(), row[3], row[5]) for row in connection.execute("PRAGMA table_info(tree)")]
    if columns == COLUMNS:
        _check_constraints(connection)
        return True
    if columns:
        raise OtherSchema(EINVAL, f"{path}: another schema: the columns of table 'tree' are not this file system's")
    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise OtherSchema(EINVAL, f"{path}: another schema: there is no table 'tree'")
    return False


def _check_constraints(connection: sqlite3.Connection) -> None:
    """Whether the table can be written to: who only reads is told nothing of a constraint that makes no sense.

    @raise sqlite3.Error: as SQLite would, to who writes.
    """
    with closing(connect(":memory:")) as trial:
        trial.set_authorizer(_no_files)  # whoever wrote the file wrote what is tried here
        for (sql,) in connection.execute("SELECT sql FROM sqlite_master WHERE lower(name) = 'tree'"):
            trial.executescript(str(sql).partition("\0")[0])


def _no_files(action: int, *_: object) -> int:
    """Of SQL that is not ours, refuse what would open another file: ATTACH, and VACUUM INTO, which does it so."""
    return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_ATTACH else sqlite3.SQLITE_OK


def primary_code(error: Exception) -> int | None:
    """SQLite's primary result code (SQLITE_BUSY and so on), C{None} if SQLite did not raise this."""
    code = getattr(error, "sqlite_errorcode", None)
    return code & 0xFF if isinstance(code, int) else None


def is_busy(error: Exception) -> bool:
    """Whether a transaction could not begin, as another program is in the middle of one."""
    return primary_code(error) == sqlite3.SQLITE_BUSY


def error_of(error: sqlite3.Error | UnicodeDecodeError, path: str) -> StoreError:
    """What an error of SQLite's means: ENOSPC when there is no room, EACCES when not allowed, else EIO."""
    primary = primary_code(error)
    what = str(error)
    if isinstance(error, UnicodeDecodeError):
        primary, what = sqlite3.SQLITE_CORRUPT, ascii(_text(error.object))
    number = EIO
    if primary == sqlite3.SQLITE_FULL or (primary == sqlite3.SQLITE_IOERR and _is_full(path)):
        number = ENOSPC
    elif primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        number = EACCES
    name = getattr(error, "sqlite_errorname", None)
    hint = ""
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        hint = "; see 'pvecfs-db check' and 'pvecfs-db repair'"
    elif primary == sqlite3.SQLITE_BUSY:
        hint = "; another program uses it"
    return StoreError(number, f"{path}: {what}{f' ({name})' if name else ''}{hint}")


def _is_full(path: str) -> bool:
    try:
        status = os.statvfs(os.path.dirname(os.path.abspath(path)))
    except OSError:
        return False
    return status.f_bavail == 0


@contextmanager
def reading(path: str, alone: bool, connect: Connect = connect) -> Iterator[sqlite3.Connection]:
    """A connection that reads the database at C{path} and changes nothing.

    @param alone: nobody writes to it now, the caller has seen to that; then no file is made beside it either.
    @raise StoreError: it is none, or cannot be read.
    """
    check_file(path)
    name = path
    with ExitStack() as held:
        half_done = os.path.exists(path + "-journal")
        if not half_done and alone and size(path + "-wal") == 0:
            mode = "ro&immutable=1"  # without it SQLite makes -wal and -shm even to read
        else:
            mode = "rw" if half_done else "ro"  # a transaction that a crash left half done must be undone first
            if alone and not os.access(os.path.dirname(os.path.abspath(path)), os.W_OK):
                name = held.enter_context(copied(path))  # a medium that nobody writes to, SQLite neither
                mode = "rw"
        try:
            with closing(connect(uri(name, mode))) as connection:
                yield connection
        except ERRORS as error:
            raise error_of(error, path) from error


@contextmanager
def writing(path: str) -> Iterator[sqlite3.Connection]:
    """A connection that changes the database at C{path}.

    @raise StoreError: what SQLite raised meanwhile.
    """
    try:
        with closing(connect(uri(path, "rw"))) as connection:
            yield connection
    except ERRORS as error:
        raise error_of(error, path) from error


@contextmanager
def copied(path: str) -> Iterator[str]:
    """The path of a copy of the database at C{path}, with its log, in a directory that is removed afterwards.

    @raise StoreError: it cannot be copied.
    """
    with TemporaryDirectory(prefix="pvecfs-db.") as directory:
        name = os.path.join(directory, "copy.db")
        try:
            copy(path, name)
        except OSError as error:
            why = f"{path}: cannot be copied to {directory}: {error.strerror}"
            raise StoreError(error.errno or EIO, why) from error
        yield name


def copy(path: str, target: str) -> None:
    """Copy a database and its log, each to a new file of mode 0600.

    @raise OSError: it failed, and a part may be there.
    """
    for suffix in ("", "-wal", "-journal"):
        if suffix and not os.path.exists(path + suffix):
            continue
        fd = os.open(target + suffix, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as written, open(path + suffix, "rb") as read:
            shutil.copyfileobj(read, written, 1024 * 1024)


def size(path: str) -> int:
    """Bytes of the file at C{path}, 0 when there is none."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def store(connection: sqlite3.Connection, stored: Collection[Entry], deleted: Collection[int], root: RootRow) -> None:
    """Write what a change does to the rows, in a transaction that the caller has begun.

    @param stored: entries inserted or replaced, never the root.
    @param deleted: inodes removed.
    """
    if deleted:
        connection.executemany(DELETE, [(signed(inode),) for inode in deleted])
    if len(stored) >= len(STORE_WITH_ROOT):
        connection.executemany(STORE, map(row_of, stored))
        stored = ()
    connection.execute(STORE_WITH_ROOT[len(stored)], (*chain.from_iterable(map(row_of, stored)), *root))


def commit(connection: sqlite3.Connection, stored: Collection[Entry], deleted: Collection[int], root: RootRow) -> None:
    """L{store}, as a transaction. If it fails, the caller rolls back what was begun."""
    if not deleted and len(stored) < len(STORE_WITH_ROOT):
        store(connection, stored, deleted, root)  # one statement
        return
    connection.execute("BEGIN IMMEDIATE")
    store(connection, stored, deleted, root)
    connection.execute("COMMIT")


def read_rows(connection: sqlite3.Connection) -> Iterator[Entry]:
    """All rows, row 0 too."""
    return map(entry_of, connection.execute(SELECT))
