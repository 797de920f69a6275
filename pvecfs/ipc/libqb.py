"""libqb's IPC through ctypes: structures, prototypes and constants, nothing else.

From C{qb/qbipcs.h}, C{qb/qbipcc.h} and C{qb/qbipc_common.h} of libqb 2. The layouts are checked against those headers
by C{tests/test_ipc_libqb.py}. Nothing here remembers anything; see L{pvecfs.ipc.service} and L{pvecfs.ipc.client}.
"""

from __future__ import annotations

import ctypes
import struct
from ctypes import c_char_p, c_int, c_int32, c_size_t, c_ssize_t, c_uint32, c_uint64, c_void_p
from functools import cache
from typing import Any, Protocol

LIBRARY = "libqb.so.100"

IPC_SHM = 1
"""C{enum qb_ipc_type}: shared memory."""

PRIORITY_LOW, PRIORITY_MEDIUM, PRIORITY_HIGH = range(3)
"""C{enum qb_loop_priority}."""

RATE_FAST, RATE_NORMAL, RATE_SLOW, RATE_OFF = range(4)
"""C{enum qb_ipcs_rate_limit}. Requests of a connection that one dispatch takes: at most 50, at most 5, one."""

REQUEST_HEADER = struct.Struct("<i4xi4x")
"""id, size of the whole request: 16 bytes."""

REPLY_HEADER = struct.Struct("<i4xi4xi4x")
"""id, size of the whole reply, error (0 or a negative errno): 24 bytes."""

CHUNK_HEADER = struct.Struct("<II")
"""What libqb puts before each message in its ring: the message's length as it arrived, L{CHUNK_MAGIC}. Not in a public
header, so the magic number must be looked at before the length is believed."""

CHUNK_MAGIC = 0xA1A1A1A1


class RequestHeader(ctypes.Structure):
    """C{struct qb_ipc_request_header}."""

    _fields_ = (("id", c_int32), ("_id_padding", c_int32), ("size", c_int32), ("_size_padding", c_int32))


class ResponseHeader(ctypes.Structure):
    """C{struct qb_ipc_response_header}."""

    _fields_ = (
        ("id", c_int32),
        ("_id_padding", c_int32),
        ("size", c_int32),
        ("_size_padding", c_int32),
        ("error", c_int32),
        ("_error_padding", c_int32),
    )


class IoVec(ctypes.Structure):
    """C{struct iovec}."""

    _fields_ = (("iov_base", c_void_p), ("iov_len", c_size_t))


class ConnectionStats(ctypes.Structure):
    """C{struct qb_ipcs_connection_stats}."""

    _fields_ = (
        ("client_pid", c_int32),
        ("requests", c_uint64),
        ("responses", c_uint64),
        ("events", c_uint64),
        ("send_retries", c_uint64),
        ("recv_retries", c_uint64),
        ("flow_control_state", c_int32),
        ("flow_control_count", c_uint64),
    )


# Callbacks from libqb into Python, which take the GIL if it is not held already.
ConnectionAccept = ctypes.CFUNCTYPE(c_int32, c_void_p, c_uint32, c_uint32)
ConnectionCreated = ctypes.CFUNCTYPE(None, c_void_p)
MessageProcess = ctypes.CFUNCTYPE(c_int32, c_void_p, c_void_p, c_size_t)
ConnectionClosed = ctypes.CFUNCTYPE(c_int32, c_void_p)
ConnectionDestroyed = ctypes.CFUNCTYPE(None, c_void_p)
JobAdd = ctypes.CFUNCTYPE(c_int32, c_int, c_void_p, c_void_p)
DispatchAdd = ctypes.CFUNCTYPE(c_int32, c_int, c_int32, c_int32, c_void_p, c_void_p)
DispatchModify = ctypes.CFUNCTYPE(c_int32, c_int, c_int32, c_int32, c_void_p, c_void_p)
DispatchDelete = ctypes.CFUNCTYPE(c_int32, c_int32)

# What libqb asks to be called, at the addresses that it hands over. The GIL stays held: these calls do not wait, and
# giving the GIL away in the middle of a request would mean to queue for it behind every busy thread.
Dispatch = ctypes.PYFUNCTYPE(c_int32, c_int32, c_int32, c_void_p)
Job = ctypes.PYFUNCTYPE(None, c_void_p)

SlowDispatch = ctypes.CFUNCTYPE(c_int32, c_int32, c_int32, c_void_p)
"""A L{Dispatch} that gives the GIL away: making a connection's rings takes milliseconds."""


