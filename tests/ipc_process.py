"""Processes for the tests of the IPC service: the daemon, and clients of other users."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

READ_GID = 33
"""Stands for www-data's group; no such group is needed."""

ROOT = Path(__file__).parent.parent

_WAIT = 10.0


class Daemon:
    """The service in a process of its own, C{tests.ipc_daemon}."""

    def __init__(self, suffix: str) -> None:
        self.name = f"pvecfs-test-{os.getpid()}-{suffix}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.ipc_daemon", self.name, str(READ_GID)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
        )
        self.log = ""
        assert self.process.stdout is not None
        if self.process.stdout.readline() != b"ready\n":
            self.end()
            raise RuntimeError(f"the daemon did not start: {self.log}")

    def __enter__(self) -> Daemon:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()

    def ask(self, question: str) -> int:
        """C{descriptors}, C{connections}, or C{stop} (the service; the answer is what it left in /dev/shm)."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(question.encode() + b"\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def shared_memory(self) -> list[str]:
        """Names in /dev/shm that are this daemon's."""
        return sorted(name for name in os.listdir("/dev/shm") if name.startswith(f"qb-{self.process.pid}-"))

    def used(self) -> tuple[int, int, int]:
        """Descriptors, connections, names in /dev/shm."""
        return self.ask("descriptors"), self.ask("connections"), len(self.shared_memory())

    def used_again(self, expected: tuple[int, int, int]) -> tuple[int, int, int]:
        """L{used}, once it is C{expected}, or after ten seconds: the daemon learns later that a client died."""
        deadline = time.monotonic() + _WAIT
        while (used := self.used()) != expected and time.monotonic() < deadline:
            time.sleep(0.02)
        return used

    def end(self) -> None:
        """End the process by closing its input, and keep its log."""
        try:
            _, log = self.process.communicate(timeout=_WAIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            _, log = self.process.communicate()
        self.log += log.decode(errors="replace")


def run_as(uid: int, gid: int, name: str, calls: list[tuple[str, list[object]]]) -> list[object]:
    """Connect as another user and make C{calls} (method of Client, arguments; strings for bytes).

    @return: for each call its result (text, None) or the errno it raised; for a refused connection only its errno.
    """
    result = subprocess.run(
        [sys.executable, "-m", "tests.ipc_process", str(uid), str(gid), name],
        input=json.dumps(calls).encode(),
        stdout=subprocess.PIPE,
        cwd=ROOT,
        timeout=3 * _WAIT,
        check=True,
    )
    results: list[object] = json.loads(result.stdout)
    return results


def _encoded(argument: object) -> object:
    if isinstance(argument, str):
        return argument.encode()
    return [_encoded(item) for item in argument] if isinstance(argument, list) else argument


def _main() -> None:
    from pvecfs.ipc import libqb
    from pvecfs.ipc.client import Client

    uid, gid, name = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    calls = json.load(sys.stdin)
    libqb.load()  # and all modules are loaded: the other user may not be able to read them
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    results: list[object] = []
    try:
        with Client(name) as client:
            for method, arguments in calls:
                try:
                    reply = getattr(client, method)(*map(_encoded, arguments))
                    results.append(None if reply is None else reply.decode())
                except OSError as error:
                    results.append(error.errno)
    except OSError as error:
        results.append(error.errno)
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    _main()
