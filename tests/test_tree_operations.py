"""Each row of the table of operations in 10-tree.md: rules, errors, and which error comes first."""

from __future__ import annotations

from errno import EACCES, EEXIST, EFBIG, EIO, ENOENT, ENOTDIR, ENOTEMPTY

from twisted.trial.unittest import SynchronousTestCase

from pvecfs.tree.changes import Change, Create, Delete, Mkdir, Rename, SetMtime, Write
from pvecfs.tree.entry import DT_DIR, DT_REG, Entry
from pvecfs.tree.errors import OperationError
from pvecfs.tree.tree import MAX_FILE_BYTES, Tree
from tests.trees import unreachable

CONF = b"nodes/n1/qemu-server/100.conf"


def grown(*changes: Change, tree: Tree | None = None, writer: int = 1, mtime: int = 1000) -> Tree:
    """A tree after C{changes}, each of which succeeds."""
    tree = Tree.new(1) if tree is None else tree
    for change in changes:
        tree = tree.apply(change, writer, mtime).tree
    return tree


def furnished() -> Tree:
    """A file, directories empty and full, two nodes, a VM and a lock."""
    directories = (
        b"dir full priv priv/lock priv/lock/l nodes nodes/n1 nodes/n2 nodes/n1/qemu-server nodes/n1/lxc".split()
    )
    return grown(
        *map(Mkdir, directories),
        Mkdir(b"nodes/n2/qemu-server"),
        Create(b"file"),
        Write(b"file", b"content"),
        Create(b"full/x"),
        Create(CONF),
    )


class OperationCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.tree = furnished()

    def refused(self, errno: int, change: Change, writer: int = 1, mtime: int = 1000, tree: Tree | None = None) -> None:
        """C{change} fails with C{errno}, and nothing is changed or counted."""
        tree = self.tree if tree is None else tree
        before = (tree.index(), tree.vms.version, tree.counters.items())
        error = self.assertRaises(OperationError, tree.apply, change, writer, mtime)
        self.assertEqual(error.errno, errno, f"{change}: {error}")
        self.assertEqual((tree.index(), tree.vms.version, tree.counters.items()), before)

    def found(self, tree: Tree, path: bytes) -> Entry:
        entry = tree.lookup(path)
        assert entry is not None, path
        return entry


class PathTests(OperationCase):
    def test_root(self) -> None:
        for path in (b"", b".", b"/", b"//"):
            self.assertIs(self.tree.lookup(path), self.tree.root)

    def test_empty_components_do_not_count(self) -> None:
        self.assertIs(self.tree.lookup(b"//full///x/"), self.tree.lookup(b"full/x"))

    def test_dot_is_a_name_elsewhere(self) -> None:
        for path in (b"./file", b"full/.", b"full/./x", b"full/..", b".."):
            self.assertIsNone(self.tree.lookup(path))

    def test_nothing_below_a_file(self) -> None:
        self.assertIsNone(self.tree.lookup(b"file/x"))
        self.assertIsNone(self.tree.lookup(b"file/x/y"))

    def test_children_stay_the_same_object(self) -> None:
        inode = self.found(self.tree, b"full").inode
        after = grown(Write(b"full/x", b"1"), Create(b"dir/new"), tree=self.tree)
        self.assertIs(after.children(inode), self.tree.children(inode))
        self.assertEqual(dict(after.children(inode)), {b"x": self.found(after, b"full/x").inode})
        self.assertEqual(dict(after.children(self.found(after, b"file").inode)), {})
        self.assertEqual(after.child(inode, b"x"), after.lookup(b"full/x"))
        self.assertIsNone(after.child(inode, b"y"))

    def test_path_of(self) -> None:
        self.assertEqual(self.tree.path_of(0), b"")
        self.assertEqual(self.tree.path_of(self.found(self.tree, CONF).inode), CONF)
        self.assertIsNone(self.tree.path_of(9999))


