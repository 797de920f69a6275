"""The daemon: every room's services put together, started in order and stopped in order (60-operation.md).

The start happens before the reactor runs, so that a failed one is an exit code and one line. It leaves nothing behind:
each step that holds something says how to undo it. The same goes for a start that is told to stop by a signal. It looks
for that between the steps; the reactor then runs only to stop at once, an orderly stop with exit code 0.
"""

from __future__ import annotations

import atexit
import gc
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, inlineCallbacks
from twisted.internet.error import ReactorNotRunning
from twisted.internet.threads import deferToThread
from twisted.internet.utils import getProcessOutputAndValue
from zope.interface import implementer

from pvecfs import __version__
from pvecfs.corosync.group import GroupConnection
from pvecfs.corosync.service import CorosyncServices
from pvecfs.fuse.mount import FuseMount, MountFailed
from pvecfs.heap import prepare
from pvecfs.interfaces import IClusterConfigListener, IQuorumListener
from pvecfs.ipc.descriptors import raise_limit
from pvecfs.ipc.service import IpcService
from pvecfs.latency import ProcessorLatency
from pvecfs.log import logger, set_verbose
from pvecfs.node import host
from pvecfs.node.cluster import ClusterProposer, GroupService
from pvecfs.node.health import HealthSource, NodeFacts
from pvecfs.node.healthsocket import HealthSocket
from pvecfs.node.host import StartFailed
from pvecfs.node.hostconf import TREE_NAME, HostConfiguration
from pvecfs.node.ledger import Ledger
from pvecfs.node.local import LocalProposer
from pvecfs.node.logged import LoggedProposer
from pvecfs.node.status import StatusService
from pvecfs.node.view import NodeView
from pvecfs.placement import ThreadPlacement
from pvecfs.replica.application import GroupApplication
from pvecfs.replica.dcdb import TreeReplica
from pvecfs.replica.kvstore import StatusReplica
from pvecfs.replica.machine import GroupMachine, Mode
from pvecfs.replica.member import Instant
from pvecfs.rrd.sink import RoundRobinSink
from pvecfs.scheduling import RealTimeThreads
from pvecfs.store.errors import StoreError
from pvecfs.store.lockfile import DATABASE_NAME, LOCK_NAME, LOCK_TIMEOUT, LockFile, locks_of
from pvecfs.store.sqlite import SqliteStore
from pvecfs.tree.admission import Limits
from pvecfs.tree.errors import OperationError, TreeDefect
from pvecfs.tree.locks import LockClocks

if TYPE_CHECKING:
    from pvecfs.replica.status import ClusterConfiguration
    from pvecfs.tap import Options
    from pvecfs.tree.tree import Tree

STOP_DEADLINE = 4.5
"""Seconds after which a stop that hangs is ended the hard way; 5 are promised."""

SWITCH_INTERVAL = 0.0005
"""Seconds that a busy Python thread may keep others from running: each file operation may wait that long."""

GC_THRESHOLDS = (10_000, 20, 50)
"""Of the garbage collector. Little here is garbage with cycles, and nothing is soon."""

LARGE = 10_000
"""Entries of a tree that the garbage collector is not to go through. It takes a microsecond for each, and holds all
threads up."""

MIB = 1024 * 1024

Reactor = Any
"""The global reactor. Each room states what it wants of one; no declared type of Twisted has all of that."""

_log = logger("daemon")


def instant() -> Instant:
    """Now: wall clock for message headers, monotonic clock for ages."""
    return Instant(int(time.time()), time.monotonic())


