"""The reactor's wait, brought forward."""

from __future__ import annotations

import os
import select

from twisted.internet.epollreactor import EPollReactor
from twisted.trial.unittest import SynchronousTestCase

from pvecfs.events import Events


class Reader:
    """A pipe that a reactor reads."""

    def __init__(self, case: SynchronousTestCase) -> None:
        self.descriptor, self.end = os.pipe()
        case.addCleanup(os.close, self.descriptor)
        case.addCleanup(os.close, self.end)

    def fileno(self) -> int:
        return self.descriptor

    def write(self) -> None:
        os.write(self.end, b"x")


class EventsTests(SynchronousTestCase):
    def test_twisted_reactor(self) -> None:
        """What is Twisted's own: if it changes, this tells."""
        reactor = EPollReactor()
        self.addCleanup(reactor._poller.close)
        for reader in list(reactor.getReaders()):  # its waker
            reactor.removeReader(reader)
        events = Events(reactor)
        first, second = Reader(self), Reader(self)
        reactor.addReader(first)
        reactor.addReader(second)
        self.assertFalse(events.wait(first.descriptor))
        first.write()
        self.assertTrue(events.wait(first.descriptor))
        self.assertTrue(events.wait(first.descriptor), "the reactor is told all the same")
        self.assertFalse(events.wait(second.descriptor))
        self.assertFalse(events.wait())
        second.write()
        self.assertFalse(events.wait(first.descriptor))
        reactor.removeReader(first)
        self.assertTrue(events.wait(second.descriptor))

    def test_other_reactors(self) -> None:
        self.assertFalse(Events(object()).wait(0))
        self.assertFalse(Events(type("", (), {"_poller": select.poll()})()).wait(0))
