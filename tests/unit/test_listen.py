"""A Unix socket to listen at: its mode, what is replaced and what is not. Addresses of TCP are in test_serve."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from nsagent.errors import NsagentError, UsageError
from nsagent.web import listen


def test_its_mode_address_and_end(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    before = os.umask(0o022)
    try:
        with listen.bind_unix(str(path)) as found:
            assert os.umask(0o022) == 0o022, "the umask is as it was"
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            assert listen.address_of(found) == f"unix:{path}"
            listen.remove_path(found)
            assert not path.exists()
    finally:
        os.umask(before)


def test_what_is_left_over_is_replaced_and_what_lives_is_not(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    listen.bind_unix(str(path)).close()
    assert path.exists()
    with listen.bind_unix(str(path)), pytest.raises(NsagentError, match="somebody listens there") as raised:
        listen.bind_unix(str(path))
    assert str(path) in raised.value.hint


def test_one_with_a_full_backlog_lives(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as waiting:
        full.bind(str(path))
        full.listen(0)
        waiting.connect(str(path))
        with pytest.raises(NsagentError, match="somebody listens there"):
            listen.bind_unix(str(path))


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(NsagentError, match="it is no socket"):
        listen.bind_unix(str(path))
    assert path.read_text() == "mine"
    with pytest.raises(UsageError, match="No such file") as raised:
        listen.bind_unix(str(tmp_path / "none" / "http.sock"))
    assert "directory" in raised.value.hint
