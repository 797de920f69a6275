"""corosync.conf: the cluster's is in the tree, the host's copy is a file that corosync reads (30-replication.md)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime

from pvecfs.log import logger
from pvecfs.node.host import replace_file

_log = logger("corosync_conf")

TREE_NAME = b"corosync.conf"
"""Name of the cluster's configuration in the root of the tree. A tree without it means local mode."""

RELOAD_COMMAND = ("corosync-cfgtool", "-R")
RELOAD_DELAY = 1.0
"""Seconds from the replaced file to corosync reading it: the other nodes need a moment to replace theirs."""

RETRY_INTERVAL = 30.0
"""Seconds until the file is tried again that could not be replaced."""

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
    @ivar version: the C{config_version} of the tree's; 0 while it is not known, or has none.
    @ivar since: the reactor's time from which on it is that.
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
        self._changes = 0
        self.version = 0
        self.since = 0.0

    def bring_in_step(self, content: bytes) -> None:
        """As L{tree_changed}, at the start, before the reactor runs. It is done on return: a corosync that is started
        after us reads the file next."""
        change = self._changed(content)
        try:
            self._replaced(self._replace(content), reload=True)
        except OSError as error:
            self._failed(str(error), change, content, True)

    def _changed(self, content: bytes) -> int:
        """Note what the tree holds. @return: how many changes that were."""
        self._changes += 1
        version = configuration_version(content)
        if version != self.version:
            self.version, self.since = version, self._reactor.seconds()
        return self._changes

    def tree_changed(self, content: bytes, reload: bool) -> Deferred[None]:
        """The tree holds C{content}: replace the host's file where that is older.

        @param reload: let corosync read a replaced file: the change was made on this node.
        """
        change = self._changed(content)
        d: Deferred[int | None] = self._one_at_a_time.run(self._in_thread, self._replace, content)
        d.addCallbacks(
            self._replaced,
            lambda failure: self._failed(failure.getErrorMessage(), change, content, reload),
            callbackArgs=(reload,),
        )
        return d  # type: ignore[return-value]  # both callbacks return None

    def _replace(self, content: bytes) -> int | None:
        """In a thread, but at the start. Returns the old file's version when it was replaced, else None."""
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

    def _failed(self, reason: str, change: int, content: bytes, reload: bool) -> None:
        _log.error("cannot update {path}: {reason}", path=self._path, reason=reason)
        self._reactor.callLater(RETRY_INTERVAL, self._try_again, change, content, reload)

    def _try_again(self, change: int, content: bytes, reload: bool) -> None:
        if change == self._changes:  # else there is a newer one
            self.tree_changed(content, reload)
