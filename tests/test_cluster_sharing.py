"""A cluster of three real nodes: what one does, all see; what two race for, one gets."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from tests.cluster_support import LOCK_TIMEOUT, ClusterCase, at_once, eventually, outcome, read
from tests.needs import needs_corosync, needs_fuse

ROUNDS = 25

COUNTING_SECONDS = 4.0

SPOOL_SECONDS = 4.0


def create_exclusively(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640))


def listing(directory: Path) -> dict[str, str]:
    """Every path below C{directory}: its mode and, of files, the content."""
    found = {}
    for place, directories, files in os.walk(directory):
        for name in directories:
            path = Path(place, name)
            if path.is_symlink():
                continue
            found[str(path.relative_to(directory))] = oct(path.stat().st_mode)
        for name in files:
            path = Path(place, name)
            if path.is_symlink():
                continue
            found[str(path.relative_to(directory))] = oct(path.stat().st_mode) + " " + path.read_text()
    return found


@needs_corosync()
@needs_fuse()
class SharingTests(ClusterCase):
    def test_changes_seen_by_the_others(self) -> None:
        """Creates, writes, renames, deletions, times and listings: an acknowledged change is read elsewhere soon, also
        by those who have looked before."""
        first, second, third = (node.mount / "sharing" for node in self.nodes)
        (first / "priv").mkdir(parents=True)
        for place in second, third:
            eventually((place / "priv").is_dir, 5, "the directory")
        (second / "a").write_text("one")
        eventually(lambda: read(self.node(1), "sharing/a") == b"one", 5, "the file")
        for number in range(20):
            (self.node(1 + number % 3).mount / "sharing/a").write_text(f"text {number}")
            for place in first, second, third:
                eventually(lambda p=place, n=number: (p / "a").read_text() == f"text {n}", 5, "text")  # type: ignore[misc]
        os.rename(first / "a", first / "b")
        for place in first, second, third:
            eventually(lambda p=place: os.listdir(p) in (["b", "priv"], ["priv", "b"]), 5, "b for a")  # type: ignore[misc]
            # Names and listings are told to the kernel one after the other (docs/mount.md, "Limits").
            eventually(lambda p=place: not (p / "a").exists(), 5, "a is gone")  # type: ignore[misc]
        os.utime(second / "b", (1000, 1000))
        eventually(lambda: (third / "b").stat().st_mtime == 1000, 5, "mtime")
        (third / "b").write_text("")
        eventually(lambda: (first / "b").stat().st_size == 0, 5, "truncated")
        (third / "b").unlink()
        eventually(lambda: os.listdir(first) == ["priv"], 5, "deleted")
        eventually(lambda: outcome(lambda: (first / "b").read_text()) == "ENOENT", 5, "b is gone")
        self.settled()

    def test_spool(self) -> None:
        """One node replaces a file by rename again and again, another takes it by rename, and reads what it took: the
        tree may have moved another file than the one that the kernel knew when it asked."""
        one, two = self.node(1), self.node(2)
        (one.mount / "box").mkdir()
        eventually((two.mount / "box").is_dir, 5, "the directory")
        end = time.monotonic() + SPOOL_SECONDS

        def fill() -> None:
            number = 0
            while time.monotonic() < end:
                number += 1
                (one.mount / "box/tmp").write_bytes(b"%06d" % number)
                os.rename(one.mount / "box/tmp", one.mount / "box/job")

        filling = threading.Thread(target=fill)
        filling.start()
        taken: list[tuple[str, bytes | None]] = []
        while time.monotonic() < end:
            name = f"box/work{len(taken)}"
            try:
                os.rename(two.mount / "box/job", two.mount / name)
            except FileNotFoundError:
                continue
            taken.append((name, read(two, name)))
        filling.join()
        self.settled()
        self.assertGreater(len(taken), 10)
        self.assertEqual([(name, read(one, name)) for name, _ in taken], taken)

    def test_equal_listings(self) -> None:
        """The mounts show the same tree, modes and private paths too."""
        top = self.node(1).mount
        for path in ("nodes/n1/priv", "nodes/n1/qemu-server", "nodes/n2/qemu-server", "priv/acme", "sdn"):
            (top / path).mkdir(parents=True, exist_ok=True)
        for path in (
            "nodes/n1/priv/key",
            "nodes/n1/qemu-server/900.conf",
            "priv/acme/x",
            "sdn/zones.cfg",
            "storage.cfg",
        ):
            (top / path).write_text(f"this is {path}\n" * 50)
        self.settled()
        seen = listing(top)
        for node in self.nodes[1:]:
            mine, others = (
                {key: value for key, value in each.items() if not key.startswith(".")}
                for each in (seen, listing(node.mount))
            )
            self.assertEqual(others, mine)
        self.assertEqual(seen["nodes/n1/priv"], "0o40700")
        self.assertTrue(seen["nodes/n1/priv/key"].startswith("0o100600 this"))
        self.assertTrue(seen["nodes/n1/qemu-server/900.conf"].startswith("0o100640 this"))

    def test_large_files(self) -> None:
        """A file of 1 MiB arrives whole; it is never read in part."""
        (self.node(1).mount / "sharing").mkdir(exist_ok=True)
        (self.node(1).mount / "sharing/large").touch()
        self.settled()
        for number in range(3):
            content = os.urandom(1 << 20)
            (self.node(1 + number).mount / "sharing/large").write_bytes(content)
            for node in self.nodes:
                eventually(lambda n=node, c=content: (n.mount / "sharing/large").read_bytes() == c, 10, "it")  # type: ignore[misc]
        self.settled()

    def test_race_for_a_lock(self) -> None:
        """mkdir of a lock on all three nodes at once: one gets it, the others EEXIST, every time."""
        (self.node(1).mount / "priv/lock").mkdir(parents=True, exist_ok=True)
        self.settled()
        for number in range(ROUNDS):
            places = [node.mount / f"priv/lock/race{number}" for node in self.nodes]
            results = at_once([lambda p=place: outcome(p.mkdir) for place in places])  # type: ignore[misc]
            self.assertEqual(sorted(results), ["EEXIST", "EEXIST", "ok"])
            winner = places[results.index("ok")]
            self.assertEqual(outcome(winner.rmdir), "ok")
        self.settled()

    def test_counting_under_a_lock(self) -> None:
        """Who has the lock reads what the one before has written, whether overwritten or replaced: nothing is lost."""
        top = self.node(1).mount
        (top / "priv/lock").mkdir(parents=True, exist_ok=True)
        (top / "sharing").mkdir(exist_ok=True)
        for name in "overwritten", "replaced":
            (top / "sharing" / name).write_bytes(b"0" * 9)
            self.settled()

            def count(mount: Path, name: str = name) -> int:
                lock, file, done = mount / "priv/lock/counter", mount / "sharing" / name, 0
                end = time.monotonic() + COUNTING_SECONDS
                while time.monotonic() < end:
                    if outcome(lock.mkdir) != "ok":
                        time.sleep(0.0005)
                        continue
                    text = b"%09d" % (int(file.read_bytes()) + 1)
                    if name == "replaced":
                        temporary = file.with_name(f"{mount.stat().st_dev}")
                        temporary.write_bytes(text)
                        os.rename(temporary, file)
                    else:
                        with open(file, "r+b", buffering=0) as opened:
                            opened.write(text)
                    lock.rmdir()
                    done += 1
                return done

            counts = at_once([lambda m=node.mount: count(m) for node in self.nodes])  # type: ignore[misc]
            self.settled()
            self.assertTrue(all(counts), counts)
            for node in self.nodes:
                self.assertEqual(int((node.mount / "sharing" / name).read_bytes()), sum(counts), counts)

    def test_race_for_a_file(self) -> None:
        """O_EXCL: one creates it. Plain O_CREAT: all succeed, and have the one file."""
        (self.node(1).mount / "race").mkdir(exist_ok=True)
        self.settled()
        for number in range(ROUNDS):
            places = [node.mount / f"race/x{number}" for node in self.nodes]
            results = at_once([lambda p=place: outcome(lambda: create_exclusively(p)) for place in places])  # type: ignore[misc]
            self.assertEqual(sorted(results), ["EEXIST", "EEXIST", "ok"])
        for number in range(ROUNDS):
            places = [node.mount / f"race/y{number}" for node in self.nodes]
            descriptors = at_once([lambda p=place: os.open(p, os.O_CREAT | os.O_RDWR) for place in places])  # type: ignore[misc]
            os.write(descriptors[0], b"written by one")
            for descriptor in descriptors:
                eventually(lambda d=descriptor: os.pread(d, 100, 0) == b"written by one", 5, "read by all")  # type: ignore[misc]
                os.close(descriptor)
        tree = self.settled()
        directory = tree.lookup(b"race")
        assert directory is not None
        self.assertEqual(len(tree.children(directory.inode)), 2 * ROUNDS)

    def test_race_for_a_guest(self) -> None:
        """One VMID, wanted as a virtual machine on two nodes and as a container on a third: one gets it."""
        top = self.node(1).mount
        for path in ("nodes/n1/qemu-server", "nodes/n2/qemu-server", "nodes/n3/lxc"):
            (top / path).mkdir(parents=True, exist_ok=True)
        self.settled()
        kinds = ("n1/qemu-server", "n2/qemu-server", "n3/lxc")
        for number in range(2000, 2000 + ROUNDS):
            places = [node.mount / f"nodes/{kind}/{number}.conf" for node, kind in zip(self.nodes, kinds, strict=True)]
            results = at_once([lambda p=place: outcome(lambda: create_exclusively(p)) for place in places])  # type: ignore[misc]
            self.assertEqual(sorted(results), ["EEXIST", "EEXIST", "ok"], f"VMID {number}")
        tree = self.settled()
        self.assertEqual(len([vm for vm in tree.vms.items() if 2000 <= vm.vmid < 3000]), ROUNDS)

    def test_race_of_movers(self) -> None:
        """Two nodes that rename the same guest: one moves it, the other has ENOENT or EEXIST; there is one config."""
        top = self.node(1).mount
        for name in ("n1", "n2", "n3"):
            (top / f"nodes/{name}/qemu-server").mkdir(parents=True, exist_ok=True)
        for number in range(3000, 3000 + ROUNDS):
            (top / f"nodes/n1/qemu-server/{number}.conf").write_text("memory: 512\n")
        self.settled()
        for number in range(3000, 3000 + ROUNDS):
            moves = [
                (
                    node.mount / f"nodes/n1/qemu-server/{number}.conf",
                    node.mount / f"nodes/{to}/qemu-server/{number}.conf",
                )
                for node, to in ((self.node(1), "n2"), (self.node(2), "n3"))
            ]
            results = at_once([lambda m=move: outcome(lambda: os.rename(*m)) for move in moves])  # type: ignore[misc]
            self.assertEqual(results.count("ok"), 1, f"{number}: {results}")
        tree = self.settled()
        guests = {vm.vmid: vm.node for vm in tree.vms.items()}
        for number in range(3000, 3000 + ROUNDS):
            self.assertIn(guests[number], (b"n2", b"n3"))

    def test_release_of_a_lock(self) -> None:
        """utime 0 from another node takes a lock away once it is old enough, not before; renewing keeps it."""
        (self.node(1).mount / "priv/lock").mkdir(parents=True, exist_ok=True)
        self.settled()
        held, wanted = (node.mount / "priv/lock/held" for node in (self.node(2), self.node(3)))
        held.mkdir()
        eventually(wanted.exists, 5, "the lock")
        self.assertEqual(outcome(lambda: os.utime(wanted, (0, 0))), "EACCES")
        self.assertTrue(wanted.exists())
        for _ in range(2):
            renewed = time.monotonic()
            eventually(lambda: time.monotonic() > renewed + LOCK_TIMEOUT * 0.6, LOCK_TIMEOUT, "some age")  # noqa: B023
            os.utime(held)
            self.assertEqual(outcome(lambda: os.utime(wanted, (0, 0))), "EACCES")
            self.assertTrue(wanted.exists())
        self.assertEqual(outcome(lambda: os.utime(wanted)), "EACCES")  # only who made it renews it

        def released() -> bool:
            if outcome(lambda: os.utime(wanted, (0, 0))) == "ENOENT":
                return True
            return not wanted.exists()

        eventually(released, LOCK_TIMEOUT + 10, "the release")
        for node in self.nodes:
            eventually(lambda n=node: not (n.mount / "priv/lock/held").exists(), 5, "no lock")  # type: ignore[misc]
        self.assertEqual(outcome(wanted.mkdir), "ok")
        self.assertEqual(outcome(wanted.rmdir), "ok")
        self.settled()
