"""libquorum, as C{corosync/quorum.h} declares it: prototypes and errors only.

initialize and trackstart wait for corosync, for ever if it does not run on; dispatch never waits.
"""

from __future__ import annotations

import ctypes
import threading
from ctypes import POINTER, c_int, c_uint, c_uint32, c_uint64
from typing import Any, NamedTuple

from pvecfs.corosync.errors import CS_ERR_TRY_AGAIN, check
from pvecfs.corosync.libraries import load, once, prototype
from pvecfs.errors import CorosyncUnavailable

SONAME = "libquorum.so.5"

QUORUM_SET = 1
CS_TRACK_CURRENT = 1
CS_TRACK_CHANGES = 2
CS_DISPATCH_ONE_NONBLOCKING = 4
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


class LibQuorum:
    """The library; threads and callbacks as for L{pvecfs.corosync.libcpg.LibCpg}.

    @raise CorosyncUnavailable: every method.
    @raise TryAgain: every method.
    """

    def __init__(self, waiting: ctypes.CDLL, immediate: ctypes.PyDLL) -> None:
        handle, pointer = c_uint64, POINTER
        self._initialize = prototype(
            waiting, "quorum_initialize", pointer(handle), pointer(Callbacks), pointer(c_uint32)
        )
        self._finalize = prototype(waiting, "quorum_finalize", handle)
        self._trackstart = prototype(waiting, "quorum_trackstart", handle, c_uint)
        self._fd_get = prototype(immediate, "quorum_fd_get", handle, pointer(c_int))
        self._dispatch = prototype(immediate, "quorum_dispatch", handle, c_int)
        self._events: dict[int, list[QuorumChanged]] = {}
        self._initializing = threading.Lock()
        self._callbacks = Callbacks(NotifyFunction(self._notified))

    def _notified(self, handle: int, quorate: int, ring: int, count: int, view: Any) -> None:
        if count > VIEW_MAX:
            raise ValueError(f"{count} nodes in a view")
        self._events[handle].append(QuorumChanged(bool(quorate), tuple(view[:count]) if count else ()))

    def initialize(self) -> int:
        """@return: a handle, to be given to L{finalize}."""
        handle, kind = c_uint64(), c_uint32()
        with self._initializing:
            code = self._initialize(ctypes.byref(handle), ctypes.byref(self._callbacks), ctypes.byref(kind))
        check(code, "quorum_initialize")
        if kind.value != QUORUM_SET:
            self._finalize(handle)
            raise CorosyncUnavailable("corosync has no quorum provider configured")
        self._events[handle.value] = []
        return handle.value

    def finalize(self, handle: int) -> None:
        """Disconnect."""
        self._events.pop(handle, None)
        check(self._finalize(handle), "quorum_finalize")

    def fd_get(self, handle: int) -> int:
        """@return: the descriptor that is readable while there is something to dispatch. Owned by the library."""
        fd = c_int(-1)
        check(self._fd_get(handle, ctypes.byref(fd)), "quorum_fd_get")
        return fd.value

    def trackstart(self, handle: int) -> None:
        """Ask for the present state and all changes from now on."""
        check(self._trackstart(handle, CS_TRACK_CURRENT | CS_TRACK_CHANGES), "quorum_trackstart")

    def dispatch(self, handle: int) -> list[QuorumChanged] | None:
        """Take one event from corosync; never waits. @return: None when there is none."""
        code = self._dispatch(handle, CS_DISPATCH_ONE_NONBLOCKING)
        if code == CS_ERR_TRY_AGAIN:
            return None
        check(code, "quorum_dispatch")
        events = self._events.get(handle)
        if events is None:
            raise CorosyncUnavailable("quorum_dispatch: not a handle of ours")
        if events:
            self._events[handle] = []
        return events


@once
def libquorum() -> LibQuorum:
    """The library. @raise CorosyncUnavailable: not installed."""
    return LibQuorum(*load(SONAME))
