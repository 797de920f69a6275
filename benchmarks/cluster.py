"""Figures of a cluster of three on this machine, each node in namespaces of its own: C{tests/lab.py}."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.local import grown_tree, say
from benchmarks.mount import Figures
from pvecfs.store.sqlite import create
from pvecfs.tree.tree import Tree
from tests.lab import Lab, LabNode, eventually

READY_SECONDS = 60.0
MEASURING_SECONDS = 600


def why_not() -> str:
    """Why no cluster can be measured here; empty if one can."""
    if os.geteuid() != 0:
        return "namespaces need root"
    missing = [program for program in ("corosync", "ip", "unshare") if shutil.which(program) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


def measure(count: int, rounds: int) -> Figures:
    """The mount figures and messages per second on one node of three."""
    with Lab(3) as lab:
        nodes = _nodes(lab)
        for node in nodes:
            node.start_pvecfs()
        for node in nodes:
            eventually(_writable(node), READY_SECONDS, f"{node.name} to be writable")
        say("cluster of three: mount")
        return _inside(nodes[0], count, rounds)


def _nodes(lab: Lab) -> list[LabNode]:
    lab.start()
    lab.wait_quorate()
    return [lab.node(number) for number in (1, 2, 3)]


def _writable(node: LabNode) -> Callable[[], bool]:
    def writable() -> bool:
        probe = node.mount / f"probe-{node.name}"
        try:
            probe.mkdir()
            probe.rmdir()
        except OSError:
            return False
        return True

    return writable


def _inside(node: LabNode, count: int, rounds: int) -> Figures:
    """Run ourselves on the node, for the mount as it is there."""
    assert node.pvecfs is not None
    daemon = daemon_pid(node)
    arguments = ["-m", "benchmarks", "--only", "mount,messages", "--target", f"/etc/pve:{daemon}", "--json", "-"]
    process = node.python([*arguments, "--rounds", str(rounds), "--files", str(count)], stdout=subprocess.PIPE)
    output, _ = process.communicate(timeout=MEASURING_SECONDS)
    if process.returncode:
        raise RuntimeError(f"the measurement on {node.name} ended with {process.returncode}")
    figures: Figures = json.loads(output)["figures"]["pvecfs"]
    return figures


def daemon_pid(node: LabNode) -> int:
    """The pid of the daemon itself, below what enters the namespaces for it."""
    assert node.pvecfs is not None
    pid = node.pvecfs.pid
    while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        pid = int(children[0])
    return pid


def _provide(node: LabNode, tree: Tree) -> None:
    """Give C{node} a database. SQLite opens no path through /proc, by which we reach the node's files."""
    with tempfile.TemporaryDirectory() as directory:
        create(f"{directory}/config.db", tree)
        shutil.copy(f"{directory}/config.db", node.database)


def synchronisation(entries: int) -> Figures:
    """Seconds until a node that has nothing has all of C{entries}, from two that have them."""
    with Lab(3) as lab:
        nodes = _nodes(lab)
        tree = grown_tree(entries)
        delta = tree.imported(b"corosync.conf", nodes[0].corosync_conf.read_bytes(), int(time.time()))
        last = next(entry for entry in tree.entries() if entry.inode == entries - 1)
        path = tree.path_of(last.inode)
        assert path is not None
        for node in nodes[:2]:
            _provide(node, delta.tree)
            node.start_pvecfs(wait=READY_SECONDS)
        for node in nodes[:2]:
            eventually(_writable(node), READY_SECONDS, f"{node.name} to be writable")
        began = time.monotonic()
        nodes[2].start_pvecfs(wait=READY_SECONDS)
        seen = nodes[2].mount / os.fsdecode(path)
        eventually(seen.exists, READY_SECONDS, f"{path!r} on {nodes[2].name}")
        return {"a node with nothing has all, s": time.monotonic() - began}
