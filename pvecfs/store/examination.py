"""What is wrong with a database, found in one reading: of the file, and of the tree in it."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field

from pvecfs.store import rows
from pvecfs.store.errors import OtherSchema, StoreError
from pvecfs.store.salvage import salvage
from pvecfs.tree.defects import connect
from pvecfs.tree.entry import DT_DIR, ROOT_INODE, Entry
from pvecfs.tree.errors import TreeDefect
from pvecfs.tree.paths import KINDS, NODES
from pvecfs.tree.tree import Tree

MAX_INTEGRITY_LINES = 100

_PIECE = 1024 * 1024
"""Bytes of a file that are searched for rows at once: a multiple of all sizes of pages."""

_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_ERROR)
"""What SQLite says of a damaged file. Other errors are no fault of the file's: no permission, locked."""


@dataclass
class Survey:
    """What a database holds, right or wrong.

    @ivar entries: all rows but row 0, by inode.
    @ivar root: row 0 as it is stored, if there is one.
    @ivar problems: what is wrong with the file, a line each.
    @ivar marred: why the row of an inode is not what it was, or may not be.
    """

    entries: dict[int, Entry] = field(default_factory=dict)
    root: Entry | None = None
    problems: list[str] = field(default_factory=list)
    marred: dict[int, str] = field(default_factory=dict)

    def add(self, entry: Entry) -> None:
        if entry.inode == ROOT_INODE:
            self.root = entry
        else:
            self.entries[entry.inode] = entry

    def knows(self, inode: int) -> bool:
        return inode in self.entries if inode != ROOT_INODE else self.root is not None

    @property
    def is_empty(self) -> bool:
        return self.root is None and not self.entries

    def defects(self) -> list[str]:
        """All that is wrong, a line each; nothing for a database that any node loads."""
        lines = list(self.problems)
        lines += [described(why, self.entries[inode]) for inode, why in sorted(self.marred.items())]
        if self.is_empty:
            if lines:
                lines.append("no row can be read")
            return lines
        lines += root_lines(self.root, self.entries)
        children, defects = connect(self.entries)
        lines += [str(defect) for defect in sorted(defects, key=lambda defect: defect.entry.inode)]
        if not defects:
            tree = shape(self.entries)
            lines += [described("a directory that is inside itself", entry) for entry in rings(self.entries)]
            lines += [described(str(two), self.entries[two.unlisted.inode]) for two in tree.vms.duplicates]
            lines += [
                described("a file in the place of a directory of VM configs", entry)
                for entry in misplaced_files(self.entries, children)
            ]
        return lines


def described(what: str, entry: Entry) -> str:
    return f"{what}: inode {entry.inode}, parent {entry.parent}, name {entry.name!r}"


def root_lines(root: Entry | None, entries: dict[int, Entry]) -> list[str]:
    """What is wrong with row 0."""
    if root is None:
        return ["rows but no row 0"]
    lines = []
    what = rows.root_defect(root)
    if what is not None:
        lines.append(described(what, root))
    if root.data:
        lines.append(described("row 0 has data", root))
    for version in rows.behind(root, entries.values()), rows.ahead(root, entries.values()):
        if version is not None:
            lines.append(described(version, root))
    return lines


def shape(entries: dict[int, Entry]) -> Tree:
    """The tree of entries that have no defect but those that a running node puts up with.

    @raise TreeDefect: they have others.
    """
    root = Entry(ROOT_INODE, 0, rows.newest_number(entries.values()) or 1, 0, 0, DT_DIR, b"")
    return Tree.new(0).replaced((), entries.values(), root)


def rings(entries: dict[int, Entry]) -> list[Entry]:
    """Of each ring of directories, each in the next, that of lowest inode. All parents exist and are directories."""
    connected = {ROOT_INODE}
    found = []
    for inode in sorted(entries):
        way: dict[int, None] = {}
        while inode not in connected and inode not in way:
            way[inode] = None
            inode = entries[inode].parent
        if inode in way:
            ring = list(way)[list(way).index(inode) :]
            found.append(entries[min(ring)])
        connected.update(way)
    return found


def misplaced_files(entries: dict[int, Entry], children: dict[int, dict[bytes, int]]) -> list[Entry]:
    """Files where directories of VM configs belong, with which the reference does not start."""
    nodes = children.get(children[ROOT_INODE].get(NODES, -1), {})
    places = (children.get(node, {}).get(kind) for node in nodes.values() for kind in KINDS)
    return [entries[inode] for inode in places if inode is not None and not entries[inode].is_directory]


