"""RRD keys and values: which file, which columns; what is refused."""

from __future__ import annotations

import os
import time

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pvecfs.rrd.layout import NODE, STORAGE, VM, MalformedUpdate, local_midnight, parse_update

NOW = b"1795332209"


def numbers(first: int, count: int) -> bytes:
    return b":".join(b"%d" % number for number in range(first, first + count))


class ParseTests(SynchronousTestCase):
    def test_node_of_the_oldest_format_is_padded(self) -> None:
        update = parse_update(b"pve2-node/n1", b"100:1:" + NOW + b":" + numbers(1, 12))
        self.assertIs(update.kind, NODE)
        self.assertEqual(update.path, b"pve-node-9.0/n1")
        self.assertEqual(update.line, NOW + b":" + numbers(1, 12) + b":U" * 7)

    def test_node(self) -> None:
        update = parse_update(b"pve-node-9.0/n1", b"100:1:" + NOW + b":" + numbers(1, 19))
        self.assertEqual(update.line, NOW + b":" + numbers(1, 19))

    def test_node_of_a_newer_format_is_cut(self) -> None:
        update = parse_update(b"pve-node-10.2/n1", b"100:1:" + NOW + b":" + numbers(1, 25))
        self.assertEqual(update.path, b"pve-node-9.0/n1")
        self.assertEqual(update.line, NOW + b":" + numbers(1, 19))

    def test_vm(self) -> None:
        old = parse_update(b"pve2.3-vm/100", b"77:web:running:0:" + NOW + b":" + numbers(1, 10))
        new = parse_update(b"pve-vm-9.0/100", b"77:web:running:0:" + NOW + b":" + numbers(1, 17))
        self.assertIs(old.kind, VM)
        self.assertEqual((old.path, new.path), (b"pve-vm-9.0/100",) * 2)
        self.assertEqual(old.line, NOW + b":" + numbers(1, 10) + b":U" * 7)
        self.assertEqual(new.line, NOW + b":" + numbers(1, 17))

    def test_storage(self) -> None:
        for kind in (b"pve2-storage", b"pve-storage-9.0"):
            update = parse_update(kind + b"/n1/local-zfs", NOW + b":1000:10")
            self.assertIs(update.kind, STORAGE)
            self.assertEqual(update.path, b"pve-storage-9.0/n1/local-zfs")
            self.assertEqual(update.line, NOW + b":1000:10")

    def test_refused(self) -> None:
        for key in (
            b"", b"/", b"pve2-node", b"pve2-node/", b"pve2-node/.", b"pve2-node/..", b"pve2-node/../x",
            b"pve2-node/a/b", b"/pve2-node/n1", b"pve2-node//n1", b"pve2-node/n1/", b"pve2-node/a\nb",
            b"pve2-node/a\0b", b"pve-node-/n1", b"pve-node-9.0x/n1", b"pve-node-../n1", b"pve-storage-9.0/n1",
            b"pve-storage-9.0/n1/", b"pve-storage-9.0/../x", b"pve-storage-9.0/n1/..", b"pve-storage-9.0/a/b/c",
            b"pve3-node/n1", b"pve2-node/" + b"n" * 256,
        ):  # fmt: skip
            with self.assertRaises(MalformedUpdate, msg=repr(key)):
                parse_update(key, b"1:1:" + NOW + b":" + numbers(1, 12))

    def test_values_that_are_none(self) -> None:
        for value in (b"", b"1", b"1:2", b"1:2:" + NOW, b"1:2:N:1", b"1:2:-5:1", b"1:2:" + NOW + b":1 2",
                      b"1:2:" + NOW + b":1\nQUIT", b"1:2:" + NOW + b"@1:1"):  # fmt: skip
            with self.assertRaises(MalformedUpdate, msg=repr(value)):
                parse_update(b"pve2-node/n1", value)

    def test_an_absent_number_is_unknown(self) -> None:
        self.assertEqual(parse_update(b"pve2-storage/n1/x", NOW + b"::7").line, NOW + b":U:7")

    @given(st.binary(max_size=40), st.binary(max_size=60))
    def test_nothing_leaves_the_directory(self, name: bytes, value: bytes) -> None:
        for prefix in (b"", b"pve2-node/", b"pve2-storage/", b"pve-vm-9.0/"):
            try:
                update = parse_update(prefix + name, b"1:1:" + NOW + b":" + value)
            except MalformedUpdate:
                continue
            path = os.path.normpath(b"/r/" + update.path)
            self.assertEqual(path, b"/r/" + update.path)
            self.assertIn(update.path.split(b"/")[0], (NODE.directory, VM.directory, STORAGE.directory))
            self.assertNotIn(b"\n", update.path + update.line)
            self.assertNotIn(b" ", update.line)

    def test_definitions(self) -> None:
        definitions = NODE.definitions()
        self.assertEqual(len(NODE.sources), 19)
        self.assertEqual(len(VM.sources), 17)
        self.assertEqual(definitions[0], b"DS:loadavg:GAUGE:120:0:U")
        self.assertEqual(definitions[10], b"DS:netin:DERIVE:120:0:U")
        self.assertEqual(definitions[19:21], (b"RRA:AVERAGE:0.5:1:1440", b"RRA:AVERAGE:0.5:30:1440"))
        self.assertEqual(definitions[-1], b"RRA:MAX:0.5:10080:570")
        self.assertEqual(len(definitions), 19 + 8)

    def test_midnight(self) -> None:
        midnight = local_midnight(1795332209.5)
        self.assertEqual(time.localtime(midnight)[3:6], (0, 0, 0))
        self.assertEqual(time.localtime(midnight)[:3], time.localtime(1795332209)[:3])
