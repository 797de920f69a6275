"""The files of a directory as a recorded run of system calls leaves them, and as a crash can leave them.

A killed process loses nothing that a call returned from: the page cache has it. A power loss loses what was not synced,
in any mixture:

- of each sector of 512 bytes, one of the contents that it had since its file was last synced is on the disk;
- a shortened file is still the long one, with any mixture of what it held then, or is shortened and holds any mixture
  of what came later, as file systems with a journal do it;
- of the names in a directory, changes since it was last synced happened up to some point, in their order;
- a sync that failed settles nothing, and what was to be settled is taken for written by the kernel: it stays unsettled
  until its page (4096 bytes) is written to again, and that is synced.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

SECTOR = 512
PAGE = 4096

_HEAD = struct.Struct("<IIqiBB2x")

State = dict[str, bytes]
"""Name to content."""


class Record(NamedTuple):
    """One call (recorder.c). Paths are relative to the recorded directory; a mark has none."""

    kind: str
    path: str
    data: bytes
    offset: int
    error: int
    of_directory: bool


def records(log: bytes) -> list[Record]:
    """All records of a recorder's log."""
    found = []
    at = 0
    while at < len(log):
        path, data, offset, error, kind, of_directory = _HEAD.unpack_from(log, at)
        at += _HEAD.size
        name = log[at : at + path].decode()
        at += path
        found.append(Record(chr(kind), name, log[at : at + data], offset, error, bool(of_directory)))
        at += data
    return found


@dataclass
class _Epoch:
    """What a file can hold, between two truncations.

    @ivar sectors: by number, the contents that the sector may have, oldest first; None: nothing was written there.
    @ivar doubtful: pages whose sync failed.
    """

    sectors: dict[int, list[bytes | None]] = field(default_factory=dict)
    doubtful: set[int] = field(default_factory=set)

    def copied(self) -> _Epoch:
        return _Epoch({number: list(versions) for number, versions in self.sectors.items()}, set(self.doubtful))

    def assembled(self, choose: Callable[[list[bytes | None]], bytes | None]) -> bytes:
        content = bytearray()
        for number, versions in sorted(self.sectors.items()):
            chosen = choose(versions)
            if chosen is not None:
                content.extend(bytes(max(0, number * SECTOR - len(content))))
                content[number * SECTOR :] = chosen
        return bytes(content)


class _File:
    def __init__(self, content: bytes = b"") -> None:
        self.content = bytearray()
        self.epochs = [_Epoch()]
        self.write(0, content)
        self.sync()

    def write(self, offset: int, data: bytes) -> None:
        if offset > len(self.content):
            self.content.extend(bytes(offset - len(self.content)))
        self.content[offset : offset + len(data)] = data
        epoch = self.epochs[-1]
        for number in range(offset // SECTOR, -(-(offset + len(data)) // SECTOR)):
            versions = epoch.sectors.setdefault(number, [None])
            versions.append(bytes(self.content[number * SECTOR : (number + 1) * SECTOR]))
        epoch.doubtful -= set(range(offset // PAGE, -(-(offset + len(data)) // PAGE)))

    def truncate(self, length: int) -> None:
        if length >= len(self.content):
            self.write(len(self.content), bytes(length - len(self.content)))
            return
        del self.content[length:]
        epoch = self.epochs[-1].copied()
        for number in [number for number in epoch.sectors if number * SECTOR >= length]:
            del epoch.sectors[number]
        last = length // SECTOR
        if last in epoch.sectors:
            epoch.sectors[last] = [v if v is None else v[: length % SECTOR] for v in epoch.sectors[last]]
        self.epochs.append(epoch)

    def sync(self) -> None:
        epoch = self.epochs[-1]
        for number, versions in epoch.sectors.items():
            if number * SECTOR // PAGE not in epoch.doubtful:
                del versions[:-1]
        self.epochs = [epoch]

    def sync_failed(self) -> None:
        epoch = self.epochs[-1]
        epoch.doubtful |= {number * SECTOR // PAGE for number, versions in epoch.sectors.items() if len(versions) > 1}


class Disk:
    """One directory.

    @param initial: its files before the first record, all on stable storage.
    """

    def __init__(self, initial: State | None = None) -> None:
        self._names = {name: _File(content) for name, content in (initial or {}).items()}
        self._settled = dict(self._names)  # names on stable storage
        self._unsettled: list[dict[str, _File]] = []  # all names after each change since

    def apply(self, record: Record) -> None:
        """Have a call happen. Marks are not for the disk."""
        name = record.path.rpartition("/")[2]
        if record.kind == "s":
            if record.of_directory:
                if not record.error:
                    self._settled, self._unsettled = dict(self._names), []
            elif name in self._names:
                file = self._names[name]
                if record.error:
                    file.sync_failed()
                else:
                    file.sync()
        elif record.error:
            pass
        elif record.kind == "w":
            self._names[name].write(record.offset, record.data)
        elif record.kind == "t":
            self._names[name].truncate(record.offset)
        elif record.kind in "cur":
            if record.kind == "c":
                self._names[name] = _File()
            elif record.kind == "u":
                del self._names[name]
            else:
                self._names[record.data.decode().rpartition("/")[2]] = self._names.pop(name)
            self._unsettled.append(dict(self._names))

    def killed(self) -> State:
        """What is there when the process is gone."""
        return {name: bytes(file.content) for name, file in self._names.items()}

    def lost_power(self, random: Random) -> Iterator[State]:
        """Some of the states in which a power loss can leave the directory: extreme ones, and mixtures."""
        yield {name: file.epochs[0].assembled(_oldest) for name, file in self._settled.items()}
        if not self._unsettled and all(_is_settled(file) for file in self._settled.values()):
            return
        for name in sorted(self._names):  # one file whole, nothing of the others; and the reverse
            for keep in True, False:
                yield {
                    other: file.epochs[-1].assembled(_newest)
                    if (other == name) == keep
                    else file.epochs[0].assembled(_oldest)
                    for other, file in self._names.items()
                }
        for share in 0.05, 0.5, 0.95:

            def some(versions: list[bytes | None], share: float = share) -> bytes | None:
                return versions[-1] if random.random() < share else random.choice(versions)

            names = random.choice([self._settled, *self._unsettled])
            yield {name: random.choice(file.epochs).assembled(some) for name, file in names.items()}


def _oldest(versions: list[bytes | None]) -> bytes | None:
    return versions[0]


def _newest(versions: list[bytes | None]) -> bytes | None:
    return versions[-1]


def _is_settled(file: _File) -> bool:
    return len(file.epochs) == 1 and all(len(versions) == 1 for versions in file.epochs[0].sectors.values())
