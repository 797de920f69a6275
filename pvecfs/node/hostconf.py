"""corosync.conf: the cluster's is in the tree, the host's copy is a file that corosync reads (30-replication.md)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime

from pvecfs.log import logger

if TYPE_CHECKING:
    from twisted.python.failure import Failure

_log = logger("corosync_conf")

TREE_NAME = b"corosync.conf"
"""Name of the cluster's configuration in the root of the tree. A tree without it means local mode."""

RELOAD_COMMAND = ("corosync-cfgtool", "-R")
RELOAD_DELAY = 1.0
"""Seconds from the replaced file to corosync reading it: the other nodes need a moment to replace theirs."""

MODE = 0o644

_MOST_DIGITS = 20  # of 2^64; int() raises an error at some thousands

_VERSION = re.compile(rb"config_version\s*:\s*(\d+)")


def configuration_version(content: bytes) -> int:
    """The first C{config_version: N} of a corosync.conf; 0 when there is none, or it is no number of 64 bits."""
    match = _VERSION.search(content)
    digits = b"" if match is None else match[1].lstrip(b"0")
    version = int(digits) if 0 < len(digits) <= _MOST_DIGITS else 0
    return version if version < 2**64 else 0


class HostConfiguration:
    """Keeps the host's corosync.conf in step with the tree's.

    @param in_thread: calls a function in a thread and returns a Deferred (C{deferToThread}): files may block.
    @param run: starts a command and does not wait for it.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        path: str,
        in_thread: Callable[..., Deferred[Any]],
        run: Callable[[tuple[str, ...]], None],
    ) -> None:
        self._reactor = reactor
        self._path = Path(path)
        self._in_thread = in_thread
        self._run = run
        self._one_at_a_time = DeferredLock()

    def tree_changed(self, content: bytes, reload: bool) -> Deferred[None]:
        """The tree holds C{content}: replace the host's file where that is older.

        @param reload: let corosync read a replaced file: the change was made on this node, or it happens at start.
        """
        d: Deferred[int | None] = self._one_at_a_time.run(self._in_thread, self._replace, content)
        d.addCallbacks(self._replaced, self._failed, callbackArgs=(reload,))
        return d  # type: ignore[return-value]  # both callbacks return None

    def _replace(self, content: bytes) -> int | None:
        """In a thread. Returns the old file's version when it was replaced, else None."""
        try:
            old = self._path.read_bytes()
        except FileNotFoundError:
            old = b""
        if old == content:
            return None
        version, old_version = configuration_version(content), configuration_version(old)
        if version == 0:
            _log.error("corosync.conf of the cluster has no config_version, {path} is left as it is", path=self._path)
            return None
        if version < old_version:
            _log.error(
                "local corosync.conf is newer: {path} has version {old}, the cluster's {new}",
                path=self._path,
                old=old_version,
                new=version,
            )
            return None
        replace_file(self._path, content)
        _log.info("wrote new corosync config {path}, version {new}", path=self._path, new=version)
        return old_version

    def _replaced(self, old_version: int | None, reload: bool) -> None:
        if reload and old_version:
            self._reactor.callLater(RELOAD_DELAY, self._run, RELOAD_COMMAND)

    def _failed(self, failure: Failure) -> None:
        _log.error("cannot update {path}: {reason}", path=self._path, reason=failure.getErrorMessage())


def replace_file(path: Path, content: bytes) -> None:
    """Replace C{path} by a file with C{content}, mode 0644, atomically and durably."""
    temporary = path.with_name(f".{path.name}.pvecfs")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), MODE)
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
