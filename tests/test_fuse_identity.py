"""A node id never comes to mean another file, whatever a synchronisation brings (20-filesystem.md: "never another
file's content").

Both sides of a partition that make a file at the same version give it the same inode.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from itertools import product
from typing import Any

from twisted.internet.task import Clock
from twisted.trial import unittest

from pvecfs.fuse import filesystem, lowlevel
from pvecfs.fuse.filesystem import FileSystem
from pvecfs.fuse.graves import Graves
from pvecfs.fuse.invalidation import KernelCache
from pvecfs.fuse.lowlevel import ATTR_OUT, DIRENT, ENTRY_OUT
from pvecfs.fuse.nodes import FIRST_COMPUTED, FIRST_EXCHANGED, NOWHERE, Attributes, NodeIds, Numbering
from pvecfs.fuse.requests import Finish
from pvecfs.interfaces import Meant
from pvecfs.node.ledger import Ledger
from pvecfs.node.view import NodeView
from pvecfs.store.memory import MemoryStore
from pvecfs.tree.admission import Limits
from pvecfs.tree.changes import Change, Create, Delete, Mkdir, Write
from pvecfs.tree.entry import DT_DIR, DT_REG, Entry
from pvecfs.tree.tree import Delta, Tree
from tests.fuse_support import MemoryProposer, MemoryView, MountCase, get, put
from tests.needs import needs_fuse

Row = list[Any]


@needs_fuse()
class IdentityTests(MountCase):
    """What programs see, with the kernel's memory full of what was before."""

    def setUp(self) -> None:
        super().setUp()
        self.node.remote("mtime", self.tree_path, 5)  # the first thing told makes the kernel forget all names

    def row(self, name: str) -> Row:
        """Inode, parent, type, name of the only entry called C{name}."""
        (row,) = [row for row in self.node.ask("state")["entries"] if row[3] == name]
        return row[:4]  # type: ignore[no-any-return]  # it is JSON

    def remember(self) -> None:
        """Make the kernel know this place: names that are and that are not, attributes, contents, listings."""
        for directory, _, files in os.walk(self.place):
            os.listdir(directory)
            for name in files:
                get(os.path.join(directory, name))
        for name in ("other", "mine"):
            os.path.exists(self.in_place(name))

    def hold(self, name: str, flags: int = os.O_RDWR) -> int:
        handle = os.open(self.in_place(name), flags)
        self.addCleanup(os.close, handle)
        return handle

    def synchronise(self, deleted: list[int], *rows: Row) -> None:
        """C{rows}: inode, parent, type, name, data."""
        entries = [[inode, parent, 99, 2, 5, kind, name, data] for inode, parent, kind, name, data in rows]
        self.node.ask("synchronised", deleted, entries)

    def check_numbers(self) -> None:
        """Listings and attributes tell the same inode numbers, and no two files have one."""
        numbers: list[int] = []
        for directory, names, files in os.walk(self.place):
            stats = {name: os.stat(os.path.join(directory, name)).st_ino for name in names + files}
            with os.scandir(directory) as listing:
                self.assertEqual({entry.name: entry.inode() for entry in listing}, stats)
            numbers += stats.values()
        self.assertEqual(len(set(numbers)), len(numbers))

    def test_write(self) -> None:
        put(self.in_place("mine"), b"mine")
        handle = self.hold("mine")
        inode, parent, kind, _ = self.row("mine")
        self.remember()
        self.synchronise([], [inode, parent, kind, "other", "of the others"])
        self.assertEqual(get(self.in_place("other")), b"of the others")
        self.assert_errno(errno.ENOENT, os.pwrite, handle, b"MINE", 0)
        self.assert_errno(errno.ENOENT, os.ftruncate, handle, 1)
        self.assert_errno(errno.ENOENT, os.utime, handle, (7, 7))
        self.assertEqual(get(self.in_place("other")), b"of the others")
        self.assertEqual(os.stat(self.in_place("other")).st_mtime, 5)
        put(self.in_place("other"), b"and mine")
        self.assertEqual(get(self.in_place("other")), b"and mine")

    def test_read(self) -> None:
        """An old handle gives what it had, the pages gone or not; the names lead where they should at once."""
        put(self.in_place("mine"), b"mine")
        handle = self.hold("mine")
        before = os.fstat(handle)
        self.remember()
        inode, parent, kind, _ = self.row("mine")
        self.synchronise([], [inode, parent, kind, "other", "of the others"])
        self.assertEqual(os.listdir(self.place), ["other"])
        self.assertFalse(os.path.exists(self.in_place("mine")))
        self.assertEqual(get(self.in_place("other")), b"of the others")
        self.assertEqual(os.pread(handle, 100, 0), b"mine")
        after, other = os.fstat(handle), os.stat(self.in_place("other"))
        self.assertEqual((after.st_nlink, after.st_size, after.st_ino), (0, 4, before.st_ino))
        self.assertEqual((other.st_nlink, other.st_size, other.st_mtime), (1, 13, 5))
        self.assertNotEqual(other.st_ino, before.st_ino)
        self.check_numbers()

    def test_read_of_what_the_kernel_has_no_pages_of(self) -> None:
        put(self.in_place("mine"), b"mine")
        inode, parent, kind, _ = self.row("mine")
        self.node.remote("write", self.in_tree("mine"), "newer")
        handle = self.hold("mine", os.O_RDONLY)
        self.synchronise([], [inode, parent, kind, "other", "of the others"])
        self.assertEqual(os.pread(handle, 100, 0), b"newer")

    def test_the_same_name(self) -> None:
        """The same place and type is the same file for programs: a handle follows it, as after a write."""
        put(self.in_place("mine"), b"mine")
        handle = self.hold("mine")
        inode, parent, kind, _ = self.row("mine")
        self.remember()
        self.synchronise([], [inode, parent, kind, "mine", "of the others"])
        self.assertEqual((get(self.in_place("mine")), os.pread(handle, 100, 0)), (b"of the others",) * 2)
        os.pwrite(handle, b"OF", 0)
        self.assertEqual(get(self.in_place("mine")), b"OF the others")

    def test_deleted_before(self) -> None:
        """The old file was deleted while it was held open, here or elsewhere."""
        for delete in (os.unlink, lambda path: self.node.remote("delete", self.in_tree(os.path.basename(path)))):
            put(self.in_place("mine"), b"mine")
            handle = self.hold("mine")
            inode, parent, kind, _ = self.row("mine")
            self.remember()
            delete(self.in_place("mine"))
            self.synchronise([], [inode, parent, kind, "other", "of the others"])
            self.assertEqual(get(self.in_place("other")), b"of the others")
            self.assert_errno(errno.ENOENT, os.pwrite, handle, b"MINE", 0)
            self.assertEqual(os.pread(handle, 100, 0), b"mine")
            self.assertEqual(os.fstat(handle).st_size, 4)
            self.assertEqual(get(self.in_place("other")), b"of the others")
            os.unlink(self.in_place("other"))

    def test_deleted_by_a_synchronisation(self) -> None:
        put(self.in_place("mine"), b"mine")
        handle = self.hold("mine")
        inode, parent, kind, _ = self.row("mine")
        self.remember()
        self.synchronise([inode])
        self.assertEqual(os.listdir(self.place), [])
        self.synchronise([], [inode, parent, kind, "other", "of the others"])
        self.assertEqual(os.listdir(self.place), ["other"])
        self.assert_errno(errno.ENOENT, os.pwrite, handle, b"MINE", 0)
        self.assertEqual((os.pread(handle, 100, 0), get(self.in_place("other"))), (b"mine", b"of the others"))

    def test_again_and_again(self) -> None:
        """One inode, many files: each handle keeps to its own."""
        put(self.in_place("mine"), b"mine")
        inode, parent, kind, _ = self.row("mine")
        handles = [(self.hold("mine"), b"mine")]
        for name in ("other", "third", "mine", "other"):
            data = f"{name} {len(handles)}"
            self.synchronise([], [inode, parent, kind, name, data])
            self.assertEqual(os.listdir(self.place), [name])
            self.assertEqual(get(self.in_place(name)), data.encode())
            for handle, had in handles:
                self.assertEqual(os.pread(handle, 100, 0), had)
                self.assert_errno(errno.ENOENT, os.pwrite, handle, b"lost", 0)
            handles.append((self.hold(name), data.encode()))
        handle, _ = handles[-1]
        os.pwrite(handle, b"OTHER", 0)
        self.assertEqual(get(self.in_place("other")), b"OTHER 4")
        self.assertEqual(len({os.fstat(handle).st_ino for handle, _ in handles}), 5)

    def test_version_set_back(self) -> None:
        """What we made after all others' last change is undone; the next change of all gets its inode once more."""
        put(self.in_place("old"), b"old")
        version = self.node.ask("state")["version"]
        put(self.in_place("mine"), b"mine")
        handle = self.hold("mine")
        (inode, *_) = self.row("mine")
        self.remember()
        self.node.ask("synchronised", [inode], [[0, 0, version, 2, 5, DT_DIR, "", ""]])
        self.node.remote("create", self.in_tree("other"))
        self.node.remote("write", self.in_tree("other"), "of the others", 0)
        self.assertEqual(self.row("other")[0], inode)
        self.assertEqual(get(self.in_place("other")), b"of the others")
        self.assert_errno(errno.ENOENT, os.pwrite, handle, b"MINE", 0)
        self.assertEqual((os.pread(handle, 100, 0), get(self.in_place("other"))), (b"mine", b"of the others"))
        put(self.in_place("third"), b"third")
        self.check_numbers()

    def test_directory(self) -> None:
        os.mkdir(self.in_place("mine"))
        put(self.in_place("mine/a"), b"mine")
        os.mkdir(self.in_place("mine/sub"))
        put(self.in_place("mine/sub/deep"), b"deep")
        self.remember()
        directory = self.hold("mine", os.O_RDONLY)
        file = self.hold("mine/a")
        deep = self.hold("mine/sub/deep")
        inode, parent, kind, _ = self.row("mine")
        a, sub = self.row("a"), self.row("sub")
        self.synchronise(
            [], [inode, parent, kind, "other", ""], [a[0], inode, a[2], "a", "of the others"], [*sub[:2], 4, "sub", ""]
        )
        self.assertEqual(os.listdir(self.place), ["other"])
        self.assertEqual(sorted(os.listdir(self.in_place("other"))), ["a", "sub"])
        self.assertEqual(get(self.in_place("other/a")), b"of the others")
        self.assertEqual(get(self.in_place("other/sub/deep")), b"deep")
        for handle in (file, deep):
            self.assert_errno(errno.ENOENT, os.pwrite, handle, b"MINE", 0)
        self.assertEqual((os.pread(file, 100, 0), os.pread(deep, 100, 0)), (b"mine", b"deep"))
        self.assert_errno(errno.ENOENT, os.listdir, directory)
        for name in ("a", "sub", "new"):
            self.assert_errno(errno.ENOENT, os.stat, name, dir_fd=directory)
        self.assert_errno(errno.ENOENT, os.open, "new", os.O_CREAT | os.O_WRONLY, dir_fd=directory)
        self.assert_errno(errno.ENOENT, os.mkdir, "new", dir_fd=directory)
        self.assert_errno(errno.ENOENT, os.rename, "a", "b", src_dir_fd=directory, dst_dir_fd=directory)
        self.assert_errno(errno.ENOENT, os.rename, self.in_place("other/a"), "b", dst_dir_fd=directory)
        self.assert_errno(errno.ENOENT, os.unlink, "a", dir_fd=directory)
        self.check_numbers()
        # The new one is as good as any.
        put(self.in_place("other/new"), b"new")
        os.rename(self.in_place("other/new"), self.in_place("other/sub/new"))
        os.mkdir(self.in_place("other/sub/dir"))
        self.assertEqual(sorted(os.listdir(self.in_place("other/sub"))), ["deep", "dir", "new"])
        self.node.remote("write", self.in_tree("other/sub/new"), "newer")
        self.node.remote("delete", self.in_tree("other/a"))
        self.assertEqual(get(self.in_place("other/sub/new")), b"newer")
        self.assertEqual(os.listdir(self.in_place("other")), ["sub"])
        self.check_numbers()

    def test_empty_directories(self) -> None:
        """All empty directories share one table of names: their listings are told apart nevertheless."""
        os.mkdir(self.in_place("mine"))
        self.remember()
        inode, parent, kind, _ = self.row("mine")
        self.synchronise([], [inode, parent, kind, "other", ""])
        self.assertEqual(os.listdir(self.in_place("other")), [])
        self.check_numbers()

    def test_another_type(self) -> None:
        put(self.in_place("mine"), b"mine")
        os.mkdir(self.in_place("dir"))
        self.remember()
        handle, directory = self.hold("mine"), self.hold("dir", os.O_RDONLY)
        mine, dir = self.row("mine"), self.row("dir")
        self.synchronise([], [mine[0], mine[1], 4, "mine", ""], [dir[0], dir[1], 8, "dir", "a file"])
        self.assertEqual(os.listdir(self.in_place("mine")), [])
        self.assertEqual(get(self.in_place("dir")), b"a file")
        self.assertEqual(os.pread(handle, 100, 0), b"mine")
        self.assert_errno(errno.ENOENT, os.pwrite, handle, b"MINE", 0)
        self.assert_errno(errno.ENOENT, os.listdir, directory)
        self.check_numbers()

    def test_two_change_places(self) -> None:
        put(self.in_place("mine"), b"mine")
        put(self.in_place("other"), b"other")
        self.remember()
        handles = [self.hold("mine"), self.hold("other")]
        mine, other = self.row("mine"), self.row("other")
        self.synchronise([], [*other[:3], "mine", "MINE"], [*mine[:3], "other", "OTHER"])
        self.assertEqual((get(self.in_place("mine")), get(self.in_place("other"))), (b"MINE", b"OTHER"))
        self.assertEqual([os.pread(handle, 100, 0) for handle in handles], [b"mine", b"other"])
        for handle in handles:
            self.assert_errno(errno.ENOENT, os.pwrite, handle, b"lost", 0)
        self.check_numbers()

    def test_rename_and_deletion_of_the_new_file(self) -> None:
        """An entry with an id of its own lives on as any other."""
        put(self.in_place("mine"), b"mine")
        inode, parent, kind, _ = self.row("mine")
        self.synchronise([], [inode, parent, kind, "other", "of the others"])
        handle = self.hold("other")
        os.rename(self.in_place("other"), self.in_place("renamed"))
        self.assertEqual(get(self.in_place("renamed")), b"of the others")
        os.pwrite(handle, b"OF", 0)
        self.assertEqual(get(self.in_place("renamed")), b"OF the others")
        self.node.remote("rename", self.in_tree("renamed"), self.in_tree("elsewhere"))
        self.assertEqual((os.listdir(self.place), get(self.in_place("elsewhere"))), (["elsewhere"], b"OF the others"))
        self.node.remote("write", self.in_tree("elsewhere"), "as")
        self.assertEqual(os.pread(handle, 100, 0), b"as the others")
        self.node.ask("quorate", False)
        self.assertEqual(os.fstat(handle).st_mode & 0o777, 0o440)
        self.node.ask("quorate", True)
        self.assertEqual(os.fstat(handle).st_mode & 0o777, 0o640)
        self.node.remote("delete", self.in_tree("elsewhere"))
        self.assertEqual((os.listdir(self.place), os.pread(handle, 100, 0)), ([], b"as the others"))
        self.assert_errno(errno.ENOENT, os.pwrite, handle, b"lost", 0)

    def test_more_than_can_be_told_one_by_one(self) -> None:
        for number in range(40):
            put(self.in_place(f"f{number}"), b"mine")
        self.remember()
        handles = [self.hold(f"f{number}") for number in range(40)]
        rows = [self.row(f"f{number}") for number in range(40)]
        self.node.ask("limit", 10)
        self.synchronise([], *[[*row[:3], f"g{number}", f"other {number}"] for number, row in enumerate(rows)])
        for number, handle in enumerate(handles):
            self.assertFalse(os.path.exists(self.in_place(f"f{number}")))
            self.assertEqual(get(self.in_place(f"g{number}")), b"other %d" % number)
            self.assertEqual(os.pread(handle, 100, 0), b"mine")
            self.assert_errno(errno.ENOENT, os.pwrite, handle, b"lost", 0)
            self.assertEqual(get(self.in_place(f"g{number}")), b"other %d" % number)
        self.check_numbers()


