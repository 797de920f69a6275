"""The codecs of the group messages: round trips, refusals, and the layouts of 30-replication.md by hand."""

from __future__ import annotations

import struct
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pvecfs.replica.messages import (
    ChangePayload,
    Epoch,
    LockPayload,
    Normal,
    State,
    SyncStart,
    TreeSubtype,
    Update,
    UpdateComplete,
    ValuePayload,
    Verify,
    VerifyRequest,
    decode_entry,
    encode_change,
    encode_entry,
)
from pvecfs.tree.changes import Change, Create, Delete, Mkdir, Rename, SetMtime, Write
from pvecfs.tree.entry import DT_DIR, DT_REG, Entry
from pvecfs.tree.errors import MalformedMessage
from tests.wire import Header, Message, decode

u16 = st.integers(0, 2**16 - 1)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
epochs = st.builds(Epoch, u32, u32, u32, u32)
checksums = st.binary(min_size=32, max_size=32)
paths = st.binary(max_size=40).map(lambda path: path.replace(b"\0", b""))

messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Normal, u32, u32, u16, u64, st.binary(max_size=100)),
    st.builds(SyncStart, u32, u32, epochs),
    st.builds(State, u32, u32, epochs, st.binary(max_size=100)),
    st.builds(Update, u32, u32, epochs, st.binary(max_size=100)),
    st.builds(UpdateComplete, u32, u32, epochs),
    st.builds(VerifyRequest, u32, u32, epochs, u64),
    st.builds(Verify, u32, u32, epochs, u64, checksums),
)
change_payloads = st.builds(
    ChangePayload, st.none() | paths, st.none() | paths, st.binary(max_size=60), u32, st.integers(0, 5)
)
entries = st.one_of(
    st.builds(Entry, u64, u64, u64, u32, u32, st.just(DT_DIR), paths),
    st.builds(Entry, u64, u64, u64, u32, u32, st.just(DT_REG), paths, st.binary(max_size=60)),
)
names = st.binary(min_size=1, max_size=20).map(lambda name: name.replace(b"\0", b"").lstrip(b"/"))
changes: st.SearchStrategy[Change] = st.one_of(
    st.builds(Create, names),
    st.builds(Mkdir, names),
    st.builds(Delete, names),
    st.builds(Write, names, st.binary(max_size=30), u32, st.booleans()),
    st.builds(Rename, names, names),
    st.builds(SetMtime, names, u32),
)


class RoundTrips(SynchronousTestCase):
    @given(messages)
    def test_messages(self, message: Message) -> None:
        self.assertEqual(decode(message.encode()), message)

    @given(change_payloads)
    def test_change_payloads(self, payload: ChangePayload) -> None:
        self.assertEqual(ChangePayload.decode(payload.encode()), payload)

    @given(st.builds(LockPayload, checksums, paths))
    def test_lock_payloads(self, payload: LockPayload) -> None:
        self.assertEqual(LockPayload.decode(payload.encode()), payload)

    @given(st.builds(ValuePayload, paths, st.binary(max_size=60)))
    def test_value_payloads(self, payload: ValuePayload) -> None:
        self.assertEqual(ValuePayload.decode(payload.encode()), payload)

    @given(entries)
    def test_entries(self, entry: Entry) -> None:
        self.assertEqual(decode_entry(encode_entry(entry)), entry)

    @given(changes)
    def test_changes(self, change: Change) -> None:
        subtype, payload = encode_change(change)
        self.assertEqual(ChangePayload.decode(payload).change(subtype), change)


DECODERS: list[Callable[[bytes], object]] = [
    decode,
    Header.decode,
    Epoch.decode,
    Normal.decode,
    SyncStart.decode,
    State.decode,
    Update.decode,
    UpdateComplete.decode,
    VerifyRequest.decode,
    Verify.decode,
    ChangePayload.decode,
    LockPayload.decode,
    ValuePayload.decode,
    decode_entry,
]


