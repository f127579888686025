"""The command line's frame: the table of commands, and how errors end."""

from __future__ import annotations

import os
import subprocess
import sys

import click
import pytest

from nsagent import cli
from nsagent.errors import AccessError, NsagentError, UnsupportedError, UsageError, addressed
from tests.support import nsagent_argv, run_nsagent

GROUPS = {"bpf", "cgroup"}
NS = [f"ns {name}" for name in ("list", "tree", "show", "diff", "history")]


@pytest.mark.parametrize(
    "name", [*(n for n in cli.COMMANDS if n not in GROUPS), "bpf status", "bpf unload", "cgroup controllers", "cgroup tree", *NS]
)
def test_each_command_loads_and_has_examples(name: str) -> None:
    done = run_nsagent(*name.split(), "--help")
    assert done.returncode == 0, done.stderr
    assert f"Usage: nsagent {name}" in done.stdout
    assert "xample" in done.stdout, "examples belong at the end of --help"


def test_a_group_alone_shows_its_help() -> None:
    done = run_nsagent("bpf")
    assert "Usage: nsagent bpf" in done.stdout + done.stderr
    assert "error:" not in done.stderr


def test_epilog_keeps_its_lines() -> None:
    done = run_nsagent("--help")
    assert "\n    nsagent doctor        " in done.stdout
    assert "NSAGENT_<COMMAND>_<FLAG>" in done.stdout


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["--nonsense"], "No such option"),
        (["run", "--no-such-flag", "--", "true"], "No such option"),
        (["cgroup", "tree", "--depth", "x"], "Invalid value for '--depth': 'x' is not a valid whole number."),
    ],
)
def test_bad_command_lines_get_two_lines_and_exit_2(args: list[str], error: str) -> None:
    done = run_nsagent(*args)
    assert done.returncode == 2
    assert done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first.startswith("error: ")
    assert error in first
    assert second.startswith("hint: see 'nsagent")


@pytest.mark.parametrize(
    ("uid", "hint"), [(0, "it takes CAP_BPF, which this machine refuses even to root"), (1000, "run as root, or with CAP_BPF")]
)
def test_root_is_not_told_to_become_root(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], uid: int, hint: str
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: uid)
    assert cli.fail("no", AccessError("no", capability="CAP_BPF").hint, 125) == 125
    assert capsys.readouterr().err.startswith(f"error: no\nhint: {hint}")


@pytest.mark.parametrize(
    ("mask", "hint"), [(1 << 19, "not for lack of CAP_SYS_PTRACE"), (0, "run as root, or with CAP_SYS_PTRACE")]
)
def test_a_capability_is_not_asked_of_who_has_it(monkeypatch: pytest.MonkeyPatch, mask: int, hint: str) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("nsagent.errors.read_effective", lambda: mask)
    assert addressed(AccessError("no", capability="CAP_SYS_PTRACE").hint).startswith(hint)


def test_names_in_errors_are_made_printable(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.fail("no a\x1b[2J\udcff", "not\r", 125) == 125
    assert capsys.readouterr().err == "error: no a\\x1b[2J\\xff\nhint: not\\x0d\n"


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    """Run a command that raises `error` through cli.invoke, and return the exit code."""

    @click.command()
    def failing() -> None:
        raise error

    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda *_: failing)
    return cli.invoke(["doctor"])


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (NsagentError("no", hint="do it"), 125, "error: no\nhint: do it\n"),
        (UsageError("what"), 2, "error: what\n"),
        (UnsupportedError("btf", "not in this kernel"), 125, "error: btf: not in this kernel\n"),
        (AccessError("no", capability="CAP_BPF"), 125, "error: no\nhint: run as root, or with CAP_BPF\n"),
        (KeyboardInterrupt(), 130, ""),
        (SystemExit(7), 7, ""),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_errors_become_lines_and_exit_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, text: str
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    if isinstance(error, SystemExit):
        with pytest.raises(SystemExit) as ended:
            raising(monkeypatch, error)
        assert ended.value.code == code
    else:
        assert raising(monkeypatch, error) == code
    assert capsys.readouterr().err.lstrip("\n") == text


@pytest.mark.parametrize("debug", ["", "0", "1"])
def test_a_bug_is_one_line_and_a_traceback_only_if_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], debug: str
) -> None:
    monkeypatch.setenv("NSAGENT_DEBUG", debug)
    assert raising(monkeypatch, ZeroDivisionError("by\nzero")) == 125
    written = capsys.readouterr().err
    assert "error: internal error at test_cli.py:" in written
    assert "ZeroDivisionError: by zero\nhint: a bug in nsagent" in written
    assert ("Traceback" in written) == (debug == "1")


def test_a_closed_pipe_is_quiet() -> None:
    """`nsagent ... | head -0`: no traceback, no message."""
    source = "from nsagent import cli; cli.cli.callback = lambda **_: [print('x' * 99) for _ in range(9999)]"
    argv = [sys.executable, "-c", f"import sys; sys.argv = ['nsagent']; {source}; cli.main()"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() != 0


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("args", [["--help"], ["run", "--dry-run", "--", "true"]])
def test_output_on_a_full_disk_is_no_bug(args: list[str], unbuffered: str) -> None:
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        argv = [*nsagent_argv(), *args]
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, timeout=120, check=False)
        assert (done.returncode, done.stderr) == (125, "error: standard output: No space left on device\n")
        wrong = subprocess.run([*nsagent_argv(), "--nonsense"], stderr=full, env=environment, timeout=120, check=False)
    assert wrong.returncode == 2


def test_options_have_variables() -> None:
    done = run_nsagent("run", "--", "true", env={"NSAGENT_RUN_REPORT": "nonsense"})
    assert done.returncode == 2
    assert "nonsense" in done.stderr


def test_no_colour_without_a_terminal() -> None:
    assert "\x1b[" not in run_nsagent("--help").stdout
    assert nsagent_argv()[0].endswith("nsagent")
