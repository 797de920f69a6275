"""The parts of the mount that need no kernel."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Event, Thread
from typing import Any

from twisted.trial import unittest
from zope.interface.verify import verifyObject

from pvecfs.fuse import invalidation, lowlevel, mountpoint, requests
from pvecfs.fuse.documents import MAX_BYTES, MAX_FROZEN, FrozenDocuments
from pvecfs.fuse.given import GivenNodes
from pvecfs.fuse.graves import MAX_GRAVES, Graves
from pvecfs.fuse.invalidation import KernelCache
from pvecfs.fuse.listing import CURSOR_BITS, ListingCache
from pvecfs.fuse.lowlevel import DIRENT
from pvecfs.fuse.nodes import DOCUMENTS, FIRST_EXCHANGED, LINKS, Attributes, NodeIds, Numbering
from pvecfs.fuse.requests import Waiting, backlog
from pvecfs.interfaces import Backlog, IKernelCache, INodeView, IProposer, Meant
from pvecfs.tree.changes import Change, Create, Delete, Mkdir, Rename, SetMtime, Write
from pvecfs.tree.entry import DT_REG, Entry
from pvecfs.tree.tree import Applied, Delta, Tree
from tests.fuse_support import MemoryProposer, MemoryView


def tree_of(*changes: Change) -> Tree:
    tree = Tree.new(1)
    for change in changes:
        tree = tree.apply(change, 0, 2).tree
    return tree


class InterfaceTests(unittest.SynchronousTestCase):
    def test_implementers(self) -> None:
        view = MemoryView(Tree.new(1))
        verifyObject(INodeView, view)
        verifyObject(IProposer, MemoryProposer(view))
        verifyObject(IKernelCache, KernelCache(NodeIds(view), Graves()))


class DocumentTests(unittest.SynchronousTestCase):
    """Contents of special files, each with its own node."""

    def setUp(self) -> None:
        self.content = b"one"
        self.documents = FrozenDocuments(lambda name: self.content)

    def test_same_content_same_node(self) -> None:
        node, size, replaces = self.documents.look_up(b".version")
        self.assertEqual((size, replaces), (3, False))
        self.content = bytes(bytearray(b"one"))
        self.assertEqual(self.documents.look_up(b".version"), (node, 3, False))
        self.assertEqual(self.documents.look_up(b".version", in_place=True), (node, 3, False))
        self.assertNotEqual(self.documents.look_up(b".members")[0], node)

    def test_each_content_stays_while_it_is_known(self) -> None:
        first = self.documents.look_up(b".version")[0]
        self.documents.look_up(b".version")
        self.content = b"three"
        second = self.documents.look_up(b".version")[0]
        self.assertNotEqual(first, second)
        self.assertEqual((self.documents.content(first), self.documents.content(second)), (b"one", b"three"))
        self.documents.forget(first, 1)
        self.assertEqual(self.documents.content(first), b"one")
        self.documents.forget(first, 1)
        self.assertIsNone(self.documents.content(first))
        self.documents.forget(second, 1)
        self.assertEqual(self.documents.look_up(b".version")[0], second)
        self.assertEqual(len(self.documents), 1)

    def test_in_place(self) -> None:
        node, _, replaces = self.documents.look_up(b".version", in_place=True)
        self.assertFalse(replaces)
        self.content = b"three"
        self.assertEqual(self.documents.look_up(b".version", in_place=True), (node, 5, True))
        self.assertEqual(self.documents.content(node), b"three")
        self.documents.forget(node, 2)
        self.content = b"four"
        self.assertNotEqual(self.documents.look_up(b".version")[0], node)
        self.assertEqual(len(self.documents), 1)
        self.assertEqual(self.documents._bytes, 4)

    def test_unknown_nodes(self) -> None:
        self.documents.forget(99, 1)
        self.assertIsNone(self.documents.content(99))
        self.assertIsNone(self.documents.name(99))

    def test_bound(self) -> None:
        nodes = []
        for number in range(MAX_FROZEN + 10):
            self.content = b"%d" % number
            nodes.append(self.documents.look_up(b".version")[0])
        self.assertEqual(len(self.documents), MAX_FROZEN)
        self.assertIsNone(self.documents.content(nodes[0]))
        self.assertEqual(self.documents.content(nodes[-1]), self.content)

    def test_bound_of_bytes(self) -> None:
        """Those looked up longest ago make room, and their handles find nothing; what is forgotten counts no more."""
        self.content = b"same"
        members = self.documents.look_up(b".members")[0]
        nodes = []
        for number in range(20):
            self.content = b"%d" % number + bytes(MAX_BYTES // 16)
            nodes.append(self.documents.look_up(b".rrd")[0])
            self.content = b"same"
            self.assertEqual(self.documents.look_up(b".members")[0], members)
        kept = [node for node in nodes if self.documents.content(node) is not None]
        self.assertEqual(kept, nodes[-15:])
        self.assertIsNone(self.documents.name(nodes[0]))
        self.documents.forget(nodes[0], 1)
        for node in kept[:-1]:
            self.documents.forget(node, 1)
        self.assertEqual(len(self.documents), 2)
        for number in range(14):
            self.content = b"again %d" % number + bytes(MAX_BYTES // 17)
            self.documents.look_up(b".rrd")
        self.assertEqual(len(self.documents), 16)

    def test_one_larger_than_the_bound(self) -> None:
        """It stays until the next one is looked up."""
        self.content = bytes(MAX_BYTES + 1)
        large, size, _ = self.documents.look_up(b".rrd")
        self.assertEqual((size, self.documents.content(large)), (MAX_BYTES + 1, self.content))
        self.content = b"x"
        self.documents.look_up(b".version")
        self.assertIsNone(self.documents.content(large))
        self.content = bytes(MAX_BYTES + 1)
        self.assertNotEqual(self.documents.look_up(b".rrd")[0], large)


class GraveTests(unittest.SynchronousTestCase):
    def test_bounds(self) -> None:
        graves = Graves()
        for inode in range(1, MAX_GRAVES + 11):
            graves.bury(inode, Entry(inode, 0, 1, 0, 0, DT_REG, b"f", b"x"))
        self.assertEqual(len(graves), MAX_GRAVES)
        self.assertIsNone(graves.find(1))
        for inode in range(1000, 1020):
            graves.bury(inode, Entry(inode, 0, 1, 0, 0, DT_REG, b"f", bytes(1024 * 1024)))
        self.assertEqual(len(graves), 16)
        found = graves.find(1019)
        self.assertEqual(found and found.inode, 1019)
        graves.forget(1019)
        graves.forget(1019)
        self.assertIsNone(graves.find(1019))


class ListingTests(unittest.SynchronousTestCase):
    """Reading directories in pieces."""

    def setUp(self) -> None:
        self.cache = ListingCache()
        self.numbering = Numbering({})

    def read(self, tree: Tree, inode: int, size: int, offset: int = 0) -> tuple[list[bytes], int, bool]:
        """One request: names, the offset to go on at, whether pages have to go."""
        directory = tree.entry(inode)
        assert directory is not None
        chunk, outdated = self.cache.read(tree, self.numbering, directory, offset, size)
        self.assertLessEqual(len(chunk), size)
        names = []
        at = 0
        while at < len(chunk):
            _, offset, length, _ = DIRENT.unpack_from(chunk, at)
            at += DIRENT.size
            names.append(chunk[at : at + length])
            at += (length + 7) & ~7
        self.assertEqual(at, len(chunk))
        return names, offset, outdated

    def read_all(self, tree: Tree, inode: int, size: int) -> list[bytes]:
        names: list[bytes] = []
        offset = 0
        while True:
            more, offset, outdated = self.read(tree, inode, size, offset)
            self.assertFalse(outdated)
            if not more:
                return names
            names += more

    def test_pieces(self) -> None:
        names = [b"n%d" % number * (number % 9 + 1) for number in range(100)]
        tree = tree_of(Mkdir(b"d"), *[Create(b"d/" + name) for name in names])
        inode = tree.lookup(b"d").inode  # type: ignore[union-attr]  # it was made
        for size in (100, 500, 4096, 1 << 20):
            self.assertEqual(self.read_all(tree, inode, size), [b".", b"..", *names])

    def test_root(self) -> None:
        tree = tree_of(Create(b"local"), Create(b".version"), Create(b"a"))
        self.assertEqual(self.read_all(tree, 0, 4096), [b".", b"..", *LINKS, *DOCUMENTS, b"a"])

    def test_changes_in_the_middle(self) -> None:
        tree = tree_of(*[Create(b"%d" % number) for number in range(20)])
        names, offset, _ = self.read(tree, 0, 600)
        last = names[-1]
        tree = tree.apply(Delete(last), 0, 3).tree.apply(Create(b"late"), 0, 3).tree
        rest, end, _ = self.read(tree, 0, 4096, offset)
        self.assertEqual([*names, *rest][12:], [b"%d" % number for number in range(20)] + [b"late"])
        # The reading began with another content: at the end the kernel must drop what it kept of it.
        self.assertEqual(self.read(tree, 0, 4096, end), ([], end, True))
        self.assertEqual(end >> CURSOR_BITS, offset >> CURSOR_BITS)

    def test_a_change_at_the_end(self) -> None:
        tree = tree_of(Create(b"a"))
        _, end, _ = self.read(tree, 0, 4096)
        self.assertEqual(self.read(tree, 0, 4096, end)[2], False)
        tree = tree.apply(Write(b"a", b"x"), 0, 3).tree
        self.assertEqual(self.read(tree, 0, 4096, end)[2], False)
        tree = tree.apply(Delete(b"a"), 0, 3).tree
        self.assertEqual(self.read(tree, 0, 4096, end)[2], True)

    def test_odd_entries(self) -> None:
        """A name that no program can use is left out; an inode that no cursor holds is listed."""
        rows = [
            Entry(5, 0, 5, 0, 0, DT_REG, b"x" * 3000),
            Entry(2**62, 0, 5, 0, 0, DT_REG, b"far"),
            Entry(6, 0, 5, 0, 0, DT_REG, b"\xff" * 300),
        ]
        tree = Tree.load(rows, Tree.new(1).root)
        self.assertEqual(self.read_all(tree, 0, 400)[12:], [b"\xff" * 300, b"far"])


class KernelDouble:
    """What the kernel is told, in order; C{blocks} holds up whoever drops a name in that directory."""

    def __init__(self, case: unittest.SynchronousTestCase) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.unknown: set[int] = set()
        self.blocks = 0
        self.gate = Event()
        case.patch(lowlevel, "notify_inode", self.inode)
        case.patch(lowlevel, "notify_entry", self.entry)
        case.patch(invalidation, "requests_wait", lambda _session: False)

    def inode(self, _session: int, node: int, offset: int, _length: int) -> int:
        self.told.append((node, "data" if offset == 0 else "attributes"))
        return -2 if node in self.unknown else 0

    def entry(self, _session: int, parent: int, name: bytes, length: int) -> int:
        assert len(name) == length
        if parent == self.blocks:
            self.gate.wait(10)
        self.told.append((parent, name))
        return 0


class KernelCacheTests(unittest.SynchronousTestCase):
    """What is told of which change; with real threads, as it is about them."""

    def setUp(self) -> None:
        self.kernel = KernelDouble(self)
        self.view = MemoryView(tree_of(Mkdir(b"d"), Create(b"f")))
        self.graves = Graves()
        self.nodes = NodeIds(self.view)
        self.cache = KernelCache(self.nodes, self.graves)
        self.cache._prepared = True
        self.attach()
        self.threads: list[Thread] = []
        self.addCleanup(self.stop)

    def attach(self) -> None:
        self.cache.attach(1)
        self.look_at_everything()

    def look_at_everything(self) -> None:
        """The kernel gets to know all that there is."""
        for entry in self.view.tree.entries():
            self.cache.given.give(self.nodes.published()[1].node_of(entry.inode))

    def start(self, lanes: int = 3) -> None:
        others = [self.cache.run_spare_lane, self.cache.run_modes, self.cache.run_listings]
        for target in [self.cache.run_lane] * lanes + others:
            thread = Thread(target=target, daemon=True)
            thread.start()
            self.threads.append(thread)

    def stop(self) -> None:
        self.kernel.gate.set()
        self.cache.stop()
        for thread in self.threads:
            thread.join(10)
            self.assertFalse(thread.is_alive())

    def apply(self, change: Change) -> Applied:
        before = self.view.tree
        applied = before.apply(change, 1, 9)
        self.cache.publishing(before, applied.delta, None)
        self.view.tree = applied.tree
        self.cache.changed(before, applied.tree, applied.delta)
        self.look_at_everything()
        return applied

    def drain(self) -> list[tuple[Any, ...]]:
        done = Event()
        self.cache.drained(done.set)
        self.assertTrue(done.wait(10))
        told = list(self.kernel.told)
        self.kernel.told.clear()
        return told

    def node(self, path: bytes) -> int:
        entry = self.view.tree.lookup(path)
        assert entry is not None
        return self.nodes.published()[1].node_of(entry.inode)

    def test_what_is_told(self) -> None:
        self.start(lanes=1)
        f, d = self.node(b"f"), self.node(b"d")
        top, other = [{(node, "attributes"), (node, "data")} for node in (1, d)]
        for change, told in (
            (Create(b"g"), {*top, (1, b"g")}),
            (Write(b"f", b"x"), {(f, "data")}),
            (SetMtime(b"f", 5), {(f, "attributes")}),
            (Write(b"f", b"x"), {(f, "attributes")}),
            (Rename(b"f", b"d/g"), {(f, "attributes"), *top, (1, b"f"), *other, (d, b"g")}),
            (Delete(b"d/g"), {*other, (d, b"g")}),
        ):
            self.apply(change)
            self.assertEqual(set(self.drain()), told, change)
        self.assertIsNotNone(self.graves.find(f))

    def tells(self, change: Change, meant: Meant) -> bool:
        """Whether the kernel would be told of C{change}, of which it thinks what is C{meant}."""
        before = self.view.tree
        return self.cache.publishing(before, before.apply(change, 1, 9).delta, meant)

    def test_changes_that_the_kernel_means(self) -> None:
        """Nothing is told of a change that is about what the kernel meant, and of others everything."""
        self.apply(Create(b"d/x"))
        f, d, x = self.node(b"f"), self.node(b"d"), self.node(b"d/x")
        for change, nodes in (
            (Write(b"f", b"1"), (f,)),
            (SetMtime(b"f", 7), (f,)),
            (Create(b"d/y"), (d,)),
            (Mkdir(b"e"), (1,)),
            (Delete(b"d/x"), (d, x)),
            (Rename(b"f", b"d/x"), (1, d, f, x)),
        ):
            self.assertFalse(self.tells(change, Meant(nodes)), change)
            for left_out in nodes:
                rest = tuple(node for node in nodes if node != left_out)
                self.assertTrue(self.tells(change, Meant((*rest, 99))), (change, left_out))

    def test_deleted_files_before_the_publication(self) -> None:
        """A read finds the file in the tree or in its grave, at any moment, whoever deletes it."""
        f = self.node(b"f")
        for meant in None, Meant((1, f)):
            self.graves.forget(f)
            before = self.view.tree
            self.cache.publishing(before, before.apply(Delete(b"f"), 1, 9).delta, meant)
            self.assertIs(self.graves.find(f), before.lookup(b"f"))

    def test_links_are_told_again(self) -> None:
        """A first lookup of one may be in flight when quorum changes: it is over when the root's lock is free."""
        self.start()
        self.cache.modes_changed()
        told = self.drain()
        barrier = told.index((1, invalidation._BARRIER))
        for link in LINKS.values():
            self.assertIn((link, "attributes"), told[:barrier])
            self.assertIn((link, "attributes"), told[barrier:])

    def test_name_that_is_not_told_yet(self) -> None:
        """The kernel moves what it knew by it: something else, whatever the tree has there when it asks."""
        self.apply(Create(b"new"))
        self.start()
        self.drain()
        self.kernel.blocks = 1
        rename = Rename(b"f", b"taken")
        self.apply(Rename(b"new", b"f"))
        node = self.node(b"f")
        meant = Meant((1, node), (1, b"f"), (1, b"taken"))
        self.assertTrue(self.tells(rename, meant))
        self.kernel.gate.set()
        told = self.drain()
        self.assertIn((1, b"taken"), told)  # also where there are no epochs
        self.assertFalse(self.tells(rename, meant))

    def test_unknown_nodes_are_told_again(self) -> None:
        f = self.node(b"f")
        self.kernel.unknown = {f}
        self.apply(Write(b"f", b"x"))
        self.start()
        self.assertEqual(self.drain(), [(f, "data"), (1, invalidation._BARRIER), (f, "data")])

    def test_what_the_kernel_does_not_know_it_is_not_told(self) -> None:
        self.cache.attach(1)
        shown = self.cache.shown

        def publish(change: Change) -> None:
            """As L{apply}, but nobody looks at anything."""
            before = self.view.tree
            delta = before.apply(change, 1, 9).delta
            self.cache.publishing(before, delta, None)
            self.view.tree = delta.tree
            self.cache.changed(before, delta.tree, delta)

        for change in Write(b"f", b"x"), SetMtime(b"f", 5), Create(b"d/g"), Rename(b"d/g", b"d/h"), Delete(b"d/h"):
            publish(change)
            self.assertEqual((self.cache.pending, shown.by_node, len(self.graves)), (0, {}, 0), change)
        publish(Rename(b"f", b"g"))  # somebody may have looked for these names
        self.start(lanes=1)
        self.assertCountEqual(self.drain(), [(1, "attributes"), (1, b"f"), (1, b"g"), (1, "data")])
        self.cache.modes_changed()
        self.assertEqual({node for node, _ in self.drain()}, {1, *LINKS.values()})
        self.cache.given.give(self.node(b"g"))
        publish(Write(b"g", b"y"))
        self.assertEqual(self.drain(), [(self.node(b"g"), "data")])
        self.assertTrue(self.cache.given.take_back(self.node(b"g"), 1))
        publish(Write(b"g", b"z"))
        self.assertEqual(self.drain(), [])

    def test_another_file_of_an_inode(self) -> None:
        """The old file's names and pages go, after waiting for lookups on their way; the new one's name and listing."""
        f, d = self.node(b"f"), self.node(b"d")
        self.kernel.unknown = {f}
        before = self.view.tree
        moved = Entry(f - 1, d - 1, 99, 2, 5, DT_REG, b"other", b"")
        delta = Delta(before.replaced((), (moved,), None), (moved,), (), True)
        self.cache.publishing(before, delta, None)
        self.view.tree = delta.tree
        self.cache.changed(before, delta.tree, delta)
        self.look_at_everything()
        self.start()
        told = self.drain()
        self.assertEqual([one for one in told if one[0] not in (1, d)], [(f, "data")] * 2)
        self.assertLess(told.index((f, "data")), told.index((1, invalidation._BARRIER)))
        self.assertEqual(
            {one for one in told if one[0] in (1, d)},
            {
                *((1, what) for what in ("attributes", "data", b"f", invalidation._BARRIER)),
                *((d, what) for what in ("attributes", "data", b"other")),
            },
        )
        self.apply(Write(b"d/other", b"x"))
        self.assertEqual(self.drain(), [(self.node(b"d/other"), "data")])
        self.assertEqual(self.node(b"d/other"), FIRST_EXCHANGED)

    def test_names_before_listings(self) -> None:
        """What a listing shows is to be found; attributes do not wait for the lock that names may wait for."""
        self.apply(Create(b"g"))
        self.apply(Delete(b"f"))
        self.start()
        told = [what for node, what in self.drain() if node == 1]
        self.assertEqual(told[0], "attributes")
        self.assertCountEqual(told[1:-1], [b"f", b"g"])
        self.assertEqual(told[-1], "data")

    def test_told_outside(self) -> None:
        """Who has got a lock waits for what came before, but not for what its own mkdir holds up."""
        for path in b"priv", b"priv/lock", b"priv/lock/x":
            self.apply(Mkdir(path))
        self.start()
        self.drain()
        self.stop()
        self.attach()
        locks = self.node(b"priv/lock")
        self.apply(SetMtime(b"priv/lock/x", 10))
        self.apply(Mkdir(b"priv/lock/y"))
        done = Event()
        self.assertTrue(self.cache.told_outside(locks, done.set))
        self.assertTrue(done.is_set())
        for change in Write(b"f", b"x"), Create(b"d/g"), SetMtime(b"d", 5):
            self.apply(change)
            done.clear()
            self.assertFalse(self.cache.told_outside(locks, done.set), change)
            self.assertFalse(done.is_set())
            self.start()
            self.assertTrue(done.wait(10))
            self.drain()
            self.stop()
            self.attach()
            self.kernel.told.clear()

    def test_spare_lane(self) -> None:
        """When all others wait for the lock of priv/lock, everything else goes on."""
        for path in b"priv", b"priv/lock", b"priv/lock/x", b"priv/lock/y":
            self.apply(Mkdir(path))
        self.start()
        self.drain()
        self.kernel.gate.clear()
        self.kernel.blocks = locks = self.node(b"priv/lock")
        self.kernel.unknown = {self.node(b"priv/lock/x"), self.node(b"priv/lock/y")}
        for change in SetMtime(b"priv/lock/x", 10), SetMtime(b"priv/lock/y", 10), Mkdir(b"priv/lock/z"):
            self.apply(change)
        for number in range(3):
            done = Event()
            self.apply(Write(b"f", b"%d" % number))
            self.apply(Create(b"d/%d" % number))
            self.cache.told_outside(locks, done.set)
            self.assertTrue(done.wait(10), number)
        self.assertIn((self.node(b"f"), "data"), self.kernel.told)
        self.kernel.gate.set()
        self.drain()

    def test_work_is_collected(self) -> None:
        f = self.node(b"f")
        for number in range(50):
            self.apply(Write(b"f", b"%d" % number))
            self.apply(Create(b"g"))
            self.apply(Delete(b"g"))
        self.assertEqual(self.cache.pending, 3)
        self.start()
        self.assertCountEqual(self.drain(), [(f, "data"), (1, "attributes"), (1, "data"), (1, b"g")])
        self.assertEqual(self.cache.pending, 0)

    def test_one_waiting_directory_holds_up_no_other(self) -> None:
        self.kernel.blocks = self.node(b"d")
        self.start()
        self.apply(Create(b"d/x"))
        self.apply(Create(b"d/y"))
        done = Event()
        self.cache.drained(done.set)
        self.apply(Create(b"g"))
        while (1, b"g") not in self.kernel.told:
            self.assertFalse(done.wait(0.01))
        listed = Event()
        self.cache.forget_pages(77, listed.set)
        self.assertTrue(listed.wait(10))
        self.cache.modes_changed()
        self.kernel.gate.set()
        self.assertTrue(done.wait(10))
        self.drain()

    def test_modes(self) -> None:
        self.start()
        self.cache.modes_changed()
        told = self.drain()
        self.assertEqual(told[: len(LINKS)], [(link, "attributes") for link in LINKS.values()])
        for node in (1, self.node(b"f"), self.node(b"d")):
            self.assertIn((node, "attributes"), told)
        again = told[told.index((1, invalidation._BARRIER)) :]
        self.assertIn((self.node(b"f"), "attributes"), again)

    def test_too_much(self) -> None:
        self.cache.max_pending = 10
        self.cache._epochs = True
        epochs: list[bytes] = []
        self.patch(os, "write", lambda _fd, data: epochs.append(data))
        self.patch(lowlevel, "session_fd", lambda _session: -1)
        for number in range(100):
            self.apply(Create(b"many%d" % number))
            self.assertLess(self.cache.pending, 12)
        self.start()
        told = self.drain()
        self.assertEqual(set(epochs), {lowlevel.NOTIFY_INC_EPOCH})
        for entry in self.view.tree.entries():
            self.assertIn((entry.inode + 1, "data"), told)

    def test_after_the_end(self) -> None:
        self.start()
        self.stop()
        self.apply(Create(b"g"))
        self.cache.modes_changed()
        self.cache.attributes_changed(1)
        done = Event()
        self.cache.forget_pages(1, done.set)
        self.assertTrue(done.is_set())
        self.assertEqual((self.drain(), self.cache.pending), ([], 0))

    def test_stop_calls_what_waits(self) -> None:
        self.apply(Create(b"g"))
        done = Event()
        self.cache.drained(done.set)
        self.cache.stop()
        self.assertTrue(done.is_set())


