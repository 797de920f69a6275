"""What the connections to corosync raise; importable without libraries of corosync."""

from __future__ import annotations


class CorosyncUnavailable(Exception):
    """Corosync does not run, does not answer, or has ended the connection; or its libraries are missing.

    The connection is useless from now on: open a new one, later.

    @ivar code: the C{cs_error_t}, or 0 when no call of a library failed.
    """

    def __init__(self, why: str, code: int = 0) -> None:
        super().__init__(why)
        self.code = code


class TryAgain(Exception):
    """Corosync takes no request now: its queues are full, or a new membership is being formed. Nothing was sent."""
