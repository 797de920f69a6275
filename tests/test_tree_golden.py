"""The tree against what was recorded from the reference: a database, its index and checksum, each delivered change."""

from __future__ import annotations

import base64
import gzip
import json
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from pvecfs.tree.changes import Change, Create, Delete, Mkdir, Rename, SetMtime, Write
from pvecfs.tree.counters import PATHS
from pvecfs.tree.entry import DT_DIR, DT_REG, Entry
from pvecfs.tree.errors import OperationError
from pvecfs.tree.index import Index
from pvecfs.tree.locks import unlocked
from pvecfs.tree.tree import Tree

GOLDEN = Path(__file__).parent / "golden"


def golden_tree() -> Tree:
    connection = sqlite3.connect(f"file:{GOLDEN / 'config.db'}?mode=ro&immutable=1", uri=True)
    query = "SELECT inode, parent, version, writer, mtime, type, CAST(name AS BLOB), data FROM tree"
    rows = connection.execute(query).fetchall()
    connection.close()
    entries = []
    for inode, parent, version, writer, mtime, type, name, data in rows:
        if inode == 0:
            root = Entry(0, 0, version, writer, mtime, DT_DIR, b"")
        else:
            entries.append(Entry(inode, parent, version, writer, mtime, type, name, data or b""))
    return Tree.load(entries, root)


def messages(sender: str) -> list[bytes]:
    """What C{sender} multicast in the tree's group."""
    with gzip.open(GOLDEN / "cpg-messages.jsonl.gz") as lines:
        records = [json.loads(line) for line in lines]
    return [
        base64.b64decode(record["message"])
        for record in records
        if record["sender"] == sender and record["group"] == "pve_dcdb_v1"
    ]


def delivered(message: bytes) -> tuple[int, int, bytes]:
    """Subtype, time and payload of a NORMAL message."""
    _, subtype, _, time, _, _ = struct.unpack_from("<HHIIIQ", message)
    return subtype, time, message[24:]


def change_of(subtype: int, payload: bytes) -> Change:
    size, offset, length, to_length, flags = struct.unpack_from("<IIIII", payload)
    path = payload[20 : 20 + length].rstrip(b"\0")
    to = payload[20 + length : 20 + length + to_length].rstrip(b"\0")
    data = payload[20 + length + to_length :]
    assert len(data) == size
    changes: dict[int, Change] = {
        1: Write(path, data, offset, bool(flags)),
        2: Mkdir(path),
        3: Delete(path),
        4: Rename(path, to),
        5: Create(path),
        6: SetMtime(path, offset),
    }
    return changes[subtype]


def story() -> Iterator[tuple[Tree, bytes]]:
    """The tree of n1 after each of its messages, with the message. No other node sent a change."""
    conf = golden_tree().lookup(b"corosync.conf")
    assert conf is not None
    tree = Tree.new(0).imported(b"corosync.conf", conf.data, conf.mtime).tree
    for _ in range(2):  # n2 started later, then n3: their newer trees won two synchronisations
        root = Entry(0, 0, 3, 0, conf.mtime, DT_DIR, b"")
        tree = tree.replaced((), (conf,), root)
    for message in messages("n1"):
        if struct.unpack_from("<H", message)[0] == 0:
            subtype, time, payload = delivered(message)
            try:
                if subtype == 8:
                    change: Change | None = unlocked(tree, payload[32:].rstrip(b"\0"), payload[:32])
                else:
                    change = None if subtype == 7 else change_of(subtype, payload)
                if change is not None:
                    tree = tree.apply(change, 1, time).tree
            except OperationError:
                pass
        yield tree, message


class DatabaseTests(SynchronousTestCase):
    def test_index_is_the_recorded_state(self) -> None:
        for sender in ("n1", "n2"):
            state = [message for message in messages(sender) if message[0] == 2][-1]
            self.assertEqual(golden_tree().index(), state[32:])

    def test_index_survives_decoding(self) -> None:
        tree = golden_tree()
        index = Index.decode(tree.index())
        self.assertEqual(index.encode(), tree.index())
        self.assertEqual((index.version, index.last_inode, index.writer, index.mtime), (51, 48, 1, 1795332215))
        self.assertEqual(index.entries, {entry.inode: entry.digest() for entry in tree.entries()})

    def test_checksum_is_the_verified_one(self) -> None:
        verify = [message for message in messages("n1") if message[0] == 6][-1]
        self.assertEqual(golden_tree().checksum(), verify[-32:])

    def test_names_and_totals(self) -> None:
        tree = golden_tree()
        self.assertEqual(len(tree), 17)
        self.assertEqual(tree.total_bytes, sum(entry.size for entry in tree.entries()))
        self.assertEqual(
            {tree.path_of(entry.inode) for entry in tree.entries() if entry.type == DT_REG},
            {
                b"corosync.conf",
                b"ha/crm_commands",
                b"nodes/n1/not\\xc3\\xa9s.txt",
                b"nodes/n2/qemu-server/100.conf",
                b"sdn/zones.cfg",
                b"user.cfg",
            },
        )


class StoryTests(SynchronousTestCase):
    """Every change that the reference delivered, applied again."""

    def test_ends_as_the_recorded_database(self) -> None:
        *_, (tree, _) = story()
        self.assertEqual(list(tree.entries()), list(golden_tree().entries()))
        self.assertEqual(tree.index(), golden_tree().index())

    def test_every_verification_passes(self) -> None:
        passed = 0
        for tree, message in story():
            if message[0] == 6:
                self.assertEqual(tree.checksum(), message[-32:])
                passed += 1
        self.assertGreater(passed, 2)

    def test_every_state_is_ours(self) -> None:
        states = [(tree, message) for tree, message in story() if message[0] == 2]
        for tree, message in states[2:]:  # the first two were sent before n1 took over another's tree
            self.assertEqual(tree.index(), message[32:])
        self.assertGreater(len(states), 2)

    def test_status_documents(self) -> None:
        *_, (tree, _) = story()
        vmlist = json.loads((GOLDEN / "status.vmlist.n1").read_bytes())
        self.assertEqual(tree.vms.version, vmlist["version"])
        self.assertEqual(
            {
                str(vm.vmid): {"node": vm.node.decode(), "type": vm.kind, "version": vm.version}
                for vm in tree.vms.items()
            },
            vmlist["ids"],
        )
        version = json.loads((GOLDEN / "status.version.n1").read_bytes())
        self.assertEqual(
            [(path.decode(), count) for path, count in tree.counters.items()],
            list(version.items())[3:-1],
        )
        self.assertEqual([path.decode() for path in PATHS], list(version)[3:-1])
        self.assertEqual(tree.vms.version, version["vmlist"])
