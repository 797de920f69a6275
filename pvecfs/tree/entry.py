"""One entry of the tree: a file or a directory with its metadata. Immutable, so that any thread may hold it."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from hashlib import sha256

DT_DIR = 4
DT_REG = 8

ROOT_INODE = 0

_INODE = struct.Struct("<Q")
_DIGEST_HEAD = struct.Struct("<QIIIBQ")
_CHECKSUM_HEAD = struct.Struct("<QQIIIBQ")


class Entry:
    """An entry (10-tree.md, "Entry").

    @ivar inode: u64, unique; 0 is the root.
    @ivar parent: u64, inode of the directory that holds it; 0 for the root and its children.
    @ivar version: u64, tree version of its last change.
    @ivar writer: u32, id of the node that made the last change, 0 in local mode.
    @ivar mtime: u32, seconds since 1970.
    @ivar type: L{DT_DIR} or L{DT_REG}.
    @ivar name: one path component; empty for the root.
    @ivar data: content of a file; empty for directories.
    """

    __slots__ = ("_record", "data", "inode", "mtime", "name", "parent", "type", "version", "writer")

    def __init__(
        self,
        inode: int,
        parent: int,
        version: int,
        writer: int,
        mtime: int,
        type: int,
        name: bytes,
        data: bytes = b"",
    ) -> None:
        self.inode = inode
        self.parent = parent
        self.version = version
        self.writer = writer
        self.mtime = mtime
        self.type = type
        self.name = name
        self.data = data
        self._record: bytes | None = None

    @property
    def size(self) -> int:
        """Bytes of data; 0 for directories."""
        return len(self.data)

    @property
    def is_directory(self) -> bool:
        return self.type == DT_DIR

    def record(self) -> bytes:
        """The entry's record in the index, computed once: inode u64, digest; 40 bytes."""
        if self._record is None:
            self._record = (
                _INODE.pack(self.inode)
                + sha256(
                    _DIGEST_HEAD.pack(self.version, self.writer, self.mtime, len(self.data), self.type, self.parent)
                    + self.name
                    + self.data
                ).digest()
            )
        return self._record

    def digest(self) -> bytes:
        """The entry digest of the index: 32 bytes, computed once."""
        return self.record()[_INODE.size :]

    def checksum_fields(self) -> bytes:
        """The bytes by which this entry enters the tree checksum and the lock checksum (without its data)."""
        return (
            _CHECKSUM_HEAD.pack(
                self.inode, self.version, self.writer, self.mtime, len(self.data), self.type, self.parent
            )
            + self.name
        )

    def lock_checksum(self) -> bytes:
        """SHA-256 over inode, version, writer, mtime, size, type, parent, name, data: 32 bytes."""
        return sha256(self.checksum_fields() + self.data).digest()

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Entry)
            and self.inode == other.inode
            and self.version == other.version
            and self.parent == other.parent
            and self.writer == other.writer
            and self.mtime == other.mtime
            and self.type == other.type
            and self.name == other.name
            and self.data == other.data
        )

    def __hash__(self) -> int:
        return hash((self.inode, self.version))

    def __repr__(self) -> str:
        kind = "dir" if self.type == DT_DIR else "file"
        return (
            f"<Entry {self.inode} {kind} {self.name!r} in {self.parent}, version {self.version}, "
            f"writer {self.writer}, mtime {self.mtime}, {len(self.data)} bytes>"
        )


def path_of(inode: int, entries: Mapping[int, Entry]) -> bytes | None:
    """The path of C{inode} among C{entries} (by inode, without the root), which need not be a tree: without a leading
    ``/``; C{None} when there is no such entry, or no way from it to the root."""
    names: list[bytes] = []
    seen: set[int] = set()
    while inode != ROOT_INODE:
        entry = entries.get(inode)
        if entry is None or inode in seen:
            return None
        seen.add(inode)
        names.append(entry.name)
        inode = entry.parent
    return b"/".join(reversed(names))


def records(entries: Iterable[Entry]) -> list[bytes]:
    """L{Entry.record} of each."""
    return [entry._record or entry.record() for entry in entries]
