"""The cluster log: entries, rings, merges, and JSON that is always JSON."""

from __future__ import annotations

import contextlib
import json
import random
import struct
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pvecfs.replica.clusterlog import (
    MAX_ENTRY_SIZE,
    MERGED_BYTES,
    RING_SIZE,
    ClusterLog,
    LogEntry,
    decode_ring,
    digest,
    encode_ring,
    json_text,
    log_document,
    stored_text,
)
from pvecfs.replica.messages import MessageType, Normal, State, StatusSubtype
from pvecfs.tree.errors import MalformedMessage
from tests.replay import GOLDEN, RUN, trace
from tests.test_replica_golden import story
from tests.wire import decode

KVSTORE = "pve_kvstore_v1"


def entry(uid: int = 1, time: int = 1000, node: bytes = b"n1", message: bytes = b"hello", pid: int = 7) -> LogEntry:
    return LogEntry.written(uid, time, node, b"root@pam", b"tag", message, pid, 6)


def recorded_messages() -> Iterable[bytes]:
    """Every recorded message of the group, of both recordings."""
    for recorded in story():
        if recorded.group == KVSTORE:
            yield recorded.data
    for path in sorted(RUN.glob("*.trace.xz")):
        for record in trace(path):
            if record.kind in "DS" and record.group == KVSTORE:
                yield record.data


class EntryTests(SynchronousTestCase):
    def test_digest(self) -> None:
        """Of a recorded entry of node n1, user root."""
        self.assertEqual(digest(b"n1"), 0x21CECE1925F18240)
        self.assertEqual(digest(b"root"), 0x4DD1E2461DBC53BF)

    def test_layout(self) -> None:
        data = LogEntry.written(1, 1795332189, b"n1", b"root", b"cluster", b"starting cluster log", 8280, 6).encode()
        self.assertEqual(len(data), 48 + 3 + 5 + 8 + 21)
        self.assertEqual(
            struct.unpack_from("<IIIIQQIBBBBI", data),
            (0, 0, 1, 1795332189, digest(b"n1"), digest(b"root"), 8280, 6, 3, 5, 8, 21),
        )
        self.assertEqual(data[44:], b"n1\0root\0cluster\0starting cluster log\0\0\0\0\0")

    def test_recorded_entries_round_trip(self) -> None:
        count = 0
        for data in recorded_messages():
            message = decode(data)
            if isinstance(message, Normal) and message.subtype == StatusSubtype.LOG:
                self.assertEqual(LogEntry.decode(message.payload).encode(), message.payload)
                count += 1
        self.assertGreater(count, 3000)

    def test_malformed(self) -> None:
        good = entry().encode()
        lengths = 36
        for bad in (
            b"", good[:20], good[:47], good[:-1], good + b"\0", good[:-5] + b"x" + good[-4:],
            good[:37] + b"\0" + good[38:], good[:40] + b"\xff\xff\xff\xff" + good[44:],
            good[:lengths] + b"\6\xff\xff\xff" + good[40:],
        ):  # fmt: skip
            with self.assertRaises(MalformedMessage, msg=repr(bad)):
                LogEntry.decode(bad)
        with self.assertRaises(MalformedMessage):
            long = entry(message=b"m" * 4000)
            LogEntry.decode(
                struct.pack("<IIIIQQIBBBBI", 0, 0, 1, 1, 1, 1, 1, 6, 3, 255, 255, 4096) + long.encode()[44:]
            )

    @given(st.binary(max_size=300))
    def test_random_bytes(self, data: bytes) -> None:
        with contextlib.suppress(MalformedMessage):
            LogEntry.decode(data)

    @given(st.binary(max_size=400), st.binary(max_size=400), st.binary(max_size=400), st.binary(max_size=6000))
    def test_whatever_is_written_can_be_sent(self, node: bytes, ident: bytes, tag: bytes, message: bytes) -> None:
        written = LogEntry.written(1, 2, node, ident, tag, message, 3, 4)
        data = written.encode()
        self.assertEqual(len(data), written.size)
        self.assertLessEqual(len(data), MAX_ENTRY_SIZE)
        self.assertEqual(LogEntry.decode(data), written)

    def test_names_are_cut(self) -> None:
        written = LogEntry.written(1, 2, b"n" * 300, "é".encode() * 127 + b"x", b"t\0u", b"m", 3, 4)
        self.assertEqual(written.node, b"n" * 254)
        self.assertEqual(written.ident, "é".encode() * 127)
        self.assertEqual(written.tag, b"t")
        odd = LogEntry.written(1, 2, b"n", b"x" + "é".encode() * 127, b"t", b"m", 3, 4)
        self.assertEqual(odd.ident, b"x" + "é".encode() * 126)


