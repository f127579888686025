"""The file for node_exporter: whole, readable, and gone with the agent."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterable
from pathlib import Path

import pytest

from nsagent.textfile import Textfile


def test_it_is_replaced_whole_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "nsagent.prom"
    seen: list[str] = []

    def make() -> Iterable[bytes]:
        yield b"a 1\n"
        seen.append(path.read_text() if path.exists() else "")
        yield b"b 2\n"

    before = os.umask(0o077)
    try:
        textfile = Textfile(str(tmp_path), make)
        textfile.write()
        assert path.read_text() == "a 1\nb 2\n"
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        first = path.stat().st_ino
        textfile.write()
    finally:
        os.umask(before)
    assert seen == ["", "a 1\nb 2\n"], "a reader in the midst of it has the old one"
    assert path.stat().st_ino != first
    assert os.listdir(tmp_path) == ["nsagent.prom"]
    textfile.remove()
    assert os.listdir(tmp_path) == []


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("mine")
    (tmp_path / ".nsagent.prom.new").symlink_to(target)
    Textfile(str(tmp_path), lambda: [b"a 1\n"]).write()
    assert target.read_text() == "mine"
    assert (tmp_path / "nsagent.prom").read_text() == "a 1\n"


def test_a_failure_is_logged_once_a_cause(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "gone"
    textfile = Textfile(str(directory), lambda: [b"a 1\n"])
    with caplog.at_level(logging.WARNING, "nsagent"):
        textfile.write()
        textfile.write()
        directory.mkdir()
        textfile.write()
        textfile.remove()
        directory.rmdir()
        textfile.write()
    assert [record.getMessage().split()[0] for record in caplog.records] == ["event=textfile_failed"] * 2
