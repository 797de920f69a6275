"""Real-time priority: who has it, who has not, and how long work loses it."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from errno import EPERM, ESRCH
from pathlib import Path
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from pvecfs.scheduling import CATCH_UP, LONGEST_TURN, PAUSE, Handler, Limits, Linux, Reactor, RealTimeThreads
from tests.cluster_support import ClusterCase, LabNode, eventually
from tests.needs import needs_corosync, needs_fuse, needs_realtime

ROOT = Path(__file__).resolve().parent.parent
FREE = resource.RLIM_INFINITY
GUARDED = (round(LONGEST_TURN * 1e6), FREE)
ME = threading.get_native_id()
HIGHEST = os.sched_get_priority_max(os.SCHED_RR)


class MemorySystem:
    """Threads, limit and handler of a process that is not there.

    @ivar real_time: the threads at real-time priority.
    @ivar story: the calls that changed something, in order.
    @ivar refusals: by thread, the errno with which its next priority is refused.
    @ivar before: called before a thread's priority is set.
    """

    def __init__(self, *threads: int) -> None:
        self.threads = {ME, *threads}
        self.real_time: set[int] = set()
        self.story: list[str] = []
        self.refusals: dict[int, int] = {}
        self.before: Callable[[int], None] = lambda thread: None
        self.normal = True
        self.now: Limits = (FREE, FREE)
        self.handler: Any = signal.SIG_DFL

    def is_normal(self) -> bool:
        return self.normal

    def has(self, thread: int) -> bool:
        return thread in self.threads

    def schedule(self, thread: int, real_time: bool) -> None:
        self.before(thread)
        refusal = self.refusals.pop(thread, 0)
        if refusal:
            raise OSError(refusal, os.strerror(refusal))
        (self.real_time.add if real_time else self.real_time.discard)(thread)
        self.story.append("raise" if real_time else "lower")

    def limits(self) -> Limits:
        return self.now

    def set_limits(self, limits: Limits) -> None:
        self.now = limits
        self.story.append("limit" if limits[0] != FREE else "no limit")

    def catch(self, handler: Handler) -> Handler:
        before, self.handler = self.handler, handler
        self.story.append("default" if handler is signal.SIG_DFL else "catch")
        return before  # type: ignore[no-any-return]

    def exceed(self) -> None:
        """As the kernel does it: a second more, and the signal."""
        self.now = (self.now[0] + 1_000_000, self.now[1])
        self.handler(signal.SIGXCPU, None)


@implementer(Reactor)
class MemoryReactor(Clock):
    """A clock, and calls from threads, which L{turn} makes."""

    def __init__(self) -> None:
        super().__init__()
        self.from_threads: list[Callable[[], object]] = []

    def callFromThread(self, callable: Callable[..., object], *args: object, **kwargs: object) -> None:
        self.from_threads.append(lambda: callable(*args, **kwargs))

    def turn(self) -> None:
        while self.from_threads:
            self.from_threads.pop(0)()


class RealTimeThreadsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactor()
        self.system = MemorySystem(1, 2)
        self.threads = RealTimeThreads(self.reactor, self.system)
        self.threads.add(1)
        self.threads.want(True)

    def test_order(self) -> None:
        """The handler is there before the limit, the limit before the priority; and back again."""
        self.threads.start()
        self.assertEqual(self.system.story, ["catch", "limit", "raise", "raise"])
        self.assertEqual(self.system.real_time, {ME, 1})
        self.assertEqual(self.system.now, GUARDED)
        del self.system.story[:]
        self.threads.stop()
        self.assertEqual(self.system.story, ["lower", "lower", "no limit", "default"])
        self.assertEqual(self.system.real_time, set())
        self.assertEqual(self.system.handler, signal.SIG_DFL)
        self.threads.stop()
        self.assertEqual(len(self.system.story), 4)

    def test_when_wanted(self) -> None:
        """Only while it is wanted; whether it may be is tried at the start."""
        self.threads.want(False)
        self.assertEqual(self.system.story, [])
        self.threads.start()
        self.assertEqual(self.system.story, ["catch", "limit", "raise", "raise", "lower", "lower"])
        self.threads.add(2)
        self.assertEqual(self.system.real_time, set())
        for _ in range(2):
            self.threads.want(True)
            self.assertEqual(self.system.real_time, {ME, 1, 2})
            self.assertEqual(self.system.now, GUARDED)
            self.threads.want(False)
            self.assertEqual(self.system.real_time, set())

    def test_wanted_in_a_pause(self) -> None:
        """The pause after long work is kept, whatever is wanted meanwhile."""
        self.threads.start()
        for wanted in False, True:
            self.threads.want(True)
            self.system.exceed()
            self.reactor.turn()
            self.threads.want(False)
            self.threads.want(True)
            self.assertEqual(self.system.real_time, set())
            self.threads.want(wanted)
            self.reactor.advance(PAUSE)
            self.assertEqual(self.system.real_time, {ME, 1} if wanted else set())

    def test_catch_up(self) -> None:
        """For a while after falling behind, also if nobody wants it otherwise."""
        self.threads.catch_up()
        self.threads.want(False)
        self.threads.start()
        self.assertEqual(self.system.real_time, set())
        self.threads.catch_up()
        self.reactor.advance(CATCH_UP / 2)
        self.threads.catch_up()
        self.threads.want(True)
        self.threads.want(False)
        self.assertEqual(self.system.real_time, {ME, 1})
        self.reactor.advance(CATCH_UP / 2)
        self.assertEqual(self.system.real_time, set())
        self.threads.catch_up()
        self.threads.want(True)
        self.reactor.advance(CATCH_UP)
        self.assertEqual(self.system.real_time, {ME, 1})
        self.threads.catch_up()
        self.threads.stop()
        self.assertEqual(self.system.real_time, set())
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_threads_that_come_later(self) -> None:
        """One that announces itself is raised by the reactor; with the others if it comes before the start."""
        self.threads.start()
        self.threads.add(2)
        self.assertEqual(self.system.real_time, {ME, 1, 2})

        other = RealTimeThreads(self.reactor, self.system)
        other.want(True)
        self.system.real_time.clear()
        announced: list[int] = []

        def announce() -> None:
            announced.append(threading.get_native_id())
            self.system.threads.add(announced[0])
            other.this_thread()

        thread = threading.Thread(target=announce)
        thread.start()
        thread.join()
        self.reactor.turn()
        self.assertEqual(self.system.real_time, set())
        other.start()
        self.assertEqual(self.system.real_time, {ME, announced[0]})

    def test_refused(self) -> None:
        """Whoever refuses: all is as before, and the process goes on."""
        for thread in ME, 1:
            self.system.refusals[thread] = EPERM
            self.threads.start()
            self.assertEqual(self.system.real_time, set())
            self.assertEqual(self.system.now, (FREE, FREE))
            self.assertEqual(self.system.handler, signal.SIG_DFL)
            self.threads.add(2)
            self.threads.stop()
            self.assertEqual(self.system.real_time, set())

    def test_limit_refused(self) -> None:
        def refuse(limits: Limits) -> None:
            raise ValueError("not allowed to raise maximum limit")

        self.patch(self.system, "set_limits", refuse)
        self.threads.start()
        self.assertEqual(self.system.real_time, set())
        self.assertEqual(self.system.handler, signal.SIG_DFL)

    def test_refused_later(self) -> None:
        """A control group may have lost its real-time share meanwhile."""
        self.threads.start()
        self.system.exceed()
        self.reactor.turn()
        self.system.refusals[1] = EPERM
        self.reactor.advance(PAUSE)
        self.assertEqual(self.system.real_time, set())
        self.assertEqual(self.system.handler, signal.SIG_DFL)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_set_from_outside(self) -> None:
        """Who started us under another policy, or with a hard limit, has decided already."""
        self.system.normal = False
        self.threads.start()
        self.system.normal = True
        self.system.now = (FREE, 1_000_000)
        self.threads.start()
        self.threads.want(True)
        self.threads.want(False)
        self.threads.stop()
        self.assertEqual(self.system.story, [])

    def test_ended(self) -> None:
        """A thread that has ended is passed over, its id forgotten: it may become another process's."""
        self.threads.add(2)
        self.system.threads.remove(1)
        self.system.refusals[2] = ESRCH
        self.threads.start()
        self.assertEqual(self.system.real_time, {ME})
        self.system.exceed()
        self.reactor.turn()
        self.system.threads.add(1)
        self.reactor.advance(PAUSE)
        self.assertEqual(self.system.real_time, {ME, 2})

    def test_exceeded(self) -> None:
        """All are lowered by the signal's handler, and raised a while later, with the limit as it was."""
        self.threads.start()
        for _ in range(3):
            self.system.exceed()
            self.assertEqual(self.system.real_time, set())
            self.reactor.turn()
            self.threads.add(2)
            self.assertEqual(self.system.real_time, set())
            self.reactor.advance(PAUSE * 0.9)
            self.assertEqual(self.system.real_time, set())
            self.reactor.advance(PAUSE * 0.1)
            self.assertEqual(self.system.real_time, {ME, 1, 2})
            self.assertEqual(self.system.now, GUARDED)

    def test_exceeded_twice(self) -> None:
        """The while counts from the last signal."""
        self.threads.start()
        self.system.exceed()
        self.system.exceed()
        self.reactor.turn()
        self.reactor.advance(PAUSE / 2)
        self.system.exceed()
        self.reactor.turn()
        self.reactor.advance(PAUSE * 0.9)
        self.assertEqual(self.system.real_time, set())
        self.reactor.advance(PAUSE * 0.1)
        self.assertEqual(self.system.real_time, {ME, 1})

    def test_exceeded_while_raising(self) -> None:
        """The signal comes between any two instructions: in the end all are lowered."""
        self.threads.add(2)
        for thread in ME, 1, 2:

            def signalled(which: int, thread: int = thread) -> None:
                if which == thread:
                    self.system.before = lambda thread: None
                    self.system.exceed()

            self.system.before = signalled
            self.threads.start()
            self.reactor.turn()
            self.assertEqual(self.system.real_time, set())
            self.reactor.advance(PAUSE)
            self.assertEqual(self.system.real_time, {ME, 1, 2})
            self.threads.stop()

    def test_handler_raises_nothing(self) -> None:
        """It would be raised in whatever the main thread does."""
        self.threads.start()
        self.system.refusals[1] = EPERM
        self.system.exceed()
        self.assertEqual(self.system.real_time, {1})
        self.reactor.turn()
        self.assertEqual(self.system.real_time, set())

    def test_stopped_while_lowered(self) -> None:
        """Nothing is raised after the end, whatever was under way."""
        self.threads.start()
        self.system.exceed()
        self.reactor.turn()
        self.system.exceed()
        self.threads.stop()
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.reactor.turn()
        self.reactor.advance(2 * PAUSE)
        self.assertEqual(self.system.real_time, set())
        self.assertEqual(self.system.now, (FREE, FREE))


