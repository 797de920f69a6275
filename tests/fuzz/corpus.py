"""Recorded input to start from, and what is done to it."""

from __future__ import annotations

import base64
import gzip
import json
from functools import cache
from pathlib import Path
from random import Random

from pvecfs.replica.messages import STATE_HEAD_SIZE, MessageType
from tests.wire import Header

GOLDEN = Path(__file__).parent.parent / "golden"

MOST_BYTES = 8192
"""Longer recorded input is left out of a corpus, where shorter of its kind is there: it only takes time."""

_NUMBERS = (0, 1, 2, 7, 8, 0x7F, 0x80, 0xFF, 0x100, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


@cache
def group_messages(group: str) -> tuple[bytes, ...]:
    """The recorded messages of C{group}, each once, times aside."""
    found: dict[bytes, bytes] = {}
    with gzip.open(GOLDEN / "cpg-messages.jsonl.gz", "rt") as lines:
        for line in lines:
            record = json.loads(line)
            if record["group"].rstrip("\0") == group:
                message = base64.b64decode(record["message"])
                found.setdefault(message[:8] + message[24:], message)
    return tuple(found.values())


@cache
def normal_payloads(group: str) -> tuple[bytes, ...]:
    """The payloads of the recorded NORMAL messages."""
    return tuple(message[24:] for message in group_messages(group) if Header.decode(message).type == MessageType.NORMAL)


@cache
def states(group: str) -> tuple[bytes, ...]:
    """The recorded states."""
    return _bodies(group, MessageType.STATE)


@cache
def entries() -> tuple[bytes, ...]:
    """The recorded UPDATE payloads."""
    return _bodies("pve_dcdb_v1", MessageType.UPDATE)


def _bodies(group: str, kind: MessageType) -> tuple[bytes, ...]:
    return tuple(message[STATE_HEAD_SIZE:] for message in group_messages(group) if Header.decode(message).type == kind)


@cache
def requests() -> tuple[tuple[int, bytes], ...]:
    """The recorded IPC requests: number, body."""
    found = []
    for pair in json.loads((GOLDEN / "ipc-pairs.json").read_text()):
        data = base64.b64decode(pair["request"])
        found.append((int.from_bytes(data[:4], "little", signed=True), data[16:]))
    return tuple(found)


def mutate(random: Random, data: bytes, others: tuple[bytes, ...]) -> bytes:
    """C{data} with one to four small faults; pieces may come from C{others}."""
    changed = bytearray(data)
    for _ in range(1 + int(random.random() * random.random() * 4)):
        draw = int(random.random() * 9)
        at = int(random.random() * (len(changed) + 1))
        if draw == 0:
            del changed[at:]
        elif draw == 1:
            changed += random.randbytes(1 + int(random.random() * 9))
        elif draw == 2 and at < len(changed):
            changed[at] ^= 1 << int(random.random() * 8)
        elif draw == 3 and at < len(changed):
            changed[at] = random.choice((0, 1, 4, 8, 0x2E, 0x2F, 0x7F, 0xFF))
        elif draw == 4 and len(changed) >= 4:
            at = int(random.random() * (len(changed) // 4)) * 4  # most numbers lie there
            changed[at : at + 4] = random.choice(_NUMBERS).to_bytes(4, "little")
        elif draw == 5 and len(changed) >= 4:
            at = int(random.random() * (len(changed) // 4)) * 4
            number = int.from_bytes(changed[at : at + 4], "little") + random.choice((-8, -1, 1, 8))
            changed[at : at + 4] = (number & 0xFFFFFFFF).to_bytes(4, "little")
        elif draw == 6:
            end = at + int(random.random() * 16)
            del changed[at:end]
        elif draw == 7:
            changed[at:at] = changed[at : at + int(random.random() * 32)]
        elif draw == 8 and others:
            other = random.choice(others)
            begin = int(random.random() * (len(other) + 1))
            changed[at:] = other[begin : begin + MOST_BYTES]
    return bytes(changed)
