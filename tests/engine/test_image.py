"""The image in a container that has what the DaemonSet has, and nothing else: its metrics are the node's.

It takes minutes: the image is built first.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from nsagent import namespaces
from nsagent.launch.security import NAMES
from nsagent.metrics import catalogue
from tests.conftest import BPFFS
from tests.engine import docker, image
from tests.engine.docker import Docker
from tests.kernel import agents
from tests.kernel.agents import Samples
from tests.support import cgroup_mounts, remove_cgroups, require_root, unique_name, wait_for

pytestmark = [pytest.mark.kernel, pytest.mark.engine, pytest.mark.slow]

MOST_MIB = 400
OF_THE_NODE = tuple(f"nsagent_{what}" for what in ("cgroup_", "findings_", "namespace", "oom_kills_", "syscalls_", "workload_"))
GET = """
import sys, urllib.request
sys.stdout.buffer.write(urllib.request.urlopen("http://127.0.0.1:10417" + sys.argv[1], timeout=120).read())
"""


@pytest.fixture(scope="module")
def engine() -> Iterator[Docker]:
    require_root()
    with (
        tempfile.TemporaryDirectory(prefix="nsagent-test-", dir="/var/tmp") as directory,
        docker.running(Path(directory), "--storage-driver=overlay2", image.runtime(Path(directory) / "runc")) as found,
    ):
        size = image.build(found)
        print(f"the image has {size / (1 << 20):.0f} MiB")
        assert size < MOST_MIB << 20
        yield found


class Node(NamedTuple):
    """Where an agent in a container keeps what a pod would keep on the node."""

    engine: Docker
    state: str
    cache: str
    pins: str

    @contextlib.contextmanager
    def agent(self) -> Iterator[InContainer]:
        """Run one as the chart's pod."""
        spec, container = image.pod(runtimeSockets=[self.engine.socket], args=[f"--pin-dir={self.pins}"])
        host = {"state": self.state, "cache": self.cache}
        name = unique_name("agent")
        self.engine.docker(
            "run", "--detach", "--name", name, *image.options(spec, container, host), image.IMAGE, *container["args"]
        )
        try:
            found = InContainer(self.engine, name)
            yield found
            self.engine.docker("stop", "--time", "120", name)
            assert self.engine.docker("inspect", "--format", "{{.State.ExitCode}}", name) == "0", found.log()
        finally:
            self.engine.remove(name)


class InContainer:
    """A running agent in a container."""

    def __init__(self, engine: Docker, name: str) -> None:
        self._engine, self.name = engine, name
        wait_for(self._ready, 300, "the agent in the container to be ready")
        self.id = engine.docker("inspect", "--format", "{{.Id}}", name)

    def log(self) -> str:
        """Return what it logged."""
        return self._engine.docker("logs", self.name)

    def _ready(self) -> bool:
        state = self._engine.docker("inspect", "--format", "{{.State.Running}} {{.State.Pid}}", self.name)
        running, self.pid = state.split()
        assert running == "true", self.log()
        return self._get("/-/ready") == b"nsagent is ready\n"

    def _get(self, path: str) -> bytes:
        """GET in its network namespace, as the kubelet and Prometheus would by its address."""
        argv = ["nsenter", f"--net=/proc/{self.pid}/ns/net", sys.executable, "-c", GET, path]
        return subprocess.run(argv, capture_output=True, check=False, timeout=180).stdout

    def capabilities(self) -> set[str]:
        """Return those that it has, which are all that it could have."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        effective, bounding = (int(status.split(f"{field}:\t")[1].split("\n")[0], 16) for field in ("CapEff", "CapBnd"))
        assert effective == bounding
        return {name for number, name in enumerate(NAMES) if effective >> number & 1}

    def peak(self) -> str:
        """Say what memory it has had at most."""
        paths = [mount / self._engine.name / self.id / "memory.max_usage_in_bytes" for mount in cgroup_mounts()]
        return "".join(f"memory at most {int(path.read_text()) >> 20} MiB" for path in paths if path.exists())

    def scrape(self) -> Samples:
        """Scrape it."""
        return agents.parse(self._get("/metrics"))


@pytest.fixture
def node(engine: Docker) -> Iterator[Node]:
    pins = BPFFS / unique_name("image")
    with tempfile.TemporaryDirectory(prefix="nsagent-test-", dir="/var/tmp") as directory:
        for name in ("state", "cache"):
            os.mkdir(f"{directory}/{name}", 0o755)
        yield Node(engine, f"{directory}/state", f"{directory}/cache", str(pins))
    if pins.exists():
        shutil.rmtree(pins)


class Work:
    """Processes of the node in a cgroup and a UTS namespace of their own: twenty each time, to their end."""

    def __init__(self, name: str) -> None:
        self.cgroup = f"/{name}"
        self._groups = [mount / name for mount in cgroup_mounts()]
        for group in self._groups:
            group.mkdir()
        self._holder = subprocess.Popen(["unshare", "--uts", "sh", "-c", "echo; exec sleep 1d"], stdout=subprocess.PIPE)
        assert self._holder.stdout
        assert self._holder.stdout.readline()
        found = namespaces.identify(f"/proc/{self._holder.pid}/ns/uts")
        self.uts = {"kind": "uts", "inum": str(found.inum), "id": str(found.id)}

    def run(self) -> None:
        """Fork twenty that use some CPU each, beside a new cgroup: when one was made is told of those that an agent sees made."""
        for group in self._groups:
            (group / f"run{len(list(group.glob('run*')))}").mkdir()
        place = ";".join(f"echo $$ 2>/dev/null > {group}/cgroup.procs" for group in self._groups)
        loop = "n=0; while [ $n -lt 20 ]; do n=$((n+1)); (i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done); done"
        argv = ["nsenter", f"--uts=/proc/{self._holder.pid}/ns/uts", "sh", "-c", f"{place}; {loop}"]
        subprocess.run(argv, check=True, stderr=subprocess.DEVNULL)

    def cpu_s(self) -> float | None:
        """Return what the kernel says of the cgroup; None where there is no v1 cpuacct, which says it to the nanosecond."""
        files = [group / "cpuacct.usage" for group in self._groups if (group / "cpuacct.usage").exists()]
        return int(files[0].read_text()) / 1e9 if files else None

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()
        remove_cgroups(self.cgroup[1:])


def names(samples: Samples, cgroup: str) -> dict[str, str]:
    """Return the labels of a cgroup's info; none before its container has a name."""
    found = [dict(labels) for series, labels in samples if series == "nsagent_cgroup_info"]
    return next((labels for labels in found if labels["cgroup"] == cgroup and labels["container"]), {})


