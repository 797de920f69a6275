"""Files whose newest content the kernel does not know of yet: it is shown what they had before.

When another node overwrites a file, the tree with the new content is published, and only then a lane tells the kernel
(L{pvecfs.fuse.invalidation}). The kernel asks for a file's size and for its pages one after the other, and keeps both.
Were it answered from the new tree in between, a reader would get the new content cut off at the old length, or some
pages of the one and some of the other. So what the kernel was told counts, until it is told of something else:

 1. before the tree is published, the file's content until now is kept (L{ShownFiles.keep});
 2. the tree is published;
 3. requests take the tree first, then look here; attributes and pages are answered with what is kept
    (L{ShownFiles.find}), and the use is counted;
 4. a lane tells the kernel, which drops attributes and pages, and waits for the pages that it has asked for;
 5. the content is given up (L{ShownFiles.give_up}), unless it was used since the lane began to tell: the kernel may
    know something of it again, or a reader is on its way from the size to the pages. Then the lane tells once more.

Who takes the tree before step 2 and looks here after step 5 answers with the old content to a request that was made
before step 4: the kernel has waited for its pages, or takes no notice of its attributes any more.

This is about single files. What the kernel does not know is shown as it is published, and so is what is moved, since
programs count on it that a file which they replace by rename is whole.

One lock is held for the count in step 3, and for step 5 from the look at the count to the removal: nobody uses a
content that is being given up. Mostly there is nothing to be shown, and then requests take no lock: they test a dict.

An answer takes a while to its reader, so step 4 had better come when nobody was answered lately. (The kernel ignores
attributes that it asked for before step 4 and gets after it. The reader goes on with the old size, to ask for pages
after step 5.) What was used is therefore told when it has not been used for a moment; the kernel may keep what it gets
in step 3 for as long as it likes, so that many readers do not ask again and again. For this alone it is noted which
files were asked for last.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pvecfs.tree.entry import Entry

RECENT = 64
"""Requests that count as having been made lately."""


class Shown:
    """What is shown of one file.

    @ivar entry: the file as the kernel knows it; its data and time count, its place is that of the tree.
    @ivar generation: of the newest publication that the kernel has to be told of before this can end.
    @ivar uses: how many answers were given with it, or lately with the same content.
    """

    __slots__ = ("entry", "generation", "uses")

    def __init__(self, entry: Entry, generation: int, uses: int) -> None:
        self.entry = entry
        self.generation = generation
        self.uses = uses


class Mark(NamedTuple):
    """What was shown of a file at some moment, and how many answers there were."""

    shown: Shown
    uses: int


class ShownFiles:
    """What is shown instead of the published tree, by node id. Any thread, but as said.

    @ivar by_node: for requests to see that it is empty, which needs no lock.
    @ivar generation: number of the newest publication that L{keep} was told of.
    @ivar recent: node ids of the last requests, added to without a lock.
    """

    def __init__(self) -> None:
        self.by_node: dict[int, Shown] = {}
        self.generation = 0
        self.recent: deque[int] = deque(maxlen=RECENT)
        self._lock = Lock()  # held for a few instructions
        self._open = False

    def begin(self) -> None:
        """The kernel knows nothing, and will be told of everything from now on."""
        with self._lock:
            self.by_node.clear()
            self._open = True

    def end(self) -> None:
        """The kernel will be told of nothing any more."""
        with self._lock:
            self.by_node.clear()
            self._open = False

    # The thread that publishes

    def keep(self, files: Iterable[tuple[int, Entry]]) -> None:
        """The next publication gives these files, node ids and what they are until now, other contents. What is shown
        already stays: the kernel was not told of what came between."""
        with self._lock:
            if not self._open:
                return
            self.generation = generation = self.generation + 1
            by_node = self.by_node
            for node, entry in files:
                shown = by_node.get(node)
                if shown is None:
                    by_node[node] = Shown(entry, generation, int(node in self.recent))
                else:
                    shown.generation = generation

    def overrule(self, node: int) -> None:
        """Show nothing older of C{node} than what is published from now on: after a change through the mount, whose
        caller has to see it; in another place; or where the kernel knows nothing."""
        with self._lock:
            self.by_node.pop(node, None)

    # Requests

    def find(self, node: int) -> Entry | None:
        """What to answer about C{node} with; C{None}: what the tree has, which was taken before."""
        with self._lock:
            shown = self.by_node.get(node)
            if shown is None:
                return None
            shown.uses += 1
            return shown.entry

    # Lanes

    def mark(self, node: int) -> Mark | None:
        """What is shown of C{node} now; C{None} if that is what the tree has."""
        with self._lock:
            shown = self.by_node.get(node)
            return None if shown is None else Mark(shown, shown.uses)

    def give_up(self, node: int, mark: Mark | None, generation: int, published: Entry | None) -> bool:
        """The kernel was told of C{node}, since C{mark} was made; or, without a mark, will be told once more after
        this, whatever was answered meanwhile.

        If there are publications that it was not told of, it is shown what is published now: it knows nothing, so
        that is as good as what was before, but newer. To end that is the task of whoever tells it of those.

        @param generation: of the last publication that it was told of.
        @param published: what C{node} is in the tree, taken after C{mark}; C{None} if it is deleted.
        @return: C{False} if the kernel has to be told again, after another mark.
        """
        with self._lock:
            shown = self.by_node.get(node)
            if shown is None:
                return True
            if mark is not None and (shown is not mark.shown or shown.uses != mark.uses):
                # Another one is shown since a change through the mount, or since a lane that tells of everything:
                # then its end can be ours.
                return shown is not mark.shown and shown.generation > generation
            self.recent.append(node)  # who holds it open will ask at once
            if shown.generation <= generation or published is None:
                del self.by_node[node]
            else:
                self.by_node[node] = Shown(published, shown.generation, 1)
            return True

    def until(self, generation: int) -> list[int]:
        """The node ids of what is shown until the kernel knows of C{generation}, or an earlier one."""
        with self._lock:
            return [node for node, shown in self.by_node.items() if shown.generation <= generation]
