"""What clients under chaos wrote down, and whether a correct cluster could have answered so.

Every check is sound: what it reports cannot happen on a cluster that keeps its promises. An operation whose outcome is
unknown may have happened or not: for files and exclusive locks at any time within L{LATE} after it ended, for guests
and late unlocks until its node was well again (L{_latest}). So may one that was acknowledged on a node
in a I{doubtful} time: while its corosync was cut off, stopped or killed. Corosync delivers a message on the node that
sends it before others have it, so a node that is cut off in this moment acknowledges what the majority never hears of;
no daemon behind corosync can know. (Such a node is not on the quorate side, it only has not noticed yet.)
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from tests.chaos_client import parsed

LATE = 60.0
"""Seconds after the end of an operation of unknown outcome within which it may still take effect."""

SETTLED = 3.0
"""Seconds after the end of what is wrong with a node within which its messages get out."""

NOTHING_HAPPENED = frozenset({"no", "GONE", "ENOENT", "EEXIST", "ENOTDIR"})
"""Results that say that the operation changed nothing (of those that are one change)."""


@dataclass(frozen=True)
class Window:
    """A time in which something was wrong with a node. @ivar kind: see L{tests.chaos}."""

    node: str
    kind: str
    begin: float
    end: float


DOUBTFUL_KINDS = frozenset({"cut", "freeze corosync", "kill corosync", "stop corosync", "cut all"})
STANDSTILL_KINDS = frozenset({"freeze daemon"})


@dataclass
class Operation:
    """One operation of one client. C{end} is infinite when it never came back."""

    client: str
    node: str
    op: str
    args: list[Any]
    begin: float
    end: float = inf
    result: str = "lost"
    doubtful: bool = False

    @property
    def certain(self) -> bool:
        """Acknowledged, on a node that was one of the majority."""
        return self.result == "ok" and not self.doubtful

    @property
    def possible(self) -> bool:
        """Whether it may have happened."""
        return self.result not in NOTHING_HAPPENED

    def __str__(self) -> str:
        return f"{self.begin:.3f}..{self.end:.3f} {self.client}: {self.op} {self.args} {self.result}"


@dataclass
class Verdict:
    """@ivar violations: what a correct cluster cannot do, one line each. @ivar figures: numbers for the report."""

    violations: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


def load(paths: Iterable[Path], windows: Sequence[Window]) -> list[Operation]:
    """The operations recorded in C{paths}, those of each client in order."""
    operations: list[Operation] = []
    for path in sorted(paths):
        client = node = ""
        current: dict[int, Operation] = {}
        for line in path.read_text().splitlines():
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line of a client that was killed
            if "client" in event:
                client, node = event["client"], event["node"]
            elif "begin" in event:
                current[event["id"]] = Operation(client, node, event["op"], event["args"], event["begin"])
                operations.append(current[event["id"]])
            elif "end" in event:
                operation = current[event["id"]]
                operation.end, operation.result = event["end"], event["result"]
    doubtful = [window for window in windows if window.kind in DOUBTFUL_KINDS]
    for operation in operations:
        operation.doubtful = any(
            window.node == operation.node and operation.begin < window.end and operation.end > window.begin
            for window in doubtful
        )
    return operations


def _latest(operation: Operation, windows: Sequence[Window]) -> float:
    """When an operation can have taken effect at the latest: if that is not known, what was wrong with its node must
    be over before the message gets out. A window ends when all nodes write and see each other's writes."""
    if operation.certain:
        return operation.end
    over = [each.end for each in windows if each.node == operation.node and each.begin < operation.end < each.end]
    return max(over, default=operation.end) + SETTLED


def judge(
    operations: Sequence[Operation],
    files: Mapping[str, bytes],
    guests: Mapping[int, Sequence[str]],
    windows: Sequence[Window],
    lock_timeout: float,
    longest: float,
) -> Verdict:
    """@param files: content of all files below C{chaos} in the end.
    @param guests: the paths of all configs in the end, by VMID.
    @param longest: seconds that an operation may take.
    """
    verdict = Verdict()
    _count(operations, verdict)
    _check_times(operations, windows, longest, verdict)
    _check_contents(operations, files, verdict)
    _check_files(operations, files, verdict)
    _check_guests(operations, guests, windows, verdict)
    _check_locks(operations, lock_timeout, windows, verdict)
    return verdict