class RootTests(OperationCase):
    def test_every_change_moves_the_root(self) -> None:
        changes: list[Change] = [
            Create(b"new"),
            Write(b"file", b"1"),
            Mkdir(b"new"),
            Delete(b"file"),
            Rename(b"file", b"new"),
        ]
        for change in changes:
            after = self.tree.apply(change, 7, 5000).tree
            root = after.root
            self.assertEqual((root.version, root.writer, root.mtime), (self.tree.version + 1, 7, 5000))
            self.assertEqual((root.inode, root.parent, root.type, root.name, root.size), (0, 0, DT_DIR, b"", 0))

    def test_new(self) -> None:
        tree = Tree.new(2**32 + 5)
        self.assertEqual((tree.version, tree.root.writer, tree.root.mtime, len(tree)), (1, 0, 5, 1))

    def test_mtime_is_cut(self) -> None:
        self.assertEqual(self.found(grown(Create(b"new"), mtime=2**32 + 3), b"new").mtime, 3)


class CreateTests(OperationCase):
    def test_entry(self) -> None:
        applied = self.tree.apply(Create(b"dir/new"), 3, 77)
        entry = self.found(applied.tree, b"dir/new")
        version = self.tree.version + 1
        directory = self.found(self.tree, b"dir").inode
        self.assertEqual(entry, Entry(version, directory, version, 3, 77, DT_REG, b"new"))
        self.assertEqual((applied.result, applied.delta.stored, applied.delta.deleted), (0, (entry,), ()))
        self.assertIs(applied.delta.tree, applied.tree)
        self.assertFalse(applied.delta.synchronised)

    def test_errors(self) -> None:
        self.refused(ENOENT, Create(b"missing/x"))
        self.refused(ENOENT, Create(b"file/x/y"))
        self.refused(ENOTDIR, Create(b"file/x"))
        for path in (b"", b".", b"..", b"dir/.", b"dir/.."):
            self.refused(EACCES, Create(path))
        self.refused(EEXIST, Create(b"nodes/n2/qemu-server/100.conf"))
        self.refused(EEXIST, Create(b"nodes/n1/lxc/100.conf"))
        self.refused(ENOTDIR, Create(b"dir"))
        self.refused(EEXIST, Create(b"file"))

    def test_order(self) -> None:
        self.refused(ENOENT, Create(b"missing/.."))
        self.refused(ENOTDIR, Create(b"file/.."))
        self.refused(ENOENT, Create(b"nodes/n3/qemu-server/100.conf"))
        tree = grown(Mkdir(b"nodes/n1/lxc/100.conf"), tree=self.tree)
        self.refused(EEXIST, Create(b"nodes/n1/lxc/100.conf"), tree=tree)

    def test_inode_in_use(self) -> None:
        """Row 0 was set back: better an error than the loss of the entry that has the inode."""
        tree = Tree.load([Entry(5, 0, 5, 1, 1, DT_REG, b"a")], Entry(0, 0, 4, 0, 1, DT_DIR, b""))
        self.refused(EIO, Create(b"b"), tree=tree)
        self.refused(EIO, Mkdir(b"b"), tree=tree)

    def test_a_version_at_its_end(self) -> None:
        """The next would be 0, the root's inode."""
        root = Entry(0, 0, 2**64 - 2, 1, 1000, DT_DIR, b"")
        tree = Tree.load([entry for entry in self.tree.entries() if entry.inode], root)
        tree = grown(Create(b"last"), tree=tree)
        self.assertEqual(self.found(tree, b"last").inode, 2**64 - 1)
        for change in (
            Create(b"b"),
            Mkdir(b"b"),
            Write(b"file", b"x"),
            Delete(b"file"),
            Rename(b"file", b"b"),
            SetMtime(b"file", 5),
        ):
            self.refused(EIO, change, tree=tree)
        self.refused(ENOENT, Delete(b"b"), tree=tree)

    def test_file_where_vm_configs_live_is_applied_when_delivered(self) -> None:
        tree = grown(Mkdir(b"nodes"), Mkdir(b"nodes/n1"), Create(b"nodes/n1/qemu-server"))
        self.assertEqual(self.found(tree, b"nodes/n1/qemu-server").type, DT_REG)

    def test_long_names_are_applied_when_delivered(self) -> None:
        name = b"n" * 300
        tree = grown(Create(name), Write(name, b"1"))
        self.assertEqual(self.found(tree, name).data, b"1")
        self.assertEqual(len(grown(Delete(name), tree=tree)), 1)


