"""Handing work to a thread: nothing is lost, nothing is late, nothing comes twice."""

from __future__ import annotations

from threading import Thread

from twisted.trial.unittest import SynchronousTestCase

from pvecfs.store.mailbox import Mailbox


class MailboxTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.mailbox: Mailbox[int] = Mailbox()
        self.mailbox.open()
        self.addCleanup(self.mailbox.close)

    def put(self, count: int) -> None:
        for number in range(count):
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

    def test_every_item_once_in_order(self) -> None:
        """A thread puts 20,000 items as it likes, in part while we sleep, in part while we are awake."""
        count = 20_000
        thread = Thread(target=self.put, args=(count,))
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
