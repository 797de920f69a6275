"""A local node below C{./.run}, or with the options in C{PVECFS_OPTIONS}: C{twistd -ny tap/pvecfs.tac}.

C{PVECFS_OPTIONS} holds the options of C{twistd pvecfs} as on a shell's command line. Without it the node runs in local mode
and everything it writes is below C{./.run}, so that no root is needed and no real node is disturbed.
"""

import grp
import os
import shlex
import socket
from pathlib import Path

from twisted.application.service import Application

from pvecfs.tap import Options, makeService


def demonstration() -> list[str]:
    """Options of a local node below the working directory's C{.run}."""
    below = Path(".run").absolute()
    for name in ("pve", "state", "run"):
        (below / name).mkdir(parents=True, exist_ok=True)
    return [
        "--local",
        f"--mountpoint={below}/pve",
        f"--state-dir={below}/state",
        f"--run-dir={below}/run",
        f"--corosync-conf={below}/corosync.conf",
        f"--rrd-dir={below}/rrd",
        f"--rrdcached-socket={below}/rrdcached.sock",
        f"--node-name={socket.gethostname().partition('.')[0]}",
        "--node-ip=127.0.0.1",
        f"--group={grp.getgrgid(os.getegid()).gr_name}",
        f"--ipc-name=pvecfs-{os.getpid()}",
    ]


given = os.environ.get("PVECFS_OPTIONS")
options = Options()
options.parseOptions(shlex.split(given) if given else demonstration())
application = Application("pvecfs")
makeService(options).setServiceParent(application)