class WriteTests(OperationCase):
    def written(self, *changes: Write) -> bytes:
        return self.found(grown(*changes, tree=self.tree), b"file").data

    def test_overwrite(self) -> None:
        self.assertEqual(self.written(Write(b"file", b"CO")), b"COntent")
        self.assertEqual(self.written(Write(b"file", b"T", 3)), b"conTent")
        self.assertEqual(self.written(Write(b"file", b"another one")), b"another one")
        self.assertEqual(self.written(Write(b"file", b"", 2)), b"content")

    def test_growth(self) -> None:
        self.assertEqual(self.written(Write(b"file", b"ENT!", 4)), b"contENT!")
        self.assertEqual(self.written(Write(b"file", b"x", 9)), b"content\0\0x")
        self.assertEqual(self.written(Write(b"file", b"", 9)), b"content\0\0")

    def test_truncate(self) -> None:
        self.assertEqual(self.written(Write(b"file", b"", 3, True)), b"con")
        self.assertEqual(self.written(Write(b"file", b"", 0, True)), b"")
        self.assertEqual(self.written(Write(b"file", b"", 9, True)), b"content\0\0")
        self.assertEqual(self.written(Write(b"file", b"XY", 1, True)), b"cXY")
        self.assertEqual(self.written(Write(b"file", b"XY", 8, True)), b"content\0XY")

    def test_truncate_of_an_empty_file_zero_fills(self) -> None:
        """90-beyond.md, first row, as it is delivered."""
        self.assertEqual(self.written(Write(b"file", b"", 0, True), Write(b"file", b"", 10, True)), bytes(10))

    def test_entry(self) -> None:
        before = self.found(self.tree, b"file")
        applied = self.tree.apply(Write(b"file", b"12345", 4), 3, 77)
        entry = self.found(applied.tree, b"file")
        expected = Entry(before.inode, 0, self.tree.version + 1, 3, 77, DT_REG, b"file", b"cont12345")
        self.assertEqual(entry, expected)
        self.assertEqual((applied.result, applied.delta.stored, applied.delta.deleted), (5, (entry,), ()))
        self.assertEqual(applied.tree.total_bytes, self.tree.total_bytes + 2)

    def test_largest_file(self) -> None:
        data = b"x" * MAX_FILE_BYTES
        self.assertEqual(self.written(Write(b"file", data)), data)
        self.assertEqual(len(self.written(Write(b"file", b"x", MAX_FILE_BYTES - 1))), MAX_FILE_BYTES)
        self.refused(EFBIG, Write(b"file", data, 1))
        self.refused(EFBIG, Write(b"file", b"", MAX_FILE_BYTES + 1, True))
        self.refused(EFBIG, Write(b"file", b"x", 2**32))

    def test_errors(self) -> None:
        self.refused(EFBIG, Write(b"missing/x", b"x", MAX_FILE_BYTES))
        self.refused(ENOENT, Write(b"missing/x", b"x"))
        self.refused(ENOENT, Write(b"file/x/y", b"x"))
        self.refused(ENOTDIR, Write(b"file/x", b"x"))
        for path in (b"", b".", b"..", b"dir/."):
            self.refused(EACCES, Write(path, b"x"))
        self.refused(EEXIST, Write(b"nodes/n2/qemu-server/100.conf", b"x"))
        self.refused(ENOTDIR, Write(b"dir", b"x"))
        self.refused(ENOENT, Write(b"missing", b"x"))

    def test_order(self) -> None:
        tree = grown(Mkdir(b"nodes/n1/lxc/100.conf"), tree=self.tree)
        self.refused(EEXIST, Write(b"nodes/n1/lxc/100.conf", b"x"), tree=tree)
        self.refused(ENOTDIR, Write(b"file/..", b"x"))


