"""A process with nothing but the IPC service, on test doubles: C{python -m tests.ipc_daemon NAME READ_GID}.

It says C{ready} and what it has; each line on its input is a question: C{descriptors} (number of open ones),
C{connections}; its end ends the process. So no test can be hung by the service, nor leave it behind.
"""

from __future__ import annotations

import os
import sys

from twisted.internet import reactor, stdio
from twisted.logger import globalLogBeginner, textFileLogObserver
from twisted.protocols.basic import LineOnlyReceiver

from pvecfs.ipc.service import IpcService
from tests.ipc_doubles import MemoryStatus, MemoryView, golden_tree, with_file

KIBIBYTE = b"bench/kibibyte.cfg"
LARGE = b"bench/large.cfg"
PRIVATE = b"nodes/n1/priv/secret"


class Questions(LineOnlyReceiver):
    """Answers on the standard output."""

    delimiter = b"\n"

    def __init__(self, service: IpcService) -> None:
        self.service = service

    def connectionMade(self) -> None:
        self.sendLine(b"ready")

    def lineReceived(self, line: bytes) -> None:
        if line == b"descriptors":
            answer = len(os.listdir("/proc/self/fd"))
        elif line == b"connections":
            answer = self.service.connection_count
        elif line == b"stop":
            self.service.stopService()
            answer = len([name for name in os.listdir("/dev/shm") if name.startswith(f"qb-{os.getpid()}-")])
        else:
            answer = -1
        self.sendLine(b"%d" % answer)

    def connectionLost(self, reason: object = None) -> None:
        if self.service.running:
            self.service.stopService()
        reactor.callWhenRunning(reactor.stop)


def main() -> None:
    name, read_gid = sys.argv[1], int(sys.argv[2])
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
    tree = golden_tree()
    for path, data in (
        (KIBIBYTE, b"k" * 1024),
        (LARGE, b"l" * 1024 * 1024),
        (PRIVATE, b"secret\n"),
        (b"priv/token.cfg", b"user@pve!token 0123-4567\nlast x"),
        (b"empty.cfg", b""),
    ):
        tree = with_file(tree, path, data)
    service = IpcService(reactor, name, MemoryView(tree), MemoryStatus(), read_gid)
    service.startService()
    stdio.StandardIO(Questions(service))
    reactor.run()


if __name__ == "__main__":
    main()
