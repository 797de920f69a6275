"""The VM list's rules (10-tree.md, "VM list"), and the paths they depend on."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from pvecfs.tree.changes import Change, Create, Delete, Mkdir, Rename, SetMtime, Write
from pvecfs.tree.entry import DT_REG, Entry
from pvecfs.tree.paths import (
    VmConfig,
    is_kind_directory,
    is_lock,
    is_private,
    script_executable,
    split,
    vm_config_at,
)
from pvecfs.tree.tree import Tree
from pvecfs.tree.vmlist import VmEntry, VmList

QEMU1, QEMU2, LXC1 = b"nodes/n1/qemu-server/100.conf", b"nodes/n2/qemu-server/100.conf", b"nodes/n1/lxc/100.conf"


def applied(tree: Tree, *changes: Change) -> Tree:
    for change in changes:
        tree = tree.apply(change, 1, 1000).tree
    return tree


def houses() -> Tree:
    paths = b"nodes nodes/n1 nodes/n2 nodes/n1/qemu-server nodes/n1/lxc nodes/n1/openvz nodes/n2/qemu-server a".split()
    return applied(Tree.new(1), *map(Mkdir, paths))


class PathTests(SynchronousTestCase):
    def test_configs(self) -> None:
        self.assertEqual(vm_config_at(split(b"nodes/n-1/qemu-server/1.conf")), VmConfig(b"n-1", "qemu", 1))
        self.assertEqual(vm_config_at(split(b"/nodes//A/lxc/4294967295.conf")), VmConfig(b"A", "lxc", 2**32 - 1))
        self.assertEqual(vm_config_at(split(b"nodes/0/openvz/20.conf")), VmConfig(b"0", "openvz", 20))

    def test_others(self) -> None:
        for node in (b"-n", b"n-", b"n.x", b"n_1", b"-", b"n\n", b"\xc3\xa9"):
            self.assertIsNone(vm_config_at(split(b"nodes/" + node + b"/lxc/100.conf")), node)
        names = b"0.conf 01.conf 4294967296.conf 99999999999999999999.conf .conf x.conf 1.con 1.conf~ +1.conf 1_0.conf"
        for name in (*names.split(), b" 1.conf", b"1.conf\n", b"1\n.conf", "\u0661.conf".encode()):
            self.assertIsNone(vm_config_at(split(b"nodes/n1/lxc/" + name)), name)
        for path in (b"nodes/n1/qemu/1.conf", b"node/n1/lxc/1.conf", b"nodes/n1/lxc/x/1.conf", b"qemu-server/1.conf"):
            self.assertIsNone(vm_config_at(split(path)), path)

    def test_private(self) -> None:
        for path in (b"priv", b"priv/lock/x", b"//priv/", b"nodes/n1/priv", b"nodes/x.y/priv/a/b"):
            self.assertTrue(is_private(path), path)
        for path in (b"", b".", b"private", b"a/priv", b"nodes/priv", b"nodes/n1/private", b"nodes/n1/x/priv"):
            self.assertFalse(is_private(path), path)

    def test_scripts(self) -> None:
        for action in (b"mount", b"umount", b"start", b"stop", b"premount", b"postumount"):
            self.assertTrue(script_executable(b"vps." + action))
            self.assertTrue(script_executable(b"100." + action))
            self.assertFalse(script_executable(b"x." + action))
            self.assertFalse(script_executable(b"." + action))
            self.assertFalse(script_executable(b"vps." + action + b"x"))
            self.assertFalse(script_executable(b"vps." + action + b"\n"))
        for name in (b"vps", b"vps.", b"vps.postmount", b"100.conf", b"vps.100.mount", b"0.mount"):
            self.assertFalse(script_executable(name))

    def test_split(self) -> None:
        self.assertEqual(split(b"/a//b/"), (b"a", b"b"))
        self.assertEqual((split(b""), split(b"."), split(b"./a")), ((), (), (b".", b"a")))

    def test_locks_and_kinds(self) -> None:
        self.assertTrue(is_lock(split(b"/priv/lock/x")))
        for path in (b"priv/lock", b"priv/lock/x/y", b"a/lock/x"):
            self.assertFalse(is_lock(split(path)))
        self.assertTrue(is_kind_directory(split(b"nodes/a.b/openvz")))
        self.assertFalse(is_kind_directory(split(b"nodes/n1/priv")))
        self.assertFalse(is_kind_directory(split(b"x/n1/lxc")))


class ListTests(SynchronousTestCase):
    def after(self, version: int, vms: list[VmEntry], tree: Tree, *changes: Change) -> Tree:
        """After C{changes} the list has this version and these VMs."""
        tree = applied(tree, *changes)
        self.assertEqual((tree.vms.version, list(tree.vms.items())), (version, vms))
        self.assertEqual([tree.vms.lookup(vm.vmid) for vm in vms], vms)
        self.assertEqual(len(tree.vms), len(vms))
        return tree

    def test_new_database(self) -> None:
        self.after(0, [], houses())

    def test_create_and_write_register(self) -> None:
        tree = self.after(1, [VmEntry(100, b"n1", "qemu", 1)], houses(), Create(QEMU1))
        tree = self.after(2, [VmEntry(100, b"n1", "qemu", 2)], tree, Write(QEMU1, b"x"))
        other = VmEntry(20, b"n1", "lxc", 3)
        self.after(3, [other, VmEntry(100, b"n1", "qemu", 2)], tree, Create(b"nodes/n1/lxc/20.conf"))

    def test_rename_removes_and_registers(self) -> None:
        tree = applied(houses(), Create(QEMU1))
        self.after(3, [VmEntry(100, b"n2", "qemu", 2)], tree, Rename(QEMU1, QEMU2))
        self.after(3, [VmEntry(100, b"n1", "lxc", 2)], tree, Rename(QEMU1, LXC1))
        self.after(3, [VmEntry(7, b"n1", "qemu", 2)], tree, Rename(QEMU1, b"nodes/n1/qemu-server/7.conf"))
        away = self.after(2, [], tree, Rename(QEMU1, b"a/x"))
        self.after(3, [VmEntry(100, b"n2", "qemu", 2)], away, Rename(b"a/x", QEMU2))

    def test_rename_over_a_config(self) -> None:
        tree = applied(houses(), Create(QEMU1), Create(b"a/tmp"))
        self.after(2, [VmEntry(100, b"n1", "qemu", 2)], tree, Rename(b"a/tmp", QEMU1))

    def test_rename_of_a_directory_never_touches_it(self) -> None:
        tree = applied(houses(), Create(QEMU1), Mkdir(b"d"))
        listed = [VmEntry(100, b"n1", "qemu", 1)]
        tree = self.after(1, listed, tree, Rename(b"d", b"nodes/n1/qemu-server/5.conf"))
        tree = self.after(1, listed, tree, Rename(b"nodes/n1/qemu-server/5.conf", QEMU1))
        self.after(1, listed, tree, Rename(QEMU1, b"d"))

    def test_delete_of_anything_removes(self) -> None:
        tree = applied(houses(), Create(QEMU1))
        self.after(2, [], tree, Delete(QEMU1))
        foreign = applied(tree, Mkdir(QEMU2))
        self.after(2, [], foreign, Delete(QEMU2))  # a directory, on a node where the VM is not registered
        unlisted = applied(houses(), Mkdir(QEMU1))
        self.after(1, [], unlisted, Delete(QEMU1))

    def test_mkdir_and_set_mtime_do_nothing(self) -> None:
        tree = applied(houses(), Create(QEMU1))
        self.after(1, [VmEntry(100, b"n1", "qemu", 1)], tree, Mkdir(QEMU2), SetMtime(QEMU1, 3), SetMtime(QEMU2, 3))

    def test_other_paths_do_nothing(self) -> None:
        paths = (b"nodes/n1/lxc/0.conf", b"nodes/n1/lxc/x.conf", b"a/100.conf")
        self.after(0, [], houses(), *map(Create, paths), *map(Delete, paths))

    def test_load_counts_once(self) -> None:
        tree = applied(houses(), Create(QEMU1), Create(b"nodes/n1/lxc/20.conf"), Create(b"nodes/n1/openvz/3.conf"))
        tree = applied(tree, Write(QEMU1, b"x"), Mkdir(b"nodes/n1/lxc/8.conf"), Create(b"nodes/n2/lxc"))
        loaded = Tree.load(tree.entries(), tree.root)
        # ascending inodes: in the order of creation
        expected = [VmEntry(3, b"n1", "openvz", 3), VmEntry(20, b"n1", "lxc", 2), VmEntry(100, b"n1", "qemu", 1)]
        self.after(1, expected, loaded)
        self.after(2, [vm._replace(version=vm.version + 3) for vm in expected], loaded.replaced((), (), None))

    def test_without_nodes_the_list_stays(self) -> None:
        self.after(0, [], Tree.load([], Tree.new(1).root))
        tree = applied(houses(), Create(QEMU1))
        everything = [entry.inode for entry in tree.entries() if entry.inode]
        self.after(1, [VmEntry(100, b"n1", "qemu", 1)], tree.replaced(everything, (), None))
        no_directory = Entry(1, 0, 1, 1, 1, DT_REG, b"nodes")
        self.after(1, [VmEntry(100, b"n1", "qemu", 1)], tree.replaced(everything, (no_directory,), None))

    def test_empty_nodes_empties_it(self) -> None:
        tree = applied(houses(), Create(QEMU1))
        config = tree.lookup(QEMU1)
        assert config is not None
        self.after(2, [], tree.replaced((config.inode,), (), None))

    def test_duplicates_after_a_synchronisation(self) -> None:
        tree = houses()
        place = tree.lookup(b"nodes/n2/qemu-server")
        lxc = tree.lookup(b"nodes/n1/lxc")
        assert place is not None and lxc is not None
        high, low = (
            Entry(inode, parent.inode, 50, 1, 1, DT_REG, b"100.conf") for inode, parent in ((91, place), (90, lxc))
        )
        tree = tree.replaced((), (high, low), None)
        self.after(1, [VmEntry(100, b"n1", "lxc", 1)], tree)
        (duplicate,) = tree.vms.duplicates
        self.assertEqual((duplicate.listed.inode, duplicate.unlisted.inode), (90, 91))
        self.assertIn("two configs of VM 100: inode 90", str(duplicate))
        self.assertEqual(applied(tree, Delete(LXC1)).vms.duplicates, ())

    def test_nodes_with_other_names_are_skipped(self) -> None:
        tree = applied(houses(), Mkdir(b"nodes/n.x"), Mkdir(b"nodes/n.x/lxc"), Create(b"nodes/n.x/lxc/100.conf"))
        self.after(0, [], tree)
        self.after(1, [], Tree.load(tree.entries(), tree.root))

    def test_an_older_list_stays_as_it_was(self) -> None:
        before = VmList().registered(VmConfig(b"n1", "qemu", 100))
        before.items()
        before.removed(100).registered(VmConfig(b"n2", "lxc", 5))
        self.assertEqual(before.items(), (VmEntry(100, b"n1", "qemu", 1),))
        self.assertTrue(before.is_known_elsewhere(VmConfig(b"n2", "qemu", 100)))
        self.assertTrue(before.is_known_elsewhere(VmConfig(b"n1", "lxc", 100)))
        self.assertFalse(before.is_known_elsewhere(VmConfig(b"n1", "qemu", 100)))
        self.assertFalse(before.is_known_elsewhere(VmConfig(b"n2", "lxc", 5)))
