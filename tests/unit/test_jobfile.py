"""Job files: the words of the flags, in TOML; what is wrong is named with its line."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tests.support import run_nsagent


def plan(tmp_path: Path, text: str, *args: str) -> tuple[int, str, str]:
    path = tmp_path / "job.toml"
    path.write_text(text)
    done = run_nsagent("run", "--dry-run", "-f", str(path), *args)
    return done.returncode, done.stdout, done.stderr.replace(str(path), "FILE")


def test_a_file_is_what_the_same_flags_are(tmp_path: Path) -> None:
    text = """
        name = "nightly"            # the words of the flags
        command = ["make", "-j8"]
        isolate = "pid,mnt,uts"
        hostname = "bird"
        env = ["A=1", "B=two words"]
        timeout = "10m"
        stop-timeout = 5
        clean-env = true
        privileged = false
        cap-drop = "NET_RAW"
    """
    code, out, err = plan(tmp_path, text)
    words = ["--name", "nightly", "--isolate", "pid,mnt,uts", "--hostname", "bird", "--env", "A=1", "--env", "B=two words"]
    words += ["--timeout", "10m", "--stop-timeout", "5", "--clean-env", "--cap-drop", "NET_RAW"]
    flags = run_nsagent("run", "--dry-run", *words, "--", "make", "-j8")
    assert (code, err, flags.returncode) == (0, "", 0)
    assert out == flags.stdout
    assert "nightly" in out


def test_flags_and_variables_come_before_the_file(tmp_path: Path) -> None:
    text = 'name = "nightly"\ncommand = ["make"]\nhostname = "bird"\n'
    _, out, _ = plan(tmp_path, text, "--hostname", "fish", "--", "true")
    assert ("fish" in out, "bird" in out, "make" in out, "nightly" in out) == (True, False, False, True)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("command = ['true']\n\nmemroy = '1M'\n", 3, "there is no key 'memroy'"),
        ("command = ['true']\nfile = 'other'\n", 2, "there is no key 'file'"),
        ("command = 'true'\n", 1, "command is not a list of words"),
        ("name = 'x'\ninit = 'yes'\n", 2, "init is neither true nor false"),
        ("name = 'x'\n\n\ntimeout = 'soon'\n", 4, "'soon' is not a time"),
        ("# timeout\ntimeout = ['1s']\n", 2, "timeout is not a text or a number"),
        ("env = ['A=1']\nisolate = 'pid,planet'\n", 2, "planet"),
        ("hostname = 'x'\nisolate = 'pid'\n", 1, "--hostname without a new uts namespace"),
        ("name = 'x'\nuserns = 'always'\n", 2, "always"),
        ("name = 'x'\nenv = ['=1']\n", 2, "is not a variable"),
        ("timeout = '1s'\nsample = '0s'\ntimeout2 = 1\n", 3, "there is no key 'timeout2'"),
        ("timeout = 'soon'\nsample = 'often'\n", 1, "'soon' is not a time"),
        ("name = 'x'\nname = 'y'\n", 2, ""),
        ("name = \n", 1, ""),
        ("[limits]\ncpus = 1\n", 1, "there is no key 'limits'"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    code, out, err = plan(tmp_path, text)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: FILE:{line}: ")
    assert message in err


def test_a_misspelled_key_has_a_suggestion(tmp_path: Path) -> None:
    assert "hint: did you mean memory?" in plan(tmp_path, "memoryy = '1M'\n")[2]
    assert "hint: did you mean stop-timeout?" in plan(tmp_path, "stop_timeout = '1s'\n")[2]


def test_the_file_that_the_documentation_shows_is_one(tmp_path: Path) -> None:
    document = (Path(__file__).parent.parent.parent / "docs" / "jobs.md").read_text()
    text = document.partition("```toml\n")[2].partition("```")[0]
    assert tomllib.loads(text)["command"]
    code, _, err = plan(tmp_path, text)
    assert (code, err) == (0, "")


def test_a_file_that_is_not_there() -> None:
    done = run_nsagent("run", "-f", "/nosuch/job.toml")
    assert done.returncode == 125
    assert done.stderr.startswith("error: --file /nosuch/job.toml: No such file")
