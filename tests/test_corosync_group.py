"""Groups, quorum and configuration on real corosync nodes."""

from __future__ import annotations

import time
from pathlib import Path

from pvecfs.corosync.libcpg import ATOMIC_SIZE
from tests.lab import corosync_conf, eventually
from tests.lab_case import Event, LabCase, Peer, texts
from tests.needs import needs_corosync

PROMPT = 0.5
"""Seconds: what never waits for corosync takes less."""


def starvation(peer: Peer) -> float:
    """For how long, seconds, the thread of C{peer} that carries out its commands has waited for a processor so far."""
    return int(Path(f"/proc/{peer.process.pid}/schedstat").read_text().split()[1]) / 1e9


class PromptCase(LabCase):
    def prompt(self, peer: Peer, name: str, *arguments: object) -> Event:
        """Have a command carried out that does not wait for corosync; nor does any of the messages that it sends.

        @return: the last event that it told of itself.
        """
        before = starvation(peer)
        done = peer.command(name, *arguments)
        starved = starvation(peer) - before
        event = peer.of_kind("sent")[-1] if name == "send" else done
        took: float = event["longest"] if name == "send" else event["seconds"]
        self.assertLess(took - starved, PROMPT, f"{name} {arguments}")
        return event


@needs_corosync()
class GroupTests(PromptCase):
    def test_agreed_order(self) -> None:
        """Everybody gets everybody's messages, in one order, which keeps each sender's."""
        peers = self.peers(1, 2, 3)
        for number, peer in enumerate(peers, 1):
            peer.command("send", f"{number}:", 200, 100)
        for peer in peers:
            eventually(lambda peer=peer: len(texts(peer)) == 300, 60, "all messages")  # type: ignore[misc]
        order = texts(peers[0])
        self.assertEqual([texts(peer) for peer in peers[1:]], [order, order])
        for sender in (1, 2, 3):
            self.assertEqual(
                [text for node, text in order if node == sender], [f"{sender}:{number}" for number in range(100)]
            )

    def test_sizes(self) -> None:
        """Messages of every size arrive whole, and in order although long ones go another way."""
        sender, receiver = self.peers(1, 2)
        sizes = [40, 1 << 20, 41, ATOMIC_SIZE - 1, ATOMIC_SIZE, ATOMIC_SIZE + 1, 42, (1 << 20) + 100, 3 << 20, 43]
        for size in sizes:
            self.prompt(sender, "send", str(size), size)
        for peer in (sender, receiver):
            peer.wait("message", lambda event: event["text"] == "43", 30)
            got = [(event["text"], event["size"]) for event in peer.of_kind("message")]
            self.assertEqual(got, [(str(size), size) for size in sizes])
        self.assertEqual(sender.of_kind("refused"), [])

    def test_leave_and_join(self) -> None:
        """Who leaves is told of the membership without itself, gets no messages, and can join again."""
        stays, leaves = self.peers(1, 2)
        leaves.command("leave")
        event = leaves.wait("membership", lambda event: leaves.member in event["left"])
        self.assertNotIn(leaves.member, event["members"])
        stays.wait("membership", lambda event: event["left"] == [leaves.member])
        stays.command("send", "unheard")
        stays.wait("message")
        leaves.command("join")
        leaves.wait("membership", lambda event: event["joined"] == [leaves.member])
        stays.wait("membership", lambda event: event["joined"] == [leaves.member])
        stays.command("send", "heard")
        leaves.wait("message", lambda event: event["text"] == "heard")
        self.assertEqual(texts(leaves), [(1, "heard")])
        self.assertEqual(len(leaves.of_kind("joined_as")), 1)
        self.assertEqual(leaves.of_kind("lost"), [])

    def test_two_processes_of_a_node(self) -> None:
        """Members of one node differ in their process id; one killed with -9 is seen to go."""
        first, second, third = self.peer(1), self.peer(1), self.peer(2)
        members = sorted([first.member, second.member, third.member])
        for peer in (first, second, third):
            peer.wait_for_members(members)
        second.process.kill()
        for peer in (first, third):
            peer.wait("membership", lambda event: event["left"] == [second.member])

    def test_closed_in_a_callback(self) -> None:
        """A listener may close its connection while it is being told: it is told nothing any more."""
        closes, stays = self.peers(1, 2)
        closes.command("send", "close")
        closes.command("count")
        stays.wait("membership", lambda event: event["left"] == [closes.member])
        closes.wait("message", lambda event: event["text"] == "close")
        stays.command("send", "after")
        stays.wait("message", lambda event: event["text"] == "after")
        self.assertEqual(texts(closes), [(1, "close")])
        closes.command("open")
        closes.wait("membership", lambda event: event["members"] == [closes.member, stays.member])

    def test_listener_that_raises(self) -> None:
        """It has missed an event: the connection is closed, which is said in the log and to the listener."""
        peer = self.peer(1)
        peer.command("send", "raise")
        self.assertIn("as told to", peer.wait("lost")["reason"])
        eventually(lambda: any("RuntimeError: as told to" in line for line in peer.log), 30, "the traceback in the log")
        peer.command("send", "refused")
        self.assertEqual(peer.wait("refused")["error"], "CorosyncUnavailable")
        peer.command("open")
        peer.wait("membership", lambda event: event["members"] == [peer.member])

    def test_flood(self) -> None:
        """Far more messages than fit: some are refused, none of those sent is lost, nothing waits."""
        peer, other = self.peers(1, 2)
        total = 0
        for _ in range(10):
            total += self.prompt(peer, "send", "x", 4000, 2000)["count"]
        self.assertEqual({event["error"] for event in peer.of_kind("refused")} - {"TryAgain"}, set())
        for each in (peer, other):
            eventually(lambda each=each: len(texts(each)) == total, 120, "all messages")  # type: ignore[misc]
        self.assertEqual(texts(peer), texts(other))

    def test_nothing_leaks(self) -> None:
        """Descriptors and threads after 50 times opening and closing are those after 2."""
        peer = self.peer(1, open_group=False)
        peer.wait("configuration")
        counts = []
        for times in (2, 50):
            peer.command("cycle", times)
            event = peer.wait("count", timeout=30)
            counts.append((event["descriptors"], event["threads"]))
        self.assertEqual(counts[0], counts[1])
        self.assertGreaterEqual(len(peer.of_kind("joined_as")), 26)
        self.assertEqual(peer.of_kind("lost"), [])
        root = self.node(1).root
        # One directory per connection of quorum and cmap: those of the group are gone.
        eventually(lambda: len(list(Path(root, "dev/shm").glob("qb-*"))) <= 2 * 2, 30, "clean /dev/shm")

    def test_configuration(self) -> None:
        """The node list is read, and read again, once, when corosync has read a new corosync.conf."""
        peer = self.peer(1, open_group=False)
        first = peer.wait("configuration")
        version = first["version"]
        expected = {"name": "lab", "nodes": [[number, f"n{number}", 1] for number in (1, 2, 3)]}
        self.assertEqual({key: first[key] for key in expected}, expected)
        for node in self.lab.nodes:
            node.corosync_conf.write_text(corosync_conf(self.lab.names, version + 1))
        reload = self.node(1).run(["corosync-cfgtool", "-R"], timeout=20)
        self.assertEqual(reload.returncode, 0, reload.stdout + reload.stderr)
        second = peer.wait("configuration")
        self.assertEqual({**expected, "version": version + 1}, {key: second[key] for key in (*expected, "version")})
        peer.command("exit")
        peer.process.wait(10)
        self.assertEqual(len(peer.of_kind("configuration")), 2)


