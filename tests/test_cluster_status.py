"""A cluster of three real nodes: status values, the cluster log, the documents, and corosync.conf on the hosts."""

from __future__ import annotations

import json
import os
import re
from typing import Any

from tests.cluster_support import (
    PATIENCE,
    ClusterCase,
    LabNode,
    document,
    eventually,
    in_step,
    quorate,
    read,
)
from tests.needs import needs_corosync, needs_fuse, needs_libqb

VERSION = re.compile(r"config_version\s*:\s*(\d+)")


@needs_corosync()
@needs_fuse()
@needs_libqb()
class StatusTests(ClusterCase):
    def entries(self, node: LabNode, tag: str) -> list[tuple[str, str]]:
        """(node, message) of the entries of C{tag} in the node's cluster log, newest first; it must be JSON."""
        log: Any = document(node, ".clusterlog")
        return [(entry["node"], entry["msg"]) for entry in log["data"] if entry["tag"] == tag]

    def put(self, node: LabNode, tag: str, *messages: str) -> None:
        """Log C{messages} on the node."""
        calls = [f"log(6, b'root', {tag.encode()!r}, {message.encode()!r})" for message in messages]
        self.assertEqual(self.service(node, *calls), [None] * len(calls))

    def test_cluster_log(self) -> None:
        """Entries of all nodes are on all nodes, and through a partition, merged, each once."""
        for node in self.nodes:
            self.put(node, "before", f"of {node.name}", 'a "quoted" \\ word', "caf\u00e9\nand more")
        for node in self.nodes:
            eventually(lambda n=node: len(self.entries(n, "before")) == 9, 10, "nine entries")  # type: ignore[misc]
        cut = self.node(3)
        cut.cut()
        eventually(lambda: not quorate(cut), 20, "no quorum")
        in_step(self.nodes[:2])
        for node in self.nodes:
            self.put(node, "while", f"of {node.name}", f"more of {node.name}")
        eventually(lambda: len(self.entries(self.node(1), "while")) == 4, 10, "the majority's")
        self.assertEqual({name for name, _ in self.entries(cut, "while")}, {"n3"})
        cut.heal()
        self.lab.wait_quorate(PATIENCE)
        in_step(self.nodes)
        for node in self.nodes:
            eventually(lambda n=node: len(self.entries(n, "while")) == 6, 20, "merged")  # type: ignore[misc]
            self.put(node, "after", f"of {node.name}")
        for node in self.nodes:
            eventually(lambda n=node: len(self.entries(n, "after")) == 3, 10, "entries since")  # type: ignore[misc]
            for tag, count in (("before", 9), ("while", 6), ("after", 3)):
                entries = self.entries(node, tag)
                self.assertEqual(len(entries), count)
                self.assertEqual(len(set(entries)), count)
            over_ipc = json.loads(self.service(node, "get_log(0)")[0])
            self.assertGreaterEqual(len(over_ipc["data"]), 18)

    def test_status_values(self) -> None:
        """A value set on one node is read on the others, outlives its node's restart there, is removed when empty."""
        first, second, third = self.nodes

        def value(node: LabNode, key: str, owner: str) -> Any:
            return self.service(node, f"get_status({key.encode()!r}, {owner.encode()!r})")[0]

        self.service(first, "set_status(b'test/a', b'value of n1\\0')", "set_status(b'test/b', b'stays')")
        self.service(second, "set_status(b'test/a', b'value of n2\\0')")
        for node in self.nodes:
            eventually(lambda n=node: value(n, "test/a", "n1") == "value of n1\0", 10, "n1's")  # type: ignore[misc]
            eventually(lambda n=node: value(n, "test/a", "n2") == "value of n2\0", 10, "n2's")  # type: ignore[misc]
        self.service(first, "set_status(b'test/a', b'')")
        eventually(lambda: value(third, "test/a", "n1") == "ENOENT", 10, "removed")
        self.assertEqual(value(third, "test/b", "n1"), "stays")
        third.stop_pvecfs()
        self.start(3)
        in_step(self.nodes)
        eventually(lambda: value(third, "test/b", "n1") == "stays", 10, "told to who came later")
        self.assertEqual(first.stop_pvecfs(), 0)
        self.start(1)
        in_step(self.nodes)
        self.assertEqual(value(first, "test/b", "n1"), "ENOENT")
        self.assertEqual(value(second, "test/b", "n1"), "stays")
        self.service(first, "set_status(b'test/b', b'again')")
        for node in self.nodes:
            eventually(lambda n=node: value(n, "test/b", "n1") == "again", 10, "set again")  # type: ignore[misc]

    def test_members(self) -> None:
        """Addresses and who is online, as nodes come and go."""

        def online(node: LabNode) -> dict[str, tuple[int, str | None]]:
            members = document(node, ".members").get("nodelist", {})  # none until the configuration was read
            return {name: (entry["online"], entry.get("ip")) for name, entry in members.items()}

        everybody = {node.name: (1, node.address) for node in self.nodes}
        for node in self.nodes:
            eventually(lambda n=node: online(n) == everybody, 10, "all are online")  # type: ignore[misc]
            self.assertEqual(document(node, ".members")["cluster"]["quorate"], 1)
        self.assertEqual(self.node(2).stop_pvecfs(), 0)
        for node in (self.node(1), self.node(3)):
            eventually(lambda n=node: online(n)["n2"][0] == 0, 10, "n2 is offline")  # type: ignore[misc]
        self.start(2)
        for node in self.nodes:
            eventually(lambda n=node: online(n) == everybody, 20, "all are online again")  # type: ignore[misc]
        self.node(3).cut()
        eventually(lambda: document(self.node(3), ".members")["cluster"]["quorate"] == 0, 20, "no quorum")
        eventually(lambda: online(self.node(3))["n1"][0] == 0, 20, "n1 is out of sight")
        self.assertEqual(document(self.node(1), ".members")["cluster"]["quorate"], 1)
        self.node(3).heal()
        self.lab.wait_quorate(PATIENCE)
        for node in self.nodes:
            eventually(lambda n=node: online(n) == everybody, 30, "all are online at last")  # type: ignore[misc]


