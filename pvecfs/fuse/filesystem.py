"""What the kernel asks, and what it is answered (20-filesystem.md).

Reads are answered at once from the published tree. Changes go to the reactor, and are answered when they are committed,
by the thread that committed them. No callback waits for anything, so that one thread at a time serves everybody.

A callback's pointers are valid until it returns: names come as C{bytes} and written data is copied. Permissions are
the kernel's work (mount option C{default_permissions}).
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from errno import (
    EACCES,
    EEXIST,
    EFBIG,
    EINVAL,
    EIO,
    EISDIR,
    ENAMETOOLONG,
    ENOENT,
    ENOSYS,
    ENOTDIR,
    ENOTTY,
    EPERM,
)
from stat import S_IFMT, S_IFREG
from typing import TYPE_CHECKING, Any, Protocol

from pvecfs.fuse import lowlevel
from pvecfs.fuse.documents import FrozenDocuments
from pvecfs.fuse.listing import ListingCache
from pvecfs.fuse.lowlevel import ATTR_OUT, ENTRY_OUT, FORGET, OPEN_OUT, STATFS_OUT, reply_buf, reply_err
from pvecfs.fuse.nodes import (
    DEBUG,
    FIRST_COMPUTED,
    FIRST_FROZEN,
    LINKS,
    NOWHERE,
    RESERVED,
    Attributes,
    link_target,
)
from pvecfs.fuse.requests import Finish, Waiting, backlog, finish_without_result
from pvecfs.interfaces import Meant
from pvecfs.log import logger
from pvecfs.tree.admission import MAX_NAME_BYTES, Limits, room
from pvecfs.tree.changes import Change, Create, Delete, Mkdir, Rename, SetMtime, Write
from pvecfs.tree.entry import DT_DIR, Entry
from pvecfs.tree.paths import is_lock, is_private, split
from pvecfs.tree.tree import MAX_FILE_BYTES

if TYPE_CHECKING:
    from pvecfs.fuse.graves import Graves
    from pvecfs.fuse.invalidation import KernelCache
    from pvecfs.fuse.nodes import NodeIds
    from pvecfs.interfaces import Backlog, INodeView, IProposer
    from pvecfs.tree.tree import Tree

_log = logger("fuse")

FOREVER = 10 * 365 * 86400
"""Seconds that names and attributes are valid: until we say otherwise (L{pvecfs.fuse.invalidation})."""

MAX_WRITE = 1024 * 1024
"""Bytes of one write request: the largest file, so that writing it is one request and one change."""

LONG = 0.02
"""Seconds after which a change is not about to be answered."""

LOCK_PATIENCE = 0.25
"""Seconds that who has got a lock waits at most until the kernel knows of what came before. It takes about a
millisecond, if at all. But should ever two wait for one another, nothing hangs."""

_NO_ENTRY = ENTRY_OUT.pack(0, 0, FOREVER, 0, *[0] * 18)
"""There is no such name, and the kernel may remember that."""

_OPENED = OPEN_OUT.pack(0, lowlevel.FOPEN_KEEP_CACHE, 0)


class ReactorFromThread(Protocol):
    """What is wanted of a reactor here."""

    def callFromThread(self, callable: Callable[..., object], *args: object) -> None: ...

    def callLater(self, delay: float, callable: Callable[..., object], *args: object) -> object: ...


class FileSystem:
    """Answers the kernel.

    @param view: what is read.
    @param proposer: where changes go; used on the reactor thread.
    @param attributes: how things look.
    @param graves: deleted files that may be held open.
    @param kernel: to be told of what the kernel cannot know.
    @param nodes: the published tree and its node ids.
    @param alone: the tree changes through this mount only (local mode). The kernel may then keep more.
    @ivar submit: calls something, with arguments, on the reactor thread.
    """

    def __init__(
        self,
        reactor: ReactorFromThread,
        view: INodeView,
        proposer: IProposer,
        attributes: Attributes,
        graves: Graves,
        kernel: KernelCache,
        nodes: NodeIds,
        alone: bool = False,
    ) -> None:
        self.submit: Callable[..., None] = reactor.callFromThread
        self._reactor = reactor
        self._alone = alone
        self._view = view
        self._proposer = proposer
        self._attributes = attributes
        self._graves = graves
        self._kernel = kernel
        self._published = nodes.published
        self._find = nodes.find
        self._given = kernel.given
        self._shown = kernel.shown.by_node  # mostly empty: then there is nothing to find
        self._find_shown = kernel.shown.find
        self._asked = kernel.shown.recent.append
        self._documents = FrozenDocuments(view.document)
        self._listings = ListingCache()
        # Files whose content is being changed here, and that nobody has read since; see L{_unless_read}.
        self._unread: dict[int, object] = {}
        self._waiting: set[Waiting] = set()
        self._stopping = False

    def operations(self) -> lowlevel.Operations:
        """The table of callbacks. It has to live as long as the session."""
        operations = lowlevel.Operations()
        for name, kind in lowlevel.CALLBACK_TYPES.items():
            method = getattr(self, f"_{name}", None)
            if method is not None:
                callback: Any = method if name == "init" else _guarded(method)
                setattr(operations, name, kind(callback))
        return operations

    def stop(self) -> None:
        """Answer all that waits with EIO, and from now on every change at once. Any thread."""
        self._stopping = True
        for waiting in list(self._waiting):
            waiting(-EIO)

    @property
    def waiting(self) -> int:
        """How many requests wait for an answer."""
        return len(self._waiting)

    @property
    def backlog(self) -> Backlog:
        """The requests that wait for an answer. Any thread."""
        return backlog(self._waiting)

    # Handing over changes

    def _propose(self, request: int, change: Change, finish: Finish, meant: Meant) -> None:
        waiting = Waiting(self._waiting, request, finish, change)
        if self._stopping:
            waiting(-EIO)
        elif not self._view.quorate:
            waiting(-EACCES)
        else:
            self.submit(self._submit, change, waiting, meant)

    def _submit(self, change: Change, waiting: Waiting, meant: Meant) -> None:
        try:
            self._proposer.propose(change, waiting, meant)
        except Exception:
            _log.failure("could not propose {change}", change=type(change).__name__)
            waiting(-EIO)

    def _synchronise(self, request: int) -> None:
        waiting = Waiting(self._waiting, request, finish_without_result)
        if self._stopping:
            waiting(-EIO)
        else:
            self.submit(self._submit_synchronise, waiting)

    def _submit_synchronise(self, waiting: Waiting) -> None:
        try:
            self._proposer.synchronise(waiting)
        except Exception:
            _log.failure("could not synchronise")
            waiting(-EIO)

    # Answers

    def _node_at(self, parent: int, name: bytes) -> int:
        """The node id of C{name} in the directory of node C{parent}, in the newest tree; or L{NOWHERE}."""
        tree, numbering = self._published()
        entry = tree.child(numbering.inode_of(parent), name)
        return NOWHERE if entry is None else numbering.node_of(entry.inode)

    def _reply_child(
        self, request: int, parent: int, name: bytes, attributes_valid: int = FOREVER, opened: bytes = b""
    ) -> bool:
        """Give the kernel C{name} in the directory of node C{parent}.

        @param opened: what follows in the answer to a CREATE.
        @return: C{False} if there is no such name; nothing was answered then.
        """
        given = NOWHERE
        tree, numbering = self._published()
        while True:
            entry = tree.child(numbering.inode_of(parent), name)
            node = NOWHERE if entry is None else numbering.node_of(entry.inode)
            if node != given:
                if given != NOWHERE:
                    self._forgotten(given, 1)
                given = node
                if entry is not None and self._given.give(node) and self._shown:
                    self._kernel.shown.overrule(node)  # the kernel knows nothing that would not fit
            used = tree
            tree, numbering = self._published()
            if tree is used:  # it still was the newest when C{node} was given, see L{pvecfs.fuse.given}
                break
        if entry is None:
            return False
        answer = ENTRY_OUT.pack(
            node, 0, FOREVER, attributes_valid, 0, 0, *self._attributes_for_kernel(tree, entry, node)
        )
        if reply_buf(request, answer + opened, len(answer) + len(opened)) < 0:
            self._forgotten(node, 1)  # the caller has gone, the kernel did not take it
        return True

    def _reply_entry_attributes(self, request: int, tree: Tree, entry: Entry, node: int, valid: int) -> None:
        self._reply_attributes(request, self._attributes_for_kernel(tree, entry, node), valid)

    def _attributes_for_kernel(self, tree: Tree, entry: Entry, node: int) -> tuple[int, ...]:
        """The attributes of C{entry} in C{tree}, as the kernel shall know them."""
        self._asked(node)
        return self._attributes.of_entry(tree, entry, node, self._view.quorate, self._shown_instead(node))

    def _shown_instead(self, node: int) -> Entry | None:
        """What is shown of C{node} instead of what the tree has, which was taken before: see L{pvecfs.fuse.shown}."""
        return self._find_shown(node) if self._shown else None

    def _reply_attributes(self, request: int, attributes: tuple[int, ...], valid: int) -> None:
        reply_buf(request, ATTR_OUT.pack(valid, 0, 0, *attributes), ATTR_OUT.size)

    def _finish_made(self, parent: int, name: bytes) -> Finish:
        """Answer a request that made C{name} in the directory of node C{parent}.

        The attributes may be kept: the kernel cannot know the node before, and holds the directory's lock until it
        has taken this answer, so that L{pvecfs.fuse.invalidation} can wait for that."""

        def finish(request: int, outcome: int) -> None:
            if outcome < 0:
                reply_err(request, -outcome)
                return
            if not self._reply_child(request, parent, name):  # somebody else has removed it already
                reply_err(request, ENOENT)

        return finish

    def _finish_locked(self, parent: int, name: bytes) -> Finish:
        """Answer a request that made the lock C{name}: when the kernel knows of all that came before it, since who has
        the lock will read what it protects."""
        made = self._finish_made(parent, name)

        def finish(request: int, outcome: int) -> None:
            waiting = Waiting(self._waiting, request, made)
            if outcome < 0:
                waiting(outcome)
            elif not self._kernel.told_outside(parent, lambda: waiting(outcome)):
                self._reactor.callFromThread(self._reactor.callLater, LOCK_PATIENCE, waiting, outcome)

        return finish

    def _finish_attributes(self, node: int, parent: int, old: Entry) -> Finish:
        """Answer a setattr of C{node}, which was C{old}, in the directory of node C{parent}. The kernel takes these
        attributes even if it was told of newer ones meanwhile, so they are valid for no time; but when nobody else
        changes the tree, those of a file are: what changes them through this mount waits for the inode's lock, which
        the kernel holds until it has taken this answer."""

        def finish(request: int, outcome: int) -> None:
            if outcome < 0:
                reply_err(request, -outcome)
                return
            tree, entry = self._find(node)
            if entry is not None:
                valid = FOREVER if self._alone and entry.type != DT_DIR else 0
                self._reply_entry_attributes(request, tree, entry, node, valid)
                return
            # The release of a lock that has expired: it succeeds, and the directory is gone. Or somebody else has
            # removed it since.
            self._kernel.forget_name(parent, old.name)
            self._reply_attributes(request, self._attributes.of_gone(self._graves.find(node) or old, node), 0)

        return finish

    # Callbacks: reading

    def _init(self, _data: int | None, pointer: Any) -> None:
        connection = pointer.contents
        connection.want |= connection.capable & (
            lowlevel.CAP_NO_OPEN_SUPPORT
            | lowlevel.CAP_NO_OPENDIR_SUPPORT
            | lowlevel.CAP_EXPLICIT_INVAL_DATA
            | lowlevel.CAP_CACHE_SYMLINKS
            | lowlevel.CAP_PARALLEL_DIROPS
            | lowlevel.CAP_HANDLE_KILLPRIV
        )
        # With atomic O_TRUNC, an open that is answered ENOSYS would lose the truncation.
        connection.want &= ~(
            lowlevel.CAP_ATOMIC_O_TRUNC
            | lowlevel.CAP_AUTO_INVAL_DATA
            | lowlevel.CAP_WRITEBACK_CACHE
            | lowlevel.CAP_READDIRPLUS
            | lowlevel.CAP_READDIRPLUS_AUTO
        )
        connection.max_write = MAX_WRITE

    def _lookup(self, request: int, parent: int, name: bytes) -> None:
        if parent == 1 and name in RESERVED:
            self._lookup_computed(request, name)
            return
        if self._reply_child(request, parent, name):
            return
        if len(name) > MAX_NAME_BYTES:
            reply_err(request, ENAMETOOLONG)
        else:
            reply_buf(request, _NO_ENTRY, ENTRY_OUT.size)

    def _lookup_computed(self, request: int, name: bytes) -> None:
        link = LINKS.get(name)
        if link is not None:
            target = link_target(link, self._view.node_name)
            attributes = self._attributes.of_link(link, target, self._view.quorate)
            reply_buf(request, ENTRY_OUT.pack(link, 0, FOREVER, FOREVER, 0, 0, *attributes), ENTRY_OUT.size)
            return
        node, size, replaces = self._documents.look_up(name, self._root_stays_locked())

        def answer(request: int, _outcome: int) -> None:
            attributes = self._attributes.of_document(name, size)
            # Valid for no time as a name, so that the next open asks again; for ever as a content.
            if reply_buf(request, ENTRY_OUT.pack(node, 0, 0, FOREVER, 0, 0, *attributes), ENTRY_OUT.size) < 0:
                self._documents.forget(node, 1)  # the caller has gone, the kernel did not take it

        if replaces:
            waiting = Waiting(self._waiting, request, answer)
            self._kernel.forget_pages(node, lambda: waiting(0))
        else:
            answer(request, 0)

    def _root_stays_locked(self) -> bool:
        """Whether a change that has waited for L{LONG} keeps the kernel's lock of the root directory."""
        if not self._waiting:
            return False
        before = time.monotonic() - LONG
        return any(waiting.since < before and waiting.keeps_root_locked() for waiting in list(self._waiting))

    def _forget(self, request: int, node: int, lookups: int) -> None:
        self._forgotten(node, lookups)
        lowlevel.reply_none(request)

    def _forget_multi(self, request: int, count: int, pointer: int) -> None:
        for node, lookups in FORGET.iter_unpack(ctypes.string_at(pointer, count * FORGET.size)):
            self._forgotten(node, lookups)
        lowlevel.reply_none(request)

    def _forgotten(self, node: int, lookups: int) -> None:
        if node >= FIRST_FROZEN:
            self._documents.forget(node, lookups)
        elif self._given.take_back(node, lookups):
            self._graves.forget(node)

    def _getattr(self, request: int, node: int, _file: int | None) -> None:
        if node >= FIRST_COMPUTED:
            self._getattr_computed(request, node)
            return
        tree, entry = self._find(node)
        if entry is not None:
            self._reply_entry_attributes(request, tree, entry, node, FOREVER)
            return
        gone = self._shown_instead(node) or self._graves.find(node)
        if gone is not None:
            self._reply_attributes(request, self._attributes.of_gone(gone, node), 0)
        else:
            reply_err(request, ENOENT)

    def _getattr_computed(self, request: int, node: int) -> None:
        if node < FIRST_FROZEN:
            target = link_target(node, self._view.node_name)
            self._reply_attributes(request, self._attributes.of_link(node, target, self._view.quorate), FOREVER)
            return
        name, content = self._documents.name(node), self._documents.content(node)
        if name is None or content is None:
            reply_err(request, ENOENT)
        else:
            self._reply_attributes(request, self._attributes.of_document(name, len(content)), FOREVER)

    def _open(self, request: int, _node: int, _file: int | None) -> None:
        """Nothing needs to be known of who holds a file open. The kernel asks once, and never again."""
        reply_err(request, ENOSYS)

    _opendir = _open

    def _readlink(self, request: int, node: int) -> None:
        if FIRST_COMPUTED <= node < FIRST_FROZEN:
            lowlevel.reply_readlink(request, link_target(node, self._view.node_name))
        else:
            reply_err(request, EINVAL)

    def _read(self, request: int, node: int, size: int, offset: int, _file: int | None) -> None:
        if node >= FIRST_COMPUTED:
            data = self._documents.content(node)
        else:
            if self._unread:
                self._unread.pop(node, None)
            self._asked(node)
            entry = self._find(node)[1] or self._graves.find(node)
            entry = self._shown_instead(node) or entry
            data = None if entry is None else entry.data
        if data is None:
            reply_err(request, ENOENT)
        elif offset == 0 and size >= len(data):
            reply_buf(request, data, len(data))
        else:
            part = data[offset : offset + size]
            reply_buf(request, part, len(part))

    def _readdir(self, request: int, node: int, size: int, offset: int, _file: int | None) -> None:
        tree, numbering = self._published()
        directory = tree.entry(numbering.inode_of(node))
        if directory is None:
            reply_buf(request, b"", 0)  # deleted while it is held open: empty, as elsewhere
            return
        if directory.type != DT_DIR:
            reply_err(request, ENOTDIR)
            return
        chunk, outdated = self._listings.read(tree, numbering, directory, offset, size)
        if outdated:
            # See L{pvecfs.fuse.listing}. Another thread does it, since dropping pages can wait for a page's lock.
            waiting = Waiting(self._waiting, request, lambda request, _: reply_buf(request, b"", 0))
            self._kernel.forget_pages(node, lambda: waiting(0))
        else:
            reply_buf(request, chunk, len(chunk))

    def _statfs(self, request: int, _node: int) -> None:
        view = self._view
        numbers = room(view.tree, Limits(view.max_bytes, view.max_entries))
        reply_buf(
            request,
            STATFS_OUT.pack(
                numbers.blocks,
                numbers.free_blocks,
                numbers.free_blocks,
                numbers.files,
                numbers.free_files,
                numbers.block_bytes,
                numbers.name_bytes,
                numbers.block_bytes,
                *[0] * 7,
            ),
            STATFS_OUT.size,
        )

    # Callbacks: changing

    def _path_in(self, request: int, parent: int, name: bytes) -> bytes | None:
        """The path of C{name} in C{parent}, for a change; or C{None}, after the request was answered."""
        if parent == 1:
            if name in RESERVED:
                reply_err(request, EACCES)
                return None
            return name
        tree, numbering = self._published()
        directory = tree.path_of(numbering.inode_of(parent))
        if directory is None:
            reply_err(request, ENOENT)
            return None
        return directory + b"/" + name

    def _new_path(self, request: int, parent: int, name: bytes) -> bytes | None:
        if len(name) > MAX_NAME_BYTES:
            reply_err(request, ENAMETOOLONG)
            return None
        return self._path_in(request, parent, name)

    def _mkdir(self, request: int, parent: int, name: bytes, _mode: int) -> None:
        path = self._new_path(request, parent, name)
        if path is not None:
            finish = self._finish_locked if is_lock(split(path)) else self._finish_made
            self._propose(request, Mkdir(path), finish(parent, name), Meant((parent,)))

    def _mknod(self, request: int, parent: int, name: bytes, mode: int, _device: int) -> None:
        if S_IFMT(mode) not in (0, S_IFREG):
            reply_err(request, EPERM)
            return
        path = self._new_path(request, parent, name)
        if path is not None:
            self._propose(request, Create(path), self._finish_made(parent, name), Meant((parent,)))

    def _create(self, request: int, parent: int, name: bytes, _mode: int, file: Any) -> None:
        if self._alone:
            # The kernel comes with MKNOD, once for all, and has no handle to release. Nobody can be first.
            reply_err(request, ENOSYS)
            return
        path = self._new_path(request, parent, name)
        if path is None:
            return
        flags = file.contents.flags

        def finish(request: int, outcome: int) -> None:
            tree, numbering = self._published()
            entry = tree.child(numbering.inode_of(parent), name)
            if outcome in (-EEXIST, -ENOTDIR) and entry is not None:
                # Another node was first. The kernel holds our caller for the creator, and will not truncate.
                if flags & os.O_EXCL:
                    reply_err(request, EEXIST)
                elif entry.type == DT_DIR:
                    reply_err(request, EISDIR)
                elif flags & os.O_TRUNC and entry.data:
                    node = numbering.node_of(entry.inode)
                    self._propose(request, Write(path, b"", 0, True), finish_existing, Meant((node,)))
                else:
                    finish_existing(request, 0)
            elif outcome < 0:
                reply_err(request, -outcome)
            elif not self._reply_child(request, parent, name, opened=_OPENED):
                reply_err(request, ENOENT)

        def finish_existing(request: int, outcome: int) -> None:
            # The kernel may know the file already: as in L{_finish_attributes}.
            if outcome < 0 or not self._reply_child(request, parent, name, 0, _OPENED):
                reply_err(request, -outcome or ENOENT)

        self._propose(request, Create(path), finish, Meant((parent,)))

    def _unlink(self, request: int, parent: int, name: bytes) -> None:
        path = self._path_in(request, parent, name)
        if path is not None:
            self._propose(request, Delete(path), finish_without_result, Meant((parent, self._node_at(parent, name))))

    _rmdir = _unlink

    def _rename(self, request: int, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        if flags:  # exchanging, or not replacing: no message of the cluster says that
            reply_err(request, EINVAL)
            return
        path = self._path_in(request, parent, name)
        if path is None:
            return
        to = self._new_path(request, new_parent, new_name)
        if to is None:
            return
        node = self._node_at(parent, name)
        nodes = (parent, new_parent, node, self._node_at(new_parent, new_name))

        def finish(request: int, outcome: int) -> None:
            # Modes depend on the place, and the time is new; the kernel thinks that only the ctime is. It takes no
            # lock for this, so any thread may tell it.
            if outcome >= 0 and node != NOWHERE:
                self._kernel.attributes_changed(node)
            finish_without_result(request, outcome)

        self._propose(request, Rename(path, to), finish, Meant(nodes, (parent, name), (new_parent, new_name)))

    def _write(self, request: int, node: int, pointer: int, size: int, offset: int, file: Any) -> None:
        if node >= FIRST_COMPUTED:
            self._write_document(request, node, ctypes.string_at(pointer, size), offset)
            return
        tree, entry = self._find(node)
        path = None if entry is None else tree.path_of(entry.inode)
        # Whether another node has changed the size since the kernel asked for it: the end is elsewhere, and the kernel
        # has put what is written at the wrong place of its pages.
        appends = bool(file.contents.flags & os.O_APPEND)
        elsewhere = appends and entry is not None and offset != len(entry.data)

        def finish(request: int, outcome: int) -> None:
            if outcome < 0:
                self._kernel.forget_content(node)  # a mapped page keeps what was refused, as if it had been written
                reply_err(request, -outcome)
                return
            lowlevel.reply_write(request, outcome)
            if elsewhere:
                self._kernel.forget_content(node)

        if entry is None or path is None:
            finish(request, -ENOENT)
            return
        if elsewhere:
            offset = len(entry.data)
        if offset + size > MAX_FILE_BYTES:
            finish(request, -EFBIG)
        else:
            change = Write(path, ctypes.string_at(pointer, size), offset)
            self._propose(request, change, self._unless_read(node, finish), Meant((node,)))

    def _write_document(self, request: int, node: int, data: bytes, offset: int) -> None:
        name = self._documents.name(node)
        if name != DEBUG:
            reply_err(request, ENOENT if name is None else EACCES)
        elif offset != 0 or data[:2] not in (b"0\n", b"1\n"):
            reply_err(request, EIO)
        else:
            self._view.set_debug(data[:2] == b"1\n")
            lowlevel.reply_write(request, 2)

    def _setattr(self, request: int, node: int, pointer: Any, wanted: int, _file: int | None) -> None:
        tree, numbering = self._published()
        wish = pointer.contents
        computed = node >= FIRST_COMPUTED
        entry = None if computed else tree.entry(numbering.inode_of(node))
        path = None if entry is None else tree.path_of(entry.inode)
        if not computed and (entry is None or path is None):
            reply_err(request, ENOENT)
            return
        if wanted & lowlevel.SET_MODE:
            private = path is not None and is_private(path)
            if wish.st_mode & 0o7777 != (0o600 if private else 0o640):
                reply_err(request, EPERM)
                return
        attributes = self._attributes
        if (wanted & lowlevel.SET_UID and wish.st_uid not in (attributes.owner, 0xFFFFFFFF)) or (
            wanted & lowlevel.SET_GID and wish.st_gid not in (attributes.group, 0xFFFFFFFF)
        ):
            reply_err(request, EPERM)
            return
        times = lowlevel.SET_MTIME | lowlevel.SET_MTIME_NOW | lowlevel.SET_ATIME | lowlevel.SET_ATIME_NOW
        if computed or entry is None or path is None:
            sized = wanted & lowlevel.SET_SIZE
            if (sized and self._documents.name(node) != DEBUG) or (wanted & times and not sized):
                reply_err(request, EACCES)
            else:
                self._getattr_computed(request, node)
            return
        if wanted & lowlevel.SET_SIZE:  # the times that come with it are implied
            if wish.st_size > MAX_FILE_BYTES:
                reply_err(request, EFBIG)
                return
            change: Change = Write(path, b"", wish.st_size, True)
        elif wanted & times and node == 1:
            reply_err(request, EACCES)
            return
        elif wanted & (lowlevel.SET_MTIME | lowlevel.SET_MTIME_NOW):
            now = wanted & lowlevel.SET_MTIME_NOW
            change = SetMtime(path, (int(time.time()) if now else wish.st_mtimespec.tv_sec) & 0xFFFFFFFF)
        else:
            self._reply_entry_attributes(request, tree, entry, node, 0)
            return
        directory = numbering.node_of(entry.parent)  # a lock's, if this is its release
        finish = self._finish_attributes(node, directory, entry)
        if wanted & lowlevel.SET_SIZE:
            finish = self._unless_read(node, finish)
        self._propose(request, change, finish, Meant((node, directory)))

    def _unless_read(self, node: int, finish: Finish) -> Finish:
        """C{finish} for a change of the content of C{node}; and the kernel forgets what was read meanwhile.

        The pages that we are asked to write to are in the kernel as they will be. But another node's change can have
        them dropped before ours is published: who reads then gets, and the kernel keeps, what is without ours. In local
        mode nothing drops them.
        """
        if self._alone:
            return finish
        mark = self._unread[node] = object()

        def finish_and_forget(request: int, outcome: int) -> None:
            unread = self._unread.pop(node, None) is mark  # before the answer, after which the next change comes
            finish(request, outcome)
            if not unread:
                self._kernel.forget_content(node)

        return finish_and_forget

    def _fsync(self, request: int, _node: int, _data_only: int, _file: int | None) -> None:
        self._synchronise(request)

    _fsyncdir = _fsync

    def _symlink(self, request: int, _target: bytes, _parent: int, _name: bytes) -> None:
        reply_err(request, EPERM)

    def _link(self, request: int, _node: int, _parent: int, _name: bytes) -> None:
        reply_err(request, EPERM)

    def _ioctl(self, request: int, *_: object) -> None:
        reply_err(request, ENOTTY)


def _guarded(method: Callable[..., None]) -> Callable[..., None]:
    """C{method}, which answers EIO when it fails: an answer must come, whatever happens."""

    def callback(*arguments: object) -> None:  # nothing but these: Python then hands them on without a copy
        try:
            method(*arguments)
        except Exception:
            _log.failure("a file operation failed")
            reply_err(arguments[0], EIO)

    return callback
