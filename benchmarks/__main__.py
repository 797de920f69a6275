"""Measure everything, or parts of it, and print a table and, if asked for, JSON.

usage: python -m benchmarks [--only PARTS] [--against PATH[:PID]] [--baseline FILE] [--json FILE] ...

Parts: C{mount} (what programs do on a mount), C{messages} (changes per second from one, four and sixteen writers),
C{ipc} (libqb round trips), C{growth} (start, memory, synchronisation by the number of entries), C{cluster} (mount and
messages on one node of three, and a real synchronisation; root). With C{--against}, rounds on our mount and on the
other alternate, so that both have the machine in the same mood. With C{--baseline}, ratios to recorded figures are
given, scaled by what the calibration of both says of the machines; the file holds them under C{local} and
C{cluster of three}.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks import calibration, cluster, local, mount, report
from benchmarks.local import say
from benchmarks.mount import Figures, Target
from tests.daemons import DaemonProcess

PARTS = ("mount", "messages", "ipc", "growth")
OURS = "pvecfs"
CLUSTER = "cluster of three"


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=(__doc__ or "").partition("\n\n")[2], allow_abbrev=False
    )
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, of {', '.join(PARTS)} and cluster")
    parser.add_argument("--rounds", type=int, default=3, help="medians are over these")
    parser.add_argument("--best", action="store_true", help="of the rounds the best instead, for a machine in use")
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--entries", default="1000,10000,100000", help="sizes for growth")
    parser.add_argument("--target", help="PATH:PID of a mount to measure instead of a daemon of our own")
    parser.add_argument("--against", action="append", default=[], help="PATH or PATH:PID of another mount")
    parser.add_argument("--baseline", type=Path, help="recorded figures to compare with")
    parser.add_argument("--durability", default="process", help="as for the daemon: process or power")
    parser.add_argument("--json", help="where the result goes as JSON; - for standard output, without the table")
    options = parser.parse_args(arguments)
    options.only = options.only.split(",")
    unknown = set(options.only) - {*PARTS, "cluster"}
    if unknown:
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    if options.rounds < 1 or options.files < 50:
        parser.error("at least one round and 50 files, please")
    return options


def target(name: str, text: str) -> Target:
    path, separator, pid = text.rpartition(":")
    return Target(name, Path(path), int(pid)) if separator else Target(name, Path(text))


@contextmanager
def our_mount(options: argparse.Namespace) -> Iterator[tuple[Target, DaemonProcess | None]]:
    if options.target:
        yield target(OURS, options.target), None
        return
    with local.daemon("--durability", options.durability) as (process, _):
        yield Target(OURS, process.mount, process.pid), process


def on_mounts(options: argparse.Namespace, notes: list[str]) -> dict[str, Figures]:
    """The parts that need a mount, in alternating rounds over all mounts."""
    measures: list[Callable[[Target], Figures]] = []
    if "mount" in options.only:
        measures.append(lambda place: mount.measure(place, options.files))
    if "messages" in options.only:
        measures.append(local.messages)
    with our_mount(options) as (ours, process):
        targets = [ours, *(target(text, text) for text in options.against)]
        rounds: dict[str, list[Figures]] = {place.name: [] for place in targets}
        for number in range(options.rounds if measures else 0):
            for place in targets:
                say(f"{place.name}: round {number + 1} of {options.rounds}")
                figures: Figures = {}
                for measure in measures:
                    figures |= measure(place)
                rounds[place.name].append(figures | calibration.measure())
        choose = calibration.best if options.best else calibration.median
        result = {name: choose(figures) for name, figures in rounds.items() if figures}
        if "ipc" in options.only and process is not None:
            say("IPC")
            try:
                result.setdefault(OURS, {}).update(local.ipc_round_trips(process))
            except RuntimeError as reason:
                notes.append(f"IPC round trips are missing: {reason}")
    return result


def compared(figures: Figures, baseline: Figures) -> Figures:
    slowness = calibration.slowness(figures, baseline)
    ratios = {
        name: report.ratio(name, value, baseline[name], slowness) for name, value in figures.items() if name in baseline
    }
    return {name: value for name, value in ratios.items() if value is not None}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    notes: list[str] = []
    baseline = json.loads(options.baseline.read_text()) if options.baseline else {}
    text: list[str] = []
    result: dict[str, object] = {"notes": notes}

    def show(title: str, figures: dict[str, Figures], recorded: Figures | None, in_cluster: bool = False) -> None:
        ratios = {}
        if recorded and OURS in figures:
            ratios["baseline"] = compared(figures[OURS], recorded)
            slowness = calibration.slowness(figures[OURS], recorded)
            notes.append(f"{title}: this machine was {slowness:.2f} times as slow as the baseline's")
        for name in figures:
            if name != OURS:
                ratios[name] = compared(figures[OURS], figures[name])
        text.extend(["", title, *report.table(figures, ratios, in_cluster)])
        if ratios:
            result[f"{title}: ratios"] = ratios

    if {"mount", "messages", "ipc"} & set(options.only):
        figures = on_mounts(options, notes)
        result["figures"] = figures
        show("one node, microseconds if nothing else is said", figures, baseline.get("local"))
    if "growth" in options.only:
        growth = {}
        for entries in map(int, options.entries.split(",")):
            say(f"{entries} entries")
            growth[f"{entries} entries"] = local.growth(entries)
        result["growth"] = growth
        text.extend(["", "growth", *report.table(growth, {})])
    if "cluster" in options.only:
        reason = cluster.why_not()
        if reason:
            notes.append(f"the cluster is missing: {reason}")
        else:
            figures = {OURS: cluster.measure(options.files, options.rounds)}
            for entries in map(int, options.entries.split(",")):
                say(f"cluster of three: synchronisation of {entries} entries")
                for name, value in cluster.synchronisation(entries).items():
                    figures[OURS][f"{name} ({entries} entries)"] = value
            result["cluster"] = figures
            show(f"{CLUSTER}, one node of it", figures, baseline.get(CLUSTER), True)

    if options.json and options.json != "-":
        Path(options.json).parent.mkdir(parents=True, exist_ok=True)
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")
    if options.json == "-":
        print(json.dumps(result, indent=1))
    else:
        print("\n".join([*text, "", *notes]))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
