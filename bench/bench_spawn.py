"""posix_spawn, exec and wait of /bin/true with an agent running (accounting and tracing attached) and without one, in
alternating blocks: what nsagent costs the processes of a node at birth, exec and exit."""

from __future__ import annotations

import os

from bench.agent import running_agent
from bench.measure import Result, elapsed

TITLE = "Cost to the processes of the node"
BLOCKS = 6
SPAWNS = 400


def spawn() -> None:
    """Run /bin/true to its end."""
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(pid, 0)


def block() -> list[float]:
    """Return the times of SPAWNS spawns, in microseconds."""
    for _ in range(50):
        spawn()
    return [elapsed(spawn) * 1000 for _ in range(SPAWNS)]


def measure() -> Result:
    """Alternate blocks with and without an agent."""
    without: list[float] = []
    attached: list[float] = []
    for _ in range(BLOCKS):
        without += block()
        with running_agent():
            attached += block()
    result = Result()
    result.add({"spawn+exec+wait, no agent": without, "with the programs": attached}, "µs", "spawn+exec+wait, no agent")
    return result