class LinuxTests(SynchronousTestCase):
    def test_threads(self) -> None:
        """It knows the threads of this process from others, and ended ones from living."""
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
        assert thread.native_id is not None
        system = Linux()
        eventually(lambda: not system.has(thread.native_id or 0), 5, "the thread's end")
        self.assertTrue(system.has(ME))
        self.assertFalse(system.has(os.getppid()))
        self.assertTrue(system.is_normal())

    def test_pending_signal(self) -> None:
        """One that is pending when the handler is put back does not end the process."""
        system = Linux()
        caught: list[int] = []
        before = system.catch(lambda number, frame: caught.append(number))
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGXCPU})
        try:
            os.kill(os.getpid(), signal.SIGXCPU)
            system.catch(before)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGXCPU})
        self.assertEqual(signal.getsignal(signal.SIGXCPU), before)
        self.assertEqual(caught, [])


def policy(thread: int) -> tuple[int, int]:
    """The policy of a thread or process, without flags, and its priority."""
    return os.sched_getscheduler(thread) & ~os.SCHED_RESET_ON_FORK, os.sched_getparam(thread).sched_priority


REAL_TIME = (os.SCHED_RR, HIGHEST)
NORMAL = (os.SCHED_OTHER, 0)
LONG_WORK = 0.9
"""Seconds of a processor. Where the main thread has to share the worker's, it takes the signal after a turn or two of
0.1 s."""


