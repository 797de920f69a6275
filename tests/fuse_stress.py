"""Processes that compare what they see on a mount with what its node has applied.

Each of L{FILES} names goes through numbered states; what a number stands for is computed (L{shape}), so that a content
tells its number. Two shared arrays tell for each name the last state that was begun, and the last one that every
program has to see. An observation is right if it fits a state between the one that had to be seen before it began, and
the one that was begun when it was over.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import sys
import time
from collections.abc import Iterator

FILES = 12
REMOTE = 8
"""Names up to this one are changed by another node, the rest by a program through the mount."""

ABSENT = -1
DIRECTORY = -2


def name(number: int) -> str:
    return f"f{number}"


def shape(state: int) -> int:
    """What state number C{state} is: L{ABSENT}, L{DIRECTORY}, or the size of a file."""
    kind = state % 10
    if kind == 0:
        return ABSENT
    if kind == 6:
        return DIRECTORY
    return 100 if kind < 5 else 50 + state * 37 % 3000


def content(number: int, state: int) -> bytes:
    word = b"%d.%d " % (number, state)
    return (word * (shape(state) // len(word) + 1))[: shape(state)]


class Board:
    """The shared arrays, in a file."""

    def __init__(self, path: str) -> None:
        with open(path, "a+b") as file:
            file.truncate(FILES * 8)
            self._words = memoryview(mmap.mmap(file.fileno(), FILES * 8)).cast("I")

    def begin(self, number: int, state: int) -> None:
        self._words[number] = state

    def finish(self, number: int, state: int) -> None:
        self._words[FILES + number] = state

    def begun(self, number: int) -> int:
        return self._words[number]

    def finished(self, number: int) -> int:
        return self._words[FILES + number]


def shapes(first: int, last: int) -> set[int]:
    """What may be seen while a name goes from state C{first} to C{last}, both included."""
    seen = {shape(first)}
    for state in range(first + 1, last + 1):
        seen.add(shape(state))
        if DIRECTORY in (shape(state), shape(state - 1)):
            seen.add(ABSENT)  # what was there goes first
    return seen


class Reader:
    """Looks, and complains about what is not so."""

    def __init__(self, place: str, board: Board) -> None:
        self.place = place
        self.board = board
        self.looks = 0

    def run(self, seconds: float, seed: int) -> None:
        choice = random.Random(seed)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.looks += 1
            number = choice.randrange(FILES)
            look = choice.random()
            if look < 0.4:
                self.stat(number)
            elif look < 0.9:
                self.read(number)
            else:
                self.list()

    def check(self, number: int, first: int, seen: int, how: str, detail: object = "") -> None:
        last = self.board.begun(number)
        if seen not in shapes(first, last):
            raise AssertionError(f"{how} {name(number)}: {seen} {detail!r}, not in states {first} to {last}")

    def stat(self, number: int) -> None:
        first = self.board.finished(number)
        try:
            found = os.stat(f"{self.place}/{name(number)}")
            seen = DIRECTORY if found.st_mode & 0o170000 == 0o040000 else found.st_size
        except FileNotFoundError:
            seen = ABSENT
        self.check(number, first, seen, "stat")

    def read(self, number: int) -> None:
        first = self.board.finished(number)
        data = b""
        try:
            fd = os.open(f"{self.place}/{name(number)}", os.O_RDONLY)
            try:
                data = os.read(fd, 5000)
                seen = len(data)
            finally:
                os.close(fd)
        except IsADirectoryError:
            seen = DIRECTORY
        except FileNotFoundError:
            seen = ABSENT
        self.check(number, first, seen, "read", data[:20])
        if seen > 0:
            state = int(data.split(b" ", 1)[0].split(b".")[1])
            last = self.board.begun(number)
            if not first <= state <= last or data != content(number, state):
                raise AssertionError(f"read {name(number)}: {data[:20]!r}, not in states {first} to {last}")

    def list(self) -> None:
        firsts = [self.board.finished(number) for number in range(FILES)]
        listed = set(os.listdir(self.place))
        for number, first in enumerate(firsts):
            seen = shapes(first, self.board.begun(number))
            if (name(number) in listed and seen == {ABSENT}) or (name(number) not in listed and ABSENT not in seen):
                raise AssertionError(f"list: {name(number)} in {listed}, states from {first}: {seen}")


def steps(number: int, state: int) -> Iterator[tuple[object, ...]]:
    """The changes that lead from C{state} - 1 to C{state}, each as a word and its arguments."""
    old, new = shape(state - 1), shape(state)
    at = name(number)
    if new == ABSENT or DIRECTORY in (old, new):
        if old != ABSENT:
            yield "delete", at
        if new == DIRECTORY:
            yield "mkdir", at
    if new >= 0:
        if old == new and state % 2:
            yield "write", at, content(number, state)
        else:
            yield "create", f"{at}.new"
            yield "write", f"{at}.new", content(number, state)
            yield "rename", f"{at}.new", at


def change_locally(place: str, board: Board, seconds: float) -> int:
    """Take the names from L{REMOTE} on through their states, by ordinary calls; returns how many."""
    count = 0
    end = time.monotonic() + seconds
    state = board.finished(REMOTE)
    while time.monotonic() < end:
        state += 1
        for number in range(REMOTE, FILES):
            board.begin(number, state)
            for word, at, *arguments in steps(number, state):
                path = f"{place}/{at}"
                if word == "delete":
                    (os.rmdir if shape(state - 1) == DIRECTORY else os.unlink)(path)
                elif word == "mkdir":
                    os.mkdir(path)
                elif word == "rename":
                    os.rename(path, f"{place}/{arguments[0]}")
                elif word == "create":
                    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640))
                else:
                    fd = os.open(path, os.O_WRONLY)
                    os.write(fd, arguments[0])  # type: ignore[arg-type]  # a write's data
                    os.close(fd)
            board.finish(number, state)
            count += 1
    return count


def hammer(place: str, seconds: float, seed: int) -> int:
    """Do anything, in a few places at once with others; only hanging and odd errors are wrong."""
    choice = random.Random(seed)
    end = time.monotonic() + seconds
    count = 0
    allowed = {errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR}
    # The kernel's, where another node moves a directory that is in use here, during a rename here. Once in 500,000.
    allowed.add(errno.ESTALE)
    while time.monotonic() < end:
        one, other = (f"{place}/h{choice.randrange(4)}" for _ in range(2))
        if choice.random() < 0.5:
            one += f"/{choice.randrange(4)}"
        count += 1
        try:
            match choice.randrange(9):
                case 0:
                    os.mkdir(one)
                case 1:
                    os.rmdir(one)
                case 2:
                    os.unlink(one)
                case 3:
                    os.rename(one, other)
                case 4:
                    with open(one, "wb") as file:
                        file.write(b"x" * choice.choice((1, 100, 9000)))
                case 5:
                    with open(one, "ab") as file:
                        file.write(b"y" * 100)
                case 6:
                    with open(one, "rb") as file:
                        file.read()
                case 7:
                    os.listdir(one)
                case _:
                    os.stat(one)
        except OSError as failure:
            if failure.errno not in allowed:
                raise
    return count


def main(role: str, place: str, board: str, seconds: str, seed: str) -> None:
    if role == "read":
        reader = Reader(place, Board(board))
        reader.run(float(seconds), int(seed))
        print(reader.looks)
    elif role == "change":
        print(change_locally(place, Board(board), float(seconds)))
    else:
        print(hammer(place, float(seconds), int(seed)))


if __name__ == "__main__":
    main(*sys.argv[1:6])
