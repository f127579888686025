"""A start that fails, or is stopped, after the programs were loaded: they must not go on counting for nobody."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nsagent.kernel import pins
from tests import support
from tests.kernel.agents import CACHE

pytestmark = pytest.mark.kernel


def test_a_start_that_fails_late_takes_back_what_it_loaded(world: list[str], pin_dir: Path) -> None:
    with socket.socket() as other:  # as another agent at the same moment: bound already, listening only when it is ready
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        with support.nsagent_running("agent", *world, "--cache-dir", CACHE, "--listen", listen) as agent:
            with pins.locked(str(pin_dir)):  # who owns the directory has bound its socket, and cannot load before we let it
                support.wait_for((pin_dir / "owner").exists, what="the agent to load")
                other.listen()
            _, stderr = agent.communicate(timeout=120)
    assert agent.returncode == 125
    assert "the port is in use" in stderr
    assert "event=loaded" in stderr
    assert not pin_dir.exists()


def test_ephemeral_stopped_while_it_loads_leaves_no_directory(world: list[str], pin_dir: Path) -> None:
    flags = ["--cache-dir", CACHE, "--listen", "127.0.0.1:0", "--ephemeral"]
    with support.nsagent_running("agent", *world, *flags) as agent:
        support.wait_for((pin_dir / "owner").exists, what="the agent to load")
        agent.send_signal(signal.SIGTERM)
        agent.communicate(timeout=120)
    assert agent.returncode == 0
    assert not pin_dir.exists()


ANNOUNCE = """
import os, resource, sys
from nsagent import agent, errors
free = os.dup(0)
os.close(free)
resource.setrlimit(resource.RLIMIT_NOFILE, (free, free))
try:
    with agent._announced(sys.argv[1], {}):
        print("announced")
except errors.AccessError as error:
    print(error, error.hint, sep="; ")
"""


def test_no_descriptor_left_for_agent_json(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ANNOUNCE, str(tmp_path)], cwd=support.ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == f"cannot write {tmp_path}/agent.json: Too many open files; raise the limit of open files: ulimit -n\n"