class Refusals(SynchronousTestCase):
    """Any bytes either decode or are refused with L{MalformedMessage}, by every decoder."""

    def attempt(self, data: bytes) -> None:
        for decoder in DECODERS:
            try:
                decoder(data)
            except MalformedMessage as refused:
                self.assertTrue(str(refused))

    @given(st.binary(max_size=400))
    def test_any_bytes(self, data: bytes) -> None:
        self.attempt(data)

    @settings(max_examples=200)
    @given(
        messages.map(lambda m: m.encode()) | change_payloads.map(lambda p: p.encode()) | entries.map(encode_entry),
        st.data(),
    )
    def test_damaged(self, data: bytes, draw: st.DataObject) -> None:
        at = draw.draw(st.integers(0, len(data)))
        self.attempt(data[:at])
        self.attempt(data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :])
        self.attempt(data + b"\0")

    def test_lengths_beyond_the_message(self) -> None:
        for head in ((2**32 - 1, 0, 0, 0, 0), (0, 0, 2**32 - 1, 2**32 - 1, 0), (0, 0, 1, 0, 0)):
            self.assertRaises(MalformedMessage, ChangePayload.decode, struct.pack("<IIIII", *head))

    def test_strings_end_at_their_first_nul(self) -> None:
        for path in (b"ab", b"a\0b\0", b"\0\0"):
            payload = struct.pack("<IIIII", 0, 0, len(path), 0, 0) + path
            self.assertRaises(MalformedMessage, ChangePayload.decode, payload)
            self.assertRaises(MalformedMessage, LockPayload.decode, bytes(32) + path)
        self.assertRaises(MalformedMessage, LockPayload.decode, bytes(32))

    def test_entry_types(self) -> None:
        entry = encode_entry(Entry(5, 0, 5, 1, 1, DT_REG, b"n", b"data"))
        for type_ in (0, 1, 3, 5, 255):
            damaged = bytearray(entry)
            damaged[40] = type_
            self.assertRaises(MalformedMessage, decode_entry, bytes(damaged))
        damaged = bytearray(entry)
        damaged[40] = DT_DIR
        self.assertRaises(MalformedMessage, decode_entry, bytes(damaged))  # a directory with data

    def test_key_without_nul(self) -> None:
        self.assertRaises(MalformedMessage, ValuePayload.decode, b"k" * 300)
        self.assertRaises(ValueError, ValuePayload(b"k" * 256, b"").encode)

    def test_unknown_type(self) -> None:
        self.assertRaises(MalformedMessage, decode, struct.pack("<HHIII", 7, 0, 1, 1, 0) + bytes(16))

    def test_offset_that_does_not_fit(self) -> None:
        self.assertRaises(ValueError, encode_change, Write(b"f", b"", 2**32))


class Layouts(SynchronousTestCase):
    def test_write(self) -> None:
        subtype, payload = encode_change(Write(b"/a/f", b"xyz", 7, truncate=True))
        message = Normal(1, 99, subtype, 12, payload).encode()
        expected = struct.pack("<HHIIIQ", 0, 1, 1, 99, 0, 12) + struct.pack("<IIIII", 3, 7, 4, 0, 1) + b"a/f\0" + b"xyz"
        self.assertEqual(message, expected)

    def test_any_flags_but_zero_mean_truncate(self) -> None:
        payload = ChangePayload(b"f", None, b"", 3, 0x80000000)
        self.assertEqual(payload.change(TreeSubtype.WRITE), Write(b"f", b"", 3, True))

    def test_absent_path_is_no_change(self) -> None:
        for subtype in range(1, 7):
            self.assertIsNone(ChangePayload(None).change(subtype))
        self.assertIsNone(ChangePayload(b"f", None).change(TreeSubtype.RENAME))
        self.assertEqual(ChangePayload(b"").change(TreeSubtype.MKDIR), Mkdir(b""))

    def test_unknown_subtypes(self) -> None:
        for subtype in (0, 7, 9, 65535):
            self.assertRaises(MalformedMessage, ChangePayload(b"f").change, subtype)

    def test_mtime_travels_in_offset(self) -> None:
        subtype, payload = encode_change(SetMtime(b"f", 2**32 + 5))
        self.assertEqual(subtype, 6)
        self.assertEqual(struct.unpack_from("<I", payload, 4), (5,))

    def test_verify(self) -> None:
        message = Verify(1, 2, Epoch(3, 4, 5, 6), 7, b"c" * 32).encode()
        self.assertEqual(message, struct.pack("<HHIIIIIIIQ", 6, 0, 1, 2, 0, 3, 4, 5, 6, 7) + b"c" * 32)

    def test_root_update(self) -> None:
        payload = encode_entry(Entry(0, 0, 9, 2, 3, DT_DIR, b""))
        self.assertEqual(payload, struct.pack("<QQQIIIIB", 0, 0, 9, 2, 3, 0, 1, 4) + b"\0")

    def test_value_key_is_zero_filled(self) -> None:
        self.assertEqual(ValuePayload(b"k", b"v").encode(), b"k" + bytes(255) + b"v")
        self.assertEqual(ValuePayload.decode(b"k\0garbage".ljust(256, b"x") + b"v"), ValuePayload(b"k", b"v"))
