"""A tree out of rows that are none: what breaks a rule moves into C{lost+found/}, and nothing is discarded."""

from __future__ import annotations

from pvecfs.store import rows
from pvecfs.store.examination import Survey, described, misplaced_files, rings, shape
from pvecfs.tree.admission import MAX_NAME_BYTES
from pvecfs.tree.defects import connect
from pvecfs.tree.entry import DT_DIR, DT_REG, ROOT_INODE, Entry
from pvecfs.tree.errors import TreeDefect
from pvecfs.tree.paths import is_bad_component
from pvecfs.tree.tree import MAX_VERSION, Tree

LOST_AND_FOUND = b"lost+found"


class Repair:
    """Mends the rows of a survey.

    @param survey: what was found.
    @param mtime: seconds since 1970: the time of what has to change.
    @ivar actions: after L{run}: what was done, a line each; empty when nothing had to be.
    """

    def __init__(self, survey: Survey, mtime: int) -> None:
        self.actions: list[str] = []
        self._survey = survey
        self._mtime = mtime
        self._entries = dict(sorted(survey.entries.items()))  # of two that clash, the lower inode stays
        self._version = 1
        self._place: int | None = None

    def run(self) -> Tree:
        """Mend everything; return the tree.

        @raise TreeDefect: it is beyond mending (numbers at the end of their range).
        """
        root = self._survey.root
        ahead = None if root is None else rows.ahead(root, self._entries.values())
        if ahead is not None:
            self.actions.append(f"{ahead}: set back")
        kept = 1 if root is None or ahead is not None else root.version
        self._version = max(rows.newest_number(self._entries.values()), kept)
        self._mend_root(root)
        self._mend_rows()
        self._mend_places()
        self._mend_rings()
        self._mend_configs()
        if root is None or self.actions:
            root = Entry(ROOT_INODE, 0, self._next(), 0, self._mtime, DT_DIR, b"")
        return Tree.load(self._entries.values(), Entry(0, 0, root.version, root.writer, root.mtime, DT_DIR, b""))

    def _next(self) -> int:
        if self._version >= MAX_VERSION:
            raise TreeDefect("the tree's version is at its end: there is no inode left for lost+found")
        self._version += 1
        return self._version

    def _mend_root(self, root: Entry | None) -> None:
        if root is None:
            self.actions.append("row 0 is missing: made anew")
            return
        what = rows.root_defect(root)
        if what is not None:
            self.actions.append(described(f"{what}: made anew", root))
        elif root.version < self._version:
            self.actions.append(f"the tree's version {root.version} is behind its entries': raised")
        if root.data:
            self._save(root, "the data of row 0")

    def _mend_rows(self) -> None:
        """What is wrong with a row for itself."""
        parents = {entry.parent for entry in self._entries.values()}
        for inode, why in sorted(self._survey.marred.items()):
            if inode in self._entries:
                self._relocate(inode, why)
        for inode, entry in sorted(self._entries.items()):
            if entry.type == DT_DIR and entry.data:
                self._save(entry, "the data of a directory")
                self._replace(entry, type=DT_DIR, data=b"")
            elif entry.type not in (DT_DIR, DT_REG):
                as_directory = inode in parents
                if as_directory and entry.data:
                    self._save(entry, f"the data of an entry of type {entry.type}")
                kind, data = (DT_DIR, b"") if as_directory else (DT_REG, entry.data)
                self._relocate(inode, f"unknown type {entry.type}", kind, data)
            if is_bad_component(self._entries[inode].name):
                self._relocate(inode, "a name that no entry can have" if entry.name else "an entry without a name")

    def _mend_places(self) -> None:
        """Parents that are none, and names that are taken. What is moved can collide again, so until all is well."""
        while True:
            _, defects = connect(self._entries)
            if not defects:
                return
            for defect in sorted(defects, key=lambda defect: defect.entry.inode):
                self._relocate(defect.entry.inode, defect.what)

    def _mend_rings(self) -> None:
        for entry in rings(self._entries):
            self._relocate(entry.inode, "a directory that is inside itself")
        self._mend_places()

    def _mend_configs(self) -> None:
        """VM configs, and the directories that they belong in. Nothing that is moved away makes others wrong."""
        for two in shape(self._entries).vms.duplicates:
            self._relocate(two.unlisted.inode, str(two))
        children, _ = connect(self._entries)
        for entry in misplaced_files(self._entries, children):
            self._relocate(entry.inode, "a file in the place of a directory of VM configs")
        self._mend_places()

    def _relocate(self, inode: int, why: str, type: int | None = None, data: bytes | None = None) -> None:
        """Move an entry, with what is in it, into lost+found."""
        entry = self._entries[inode]
        place = self._lost_and_found()
        name = _new_name(entry)
        self._entries[inode] = Entry(
            inode,
            place,
            self._next(),
            0,
            entry.mtime,
            entry.type if type is None else type,
            name,
            entry.data if data is None else data,
        )
        self.actions.append(f"{described(why, entry)}: moved to {self._path_of(name)}")

    def _replace(self, entry: Entry, type: int, data: bytes) -> None:
        self._entries[entry.inode] = Entry(
            entry.inode, entry.parent, self._next(), 0, entry.mtime, type, entry.name, data
        )

    def _save(self, entry: Entry, what: str) -> None:
        """Make a file in lost+found of data that cannot stay where they are."""
        place = self._lost_and_found()
        inode = self._next()
        name = _new_name(entry, b".data")
        self._entries[inode] = Entry(inode, place, inode, 0, entry.mtime, DT_REG, name, entry.data)
        self.actions.append(f"{described(what, entry)}: saved as {self._path_of(name)}")

    def _lost_and_found(self) -> int:
        """The inode of the directory, which is made with the first entry that needs it."""
        if self._place is not None:
            return self._place
        top = {entry.name: entry for entry in reversed(self._entries.values()) if entry.parent == ROOT_INODE}
        name = LOST_AND_FOUND
        number = 0
        while name in top and not (top[name].type == DT_DIR and top[name].inode not in self._survey.marred):
            number += 1
            name = LOST_AND_FOUND + b".%d" % number
        if name in top:
            self._place = top[name].inode
        else:
            self._place = self._next()
            self._entries[self._place] = Entry(self._place, ROOT_INODE, self._place, 0, self._mtime, DT_DIR, name)
        return self._place

    def _path_of(self, name: bytes) -> str:
        return repr(self._entries[self._lost_and_found()].name + b"/" + name)


def _new_name(entry: Entry, suffix: bytes = b"") -> bytes:
    """A name in lost+found that no other entry gets: the inode, then what can be kept of the old name."""
    old = entry.name.replace(b"/", b"_").replace(b"\0", b"_")
    name = b"%d-%s" % (entry.inode, old) if old else b"%d" % entry.inode
    return name[: MAX_NAME_BYTES - len(suffix)] + suffix
