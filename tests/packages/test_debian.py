"""The Debian package, as apt handles it in a clean Debian 12 and 13: installed, used, upgraded, removed, purged.

And the wheel, in a virtual environment that knows nothing of the system's packages.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsagent import __version__
from tests import support
from tests.kernel import agents
from tests.packages import roots

pytestmark = [pytest.mark.kernel, pytest.mark.slow]
_NEXT = "0.1.1"


def build(tree: Path, out: Path) -> Path:
    """Build the package of a tree."""
    support.require(shutil.which("dh"), "debhelper is not installed (make deb)")
    done = subprocess.run([tree / "deploy/debian/build.sh", out], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return Path(done.stdout.split()[-1])


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build this version, and one after it with other BPF programs; return the directory of both."""
    out = tmp_path_factory.mktemp("packages")
    build(support.ROOT, out)
    tree = tmp_path_factory.mktemp("next") / "tree"
    shutil.copytree(support.ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", "build", "__pycache__", ".*_cache"))
    replace(tree / "nsagent/__init__.py", f'__version__ = "{__version__}"', f'__version__ = "{_NEXT}"')
    replace(tree / "bpf/account.c", "\n", "\n/* of the next version */\n")
    changelog = tree / "deploy/debian/changelog"
    changelog.write_text(changelog.read_text().replace(f"({__version__})", f"({_NEXT})") + "\n" + changelog.read_text())
    build(tree, out)
    return out


def replace(path: Path, old: str, new: str) -> None:
    """Replace the first one in a file."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.fixture(scope="module", params=roots.SUITES)
def root(request: pytest.FixtureRequest, packages: Path) -> Iterator[roots.Root]:
    """A Debian in which this version is installed by apt."""
    with roots.debian(request.param, packages) as made:
        made.good("apt-get update -qq")
        made.good(f"apt-get install -qq -y --no-install-recommends /packages/nsagent_{__version__}_all.deb")
        yield made


_FILES = "find / -xdev -path /proc -prune -o -path /sys -prune -o -path /packages -prune -o -print | sort"


class Service:
    """The agent as the unit starts it; there is no systemd here."""

    def __init__(self, root: roots.Root) -> None:
        script = "exec nsagent agent --config /etc/nsagent/agent.toml --listen 127.0.0.1:0"
        self.process = subprocess.Popen(root.argv(script), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._file = f"/proc/{self.process.pid}/root/run/nsagent/agent.json"
        self._root = root
        support.wait_for(self._ready, what="the agent to be ready")

    def _ready(self) -> bool:
        assert self.process.poll() is None, self.process.communicate()[1]
        done = self._root.run("cat /run/nsagent/agent.json")
        return done.returncode == 0 and json.loads(done.stdout)["pid"] == self.process.pid

    def stop(self) -> str:
        """End it as systemd does; return what it logged."""
        self.process.send_signal(signal.SIGTERM)
        log = self.process.communicate(timeout=120)[1]
        assert self.process.returncode == 0, log
        return log


def created(root: roots.Root) -> float:
    """Return how many processes the agent says were made in the host's PID namespace."""
    samples = agents.parse(root.good("nsagent metrics").encode())
    name, host = "nsagent_namespace_processes_created_total", {("kind", "pid"), ("inum", str(0xEFFFFFFC))}  # proc_ns.h
    (found,) = [value for (series, labels), value in samples.items() if series == name and host <= labels]
    return found


def test_installed_it_does_its_whole_job(root: roots.Root) -> None:
    assert root.good("nsagent --version").split()[-1] == __version__
    report = json.loads(root.good("nsagent doctor -o json"))
    assert report["lacking"] == []
    done = root.run("nsagent run --cpus 0.5 --memory 256M -- true")
    assert done.returncode == 0
    assert "exited with 0" in done.stderr
    assert "seccomp" not in done.stderr  # a filter that cannot be compiled is a note
    assert root.good("dpkg-query -W -f '${Conffiles}' nsagent").split()[0] == "/etc/nsagent/agent.toml"
    assert root.good("nsagent agent --config /etc/nsagent/agent.toml --check").startswith("# ok")


def test_manual_pages_and_completions(root: roots.Root) -> None:
    listed = root.good("dpkg -L nsagent").split()
    assert {"/usr/share/man/man1/nsagent.1.gz", "/usr/share/man/man1/nsagent-ns-show.1.gz"} <= set(listed)
    root.good("apt-get install -qq -y --no-install-recommends zsh fish")
    bash = "_nsagent_completion nsagent; echo ${COMPREPLY[*]}"
    words = "COMP_WORDS=(nsagent ns hi) COMP_CWORD=2"
    assert root.good(f"bash -c '. /usr/share/bash-completion/completions/nsagent; {words}; {bash}'") == "history\n"
    assert root.good("fish -c 'complete -C \"nsagent ns hi\"'").split()[0] == "history"
    zsh = "autoload -U compinit; compinit -D; _describe() { print -- $completions_with_descriptions }"
    assert root.good(f"zsh -c '{zsh}; words=(nsagent ns hi) CURRENT=3; _nsagent'").startswith("history:")


def test_an_upgrade_keeps_the_counters_and_a_purge_leaves_nothing(root: roots.Root) -> None:
    first = Service(root)
    root.good("i=0; while [ $i -lt 200 ]; do /bin/true; i=$((i+1)); done")
    before = created(root)
    assert before >= 200
    first.stop()
    root.good("echo 'retain = \"5m\"' >> /etc/nsagent/agent.toml")  # a change of the operator's stays
    root.good("i=0; while [ $i -lt 300 ]; do /bin/true; i=$((i+1)); done")  # nobody runs: the kernel counts
    root.good(f"apt-get install -qq -y --no-install-recommends /packages/nsagent_{_NEXT}_all.deb")
    assert root.good("nsagent --version").split()[-1] == _NEXT
    assert "5m" in root.good("cat /etc/nsagent/agent.toml")
    second = Service(root)
    after = created(root)
    log = second.stop()
    assert after >= before + 300
    assert "counters_restart" not in log
    pinned = root.good("find /sys/fs/bpf/nsagent").splitlines()
    assert len(pinned) > 20
    root.good("apt-get remove -qq -y nsagent")
    assert root.run("ls -d /sys/fs/bpf/nsagent").returncode == 2
    assert root.good("ls /etc/nsagent") == "agent.toml\n"  # a conffile goes with a purge only
    root.good("apt-get purge -qq -y nsagent")
    assert not re.findall(r"^.*nsagent.*$", root.good(_FILES), re.MULTILINE)
    assert "nsagent" not in root.good("ls -A /run")
    assert not [group for mount in support.cgroup_mounts() for group in (mount / "nsagent").glob("true-*")]


def test_lintian_finds_no_fault(packages: Path) -> None:
    support.require(shutil.which("lintian"), "lintian is not installed (make deb)")
    argv = ["lintian", "--allow-root", "--fail-on", "error,warning", f"{packages}/nsagent_{__version__}_all.deb"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout


def test_the_changelog_has_the_version() -> None:
    first = (support.ROOT / "deploy/debian/changelog").read_text().splitlines()[0]
    assert first.startswith(f"nsagent ({__version__}) ")


def test_the_wheel_finds_the_systems_bcc(tmp_path: Path, world: list[str]) -> None:
    """As `pip install nsagent` in any virtual environment: dependencies from the registry, BCC from the distribution."""
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, support.ROOT], check=True)
    (wheel,) = tmp_path.glob("nsagent-*.whl")
    subprocess.run(["/usr/bin/python3", "-m", "venv", tmp_path / "venv"], check=True)
    done = subprocess.run([tmp_path / "venv/bin/pip", "install", "-q", wheel], capture_output=True, text=True, check=False)
    support.require(done.returncode == 0, f"pip cannot install the dependencies: {done.stderr[-500:]}")
    nsagent = str(tmp_path / "venv/bin/nsagent")
    assert subprocess.run([tmp_path / "venv/bin/python", "-c", "import bcc"], capture_output=True, check=False).returncode != 0
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NSAGENT_")}
    doctor = subprocess.run([nsagent, "doctor", "-o", "json"], env=environment, capture_output=True, text=True, check=False)
    assert json.loads(doctor.stdout)["lacking"] == []
    argv = [nsagent, "agent", "--listen", "127.0.0.1:0", "--cache-dir", str(tmp_path / "cache"), *world]  # it compiles
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            agent = agents.Agent(process, Path(world[1]))
            assert agents.info(agent.scrape(), "nsagent_mode_info")["accounting"] == "exact"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(120)
