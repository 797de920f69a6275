"""The lock that keeps two programs from writing one database: the daemons, the reference's too, and C{pvecfs-db}."""

from __future__ import annotations

import fcntl
import os
from errno import EIO

from pvecfs.store.errors import StoreError

LOCK_NAME = ".pmxcfs.lockfile"
"""Its name in the directory of the database (60-operation.md)."""

LOCK_TIMEOUT = 10.0
"""Seconds that a daemon keeps trying, saying so once."""


class LockFile:
    """An exclusive flock. The file is made with mode 0600 and never removed.

    @param path: of the lock file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._fd = -1

    @classmethod
    def beside(cls, database: str | os.PathLike[str]) -> LockFile:
        """The lock of the database at C{database}."""
        return cls(os.path.join(os.path.dirname(os.path.abspath(database)), LOCK_NAME))

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._fd >= 0

    def try_acquire(self) -> bool:
        """Take the lock, without waiting; False when somebody else has it.

        @raise StoreError: there can be no such file.
        """
        if self._fd >= 0:
            return True
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StoreError(error.errno or EIO, f"{self.path}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.fchmod(fd, 0o600)
        except BlockingIOError:
            os.close(fd)
            return False
        except OSError as error:
            os.close(fd)
            raise StoreError(error.errno or EIO, f"{self.path}: {error.strerror}") from error
        self._fd = fd
        return True

    def release(self) -> None:
        """Give the lock up; the file stays. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
