"""What corosync's client libraries have in common. They are looked for when first needed, and not before."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from ctypes import POINTER, c_int, c_uint64
from typing import Any, Generic, TypeVar

from pvecfs.corosync.errors import CS_ERR_TRY_AGAIN, check
from pvecfs.errors import CorosyncUnavailable

T = TypeVar("T")

CS_DISPATCH_ONE_NONBLOCKING = 4


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
    do (the GIL is kept: giving it away for a microsecond can cost a switch interval to get it back, 5 ms in Python, and
    still 0.5 ms in the daemon, which sets it).

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


class Binding(Generic[T]):
    """One library, whose functions begin with C{prefix}; its events are of type C{T}.

    Any method may be called on any thread. The callbacks, which its subclass makes, live as long as the library and
    only copy what they are told into C{_events} of their handle, so that nobody's code runs inside of C{dispatch}.

    @param initialize: types of the arguments of the library's C{initialize}, without the handle.
    @raise CorosyncUnavailable: every method, see L{check}.
    @raise TryAgain: every method.
    """

    def __init__(self, waiting: ctypes.CDLL, immediate: ctypes.PyDLL, prefix: str, *initialize: Any) -> None:
        self._prefix = prefix
        self._initialize = prototype(waiting, f"{prefix}_initialize", POINTER(c_uint64), *initialize)
        self._finalize = prototype(waiting, f"{prefix}_finalize", c_uint64)
        self._fd_get = prototype(immediate, f"{prefix}_fd_get", c_uint64, POINTER(c_int))
        self._dispatch = prototype(immediate, f"{prefix}_dispatch", c_uint64, c_int)
        self._events: dict[int, list[T]] = {}
        # The library makes its table of handles in the first call, without a lock.
        self._initializing = threading.Lock()

    def _connect(self, *arguments: Any) -> int:
        """Call the library's C{initialize} with the handle and C{arguments}. @return: the handle."""
        handle = c_uint64()
        with self._initializing:
            code = self._initialize(ctypes.byref(handle), *arguments)
        check(code, f"{self._prefix}_initialize")
        self._events[handle.value] = []
        return handle.value

    def finalize(self, handle: int) -> None:
        """Disconnect: the handle is gone, even if this raises."""
        self._events.pop(handle, None)
        check(self._finalize(handle), f"{self._prefix}_finalize")

    def fd_get(self, handle: int) -> int:
        """@return: the descriptor that is readable while there is something to dispatch. Owned by the library."""
        fd = c_int(-1)
        check(self._fd_get(handle, ctypes.byref(fd)), f"{self._prefix}_fd_get")
        return fd.value

    def dispatch(self, handle: int) -> list[T] | None:
        """Take one event from corosync; never waits.

        @return: None when there is none; else the event, in a list that is empty for a piece of one.
        """
        code = self._dispatch(handle, CS_DISPATCH_ONE_NONBLOCKING)
        if code == CS_ERR_TRY_AGAIN:
            return None
        check(code, f"{self._prefix}_dispatch")
        events = self._events.get(handle)
        if events is None:
            raise CorosyncUnavailable(f"{self._prefix}_dispatch: not a handle of ours")
        if events:
            self._events[handle] = []
        return events
