"""What the store raises."""

from __future__ import annotations

import os


class StoreError(OSError):
    """The database cannot be used as asked. The message is one line that names the file.

    @ivar errno: a positive errno value: what a change that waits for its commit is to be answered.
    """

    errno: int

    def __init__(self, errno: int, why: str = "") -> None:
        super().__init__(errno, why or os.strerror(errno))

    def __str__(self) -> str:
        return str(self.strerror)


class OtherSchema(StoreError):
    """The database is well, but not one of this file system's: or the damage is in what says so."""
