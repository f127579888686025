"""An agent's life: start, restart, crash, refusal, shutdown; its clients; and what is left of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nsagent import namespaces
from nsagent.cgroups.layout import read_layout
from nsagent.kernel import features, pins
from tests.kernel.agents import CACHE, Agent, get, parse, running
from tests.support import nsagent_running, require_root, run_nsagent, unique_name, wait_for

pytestmark = pytest.mark.kernel

LIVE = "nsagent_namespace_processes_created_total"


@pytest.fixture(scope="module", autouse=True)
def _root() -> None:
    require_root()


def own_pid_namespace() -> dict[str, str]:
    """Return the labels of this process's PID namespace."""
    found = namespaces.identify("/proc/self/ns/pid")
    return {"kind": "pid", "inum": str(found.inum), "id": str(found.id)}


def spawn(count: int) -> None:
    for _ in range(count):
        subprocess.run(["/bin/true"], check=True)


@contextlib.contextmanager
def unsharer(count: int) -> Iterator[tuple[int, Callable[[], None]]]:
    """Have a process that, when told to, unshares its UTS namespace `count` times, fails once in setns, and ends."""
    code = (
        "import sys\nfrom nsagent import libc\nsys.stdin.readline()\n"
        f"for _ in range({count}): libc.unshare(libc.CLONE_NEWUTS)\n"
        "try: libc.setns(0)\nexcept OSError as error: assert error.errno == 22, error\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, text=True) as child:

        def go() -> None:
            child.communicate("go\n")
            assert child.returncode == 0

        yield child.pid, go


def test_counters_go_on_over_sigterm_and_sigkill(world: list[str], pin_dir: Path) -> None:
    labels = own_pid_namespace()
    with running(world) as agent:
        spawn(20)
        first = get(agent.scrape(), LIVE, **labels)
        assert first is not None
        assert first >= 20
        agent.stop()
    assert pin_dir.exists()
    spawn(20)  # nobody watches but the kernel
    with running(world) as agent:
        second = get(agent.scrape(), LIVE, **labels)
        assert second is not None
        assert second >= first + 20
        agent.kill()
    spawn(20)
    with running(world) as agent:
        assert (get(agent.scrape(), LIVE, **labels) or 0) >= second + 20
        log = agent.stop()
        assert "warm=true adopted=true" in log
        assert "compiling" not in log


def test_a_cgroup_keeps_what_a_child_used_that_ended_while_no_agent_ran(
    world: list[str], cgroup_name: str, tmp_path: Path
) -> None:
    layout = read_layout()
    outer = Path(layout.accounting[1].mountpoint) / cgroup_name
    size = 4 << 20
    code = (
        f"import os\nopen({str(outer / 'inner' / 'cgroup.procs')!r}, 'w').write('0')\n"
        f"f = open({str(tmp_path / 'file')!r}, 'wb'); f.write(bytes({size})); f.flush(); os.fsync(f.fileno())"
    )

    def written(agent: Agent) -> float:
        return get(agent.scrape(), "nsagent_cgroup_storage_bytes_total", cgroup=f"/{cgroup_name}", operation="write") or 0

    (outer / "inner").mkdir(parents=True)
    with running(world) as agent:
        assert written(agent) == 0
        agent.kill()
    subprocess.run([sys.executable, "-c", code], check=True)
    wait_for(lambda: not (outer / "inner" / "cgroup.procs").read_text())
    (outer / "inner").rmdir()
    with running(world, "--ephemeral") as agent:
        assert size <= written(agent) < size + (1 << 20)


def test_ephemeral_leaves_nothing(world: list[str], pin_dir: Path, state_dir: Path) -> None:
    with running(world, "--ephemeral") as agent:
        assert pin_dir.exists()
        agent.stop(signal.SIGINT)
    assert not pin_dir.exists()
    assert "agent.sock" not in os.listdir(state_dir)
    assert "agent.json" not in os.listdir(state_dir)


def test_sigterm_while_it_starts_leaves_nothing(world: list[str], pin_dir: Path) -> None:
    for pause in (0.2, 0.4, 0.6, 0.8):
        with nsagent_running("agent", "--listen", "127.0.0.1:0", "--cache-dir", CACHE, *world, "--ephemeral") as process:
            time.sleep(pause)  # at some moment of its start
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=120)
            assert process.returncode in (0, -signal.SIGTERM), log
        assert not (pin_dir / "new").exists()
        assert not list(pin_dir.glob("abi*"))


def test_a_second_agent_is_refused_by_state_and_by_pin_directory(world: list[str], tmp_path: Path) -> None:
    with running(world, "--ephemeral") as agent:
        done = run_nsagent("agent", "--listen", "127.0.0.1:0", *world)
        assert done.returncode == 125
        assert f"process {agent.process.pid}" in done.stderr.splitlines()[0]
        assert "hint: stop it first" in done.stderr
        elsewhere = ["--state-dir", str(tmp_path / "other"), *world[2:]]
        done = run_nsagent("agent", "--listen", "127.0.0.1:0", *elsewhere)
        assert done.returncode == 125
        assert f"error: process {agent.process.pid}" in done.stderr
        assert agent.scrape(), "the first one is not disturbed"