class MkdirTests(OperationCase):
    def test_entry(self) -> None:
        applied = self.tree.apply(Mkdir(b"dir/new"), 3, 77)
        version = self.tree.version + 1
        parent = self.found(self.tree, b"dir").inode
        self.assertEqual(applied.delta.stored, (Entry(version, parent, version, 3, 77, DT_DIR, b"new"),))
        self.assertEqual((applied.result, applied.delta.deleted), (0, ()))

    def test_errors(self) -> None:
        self.refused(ENOENT, Mkdir(b"missing/x"))
        self.refused(ENOENT, Mkdir(b"file/x/y"))
        self.refused(ENOTDIR, Mkdir(b"file/x"))
        self.refused(ENOTDIR, Mkdir(b"file/.."))
        for path in (b"", b".", b"..", b"dir/.", b"dir/.."):
            self.refused(EACCES, Mkdir(path))
        self.refused(EEXIST, Mkdir(b"dir"))
        self.refused(EEXIST, Mkdir(b"file"))

    def test_vm_config_path_is_not_special(self) -> None:
        tree = grown(Mkdir(b"nodes/n2/qemu-server/100.conf"), tree=self.tree)
        self.assertIs(tree.vms, self.tree.vms)


class DeleteTests(OperationCase):
    def test_file_and_directory(self) -> None:
        for path in (b"file", b"dir"):
            inode = self.found(self.tree, path).inode
            applied = self.tree.apply(Delete(path), 1, 1)
            self.assertIsNone(applied.tree.lookup(path))
            self.assertIsNone(applied.tree.entry(inode))
            self.assertEqual((applied.result, applied.delta.stored, applied.delta.deleted), (0, (), (inode,)))
        self.assertEqual(grown(Delete(b"file"), tree=self.tree).total_bytes, self.tree.total_bytes - 7)

    def test_errors(self) -> None:
        self.refused(ENOENT, Delete(b"missing"))
        self.refused(ENOENT, Delete(b"missing/x"))
        self.refused(ENOENT, Delete(b"file/x"))
        self.refused(ENOENT, Delete(b"dir/."))
        for path in (b"", b".", b"/"):
            self.refused(EACCES, Delete(path))
        self.refused(ENOTEMPTY, Delete(b"full"))