class TextTests(SynchronousTestCase):
    def test_stored(self) -> None:
        for text, stored in (
            (b'say "hi"', rb"say \"hi\""),
            (b"a\tb\x7f\x01", b"a#009b#127#001"),
            ("é€".encode(), rb"\u00e9\u20ac"),
            ("a😀b".encode(), b"ab"),
            (b"caf\\u00e9 back\\slash", b"caf\\u00e9 back\\slash"),
            (b'caf\xe9 \x7f\x80"\n', b"caf? ??" + b'\\"#010'),
            (b"cut\0here", b"cut"),
            ("\ud7ff\ue000\uffff".encode(), rb"\ud7ff\ue000\uffff"),
        ):
            self.assertEqual(stored_text(text, 4000), stored)

    def test_recorded(self) -> None:
        """What the reference stored for a quote, a tab, a euro sign."""
        self.assertEqual(stored_text(b'quote\\"d', 100), b'quote\\\\"d')
        self.assertEqual(
            stored_text("tab\there\x01end € 😀 back\\slash".encode(), 100), rb"tab#009here#001end \u20ac  back\slash"
        )

    def test_cut(self) -> None:
        for text, limit, stored in (
            (b"abc", 3, b"abc"),
            (b"abc", 2, b"ab"),
            (b'ab"c', 3, b"ab"),
            (b'ab"c', 4, b'ab\\"'),
            ("aé".encode(), 6, b"a"),
            ("aé".encode(), 7, rb"a\u00e9"),
            (b"a\\u00e9b", 6, b"a"),
            (b"a\\u00e9b", 7, rb"a\u00e9"),
            (b"a\tb", 3, b"a"),
            (b"a\tb", 5, b"a#009"),
            (b"a\\ud83d\\ude00b", 12, b"a"),
            (b"a\\uD83D\\uDE00b", 13, rb"a\uD83D\uDE00"),
            (b"\\ude00\\ud83d\\u00e9", 12, rb"\ude00\ud83d"),  # no pair
            (b"\\ud83d\\ude0", 6, rb"\ud83d"),
        ):
            self.assertEqual(stored_text(text, limit), stored)

    def test_largest_entry(self) -> None:
        written = entry(message=b"L" * 5000)
        self.assertEqual(written.size, MAX_ENTRY_SIZE)
        self.assertEqual(LogEntry.decode(written.encode()), written)


