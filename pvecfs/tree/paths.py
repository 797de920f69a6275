"""What a path means: its components, private places, VM configs, locks, scripts. No tree is needed to know these.

Paths are bytes, components separated by ``/``, empty ones ignored (10-tree.md, "Operations").
"""

from __future__ import annotations

import re
from typing import NamedTuple

NODES = b"nodes"
LOCKS = (b"priv", b"lock")
"""The directory whose subdirectories are the locks."""

KINDS = {b"qemu-server": "qemu", b"lxc": "lxc", b"openvz": "openvz"}
"""Names of the directories that hold VM configs, each with the type it stands for."""

SPECIAL_FILES = (b".version", b".members", b".vmlist", b".clusterlog", b".rrd", b".debug")
"""Files that a mount has at its root, in this order, and no tree (20-filesystem.md)."""

MAX_VMID = 2**32 - 1

_NODE = re.compile(rb"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?")
_VMID = re.compile(rb"[1-9][0-9]{0,9}")
_CONFIG = re.compile(rb"(%s)\.conf" % _VMID.pattern)
_COMPONENT = re.compile(rb"(?!\.\.?\Z)[^/\0]+")
_SCRIPT = re.compile(rb"(.*)\.(?:mount|umount|start|stop|premount|postumount)", re.DOTALL)

Names = tuple[bytes, ...]
"""The components of a path; none for the root."""


class VmConfig(NamedTuple):
    """What the path of a VM config says: the node's name, the type (``qemu``, ``lxc``, ``openvz``), the VMID."""

    node: bytes
    kind: str
    vmid: int


def split(path: bytes) -> Names:
    """The components of C{path}. C{.} alone is the root, as the empty path is; elsewhere it is a name."""
    names = path.split(b"/")
    if b"" in names:
        names = [name for name in names if name]
    if names == [b"."]:
        return ()
    return tuple(names)


def join(names: Names) -> bytes:
    """The path of C{names}, without a leading ``/``."""
    return b"/".join(names)


def is_bad_component(name: bytes) -> bool:
    """True for names that no entry can have."""
    return _COMPONENT.fullmatch(name) is None


def is_private(path: bytes) -> bool:
    """True for ``priv`` and ``nodes/<any>/priv`` and all below them (20-filesystem.md): closed to the group."""
    names = split(path)
    return names[:1] == (b"priv",) or (names[:1] == (NODES,) and names[2:3] == (b"priv",))


def script_executable(name: bytes) -> bool:
    """True for the names of OpenVZ scripts, ``vps.<action>`` and ``<vmid>.<action>``: they are executable."""
    match = _SCRIPT.fullmatch(name)
    return match is not None and (match[1] == b"vps" or vmid(match[1]) is not None)


def vmid(text: bytes) -> int | None:
    """The VMID that C{text} is: decimal, 1 to 2^32-1, without a leading zero."""
    return None if _VMID.fullmatch(text) is None else _in_range(int(text))


def _in_range(number: int) -> int | None:
    return number if number <= MAX_VMID else None


def is_node_name(name: bytes) -> bool:
    """True for letters, digits and inner hyphens."""
    return _NODE.fullmatch(name) is not None


def config_vmid(name: bytes) -> int | None:
    """The VMID of a file name ``<vmid>.conf``."""
    match = _CONFIG.fullmatch(name)
    return None if match is None else _in_range(int(match[1]))


def vm_config_at(names: Names) -> VmConfig | None:
    """What the path of C{names} says, if it is a VM config's: ``nodes/<node>/<kind>/<vmid>.conf``."""
    if len(names) != 4 or names[0] != NODES:
        return None
    kind = KINDS.get(names[2])
    if kind is None or not is_node_name(names[1]):
        return None
    number = config_vmid(names[3])
    return None if number is None else VmConfig(names[1], kind, number)


def is_kind_directory(names: Names) -> bool:
    """True for ``nodes/<any>/{qemu-server,lxc,openvz}``: no file may be there (the reference never starts again)."""
    return len(names) == 3 and names[0] == NODES and names[2] in KINDS


def is_lock(names: Names) -> bool:
    """True for the place of a lock: ``priv/lock/<name>``."""
    return len(names) == 3 and names[:2] == LOCKS


def is_below_locks(names: Names) -> bool:
    """True at any depth below ``priv/lock/``."""
    return len(names) > 2 and names[:2] == LOCKS