def _count(operations: Sequence[Operation], verdict: Verdict) -> None:
    results: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for operation in operations:
        known = operation.op in ("read", "look") and operation.result.isupper() is False
        results[operation.op]["ok" if known else operation.result] += 1
    verdict.figures["operations"] = len(operations)
    verdict.figures["results"] = {op: dict(sorted(counts.items())) for op, counts in sorted(results.items())}
    changes = [each for each in operations if each.op not in ("read", "look", "document")]
    verdict.figures["acknowledged changes"] = sum(each.result == "ok" for each in changes)
    verdict.figures["of these on a node being cut off"] = sum(each.result == "ok" and each.doubtful for each in changes)
    times = sorted(each.end - each.begin for each in changes if each.result == "ok")
    if times:
        verdict.figures["seconds of an acknowledged change"] = {
            "median": round(times[len(times) // 2], 4),
            "99%": round(times[len(times) * 99 // 100], 4),
            "longest": round(times[-1], 3),
        }


def _check_times(operations: Sequence[Operation], windows: Sequence[Window], longest: float, verdict: Verdict) -> None:
    """Nothing takes longer than C{longest}, the time in which the node's own daemon was stopped aside."""
    standstills = [window for window in windows if window.kind in STANDSTILL_KINDS]
    slowest = 0.0
    for operation in operations:
        took = operation.end - operation.begin
        for window in standstills:
            if window.node == operation.node:
                took -= max(0.0, min(operation.end, window.end) - max(operation.begin, window.begin))
        slowest = max(slowest, took)
        if took > longest:
            verdict.violations.append(f"took {took:.1f} s: {operation}")
    verdict.figures["longest operation, seconds"] = round(slowest, 3)


def _check_contents(operations: Sequence[Operation], files: Mapping[str, bytes], verdict: Verdict) -> None:
    """No reader, of files and documents, sees anything in part."""
    for operation in operations:
        if operation.result == "TORN":
            verdict.violations.append(f"seen in part: {operation}")
    for key, content in files.items():
        if not key.endswith(".tmp") and content and parsed(content) is None:
            verdict.violations.append(f"in part in the end: {key}")


def _check_files(operations: Sequence[Operation], files: Mapping[str, bytes], verdict: Verdict) -> None:
    """Each file has one writer, on one node: it reads what it wrote, and in the end that is there."""
    histories: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        if operation.op in ("put", "overwrite", "delete", "read"):
            histories[operation.args[0]].append(operation)
    lost_in_doubt = 0
    for key, history in sorted(histories.items()):
        states: set[str] = {"none"}
        strict: set[str] = {"none"}  # as if every acknowledgement counted
        last = ""
        for operation in history:
            if operation.op == "read":
                seen = operation.result
                if seen.isupper() or operation.doubtful or seen == "lost":
                    continue
                if seen not in states:
                    verdict.violations.append(f"{operation}, possible: {sorted(states)}; before that: {last}")
                    states.add(seen)
            else:
                states = _after(operation, states, operation.certain)
                strict = _after(operation, strict, operation.result == "ok")
            last = str(operation)
        found = "none"
        if key in files:
            content = parsed(files[key])
            found = f"{content[0]} {content[1]}" if content else "empty"
        if found not in states:
            verdict.violations.append(f"{key} is {found!r} in the end, possible: {sorted(states)}; last: {last}")
        elif found not in strict:
            lost_in_doubt += 1
    verdict.figures["files checked"] = len(histories)
    verdict.figures["files that lost what a node acknowledged while being cut off"] = lost_in_doubt


def _after(operation: Operation, states: set[str], certain: bool) -> set[str]:
    if operation.op == "delete":
        if operation.result in NOTHING_HAPPENED:
            return states
        return {"none"} if certain else states | {"none"}
    written = f"{operation.client} {operation.args[1]}"
    if operation.op == "put":
        if operation.result == "no":
            return states
        return {written} if certain else states | {written}
    # Two changes, so that the first may have happened without the second; whatever the result says.
    return {written} if certain else states | {"empty", written}


def _check_guests(
    operations: Sequence[Operation],
    guests: Mapping[int, Sequence[str]],
    windows: Sequence[Window],
    verdict: Verdict,
) -> None:
    """For each VMID there is an order of what succeeded in which there is never a second config of it."""
    histories: dict[int, list[Operation]] = defaultdict(list)
    for operation in operations:
        if operation.op in ("create", "move", "destroy") and operation.possible:
            histories[operation.args[0]].append(operation)
    for vmid, paths in guests.items():
        if len(paths) > 1:
            verdict.violations.append(f"VMID {vmid} twice in the end: {list(paths)}")
    for vmid, history in sorted(histories.items()):
        problem = order(history, next(iter(guests.get(vmid, ())), None), windows)
        if problem:
            verdict.violations.append(f"VMID {vmid}: {problem}")
    verdict.figures["guests checked"] = len(histories)
    verdict.figures["changes of guests in order"] = sum(map(len, histories.values()))


def _guest_after(operation: Operation, path: str | None) -> Any:
    """Where the config is after C{operation}, C{False} if it cannot succeed, C{None}: nowhere."""
    if operation.op == "create":
        return operation.args[1] if path is None else False
    if operation.op == "move" and path == operation.args[2]:
        # Another node has moved it there a moment ago. A kernel that has not heard of it yet finds one inode
        # under both names, and says what rename(2) says of that: nothing to do.
        return path
    if path != operation.args[1]:
        return False
    return operation.args[2] if operation.op == "move" else None


_State = tuple[str | None, frozenset[int], frozenset[int]]
"""Where the config is; which pending operations are done, of those that are certain, and of the others."""


class _States:
    """States, without those that another one makes superfluous: an operation that need not have happened and that was
    not needed to get somewhere leaves more possibilities open than if it had happened."""

    def __init__(self, states: Iterable[_State] = ()) -> None:
        self._least: dict[tuple[str | None, frozenset[int]], list[frozenset[int]]] = defaultdict(list)
        for state in states:
            self.add(state)

    def __iter__(self) -> Iterator[_State]:
        return ((path, done, used) for (path, done), least in self._least.items() for used in least)

    def add(self, state: _State) -> bool:
        """@return: whether it is new."""
        path, done, used = state
        least = self._least[path, done]
        if any(other <= used for other in least):
            return False
        least[:] = [other for other in least if not used < other] + [used]
        return True


def order(history: Sequence[Operation], final: str | None, windows: Sequence[Window] = ()) -> str:
    """Look for an order of C{history} (creates, moves and destructions of one VMID), each between its begin and its
    end, that leads from no config to C{final}. @return: empty, or where there is none any more.

    All orders are followed at once.
    """
    events: list[tuple[float, int, int]] = []
    for number, operation in enumerate(history):
        events.append((operation.begin, 0, number))
        events.append((_latest(operation, windows), 1, number))
    states = _States([(None, frozenset(), frozenset())])
    pending: set[int] = set()

    def reached(states: _States) -> _States:
        found, todo = _States(states), deque(states)
        while todo:
            path, done, used = todo.popleft()
            alike: dict[tuple[object, ...], int] = {}
            for number in pending - done - used:
                operation = history[number]
                kind = (number,) if operation.certain else (operation.op, *operation.args)
                other = alike.get(kind)
                # Of those that do the same and need not have happened, the one whose time is over first will do.
                if other is None or operation.end < history[other].end:
                    alike[kind] = number
            for number in alike.values():
                after = _guest_after(history[number], path)
                if after is False:
                    continue
                mark = frozenset((number,))
                state = (after, done | mark, used) if history[number].certain else (after, done, used | mark)
                if found.add(state):
                    todo.append(state)
        return found

    for _, ends, number in sorted(events):
        if not ends:
            pending.add(number)
            continue
        before, mark = states, {number}
        if history[number].certain:
            after = [state for state in reached(states) if number in state[1]]
            states = _States((path, done - mark, used) for path, done, used in after)
            if not after:
                places = sorted({str(path) for path, _, _ in before})
                return f"{history[number]} cannot have succeeded; before it the config was at one of {places}"
        else:
            states = _States((path, done, used - mark) for path, done, used in reached(states))
        pending.discard(number)
    if final not in {path for path, _, _ in states}:
        return f"at {final} in the end, possible: {sorted({str(path) for path, _, _ in states})}"
    return ""


@dataclass
class _Hold:
    """A client took a lock, perhaps, and gave it back, perhaps."""

    lock: Operation
    unlock: Operation

    def meets(self, unlock: Operation, latest: float) -> bool:
        """Whether C{unlock}, another client's, in effect by C{latest}, may have removed what C{self.lock} made."""
        return unlock.client != self.lock.client and unlock.begin < self.unlock.end and latest > self.lock.begin


def _check_locks(
    operations: Sequence[Operation], lock_timeout: float, windows: Sequence[Window], verdict: Verdict
) -> None:
    """Nobody gets a lock before its time is over or its holder gives it back."""
    taken: dict[str, list[Operation]] = defaultdict(list)
    given: dict[str, list[Operation]] = defaultdict(list)
    holds: dict[str, list[_Hold]] = defaultdict(list)
    newest: dict[tuple[str, str], Operation] = {}
    for operation in operations:
        if operation.op == "lock" and operation.possible:
            newest[operation.client, operation.args[0]] = operation
            if operation.certain:
                taken[operation.args[0]].append(operation)
        elif operation.op == "unlock":
            mine = newest.get((operation.client, operation.args[0]))
            if mine is not None:
                holds[operation.args[0]].append(_Hold(mine, operation))
            if operation.possible:
                given[operation.args[0]].append(operation)
    for each in holds.values():
        foreign = _foreign_unlocks(each, lock_timeout, windows)
        for hold in each:
            lost = hold.unlock.result == "GONE" and hold.lock.certain and not hold.unlock.doubtful
            in_time = hold.unlock.end < hold.lock.begin + lock_timeout
            if lost and in_time and not any(hold.meets(*unlock) for unlock in foreign):
                verdict.violations.append(f"a lock lost before its time: {hold.lock}, {hold.unlock}")
    for name, holders in sorted(taken.items()):
        holders.sort(key=lambda each: each.end)
        for position, holder in enumerate(holders):
            for other in holders[position + 1 :]:
                if other.end >= holder.begin + lock_timeout:
                    break
                if not any(
                    each.begin < other.end and (each.end if each.certain else each.end + LATE) > holder.begin
                    for each in given[name]
                ):
                    verdict.violations.append(f"a lock held by two: {holder} and {other}")
    verdict.figures["locks taken"] = sum(map(len, taken.values()))


def _foreign_unlocks(
    holds: Sequence[_Hold], lock_timeout: float, windows: Sequence[Window]
) -> list[tuple[Operation, float]]:
    """The unlocks that may have removed somebody else's lock, and when at the latest.

    An unlock is a deletion by name. If it takes effect when its lock's time is over (its node was frozen, or cut off
    with the message on its way), it removes the lock of whoever has taken it since. That one does not know, and its
    own unlock in turn may remove the next one's.
    """
    unlocks = [(hold, _latest(hold.unlock, windows)) for hold in holds if hold.unlock.possible]
    foreign = [(hold.unlock, latest) for hold, latest in unlocks if latest >= hold.lock.begin + lock_timeout]
    for unlock in foreign:  # grows
        new = [(hold.unlock, latest) for hold, latest in unlocks if hold.meets(*unlock)]
        foreign += [each for each in new if each not in foreign]
    return foreign