class RenameTests(OperationCase):
    def test_entry(self) -> None:
        before = self.found(self.tree, b"file")
        applied = self.tree.apply(Rename(b"file", b"dir/new"), 3, 77)
        entry = self.found(applied.tree, b"dir/new")
        parent = self.found(self.tree, b"dir").inode
        self.assertEqual(entry, Entry(before.inode, parent, self.tree.version + 1, 3, 77, DT_REG, b"new", b"content"))
        self.assertEqual((applied.result, applied.delta.stored, applied.delta.deleted), (0, (entry,), ()))
        self.assertIsNone(applied.tree.lookup(b"file"))
        self.assertEqual(applied.tree.total_bytes, self.tree.total_bytes)

    def test_target_is_replaced_whatever_it_is(self) -> None:
        for source, to in ((b"file", b"full/x"), (b"full/x", b"file"), (b"file", b"dir"), (b"dir", b"file")):
            moved, replaced = self.found(self.tree, source), self.found(self.tree, to)
            applied = self.tree.apply(Rename(source, to), 1, 1)
            self.assertEqual(applied.delta.deleted, (replaced.inode,))
            self.assertEqual(self.found(applied.tree, to).inode, moved.inode)
            self.assertEqual(len(applied.tree), len(self.tree) - 1)
            self.assertEqual(applied.tree.total_bytes, self.tree.total_bytes - replaced.size)

    def test_errors(self) -> None:
        self.refused(ENOENT, Rename(b"missing", b"new"))
        self.refused(ENOENT, Rename(b"file/x", b"new"))
        for path in (b"", b".", b"/"):
            self.refused(EACCES, Rename(path, b"new"))
        self.refused(EEXIST, Rename(b"file", b"nodes/n2/qemu-server/100.conf"))
        self.refused(EEXIST, Rename(b"file", b"nodes/n1/lxc/100.conf"))
        self.refused(EACCES, Rename(b"priv/lock/l", b"new"))
        self.refused(EACCES, Rename(b"file", b""))
        self.refused(ENOTEMPTY, Rename(b"file", b"full"))
        self.refused(ENOTEMPTY, Rename(b"dir", b"full"))
        self.refused(ENOENT, Rename(b"file", b"missing/x"))
        self.refused(ENOENT, Rename(b"file", b"full/x/y/z"))
        self.refused(ENOTDIR, Rename(b"dir", b"file/x"))
        self.refused(EACCES, Rename(b"file", b"dir/.."))
        self.refused(ENOTEMPTY, Rename(b"full", b"new"))

    def test_order(self) -> None:
        self.refused(ENOENT, Rename(b"missing", b""))
        self.refused(EEXIST, Rename(b"file", b"nodes/n3/qemu-server/100.conf"))  # before the missing parent
        self.refused(EACCES, Rename(b"priv/lock/l", b"full"))
        self.refused(EACCES, Rename(b"priv/lock/l", b"missing/x"))
        self.refused(ENOENT, Rename(b"full", b"missing/x"))  # the source that is not empty comes last
        self.refused(ENOTDIR, Rename(b"full", b"file/x"))
        self.refused(ENOTEMPTY, Rename(b"full", b"full/y"))
        self.refused(ENOTEMPTY, Rename(b"full", b"dir"))  # 90-beyond.md: the database would hold the name twice

    def test_directories_at_any_depth_below_locks(self) -> None:
        tree = grown(Mkdir(b"priv/lock/l/deep"), Create(b"priv/lock/f"), tree=self.tree)
        self.refused(EACCES, Rename(b"priv/lock/l/deep", b"new"), tree=tree)
        self.assertIsNotNone(grown(Rename(b"priv/lock/f", b"new"), tree=tree).lookup(b"new"))

    def test_config_of_the_same_vm(self) -> None:
        for to in (b"nodes/n2/qemu-server/100.conf", b"nodes/n1/lxc/100.conf"):
            self.assertIsNotNone(grown(Rename(CONF, to), tree=self.tree).lookup(to))
        self.refused(
            EEXIST,
            Rename(b"nodes/n1/lxc/101.conf", b"nodes/n2/qemu-server/100.conf"),
            tree=grown(Create(b"nodes/n1/lxc/101.conf"), tree=self.tree),
        )

    def test_a_directory_may_take_a_config_path(self) -> None:
        tree = grown(Rename(b"dir", b"nodes/n2/qemu-server/100.conf"), tree=self.tree)
        self.assertIs(tree.vms, self.tree.vms)

    def test_onto_itself(self) -> None:
        for path in (b"file", b"full", b"priv/lock/l", CONF):
            applied = self.tree.apply(Rename(path, b"/" + path), 9, 9)
            self.assertIs(applied.tree, self.tree)
            self.assertEqual((applied.result, applied.delta.stored, applied.delta.deleted), (0, (), ()))

    def test_empty_directory_into_itself_when_delivered(self) -> None:
        """Only a foreign node sends it. It hangs in the air on all nodes alike, and a restart survives it."""
        inode = self.found(self.tree, b"dir").inode
        tree = grown(Rename(b"dir", b"dir/sub"), tree=self.tree)
        entry = tree.entry(inode)
        assert entry is not None
        self.assertEqual((entry.parent, entry.name), (inode, b"sub"))
        self.assertIsNone(tree.path_of(inode))
        self.assertEqual(unreachable(tree), [entry])
        self.assertEqual(Tree.load(tree.entries(), tree.root).index(), tree.index())


