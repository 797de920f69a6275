"""The reactor's own wait for events, begun a little earlier.

Who hands something to another thread wakes that thread up, but keeps the interpreter lock until the reactor waits for
its next event: two to four microseconds. The other thread is awake after just these, finds the lock taken, goes to
sleep for it, and begins 15 microseconds later than it could. And who has asked the file system something is woken up on
the processor of who answers (Linux 6.18), though another is idle, and goes on when that goes to sleep. So who has
handed something over, or answered it, and is done, waits for the reactor's next event there and then, and leaves it to
the reactor to take it.
"""

from __future__ import annotations

import select

BRIEFLY = 0.005
"""Seconds that are waited: the reactor's timers may have to wait for as long. A wait that would end before the
processor's next tick (4 ms at 250 Hz) needs a timer of its own, which in a virtual machine is set, and taken back, by
the host: 3 microseconds for each wait."""


class Events:
    """The events that C{reactor} waits for. Its thread only; with any but Twisted's reactor on epoll nothing is ever
    waited for."""

    def __init__(self, reactor: object) -> None:
        poller = getattr(reactor, "_poller", None)  # Twisted has no public name for it
        self._poller = poller if isinstance(poller, select.epoll) else None

    def wait(self, descriptor: int = -1) -> bool:
        """Wait for the next event, L{BRIEFLY} at most. The reactor is told of it all the same: it repeats.

        @return: whether it is C{descriptor} that became readable, and nothing else.
        """
        if self._poller is None:
            return False
        ready = self._poller.poll(BRIEFLY, 2)
        return len(ready) == 1 and ready[0][0] == descriptor
