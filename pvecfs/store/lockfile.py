"""The lock that keeps two programs from writing one database: the daemons, the reference's too, and C{pvecfs-db}."""

from __future__ import annotations

import fcntl
import os
from errno import EIO, EROFS
from pathlib import Path

from pvecfs.store.errors import StoreError

DATABASE_NAME = "config.db"
"""The name by which daemons use a database, in the state directory (60-operation.md)."""

LOCK_NAME = ".pmxcfs.lockfile"
"""The lock's name in the directory of the database (60-operation.md)."""

_MOST_LINKS = 40
"""Linux follows no more symbolic links than that for one path."""

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

    def try_acquire(self, to_write: bool = True) -> bool:
        """Take the lock, without waiting; False when somebody else has it.

        @param to_write: whether the database is to be written; else the file must be there, and may be on a medium that
            cannot be written.
        @raise StoreError: there can be no such file.
        """
        if self._fd >= 0:
            return True
        flags = os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            try:
                fd = os.open(self.path, flags | os.O_RDWR | (os.O_CREAT if to_write else 0), 0o600)
            except OSError as error:
                if to_write or error.errno != EROFS:
                    raise
                fd = os.open(self.path, flags | os.O_RDONLY)
        except OSError as error:
            raise StoreError(error.errno or EIO, f"{self.path}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if to_write:
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


def locks_of(database: str | os.PathLike[str]) -> list[LockFile]:
    """The locks of all daemons that may use the file at C{database}: one for each path called L{DATABASE_NAME} among
    C{database} and those to which it leads as a symbolic link. A hard link leads to no other path."""
    locks: dict[str, LockFile] = {}
    place = Path(database)
    for _ in range(_MOST_LINKS):
        place = Path(os.path.realpath(place.parent), place.name)
        if place.name == DATABASE_NAME:
            lock = LockFile.beside(place)
            locks[lock.path] = lock
        if not os.path.islink(place):
            break
        place = place.parent / os.readlink(place)
    return list(locks.values())
