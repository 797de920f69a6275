"""librrd through ctypes: create a database, update it. Only calls and errors here; they wait for the disk."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

from pvecfs.rrd.layout import STEP


class RrdError(Exception):
    """librrd refused; the message is its own."""


class RrdUnavailable(RrdError):
    """librrd is not installed, or is another one."""


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("librrd.so.8")
        arguments = ctypes.POINTER(ctypes.c_char_p)
        # rrd_create_r(const char *filename, unsigned long pdp_step, time_t last_up, int argc, const char **argv)
        library.rrd_create_r.argtypes = (ctypes.c_char_p, ctypes.c_ulong, ctypes.c_long, ctypes.c_int, arguments)
        library.rrd_create_r.restype = ctypes.c_int
        # rrd_update_r(const char *filename, const char *_template, int argc, const char **argv)
        library.rrd_update_r.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int, arguments)
        library.rrd_update_r.restype = ctypes.c_int
        library.rrd_get_error.argtypes = ()
        library.rrd_get_error.restype = ctypes.c_char_p
        library.rrd_clear_error.argtypes = ()
        library.rrd_clear_error.restype = None
    except (OSError, AttributeError) as error:
        raise RrdUnavailable(f"librrd cannot be used: {error}") from error
    return library


def _check(library: ctypes.CDLL, status: int) -> None:
    if status:
        raise RrdError((library.rrd_get_error() or b"unknown error").decode("utf-8", "replace"))


def create(path: bytes, start: int, definitions: Sequence[bytes]) -> None:
    """Make a database; one that is there is replaced.

    @param start: seconds since 1970; the first value must be later.
    @param definitions: C{DS:...} and C{RRA:...}.
    @raise RrdError: it cannot be made.
    """
    library = _library()
    library.rrd_clear_error()
    arguments = (ctypes.c_char_p * len(definitions))(*definitions)
    _check(library, library.rrd_create_r(path, STEP, start, len(definitions), arguments))


def update(path: bytes, line: bytes) -> None:
    """Store C{line}: time and values, joined by ':'.

    @raise RrdError: no database at C{path}, or it does not take the line.
    """
    library = _library()
    library.rrd_clear_error()
    _check(library, library.rrd_update_r(path, None, 1, (ctypes.c_char_p * 1)(line)))
