"""A node's health: how it is taken, what is a problem, and its forms, without a daemon."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from errno import EACCES, ENOSPC
from typing import Any, cast

from twisted.trial.unittest import SynchronousTestCase

from pvecfs.errors import CorosyncUnavailable
from pvecfs.interfaces import Backlog
from pvecfs.node.health import (
    ConfHealth,
    DatabaseHealth,
    GroupHealth,
    Health,
    HealthSource,
    MemberHealth,
    NodeFacts,
    TreeHealth,
    Waits,
    document,
    problems,
)
from pvecfs.node.healthforms import METRICS, duration, metrics, text
from pvecfs.node.ledger import Ledger
from pvecfs.node.local import LocalProposer
from pvecfs.node.status import NoRoundRobin, StatusService
from pvecfs.node.view import NodeView
from pvecfs.replica.kvstore import StatusReplica
from pvecfs.replica.messages import Epoch, State, SyncStart
from pvecfs.replica.status import ClusterConfiguration, NodeInfo
from pvecfs.store.errors import StoreError
from pvecfs.store.memory import MemoryStore
from pvecfs.tree.admission import Limits
from pvecfs.tree.changes import Create, Mkdir, Write
from pvecfs.tree.locks import LockClocks
from pvecfs.tree.tree import Tree
from tests.test_node_cluster import ME, OTHER, DirectReactor, ServiceCase

FACTS = NodeFacts("n2", 20, "1.2.3", "/etc/pve", "cluster", "/state/config.db", "process", 0.0)

SECOND = MemberHealth(2, 20, "n2", True, True)
THIRD = MemberHealth(3, 30, "n3", False, True)

GROUP = GroupHealth(
    name="pve_dcdb_v1",
    mode="synced",
    mode_seconds=4000.0,
    unsynced_seconds=0.0,
    standing="joined",
    members=(SECOND, replace(THIRD, synced=True)),
    waits_for=(),
    absent=(),
    left_because="",
    unsent=Waits(),
    delivered=12,
    synchronisations=2,
    departures=0,
)

HEALTHY = Health(
    node="n2",
    pid=20,
    version="1.2.3",
    uptime_seconds=90061.5,
    mountpoint="/etc/pve",
    mode="cluster",
    quorate=True,
    writable=True,
    unwritable_because="",
    nodes_known=True,
    tree=TreeHealth(17, 5, 1024 * 1024, 100, 128 * 1024 * 1024),
    database=DatabaseHealth("/state/config.db", "process", "", 4096),
    conf=ConfHealth(3, 3, 60.0),
    groups=(GROUP,),
    changes=Waits(),
    requests=Waits(),
    ipc_clients=3,
    proposed=9,
    refused=2,
    database_refusals=0,
)

WAITING = replace(
    GROUP, mode="start-sync", mode_seconds=6.0, unsynced_seconds=6.0, members=(SECOND, THIRD), waits_for=(THIRD,)
)


def parsed(health: Health) -> Any:
    """What a client gets of C{health}."""
    return json.loads(document(health))


class ProblemTests(SynchronousTestCase):
    def of(self, **changes: Any) -> list[str]:
        return problems(replace(HEALTHY, **changes))

    def of_group(self, group: GroupHealth, **changes: Any) -> list[str]:
        return self.of(groups=(replace(group, **changes),))

    def test_none(self) -> None:
        self.assertEqual(self.of(), [])

    def test_worst_first(self) -> None:
        found = self.of(
            quorate=False,
            database=replace(HEALTHY.database, refuses="ENOSPC"),
            groups=(WAITING,),
            nodes_known=False,
        )
        self.assertEqual(
            found,
            [
                "the database refuses changes: ENOSPC",
                "no quorum: nothing can be changed on this node",
                "group pve_dcdb_v1 is not synchronised for 6 s: waiting for n3 (node 3, pid 30)",
                "the cluster's list of nodes is not known: corosync has not told it",
            ],
        )

    def test_configuration_of_corosync(self) -> None:
        """It may read a new one a few seconds later. What is not known is no problem."""
        (found,) = self.of(conf=ConfHealth(3, 2, 10.0))
        self.assertEqual(
            found, "corosync runs with version 2 of its configuration, the cluster's corosync.conf is version 3"
        )
        for conf in ConfHealth(3, 2, 9.0), ConfHealth(3, 0, 60.0), ConfHealth(0, 2, 60.0), ConfHealth(3, 3, 60.0):
            self.assertEqual(self.of(conf=conf), [])

    def test_synchronisation(self) -> None:
        """It may take a few seconds."""
        self.assertEqual(self.of_group(WAITING, unsynced_seconds=4.9), [])
        self.assertEqual(len(self.of_group(WAITING, unsynced_seconds=5.0)), 1)
        gone = replace(THIRD, name="", in_quorum=False)
        self.assertIn(
            "waiting for a node (node 3, pid 30, not in the quorum membership)",
            self.of_group(WAITING, waits_for=(gone,))[0],
        )

    def test_out_of_the_group(self) -> None:
        out = replace(WAITING, mode="leave", members=(), waits_for=())
        self.assertIn("no connection to corosync", self.of_group(out, standing="closed")[0])
        self.assertIn("it was left: no states", self.of_group(out, standing="out", left_because="no states")[0])
        self.assertIn("waiting for corosync", self.of_group(out)[0])
        self.assertEqual(
            self.of_group(out, mode="error", unsynced_seconds=0.1, left_because="a bug"),
            ["out of group pve_dcdb_v1 until the daemon restarts: a bug"],
        )

    def test_waiting(self) -> None:
        """What waits for the cluster is said once, although it waits at the mount too."""
        waits = Waits(2, 7.0, "a/b")
        self.assertEqual(self.of(requests=replace(waits, oldest_seconds=4.9)), [])
        self.assertEqual(
            self.of(requests=waits), ["requests of programs wait for this node: 2, the oldest for 7 s (a/b)"]
        )
        self.assertEqual(
            self.of(requests=waits, changes=waits), ["changes wait for the cluster: 2, the oldest for 7 s (a/b)"]
        )
        self.assertIn("takes no messages for 8 s, 3 wait", self.of_group(GROUP, unsent=Waits(3, 8.0))[0])

    def test_limits(self) -> None:
        self.assertEqual(self.of(tree=replace(HEALTHY.tree, entries=89)), [])
        self.assertEqual(
            self.of(tree=replace(HEALTHY.tree, entries=90)),
            ["close to the limit: 90 of 100 entries (--max-entries)"],
        )
        self.assertIn("--max-size", self.of(tree=replace(HEALTHY.tree, bytes=HEALTHY.tree.max_bytes))[0])


class FormTests(SynchronousTestCase):
    def test_healthy(self) -> None:
        self.assertEqual(
            text(parsed(HEALTHY)).splitlines(),
            [
                "healthy",
                "node           n2, pid 20, pvecfs 1.2.3, up for 1 d 1 h",
                "mode           cluster, quorate, writable",
                "pve_dcdb_v1    synced for 1 h 6 min",
                "  members      n2 2/20, n3 3/30",
                "waiting        no request",
                "  for cluster  no change",
                "tree           version 17, 5 of 100 entries, 1.0 of 128 MiB",
                "database       /state/config.db, durability process, log 0.0 MiB",
                "mounted at     /etc/pve",
                "IPC clients    3",
            ],
        )

    def test_problems(self) -> None:
        """They come first; whom a group waits for stands at the group."""
        group = replace(
            WAITING, absent=("n4",), left_because="no states", unsent=Waits(1, 2.0), waits_for=(SECOND, THIRD)
        )
        waits = Waits(2, 61.0, "a/b")
        health = replace(
            HEALTHY,
            quorate=False,
            writable=False,
            unwritable_because="no quorum",
            groups=(group,),
            changes=waits,
            requests=waits,
            database=replace(HEALTHY.database, refuses="ENOSPC"),
        )
        lines = text(parsed(health)).splitlines()
        self.assertEqual(lines[:4], [f"problem: {problem}" for problem in problems(health)])
        self.assertIn("mode           cluster, not quorate, read-only (no quorum)", lines)
        self.assertIn("  waits for    n2 2/20, n3 3/30 (not synced)", lines)
        self.assertIn("  absent       n4", lines)
        self.assertIn("  left         no states", lines)
        self.assertIn("  unsent       1 message, the oldest for 2.0 s", lines)
        self.assertIn("  for cluster  2 changes, the oldest for 1 min 1 s: a/b", lines)
        self.assertIn("refuses changes (ENOSPC)", "\n".join(lines))

    def test_durations(self) -> None:
        for seconds, expected in (
            (0.0, "0.0 s"),
            (9.94, "9.9 s"),
            (59.9, "59 s"),
            (60.0, "1 min 0 s"),
            (3600.0, "1 h 0 min"),
            (90000.0, "1 d 1 h"),
        ):
            self.assertEqual(duration(seconds), expected)

    def test_metrics(self) -> None:
        """Each name is told of once, before its samples; a value is a number."""
        lines = metrics(parsed(replace(HEALTHY, groups=(WAITING, replace(GROUP, name="other"))))).splitlines()
        self.assertIn("pvecfs_healthy 0", lines)
        self.assertIn("pvecfs_quorate 1", lines)
        self.assertIn("pvecfs_tree_max_bytes 134217728", lines)
        self.assertIn('pvecfs_info{node="n2",version="1.2.3",mode="cluster"} 1', lines)
        self.assertIn('pvecfs_group_mode{group="pve_dcdb_v1",mode="start-sync"} 1', lines)
        self.assertIn('pvecfs_group_synced{group="pve_dcdb_v1"} 0', lines)
        self.assertIn('pvecfs_group_synced{group="other"} 1', lines)
        self.assertIn('pvecfs_group_waits_for{group="pve_dcdb_v1",node_id="3",pid="30",name="n3"} 1', lines)
        told: list[str] = []
        kinds: list[str] = []
        for line in lines:
            name = line.split()[2] if line.startswith("# ") else re.split(r"[{ ]", line)[0]
            if line.startswith("# HELP"):
                told.append(name)
            elif line.startswith("# TYPE"):
                kinds.append(line.split()[3])
                self.assertEqual(name.endswith("_total"), kinds[-1] == "counter")
            else:
                float(line.rpartition(" ")[2])
            self.assertEqual(name, told[-1])
        self.assertEqual(told, [f"pvecfs_{metric.name}" for metric in METRICS])
        self.assertEqual(len(set(told)), len(told))
        self.assertEqual(set(kinds), {"gauge", "counter"})

    def test_local_metrics(self) -> None:
        """Without groups there are no lines about them."""
        self.assertNotIn("pvecfs_group", metrics(parsed(replace(HEALTHY, mode="local", groups=()))))

    def test_labels(self) -> None:
        lines = metrics(parsed(replace(HEALTHY, node='a"b\\c\nd')))
        self.assertIn('node="a\\"b\\\\c\\nd"', lines)


class UnwalkableTree:
    """Knows a tree's size and nothing else."""

    version = 7
    total_bytes = 1000

    def __len__(self) -> int:
        return 100_000


