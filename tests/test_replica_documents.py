"""The status documents, against the reference's bytes."""

from __future__ import annotations

import json
import re

from hypothesis import given
from hypothesis import strategies as st
from immutables import Map
from twisted.trial.unittest import SynchronousTestCase

from pvecfs.replica.documents import (
    Documents,
    members_document,
    rrd_document,
    version_document,
    vmlist_document,
)
from pvecfs.replica.status import ClusterConfiguration, NodeInfo, NodeVersions, RrdLine, StatusSnapshot
from pvecfs.tree.changes import Create, Mkdir
from pvecfs.tree.counters import PATHS, Counters
from pvecfs.tree.paths import SPECIAL_FILES
from pvecfs.tree.quoting import escaped
from pvecfs.tree.tree import Tree
from pvecfs.tree.vmlist import VmEntry, VmList
from tests.replay import GOLDEN


class Vms:
    """A VM list as a test wants it."""

    def __init__(self, version: int, *vms: VmEntry) -> None:
        self.version = version
        self._vms = vms

    def items(self) -> tuple[VmEntry, ...]:
        return self._vms


class Counted:
    """What the documents read of a tree."""

    def __init__(self, vms: Vms | VmList, counters: Counters) -> None:
        self.vms = vms
        self.counters = counters


def tree_of(vms: Vms, counters: Counters | None = None) -> Tree:
    return Counted(vms, counters or Counters())  # type: ignore[return-value]  # as much of a tree as is read


EMPTY = tree_of(Vms(0))
NODES = tuple(NodeInfo(number, b"n%d" % number) for number in (1, 2, 3))
CONFIGURATION = ClusterConfiguration(b"labcluster", 1, NODES)


def addresses(*numbers: int) -> tuple[tuple[int, bytes], ...]:
    return tuple((number, b"10.99.0.%d" % number) for number in numbers)


def lines_of(*lines: RrdLine) -> Map[bytes, RrdLine]:
    return Map((line.key, line) for line in lines)


class VersionTests(SynchronousTestCase):
    def test_recorded(self) -> None:
        recorded = (GOLDEN / "status.version.n1").read_bytes()
        counts = dict(re.findall(rb'"([^"]+)": (\d+)', recorded))
        counters = Counters(tuple(int(counts[path]) for path in PATHS))
        status = StatusSnapshot(
            b"n1",
            1795332189,
            clinfo=9,
            versions=(NodeVersions(b"n1", ()), NodeVersions(b"n2", ((b"tasklist", 2),))),
        )
        self.assertEqual(version_document(tree_of(Vms(9), counters), status), recorded)

    def test_keys(self) -> None:
        status = StatusSnapshot(b"n1", 5, versions=(NodeVersions(b"n1", ((b"a", 0), (b'b"', 3))),))
        document = version_document(EMPTY, status)
        self.assertTrue(document.endswith(b'"kvstore": {\n"n1": {\n"a": 0,\n"b\\"": 3}\n}\n}\n'), document)
        self.assertEqual(json.loads(document)["kvstore"]["n1"], {"a": 0, 'b"': 3})

    @given(st.lists(st.tuples(st.binary(max_size=9), st.integers(0, 9)), max_size=3), st.binary(max_size=9))
    def test_always_json(self, versions: list[tuple[bytes, int]], node: bytes) -> None:
        status = StatusSnapshot(node, 5, versions=(NodeVersions(node, tuple(versions)),))
        json.loads(version_document(EMPTY, status))
        json.loads(members_document(EMPTY, status))


class EscapedTests(SynchronousTestCase):
    def test_characters(self) -> None:
        for with_del, shown in ((True, b"\\u007f"), (False, b"\x7f")):
            found = escaped(b'a"\\\n\x1f\x7f\xc3\xa9\xff', with_del)
            self.assertEqual(found, b'a\\"\\\\\\u000a\\u001f' + shown + b"\xc3\xa9\xff")

    @given(st.text(), st.booleans())
    def test_json(self, text: str, with_del: bool) -> None:
        encoded = text.encode("utf-8", "replace")
        self.assertEqual(json.loads(b'"%b"' % escaped(encoded, with_del)), encoded.decode())

    def test_del_in_special_files(self) -> None:
        status = StatusSnapshot(b"n\x7f", 5, versions=(NodeVersions(b"n\x7f", ((b"k\x7f", 1),)),))
        self.assertIn(b'"n\x7f": {\n"k\x7f": 1}', version_document(EMPTY, status))
        self.assertIn(b'"nodename": "n\x7f"', members_document(EMPTY, status))

    def test_not_utf8(self) -> None:
        status = StatusSnapshot(b'\xc3"\xff\\', 5, 2)
        self.assertEqual(json.loads(members_document(EMPTY, status))["nodename"], '\ufffd"\ufffd\\')


