"""Node ids and attributes: how entries, links and special files look from the kernel.

The kernel knows files by node id. An entry's is its inode plus one, so that the root, inode 0, has the 1 that FUSE
demands; nothing has to be remembered, as changes give an inode to one file only, ever. A synchronisation can give it to
another: two sides of a partition had made a file at the same version. That one gets an id of its own, from
L{FIRST_EXCHANGED} on, and the old id means nothing any more (L{NodeIds}). A synchronisation can also set the tree's
version back, so that changes will make inodes once more.

Ids from L{FIRST_COMPUTED} on belong to what is in no tree. (No tree grows to inodes that large. One made up is listed,
and answers ENOENT.)
"""

from __future__ import annotations

from itertools import count
from stat import S_IFDIR, S_IFLNK, S_IFREG
from typing import TYPE_CHECKING, NamedTuple

from pvecfs.tree.entry import DT_DIR, Entry
from pvecfs.tree.paths import SPECIAL_FILES, is_private, script_executable

if TYPE_CHECKING:
    from pvecfs.interfaces import INodeView
    from pvecfs.tree.tree import Delta, Tree

FIRST_EXCHANGED = 1 << 61
"""Node ids from here to L{FIRST_COMPUTED} are of entries whose inodes have meant other files before."""

FIRST_COMPUTED = 1 << 62

NOWHERE = 0
"""The node id of what no request can reach: in the answer to a lookup it says that there is no such name."""

_NO_INODE = -1
"""What a node id of a file that is gone leads to: no tree has it."""

LINKS = {name: FIRST_COMPUTED + 1 + number for number, name in enumerate((b"local", b"qemu-server", b"lxc", b"openvz"))}
"""The links at the root, with their node ids."""

DOCUMENTS = {name: FIRST_COMPUTED + 16 + number for number, name in enumerate(SPECIAL_FILES)}
"""The special files at the root, with their inode numbers (st_ino). Their node ids come with their content."""

FIRST_FROZEN = FIRST_COMPUTED + 64
"""Node ids from here on are contents of special files, see L{pvecfs.fuse.documents}."""

RESERVED = LINKS.keys() | DOCUMENTS.keys()
"""Names at the root that no entry can be reached by."""

DEBUG = b".debug"

BLOCK_BYTES = 4096

_MOST_CHANGES = 1 << 40
"""More than there will ever be."""


class Reused(NamedTuple):
    """Inodes that changes will use once more, since the tree's version was set back.

    @ivar above: the first inode is the next one.
    @ivar last: the last inode.
    @ivar distance: from an inode to its node id.
    """

    above: int
    last: int
    distance: int

    def has(self, inode: int) -> bool:
        """Whether C{inode} is one of them."""
        return self.above < inode <= self.last


class Numbering:
    """Which node id is which inode, in the trees between two synchronisations. Immutable once it is used, but for
    C{successor}, which only L{NodeIds} knows of.

    @param exchanged: node ids by inode, of single inodes.
    @param reused: whole ranges of them, the newest first, which counts where they overlap.
    """

    __slots__ = ("_inodes", "_nodes", "reused", "successor")

    def __init__(self, exchanged: dict[int, int], reused: tuple[Reused, ...] = ()) -> None:
        self._nodes = exchanged
        self._inodes = {node: inode for inode, node in exchanged.items()}
        self.reused = reused
        self.successor: tuple[Tree, Numbering] | None = None

    def node_of(self, inode: int) -> int:
        """The node id of an entry; L{NOWHERE} for an inode so large that its id would mean something else."""
        node = self._nodes.get(inode)
        if node is not None:
            return node
        if self.reused:
            for span in self.reused:
                if span.has(inode):
                    return inode + span.distance
        return inode + 1 if inode < FIRST_EXCHANGED - 1 else NOWHERE

    def inode_of(self, node: int) -> int:
        """The inode of C{node}; one that no tree has if the file that C{node} meant is gone."""
        inode = node - 1
        if node >= FIRST_EXCHANGED:
            inode = self._inodes.get(node, _NO_INODE)
            if inode == _NO_INODE and self.reused:
                inode = next(
                    (node - span.distance for span in self.reused if span.has(node - span.distance)), _NO_INODE
                )
        return inode if not (self._nodes or self.reused) or self.node_of(inode) == node else _NO_INODE

    def exchanged(self) -> dict[int, int]:
        """A copy of the node ids of single inodes, by inode."""
        return dict(self._nodes)


class Exchanged(NamedTuple):
    """An inode that a synchronisation has given to another file, or may have.

    @ivar inode: the inode.
    @ivar node: the node id under which the kernel may know the old file.
    @ivar entry: the old file, unless it was deleted before.
    """

    inode: int
    node: int
    entry: Entry | None


class Replacement(NamedTuple):
    """What a synchronisation does to node ids.

    @ivar before: the numbering of the tree before it.
    @ivar after: the numbering of the tree after it.
    @ivar exchanged: by inode, what has another node id than before.
    """

    before: Numbering
    after: Numbering
    exchanged: dict[int, Exchanged]


