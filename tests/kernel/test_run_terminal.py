"""`-t`: a terminal of CMD's own, shown on ours: size, keys, end of input; and ours as it was, afterwards."""

from __future__ import annotations

import fcntl
import shlex
import struct
import termios
from pathlib import Path

import pytest

from tests import support
from tests.kernel.launching import Jobs
from tests.kernel.terminal import Shell

pytestmark = pytest.mark.kernel


def resize(shell: Shell, rows: int, columns: int) -> None:
    fcntl.ioctl(shell.fd, termios.TIOCSWINSZ, struct.pack("=HHHH", rows, columns, 0, 0))


def line(jobs: Jobs, *args: str) -> str:
    return shlex.join(jobs.argv("-t", *args, report=False)[1]) + " 2>/dev/null\n"


@pytest.fixture
def words(tmp_path: Path) -> str:
    (tmp_path / "words").write_text("upper\n")
    return str(tmp_path / "words")


def test_size_and_its_change(jobs: Jobs, shell: Shell) -> None:
    resize(shell, 33, 77)
    script = 'trap "stty size" WINCH; stty size; tty; while :; do sleep 0.1; done'
    shell.send(line(jobs, "--", "sh", "-c", script))
    shell.expect("33 77")
    shell.expect("/dev/")  # it is a terminal
    resize(shell, 44, 88)
    shell.expect("44 88")
    shell.send("\x03")
    shell.expect("OUT> ")


@pytest.mark.parametrize("more", [[], ["--init"], ["--isolate", "none"]])
def test_ctrl_c_ends_it(jobs: Jobs, shell: Shell, words: str, more: list[str]) -> None:
    shell.send(line(jobs, *more, "--", "tail", "-f", words))
    shell.expect("upper")
    shell.send("\x03")
    shell.expect("OUT> ")
    shell.send("echo code=$?; cat\n")
    shell.expect("code=130")
    shell.send("typed\n")
    shell.expect("typed\r\ntyped")  # the terminal is as it was: it echoes, and gives lines
    shell.send("\x04")
    assert jobs.cgroups() == []


def test_a_handler_gets_ctrl_c_and_nobody_else_ends_it(jobs: Jobs, shell: Shell) -> None:
    script = 'trap "echo han""dled; exit 5" INT; echo rea""dy; while :; do sleep 0.1; done'
    shell.send(line(jobs, "--", "sh", "-c", script))
    shell.expect("ready\r\n")
    shell.send("\x03")
    shell.expect("handled")
    shell.expect("OUT> ")
    shell.send("echo code=$?\n")
    shell.expect("code=5")


def test_a_shell_inside_has_job_control(jobs: Jobs, shell: Shell) -> None:
    shell.send(line(jobs, "--env", "PS1=IN> ", "--", "bash", "--norc", "--noprofile", "--noediting", "-i"))
    shell.expect("\nIN> ")
    shell.send("sleep 1000\n")
    shell.expect("sleep 1000\r\n")
    (record,) = support.wait_for(lambda: [r for r in jobs.registered() if r["pid"]], 60)

    def sleeps() -> bool:
        children = Path(f"/proc/{record['pid']}/task/{record['pid']}/children").read_text().split()
        return bool(children) and Path(f"/proc/{children[0]}/comm").read_text() == "sleep\n"

    support.wait_for(sleeps, 60)
    shell.send("\x1a")
    shell.expect("Stopped")
    shell.send("kill -9 %1; exit 5\n")
    shell.send("exit 5\n")
    shell.expect("OUT> ")
    shell.send("echo code=$?\n")
    shell.expect("code=5")


def test_without_a_terminal_input_is_typed_and_its_end_is_ctrl_d(jobs: Jobs) -> None:
    done = jobs.run("-t", "--", "sh", "-c", "cat; [ -t 0 ] && [ -t 1 ] && echo terminal", stdin="typed\n")
    assert (done.code, done.out.replace("^D\b\b", "")) == (0, "typed\ntyped\nterminal\n")


def test_all_output_comes_through(jobs: Jobs) -> None:
    done = jobs.run("-t", "--", "seq", "200000", stdin=None)
    assert done.code == 0
    assert done.out.split() == [str(n) for n in range(1, 200001)]


def test_exec_on_a_terminal(jobs: Jobs, shell: Shell) -> None:
    name, _ = jobs.detach("--", "sleep", "1000")
    resize(shell, 21, 63)
    argv = [*support.nsagent_argv(), "exec", "-t", "--state-dir", str(jobs.state), name, "sh", "-c", "stty size; exec sleep 1000"]
    shell.send(shlex.join(argv) + "\n")
    shell.expect("21 63")
    (record,) = jobs.registered()
    cgroup = jobs.cgroups(name)[0] / "cgroup.procs"

    def sleeps() -> bool:
        pids = cgroup.read_text().split()
        return len(pids) == 2 and all(Path(f"/proc/{pid}/comm").read_text() == "sleep\n" for pid in pids)

    support.wait_for(sleeps, 60)
    shell.send("\x03")
    shell.expect("OUT> ")
    shell.send("echo code=$?\n")
    shell.expect("code=130")
    assert jobs.command("rm", "-f", record["id"]).returncode == 0


def test_a_detached_job_can_have_one(jobs: Jobs) -> None:
    name, _ = jobs.detach("-t", "--", "sh", "-c", "[ -t 0 ] && [ -t 2 ] && echo terminal; read x")
    support.wait_for(lambda: jobs.command("logs", name).stdout == "terminal\n", 60)
    assert jobs.command("rm", "-f", name).returncode == 0
