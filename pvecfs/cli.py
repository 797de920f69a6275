"""C{pvecfs-db}: examine, repair and carry the database of a node, without a daemon."""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import click

from pvecfs import __version__
from pvecfs.store.exchange import collect
from pvecfs.store.exchange import extract as write_out
from pvecfs.store.lockfile import DATABASE_NAME
from pvecfs.store.offline import OfflineDatabase
from pvecfs.tree.admission import Limits
from pvecfs.tree.entry import DT_DIR, path_of
from pvecfs.tree.errors import TreeDefect
from pvecfs.tree.index import Index
from pvecfs.tree.quoting import printable

DEFAULT_STATE_DIR = "/var/lib/pve-cluster"

DEFECTS, FAILED = 1, 2
"""Exit codes."""

_DEFAULT_LIMITS = Limits()


class _Failed(click.ClickException):
    exit_code = FAILED


class _Defective(click.ClickException):
    exit_code = DEFECTS


class _Commands(click.Group):
    """Turns what the rooms raise into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TreeDefect as defect:
            raise _Defective(f"{defect} (see 'pvecfs-db check')") from defect
        except BrokenPipeError:
            raise
        except OSError as error:
            where = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
            raise _Failed(f"{where}{error.strerror or error}") from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False),
    default=DEFAULT_STATE_DIR,
    show_default=True,
    help=f"Directory that holds {DATABASE_NAME} and the daemon's lock file.",
)
@click.option("--db", type=click.Path(), help="The database itself, wherever it is; --state-dir is then not used.")
@click.version_option(__version__, prog_name="pvecfs-db")
@click.pass_context
def main(context: click.Context, state_dir: str, db: str | None) -> None:
    """Examine, repair and carry the database of a pvecfs or pmxcfs node.

    Whatever writes to the database needs it for itself: stop the daemon first. Commands that only read,
    and 'backup', also work while a daemon uses it; they then see its last committed state. A symbolic link is as good
    as the database's own name, a hard link is not: nothing is written to a file that has one.

    Exit code: 0 done and nothing is wrong, 1 the database has defects, 2 the command line was wrong or the command
    could not be carried out.

    \b
    Examples:
      pvecfs-db check
      pvecfs-db cat nodes/alpha/qemu-server/100.conf
      pvecfs-db backup /root/config.db.saved
      pvecfs-db --db /root/config.db.saved extract /root/saved
    """
    context.obj = OfflineDatabase(db if db is not None else os.path.join(state_dir, DATABASE_NAME), time.time)


_of_context = click.make_pass_decorator(OfflineDatabase)

_a_database = click.argument("database", required=False, type=click.Path())


def _chosen(default: OfflineDatabase, path: str | None) -> OfflineDatabase:
    return default if path is None else OfflineDatabase(path, time.time)


def _json_of(document: object) -> None:
    click.echo(json.dumps(document, indent=1))


def _progress(count: int, label: str) -> AbstractContextManager[Callable[[], None]]:
    """A bar on standard error, if someone looks at it; gives what is called after each entry."""
    if not sys.stderr.isatty():
        return nullcontext(lambda: None)
    bar: Any = click.progressbar(length=max(count, 1), label=label, file=sys.stderr)

    class Steps(AbstractContextManager[Callable[[], None]]):
        def __enter__(self) -> Callable[[], None]:
            bar.__enter__()
            return lambda: bar.update(1)

        def __exit__(self, *details: object) -> None:
            bar.__exit__(*details)

    return Steps()


@main.command()
@click.option("--json", "as_json", is_flag=True, help="The lines as a JSON array.")
@_a_database
@_of_context
def check(default: OfflineDatabase, database: str | None, as_json: bool) -> None:
    """Look for defects, of the file and of the tree.

    One line for each defect, and exit code 1. Without any: exit code 0. DATABASE is a file to look at
    instead of the node's own.
    """
    found = _chosen(default, database).survey()
    defects = found.defects()
    if as_json:
        _json_of(defects)
    for defect in () if as_json else defects:
        click.echo(defect)
    if defects:
        sys.exit(DEFECTS)
    if not as_json:
        version = found.root.version if found.root is not None else 0
        click.echo(f"no defects: {len(found.entries) + 1} entries, version {version}")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="An array of objects, with data in base64.")
@_a_database
@_of_context
def dump(default: OfflineDatabase, database: str | None, as_json: bool) -> None:
    """Show all entries as a table, also those of a defective database.

    In JSON, bytes of names that are not UTF-8 are written as the code points U+DC80 to U+DCFF, as Python does. 'path'
    is null where none leads to an entry. Row 0, the root, comes first; its version, writer and mtime are the tree's.
    """
    found = _chosen(default, database).survey()
    entries = ([] if found.root is None else [found.root]) + [found.entries[inode] for inode in sorted(found.entries)]
    paths = {entry.inode: path_of(entry.inode, found.entries) for entry in entries}
    if as_json:
        _json_of(
            [
                {
                    "inode": entry.inode,
                    "parent": entry.parent,
                    "version": entry.version,
                    "writer": entry.writer,
                    "mtime": entry.mtime,
                    "type": entry.type,
                    "size": entry.size,
                    "name": os.fsdecode(entry.name),
                    "path": None if (path := paths[entry.inode]) is None else os.fsdecode(path),
                    "data": base64.b64encode(entry.data).decode() if entry.type != DT_DIR else None,
                }
                for entry in entries
            ]
        )
        return
    head = ("inode", "parent", "version", "writer", "mtime", "type", "size", "path")
    lines = [head] + [
        (
            *map(str, (entry.inode, entry.parent, entry.version, entry.writer, entry.mtime, entry.type, entry.size)),
            printable(path) or "/" if (path := paths[entry.inode]) is not None else f"? {printable(entry.name)}",
        )
        for entry in entries
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(7)]
    for line in lines:
        numbers = (cell.rjust(width) for cell, width in zip(line, widths, strict=False))
        click.echo("  ".join((*numbers, line[7])))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="An object.")
@_a_database
@_of_context
def index(default: OfflineDatabase, database: str | None, as_json: bool) -> None:
    """Show the tree's version and checksum, and the digest of each entry.

    Two nodes hold the same tree exactly when this is equal. It is what nodes compare when their groups synchronise.
    """
    tree = _chosen(default, database).tree()
    held = Index.decode(tree.index())
    head = {"version": held.version, "writer": held.writer, "mtime": held.mtime, "last_inode": held.last_inode}
    checksum = tree.checksum().hex()
    digests = {inode: digest.hex() for inode, digest in held.entries.items()}
    if as_json:
        entries = [{"inode": inode, "digest": digest} for inode, digest in digests.items()]
        _json_of({**head, "checksum": checksum, "entries": entries})
        return
    for name, value in (*head.items(), ("entries", len(digests)), ("checksum", checksum)):
        click.echo(f"{name} {value}")
    for inode, digest in digests.items():
        click.echo(f"{inode} {digest}")


@main.command()
@click.argument("path")
@_of_context
def cat(database: OfflineDatabase, path: str) -> None:
    """Write the content of the file PATH, counted from the top of the tree, to standard output."""
    entry = database.tree().lookup(os.fsencode(path))
    if entry is None:
        raise _Failed(f"{path}: no such file")
    if entry.type == DT_DIR:
        raise _Failed(f"{path}: is a directory")
    click.echo(entry.data, nl=False)


@main.command()
@click.argument("directory", type=click.Path())
@_of_context
def extract(database: OfflineDatabase, directory: str) -> None:
    """Write the whole tree into DIRECTORY, which is made, or is empty.

    Modes are those of a mount without its group: nobody else reads what is private. What this file system cannot hold
    is named on standard error, and the exit code is 2.
    """
    tree = database.tree()
    missing: list[str] = []
    with _progress(len(tree) - 1, "Extracting") as step:
        write_out(tree, directory, missing.append, step)
    for line in missing:
        click.echo(f"left out: {line}", err=True)
    click.echo(f"{len(tree) - 1 - len(missing)} entries written to {directory}")
    if missing:
        sys.exit(FAILED)


@main.command("import")
@click.option(
    "--max-size",
    type=click.IntRange(1),
    default=_DEFAULT_LIMITS.max_bytes >> 20,
    show_default=True,
    help="Limit of all data, MiB.",
)
@click.option(
    "--max-entries",
    type=click.IntRange(2),
    default=_DEFAULT_LIMITS.max_entries,
    show_default=True,
    help="Limit of entries.",
)
@click.argument("directory", type=click.Path(exists=True, file_okay=False))
@_of_context
def import_(database: OfflineDatabase, directory: str, max_size: int, max_entries: int) -> None:
    """Make a new database from the files in DIRECTORY.

    There must be no database yet; its directory is made if it is missing (mode 0750), but not those above it. Symbolic
    links and the special files of a mount (.version and so on) are left out and named on standard error. Anything that
    a mount would refuse, a file above 1 MiB for instance, ends the import, and nothing is made.
    """
    if os.path.lexists(database.path):
        raise _Failed(f"{database.path}: exists already")
    limits = Limits(max_size * 1024 * 1024, max_entries)
    with _progress(sum(len(names) + len(files) for _, names, files in os.walk(directory)), "Importing") as step:
        tree = collect(
            directory, limits, int(time.time()), lambda line: click.echo(f"left out: {line}", err=True), step
        )
    database.create(tree)
    click.echo(f"{len(tree) - 1} entries in {database.path}")


@main.command("rename-node")
@click.argument("old")
@click.argument("new")
@_of_context
def rename_node(database: OfflineDatabase, old: str, new: str) -> None:
    """Move what is below nodes/OLD to nodes/NEW.

    For a host that got another name. If nodes/NEW is there already, its directories are filled up; a file that is in
    both is an error, and nothing is changed. corosync.conf is not touched. The tree gets newer by
    this: the database must not meet the cluster that it came from.
    """
    for line in database.rename_node(os.fsencode(old), os.fsencode(new)):
        click.echo(line)


@main.command()
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@click.argument("file", type=click.Path(dir_okay=False))
@_of_context
def backup(database: OfflineDatabase, file: str, force: bool) -> None:
    """Copy the database to FILE, whole, also while a daemon writes to it.

    FILE is one file of mode 0600. If the database had defects, so has the copy: they are named, with exit code 1.
    """
    database.backup(file, force)
    defects = OfflineDatabase(file, time.time).survey().defects()
    for defect in defects:
        click.echo(f"defect: {defect}", err=True)
    click.echo(f"{os.stat(file).st_size} bytes written to {file}")
    if defects:
        sys.exit(DEFECTS)


@main.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@_of_context
def restore(database: OfflineDatabase, file: str) -> None:
    """Put a copy of FILE, a database, in the place of the node's own.

    FILE is checked first. What was there is kept beside it. The directory is made if it is missing (mode 0750), but not
    those above it. In a cluster the nodes take the tree of highest version: an old database is brought up to date by
    the others as soon as it meets them.
    """
    kept = database.restore(file)
    click.echo(f"{database.path} is a copy of {file} now")
    if kept is not None:
        click.echo(f"what was there is kept as {kept}")


@main.command()
@_of_context
def repair(database: OfflineDatabase) -> None:
    """Move what breaks the rules of the tree into lost+found.

    Says what it did, one line each. Nothing that can be read is discarded: what moves gets a name that begins with
    its inode. Of entries that clash (one name, one VMID) that of the lowest inode stays. A file that SQLite cannot
    read is read page by page. The database as it was is kept beside the new one. Run again, it changes nothing.
    """
    actions, kept = database.repair()
    for action in actions:
        click.echo(action)
    click.echo(f"the database as it was is kept as {kept}" if kept is not None else "nothing to repair")


@main.command()
@click.option(
    "--page-size",
    type=click.Choice([str(512 << n) for n in range(8)]),
    help="Bytes of a page of the new file; without it they stay as they are.",
)
@_of_context
def compact(database: OfflineDatabase, page_size: str | None) -> None:
    """Write the database anew, without free pages.

    With --page-size 1024, which a new database has, a small change writes less to the disk than with
    the 4096 of databases that pmxcfs made; large files take a little longer.
    """
    before = os.stat(database.path).st_size
    database.compact(int(page_size) if page_size is not None else None)
    click.echo(f"{before} bytes before, {os.stat(database.path).st_size} now")


if __name__ == "__main__":
    main()
