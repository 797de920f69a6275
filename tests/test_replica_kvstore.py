"""The status replica: values, versions, addresses, RRD lines, what is sent, and the recorded runs."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable, Sequence

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pvecfs.replica.application import GroupApplication
from pvecfs.replica.clusterlog import LogEntry, decode_ring
from pvecfs.replica.documents import members_document, version_document
from pvecfs.replica.effects import Effect, Log, PublishStatus, RoundRobinUpdate, Send
from pvecfs.replica.kvstore import MAX_REMOVED, MAX_VALUE, StatusReplica
from pvecfs.replica.machine import Mode
from pvecfs.replica.member import Instant, Member
from pvecfs.replica.messages import Normal, State, StatusSubtype, ValuePayload
from pvecfs.replica.status import ClusterConfiguration, NodeInfo
from pvecfs.tree.errors import OperationError
from pvecfs.tree.tree import Tree
from tests.replay import GOLDEN, RUN, Conversation, Process, comparable, trace
from tests.test_replica_golden import story
from tests.wire import decode

KVSTORE = "pve_kvstore_v1"
NOW = Instant(1000, 50.0)
NODES = tuple(NodeInfo(number, b"n%d" % number) for number in (1, 2, 3))
CONFIGURATION = ClusterConfiguration(b"lab", 1, NODES)
N1, N2, N3, N2_AGAIN = Member(1, 10), Member(2, 20), Member(3, 30), Member(2, 21)


def sent(effects: Iterable[Effect]) -> list[tuple[bytes, bytes]]:
    """Keys and values that are sent."""
    values = [
        ValuePayload.decode(effect.payload)
        for effect in effects
        if isinstance(effect, Send) and effect.subtype == StatusSubtype.UPDATE
    ]
    return [(value.key, value.value) for value in values]


def update(key: bytes, value: bytes) -> Normal:
    return Normal(0, 1000, StatusSubtype.UPDATE, 1, ValuePayload(key, value).encode())


def log(payload: bytes) -> Normal:
    return Normal(0, 1000, StatusSubtype.LOG, 1, payload)


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.replica = StatusReplica(b"n1", 77, 900, b"10.0.0.1")
        self.replica.begin(NOW)

    def in_cluster(self, *members: Member) -> None:
        self.replica.configuration_read(CONFIGURATION)
        self.changed(*members or (N1, N2, N3))

    def changed(self, *members: Member) -> Sequence[Effect]:
        return self.replica.membership_changed(members, (), (), NOW)

    def deliver(self, message: Normal, sender: Member = N2, now: Instant = NOW) -> Sequence[Effect]:
        return self.replica.deliver(message, sender, sender == N1, False, now)

    def versions(self) -> dict[str, dict[str, int]]:
        document = json.loads(version_document(Tree.new(1), self.replica.snapshot))
        versions: dict[str, dict[str, int]] = document["kvstore"]
        return versions

    def members(self) -> dict[str, dict[str, object]]:
        document = json.loads(members_document(Tree.new(1), self.replica.snapshot))
        nodes: dict[str, dict[str, object]] = document["nodelist"]
        return nodes

    def assert_refused(self, number: int, key: bytes, value: bytes) -> None:
        before = self.replica.snapshot
        with self.assertRaises(OperationError) as caught:
            self.replica.set_value(key, value, NOW)
        self.assertEqual(caught.exception.errno, number)
        self.assertIs(self.replica.snapshot, before)

    def assert_no_value(self, key: bytes, node: bytes = b"") -> None:
        with self.assertRaises(OperationError) as caught:
            self.replica.value(key, node)
        self.assertEqual(caught.exception.errno, errno.ENOENT)


class OwnValues(Case):
    def test_is_an_application(self) -> None:
        application: GroupApplication = self.replica
        self.assertEqual((application.group_name, application.protocol_version), (KVSTORE, 0))
        self.assertFalse(application.verified)

    def test_set_read_remove(self) -> None:
        effects = self.replica.set_value(b"tasklist", b"[]", NOW)
        self.assertEqual(sent(effects), [(b"tasklist", b"[]")])
        self.assertEqual(effects[-1], PublishStatus(self.replica.snapshot))
        self.assertEqual(self.replica.value(b"tasklist", b""), b"[]")
        self.assertEqual(self.replica.value(b"tasklist", b"n1"), b"[]")
        self.assertEqual(self.versions(), {"n1": {"tasklist": 0}})
        self.replica.set_value(b"tasklist", b"[1]", NOW)
        self.replica.set_value(b"tasklist", b"[1]", NOW)
        self.assertEqual(self.versions(), {"n1": {"tasklist": 2}})
        self.assertEqual(sent(self.replica.set_value(b"tasklist", b"", NOW)), [(b"tasklist", b"")])
        self.assert_no_value(b"tasklist")
        self.assertEqual(self.versions(), {"n1": {}})
        self.replica.set_value(b"tasklist", b"x", NOW)
        self.assertEqual(self.versions(), {"n1": {"tasklist": 0}})

    def test_limits(self) -> None:
        self.replica.set_value(b"big", b"x" * MAX_VALUE, NOW)
        self.assert_refused(errno.EFBIG, b"big", b"x" * (MAX_VALUE + 1))
        self.assert_refused(errno.EFBIG, b"rrd/x", b"x" * (MAX_VALUE + 1))
        self.assert_refused(errno.EINVAL, b"k" * 256, b"x")
        self.assert_refused(errno.EINVAL, b"k\0l", b"x")
        self.replica.set_value(b"k" * 255, b"x", NOW)

    def test_address(self) -> None:
        self.in_cluster(N1)
        clinfo = self.replica.snapshot.clinfo
        self.assertEqual(sent(self.replica.became_synced(NOW)), [(b"nodeip", b"10.0.0.1\0")])
        self.assertEqual(self.replica.snapshot.clinfo, clinfo + 1)
        self.assertEqual(self.members()["n1"], {"id": 1, "online": 1, "ip": "10.0.0.1"})
        self.replica.became_synced(NOW)
        self.assertEqual(self.replica.snapshot.clinfo, clinfo + 1)
        self.assertEqual(sent(self.replica.set_value(b"nodeip", b"10.0.0.9\0", NOW)), [(b"nodeip", b"10.0.0.9\0")])
        self.assertEqual(self.replica.snapshot.clinfo, clinfo + 2)
        self.assertEqual(sent(self.replica.became_synced(NOW)), [(b"nodeip", b"10.0.0.9\0")])
        self.assertEqual(self.members()["n1"]["ip"], "10.0.0.9")
        self.assert_no_value(b"nodeip")

    def test_malformed_addresses(self) -> None:
        for value in (b"", b"10.0.0.1", b"x" * 255 + b"\0"):
            self.assert_refused(errno.ENOMEM, b"nodeip", value)
        self.replica.set_value(b"nodeip", b"x" * 254 + b"\0", NOW)

    def test_rrd(self) -> None:
        effects = self.replica.set_value(b"rrd/pve2-node/n1", b"1:2:3\0", NOW)
        self.assertEqual(sent(effects), [(b"rrd/pve2-node/n1", b"1:2:3\0")])
        self.assertIn(RoundRobinUpdate(b"pve2-node/n1", b"1:2:3"), effects)
        (line,) = self.replica.snapshot.rrd.values()
        self.assertEqual((line.key, line.value, line.arrived), (b"pve2-node/n1", b"1:2:3", 50.0))
        self.assert_no_value(b"rrd/pve2-node/n1")
        self.assertEqual(self.versions(), {"n1": {}})

    def test_malformed_rrd(self) -> None:
        for value in (b"", b"1:2:3", b"x" * 4095 + b"\0"):
            self.assert_refused(errno.ENOMEM, b"rrd/x", value)
        self.replica.set_value(b"rrd/x", b"x" * 4094 + b"\0", NOW)

    def test_rrd_lines_by_key_and_old_ones_are_forgotten(self) -> None:
        for second, key in ((0, b"rrd/c"), (1, b"rrd/a"), (2, b"rrd/b"), (302, b"rrd/a")):
            self.replica.set_value(key, b"1\0", Instant(1000, float(second)))
        self.assertEqual(sorted(self.replica.snapshot.rrd), [b"a", b"b"])

    def test_local_mode(self) -> None:
        """Without a cluster the documents have what there is."""
        self.assertEqual(
            members_document(Tree.new(1), self.replica.snapshot), b'{\n"nodename": "n1",\n"version": 0\n}\n'
        )
        self.assertEqual(self.versions(), {"n1": {}})


class OwnLog(Case):
    def test_start(self) -> None:
        (first,) = json.loads(self.replica.log_document(0, b""))["data"]
        self.assertEqual(
            first,
            {
                "uid": 1, "time": 1000, "pri": 6, "tag": "cluster", "pid": 77, "node": "n1", "user": "root",
                "msg": "starting cluster log",
            },
        )  # fmt: skip

    def test_log(self) -> None:
        effects = self.replica.log(4, b"root@pam", b"tag", b'a "b"', 99, NOW)
        (payload,) = [effect.payload for effect in effects if isinstance(effect, Send)]
        entry = LogEntry.decode(payload)
        self.assertEqual((entry.uid, entry.pid, entry.priority, entry.message), (2, 99, 4, rb"a \"b\""))
        self.assertEqual(self.replica.snapshot.log[0], entry)

    def test_unknown_priority(self) -> None:
        self.assertEqual(self.replica.log(8, b"r", b"t", b"m", 9, NOW), ())
        self.assertEqual(len(self.replica.snapshot.log), 1)

    def test_clock_set_back(self) -> None:
        """Everyone drops an entry that is older than its node's newest: ours never are."""
        self.replica.log(4, b"r", b"t", b"m", 99, Instant(500, 51.0))
        self.assertEqual([(entry.time, entry.uid) for entry in self.replica.snapshot.log], [(1000, 2), (1000, 1)])

    def test_restart_within_a_second(self) -> None:
        """The group knows later entries of our node's earlier process."""
        earlier = [LogEntry.written(uid, 1000, b"n1", b"r", b"t", b"m", 1, 6) for uid in (9, 8)]
        other = StatusReplica(b"n2", 1, 1, b"")
        for entry in reversed(earlier):
            other.deliver(log(entry.encode()), N1, False, False, NOW)
        self.replica.states_collected({N1: self.replica.state(), N2: other.state()}, N1, NOW)
        effects = self.replica.log(4, b"r", b"t", b"new", 99, NOW)
        self.assertEqual(self.replica.snapshot.log[0].message, b"new")
        (payload,) = [effect.payload for effect in effects if isinstance(effect, Send)]
        self.assertTrue(other.deliver(log(payload), N1, False, False, NOW))

    def test_limit_of_a_document(self) -> None:
        for _ in range(70):
            self.replica.log(4, b"r", b"t", b"m", 99, NOW)
        for asked, given_ in ((0, 50), (3, 3), (1000, 71)):
            self.assertEqual(len(json.loads(self.replica.log_document(asked, b""))["data"]), given_)
        self.assertEqual(len(self.replica.snapshot.log), 50)


