"""Node ids and attributes: how entries, links and special files look from the kernel.

The kernel knows files by node id. An entry's is its inode plus one, so that the root, inode 0, has the 1 that FUSE
demands; nothing has to be remembered, and an id never comes to mean another file. Ids from L{FIRST_COMPUTED} on
belong to what is in no tree. (No tree grows to such inodes. One made up would be listed, and answer ENOENT.)
"""

from __future__ import annotations

from stat import S_IFDIR, S_IFLNK, S_IFREG
from typing import TYPE_CHECKING

from pvecfs.tree.entry import DT_DIR, Entry
from pvecfs.tree.paths import is_private, script_executable

if TYPE_CHECKING:
    from pvecfs.tree.tree import Tree

FIRST_COMPUTED = 1 << 62

LINKS = {name: FIRST_COMPUTED + 1 + number for number, name in enumerate((b"local", b"qemu-server", b"lxc", b"openvz"))}
"""The links at the root, with their node ids."""

DOCUMENTS = {
    name: FIRST_COMPUTED + 16 + number
    for number, name in enumerate((b".version", b".members", b".vmlist", b".clusterlog", b".rrd", b".debug"))
}
"""The special files at the root, with their inode numbers (st_ino). Their node ids come with their content."""

FIRST_FROZEN = FIRST_COMPUTED + 64
"""Node ids from here on are contents of special files, see L{pvecfs.fuse.documents}."""

RESERVED = LINKS.keys() | DOCUMENTS.keys()
"""Names at the root that no entry can be reached by."""

DEBUG = b".debug"

BLOCK_BYTES = 4096


def node_of(inode: int) -> int:
    """The node id of an entry."""
    return inode + 1


def link_target(link: int, node_name: bytes) -> bytes:
    """Where the link with node id C{link} leads."""
    own = b"nodes/" + node_name
    name = next(name for name, node in LINKS.items() if node == link)
    return own if name == b"local" else own + b"/" + name


class Attributes:
    """Makes the attributes of everything, as the kernel's C{struct fuse_attr}: a tuple for C{struct.pack}.

    @param owner: uid of everything.
    @param group: gid of everything.
    """

    def __init__(self, owner: int, group: int) -> None:
        self.owner = owner
        self.group = group

    def of_entry(self, tree: Tree, entry: Entry, quorate: bool) -> tuple[int, ...]:
        """@param tree: says by its paths what is private."""
        size = len(entry.data)
        node = entry.inode + 1
        links = 1
        if node == 1:
            return self._make(node, 0, 0, S_IFDIR | 0o755, 2)
        private = is_private(tree.path_of(entry.inode) or b"")
        if entry.type == DT_DIR:
            links = 2
            mode = S_IFDIR | (0o700 if private else 0o755)
        else:
            mode = S_IFREG | (0o600 if private else 0o640)
            if script_executable(entry.name):
                mode |= 0o100
        if not quorate:
            mode &= ~0o222
        return self._make(node, size, entry.mtime, mode, links)

    def of_gone(self, entry: Entry) -> tuple[int, ...]:
        """What is held open only: it has no name any more."""
        mode = S_IFDIR | 0o700 if entry.type == DT_DIR else S_IFREG | 0o600
        return self._make(entry.inode + 1, len(entry.data), entry.mtime, mode, 0)

    def of_link(self, link: int, target: bytes, quorate: bool) -> tuple[int, ...]:
        return self._make(link, len(target), 0, S_IFLNK | (0o755 if quorate else 0o555), 1)

    def of_document(self, name: bytes, size: int) -> tuple[int, ...]:
        return self._make(DOCUMENTS[name], size, 0, S_IFREG | (0o640 if name == DEBUG else 0o440), 1)

    def _make(self, number: int, size: int, time: int, mode: int, links: int) -> tuple[int, ...]:
        blocks = (size + 511) // 512
        return (number, size, blocks, time, time, time, 0, 0, 0, mode, links, self.owner, self.group, 0, BLOCK_BYTES, 0)
