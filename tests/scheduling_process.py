"""A process with real-time threads, for C{tests.test_scheduling}.

It prints the id of its second thread; then it carries out the lines of its standard input, and answers each by one.
"""

from __future__ import annotations

import hashlib
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from pvecfs import scheduling

_BLOCK = bytes(1 << 20)


def in_python(seconds: float) -> None:
    """Use that much time of a processor, in the interpreter."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def in_c(seconds: float) -> None:
    """The same in calls of C, which let go of the interpreter, as SQLite does."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        hashlib.sha256(_BLOCK)


class Process:
    """@param reactor: the global one."""

    def __init__(self, reactor: Any, pause: float) -> None:
        scheduling.PAUSE = pause
        self._reactor = reactor
        self._threads = scheduling.RealTimeThreads(reactor)
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._sleeper: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        threading.Thread(target=self._worker, daemon=True).start()
        self._threads.want(True)
        self._reactor.callWhenRunning(self._threads.start)
        self._reactor.run()
        if self._sleeper is not None:
            self._sleeper.kill()
            self._sleeper.wait()

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
                job(float(seconds))
                print(os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK, flush=True)

            if where == "main":
                compute()
            else:
                self._work.put(compute)
        elif command == "child":
            self._sleeper = subprocess.Popen(["sleep", "60"])
            print(self._sleeper.pid, flush=True)
        elif command == "thread":
            threading.Thread(target=lambda: print(os.sched_getscheduler(0), flush=True), daemon=True).start()
        elif command == "stop":
            self._threads.stop()
            print("stopped", flush=True)


def main(pause: str) -> None:
    from twisted.internet import reactor

    Process(reactor, float(pause)).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
