"""The mount as a service."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable
from threading import Thread
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from pvecfs.fuse import lowlevel, mountpoint, rescue
from pvecfs.fuse.filesystem import FileSystem
from pvecfs.fuse.graves import Graves
from pvecfs.fuse.intake import Intake
from pvecfs.fuse.invalidation import LANES, KernelCache
from pvecfs.fuse.mountpoint import MountFailed
from pvecfs.fuse.nodes import Attributes, NodeIds
from pvecfs.log import logger

if TYPE_CHECKING:
    from pvecfs.interfaces import Backlog, INodeView, IProposer

_log = logger("fuse")

STOP_SECONDS = 2.5
"""After this long, L{FuseMount.stopService} is over, whatever the kernel holds back."""

_POLL_SECONDS = 0.02


class _DaemonThread(Thread):
    """A thread that does not hold up the process's end, should the kernel not give it back."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, daemon=True)


class _Threads(ThreadPool):
    threadFactory = _DaemonThread


class FuseMount(Service):
    """Mounts a node's tree.

    The daemon itself must never touch its mountpoint: who waits for an answer cannot give it.

    @ivar kernel_cache: to be told of changes that do not come through this mount, an L{IKernelCache}.
    @ivar on_lost: called on the reactor thread when nobody can be answered any more: the mount was taken away from
        outside (umount, C{False}), or it is there still and has to be unmounted (C{True}).
    @ivar on_burst: each is called on the reactor thread when changes begin to come through the mount (C{True}), and
        when there was none for L{pvecfs.fuse.intake.QUIET} and none is under way (C{False}).
    @ivar on_series: each is called on the reactor thread while they come one after another, again and again.

    @param place: the mountpoint; made if missing.
    @param owner: uid of everything.
    @param group: gid of everything.
    @param allow_other: let all users in, as far as modes allow it. Root only, unless /etc/fuse.conf says otherwise.
    @param source: shown as the file system's source.
    @param alone: the tree changes through this mount only (local mode).
    """

    name = "mount"

    def __init__(
        self,
        reactor: Any,
        view: INodeView,
        proposer: IProposer,
        place: str,
        owner: int,
        group: int,
        allow_other: bool,
        source: str = "pvecfs",
        on_lost: Callable[[bool], None] | None = None,
        alone: bool = False,
    ) -> None:
        graves = Graves()
        nodes = NodeIds(view)
        self.kernel_cache = KernelCache(nodes, graves, alone=alone)
        self.on_lost = on_lost
        self.on_burst: list[Callable[[bool], None]] = []
        self.on_series: list[Callable[[], None]] = []
        self._reactor = reactor
        self._files = FileSystem(
            reactor, view, proposer, Attributes(owner, group), graves, self.kernel_cache, nodes, alone
        )
        self._place = place
        self._allow_other = allow_other
        self._source = source
        self._operations: lowlevel.Operations | None = None
        self._session = 0
        self._connection = -1
        self._rescue: subprocess.Popen[bytes] | None = None
        self._pool: _Threads | None = None
        self._intake: Intake | None = None
        self._ends: Deferred[Any] = succeed(None)
        self._stopping = False
        self._mounted = False

    # Starting

    def startService(self) -> None:
        """Mount, and begin to answer. Reads are answered at once, changes from when the reactor runs.

        @raise MountFailed: it is not possible, and nothing is left mounted.
        """
        self._place = place = mountpoint.resolve(self._place)
        mountpoint.prepare(place)
        _messages.clear()
        lowlevel.set_log_function(_log_function)
        self._operations = operations = self._files.operations()
        session = self._new_session(operations)
        if lowlevel.session_mount(session, os.fsencode(place)) != 0:
            lowlevel.session_destroy(session)
            raise MountFailed(place, _reason())
        self._session = session
        self._mounted = True
        self.running = True
        try:
            self._begin(session)
        except BaseException:
            self.abort()
            raise
        _log.info("mounted at {place}", place=place)

    def _begin(self, session: int) -> None:
        """What comes after mounting."""
        mounted = mountpoint.find_mounted(self._place)
        self._connection = mounted.connection if mounted is not None else -1
        if self._connection >= 0:
            try:
                self._rescue = rescue.start(self._place, self._connection)
            except OSError as failure:  # it is for the worst case only: no reason not to mount
                _log.warn("no process to end this mount if the daemon is killed: {reason}", reason=failure)
        self.kernel_cache.attach(session)
        self._start_threads(session)

    def _new_session(self, operations: lowlevel.Operations) -> int:
        options = f"default_permissions,fsname={_escaped(self._source)}"
        if self._allow_other:
            options += ",allow_other"
        words = [b"pvecfs", b"-o", os.fsencode(options)]
        arguments = lowlevel.Args(len(words), (ctypes.c_char_p * (len(words) + 1))(*words, None), 0)
        session: int | None = lowlevel.session_new(
            ctypes.byref(arguments), ctypes.byref(operations), ctypes.sizeof(operations), None
        )
        if session is None:
            raise MountFailed(self._place, _reason())
        return session

    def _tell_of_burst(self, goes_on: bool) -> None:
        for told in self.on_burst:
            told(goes_on)

    def _tell_of_series(self) -> None:
        for told in self.on_series:
            told()

    def _start_threads(self, session: int) -> None:
        cache = self.kernel_cache
        tells = [cache.run_lane] * LANES + [cache.run_spare_lane, cache.run_modes, cache.run_listings]
        self._intake = intake = Intake(
            self._reactor, session, lambda: self._files.waiting, self._tell_of_burst, self._tell_of_series
        )
        self._files.submit = intake.submit
        count = 1 + len(tells)
        self._pool = pool = _Threads(count, count, "fuse")
        pool.start()
        taking = deferToThreadPool(self._reactor, pool, intake.run)
        workers = [deferToThreadPool(self._reactor, pool, tell) for tell in tells]
        taking.addBoth(self._loop_ended, intake)
        self._ends = DeferredList([taking, *workers], consumeErrors=True)

    def _loop_ended(self, result: object, intake: Intake) -> None:
        """The thread has stopped answering: the connection is over, or cannot be used."""
        intake.free()
        if isinstance(result, Failure):
            _log.failure("the thread that answers the kernel has failed", result)
        if self._stopping or not self._mounted:
            return
        if intake.failure:
            _log.error("/dev/fuse: {reason}", reason=os.strerror(intake.failure))
        try:
            mounted = mountpoint.find_mounted(self._place)
            # An aborted connection (umount -f of a mount that is in use) looks like an unmounted one, but for that.
            self._mounted = mounted is not None and mounted.connection == self._connection
        except OSError as failure:
            _log.error("{file}: {reason}", file=mountpoint.MOUNTINFO, reason=failure.strerror)  # it may be there still
        what = "is broken" if self._mounted else "was taken away"
        _log.critical("the mount at {place} {what}", place=self._place, what=what)
        self._files.stop()
        self.kernel_cache.stop()
        if self.on_lost is not None:
            self.on_lost(self._mounted)

    @property
    def backlog(self) -> Backlog:
        """The requests that programs wait for. Any thread."""
        return self._files.backlog

    # Stopping

    def stopService(self) -> Deferred[None]:
        """Answer all requests that wait, unmount, end the threads.

        @return: fires within L{STOP_SECONDS}, whatever clients do.
        """
        if not self.running:
            return succeed(None)
        self.running = False
        self._stopping = True
        self._files.stop()
        self.kernel_cache.stop()
        done: Deferred[None] = Deferred()
        deadline = self._reactor.callLater(STOP_SECONDS, self._give_up, done)

        def ended(_: object) -> None:
            if deadline.active():
                deadline.cancel()
                self._clean_up()
                done.callback(None)

        # An own thread: the pool's are taken, and umount may wait for the kernel.
        unmounting = Thread(target=self._unmount, name="unmount", daemon=True)
        unmounting.start()
        self._ends.addCallback(lambda _: self._joined(unmounting)).addCallback(ended)
        return done

    def abort(self) -> None:
        """Unmount at once, for a start that failed later: no reactor is needed. Idempotent, within C{STOP_SECONDS}."""
        if not self.running:
            return
        self.running = False
        self._stopping = True
        self._files.stop()
        self.kernel_cache.stop()
        unmounting = Thread(target=self._unmount, name="unmount", daemon=True)
        try:
            unmounting.start()
        except RuntimeError:  # that there are no threads left may be why we are here
            self._unmount()
        else:
            unmounting.join(STOP_SECONDS)

    def _joined(self, thread: Thread) -> Deferred[None]:
        """Fires when C{thread} has ended."""
        if not thread.is_alive():
            return succeed(None)
        waited = deferLater(self._reactor, _POLL_SECONDS, lambda: None)
        return waited.addCallback(lambda _: self._joined(thread))

    def _unmount(self) -> None:
        """Unmount; nicely if nobody uses the mount, otherwise by force. On a thread of its own."""
        if not self._mounted:
            return
        self._mounted = False
        try:
            self._unmount_now()
        finally:
            if self._rescue is not None:
                self._rescue.kill()
                self._rescue.wait()

    def _unmount_now(self) -> None:
        try:
            mountpoint.unmount(self._place)
            return
        except OSError as failure:
            _log.info("the mount at {place} is in use ({reason}), detaching it", place=self._place, reason=failure)
        try:
            mountpoint.detach(self._place)
        except OSError as failure:
            _log.error("cannot unmount {place}: {reason}", place=self._place, reason=failure)
        if self._connection >= 0:
            mountpoint.abort(self._connection)

    def _clean_up(self) -> None:
        """All threads are over."""
        if self._pool is not None:
            self._pool.stop()
        if not self._files.waiting and self._session:
            lowlevel.session_destroy(self._session)
        self._session = 0
        self._operations = None
        _log.info("unmounted {place}", place=self._place)

    def _give_up(self, done: Deferred[None]) -> None:
        """The threads do not end. The process's end takes the connection away, and frees what they hold."""
        _log.error("the mount at {place} did not end in time", place=self._place)
        lowlevel.session_exit(self._session)
        done.callback(None)


def _escaped(text: str) -> str:
    """C{text} as the value of a mount option."""
    return text.replace("\\", "\\\\").replace(",", "\\,")


_messages: list[str] = []
"""What libfuse has said lately, to give the reason of a failure."""


def _libfuse_said(level: int, text: bytes, arguments: int) -> None:
    message = lowlevel.format_log(text, arguments)
    del _messages[:-8]
    _messages.append(message)
    if level > 3:  # worse ones are reported, by MountFailed or here
        _log.debug("libfuse: {message}", message=message)
    elif _messages:
        _log.warn("libfuse: {message}", message=message)


def _reason() -> str:
    return "; ".join(message.removeprefix("fuse: ") for message in _messages) or "libfuse does not say why"


_log_function = lowlevel.LogFunction(_libfuse_said)
"""Alive as long as the process, as libfuse holds it."""


__all__ = ["STOP_SECONDS", "FuseMount", "MountFailed"]