class OthersValues(Case):
    def test_values_and_versions(self) -> None:
        self.in_cluster()
        for value in (b"a", b"b"):
            self.assertEqual(self.deliver(update(b"k", value)), (PublishStatus(self.replica.snapshot),))
        self.assertEqual(self.replica.value(b"k", b"n2"), b"b")
        self.assert_no_value(b"k")
        self.assert_no_value(b"k", b"n3")
        self.assert_no_value(b"k", b"unknown")
        self.assertEqual(self.versions(), {"n1": {}, "n2": {"k": 1}})
        self.deliver(update(b"k", b""))
        self.assert_no_value(b"k", b"n2")
        self.assertEqual(self.versions(), {"n1": {}, "n2": {}})  # still listed

    def test_order_of_nodes(self) -> None:
        self.in_cluster()
        self.deliver(update(b"k", b"x"), N3)
        self.deliver(update(b"k", b"x"), N2)
        self.assertEqual(list(self.versions()), ["n1", "n2", "n3"])

    def test_removal_of_nothing(self) -> None:
        self.in_cluster()
        self.assertEqual(self.deliver(update(b"k", b"")), ())
        self.assertEqual(self.versions(), {"n1": {}})

    def test_our_own_come_back(self) -> None:
        self.in_cluster()
        self.replica.set_value(b"k", b"x", NOW)
        self.assertEqual(self.deliver(update(b"k", b"old"), N1), ())
        self.assertEqual(self.deliver(update(b"k", b"older"), Member(1, 9)), ())
        self.assertEqual(self.replica.value(b"k", b""), b"x")

    def test_unknown_nodes_are_ignored(self) -> None:
        self.in_cluster()
        before = self.replica.snapshot.clinfo, self.members()
        for change in update(b"k", b"x"), update(b"nodeip", b"x\0"), update(b"rrd/a", b"x\0"):
            self.deliver(change, Member(9, 9))
        self.assertEqual(self.versions(), {"n1": {}})
        self.assertEqual((self.replica.snapshot.clinfo, self.members()), before)
        self.assertEqual(len(self.replica.snapshot.rrd), 0)
        self.replica.configuration_read(CONFIGURATION)
        self.assertEqual(self.replica.snapshot.addresses, ())

    def test_values_before_the_new_configuration(self) -> None:
        """A node is added, and heard of sooner than the new node list is read."""
        self.in_cluster()
        self.deliver(update(b"k", b"x"), Member(9, 9))
        self.deliver(update(b"nodeip", b"10.0.0.9\0"), Member(9, 9))
        nodes = (*CONFIGURATION.nodes, NodeInfo(9, b"n9"))
        self.replica.configuration_read(ClusterConfiguration(b"lab", 2, nodes))
        self.assertEqual(self.replica.value(b"k", b"n9"), b"x")
        self.assertEqual(self.members()["n9"]["ip"], "10.0.0.9")

    def test_values_before_the_configuration(self) -> None:
        """The group can be joined before the node list was read: what the others tell then, they tell only once."""
        self.changed(N1, N2, N3, Member(9, 9))
        for member in N2, Member(9, 9):
            self.deliver(update(b"k", b"x"), member)
            self.deliver(update(b"nodeip", b"10.0.0.2\0"), member)
        self.assertEqual(self.versions(), {"n1": {}})
        self.assert_no_value(b"k", b"n2")
        self.replica.configuration_read(CONFIGURATION)
        self.assertEqual(self.replica.value(b"k", b"n2"), b"x")
        self.assertEqual(self.versions(), {"n1": {}, "n2": {"k": 0}})
        self.assertEqual(self.members()["n2"], {"id": 2, "online": 1, "ip": "10.0.0.2"})
        self.assertEqual(self.replica.snapshot.addresses, ((2, b"10.0.0.2"),))

    def test_addresses(self) -> None:
        self.in_cluster()
        clinfo = self.replica.snapshot.clinfo
        self.deliver(update(b"nodeip", b"10.0.0.2\0"))
        self.assertEqual(self.members()["n2"], {"id": 2, "online": 1, "ip": "10.0.0.2"})
        self.assertEqual(self.replica.snapshot.clinfo, clinfo + 1)
        self.assertEqual(self.deliver(update(b"nodeip", b"10.0.0.2\0")), ())
        self.assertEqual(self.replica.snapshot.clinfo, clinfo + 1)
        self.assert_no_value(b"nodeip", b"n2")

    def test_rrd(self) -> None:
        self.in_cluster()
        effects = self.deliver(update(b"rrd/pve2-node/n2", b"1:2\0"))
        self.assertEqual(effects[0], RoundRobinUpdate(b"pve2-node/n2", b"1:2"))
        self.assertEqual(list(self.replica.snapshot.rrd), [b"pve2-node/n2"])

    def test_what_could_not_be_set_is_dropped(self) -> None:
        self.in_cluster()
        before = self.replica.snapshot
        for key, value in (
            (b"nodeip", b""), (b"nodeip", b"10.0.0.2"), (b"nodeip", b"x" * 255 + b"\0"),
            (b"rrd/a", b""), (b"rrd/a", b"1"), (b"rrd/a", b"x" * 4095 + b"\0"),
        ):  # fmt: skip
            self.assertEqual(self.deliver(update(key, value)), ())
        (line,) = self.deliver(update(b"k", b"x" * (MAX_VALUE + 1)))
        self.assertIsInstance(line, Log)
        self.assertIs(self.replica.snapshot, before)

    def test_malformed_messages_leave_a_log_line(self) -> None:
        self.in_cluster()
        for message in (
            Normal(0, 1, StatusSubtype.UPDATE, 1, b"short"),
            Normal(0, 1, StatusSubtype.UPDATE, 1, b"k" * 256),
            log(b""),
            log(LogEntry.written(1, 2, b"n2", b"r", b"t", b"m", 3, 4).encode() + b"x"),
            Normal(0, 1, 2, 1, b""),
            Normal(0, 1, 99, 1, b"x"),
        ):
            (line,) = self.deliver(message)
            self.assertIsInstance(line, Log)

    @given(st.integers(0, 5), st.binary(max_size=400))
    def test_random_messages(self, subtype: int, payload: bytes) -> None:
        self.setUp()
        self.in_cluster()
        self.deliver(Normal(0, 1, subtype, 1, payload))

    def test_log_of_others(self) -> None:
        self.in_cluster()
        entry = LogEntry.written(5, 2, b"n2", b"r", b"t", b"m", 3, 4)
        self.assertEqual(self.deliver(log(entry.encode())), (PublishStatus(self.replica.snapshot),))
        self.assertEqual(self.replica.snapshot.log[0], entry)
        self.assertEqual(self.deliver(log(entry.encode())), ())