class ServiceHandlers(ctypes.Structure):
    """C{struct qb_ipcs_service_handlers}."""

    _fields_ = (
        ("connection_accept", ConnectionAccept),
        ("connection_created", ConnectionCreated),
        ("msg_process", MessageProcess),
        ("connection_closed", ConnectionClosed),
        ("connection_destroyed", ConnectionDestroyed),
    )


class PollHandlers(ctypes.Structure):
    """C{struct qb_ipcs_poll_handlers}."""

    _fields_ = (
        ("job_add", JobAdd),
        ("dispatch_add", DispatchAdd),
        ("dispatch_mod", DispatchModify),
        ("dispatch_del", DispatchDelete),
    )


class ForeignFunction(Protocol):
    """A function of the library, with its prototype set."""

    def __call__(self, *arguments: Any) -> Any: ...


_HELD = {
    "qb_ipcs_response_send": (c_ssize_t, c_void_p, c_char_p, c_size_t),
    "qb_ipcs_response_sendv": (c_ssize_t, c_void_p, ctypes.POINTER(IoVec), c_size_t),
    "qb_ipcs_connection_get_buffer_size": (c_int32, c_void_p),
    "qb_ipcs_connection_stats_get": (c_int32, c_void_p, ctypes.POINTER(ConnectionStats), c_int32),
    "qb_ipcs_connection_ref": (None, c_void_p),
    "qb_ipcs_connection_unref": (None, c_void_p),
}
"""Called with the GIL held: none of them waits."""

_RELEASED = {
    "qb_ipcs_create": (c_void_p, c_char_p, c_int32, c_int, ctypes.POINTER(ServiceHandlers)),
    "qb_ipcs_poll_handlers_set": (None, c_void_p, ctypes.POINTER(PollHandlers)),
    "qb_ipcs_request_rate_limit": (None, c_void_p, c_int),
    "qb_ipcs_run": (c_int32, c_void_p),
    "qb_ipcs_disconnect": (None, c_void_p),
    "qb_ipcs_destroy": (None, c_void_p),
    "qb_ipcc_connect_async": (c_void_p, c_char_p, c_size_t, ctypes.POINTER(c_int)),
    "qb_ipcc_connect_continue": (c_int, c_void_p),
    "qb_ipcc_disconnect": (None, c_void_p),
    "qb_ipcc_fd_get": (c_int32, c_void_p, ctypes.POINTER(c_int32)),
    "qb_ipcc_get_buffer_size": (c_int32, c_void_p),
    "qb_ipcc_send": (c_ssize_t, c_void_p, c_char_p, c_size_t),
    "qb_ipcc_recv": (c_ssize_t, c_void_p, c_void_p, c_size_t, c_int32),
}


class LibQb:
    """The library's functions with their prototypes, by their names without C{qb_}."""

    ipcs_response_send: ForeignFunction
    ipcs_response_sendv: ForeignFunction
    ipcs_connection_get_buffer_size: ForeignFunction
    ipcs_connection_stats_get: ForeignFunction
    ipcs_connection_ref: ForeignFunction
    ipcs_connection_unref: ForeignFunction
    ipcs_create: ForeignFunction
    ipcs_poll_handlers_set: ForeignFunction
    ipcs_request_rate_limit: ForeignFunction
    ipcs_run: ForeignFunction
    ipcs_disconnect: ForeignFunction
    ipcs_destroy: ForeignFunction
    ipcc_connect_async: ForeignFunction
    ipcc_connect_continue: ForeignFunction
    ipcc_disconnect: ForeignFunction
    ipcc_fd_get: ForeignFunction
    ipcc_get_buffer_size: ForeignFunction
    ipcc_send: ForeignFunction
    ipcc_recv: ForeignFunction

    def __init__(self, held: ctypes.PyDLL, released: ctypes.CDLL) -> None:
        for library, prototypes in ((held, _HELD), (released, _RELEASED)):
            for name, (result, *arguments) in prototypes.items():
                function = getattr(library, name)
                function.restype = result
                function.argtypes = arguments
                setattr(self, name.removeprefix("qb_"), function)


@cache
def load() -> LibQb:
    """The library.

    @raise OSError: it is not installed, or too old.
    """
    try:
        return LibQb(ctypes.PyDLL(LIBRARY), ctypes.CDLL(LIBRARY, use_errno=True))
    except AttributeError as missing:
        raise OSError(f"{LIBRARY} is too old: {missing}") from missing
