"""The commands of the documentation, run as they stand there: each block in order, each with the exit code it shall have.

What they name (a job, a pid, a disk, a directory of the host) stands for something of a world that this test makes. One that
would serve or show for ever is ended when it has begun to. Those of docs/commands.md take a minute: `slow`.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import docs, support
from tests.kernel import agents
from tools import commands

pytestmark = pytest.mark.kernel

_MAKE = "tests/kernel/test_demo.py runs it; the others of make are what runs this"
_HOST = "it changes the host: a package's test does it in a root of its own"
_TOUR = "tests/kernel/test_tour.py runs it"
_SYSTEMD = "no systemd is PID 1 here"
NOT_RUN: dict[str, str] = {
    **dict.fromkeys(["make", "make demo", "make test", "make test ARGS='tests/unit -k cgroup -x'"], _MAKE),
    **dict.fromkeys(["apt install ./nsagent_0.1.0_all.deb", "apt install python3-bpfcc"], _HOST),
    **dict.fromkeys(["python3 -m venv /opt/nsagent", "/opt/nsagent/bin/pip install nsagent"], _HOST),
    **dict.fromkeys(
        [
            "install -D -m 644 deploy/systemd/nsagent.service /etc/systemd/system/nsagent.service",
            """install -d /etc/nsagent && echo 'listen = "127.0.0.1:10417"' > /etc/nsagent/agent.toml""",
            "rm -r /etc/systemd/system/nsagent.service /etc/nsagent /var/cache/nsagent /run/nsagent",
        ],
        _HOST,
    ),
    **dict.fromkeys(
        ["systemctl daemon-reload", "systemctl enable --now nsagent", "systemctl disable --now nsagent"], _SYSTEMD
    ),
    **dict.fromkeys(
        [
            "nsagent run --rootfs ./debian --read-only -v ./in:/in:ro -v ./out:/out --tmpfs /tmp -- /in/build",
            "nsagent run -t --rootfs ./debian -- bash",
        ],
        "it needs a root file system: tests/kernel/test_run_filesystem.py has one",
    ),
    **dict.fromkeys(["nsagent enter train --join-cgroup -- gdb -p 1", "nsagent exec -t web -- bash"], "somebody must type"),
    **dict.fromkeys(["nsagent tour", "nsagent tour pid cgroup", "nsagent tour --yes"], _TOUR),
    **dict.fromkeys(["nsagent tour --lang zh", "nsagent tour --lang zh net"], _TOUR),
    **dict.fromkeys(
        [
            "docker build -f deploy/image/Containerfile -t registry.example/nsagent:0.1.0 .",
            "docker push registry.example/nsagent:0.1.0",
        ],
        "there is no registry: tests/engine/test_image.py builds the image and runs it",
    ),
    **dict.fromkeys(
        [
            "kubectl create namespace nsagent",
            "kubectl label namespace nsagent pod-security.kubernetes.io/enforce=privileged",
            "helm install nsagent deploy/helm/nsagent --namespace nsagent --set image.repository=registry.example/nsagent",
            "kubectl apply --server-side -k .",
            "kubectl -n nsagent rollout status daemonset/nsagent",
            "kubectl -n nsagent exec daemonset/nsagent -- nsagent doctor",
        ],
        "there is no cluster: tests/unit/test_kubernetes.py renders what these apply",
    ),
    "nsagent trace --cgroup /docker": "there is no docker here: tests/engine has one",
}  # fmt: skip
if not Path("/sys/fs/cgroup/cpu").is_dir():
    NOT_RUN["mkdir /sys/fs/cgroup/cpu/batch && echo 50000 > /sys/fs/cgroup/cpu/batch/cpu.cfs_quota_us"] = "it is for cgroup v1"
EXIT: dict[str, int] = {}  # where it is not 0
_JOBS = ("nightly", "web", "db", "worker")
# What must have been before; without an entry jobs that are named run.
BEFORE: dict[str, str] = {
    "nsagent logs -f --tail 20 web": "nsagent rm --force web; nsagent run -d --name web -- echo hello && nsagent wait web",
    "nsagent wait nightly && echo good": "nsagent run -d --name nightly -- true",
    "nsagent wait $(nsagent ps -q)": "nsagent run -d -- sleep 20; nsagent stop train",
    "nsagent rm nightly": "nsagent run --name nightly -- true",
    "nsagent inspect nightly | jq .report.usage.cpu_ns": "nsagent rm --force nightly; nsagent run --name nightly -- true",
    "nsagent resume nightly": "nsagent run -d --name nightly -- sleep 600 && nsagent pause nightly",
}
_QUICK = [page for page in docs.pages() if page.name != "commands.md"]
_ASKS_FOR_JOBS = re.compile(rf"4242|4026532182|/nsagent\b|\b({'|'.join(_JOBS)}|train)\b")
_PROGRAMS = ("server", "client", "one", "two", "sort", "nightly", "train", "backup", "check")
_FOR_EVER = re.compile(r"nsagent (agent|trace)(?! .*(--check|--dry-run|--count))")

_JQ = sorted({each.text for each in docs.walk_commands() if "| jq" in each.text})
_PRINT_SOMETHING = re.compile(
    r"nsagent (ns (list|show|diff)|bpf status|inspect)"
)  # of the others some hosts have nothing to tell


def blocks(slow: bool) -> dict[str, list[str]]:
    """Return what is to be run, by page and line of its block."""
    quick = {str(page.relative_to(support.ROOT)) for page in _QUICK}
    found: dict[str, list[str]] = {}
    for (page, block), group in itertools.groupby(docs.walk_commands(), lambda each: (each.page, each.block)):
        texts = [each.text for each in group if each.text not in NOT_RUN]
        if texts and (page not in quick) == slow:
            found[f"{page}:{block}"] = texts
    return found


class World:
    """A directory, the variables that keep nsagent in it, and an agent."""

    def __init__(self, path: Path, pin_dir: Path) -> None:
        self.path = path
        self.pin_dir = pin_dir
        self.state_dir = path / "state"
        self.agent: agents.Agent
        self.done: set[str] = set()
        self.names: dict[str, str] = {}
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("NSAGENT_")},
            **self._variables(),
            "PATH": f"{Path(support.nsagent_argv()[0]).parent}:{os.environ['PATH']}",
            "SHELL": "/bin/sh",
        }

    def _variables(self) -> dict[str, str]:
        values = {
            "--state-dir": self.state_dir,
            "--pin-dir": self.pin_dir,
            "--cache-dir": agents.CACHE,
            "--listen": "127.0.0.1:0",
        }
        found: dict[str, str] = {}
        for page in commands.walk_pages():
            words = [option.split()[0] for option, _ in page.options]
            prefix = page.name.upper().replace(" ", "_")
            found |= {f"{prefix}_{word[2:].upper().replace('-', '_')}": str(values[word]) for word in words if word in values}
        return found | {"NSAGENT_BPF_UNLOAD_PIN_DIR": f"{self.pin_dir}-none"}

    def meant(self, text: str) -> str:
        """Return the text with this world's names."""
        return re.sub("|".join(map(re.escape, self.names)), lambda found: self.names[found[0]], text)

    def shell(self, text: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(
            ["bash", "-c", text], cwd=self.path, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip

    def good(self, text: str) -> str:
        """Run what must be well; return what it printed."""
        done = self.shell(text)
        assert done.returncode == 0, f"{text}: {done.stderr}"
        return done.stdout.strip()

    def running(self) -> dict[str, str]:
        """Return the ids of the jobs that run, by their names."""
        return {job["name"]: job["id"] for job in json.loads(self.good("nsagent ps --json"))}

    def begin(self, texts: list[str]) -> None:
        """End the jobs of the block before; `train` runs, in namespaces of its own of every kind, where it is asked for."""
        if not _ASKS_FOR_JOBS.search(" ".join(texts)):
            return
        running = self.running()
        if others := [job for name, job in running.items() if name != "train"]:
            self.good(f"nsagent rm --force {' '.join(others)}")
        if "train" not in running:
            self.good("nsagent run -d --name train --isolate all -- sleep 3600")
        train = json.loads(self.good("nsagent inspect train"))
        self.names |= {"4242": str(train["pid"]), "4026532182": str(train["namespaces"]["uts"])}

    def prepare(self, text: str) -> None:
        """Make what the command finds: what BEFORE has for it, else the jobs that it names."""
        named = set() if re.match(r"nsagent run\b", text) else {name for name in _JOBS if re.search(rf"\b{name}\b", text)}
        if text in BEFORE:
            self.good(BEFORE[text])
        elif named:
            for name in named - self.running().keys():
                self.good(f"nsagent run -d --name {name} -- sleep 3600")

    def run(self, text: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the documentation; of one that is for ever, its begin."""
        if text == "nsagent agent":  # the one of this world was started so
            assert self.agent.process.poll() is None
            return subprocess.CompletedProcess(text, 0, "", "")
        if text.startswith("nsagent agent ") and _FOR_EVER.search(text):
            text += " --check"
        elif _FOR_EVER.search(text):
            return self.watch(text)
        return self.shell(self.meant(text) + ("\nwait" if text.endswith("&") else ""))

    def watch(self, text: str) -> subprocess.CompletedProcess[str]:
        """Run until something is shown, end it by Ctrl-C, which is 130, and return that as success."""
        argv = ["bash", "-c", f"exec {self.meant(text)}"]
        with subprocess.Popen(
            argv, cwd=self.path, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            os.set_blocking(process.stdout.fileno(), False)

            def shown() -> bytes | None:
                self.shell(
                    "unshare --uts true; nsenter --net=/proc/self/ns/uts true"
                )  # something to see, and something that fails
                assert process.poll() is None, process.communicate()[1]
                assert process.stdout is not None
                return process.stdout.read()

            try:
                support.wait_for(shown, what=f"something that {text!r} shows")
                process.send_signal(signal.SIGINT)
                code = process.wait(120)
            finally:
                process.kill()
        return subprocess.CompletedProcess(argv, 0 if code == 130 else code, "", "")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Make the world; its agent is what `nsagent agent` starts."""
    support.require_root()
    path = tmp_path_factory.mktemp("docs")
    world = World(path, Path("/sys/fs/bpf") / support.unique_name("docs"))
    group, network = support.unique_name("batch"), support.unique_name("net")
    for name in ("srv", "lib", "log", "etc"):
        (path / name).mkdir()
    for name in _PROGRAMS:
        (path / name).write_text("#!/bin/sh\ntrue\n")
        (path / name).chmod(0o755)
    (path / "srv/check").symlink_to(path / "check")
    (path / "Makefile").write_text("all test:\n\t@true\n")
    (path / "vmlinux").symlink_to("/sys/kernel/btf/vmlinux")
    (path / "notes").symlink_to("/sys/kernel/notes")
    (path / "etc/agent.toml").write_text('retain = "5m"\n')
    (path / "etc/web.yml").write_text("http_server_config: {headers: {X-Frame-Options: deny}}\n")
    (path / "nightly.toml").write_text(next(block.text for block in docs.walk_blocks() if block.language == "toml"))
    disks = [line.split()[3] for line in Path("/proc/partitions").read_text().splitlines()[2:]]
    world.names = {
        "/dev/vda": next((f"/dev/{name}" for name in disks if Path(f"/dev/{name}").is_block_device()), "/dev/vda"),
        "/sys/fs/bpf/a ": f"{world.pin_dir}-a ", "/tmp/a": f"{path}/a", "/etc/nsagent": f"{path}/etc", "/srv": f"{path}/srv",
        "/var/lib/prometheus/node-exporter": f"{path}/lib", "/var/lib/node_exporter": f"{path}/lib",
        "/var/log/nsagent": f"{path}/log", "/run/nsagent/http.sock": f"{path}/http.sock",
        "--parent batch": f"--parent {group}", "/cpu/batch": f"/cpu/{group}", "net:blue": f"net:{network}",
        "net:4026531840": f"net:{os.stat('/proc/self/ns/net').st_ino}",  # that of every boot, but not in a container
        "ns diff 1 ": f"ns diff {os.getpid()} ",  # of PID 1 some machines let nobody read
    }  # fmt: skip
    subprocess.run(["ip", "netns", "add", network], check=True)
    try:
        for mount in support.cgroup_mounts():  # `--parent batch` finds one; on v1 a command makes that of cpu
            if mount.name not in ("cpu", "cpu,cpuacct"):
                (mount / group).mkdir()
        flags = {"env": world.environment, "cwd": path, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(["bash", "-c", "exec nsagent agent"], **flags) as process:  # type: ignore[call-overload]
            try:
                world.agent = agents.Agent(process, world.state_dir)
                yield world
                world.shell("nsagent rm --force $(nsagent ps -aq)")
            finally:
                process.send_signal(signal.SIGTERM)
                ended = process.wait(120)
        assert ended == 0
    finally:
        support.run_nsagent("bpf", "unload", "--pin-dir", str(world.pin_dir))
        subprocess.run(["ip", "netns", "del", network], check=True)
        support.remove_cgroups(group)


def _run(world: World, texts: list[str]) -> None:
    world.begin(texts)
    for text in texts:
        if text in world.done:
            continue
        world.prepare(text)
        done = world.run(text)
        expected = EXIT.get(text, 0)
        assert done.returncode == expected, f"{text}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        world.done.add(text)


@pytest.mark.parametrize("block", blocks(slow=False))
def test_commands_of_a_page(world: World, block: str) -> None:
    _run(world, blocks(slow=False)[block])


@pytest.mark.slow
@pytest.mark.parametrize("block", blocks(slow=True))
def test_examples_of_the_help(world: World, block: str) -> None:
    _run(world, blocks(slow=True)[block])


@pytest.mark.parametrize("text", _JQ)
def test_a_filter_fits_the_document(world: World, text: str) -> None:
    """jq fails on a list that is none, and prints null for a key that is not there. Its exit code is that of the command."""
    support.require(shutil.which("jq"), "jq is not installed")
    world.begin([text])
    world.prepare(text)
    done = world.run(text)
    assert done.returncode == 0, done.stderr
    assert "null" not in done.stdout.splitlines()
    assert done.stdout or not _PRINT_SOMETHING.match(text)


def test_the_job_file_hides_what_is_below_tmp(world: World) -> None:
    """A tmpfs at /tmp, as docs/jobs.md says: who stands there names another directory to start in."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="nsagent-test-") as place:
        argv = f"cd {place} && nsagent run -f {world.path}/nightly.toml"
        refused = world.shell(f"{argv} -- true")
        assert refused.returncode == 125
        assert "No such file" in refused.stderr
        assert place in refused.stderr
        world.good(f"{argv} --workdir / -- true")
