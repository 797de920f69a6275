"""The status service: two of them joined by a memory group, and what it hands to others."""

from __future__ import annotations

import json
from errno import EFBIG

from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from pvecfs.interfaces import IClusterConfigListener, IQuorumListener, IRoundRobinSink, IStatus
from pvecfs.node.status import NoRoundRobin, StatusService
from pvecfs.replica.effects import FailWaiting, Level, Log
from pvecfs.replica.kvstore import StatusReplica
from pvecfs.replica.member import Instant, Member
from pvecfs.replica.messages import Normal
from pvecfs.replica.status import ClusterConfiguration, NodeInfo
from pvecfs.tree.errors import OperationError
from pvecfs.tree.tree import Tree

CONFIGURATION = ClusterConfiguration(b"lab", 1, (NodeInfo(1, b"n1"), NodeInfo(2, b"n2")))
TREE = Tree.new(1)


@implementer(IRoundRobinSink)
class RecordingSink:
    """Remembers the updates."""

    def __init__(self) -> None:
        self.updates: list[tuple[bytes, bytes]] = []

    def update(self, key: bytes, value: bytes) -> None:
        self.updates.append((key, value))


class Node:
    """A node with a status service; its clock stands until it is moved."""

    def __init__(self, number: int) -> None:
        self.member = Member(number, number * 10)
        self.now = Instant(1000, 5.0)
        self.sink = RecordingSink()
        name = b"n%d" % number
        self.status = StatusService(StatusReplica(name, 1, 900, b"10.0.0.%d" % number), self.sink, lambda: self.now)
        self.status.begin()

    def join(self, *others: Node) -> None:
        """Synchronised with C{others} from now on; what is sent reaches them at once."""

        def send(subtype: int, payload: bytes) -> None:
            for other in others:
                message = Normal(0, 1000, subtype, 1, payload)
                other.status.perform(other.status.replica.deliver(message, self.member, False, False, self.now))

        self.status.configuration_read(CONFIGURATION)
        members = sorted([self.member, *(other.member for other in others)])
        self.status.perform(self.status.replica.membership_changed(members, (), (), self.now))
        self.status.attach_group(send)


class LocalMode(SynchronousTestCase):
    def setUp(self) -> None:
        self.node = Node(1)
        self.status = self.node.status

    def test_interfaces(self) -> None:
        for interface in (IStatus, IQuorumListener, IClusterConfigListener):
            self.assertTrue(verifyObject(interface, self.status))
        for sink in (NoRoundRobin(), self.node.sink):
            self.assertTrue(verifyObject(IRoundRobinSink, sink))
        NoRoundRobin().update(b"k", b"v")

    def test_values(self) -> None:
        self.status.set_value(b"k", b"x")
        self.assertEqual(self.status.value(b"k", b""), b"x")
        self.assertEqual(json.loads(self.status.document(b".version", TREE))["kvstore"], {"n1": {"k": 0}})
        with self.assertRaises(OperationError) as caught:
            self.status.set_value(b"k", b"x" * 32769)
        self.assertEqual(caught.exception.errno, EFBIG)

    def test_log(self) -> None:
        self.status.log(5, b"root@pam", b"tag", b"hello", 42)
        for document in (self.status.log_document(0, b"root@pam"), self.status.document(b".clusterlog", TREE)):
            self.assertEqual(json.loads(document)["data"][0]["msg"], "hello")

    def test_rrd(self) -> None:
        self.status.set_value(b"rrd/pve2-node/n1", b"1:2:3\0")
        self.assertEqual(self.node.sink.updates, [(b"pve2-node/n1", b"1:2:3")])
        self.assertEqual(self.status.document(b".rrd", TREE), b"pve2-node/n1:1:2:3\n")
        self.node.now = Instant(1000, 306.0)
        self.assertEqual(self.status.document(b".rrd", TREE), b"")

    def test_documents_do_not_change_by_themselves(self) -> None:
        self.assertIs(self.status.document(b".members", TREE), self.status.document(b".members", TREE))
        with self.assertRaises(KeyError):
            self.status.document(b".debug", TREE)

    def test_log_lines(self) -> None:
        with capturedLogs() as events:
            self.status.perform([Log(Level.WARN, "a {line}"), FailWaiting(5)])
        (event,) = [event for event in events if event.get("log_namespace") == "pvecfs.status"]
        self.assertEqual((event["log_level"], event["text"]), (LogLevel.warn, "a {line}"))


class InCluster(SynchronousTestCase):
    def setUp(self) -> None:
        self.one, self.two = Node(1), Node(2)
        self.one.join(self.two)
        self.two.join(self.one)

    def test_values_reach_the_other_node(self) -> None:
        self.one.status.set_value(b"k", b"x")
        self.assertEqual(self.two.status.value(b"k", b"n1"), b"x")
        self.one.status.set_value(b"k", b"")
        with self.assertRaises(OperationError):
            self.two.status.value(b"k", b"n1")

    def test_rrd_lines_reach_both_sinks(self) -> None:
        self.one.status.set_value(b"rrd/pve2-node/n1", b"1:2\0")
        self.assertEqual(self.two.sink.updates, self.one.sink.updates)

    def test_log_entries_reach_the_other_node(self) -> None:
        self.one.status.log(5, b"root@pam", b"tag", b"hello", 42)
        self.assertEqual(self.two.status.log_document(1, b""), self.one.status.log_document(1, b""))

    def test_members(self) -> None:
        self.one.status.quorum_changed(True, (1, 2))
        self.one.status.perform(self.one.status.replica.became_synced(self.one.now))
        members = json.loads(self.two.status.document(b".members", TREE))
        self.assertEqual(members["nodelist"]["n1"], {"id": 1, "online": 1, "ip": "10.0.0.1"})
        self.assertEqual(members["cluster"]["quorate"], 0)
        self.assertEqual(json.loads(self.one.status.document(b".members", TREE))["cluster"]["quorate"], 1)
