"""What the mount and the IPC service see of the node: any thread reads it without a lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from zope.interface import implementer

from pvecfs.interfaces import INodeView

if TYPE_CHECKING:
    from pvecfs.tree.admission import Limits
    from pvecfs.tree.tree import Tree


@implementer(INodeView)
class NodeView:
    """The published state of the node.

    Attributes are replaced whole, one by one, and never changed in place: whoever read one may keep it.

    @ivar tree: the newest committed tree. Written by the store's thread.
    @ivar quorate: whether this node may write: corosync says so (or there is no cluster), and the database takes
        commits. Written by the reactor thread.
    @ivar debug: whether logging is verbose.
    """

    def __init__(
        self,
        tree: Tree,
        node_name: bytes,
        limits: Limits,
        quorate: bool,
        debug: bool,
        switch_debug: Callable[[bool], None],
    ) -> None:
        self.tree = tree
        self.node_name = node_name
        self.max_bytes = limits.max_bytes
        self.max_entries = limits.max_entries
        self.debug = debug
        self.quorate = quorate
        self.modes_changed: Callable[[], None] = lambda: None
        self.make_document: Callable[[bytes], bytes] = _no_documents
        self._switch_debug = switch_debug
        self._partition_quorate = quorate
        self._database_writable = True

    def document(self, name: bytes) -> bytes:
        if name == b".debug":
            return b"1\n" if self.debug else b"0\n"
        return self.make_document(name)

    def set_debug(self, enabled: bool) -> None:
        self.debug = enabled
        self._switch_debug(enabled)

    @property
    def partition_quorate(self) -> bool:
        """What L{quorum_changed} was told last; in local mode always true."""
        return self._partition_quorate

    def quorum_changed(self, quorate: bool) -> None:
        """Corosync says that this partition may write, or not. Reactor thread."""
        self._partition_quorate = quorate
        self._update()

    def writable_changed(self, writable: bool) -> None:
        """The database takes commits, or not. Reactor thread."""
        self._database_writable = writable
        self._update()

    def _update(self) -> None:
        quorate = self._partition_quorate and self._database_writable
        if quorate != self.quorate:
            self.quorate = quorate
            self.modes_changed()


def _no_documents(name: bytes) -> bytes:
    raise KeyError(name)
