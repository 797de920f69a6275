"""C{cs_error_t} of C{corosync/corotypes.h} as exceptions."""

from __future__ import annotations

from pvecfs.errors import CorosyncUnavailable, TryAgain

CS_OK = 1
CS_ERR_TRY_AGAIN = 6
CS_ERR_BUSY = 10
CS_ERR_NOT_EXIST = 12

NAMES = {
    2: "library error",
    3: "version mismatch",
    4: "initialisation failed",
    5: "timeout",
    6: "try again",
    7: "invalid parameter",
    8: "no memory",
    9: "bad handle",
    10: "busy",
    11: "access denied",
    12: "does not exist",
    13: "name too long",
    14: "exists",
    15: "no space",
    16: "interrupted",
    17: "name not found",
    18: "no resources",
    19: "not supported",
    20: "bad operation",
    21: "failed operation",
    22: "message error",
    23: "queue full",
    24: "queue not available",
    25: "bad flags",
    26: "too big",
    27: "no sections",
    28: "context not found",
    30: "too many groups",
    100: "security error",
}
"""Our words for every error code there is, without CS_OK."""


def check(code: int, call: str) -> None:
    """Raise what C{code}, the result of the library call C{call}, means.

    @raise TryAgain: CS_ERR_TRY_AGAIN, CS_ERR_BUSY.
    @raise CorosyncUnavailable: any other error: none of them can be repaired on the same connection.
    """
    if code == CS_OK:
        return
    message = f"{call}: {NAMES.get(code, 'unknown error')} ({code})"
    if code in (CS_ERR_TRY_AGAIN, CS_ERR_BUSY):
        raise TryAgain(message)
    raise CorosyncUnavailable(message, code)
