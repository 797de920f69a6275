"""Text as it stands in JSON documents, which are put together by hand since their bytes are laid down."""

from __future__ import annotations

import re

_ESCAPED = re.compile(rb'[\x00-\x1f\x7f"\\]')


def escaped(text: bytes) -> bytes:
    """C{text} for between the quotes of a JSON string; it is JSON if C{text} is UTF-8."""
    return _ESCAPED.sub(_escape, text)


def _escape(match: re.Match[bytes]) -> bytes:
    byte = match[0]
    return b"\\" + byte if byte in b'"\\' else b"\\u%04x" % byte[0]