class GivenTests(unittest.SynchronousTestCase):
    def test_counts(self) -> None:
        given = GivenNodes()
        self.assertIn(1, given)
        self.assertNotIn(3, given)
        self.assertEqual([given.give(3), given.give(3), given.give(3)], [True, False, False])
        self.assertFalse(given.take_back(3, 2))
        self.assertIn(3, given)
        self.assertTrue(given.take_back(3, 1))
        self.assertNotIn(3, given)
        self.assertTrue(given.give(3))
        given.begin()
        self.assertNotIn(3, given)

    def test_the_root_stays(self) -> None:
        given = GivenNodes()
        self.assertFalse(given.take_back(1, 1))
        self.assertFalse(given.give(1))
        self.assertFalse(given.take_back(1, 5))
        self.assertIn(1, given)
        self.assertEqual(len(given), 1)

    def test_more_than_was_given(self) -> None:
        given = GivenNodes()
        self.assertTrue(given.take_back(3, 7))
        self.assertEqual(len(given), 1)


class WaitingTests(unittest.SynchronousTestCase):
    """Requests that wait for the node."""

    def test_one_answer(self) -> None:
        book: set[Waiting] = set()
        answers: list[tuple[int, int]] = []
        waiting = Waiting(book, 7, lambda request, outcome: answers.append((request, outcome)))
        self.assertEqual(len(book), 1)
        waiting(3)
        waiting(-5)
        self.assertEqual((answers, len(book)), ([(7, 3)], 0))

    def test_backlog(self) -> None:
        """How many wait, and since when the oldest, for what."""
        self.patch(requests, "monotonic", iter([3.0, 2.0, 4.0]).__next__)
        book: set[Waiting] = set()
        self.assertEqual(backlog(book), Backlog())
        changes = (Create(b"a"), Rename(b"b", b"c"), None)
        waiting = [Waiting(book, 7, lambda request, outcome: None, change) for change in changes]
        self.assertEqual(backlog(book), Backlog(3, 2.0, b"b"))
        waiting[0](0)
        waiting[1](0)
        self.assertEqual(backlog(book), Backlog(1, 4.0, b""))

    def test_a_failing_answer_is_an_error(self) -> None:
        errors: list[tuple[int, int]] = []
        self.patch(requests, "reply_err", lambda *answer: errors.append(answer))

        def fail(request: int, outcome: int) -> None:
            raise ValueError("cannot")

        Waiting(set(), 7, fail)(0)
        self.assertEqual(errors, [(7, 5)])
        self.flushLoggedErrors(ValueError)


