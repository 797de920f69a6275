"""stress-ng's stressors of file systems on a mount: C{python -m tests.posix.stress [SECONDS]}, as root.

Each runs for some seconds (2) with C{--verify}. Printed is what each did; the exit code is 1 if one failed for a reason
that is not expected, hung, or the daemon did not live on. Debian's package stress-ng has to be there.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.daemons import DaemonProcess, abort_connection

SMALL = "512k"
"""A file has at most 1 MiB."""

STRESSORS: dict[str, tuple[str, ...]] = {
    "chdir": ("--chdir-dirs", "64"),
    "dentry": ("--dentries", "128"),
    "dir": ("--dir-dirs", "64"),
    "dnotify": (),
    "fcntl": (),
    "file-ioctl": (),
    "filename": (),
    "flock": (),
    "fstat": (),
    "getdent": (),
    "handle": (),
    "inotify": (),
    "io": (),
    "locka": (),
    "lockf": (),
    "lockofd": (),
    "rename": (),
    "sendfile": ("--sendfile-size", SMALL),
    "touch": (),
    "utime": (),
}
"""Those that apply: no links, no other modes, no large files."""

EXPECTED = {"file-ioctl": "FIOQSIZE: the kernel answers from what it remembers of the blocks, without asking"}
"""Stressors that fail, and why."""


def main(seconds: str = "2") -> int:
    base = Path(tempfile.mkdtemp(prefix="pvecfs-"))
    os.chmod(base, 0o755)
    daemon = DaemonProcess(base, "--local")
    wrong = 0
    try:
        daemon.start()
        place = daemon.mount / "stress"
        place.mkdir()
        for name, options in STRESSORS.items():
            command = ["stress-ng", "--temp-path", str(place), f"--{name}", "1", "--verify", "--timeout", seconds]
            process = subprocess.Popen(
                [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                output = process.communicate(timeout=float(seconds) + 20)[0].decode(errors="replace")
                outcome = "ok" if process.returncode == 0 else f"exit code {process.returncode}"
            except subprocess.TimeoutExpired:
                abort_connection(daemon.mount)
                os.killpg(process.pid, signal.SIGKILL)
                output, outcome = process.communicate(timeout=20)[0].decode(errors="replace"), "hangs"
            print(f"{name:12} {outcome}", flush=True)
            if outcome != "ok" and name not in EXPECTED:
                wrong += 1
                print(*[line for line in output.splitlines() if "fail" in line or "rror" in line][:5], sep="\n")
            if outcome == "hangs":
                break
        if daemon.process is None or daemon.process.poll() is not None or "Traceback" in daemon.log_text():
            wrong += 1
            print(daemon.log_text()[-2000:])
        daemon.stop()
    finally:
        daemon.clean()
        shutil.rmtree(base, ignore_errors=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
