"""What nsagent.libc.execveat must refuse, for nsagent.launch.execute to be safe from who changes a file meanwhile."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from nsagent import libc


def test_neither_a_script_nor_a_symlink_is_executed(tmp_path: Path) -> None:
    (tmp_path / "script").write_text("#!/bin/true\n")
    (tmp_path / "script").chmod(0o755)
    (tmp_path / "link").symlink_to("/proc/self/exe")
    directory = os.open(tmp_path, os.O_PATH | os.O_CLOEXEC)
    try:
        for name, expected in ((b"script", errno.ENOENT), (b"link", errno.ELOOP)):
            with pytest.raises(OSError, match="execveat") as caught:
                libc.execveat(directory, name, [name], {})
            assert caught.value.errno == expected
    finally:
        os.close(directory)