def test_a_port_in_use_is_told_before_anything_is_loaded(world: list[str], pin_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_nsagent("agent", "--listen", f"127.0.0.1:{port}", *world)
    assert done.returncode == 125
    assert done.stderr.splitlines()[0] == f"error: cannot listen on 127.0.0.1:{port}: the port is in use"
    assert done.stderr.splitlines()[1].startswith("hint: ")
    assert not pin_dir.exists()


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--listen", "nonsense"], "is not an address with a port"),
        (["--listen", "::1:80"], "stands in brackets"),
        (["--listen", "192.0.2.1:0"], "cannot listen on 192.0.2.1:0"),
        (["--retain", "soon"], "--retain 'soon' is not a time"),
        (["--contexts", "3"], "out of range"),
        (["--pin-dir", "/sys/fs/bpf/a.b"], "bpffs allows no dot"),
        (["--state-dir", "/tmp/" + "x" * 120], "too long"),
        (["--config", "/nonexistent.toml"], "cannot read /nonexistent.toml"),
    ],
)
def test_bad_settings_are_one_line(flags: list[str], error: str) -> None:
    done = run_nsagent("agent", *flags)
    assert done.returncode in (2, 125)
    assert error in done.stderr.splitlines()[0]
    assert "Traceback" not in done.stderr


