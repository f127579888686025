"""What the agent loses without each capability: run as root, it prints the table of docs/security.md.

The real agent is started with one set of capabilities after the other, beside a small workload: cgroups, one of them with
processes of root and of another user in namespaces of their own. Compared are its figures of these, its features, what
`nsagent ns show` and `nsagent trace` tell of them, and the CPU of a scrape. Each start compiles. It takes some minutes, and all
that it makes is called nsagent-test-caps-*.

    python tools/capabilities.py ["the DaemonSet's" ...]    these rows alone
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from nsagent.launch.security import NAMES

NSAGENT = str(Path(sys.executable).with_name("nsagent"))
NEEDED = ("bpf", "perfmon", "sys_ptrace", "dac_read_search", "setuid", "setgid")  # of the DaemonSet
MORE = ("sys_admin", "sys_resource", "syslog", "kill", "net_admin", "dac_override", "chown", "fowner", "setpcap", "ipc_lock")
CGROUPS = 50
SCRAPES = 11
_UNSHARE = "import ctypes, sys; ctypes.CDLL(None).unshare(0x14000000); sys.stdin.read()"  # CLONE_NEWUSER | CLONE_NEWUTS
_NOBODY = "setpriv --reuid 65534 --regid 65534 --clear-groups"
_SERIES = re.compile(r"^(\w+)\{?(.*?)\}? [^ ]+$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclasses.dataclass(frozen=True)
class Seen:
    """What one agent showed: series of the workload by family, the reasons of features that it lacks, what it told of the
    workload, CPU of a scrape."""

    ready: str
    series: Counter[str] = dataclasses.field(default_factory=Counter)
    lacks: dict[str, str] = dataclasses.field(default_factory=dict)
    told: frozenset[str] = frozenset()
    scrape_ms: float = 0.0


class Workload(NamedTuple):
    """The top of its cgroups, and its processes: root's, another user's, and one that keeps a namespace by a descriptor."""

    name: str
    root: int
    other: int
    keeper: int

    def inums(self) -> set[str]:
        """Return the inode numbers of its namespaces that are not the host's."""
        found = {f"/proc/{pid}/ns/{kind}" for pid in self[1:] for kind in os.listdir("/proc/self/ns")} | {
            f"/proc/{self.keeper}/fd/9"
        }
        return {str(os.stat(path).st_ino) for path in found} - {
            str(os.stat(f"/proc/self/ns/{kind}").st_ino) for kind in os.listdir("/proc/self/ns")
        }

    def ask(self, state_dir: str, bounded: list[str]) -> Iterator[str]:
        """Yield what the agent with this state directory tells of it, to commands that are `bounded` as it is (kubectl exec)."""
        of = {"root's": f"/proc/{self.root}/ns/uts", "another user's": f"/proc/{self.other}/ns/uts"}
        for whose, path in of.items():
            if show(bounded, path, state_dir).get("history", {}).get("members"):
                yield f"the members of {whose} namespace"
        if show(bounded, f"/proc/{self.keeper}/fd/9", state_dir).get("namespace"):
            yield "a namespace that another user's descriptor keeps"
        for whose, user in (("root", ""), ("another user", _NOBODY)):
            event = self._trace(state_dir, user)
            yield from (f"{key} of an event of {whose}" for key in ("exe", "cgroup") if event.get(key))

    def _trace(self, state_dir: str, user: str) -> dict[str, Any]:
        """Return the event of an unshare in the cgroup that this very process makes, as `nsagent trace` has it."""
        place = " ".join(f"echo $$ > {mount / self.name}/0/cgroup.procs 2>/dev/null;" for mount in hierarchies())
        argv = ["sh", "-c", f'{place} read -r line; exec {user} /usr/bin/python3 -c "$0"', _UNSHARE]
        with subprocess.Popen(argv, stdin=subprocess.PIPE) as process:
            argv = [
                "timeout",
                "30",
                NSAGENT,
                "trace",
                "--state-dir",
                state_dir,
                "--output",
                "json",
                "--pid",
                str(process.pid),
                "--count",
                "1",
            ]
            with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as trace:
                assert trace.stderr
                assert trace.stdout
                trace.stderr.readline()  # it says that it traces
                assert process.stdin
                process.stdin.write(b"\n")
                process.stdin.flush()
                found: dict[str, Any] = json.loads(trace.stdout.readline() or "{}")
        return found


def show(bounded: list[str], path: str, state_dir: str) -> dict[str, Any]:
    """Return what `nsagent ns show` says of a namespace; nothing where it finds none."""
    argv = [*bounded, NSAGENT, "ns", "show", f"uts:{os.stat(path).st_ino}", "--state-dir", state_dir, "--output", "json"]
    done = subprocess.run(argv, capture_output=True, check=False)
    found: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
    return found


def hierarchies() -> list[Path]:
    """Return the mount points of all cgroup hierarchies."""
    lines = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [Path(words[4]) for words in lines if words[words.index("-") + 1] in ("cgroup", "cgroup2")]


