"""How a job ends: exit codes, signals, timeouts, the terminal; and that nothing of it is left whichever way it went."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import subprocess
import termios
from pathlib import Path

import pytest

from tests import support
from tests.kernel.launching import Jobs, running
from tests.kernel.terminal import Shell

pytestmark = pytest.mark.kernel


@pytest.fixture
def ready(tmp_path: Path) -> str:
    """A file for `tail -f`, a program that handles no signal and can say that it runs: a shell catches SIGINT until it execs."""
    (tmp_path / "ready").write_text("ready\n")
    return str(tmp_path / "ready")


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, _ = process.communicate(timeout=120)
    return process.returncode, out


@pytest.mark.parametrize(
    ("command", "code", "outcome"),
    [
        (["true"], 0, "success"),
        (["sh", "-c", "exit 3"], 3, "failure"),
        (["sh", "-c", "exit 255"], 255, "failure"),
    ],
)
def test_exit_codes_are_the_commands(jobs: Jobs, command: list[str], code: int, outcome: str) -> None:
    done = jobs.run("--", *command)
    assert (done.code, done.report["outcome"], done.report["exit_code"]) == (code, outcome, code)
    (ended,) = jobs.registered("ended")
    assert (ended["outcome"], ended["exit_code"], ended["name"]) == (outcome, code, done.name)
    assert jobs.cgroups() == []


def test_a_command_that_cannot_run(jobs: Jobs, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("no program\n")
    cases = [("nosuch-command", 127), ("/nosuch/command", 127), (str(tmp_path), 126), (str(script), 126)]
    for command, code in cases:
        done = jobs.run("--", command)
        assert done.code == code, done.err
        assert done.err.startswith("error: ")
        assert "Traceback" not in done.err
        assert done.out == ""
    script.chmod(0o755)
    assert jobs.run("--", str(script)).code == 126  # ENOEXEC: no '#!' line
    script.write_text("#!/bin/sh\nexit 7\n")
    assert jobs.run("--", str(script)).code == 7  # the control
    assert {job["outcome"] for job in jobs.registered("ended")} == {"launch_error", "failure"}
    assert jobs.cgroups() == []


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--memory", "12Q"], 2),
        (["--isolate", "planet"], 2),
        (["--cpus", "0"], 2),
        (["--timeout", "soon"], 2),
        (["--no-such-flag"], 2),
        (["--hostname", "x", "--isolate", "pid"], 2),
        (["--report-file", "/nosuch/report"], 125),
        (["--workdir", "/nosuch"], 125),
        (["--io-max", "/proc:rbps=1M"], 2),
    ],
)
def test_impossible_words_get_one_line_and_a_hint(jobs: Jobs, args: list[str], code: int) -> None:
    done = jobs.run(*args, "--", "true")
    assert done.code == code
    first, *rest = done.err.splitlines()
    assert first.startswith("error: ")
    assert [line for line in rest if not line.startswith("hint: ")] == []
    assert rest
    assert jobs.cgroups() == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_signal_that_pid_one_does_not_handle_ends_the_job(jobs: Jobs, number: int, code: int, ready: str) -> None:
    name, process = jobs.start("--", "sh", "-c", f"sleep 1000 & exec tail -f {ready}")
    process.send_signal(number)
    assert finish(process)[0] == code
    assert jobs.report(name)["outcome"] == "signal"
    assert jobs.cgroups() == []


def test_a_handled_signal_is_passed_on_once(jobs: Jobs) -> None:
    script = 'trap "echo got" USR1; trap "exit 9" TERM; echo ready; while :; do sleep 0.05; done'
    _, process = jobs.start("--", "sh", "-c", script)
    process.send_signal(signal.SIGUSR1)
    assert process.stdout is not None
    assert process.stdout.readline() == "got\n"
    process.send_signal(signal.SIGTERM)
    assert finish(process) == (9, "")


def test_an_ignored_signal_changes_nothing(jobs: Jobs) -> None:
    _, process = jobs.start("--", "sh", "-c", 'trap "" INT; echo ready; read line; exit 4', stdin=subprocess.PIPE)
    process.send_signal(signal.SIGINT)
    support.wait_for(lambda: "State:\tS" in Path(f"/proc/{process.pid}/status").read_text())
    assert process.poll() is None
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    assert finish(process)[0] == 4


@pytest.mark.parametrize("more", [[], ["--isolate", "none"], ["--init"]])
def test_cmd_killed_by_a_signal(jobs: Jobs, more: list[str]) -> None:
    script = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    if more:  # a PID 1 cannot kill itself
        done = jobs.run(*more, "--", "python3", "-c", script)
    else:
        _, process = jobs.start("--", "sh", "-c", "echo ready; exec sleep 1000")
        (record,) = jobs.registered()
        os.kill(record["pid"], signal.SIGKILL)
        assert finish(process)[0] == 137
        return
    assert (done.code, done.report["outcome"]) == (137, "signal")
    assert "SIGKILL" in done.report["reason"]


def test_a_timeout(jobs: Jobs) -> None:
    done = jobs.run("--timeout", "200ms", "--", "sleep", "1000")
    assert (done.code, done.report["outcome"]) == (124, "timeout")
    assert jobs.run("--timeout", "60s", "--", "true").code == 0
    assert jobs.cgroups() == []


def test_a_timeout_of_a_job_that_ignores_sigterm(jobs: Jobs) -> None:
    script = 'trap "" TERM; sleep 1000 & while :; do sleep 1; done'
    done = jobs.run("--timeout", "200ms", "--stop-timeout", "200ms", "--", "sh", "-c", script)
    assert (done.code, done.report["outcome"]) == (124, "timeout")
    assert jobs.cgroups() == []


def test_a_timeout_lets_a_handler_finish(jobs: Jobs) -> None:
    script = 'trap "echo bye; exit 0" TERM; echo ready; while :; do sleep 0.05; done'
    for timeout in ("300ms", "3s", "30s", "90s"):  # in which a slow machine may not have set the trap
        done = jobs.run("--timeout", timeout, "--stop-timeout", "100s", "--", "sh", "-c", script, timeout=300)
        assert done.code == 124
        if "ready" in done.out:
            break
    assert done.out == "ready\nbye\n"


def test_init_reaps_and_forwards(jobs: Jobs, ready: str) -> None:
    # CMD may be ahead of its init, which closes what it has no use for when CMD runs; or this waits for ever.
    script = "echo $$; cat /proc/1/comm; until [ $(ls /proc/1/fd | wc -l) -le 4 ]; do :; done"
    done = jobs.run("--init", "--", "sh", "-c", script)
    pid, comm = done.out.split()
    assert int(pid) > 1
    assert comm == "nsagent-init"
    _, process = jobs.start("--init", "--", "sh", "-c", 'trap "exit 8" TERM; echo ready; while :; do sleep 0.05; done')
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 8
    _, process = jobs.start("--init", "--", "tail", "-f", ready)
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130
    # A child that leaves five orphans, and all have ended: there are as many processes as wanted, or this waits for ever.
    orphans = (
        "import os, sys, time, glob\n"
        "if not os.fork():\n  for i in range(5):\n    if not os.fork(): os._exit(0)\n  os._exit(0)\n"
        "def states():\n  for path in glob.glob('/proc/[0-9]*/stat'):\n"
        "    try: yield open(path).read().rpartition(')')[2].split()[0]\n    except OSError: pass\n"
        "while [len(found := list(states())), found.count('Z')] != list(map(int, sys.argv[1:])): time.sleep(0.05)\n"
        "print('seen')"
    )
    assert jobs.run("--init", "--", "python3", "-c", orphans, "3", "1").out == "seen\n"  # init, itself and its own child
    assert jobs.run("--", "python3", "-c", orphans, "7", "6").out == "seen\n"  # the control: nobody reaps the five


def in_foreground(marker: str) -> bool:
    """Tell whether a process with that word is what its terminal's keys are for: proc_pid_stat(5), pgrp and tpgid."""
    for pid in running(marker):
        with contextlib.suppress(FileNotFoundError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return fields[2] == fields[5] and fields[0] == "S"
    return False


def line(jobs: Jobs, *args: str) -> str:
    import shlex

    return shlex.join(jobs.argv(*args, report=False)[1])


def test_ctrl_c_ends_what_does_not_handle_it(jobs: Jobs, shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "words").write_text("upper\n")
    shell.send(line(jobs, "--", "tail", "-f", str(tmp_path / "words")) + "\n")  # a shell would catch it until it execs
    shell.expect("upper")
    shell.send("\x03")
    shell.expect("OUT> ")
    shell.send("echo code=$?\n")
    shell.expect("code=130")
    assert jobs.cgroups() == []


def test_ctrl_z_and_fg(jobs: Jobs, shell: Shell) -> None:
    shell.send(line(jobs, "--", "sh", "-c", "echo up''per; read word; echo got-$word; exit 6") + "\n")
    shell.expect("upper")
    shell.send("\x1a")
    shell.expect("Stopped")
    shell.expect("OUT> ")  # the line before has the command too: only now bash reads
    shell.send("fg\n")
    shell.expect("exit 6")
    shell.send("hello\n")
    shell.expect("got-hello")
    shell.expect("OUT> ")
    shell.send("echo code=$?\n")
    shell.expect("code=6")


def test_a_shell_inside_has_job_control_and_gives_the_terminal_back(jobs: Jobs, shell: Shell, tmp_path: Path) -> None:
    inner = tmp_path / "shell"
    inner.write_text("#!/bin/sh\nPS1='IN> ' exec bash --norc --noprofile --noediting -i\n")
    inner.chmod(0o755)
    shell.send(f"SHELL={inner} {line(jobs)}\n")  # no command: $SHELL
    shell.expect("IN> ")
    first, second = f"91{os.getpid()}.5", f"92{os.getpid()}.5"
    shell.send(f"echo pid=$$; sleep {first}\n")
    shell.expect("pid=1")
    support.wait_for(lambda: in_foreground(first), what="the first sleep")
    shell.send("\x03")
    shell.expect("IN> ")
    shell.send(f"echo code=$?; sleep {second}\n")
    shell.expect("code=130")
    support.wait_for(lambda: in_foreground(second), what="the second sleep")
    shell.send("\x1a")
    shell.expect("Stopped")
    # once bash knows that no stopped job is left, one exit is enough, and a second would be the outer shell's
    shell.send('kill -9 %1; while [ -n "$(jobs -sp)" ]; do sleep 0.05; done; exit 5\n')
    shell.expect("OUT> ")
    shell.send("echo code=$?; cat\n")
    shell.expect("code=5")
    shell.send("typed\n")
    shell.expect("typed\r\ntyped")  # the terminal is the outer shell's again
    shell.send("\x04")


def test_a_background_job_that_reads_the_terminal_stops_without_spinning(jobs: Jobs, shell: Shell) -> None:
    shell.send(line(jobs, "--", "cat") + " &\n")
    shell.expect("OUT> ")
    (record,) = support.wait_for(lambda: [r for r in jobs.registered() if r["pid"]], what="the job")

    def state() -> str:
        return Path(f"/proc/{record['pid']}/stat").read_text().rpartition(")")[2].split()[0]

    support.wait_for(lambda: state() == "T", what="the stop of cat")
    shell.send("fg\n")
    shell.expect("cat")
    support.wait_for(lambda: state() == "S", what="cat's wait for a line")
    shell.send("hello\n")
    shell.expect("hello\r\nhello")
    shell.send("\x04")
    shell.expect("OUT> ")
    assert running("nosuch-marker") == []


def test_a_long_job_has_a_line_on_the_terminal(jobs: Jobs, shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "words").write_text("upper\n")
    tail = line(jobs, "--", "tail", "-f", str(tmp_path / "words"))
    fcntl.ioctl(shell.fd, termios.TIOCSWINSZ, struct.pack("=HHHH", 24, 80, 0, 0))
    shell.send(f"{tail}\n")
    shell.expect("upper")
    shell.expect("\x1b[1;23r")  # the last row does not scroll
    shell.expect("\x1b[24;1H\x1b[2Kjob nsagent-test-")
    shell.expect(" s of CPU")
    shell.expect(" CPUs")  # the second time there is a difference
    shell.send("\x1a")
    shell.expect("\x1b[r")
    shell.expect("Stopped")
    shell.send("fg\n")
    shell.expect("\x1b[1;23r")
    shell.send("\x03")
    shell.expect("\x1b[r")
    shell.expect("OUT> ")


@pytest.mark.parametrize("how", ["--quiet", "stty -echo", "2>/dev/null"])
def test_no_line_where_none_is_wanted(jobs: Jobs, shell: Shell, how: str) -> None:
    fcntl.ioctl(shell.fd, termios.TIOCSWINSZ, struct.pack("=HHHH", 24, 80, 0, 0))
    script = "stty -echo; sleep 8; stty echo; echo do''ne" if how == "stty -echo" else "sleep 8; echo do''ne"
    words = line(jobs, *(["--quiet"] if how == "--quiet" else []), "--", "sh", "-c", script)
    shell.send(f"{words} {how if how.startswith('2') else ''}; echo code=$?\n")
    seen = ""
    while "code=0" not in seen:
        assert select.select([shell.fd], [], [], 120)[0]
        seen += os.read(shell.fd, 4096).decode(errors="replace")
    assert "done" in seen
    assert "\x1b[1;23r" not in seen
