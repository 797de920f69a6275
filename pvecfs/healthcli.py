"""C{pvecfs-health}: asks the daemon of this host how it is."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pvecfs import __version__
from pvecfs.node.healthforms import Document, metrics, no_metrics, text
from pvecfs.node.host import HEALTH_SOCKET

DEFAULT_RUN_DIR = "/run/pve-cluster"

TIMEOUT = 5.0
"""Seconds that the daemon has for its answer."""

PROBLEMS, NO_ANSWER = 1, 2
"""Exit codes."""


class _NoAnswer(click.ClickException):
    exit_code = NO_ANSWER


def ask(path: Path, timeout: float) -> Document:
    """The document that the daemon gives at the socket C{path}.

    @param timeout: seconds for all of it.
    @raise OSError: nobody answers.
    @raise ValueError: the answer is no such document.
    """
    deadline = time.monotonic() + timeout
    answer = b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(timeout)
        client.connect(str(path))
        while (remaining := deadline - time.monotonic()) > 0:
            client.settimeout(remaining)
            part = client.recv(65536)
            if not part:
                break
            answer += part
        else:
            raise TimeoutError
    if not answer:
        raise ConnectionError("the connection was closed without an answer; too many may be asking")
    document: Any = json.loads(answer)
    if not isinstance(document, dict):
        raise ValueError("not an object")
    return document


def _json_of(document: Document) -> str:
    return json.dumps(document, indent=1) + "\n"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--run-dir",
    type=click.Path(file_okay=False),
    default=DEFAULT_RUN_DIR,
    show_default=True,
    help=f"The daemon's directory of that name, which holds the socket {HEALTH_SOCKET}.",
)
@click.option("--json", "as_json", is_flag=True, help="All that the daemon tells, as a JSON object.")
@click.option("--metrics", "as_metrics", is_flag=True, help="The numbers, in the text format of Prometheus.")
@click.version_option(__version__, prog_name="pvecfs-health")
def main(run_dir: str, as_json: bool, as_metrics: bool) -> None:
    """Say whether this host's pvecfs is healthy, and whom or what it waits for.

    Exit code: 0 healthy, 1 there are problems, 2 the command line was wrong or no daemon answers within 5 s. With
    --metrics, which say that themselves, 0 for all but a wrong command line.
    """
    if as_json and as_metrics:
        raise click.UsageError("--json and --metrics exclude each other")
    form = _json_of if as_json else metrics if as_metrics else text
    try:
        problems, output = _told(Path(run_dir) / HEALTH_SOCKET, form)
    except _NoAnswer as failure:
        if not as_metrics:
            raise
        failure.show()
        problems, output = False, no_metrics()
    click.echo(output, nl=False)
    if problems and not as_metrics:
        sys.exit(PROBLEMS)


def _told(path: Path, form: Callable[[Document], str]) -> tuple[bool, str]:
    """Whether there are problems, and what the daemon says in C{form}.

    @raise _NoAnswer: it says nothing that is understood.
    """
    try:
        document = ask(path, TIMEOUT)
        return bool(document["problems"]), form(document)
    except TimeoutError as error:
        raise _NoAnswer(f"{path}: no answer within {TIMEOUT:.0f} s") from error
    except OSError as error:
        raise _NoAnswer(f"{path}: no daemon answers: {error.strerror or error}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise _NoAnswer(f"{path}: the answer is not understood: {error!r}") from error


if __name__ == "__main__":
    main()