def about(samples: Samples, cgroups: tuple[str, ...], inum: str) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    """Return the series of these cgroups and of this namespace."""

    def belongs(labels: dict[str, str]) -> bool:
        return labels["inum"] == inum if "inum" in labels else labels.get("cgroup") in cgroups

    return {key for key in samples if belongs(dict(key[1]))}


def check(samples: Samples, work: Work, runs: int) -> None:
    """Assert that all is told, and exactly: each run has twenty births."""
    assert agents.info(samples, "nsagent_mode_info")["accounting"] == "exact"
    assert agents.get(samples, "nsagent_namespace_processes_created_total", **work.uts) == 20 * runs
    used = work.cpu_s()
    if used is not None:
        assert agents.get(samples, "nsagent_cgroup_cpu_usage_seconds_total", cgroup=work.cgroup) == used


def test_the_agent_in_its_container_and_then_one_on_the_host(node: Node) -> None:
    """The node's metrics and other containers' names; a second start that compiles nothing; and the host's agent goes on."""
    work = Work(unique_name("work"))

    def named(agent: InContainer | agents.Agent, cgroup: str) -> Samples:
        wait_for(lambda: names(agent.scrape(), cgroup), what="the name of the other container")
        samples = agent.scrape()
        assert names(samples, cgroup)["container"] == "other"
        return samples

    try:
        with node.agent() as agent:
            assert "warm=false adopted=false" in agent.log()
            assert agent.capabilities() == set(image.pod()[1]["securityContext"]["capabilities"]["add"])
            work.run()
            number, _ = node.engine.run("other", "--memory=64m")  # with each limit that the agent's own container has
            other = f"/{node.engine.name}/{number}"
            samples = named(agent, other)
            check(samples, work, 1)
            lacks = {
                dict(labels)["feature"]: dict(labels).get("reason") for name, labels in samples if name == "nsagent_feature_info"
            }
            lacks = {feature: reason for feature, reason in lacks.items() if reason}
            assert lacks.keys() <= {"io_delay"}, lacks
            print(f"features that it lacks: {lacks}; {agent.peak()}")
        work.run()
        with node.agent() as agent:
            assert "warm=true adopted=true" in agent.log()
            work.run()
            inside = named(agent, other)
            check(inside, work, 3)
            print(agent.peak())
        flags = ["--state-dir", node.state, "--pin-dir", node.pins]
        with agents.running(flags, "--cache-dir", node.cache, "--runtime", node.engine.socket) as host:
            work.run()
            outside = named(host, other)
            check(outside, work, 4)
        cgroups = (work.cgroup, other, "/")
        assert about(inside, cgroups, work.uts["inum"]) == about(outside, cgroups, work.uts["inum"])
        # A file that was too slow is told where there was one; whether all adds up, when there is enough to compare.
        differ = {name for name, _ in inside} ^ {name for name, _ in outside}
        assert differ <= {"nsagent_file_backoffs_total", "nsagent_accounting_error_ratio"}
        # What an agent counts of its own work begins with it.
        counters = {
            family.name for family in catalogue.FAMILIES if family.type == "counter" and family.name.startswith(OF_THE_NODE)
        }
        assert len(counters) > 20
        fell = {key: (was, outside[key]) for key, was in inside.items() if key[0] in counters and outside.get(key, was) < was}
        assert not fell
    finally:
        work.close()
