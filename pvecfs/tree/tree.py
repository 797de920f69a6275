"""The tree as a value: the entries, what can be done to them, and what follows from them (10-tree.md).

A L{Tree} never changes. L{Tree.apply} gives the tree after a change together with the rows to store. All checks come
before anything is built, so a refused change costs nothing and leaves nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from errno import EACCES, EEXIST, EFBIG, EIO, ENOENT, ENOTDIR, ENOTEMPTY
from hashlib import sha256
from typing import NamedTuple

from immutables import Map

from pvecfs.tree.changes import Change, Create, Delete, Mkdir, Rename, SetMtime, Write
from pvecfs.tree.counters import Counters
from pvecfs.tree.entry import DT_DIR, DT_REG, ROOT_INODE, Entry, path_of
from pvecfs.tree.errors import OperationError, TreeDefect
from pvecfs.tree.index import LastIndex
from pvecfs.tree.paths import Names, VmConfig, is_bad_component, is_below_locks, is_lock, join, split, vm_config_at
from pvecfs.tree.replacement import NOTHING, Children, Replacement
from pvecfs.tree.vmlist import VmList, find_configs

MAX_FILE_BYTES = 1024 * 1024
"""The largest file. Larger ones are refused on every node alike."""

U32 = 0xFFFFFFFF
MAX_VERSION = 2**64 - 1


class Delta(NamedTuple):
    """What a change, or a synchronisation, does to the stored rows. Empty (no rows, the same tree): nothing to commit.

    @ivar tree: the tree after it; row 0 comes from its root.
    @ivar stored: entries inserted or replaced, never the root.
    @ivar deleted: inodes removed.
    @ivar synchronised: row 0 is stored with type 4 instead of 8.
    """

    tree: Tree
    stored: tuple[Entry, ...]
    deleted: tuple[int, ...]
    synchronised: bool = False


class Applied(NamedTuple):
    """A change that succeeded.

    @ivar tree: the tree after it, C{delta.tree}.
    @ivar result: number of bytes of a write, else 0.
    """

    tree: Tree
    result: int
    delta: Delta


class Tree:
    """All entries, immutable. Any thread may read it.

    @ivar root: inode 0; its version, writer and mtime are the tree's.
    @ivar vms: the VM list.
    @ivar counters: the counters of ``.version``.
    @ivar total_bytes: bytes of data of all files.
    """

    __slots__ = ("_children", "_entries", "_last_index", "counters", "root", "total_bytes", "vms")

    def __init__(
        self,
        root: Entry,
        entries: Map[int, Entry],
        children: Map[int, Children],
        vms: VmList,
        counters: Counters,
        total_bytes: int,
        last_index: LastIndex | None = None,
    ) -> None:
        """For L{new}, L{load} and changes only.

        @param entries: all but the root.
        @param children: of each directory, the root too, the children's inodes by name. Files have none here.
        @param last_index: of an ancestor, or this tree; what was touched since is noted in it.
        """
        self.root = root
        self._entries = entries
        self._children = children
        self.vms = vms
        self.counters = counters
        self.total_bytes = total_bytes
        self._last_index = last_index

    # Making

    @classmethod
    def new(cls, mtime: int) -> Tree:
        """The tree of a new database, made at C{mtime} (seconds): version 1, writer 0, the load counted."""
        root = _root(1, 0, mtime & U32)
        return cls(root, Map(), Map({ROOT_INODE: NOTHING}), VmList(), Counters().loaded(), 0)

    @classmethod
    def load(cls, entries: Iterable[Entry], root: Entry) -> Tree:
        """The tree of stored rows, in any order, at start: the VM list is built, the load counted.

        @param root: inode 0; only its version, writer and mtime matter. It may also be among C{entries}.
        @raise TreeDefect: the rows are no tree, or hold two configs of one VMID.
        """
        if root.inode != ROOT_INODE:
            raise TreeDefect(f"the root has inode {root.inode}")
        rows: dict[int, Entry] = {}
        for entry in entries:
            if entry.inode == ROOT_INODE and entry == root:
                continue
            if entry.inode in rows or entry.inode == ROOT_INODE:
                raise TreeDefect(f"a second entry of inode {entry.inode}, parent {entry.parent}, name {entry.name!r}")
            rows[entry.inode] = entry
        nothing = cls(root, Map(), Map({ROOT_INODE: NOTHING}), VmList(), Counters(), 0)
        tree = nothing.replaced((), rows.values(), root)
        if tree.vms.duplicates:
            duplicate = tree.vms.duplicates[0]
            other = rows[duplicate.unlisted.inode]
            raise TreeDefect(f"{duplicate}: inode {other.inode}, parent {other.parent}, name {other.name!r}")
        return tree

    def replaced(self, deleted: Iterable[int], updated: Iterable[Entry], root: Entry | None) -> Tree:
        """What a synchronisation commits: this tree without C{deleted}, with C{updated} in place of what has their
        inodes, and with C{root} unless it stays. The VM list is built anew, the load counted, counters go on.

        Look at C{vms.duplicates} of the result: two configs of one VMID call for a critical log line, no more.

        @raise TreeDefect: the result is no tree.
        """
        replacement = self.replacement(deleted)
        for entry in updated:
            if entry.inode == ROOT_INODE:
                raise TreeDefect(f"a root among the entries: parent {entry.parent}, name {entry.name!r}")
            replacement.put(entry)
        return self.succeeded(replacement, root)

    def replacement(self, deleted: Iterable[int]) -> Replacement:
        """Begin what L{replaced} does at once: C{put} the entries into this, in any order, then call L{succeeded}."""
        return Replacement(self._entries, self._children, deleted)

    def succeeded(self, replacement: Replacement, root: Entry | None, items: bytes | None = None) -> Tree:
        """End what L{replacement} of this tree began, see L{replaced}. Once only.

        @param items: L{Entry.record} of all entries of the result, by ascending inode, if the caller knows them: its
            index does not have to be made then.
        @raise TreeDefect: the result is no tree.
        """
        if root is None:
            root = self.root
        if not (0 <= root.version < 2**64 and 0 <= root.writer <= U32 and 0 <= root.mtime <= U32):
            raise TreeDefect(f"the root's numbers are out of range: {root!r}")
        after = replacement.finish()
        root = _root(root.version, root.writer, root.mtime)
        last_index = self._last_index
        if items is not None:
            last_index = LastIndex(root, items)
        elif last_index is not None:
            last_index = last_index.touch(after.touched)
        return Tree(
            root,
            after.entries,
            after.children,
            self.vms.rebuilt(find_configs(after.entries, after.children)),
            self.counters.loaded(),
            self.total_bytes + after.grown,
            last_index,
        )

    def imported(self, path: bytes, data: bytes, mtime: int) -> Delta:
        """The import of corosync.conf at first start: a create and a truncating write by writer 0, not counted.

        @raise OperationError: as for the two changes.
        """
        created = self.apply(Create(path), 0, mtime).tree
        delta = created.apply(Write(path, data, 0, truncate=True), 0, mtime).delta
        delta.tree.counters = self.counters  # nobody else has this tree yet
        return delta

    # Reading

    @property
    def version(self) -> int:
        """The change counter."""
        return self.root.version

    def __len__(self) -> int:
        """Number of entries, the root included."""
        return len(self._entries) + 1

    def entry(self, inode: int) -> Entry | None:
        """The entry of C{inode}, the root's is 0."""
        return self._entries.get(inode) if inode != ROOT_INODE else self.root

    def child(self, parent: int, name: bytes) -> Entry | None:
        """The entry C{name} in the directory of inode C{parent}."""
        inode = self.children(parent).get(name)
        return None if inode is None else self._entries[inode]

    def children(self, inode: int) -> Children:
        """The inodes in a directory by name; empty for files. The same object as long as nothing comes or goes."""
        return self._children.get(inode, NOTHING)

    def lookup(self, path: bytes) -> Entry | None:
        """The entry at C{path}, the root for the empty path and C{.}."""
        return self._find(split(path))

    def _find(self, names: Names) -> Entry | None:
        inode = ROOT_INODE
        children = self._children
        for name in names:
            siblings = children.get(inode)
            if siblings is None or (inode := siblings.get(name, -1)) < 0:
                return None
        return self._entries[inode] if inode else self.root

    def path_of(self, inode: int) -> bytes | None:
        """The path of C{inode}, without a leading ``/``; C{None} when there is none, or none leads to it."""
        return path_of(inode, self._entries)

    def entries(self) -> Iterator[Entry]:
        """All entries by ascending inode, beginning with the root."""
        yield self.root
        entries = self._entries
        for inode in sorted(entries):
            yield entries[inode]

    def index(self) -> bytes:
        """The state that nodes compare, see L{Index}. Two trees are equal exactly when their indexes are."""
        last = self._last_index
        self._last_index = last = (
            LastIndex.of(self.root, self._entries) if last is None else last.after(self.root, self._entries)
        )
        return last.encoded

    def checksum(self) -> bytes:
        """SHA-256 over all entries, 32 bytes. Reads all data: 128 MiB take a noticeable part of a second."""
        digest = sha256()
        for entry in self.entries():
            digest.update(entry.checksum_fields())
            digest.update(entry.data)
        return digest.digest()

    # Changing

    def apply(self, change: Change, writer: int, mtime: int) -> Applied:
        """Apply C{change} as if delivered.

        @param writer: node id of its sender, 0 in local mode.
        @param mtime: the sender's clock, seconds; not used by L{SetMtime}, which carries its own.
        @raise OperationError: refused, nothing changed; which error comes first is fixed, all nodes agree on it.
        """
        mtime &= U32
        if isinstance(change, Write):
            return self._write(change, writer, mtime)
        if isinstance(change, Create):
            return self._create(change, writer, mtime)
        if isinstance(change, Rename):
            return self._rename(change, writer, mtime)
        if isinstance(change, Delete):
            return self._delete(change, writer, mtime)
        if isinstance(change, SetMtime):
            return self._set_mtime(change, writer)
        return self._mkdir(change, writer, mtime)

    def _parent_and_name(self, names: Names) -> tuple[int, bytes]:
        """Inode of the directory that holds, or would hold, the last of C{names}; and that name."""
        inode = ROOT_INODE
        children = self._children
        for name in names[:-1]:
            siblings = children.get(inode)
            if siblings is None or (inode := siblings.get(name, -1)) < 0:
                raise OperationError(ENOENT)
        if inode not in children:
            raise OperationError(ENOTDIR)
        name = names[-1] if names else b""
        if is_bad_component(name):
            raise OperationError(EACCES)
        return inode, name

    def _check_config(self, config: VmConfig | None) -> None:
        if config is not None and self.vms.is_known_elsewhere(config):
            raise OperationError(EEXIST, f"VM {config.vmid} is registered with another node or type")

    def _check_empty(self, entry: Entry) -> None:
        if self._children.get(entry.inode):
            raise OperationError(ENOTEMPTY)

    def _applied(
        self,
        root: Entry,
        stored: tuple[Entry, ...],
        deleted: tuple[int, ...],
        children: Map[int, Children],
        vms: VmList,
        counters: Counters,
        grown: int = 0,
        result: int = 0,
    ) -> Applied:
        entries = self._entries
        for inode in deleted:
            entries = entries.delete(inode)
        for entry in stored:
            entries = entries.set(entry.inode, entry)
        last_index = self._last_index
        if last_index is not None:
            last_index = last_index.touch(deleted, stored)
        tree = Tree(root, entries, children, vms, counters, self.total_bytes + grown, last_index)
        return Applied(tree, result, Delta(tree, stored, deleted))

    def _write(self, change: Write, writer: int, mtime: int) -> Applied:
        written, offset = change.data, change.offset
        end = offset + len(written)
        if end > MAX_FILE_BYTES:
            raise OperationError(EFBIG)
        names = split(change.path)
        parent, name = self._parent_and_name(names)
        config = vm_config_at(names)
        self._check_config(config)
        inode = self._children[parent].get(name)
        if inode is None:
            raise OperationError(ENOENT)
        entry = self._entries[inode]
        if entry.type == DT_DIR:
            raise OperationError(ENOTDIR)
        before = entry.data
        head = before[:offset]
        if len(head) < offset:
            head += bytes(offset - len(head))
        tail = b"" if change.truncate else before[end:]
        data = head + written + tail if head or tail else written
        version = self._next_version()
        return self._applied(
            _root(version, writer, mtime),
            (Entry(inode, parent, version, writer, mtime, DT_REG, name, data),),
            (),
            self._children,
            self.vms if config is None else self.vms.registered(config),
            self.counters.changed(join(names)),
            len(data) - len(before),
            len(written),
        )

    def _create(self, change: Create, writer: int, mtime: int) -> Applied:
        names = split(change.path)
        parent, name = self._parent_and_name(names)
        config = vm_config_at(names)
        self._check_config(config)
        siblings = self._children[parent]
        existing = siblings.get(name)
        if existing is not None:
            raise OperationError(ENOTDIR if self._entries[existing].type == DT_DIR else EEXIST)
        entry = self._new_entry(parent, name, DT_REG, writer, mtime)
        return self._applied(
            _root(entry.version, writer, mtime),
            (entry,),
            (),
            self._children.set(parent, siblings.set(name, entry.inode)),
            self.vms if config is None else self.vms.registered(config),
            self.counters.changed(join(names)),
        )

    def _mkdir(self, change: Mkdir, writer: int, mtime: int) -> Applied:
        parent, name = self._parent_and_name(split(change.path))
        siblings = self._children[parent]
        if name in siblings:
            raise OperationError(EEXIST)
        entry = self._new_entry(parent, name, DT_DIR, writer, mtime)
        return self._applied(
            _root(entry.version, writer, mtime),
            (entry,),
            (),
            self._children.set(parent, siblings.set(name, entry.inode)).set(entry.inode, NOTHING),
            self.vms,
            self.counters,
        )

    def _next_version(self) -> int:
        version = self.root.version + 1
        if version > MAX_VERSION:
            # Only a damaged database comes here. 0, which would be next, is the root's inode.
            raise OperationError(EIO, "the tree's version is at its end")
        return version

    def _new_entry(self, parent: int, name: bytes, type: int, writer: int, mtime: int) -> Entry:
        version = self._next_version()
        if version in self._entries:
            # Only a database whose row 0 was set back comes here. Better no new entry than one less.
            raise OperationError(EIO, f"inode {version} is in use: the tree's version is behind its entries")
        return Entry(version, parent, version, writer, mtime, type, name)

    def _delete(self, change: Delete, writer: int, mtime: int) -> Applied:
        names = split(change.path)
        entry = self._find(names)
        if entry is None:
            raise OperationError(ENOENT)
        if entry.inode == ROOT_INODE:
            raise OperationError(EACCES)
        self._check_empty(entry)
        config = vm_config_at(names)
        return self._applied(
            _root(self._next_version(), writer, mtime),
            (),
            (entry.inode,),
            self._without(self._children, entry),
            self.vms if config is None else self.vms.removed(config.vmid),
            self.counters.changed(join(names)),
            -len(entry.data),
        )

    def _without(self, children: Map[int, Children], entry: Entry) -> Map[int, Children]:
        """C{children} after C{entry}, a file or an empty directory, is gone."""
        siblings = children[entry.parent].delete(entry.name)
        children = children.set(entry.parent, siblings if siblings else NOTHING)
        return children.delete(entry.inode) if entry.type == DT_DIR else children

    def _rename(self, change: Rename, writer: int, mtime: int) -> Applied:
        names, to_names = split(change.path), split(change.to)
        entry = self._find(names)
        if entry is None:
            raise OperationError(ENOENT)
        if entry.inode == ROOT_INODE:
            raise OperationError(EACCES)
        target = self._find(to_names)
        if target is entry:
            return Applied(self, 0, Delta(self, (), ()))
        is_file = entry.type != DT_DIR
        config, to_config = vm_config_at(names), vm_config_at(to_names)
        if is_file and not (config is not None and to_config is not None and config.vmid == to_config.vmid):
            self._check_config(to_config)
        if not is_file and is_below_locks(names):
            raise OperationError(EACCES)
        if target is not None:
            if target.inode == ROOT_INODE:
                raise OperationError(EACCES)
            self._check_empty(target)
            parent, name = target.parent, target.name
        else:
            parent, name = self._parent_and_name(to_names)
        self._check_empty(entry)

        version = self._next_version()
        children = self._children
        if target is not None:
            children = self._without(children, target)
        children = children.set(entry.parent, children[entry.parent].delete(entry.name))
        children = children.set(parent, children[parent].set(name, entry.inode))
        vms = self.vms
        if is_file and config is not None:
            vms = vms.removed(config.vmid)
        if is_file and to_config is not None:
            vms = vms.registered(to_config)
        return self._applied(
            _root(version, writer, mtime),
            (Entry(entry.inode, parent, version, writer, mtime, entry.type, name, entry.data),),
            () if target is None else (target.inode,),
            children,
            vms,
            self.counters.changed(join(names)).changed(join(to_names)),
            0 if target is None else -len(target.data),
        )

    def _set_mtime(self, change: SetMtime, writer: int) -> Applied:
        names = split(change.path)
        parent, name = self._parent_and_name(names)
        inode = self._children[parent].get(name)
        if inode is None:
            raise OperationError(ENOENT)
        entry = self._entries[inode]
        mtime = change.mtime & U32
        if entry.type == DT_DIR and is_lock(names) and (mtime < entry.mtime or writer != entry.writer):
            raise OperationError(EACCES)
        version = self._next_version()
        return self._applied(
            _root(version, writer, mtime),
            (Entry(inode, parent, version, writer, mtime, entry.type, name, entry.data),),
            (),
            self._children,
            self.vms,
            self.counters.changed(join(names)),
        )

    def __repr__(self) -> str:
        return f"<Tree of version {self.version}, {len(self)} entries, {self.total_bytes} bytes>"


def _root(version: int, writer: int, mtime: int) -> Entry:
    return Entry(ROOT_INODE, 0, version, writer, mtime, DT_DIR, b"")


__all__ = ["MAX_FILE_BYTES", "Applied", "Children", "Delta", "Tree"]
