"""Where the mount differs from tmpfs, and why: each rule covers at least one case, each difference has its rule."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class Rule:
    """C{cases}: a pattern for names of cases; C{outcome}: what they give on the mount; C{why}: where that is written.

    @ivar depends: whether tmpfs can do it depends on the kernel, so that there may be no difference.
    """

    cases: str
    outcome: Any
    why: str
    depends: bool = False

    def covers(self, name: str) -> bool:
        return re.fullmatch(self.cases, name) is not None


NOT_SUPPORTED = "20-filesystem.md: symlink, link, mknod of anything but a regular file, xattrs: not supported"
NAMED = "20-filesystem.md: chmod and chown succeed for the mode, owner and group that there are, else EPERM"
U32 = "10-tree.md: mtime is a u32 of seconds"
NLINK = "20-filesystem.md: nlink 2 for directories"
FLAGS = "no message of the cluster says it; programs fall back to a plain rename, as on other network file systems"
ANY = object()
"""For numbers of errors that the user's rights decide, too."""

RULES = (
    Rule("too_large", ["EFBIG", "EFBIG", "EFBIG"], "10-tree.md: a file has at most 1 MiB"),
    Rule(
        "punch_a_hole", [-1, 8192], "fallocate is not offered; posix_fallocate writes instead, and programs expect that"
    ),
    Rule(
        "written_after_its_deletion",
        ["ENOENT", "ENOENT", {"f": "another"}],
        "20-filesystem.md: a handle whose file is gone: write ENOENT",
    ),
    Rule(
        "rename_of_a_full_directory",
        ["ENOTEMPTY", "ENOENT", {"empty": {}, "full": {"x": "0123456789"}}],
        "10-tree.md: rename of a directory that is not empty is refused",
    ),
    Rule(r"rename_from\.full_directory", "ENOTEMPTY", "10-tree.md: rename of a directory that is not empty is refused"),
    Rule("rename_without_replacing", ["EEXIST", "EINVAL", {"a": "a", "b": "b"}], FLAGS),
    Rule("rename_exchanging", ["EINVAL", {"a": "a", "b": "b"}], FLAGS),
    Rule(
        "working_directory_deleted",
        ["ENOENT", "ENOENT", "ENOENT", "ENOENT"],
        "a directory that is gone cannot be opened anew, as on other network file systems; on tmpfs it is empty",
    ),
    Rule("modes_at_creation", ["0o100640", "0o40755"], "20-filesystem.md: modes follow from the path"),
    Rule("changed_modes", [[None, "EPERM", "EPERM", "EPERM"], "0o100640"], NAMED),
    Rule(r"chmod_other\..*", "EPERM", NAMED),
    Rule(r"chown_other\..*", "EPERM", NAMED),
    Rule("links_of_a_directory", 2, NLINK),
    Rule(r"l?stat\.dot_dot", ["0o40755", 0, 33, 0, 2], NLINK),
    Rule("hard_links", "EPERM", NOT_SUPPORTED),
    Rule(r"(mknod_fifo|mknod_device|bind|symlink|link_to)\.missing", "EPERM", NOT_SUPPORTED),
    Rule(r"link_from\..*", "EPERM", NOT_SUPPORTED),
    Rule("times_set_out_of_range", [4294967291.0, 7.0], U32),
    Rule("times_of_nanoseconds", [7000000000, 7000000000], U32 + "; 20-filesystem.md: atime = mtime"),
    Rule(
        "a_new_name_sets_the_directorys_time",
        False,
        "10-tree.md: a change sets the entry's mtime and the tree's, not that of the directory",
    ),
    Rule("extended_attributes", ANY, NOT_SUPPORTED, depends=True),
    Rule(r"(get|set|list)xattr\..*", "ENOTSUP", NOT_SUPPORTED, depends=True),
    Rule(r"open_tmpfile\..*", "ENOTSUP", "every file of the tree has a name; programs then take a temporary one"),
)
