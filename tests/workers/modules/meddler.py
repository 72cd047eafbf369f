"""A kernel that tries to leave its process, and says how far it came."""

import os
import signal
import socket
import subprocess
from pathlib import Path

from zkd.kernels import kernel


def _try(act):  # type: ignore[no-untyped-def]
    try:
        act()
    except OSError as error:
        return type(error).__name__
    return "done"


@kernel
def meddle(scratch: str, elsewhere: str, port: int, pid: int) -> dict[str, str]:
    old = Path(elsewhere, "old")
    return {
        "scratch": _try(lambda: Path(scratch, "new").write_text("x")),
        "create": _try(lambda: Path(elsewhere, "new").write_text("x")),
        "append": _try(lambda: old.open("a").write("x")),
        "truncate": _try(lambda: os.truncate(old, 0)),
        "child": str(subprocess.run(["/bin/sh", "-c", f"echo x > {old}"], capture_output=True, check=False).returncode),
        "connect": _try(lambda: socket.create_connection(("127.0.0.1", port), 5).close()),
        "listen": _try(lambda: socket.create_server(("127.0.0.1", 0)).close()),
        "kill": _try(lambda: os.kill(pid, signal.SIGTERM)),
        "read": old.read_text(),
        "move": _try(lambda: old.rename(Path(scratch, "moved"))),
        "remove": _try(old.unlink),
    }
