"""A laboratory: a cluster of real corosync nodes on this machine, each in namespaces of its own.

Every node has its own network, mount, UTS and IPC namespace; one more network namespace holds the bridge they meet on.
Nothing of it is visible outside but processes and one temporary directory: the namespaces, their mounts and devices end
with the last process inside. A warden process does that clean-up too when the owner of the laboratory is killed.

See C{docs/testing-with-corosync.md}. Needs root.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tests import lab_warden

NETWORK = "10.99.0."
REPOSITORY = Path(__file__).resolve().parent.parent

SETUP = r"""
set -e
for path in /run /dev/shm /var/lib/corosync; do mount -t tmpfs -o mode=0755 lab "$path"; done
chmod 1777 /dev/shm
mkdir -p /run/layers /run/lock
mount -t tmpfs -o mode=0700 lab /run/layers
for path in etc var/lib; do
    mkdir -p "/run/layers/$path/upper" "/run/layers/$path/work"
    mount -t overlay -o "lowerdir=/$path,upperdir=/run/layers/$path/upper,workdir=/run/layers/$path/work" lab "/$path"
done
mkdir -p /etc/pve /etc/corosync /var/lib/corosync /var/lib/pve-cluster /var/lib/rrdcached/db
mount -t tmpfs -o mode=0755 lab /var/lib/corosync
mount -t tmpfs -o "mode=0750,size=$STATE_SIZE" lab /var/lib/pve-cluster
hostname "$NODE"
echo "$NODE" > /etc/hostname
cp "$HOSTS" /etc/hosts
cp "$CONFIGURATION" /etc/corosync/corosync.conf
ip link set lo up
echo ready
exec sleep infinity
"""
"""What makes a fresh mount namespace a node. /etc and /var/lib are overlays: paths that the host lacks can be had."""


class LabError(Exception):
    """The laboratory could not do what was asked of it in the time allowed; the message says where to look."""


PATIENCE = 4
"""Times as long as on an idle machine may everything take: several nodes, and whatever else runs, share its cores."""


def eventually(condition: Callable[[], bool], timeout: float, what: str) -> None:
    """Wait, in steps of 50 ms, for C{condition}.

    @param timeout: seconds that are enough on an idle machine; L{PATIENCE} times that is waited.
    @raise LabError: it did not come.
    """
    timeout *= PATIENCE
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"not within {timeout} s: {what}")
        time.sleep(0.05)


def corosync_conf(names: Sequence[str], version: int = 1, token: int = 2000) -> str:
    """A corosync.conf for nodes C{names}, ids from 1. @param token: milliseconds until a silent node counts as gone."""
    lines = [
        "totem {",
        "  version: 2",
        "  cluster_name: lab",
        f"  config_version: {version}",
        "  transport: knet",
        "  ip_version: ipv4",
        "  crypto_cipher: none",
        "  crypto_hash: none",
        f"  token: {token}",
        "  token_coefficient: 0",
        f"  consensus: {token * 6 // 5}",
        "  interface {",
        "    linknumber: 0",
        "    knet_ping_interval: 200",
        f"    knet_ping_timeout: {token}",
        "    knet_pong_count: 1",
        "  }",
        "}",
        "nodelist {",
    ]
    for number, name in enumerate(names, 1):
        lines += [
            "  node {",
            f"    nodeid: {number}",
            f"    name: {name}",
            "    quorum_votes: 1",
            f"    ring0_addr: {NETWORK}{number}",
            "  }",
        ]
    lines += [
        "}",
        "quorum {",
        "  provider: corosync_votequorum",
        "}",
        "logging {",
        "  to_stderr: yes",
        "  to_syslog: no",
        "  to_logfile: no",
        "  timestamp: hires",
        "}",
        "",
    ]
    return "\n".join(lines)


class LabNode:
    """One node. All methods block, for a bounded time."""

    def __init__(self, lab: Lab, number: int) -> None:
        self.lab = lab
        self.number = number
        self.name = f"n{number}"
        self.address = f"{NETWORK}{number}"
        self.anchor: subprocess.Popen[bytes] | None = None
        self.corosync: subprocess.Popen[Any] | None = None
        self.pvecfs: subprocess.Popen[Any] | None = None
        self.log = lab.directory / f"{self.name}.corosync.log"
        self.pvecfs_log = lab.directory / f"{self.name}.pvecfs.log"

    @property
    def root(self) -> Path:
        """The node's file system as seen from outside: works with every call of C{os}."""
        assert self.anchor is not None, "the laboratory is not started"
        return Path(f"/proc/{self.anchor.pid}/root")

    @property
    def mount(self) -> Path:
        """The node's /etc/pve."""
        return self.root / "etc/pve"

    @property
    def database(self) -> Path:
        """The node's config.db."""
        return self.root / "var/lib/pve-cluster/config.db"

    @property
    def corosync_conf(self) -> Path:
        """The node's copy of corosync.conf."""
        return self.root / "etc/corosync/corosync.conf"

    def command(self, argv: Sequence[str | Path]) -> list[str]:
        """C{argv} as to be started from outside, to run in the node's namespaces; it keeps its process id."""
        assert self.anchor is not None, "the laboratory is not started"
        inside = ["nsenter", "-t", str(self.anchor.pid), "-m", "-u", "-i", "-n", f"--wd={REPOSITORY}", "--"]
        return inside + [str(argument) for argument in argv]

    def run(
        self, argv: Sequence[str | Path], timeout: float = 30.0, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run C{argv} on the node to its end; options as for L{subprocess.run}. Output is captured as text."""
        settings: dict[str, Any] = {"capture_output": True, "text": True, "timeout": timeout}
        return subprocess.run(self.command(argv), **(settings | options))

    def spawn(self, argv: Sequence[str | Path], **options: Any) -> subprocess.Popen[Any]:
        """Start C{argv} on the node; options as for L{subprocess.Popen}. The laboratory kills it when it is stopped."""
        return self.lab.adopt(subprocess.Popen(self.command(argv), **options))

    def python(self, argv: Sequence[str | Path], **options: Any) -> subprocess.Popen[Any]:
        """Start this Python interpreter on the node, able to import pvecfs and tests."""
        environment: Mapping[str, str] = options.pop("env", os.environ)
        paths = [str(REPOSITORY), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
        environment = {**environment, "PYTHONPATH": os.pathsep.join(paths)}
        return self.spawn([sys.executable, *argv], env=environment, **options)

    # corosync

    def start_corosync(self) -> None:
        """Start corosync; returns at once, see L{Lab.wait_quorate}."""
        assert self.corosync is None or self.corosync.poll() is not None, "corosync runs already"
        with self.log.open("ab") as log:
            self.corosync = self.spawn(["corosync", "-f"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def stop_corosync(self, timeout: float = 10.0) -> None:
        """Stop corosync in order: it leaves the cluster."""
        if self.corosync is not None:
            terminate(self.corosync, timeout)

    def kill_corosync(self) -> None:
        """kill -9."""
        if self.corosync is not None:
            self.corosync.kill()
            self.corosync.wait(10)

    def freeze_corosync(self) -> None:
        """SIGSTOP: corosync lives on, but does not answer."""
        assert self.corosync is not None
        self.corosync.send_signal(signal.SIGSTOP)
        eventually(lambda: process_state(self.corosync) == "T", 5, f"corosync stopped on {self.name}")

    def thaw_corosync(self) -> None:
        assert self.corosync is not None
        self.corosync.send_signal(signal.SIGCONT)

    def quorum(self) -> tuple[bool, frozenset[int]]:
        """What corosync says now: quorate or not, and the ids of the nodes in its partition."""
        try:
            status = self.run(["corosync-quorumtool", "-s"], timeout=3).stdout
        except subprocess.TimeoutExpired:
            return False, frozenset()
        ids = frozenset(int(line.split()[0], 0) for line in status.splitlines() if line.strip()[:1].isdigit())
        return any(line.split() == ["Quorate:", "Yes"] for line in status.splitlines()), ids

    # the network

    def cut(self) -> None:
        """Take the node's cable off the bridge."""
        self.lab.bridge("ip", "link", "set", f"p{self.number}", "nomaster")

    def heal(self) -> None:
        """Put the cable back."""
        self.lab.bridge("ip", "link", "set", f"p{self.number}", "master", "br0")

    # the daemon

    def start_pvecfs(
        self, extra_options: Sequence[str] = (), twistd_options: Sequence[str] = (), wait: float = 20.0
    ) -> subprocess.Popen[Any]:
        """Start C{twistd pvecfs} with C{extra_options} on the paths that it has by default, and wait for its mount.

        @param wait: seconds to wait until /etc/pve is mounted; 0: do not wait.
        @raise LabError: it ended, or is not mounted in time.
        """
        assert self.pvecfs is None or self.pvecfs.poll() is not None, "the daemon runs already"
        twistd = ["-c", "from twisted.scripts.twistd import run; run()", "--nodaemon", "--pidfile=", *twistd_options]
        with self.pvecfs_log.open("ab") as log:
            daemon = self.python([*twistd, "pvecfs", *extra_options], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.pvecfs = daemon
        if wait:

            def mounted() -> bool:
                if daemon.poll() is not None:
                    raise LabError(f"pvecfs ended with {daemon.returncode}:\n{tail(self.pvecfs_log)}")
                return self.mounted()

            eventually(mounted, wait, f"mount of {self.name}, see {self.pvecfs_log}")
        return daemon

    def stop_pvecfs(self, timeout: float = 15.0) -> int:
        """SIGTERM. @return: the exit status. @raise LabError: it had to be killed after C{timeout} seconds."""
        assert self.pvecfs is not None
        if not terminate(self.pvecfs, timeout):
            raise LabError(f"pvecfs on {self.name} did not end within {timeout} s:\n{tail(self.pvecfs_log)}")
        return int(self.pvecfs.returncode)

    def kill_pvecfs(self) -> None:
        """kill -9. The dead mount is taken away by the next start."""
        assert self.pvecfs is not None
        self.pvecfs.kill()
        self.pvecfs.wait(10)

    def mounted(self) -> bool:
        """Whether a FUSE file system is mounted on the node's /etc/pve, and served."""
        assert self.anchor is not None
        mounts = Path(f"/proc/{self.anchor.pid}/mounts").read_text()
        if not any(
            line.split()[1] == "/etc/pve" and line.split()[2].startswith("fuse") for line in mounts.splitlines()
        ):
            return False
        try:
            self.mount.stat()
        except OSError:
            return False  # ENOTCONN: left behind by a daemon that was killed
        return True


class Lab:
    """C{size} nodes named n1, n2, ... with ids 1, 2, ... and addresses 10.99.0.<id>.

    Several laboratories at once do not see each other. Usable as a context manager.

    @param token: corosync's token timeout, milliseconds.
    @param state_size: size of the tmpfs on each node's /var/lib/pve-cluster, as mount takes it.
    """

    def __init__(self, size: int = 3, token: int = 2000, state_size: str = "512m") -> None:
        self.size = size
        self.token = token
        self.state_size = state_size
        self.nodes: list[LabNode] = []
        self.processes: list[subprocess.Popen[Any]] = []
        self.namespaces: list[str] = []
        self.directory = Path()
        self._switch: subprocess.Popen[bytes] | None = None
        self._warden: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Lab:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def names(self) -> list[str]:
        return [f"n{number}" for number in range(1, self.size + 1)]

    def node(self, number: int) -> LabNode:
        """Node C{number}, from 1."""
        return self.nodes[number - 1]

    def adopt(self, process: subprocess.Popen[Any]) -> subprocess.Popen[Any]:
        """Remember C{process}, to be reaped at the end; forget those that are over."""
        self.processes = [each for each in self.processes if each.poll() is None]
        self.processes.append(process)
        return process

    def start(self, corosync: bool = True, timeout: float = 30.0) -> None:
        """Build the nodes; with C{corosync}, start it everywhere and wait until all see all.

        @raise LabError: no quorum within C{timeout} seconds; nothing is left behind.
        """
        self.directory = Path(tempfile.mkdtemp(prefix=f"pvecfs-lab-{os.getpid()}-"))
        atexit.register(self.stop)
        try:
            self._build()
            if corosync:
                self.start_corosync()
                self.wait_quorate(timeout)
        except BaseException:
            self.stop()
            raise

    def _build(self) -> None:
        hosts = ["127.0.0.1 localhost", *(f"{NETWORK}{i} {name}" for i, name in enumerate(self.names, 1)), ""]
        (self.directory / "hosts").write_text("\n".join(hosts))
        (self.directory / "corosync.conf").write_text(corosync_conf(self.names, token=self.token))
        self._switch = self._anchor("echo ready; exec sleep infinity", {})
        self.nodes = [LabNode(self, number) for number in range(1, self.size + 1)]
        for node in self.nodes:
            variables = {
                "NODE": node.name,
                "HOSTS": str(self.directory / "hosts"),
                "CONFIGURATION": str(self.directory / "corosync.conf"),
                "STATE_SIZE": self.state_size,
            }
            node.anchor = self._anchor(SETUP, variables)
        for anchor in (self._switch, *(node.anchor for node in self.nodes)):
            self._await_ready(anchor)
        self._warden = subprocess.Popen(
            [sys.executable, lab_warden.__file__, str(self.directory), *self.namespaces],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        self.bridge("ip", "link", "set", "lo", "up")
        self.bridge("ip", "link", "add", "br0", "type", "bridge")
        self.bridge("ip", "link", "set", "br0", "up")
        for node in self.nodes:
            assert node.anchor is not None
            port, peer = f"p{node.number}", ["peer", "name", "eth0", "netns", str(node.anchor.pid)]
            self.bridge("ip", "link", "add", port, "type", "veth", *peer)
            self.bridge("ip", "link", "set", port, "master", "br0", "up")
            node.run(["ip", "addr", "add", f"{node.address}/24", "dev", "eth0"], check=True)
            node.run(["ip", "link", "set", "eth0", "up"], check=True)

    def _anchor(self, script: str, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """A process that holds new namespaces open."""
        return self.adopt(
            subprocess.Popen(
                ["unshare", "-m", "-u", "-i", "-n", "--propagation", "private", "sh", "-c", script],
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        )

    def _await_ready(self, anchor: subprocess.Popen[bytes] | None) -> None:
        assert anchor is not None and anchor.stdout is not None and anchor.stderr is not None
        if anchor.stdout.readline() != b"ready\n":
            anchor.kill()
            raise LabError(f"namespaces could not be made: {anchor.stderr.read().decode(errors='replace')}")
        self.namespaces.append(lab_warden.namespace(anchor.pid))
        anchor.stdout.close()
        anchor.stderr.close()

    def bridge(self, *argv: str) -> None:
        """Run C{argv} in the namespace of the bridge."""
        assert self._switch is not None
        command = ["nsenter", "-t", str(self._switch.pid), "-n", "--", *argv]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        if done.returncode:
            raise LabError(f"{' '.join(argv)}: {done.stderr}")

    def start_corosync(self) -> None:
        """Start corosync on every node."""
        for node in self.nodes:
            node.start_corosync()

    def wait_quorate(self, timeout: float = 30.0, numbers: Sequence[int] | None = None) -> None:
        """Wait until each of the nodes C{numbers} (default: all) is quorate, in a partition of exactly these nodes.

        @raise LabError: not within C{timeout} seconds.
        """
        wanted = frozenset(numbers if numbers is not None else range(1, self.size + 1))

        def agreed() -> bool:
            for number in sorted(wanted):
                process = self.node(number).corosync
                if process is None or process.poll() is not None:
                    raise LabError(f"corosync does not run on n{number}:\n{tail(self.node(number).log)}")
            return all(self.node(number).quorum() == (True, wanted) for number in sorted(wanted))

        eventually(agreed, timeout, f"quorum of {sorted(wanted)}, see {self.directory}")

    def partition(self, *numbers: int) -> None:
        """Cut off the nodes C{numbers}: each is alone from now on."""
        for number in numbers:
            self.node(number).cut()

    def heal(self) -> None:
        """Plug in all cables, let all stopped corosyncs go on."""
        for node in self.nodes:
            node.heal()
            if node.corosync is not None and node.corosync.poll() is None:
                node.thaw_corosync()

    def stop(self) -> None:
        """Kill everything inside, remove everything. Idempotent."""
        atexit.unregister(self.stop)
        gone = lab_warden.evacuate(self.namespaces) if self.namespaces else True
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.kill()
                process.wait(5)
            for stream in (process.stdin, process.stdout, process.stderr):
                close(stream)
        if self._warden is not None:
            self._warden.kill()
            self._warden.wait(5)
            close(self._warden.stdin)
        if self.directory != Path():
            shutil.rmtree(self.directory, ignore_errors=True)
        self.processes, self.namespaces, self.nodes, self._switch, self._warden = [], [], [], None, None
        if not gone:
            raise LabError("processes of the laboratory could not be killed")


def close(stream: IO[Any] | None) -> None:
    if stream is not None:
        with contextlib.suppress(OSError):
            stream.close()


def terminate(process: subprocess.Popen[Any], timeout: float) -> bool:
    """SIGTERM, and after C{timeout} seconds SIGKILL. @return: whether it ended by itself."""
    process.terminate()
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
        return False
    return True


def process_state(process: subprocess.Popen[Any] | None) -> str:
    """The state letter of a process, as ps shows it; empty when it is gone."""
    if process is None:
        return ""
    try:
        return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def tail(path: Path, lines: int = 20) -> str:
    """The last lines of a log."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


def main() -> None:
    """Open a laboratory with a shell on node 1: C{python -m tests.lab [size]}."""
    with Lab(int(sys.argv[1]) if len(sys.argv) > 1 else 3) as lab:
        print(f"logs in {lab.directory}; enter a node with:")
        for node in lab.nodes:
            print(" ", " ".join(node.command([os.environ.get("SHELL", "/bin/sh")])))
        subprocess.run(lab.node(1).command([os.environ.get("SHELL", "/bin/sh")]))


if __name__ == "__main__":
    main()
