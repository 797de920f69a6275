"""libquorum, as C{corosync/quorum.h} declares it: prototypes and errors only.

initialize and trackstart wait for corosync, for ever if it does not run on; dispatch never waits.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_uint, c_uint32, c_uint64
from typing import Any, NamedTuple

from pvecfs.corosync.errors import check
from pvecfs.corosync.libraries import Binding, load, once, prototype
from pvecfs.errors import CorosyncUnavailable

SONAME = "libquorum.so.5"

QUORUM_SET = 1
CS_TRACK_CURRENT = 1
CS_TRACK_CHANGES = 2
VIEW_MAX = 1 << 16
"""No more nodes than this are believed to be in a view."""

NotifyFunction = ctypes.CFUNCTYPE(None, c_uint64, c_uint32, c_uint64, c_uint32, POINTER(c_uint32))


class Callbacks(ctypes.Structure):
    """C{quorum_callbacks_t}"""

    _fields_ = (("notify", NotifyFunction),)


class QuorumChanged(NamedTuple):
    """The partition is of the nodes C{node_ids} now, and quorate or not."""

    quorate: bool
    node_ids: tuple[int, ...]


class LibQuorum(Binding[QuorumChanged]):
    """The library."""

    def __init__(self, waiting: ctypes.CDLL, immediate: ctypes.PyDLL) -> None:
        super().__init__(waiting, immediate, "quorum", POINTER(Callbacks), POINTER(c_uint32))
        self._trackstart = prototype(waiting, "quorum_trackstart", c_uint64, c_uint)
        self._callbacks = Callbacks(NotifyFunction(self._notified))

    def _notified(self, handle: int, quorate: int, ring: int, count: int, view: Any) -> None:
        if count > VIEW_MAX:
            raise ValueError(f"{count} nodes in a view")
        self._events[handle].append(QuorumChanged(bool(quorate), tuple(view[:count]) if count else ()))

    def initialize(self) -> int:
        """@return: a handle, to be given to L{finalize}."""
        kind = c_uint32()
        handle = self._connect(ctypes.byref(self._callbacks), ctypes.byref(kind))
        if kind.value != QUORUM_SET:
            self.finalize(handle)
            raise CorosyncUnavailable("corosync has no quorum provider configured")
        return handle

    def trackstart(self, handle: int) -> None:
        """Ask for the present state and all changes from now on."""
        check(self._trackstart(handle, CS_TRACK_CURRENT | CS_TRACK_CHANGES), "quorum_trackstart")


@once
def libquorum() -> LibQuorum:
    """The library. @raise CorosyncUnavailable: not installed."""
    return LibQuorum(*load(SONAME))
