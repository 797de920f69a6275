"""Properties of guests, read from their configs (50-ipc.md, "Guest properties")."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from pvecfs.tree.entry import Entry
from pvecfs.tree.paths import KINDS, NODES
from pvecfs.tree.quoting import escaped
from pvecfs.tree.tree import Tree
from pvecfs.tree.vmlist import VmEntry

Properties = Mapping[bytes, bytes]
"""Values by name; no value is empty."""

_DIRECTORIES = {kind: directory for directory, kind in KINDS.items()}

_SPARE = 64
"""So many parsed configs more than there are guests may be kept."""


class Guest(NamedTuple):
    vmid: int
    properties: Properties


class _Parsed(NamedTuple):
    entry: Entry
    properties: Properties


def parse(config: bytes) -> Properties:
    """The properties in a config: up to the first line that begins with C{[}, where snapshots and pending changes
    begin; a later line wins, and one without a value takes the value away. Names begin with a-z."""
    found: dict[bytes, bytes] = {}
    for line in config.split(b"\n"):
        if line.startswith(b"["):
            break
        name, colon, value = line.partition(b":")
        if colon and b"a" <= name[:1] <= b"z":
            found[name] = value.strip()
    return {name: value for name, value in found.items() if value}


class GuestConfigs:
    """Parsed configs, each kept as long as its entry stays the same object in the tree."""

    def __init__(self) -> None:
        self._parsed: dict[int, _Parsed] = {}

    def of(self, tree: Tree, vmid: int) -> Iterator[Guest]:
        """The guest C{vmid}, or with 0 all guests by ascending VMID."""
        if len(self._parsed) > len(tree.vms) + _SPARE:
            self._parsed.clear()
        listed = tree.vms.lookup(vmid)
        vms: Iterable[VmEntry] = tree.vms.items() if not vmid else () if listed is None else (listed,)
        directories: dict[tuple[bytes, str], Entry | None] = {}
        for vm in vms:
            place = (vm.node, vm.kind)
            if place not in directories:
                directories[place] = tree.lookup(b"/".join((NODES, vm.node, _DIRECTORIES[vm.kind])))
            directory = directories[place]
            entry = None if directory is None else tree.child(directory.inode, b"%d.conf" % vm.vmid)
            if entry is not None:
                yield Guest(vm.vmid, self._properties(vm.vmid, entry))

    def _properties(self, vmid: int, entry: Entry) -> Properties:
        parsed = self._parsed.get(vmid)
        if parsed is None or parsed.entry is not entry:
            parsed = self._parsed[vmid] = _Parsed(entry, parse(entry.data))
        return parsed.properties


def properties_document(guests: Iterable[Guest], names: Sequence[bytes]) -> bytes:
    """The JSON of the reply: properties in the order of C{names}, each once; guests with none of them left out."""
    asked = [(name, b'"%s": "' % escaped(name, with_del=True)) for name in dict.fromkeys(names)]
    lines = []
    for vmid, properties in guests:
        pairs = [key + escaped(properties[name], with_del=True) + b'"' for name, key in asked if name in properties]
        if pairs:
            lines.append(b'"%d":{%s}' % (vmid, b",".join(pairs)))
    return b"{\n" + b",\n".join(lines) + b"\n}\n"
