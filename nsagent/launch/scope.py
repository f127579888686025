"""A delegated cgroup for an ordinary user's job, where systemd rules the tree: a transient scope of his own manager.

Source: systemd-run(1), --scope; systemd's docs/CGROUP_DELEGATION.md. systemd-run makes the scope for its own process, in
which it then executes the command: the pid, the terminal and all else stay.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Sequence
from typing import Final

from nsagent.cgroups.layout import Layout

_NAME: Final = "nsagent-run-"
_OPTIONS: Final = ("--user", "--scope", "--quiet", "--collect", "--property=Delegate=yes")


def command(layout: Layout, argv: Sequence[str], runtime_dir: str) -> list[str] | None:
    """Return the command line that runs `argv` in a scope; None where there is no manager of the user's, or it has been asked.

    `runtime_dir` is the user's $XDG_RUNTIME_DIR.
    """
    program = shutil.which("systemd-run")
    if program is None or not runtime_dir or not _listens(f"{runtime_dir}/systemd/private"):
        return None
    if any(os.path.basename(path).startswith(_NAME) for path in layout.own_cgroup().values()):
        return None
    return [program, *_OPTIONS, f"--unit={_NAME}{os.urandom(4).hex()}", "--", *argv]


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as tried:
        return tried.connect_ex(path) == 0
