"""Work for another thread, handed over so that it begins at once.

With C{queue.SimpleQueue} the receiver wakes up while the sender still holds the interpreter lock, finds it taken and
goes to sleep again. Here it is woken by a system call, for which the sender lets go of that lock.
"""

from __future__ import annotations

import os
import socket
import struct
from collections import deque
from contextlib import suppress
from typing import Generic, TypeVar

Item = TypeVar("Item")

_TIMEVAL = struct.Struct("@ll")


class Mailbox(Generic[Item]):
    """A queue with one receiver. No locks: each step on which its order depends is one for the interpreter."""

    _bell: socket.socket
    _button: socket.socket

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._asleep = False
        self._patience: float | None = None

    def open(self) -> None:
        """Before anything else.

        @raise OSError: no descriptors are left.
        """
        self._bell, self._button = socket.socketpair()
        self._button.setblocking(False)
        self._patience = None

    def put(self, item: Item) -> None:
        """Hand C{item} over. Any thread; never waits."""
        self._items.append(item)
        if self._asleep:
            self._asleep = False
            with suppress(OSError):  # it has more than enough to wake up by, or has taken this last item and closed
                os.write(self._button.fileno(), b"!")

    def take(self, patience: float | None) -> list[Item]:
        """All that was put since the last time, in order; waits for it. One thread.

        @param patience: seconds to wait, C{None} for ever.
        @return: empty if nothing came.
        """
        items = self._items
        while not items:
            self._set_patience(patience)
            self._asleep = True
            if items:  # it was put before we were seen asleep
                break
            try:
                os.read(self._bell.fileno(), 64)
            except BlockingIOError:
                break
        self._asleep = False
        return [items.popleft() for _ in range(len(items))]

    def _set_patience(self, patience: float | None) -> None:
        if patience != self._patience:
            microseconds = 0 if patience is None else max(1, int(patience * 1_000_000))  # 0: for ever
            timeval = _TIMEVAL.pack(*divmod(microseconds, 1_000_000))
            self._bell.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
            self._patience = patience

    def close(self) -> None:
        """Nobody takes or puts any more, unless it is opened again."""
        self._bell.close()
        self._button.close()
