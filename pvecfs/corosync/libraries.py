"""Finding corosync's client libraries, when they are first needed and not before."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from pvecfs.errors import CorosyncUnavailable

T = TypeVar("T")


def once(make: Callable[[], T]) -> Callable[[], T]:
    """Make it only once, whichever threads ask for it first: C{functools.cache} alone would let two make one each."""
    lock = threading.Lock()
    result: list[T] = []

    @functools.wraps(make)
    def made() -> T:
        if not result:
            with lock:
                if not result:
                    result.append(make())
        return result[0]

    return made


@functools.cache
def load(soname: str) -> tuple[ctypes.CDLL, ctypes.PyDLL]:
    """The library C{soname}, twice: for calls that may wait (the GIL is released meanwhile), and for calls that never
    do (the GIL is kept: giving it away for a microsecond can cost a switch interval, 5 ms, to get it back).

    @raise CorosyncUnavailable: it is not installed.
    """
    try:
        return ctypes.CDLL(soname), ctypes.PyDLL(soname)
    except OSError as error:
        raise CorosyncUnavailable(f"{soname} cannot be loaded, is corosync installed? {error}") from error


def prototype(library: ctypes.CDLL, name: str, *arguments: Any) -> Any:
    """The function C{name} that returns a C{cs_error_t}."""
    function = getattr(library, name)
    function.argtypes = arguments
    function.restype = ctypes.c_int
    return function