@needs_corosync()
class FailureTests(PromptCase):
    def test_cut_off(self) -> None:
        """A node cut off loses quorum and is alone; the others go on; all meet again."""
        peers = self.peers(1, 2, 3)
        members = [peer.member for peer in peers]
        self.node(3).cut()
        peers[2].wait("quorum", lambda event: not event["quorate"] and event["nodes"] == [3])
        peers[2].wait_for_members([members[2]])  # corosync tells of it a little after quorum, or before
        peers[1].wait("membership", lambda event: event["left"] == [members[2]])
        peers[0].command("send", "majority")
        peers[1].wait("message", lambda event: event["text"] == "majority")
        self.node(3).heal()
        peers[2].wait("quorum", lambda event: event["quorate"] and event["nodes"] == [1, 2, 3])
        for peer in peers:
            peer.wait_for_members(members)
        self.assertEqual(texts(peers[2]), [])
        self.assertEqual(peers[2].of_kind("lost"), [])

    def test_corosync_killed(self) -> None:
        """Killed: the connection is lost at once, quorum too. Back: quorum by itself, the group when opened."""
        peer, other = self.peers(1, 2)
        self.node(1).kill_corosync()
        peer.wait("quorum", lambda event: event["quorate"] is False and event["nodes"] == [])
        eventually(lambda: len(peer.of_kind("lost")) == 1, 3, "the loss")
        peer.command("open")
        peer.mark()
        peer.command("send", "refused")
        self.assertEqual(peer.wait("refused")["error"], "CorosyncUnavailable")
        eventually(lambda: len(peer.of_kind("lost")) == 2, 30, "the second loss")
        configurations = len(peer.of_kind("configuration"))
        self.node(1).start_corosync()
        peer.wait("quorum", lambda event: event["quorate"], 20)
        eventually(lambda: len(peer.of_kind("configuration")) > configurations, 30, "the configuration")
        peer.command("open")
        peer.wait("membership", lambda event: event["members"] == [peer.member, other.member])

    def test_corosync_stopped(self) -> None:
        """A corosync that is stopped in order ends the connection as well."""
        peer = self.peer(1)
        self.node(1).stop_corosync()
        peer.wait("lost")
        self.assertEqual(peer.of_kind("quorum")[-1]["quorate"], False)

    def test_corosync_frozen(self) -> None:
        """SIGSTOP: nothing that we do waits; a flood is refused in the end; after SIGCONT everything has arrived."""
        peer = self.peer(1)
        self.node(1).freeze_corosync()
        for size in (100, 2 << 20, 100):
            self.prompt(peer, "send", f"frozen {size}", size)
        self.node(1).thaw_corosync()
        for size in (100, 2 << 20, 100):
            peer.wait("message", lambda event: event["size"] == size)  # noqa: B023
        self.node(1).freeze_corosync()
        self.prompt(peer, "send", "flood", 100, 100_000)
        self.assertEqual(peer.wait("refused")["error"], "TryAgain")
        for command in ("leave", "join", "close", "open", "close", "open"):
            self.prompt(peer, command)
        time.sleep(0.3)  # what may hang, hangs by now
        self.prompt(peer, "count")
        self.assertLessEqual(peer.of_kind("count")[-1]["threads"], 6)
        peer.mark()
        self.node(1).thaw_corosync()
        peer.wait("membership", lambda event: event["members"] == [peer.member])

    def test_end_while_frozen(self) -> None:
        """A process ends at once although corosync does not answer, whatever it was doing."""
        idle, joining = self.peer(1), self.peer(1, open_group=False)
        self.node(1).freeze_corosync()
        joining.command("open")
        idle.command("send", "long", 2 << 20)
        started = time.monotonic()
        for peer in (idle, joining):
            peer.command("exit")
            self.assertEqual(peer.process.wait(5), 0)
        self.assertLess(time.monotonic() - started, 3)

    def test_killed_while_frozen(self) -> None:
        """A corosync that ends without having answered ends every wait for it."""
        idle, opening = self.peer(1), self.peer(1, open_group=False)
        self.node(1).freeze_corosync()
        opening.command("open")
        idle.command("leave")
        time.sleep(0.2)  # the calls wait by now
        self.node(1).kill_corosync()
        for peer in (idle, opening):
            peer.wait("lost", timeout=10)
