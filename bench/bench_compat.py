"""One GET /metrics of two agents in turns, one of them with `--compat cadvisor`, which show 200 cgroups, a sleeping process in
each, and none of the host's: wall time, CPU of the agent (its process clock), samples."""

from __future__ import annotations

from bench.agent import Agent, running_agent
from bench.bench_scrape import cgroups, raised_file_limit
from bench.measure import PREFIX, Result, elapsed

TITLE = "A scrape under cAdvisor's names too"
SIZE, ROUNDS = 200, 20


def measure() -> Result:
    """Scrape both in turns."""
    result = Result()
    only = ("--cgroup-include", f"/{PREFIX}")
    with raised_file_limit(), running_agent(*only) as off, running_agent(*only, "--compat", "cadvisor") as on, cgroups(SIZE):
        agents: dict[str, Agent] = {"off": off, "on": on}
        wall: dict[str, list[float]] = {f"wall, {name}": [] for name in agents}
        cpu: dict[str, list[float]] = {f"agent CPU, {name}": [] for name in agents}
        for number in range(ROUNDS + 1):
            for name, agent in agents.items():
                before = agent.cpu_ms()
                took = elapsed(agent.scrape)
                if number:  # the first sees what is new
                    wall[f"wall, {name}"].append(took)
                    cpu[f"agent CPU, {name}"].append(agent.cpu_ms() - before)
        for name, agent in agents.items():
            samples = sum(not line.startswith(b"#") for line in agent.scrape().splitlines())
            result.notes.append(f"{name}: {samples:,} samples, PSS of the agent {agent.pss_mb():.1f} MB.")
    result.add(wall, "ms", "wall, off")
    result.add(cpu, "ms", "agent CPU, off")
    return result