def test_flags_before_variables_before_the_file(world: list[str], tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('listen = "nonsense-of-the-file"\nretain = "nonsense"\nno-bpf = true\n')
    flags = ["--config", str(file), *world]
    assert "nonsense-of-the-file" in run_nsagent("agent", *flags).stderr
    done = run_nsagent("agent", *flags, env={"NSAGENT_AGENT_LISTEN": "of-the-variable"})
    assert "of-the-variable" in done.stderr
    done = run_nsagent("agent", *flags, "--listen", "of-the-flag", env={"NSAGENT_AGENT_LISTEN": "of-the-variable"})
    assert "of-the-flag" in done.stderr
    file.write_text('retian = "5m"\n')
    done = run_nsagent("agent", *flags)
    assert done.returncode == 2
    assert "no setting is called 'retian'" in done.stderr
    file.write_text("no-bpf = true\nno-trace = true\n")
    with running(world, "--config", str(file)) as agent:
        assert agent.facts["bpf"] == "off"


def test_many_scrapes_at_once_and_a_slow_client(world: list[str]) -> None:
    with running(world, "--ephemeral") as agent, contextlib.ExitStack() as stack:
        host, _, port = agent.facts["listen"].rpartition(":")
        for _ in range(10):
            slow = stack.enter_context(socket.create_connection((host, int(port))))
            slow.sendall(b"GET /metr")
        bodies: list[bytes] = []
        threads = [threading.Thread(target=lambda: bodies.append(agent.get())) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(bodies) == 16
        assert all(parse(body) for body in bodies)
        assert agent.get("/-/healthy")


def test_counters_never_fall_under_churn(world: list[str]) -> None:
    with running(world, "--ephemeral", "--retain", "2s") as agent:
        last: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for _ in range(12):
            subprocess.run(["unshare", "--uts", "--ipc", "/bin/true"], check=True)
            now = agent.scrape()
            for key, value in now.items():
                if key[0].startswith("nsagent_namespace_") and key[0].endswith("_total"):
                    assert value >= last.get(key, 0), key
            last |= now


def test_metrics_over_the_socket_and_with_no_agent(world: list[str]) -> None:
    with running(world) as agent:
        done = run_nsagent("metrics", *world)
        assert done.returncode == 0
        assert done.stderr == ""
        assert get(parse(done.stdout.encode()), LIVE, **own_pid_namespace())
        agent.stop()
    done = run_nsagent("metrics", *world)
    assert done.returncode == 0
    assert "no agent" in done.stderr
    assert 'accounting="exact"' in done.stdout, "it reads the programs that were left"
    assert (get(parse(done.stdout.encode()), LIVE, **own_pid_namespace()) or 0) > 0
    assert run_nsagent("bpf", "unload", *world[2:]).returncode == 0
    done = run_nsagent("metrics", *world)
    assert 'accounting="approximate"' in done.stdout
    assert not Path(world[3]).exists(), "it loads nothing"


def loaded(trace: subprocess.Popen[str]) -> Path:
    """Wait until a `nsagent trace` without an agent has its programs; return its pin directory."""
    place = Path(f"/sys/fs/bpf/nsagent-trace-{trace.pid}")

    def ready() -> bool:
        assert trace.poll() is None, trace.communicate()
        return Path(pins.live_dir(str(place))).exists()

    wait_for(ready, 120, "the programs")
    return place


@contextlib.contextmanager
def tracing(*flags: str) -> Iterator[subprocess.Popen[str]]:
    with nsagent_running("trace", *flags) as process:
        yield process


def test_trace_clients_each_have_the_whole_stream(world: list[str]) -> None:
    with running(world, "--ephemeral") as agent, contextlib.ExitStack() as stack:
        pid, go = stack.enter_context(unsharer(23))
        flags = ["--pid", str(pid), *world[:2]]
        clients = [stack.enter_context(tracing("-o", "json", "--kind", "uts", "--count", "23", *flags)) for _ in range(3)]
        failed = stack.enter_context(tracing("--failed", "--count", "1", *flags))
        wait_for(lambda: clients_of(agent) == 4, what="four clients")
        go()
        for client in clients:
            events = [json.loads(line) for line in client.communicate(timeout=120)[0].splitlines()]
            assert client.returncode == 0
            assert [(event["pid"], event["result"]) for event in events] == [(pid, "ok")] * 23
        assert "setns(0, 0) = EINVAL" in failed.communicate(timeout=120)[0]


def clients_of(agent: Agent) -> int:
    """Count the threads of the agent that serve a control client; a status request would be one itself."""
    tasks = Path(f"/proc/{agent.process.pid}/fd")
    return sum(os.readlink(fd) == "anon_inode:[eventfd]" for fd in tasks.iterdir()) - 2  # the rings' readers have one each


def test_23_unshares_and_a_failed_setns_are_24_events(world: list[str]) -> None:
    with (
        running(world, "--ephemeral") as agent,
        unsharer(23) as (pid, go),
        tracing("--pid", str(pid), "-o", "json", *world[:2]) as trace,
    ):
        wait_for(lambda: clients_of(agent) == 1, what="the client")
        go()
        assert trace.stdout is not None
        events = [json.loads(trace.stdout.readline()) for _ in range(24)]
        trace.send_signal(signal.SIGINT)
        rest, errors = trace.communicate(timeout=120)
        assert trace.returncode == 130
        assert errors.strip() == "tracing"
        assert rest == "", "24 and no more"
        assert [(e["syscall"], e["result"]) for e in events] == [("unshare", "ok")] * 23 + [("setns", "EINVAL")]
        assert all(event["changes"][0]["kind"] == "uts" for event in events[:23])


def test_trace_with_no_agent_loads_its_own_and_unloads_it(state_dir: Path) -> None:
    flags = ["--state-dir", str(state_dir), "--cache-dir", CACHE]
    with unsharer(3) as (pid, go), tracing("--pid", str(pid), "--count", "4", *flags) as trace:
        place = loaded(trace)
        go()
        output, log = trace.communicate(timeout=120)
        assert trace.returncode == 0, log
        assert len(output.splitlines()) == 4
        assert "no agent" in log
        assert not place.exists()


def test_a_killed_trace_is_tidied_up_by_an_agent(world: list[str], tmp_path: Path) -> None:
    with tracing("--pid", "1", "--state-dir", str(tmp_path), "--cache-dir", CACHE) as trace:
        left = loaded(trace)
        trace.kill()
        trace.communicate()
    assert left.exists()
    with running(world):
        assert not left.exists()


def test_a_killed_trace_is_tidied_up_by_the_next(state_dir: Path) -> None:
    flags = ["--pid", "1", "--kind", "time", "--state-dir", str(state_dir), "--cache-dir", CACHE]  # which never happens
    with tracing(*flags) as trace:
        left = loaded(trace)
        trace.kill()
        trace.communicate()
    assert left.exists()
    with tracing(*flags) as trace:
        wait_for(lambda: not left.exists(), what="the next one to remove what was left")
        place = loaded(trace)
        trace.send_signal(signal.SIGTERM)
        trace.communicate(timeout=120)
        assert trace.returncode == 130
        assert not place.exists()


def test_status_and_agent_json(world: list[str]) -> None:
    with running(world, "--ephemeral") as agent:
        status = agent.status()
        assert status["pid"] == agent.process.pid
        assert status["listen"] == agent.facts["listen"]
        assert status["features"]["exact_accounting"] is None
        assert status["threads_exited"] >= status["threads_freed"] >= 0
        assert status["cgroups"] > 0
        assert status["traced_by"] == agent.facts["traced_by"] == ("functions" if _fentry() else "tracepoints")


def _fentry() -> bool:
    return next(feature for feature in features.probe() if feature.name == "fentry").available


def test_what_a_dead_launcher_left_is_swept_at_start(world: list[str]) -> None:
    name = unique_name("swept")
    with nsagent_running("run", "--name", name, "--state-dir", world[1], "--report", "none", "--", "sleep", "1000") as launcher:
        files = wait_for(lambda: list(Path(world[1], "jobs").glob(f"{name}-*.json")))
        record = wait_for(lambda: (found := json.loads(files[0].read_text())) and found["pid"] and found)
        launcher.kill()
        launcher.communicate()
    with running(world, "--ephemeral", "--no-bpf") as agent:
        assert not files[0].exists()
        assert (Path(world[1]) / "jobs/ended" / files[0].name).exists()
        wait_for(lambda: not Path(f"/proc/{record['pid']}").exists(), what="the end of the job")
        assert "event=swept" in agent.stop()