class LocalTests(SynchronousTestCase):
    def setUp(self) -> None:
        reactor = DirectReactor()
        tree = Tree.new(1)
        view = NodeView(tree, b"n1", Limits(), True, False, lambda debug: None)
        self.store = MemoryStore(tree)
        self.ledger = Ledger(reactor, self.store, view)
        self.proposer = LocalProposer(self.ledger, Limits(), lambda: 1.0, reactor.seconds, LockClocks())
        replica = StatusReplica(b"n1", 1, 1, b"127.0.0.2")
        self.source = HealthSource(
            replace(FACTS, mode="local", started=-90.0),
            reactor.seconds,
            view,
            self.ledger,
            Limits(2048, 10),
            StatusService(replica, NoRoundRobin(), cast(Any, None)),
            self.proposer,
            (),
            lambda: Backlog(1, -2.0, b"a\xff\n"),
            lambda: 4096,
            lambda: 5,
        )

    def test_taken(self) -> None:
        for change in Mkdir(b"d"), Create(b"d/f"), Write(b"d/f", b"12345"), Create(b"d/f"):
            self.proposer.propose(change, lambda outcome: None)
        health = self.source.take()
        self.assertEqual(problems(health), [])
        self.assertEqual((health.mode, health.quorate, health.writable), ("local", True, True))
        self.assertEqual(health.uptime_seconds, 90.0)
        self.assertEqual(health.tree, TreeHealth(4, 3, 5, 10, 2048))
        self.assertEqual(health.database, DatabaseHealth("/state/config.db", "process", "", 4096))
        self.assertEqual((health.groups, health.changes, health.nodes_known), ((), Waits(), True))
        self.assertEqual(health.requests, Waits(1, 2.0, "a\\xff\\x0a"))
        self.assertEqual((health.ipc_clients, health.proposed, health.refused), (5, 4, 1))
        self.assertEqual(json.loads(self.source.document())["tree"]["version"], 4)

    def test_size_of_the_tree(self) -> None:
        """Nobody walks through it."""
        self.ledger.newest = cast(Tree, UnwalkableTree())
        self.assertEqual(self.source.take().tree, TreeHealth(7, 100_000, 1000, 10, 2048))

    def test_database_refuses(self) -> None:
        self.store.failure = StoreError(ENOSPC, "full")
        self.proposer.propose(Mkdir(b"d"), lambda outcome: None)
        health = self.source.take()
        self.assertEqual((health.writable, health.database.refuses), (False, "ENOSPC"))
        self.assertEqual(health.unwritable_because, "the database refuses changes (ENOSPC)")
        self.assertEqual(health.database_refusals, 1)
        self.assertEqual(len(problems(health)), 1)


