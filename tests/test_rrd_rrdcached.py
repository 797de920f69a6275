"""The client side of rrdcached's protocol, against bytes."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from pvecfs.rrd.rrdcached import (
    ANSWER_TIMEOUT,
    ConnectionGone,
    Refused,
    RrdcachedFactory,
    RrdcachedProtocol,
    create_command,
    update_command,
)


class ProtocolTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.connected: list[RrdcachedProtocol] = []
        self.protocol = RrdcachedFactory(self.clock, self.connected.append).buildProtocol(None)
        self.transport = StringTransport()
        self.protocol.makeConnection(self.transport)

    def test_tells_of_itself(self) -> None:
        self.assertEqual(self.connected, [self.protocol])

    def test_commands(self) -> None:
        self.assertEqual(update_command(b"/d b/a\\b", b"1:2"), b"UPDATE /d\\ b/a\\\\b 1:2")
        self.assertEqual(create_command(b"/d/n", 5, [b"DS:a", b"RRA:b"]), b"CREATE /d/n -s 60 -b 5 -O DS:a RRA:b")

    def test_answers_in_order(self) -> None:
        first, second = self.protocol.command(b"A"), self.protocol.command(b"B")
        self.assertEqual(self.transport.value(), b"A\nB\n")
        self.assertEqual(self.protocol.waiting, 2)
        self.protocol.dataReceived(b"0 errors, enqueued 1 val")
        self.assertNoResult(first)
        self.protocol.dataReceived(b"ue(s).\n0 fine\n")
        self.assertEqual(self.successResultOf(first), b"errors, enqueued 1 value(s).")
        self.assertEqual(self.successResultOf(second), b"fine")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_refused(self) -> None:
        answer, following = self.protocol.command(b"A"), self.protocol.command(b"B")
        # As rrdcached 1.7.2 really answers: the second line is not announced.
        self.protocol.dataReceived(b"-1 No permission to recursively create: x\nDid you pass -R to the daemon?\n0 ok\n")
        self.assertIn("No permission", str(self.failureResultOf(answer, Refused).value))
        self.assertEqual(self.successResultOf(following), b"ok")

    def test_answer_of_several_lines(self) -> None:
        answer, following = self.protocol.command(b"STATS"), self.protocol.command(b"B")
        self.protocol.dataReceived(b"2 Statistics follow\n-1 x\n")
        self.assertNoResult(answer)
        self.protocol.dataReceived(b"B: 0\n0 ok\n")
        self.successResultOf(answer)
        self.successResultOf(following)

    def test_unasked_answer_ends_the_connection(self) -> None:
        self.protocol.dataReceived(b"0 hello\n")
        self.assertTrue(self.transport.disconnected)

    def test_silence_ends_the_connection(self) -> None:
        answer = self.protocol.command(b"A")
        self.clock.advance(ANSWER_TIMEOUT - 1)
        self.assertFalse(self.transport.disconnected)
        self.clock.advance(1)
        self.assertTrue(self.transport.disconnected)
        self.protocol.connectionLost()
        self.failureResultOf(answer, ConnectionGone)
        self.successResultOf(self.protocol.lost)

    def test_commands_fail_before_the_loss_is_told(self) -> None:
        """In the order in which they were given: what comes after them is newer."""
        told: list[str] = []
        first, second = self.protocol.command(b"A"), self.protocol.command(b"B")
        first.addErrback(lambda _: told.append("first"))
        second.addErrback(lambda _: told.append("second"))
        self.protocol.lost.addCallback(lambda _: told.append("lost"))
        self.protocol.connectionLost()
        self.assertEqual(told, ["first", "second", "lost"])

    def test_each_answer_grants_more_time(self) -> None:
        first, second = self.protocol.command(b"A"), self.protocol.command(b"B")
        self.clock.advance(ANSWER_TIMEOUT - 1)
        self.protocol.dataReceived(b"0 ok\n")
        self.clock.advance(ANSWER_TIMEOUT - 1)
        self.assertFalse(self.transport.disconnected)
        self.protocol.dataReceived(b"0 ok\n")
        self.successResultOf(first)
        self.successResultOf(second)

    def test_endless_line_ends_the_connection(self) -> None:
        self.protocol.dataReceived(b"x" * 100000)
        self.assertTrue(self.transport.disconnected)
