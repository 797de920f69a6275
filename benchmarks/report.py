"""Results as a table, and compared with others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.calibration import PREFIX
from benchmarks.mount import Figures

UNSCALED = ("disk bytes", "RSS KiB")
"""Ends of names whose figures do not depend on the machine's speed."""

LIMITS = {
    "stat, 2 s later": 0.15,
    "open+read+close, 2 s later": 0.6,
    "open+read+close, warm": 0.6,
    "readers x4 ops/s": 1.0,
    "read 1MiB": 0.3,
    "list 500": 1.5,
    "statfs": 1.5,
    "read .version": 1.5,
    "create+write 2KiB": 1.5,
    "overwrite 2KiB": 1.5,
    "replace by rename 2KiB": 1.5,
    "replace by rename 100B, same file": 1.5,
    "mkdir+rmdir": 1.5,
    "unlink": 1.5,
    "write 1MiB": 0.1,
    "write 1MiB disk bytes": 0.25,
    "create+write 2KiB disk bytes": 0.5,
    "overwrite 2KiB disk bytes": 0.5,
    "replace by rename 2KiB disk bytes": 0.5,
    "replace by rename 100B, same file disk bytes": 0.5,
    "append 512B x 200 disk bytes": 0.5,
    "mkdir+rmdir disk bytes": 0.5,
    "unlink disk bytes": 0.5,
    "writers x4 ops/s": 0.7,
    "daemon RSS KiB": 3.0,
}
"""What the ratio to the reference shall be in local mode: at most; of operations per second, at least."""

IN_CLUSTER = {
    "create+write 2KiB": 1.0,
    "overwrite 2KiB": 1.0,
    "replace by rename 2KiB": 1.0,
    "replace by rename 100B, same file": 1.0,
    "mkdir+rmdir": 1.0,
    "unlink": 1.0,
    "writers x4 ops/s": 1.2,
}
"""Where a cluster's limits differ."""


def limit(name: str, in_cluster: bool) -> float | None:
    if in_cluster and name in IN_CLUSTER:
        return IN_CLUSTER[name]
    return LIMITS.get(name)


def is_rate(name: str) -> bool:
    return name.endswith("ops/s")


def ratio(name: str, value: float, reference: float, slowness: float) -> float | None:
    """C{value} over C{reference}, as if both were of one machine.

    @param slowness: how many times slower the machine of C{value} is.
    """
    if not reference or name.startswith(PREFIX):
        return None
    plain = value / reference
    if name.endswith(UNSCALED):
        return plain
    return plain * slowness if is_rate(name) else plain / slowness


def meets(name: str, value: float, wanted: float) -> bool:
    return value >= wanted if is_rate(name) else value <= wanted


def table(
    figures: Mapping[str, Figures], ratios: Mapping[str, Mapping[str, float]], in_cluster: bool = False
) -> list[str]:
    """Lines of a table, a row for each name, a column for each target, then the ratios with their limits."""
    names = dict.fromkeys(name for column in figures.values() for name in column)
    heads = [*figures, *(f"ratio to {title}" for title in ratios), *(["limit"] if ratios else [])]
    widths = [max(14, len(head) + 2) for head in heads]
    lines = ["".join([f"{'':46}", *(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True))])]
    for name in names:
        cells = [_number(column.get(name)) for column in figures.values()]
        cells += [_number(column.get(name)) for column in ratios.values()]
        if ratios:
            cells.append(_verdict(name, [column.get(name) for column in ratios.values()], in_cluster))
        lines.append("".join([f"{name:46}", *(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True))]).rstrip())
    return lines


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:.0f}"


def _verdict(name: str, ratios: Sequence[float | None], in_cluster: bool) -> str:
    wanted = limit(name, in_cluster)
    if wanted is None or not ratios or ratios[-1] is None:
        return ""
    return f"{wanted:g} {'ok' if meets(name, ratios[-1], wanted) else 'MISSED'}"