class SetMtimeTests(OperationCase):
    def test_entry(self) -> None:
        before = self.found(self.tree, b"file")
        applied = self.tree.apply(SetMtime(b"file", 5), 3, 9999)
        entry = self.found(applied.tree, b"file")
        expected = Entry(before.inode, 0, self.tree.version + 1, 3, 5, DT_REG, b"file", b"content")
        self.assertEqual(entry, expected)
        self.assertEqual((applied.result, applied.delta.stored, applied.delta.deleted), (0, (entry,), ()))
        root = applied.tree.root
        self.assertEqual((root.version, root.mtime, root.writer), (self.tree.version + 1, 5, 3))

    def test_directories_too_and_cut_to_32_bits(self) -> None:
        tree = grown(SetMtime(b"full", 2**32 + 8), tree=self.tree)
        self.assertEqual(self.found(tree, b"full").mtime, 8)
        self.assertEqual(tree.root.mtime, 8)

    def test_errors(self) -> None:
        self.refused(ENOENT, SetMtime(b"missing/x", 5))
        self.refused(ENOTDIR, SetMtime(b"file/x", 5))
        self.refused(ENOTDIR, SetMtime(b"file/..", 5))
        for path in (b"", b".", b"..", b"dir/."):
            self.refused(EACCES, SetMtime(path, 5))
        self.refused(ENOENT, SetMtime(b"missing", 5))

    def test_locks(self) -> None:
        lock = b"priv/lock/l"  # by writer 1 at 1000
        self.refused(EACCES, SetMtime(lock, 999))
        self.refused(EACCES, SetMtime(lock, 0))
        self.refused(EACCES, SetMtime(lock, 2000), writer=2)
        self.assertEqual(self.found(grown(SetMtime(lock, 1000), tree=self.tree), lock).mtime, 1000)
        self.assertEqual(self.found(grown(SetMtime(lock, 2000), tree=self.tree), lock).mtime, 2000)

    def test_lock_rules_end_there(self) -> None:
        tree = grown(Mkdir(b"priv/lock/l/deep"), Create(b"priv/lock/f"), tree=self.tree)
        for path in (b"priv/lock/l/deep", b"priv/lock/f", b"priv/lock"):
            self.assertEqual(self.found(grown(SetMtime(path, 0), tree=tree, writer=2), path).mtime, 0)


class CounterTests(OperationCase):
    def test_what_counts(self) -> None:
        tree = grown(Create(b"user.cfg"), Write(b"user.cfg", b"1"), SetMtime(b"user.cfg", 1), tree=self.tree)
        self.assertEqual(tree.counters.value(b"user.cfg"), 4)
        tree = grown(Rename(b"/user.cfg", b"//jobs.cfg"), Delete(b"jobs.cfg"), tree=tree)
        self.assertEqual(tree.counters.value(b"user.cfg"), 5)
        self.assertEqual(tree.counters.value(b"jobs.cfg"), 3)
        self.assertEqual(tree.counters.value(b"storage.cfg"), 1)

    def test_mkdir_does_not(self) -> None:
        tree = grown(Mkdir(b"user.cfg"), tree=self.tree)
        self.assertEqual(tree.counters.value(b"user.cfg"), 1)
        self.assertEqual(grown(Delete(b"user.cfg"), tree=tree).counters.value(b"user.cfg"), 2)

    def test_loads_and_synchronisations_do(self) -> None:
        loaded = Tree.load(self.tree.entries(), self.tree.root)
        self.assertEqual({value for _, value in loaded.counters.items()}, {1})
        twice = loaded.replaced((), (), None).replaced((), (), None)
        self.assertEqual({value for _, value in twice.counters.items()}, {3})

    def test_unknown_path(self) -> None:
        self.assertRaises(KeyError, self.tree.counters.value, b"file")

    def test_import_does_not(self) -> None:
        """30-replication.md: inode 2, tree version 3, writer 0."""
        new = Tree.new(5)
        delta = new.imported(b"corosync.conf", b"totem {}", 6)
        entry = Entry(2, 0, 3, 0, 6, DT_REG, b"corosync.conf", b"totem {}")
        self.assertEqual((delta.stored, delta.deleted), ((entry,), ()))
        self.assertEqual((delta.tree.version, delta.tree.root.writer, delta.tree.root.mtime), (3, 0, 6))
        self.assertEqual(delta.tree.counters.items(), new.counters.items())
