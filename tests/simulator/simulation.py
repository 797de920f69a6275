"""Carries out a story, and checks."""

from __future__ import annotations

import traceback
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from errno import EIO
from functools import cache
from random import Random
from unittest.mock import patch

from twisted.logger import LogLevel

from pvecfs.node import cluster, ledger, status
from pvecfs.node.status import StatusService
from pvecfs.replica.machine import Mode
from pvecfs.replica.status import ClusterConfiguration, NodeInfo
from pvecfs.tree.changes import Change, Create, Delete, Mkdir, Rename, SetMtime, Write
from pvecfs.tree.errors import OperationError
from pvecfs.tree.tree import Tree
from tests.simulator.checks import History, Violation, check_tree
from tests.simulator.corosync import Network, Uid
from tests.simulator.node import TREE_GROUP, WALL_START, SimulatedNode
from tests.simulator.story import OPERATIONS, PACE_ALL, PACE_NONE, PACE_SOME, Event, Story

MAX_NODES = 5
_SPEEDS = (
    (1.0, 1.0, 1.0, 0.5),
    (0.1, 1.0, 2.0, 0.5),
    (2.0, 2.0, 0.2, 0.1),
    (3.0, 3.0, 3.0, 1.0),
    (0.05, 2.0, 3.0, 0.1),
)
"""Of ordering, receiving, running, committing."""

CONF = b"totem {\n  config_version: 1\n}\n"


@cache
def initial_tree() -> Tree:
    """What all databases hold at first."""
    tree = new_tree()
    directories = [b"keep", b"shared", b"nodes", b"priv", b"priv/lock"]
    for node in range(1, MAX_NODES + 1):
        directories += [b"nodes/n%d" % node, b"nodes/n%d/qemu-server" % node, b"nodes/n%d/lxc" % node]
    for directory in directories:
        tree = tree.apply(Mkdir(directory), 1, WALL_START).tree
    for number in range(3):
        tree = tree.apply(Create(b"shared/r%d" % number), 1, WALL_START).tree
    return Tree.load([entry for entry in tree.entries() if entry.inode], tree.root)


@cache
def new_tree() -> Tree:
    """A database made anew at a first start, with corosync.conf imported."""
    return Tree.new(WALL_START).imported(b"corosync.conf", CONF, WALL_START).tree


class Journal:
    """Stands in for the services' loggers."""

    def __init__(self) -> None:
        self.lines: list[str] | None = None
        self.verifications = 0

    # Nothing is corrupt here: no replica has a reason for a critical line.
    def emit(self, level: object, form: str, /, **values: object) -> None:
        line = str(values.get("text", form))
        if line == "data verification successful":
            self.verifications += 1
        if level is LogLevel.critical:
            raise Violation(line)
        if self.lines is not None:
            self.lines.append(line)

    def _line(self, text: str, /, **values: object) -> None:
        if self.lines is not None:
            self.lines.append(text.format(**values))

    debug = info = warn = error = critical = _line

    def failure(self, text: str, /, **values: object) -> None:
        raise Violation(f"{text}\n{traceback.format_exc()}")


@contextmanager
def journal_kept() -> Iterator[Journal]:
    """The services log into the journal."""
    journal = Journal()
    with ExitStack() as patches:
        for module in (cluster, ledger, status):
            patches.enter_context(patch.object(module, "_log", journal))
        yield journal


class Operation:
    """A change that a client asked for; called with its outcome.

    @ivar asked: the true time, seconds.
    @ivar uid: the message that carries it, once it was sent.
    """

    def __init__(self, simulation: Simulation, node: SimulatedNode, change: Change) -> None:
        self.node = node
        self.change = change
        self.asked = simulation.now
        self.uid: Uid | None = None
        self.outcome: int | None = None
        self.succeeded: Callable[[Uid], None] | None = None
        self._simulation = simulation
        self._pid = node.pid
        self._departures = node.proposer.departures

    @property
    def due(self) -> bool:
        """Whether its client waits for an outcome, and its daemon lives."""
        return self.outcome is None and self.node.alive and self.node.pid == self._pid

    @property
    def stayed(self) -> bool:
        """Whether its daemon has been in the group ever since."""
        return self.node.alive and self.node.pid == self._pid and self.node.proposer.departures == self._departures

    def __call__(self, outcome: int, /) -> None:
        if self.outcome is not None:
            raise Violation(f"{self.change} is acknowledged twice: {self.outcome}, {outcome}")
        self.outcome = outcome
        self._simulation.note(f"        n{self.node.node_id} {self.change} -> {outcome}")
        if outcome >= 0:
            if self.uid is None:
                raise Violation(f"{self.change} is acknowledged and was never sent")
            self._simulation.history.acknowledge(self.node, self.uid)
            if self.succeeded is not None:
                self.succeeded(self.uid)


