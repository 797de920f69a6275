"""Telling the kernel what it must no longer believe.

The kernel keeps names, attributes, pages and listings for ever, so everything that changes in another way than by a
call through this mount has to be taken back from it. To do so can wait for locks that file operations hold while they
wait for the cluster: dropping a name waits for the directory's lock, dropping data for those of its pages.
Therefore nobody waits for these threads, they hold no lock while they tell the kernel, and what waits for one node
holds up no other: work is collected by node, and each of a few threads (lanes) takes one node at a time.

Attributes need no lock at all. Losing quorum changes them all, which has a thread of its own.

No answer to a request may wait for a lane: its sender can hold the very lock that all lanes wait for. (A listing holds
its directory's lock.) There are two exceptions. The answer that has to wait for the kernel to drop a listing has a
thread of its own; dropping that waits for nobody's answer. And who has just got a lock, by a mkdir in C{priv/lock},
will read what it protects: so that answer waits until the kernel was told of everything before it, except for what
needs the kernel's lock of C{priv/lock}, which its sender holds. One lane (the spare one) takes nothing of that kind, so
that it is never held up by it (L{KernelCache.told_outside}).

An answer to a first lookup may be on its way while a change is told of: the kernel does not know the node yet, then
learns its old attributes. It holds the directory's lock until it has, so where a node is unknown we wait for that
lock (by dropping a name that nobody uses) and tell again.

A file whose content has changed is answered as the kernel knows it until the kernel was told, so that no reader gets a
part of each content (L{pvecfs.fuse.shown}).
"""

from __future__ import annotations

import os
import select
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from errno import EINVAL, ENODEV, ENOENT
from threading import Condition, Lock
from typing import TYPE_CHECKING

from zope.interface import implementer

from pvecfs.fuse import lowlevel
from pvecfs.fuse.given import GivenNodes
from pvecfs.fuse.nodes import LINKS
from pvecfs.fuse.shown import ShownFiles
from pvecfs.interfaces import IKernelCache, Meant
from pvecfs.log import logger
from pvecfs.tree.entry import DT_DIR
from pvecfs.tree.locks import lock_directory

if TYPE_CHECKING:
    from pvecfs.fuse.graves import Graves
    from pvecfs.fuse.nodes import Exchanged, NodeIds, Numbering, Replacement
    from pvecfs.tree.entry import Entry
    from pvecfs.tree.tree import Delta, Tree

_log = logger("fuse")

MAX_PENDING = 20_000
"""Names and nodes that may wait to be told. Beyond this, everything is taken back at once."""

LANES = 3
"""Besides the spare one."""

QUIET = 0.0005
"""Seconds that an answer takes to its reader at most, if the processors are not too busy."""

ATTEMPTS = 16
"""How often a moment is looked for in which no reader is in the middle of a file's old content. After that the old one
is not shown any more, though a reader may then get a part of each: better than an old content for long."""

_BARRIER = b"\x01"
"""A name that is dropped for the sake of its directory's lock."""

_EVERYTHING = -1
"""The key of L{_Work} that takes back all; no node has it."""

_NOWHERE = -2
"""No node's id."""

Then = Callable[[], None]


class _Work:
    """What to tell about one node.

    @ivar attributes: its attributes have changed.
    @ivar data: its data have changed, or its listing.
    @ivar generation: of the last publication that changed the data, see L{ShownFiles}; 0: none.
    @ivar parents: directories in which the node may be being looked up now.
    @ivar names: names in it that came, went, or lead elsewhere.
    @ivar children: the attributes of all that is in it have changed.
    @ivar then: to be called when it is done, once the work of this key that came before is done too.
    """

    __slots__ = ("attributes", "children", "data", "generation", "names", "parents", "then")

    def __init__(self) -> None:
        self.attributes = False
        self.data = False
        self.generation = 0
        self.parents: set[int] = set()
        self.names: set[bytes] = set()
        self.children = False
        self.then: list[Then] = []


class _Countdown:
    """Calls C{done} when it was called C{count} times."""

    def __init__(self, lock: Lock, count: int, done: Then) -> None:
        self._lock = lock
        self._count = count
        self._done = done

    def __call__(self) -> None:
        with self._lock:
            self._count -= 1
            last = self._count == 0
        if last:
            self._done()


