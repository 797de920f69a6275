"""A process with real-time threads, for C{tests.test_scheduling}.

It prints the id of its second thread; then it carries out the lines of its standard input, and answers each by one.
Its pauses at normal priority last until it is told that the time has passed.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock
from zope.interface import implementer

from pvecfs.scheduling import Reactor, RealTimeThreads

_BLOCK = bytes(1 << 20)


def in_python() -> None:
    """Compute for a moment, in the interpreter."""
    for _ in itertools.repeat(None, 1000):
        pass


def in_c() -> None:
    """The same in a call of C, which lets go of the interpreter, as SQLite does."""
    hashlib.sha256(_BLOCK)


def policy() -> int:
    """The calling thread's."""
    return os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK


@implementer(Reactor)
class CommandedTime(Clock):
    """Of the reactor it has the calls from threads; time passes when it is told to."""

    def __init__(self, reactor: Any) -> None:
        super().__init__()
        self.callFromThread = reactor.callFromThread


class Process:
    """@param reactor: the global one."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._time = CommandedTime(reactor)
        self._threads = RealTimeThreads(self._time)
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._child: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        threading.Thread(target=self._worker, daemon=True).start()
        self._threads.want(True)
        self._reactor.callWhenRunning(self._threads.start)
        self._reactor.run()

    def _worker(self) -> None:
        self._threads.this_thread()
        print(threading.get_native_id(), flush=True)
        threading.Thread(target=self._read, daemon=True).start()
        while True:
            self._work.get()()

    def _read(self) -> None:
        for line in sys.stdin:
            self._reactor.callFromThread(self._carry_out, *line.split())
        self._reactor.callFromThread(self._reactor.stop)

    def _carry_out(self, command: str, *arguments: str) -> None:
        if command == "compute":
            where, how, seconds = arguments
            job = {"python": in_python, "c": in_c}[how]

            def compute() -> None:
                """So much time of a processor, or until the policy is another one, which is what it answers."""
                first, end = policy(), time.thread_time() + float(seconds)
                while policy() == first and time.thread_time() < end:
                    job()
                print(policy(), flush=True)

            if where == "main":
                compute()
            else:
                self._work.put(compute)
        elif command == "advance":
            self._time.advance(float(arguments[0]))
            print("advanced", flush=True)
        elif command == "child":
            self._child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)  # it ends when this process does
            print(self._child.pid, flush=True)
        elif command == "thread":
            threading.Thread(target=lambda: print(os.sched_getscheduler(0), flush=True), daemon=True).start()
        elif command == "stop":
            self._threads.stop()
            print("stopped", flush=True)


def main() -> None:
    from twisted.internet import reactor

    Process(reactor).run()


if __name__ == "__main__":
    main()
