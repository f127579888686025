"""The least a container can hold: one static program, /bin/waiter."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.support import require

# Waits for a signal; with an argument it ends at once, with "spin" it uses what CPU it gets.
_WAITER = """
int pause(void);
int main(int argc, char **argv) {
    while (argc > 1 && argv[1][0] == 's') ;
    while (argc == 1) pause();
    return 0;
}"""


def make(directory: Path) -> Path:
    """Make a root file system below `directory`; return it."""
    require(shutil.which("gcc"), "gcc is not installed (make setup)")
    rootfs = directory / "rootfs"
    program = rootfs / "bin" / "waiter"
    program.parent.mkdir(parents=True)
    subprocess.run(["gcc", "-static", "-O1", "-x", "c", "-o", str(program), "-"], input=_WAITER, text=True, check=True)
    return rootfs