@implementer(IKernelCache)
class KernelCache:
    """The kernel's memory of one mount.

    Its methods may be called on any thread and never block; before L{attach} and after L{stop} they do nothing (and
    call what is to be called then at once).

    @ivar max_pending: how many names and nodes may wait.
    @ivar given: what the kernel knows; what it does not know it is not told of.
    @ivar shown: what requests are answered until the kernel was told of a newer content.
    @ivar pause: waits for some seconds, on a lane.

    @param nodes: the published tree and its node ids.
    @param graves: gets the deleted files.
    @param alone: the tree changes through this mount only (local mode).
    """

    def __init__(self, nodes: NodeIds, graves: Graves, max_pending: int = MAX_PENDING, alone: bool = False) -> None:
        self._nodes = nodes
        self._alone = alone
        self._replacement: Replacement | None = None
        self._graves = graves
        self.max_pending = max_pending
        self.given = GivenNodes()
        self.shown = ShownFiles()
        self.pause: Callable[[float], object] = time.sleep
        self._session = 0
        self._epochs = False
        self._prepared = False
        # Guards all below; held for a few instructions, and never while the kernel is told something.
        self._lock = Lock()
        self._work_came = Condition(self._lock)
        self._spare_wanted = Condition(self._lock)
        self._modes_came = Condition(self._lock)
        self._listing_came = Condition(self._lock)
        self._pending: dict[int, _Work] = {}
        self._busy: dict[int, _Work] = {}
        self._names = 0
        self._listings: deque[tuple[int, Then]] = deque()
        self._modes: _Work | None = None
        self._busy_modes: _Work | None = None
        self._running = False

    def attach(self, session: int) -> None:
        """Begin: C{session} is mounted. Before the threads are started: L{LANES} that run L{run_lane}, one each for
        L{run_spare_lane}, L{run_modes} and L{run_listings}."""
        self._session = session
        self._nodes.begin()
        self.given.begin()
        self.shown.begin()
        self._running = True

    def stop(self) -> None:
        """End the threads, when they are done with what they do at this moment. What waits is dropped."""
        with self._lock:
            self._running = False
            left = list(self._pending.values()) + ([self._modes] if self._modes else [])
            then = [call for work in left for call in work.then] + [call for _, call in self._listings]
            self._pending.clear()
            self._listings.clear()
            self._modes = None
            for came in (self._work_came, self._spare_wanted, self._modes_came, self._listing_came):
                came.notify_all()
        self.shown.end()
        _call_all(then)

    # What has changed

    def publishing(self, before: Tree, delta: Delta, meant: Meant | None) -> bool:
        shown = self.shown
        self._bury(before, delta, self._nodes.published()[1])
        if meant is not None:
            if self._alone or (self._is_about(before, delta, meant.nodes) and not self._moves_unknown(meant)):
                if shown.by_node:
                    numbering = self._nodes.published()[1]
                    for entry in delta.stored:
                        shown.overrule(numbering.node_of(entry.inode))
                return False
            self._misled(meant)
        exchanged: dict[int, Exchanged] = {}
        if delta.synchronised:
            self._replacement = replacement = self._nodes.replacing(before, delta)
            _, numbering, exchanged = replacement
            for _, node, old in exchanged.values():
                if old is not None and old.type != DT_DIR:
                    self._graves.bury(node, old)
        else:
            numbering = self._nodes.published()[1]
        files = []
        for entry in delta.stored:
            old = before.entry(entry.inode)
            if old is None or entry.inode in exchanged:
                continue
            if (old.parent, old.name) != (entry.parent, entry.name):
                # Its new place never had the content from before; a file replaced by rename is always whole.
                shown.overrule(numbering.node_of(entry.inode))
            elif old.data != entry.data:
                files.append((numbering.node_of(entry.inode), old))
        if files:
            shown.keep(files)
        return True

    def _is_about(self, before: Tree, delta: Delta, nodes: tuple[int, ...]) -> bool:
        """Whether C{delta} changes just C{nodes}, which the kernel has meant. Changes go by names, and another node may
        have put something else there first."""
        node_of = self._nodes.published()[1].node_of
        for entry in delta.stored:
            old = before.entry(entry.inode)
            changed: tuple[int, ...]
            if old is None:
                changed = (entry.parent,)
            elif (old.parent, old.name) == (entry.parent, entry.name):
                changed = (entry.inode,)
            else:
                changed = (entry.inode, entry.parent, old.parent)
            if any(node_of(inode) not in nodes for inode in changed):
                return False
        for inode in delta.deleted:
            old = before.entry(inode)
            if old is None or node_of(inode) not in nodes or node_of(old.parent) not in nodes:
                return False
        return True

    def _bury(self, before: Tree, delta: Delta, known: Numbering) -> None:
        """Keep what the deleted files have that the kernel knows. Before the publication, so that a read finds either
        the tree's or the grave's; and after it, since the kernel may have come to know one meanwhile."""
        for inode in delta.deleted:
            entry, node = before.entry(inode), known.node_of(inode)
            if entry is not None and entry.type != DT_DIR and node in self.given:
                self._graves.bury(node, entry)

    def _moves_unknown(self, meant: Meant) -> bool:
        """Whether the kernel moves what it knows by a name of which it was not told yet that it leads elsewhere. It has
        held the directory's lock since before it asked for that, so nobody can have told it since. What was published
        before is queued by now: by this thread."""
        if meant.moves is None:
            return False
        directory, name = meant.moves
        with self._lock:
            for works in (self._pending, self._busy):
                work = works.get(directory)
                if _EVERYTHING in works or (work is not None and name in work.names):
                    return True
        return False

    def _misled(self, meant: Meant) -> None:
        """The kernel believes that C{meant} has changed, and will put its answer there: a name that it moves leads to
        another file than in the tree, pages hold what was written to another one. The names it asks for again, from
        now on, the rest is taken back when it lets go of its locks."""
        if not self._running:
            return
        if not self._prepared:
            self._prepare()
        elif self._epochs:
            with suppress(OSError):  # the mount is gone
                self._next_epoch()
        with self._lock:
            for node in meant.nodes:
                work = self._work(node)
                work.attributes = work.data = True
            if meant.to is not None:
                self._name(*meant.to)
            self._wake_a_lane()

    def changed(self, before: Tree, after: Tree, delta: Delta) -> None:
        replacement, self._replacement = self._replacement, None
        exchanged: dict[int, Exchanged] = {}
        if replacement is None:
            known = numbering = self._nodes.published()[1]
        else:
            self._nodes.replaced()
            known, numbering, exchanged = replacement
        if not self._running:
            return
        deleted = [(inode, entry) for inode in delta.deleted if (entry := before.entry(inode)) is not None]
        self._bury(before, delta, known)
        unknown = {entry.inode for entry in delta.stored if self._is_unknown(numbering.node_of(entry.inode))}
        with self._lock:
            for one in exchanged.values():
                self._exchanged(after, known, numbering, one)
            for entry in delta.stored:
                if entry.inode not in exchanged:
                    self._stored(before.entry(entry.inode), entry, after, numbering, entry.inode not in unknown)
            for _, entry in deleted:
                self._name(known.node_of(entry.parent), entry.name)
            if self._names + len(self._pending) > self.max_pending:
                self._take_back_everything()
            self._wake_a_lane()

    def _is_unknown(self, node: int) -> bool:
        """Whether the kernel does not know C{node}, after a publication: then nothing older is shown of it."""
        if node in self.given:
            return False
        if node in self.shown.by_node:
            self.shown.overrule(node)
        return True

    def _exchanged(self, after: Tree, known: Numbering, numbering: Numbering, one: Exchanged) -> None:
        """The kernel may know the file that is gone, by C{known}, the old numbering. It cannot know the new one.

        (Nobody gets at names in a directory that is gone: its attributes are asked for first, and there are none.)
        """
        entry = after.entry(one.inode)
        if entry is not None:
            self._name(numbering.node_of(entry.parent), entry.name)
        old = one.entry
        if old is not None:
            self._name(known.node_of(old.parent), old.name)
            work = self._work(one.node)
            work.attributes = work.data = True
            work.parents.add(known.node_of(old.parent))

    def _stored(self, old: Entry | None, entry: Entry, after: Tree, numbering: Numbering, known: bool) -> None:
        node_of = numbering.node_of
        if old is None:
            self._name(node_of(entry.parent), entry.name)
            return
        moved = (old.parent, old.name) != (entry.parent, entry.name)
        if known:
            work = self._work(node_of(entry.inode))
            work.attributes = True
            work.parents.add(node_of(old.parent))
            if moved:
                work.parents.add(node_of(entry.parent))
            if old.data != entry.data:
                work.data = True
                work.generation = self.shown.generation
        if moved:
            self._name(node_of(old.parent), old.name)
            self._name(node_of(entry.parent), entry.name)
            if entry.type == DT_DIR:  # what is in it may have become private
                self._descendants(after, entry.inode, numbering)

    def _descendants(self, tree: Tree, inode: int, numbering: Numbering) -> None:
        directories = [inode]
        seen = set(directories)
        while directories:
            directory = directories.pop()
            self._work(numbering.node_of(directory)).children = True
            for child in tree.children(directory).values():
                if child not in seen and tree.children(child):
                    seen.add(child)
                    directories.append(child)

    def modes_changed(self) -> None:
        if not self._running:
            return
        with self._lock:
            if self._modes is None:
                self._modes = _Work()
            self._modes_came.notify()

    def attributes_changed(self, node: int) -> None:
        """Tell now that the attributes of C{node} have changed; needs no lock of the kernel, so it never waits."""
        if self._running:
            lowlevel.notify_inode(self._session, node, -1, 0)

    def forget_content(self, node: int) -> None:
        """Take back the pages of C{node}."""
        if self._running:
            with self._lock:
                self._work(node).data = True
                self._wake_a_lane()

    def forget_name(self, parent: int, name: bytes) -> None:
        """Take back C{name} in the directory of node C{parent}."""
        if self._running:
            with self._lock:
                self._name(parent, name)
                self._wake_a_lane()

    def forget_pages(self, node: int, then: Then) -> None:
        """Take back the pages of C{node}, a listing or a special file's content, before what waits for lanes, and call
        C{then} on some thread."""
        with self._lock:
            running = self._running
            if running:
                self._listings.append((node, then))
                self._listing_came.notify()
        if not running:
            then()

    def drained(self, then: Then) -> None:
        """Call C{then}, on some thread, as soon as the kernel was told of all that this object was told before."""
        with self._lock:
            unfinished = [*self._pending.values(), *self._busy.values()]
            unfinished += [work for work in (self._modes, self._busy_modes) if work is not None]
            self._call_after(unfinished, then)
        if not unfinished:
            then()

    def told_outside(self, directory: int, then: Then) -> bool:
        """Call C{then}, on some thread, as soon as the kernel was told of all that this object was told before, but for
        what needs the kernel's lock of C{directory}, a node id: the caller's caller holds it.

        @return: whether it was called already.
        """
        with self._lock:
            unfinished = [
                work
                for works in (self._pending, self._busy)
                for node, work in works.items()
                if _is_outside(directory, node, work)
            ]
            self._call_after(unfinished, then)
        if not unfinished:
            then()
        return not unfinished

    @property
    def pending(self) -> int:
        """How many nodes and names wait to be told."""
        return len(self._pending) + self._names

    # Below, up to the threads: with the condition held.

    def _call_after(self, unfinished: list[_Work], then: Then) -> None:
        countdown = _Countdown(self._lock, len(unfinished), then)
        for work in unfinished:
            work.then.append(countdown)

    def _work(self, node: int) -> _Work:
        work = self._pending.get(node)
        if work is None:
            work = self._pending[node] = _Work()
        return work

    def _name(self, parent: int, name: bytes) -> None:
        if parent not in self.given:
            return
        work = self._work(parent)
        work.data = True  # the listing
        if name not in work.names:
            work.names.add(name)
            self._names += 1

    def _take_back_everything(self) -> None:
        if not self._epochs:
            return  # without epochs the names would be lost: then only what can be named limits the queue
        then = [call for work in self._pending.values() for call in work.then]
        self._pending.clear()
        self._names = 0
        everything = self._work(_EVERYTHING)
        everything.then = then
        everything.generation = self.shown.generation

    def _wake_a_lane(self) -> None:
        """If there is something for it: what waits for a node that is busy is for the lane that is busy with it."""
        if any(node not in self._busy for node in self._pending):
            self._work_came.notify()
            if len(self._busy) >= LANES:
                self._spare_wanted.notify()

    def _take(self) -> tuple[int, _Work] | None:
        for node in self._pending:
            if node not in self._busy:
                return self._taken(node)
        return None

    def _take_outside_locks(self) -> tuple[int, _Work] | None:
        tree, numbering = self._nodes.published()
        locks = lock_directory(tree)
        directory = _NOWHERE if locks is None else numbering.node_of(locks.inode)
        for node, work in self._pending.items():
            if node not in self._busy and _is_outside(directory, node, work):
                return self._taken(node)
        return None

    def _taken(self, node: int) -> tuple[int, _Work]:
        work = self._pending.pop(node)
        self._names -= len(work.names)
        self._busy[node] = work
        return node, work

    # Threads

    def run_lane(self) -> None:
        """Tell the kernel what waits, until L{stop}; on a thread of its own, several of them at once."""
        self._run(self._take, self._work_came)

    def run_spare_lane(self) -> None:
        """The same, when all lanes are busy, and nothing that needs the kernel's lock of C{priv/lock}."""
        self._run(self._take_outside_locks, self._spare_wanted)

    def _run(self, take: Callable[[], tuple[int, _Work] | None], came: Condition) -> None:
        while True:
            with self._lock:
                while (taken := take() if self._running else None) is None:
                    if not self._running:
                        return
                    came.wait()
                self._wake_a_lane()  # one after the other: a lane that will wait has woken the next before
            node, work = taken
            try:
                self._perform(node, work)
            except Exception:
                _log.failure("could not tell the kernel of a change")
                for left in self.shown.until(work.generation):
                    if node in (left, _EVERYTHING):
                        self.shown.overrule(left)
            with self._lock:
                del self._busy[node]
                then = work.then  # under the lock, since drained() appends
            _call_all(then)

    def run_modes(self) -> None:
        """Tell the kernel of changed modes, until L{stop}; on a thread of its own."""
        while True:
            with self._lock:
                while self._modes is None:
                    if not self._running:
                        return
                    self._modes_came.wait()
                work = self._busy_modes = self._modes
                self._modes = None
            try:
                self._perform_modes(work)
            except Exception:
                _log.failure("could not tell the kernel of changed modes")
            with self._lock:
                self._busy_modes = None
                then = work.then
            _call_all(then)

    def run_listings(self) -> None:
        """Take listings back for answers that wait for it, until L{stop}; on a thread of its own."""
        while True:
            with self._lock:
                while not self._listings:
                    if not self._running:
                        return
                    self._listing_came.wait()
                node, then = self._listings.popleft()
            try:
                self._inode(node, 0)
            except Exception:
                _log.failure("could not take a listing back")
            _call_all([then])

    def _next_epoch(self) -> None:
        """Have the kernel ask for every name again that it knows now. Needs none of its locks, so it never waits."""
        os.write(lowlevel.session_fd(self._session), lowlevel.NOTIFY_INC_EPOCH)

    def _prepare(self) -> None:
        """Find out what the kernel knows. When it has asked something, so that the session is initialised."""
        self._prepared = True
        try:
            self._next_epoch()
            self._epochs = True
        except OSError as failure:
            if failure.errno not in (EINVAL, ENODEV):
                _log.info("the kernel knows no epochs: {reason}", reason=failure.strerror)

    def _perform(self, node: int, work: _Work) -> None:
        if not self._prepared:
            self._prepare()
        if node == _EVERYTHING:
            self._perform_everything(work.generation)
            return
        if work.names:
            # Names before the listing: what it shows is to be found. Attributes before both: names can wait for a lock.
            self._inode(node, -1)
            for name in work.names:
                self._entry(node, name)
        if work.data:
            self._forget_content(node, work.parents, work.generation)
        elif work.attributes:
            self._forget(node, -1, work.parents)
        if work.children:
            self._entry(node, _BARRIER)
            tree, numbering = self._nodes.published()
            self._attributes(tree.children(numbering.inode_of(node)).values(), numbering)
            if node == lowlevel.ROOT_NODE:
                self._links()

    def _forget_content(self, node: int, parents: Iterable[int], generation: int) -> None:
        """Take back the pages and attributes of C{node}, then show the content of C{generation}, or a newer one.
        L{pvecfs.fuse.shown} tells how."""
        shown = self.shown
        for _ in range(ATTEMPTS):
            mark = shown.mark(node)
            if mark is not None and (mark.uses or requests_wait(self._session)):
                self.pause(QUIET)
                if shown.mark(node) != mark or requests_wait(self._session):
                    continue
            known = self._forget(node, 0, parents)
            if mark is None:
                return
            if known and requests_wait(self._session):
                continue
            if shown.give_up(node, mark, generation, self._nodes.find(node)[1]):
                return
        shown.give_up(node, None, generation, self._nodes.find(node)[1])
        self._forget(node, 0, parents)
        # A reader who was held up with the old size in hand cuts off the pages of the new content that it finds.
        self.pause(QUIET)
        self._forget(node, 0, parents)

    def _forget(self, node: int, offset: int, parents: Iterable[int]) -> bool:
        """Take back the attributes of C{node}, and its pages if C{offset} is 0; also where a lookup in one of
        C{parents} is on its way.

        @return: whether the kernel knew C{node}.
        """
        if node not in self.given:
            return False
        result = self._inode(node, offset)
        if result == -ENOENT and parents:
            for parent in parents:
                self._entry(parent, _BARRIER)
            result = self._inode(node, offset)
        return result != -ENOENT

    def _perform_everything(self, generation: int) -> None:
        self._next_epoch()
        tree, numbering = self._nodes.published()
        node_of = numbering.node_of
        entries = [entry for entry in tree.entries() if node_of(entry.inode) in self.given]
        for entry in entries:
            self._inode(node_of(entry.inode), 0)
        for entry in entries:  # for lookups that were on their way, see the module's text
            if entry.type == DT_DIR:
                self._entry(node_of(entry.inode), _BARRIER)
                for inode in tree.children(entry.inode).values():
                    if (node := node_of(inode)) in self.given:
                        self._inode(node, 0)
        self._next_epoch()
        for node in self.shown.until(generation):
            known = self._nodes.find(node)[1]
            self._forget_content(node, {node_of(known.parent)} if known is not None else (), generation)

    def _perform_modes(self, work: _Work) -> None:
        self._links()
        tree, numbering = self._nodes.published()
        self._attributes((entry.inode for entry in tree.entries()), numbering)
        # Once more for what is being looked up at this moment. It can wait for locks, so it is the lanes' work.
        with self._lock:
            if not self._running:
                return
            nodes = (numbering.node_of(entry.inode) for entry in tree.entries() if entry.type == DT_DIR)
            directories = [node for node in nodes if node in self.given]
            countdown = _Countdown(self._lock, len(directories), _ThenAll(work.then))
            for node in directories:
                again = self._work(node)
                again.children = True
                again.then.append(countdown)
            work.then = []
            self._wake_a_lane()

    def _links(self) -> None:
        for link in LINKS.values():
            self._inode(link, -1)

    def _attributes(self, inodes: Iterable[int], numbering: Numbering) -> None:
        for inode in inodes:
            if not self._running:
                return
            if (node := numbering.node_of(inode)) in self.given:
                self._inode(node, -1)

    def _inode(self, node: int, offset: int) -> int:
        result: int = lowlevel.notify_inode(self._session, node, offset, 0)
        self._judge(result)
        return result

    def _entry(self, parent: int, name: bytes) -> None:
        self._judge(lowlevel.notify_entry(self._session, parent, name, len(name)))

    def _judge(self, result: int) -> None:
        """What the kernel does not know it need not be told; and the mount may have ended."""
        if result not in (0, -ENOENT, -ENODEV) and self._running:
            _log.warn("the kernel refused to be told of a change: {reason}", reason=os.strerror(-result))


def _is_outside(directory: int, node: int, work: _Work) -> bool:
    """Whether C{work} of C{node} can be done while the kernel's lock of C{directory} is held."""
    return node not in (directory, _EVERYTHING) and directory not in work.parents


def requests_wait(session: int) -> bool:
    """Whether the kernel has asked something that was not taken yet."""
    descriptor = lowlevel.session_fd(session)
    if descriptor < 0:
        return False  # unmounted
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return any(event & select.POLLIN for _, event in poll.poll(0))


class _ThenAll:
    """Calls all of a list that may still grow."""

    def __init__(self, calls: list[Then]) -> None:
        self._calls = calls

    def __call__(self) -> None:
        _call_all(self._calls)


def _call_all(calls: list[Then]) -> None:
    for call in calls:
        try:
            call()
        except Exception:
            _log.failure("could not go on after telling the kernel")