@implementer(IQuorumListener, IClusterConfigListener)
class Cluster:
    """What a node has in a cluster: two groups, quorum, the cluster's configuration. Reactor thread only.

    @param realtime: of the threads that send to a group, and when we fall behind it.
    @ivar proposer: proposes changes to the cluster.
    @ivar host_conf: keeps the host's corosync.conf.
    """

    def __init__(
        self,
        reactor: Reactor,
        options: Options,
        ledger: Ledger,
        view: NodeView,
        status: StatusService,
        locks: LockClocks,
        limits: Limits,
        host_conf: HostConfiguration,
        realtime: RealTimeThreads,
    ) -> None:
        self._ledger = ledger
        self._view = view
        self._status = status
        self.host_conf = host_conf
        self._realtime = realtime
        self._corosync = CorosyncServices(reactor, self, self)
        replica = TreeReplica(ledger.newest, locks)
        self._tree_group = self._group(reactor, replica, options["verify-interval"])
        self._status_group = self._group(reactor, status.replica, options["verify-interval"])
        self._status_group.perform = lambda effect: status.perform((effect,))
        status.attach_group(self._status_group.send_status)
        self.proposer = ClusterProposer(
            reactor,
            self._tree_group,
            replica,
            ledger,
            limits,
            options["operation-timeout"],
            host_conf.tree_changed,
        )
        ledger.listener = self.proposer
        self._proposer_told_of_mode = self._tree_group.mode_changed
        self._tree_group.mode_changed = self._mode_changed
        self._receiving = False

    @property
    def groups(self) -> tuple[GroupService, GroupService]:
        """The tree's group, and the status'."""
        return self._tree_group, self._status_group

    def _mode_changed(self, mode: Mode) -> None:
        """What a synchronisation brings is no garbage. To look for some among it takes longer the more there is."""
        if mode is Mode.UPDATE:
            self._receiving = True
            gc.disable()
        elif self._receiving:
            self._receiving = False
            if len(self._ledger.newest) >= LARGE:
                gc.freeze()
            gc.enable()
        self._proposer_told_of_mode(mode)

    def _group(self, reactor: Reactor, application: GroupApplication, verify_interval: float) -> GroupService:
        connection = GroupConnection(
            reactor,
            application.group_name.encode(),
            self._corosync.quorum.dispatch_pending,
            thread_began=self._realtime.this_thread,
            fell_behind=self._realtime.catch_up,
            gathering=self._ledger.gathering,
        )
        machine = GroupMachine(application, random.random, verify_interval)
        return GroupService(reactor, connection, machine, instant)

    def startService(self) -> None:
        """Connect, when corosync is there, and stay connected. The host's corosync.conf is brought in step."""
        entry = self._ledger.newest.lookup(TREE_NAME)
        if entry is not None:
            self.host_conf.bring_in_step(entry.data)
        # The first synchronisation asks for it. For 100,000 entries it takes 0.15 s, and now nobody waits for us.
        self._ledger.newest.index()
        self._corosync.startService()
        self._tree_group.startService()
        self._status_group.startService()

    def stopService(self) -> Deferred[Any]:
        """Leave the groups."""
        leaving = [self._tree_group.stopService(), self._status_group.stopService()]
        self._corosync.stopService()
        return DeferredList(leaving)

    def quorum_changed(self, quorate: bool, node_ids: Sequence[int]) -> None:
        self.proposer.quorum_changed(quorate, node_ids)
        self._status_group.quorum_changed(node_ids)
        self._status.quorum_changed(quorate, node_ids)
        self._view.quorum_changed(quorate)

    def configuration_read(self, configuration: ClusterConfiguration) -> None:
        self._status.configuration_read(configuration)


class StoppedBySignal(Exception):
    """A signal came during the start."""


