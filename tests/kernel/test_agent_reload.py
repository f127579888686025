"""A running agent takes new settings, listens at a path, and writes a file for node_exporter."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import bcrypt
import pytest

from tests.kernel.agents import CACHE, Agent, get, parse, running
from tests.support import nsagent_running, require_root, wait_for

pytestmark = pytest.mark.kernel

SUCCESS = "nsagent_config_last_reload_success"
TIME = "nsagent_config_last_reload_success_timestamp_seconds"


@pytest.fixture(scope="module", autouse=True)
def _root() -> None:
    require_root()


def post(agent: Agent, path: str) -> tuple[int, str]:
    """Return status and body."""
    try:
        with urllib.request.urlopen(urllib.request.Request(agent.url + path, method="POST"), timeout=120) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def outcome(agent: Agent) -> tuple[float | None, float]:
    samples = agent.scrape()
    return get(samples, SUCCESS), get(samples, TIME) or 0


def hang_up(agent: Agent, success: float, since: float) -> None:
    """Send SIGHUP, and wait for what comes of it: a later time, or no success."""
    agent.process.send_signal(signal.SIGHUP)
    wait_for(lambda: (now := outcome(agent))[0] == success and (not success or now[1] > since), what=f"success {success}")


def test_sighup_takes_what_can_change_and_names_the_rest(world: list[str], tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('log-level = "warning"\n')
    with running([*world], "--config", str(file), "--no-bpf") as agent:
        success, start = outcome(agent)
        assert success == 1
        assert abs(start - time.time()) < 3600
        rule = {"rule": "orphan"}
        assert get(agent.scrape(), "nsagent_findings_total", **rule) == 0
        file.write_text('log-level = "info"\nretain = "1s"\nfinding-off = ["orphan"]\nrate = 5\ncontexts = 99\n')
        hang_up(agent, 1, start)
        assert get(agent.scrape(), "nsagent_findings_total", **rule) is None
        good = outcome(agent)
        file.write_text('retain = "soon"\nfinding-off = []\n')
        hang_up(agent, 0, 0)
        assert outcome(agent) == (0, good[1]), "the time is that of the one in force"
        assert get(agent.scrape(), "nsagent_findings_total", **rule) is None, "nothing of a bad file is taken"
        file.write_text("rate = 'many'\n")
        agent.process.send_signal(signal.SIGHUP)
        file.write_text("finding-off = []\n")
        hang_up(agent, 1, good[1])
        assert get(agent.scrape(), "nsagent_findings_total", **rule) == 0
        log = agent.stop()
    assert "event=reloaded changed=finding-off,log-level,rate,retain" in log
    assert "event=restart_needed settings=contexts" in log
    assert "event=reload_failed reason=--retain 'soon' is not a time" in log
    assert "event=stopping signal=SIGTERM" in log


def test_retain_changes_for_what_has_ended(world: list[str], cgroup_name: str, tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('retain = "1h"\n')
    group = Path("/sys/fs/cgroup/pids" if Path("/sys/fs/cgroup/pids").exists() else "/sys/fs/cgroup") / cgroup_name
    with running(world, "--config", str(file), "--no-bpf") as agent:

        def shown() -> bool:
            return any(("cgroup", f"/{cgroup_name}") in labels for _, labels in agent.scrape())

        group.mkdir()
        wait_for(shown)
        group.rmdir()
        assert shown()
        file.write_text('retain = "1ms"\n')
        agent.process.send_signal(signal.SIGHUP)
        wait_for(lambda: not shown(), what="it to be forgotten")


def test_the_rate_changes_in_the_kernel(world: list[str], tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text("rate = 0\n")
    call = "from nsagent.libc import *\nfor _ in range(500): unshare(CLONE_NEWUTS)"
    cut = ("nsagent_trace_lost_events_total", {"reason": "rate_limited"})
    with running(world, "--ephemeral", "--config", str(file)) as agent:
        start = outcome(agent)[1]
        before = get(agent.scrape(), cut[0], **cut[1]) or 0
        subprocess.run([sys.executable, "-c", call], check=True)
        assert (get(agent.scrape(), cut[0], **cut[1]) or 0) == before
        file.write_text("rate = 1\n")
        hang_up(agent, 1, start)
        subprocess.run([sys.executable, "-c", call], check=True)
        assert (get(agent.scrape(), cut[0], **cut[1]) or 0) > before


def test_sighup_while_it_starts_waits_for_the_start(world: list[str], state_dir: Path) -> None:
    flags = ["--listen", "127.0.0.1:0", "--cache-dir", CACHE, *world, "--no-bpf"]
    with nsagent_running("agent", *flags) as process:
        wait_for(lambda: "nsagent" in Path(f"/proc/{process.pid}/cmdline").read_text(), what="the agent's exec")
        wait_for(lambda: _blocks_hangups(process.pid), what="the agent to get that far")
        process.send_signal(signal.SIGHUP)
        agent = Agent(process, state_dir)
        assert outcome(agent)[0] == 1
        wait_for(lambda: _pending(process.pid) == 0)
        assert "event=reloaded" in agent.stop()


def _mask(pid: int, name: str) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1], 16) & 1 << signal.SIGHUP - 1


def _blocks_hangups(pid: int) -> bool:
    return bool(_mask(pid, "SigBlk"))


def _pending(pid: int) -> int:
    return _mask(pid, "ShdPnd")


def test_reload_over_http_with_users_of_a_web_configuration(world: list[str], tmp_path: Path) -> None:
    file, web = tmp_path / "agent.toml", tmp_path / "web.yml"
    web.write_text("")
    file.write_text(f'web.config.file = "{web}"\nweb.enable-lifecycle = true\n')
    with running(world, "--config", str(file), "--no-bpf") as agent:
        assert post(agent, "/-/reload") == (200, "reloaded: nothing changed\n")
        web.write_text("nonsense: 1\n")
        status, body = post(agent, "/-/reload")
        assert status == 500
        assert "no setting is called 'nonsense'" in body
        assert outcome(agent)[0] == 0
        web.write_text(f"basic_auth_users: {{alice: '{bcrypt.hashpw(b'secret', bcrypt.gensalt(4)).decode()}'}}\n")
        assert post(agent, "/-/reload")[0] == 401, "the file alone is enough"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            agent.get()
        body = agent.get(Authorization="Basic " + base64.b64encode(b"alice:secret").decode()).decode()
        assert f"{SUCCESS} 0\n" in body
    with running(world, "--no-bpf") as agent:
        status, body = post(agent, "/-/reload")
        assert status == 403
        assert "--web.enable-lifecycle" in body


def ask(path: str) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(120)
        client.connect(path)
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        return b"".join(iter(lambda: client.recv(65536), b"")).partition(b"\r\n\r\n")[2]


@contextlib.contextmanager
def at_path(world: list[str], path: Path) -> Iterator[Agent]:
    with nsagent_running("agent", "--listen", f"unix:{path}", "--cache-dir", CACHE, *world, "--no-bpf") as process:
        yield Agent(process, Path(world[1]))


def test_it_listens_at_a_path_and_takes_over_what_a_killed_one_left(world: list[str], tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with at_path(world, path) as agent:
        assert agent.facts["listen"] == f"unix:{path}"
        assert parse(ask(str(path)))
        assert path.stat().st_mode & 0o777 == 0o660
        agent.kill()
    assert path.exists()
    with at_path(world, path) as agent:
        assert parse(ask(str(path)))
        agent.stop()
    assert not path.exists()


def test_the_textfile_is_what_a_scrape_has_without_the_process(world: list[str], tmp_path: Path) -> None:
    directory = tmp_path / "textfile"
    directory.mkdir()
    path = directory / "nsagent.prom"
    with running(world, "--no-bpf", "--textfile", str(directory)) as agent:
        first = wait_for(lambda: path.exists() and path.stat().st_ino)

        def alike() -> bool:  # what is looked at now and then may come between the one and the other
            written, scraped = parse(path.read_bytes()), agent.scrape()
            assert get(written, "nsagent_scrape_samples") == len(written)
            return {name for name, _ in scraped if name.startswith("nsagent_")} == {name for name, _ in written}

        wait_for(alike, what="a file with the families of a scrape")
        assert path.stat().st_mode & 0o777 == 0o644
        wait_for(lambda: path.stat().st_ino != first, what="the next tick")
        agent.stop()
    assert os.listdir(directory) == []


def test_a_service_manager_is_told(world: list[str], tmp_path: Path) -> None:
    """When it serves, that it goes round, that it reads its settings, that it ends: sd_notify(3)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(120)
        environment = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "60000000"}
        with running([*world], "--no-bpf", env=environment) as agent:
            assert manager.recv(4096).decode() == f"READY=1\nSTATUS=serving {agent.facts['listen']}"
            assert agent.get()
            assert manager.recv(4096) == b"WATCHDOG=1"
            agent.process.send_signal(signal.SIGHUP)
            heard = iter(lambda: manager.recv(4096).decode(), "STOPPING=1")
            assert next(each for each in heard if each != "WATCHDOG=1").startswith("RELOADING=1\n")
            assert next(each for each in heard if each != "WATCHDOG=1") == "READY=1"
            agent.stop()
            assert [each for each in heard if each != "WATCHDOG=1"] == []