def tree_of(*changes: Change) -> Tree:
    tree = Tree.new(1)
    for change in changes:
        tree = tree.apply(change, 0, 2).tree
    return tree


def entry_of(inode: int, name: bytes, parent: int = 0, data: bytes = b"", kind: int = DT_REG) -> Entry:
    return Entry(inode, parent, 99, 2, 5, kind, name, data)


def synchronised(before: Tree, *stored: Entry, deleted: tuple[int, ...] = (), version: int | None = None) -> Delta:
    root = None if version is None else Entry(0, 0, version, 2, 5, DT_DIR, b"")
    return Delta(before.replaced(deleted, stored, root), stored, deleted, True)


class NodeIdTests(unittest.SynchronousTestCase):
    """Which node ids are exchanged, without a kernel."""

    def setUp(self) -> None:
        # Inodes: d 2, d/a 3, f 4, g 5 until it was deleted; version 6.
        self.view = MemoryView(tree_of(Mkdir(b"d"), Create(b"d/a"), Create(b"f"), Create(b"g"), Delete(b"g")))
        self.nodes = NodeIds(self.view)
        self.nodes.begin()

    def synchronise(self, *stored: Entry, deleted: tuple[int, ...] = (), version: int | None = None) -> set[int]:
        """Exchanged inodes."""
        delta = synchronised(self.view.tree, *stored, deleted=deleted, version=version)
        replacement = self.nodes.replacing(self.view.tree, delta)
        self.view.tree = delta.tree
        self.nodes.replaced()
        return set(replacement.exchanged)

    def node(self, inode: int) -> int:
        return self.nodes.published()[1].node_of(inode)

    def test_nothing_is_exchanged_without_need(self) -> None:
        self.assertEqual(self.synchronise(entry_of(4, b"f", data=b"x"), entry_of(3, b"a", 2), deleted=()), set())
        self.assertEqual(self.synchronise(*[entry_of(inode, b"%d" % inode) for inode in range(7, 30)]), set())
        self.assertEqual(self.synchronise(deleted=(7, 8)), set())
        numbering = self.nodes.published()[1]
        self.assertEqual(numbering.exchanged(), {})
        self.assertEqual([(self.node(inode), numbering.inode_of(inode + 1)) for inode in (0, 4)], [(1, 0), (5, 4)])

    def test_what_may_be_another(self) -> None:
        for stored in (
            entry_of(4, b"other"),
            entry_of(4, b"other", 2),
            entry_of(4, b"other", kind=DT_DIR),
            entry_of(5, b"g"),
            entry_of(6, b"h"),
        ):
            self.setUp()
            self.assertEqual(self.synchronise(stored), {stored.inode}, stored.name)
            numbering = self.nodes.published()[1]
            self.assertEqual(numbering.node_of(stored.inode), FIRST_EXCHANGED)
            self.assertEqual(numbering.inode_of(FIRST_EXCHANGED), stored.inode)
            tree = self.view.tree
            self.assertIsNone(tree.entry(numbering.inode_of(stored.inode + 1)))
            self.assertIsNone(tree.path_of(numbering.inode_of(stored.inode + 1)))

    def test_what_is_in_a_directory_goes_with_it(self) -> None:
        self.assertEqual(self.synchronise(entry_of(2, b"e", kind=DT_DIR)), {2, 3})

    def test_inodes_above_the_version(self) -> None:
        """They were deleted since; only a made-up database has them."""
        self.view.tree = Tree.load([entry_of(50, b"f")], Tree.new(1).root)
        self.nodes = NodeIds(self.view)
        self.nodes.begin()
        self.view.tree = self.view.tree.apply(Delete(b"f"), 0, 3).tree
        self.assertEqual(self.synchronise(entry_of(50, b"f")), {50})
        self.assertEqual(self.synchronise(entry_of(60, b"x")), set())
        self.assertEqual(self.synchronise(deleted=(60,)), set())
        self.assertEqual(self.synchronise(entry_of(60, b"y")), {60})

    def test_what_is_remembered_is_bounded_by_the_tree(self) -> None:
        seen = set()
        for number in range(20):
            self.synchronise(entry_of(4, b"x%d" % number), entry_of(5, b"y%d" % number))
            seen.add(self.node(4))
            self.synchronise(deleted=(5,))
        self.assertEqual(len(seen), 20)
        self.synchronise(entry_of(4, b"f"))
        numbering = self.nodes.published()[1]
        self.assertEqual(set(numbering.exchanged()), {4})
        tree = self.view.tree
        self.assertEqual({tree.entry(numbering.inode_of(node)) for node in seen}, {None})

    def test_version_set_back_again(self) -> None:
        """Inodes that are made once more have other node ids each time; those above what there was have their own."""
        ids = {inode: [inode + 1] for inode in range(3, 10)}
        for version, newest in ((3, 7), (5, 9), (2, 8), (4, 9)):
            gone = tuple(entry.inode for entry in self.view.tree.entries() if entry.inode > version)
            self.assertEqual(self.synchronise(deleted=gone, version=version), set())
            for inode in range(version + 1, newest + 1):
                self.view.tree = self.view.tree.apply(Create(b"n%d" % inode), 0, 3).tree
                if self.node(inode) not in ids[inode]:
                    ids[inode].append(self.node(inode))
            tree, numbering = self.nodes.published()
            for entry in tree.entries():
                self.assertEqual(numbering.inode_of(numbering.node_of(entry.inode)), entry.inode)
            for inode, nodes in ids.items():
                for node in nodes:
                    if node != self.node(inode):
                        self.assertIsNone(tree.entry(numbering.inode_of(node)))
        self.assertEqual(
            {inode: len(nodes) for inode, nodes in ids.items()}, {3: 2, 4: 3, 5: 4, 6: 5, 7: 4, 8: 3, 9: 2}
        )
        every = [node for nodes in ids.values() for node in nodes]
        self.assertEqual(len(set(every)), len(every))

    def test_what_is_above_a_version_set_back(self) -> None:
        """Only a made-up database has it: it keeps its node id."""
        self.synchronise(entry_of(60, b"x"))
        before = self.node(60)
        self.synchronise(version=3)
        self.assertEqual((self.node(60), self.nodes.published()[1].inode_of(before)), (before, 60))

    def test_ids_that_would_mean_something_else(self) -> None:
        """Made-up inodes: they have no id, and no id leads to them."""
        numbering = Numbering({})
        for inode in (FIRST_EXCHANGED - 1, FIRST_EXCHANGED, FIRST_COMPUTED - 1, FIRST_COMPUTED + 70, 2**64 - 1):
            self.assertEqual(numbering.node_of(inode), NOWHERE)
            tree = Tree.load([entry_of(inode, b"f")], Tree.new(1).root)
            self.assertIsNone(tree.entry(numbering.inode_of(inode + 1)))
        self.assertEqual(numbering.inode_of(numbering.node_of(FIRST_EXCHANGED - 2)), FIRST_EXCHANGED - 2)

    def test_between_the_steps(self) -> None:
        """Tree and numbering belong together at every moment, also when the one changes between two looks at the
        other."""
        old, before = self.nodes.published()[1], self.view.tree
        delta = synchronised(before, entry_of(4, b"other"))
        nodes, after = self.nodes, delta.tree
        new = nodes.replacing(before, delta).after

        def look() -> tuple[Tree, int]:
            tree, numbering = nodes.published()
            return tree, numbering.node_of(4)

        self.assertEqual(look(), (before, 5))
        self.view.tree = after
        self.assertEqual(look(), (after, FIRST_EXCHANGED))
        nodes.replaced()
        self.assertEqual(look(), (after, FIRST_EXCHANGED))
        self.assertEqual((old.node_of(4), new.node_of(4)), (5, FIRST_EXCHANGED))

    def test_a_reader_who_is_overtaken(self) -> None:
        """All ways in which a synchronisation and a change after it can pass a reader who looks up to three times."""
        before = self.view.tree
        delta = synchronised(before, entry_of(4, b"other"))
        later = delta.tree.apply(Create(b"later"), 0, 3).tree

        class Overtaking:
            """A view that takes steps before and after it is looked at.

            @ivar steps: what is left to do, in order.
            @ivar schedule: how many of them before the first look, after it, before the second, and so on.
            """

            def __init__(self, schedule: tuple[int, ...]) -> None:
                self.now = before
                self.nodes = nodes = NodeIds(self)  # type: ignore[arg-type]  # all that is looked at
                self.schedule = list(schedule)
                self.steps: list[Callable[[], object]] = [
                    lambda: nodes.replacing(before, delta),
                    lambda: setattr(self, "now", delta.tree),
                    nodes.replaced,
                    lambda: setattr(self, "now", later),
                ]

            def go_on(self) -> None:
                for _ in range(self.schedule.pop(0) if self.schedule else 0):
                    self.steps.pop(0)()

            @property
            def tree(self) -> Tree:
                self.go_on()
                tree = self.now
                self.go_on()
                return tree

        for schedule in product(range(5), repeat=5):
            if sum(schedule) <= 4:
                view = Overtaking(schedule)
                view.go_on()
                tree, numbering = view.nodes.published()
                node = 5 if tree is before else FIRST_EXCHANGED
                self.assertEqual((numbering.node_of(4), numbering.inode_of(node)), (node, 4), schedule)
                for node in (5, FIRST_EXCHANGED):
                    view = Overtaking(schedule)
                    view.go_on()
                    tree, entry = view.nodes.find(node)
                    self.assertIs(entry, tree.entry(4) if (node == 5) == (tree is before) else None, schedule)

    def test_the_cost_of_a_first_synchronisation(self) -> None:
        """All that is new to the node needs nothing."""
        self.synchronise(*[entry_of(inode, b"f%d" % inode) for inode in range(100, 5100)])
        self.assertEqual(self.nodes.published()[1].exchanged(), {})


