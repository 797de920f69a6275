"""A small node for tests of the mount: it runs in a process of its own, so that nothing that hangs can hang a test.

C{python -m tests.fuse_support PLACE SOCKET} is that process. L{MountedNode} starts and commands it; commands are JSON
lines on a socket, names in them are written as latin-1 text.
"""

from __future__ import annotations

import errno
import faulthandler
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from errno import EACCES
from pathlib import Path
from threading import Event, Timer
from typing import Any

from twisted.trial import unittest
from zope.interface import implementer

from pvecfs.interfaces import Acknowledge, INodeView, IProposer, Meant
from pvecfs.tree.admission import Limits, admit
from pvecfs.tree.changes import Change, Create, Delete, Mkdir, Rename, SetMtime, Write
from pvecfs.tree.entry import Entry
from pvecfs.tree.errors import OperationError
from pvecfs.tree.locks import LockClocks
from pvecfs.tree.tree import Delta, Tree
from tests.fuse_torn import HEAD_BYTES, whole

WATCHDOG_SECONDS = 90.0

ROOT = Path(__file__).resolve().parent.parent


@implementer(INodeView)
class MemoryView:
    """A published tree, and documents that tests set."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.quorate = True
        self.node_name = b"n1"
        self.max_bytes = 128 * 1024 * 1024
        self.max_entries = 256 * 1024
        self.debug = False
        self.documents = dict.fromkeys((b".version", b".members", b".vmlist", b".clusterlog"), b"{}\n")
        self.documents[b".rrd"] = b""

    def document(self, name: bytes) -> bytes:
        return (b"1\n" if self.debug else b"0\n") if name == b".debug" else self.documents[name]

    def set_debug(self, enabled: bool) -> None:
        self.debug = enabled


@implementer(IProposer)
class MemoryProposer:
    """Applies changes to a L{MemoryView} at once, and tells the kernel of those that are not the mount's.

    @ivar stuck: answer nothing.
    @ivar first: changes that another node gets in before the next one of the mount.
    @ivar proposed: number of changes that came through the mount.
    """

    def __init__(self, view: MemoryView) -> None:
        self.view = view
        self.locks = LockClocks()
        self.kernel_cache: Any = None
        self.stuck = False
        self.late: list[tuple[Change, Acknowledge, Meant]] = []
        self.first: list[Change] = []
        self.proposed = 0
        self.synchronised = 0
        self.clock = 0.0

    def propose(self, change: Change, acknowledge: Acknowledge, meant: Meant | None = None) -> None:
        view = self.view
        if meant is not None:
            self.proposed += 1
            for earlier in self.first:
                self.propose(earlier, lambda _: None)
            self.first = []
        if self.stuck and meant is not None:
            self.late.append((change, acknowledge, meant))
            return
        try:
            tree = view.tree
            if not view.quorate:
                raise OperationError(EACCES)
            change = self.locks.release(tree, admit(tree, change, Limits()), self.clock)
            applied = tree.apply(change, 0, int(time.time()))
            self.locks.applied(applied.tree, change, self.clock)
        except OperationError as refused:
            acknowledge(-refused.errno)
            return
        tell = self.kernel_cache.publishing(tree, applied.delta, meant)
        view.tree = applied.tree
        if tell:
            self.kernel_cache.changed(tree, applied.tree, applied.delta)
        acknowledge(applied.result)

    def synchronise(self, acknowledge: Acknowledge) -> None:
        self.synchronised += 1
        if not self.stuck:
            acknowledge(0)


CHANGES = {"create": Create, "write": Write, "mkdir": Mkdir, "delete": Delete, "rename": Rename, "mtime": SetMtime}


def _bytes(value: Any) -> Any:
    return value.encode("latin-1") if isinstance(value, str) else value


def serve(place: str, address: str) -> None:
    """The daemon: mounts an empty tree at C{place} and obeys what comes from the socket at C{address}."""
    from twisted.internet import reactor
    from twisted.internet.protocol import Factory
    from twisted.internet.threads import deferToThread
    from twisted.protocols.basic import LineReceiver
    from twisted.python import log

    from pvecfs.fuse.mount import FuseMount, MountFailed

    faulthandler.register(signal.SIGUSR1)  # the threads' stacks to standard error, for whoever debugs
    log.startLogging(sys.stderr, setStdout=False)
    sys.setswitchinterval(0.0005)
    r: Any = reactor
    view = MemoryView(Tree.new(int(time.time())))
    proposer = MemoryProposer(view)
    if user := os.environ.get("FUSE_TEST_USER"):  # now, since another user might not be able to run this Python
        os.setgroups([])
        os.setgid(int(user))
        os.setuid(int(user))
    root = os.geteuid() == 0
    mount = FuseMount(
        r,
        view,
        proposer,
        place,
        os.geteuid(),
        33 if root else os.getegid(),
        root,
        "pvecfs-test",
        on_lost=lambda broken: r.stop(),
    )
    proposer.kernel_cache = mount.kernel_cache

    lanes_go = Event()
    lanes_go.set()
    perform = mount.kernel_cache._perform

    def perform_when_let(node: int, work: Any) -> None:
        lanes_go.wait()
        perform(node, work)

    mount.kernel_cache._perform = perform_when_let  # type: ignore[method-assign]  # to open the window in which it waits

    class Commands(LineReceiver):
        delimiter = b"\n"
        MAX_LENGTH = 8 * 1024 * 1024

        def lineReceived(self, line: bytes) -> None:
            command, *arguments = json.loads(line)
            getattr(self, f"do_{command}")(*arguments)

        def answer(self, value: Any) -> None:
            self.sendLine(json.dumps(value).encode())

        def do_change(self, kind: str, *arguments: Any) -> None:
            """A change by another node; answered when applied, the kernel perhaps not yet told."""
            proposer.propose(CHANGES[kind](*map(_bytes, arguments)), self.answer)

        def do_changed(self, kind: str, *arguments: Any) -> None:
            """The same, answered when the kernel was told."""
            results: list[int] = []
            proposer.propose(CHANGES[kind](*map(_bytes, arguments)), results.append)
            mount.kernel_cache.drained(lambda: r.callFromThread(self.answer, results[0]))

        def do_first(self, kind: str, *arguments: Any) -> None:
            proposer.first.append(CHANGES[kind](*map(_bytes, arguments)))
            self.answer(0)

        def do_drained(self) -> None:
            mount.kernel_cache.drained(lambda: r.callFromThread(self.answer, 0))

        def do_quorate(self, quorate: bool) -> None:
            view.quorate = quorate
            mount.kernel_cache.modes_changed()
            mount.kernel_cache.drained(lambda: r.callFromThread(self.answer, 0))

        def do_document(self, name: str, content: str) -> None:
            view.documents[_bytes(name)] = _bytes(content)
            self.answer(0)

        def do_stuck(self, stuck: bool) -> None:
            proposer.stuck = stuck
            if not stuck:
                late, proposer.late = proposer.late, []
                for proposal in late:
                    proposer.propose(*proposal)
            self.answer(0)

        def do_held(self, held: bool) -> None:
            """Let lanes wait with what they begin with from now on, or go on."""
            lanes_go.clear() if held else lanes_go.set()
            self.answer(0)

        def do_synchronised(self, deleted: list[int], rows: list[list[Any]]) -> None:
            """Replace rows as a synchronisation does, that of inode 0 too; answered when the kernel was told."""
            self.synchronise(deleted, rows)
            mount.kernel_cache.drained(lambda: r.callFromThread(self.answer, 0))

        def do_synchronise(self, deleted: list[int], rows: list[list[Any]]) -> None:
            """The same, answered when it is published."""
            self.synchronise(deleted, rows)
            self.answer(0)

        def synchronise(self, deleted: list[int], rows: list[list[Any]]) -> None:
            before = view.tree
            entries = [Entry(*map(_bytes, row)) for row in rows]
            root = next((entry for entry in entries if entry.inode == 0), None)
            entries = [entry for entry in entries if entry is not root]
            after = before.replaced(deleted, entries, root)
            delta = Delta(after, tuple(entries), tuple(deleted), True)
            mount.kernel_cache.publishing(before, delta, None)
            view.tree = after
            mount.kernel_cache.changed(before, after, delta)

        def do_overwriting(self, paths: list[str], longest: int, seconds: float, pause: float, seed: int) -> None:
            """Begin to overwrite files in place, as if from another node, on a thread as the store's is one: with
            contents of random lengths of up to C{longest} bytes, and up to C{pause} seconds between two of them."""

            def overwrite() -> int:
                choice = random.Random(seed)
                end = time.monotonic() + seconds
                count = 0
                while time.monotonic() < end:
                    content = whole(choice.randint(HEAD_BYTES, longest), choice)
                    proposer.propose(Write(_bytes(choice.choice(paths)), content, 0, True), lambda _: None)
                    count += 1
                    time.sleep(choice.uniform(0, pause))
                return count

            self.overwriting = deferToThread(overwrite)
            self.answer(0)

        def do_overwritten(self) -> None:
            """How many files were overwritten, once that is over and the kernel knows."""
            self.overwriting.addCallback(
                lambda count: mount.kernel_cache.drained(lambda: r.callFromThread(self.answer, count))
            )

        def do_limit(self, limit: int) -> None:
            mount.kernel_cache.max_pending = limit
            self.answer(0)

        def do_clock(self, seconds: float) -> None:
            proposer.clock += seconds
            self.answer(0)

        def do_state(self) -> None:
            self.answer(
                {
                    "proposed": proposer.proposed,
                    "synchronised": proposer.synchronised,
                    "late": len(proposer.late),
                    "debug": view.debug,
                    "version": view.tree.version,
                    "entries": [
                        [e.inode, e.parent, e.type, e.name.decode("latin-1"), e.data.decode("latin-1"), e.mtime]
                        for e in view.tree.entries()
                    ],
                }
            )

    try:
        mount.startService()
    except MountFailed as failure:
        print(f"failed: {failure}", flush=True)
        sys.exit(1)
    if os.environ.get("FUSE_TEST_ABORT"):
        mount.abort()
        print("aborted", flush=True)
        sys.exit(1)
    factory = Factory()
    factory.protocol = Commands
    r.listenUNIX(address, factory)
    r.addSystemEventTrigger("before", "shutdown", mount.stopService)
    r.callWhenRunning(print, "mounted", flush=True)
    r.run()


class MountedNode:
    """A daemon process and its mountpoint, in a fresh temporary directory.

    @ivar path: the mountpoint.
    """

    def __init__(self, place: str | None = None) -> None:
        self.directory = tempfile.mkdtemp(prefix="pvecfs-fuse-")
        os.chmod(self.directory, 0o755)
        self.path = place or os.path.join(self.directory, "mnt")
        self._address = os.path.join(self.directory, "socket")
        self._stderr = open(os.path.join(self.directory, "log"), "wb")  # noqa: SIM115  closed by stop()
        self.process: subprocess.Popen[str] | None = None
        self._socket: socket.socket | None = None

    def launch(self, **environment: str) -> str:
        """Start the daemon, with these variables; returns the line it says first."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuse_support", self.path, self._address],
            cwd=ROOT,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def start(self) -> MountedNode:
        said = self.launch()
        if said != "mounted":
            log = self.log()
            self.stop()
            raise AssertionError(f"the daemon said {said!r}\n{log}")
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._socket.connect(self._address)
        self._answers = self._socket.makefile("rb")
        return self

    def ask(self, command: str, *arguments: Any) -> Any:
        """Command the daemon and wait for its answer, 30 s at most."""
        assert self._socket is not None
        line = json.dumps([command, *(a.decode("latin-1") if isinstance(a, bytes) else a for a in arguments)])
        self._socket.sendall(line.encode() + b"\n")
        return json.loads(self._answers.readline())

    def remote(self, kind: str, *arguments: Any) -> None:
        """A change by another node that succeeds; when this returns, the kernel knows."""
        result = self.ask("changed", kind, *arguments)
        assert result >= 0, (kind, arguments[0], result)

    def log(self) -> str:
        return Path(self._stderr.name).read_text(errors="replace")

    def terminate(self) -> float:
        """SIGTERM; returns the seconds that it took to end."""
        assert self.process is not None
        start = time.monotonic()
        self.process.terminate()
        self.process.wait(10)
        return time.monotonic() - start

    def stop(self) -> None:
        """End the daemon and clean up, whatever state it is in. Never hangs."""
        process = self.process
        if process is not None:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(6)
                except subprocess.TimeoutExpired:
                    _abort(self.path)
                    process.kill()
                    process.wait(10)
            if process.stdout is not None:
                process.stdout.close()
        if self._socket is not None:
            self._answers.close()
            self._socket.close()
        self._stderr.close()
        _abort(self.path)
        shutil.rmtree(self.directory, ignore_errors=True)