@needs_corosync()
@needs_fuse()
class ConfigurationTests(ClusterCase):
    def known(self, node: LabNode) -> int:
        """The version of the configuration that corosync runs with."""
        done = node.run(["corosync-cmapctl", "-g", "totem.config_version"])
        found = re.search(r"=\s*(\d+)", done.stdout)
        return int(found[1]) if found else 0

    def edited(self, version: int) -> bytes:
        content = (self.node(1).mount / "corosync.conf").read_text()
        return VERSION.sub(f"config_version: {version}", content, count=1).encode()

    def version(self) -> int:
        content = read(self.node(1), "corosync.conf")
        assert content is not None
        found = VERSION.search(content.decode())
        assert found is not None
        return int(found[1])

    def replace(self, node: LabNode, content: bytes) -> None:
        """As Proxmox's programs do it."""
        (node.mount / "corosync.conf.new").write_bytes(content)
        os.rename(node.mount / "corosync.conf.new", node.mount / "corosync.conf")

    def test_edited(self) -> None:
        """A new corosync.conf in the mount reaches the host of every node, and corosync is told."""
        for writer in (2, 3):
            version = self.version() + 1
            content = self.edited(version)
            self.replace(self.node(writer), content)
            for node in self.nodes:
                eventually(lambda n=node, c=content: n.corosync_conf.read_bytes() == c, 15, "the host's file")  # type: ignore[misc]
                eventually(lambda n=node, v=version: self.known(n) == v, 30, "corosync knows")  # type: ignore[misc]
                self.assertEqual(oct(node.corosync_conf.stat().st_mode & 0o7777), "0o644")
        self.settled()

    def test_older_does_not_replace_newer(self) -> None:
        """A host whose file is newer keeps it, and says so; the others follow the mount."""
        version = self.version()
        kept = self.edited(version + 10)
        self.node(2).corosync_conf.write_bytes(kept)
        self.replace(self.node(1), self.edited(version + 1))
        for node in (self.node(1), self.node(3)):
            eventually(lambda n=node: n.corosync_conf.read_bytes() == self.edited(version + 1), 15, "follows")  # type: ignore[misc]
        eventually(lambda: "local corosync.conf is newer" in self.log(self.node(2)), 15, "the log line")
        self.assertEqual(self.node(2).corosync_conf.read_bytes(), kept)
        # Written over in place, with a version that is no number: nothing is written.
        (self.node(3).mount / "corosync.conf").write_bytes(kept.replace(b"config_version", b"some_version"))
        in_step(self.nodes)
        for node in (self.node(1), self.node(3)):
            self.assertIn(f"config_version: {version + 1}", node.corosync_conf.read_text())
        self.replace(
            self.node(1),
            kept.replace(f"config_version: {version + 10}".encode(), b"config_version: %d" % (version + 11)),
        )
        for node in self.nodes:
            eventually(lambda n=node: self.known(n) == version + 11, 30, "corosync knows")  # type: ignore[misc]
        self.settled()

    def test_changed_while_away(self) -> None:
        """A node that was away has the cluster's file when it is back."""
        node = self.node(3)
        node.stop_pvecfs()
        content = self.edited(self.version() + 1)
        self.replace(self.node(1), content)
        eventually(lambda: self.node(2).corosync_conf.read_bytes() == content, 15, "the others'")
        self.assertNotEqual(node.corosync_conf.read_bytes(), content)
        self.start(3)
        eventually(lambda: node.corosync_conf.read_bytes() == content, 30, "its own")
        self.settled()