def survey(path: str, alone: bool) -> Survey:
    """Read all of the database at C{path} that can be read.

    @param alone: nobody writes to it now. Then a damaged file is read page by page too.
    @raise StoreError: there is none, or it holds something else.
    """
    found = Survey()
    try:
        rows.check_file(path)
    except StoreError as error:
        if not _holds_rows(path):
            raise
        found.problems.append(str(error))
    else:
        try:
            _examine(path, alone, found)
        except OtherSchema as error:
            if not alone:
                raise
            found.problems.append(str(error))
            _salvage(path, found)
            # No database of others has this row, in eight columns of these kinds.
            if found.root is None or rows.root_defect(found.root) is not None:
                raise
            return found
        except StoreError as error:
            if not _is_damage(error.__cause__):
                raise
            found.problems.append(str(error))
    if found.problems and alone:
        _salvage(path, found)
    return found


def _is_damage(cause: BaseException | None) -> bool:
    return isinstance(cause, UnicodeDecodeError) or (
        isinstance(cause, sqlite3.Error) and rows.primary_code(cause) in _DAMAGE
    )


def _holds_rows(path: str) -> bool:
    """Whether there are pages of a database in what is none to SQLite."""
    try:
        rows.check_kind(path)
        with open(path, "rb") as file:  # which may be of any size
            return any(salvage(piece) for piece in iter(lambda: file.read(_PIECE), b""))
    except OSError:
        return False


def _examine(path: str, alone: bool, found: Survey) -> None:
    what = rows.unwritable(path)
    with rows.reading(path, alone) as connection:
        connection.execute("BEGIN")
        has_table = rows.check_schema(connection, path)
        integrity = connection.execute(f"PRAGMA integrity_check({MAX_INTEGRITY_LINES})").fetchall()
        found.problems = [" ".join(str(line).split()) for (line,) in integrity if line != "ok"]
        if what is not None:
            found.problems.append(what)
        if has_table:
            _read(connection, found)


def _read(connection: sqlite3.Connection, found: Survey) -> None:
    """Read rows through SQLite, from both ends if it stops on the way."""
    first: Exception | None = None
    for order in ("", " ORDER BY inode DESC"):
        try:
            for row in connection.execute(rows.SELECT + order):
                if not found.knows(int(row[0])):
                    _add(row, found)
            break
        except rows.ERRORS as error:
            first = first or error
    if first is not None:
        found.problems.append(f"some rows cannot be read: {first}")


def _add(row: tuple[object, ...], found: Survey) -> None:
    try:
        found.add(rows.entry_of(row))
    except TreeDefect:
        inode, *numbers, name, data = row
        assert isinstance(inode, int)
        whole = [number if isinstance(number, int) else 0 for number in numbers]
        entry = rows.entry_of((inode, *whole, name if isinstance(name, bytes) else b"", data))
        found.add(entry)
        found.marred[entry.inode] = "a column of another kind than declared"


def _salvage(path: str, found: Survey) -> None:
    """Add the rows that SQLite did not give."""
    extra: dict[int, Entry] = {}
    for entry, page, whole in salvage(_image(path, found)):
        if found.knows(entry.inode):
            continue
        before = extra.get(entry.inode)
        # There can be two states of one row. The newer is the right one, if it is whole.
        if before is not None and (not whole, -entry.version) >= (before.inode in found.marred, -before.version):
            continue
        extra[entry.inode] = entry
        found.marred.pop(entry.inode, None)
        if not whole:
            found.marred[entry.inode] = f"only the first {len(entry.data)} bytes can be read (page {page})"
    for entry in extra.values():
        found.add(entry)
    if ROOT_INODE in found.marred:
        del found.marred[ROOT_INODE]
    if extra:
        found.problems.append(f"{len(extra)} rows were read from pages that SQLite does not reach")


def _image(path: str, found: Survey) -> bytes:
    """The file's content with its log played into it."""
    with rows.copied(path) as copy:
        if rows.size(copy + "-wal") or os.path.exists(copy + "-journal"):
            try:
                with closing(rows.connect(rows.uri(copy, "rw"))) as connection:
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            except rows.ERRORS as error:
                found.problems.append(f"{path}-wal: the newest changes cannot be read: {error}")
        with open(copy, "rb") as file:
            return file.read()
