"""Rows that are no tree, what a synchronisation commits, and foreign indexes."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pvecfs.tree.changes import Create, Delete, Write
from pvecfs.tree.entry import DT_DIR, DT_REG, Entry
from pvecfs.tree.errors import MalformedMessage, TreeDefect
from pvecfs.tree.index import Index
from pvecfs.tree.tree import Tree
from tests.trees import unreachable

ROOT = Entry(0, 0, 100, 1, 5, DT_DIR, b"")


def directory(inode: int, parent: int, name: bytes, data: bytes = b"") -> Entry:
    return Entry(inode, parent, inode, 1, 5, DT_DIR, name, data)


def file(inode: int, parent: int, name: bytes, data: bytes = b"") -> Entry:
    return Entry(inode, parent, inode, 1, 5, DT_REG, name, data)


class LoadTests(SynchronousTestCase):
    def rejected(self, *entries: Entry, names: bytes, root: Entry = ROOT) -> None:
        """The rows are no tree, in whatever order, and the message names the entry called C{names}."""
        (culprit,) = {(entry.inode, entry.parent, entry.name) for entry in entries if entry.name == names}
        for rows in (entries, entries[::-1]):
            error = self.assertRaises(TreeDefect, Tree.load, rows, root)
            self.assertIn("inode {}, parent {}, name {!r}".format(*culprit), str(error))

    def test_children_before_parents(self) -> None:
        tree = Tree.load([file(3, 2, b"x", b"1"), directory(2, 1, b"b"), directory(1, 0, b"a")], ROOT)
        entry = tree.lookup(b"a/b/x")
        assert entry is not None
        self.assertEqual((entry.data, tree.total_bytes, len(tree)), (b"1", 1, 4))

    def test_root_row_is_ignored_beyond_its_numbers(self) -> None:
        tree = Tree.load([], Entry(0, 9, 7, 2, 3, DT_REG, b"__version__", b"x"))
        self.assertEqual(tree.root, Entry(0, 0, 7, 2, 3, DT_DIR, b""))

    def test_bad_names(self) -> None:
        for name in (b"", b".", b"..", b"a/b", b"a\0b"):
            self.rejected(file(4, 0, name), names=name)

    def test_strange_names_that_are_none_of_our_business(self) -> None:
        names = [b"\xff\xfe", b"...", b"a b\n", b"x" * 300, b"__version__"]
        tree = Tree.load([file(n, 0, name) for n, name in enumerate(names, 1)], ROOT)
        self.assertEqual(len(tree), 6)

    def test_directory_with_data(self) -> None:
        self.rejected(directory(4, 0, b"d", b"data"), names=b"d")

    def test_unknown_type(self) -> None:
        for type in (0, 10, 255):
            self.rejected(Entry(4, 0, 4, 1, 5, type, b"link"), names=b"link")

    def test_parent_is_a_file(self) -> None:
        self.rejected(file(3, 0, b"f"), file(4, 3, b"x"), names=b"x")

    def test_parent_does_not_exist(self) -> None:
        self.rejected(file(4, 99, b"x"), names=b"x")

    def test_same_name_twice(self) -> None:
        entries = (file(4, 0, b"x"), directory(7, 0, b"x"))
        error = self.assertRaises(TreeDefect, Tree.load, entries, ROOT)
        self.assertIn("inode 7, parent 0, name b'x'", str(error))
        self.assertIn("inode 4", str(error))

    def test_same_inode_twice(self) -> None:
        self.assertRaises(TreeDefect, Tree.load, [file(4, 0, b"x"), file(4, 0, b"y")], ROOT)
        self.assertRaises(TreeDefect, Tree.load, [file(0, 0, b"x")], ROOT)
        self.assertRaises(TreeDefect, Tree.load, [], file(4, 0, b"x"))

    def test_numbers_out_of_range(self) -> None:
        for entry in (
            Entry(-4, 0, 4, 1, 5, DT_REG, b"x"),
            Entry(4, 0, -1, 1, 5, DT_REG, b"x"),
            Entry(4, 0, 4, 2**32, 5, DT_REG, b"x"),
            Entry(4, 0, 4, 1, -1, DT_REG, b"x"),
        ):
            self.rejected(entry, names=b"x")
        for root in (Entry(0, 0, -1, 0, 0, 4, b""), Entry(0, 0, 1, 2**32, 0, 4, b""), Entry(0, 0, 1, 0, -1, 4, b"")):
            self.assertRaises(TreeDefect, Tree.load, [], root)

    def test_two_configs_of_one_vm(self) -> None:
        nodes = (directory(1, 0, b"nodes"), directory(2, 1, b"n1"), directory(3, 1, b"n2"))
        kinds = (directory(4, 2, b"qemu-server"), directory(5, 3, b"lxc"))
        for rows in (
            (file(6, 4, b"100.conf"), file(7, 5, b"100.conf")),
            (file(6, 5, b"100.conf"), file(7, 4, b"100.conf")),
        ):
            error = self.assertRaises(TreeDefect, Tree.load, (*nodes, *kinds, *rows), ROOT)
            self.assertIn("VM 100", str(error))
            self.assertIn(f"inode 7, parent {rows[1].parent}, name b'100.conf'", str(error))

    def test_directories_in_a_ring_load(self) -> None:
        """Not in the list of what is refused; a foreign node can make one of them, and all nodes must start again."""
        ring = [directory(4, 5, b"a"), directory(5, 4, b"b")]
        tree = Tree.load(ring, ROOT)
        self.assertEqual(unreachable(tree), ring)
        self.assertIsNone(tree.path_of(4))


class ReplacedTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.tree = Tree.load([directory(1, 0, b"d"), file(2, 1, b"x", b"one"), file(3, 0, b"y", b"two")], ROOT)

    def test_becomes_the_leaders_tree(self) -> None:
        leader = self.tree
        for change in (Write(b"d/x", b"newer"), Delete(b"y"), Create(b"z")):
            leader = leader.apply(change, 2, 9).tree
        ours, theirs = Index.decode(self.tree.index()), Index.decode(leader.index())
        updated = [leader.entry(inode) for inode in theirs.differing(ours) if inode]
        after = self.tree.replaced(ours.differences(theirs)[0], [entry for entry in updated if entry], leader.root)
        self.assertEqual(after.index(), leader.index())
        self.assertEqual((after.total_bytes, len(after)), (leader.total_bytes, len(leader)))
        self.assertEqual(after.checksum(), leader.checksum())
        self.assertEqual(ours.differences(theirs)[0], [3])
        self.assertEqual(theirs.differing(ours), [0, 2, 103])

    def test_moves_and_swaps(self) -> None:
        """Names may clash on the way, only the result counts."""
        after = self.tree.replaced((), (file(2, 0, b"y", b"one"), file(3, 1, b"x", b"two")), None)
        found = [after.lookup(path) for path in (b"y", b"d/x")]
        self.assertEqual([entry.inode for entry in found if entry], [2, 3])
        self.assertIs(after.entry(1), self.tree.entry(1))

    def test_root(self) -> None:
        self.assertEqual(self.tree.replaced((), (), None).root, self.tree.root)
        root = Entry(0, 0, 7, 2, 3, DT_DIR, b"")
        self.assertEqual(self.tree.replaced((), (), root).root, root)

    def test_defects(self) -> None:
        before = self.tree.index()
        for deleted, updated in (
            ((1,), ()),
            ((), (file(9, 0, b"y"),)),
            ((), (file(1, 0, b"d"),)),
            ((), (Entry(9, 0, 9, 1, 1, 6, b"z"),)),
            ((), (file(0, 0, b"z"),)),
        ):
            self.assertRaises(TreeDefect, self.tree.replaced, deleted, updated, None)
        self.assertEqual(self.tree.index(), before)

    def test_unknown_deletions_do_nothing(self) -> None:
        self.assertEqual(self.tree.replaced((99,), (), None).index(), self.tree.index())

    def test_heals_what_a_hurt_leader_leaves(self) -> None:
        """10-tree.md's two deviations: a reference leader whose memory differs wins, and we become equal to it."""
        empty = self.tree.apply(Write(b"d/x", b"", 0, True), 1, 1).tree
        ours = empty.apply(Write(b"d/x", b"", 4, True), 1, 1).tree
        entry = ours.lookup(b"d/x")
        assert entry is not None
        theirs = Entry(entry.inode, 1, entry.version, 1, 1, DT_REG, b"x", b"\0\0?\0")
        self.assertEqual(ours.replaced((), (theirs,), ours.root).entry(2), theirs)


class IndexTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.tree = Tree.load([directory(1, 0, b"d"), file(300, 1, b"x", b"one")], ROOT)
        self.data = self.tree.index()

    def test_layout(self) -> None:
        self.assertEqual(struct.unpack_from("<QQIIII", self.data), (100, 300, 1, 5, 3, 32 + 3 * 40))
        digests = b"".join(struct.pack("<Q", entry.inode) + entry.digest() for entry in self.tree.entries())
        self.assertEqual(self.data[32:], digests)

    def test_empty_tree(self) -> None:
        self.assertEqual(struct.unpack_from("<QQIIII", Tree.new(8).index()), (1, 0, 0, 8, 1, 72))

    def test_round_trip(self) -> None:
        index = Index.decode(self.data)
        self.assertEqual(index.encode(), self.data)
        self.assertEqual(index, Index.decode(self.data))
        self.assertEqual(list(index.entries), [0, 1, 300])

    def malformed(self, data: bytes) -> None:
        self.assertRaises(MalformedMessage, Index.decode, data)

    def test_malformed(self) -> None:
        for length in (0, 1, 31):
            self.malformed(self.data[:length])
        self.malformed(self.data[:-1])
        self.malformed(self.data + b"\0")
        self.malformed(self.data[:-40])
        header = list(struct.unpack_from("<QQIIII", self.data))
        for size in (2, 4, 0, 0xFFFFFFFF):
            self.malformed(struct.pack("<QQIIII", *header[:4], size, len(self.data)) + self.data[32:])
        for total in (0, 32, len(self.data) + 40, 0xFFFFFFFF):
            self.malformed(struct.pack("<QQIIII", *header[:4], 3, total) + self.data[32:])

    def test_inodes_must_ascend(self) -> None:
        items = [self.data[32 + at * 40 : 72 + at * 40] for at in range(3)]
        for order in ((1, 0, 2), (0, 2, 1), (0, 1, 1)):
            self.malformed(self.data[:32] + b"".join(items[at] for at in order))

    def test_differences(self) -> None:
        ours = Index.decode(self.data)
        other = Index.decode(self.tree.apply(Create(b"new"), 1, 5).tree.index())
        self.assertEqual((ours.differing(other), ours.differences(other)), ([0], ([], [0])))
        self.assertEqual((other.differing(ours), other.differences(ours)), ([0, 101], ([101], [0])))

    @given(st.binary(max_size=200), st.booleans())
    def test_any_bytes(self, noise: bytes, headed: bool) -> None:
        """Whatever comes, it is decoded or refused, and what is decoded encodes to the same bytes."""
        data = struct.pack("<QQIIII", 1, 2, 3, 4, len(noise) // 40, 32 + len(noise)) + noise if headed else noise
        try:
            index = Index.decode(data)
        except MalformedMessage:
            return
        self.assertEqual(index.encode(), data)