class Membership(Case):
    def test_clinfo(self) -> None:
        self.changed(N1)
        self.assertEqual(self.replica.snapshot.clinfo, 0)  # the node list is not known
        self.replica.configuration_read(CONFIGURATION)
        self.assertEqual(self.replica.snapshot.clinfo, 1)
        self.changed(N1, N2)
        self.changed(N1, N2)
        self.assertEqual(self.replica.snapshot.clinfo, 3)
        self.replica.configuration_read(CONFIGURATION)
        self.assertEqual(self.replica.snapshot.clinfo, 4)
        self.replica.quorum_changed(True)
        self.assertEqual(self.replica.snapshot.clinfo, 4)
        self.assertTrue(self.replica.snapshot.quorate)

    def test_recorded_clinfo(self) -> None:
        """n1's version in the recorded story: 9."""
        self.in_cluster(N1)
        self.replica.became_synced(NOW)
        for members in ((N1, N2), (N1, N2, N3), (N1, N2), (N1, N2, Member(3, 31))):
            self.changed(*members)
            self.replica.became_synced(NOW)
            for member in members[1:]:
                self.deliver(update(b"nodeip", b"10.0.0.%d\0" % member.node_id), member)
        self.assertEqual(self.replica.snapshot.clinfo, 9)

    def test_online(self) -> None:
        self.in_cluster()
        self.changed(N1, N3)
        self.assertEqual({name: node["online"] for name, node in self.members().items()}, {"n1": 1, "n2": 0, "n3": 1})

    def test_values_outlive_a_partition(self) -> None:
        self.in_cluster()
        self.deliver(update(b"k", b"x"))
        self.changed(N1, N3)
        self.assertEqual(self.replica.value(b"k", b"n2"), b"x")
        self.changed(N1, N2, N3)
        self.assertEqual(self.replica.value(b"k", b"n2"), b"x")

    def test_values_outlive_the_process(self) -> None:
        """A restarted node's values stay until it sets them again; versions go on counting."""
        self.in_cluster()
        self.deliver(update(b"k", b"x"))
        self.deliver(update(b"gone", b"x"))
        self.changed(N1, N3)
        self.changed(N1, N2_AGAIN, N3)
        self.assertEqual(self.replica.value(b"k", b"n2"), b"x")
        self.deliver(update(b"k", b"y"), N2_AGAIN)
        self.deliver(update(b"gone", b""), N2_AGAIN)
        self.assertEqual(self.replica.value(b"k", b"n2"), b"y")
        self.assertEqual(self.versions()["n2"], {"k": 1})

    def test_configuration_change(self) -> None:
        """Nodes that remain keep values, addresses and online flags; the others are forgotten."""
        self.in_cluster()
        for member in (N2, N3):
            self.deliver(update(b"k", b"x"), member)
            self.deliver(update(b"nodeip", b"a\0"), member)
        self.replica.configuration_read(ClusterConfiguration(b"lab", 2, (NodeInfo(1, b"n1"), NodeInfo(2, b"two"))))
        self.assertEqual(self.replica.value(b"k", b"two"), b"x")
        self.assert_no_value(b"k", b"n3")
        self.assertEqual(self.members(), {"n1": {"id": 1, "online": 1}, "two": {"id": 2, "online": 1, "ip": "a"}})
        self.replica.configuration_read(CONFIGURATION)
        self.assert_no_value(b"k", b"n3")

    def test_states(self) -> None:
        """Everyone is synced; the logs are merged; our values are sent again, then our address."""
        self.in_cluster()
        self.replica.set_value(b"b", b"1", NOW)
        self.replica.set_value(b"a", b"2", NOW)
        self.replica.set_value(b"rrd/x", b"2\0", NOW)
        other = StatusReplica(b"n2", 5, 1, b"")
        other.begin(Instant(990, 1.0))
        states = {N1: self.replica.state(), N2: other.state(), N3: b"\0" * 8}
        verdict = self.replica.states_collected(states, N1, NOW)
        self.assertEqual((verdict.synced, verdict.updates, verdict.receiver), (frozenset({N1, N2, N3}), None, None))
        self.assertEqual(sent(verdict.effects), [(b"b", b"1"), (b"a", b"2")])
        (line,) = [effect for effect in verdict.effects if isinstance(effect, Log)]
        self.assertIn("3/30", line.text)
        self.assertEqual([entry.node for entry in self.replica.snapshot.log], [b"n1", b"n2"])
        self.assertEqual(sent(self.replica.became_synced(NOW)), [(b"nodeip", b"10.0.0.1\0")])

    def test_states_after_removals(self) -> None:
        """Who was cut off when a key was removed learns it; also of a key that a former process of this node had."""
        self.in_cluster()
        self.replica.set_value(b"a", b"1", NOW)
        self.replica.set_value(b"b", b"2", NOW)
        for key in (b"b", b"former", b"c", b"a"):
            self.replica.set_value(key, b"", NOW)
        self.replica.set_value(b"c", b"3", NOW)
        verdict = self.replica.states_collected({N1: self.replica.state()}, N1, NOW)
        self.assertEqual(sent(verdict.effects), [(b"c", b"3"), (b"b", b""), (b"former", b""), (b"a", b"")])

    def test_remembered_removals(self) -> None:
        """They are limited in number."""
        self.in_cluster()
        for number in range(MAX_REMOVED + 3):
            self.replica.set_value(b"%d" % number, b"", NOW)
        verdict = self.replica.states_collected({N1: self.replica.state()}, N1, NOW)
        self.assertEqual(
            [key for key, _ in sent(verdict.effects)], [b"%d" % (number + 3) for number in range(MAX_REMOVED)]
        )

    def test_node_id_of_corosync_counts(self) -> None:
        """Our name in the node list may be another than the one we go by."""
        self.replica.configuration_read(ClusterConfiguration(b"lab", 1, (NodeInfo(1, b"10.9.9.9"), NodeInfo(2, b"n2"))))
        self.changed(N1, N2)
        self.replica.set_value(b"k", b"x", NOW)
        self.replica.became_synced(NOW)
        self.deliver(update(b"nodeip", b"10.0.0.1\0"), N1)
        self.replica.quorum_changed(True)
        self.assertEqual(self.members()["10.9.9.9"]["ip"], "10.0.0.1")
        self.assertEqual(self.replica.value(b"k", b"10.9.9.9"), b"x")


