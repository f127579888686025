"""`nsagent tour`: each claim holds on this host, in both languages; a false one is found; nothing is left."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nsagent import cli
from nsagent.tour import experiments, limits
from tests import support
from tests.support import ROOT

pytestmark = pytest.mark.kernel

NAMES = ("uts", "pid", "mnt", "user", "net", "ipc", "time", "cgroup")


@pytest.fixture(autouse=True, scope="module")
def _host() -> None:
    support.require_root()


def start(*words: str, **popen: object) -> subprocess.Popen[str]:
    """Start a tour."""
    argv = [*support.nsagent_argv(), "tour", *words]
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {"LC_ALL": "C.UTF-8"}
    given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "cwd": ROOT} | popen
    return subprocess.Popen(argv, text=True, env=environment, **given)  # type: ignore[call-overload,no-any-return]


def made(pid: int) -> list[Path]:
    """Return the directories and groups of a tour that are there."""
    found = [path for place in ("/tmp", "/var/tmp") for path in Path(place).glob(f"nsagent-tour-{pid}-*")]
    return found + [path for mount in support.cgroup_mounts() for path in mount.glob(f"nsagent-tour-{pid}")]


def running_jobs(pid: int) -> list[dict[str, Any]]:
    """Return the jobs of a tour that have a process."""
    records = []
    for path in Path("/tmp").glob(f"nsagent-tour-{pid}-*/jobs/*.json"):
        with contextlib.suppress(FileNotFoundError):
            records.append(json.loads(path.read_text()))
    return [record for record in records if record["pid"]]


@pytest.fixture(scope="module")
def tours() -> dict[str, str]:
    """Both languages at the same time: what each printed. System calls are traced in one of them."""
    running = {"en": start("--yes", "--lang", "en"), "zh": start("--yes", "--lang", "zh", "--no-trace")}
    said = {language: process.communicate(timeout=600)[0] for language, process in running.items()}
    assert {language: process.returncode for language, process in running.items()} == {"en": 0, "zh": 0}, said
    assert [path for process in running.values() for path in made(process.pid)] == []
    return said


def test_every_claim_holds(tours: dict[str, str]) -> None:
    text = tours["en"]
    for name in NAMES:
        assert f"== {name}: " in text
        assert re.search(rf"namespaces: outside {name}:\[\d+\], inside {name}:\[\d+\]", text)
        assert f"holds: outside and inside are two {name} namespaces" in text
    assert "FALSE" not in text
    disk = (
        []
        if limits.disk_place()
        else ["Not shown here: no directory that can be written to is on a disk, whose IO could be limited"]
    )
    assert [line for line in text.splitlines() if line.startswith("Not shown here: ")] == disk
    assert text.count("\n  holds: ") == int(re.findall(r"(\d+) claims, and all hold", text)[0]) >= 30


def test_system_calls_are_shown(tours: dict[str, str]) -> None:
    assert re.search(r"traced: .* clone3\(.*CLONE_NEWUTS.*\) = \d+ .*uts \d+→\d+", tours["en"])
    assert "不显示系统调用：--no-trace" in tours["zh"]


def test_the_other_language_takes_the_same_steps(tours: dict[str, str]) -> None:
    def steps(text: str) -> list[str]:
        lines = [line for line in text.splitlines() if line.startswith("  $ ")]
        return [re.sub(r"nsagent-tour-[\w-]+|/proc/\d+|\d{4,}\)", "", line) for line in lines]

    assert steps(tours["zh"]) == steps(tours["en"])
    assert tours["zh"].count("\n  成立: ") == tours["en"].count("\n  holds: ")


def test_a_false_claim_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tour", "time", "--yes", "--no-trace", "--lang", "en"]
    assert cli.invoke(words) == 0
    monkeypatch.setattr(experiments, "AHEAD_S", experiments.AHEAD_S + 86400)
    assert cli.invoke(words) == 1
    text = capsys.readouterr().out
    assert "\n  FALSE: inside, the host has been up for exactly a week longer\n" in text
    assert "1 of 2 claims are FALSE" in text


def test_a_setting_of_the_readers_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NSAGENT_RUN_ISOLATE", "none")
    assert cli.invoke(["tour", "uts", "--yes", "--no-trace"]) == 0


@pytest.mark.parametrize(("number", "words"), [(signal.SIGINT, []), (signal.SIGTERM, ["--no-trace"])])
def test_an_interrupted_tour_leaves_nothing(number: signal.Signals, words: list[str], tmp_path: Path) -> None:
    output = tmp_path / "out"
    with output.open("w") as file:
        process = start("cgroup", "--yes", *words, stdout=file)
    jobs = support.wait_for(lambda: running_jobs(process.pid) or process.poll() is not None, deadline=600, what="its endless job")
    assert isinstance(jobs, list), output.read_text()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(number)
    assert process.wait(300) == 130, output.read_text()
    assert made(process.pid) == []
    assert not [mount for mount in support.cgroup_mounts() for job in jobs if (mount / job["cgroup"]).exists()]
    assert not [pid for pid in (*children, *(job["pid"] for job in jobs)) if Path(f"/proc/{pid}").exists()]
    assert not [pid for pid in children if Path(f"/sys/fs/bpf/nsagent-trace-{pid}").exists()]


def test_on_a_terminal_it_waits_for_enter() -> None:
    ours, theirs = pty.openpty()
    try:
        process = start("uts", "--no-trace", stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        text = ""
        asked = 0
        while True:
            try:
                text += os.read(ours, 4096).decode(errors="replace")
            except OSError:  # the last of them has closed it
                break
            while text.count("[Enter runs it") > asked:
                assert text.count("  | ") >= asked  # what came before has run, and no more
                asked += 1
                os.write(ours, b"\n")
        assert process.wait(300) == 0, text
        assert asked == 4
    finally:
        os.close(ours)


def test_an_ordinary_user_sees_what_there_is() -> None:
    """By user namespaces: what needs none of the host's rights."""
    nobody = {"user": 65534, "group": 65534, "extra_groups": []}
    process = start("uts", "user", "net", "cgroup", "--yes", "--lang", "en", cwd="/", **nobody)
    text = process.communicate(timeout=300)[0]
    if "clone3" in text and "Not shown here" in text and "holds:" not in text:
        pytest.skip("this host lets users make no user namespaces")
    assert process.returncode == 0, text
    assert "user 65534 is you" in text
    assert "System calls are not shown: " in text
    assert "Not shown here: an ordinary user needs a delegated cgroup" in text
    assert made(process.pid) == []
