"""The socket at which a node says how it is, with real sockets and a clock of the test's own."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Generator
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks, maybeDeferred
from twisted.internet.task import Clock, deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import TestCase

from pvecfs.node.healthsocket import CLIENT_SECONDS, MAX_CLIENTS, HealthSocket
from tests.daemons import temporary_base
from tests.needs import needs_root

DOCUMENT = b'{"problems": []}\n'
LARGE = b"x" * 16 * 1024 * 1024
"""More than any socket takes at once."""

Steps = Generator[Deferred[Any], Any, None]


class SocketReactor:
    """The sockets of the reactor, the time of a clock."""

    def __init__(self, clock: Clock) -> None:
        self.callLater = clock.callLater
        self.listenUNIX = reactor.listenUNIX  # type: ignore[attr-defined]  # the module's place is taken by a reactor


class SocketTests(TestCase):
    timeout = 60

    def setUp(self) -> None:
        self.directory = temporary_base(self)
        self.path = self.directory / "health"
        self.clock = Clock()
        self.document = DOCUMENT
        self.asked = 0
        self.service = self.new_service()

    def new_service(self, directory: Path | None = None) -> HealthSocket:
        def document() -> bytes:
            self.asked += 1
            return self.document

        service = HealthSocket(SocketReactor(self.clock), directory or self.directory, os.getegid(), document)
        self.addCleanup(service.stopService)
        return service

    def client(self) -> socket.socket:
        """A connection; nothing is sent or received."""
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.addCleanup(client.close)
        client.settimeout(20)
        client.connect(str(self.path))
        return client

    def told(self, client: socket.socket | None = None) -> Deferred[bytes]:
        """What C{client}, or a new one, is told to the end; received on another thread."""
        if client is None:
            client = self.client()

        def receive() -> bytes:
            data = b""
            while part := client.recv(1 << 20):
                data += part
            return data

        told: Deferred[bytes] = deferToThread(receive)
        return told

    def until(self, condition: Any) -> Deferred[None]:
        """Let the reactor run until C{condition()}."""

        @inlineCallbacks
        def wait() -> Steps:
            while not condition():
                yield deferLater(reactor, 0.005)

        return wait()

    @inlineCallbacks
    def test_told(self) -> Steps:
        """Each client gets one document, whatever it sends; its time ends with it."""
        self.service.startService()
        status = self.path.stat()
        self.assertTrue(stat.S_ISSOCK(status.st_mode))
        self.assertEqual((stat.S_IMODE(status.st_mode), status.st_gid), (0o660, os.getegid()))
        self.assertEqual((yield self.told()), DOCUMENT)
        client = self.client()
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):  # what it sent was not read
            self.assertEqual((yield self.told(client)), DOCUMENT)
        yield self.until(lambda: not self.clock.getDelayedCalls())
        self.assertEqual(self.asked, 2)

    @inlineCallbacks
    def test_stop(self) -> Steps:
        """The socket is removed, and who still takes the document waits no longer."""
        self.document = LARGE
        self.service.startService()
        client = self.client()
        yield self.until(lambda: self.asked)
        yield maybeDeferred(self.service.stopService)
        self.assertEqual(os.listdir(self.directory), [])
        yield self.until(lambda: not self.clock.getDelayedCalls())
        self.assertLess(len((yield self.told(client))), len(LARGE))

    @inlineCallbacks
    def test_silent_client(self) -> Steps:
        """One that takes nothing is dropped when its time is over; others are told meanwhile."""
        self.document = LARGE
        self.service.startService()
        silent = self.client()
        yield self.until(lambda: self.asked)
        self.document = DOCUMENT
        self.assertEqual((yield self.told()), DOCUMENT)
        yield self.until(lambda: len(self.clock.getDelayedCalls()) == 1)
        self.clock.advance(CLIENT_SECONDS)
        self.assertLess(len((yield self.told(silent))), len(LARGE))

    @inlineCallbacks
    def test_many_clients(self) -> Steps:
        """More than there may be are told nothing; when there is room again, the next one is."""
        self.document = LARGE
        self.service.startService()
        silent = []
        for number in range(MAX_CLIENTS):
            silent.append(self.client())
            yield self.until(lambda: self.asked == number + 1)  # noqa: B023
        for _ in range(3):
            self.assertEqual((yield self.told()), b"")
        self.assertEqual(self.asked, MAX_CLIENTS)
        self.document = DOCUMENT
        silent.pop().close()
        yield self.until(lambda: len(self.clock.getDelayedCalls()) == MAX_CLIENTS - 1)
        self.assertEqual((yield self.told()), DOCUMENT)

    @inlineCallbacks
    def test_stale_socket(self) -> Steps:
        """That of a killed daemon is replaced."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as killed:
            killed.bind(str(self.path))
            killed.listen()
        self.service.startService()
        self.assertEqual((yield self.told()), DOCUMENT)

    def refused(self, service: HealthSocket) -> str:
        """Start C{service}, which cannot listen, and stop it; what it logs."""
        with capturedLogs() as events:
            service.startService()
            self.assertIsNone(service.stopService())
        return "\n".join(formatEvent(event) for event in events)

    def test_foreign_file(self) -> None:
        self.path.write_text("somebody's")
        self.assertIn(f"{self.path} cannot be had", self.refused(self.service))
        self.assertEqual(self.path.read_text(), "somebody's")

    def test_dangling_link(self) -> None:
        self.path.symlink_to("nowhere")
        self.assertIn("no socket", self.refused(self.service))
        self.assertTrue(self.path.is_symlink())

    @inlineCallbacks
    def test_another_daemon(self) -> Steps:
        """Its socket is left to it."""
        self.service.startService()
        self.assertIn("another daemon", self.refused(self.new_service()))
        self.assertEqual((yield self.told()), DOCUMENT)

    def test_no_directory(self) -> None:
        self.assertIn("cannot be had", self.refused(self.new_service(self.directory / "missing")))

    def test_long_path(self) -> None:
        directory = self.directory / ("d" * 100)
        directory.mkdir()
        self.assertIn("too long", self.refused(self.new_service(directory)))

    @inlineCallbacks
    def test_removed(self) -> Steps:
        """Somebody has put something else in its place: that stays, and the stop is over."""
        self.service.startService()
        self.path.unlink()
        self.path.write_text("somebody's")
        yield maybeDeferred(self.service.stopService)
        self.assertEqual(self.path.read_text(), "somebody's")
        other = self.new_service(self.directory)
        self.path.unlink()
        other.startService()
        self.path.unlink()
        yield maybeDeferred(other.stopService)

    @inlineCallbacks
    def test_no_document(self) -> Steps:
        """A failure in making it is logged, and the client does not wait."""

        def document() -> bytes:
            raise ZeroDivisionError

        service = HealthSocket(SocketReactor(self.clock), self.directory, os.getegid(), document)
        self.addCleanup(service.stopService)
        service.startService()
        self.assertEqual((yield self.told()), b"")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    @needs_root()
    def test_group(self) -> None:
        service = HealthSocket(SocketReactor(self.clock), self.directory, 33, lambda: DOCUMENT)
        self.addCleanup(service.stopService)
        service.startService()
        self.assertEqual((self.path.stat().st_uid, self.path.stat().st_gid), (0, 33))