class RecordedRun(SynchronousTestCase):
    """Our replica in the place of each recorded process: the same states, rings byte for byte, the same values."""

    def replay(self, name: str, node_id: int, was_alone: bool = False) -> StatusReplica:
        records = list(trace(RUN / f"{name}.trace.xz"))
        messages = [decode(record.data) for record in records if record.kind == "S" and record.group == KVSTORE]
        own_name = b"n%d" % node_id
        # Its start: the entry with which it began.
        states = [message.payload for message in messages if isinstance(message, State)]
        start = next(entry for entry in reversed(decode_ring(states[0])[0]) if entry.node == own_name)
        replica = StatusReplica(own_name, start.pid, start.time, b"10.99.0.%d" % node_id)
        conversation = Conversation(replica)
        conversation.carry_out(replica.begin(Instant(start.time, 0.0)))
        conversation.carry_out(replica.configuration_read(CONFIGURATION))
        logged: list[LogEntry] = []

        def sent_by_process(group: str, message: Normal, now: Instant) -> None:
            """What a program asked the process for, it asks ours for."""
            if group == KVSTORE and message.subtype == StatusSubtype.LOG:
                entry = LogEntry.decode(message.payload)
                logged.append(entry)
                text = entry.message.replace(b'\\"', b'"')
                then = Instant(entry.time, 0.0)
                effects = replica.log(entry.priority, entry.ident, entry.tag, text, entry.pid, then)
                (ours,) = [effect.payload for effect in effects if isinstance(effect, Send)]
                self.assertEqual(ours[:-4], message.payload[:-4])
                machine = conversation.machine
                conversation.carry_out(
                    [machine.submit(e.subtype, e.payload, now)[1] if isinstance(e, Send) else e for e in effects]
                )

        Process(node_id, {KVSTORE: conversation}, sent=sent_by_process).replay(records)
        self.assertIs(conversation.machine.mode, Mode.SYNCED)
        self.assertEqual(conversation.troubles, [])
        ours, theirs = comparable(conversation.ours), comparable(conversation.theirs)
        self.assertEqual([message[:3] for message in ours], [message[:3] for message in theirs])
        for our, their in zip(ours, theirs, strict=True):
            self.assert_equal_rings(our[3], their[3], exactly=not logged)
        keys = [ValuePayload.decode(m.payload).key for m in conversation.our_normals if m.subtype == 1]
        their_keys = [ValuePayload.decode(m.payload).key for m in messages if isinstance(m, Normal) and m.subtype == 1]
        if was_alone:  # what is published then, nobody hears
            keys, their_keys = sorted(set(keys)), sorted(set(their_keys))
        self.assertEqual(keys, their_keys)
        return replica

    def assert_equal_rings(self, ours: object, theirs: object, exactly: bool) -> None:
        """The trailers of entries mean nothing: the process's own are its memory, ours zero; all else is equal."""
        assert isinstance(ours, bytes)
        assert isinstance(theirs, bytes)
        if exactly:
            self.assertTrue(ours == theirs, "the rings differ")
        self.assertEqual(decode_ring(ours), decode_ring(theirs))
        self.assertEqual((len(ours), ours[:8]), (len(theirs), theirs[:8]))

    def test_n1_first(self) -> None:
        self.replay("n1.1", 1)

    def test_n1_second(self) -> None:
        """Its log at the end is the recorded document's."""
        replica = self.replay("n1.2", 1)
        recorded = (RUN / "clusterlog.n1.json").read_bytes().replace(b"back\\slash", b"back\\\\slash")
        self.assertEqual(replica.log_document(0, b""), recorded)

    def test_n2(self) -> None:
        for name in ("n2.1", "n2.2", "n2.3"):
            self.replay(name, 2)

    def test_n3(self) -> None:
        """The one that logged 1,502 entries."""
        self.replay("n3.1", 3, was_alone=True)


class RecordedStory(SynchronousTestCase):
    def test_kvstore_version(self) -> None:
        """C{.version} at the story's end: n2's task list was set once and sent again twice."""
        replica = StatusReplica(b"n1", 1, 1, b"10.99.0.1")
        replica.configuration_read(CONFIGURATION)
        replica.membership_changed((N1, N2), (), (), NOW)
        for recorded in story():
            if recorded.group == KVSTORE and recorded.sender == "n2":
                message = decode(recorded.data)
                if isinstance(message, Normal):
                    replica.deliver(message, N2, False, False, NOW)
        replica.quorum_changed(True)
        document = version_document(Tree.new(1), replica.snapshot)
        recorded_document = (GOLDEN / "status.version.n1").read_bytes()
        self.assertEqual(
            document[document.index(b'"kvstore"') :], recorded_document[recorded_document.index(b'"kvstore"') :]
        )
