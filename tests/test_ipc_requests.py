"""The requests of the IPC service, without libqb."""

from __future__ import annotations

import struct
from errno import ECHRNG, EFBIG, EINVAL, ENOENT, ENOMEM, EPERM

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pvecfs.ipc.guests import GuestConfigs, parse
from pvecfs.ipc.requests import REQUESTS, Access, Peer, Sources, answer
from pvecfs.tree.changes import Delete, Rename
from pvecfs.tree.errors import OperationError
from tests.ipc_doubles import MemoryStatus, MemoryView, golden_tree, with_file

FULL = Peer(4711, read_only=False)
READER = Peer(4712, read_only=True)

NOTHING_FOUND = b"{\n\n}\n"


def name(text: bytes) -> bytes:
    return text.ljust(256, b"\0")


class RequestTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.view = MemoryView(golden_tree())
        self.status = MemoryStatus()
        self.sources = Sources(self.view, self.status)

    def ask(self, request_id: int, body: bytes = b"", peer: Peer = FULL) -> bytes | int:
        """The reply's body, or the errno."""
        try:
            return answer(self.sources, peer, request_id, body)
        except OperationError as error:
            assert error.errno is not None
            return error.errno

    def file(self, path: bytes, data: bytes) -> None:
        self.view.tree = with_file(self.view.tree, path, data)

    def test_ids(self) -> None:
        self.assertEqual(sorted(REQUESTS), [1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13])
        for unknown in (-(2**31), -3, -1, 0, 9, 14, 99, 2**31 - 1):
            self.assertEqual(self.ask(unknown, b"x", READER), ECHRNG)

    def test_access(self) -> None:
        """Read-only clients are stopped before their request is looked at, where it sets something."""
        writes = {number for number, request in REQUESTS.items() if request.access is Access.WRITE}
        self.assertEqual(writes, {4, 7})
        for number in writes:
            self.assertEqual(self.ask(number, b"", READER), EPERM)
            self.assertEqual(self.ask(number, b"", FULL), EINVAL)

    def test_documents(self) -> None:
        for number, document in ((1, b".version"), (2, b".members"), (3, b".vmlist")):
            self.assertEqual(self.ask(number, peer=READER), self.view.document(document))
            self.assertEqual(self.ask(number, b"\0"), EINVAL)
        self.assertEqual(self.ask(10, peer=READER), b"\0")
        self.assertEqual(self.ask(10, b"\0"), EINVAL)

    def test_set_status(self) -> None:
        self.assertEqual(self.ask(4, name(b"key") + b"value"), b"")
        self.assertEqual(self.ask(5, name(b"key") + name(b"")), b"value")
        self.assertEqual(self.ask(4, name(b"key")), b"")
        self.assertEqual(self.ask(5, name(b"key") + name(b"")), ENOENT)
        self.assertEqual(self.ask(4, name(b"key")[:-1]), EINVAL)
        self.assertEqual(self.ask(4, name(b"key") + b"x" * 32769), EFBIG)
        self.assertEqual(self.ask(4, name(b"nodeip") + b"10.0.0.1"), ENOMEM)

    def test_names_end(self) -> None:
        """At the first NUL, and at 255 bytes."""
        self.ask(4, name(b"key\0garbage") + b"1")
        self.ask(4, b"k" * 256 + b"2")
        self.assertEqual(self.status.values[b"key", b"n1"], b"1")
        self.assertEqual(self.status.values[b"k" * 255, b"n1"], b"2")

    def test_get_status(self) -> None:
        self.assertEqual(self.ask(5, name(b"tasklist") + name(b"n2"), READER), b'[{"upid":1}]')
        self.assertEqual(self.ask(5, name(b"tasklist") + name(b"n3")), ENOENT)
        self.assertEqual(self.ask(5, name(b"tasklist") + name(b"n2")[:-1]), EINVAL)
        self.assertEqual(self.ask(5), EINVAL)

    def test_get_config(self) -> None:
        self.file(b"empty.cfg", b"")
        for path in (b"user.cfg\0", b"/user.cfg\0", b"//user.cfg\0more\0", b"user.cfgX", b"user.cfg\n"):
            self.assertEqual(self.ask(6, path, READER), b"while n3 down\n", path)
        self.assertEqual(self.ask(6, b"empty.cfg\0"), b"")
        self.assertEqual(self.ask(6, b""), EINVAL)
        for path in (
            b"\0",
            b"/\0",
            b"nodes\0",
            b"nope\0",
            b"user.cfg/x\0",
            b".version\0",
            b"local/qemu-server\0",
            b"x",
        ):
            self.assertEqual(self.ask(6, path), ENOENT, path)

    def test_private_paths(self) -> None:
        self.file(b"priv/secret", b"s")
        self.file(b"nodes/n1/priv/secret", b"s")
        for path in (b"priv/secret\0", b"/priv//secret\0", b"nodes//n1/priv/secret\0", b"//nodes/n1//priv//secret\0"):
            self.assertEqual(self.ask(6, path, READER), EPERM, path)
            self.assertEqual(self.ask(6, path, FULL), b"s", path)
        for path in (b"priv\0", b"privX", b"priv/missing\0", b"nodes/nowhere/priv\0"):
            self.assertEqual(self.ask(6, path, READER), EPERM, path)
        for path in (b"private\0", b"nodes/priv\0", b"ha/priv\0", b"nodes/n1/x/priv\0"):
            self.assertEqual(self.ask(6, path, READER), ENOENT, path)

    def test_log(self) -> None:
        before = len(self.status.entries)
        self.assertEqual(self.ask(7, b"\x07\x05\x04root\0tag\0a message\0"), b"")
        logged = self.status.entries[0]
        self.assertEqual((logged.pri, logged.user, logged.tag, logged.msg), (7, "root", "tag", "a message"))
        self.assertEqual(logged.pid, FULL.pid)
        self.assertEqual(self.ask(7, b"\x08\x05\x04root\0tag\0a message\0"), b"")
        self.assertEqual(len(self.status.entries), before + 1)
        self.assertEqual(self.ask(7, b"\x01\x01\x01\0\0\0"), b"")

    def test_malformed_log(self) -> None:
        for body in (
            b"",
            b"\x01\x01",
            b"\x01\x01\x01",
            b"\x01\x01\x01\0\0",  # no message
            b"\x01\x05\x04root\0tag\0a message",  # its NUL missing
            b"\x01\x05\x04root\0tagXa message\0",
            b"\x01\x05\x04rootXtag\0a message\0",
            b"\x01\x00\x04tag\0a message\0",
            b"\x01\x05\x00root\0a message\0",
            b"\x01\xff\x04root\0tag\0a message\0",
            b"\x01\x05\xffroot\0tag\0a message\0",
            b"\x01\x05\x04root\0tag\0",
        ):
            self.assertEqual(self.ask(7, body), EINVAL, body)

    def test_get_log(self) -> None:
        reserved = bytes(12)
        everything = self.ask(8, struct.pack("<I", 0) + reserved + b"\0", READER)
        assert isinstance(everything, bytes)
        self.assertEqual(everything.count(b'"uid"'), 8)
        for ending in (b"admin@pve\0", b"admin@pveX", b"admin@pve\0rest\0"):
            found = self.ask(8, struct.pack("<I", 2**32 - 1) + b"\xff" * 12 + ending)
            assert isinstance(found, bytes)
            self.assertEqual(found.count(b'"uid"'), 1)
        for body in (b"", b"\0", bytes(16)):
            self.assertEqual(self.ask(8, body), EINVAL)

    def test_verify_token(self) -> None:
        self.assertEqual(self.ask(12, b"a b\0"), ENOENT)
        self.file(b"priv/token.cfg", b"a b\n\nlonger a b\nlast")
        for token in (b"a b\0", b"longer a b\0", b"last\0"):
            self.assertEqual(self.ask(12, token, READER), b"")
        for token in (b"a\0", b"a b \0", b"onger a b\0", b"las\0", b"A B\0"):
            self.assertEqual(self.ask(12, token), ENOENT, token)
        for token in (b"", b"\0", b"a b", b"a\nb\0", b"a b\n\0", b"\0\0", b"a\0b\0"):
            self.assertEqual(self.ask(12, token), EINVAL, token)

    def test_token_file_changes(self) -> None:
        """Each version of the file counts, and none when it is gone or a directory."""
        self.file(b"priv/token.cfg", b"one\n")
        self.assertEqual(self.ask(12, b"one\0"), b"")
        self.file(b"priv/token.cfg", b"two\n")
        self.assertEqual((self.ask(12, b"one\0"), self.ask(12, b"two\0")), (ENOENT, b""))
        self.view.tree = self.view.tree.apply(Delete(b"priv/token.cfg"), 1, 1).tree
        self.assertEqual(self.ask(12, b"two\0"), ENOENT)
        self.file(b"priv/token.cfg/directory", b"two\n")
        self.assertEqual(self.ask(12, b"two\0"), ENOENT)

    # Guest properties

    def property(self, vmid: int, rest: bytes) -> bytes | int:
        return self.ask(11, struct.pack("<I", vmid) + rest, READER)

    def properties(self, vmid: int, *names: bytes) -> bytes | int:
        body = struct.pack("<IB", vmid, len(names)) + b"".join(name + b"\0" for name in names)
        return self.ask(13, body, READER)

    def guests(self) -> None:
        self.file(b"nodes/n1/qemu-server/4294967295.conf", b"name: last")
        self.file(b"nodes/n1/lxc/101.conf", b"memory: 1024\nname: ct\n")
        self.file(b"nodes/n3/openvz/102.conf", b"name: old\n")
        self.file(b"nodes/n3/qemu-server/103.conf", b"")

    def test_guests(self) -> None:
        """Ascending VMIDs, of every type; who has none of the properties is left out."""
        self.guests()
        self.assertEqual(
            self.properties(0, b"name", b"memory"),
            b'{\n"100":{"name": "web1","memory": "512"},\n"101":{"name": "ct","memory": "1024"},\n'
            b'"102":{"name": "old"},\n"4294967295":{"name": "last"}\n}\n',
        )
        self.assertEqual(self.property(0, b"memory\0"), b'{\n"100":{"memory": "512"},\n"101":{"memory": "1024"}\n}\n')
        self.assertEqual(self.property(102, b"nameX"), b'{\n"102":{"name": "old"}\n}\n')
        self.assertEqual(self.property(103, b"name\0"), NOTHING_FOUND)
        self.assertEqual(self.property(0, b"cores\0"), NOTHING_FOUND)
        self.assertEqual(
            self.properties(100, b"memory", b"name", b"memory"), b'{\n"100":{"memory": "512","name": "web1"}\n}\n'
        )

    def test_order_of_checks(self) -> None:
        for vmid in (1, 50, 99):
            self.assertEqual((self.property(vmid, b""), self.properties(vmid)), (EINVAL, EINVAL))
        for vmid in (101, 999, 2**32 - 1):
            self.assertEqual((self.property(vmid, b""), self.properties(vmid)), (ENOENT, ENOENT))
        for vmid in (0, 100):
            self.assertEqual((self.property(vmid, b""), self.properties(vmid)), (EINVAL, EINVAL))
        for number in (11, 13):
            for short in (b"", b"d", b"d\0\0"):
                self.assertEqual(self.ask(number, short), EINVAL)
        self.assertEqual(self.ask(13, struct.pack("<I", 100)), EINVAL)
        self.assertEqual(self.ask(13, struct.pack("<I", 101)), ENOENT)

    def test_odd_names(self) -> None:
        """In 11 they match nothing."""
        self.file(b"nodes/n2/qemu-server/100.conf", b": empty\nMemory: 1\nnet0: virtio=AA:BB\n#name: no\n memory: 3\n")
        for odd in (b"\0", b"x", b"Memory\0", b"net0: virtio=AA\0", b"#name\0", b" memory\0", b"memory\0", b"net\0"):
            self.assertEqual(self.property(100, odd), NOTHING_FOUND, odd)
        self.assertEqual(self.property(100, b"net0\0"), b'{\n"100":{"net0": "virtio=AA:BB"}\n}\n')

    def test_malformed_properties(self) -> None:
        for rest in (
            b"",
            b"\0",
            b"\0memory\0",
            b"\1",
            b"\1\0",
            b"\1memory",
            b"\1Memory\0",
            b"\1_\0",
            b"\1memory\0name\0",
            b"\1memory\0x",
            b"\2memory\0",
            b"\2memory\0\0",
            b"\2memory\0name",
            b"\2memory\0name\0\0",
        ):
            self.assertEqual(self.ask(13, struct.pack("<I", 0) + rest), EINVAL, rest)

    def test_escapes(self) -> None:
        self.file(b"nodes/n2/qemu-server/100.conf", b'name: a"b\\c\td\x01\x7f\xc3\xa9\r\n')
        self.assertEqual(
            self.property(100, b"name\0"), b'{\n"100":{"name": "a\\"b\\\\c\\u0009d\\u0001\\u007f\xc3\xa9"}\n}\n'
        )

    def test_parse(self) -> None:
        for config, expected in (
            (b"", {}),
            (b"name: x", {b"name": b"x"}),
            (b"name:x\n", {b"name": b"x"}),
            (b"name: \t x y \r\n", {b"name": b"x y"}),
            (b"name:\n", {}),
            (b"name: first\nname: second\n", {b"name": b"second"}),
            (b"name: first\nname:\n", {}),
            (b"name: now\n[snapshot]\nname: then\n", {b"name": b"now"}),
            (b"[PENDING]\nname: then\n", {}),
            (b"name: a\n [x]\nmemory: 5", {b"name": b"a", b"memory": b"5"}),
            (b"name\nno colon\n\n\n", {}),
        ):
            self.assertEqual(parse(config), expected, config)

    def test_configs_change(self) -> None:
        """What was parsed is used as long as the config stays the same, wherever the guest goes."""
        self.guests()
        self.assertEqual(self.property(101, b"name\0"), b'{\n"101":{"name": "ct"}\n}\n')
        self.file(b"nodes/n1/lxc/101.conf", b"name: changed\n")
        self.assertEqual(self.property(101, b"name\0"), b'{\n"101":{"name": "changed"}\n}\n')
        self.file(b"nodes/n2/lxc/x", b"")
        change = Rename(b"nodes/n1/lxc/101.conf", b"nodes/n2/lxc/101.conf")
        self.view.tree = self.view.tree.apply(change, 1, 1).tree
        self.assertEqual(self.property(101, b"name\0"), b'{\n"101":{"name": "changed"}\n}\n')
        self.view.tree = self.view.tree.apply(Delete(b"nodes/n2/lxc/101.conf"), 1, 1).tree
        self.assertEqual(self.property(101, b"name\0"), ENOENT)

    def test_parsed_configs_are_bounded(self) -> None:
        """Guests that are gone do not stay for ever."""
        configs = GuestConfigs()
        empty = golden_tree()
        for number in range(500):
            tree = with_file(empty, b"nodes/n1/lxc/%d.conf" % (1000 + number), b"name: x\n")
            self.assertEqual(len(list(configs.of(tree, 1000 + number))), 1)
        self.assertLess(len(configs._parsed), 100)

    # Anything

    def assert_answered(self, number: int, body: bytes, peer: Peer) -> None:
        result = self.ask(number, body, peer)
        if number not in REQUESTS:
            self.assertEqual(result, ECHRNG)
        elif isinstance(result, int):
            self.assertIn(result, {EINVAL, ENOENT, EPERM, EFBIG, ENOMEM})

    @settings(max_examples=1500, deadline=None, database=None)
    @given(
        st.integers(-3, 16),
        st.one_of(
            st.binary(max_size=700),
            st.tuples(st.sampled_from((0, 1, 99, 100, 101)), st.integers(0, 255), st.lists(st.binary(max_size=9))).map(
                lambda parts: struct.pack("<IB", *parts[:2]) + b"\0".join(parts[2])
            ),
            st.tuples(st.integers(0, 255), st.binary(max_size=20), st.binary(max_size=20), st.binary(max_size=20)).map(
                lambda parts: bytes((parts[0], len(parts[1]), len(parts[2]))) + b"".join(parts[1:])
            ),
        ),
        st.booleans(),
    )
    def test_anything(self, number: int, body: bytes, read_only: bool) -> None:
        """Every request gets an answer or one of the errors that are foreseen."""
        self.assert_answered(number, body, Peer(1, read_only))