class MembersTests(SynchronousTestCase):
    def test_recorded(self) -> None:
        status = StatusSnapshot(b"n1", 5, 9, CONFIGURATION, True, frozenset({1, 2, 3}), addresses(1, 2, 3))
        self.assertEqual(members_document(EMPTY, status), (GOLDEN / "status.members.n1").read_bytes())

    def test_offline(self) -> None:
        two = ClusterConfiguration(b"labcluster", 1, NODES[1::-1])
        status = StatusSnapshot(b"n1", 5, 9, two, False, frozenset({1}), addresses(1))
        self.assertEqual(
            members_document(EMPTY, status).decode(),
            '{\n"nodename": "n1",\n"version": 9,\n'
            '"cluster": { "name": "labcluster", "version": 1, "nodes": 2, "quorate": 0 },\n'
            '"nodelist": {\n  "n1": { "id": 1, "online": 1, "ip": "10.99.0.1"},\n'
            '  "n2": { "id": 2, "online": 0}\n  }\n}\n',
        )

    def test_local(self) -> None:
        self.assertEqual(
            members_document(EMPTY, StatusSnapshot(b"n1", 5, 2)), b'{\n"nodename": "n1",\n"version": 2\n}\n'
        )


class VmListTests(SynchronousTestCase):
    def test_recorded(self) -> None:
        document = vmlist_document(tree_of(Vms(9, VmEntry(100, b"n2", "qemu", 7))), StatusSnapshot(b"n1", 5))
        self.assertEqual(document, (GOLDEN / "status.vmlist.n1").read_bytes())

    def test_two(self) -> None:
        vms = Vms(9, VmEntry(100, b"n2", "qemu", 4), VmEntry(101, b"n1", "lxc", 5))
        self.assertEqual(
            vmlist_document(tree_of(vms), StatusSnapshot(b"n1", 5)).decode(),
            '{\n"version": 9,\n"ids": {\n"100": { "node": "n2", "type": "qemu", "version": 4 },\n'
            '"101": { "node": "n1", "type": "lxc", "version": 5 }}\n\n}\n',
        )

    def test_none(self) -> None:
        self.assertEqual(vmlist_document(tree_of(Vms(9)), StatusSnapshot(b"n1", 5)), b'{\n"version": 9\n\n}\n')


class RrdTests(SynchronousTestCase):
    def test_live_lines(self) -> None:
        lines = lines_of(RrdLine(b"pve2.3-vm/100", b"4:5", 150.0), RrdLine(b"pve2-node/n1", b"1:2:3", 100.0))
        status = StatusSnapshot(b"n1", 5, rrd=lines)
        self.assertEqual(rrd_document(status, 400.0), b"pve2-node/n1:1:2:3\npve2.3-vm/100:4:5\n")
        self.assertEqual(rrd_document(status, 400.5), b"pve2.3-vm/100:4:5\n")
        self.assertEqual(rrd_document(status, 451.0), b"")


class DocumentsTests(SynchronousTestCase):
    def test_made_once_for_the_same_inputs(self) -> None:
        documents = Documents()
        tree, status = Tree.new(5), StatusSnapshot(b"n1", 5)
        for name in (b".version", b".members", b".vmlist", b".clusterlog"):
            first = documents.document(name, tree, status, 1.0)
            self.assertIs(documents.document(name, tree, status, 9.0), first)
            json.loads(first)

    def test_follows_its_inputs(self) -> None:
        documents = Documents()
        tree, status = Tree.new(5), StatusSnapshot(b"n1", 5)
        for change in (Create(b"user.cfg"), Mkdir(b"nodes"), Mkdir(b"nodes/n1"), Mkdir(b"nodes/n1/lxc")):
            tree = tree.apply(change, 0, 6).tree
        before = documents.document(b".version", tree, status, 1.0)
        self.assertEqual(json.loads(before)["user.cfg"], 2)
        later = tree.apply(Create(b"nodes/n1/lxc/100.conf"), 0, 7).tree
        self.assertIn(b'"100": { "node": "n1", "type": "lxc"', documents.document(b".vmlist", later, status, 1.0))
        self.assertNotIn(b'"100"', documents.document(b".vmlist", tree, status, 1.0))
        other = StatusSnapshot(b"n1", 5, clinfo=4)
        self.assertEqual(json.loads(documents.document(b".version", later, other, 1.0))["clinfo"], 4)

    def test_rrd_ages(self) -> None:
        documents = Documents()
        status = StatusSnapshot(b"n1", 5, rrd=lines_of(RrdLine(b"k", b"v", 0.0)))
        tree = Tree.new(5)
        self.assertEqual(documents.document(b".rrd", tree, status, 1.0), b"k:v\n")
        self.assertEqual(documents.document(b".rrd", tree, status, 301.0), b"")

    def test_all(self) -> None:
        """Every special file but C{.debug}, which is the node's own."""
        for name in set(SPECIAL_FILES) - {b".debug"}:
            self.assertIsInstance(Documents().document(name, Tree.new(5), StatusSnapshot(b"n1", 5), 1.0), bytes)

    def test_unknown(self) -> None:
        with self.assertRaises(KeyError):
            Documents().document(b".debug", Tree.new(5), StatusSnapshot(b"n1", 5), 1.0)
