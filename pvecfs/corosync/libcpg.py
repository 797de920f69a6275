"""libcpg, as C{corosync/cpg.h} declares it: prototypes and errors only.

Which calls wait for corosync, for ever if it does not run on: initialize, local_get, join, leave, finalize, and
mcast_joined of more than L{ATOMIC_SIZE} bytes, which is sent in pieces, each of them answered. The others never wait.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char, c_char_p, c_int, c_size_t, c_uint, c_uint32, c_uint64, c_void_p
from typing import NamedTuple

from pvecfs.corosync.errors import check
from pvecfs.corosync.libraries import Binding, load, once, prototype

SONAME = "libcpg.so.4"

CPG_TYPE_AGREED = 2
CPG_MAX_NAME_LENGTH = 128
CPG_MEMBERS_MAX = 128
ATOMIC_SIZE = 1024 * 1024 - 1024
"""Bytes that mcast_joined sends as one request: the library's request size less the room it keeps for headers."""


class Name(ctypes.Structure):
    """C{struct cpg_name}"""

    _fields_ = (("length", c_uint32), ("value", c_char * CPG_MAX_NAME_LENGTH))

    @classmethod
    def of(cls, name: bytes) -> Name:
        """The group called C{name}: its terminating NUL is part of the length on the wire of the reference."""
        terminated = name + b"\0"
        if len(terminated) > CPG_MAX_NAME_LENGTH or b"\0" in name:
            raise ValueError(f"not a group name: {name!r}")
        structure = cls(length=len(terminated))
        ctypes.memmove(ctypes.addressof(structure) + cls.value.offset, terminated, len(terminated))
        return structure


class Address(ctypes.Structure):
    """C{struct cpg_address}"""

    _fields_ = (("nodeid", c_uint32), ("pid", c_uint32), ("reason", c_uint32))


class IoVector(ctypes.Structure):
    """C{struct iovec}"""

    _fields_ = (("base", c_char_p), ("length", c_size_t))


# The group's name, a C{struct cpg_name} *, stays an address: to make an object of it for each message takes time.
DeliverFunction = ctypes.CFUNCTYPE(None, c_uint64, c_void_p, c_uint32, c_uint32, c_void_p, c_size_t)
ConfigurationFunction = ctypes.CFUNCTYPE(
    None, c_uint64, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, c_void_p, c_size_t
)


class Callbacks(ctypes.Structure):
    """C{cpg_callbacks_t}"""

    _fields_ = (("deliver", DeliverFunction), ("configuration", ConfigurationFunction))


Process = tuple[int, int]
"""(node id, process id)"""


class Delivered(NamedTuple):
    """A message of C{sender}."""

    sender: Process
    message: bytes


class ConfigurationChanged(NamedTuple):
    """The members of the group are C{members} now."""

    members: tuple[Process, ...]
    left: tuple[Process, ...]
    joined: tuple[Process, ...]


Event = Delivered | ConfigurationChanged


def processes(address: int | None, count: int) -> tuple[Process, ...]:
    """Copy C{count} C{struct cpg_address} from memory. @raise ValueError: more than the library can have."""
    if not address or not count:
        return ()
    if count > CPG_MEMBERS_MAX:
        raise ValueError(f"{count} members in a group of at most {CPG_MEMBERS_MAX}")
    return tuple((each.nodeid, each.pid) for each in (Address * count).from_address(address))


class LibCpg(Binding[Event]):
    """The library. For one handle, sends are made by one thread at a time."""

    def __init__(self, waiting: ctypes.CDLL, immediate: ctypes.PyDLL) -> None:
        handle, pointer = c_uint64, POINTER
        super().__init__(waiting, immediate, "cpg", pointer(Callbacks))
        self._local_get = prototype(waiting, "cpg_local_get", handle, pointer(c_uint))
        self._join = prototype(waiting, "cpg_join", handle, pointer(Name))
        self._leave = prototype(waiting, "cpg_leave", handle, pointer(Name))
        multicast = ("cpg_mcast_joined", handle, c_int, pointer(IoVector), c_uint)
        self._mcast_pieces = prototype(waiting, *multicast)
        self._mcast_atomic = prototype(immediate, *multicast)
        self._callbacks = Callbacks(DeliverFunction(self._delivered), ConfigurationFunction(self._changed))

    def _delivered(self, handle: int, name: object, node: int, pid: int, message: int | None, length: int) -> None:
        data = ctypes.string_at(message, length) if message else b""
        self._events[handle].append(Delivered((node, pid), data))

    def _changed(
        self, handle: int, name: object, members: int | None, member_count: int, left: int | None, left_count: int,
        joined: int | None, joined_count: int,
    ) -> None:  # fmt: skip
        self._events[handle].append(
            ConfigurationChanged(
                processes(members, member_count), processes(left, left_count), processes(joined, joined_count)
            )
        )

    def initialize(self) -> int:
        """@return: a handle, to be given to L{finalize}."""
        return self._connect(ctypes.byref(self._callbacks))

    def local_get(self, handle: int) -> int:
        """@return: the id of this node."""
        node = c_uint()
        check(self._local_get(handle, ctypes.byref(node)), "cpg_local_get")
        return node.value

    def join(self, handle: int, group: bytes) -> None:
        check(self._join(handle, ctypes.byref(Name.of(group))), "cpg_join")

    def leave(self, handle: int, group: bytes) -> None:
        check(self._leave(handle, ctypes.byref(Name.of(group))), "cpg_leave")

    def mcast_joined(self, handle: int, message: bytes) -> None:
        """Send C{message} to the joined group, agreed order. Waits only when it is longer than L{ATOMIC_SIZE}."""
        vector = IoVector(message, len(message))
        call = self._mcast_atomic if len(message) <= ATOMIC_SIZE else self._mcast_pieces
        check(call(handle, CPG_TYPE_AGREED, ctypes.byref(vector), 1), "cpg_mcast_joined")


@once
def libcpg() -> LibCpg:
    """The library. @raise CorosyncUnavailable: not installed."""
    return LibCpg(*load(SONAME))
