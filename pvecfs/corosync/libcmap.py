"""libcmap, as C{corosync/cmap.h} declares it: prototypes and errors only.

All calls but fd_get and dispatch wait for corosync, for ever if it does not run on.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from ctypes import POINTER, c_char_p, c_int, c_int32, c_size_t, c_uint64, c_void_p

from pvecfs.corosync.errors import CS_ERR_NOT_EXIST, check
from pvecfs.corosync.libraries import Binding, load, once, prototype
from pvecfs.errors import CorosyncUnavailable

SONAME = "libcmap.so.4"

CMAP_KEYNAME_MAXLEN = 255
CMAP_TRACK_DELETE = 1
CMAP_TRACK_MODIFY = 2
CMAP_TRACK_ADD = 4
CMAP_TRACK_PREFIX = 8
CS_ERR_NO_SECTIONS = 27
VALUE_MAX = 1 << 20
"""Bytes of a value; longer ones are refused."""

UNSIGNED = frozenset((2, 4, 6, 8))
SIGNED = frozenset((1, 3, 5, 7))
STRING = 11


class NotifyValue(ctypes.Structure):
    """C{struct cmap_notify_value}"""

    _fields_ = (("type", c_int), ("len", c_size_t), ("data", c_void_p))


NotifyFunction = ctypes.CFUNCTYPE(None, c_uint64, c_uint64, c_int32, c_char_p, NotifyValue, NotifyValue, c_void_p)


class LibCmap(Binding[bytes]):
    """The library. An event is the key that changed."""

    def __init__(self, waiting: ctypes.CDLL, immediate: ctypes.PyDLL) -> None:
        handle, pointer = c_uint64, POINTER
        size, kind = pointer(c_size_t), pointer(c_int)
        super().__init__(waiting, immediate, "cmap")
        self._get = prototype(waiting, "cmap_get", handle, c_char_p, c_void_p, size, kind)
        self._iter_init = prototype(waiting, "cmap_iter_init", handle, c_char_p, pointer(handle))
        self._iter_next = prototype(waiting, "cmap_iter_next", handle, handle, c_char_p, size, kind)
        self._iter_finalize = prototype(waiting, "cmap_iter_finalize", handle, handle)
        track = (handle, c_char_p, c_int32, NotifyFunction, c_void_p, pointer(handle))
        self._track_add = prototype(waiting, "cmap_track_add", *track)
        self._notify = NotifyFunction(self._notified)

    def _notified(
        self, handle: int, track: int, event: int, key: bytes, new: NotifyValue, old: NotifyValue, data: object
    ) -> None:
        self._events[handle].append(key)

    def initialize(self) -> int:
        """@return: a handle, to be given to L{finalize}."""
        return self._connect()

    def get(self, handle: int, key: bytes) -> int | bytes | None:
        """@return: the value of C{key}: a whole number, or bytes (a string without its NUL); None: no such key."""
        size, kind = c_size_t(0), c_int(0)
        code = self._get(handle, key, None, ctypes.byref(size), ctypes.byref(kind))
        if code == CS_ERR_NOT_EXIST:
            return None
        check(code, "cmap_get")
        if size.value > VALUE_MAX:
            raise CorosyncUnavailable(f"cmap_get: {key!r} has {size.value} bytes")
        buffer = ctypes.create_string_buffer(size.value)
        code = self._get(handle, key, buffer, ctypes.byref(size), ctypes.byref(kind))
        if code == CS_ERR_NOT_EXIST:
            return None
        check(code, "cmap_get")
        value = buffer.raw[: size.value]
        if kind.value in UNSIGNED or kind.value in SIGNED:
            return int.from_bytes(value, sys.byteorder, signed=kind.value in SIGNED)
        return value.split(b"\0", 1)[0] if kind.value == STRING else value

    def keys(self, handle: int, prefix: bytes) -> Iterator[bytes]:
        """The keys that begin with C{prefix}."""
        iterator = c_uint64()
        check(self._iter_init(handle, prefix, ctypes.byref(iterator)), "cmap_iter_init")
        try:
            key, size, kind = ctypes.create_string_buffer(CMAP_KEYNAME_MAXLEN + 1), c_size_t(), c_int()
            while True:
                code = self._iter_next(handle, iterator, key, ctypes.byref(size), ctypes.byref(kind))
                if code == CS_ERR_NO_SECTIONS:
                    return
                check(code, "cmap_iter_next")
                yield key.value
        finally:
            self._iter_finalize(handle, iterator)

    def track(self, handle: int, key: bytes, prefix: bool) -> None:
        """Ask to be told of changes of C{key}, or of all keys that begin with it."""
        flags = CMAP_TRACK_ADD | CMAP_TRACK_DELETE | CMAP_TRACK_MODIFY | (CMAP_TRACK_PREFIX if prefix else 0)
        track = c_uint64()
        check(self._track_add(handle, key, flags, self._notify, None, ctypes.byref(track)), "cmap_track_add")


@once
def libcmap() -> LibCmap:
    """The library. @raise CorosyncUnavailable: not installed."""
    return LibCmap(*load(SONAME))