@needs_realtime()
class ProcessTests(SynchronousTestCase):
    """A real process: the kernel's side of it."""

    def begin(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.scheduling_process"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(self.end)
        assert self.process.stdout is not None
        self.main = self.process.pid
        self.worker = int(self.process.stdout.readline())
        self.until(REAL_TIME)

    def end(self) -> None:
        self.process.kill()
        self.process.wait(10)
        for stream in self.process.stdin, self.process.stdout:
            if stream is not None:
                stream.close()

    def ask(self, command: str) -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def both(self) -> set[tuple[int, int]]:
        """Policy and priority of the two threads."""
        return {policy(self.main), policy(self.worker)}

    def until(self, wanted: tuple[int, int]) -> None:
        """Wait until both threads have policy and priority C{wanted}."""
        eventually(lambda: self.both() == {wanted}, 5, f"{wanted}")

    def lowered(self, work: str) -> None:
        """Long C{work} of one of the threads lowers both, and they are raised once the pause is over."""
        self.assertEqual(int(self.ask(f"compute {work} {LONG_WORK}")), os.SCHED_OTHER, work)
        self.until(NORMAL)
        self.ask(f"advance {PAUSE * 0.9}")
        self.assertEqual(self.both(), {NORMAL}, work)

        # The process may not have been told of its own signal's end when it is told of the time.
        def raised() -> bool:
            self.ask(f"advance {PAUSE}")
            return self.both() == {REAL_TIME}

        eventually(raised, 5, f"raised after {work}")
        self.assertEqual(self.limits(), GUARDED, work)

    def limits(self) -> Limits:
        return resource.prlimit(self.process.pid, resource.RLIMIT_RTTIME)

    def test_who(self) -> None:
        """Threads and processes that are started by such a thread have normal priority."""
        self.begin()
        self.assertEqual(self.limits(), GUARDED)
        self.assertEqual(policy(int(self.ask("child"))), NORMAL)
        self.assertEqual(int(self.ask("thread")), os.SCHED_OTHER)
        others = {int(name) for name in os.listdir(f"/proc/{self.main}/task")} - {self.main, self.worker}
        self.assertTrue(others)
        self.assertEqual({policy(thread) for thread in others}, {NORMAL})

    def test_short_work(self) -> None:
        """Work of a tenth of the longest turn keeps its priority, however often it comes."""
        self.begin()
        for number in range(20):
            where = ("main", "worker")[number % 2]
            self.assertEqual(int(self.ask(f"compute {where} python {LONGEST_TURN / 10}")), os.SCHED_RR)
        self.assertEqual(self.limits(), GUARDED)

    def test_long_work(self) -> None:
        """Long work of either thread lowers both, and some time later they are raised."""
        self.begin()
        for work in "main python", "main c", "worker python", "worker c":
            self.lowered(work)

    def test_again_and_again(self) -> None:
        """Each time anew, and the process lives."""
        self.begin()
        for _ in range(8):
            self.lowered("main python")
            self.lowered("worker c")
        self.assertIsNone(self.process.poll())

    def test_stop(self) -> None:
        """All is as before: no limit, the default action of the signal."""
        self.begin()
        self.assertEqual(self.ask("stop"), "stopped")
        self.assertEqual({policy(self.main), policy(self.worker)}, {NORMAL})
        self.assertEqual(self.limits(), (FREE, FREE))
        self.assertEqual(int(self.ask("compute main python 0.3")), os.SCHED_OTHER)
        self.process.send_signal(signal.SIGXCPU)
        self.assertEqual(self.process.wait(10), -signal.SIGXCPU)

    def test_privilege_lost(self) -> None:
        """Without CAP_SYS_NICE all threads stay as they are."""
        code = (
            "import os\n"
            "from twisted.internet import reactor\n"
            "from pvecfs.scheduling import RealTimeThreads\n"
            "os.setuid(65534)\n"
            "threads = RealTimeThreads(reactor)\n"
            "threads.want(True)\n"
            "reactor.callWhenRunning(threads.start)\n"
            "reactor.callLater(0.01, reactor.stop)\n"
            "reactor.run()\n"
            "print(os.sched_getscheduler(0))\n"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
        self.assertEqual((done.stdout, done.stderr), (f"{os.SCHED_OTHER}\n", ""))


def threads_of(node: LabNode) -> set[int]:
    assert node.pvecfs is not None
    return {int(name) for name in os.listdir(f"/proc/{node.pvecfs.pid}/task")}


def raised(node: LabNode) -> set[int]:
    """The threads of the node's daemon that have real-time priority."""
    threads = set()
    for thread in threads_of(node):
        with contextlib.suppress(ProcessLookupError):
            if policy(thread) == REAL_TIME:
                threads.add(thread)
    return threads


def four_raised(node: LabNode) -> set[int]:
    """Wait until that many have it. @return: which; a few milliseconds later there may be none, if no change comes."""
    seen: set[int] = set()

    def four() -> bool:
        nonlocal seen
        seen = raised(node)
        return len(seen) == 4

    eventually(four, 20, "four threads raised")
    return seen


def calls(thread: int, counter: str) -> int:
    """What proc(5) counts of a thread: C{wchar}, the bytes that it wrote, or C{syscw}, how often it wrote."""
    rows = Path(f"/proc/{thread}/task/{thread}/io").read_text().splitlines()
    return int(next(row for row in rows if row.startswith(f"{counter}:")).split()[1])


@contextlib.contextmanager
def changes(node: LabNode) -> Iterator[Callable[[], int]]:
    """Somebody changes a file on the node's mount again and again. It is given how often that has succeeded."""
    over = threading.Event()
    count = 0

    def change() -> None:
        nonlocal count
        with open(node.mount / f"busy {node.name}", "wb", buffering=0) as file:
            while not over.wait(0.002):
                with contextlib.suppress(OSError):
                    count += os.pwrite(file.fileno(), b"x", 0)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield lambda: count
    finally:
        over.set()
        thread.join()


@needs_corosync()
@needs_fuse()
@needs_realtime()
class DaemonTests(ClusterCase):
    """The daemon in a cluster."""

    size = 2

    def busiest(self, node: LabNode, counter: str, use: Callable[[Path], object]) -> int:
        """The thread of the node's daemon whose counter grows most while its mount is used."""
        before = {thread: calls(thread, counter) for thread in threads_of(node)}
        use(node.mount)
        return max(before, key=lambda thread: calls(thread, counter) - before[thread])

    def test_threads(self) -> None:
        """The reactor, the store, a sender for each group; not the one that serves the mount, not children."""
        for node in self.nodes:
            assert node.pvecfs is not None
            with changes(node):
                high = four_raised(node)
            self.assertIn(node.pvecfs.pid, high)
            store = self.busiest(node, "wchar", lambda mount: (mount / "large").write_bytes(bytes(512 * 1024)))
            self.assertNotEqual(store, node.pvecfs.pid)
            self.assertIn(store, high)
            # Once no change has come for a while; until then the reactor takes all requests.
            eventually(lambda n=node: not raised(n), 10, "nobody waits for a change")  # type: ignore[misc]
            server = self.busiest(node, "syscw", lambda mount: [(mount / f"no {n}").exists() for n in range(500)])
            self.assertNotIn(server, high)
            children = Path(f"/proc/{node.pvecfs.pid}/task/{node.pvecfs.pid}/children").read_text().split()
            self.assertTrue(children)
            self.assertEqual({policy(int(child)) for child in children}, {NORMAL})

    def test_corosync_restarted(self) -> None:
        """The senders of a new connection are raised in their turn, the threads of the old one forgotten."""
        node = self.node(2)
        with changes(node):
            before = four_raised(node)
        threads = threads_of(node)
        node.stop_corosync()
        eventually(lambda: len(threads & threads_of(node)) < len(threads), 20, "the old senders' end")
        node.start_corosync()
        self.lab.wait_quorate()
        self.settled()
        with changes(node):
            self.assertEqual(len(four_raised(node) & before), 2)

    def test_option(self) -> None:
        """C{--no-realtime}: none of them."""
        node = self.node(2)
        self.assertEqual(node.stop_pvecfs(), 0)
        node.start_pvecfs([*self.options, "--no-realtime"])
        self.addCleanup(node.stop_pvecfs)
        self.settled()
        with changes(node) as made:

            def looked() -> bool:
                self.assertEqual(raised(node), set())
                return made() > 200

            eventually(looked, 20, "200 changes")
        assert node.pvecfs is not None
        self.assertEqual(resource.prlimit(node.pvecfs.pid, resource.RLIMIT_RTTIME), (FREE, FREE))
