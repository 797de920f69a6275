"""Handing work to a thread: nothing is lost, nothing is late, nothing comes twice."""

from __future__ import annotations

import time
from contextlib import nullcontext
from threading import Thread

from twisted.trial.unittest import SynchronousTestCase

from pvecfs.store.mailbox import MUCH, Mailbox


class MailboxTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.mailbox: Mailbox[int] = Mailbox()
        self.mailbox.open()
        self.addCleanup(self.mailbox.close)

    def put(self, count: int, together: int = 1) -> None:
        for first in range(0, count, together):
            with self.mailbox if together > 1 else nullcontext():
                for number in range(first, min(first + together, count)):
                    self.mailbox.put(number)

    def test_what_is_there(self) -> None:
        self.mailbox.put(1)
        self.mailbox.put(2)
        self.assertEqual(self.mailbox.take(None), [1, 2])

    def test_patience(self) -> None:
        self.assertEqual(self.mailbox.take(0.001), [])
        self.assertEqual(self.mailbox.take(0.0), [])
        self.mailbox.put(1)
        self.assertEqual(self.mailbox.take(0.001), [1])
        self.assertEqual(self.mailbox.take(0.002), [])

    def test_after_the_end(self) -> None:
        """Whoever puts may not have heard yet that the receiver has gone; its descriptors may be another's by then."""
        self.mailbox.close()
        self.mailbox._asleep = True
        self.mailbox.put(1)
        self.mailbox.open()
        self.assertEqual(self.mailbox.take(None), [1])

    def asleep(self) -> Thread:
        """A receiver that waits; what it got is appended to C{self.got}."""
        self.got: list[list[int]] = []
        thread = Thread(target=lambda: self.got.append(self.mailbox.take(30.0)))
        thread.start()
        while not self.mailbox._asleep:
            time.sleep(0.001)
        return thread

    def test_gathering(self) -> None:
        """Who sleeps is woken when all is there."""
        thread = self.asleep()
        with self.mailbox:
            self.put(3)
            thread.join(0.05)
            self.assertEqual(self.got, [])
        thread.join()
        self.assertEqual(self.got, [[0, 1, 2]])

    def test_gathering_much(self) -> None:
        """It ends when there is much, though more may come."""
        thread = self.asleep()
        with self.mailbox:
            self.put(MUCH)
            thread.join(30.0)
            self.assertEqual([len(items) for items in self.got], [MUCH])

    def test_gathering_nothing(self) -> None:
        """Nobody is woken for nothing; and what comes afterwards wakes at once."""
        thread = self.asleep()
        with self.mailbox:
            pass
        self.assertTrue(self.mailbox._asleep)
        self.mailbox.put(1)
        thread.join()
        self.assertEqual(self.got, [[1]])

    def test_gathering_fails(self) -> None:
        thread = self.asleep()

        def fail() -> None:
            with self.mailbox:
                self.put(1)
                raise RuntimeError("whoever gathers has a defect")

        self.assertRaises(RuntimeError, fail)
        thread.join()
        self.assertEqual(self.got, [[0]])

    def test_every_item_once_in_order(self) -> None:
        """A thread puts 20,000 items as it likes, in part while we sleep, in part while we are awake; one by one, or
        several together."""
        count = 20_000
        for together in (1, 3):
            thread = Thread(target=self.put, args=(count, together))
            thread.start()
            got: list[int] = []
            while len(got) < count and (items := self.mailbox.take(30.0)):
                got += items
            thread.join()
            self.assertEqual(got, list(range(count)))

    def test_two_that_put(self) -> None:
        threads = [Thread(target=self.put, args=(3000,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        got: list[int] = []
        while len(got) < 6000 and (items := self.mailbox.take(30.0)):
            got += items
        for thread in threads:
            thread.join()
        self.assertEqual(sorted(got), sorted([*range(3000), *range(3000)]))

    def test_ping_pong(self) -> None:
        """One sleeps while the other works, thousands of times."""
        back: Mailbox[int] = Mailbox()
        back.open()
        self.addCleanup(back.close)

        def answer() -> None:
            for _ in range(3000):
                for item in self.mailbox.take(30.0):
                    back.put(item)

        thread = Thread(target=answer)
        thread.start()
        for number in range(3000):
            self.mailbox.put(number)
            self.assertEqual(back.take(30.0), [number])
        thread.join()
