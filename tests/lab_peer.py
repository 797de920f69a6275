"""A process in a laboratory's node that is a member of a group, driven by lines of JSON.

Commands come on standard input, each an array: C{["open"]}, C{["close"]}, C{["leave"]}, C{["join"]},
C{["send", text, size, count, reopen]}, C{["exit"]}. What happens is written to standard output, one JSON object a line.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, cast

from twisted.internet import reactor as global_reactor
from twisted.internet.stdio import StandardIO
from twisted.logger import globalLogBeginner, textFileLogObserver
from twisted.protocols.basic import LineReceiver
from zope.interface import implementer

from pvecfs.corosync.group import GroupConnection
from pvecfs.corosync.service import CorosyncServices
from pvecfs.corosync.session import SessionReactor
from pvecfs.errors import CorosyncUnavailable, TryAgain
from pvecfs.interfaces import IClusterConfigListener, IGroupListener, IQuorumListener
from pvecfs.replica.status import ClusterConfiguration

reactor = cast(Any, global_reactor)


def tell(event: str, **details: object) -> None:
    data = (json.dumps({"event": event, "at": time.monotonic(), **details}) + "\n").encode()
    # StandardIO has made the descriptor non-blocking: of a full pipe, sys.stdout would lose lines.
    while data:
        select.select((), (1,), ())
        with contextlib.suppress(BlockingIOError):
            data = data[os.write(1, data) :]


@implementer(IGroupListener, IQuorumListener, IClusterConfigListener)
class Teller:
    """Writes down what it is told. A message is C{text}, a NUL, and stuffing."""

    def joined_as(self, member: object) -> None:
        tell("joined_as", member=member)

    def membership_changed(self, members: Sequence[object], left: Sequence[object], joined: Sequence[object]) -> None:
        tell("membership", members=members, left=left, joined=joined)

    def message_delivered(self, sender: object, message: bytes) -> None:
        ours = cast(Any, sender).pid == os.getpid()
        if ours and message.startswith(b"raise"):
            raise RuntimeError("as told to")
        if ours and message.startswith(b"close"):
            peer.connection.close()
        tell("message", sender=sender, text=message.split(b"\0")[0].decode(), size=len(message))

    def connection_lost(self, reason: Exception) -> None:
        tell("lost", reason=str(reason))

    def quorum_changed(self, quorate: bool, node_ids: Sequence[int]) -> None:
        tell("quorum", quorate=quorate, nodes=node_ids)

    def configuration_read(self, configuration: object) -> None:
        assert isinstance(configuration, ClusterConfiguration)
        nodes = [[node.node_id, node.name.decode(), node.votes] for node in configuration.nodes]
        tell("configuration", name=configuration.name.decode(), version=configuration.version, nodes=nodes)


class Peer(LineReceiver):
    """Carries the commands out."""

    delimiter = b"\n"
    MAX_LENGTH = 1 << 20

    def __init__(self) -> None:
        self.teller = Teller()
        self.services = CorosyncServices(cast(SessionReactor, reactor), self.teller, self.teller, 0.2)
        self.connection = GroupConnection(
            cast(SessionReactor, reactor), b"pve_dcdb_v1", self.services.quorum.dispatch_pending
        )

    def connectionMade(self) -> None:
        self.services.startService()
        tell("started", pid=os.getpid())

    def lineReceived(self, line: bytes) -> None:
        command, *arguments = json.loads(line)
        started = time.monotonic()
        try:
            getattr(self, f"do_{command}")(*arguments)
        except (CorosyncUnavailable, TryAgain) as error:
            tell("refused", command=command, error=type(error).__name__, reason=str(error))
        tell("done", command=command, seconds=time.monotonic() - started)

    def do_open(self) -> None:
        self.connection.open(self.teller)

    def do_close(self) -> None:
        self.connection.close()

    def do_leave(self) -> None:
        self.connection.leave()

    def do_join(self) -> None:
        self.connection.join()

    def do_cycle(self, count: int) -> None:
        """Open and close C{count} times, then tell of descriptors and threads."""
        if count:
            self.connection.open(self.teller)
            reactor.callLater(0.03, self.connection.close)
            reactor.callLater(0.06, self.do_cycle, count - 1)
        else:
            reactor.callLater(0.5, self.do_count)

    def do_count(self) -> None:
        tell("count", descriptors=len(os.listdir("/proc/self/fd")), threads=threading.active_count())

    def do_send(self, text: str, size: int = 0, count: int = 1) -> None:
        """Send C{count} messages, stop at the first refusal, tell how many went and how long one took."""
        sent, longest = 0, 0.0
        try:
            for number in range(count):
                message = f"{text}{number if count > 1 else ''}".encode() + b"\0"
                started = time.monotonic()
                self.connection.multicast(message.ljust(size, b"."))
                longest = max(longest, time.monotonic() - started)
                sent += 1
        finally:
            tell("sent", count=sent, longest=longest)

    def do_exit(self) -> None:
        self.connection.close()
        self.services.stopService()
        reactor.stop()

    def connectionLost(self, reason: object = None) -> None:
        if reactor.running:
            reactor.stop()


if __name__ == "__main__":
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
    peer = Peer()
    StandardIO(peer)
    reactor.run()