class ClusterTests(ServiceCase):
    def setUp(self) -> None:
        super().setUp()
        replica = StatusReplica(b"n2", 20, 1, b"10.0.0.2")
        self.status = StatusService(replica, NoRoundRobin(), self.instant)
        self.view.quorum_changed(True)

    def take(self) -> Health:
        return HealthSource(
            FACTS,
            self.reactor.seconds,
            self.view,
            self.ledger,
            Limits(),
            self.status,
            self.proposer,
            (self.service,),
            Backlog,
            lambda: 0,
            lambda: 0,
        ).take()

    def configure(self) -> None:
        nodes = tuple(NodeInfo(number, f"n{number}".encode()) for number in (1, 2, 3))
        self.status.configuration_read(ClusterConfiguration(b"c", 1, nodes))

    def test_synchronisation(self) -> None:
        """Whom it waits for, by the names that the cluster's configuration has for their nodes."""
        self.enter(ME, OTHER)
        epoch = Epoch(1, 1, *ME)
        self.service.message_delivered(ME, SyncStart(1, 1, epoch).encode())
        self.service.message_delivered(ME, State(1, 1, epoch, self.replica.state()).encode())
        self.reactor.advance(6.0)
        health = self.take()
        (group,) = health.groups
        self.assertEqual((group.name, group.mode, group.mode_seconds), ("pve_dcdb_v1", "start-sync", 6.0))
        self.assertEqual(group.waits_for, (MemberHealth(3, 30, "", False, True),))
        self.assertEqual((health.writable, health.unwritable_because), (False, "synchronisation"))
        self.assertEqual(len(problems(health)), 2)  # the nodes are not known either
        self.configure()
        health = self.take()
        (group,) = health.groups
        self.assertEqual([str(member) for member in group.waits_for], ["n3 (node 3, pid 30)"])
        self.assertEqual(group.absent, ("n1",))
        self.assertEqual(group.synchronisations, 1)
        self.assertIn("waiting for n3", problems(health)[0])
        self.service.message_delivered(OTHER, State(1, 1, epoch, self.replica.state()).encode())
        health = self.take()
        (group,) = health.groups
        self.assertEqual((group.mode, group.mode_seconds, group.unsynced_seconds), ("synced", 0.0, 0.0))
        self.assertEqual((group.waits_for, group.delivered), ((), 3))
        self.assertEqual([member.synced for member in group.members], [True, True])
        self.assertTrue(health.writable)
        self.assertEqual(problems(health), [])

    def test_tries(self) -> None:
        """Since when it is not synced goes on from try to try; why the group was left is told until it is synced."""
        self.enter(ME, OTHER)
        self.turns(12.0, 1.0)
        (group,) = self.take().groups
        self.assertEqual((group.mode, group.unsynced_seconds, group.departures), ("leave", 12.0, 1))
        self.assertIn("no states", group.left_because)
        self.assertEqual(self.take().unwritable_because, "not in the group")
        self.got_out()
        self.turns(2.0, 1.0)
        self.service.membership_changed((ME,), (), (ME,))
        (group,) = self.take().groups
        self.assertEqual((group.mode, group.unsynced_seconds, group.left_because), ("synced", 0.0, ""))

    def test_no_corosync(self) -> None:
        self.service.connection_lost(CorosyncUnavailable("no corosync"))
        self.proposer.quorum_changed(False, ())
        self.view.quorum_changed(False)
        self.reactor.advance(5.0)
        health = self.take()
        self.assertEqual((health.quorate, health.unwritable_because), (False, "no quorum"))
        self.assertIn("no quorum", problems(health)[0])
        self.assertIn("no connection to corosync", problems(health)[1])

    def test_changes(self) -> None:
        """Sent ones and those that wait for a synchronisation to end, from when they came; refused ones count."""
        self.configure()
        self.enter()
        self.assertEqual(self.take().changes, Waits())
        self.proposer.propose(Create(b"sent"), self.outcomes("sent"))
        self.reactor.advance(3.0)
        self.proposer.propose(Create(b"later"), self.outcomes("later"))
        self.proposer.propose(Create(b"x" * 300), self.outcomes("refused"))
        self.reactor.advance(4.0)
        health = self.take()
        self.assertEqual(health.changes, Waits(2, 7.0, "sent"))
        self.assertEqual((health.proposed, health.refused), (3, 1))
        self.assertIn("changes wait for the cluster: 2", problems(health)[0])
        self.deliver()
        self.assertEqual(self.take().changes, Waits())
        self.service.membership_changed((ME, OTHER), (), (OTHER,))
        self.proposer.propose(Create(b"held"), self.outcomes("held"))
        self.reactor.advance(1.0)
        self.assertEqual(self.take().changes, Waits(1, 1.0, "held"))
        self.proposer.quorum_changed(False, [2])
        self.proposer.propose(Create(b"x"), self.outcomes("x"))
        health = self.take()
        self.assertEqual((health.changes, health.proposed, health.refused), (Waits(), 5, 2))
        self.assertEqual(self.outcomes.got[-2:], [("held", -EACCES), ("x", -EACCES)])

    def test_unsent(self) -> None:
        self.enter()
        self.connection.refusals = -1
        self.service.send_status(1, b"x")
        self.turns(6.0)
        self.service.send_status(1, b"x")
        health = self.take()
        self.assertEqual(health.groups[0].unsent.count, 2)
        self.assertAlmostEqual(health.groups[0].unsent.oldest_seconds, 6.0)
        self.assertIn("corosync takes no messages", "\n".join(problems(health)))