class RingTests(SynchronousTestCase):
    def test_recorded_rings(self) -> None:
        """Every recorded state decodes without a defect, and encodes to the same bytes, wrapped or not."""
        states = {decode(data).payload for data in recorded_messages() if data[0] == MessageType.STATE}  # type: ignore[union-attr]  # a State
        self.assertGreater(len(states), 5)
        for state in states:
            entries, defect = decode_ring(state)
            self.assertEqual(defect, "")
            self.assertEqual(encode_ring(reversed(entries)), state)

    def test_empty(self) -> None:
        empty = ClusterLog().state()
        self.assertEqual(empty, struct.pack("<II", RING_SIZE, 0) + bytes(RING_SIZE - 8))
        self.assertEqual(decode_ring(empty), ([], ""))

    def test_foreign_rings_that_are_none(self) -> None:
        good = encode_ring([entry(1), entry(2)])
        self.assertEqual(decode_ring(b""), ([], ""))
        for state in (good[:8], good[:-1], good + b"\0", b"\0" * 8, struct.pack("<II", 9, 8) + b"\0"):
            entries, defect = decode_ring(state)
            self.assertEqual(entries, [])
            self.assertTrue(defect)

    def test_bad_offsets(self) -> None:
        good = encode_ring([entry(1), entry(2)])
        second = struct.unpack_from("<I", good, 4)[0]
        for newest in (1, 7, second + 1, RING_SIZE - 40, RING_SIZE, 0xFFFFFFF8):
            entries, defect = decode_ring(good[:4] + struct.pack("<I", newest) + good[8:])
            self.assertEqual(entries, [], newest)
            self.assertTrue(defect)
        for previous in (4, 9, RING_SIZE - 8, 0xFFFFFFF8):
            entries, defect = decode_ring(good[:second] + struct.pack("<I", previous) + good[second + 4 :])
            self.assertEqual([found.uid for found in entries], [2], previous)
            self.assertTrue(defect)

    def test_circles_end(self) -> None:
        """An entry that points to itself, or forward, again and again."""
        good = encode_ring([entry(uid) for uid in range(1, 101)])
        newest = struct.unpack_from("<I", good, 4)[0]
        for previous in (newest, newest - 8, 8):
            decode_ring(good[:newest] + struct.pack("<I", previous) + good[newest + 4 :])
        big = [entry(uid, message=b"x" * 500) for uid in range(1, 201)]
        ring = encode_ring(big)
        last = struct.unpack_from("<I", ring, 4)[0]
        looped = ring[:8] + struct.pack("<I", last) + ring[12:]
        looped = looped[:4] + struct.pack("<I", 8) + looped[8:]
        entries, _defect = decode_ring(looped)
        self.assertLess(len(entries), 300)

    @settings(max_examples=200)
    @given(st.binary(max_size=600), st.integers(0, 0xFFFFFFFF))
    def test_random_rings(self, data: bytes, newest: int) -> None:
        decode_ring(data)
        ring = struct.pack("<II", len(data) + 8, newest % (len(data) + 64)) + data
        entries, _defect = decode_ring(ring)
        self.assertLess(len(entries), 20)

    def test_damaged_rings(self) -> None:
        """Bytes of a wrapped ring overwritten at random: never a crash, never an endless walk, never a bad entry."""
        chance = random.Random(4)
        ring = encode_ring(entry(uid, message=b"m" * chance.randrange(400)) for uid in range(1000))
        for _ in range(100):
            damaged = bytearray(ring)
            for _ in range(chance.randrange(1, 200)):
                at = chance.randrange(4, RING_SIZE - 4) & ~3
                struct.pack_into("<I", damaged, at, chance.choice((0, 8, 0xFFFFFFFF, chance.randrange(RING_SIZE))))
            entries, _defect = decode_ring(bytes(damaged))
            self.assertLess(len(entries), RING_SIZE // 52)
            for found in entries:
                self.assertLessEqual(found.size, MAX_ENTRY_SIZE)


class LogTests(SynchronousTestCase):
    def test_order(self) -> None:
        log = ClusterLog()
        for uid in (1, 2, 3):
            self.assertTrue(log.insert(entry(uid)))
        self.assertEqual([found.uid for found in log], [3, 2, 1])
        self.assertEqual([found.uid for found in log.newest(2)], [3, 2])

    def test_duplicates(self) -> None:
        log = ClusterLog()
        self.assertTrue(log.insert(entry(5, 1000)))
        self.assertFalse(log.insert(entry(5, 1000)))
        self.assertFalse(log.insert(entry(4, 1000)))
        self.assertFalse(log.insert(entry(9, 999)))
        self.assertTrue(log.insert(entry(1, 1001)))
        self.assertTrue(log.insert(entry(1, 1, b"n2")))
        self.assertEqual(len(log), 3)

    def test_memory_is_what_the_ring_holds(self) -> None:
        """Through several wraps, the log in memory, and the ring that the insertions would have made, read alike."""
        chance = random.Random(3)
        log = ClusterLog()
        written: list[LogEntry] = []
        for uid in range(1, 4000):
            size = 4096 if chance.random() < 0.02 else chance.randrange(300)
            written.append(entry(uid, 1000 + uid // 50, message=b"x" * size))
            self.assertTrue(log.insert(written[-1]))
            if uid % 37 == 0:
                entries, defect = decode_ring(encode_ring(written))
                self.assertEqual(defect, "")
                self.assertEqual(entries, list(log))
        self.assertEqual(list(log), written[: -len(log) - 1 : -1])

    def test_state_is_sorted(self) -> None:
        log = ClusterLog()
        inserted = [entry(1, 1000, b"n2"), entry(1, 990, b"n1"), entry(2, 1000, b"n1")]
        for one in inserted:
            log.insert(one)
        entries, _defect = decode_ring(log.state())
        self.assertEqual(entries, sorted(inserted, key=lambda one: one.key, reverse=True))

    @given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5), st.sampled_from([b"n1", b"n2", b"n3"]))))
    def test_merge_has_every_entry_once(self, keys: list[tuple[int, int, bytes]]) -> None:
        entries = [entry(uid, time, node) for uid, time, node in keys]
        logs: list[list[LogEntry]] = [[], [], []]
        for number, one in enumerate(entries):
            logs[number % 3].append(one)
            logs[number % 2].append(one)
        merged = ClusterLog()
        merged.merge(logs)
        self.assertEqual([one.key for one in merged], sorted({one.key for one in entries}, reverse=True))
        for one in entries:
            self.assertFalse(merged.insert(one))

    def test_merge_of_own_and_others(self) -> None:
        own = ClusterLog()
        own.insert(entry(1, 1000))
        own.insert(entry(2, 1001))
        own.merge([[entry(1, 1000), entry(7, 900, b"n2")], None])
        self.assertEqual([(one.node, one.uid) for one in own], [(b"n1", 2), (b"n1", 1), (b"n2", 7)])
        self.assertTrue(own.insert(entry(3, 1001)))

    def test_merge_keeps_the_newest(self) -> None:
        old = [entry(uid, 1000 + uid, b"n1", b"x" * 300) for uid in range(400)][::-1]
        new = [entry(uid, 1200 + uid, b"n2", b"y" * 300) for uid in range(300)][::-1]
        merged = ClusterLog()
        merged.merge([old, new])
        size = sum(one.size for one in merged)
        self.assertGreaterEqual(size, MERGED_BYTES)
        self.assertLess(size - min(merged, key=lambda one: one.key).size, MERGED_BYTES)
        oldest = min(one.time for one in merged)
        dropped = {one.key for one in (*old, *new) if one.time > oldest} - {one.key for one in merged}
        self.assertEqual(dropped, set())
        self.assertEqual(decode_ring(merged.state()), (list(merged), ""))

    def test_ties_go_to_the_first_member(self) -> None:
        first = [entry(uid, 1000, b"n1", b"x" * 500) for uid in range(300)][::-1]
        second = [entry(uid, 1000, b"n2", b"y" * 500) for uid in range(300)][::-1]
        for logs, winner in (([first, second], b"n1"), ([second, first], b"n2")):
            merged = ClusterLog()
            merged.merge(logs)
            self.assertEqual({one.node for one in merged}, {winner})