class MountCase(unittest.SynchronousTestCase):
    """Tests of a mounted node.

    A test that hangs in the kernel is freed after a while, by taking the mount from it.

    @ivar node: the node, started for this test.
    @ivar place: the test's directory, below the mount.
    @ivar tree_path: the same, from the root of the tree.
    """

    def setUp(self) -> None:
        self.node = MountedNode().start()
        self.addCleanup(self.node.stop)
        self.watchdog: Timer | None = None
        self.watch()
        self.addCleanup(self.unwatch)
        self.tree_path = self.id().rpartition(".")[2]
        self.place = os.path.join(self.node.path, self.tree_path)
        os.mkdir(self.place)

    def watch(self) -> None:
        """Another L{WATCHDOG_SECONDS} for what comes now."""
        self.unwatch()
        self.watchdog = Timer(WATCHDOG_SECONDS, _abort, [self.node.path])
        self.watchdog.daemon = True
        self.watchdog.start()

    def unwatch(self) -> None:
        if self.watchdog is not None:
            self.watchdog.cancel()

    def in_place(self, name: str) -> str:
        return os.path.join(self.place, name)

    def in_tree(self, name: str) -> str:
        return f"{self.tree_path}/{name}"

    def assert_errno(self, number: int, function: Any, *arguments: Any, **named: Any) -> None:
        failure = self.assertRaises(OSError, function, *arguments, **named)
        self.assertEqual(
            errno.errorcode[failure.errno or 0], errno.errorcode[number], f"{function.__name__}{arguments}"
        )


def put(path: str, data: bytes, flags: int = os.O_WRONLY | os.O_CREAT | os.O_TRUNC) -> None:
    """Write a file with one request, as a shell's C{>} does."""
    fd = os.open(path, flags, 0o640)
    try:
        assert os.write(fd, data) == len(data)
    finally:
        os.close(fd)


def get(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()


def _abort(path: str) -> None:
    """End whatever FUSE mounts are left at C{path}."""
    from pvecfs.fuse import mountpoint

    for _ in range(4):
        mounted = mountpoint.find_mounted(path)
        if mounted is None or not mounted.is_fuse:
            return
        mountpoint.abort(mounted.connection)
        try:
            mountpoint.detach(path)
        except OSError:
            return


if __name__ == "__main__":
    serve(*sys.argv[1:3])
