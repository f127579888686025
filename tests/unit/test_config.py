"""The agent's settings: addresses, files, what is refused."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest

from nsagent import config
from nsagent.cli.agent import _make_settings, agent, parse_retain
from nsagent.config import AgentConfig
from nsagent.errors import AccessError, ParseError, UsageError
from nsagent.metrics.family import COLLECTORS
from tests.support import run_nsagent

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
        ({"max_depth": -1}, "--max-depth cannot be negative"),
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


def test_dotted_keys_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    known = frozenset({"rate", "web.config.file", "web.enable-lifecycle"})
    path.write_text('rate = 1\nweb.config.file = "/w.yml"\n[web]\nenable-lifecycle = true\n'.replace("[web]\n", "web."))
    assert config.read_file(str(path), known) == {"rate": 1, "web.config.file": "/w.yml", "web.enable-lifecycle": True}
    path.write_text('[web]\nconfig = { file = "/w.yml" }\n')
    assert config.read_file(str(path), known) == {"web.config.file": "/w.yml"}
    path.write_text("web.config.fil = 1\n")
    with pytest.raises(UsageError, match=r"no setting is called 'web.config.fil'"):
        config.read_file(str(path), known)


@pytest.mark.parametrize(
    ("text", "path"), [("unix:/run/a b.sock", "/run/a b.sock"), ("127.0.0.1:1", ""), ("[::1]:1", ""), ("unix:80", ""), ("", "")]
)
def test_socket_path(text: str, path: str) -> None:
    assert config.parse_socket_path(text) == path


@pytest.mark.parametrize("text", ["unix:relative", "unix:", "unix:/a\0b"])
def test_socket_path_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not absolute"):
        config.parse_socket_path(text)


def test_a_socket_path_that_is_too_long() -> None:
    with pytest.raises(UsageError, match="is too long"):
        dataclasses.replace(GOOD, socket_path="/" + "x" * 107)


def test_every_setting_has_the_name_of_its_flag() -> None:
    flags = {option.removeprefix("--") for parameter in agent.params for option in parameter.opts}
    for field in dataclasses.fields(AgentConfig):
        assert config.FLAGS.get(field.name, field.name) in flags


def check(*flags: str) -> tuple[int, str, str]:
    """Return the exit code of `nsagent agent --check`, standard output and error."""
    done = run_nsagent("agent", "--check", *flags, env={"NSAGENT_AGENT_RATE": "7"})
    return done.returncode, done.stdout, done.stderr


def test_check_says_what_it_would_be_and_starts_nothing(tmp_path: Path) -> None:
    file, state = tmp_path / "agent.toml", tmp_path / "state"
    file.write_text('retain = "5m"\nfinding-off = ["orphan"]\nlisten = "nonsense"\n')
    flags = ("--config", str(file), "--state-dir", str(state), "--pin-dir", "/sys/fs/bpf/nsagent-test-none")
    code, output, errors = check(*flags, "--listen", ":0")
    assert (code, errors) == (0, "")
    first, *lines = output.splitlines()
    assert first == "# ok"
    assert {'retain = "5m"  # file', 'listen = ":0"  # flag', "rate = 7  # variable", "ephemeral = false"} <= set(lines)
    assert tomllib.loads("\n".join(lines))["finding-off"] == ["orphan"]
    again = tmp_path / "again.toml"
    again.write_text(output)
    code, output, errors = check("--config", str(again))
    assert (code, errors) == (0, ""), "what it prints is a file it takes"
    assert {'retain = "5m"  # file', 'listen = ":0"  # file'} <= set(output.splitlines())
    assert not state.exists()


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--listen", "nonsense"], "is not an address"),
        (["--config", "/nonexistent.toml"], "cannot read /nonexistent.toml"),
        (["--web.config.file", "/nonexistent.yml"], "cannot read /nonexistent.yml"),
        (["--textfile", "/nonexistent"], "is no directory"),
        (["--finding-off", "x"], "x"),
        (["--events-to", "syslog"], "is no sink"),
        (["--contexts", "1"], "out of range"),
    ],
)
def test_check_finds_what_is_wrong(flags: list[str], error: str) -> None:
    code, output, errors = check(*flags)
    assert (code, output) == (2, "")
    assert error in errors.splitlines()[0]


def collectors_off(*flags: str) -> frozenset[str]:
    with agent.make_context("agent", list(flags)) as context:
        return _make_settings(context.params).collectors_off


def test_collectors() -> None:
    assert collectors_off() == frozenset()
    assert collectors_off("--no-collector", "io", "--no-collector", "network") == {"io", "network"}
    assert collectors_off("--no-collector", "all") == COLLECTORS.keys()
    assert collectors_off("--collector", "io", "--no-collector", "all", "--no-collector", "misc") == COLLECTORS.keys() - {"io"}
    with pytest.raises(UsageError, match="--collector io and --no-collector io"):
        collectors_off("--collector", "io", "--no-collector", "io")
