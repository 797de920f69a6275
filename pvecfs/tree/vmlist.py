"""The list of the cluster's VMs: VMID to node, type and version (10-tree.md, "VM list")."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from immutables import Map

from pvecfs.tree.entry import ROOT_INODE, Entry
from pvecfs.tree.paths import KINDS, NODES, VmConfig, config_vmid, is_node_name


class VmEntry(NamedTuple):
    """A listed VM.

    @ivar node: name of the node that it is registered with.
    @ivar kind: ``qemu``, ``lxc`` or ``openvz``.
    @ivar version: value of the list's counter at the last registration.
    """

    vmid: int
    node: bytes
    kind: str
    version: int


class FoundConfig(NamedTuple):
    """A VM config that is in a tree."""

    inode: int
    node: bytes
    kind: str
    vmid: int

    @property
    def config(self) -> VmConfig:
        """What its path says."""
        return VmConfig(self.node, self.kind, self.vmid)


class DuplicateVm(NamedTuple):
    """Two configs of one VMID; the one of lower inode is listed."""

    listed: FoundConfig
    unlisted: FoundConfig

    def __str__(self) -> str:
        listed, unlisted = self
        return (
            f"two configs of VM {listed.vmid}: inode {listed.inode} ({listed.kind} on {listed.node!r}) and "
            f"inode {unlisted.inode} ({unlisted.kind} on {unlisted.node!r})"
        )


def find_configs(entries: Mapping[int, Entry], children: Mapping[int, Mapping[bytes, int]]) -> list[FoundConfig] | None:
    """All VM configs (files) of a tree, by ascending inode; C{None} when it has no directory ``nodes``.

    @param children: of each directory's inode (and no file's) its children's inodes by name.
    """
    nodes = children.get(children[ROOT_INODE].get(NODES, -1))
    if nodes is None:
        return None
    found: list[FoundConfig] = []
    for node, node_inode in nodes.items():
        if not is_node_name(node):
            continue
        places = children.get(node_inode, {})
        for directory, kind in KINDS.items():
            # A file in the directory's place has no children: it is skipped.
            for name, inode in children.get(places.get(directory, -1), {}).items():
                vmid = config_vmid(name)
                if vmid is not None and not entries[inode].is_directory:
                    found.append(FoundConfig(inode, node, kind, vmid))
    found.sort()
    return found


class VmList:
    """The list. Immutable; each change of it gives a new one.

    @ivar version: number of changes of the list; 0 in a new database.
    @ivar duplicates: configs that the rebuild which made this list found besides the listed ones: the cluster needs
        an administrator. Empty after any later change.
    """

    __slots__ = ("_counter", "_items", "_vms", "duplicates", "version")

    def __init__(
        self,
        version: int = 0,
        counter: int = 0,
        vms: Map[int, VmEntry] | None = None,
        duplicates: tuple[DuplicateVm, ...] = (),
    ) -> None:
        self.version = version
        self.duplicates = duplicates
        self._counter = counter
        self._vms: Map[int, VmEntry] = Map() if vms is None else vms
        self._items: tuple[VmEntry, ...] | None = None

    def __len__(self) -> int:
        return len(self._vms)

    def lookup(self, vmid: int) -> VmEntry | None:
        return self._vms.get(vmid)

    def items(self) -> tuple[VmEntry, ...]:
        """All VMs, by ascending VMID."""
        if self._items is None:
            self._items = tuple(sorted(self._vms.values()))
        return self._items

    def is_known_elsewhere(self, config: VmConfig) -> bool:
        """True when the VMID is registered with another node or type."""
        vm = self._vms.get(config.vmid)
        return vm is not None and (vm.node != config.node or vm.kind != config.kind)

    def registered(self, config: VmConfig) -> VmList:
        """After a create or write of C{config}."""
        counter = self._counter + 1
        vm = VmEntry(config.vmid, config.node, config.kind, counter)
        return VmList(self.version + 1, counter, self._vms.set(config.vmid, vm))

    def removed(self, vmid: int) -> VmList:
        """After the removal of a config of C{vmid}: counted even when it was not listed."""
        vms = self._vms
        return VmList(self.version + 1, self._counter, vms.delete(vmid) if vmid in vms else vms)

    def rebuilt(self, configs: Iterable[FoundConfig] | None) -> VmList:
        """After a load or a synchronisation that committed: as L{find_configs} found them.

        The VMs take the counter's next values in the order of C{configs}, ascending inodes: any order is allowed, and
        this one is the same in each run. C{None} (no directory ``nodes``) leaves the list as it is.
        """
        if configs is None:
            return self
        counter = self._counter
        listed: dict[int, FoundConfig] = {}
        vms: dict[int, VmEntry] = {}
        duplicates: list[DuplicateVm] = []
        for found in configs:
            _inode, node, kind, vmid = found
            if vmid in vms:
                duplicates.append(DuplicateVm(listed[vmid], found))
                continue
            counter += 1
            listed[vmid] = found
            vms[vmid] = VmEntry(vmid, node, kind, counter)
        return VmList(self.version + 1, counter, Map(vms), tuple(duplicates))
