"""Rows out of a database that SQLite cannot read through: page by page, without its b-tree.

The layout is that of https://www.sqlite.org/fileformat2.html (sections 1.3 database header, 1.6 b-tree pages,
2.1 record format). Only leaf pages of tables count: a row is whole in one of them, but for the overflow pages that its
last bytes fill. A cell that does not look like a row of ours, column for column, is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pvecfs.store.rows import unsigned_entry
from pvecfs.tree.entry import Entry

PAGE_SIZES = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
MAGIC = b"SQLite format 3\0"

_HEAD = 100
"""Bytes of the database's header, with which its first page begins."""

_LEAF_OF_TABLE = b"\x0d"
_INTEGER_BYTES = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8, 8: 0, 9: 0}
_MAX_PAYLOAD = 64 * 1024 * 1024


class SalvagedRow(NamedTuple):
    """A row that was found.

    @ivar entry: row 0 too, as it is stored.
    @ivar page: the number of the page that holds it, from 1.
    @ivar whole: False when the end of its data could not be read.
    """

    entry: Entry
    page: int
    whole: bool


def salvage(image: bytes) -> list[SalvagedRow]:
    """All rows in the pages of C{image}, the content of a database file, but for pages that SQLite had freed."""
    size = int.from_bytes(image[16:18], "big")
    size = 65536 if size == 1 else size
    if len(image) >= _HEAD and image[:16] == MAGIC and size in PAGE_SIZES:
        return list(_Pages(image, size, image[20]).rows())
    # The head is damaged. With the wrong size of pages hardly any cell looks like a row.
    return max((list(_Pages(image, size, 0).rows()) for size in PAGE_SIZES), key=len)


class _Damaged(Exception):
    """Bytes that cannot be what they are taken for."""


class _Pages:
    """The pages of a database.

    @param size: bytes of a page.
    @param reserved: bytes at the end of each that are not used.
    """

    def __init__(self, image: bytes, size: int, reserved: int) -> None:
        self._image = image
        self._size = size
        self._usable = size - reserved
        self._count = -(-len(image) // size)

    def rows(self) -> Iterator[SalvagedRow]:
        free = self._free()
        for number in range(1, self._count + 1):
            start = (number - 1) * self._size + (_HEAD if number == 1 else 0)
            if self._image[start : start + 1] == _LEAF_OF_TABLE and number not in free:
                yield from self._rows_of(number)

    def _page(self, number: int) -> bytes:
        if not 1 <= number <= self._count:
            raise _Damaged
        return self._image[(number - 1) * self._size : number * self._size]

    def _free(self) -> set[int]:
        """The pages on the list of free pages, as far as it can be followed."""
        free: set[int] = set()
        if self._image[:16] != MAGIC:
            return free
        trunk = int.from_bytes(self._image[32:36], "big")
        while 1 < trunk <= self._count and trunk not in free:
            page = self._page(trunk)
            free.add(trunk)
            count = int.from_bytes(page[4:8], "big")
            if count > self._usable // 4 - 2:
                break
            free.update(int.from_bytes(page[8 + 4 * n : 12 + 4 * n], "big") for n in range(count))
            trunk = int.from_bytes(page[:4], "big")
        return free

    def _rows_of(self, number: int) -> Iterator[SalvagedRow]:
        page = self._page(number)
        start = _HEAD if number == 1 else 0
        if len(page) < start + 8:
            return
        cells = int.from_bytes(page[start + 3 : start + 5], "big")
        for cell in range(min(cells, (len(page) - start - 8) // 2)):  # no more fit in, whatever a damaged number says
            at = start + 8 + 2 * cell
            offset = int.from_bytes(page[at : at + 2], "big")
            try:
                if not start + 8 <= offset < len(page):
                    raise _Damaged
                yield self._row(page, offset, number)
            except _Damaged:
                continue

    def _row(self, page: bytes, offset: int, number: int) -> SalvagedRow:
        total, offset = _varint(page, offset)
        inode, offset = _varint(page, offset)
        if total > _MAX_PAYLOAD:
            raise _Damaged
        local = self._local(total)
        payload = page[offset : min(offset + local, self._usable)]
        if len(payload) == local < total:
            following = int.from_bytes(page[offset + local : offset + local + 4], "big")
            payload += self._overflow(following, total - local)
        return _record(inode, payload, total, number)

    def _local(self, total: int) -> int:
        """How many bytes of a payload are on its leaf page."""
        usable = self._usable
        if total <= usable - 35:
            return total
        least = (usable - 12) * 32 // 255 - 23
        most = least + (total - least) % (usable - 4)
        return most if most <= usable - 35 else least

    def _overflow(self, number: int, count: int) -> bytes:
        """Up to C{count} bytes from a chain of overflow pages: those before the first missing page."""
        parts: list[bytes] = []
        seen: set[int] = set()
        while count > 0 and 1 < number <= self._count and number not in seen:
            seen.add(number)
            page = self._page(number)
            part = page[4 : min(self._usable, 4 + count)]
            parts.append(part)
            count -= len(part)
            number = int.from_bytes(page[:4], "big")
        return b"".join(parts)


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    """An integer of one to nine bytes, and where it ends."""
    value = 0
    for length in range(9):
        if offset + length >= len(data):
            raise _Damaged
        byte = data[offset + length]
        if length == 8:
            return value << 8 | byte, offset + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, offset + length + 1
    raise _Damaged


def _record(inode: int, payload: bytes, total: int, page: int) -> SalvagedRow:
    """The row of a record: eight columns, of which the first is NULL, as the primary key stands in its place."""
    head, offset = _varint(payload, 0)
    if not offset < head <= min(len(payload), 100):
        raise _Damaged
    types = []
    while offset < head:
        type_, offset = _varint(payload, offset)
        types.append(type_)
    if offset != head or len(types) != 8 or types[0] != 0:
        raise _Damaged
    numbers = []
    for type_ in types[1:6]:
        size = _INTEGER_BYTES.get(type_, 0)
        if type_ == 0 or type_ not in _INTEGER_BYTES or offset + size > len(payload):
            raise _Damaged
        number = int.from_bytes(payload[offset : offset + size], "big", signed=True)
        numbers.append(1 if type_ == 9 else number)
        offset += size
    name_type, data_type = types[6], types[7]
    if name_type < 12 or 0 < data_type < 12:
        raise _Damaged
    name_size, data_size = (name_type - 12) // 2, max(0, data_type - 12) // 2
    name = payload[offset : offset + name_size]
    data = payload[offset + name_size : offset + name_size + data_size]
    if len(name) < name_size or offset + name_size + data_size != total:
        raise _Damaged
    parent, version, writer, mtime, type_ = numbers
    entry = unsigned_entry(inode, parent, version, writer, mtime, type_, name, data)
    return SalvagedRow(entry, page, len(data) == data_size)
