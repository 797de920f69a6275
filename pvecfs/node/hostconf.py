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

    def bring_in_step(self, content: bytes) -> None:
        """As L{tree_changed}, at the start, before the reactor runs. It is done on return: a corosync that is started
        after us reads the file next."""
        try:
            self._replaced(self._replace(content), reload=True)
        except OSError as error:
            self._failed(str(error))

    def tree_changed(self, content: bytes, reload: bool) -> Deferred[None]:
        """The tree holds C{content}: replace the host's file where that is older.

        @param reload: let corosync read a replaced file: the change was made on this node.
        """
        d: Deferred[int | None] = self._one_at_a_time.run(self._in_thread, self._replace, content)
        d.addCallbacks(self._replaced, lambda failure: self._failed(failure.getErrorMessage()), callbackArgs=(reload,))
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

    def _failed(self, reason: str) -> None:
        _log.error("cannot update {path}: {reason}", path=self._path, reason=reason)
