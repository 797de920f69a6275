"""Text as it stands in JSON documents, put together by hand since their bytes are laid down; and text for people."""

from __future__ import annotations

import os
import re

_ESCAPED = re.compile(rb'[\x00-\x1f"\\]')
_ESCAPED_WITH_DEL = re.compile(rb'[\x00-\x1f\x7f"\\]')


def escaped(text: bytes, with_del: bool) -> bytes:
    """C{text} for between the quotes of a JSON string; it is JSON if C{text} is UTF-8.

    @param with_del: escape DEL (0x7f) too, which JSON does not ask for: answers over IPC do, the special files do not.
    """
    return (_ESCAPED_WITH_DEL if with_del else _ESCAPED).sub(_escape, text)


def _escape(match: re.Match[bytes]) -> bytes:
    byte = match[0]
    return b"\\" + byte if byte in b'"\\' else b"\\u%04x" % byte[0]


def printable(name: bytes) -> str:
    """A name or path for people: one line, and only what can be printed."""
    return "".join(
        character if character.isprintable() and character != "\\" else _visible(character)
        for character in os.fsdecode(name)
    )


def _visible(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character)) if character != "\\" else "\\\\"
