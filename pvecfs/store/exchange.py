"""A tree written out as files, and one made of files."""

from __future__ import annotations

import os
from collections.abc import Callable
from errno import EEXIST, EFBIG, EINVAL, EIO
from stat import S_ISDIR, S_ISREG

from pvecfs.store.errors import StoreError
from pvecfs.tree.admission import Limits, admit
from pvecfs.tree.changes import Change, Create, Mkdir, Write
from pvecfs.tree.entry import DT_DIR, ROOT_INODE, Entry
from pvecfs.tree.errors import OperationError
from pvecfs.tree.paths import SPECIAL_FILES, is_bad_component, is_private
from pvecfs.tree.tree import MAX_FILE_BYTES, Tree

Report = Callable[[str], None]
"""Told of an entry that was left out, and why."""


def extract(tree: Tree, directory: str, left_out: Report, step: Callable[[], None] = lambda: None) -> None:
    """Write all entries below C{directory}, which is made, or is empty. Nothing outside it is touched: every file is
    made anew, in a directory that was made and is held open.

    @param left_out: told of each entry that this file system cannot have, a name longer than 255 bytes for instance.
    @param step: called for each entry.
    @raise StoreError: C{directory} is there and not empty, or it cannot be written at all.
    """
    try:
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            if os.listdir(directory):
                raise StoreError(EEXIST, f"{directory}: is not empty") from None
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(error.errno or EIO, f"{directory}: {error.strerror}") from error
    try:
        _extract(tree, tree.root, b"", fd, left_out, step)
    finally:
        os.close(fd)


def _extract(tree: Tree, parent: Entry, path: bytes, fd: int, left_out: Report, step: Callable[[], None]) -> None:
    for name, inode in sorted(tree.children(parent.inode).items()):
        entry = tree.entry(inode)
        if entry is None or is_bad_component(name):  # a tree has none of these
            raise OperationError(EINVAL, f"{name!r} is no name of an entry")
        where = path + b"/" + name if path else name
        private = is_private(where)
        try:
            if entry.type == DT_DIR:
                try:
                    os.mkdir(name, 0o700, dir_fd=fd)
                    below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                except OSError as error:
                    _leave_out(tree, entry, where, str(error.strerror), left_out, step)
                    continue
                try:
                    _extract(tree, entry, where, below, left_out, step)
                    os.fchmod(below, 0o700 if private else 0o755)
                finally:
                    os.close(below)
            else:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                with open(os.open(name, flags, 0o600, dir_fd=fd), "wb") as file:
                    file.write(entry.data)
                    os.fchmod(file.fileno(), 0o600 if private else 0o640)
            os.utime(name, (entry.mtime, entry.mtime), dir_fd=fd, follow_symlinks=False)
        except OperationError:
            raise
        except OSError as error:
            left_out(f"{os.fsdecode(where)!r}: {error.strerror}")
        step()


def _leave_out(tree: Tree, entry: Entry, path: bytes, why: str, left_out: Report, step: Callable[[], None]) -> None:
    """Report C{entry}, and all that is in it."""
    left_out(f"{os.fsdecode(path)!r}: {why}")
    step()
    for name, inode in sorted(tree.children(entry.inode).items()):
        below = tree.entry(inode)
        assert below is not None
        _leave_out(tree, below, path + b"/" + name, "its directory is left out", left_out, step)


def collect(
    directory: str, limits: Limits, now: int, left_out: Report, step: Callable[[], None] = lambda: None
) -> Tree:
    """The tree of the files and directories in C{directory}, as it would be if each were made on a mount.

    Symbolic links are left out, and the special files of a mount.

    @param now: seconds since 1970: the tree's own time.
    @raise StoreError: a file that cannot be read, or that no tree can hold; the message names it.
    """
    tree = Tree.new(now)

    def apply(change: Change, mtime: int, shown: str) -> None:
        nonlocal tree
        try:
            tree = tree.apply(admit(tree, change, limits), 0, mtime).tree
        except OperationError as error:
            raise StoreError(error.errno, f"{shown}: {error.strerror}") from error

    def walk(at: bytes, path: bytes) -> None:
        with os.scandir(at) as found:
            items = sorted(found, key=lambda item: item.name)
        for item in items:
            where = path + b"/" + item.name if path else item.name
            shown = os.fsdecode(item.path)
            status = item.stat(follow_symlinks=False)
            mtime = min(max(0, int(status.st_mtime)), 2**32 - 1)
            if where in SPECIAL_FILES:
                left_out(f"{shown!r}: is a special file")
            elif S_ISDIR(status.st_mode):
                apply(Mkdir(where), mtime, shown)
                walk(item.path, where)
            elif S_ISREG(status.st_mode):
                data = _content(item.path, shown)
                apply(Create(where), mtime, shown)
                if data:
                    apply(Write(where, data), mtime, shown)
            else:
                left_out(f"{shown!r}: is neither a file nor a directory")
            step()

    try:
        walk(os.fsencode(directory), b"")
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(error.errno or EIO, f"{error.filename!r}: {error.strerror}") from error
    entries = [entry for entry in tree.entries() if entry.inode != ROOT_INODE]
    return Tree.load(entries, Entry(ROOT_INODE, 0, tree.version, 0, now, DT_DIR, b""))


def _content(path: bytes, shown: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise StoreError(EFBIG, f"{shown}: has more than {MAX_FILE_BYTES} bytes")
    return data
