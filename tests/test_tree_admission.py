"""What is refused where a change is submitted, and only there; the numbers of statfs."""

from __future__ import annotations

from errno import EACCES, EFBIG, EINVAL, ENAMETOOLONG, ENOENT, ENOSPC, ENOTEMPTY

from twisted.trial.unittest import SynchronousTestCase

from pvecfs.tree.admission import Limits, Room, admit, room
from pvecfs.tree.changes import Change, Create, Delete, Mkdir, Rename, SetMtime, Write
from pvecfs.tree.errors import OperationError
from pvecfs.tree.tree import MAX_FILE_BYTES, Tree


class AdmissionTests(SynchronousTestCase):
    def setUp(self) -> None:
        tree = Tree.new(1)
        directories = (b"nodes", b"nodes/n1", b"nodes/n.2", b"full", b"dir")
        files = (b"full/x", b"empty", b"file")
        changes: list[Change] = [*map(Mkdir, directories), *map(Create, files), Write(b"file", b"content")]
        for change in changes:
            tree = tree.apply(change, 1, 1).tree
        self.tree = tree
        self.limits = Limits()

    def passes(self, change: Change) -> None:
        self.assertIs(admit(self.tree, change, self.limits), change)

    def refused(self, errno: int, change: Change) -> None:
        error = self.assertRaises(OperationError, admit, self.tree, change, self.limits)
        self.assertEqual(error.errno, errno, change)

    def test_what_the_tree_refuses_is_left_to_it(self) -> None:
        for path in (b"missing/x", b"file/x", b"file", b"dir", b"", b".", b"dir/.."):
            self.passes(Create(path))
            self.passes(Mkdir(path))
            self.passes(Write(path, b"x"))
            self.passes(SetMtime(path, 1))
            self.passes(Delete(path))
            self.passes(Rename(path, b"new"))
            self.passes(Rename(b"file", path))

    def test_rename_of_directories(self) -> None:
        self.refused(ENOTEMPTY, Rename(b"full", b"new"))
        self.refused(ENOTEMPTY, Rename(b"full", b"dir"))
        self.refused(EINVAL, Rename(b"dir", b"dir/x"))
        self.refused(EINVAL, Rename(b"full", b"/full//x/y"))
        self.passes(Rename(b"dir", b"dirx"))
        self.passes(Rename(b"full", b"full"))
        self.refused(ENOENT, Rename(b"full", b"missing/x"))  # the tree's order of errors
        self.passes(Rename(b"file", b"file/x"))

    def test_files_where_directories_of_configs_belong(self) -> None:
        for node in (b"n1", b"n.2"):
            for kind in (b"qemu-server", b"lxc", b"openvz"):
                path = b"nodes/" + node + b"/" + kind
                self.refused(EACCES, Create(path))
                self.refused(EACCES, Rename(b"file", path))
                self.passes(Mkdir(path))
                self.passes(Rename(b"dir", path))
        self.passes(Create(b"nodes/n1/config"))

    def test_long_names(self) -> None:
        for name in (b"n" * 256, b"dir/" + b"n" * 256):
            self.refused(ENAMETOOLONG, Create(name))
            self.refused(ENAMETOOLONG, Mkdir(name))
            self.refused(ENAMETOOLONG, Rename(b"file", name))
            self.passes(Write(name, b"x"))
            self.passes(Delete(name))
            self.passes(Rename(name, b"short"))
            self.passes(SetMtime(name, 1))
        self.passes(Create(b"n" * 255))
        self.refused(EINVAL, Create(b"a\0b"))

    def test_large_files(self) -> None:
        self.refused(EFBIG, Write(b"file", b"x", MAX_FILE_BYTES))
        self.refused(EFBIG, Write(b"file", b"", 2**32, True))
        self.refused(EFBIG, Write(b"missing", b"x", 2**40))
        self.refused(EINVAL, Write(b"file", b"x", -1))
        self.passes(Write(b"file", b"x", MAX_FILE_BYTES - 1))

    def test_no_room_for_bytes(self) -> None:
        self.limits = Limits(max_bytes=10)  # 7 are used
        self.passes(Write(b"file", b"xxx", 7))
        self.refused(ENOSPC, Write(b"file", b"xxxx", 7))
        self.refused(ENOSPC, Write(b"file", b"", 11, True))
        self.refused(ENOSPC, Write(b"empty", b"xxxx"))
        self.passes(Write(b"empty", b"xxx"))
        self.refused(EFBIG, Write(b"file", b"", MAX_FILE_BYTES + 1, True))

    def test_beyond_the_limit_only_growth_is_refused(self) -> None:
        self.limits = Limits(max_bytes=3, max_entries=2)
        self.passes(Write(b"file", b"CONTENT"))
        self.passes(Write(b"file", b"", 5, True))
        self.passes(Write(b"file", b"", 0))
        self.passes(Rename(b"file", b"renamed"))
        self.passes(Delete(b"file"))
        self.refused(ENOSPC, Write(b"file", b"CONTENT!"))

    def test_no_room_for_entries(self) -> None:
        self.limits = Limits(max_entries=len(self.tree))
        for change in (Create(b"new"), Mkdir(b"new")):
            self.refused(ENOSPC, change)
        self.passes(Create(b"file"))  # exists: the tree says so
        self.passes(Mkdir(b"dir"))
        self.limits = Limits(max_entries=len(self.tree) + 1)
        self.passes(Create(b"new"))

    def test_truncate_that_the_reference_does_not_survive(self) -> None:
        admitted = admit(self.tree, Write(b"empty", b"", 10, True), self.limits)
        self.assertEqual(admitted, Write(b"empty", b"\0", 9))
        entry = self.tree.apply(admitted, 1, 1).tree.lookup(b"empty")
        assert entry is not None
        self.assertEqual(entry.data, bytes(10))
        self.assertEqual(admit(self.tree, Write(b"empty", b"ab", 3, True), self.limits), Write(b"empty", b"ab", 3))

    def test_truncates_that_it_does(self) -> None:
        self.passes(Write(b"empty", b"", 0, True))
        self.passes(Write(b"file", b"", 0, True))
        self.passes(Write(b"file", b"", 10, True))


class RoomTests(SynchronousTestCase):
    def test_defaults(self) -> None:
        self.assertEqual(room(Tree.new(1), Limits()), Room(4096, 32768, 32768, 262144, 262143, 255))

    def test_used(self) -> None:
        tree = Tree.new(1).apply(Create(b"x"), 1, 1).tree
        for size, free in ((0, 32768), (1, 32767), (4096, 32767), (4097, 32766)):
            self.assertEqual(room(tree.apply(Write(b"x", bytes(size)), 1, 1).tree, Limits()).free_blocks, free)

    def test_never_below_nothing(self) -> None:
        tree = Tree.new(1).apply(Create(b"x"), 1, 1).tree.apply(Write(b"x", bytes(9000)), 1, 1).tree
        self.assertEqual(room(tree, Limits(4096, 1)), Room(4096, 1, 0, 1, 0, 255))