class AttributeTests(unittest.SynchronousTestCase):
    def test_sizes(self) -> None:
        tree = tree_of(Create(b"f"), Write(b"f", b"x" * 513))
        entry = tree.lookup(b"f")
        assert entry is not None
        made = Attributes(1, 2).of_entry(tree, entry, 3, True)
        self.assertEqual((made[:4], made[9:13]), ((3, 513, 2, 2), (0o100640, 1, 1, 2)))


class MountpointTests(unittest.SynchronousTestCase):
    LINES = (
        b"24 1 0:22 / /proc rw - proc proc rw\n"
        b"40 24 0:51 / /etc/a\\040b rw,nosuid shared:5 master:1 - fuse pv\\134x rw\n"
        b"41 40 0:52 / /etc/pve rw - fuse.sshfs here rw\n"
        b"42 41 0:53 / /etc/pve rw - fuse there rw\n"
    )

    def setUp(self) -> None:
        path = self.mktemp()
        with open(path, "wb") as out:
            out.write(self.LINES)
        self.patch(mountpoint, "MOUNTINFO", Path(path))

    def test_find_mounted(self) -> None:
        self.assertEqual(mountpoint.find_mounted("/etc/pve"), (53, "fuse", "there"))
        found = mountpoint.find_mounted("/etc/a b")
        self.assertEqual(found, (51, "fuse", "pv\\x"))
        self.assertTrue(found and found.is_fuse)
        proc = mountpoint.find_mounted("/proc")
        self.assertFalse(proc and proc.is_fuse)
        self.assertIsNone(mountpoint.find_mounted("/etc"))

    def test_resolve(self) -> None:
        """As the kernel goes, a link after the other; nothing has to be there."""
        base = os.path.realpath(self.mktemp())
        os.makedirs(f"{base}/a/b/c")
        links = {
            "absolute": f"{base}/a",
            "relative": "a/./b//",
            "chain": "relative/c",
            "up": "a/b/../../x",
            "gone": "y/z",
        }
        for name, target in links.items():
            os.symlink(target, f"{base}/{name}")
        expected = {
            "a/b": "a/b",
            "absolute": "a",
            "absolute/b/": "a/b",
            "relative/c/..": "a/b",
            "chain": "a/b/c",
            "chain/../d": "a/b/d",
            "up": "x",
            "gone/./w": "y/z/w",
            "nothing/../a": "a",
        }
        for place, resolved in expected.items():
            self.assertEqual(mountpoint.resolve(f"{base}/{place}"), f"{base}/{resolved}", place)
        self.assertEqual(mountpoint.resolve("/../.."), "/")
        self.assertEqual(mountpoint.resolve("x"), os.path.join(os.getcwd(), "x"))

    def test_resolve_links_in_a_ring(self) -> None:
        place = os.path.abspath(self.mktemp())
        os.symlink(place, place)
        with self.assertRaisesRegex(mountpoint.MountFailed, "Too many levels"):
            mountpoint.resolve(place)