class NodeService(Service):
    """One node of the filesystem."""

    def __init__(self, reactor: Reactor, options: Options) -> None:
        self._reactor = reactor
        self._options = options
        self._undo = ExitStack()
        self._stop_steps: list[tuple[str, Callable[[], Any]]] = []
        self._signal_came = False
        self._failed = False

    # Starting

    def startService(self) -> None:
        """Start everything; or nothing, if a signal comes meanwhile, which then stops the reactor as soon as it runs.

        @raise StartFailed: one line that says why; nothing is left behind.
        """
        super().startService()  # type: ignore[no-untyped-call]  # Twisted has no annotations there
        try:
            self._start()
        except StoppedBySignal:
            self._stop_steps.clear()
            self._undo.close()
            _log.info("the start was undone")
        except BaseException as error:
            self._undo.close()
            if not isinstance(error, StartFailed | StoreError | TreeDefect | MountFailed | OSError):
                raise  # not foreseen: where it comes from has to be told
            _log.critical("cannot start: {reason}", reason=error)
            sys.excepthook = _print_start_failure
            raise error if isinstance(error, StartFailed) else StartFailed(str(error)) from error

    def _start(self) -> None:
        options, undo = self._options, self._undo
        started = time.monotonic()
        # Twisted counts delays by the wall clock; one that is set back would stretch every deadline.
        self._reactor.seconds = time.monotonic
        sys.setswitchinterval(SWITCH_INTERVAL)
        gc.disable()  # until we run: it would go through what was loaded again and again
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        raise_limit()
        set_verbose(bool(options["debug"]))
        name = options["node-name"] or host.short_host_name()
        address = host.checked_address(options["node-ip"]) if options["node-ip"] else host.first_address(name)
        is_root = os.geteuid() == 0
        if not is_root and not options["local"]:
            raise StartFailed("a cluster node needs root; use --local to run in local mode")
        group = host.group_id(options["group"]) if is_root else os.getegid()
        self._take_signals()

        state = Path(options["state-dir"])
        run = Path(options["run-dir"])
        host.make_directory(state, host.STATE_MODE, None)
        host.make_directory(run, host.RUN_MODE, group)
        database = state / DATABASE_NAME
        for lock in locks_of(database):  # several, if it is a link
            self._acquire(lock)
            undo.callback(lock.release)
            self._stop_steps.append(("the lock", lock.release))
        if options["pid-file"] is not None:
            pid_file = Path(options["pid-file"])
            host.write_pid_file(pid_file, LOCK_NAME)
            undo.callback(host.remove_pid_file, pid_file)
            self._stop_steps.append(("the pid file", lambda: host.remove_pid_file(pid_file)))

        store = SqliteStore(str(database), self._reactor, time.time, options["durability"])
        try:
            tree = store.open(lambda: self._signal_came)
        except StoreError:
            self._check_signals()
            raise
        undo.callback(store.close_now)
        self._stop_steps.append(("the database", store.close))
        conf = Path(options["corosync-conf"])
        if store.created and not options["local"] and conf.is_file():
            tree = self._import(store, tree, conf)
        self._check_signals()
        in_cluster = not options["local"] and tree.lookup(TREE_NAME) is not None

        limits = Limits(options["max-size"] * MIB, options["max-entries"])
        view = NodeView(tree, name.encode(), limits, not in_cluster, bool(options["debug"]), set_verbose)
        ledger = Ledger(self._reactor, store, view)
        sink = RoundRobinSink(self._reactor, options["rrd-dir"], options["rrdcached-socket"])
        replica = StatusReplica(name.encode(), os.getpid(), int(time.time()), address.encode())
        status = StatusService(replica, sink, instant)
        view.make_document = lambda document: status.document(document, view.tree)
        locks = LockClocks(options["lock-timeout"])
        proposer: ClusterProposer | LocalProposer
        cluster: Cluster | None = None
        realtime = RealTimeThreads(self._reactor)
        if in_cluster:
            host_conf = HostConfiguration(self._reactor, str(conf), deferToThread, self._run_command)
            cluster = Cluster(self._reactor, options, ledger, view, status, locks, limits, host_conf, realtime)
            proposer = cluster.proposer
        else:
            proposer = LocalProposer(ledger, limits, time.time, time.monotonic, locks)
        sink.startService()
        undo.callback(sink.stopService)
        self._stop_steps.append(("the round-robin databases", sink.stopService))
        status.begin()

        mount = FuseMount(
            self._reactor,
            view,
            LoggedProposer(proposer, view, time.monotonic),
            options["mountpoint"],
            os.geteuid(),
            group,
            allow_other=is_root,
            on_lost=self._mount_lost,
            alone=not in_cluster,
        )
        mount.startService()
        undo.callback(mount.abort)
        self._stop_steps.append(("the mount", mount.stopService))
        self._check_signals()
        ledger.kernel_cache = mount.kernel_cache
        view.modes_changed = mount.kernel_cache.modes_changed

        if cluster is not None:
            cluster.startService()
            undo.callback(cluster.stopService)
            self._stop_steps.insert(-1, ("the groups", cluster.stopService))  # the mount goes before (60-operation.md)
            self._check_signals()
        ipc: IpcService | None = None
        if not options["no-ipc"]:
            owner = (0, 0) if is_root else (os.geteuid(), os.getegid())
            ipc = IpcService(self._reactor, options["ipc-name"], view, status, group, owner)
            ipc.startService()
            undo.callback(ipc.stopService)
            self._stop_steps.append(("the IPC service", ipc.stopService))
            self._check_signals()
        host.clear_restart_flag(run)
        self._stop_steps.append(("the restart flag", lambda: host.set_restart_flag(run, group)))
        undo.pop_all()
        facts = NodeFacts(
            name,
            os.getpid(),
            __version__,
            options["mountpoint"],
            "cluster" if in_cluster else "local",
            store.path,
            options["durability"],
            started,
        )
        health = HealthSource(
            facts,
            time.monotonic,
            view,
            ledger,
            limits,
            status,
            proposer,
            () if cluster is None else cluster.groups,
            lambda: mount.backlog,
            lambda: store.log_bytes,
            lambda: 0 if ipc is None else ipc.connection_count,
            None if cluster is None else cluster.host_conf,
        )
        health_socket = HealthSocket(self._reactor, run, group, health.document)
        health_socket.startService()
        self._stop_steps.append(("the health socket", health_socket.stopService))
        self._reactor.callWhenRunning(self._running)
        if in_cluster and not options["no-realtime"]:
            # Alone it gains nothing: nobody of higher priority takes the processor away.
            if store.thread_id is not None:
                realtime.add(store.thread_id)
            self._reactor.callWhenRunning(realtime.start)
            mount.on_burst.append(realtime.want)
            self._stop_steps.append(("the real-time threads", realtime.stop))
        if not options["no-cpu-latency"]:
            latency = ProcessorLatency(self._reactor)
            self._reactor.callWhenRunning(latency.start)
            mount.on_burst.append(latency.want)
            self._stop_steps.append(("the processors' latency", latency.stop))
        if not in_cluster and not options["no-cpu-affinity"]:
            placement = ThreadPlacement(self._reactor, lambda: store.thread_id)
            mount.on_series.append(placement.begin)
            mount.on_burst.append(placement.want)
            self._stop_steps.append(("the threads' placement", placement.stop))
        _log.info(
            "node {name} ({address}), {mode}, {count} entries, on {mountpoint}",
            name=name,
            address=address,
            mode="in a cluster" if in_cluster else "in local mode",
            count=len(tree),
            mountpoint=options["mountpoint"],
        )

    def _take_signals(self) -> None:
        """From now on something may have to be undone. Before, a signal ends the process as it always does."""
        for number in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
            signal.signal(number, self._signalled)
        # When the reactor begins to run it takes SIGTERM (SIGINT is not taken from others): for this. Its own function
        # would have twistd end by the signal after an orderly stop, instead of with 0.
        self._reactor.sigTerm = self._signalled

    def _check_signals(self) -> None:
        """Between two steps of the start: what a step has begun it can finish, or undo.

        @raise StoppedBySignal: one came.
        """
        if self._signal_came:
            raise StoppedBySignal

    def _running(self) -> None:
        """The reactor runs: we are ready."""
        prepare()
        # The tree is no garbage, see LARGE.
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        gc.enable()
        host.notify_service_supervisor("READY=1")

    def _signalled(self, number: int, frame: FrameType | None = None) -> None:
        self._signal_came = True
        self._reactor.callFromThread(self._stop_by_signal, number)

    def _stop_by_signal(self, number: int) -> None:
        _log.info("received {signal}, stopping", signal=signal.Signals(number).name)
        self._stop_reactor()

    def _stop_reactor(self) -> None:
        with suppress(ReactorNotRunning):  # it stops already
            self._reactor.stop()

    def _acquire(self, lock: LockFile) -> None:
        deadline = time.monotonic() + LOCK_TIMEOUT
        told = False
        self._check_signals()
        while not lock.try_acquire():
            if time.monotonic() >= deadline:
                raise StartFailed(f"{lock.path} is locked: another daemon uses this database")
            if not told:
                _log.info("waiting for the lock of {path}", path=lock.path)
                told = True
            time.sleep(0.1)  # the reactor does not run yet
            self._check_signals()

    def _import(self, store: SqliteStore, tree: Tree, conf: Path) -> Tree:
        """First start: the host's corosync.conf becomes the cluster's."""
        try:
            delta = tree.imported(TREE_NAME, conf.read_bytes(), int(time.time()))
        except OperationError as error:
            raise StartFailed(f"cannot import {conf}: {error.strerror}") from error
        store.commit_now(delta)
        _log.info("imported {path}", path=conf)
        return delta.tree

    # Running

    def _mount_lost(self, broken: bool) -> None:
        """Somebody unmounted us, which is a way to stop us: without a mount there is nothing to serve. If it is
        C{broken}, that is a failure: whoever watches us is to start us again."""
        _log.warn("there is no mount any more, stopping")
        self._failed = broken
        self._stop_reactor()

    def _run_command(self, command: tuple[str, ...]) -> None:
        """Run C{command} and log how it ended."""

        def ended(result: tuple[bytes, bytes, int]) -> None:
            output, errors, code = result
            if code:
                text = (output + errors).decode("utf-8", "replace").strip()
                _log.error("{command} failed with {code}: {text}", command=" ".join(command), code=code, text=text)

        d: Deferred[Any] = getProcessOutputAndValue(  # type: ignore[no-untyped-call]  # as above
            command[0], command[1:], os.environ, reactor=self._reactor
        )
        d.addCallbacks(
            ended,
            lambda failure: _log.error("cannot run {command}: {reason}", command=command[0], reason=failure.value),
        )

    # Stopping

    @inlineCallbacks
    def stopService(self) -> Any:
        """Stop everything, last started first; fires when it is over."""
        super().stopService()  # type: ignore[no-untyped-call]  # Twisted has no annotations there
        host.notify_service_supervisor("STOPPING=1")
        give_up = self._reactor.callLater(STOP_DEADLINE, _give_up)
        while self._stop_steps:
            what, stop = self._stop_steps.pop()
            try:
                yield stop()
            except Exception as error:
                _log.failure("stopping {what}: {error}", what=what, error=error)
        give_up.cancel()
        if self._failed:
            atexit.register(_fail)  # twistd knows but one exit code of a reactor that has stopped, 0


def _give_up() -> None:
    _log.critical("the stop takes too long, ending now")
    _fail()


def _fail() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _print_start_failure(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """A failed start is one line; anything else keeps its traceback."""
    if isinstance(error, StartFailed):
        print(f"pvecfs: {error}", file=sys.__stderr__)  # twistd has put its log in the place of sys.stderr
    else:
        sys.__excepthook__(kind, error, traceback)
