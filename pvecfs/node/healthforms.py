"""The document of a node's health in other forms: lines for people, and metrics. Pure functions of it.

They take the document as JSON gives it, since it comes from another process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

Document = dict[str, Any]
"""What L{pvecfs.node.health.document} made."""

Labels = dict[str, object]
Sample = tuple[Labels, float]

MIB = 1024 * 1024


# For people


def text(document: Document) -> str:
    """Lines for people: healthy, or each problem, first."""
    problems = document["problems"]
    first = [f"problem: {problem}" for problem in problems] or ["healthy"]
    rows = list(_rows(document))
    width = max(len(name) for name, _ in rows)
    return "\n".join([*first, *(f"{name:<{width}}  {value}" for name, value in rows)]) + "\n"


def _rows(document: Document) -> Iterable[tuple[str, str]]:
    yield (
        "node",
        f"{document['node']}, pid {document['pid']}, pvecfs {document['version']}, "
        f"up for {duration(document['uptime_seconds'])}",
    )
    quorum = "quorate" if document["quorate"] else "not quorate"
    writable = "writable" if document["writable"] else f"read-only ({document['unwritable_because']})"
    yield "mode", f"{document['mode']}, {quorum}, {writable}"
    for group in document["groups"]:
        yield group["name"], f"{group['mode']} for {duration(group['mode_seconds'])}"
        if group["members"]:
            yield "  members", ", ".join(map(_member, group["members"]))
        if group["waits_for"]:
            yield "  waits for", ", ".join(map(_member, group["waits_for"]))
        if group["absent"]:
            yield "  absent", ", ".join(group["absent"])
        if group["left_because"]:
            yield "  left", group["left_because"]
        if group["unsent"]["count"]:
            yield "  unsent", _waits(group["unsent"], "message")
    yield "waiting", _waits(document["requests"], "request")
    if document["groups"]:
        yield "  for cluster", _waits(document["changes"], "change")
    tree = document["tree"]
    yield (
        "tree",
        f"version {tree['version']}, {tree['entries']} of {tree['max_entries']} entries, "
        f"{tree['bytes'] / MIB:.1f} of {tree['max_bytes'] / MIB:.0f} MiB",
    )
    database = document["database"]
    refuses = f", refuses changes ({database['refuses']})" if database["refuses"] else ""
    yield (
        "database",
        f"{database['path']}, durability {database['durability']}, log {database['log_bytes'] / MIB:.1f} MiB{refuses}",
    )
    yield "mounted at", document["mountpoint"]
    yield "IPC clients", str(document["ipc_clients"])


def _member(member: Document) -> str:
    number = f"{member['node_id']}/{member['pid']}"
    notes = [] if member["synced"] else ["not synced"]
    if not member["in_quorum"]:
        notes.append("not in the quorum membership")
    named = f"{member['name']} {number}" if member["name"] else number
    return f"{named} ({', '.join(notes)})" if notes else named


def _waits(waits: Document, what: str) -> str:
    if not waits["count"]:
        return f"no {what}"
    plural = "" if waits["count"] == 1 else "s"
    path = f": {waits['oldest_path']}" if waits["oldest_path"] else ""
    return f"{waits['count']} {what}{plural}, the oldest for {duration(waits['oldest_seconds'])}{path}"


def duration(seconds: float) -> str:
    """C{seconds} in the two largest units, for people."""
    rest = int(seconds)
    if rest < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    parts: list[str] = []
    for name, size in units:
        number, rest = divmod(rest, size)
        if number or parts:
            parts.append(f"{number} {name}")
    return " ".join(parts[:2])


# Metrics


class Metric(NamedTuple):
    """A metric, without the prefix that all names have.

    @ivar samples: takes the document.
    """

    name: str
    kind: str
    help: str
    samples: Callable[[Document], Sequence[Sample]]


def _number(*keys: str) -> Callable[[Document], Sequence[Sample]]:
    """One sample: what is found at C{keys}."""

    def samples(document: Document) -> Sequence[Sample]:
        value: Any = document
        for key in keys:
            value = value[key]
        return [({}, value)]

    return samples


def _each_group(value: Callable[[Document], float]) -> Callable[[Document], Sequence[Sample]]:
    """One sample for each group."""
    return lambda document: [({"group": group["name"]}, value(group)) for group in document["groups"]]


def _info(document: Document) -> Sequence[Sample]:
    return [({name: document[name] for name in ("node", "version", "mode")}, 1)]


def _modes(document: Document) -> Sequence[Sample]:
    return [({"group": group["name"], "mode": group["mode"]}, 1) for group in document["groups"]]


def _waits_for(document: Document) -> Sequence[Sample]:
    return [
        ({"group": group["name"], "node_id": member["node_id"], "pid": member["pid"], "name": member["name"]}, 1)
        for group in document["groups"]
        for member in group["waits_for"]
    ]


UP = Metric("up", "gauge", "1: the daemon answers.", lambda document: [({}, 1)])

METRICS = (
    UP,
    Metric("info", "gauge", "What runs here.", _info),
    Metric("healthy", "gauge", "1: there are no problems.", lambda document: [({}, not document["problems"])]),
    Metric("problems", "gauge", "Number of problems.", lambda document: [({}, len(document["problems"]))]),
    Metric("uptime_seconds", "gauge", "Seconds since the daemon started.", _number("uptime_seconds")),
    Metric("quorate", "gauge", "1: this partition may write.", _number("quorate")),
    Metric("writable", "gauge", "1: changes of this node are carried out now.", _number("writable")),
    Metric("tree_version", "gauge", "Version of the tree.", _number("tree", "version")),
    Metric("tree_entries", "gauge", "Files and directories.", _number("tree", "entries")),
    Metric("tree_max_entries", "gauge", "Limit of files and directories.", _number("tree", "max_entries")),
    Metric("tree_bytes", "gauge", "Bytes of all files.", _number("tree", "bytes")),
    Metric("tree_max_bytes", "gauge", "Limit of the bytes of all files.", _number("tree", "max_bytes")),
    Metric(
        "database_writable",
        "gauge",
        "1: the database takes changes.",
        lambda document: [({}, not document["database"]["refuses"])],
    ),
    Metric("database_log_bytes", "gauge", "Bytes of the database's log, about.", _number("database", "log_bytes")),
    Metric(
        "database_refusals_total",
        "counter",
        "Times that the database began to refuse changes.",
        _number("database_refusals"),
    ),
    Metric("ipc_clients", "gauge", "Local programs that are connected.", _number("ipc_clients")),
    Metric("requests_waiting", "gauge", "Requests that programs at the mount wait for.", _number("requests", "count")),
    Metric("requests_oldest_seconds", "gauge", "Age of the oldest of them.", _number("requests", "oldest_seconds")),
    Metric("changes_waiting", "gauge", "Changes that wait for the cluster.", _number("changes", "count")),
    Metric("changes_oldest_seconds", "gauge", "Age of the oldest of them.", _number("changes", "oldest_seconds")),
    Metric("changes_total", "counter", "Changes that were submitted on this node.", _number("proposed")),
    Metric("changes_refused_total", "counter", "Those that were refused where submitted.", _number("refused")),
    Metric("group_mode", "gauge", "1 for the mode that the group's member is in.", _modes),
    Metric(
        "group_synced", "gauge", "1: the data is the group's.", _each_group(lambda group: group["mode"] == "synced")
    ),
    Metric("group_mode_seconds", "gauge", "Seconds in this mode.", _each_group(lambda group: group["mode_seconds"])),
    Metric(
        "group_unsynced_seconds",
        "gauge",
        "Seconds without being synced.",
        _each_group(lambda group: group["unsynced_seconds"]),
    ),
    Metric("group_members", "gauge", "Members of the group.", _each_group(lambda group: len(group["members"]))),
    Metric("group_waits_for", "gauge", "1 for each member that a synchronisation waits for.", _waits_for),
    Metric(
        "group_unsent_messages",
        "gauge",
        "Messages that corosync did not take yet.",
        _each_group(lambda group: group["unsent"]["count"]),
    ),
    Metric(
        "group_messages_delivered_total",
        "counter",
        "Messages that were delivered.",
        _each_group(lambda group: group["delivered"]),
    ),
    Metric(
        "group_synchronisations_total",
        "counter",
        "Synchronisations that began.",
        _each_group(lambda group: group["synchronisations"]),
    ),
    Metric(
        "group_departures_total",
        "counter",
        "Times that this node left the group as something was wrong, connections that corosync ended not counted.",
        _each_group(lambda group: group["departures"]),
    ),
)


def metrics(document: Document) -> str:
    """The numbers in the text exposition format of Prometheus. A metric without samples is left out."""
    return "".join(_exposed(metric, samples) for metric in METRICS if (samples := metric.samples(document)))


def no_metrics() -> str:
    """The numbers of a node whose daemon does not answer."""
    return _exposed(UP, [({}, 0)])


def _exposed(metric: Metric, samples: Sequence[Sample]) -> str:
    name = f"pvecfs_{metric.name}"
    lines = [f"# HELP {name} {metric.help}", f"# TYPE {name} {metric.kind}"]
    lines += [f"{name}{_labels(labels)} {float(value):.15g}" for labels, value in samples]
    return "\n".join(lines) + "\n"


def _labels(labels: Labels) -> str:
    pairs = ",".join(f'{name}="{_label_value(str(value))}"' for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""


def _label_value(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