class DocumentTests(SynchronousTestCase):
    def test_story(self) -> None:
        """The last ring of the story is the log in the recorded document."""
        last = [state for state in map(decode, recorded_story()) if isinstance(state, State)]
        log = ClusterLog()
        log.merge([decode_ring(state.payload)[0] for state in last[-3:]])
        recorded = (GOLDEN / "status.clusterlog.n1").read_bytes()
        self.assertEqual(log_document(log), repaired(recorded))

    def test_run(self) -> None:
        """The recorded document, which is not JSON, differs from ours only where it is not."""
        log = ClusterLog()
        for record in trace(RUN / "n2.3.trace.xz"):
            message = decode(record.data) if record.kind == "D" and record.group == KVSTORE else None
            if isinstance(message, State):
                log.merge([None, decode_ring(message.payload)[0]])
        recorded = (RUN / "clusterlog.n1.json").read_bytes()
        with self.assertRaises(json.JSONDecodeError):
            json.loads(recorded)
        ours = log_document(log)
        json.loads(ours)
        self.assertEqual(ours, repaired(recorded))
        self.assertEqual(len(json.loads(ours)["data"]), 50)

    def test_empty(self) -> None:
        self.assertEqual(log_document([]), b'{\n"data": [\n]\n}\n')

    def test_one_ident(self) -> None:
        entries = [LogEntry.written(uid, 1, b"n", b"root" if uid % 2 else b"x", b"t", b"m", 1, 6) for uid in range(9)]
        self.assertEqual([one["uid"] for one in json.loads(log_document(entries, 3, b"root"))["data"]], [1, 3, 5])
        self.assertEqual(log_document(entries, 3, b"nobody"), log_document([]))

    def test_repairs(self) -> None:
        for text, repaired_text in (
            (rb"\" \\ \u12aB", r"\" \\ \u12aB"),
            (rb"\n \u12 \ux \u123g", r"\\n \\u12 \\ux \\u123g"),
            (b'a"b', r"a\"b"),
            (b"\\", r"\\"),
            (b'\\\\"', '\\\\\\"'),
            (b"\t\n\x1f", r"\u0009\u000a\u001f"),
            ("é😀".encode(), "é😀"),
            (b"\xff\x80a", "??a"),
            (b"cut\0here", "cut"),
        ):
            self.assertEqual(json_text(text), repaired_text)

    @given(st.lists(st.tuples(*[st.binary(max_size=30)] * 4), max_size=4))
    def test_always_json(self, rows: list[tuple[bytes, bytes, bytes, bytes]]) -> None:
        entries = [
            LogEntry(1, 2, digest(node), digest(ident), 3, 255, node, ident, tag, message)
            for node, ident, tag, message in rows
        ]
        self.assertEqual(len(json.loads(log_document(entries))["data"]), len(rows))

    @given(st.text(alphabet='\\"u0aé\n#', max_size=30))
    def test_always_json_of_escapes(self, text: str) -> None:
        json.loads(f'"{json_text(text.encode())}"')


def recorded_story() -> list[bytes]:
    return [recorded.data for recorded in story() if recorded.group == KVSTORE]


def repaired(recorded: bytes) -> bytes:
    """A recorded document with its two kinds of defects repaired by hand."""
    return (
        recorded.replace(b"back\\slash", b"back\\\\slash")
        .replace(b'quote\\\\"d"}', b'quote\\\\\\"d"}')
        .replace(b"caf\\xe9", b"caf\\\\xe9")
    )
