"""The structures of libqb as Python has them are those of its headers."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from pvecfs.ipc import libqb
from tests.needs import needs_libqb

STRUCTURES: dict[str, type[ctypes.Structure]] = {
    "struct qb_ipc_request_header": libqb.RequestHeader,
    "struct qb_ipc_response_header": libqb.ResponseHeader,
    "struct qb_ipcs_connection_stats": libqb.ConnectionStats,
    "struct qb_ipcs_service_handlers": libqb.ServiceHandlers,
    "struct qb_ipcs_poll_handlers": libqb.PollHandlers,
    "struct iovec": libqb.IoVec,
}

CONSTANTS = {
    "QB_IPC_SHM": libqb.IPC_SHM,
    "QB_LOOP_LOW": libqb.PRIORITY_LOW,
    "QB_LOOP_MED": libqb.PRIORITY_MEDIUM,
    "QB_LOOP_HIGH": libqb.PRIORITY_HIGH,
    "QB_IPCS_RATE_FAST": libqb.RATE_FAST,
    "QB_IPCS_RATE_NORMAL": libqb.RATE_NORMAL,
    "QB_IPCS_RATE_SLOW": libqb.RATE_SLOW,
    "QB_IPCS_RATE_OFF": libqb.RATE_OFF,
}


def fields(structure: type[ctypes.Structure]) -> list[str]:
    """Its fields but for the padding that ctypes is told of."""
    return [field[0] for field in structure._fields_ if not field[0].startswith("_")]


@needs_libqb()
class LayoutTests(SynchronousTestCase):
    def test_headers(self) -> None:
        """Sizes, offsets and constants, as a C compiler has them."""
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None or not Path("/usr/include/qb/qbipcs.h").exists():
            self.skipTest("needs a C compiler and libqb's headers")
        expected: dict[str, int] = dict(CONSTANTS)
        for name, structure in STRUCTURES.items():
            expected[f"sizeof({name})"] = ctypes.sizeof(structure)
            for field in fields(structure):
                descriptor = getattr(structure, field)
                expected[f"offsetof({name}, {field})"] = descriptor.offset
                expected[f"sizeof((({name} *)0)->{field})"] = descriptor.size
        lines = [f'printf("%s\\"%s\\": %ld", sep, "{what}", (long)({what})); sep = ",";' for what in expected]
        source = "\n".join(
            (
                "#include <stddef.h>\n#include <stdio.h>\n#include <sys/uio.h>\n#include <qb/qbipcs.h>",
                'int main(void) { const char *sep = "{";',
                *lines,
                'puts("}"); return 0; }',
            )
        )
        program = Path(self.mktemp())
        program.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([compiler, "-x", "c", "-o", str(program.absolute()), "-"], input=source.encode(), check=True)
        found = json.loads(subprocess.run([str(program.absolute())], stdout=subprocess.PIPE, check=True).stdout)
        self.assertEqual(found, expected)

    def test_packed_headers(self) -> None:
        """What the service packs is what the structures say."""
        self.assertEqual(bytes(libqb.RequestHeader(6, 0, 25, 0)), libqb.REQUEST_HEADER.pack(6, 25))
        self.assertEqual(bytes(libqb.ResponseHeader(6, 0, 24, 0, -2, 0)), libqb.REPLY_HEADER.pack(6, 24, -2))

    def test_functions(self) -> None:
        """Every function that is asked for is there."""
        library = libqb.load()
        for name in libqb.LibQb.__annotations__:
            self.assertTrue(callable(getattr(library, name)), name)
