"""What a synchronisation makes of a tree, and the index that is patched: against the same made from nothing."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import ClassVar

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from immutables import Map
from twisted.trial.unittest import SynchronousTestCase

from pvecfs.tree import index as index_module
from pvecfs.tree.changes import Change, Create, Delete, Mkdir, Rename, SetMtime, Write
from pvecfs.tree.defects import connect
from pvecfs.tree.entry import DT_DIR, DT_REG, ROOT_INODE, Entry
from pvecfs.tree.errors import OperationError, TreeDefect
from pvecfs.tree.index import Index
from pvecfs.tree.tree import Tree
from pvecfs.tree.vmlist import VmList, find_configs
from tests.trees import unreachable

ROOT = Entry(0, 0, 100, 1, 5, DT_DIR, b"")
NAMES = (b"nodes", b"n1", b"n-2", b"qemu-server", b"lxc", b"100.conf", b"101.conf", b"a", b"b")
DIGITS = re.compile("[0-9]+")

entries = st.builds(
    Entry,
    st.integers(1, 14),
    st.integers(0, 15),
    st.integers(1, 9),
    st.just(1),
    st.just(5),
    st.sampled_from((DT_DIR, DT_DIR, DT_REG)),
    st.sampled_from(NAMES),
)
strange = st.builds(
    Entry,
    st.integers(-1, 14),
    st.integers(-1, 15),
    st.sampled_from((1, -1, 2**64)),
    st.sampled_from((1, 2**32)),
    st.sampled_from((5, -1)),
    st.sampled_from((DT_DIR, DT_REG, 6)),
    st.sampled_from((*NAMES, b"", b"..", b"a/b", b"a\0")),
    st.sampled_from((b"", b"data")),
)


def with_data(entry: Entry, data: bytes) -> Entry:
    return Entry(entry.inode, entry.parent, entry.version, 1, 5, entry.type, entry.name, data)


def sound(rows: Iterable[Entry]) -> Tree:
    """The tree of as many of C{rows} as make one."""
    kept: dict[int, Entry] = {}
    for entry in rows:
        kept[entry.inode] = with_data(entry, b"x" * entry.version if entry.type == DT_REG else b"")
    while True:
        _, defects = connect(kept)
        for defect in defects:
            kept.pop(defect.entry.inode, None)
        if not defects:
            return Tree.new(5).replaced((), kept.values(), ROOT)


class Reference:
    """All of a tree made from all its rows."""

    def __init__(self, tree: Tree, deleted: Iterable[int], updated: Iterable[Entry]) -> None:
        """@raise TreeDefect: as L{Tree.replaced} has to."""
        rows = dict(tree._entries)
        for inode in deleted:
            rows.pop(inode, None)
        for entry in updated:
            if entry.inode == ROOT_INODE:
                raise TreeDefect(f"a root among the entries: parent {entry.parent}, name {entry.name!r}")
            rows[entry.inode] = entry
        rows = dict(sorted(rows.items()))
        children, defects = connect(rows)
        if defects:
            raise TreeDefect(str(min(defects, key=lambda defect: defect.entry.inode)))
        self.entries = rows
        self.children = {inode: Map(names) for inode, names in children.items()}
        self.total_bytes = sum(len(entry.data) for entry in rows.values())
        self.vms = tree.vms.rebuilt(find_configs(rows, children))
        self.counters = tree.counters.loaded().items()


def index_of(tree: Tree) -> bytes:
    """The index, made from nothing."""
    items = b"".join(
        struct.pack("<Q", entry.inode) + Entry(*(getattr(entry, name) for name in FIELDS)).digest()
        for entry in tree.entries()
    )
    return Index.of(tree.root, items).encode()


FIELDS = ("inode", "parent", "version", "writer", "mtime", "type", "name", "data")


def vms_of(vms: VmList) -> tuple[object, ...]:
    return vms.version, vms.items(), vms.duplicates


class ReplacedTests(SynchronousTestCase):
    outcomes: ClassVar[set[str]] = set()

    def compare(self, tree: Tree, deleted: Sequence[int], updated: Sequence[Entry]) -> Tree:
        """@return: the tree after it; C{tree} when it was refused."""
        before = (tree.index(), dict(tree._entries), dict(tree._children), vms_of(tree.vms))
        try:
            expected = Reference(tree, deleted, updated)
        except TreeDefect as defect:
            error = self.assertRaises(TreeDefect, tree.replaced, deleted, updated, None)
            self.assertEqual(str(error), str(defect))
            self.outcomes.add(DIGITS.sub("", str(defect).split(":")[0]))
            after = tree
        else:
            after = tree.replaced(deleted, updated, None)
            self.outcomes.add("")
            self.assertEqual(dict(after._entries), expected.entries)
            self.assertEqual(dict(after._children), expected.children)
            self.assertEqual(after.total_bytes, expected.total_bytes)
            self.assertEqual(vms_of(after.vms), vms_of(expected.vms))
            self.assertEqual(after.counters.items(), expected.counters)
            self.assertEqual(after.index(), index_of(after))
        self.assertEqual((tree.index(), dict(tree._entries), dict(tree._children), vms_of(tree.vms)), before)
        return after

    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(
        st.lists(entries, max_size=25),
        st.lists(
            st.tuples(st.lists(st.integers(0, 15), max_size=3), st.lists(entries | strange, max_size=4)), max_size=6
        ),
    )
    def test_like_a_tree_made_from_all_rows(
        self, rows: list[Entry], updates: list[tuple[list[int], list[Entry]]]
    ) -> None:
        tree = sound(rows)
        for deleted, updated in updates:
            tree = self.compare(tree, deleted, updated)

    def test_many_random_updates(self) -> None:
        """Small updates of small trees, so that most are sound and all kinds of defects are met."""
        dice = random.Random(7)

        def entry() -> Entry:
            type = dice.choice((DT_DIR, DT_REG))
            name = dice.choice(NAMES) if dice.random() < 0.97 else dice.choice((b"", b".", b"x/y"))
            data = b"d" * dice.randrange(3) if type == DT_REG or dice.random() < 0.03 else b""
            kind = type if dice.random() < 0.98 else 10
            mtime = 5 if dice.random() < 0.98 else -5
            return Entry(dice.randrange(1, 20), dice.randrange(20), dice.randrange(99), 1, mtime, kind, name, data)

        for _ in range(60):
            tree = sound([entry() for _ in range(dice.randrange(60))])
            for _ in range(25):
                deleted = [dice.randrange(20) for _ in range(dice.choice((0, 0, 1, 2)))]
                tree = self.compare(tree, deleted, [entry() for _ in range(dice.choice((0, 1, 1, 2, 3)))])
        expected = {
            "", "the parent is a file", "the parent does not exist", "a name that no entry can have",
            "an entry without a name", "a directory with data", "unknown type ",
            "inode  in the same directory has the same name", "a number out of range (version , writer , mtime -)",
        }  # fmt: skip
        self.assertEqual(expected - self.outcomes, set(), "every defect was met")

    def test_large_directories(self) -> None:
        """Enough names in a directory, and enough of them, that the maps have several levels."""
        dice = random.Random(3)
        tree = Tree.new(5)
        present: dict[int, Entry] = {}
        for _ in range(30):
            deleted = dice.sample(sorted(present), len(present) // dice.choice((2, 5, 50)))
            gone = {inode for inode in deleted if present[inode].type == DT_REG}
            updated = []
            for inode in dice.sample(range(1, 4000), dice.choice((3, 300, 1500))):
                parent = dice.choice((0, 1, 2)) if inode > 2 else 0
                kind = DT_DIR if inode <= 2 or (inode in present and present[inode].type == DT_DIR) else DT_REG
                updated.append(Entry(inode, parent, dice.randrange(99), 1, 5, kind, b"%d" % inode))
            for inode in (1, 2):
                updated.append(Entry(inode, 0, 1, 1, 5, DT_DIR, b"%d" % inode))
            tree = self.compare(tree, sorted(gone), updated)
            present = {entry.inode: entry for entry in tree.entries() if entry.inode}
        self.assertGreater(len(tree), 1000)

    def test_entries_that_are_put_more_than_once(self) -> None:
        """The last one counts, whatever the earlier ones were."""
        dice = random.Random(11)

        def entry(names: Sequence[bytes] = NAMES[:4]) -> Entry:
            kind = dice.choice((DT_DIR, DT_REG))
            name = dice.choice(names) if dice.random() < 0.97 else b"."
            return Entry(dice.randrange(1, 9), dice.randrange(9), dice.randrange(9), 1, 5, kind, name)

        sound_ones = 0
        for _ in range(6000):
            tree = sound([entry() for _ in range(9)])
            held = [entry for entry in tree.entries() if entry.inode]
            deleted = [dice.randrange(9) for _ in range(dice.choice((0, 1, 2)))]
            series = [dice.choice(held) if held and dice.random() < 0.6 else entry() for _ in range(dice.randrange(9))]
            if dice.random() < 0.5:
                series += dice.sample(held, len(held))
            try:
                expected = Reference(tree, deleted, series)
            except TreeDefect as defect:
                self.assertEqual(str(self.assertRaises(TreeDefect, tree.replaced, deleted, series, None)), str(defect))
                continue
            sound_ones += 1
            after = tree.replaced(deleted, series, None)
            self.assertEqual(dict(after._entries), expected.entries)
            self.assertEqual(dict(after._children), expected.children)
            self.assertEqual(after.total_bytes, expected.total_bytes)
            self.assertEqual(after.index(), index_of(after))
        self.assertGreater(sound_ones, 1000)

    def test_ring(self) -> None:
        """Directories in a ring are no defect, whichever way they come about."""
        tree = sound([Entry(4, 0, 1, 1, 5, DT_DIR, b"a"), Entry(5, 4, 1, 1, 5, DT_DIR, b"b")])
        after = self.compare(tree, (), [Entry(4, 5, 2, 1, 5, DT_DIR, b"a")])
        self.assertEqual([entry.inode for entry in unreachable(after)], [4, 5])
        alone = self.compare(after, [4], [Entry(5, 5, 3, 1, 5, DT_DIR, b"b")])
        self.assertEqual([entry.inode for entry in unreachable(alone)], [5])
        self.assertEqual(len(self.compare(alone, [5], ())), 1)

    def test_what_is_not_touched_stays_the_same_object(self) -> None:
        tree = sound([Entry(1, 0, 1, 1, 5, DT_DIR, b"a"), Entry(2, 0, 1, 1, 5, DT_DIR, b"b"),
                      Entry(3, 1, 1, 1, 5, DT_REG, b"x"), Entry(4, 2, 1, 1, 5, DT_REG, b"x")])  # fmt: skip
        after = tree.replaced((), [Entry(3, 1, 2, 1, 5, DT_REG, b"y")], None)
        self.assertIs(after.children(0), tree.children(0))
        self.assertIs(after.children(2), tree.children(2))
        self.assertIsNot(after.children(1), tree.children(1))
        for inode in (1, 2, 4):
            self.assertIs(after.entry(inode), tree.entry(inode))


class PatchedIndexTests(SynchronousTestCase):
    def check(self, tree: Tree) -> None:
        self.assertEqual(tree.index(), index_of(tree))

    def change(self, dice: random.Random) -> Change:
        path, to = (dice.choice((b"", b"d/")) + b"f%d" % dice.randrange(30) for _ in range(2))
        choices: list[Change] = [
            Create(path), Create(path), Write(path, b"x" * dice.randrange(9)), Delete(path), Rename(path, to),
            SetMtime(path, dice.randrange(99)), Mkdir(b"d"), Mkdir(to),
        ]  # fmt: skip
        return dice.choice(choices)

    def test_branches(self) -> None:
        """Trees that come of one another in any way, each asked at any time: as after a commit that failed."""
        self.patch(index_module, "_LEAST_LIMIT", 12)
        for seed in range(40):
            dice = random.Random(seed)
            trees = [Tree.new(5)]
            for _ in range(150):
                tree = dice.choice((trees[-1], trees[-1], trees[-1], dice.choice(trees)))
                try:
                    trees.append(tree.apply(self.change(dice), 1, 5).tree)
                except OperationError:
                    continue
                if dice.random() < 0.1:
                    other = dice.choice(trees)
                    inodes = {entry.inode for entry in tree.entries()} - {entry.inode for entry in other.entries()}
                    theirs = [entry for entry in other.entries() if entry.inode]
                    trees.append(tree.replaced(inodes, theirs, other.root))
                if dice.random() < 0.3:
                    self.check(dice.choice((tree, trees[-1], dice.choice(trees))))
            for tree in trees:
                self.check(tree)

    def test_asked_again(self) -> None:
        tree = Tree.new(5).apply(Create(b"f"), 1, 5).tree
        first = tree.index()
        self.assertIs(tree.index(), first)
        tree.apply(Delete(b"f"), 1, 5)
        self.assertEqual(tree.index(), first)

    def test_only_the_root_is_another(self) -> None:
        tree = Tree.new(5).apply(Create(b"f"), 1, 5).tree
        tree.index()
        after = tree.replaced((), (), Entry(0, 0, 77, 2, 9, DT_DIR, b""))
        self.check(after)
        self.assertNotEqual(after.index(), tree.index())

    def test_all_gone(self) -> None:
        tree = Tree.new(5).apply(Create(b"f"), 1, 5).tree
        tree.index()
        self.check(tree.apply(Delete(b"f"), 1, 5).tree)


def index(digests: Mapping[int, int]) -> Index:
    items = b"".join(struct.pack("<Q32s", inode, b"%d" % digests[inode]) for inode in sorted(digests))
    header = struct.pack("<QQIIII", 1, 2, 3, 4, len(digests), 32 + len(items))
    return Index.decode(header + items)


class DifferenceTests(SynchronousTestCase):
    def compare(self, ours: Mapping[int, int], theirs: Mapping[int, int]) -> None:
        one, other = index(ours), index(theirs)
        expected = [inode for inode in sorted(ours) if theirs.get(inode) != ours[inode]]
        self.assertEqual(one.differing(other), expected)
        surplus = sorted(ours.keys() - theirs.keys())
        self.assertEqual(one.differences(other), (surplus, sorted(set(expected).difference(surplus))))

    digests = st.dictionaries(st.integers(0, 40), st.integers(0, 1), max_size=30)

    @settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(1, 5), digests, digests)
    def test_small_parts(self, part: int, ours: dict[int, int], theirs: dict[int, int]) -> None:
        self.patch(index_module, "_PART", part)
        self.compare(ours, theirs)

    def test_items(self) -> None:
        some = index({0: 1, 5: 2, 9: 3})
        self.assertEqual(len(some), 3)
        self.assertEqual([some.item(inode)[8:10] for inode in (0, 5, 9)], [b"1\0", b"2\0", b"3\0"])
        self.assertEqual([some.item(inode) for inode in (1, 8, 10, 2**64 - 1)], [b""] * 4)
        self.assertEqual(index({}).item(0), b"")

    def test_any_byte_order(self) -> None:
        items = b"".join(struct.pack("<Q32s", inode, b"digest") for inode in (0, 1, 2**64 - 1))
        here = list(index_module._inodes_of(items))
        self.patch(index_module, "sys", SimpleNamespace(byteorder="big"))
        self.assertEqual((here, list(index_module._inodes_of(items))), ([0, 1, 2**64 - 1],) * 2)

    def test_large(self) -> None:
        dice = random.Random(5)
        ours = dict.fromkeys(dice.sample(range(100000), 5000), 0)
        for changes in (0, 1, 10, 3000):
            theirs = dict(ours)
            for inode in dice.sample(sorted(ours), changes):
                if dice.random() < 0.5:
                    del theirs[inode]
                else:
                    theirs[inode] = 1
            theirs.update(dict.fromkeys(dice.sample(range(100000), changes), 2))
            self.compare(ours, theirs)
            self.compare(theirs, ours)