class DirectReactor(Clock):
    def callFromThread(self, callable: Any, *arguments: object) -> None:
        callable(*arguments)


class PublicationTests(unittest.SynchronousTestCase):
    """Requests during the publication of a synchronisation, by the ledger and with the file system."""

    def setUp(self) -> None:
        tree = tree_of(Create(b"mine"), Write(b"mine", b"mine"), Mkdir(b"d"))
        self.mine = 3  # node id
        reactor = DirectReactor()
        self.view = NodeView(tree, b"n1", Limits(), True, False, lambda enabled: None)
        self.store = MemoryStore(tree)
        self.ledger = Ledger(reactor, self.store, self.view)
        self.nodes = NodeIds(self.view)
        graves = Graves()
        self.cache = KernelCache(self.nodes, graves)
        self.nodes.begin()
        self.ledger.kernel_cache = self.cache
        self.proposed: list[Change] = []
        proposer = MemoryProposer(MemoryView(tree))
        self.patch(proposer, "propose", lambda change, *_: self.proposed.append(change))
        self.files = FileSystem(
            reactor, self.view, proposer, Attributes(0, 0), graves, self.cache, self.nodes, alone=False
        )
        self.answers: list[Any] = []
        self.patch(filesystem, "reply_buf", self.reply)
        self.patch(filesystem, "reply_err", lambda _request, number: self.answers.append(number))

    def reply(self, _request: int, data: Any, _size: int) -> int:
        self.answers.append(data)
        return 0

    def look(self) -> tuple[dict[bytes, int], Any, Any, bool]:
        """What the kernel would learn now: node ids of names (0: no such name), as answered; the old node's content
        and size; and whether a write through it would be proposed."""
        names = {}
        for name in (b"mine", b"other"):
            self.files._lookup(0, 1, name)
            names[name] = ENTRY_OUT.unpack(self.answers.pop())[0]
        self.files._read(0, self.mine, 4096, 0, None)
        content = self.answers.pop()
        self.files._getattr(0, self.mine, None)
        attributes = self.answers.pop()
        size = ATTR_OUT.unpack(attributes)[4] if isinstance(attributes, bytes) else attributes
        self.files._write(0, self.mine, 0, 0, 0, _NO_FLAGS)
        proposed = self.proposed == [Write(b"mine", b"", 0)]
        self.assertEqual((self.proposed == []), not proposed)
        self.proposed.clear()
        self.answers.clear()
        return names, content, size, proposed

    def test_every_moment(self) -> None:
        seen = []
        publishing, changed = self.cache.publishing, self.cache.changed

        def publishing_watched(before: Tree, delta: Delta, meant: Meant | None) -> bool:
            seen.append(self.look())
            tell = publishing(before, delta, meant)
            seen.append(self.look())
            return tell

        def changed_watched(before: Tree, after: Tree, delta: Delta) -> None:
            seen.append(self.look())
            changed(before, after, delta)
            seen.append(self.look())

        self.patch(self.cache, "publishing", publishing_watched)
        self.patch(self.cache, "changed", changed_watched)
        self.ledger.commit(synchronised(self.view.tree, entry_of(2, b"other", data=b"of the others")))
        before = ({b"mine": 3, b"other": 0}, b"mine", 4, True)
        after = ({b"mine": 0, b"other": FIRST_EXCHANGED}, b"mine", 4, False)
        self.assertEqual(seen, [before, before, after, after])

    def test_answers_after_a_synchronisation(self) -> None:
        """A request was begun before, and is answered after its directory was exchanged."""
        directory = self.nodes.published()[1].node_of(4)
        finish = self.files._finish_made(directory, b"new")
        old = self.view.tree.lookup(b"mine")
        assert old is not None
        finish_setattr = self.files._finish_attributes(self.mine, 1, old)
        self.ledger.commit(
            synchronised(
                self.view.tree,
                entry_of(4, b"e", kind=DT_DIR),
                entry_of(5, b"new", 4),
                entry_of(2, b"x", data=b"of the others"),
            )
        )
        finish(0, 0)
        self.assertEqual(self.answers.pop(), errno.ENOENT)
        finish_setattr(0, 0)
        attributes = ATTR_OUT.unpack(self.answers.pop())
        self.assertEqual((attributes[3], attributes[4], attributes[12] & 0o170000), (self.mine, 4, 0o100000))

    def test_changes_in_a_row_are_not_read_again(self) -> None:
        """The next one comes with the answer to the one before. What was read in between is dropped."""
        forgotten: list[int] = []
        self.patch(self.files._kernel, "forget_content", forgotten.append)
        last: list[Finish] = []

        def answered(_request: int, _outcome: int) -> None:
            last.append(self.files._unless_read(self.mine, lambda request, outcome: None))

        self.files._unless_read(self.mine, answered)(0, 5)
        last.pop()(0, 5)
        self.assertEqual(forgotten, [])
        finish = self.files._unless_read(self.mine, lambda request, outcome: None)
        self.files._read(0, self.mine, 4096, 0, None)
        finish(0, 5)
        self.assertEqual(forgotten, [self.mine])

    def test_listing_numbers(self) -> None:
        self.files._readdir(0, 5, 4096, 0, None)
        self.assertEqual(DIRENT.unpack_from(self.answers.pop())[0], 5)
        self.ledger.commit(synchronised(self.view.tree, entry_of(4, b"e", kind=DT_DIR)))
        self.files._readdir(0, FIRST_EXCHANGED, 4096, 0, None)
        self.assertEqual(DIRENT.unpack_from(self.answers.pop())[0], FIRST_EXCHANGED)
        self.files._readdir(0, 5, 4096, 0, None)
        self.assertEqual(self.answers.pop(), b"")


class _Flags:
    contents = lowlevel.FileInfo()


_NO_FLAGS = _Flags()