class Simulation:
    """One run of a story.

    @ivar now: the true time, seconds.
    @ivar transcript: what happened, if asked for.
    """

    def __init__(self, story: Story, journal: Journal) -> None:
        self.story = story
        self.now = 0.0
        self.network = network = Network(story.votes)
        self.history = History(network, story.strict)
        self.operations: list[Operation] = []
        self.journal = journal
        self.transcript: list[str] | None = None
        self._kept: list[bytes] = []
        tree = initial_tree()
        configuration = None
        if story.status:
            names = tuple(NodeInfo(node_id, b"n%d" % node_id, vote) for node_id, vote in enumerate(story.votes, 1))
            configuration = ClusterConfiguration(b"simulated", 1, names)
        rows = {entry.inode: entry for entry in tree.entries()}
        jitter = Random(story.seed)
        self.nodes = {
            node_id: SimulatedNode(
                node_id,
                corosync,
                self.history,
                jitter,
                dict(rows),
                tree,
                story.skews[node_id - 1],
                configuration,
                story.verify_interval,
            )
            for node_id, corosync in network.nodes.items()
        }
        self.history.nodes = self.nodes
        self._node_list = list(self.nodes.values())

    def run(self) -> None:
        """Tell the story to its end, heal everything, check what must hold then.

        @raise Violation: something does not hold.
        """
        try:
            self.network.reform(safe=True)
            for node in self._node_list:
                node.start(self.now)
            for number, event in enumerate(self.story.events):
                if self.transcript is not None:
                    self.note(f"{number:3} {self.now:9.3f} {event}")
                getattr(self, "on_" + event.kind)(event)
                self._flow(event)
                if not self.story.strict:
                    self.history.look_for_unpromised()
                if self.transcript is not None:
                    self._note_lines()
                    self.note("        " + "; ".join(node.describe() for node in self._node_list))
            self.note("healing")
            self._heal()
            self._check_end()
        except Violation:
            raise
        except Exception as error:
            raise Violation(f"{type(error).__name__}: {error}\n{traceback.format_exc()}") from error
        finally:
            if self.transcript is not None:
                self._note_lines()

    def note(self, line: str) -> None:
        if self.transcript is not None:
            self.transcript.append(line)

    def _note_lines(self) -> None:
        lines = self.journal.lines
        if lines:
            for line in lines:
                self.note("        " + line)
            lines.clear()

    # -- the flow of messages

    def _flow(self, event: Event) -> None:
        if event.pace == PACE_ALL:
            self.flow(event.luck)
        elif event.pace == PACE_SOME:
            self._flow_some(Random(event.luck))

    def flow(self, luck: int = 0) -> None:
        """Let everything that is under way happen, on nodes that run."""
        nodes = self._node_list
        turn = luck % len(nodes)
        nodes = nodes[turn:] + nodes[:turn]
        for _ in range(1000):
            busy = 0
            for node in nodes:
                corosync = node.corosync
                if corosync.up:
                    if corosync.outbox:
                        busy += corosync.order(1000)
                    if corosync.behind:
                        busy += corosync.receive(1000)
                if node.runs:
                    if node.waiting:
                        busy += node.run(1000)
                    busy += node.turn()
                    if node.store.waiting:
                        busy += node.settle()
            if not busy:
                return
        raise Violation("the cluster does not come to rest")

    def _flow_some(self, random: Random) -> None:
        """A random part of what is under way."""
        nodes = self._node_list
        for _ in range(int(random.random() * 16) + 1):
            self._step(nodes, random)

    @staticmethod
    def _step(nodes: list[SimulatedNode], random: Random) -> None:
        """One small thing on one of C{nodes} (the more often it is in there, the likelier), if there is one to do."""
        possible: list[Callable[[int], int]] = []
        start = int(random.random() * len(nodes))
        for offset in range(len(nodes)):
            node = nodes[start - offset]
            corosync = node.corosync
            if corosync.up:
                if corosync.outbox:
                    possible.append(corosync.order)
                if corosync.position < len(corosync.ring.log):
                    possible.append(corosync.receive)
            if node.runs:
                if node.waiting:
                    possible.append(node.run)
                if node.store.waiting:
                    possible.append(node.settle)
            if possible:
                possible[int(random.random() * len(possible))](1 + int(random.random() * 4))
                return

    def _advance(self, seconds: float) -> None:
        self.now += seconds
        for node in self._node_list:
            if node.runs:
                node.advance(self.now - node.clock.rightNow)

    # -- events: the flow

    def on_flow(self, event: Event) -> None:
        self.flow(event.luck)

    def on_busy(self, event: Event) -> None:
        """Clients everywhere, while some of what is under way happens; some things are slower than others."""
        random = Random(event.luck)
        pairs = [(node, random.choice(_SPEEDS)) for node in self._node_list]
        for _ in range(event.arguments[0]):
            for _ in range(int(random.random() * 10)):
                self._weighted_step(pairs, random)
            node = random.choice(self._node_list)
            if random.random() < event.arguments[1] / 100.0:
                kind = random.choice(("kill", "start", "start", "split", "heal", "heal"))
                components = tuple(int(random.random() < 0.3) for _ in self.nodes) if kind == "split" else ()
                getattr(self, "on_" + kind)(Event(kind, node.node_id, components, PACE_NONE, random.getrandbits(32)))
            elif node.runs:
                self._operate(node, random.randrange(len(OPERATIONS)), random.getrandbits(16))

    @staticmethod
    def _weighted_step(pairs: Sequence[tuple[SimulatedNode, tuple[float, ...]]], random: Random) -> None:
        """One of the small things that can be done; each node has its own speeds."""
        possible: list[Callable[[int], int]] = []
        limits: list[float] = []
        total = 0.0
        for node, (order, receive, run, settle) in pairs:
            corosync = node.corosync
            if corosync.up:
                if corosync.outbox:
                    possible.append(corosync.order)
                    total += order
                    limits.append(total)
                if corosync.position < len(corosync.ring.log):
                    possible.append(corosync.receive)
                    total += receive
                    limits.append(total)
            if node.runs:
                if node.waiting:
                    possible.append(node.run)
                    total += run
                    limits.append(total)
                if node.store.waiting:
                    possible.append(node.settle)
                    total += settle
                    limits.append(total)
        if possible:
            possible[bisect(limits, random.random() * total)](1 + int(random.random() * 3))

    def on_order(self, event: Event) -> None:
        corosync = self.nodes[event.node].corosync
        if corosync.up:
            corosync.order(event.arguments[0])

    def on_receive(self, event: Event) -> None:
        corosync = self.nodes[event.node].corosync
        if corosync.up:
            corosync.receive(event.arguments[0])

    def on_run(self, event: Event) -> None:
        node = self.nodes[event.node]
        if node.runs:
            node.run(event.arguments[0])

    def on_settle(self, event: Event) -> None:
        node = self.nodes[event.node]
        if node.runs:
            node.settle()

    def on_wait(self, event: Event) -> None:
        """Time passes; in between, messages flow as the event's pace says."""
        seconds = event.arguments[0] / 1000.0
        parts = 1 if seconds < 0.2 else 3
        for part in range(parts):
            if part:
                self._flow(event)
            self._advance(seconds / parts)

    # -- events: faults

    def _may_fail(self, failing: set[int]) -> bool:
        """Whether a healthy majority is left without C{failing}. Anything may fail in a story that is not strict."""
        if not self.story.strict:
            return True
        healthy = [node_id for node_id in self.nodes if node_id not in failing and self._healthy(node_id)]
        return self.network.has_majority(healthy)

    def _healthy(self, node_id: int) -> bool:
        """Whether a node has, or is about to have, all that was acknowledged, and can go on."""
        node = self.nodes[node_id]
        corosync = node.corosync
        if not (node.synced and corosync.up and corosync.ring.quorate and node.replica.quorate):
            return False
        if corosync.quorum or node.store.failure is not None or not node.ledger.writable or corosync.congested:
            return False
        if frozenset(node.machine.members) != corosync.view.get(TREE_GROUP):
            return False
        if any(told.kind != "message" for told in node.connection.queue):
            return False
        return all(self.history.holds(node, uid) for uid in self.history.acknowledged if uid not in node.chain)

    def on_split(self, event: Event) -> None:
        components = dict(enumerate(event.arguments, 1))
        best = next(
            (
                component
                for component in set(event.arguments)
                if self.network.has_majority(node_id for node_id in components if components[node_id] == component)
            ),
            None,
        )
        if not self._may_fail({node_id for node_id, component in components.items() if component != best}):
            return
        self.network.component = components
        self._reform(event)

    def on_cut(self, event: Event) -> None:
        """A node is cut off just when it sends: it may be the only one that gets its messages."""
        node = self.nodes[event.node]
        if self._may_fail({event.node}):
            random = Random(event.luck)
            for _ in range(event.arguments[0]):
                if node.runs:
                    self._operate(node, random.randrange(len(OPERATIONS)), random.getrandbits(16))
                    if node.corosync.up and random.random() < 0.8:
                        node.corosync.order(1000)
            self.network.component = {**dict.fromkeys(self.nodes, 0), event.node: 1}
            self._reform(event)

    def on_flap(self, event: Event) -> None:
        """The network is split for a moment, while messages wait to be sent. Some nodes are too slow to notice."""
        random = Random(event.luck)
        pairs = [(node, random.choice(_SPEEDS)) for node in self._node_list]

        def ask(node: SimulatedNode) -> None:
            if node.runs:
                self._operate(node, random.randrange(len(OPERATIONS)), random.getrandbits(16))

        for node in self._node_list:
            for _ in range(int(random.random() * 4)):
                ask(node)
        self.on_split(Event("split", 0, event.arguments, PACE_NONE, random.getrandbits(32)))
        slow = [node for node in self._node_list if node.runs and random.random() < 0.4]
        for node in slow:
            node.frozen = True
        if random.random() < 0.6:
            self.flow(event.luck)
            for node in self._node_list:
                ask(node)
            self.flow(event.luck)
        for _ in range(int(random.random() * 40)):
            self._weighted_step(pairs, random)
            if random.random() < 0.1:
                ask(random.choice(self._node_list))
        for node in slow:
            node.frozen = False
        self.on_heal(Event("heal", 0, (), PACE_NONE, random.getrandbits(32)))

    def on_interrupt(self, event: Event) -> None:
        """A fault in the middle of a synchronisation: when a member has a part of the updates."""
        random = Random(event.luck)
        pairs = [(node, random.choice(_SPEEDS)) for node in self._node_list]
        for _ in range(150):
            if any(node.alive and node.machine.has_updates for node in self._node_list):
                break
            self._weighted_step(pairs, random)
        for node in random.sample(self._node_list, 2):
            if node.runs:
                self._operate(node, OPERATIONS.index("delete"), random.getrandbits(16))
        kind = random.choice(("kill", "corosync_kill", "split"))
        components = tuple(int(random.random() < 0.4) for _ in self.nodes)
        arguments = components if kind == "split" else ()
        getattr(self, "on_" + kind)(
            Event(kind, random.choice(self._node_list).node_id, arguments, PACE_NONE, random.getrandbits(32))
        )

    def on_heal(self, event: Event) -> None:
        self.network.component = dict.fromkeys(self.nodes, 0)
        self._reform(event)

    def _reform(self, event: Event) -> None:
        random = Random(event.luck)
        prompt = [node for node in self._node_list if random.random() < 0.3]

        def before_change() -> None:
            for node in prompt:
                if node.runs:
                    node.run(1000)

        self.network.reform(self.story.strict or random.random() < 0.5, before_change)

    def on_kill(self, event: Event) -> None:
        if self._may_fail({event.node}):
            self.nodes[event.node].kill()

    def on_stop(self, event: Event) -> None:
        node = self.nodes[event.node]
        if node.runs and self._may_fail({event.node}):
            node.service.stopService()
            node.settle()
            node.turn()
            node.kill()

    def on_start(self, event: Event) -> None:
        node = self.nodes[event.node]
        if not node.alive:
            node.start(self.now)

    def on_wipe(self, event: Event) -> None:
        if self._may_fail({event.node}):
            node = self.nodes[event.node]
            node.kill()
            node.wipe(new_tree())

    def on_corosync_kill(self, event: Event) -> None:
        corosync = self.nodes[event.node].corosync
        if corosync.up and self._may_fail({event.node}):
            corosync.kill()
            self._reform(event)

    def on_corosync_start(self, event: Event) -> None:
        corosync = self.nodes[event.node].corosync
        if not corosync.up:
            corosync.up = True
            self._reform(event)

    def on_freeze(self, event: Event) -> None:
        node = self.nodes[event.node]
        if node.alive and self._may_fail({event.node}):
            node.frozen = True

    def on_thaw(self, event: Event) -> None:
        node = self.nodes[event.node]
        if node.alive and node.frozen:
            node.frozen = False
            node.advance(self.now - node.clock.rightNow)

    def on_disk_full(self, event: Event) -> None:
        node = self.nodes[event.node]
        if node.alive and self._may_fail({event.node}):
            node.fail_disk(True)

    def on_disk_free(self, event: Event) -> None:
        node = self.nodes[event.node]
        if node.alive:
            node.fail_disk(False)

    def on_congest(self, event: Event) -> None:
        if self._may_fail({event.node}):
            self.nodes[event.node].corosync.congested = True

    def on_clear(self, event: Event) -> None:
        self.nodes[event.node].corosync.congested = False

    def on_verify(self, event: Event) -> None:
        node = self.nodes[event.node]
        if node.runs and node.machine._lowest:  # else nobody asks it to
            node.service._input(node.machine.request_verification)

    # -- events: clients

    def on_operate(self, event: Event) -> None:
        node = self.nodes[event.node]
        if not node.runs:
            return
        self._operate(node, *event.arguments)

    def _operate(self, node: SimulatedNode, kind: int, number: int) -> None:
        getattr(self, "do_" + OPERATIONS[kind])(node, number)

    def propose(self, node: SimulatedNode, change: Change, succeeded: Callable[[Uid], None] | None = None) -> Operation:
        """A client of C{node} asks for C{change}."""
        operation = Operation(self, node, change)
        operation.succeeded = succeeded
        self.operations.append(operation)
        node.proposer.propose(change, operation)
        return operation

    def do_keep(self, node: SimulatedNode, number: int) -> None:
        path = b"keep/%d" % len(self.operations)

        def succeeded(uid: Uid) -> None:
            self._kept.append(path)

        self.propose(node, Create(path), succeeded)

    def do_write(self, node: SimulatedNode, number: int) -> None:
        data = b"%d " % len(self.operations) * (1 + number % 3)
        self.propose(node, Write(_file(number), data, (0, 0, 5)[number // 16 % 3], truncate=number // 64 % 2 == 0))

    def do_create(self, node: SimulatedNode, number: int) -> None:
        self.propose(node, Create(_file(number)))

    def do_mkdir(self, node: SimulatedNode, number: int) -> None:
        self.propose(node, Mkdir(b"shared/d%d" % (number % 3)))

    def do_delete(self, node: SimulatedNode, number: int) -> None:
        path = _file(number) if number % 3 else b"shared/d%d" % (number // 4 % 3)
        self.propose(node, Delete(path))

    def do_rename(self, node: SimulatedNode, number: int) -> None:
        self.propose(node, Rename(_file(number), _file(number // 64)))

    def do_truncate(self, node: SimulatedNode, number: int) -> None:
        self.propose(node, Write(_file(number), b"", number // 64 % 20, truncate=True))

    def do_mtime(self, node: SimulatedNode, number: int) -> None:
        self.propose(node, SetMtime(_file(number), number))

    def do_vm_create(self, node: SimulatedNode, number: int) -> None:
        kind = b"lxc" if number % 5 == 0 else b"qemu-server"
        self.propose(node, Create(b"nodes/n%d/%s/%d.conf" % (node.node_id, kind, 100 + number % 3)))

    def do_vm_move(self, node: SimulatedNode, number: int) -> None:
        vmid = 100 + number % 3
        vm = node.replica.tree.vms.lookup(vmid)
        if vm is not None:
            kind = b"lxc" if vm.kind == "lxc" else b"qemu-server"
            to = b"n%d" % (1 + number // 8 % len(self.nodes))
            self.propose(
                node, Rename(b"nodes/%s/%s/%d.conf" % (vm.node, kind, vmid), b"nodes/%s/%s/%d.conf" % (to, kind, vmid))
            )

    def do_vm_delete(self, node: SimulatedNode, number: int) -> None:
        vmid = 100 + number % 3
        vm = node.replica.tree.vms.lookup(vmid)
        if vm is not None:
            kind = b"lxc" if vm.kind == "lxc" else b"qemu-server"
            self.propose(node, Delete(b"nodes/%s/%s/%d.conf" % (vm.node, kind, vmid)))

    def do_lock(self, node: SimulatedNode, number: int) -> None:
        name, client, asked = b"%d" % (number % 2), len(self.operations), self.now

        def succeeded(uid: Uid) -> None:
            self.history.lock_taken(node, name, client, uid, asked, self.now)

        self.propose(node, Mkdir(b"priv/lock/" + name), succeeded)

    def do_renew(self, node: SimulatedNode, number: int) -> None:
        """The lock's holder renews it. Only the node that took it can; a client knows by its own success."""
        name, asked = b"%d" % (number % 2), self.now
        client = self.history.holder(name)
        if client is None or self.operations[client].node is not node:
            return

        def succeeded(uid: Uid) -> None:
            self.history.lock_renewed(name, client, uid, asked)

        self.propose(node, SetMtime(b"priv/lock/" + name, node.instant().wall), succeeded)

    def do_release(self, node: SimulatedNode, number: int) -> None:
        """The lock's holder removes it."""
        name = b"%d" % (number % 2)
        client = self.history.holder(name)
        if client is not None and self.operations[client].node is node:
            self.history.lock_given_up(name)
            # If it has expired meanwhile, the directory may be another holder's by now: a removal by force (seed 7352).
            self.propose(node, Delete(b"priv/lock/" + name), lambda uid: self.history.lock_given_up(name))

    def do_unlock(self, node: SimulatedNode, number: int) -> None:
        self.propose(node, SetMtime(b"priv/lock/%d" % (number % 2), 0))

    def do_conf(self, node: SimulatedNode, number: int) -> None:
        self.propose(node, Write(b"corosync.conf", b"totem { config_version: %d }" % number, truncate=True))

    def on_status(self, event: Event) -> None:
        node = self.nodes[event.node]
        if node.runs and node.status is not None:
            number = event.arguments[0]
            if number % 3:
                value = b"" if number % 7 < 3 else b"%d" % number
                node.status.set_value(b"key%d" % (number // 16 % 3), value)
            else:
                node.status.log(6, b"root", b"test", b"message %d" % number, node.pid)

    # -- the end

    def _heal(self) -> None:
        """End all faults and give the cluster time."""
        self.network.component = dict.fromkeys(self.nodes, 0)
        for node in self._node_list:
            node.corosync.up = True
            node.corosync.congested = False
            if node.alive:
                node.fail_disk(False)
                if node.frozen:
                    node.frozen = False
                    node.advance(self.now - node.clock.rightNow)
        self.network.reform(safe=True)
        for node in self._node_list:
            if not node.alive:
                node.start(self.now)
        for attempt in range(150):
            self.flow()
            if self._at_rest():
                return
            self._advance(1.0 if attempt < 20 else 10.0)
        raise Violation(f"not synchronised after everything healed: {[node.describe() for node in self._node_list]}")

    def _at_rest(self) -> bool:
        everybody = len(self.nodes)
        for node in self._node_list:
            machine = node.machine
            if machine.mode is not Mode.SYNCED or len(machine.members) != everybody or len(machine.synced) != everybody:
                return False
            if not node.ledger.writable or node.proposer._waiting or node.proposer._held or node.service._unsent:
                return False
            if node.status is not None and node.status_service.machine.mode is not Mode.SYNCED:
                return False
        return True

    def _check_end(self) -> None:
        self._check_equal()
        unanswered = [operation.change for operation in self.operations if operation.due]
        if unanswered:
            raise Violation(f"never answered: {unanswered}")
        history = self.history
        for operation in self.operations:
            uid = operation.uid
            if operation.outcome == -EIO and uid is not None and operation.stayed and not history.was_delivered(uid):
                raise Violation(f"{operation.change}, sent as {uid}, was never delivered")
        tree = self._node_list[0].replica.tree
        history.check_kept(self._node_list[0].chain)
        excused = len(history.unpromised) + len(history.forked)
        if not excused:
            for path in self._kept:
                if tree.lookup(path) is None:
                    raise Violation(f"{path!r} was acknowledged and is not there")
        # And it works.
        final = [self.propose(node, Create(b"final%d" % node.node_id)) for node in self._node_list]
        verifications = self.journal.verifications
        self.flow()
        if any(operation.outcome != 0 for operation in final):
            raise Violation(f"the healed cluster refuses: {[operation.outcome for operation in final]}")
        self.on_verify(Event("verify", 1, (), 0, 0))
        self.flow()
        if self.journal.verifications - verifications < len(self.nodes) or not self._at_rest():
            raise Violation("verification fails on the healed cluster")
        self._check_equal()
        check_tree(self._node_list[0].replica.tree)
        if self.story.status:
            self._check_status()

    def _check_status(self) -> None:
        """Each node has the others' values, but for those that corosync refused, and none that they removed."""
        for node in self._node_list:
            for other in self._node_list:
                assert node.status is not None and other.status is not None
                if node.corosync.refused:
                    continue
                for key, value in node.status.replica._own.items():
                    if _value(other.status, key, node.name) != value:
                        raise Violation(f"node {other.node_id} has not {key!r} of node {node.node_id}, {value!r}")
                for key in node.status.replica._removed:
                    if _value(other.status, key, node.name) is not None:
                        raise Violation(f"node {other.node_id} has {key!r} of node {node.node_id}, which removed it")

    def _check_equal(self) -> None:
        """All trees, in memory and stored, are identical."""
        first = self._node_list[0]
        index = first.replica.tree.index()
        for node in self._node_list:
            if node.replica.tree.index() != index:
                raise Violation(f"nodes 1 and {node.node_id} have different trees")
            if node.ledger.newest is not node.replica.tree or node.view.tree is not node.replica.tree:
                raise Violation(f"node {node.node_id} does not publish its newest tree")
            if node.store.rows != first.store.rows:
                raise Violation(f"nodes 1 and {node.node_id} store different rows")
        if first.store.stored().index() != index:
            raise Violation("the database is not the tree")


def _value(status: StatusService, key: bytes, node: bytes) -> bytes | None:
    try:
        return status.value(key, node)
    except OperationError:
        return None


def _file(number: int) -> bytes:
    return b"shared/%s%d" % (b"r" if number % 2 else b"t", number // 2 % 3)


def run(story: Story, transcript: list[str] | None = None) -> Simulation:
    """Tell C{story}.

    @param transcript: filled with what happened.
    @raise Violation: something that must hold does not.
    """
    with journal_kept() as journal:
        simulation = Simulation(story, journal)
        if transcript is not None:
            simulation.transcript = transcript
            journal.lines = []
        simulation.run()
        return simulation
