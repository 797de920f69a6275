"""Work for another thread, handed over so that it begins at once.

With C{queue.SimpleQueue} the receiver wakes up while the sender still holds the interpreter lock, finds it taken and
goes to sleep again. Here it is woken by a system call, for which the sender lets go of that lock.
"""

from __future__ import annotations

import os
import select
import sys
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")

MUCH = 16
"""Items that the receiver is woken for, though more may come at once."""

_RING = (1).to_bytes(8, sys.byteorder)


class Mailbox(Generic[Item]):
    """A queue with one receiver. No locks: each step on which its order depends is one for the interpreter.

    As a context manager, of one thread, it lets what is put inside gather: the receiver, if it sleeps, is not woken
    before the end, or before there is much. It then has all of it at once, and does not want the interpreter from who
    still needs it.
    """

    _ear: select.epoll

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._asleep = False
        self._gathering = False
        self._bell = -1

    def open(self) -> None:
        """Before anything else.

        @raise OSError: no descriptors are left.
        """
        self._ear = select.epoll()
        try:
            self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            # Told of each ring once: so none has to be read away, which would be one more call.
            self._ear.register(self._bell, select.EPOLLIN | select.EPOLLET)
        except OSError:
            self.close()
            raise

    def put(self, item: Item) -> None:
        """Hand C{item} over. Any thread; never waits."""
        self._items.append(item)
        if self._asleep and (not self._gathering or len(self._items) >= MUCH):
            self._ring()

    def _ring(self) -> None:
        self._asleep = False
        try:
            os.write(self._bell, _RING)
        except OSError:
            return  # it has taken the last item and closed

    def __enter__(self) -> None:
        self._gathering = True

    def __exit__(self, *_: object) -> None:
        self._gathering = False
        if self._items and self._asleep:
            self._ring()

    def take(self, patience: float | None) -> list[Item]:
        """All that was put since the last time, in order; waits for it. One thread.

        @param patience: seconds to wait, C{None} for ever.
        @return: empty if nothing came.
        """
        items = self._items
        while not items:
            self._asleep = True
            if items:  # it was put before we were seen asleep
                break
            if not self._ear.poll(patience, 1):
                break
        self._asleep = False
        return [items.popleft() for _ in range(len(items))]

    def close(self) -> None:
        """Nobody takes or puts any more, unless it is opened again."""
        bell, self._bell = self._bell, -1
        if bell >= 0:
            os.close(bell)
        self._ear.close()
