"""The changes that a tree knows, as data.

Paths are bytes, components separated by ``/``, empty components ignored, no leading ``/`` needed. Writer (node id)
and time (seconds, the sender's clock) do not belong to the change: they come with its message.
"""

from __future__ import annotations

from pvecfs.tree.record import record


@record
class Create:
    """Make an empty file."""

    path: bytes


@record
class Write:
    """Write C{data} at C{offset} (bytes). With C{truncate} the file ends at offset + len(data) exactly."""

    path: bytes
    data: bytes
    offset: int = 0
    truncate: bool = False


@record
class Mkdir:
    """Make an empty directory."""

    path: bytes


@record
class Delete:
    """Remove a file or an empty directory."""

    path: bytes


@record
class Rename:
    """Give the entry at C{path} the path C{to}, replacing what is there."""

    path: bytes
    to: bytes


@record
class SetMtime:
    """Set the modification time (seconds since 1970, cut to u32). For locks: renew, or with 0 ask for release."""

    path: bytes
    mtime: int


Change = Create | Write | Mkdir | Delete | Rename | SetMtime
