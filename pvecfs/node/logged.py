"""What the log says of this node's changes while it is verbose (the special file C{.debug})."""

from __future__ import annotations

from collections.abc import Callable
from errno import errorcode

from zope.interface import implementer

from pvecfs.interfaces import Acknowledge, IProposer, Meant
from pvecfs.log import logger
from pvecfs.node.view import NodeView
from pvecfs.tree.changes import Change, Rename, SetMtime, Write

_log = logger("changes")


@implementer(IProposer)
class LoggedProposer:
    """Hands changes on to C{proposer}, and logs how each ended, after its caller has been told, while C{view.debug}.
    Otherwise all that it costs is to look at that.

    @param monotonic: seconds that never jump.
    """

    def __init__(self, proposer: IProposer, view: NodeView, monotonic: Callable[[], float]) -> None:
        self._proposer = proposer
        self._view = view
        self._monotonic = monotonic

    def propose(self, change: Change, acknowledge: Acknowledge, meant: Meant | None = None) -> None:
        if self._view.debug:
            acknowledge = self._logged(change, acknowledge)
        self._proposer.propose(change, acknowledge, meant)

    def synchronise(self, acknowledge: Acknowledge) -> None:
        self._proposer.synchronise(acknowledge)

    def _logged(self, change: Change, acknowledge: Acknowledge) -> Acknowledge:
        began = self._monotonic()

        def acknowledged(outcome: int) -> None:
            took = self._monotonic() - began
            acknowledge(outcome)
            _log.debug(
                "{change}: {outcome}, {milliseconds:.1f} ms",
                change=_described(change),
                outcome=outcome if outcome >= 0 else errorcode.get(-outcome, outcome),
                milliseconds=took * 1000,
            )

        return acknowledged


def _described(change: Change) -> str:
    """The kind of C{change} and its path, and what else there is to it but data."""
    text = f"{type(change).__name__} {_shown(change.path)}"
    if isinstance(change, Write):
        text += f", {len(change.data)} bytes at {change.offset}" + (", where the file ends" if change.truncate else "")
    elif isinstance(change, Rename):
        text += f" to {_shown(change.to)}"
    elif isinstance(change, SetMtime):
        text += f" {change.mtime}"
    return text


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