@contextlib.contextmanager
def workload(name: str) -> Iterator[Workload]:
    """Run it."""
    groups = [mount / name for mount in hierarchies()]
    for group in groups:
        group.mkdir()
        for number in range(CGROUPS):
            (group / str(number)).mkdir()
    place = " ".join(f"echo $$ > {group}/0/cgroup.procs 2>/dev/null;" for group in groups)
    commands = (
        f"{place} exec unshare --mount --uts --ipc --net --cgroup sleep 1d",
        f"{place} exec {_NOBODY} unshare --user --net --uts sleep 1d",
        # Another user's process, back in the namespace of the host, holds a descriptor of one that nobody is in.
        f"{place} exec unshare --uts sh -c 'exec 9</proc/self/ns/uts; exec nsenter --uts=/proc/$PPID/ns/uts {_NOBODY} sleep 1d'",
    )
    processes = [subprocess.Popen(["sh", "-c", command]) for command in commands]
    try:
        for process in processes:
            while Path(f"/proc/{process.pid}/comm").read_text() != "sleep\n":
                time.sleep(0.01)
        yield Workload(name, *(process.pid for process in processes))
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for group in groups:
            for child in (*group.iterdir(), group):
                with contextlib.suppress(NotADirectoryError):
                    child.rmdir()


def see(capabilities: tuple[str, ...], work: Workload) -> Seen:
    """Start an agent that has these and no others, and look."""
    name, inums = work.name, work.inums()
    bounds = ",".join(("-all", *(f"+{each}" for each in capabilities)))
    directory, pins = Path(tempfile.mkdtemp(prefix=f"{name}-")), Path(f"/sys/fs/bpf/{name}")
    bounded = ["setpriv", "--bounding-set", bounds, "--inh-caps", "-all", "--no-new-privs"]
    argv = [*bounded, NSAGENT, "agent"]
    argv += [
        "--listen",
        "127.0.0.1:0",
        "--state-dir",
        str(directory),
        "--pin-dir",
        str(pins),
        "--cache-dir",
        f"{directory}/cache",
    ]
    process = subprocess.Popen([*argv, "--no-runtimes", "--ephemeral"], stderr=subprocess.DEVNULL)
    try:
        while not (directory / "agent.json").exists():
            if process.poll() is not None:
                return Seen("does not start")
            time.sleep(0.05)
        url = f"http://{json.loads((directory / 'agent.json').read_text())['listen']}/metrics"
        series: Counter[str] = Counter()
        lacks, spent = {}, []
        for _ in range(SCRAPES):
            time.sleep(0.05)
            with urllib.request.urlopen(url, timeout=120) as answer:
                lines = answer.read().decode().splitlines()
            spent.append(float(next(line for line in lines if line.startswith("process_cpu_seconds_total ")).split()[1]))
        for line in lines:
            if found := _SERIES.match(line):
                labels = dict(_LABEL.findall(found[2]))
                if labels.get("inum") in inums or labels.get("cgroup", "").startswith(f"/{name}"):
                    series[found[1]] += 1
                if found[1] == "nsagent_feature_info" and labels.get("reason"):
                    lacks[labels["feature"]] = labels["reason"]
                if found[1] == "nsagent_mode_info":
                    mode = labels["accounting"]
        steps = [1e3 * (after - before) for before, after in itertools.pairwise(spent[2:])]
        told = frozenset(work.ask(str(directory), bounded)) if "tracing" not in lacks else frozenset()
        return Seen(mode, series, lacks, told, statistics.median(steps))
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(directory, ignore_errors=True)
        shutil.rmtree(pins, ignore_errors=True)


def lost(seen: Seen, whole: Seen) -> str:
    """Say what `seen` has less than `whole`."""
    said = [f"{feature}: {reason}" for feature, reason in seen.lacks.items() if reason != whole.lacks.get(feature)]
    gone = [family for family in whole.series if not seen.series[family]]
    fewer = [family for family in whole.series if 0 < seen.series[family] < whole.series[family]]
    said += [f"without {', '.join(gone)}"] if gone else []
    said += [f"fewer series of {', '.join(fewer)}"] if fewer else []
    if "tracing" not in seen.lacks:
        said += sorted(whole.told - seen.told)
    return "; ".join(said) or "nothing"


def main() -> None:
    """Print the table."""
    name = f"nsagent-test-caps-{os.getpid()}"
    bounding = int(re.findall(r"CapBnd:\t(\w+)", Path("/proc/self/status").read_text())[0], 16)
    more = tuple(each for each in MORE if bounding >> NAMES.index(each.upper()) & 1)
    every = (*NEEDED, *more)
    sets: dict[str, tuple[str, ...]] = {"all of these": every}
    sets |= {f"all but {each}": tuple(other for other in every if other != each) for each in every}
    sets |= {"the DaemonSet's": NEEDED}
    sets |= {f"the DaemonSet's but {each}": tuple(other for other in NEEDED if other != each) for each in NEEDED}
    sets |= {f"the DaemonSet's and {each}": (*NEEDED, each) for each in more}
    sets |= {"none": ()}
    wanted = sys.argv[1:] or list(sets)
    print("| capabilities | figures | lost | CPU of a scrape |\n|---|---|---|---:|")
    with workload(name) as work:
        whole = see(every, work)
        for label in wanted:
            seen = see(sets[label], work)
            print(f"| {label} | {seen.ready} | {lost(seen, whole)} | {seen.scrape_ms:.1f} ms |", flush=True)


if __name__ == "__main__":
    main()