class NodeIds:
    """The node ids of one mount. The tree that is published and its numbering belong together; they are taken by
    L{published}, on any thread. The rest is for the thread that publishes trees.

    How they are exchanged without a lock:

     1. L{replacing}: the numbering is replaced by a copy that names its successor, and the tree that brings it;
     2. the tree is published;
     3. L{replaced}: the successor is the numbering.

    Who finds the same numbering before and after taking the tree has taken a tree of this numbering; or, if it names a
    successor, perhaps the successor's, which is told by the tree.

    @param view: the published tree.
    """

    def __init__(self, view: INodeView) -> None:
        self._view = view
        self._numbering = Numbering({})
        self._highest = 0
        self._new = count(FIRST_EXCHANGED)

    def begin(self) -> None:
        """The tree published now is the first that the kernel gets to know."""
        self._highest = max(entry.inode for entry in self._view.tree.entries())

    def published(self) -> tuple[Tree, Numbering]:
        """The newest committed tree, and its numbering."""
        numbering = self._numbering
        tree: Tree = self._view.tree
        if self._numbering is numbering and numbering.successor is None:
            return tree, numbering
        return self._published_meanwhile()

    def _published_meanwhile(self) -> tuple[Tree, Numbering]:
        """The same, while the numbering is being replaced."""
        while True:
            numbering = self._numbering
            tree: Tree = self._view.tree
            if self._numbering is numbering:
                break
        if numbering.successor is not None and tree is numbering.successor[0]:
            return numbering.successor
        return tree, numbering

    def find(self, node: int) -> tuple[Tree, Entry | None]:
        """The newest committed tree, and what C{node} means in it."""
        numbering = self._numbering
        tree: Tree = self._view.tree
        if self._numbering is not numbering or numbering.successor is not None:
            tree, numbering = self._published_meanwhile()
        return tree, tree.entry(numbering.inode_of(node))

    def replacing(self, before: Tree, delta: Delta) -> Replacement:
        """C{delta}, a synchronisation of C{before}, will be published next."""
        old = self._numbering
        # A change makes inodes above the version, so whatever a synchronisation brings above it was never here.
        self._highest = max(self._highest, before.version)
        exchanged = self._exchanged(old, before, delta)
        self._highest = max([self._highest, *(entry.inode for entry in delta.stored)])
        after = delta.tree
        reused = self._reused(old, after.version) if after.version < before.version else old.reused
        if not exchanged and reused is old.reused:
            return Replacement(old, old, exchanged)
        nodes = {inode: node for inode, node in old.exchanged().items() if after.entry(inode) is not None}
        if reused is not old.reused:  # of what stays, none should be above the version
            nodes.update(
                (each.inode, old.node_of(each.inode)) for each in after.entries() if each.inode > after.version
            )
        nodes.update(zip(exchanged, self._new, strict=False))
        new = Numbering(nodes, reused)
        announcing = Numbering(old.exchanged(), old.reused)
        announcing.successor = (after, new)
        self._numbering = announcing
        return Replacement(old, new, exchanged)

    def _reused(self, old: Numbering, version: int) -> tuple[Reused, ...]:
        """From now on changes make inodes above C{version}, up to the highest one that there was."""
        first = next(self._new)
        last = min(self._highest, version + _MOST_CHANGES)  # the highest may be made up
        self._new = count(first + last - version)
        return (
            Reused(version, last, first - version - 1),
            *(span for span in old.reused if span.above < version),
        )

    def _exchanged(self, old: Numbering, before: Tree, delta: Delta) -> dict[int, Exchanged]:
        """The inodes that mean other files in C{delta} than before. An entry elsewhere, or of another type, counts as
        another file: it may be the same one moved, but nothing tells. With a directory goes all that is in it."""
        exchanged: dict[int, Exchanged] = {}
        pending = []
        for entry in delta.stored:
            known = before.entry(entry.inode)
            if known is None:
                other = entry.inode <= self._highest
            else:
                other = (known.parent, known.name, known.type) != (entry.parent, entry.name, entry.type)
            if other:
                pending.append(entry.inode)
        after = delta.tree
        while pending:
            inode = pending.pop()
            if inode not in exchanged:
                exchanged[inode] = Exchanged(inode, old.node_of(inode), before.entry(inode))
                pending.extend(child for child in after.children(inode).values() if child <= self._highest)
        return exchanged

    def replaced(self) -> None:
        """What was told by L{replacing} is published."""
        if self._numbering.successor is not None:
            self._numbering = self._numbering.successor[1]


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

    def of_entry(
        self, tree: Tree, entry: Entry, node: int, quorate: bool, shown: Entry | None = None
    ) -> tuple[int, ...]:
        """@param tree: says by its paths what is private.
        @param node: the node id of C{entry}, which is shown as the inode number.
        @param shown: the size and time are those of this one, see L{pvecfs.fuse.shown}.
        """
        content = shown or entry
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
        return self._make(node, len(content.data), content.mtime, mode, links)

    def of_gone(self, entry: Entry, node: int) -> tuple[int, ...]:
        """What is held open only: it has no name any more."""
        mode = S_IFDIR | 0o700 if entry.type == DT_DIR else S_IFREG | 0o600
        return self._make(node, len(entry.data), entry.mtime, mode, 0)

    def of_link(self, link: int, target: bytes, quorate: bool) -> tuple[int, ...]:
        return self._make(link, len(target), 0, S_IFLNK | (0o755 if quorate else 0o555), 1)

    def of_document(self, name: bytes, size: int) -> tuple[int, ...]:
        return self._make(DOCUMENTS[name], size, 0, S_IFREG | (0o640 if name == DEBUG else 0o440), 1)

    def _make(self, number: int, size: int, time: int, mode: int, links: int) -> tuple[int, ...]:
        blocks = (size + 511) // 512
        return (number, size, blocks, time, time, time, 0, 0, 0, mode, links, self.owner, self.group, 0, BLOCK_BYTES, 0)
