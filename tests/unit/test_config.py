"""The agent's settings: addresses, files, what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from nsagent import config
from nsagent.cli.agent import parse_retain
from nsagent.config import AgentConfig
from nsagent.errors import AccessError, ParseError, UsageError

GOOD = AgentConfig("127.0.0.1", 0, "/run/nsagent", "/sys/fs/bpf/nsagent", "/var/cache/nsagent", 120 * 10**9)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:10417", ("127.0.0.1", 10417)),
        ("[::1]:0", ("::1", 0)),
        (":65535", ("", 65535)),
        ("localhost:80", ("localhost", 80)),
    ],
)
def test_listen(text: str, address: tuple[str, int]) -> None:
    assert config.parse_listen(text) == address


@pytest.mark.parametrize("text", ["", "10417", "host:", "host:http", "host:65536", "host:-1", "::1:80", "host:1\u0662", "a:b:1"])
def test_listen_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--listen") as raised:
        config.parse_listen(text)
    assert raised.value.hint


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"contexts": 1}, "--contexts 1 is out of range"),
        ({"contexts": 1 << 30}, "out of range"),
        ({"retain_ns": -1}, "--retain cannot be negative"),
        ({"runtimes": ("docker.sock",)}, "--runtime .docker.sock. is no path of a Unix socket"),
        ({"runtimes": ("/" + "x" * 107,)}, "is no path of a Unix socket"),
        ({"pin_dir": "/sys/fs/bpf/v1.2"}, "no dot"),
        ({"state_dir": "/" + "é" * 50}, "at most 107 bytes"),
    ],
)
def test_what_makes_no_sense(change: dict[str, Any], error: str) -> None:
    with pytest.raises(UsageError, match=error):
        dataclasses.replace(GOOD, **change)


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    known = frozenset({"listen", "no-bpf", "contexts"})
    path.write_text('listen = ":1"\nno-bpf = true\ncontexts = 99\n')
    assert config.read_file(str(path), known) == {"listen": ":1", "no-bpf": True, "contexts": 99}
    path.write_text("[listen]\n")
    with pytest.raises(UsageError, match="listen is neither text"):
        config.read_file(str(path), known)
    path.write_text("listn = 1\n")
    with pytest.raises(UsageError, match="no setting is called 'listn'") as raised:
        config.read_file(str(path), known)
    assert "contexts, listen, no-bpf" in raised.value.hint
    path.write_text("listen = \n")
    with pytest.raises(ParseError, match=r"agent.toml: not TOML: .*line 1"):
        config.read_file(str(path), known)
    path.write_bytes(b"\xff")
    with pytest.raises(ParseError, match="not TOML"):
        config.read_file(str(path), known)
    with pytest.raises(AccessError, match="cannot read"):
        config.read_file(str(tmp_path), known)


def test_retain() -> None:
    assert parse_retain("0") == parse_retain("0s") == 0
    assert parse_retain("2m") == 120 * 10**9
    with pytest.raises(UsageError, match="--retain"):
        parse_retain("soon")


def test_cache_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert config.default_cache_dir() == "/var/cache/nsagent"
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/u/.c")
    assert config.default_cache_dir() == "/home/u/.c/nsagent"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/u")
    assert config.default_cache_dir() == "/home/u/.cache/nsagent"
