"""Readers never see a part of each of two contents (20-filesystem.md), though the kernel is told of a new one only
after it is published: until then it is shown the old one (L{pvecfs.fuse.shown}).

C{FUSE_STRESS_SECONDS} makes the stress test longer than a moment.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from errno import ENOENT
from itertools import combinations_with_replacement
from typing import Any

from twisted.internet.task import Clock
from twisted.trial import unittest

from pvecfs.fuse import filesystem, invalidation, lowlevel
from pvecfs.fuse.filesystem import FileSystem
from pvecfs.fuse.graves import Graves
from pvecfs.fuse.invalidation import ATTEMPTS, KernelCache
from pvecfs.fuse.lowlevel import ATTR_OUT, ENTRY_OUT
from pvecfs.fuse.nodes import Attributes, NodeIds
from pvecfs.fuse.shown import RECENT, Mark, ShownFiles
from pvecfs.interfaces import Meant
from pvecfs.tree.changes import Change, Create, Delete, SetMtime, Write
from pvecfs.tree.entry import DT_REG, Entry
from pvecfs.tree.tree import Delta, Tree
from tests.fuse_support import ROOT, MemoryProposer, MemoryView, MountCase, get, put
from tests.fuse_torn import HEAD_BYTES, whole
from tests.needs import needs_fuse

SECONDS = float(os.environ.get("FUSE_STRESS_SECONDS", "4"))

LAST_ROUND_SECONDS = 40.0
"""A stress test of L{SECONDS} that did not get far on a busy machine is repeated, but not after so many."""

PAGE = 4096

NODE = 3
"""The node id of the one file in tests without a kernel."""


@needs_fuse()
class WindowTests(MountCase):
    """What programs see between a publication and the moment in which the kernel is told."""

    def setUp(self) -> None:
        super().setUp()
        self.path, self.name = self.in_place("f"), self.in_tree("f")

    def begin(self, content: bytes, pages: int = 0) -> None:
        """Make the file, so that the kernel knows its attributes and its first C{pages}; lanes wait from now on."""
        put(self.path, content)
        self.node.remote("mtime", self.name, 5)
        self.handle = os.open(self.path, os.O_RDONLY)
        self.addCleanup(os.close, self.handle)
        self.assertEqual(os.pread(self.handle, 65536, 0), content)
        os.posix_fadvise(self.handle, pages * PAGE, 0, os.POSIX_FADV_DONTNEED)
        self.node.ask("held", True)
        self.addCleanup(self.node.ask, "held", False)

    def publish(self, content: bytes) -> None:
        self.assertGreaterEqual(self.node.ask("change", "write", self.name, content, 0, True), 0)

    def tell(self) -> None:
        self.node.ask("held", False)
        self.node.ask("drained")

    def check(self, content: bytes) -> None:
        """Everything shows C{content}; the pages that are there only after they were read are there not."""
        for _ in range(2):
            for data, size in (
                (os.pread(self.handle, 65536, 0), os.fstat(self.handle).st_size),
                (get(self.path), os.stat(self.path).st_size),
            ):
                self.assertEqual((data[:30], len(data), size), (content[:30], len(content), len(content)))
                self.assertTrue(data == content)
            os.posix_fadvise(self.handle, 0, 0, os.POSIX_FADV_DONTNEED)

    def test_longer_and_shorter(self) -> None:
        self.begin(b"first")
        for old, new in ((b"first", b"the second, longer"), (b"the second, longer", b"3rd"), (b"3rd", b"")):
            self.node.ask("held", True)
            self.publish(new)
            self.check(old)
            self.tell()
            self.check(new)

    def test_pages_of_which_some_are_cached(self) -> None:
        old, new, shorter = (bytes([number]) * (PAGE * pages + 7) for number, pages in ((1, 5), (2, 8), (3, 2)))
        self.begin(old, 2)
        self.publish(new)
        self.assertTrue(os.pread(self.handle, 65536, 0) == old)
        self.check(old)
        self.publish(shorter)
        self.check(old)
        self.tell()
        self.check(shorter)

    def test_unknown_to_the_kernel(self) -> None:
        """The first lookup comes in between."""
        self.node.ask("change", "create", self.name)
        self.node.ask("change", "write", self.name, b"one")
        self.node.ask("drained")
        self.node.ask("held", True)
        self.addCleanup(self.node.ask, "held", False)
        self.publish(b"two, longer")
        self.assertEqual((os.stat(self.path).st_size, get(self.path)), (11, b"two, longer"))
        self.publish(b"3rd")
        with open(self.path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self.assertEqual((os.stat(self.path).st_size, get(self.path)), (11, b"two, longer"))
        self.tell()
        self.assertEqual((os.stat(self.path).st_size, get(self.path)), (3, b"3rd"))

    def test_own_changes_show_at_once(self) -> None:
        self.begin(b"first")
        self.publish(b"the second, longer")
        put(self.path, b"own")
        self.check(b"own")
        self.publish(b"by another again")
        self.check(b"own")
        with open(self.path, "ab", buffering=0) as file:
            file.write(b", and more")
        self.assertTrue(get(self.path).endswith(b", and more"))
        os.utime(self.path, (77, 77))
        self.assertEqual(os.stat(self.path).st_mtime, 77)
        self.tell()
        self.check(b"by another again, and more")
        self.assertEqual(os.stat(self.path).st_mtime, 77)

    def test_replaced_by_rename(self) -> None:
        """The new file is whole at once under its new name, whatever the kernel knew of it before."""
        for known in (False, True):
            self.node.ask("held", False)
            self.node.ask("change", "create", self.in_tree("new"))
            self.node.ask("drained")
            if known:
                self.assertEqual(get(self.in_place("new")), b"")
            self.node.ask("held", True)
            self.addCleanup(self.node.ask, "held", False)
            self.node.ask("change", "write", self.in_tree("new"), b"whole")
            self.node.ask("change", "rename", self.in_tree("new"), self.in_tree(f"f{known}"))
            self.assertEqual(get(self.in_place(f"f{known}")), b"whole")

    def test_deleted_meanwhile(self) -> None:
        self.begin(b"first")
        self.publish(b"the second, longer")
        self.node.ask("change", "delete", self.name)
        self.assertEqual((os.fstat(self.handle).st_size, os.pread(self.handle, 99, 0)), (5, b"first"))
        self.tell()
        self.assertEqual(os.fstat(self.handle).st_nlink, 0)
        self.assertEqual((os.fstat(self.handle).st_size, os.pread(self.handle, 99, 0)), (18, b"the second, longer"))

    def test_synchronisation(self) -> None:
        """The same file with another content; then another file of its inode."""
        self.begin(b"first")
        (row,) = [row for row in self.node.ask("state")["entries"] if row[3] == "f"]
        inode, parent, kind = row[:3]
        self.node.ask("synchronise", [], [[inode, parent, 99, 2, 5, kind, "f", "the second, longer"]])
        self.check(b"first")
        self.node.ask("synchronise", [], [[inode, parent, 99, 2, 5, kind, "g", "of another file"]])
        data, size = os.pread(self.handle, 65536, 0), os.fstat(self.handle).st_size
        self.assertIn((data, size), ((b"first", 5), (b"the second, longer", 18)))
        self.assertEqual(get(self.in_place("g")), b"of another file")
        self.tell()
        self.assertEqual(os.pread(self.handle, 65536, 0), b"the second, longer")
        self.assertEqual(get(self.in_place("g")), b"of another file")

    def test_more_than_can_be_told_one_by_one(self) -> None:
        self.begin(b"first")
        self.node.ask("limit", 5)
        self.publish(b"the second, longer")
        for number in range(20):
            self.node.ask("change", "create", self.in_tree(f"n{number}"))
        self.check(b"first")
        self.tell()
        self.check(b"the second, longer")


@needs_fuse()
class StressTests(MountCase):
    """Many overwrites, many readers, who rest a little: only one who is in the middle at just that moment could see it
    (docs/mount.md, "Limits").

    A reader whose processor is taken away by a host is held up there, and nothing tells: one read in 5,000 may be that.
    (Seen: 1 in 150,000. Without what is tested: 1 in 1,300.)"""

    def test_nothing_torn(self) -> None:
        choice = random.Random(3)
        names = [f"f{number}" for number in range(6)]
        for name in names:
            put(self.in_place(name), whole(HEAD_BYTES, choice))
        command = [sys.executable, "-m", "tests.fuse_torn", self.place, str(SECONDS)]
        reads = torn = overwritten = number = 0
        details: list[str] = []
        last = time.monotonic() + LAST_ROUND_SECONDS
        while min(reads, overwritten) <= 100:
            self.assertTrue(number == 0 or time.monotonic() < last, f"{reads} reads during {overwritten} overwrites")
            seeds = range(4 * number, 4 * number + 3)
            self.node.ask("overwriting", [self.in_tree(name) for name in names], PAGE, SECONDS, 0.02, seeds.stop)
            readers = [
                subprocess.Popen([*command, str(seed), "0.2", "0.004"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
                for seed in seeds
            ]
            for reader in readers:
                output, _ = reader.communicate(timeout=SECONDS + 30)
                count, some, *what = output.split(None, 2)
                reads += int(count)
                torn += int(some)
                details += what
            overwritten += self.node.ask("overwritten")
            number += 1
        print(f"\n{reads} reads during {overwritten} overwrites, {torn} torn")
        self.assertLessEqual(torn, max(1, reads // 5000), details)


def entry(data: bytes) -> Entry:
    return Entry(2, 0, 9, 0, 9, DT_REG, b"f", data)


class ShownFilesTests(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.shown = ShownFiles()
        self.shown.begin()
        self.a, self.b, self.c = entry(b"a"), entry(b"b"), entry(b"c")

    def mark(self) -> Mark:
        mark = self.shown.mark(NODE)
        assert mark is not None
        return mark

    def test_kept_until_told(self) -> None:
        shown = self.shown
        self.assertEqual((shown.find(NODE), shown.mark(NODE), shown.by_node), (None, None, {}))
        shown.keep([(NODE, self.a)])
        self.assertIs(shown.find(NODE), self.a)
        self.assertTrue(shown.give_up(NODE, self.mark(), 1, self.b))
        self.assertEqual((shown.find(NODE), shown.by_node), (None, {}))

    def test_used_since(self) -> None:
        shown = self.shown
        shown.keep([(NODE, self.a)])
        mark = self.mark()
        shown.find(NODE)
        self.assertFalse(shown.give_up(NODE, mark, 1, self.b))
        self.assertIs(shown.find(NODE), self.a)
        self.assertTrue(shown.give_up(NODE, None, 1, self.b))
        self.assertIsNone(shown.find(NODE))

    def test_newer_publications(self) -> None:
        """The first content stays until the kernel is told, then what is published, until it was told of that."""
        shown = self.shown
        shown.keep([(NODE, self.a)])
        shown.keep([(NODE, self.b)])
        self.assertIs(shown.find(NODE), self.a)
        self.assertTrue(shown.give_up(NODE, self.mark(), 1, self.c))
        self.assertIs(shown.find(NODE), self.c)
        self.assertEqual((shown.until(1), shown.until(2)), ([], [NODE]))
        self.assertTrue(shown.give_up(NODE, self.mark(), 2, self.c))
        self.assertEqual(shown.by_node, {})
        shown.keep([(NODE, self.a)])
        shown.keep([(NODE, self.b)])
        self.assertTrue(shown.give_up(NODE, self.mark(), 3, None), "deleted")
        self.assertEqual(shown.by_node, {})

    def test_another_one_since(self) -> None:
        """After a change through the mount, or another lane."""
        shown = self.shown
        shown.keep([(NODE, self.a)])
        mark = self.mark()
        shown.overrule(NODE)
        self.assertTrue(shown.give_up(NODE, mark, 1, self.b))
        shown.keep([(NODE, self.b)])
        self.assertTrue(shown.give_up(NODE, mark, 1, self.b), "its end is not ours")
        self.assertIs(shown.find(NODE), self.b)
        self.assertFalse(shown.give_up(NODE, mark, 2, self.b), "its end is ours")
        self.assertTrue(shown.give_up(NODE, self.mark(), 2, self.b))
        self.assertEqual(shown.by_node, {})

    def test_asked_for_lately(self) -> None:
        shown = self.shown
        shown.recent.append(NODE)
        shown.keep([(NODE, self.a)])
        self.assertEqual(self.mark().uses, 1)
        shown.overrule(NODE)
        shown.recent.extend(range(100, 100 + RECENT))
        shown.keep([(NODE, self.a)])
        self.assertEqual(self.mark().uses, 0)
        shown.give_up(NODE, self.mark(), shown.generation, self.b)
        shown.keep([(NODE, self.a)])
        self.assertEqual(self.mark().uses, 1, "was told lately")

    def test_nothing_is_left_behind(self) -> None:
        shown = self.shown
        shown.keep([(NODE, self.a)])
        shown.end()
        self.assertIsNone(shown.find(NODE))
        shown.keep([(NODE, self.a)])
        self.assertIsNone(shown.find(NODE))
        shown.begin()
        self.assertIsNone(shown.find(NODE))
        shown.keep([(NODE, self.a)])
        shown.begin()
        self.assertIsNone(shown.find(NODE))


class DirectReactor(Clock):
    def callFromThread(self, callable: Any, *arguments: object) -> None:
        callable(*arguments)


class KernelModel(unittest.SynchronousTestCase):
    """A file system whose only file a kernel knows by a size and one page; everything on one thread."""

    def setUp(self) -> None:
        self.begin()

    def begin(self) -> None:
        tree = Tree.new(1).apply(Create(b"f"), 0, 2).tree.apply(Write(b"f", b"a"), 0, 2).tree
        self.view = MemoryView(tree)
        self.nodes = NodeIds(self.view)
        graves = Graves()
        self.cache = cache = KernelCache(self.nodes, graves)
        cache._prepared = True
        cache.attach(1)
        cache.given.give(NODE)
        cache.pause = lambda _seconds: self.moment()
        proposer = MemoryProposer(self.view)
        self.files = FileSystem(DirectReactor(), self.view, proposer, Attributes(0, 0), graves, cache, self.nodes)
        self.answers: list[Any] = []
        self.size: int | None = None
        self.page: bytes | None = None
        self.moments: list[Callable[[], object]] = []
        self.told = 0
        self.replied = 0
        self.patch(filesystem, "reply_buf", self.reply)
        self.patch(filesystem, "reply_err", lambda _request, number: self.answers.append(number))
        self.patch(lowlevel, "notify_inode", self.notified)
        self.patch(lowlevel, "notify_entry", lambda *_: 0)
        self.patch(invalidation, "requests_wait", lambda _session: self.moment())

    def reply(self, _request: int, data: Any, _size: int) -> int:
        self.answers.append(data)
        return self.replied

    def moment(self) -> bool:
        """Something may happen here; whether there are requests that wait."""
        if self.moments:
            self.moments.pop(0)()
        return False

    def notified(self, _session: int, node: int, offset: int, _length: int) -> int:
        self.moment()
        if node == NODE:
            self.told += 1
            self.size = None
            self.page = None if offset == 0 else self.page
        self.moment()
        return 0

    def ask_size(self) -> int:
        self.files._getattr(0, NODE, None)
        size: int = ATTR_OUT.unpack(self.answers.pop())[4]
        return size

    def ask_page(self) -> bytes:
        self.files._read(0, NODE, PAGE, 0, None)
        page: bytes = self.answers.pop()
        return page

    def read(self) -> bytes:
        """What a program gets, as the kernel does it: ask for what is not known, and cut off."""
        if self.size is None:
            self.size = self.ask_size()
        if self.page is None:
            self.page = self.ask_page()
        return self.page[: self.size] + bytes(max(0, self.size - len(self.page)))

    def publication(self, change: Change, meant: Meant | None = None) -> list[Callable[[], object]]:
        """The steps of a publication."""
        made: list[tuple[Tree, Delta]] = []

        def publishing() -> None:
            before = self.view.tree
            delta = before.apply(change, 1, 9).delta
            made.append((before, delta))
            self.assertEqual(self.cache.publishing(before, delta, meant), meant is None)

        def publish() -> None:
            self.view.tree = made[0][1].tree

        def changed() -> None:
            if meant is None:
                self.cache.changed(made[0][0], made[0][1].tree, made[0][1])

        return [publishing, publish, changed]

    def do(self, steps: list[Callable[[], object]]) -> None:
        for step in steps:
            step()

    def lane(self) -> bool:
        """Do what a lane does next."""
        taken = self.cache._take()
        if taken is None:
            return False
        self.cache._perform(*taken)
        del self.cache._busy[taken[0]]
        return True


class InterleavingTests(KernelModel):
    def overtake(self, publications: Callable[[], list[Callable[[], object]]], moments: int, newest: bytes) -> None:
        """Let the steps of publications happen in all ways at the moments of a lane, with and without a reader at each
        moment, who knows one thing and asks for the other: the result is always whole, and the newest in the end."""
        steps = len(publications())
        contents = {b"a", b"bb", newest}
        runs = 0
        for places in combinations_with_replacement(range(moments), steps):
            for readers in range(1 << moments):
                self.begin()
                self.page, self.size = (self.page, 1) if readers & 1 else (b"a", None)
                pending = publications()

                def at(moment: int, readers: int = readers, pending: list[Any] = pending, places: Any = places) -> None:
                    if readers >> moment & 1:
                        self.assertIn(self.read(), contents, (places, readers))
                    for _ in range(places.count(moment)):
                        pending.pop(0)()
                        if readers >> moment & 1:
                            self.assertIn(self.read(), contents, (places, readers))

                at(0)
                self.moments = [lambda moment=moment, at=at: at(moment) for moment in range(1, moments)]  # type: ignore[misc]
                while self.lane() or self.moments:
                    self.moment()
                self.assertEqual(pending, [])
                self.assertEqual((self.cache.shown.by_node, self.cache.pending), ({}, 0), (places, readers))
                self.assertEqual(self.read(), newest, (places, readers))
                runs += 1
        self.assertGreater(runs, 500)

    def test_one_publication(self) -> None:
        self.overtake(lambda: self.publication(Write(b"f", b"bb", 0, True)), 7, b"bb")

    def test_two_publications(self) -> None:
        self.overtake(
            lambda: self.publication(Write(b"f", b"bb", 0, True)) + self.publication(Write(b"f", b"cccc", 0, True)),
            6,
            b"cccc",
        )

    def test_time_only(self) -> None:
        self.overtake(
            lambda: self.publication(Write(b"f", b"bb", 0, True)) + self.publication(SetMtime(b"f", 77)), 5, b"bb"
        )
        self.files._getattr(0, NODE, None)
        self.assertEqual(ATTR_OUT.unpack(self.answers.pop())[7], 77)


class FirstLookupTests(KernelModel):
    """The kernel does not know the file, and looks it up while others are published."""

    def look_up(self) -> None:
        self.files._lookup(0, 1, b"f")
        answer = ENTRY_OUT.unpack(self.answers.pop())
        self.size = answer[7] if answer[0] else None

    def interleaved(self, first: int, before: int, after: int, steps: list[Callable[[], object]]) -> None:
        """Look the file up after C{first} C{steps}; do C{before} of the rest between the moment when it takes the tree
        and that in which it notes what it gives, C{after} between this and when it goes on; the rest comes then."""
        self.begin()
        self.cache.given.begin()
        give = self.cache.given.give

        def slow_give(node: int) -> bool:
            self.patch(self.cache.given, "give", give)
            for _ in range(before):
                steps.pop(0)()
            new = give(node)
            for _ in range(after):
                steps.pop(0)()
            return new

        self.patch(self.cache.given, "give", slow_give)
        for _ in range(first):
            steps.pop(0)()
        self.look_up()
        while steps:
            steps.pop(0)()
        while self.lane():
            pass

    def each(self, count: int) -> list[tuple[int, int, int]]:
        return [(a, b, c) for a in range(count + 1) for b in range(count + 1 - a) for c in range(count + 1 - a - b)]

    def test_overwritten(self) -> None:
        for places in self.each(6):
            steps = self.publication(Write(b"f", b"bb", 0, True)) + self.publication(Write(b"f", b"cccc", 0, True))
            self.interleaved(*places, steps)
            self.assertEqual((self.read(), self.cache.shown.by_node), (b"cccc", {}), places)
            self.assertIn(NODE, self.cache.given)

    def test_deleted(self) -> None:
        """Who was told that there is no such name does not know the node."""
        for places in self.each(3):
            if places[0] < 2:  # later nothing is given
                self.interleaved(*places, self.publication(Delete(b"f")))
                self.assertEqual(NODE in self.cache.given, self.size is not None, places)

    def test_an_answer_that_was_not_taken(self) -> None:
        self.cache.given.begin()
        self.replied = -ENOENT
        self.look_up()
        self.assertNotIn(NODE, self.cache.given)
        self.replied = 0
        self.look_up()
        self.assertIn(NODE, self.cache.given)
        self.files._forgotten(NODE, 1)
        self.assertNotIn(NODE, self.cache.given)


class LaneTests(KernelModel):
    def publish(self, content: bytes, meant: Meant | None = None) -> None:
        self.do(self.publication(Write(b"f", content, 0, True), meant))

    def look(self) -> tuple[int, bytes]:
        """Size and content as answered now, whatever the kernel knows."""
        return self.ask_size(), self.ask_page()

    def test_nobody_reads(self) -> None:
        """The kernel is told once."""
        self.publish(b"bb")
        self.lane()
        self.assertEqual((self.told, self.look()), (1, (2, b"bb")))

    def test_somebody_always_reads(self) -> None:
        """The new content shows in the end, and the kernel is told after that."""
        self.publish(b"bb")
        self.moments = [self.read] * (3 * ATTEMPTS)
        self.lane()
        self.moments = []
        self.assertEqual((self.cache.shown.by_node, self.read()), ({}, b"bb"))
        self.assertLessEqual(self.told, ATTEMPTS + 2)

    def test_a_request_that_waits(self) -> None:
        """The kernel may have asked before it was told, and have a part of each if it is answered with the new."""
        for waits, told in (([False, True], 2), ([True, True, False, False], 1), ([True, False, True], 2)):
            self.begin()
            self.publish(b"bb")
            self.patch(invalidation, "requests_wait", lambda _session, waits=waits: bool(waits) and waits.pop(0))
            self.lane()
            self.assertEqual((waits, self.told, self.look()), ([], told, (2, b"bb")))

    def test_own_change(self) -> None:
        self.publish(b"bb")
        self.assertEqual(self.look(), (1, b"a"))
        self.publish(b"own", Meant((NODE,)))
        self.assertEqual(self.look(), (3, b"own"))
        self.publish(b"dddd")
        self.assertEqual(self.look(), (3, b"own"))
        while self.lane():
            pass
        self.assertEqual(self.look(), (4, b"dddd"))

    def test_own_change_while_the_kernel_is_told(self) -> None:
        self.publish(b"bb")
        self.moments = [lambda: self.publish(b"own", Meant((NODE,)))]
        self.lane()
        self.assertEqual((self.look(), self.cache.shown.by_node), ((3, b"own"), {}))

    def test_drained_is_shown(self) -> None:
        """However many publications come meanwhile, what was drained is not older than it was then."""
        self.publish(b"bb")
        seen: list[tuple[int, bytes]] = []
        self.moments = [lambda: self.publish(b"ccc")]
        node, work = self.cache._take() or self.fail()
        self.cache.drained(lambda: seen.append(self.look()))
        self.cache._perform(node, work)
        del self.cache._busy[node]
        for call in work.then:
            call()
        self.assertEqual(seen, [(3, b"ccc")])
        self.lane()
        self.assertEqual((self.look(), self.cache.shown.by_node), ((3, b"ccc"), {}))

    def test_deleted(self) -> None:
        self.publish(b"bb")
        self.do(self.publication(Delete(b"f")))
        self.assertEqual(self.look(), (1, b"a"))
        while self.lane():
            pass
        self.assertEqual((self.look(), self.cache.shown.by_node), ((2, b"bb"), {}))

    def test_everything_is_taken_back(self) -> None:
        self.patch(os, "write", lambda *_: 0)
        self.patch(lowlevel, "session_fd", lambda _session: -1)
        self.cache._epochs = True
        self.cache.max_pending = 0
        self.publish(b"bb")
        self.assertEqual(self.look(), (1, b"a"))
        self.moments = [lambda: None, self.read, lambda: self.publish(b"ccc"), self.read]
        while self.lane():
            pass
        self.assertEqual((self.look(), self.cache.shown.by_node), ((3, b"ccc"), {}))

    def test_a_failing_lane(self) -> None:
        """Better a part of each than something old for ever."""

        def fail(*_: object) -> None:
            self.cache._running = False  # the end of the lane
            raise ValueError("cannot")

        self.patch(self.cache, "_inode", fail)
        self.publish(b"bb")
        self.cache.run_lane()
        self.flushLoggedErrors(ValueError)
        self.assertEqual(self.look(), (2, b"bb"))

    def test_the_end(self) -> None:
        self.publish(b"bb")
        self.cache.stop()
        self.assertEqual(self.look(), (2, b"bb"))
        self.publish(b"ccc")
        self.assertEqual(self.look(), (3, b"ccc"))
